"""Gaussians with first-order autoregressive covariance for TensorFlow Probability, and the ρ-VAE.

The core (`MultivariateNormalAR1` and its relatives `MultivariateNormalARH1`,
`MultivariateNormalANTE1` and `MultivariateNormalOU`, `LinearOperatorAR1Cholesky`, `params`,
`priors`) does not use Keras. `layers`, `vae` and `RhoVAE` need Keras 3 on its TensorFlow backend.
"""

import importlib
import pathlib
import sys
from typing import Any

from tfp_ar1.version import __version__

_MODULE_OF_CLASS = {
    "LinearOperatorAR1Cholesky": "tfp_ar1.linear_operator_ar1_cholesky",
    "MultivariateNormalANTE1": "tfp_ar1.mvn_ante1",
    "MultivariateNormalAR1": "tfp_ar1.mvn_ar1",
    "MultivariateNormalARH1": "tfp_ar1.mvn_arh1",
    "MultivariateNormalOU": "tfp_ar1.mvn_ou",
    "RhoVAE": "tfp_ar1.vae",
    "SequenceVAE": "tfp_ar1.vae",
}
_MODULES = ("layers", "params", "priors", "tfpl", "vae")

__all__ = [*_MODULE_OF_CLASS, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"tfp_ar1.{name}")
    if name in _MODULE_OF_CLASS:
        return getattr(importlib.import_module(_MODULE_OF_CLASS[name]), name)
    raise AttributeError(f"module 'tfp_ar1' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def _import_parts() -> None:
    """Imports the core, which registers its KLs, and the Keras classes where Keras is in use.

    TensorFlow imports Keras itself, as a rule. The classes are registered with Keras right away, so
    that a saved model can be loaded after nothing more than `import tfp_ar1`.
    """
    importlib.import_module("tfp_ar1.priors")
    keras_config = getattr(sys.modules.get("keras"), "config", None)
    if keras_config is not None and keras_config.backend() == "tensorflow":
        importlib.import_module("tfp_ar1.vae")


# The command line (`tfp-ar1`, or `python -m tfp_ar1`, where Python sets argv[0] to "-m" until it
# has found the program) checks its arguments before it spends seconds on TensorFlow.
if pathlib.Path((getattr(sys, "argv", None) or [""])[0]).stem not in ("-m", "tfp-ar1"):
    _import_parts()

"""Gaussians with first-order autoregressive covariance for TensorFlow Probability, and the ρ-VAE.

The core (`MultivariateNormalAR1`, `LinearOperatorAR1Cholesky`, `params`, `priors`) does not use
Keras. `layers`, `vae` and `RhoVAE` need Keras 3 on its TensorFlow backend.
"""

import importlib
import sys
from typing import Any

from tfp_ar1 import params, priors
from tfp_ar1.linear_operator_ar1_cholesky import LinearOperatorAR1Cholesky
from tfp_ar1.mvn_ar1 import MultivariateNormalAR1
from tfp_ar1.version import __version__

__all__ = [
    "LinearOperatorAR1Cholesky",
    "MultivariateNormalAR1",
    "RhoVAE",
    "__version__",
    "layers",
    "params",
    "priors",
    "vae",
]


def __getattr__(name: str) -> Any:
    if name in ("layers", "vae"):
        return importlib.import_module(f"tfp_ar1.{name}")
    if name == "RhoVAE":
        return importlib.import_module("tfp_ar1.vae").RhoVAE
    raise AttributeError(f"module 'tfp_ar1' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


# TensorFlow has imported Keras already, as a rule. The classes are registered with it now, so that
# a saved model can be loaded after nothing more than `import tfp_ar1`.
_keras_config = getattr(sys.modules.get("keras"), "config", None)
if _keras_config is not None and _keras_config.backend() == "tensorflow":
    importlib.import_module("tfp_ar1.vae")

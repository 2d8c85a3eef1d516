"""Gaussians with first-order autoregressive covariance for TensorFlow Probability, and the ρ-VAE.

The core (`MultivariateNormalAR1` and its relatives `MultivariateNormalARH1`,
`MultivariateNormalANTE1` and `MultivariateNormalOU`, `LinearOperatorAR1Cholesky`, `params`,
`priors`, `inference`, `sts`) does not use Keras. `layers`, `vae` and `RhoVAE` need Keras 3 on its
TensorFlow backend, `tfpl` needs tf_keras.
"""

import importlib
import sys
from typing import Any

from tfp_ar1 import inference, params, priors, sts
from tfp_ar1.distributions import kl as kl  # Registers the KL divergences.
from tfp_ar1.distributions import kl_state_space as kl_state_space
from tfp_ar1.distributions.mvn_ante1 import MultivariateNormalANTE1
from tfp_ar1.distributions.mvn_ar1 import MultivariateNormalAR1
from tfp_ar1.distributions.mvn_arh1 import MultivariateNormalARH1
from tfp_ar1.distributions.mvn_ou import MultivariateNormalOU
from tfp_ar1.linear_operators.ar1_cholesky import LinearOperatorAR1Cholesky
from tfp_ar1.version import __version__

# These modules need Keras 3 or tf_keras, so they are imported on first access.
_KERAS_MODULES = ("layers", "tfpl", "vae")
_MODELS = ("RhoVAE", "SequenceVAE")

__all__ = [
    "LinearOperatorAR1Cholesky",
    "MultivariateNormalANTE1",
    "MultivariateNormalAR1",
    "MultivariateNormalARH1",
    "MultivariateNormalOU",
    "RhoVAE",
    "SequenceVAE",
    "__version__",
    "inference",
    "layers",
    "params",
    "priors",
    "sts",
    "tfpl",
    "vae",
]


def __getattr__(name: str) -> Any:
    if name in _KERAS_MODULES:
        return importlib.import_module(f"tfp_ar1.{name}")
    if name in _MODELS:
        return getattr(importlib.import_module("tfp_ar1.vae"), name)
    raise AttributeError(f"module 'tfp_ar1' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


# TensorFlow itself imports Keras 3, unless told to use the legacy one. If Keras 3 is loaded,
# register its classes now, so that saved models load after just `import tfp_ar1`.
_keras_config = getattr(sys.modules.get("keras"), "config", None)
if _keras_config is not None and _keras_config.backend() == "tensorflow":
    importlib.import_module("tfp_ar1.vae")

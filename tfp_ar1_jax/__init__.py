"""`tfp_ar1` on JAX: the same distributions, operators and KL divergences, on TFP's JAX substrate.

Nothing here imports TensorFlow; TFP's substrate does if it is installed, to copy docstrings.
`layers`, `vae`, `RhoVAE` and `SequenceVAE` need Keras 3 on its JAX backend.
"""

import importlib
import pathlib
import sys
from typing import Any

from tfp_ar1_jax import _rewrite

try:
    import tensorflow_probability.substrates.jax  # noqa: F401
except (AttributeError, ImportError) as error:
    raise ImportError(
        "`tfp_ar1_jax` needs the JAX substrate of TensorFlow Probability; version 0.25 supports "
        "JAX up to 0.6.2, `tfp-nightly` newer versions. Run `pip install '.[jax]'` in the "
        f"project's folder, or see docs/jax.md; got {error!r}."
    ) from error

_rewrite.install(__name__, pathlib.Path(__file__).parent)

from tfp_ar1_jax import _backend, families, inference, params, priors, sts  # noqa: E402
from tfp_ar1_jax.distributions import kl as kl  # noqa: E402  Registers the KL divergences.
from tfp_ar1_jax.distributions import kl_state_space as kl_state_space  # noqa: E402
from tfp_ar1_jax.distributions.conditional import ConditionalMarkov  # noqa: E402
from tfp_ar1_jax.distributions.mvn_ante1 import MultivariateNormalANTE1  # noqa: E402
from tfp_ar1_jax.distributions.mvn_ar1 import MultivariateNormalAR1  # noqa: E402
from tfp_ar1_jax.distributions.mvn_arh1 import MultivariateNormalARH1  # noqa: E402
from tfp_ar1_jax.distributions.mvn_ou import MultivariateNormalOU  # noqa: E402
from tfp_ar1_jax.distributions.noise import MarkovSites, NoisyGaussianMarkovChain  # noqa: E402
from tfp_ar1_jax.linear_operators.ar1_cholesky import LinearOperatorAR1Cholesky  # noqa: E402
from tfp_ar1_jax.version import __version__  # noqa: E402

for _class in (*families.members(), ConditionalMarkov, NoisyGaussianMarkovChain):
    _backend.register_distribution(_class)
_backend.register_pytree(MarkovSites, "path", "information", "precision")

# These modules need Keras, so they are imported on first access.
_KERAS_MODULES = ("layers", "vae")
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
    "vae",
]


def __getattr__(name: str) -> Any:
    if name in _KERAS_MODULES:
        return importlib.import_module(f"tfp_ar1_jax.{name}")
    if name in _MODELS:
        return getattr(importlib.import_module("tfp_ar1_jax.vae"), name)
    raise AttributeError(f"module 'tfp_ar1_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


# If Keras is already loaded, register its classes now, as `tfp_ar1` does.
_keras_config = getattr(sys.modules.get("keras"), "config", None)
if _keras_config is not None and _keras_config.backend() == "jax":
    importlib.import_module("tfp_ar1_jax.vae")

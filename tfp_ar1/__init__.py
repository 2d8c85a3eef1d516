"""Gaussians with first-order autoregressive covariance for TensorFlow Probability."""

from tfp_ar1 import params
from tfp_ar1.linear_operator_ar1_cholesky import LinearOperatorAR1Cholesky
from tfp_ar1.mvn_ar1 import MultivariateNormalAR1
from tfp_ar1.version import __version__

__all__ = [
    "LinearOperatorAR1Cholesky",
    "MultivariateNormalAR1",
    "__version__",
    "params",
]

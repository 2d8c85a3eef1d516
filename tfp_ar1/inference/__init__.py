"""Approximate posteriors of a Gaussian Markov chain under non-Gaussian likelihoods."""

from tfp_ar1.inference.laplace import LaplaceApproximation, laplace_approximation
from tfp_ar1.inference.variational import VariationalApproximation, natural_gradient_vi

__all__ = [
    "LaplaceApproximation",
    "VariationalApproximation",
    "laplace_approximation",
    "natural_gradient_vi",
]

"""The multivariate normal with heterogeneous first-order autoregressive covariance, ARH(1)."""

from __future__ import annotations

from typing import Any

from tfp_ar1.distributions import declaration as declare
from tfp_ar1.distributions.gaussian_markov_chain import GaussianMarkovChain

__all__ = ["MultivariateNormalARH1"]


class MultivariateNormalARH1(GaussianMarkovChain):
    r"""Multivariate normal with ARH(1) covariance: AR(1) with a scale for each coordinate.

    #### Mathematical details

    ```none
    X ~ N(loc, C),    C[i, j] = σ_i σ_j ρ^|i-j|
    X_t = loc_t + σ_t w_t
    w_0 = ε_0,    w_t = ρ w_{t-1} + √(1 - ρ²) ε_t,    ε_t ~ N(0, 1)
    ```

    With equal σ_t it is `MultivariateNormalAR1`, with ρ = 0 `tfd.MultivariateNormalDiag`. All
    methods cost O(d), except `covariance`. KL divergences are analytic between all distributions of
    this package, and with the TFP normals that `MultivariateNormalAR1` lists.

    ```python
    path = tfp_ar1.MultivariateNormalARH1(
        loc=tf.zeros(3), scale_diag=[1.0, 2.0, 4.0], correlation=0.5)
    path.covariance()
    # ==> [[1., 1.,  1.],
    #      [1., 4.,  4.],
    #      [1., 4., 16.]]
    ```

    Args:
      loc: floating-point tensor `[B1, ..., Bb, d]`, the mean. It broadcasts against the
        coordinates, as a scalar or `[B1, ..., Bb, 1]`; `None`, the default, is 0.
      scale_diag: positive floating-point tensor `[B1, ..., Bb, d]`, the standard deviation σ_t of
        each coordinate.
      correlation: floating-point tensor `[B1, ..., Bb]`, ρ in (-1, 1). Exactly one of
        `correlation` and `fisher_z` must be given.
      fisher_z: floating-point tensor `[B1, ..., Bb]`, `atanh ρ`, any finite value. Keeps full
        accuracy where ρ rounds to ±1.
      validate_args: if `True`, parameters are checked when the graph runs, at some cost. If
        `False`, invalid parameters may give NaN.
      allow_nan_stats: if `False`, raises where a statistic is undefined. (All are defined here.)
      name: name prefixed to operations created by this class.

    Raises:
      ValueError: if both or neither of `correlation` and `fisher_z` are given, if
        `scale_diag` is missing or a scalar, or if the last dimension of `loc` is neither d nor 1.
      TypeError: if the parameters differ in dtype or are not floating-point.
    """

    declaration = (declare.SCALE_DIAG, *declare.correlation(per="member"))

    def __init__(
        self,
        loc: Any = None,
        scale_diag: Any = None,
        correlation: Any = None,
        fisher_z: Any = None,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "MultivariateNormalARH1",
    ):
        super().__init__(dict(locals()))

"""The multivariate normal of an Ornstein–Uhlenbeck process at given times."""

from __future__ import annotations

from typing import Any

from tfp_ar1.distributions import declaration as declare
from tfp_ar1.distributions.gaussian_markov_chain import GaussianMarkovChain

__all__ = ["MultivariateNormalOU"]


class MultivariateNormalOU(GaussianMarkovChain):
    r"""Multivariate normal of an Ornstein–Uhlenbeck process at given times.

    This is the stationary continuous-time process whose values at equally spaced times are AR(1):
    the Gaussian process with the exponential (Matérn-1/2) kernel, in O(d) for d times, which may be
    irregular and differ between members of the batch.

    #### Mathematical details

    ```none
    X ~ N(loc, C),    C[i, j] = σ² exp(-|τ_i - τ_j| / ℓ)
    dX = -(X - loc) dτ / ℓ + σ √(2 / ℓ) dW    (for constant loc)
    ```

    It is a `tfd.GaussianProcess` with
    `tfp.math.psd_kernels.MaternOneHalf(amplitude=σ, length_scale=ℓ)`.
    At equally spaced times it is `MultivariateNormalAR1` with ρ = exp(-Δτ / ℓ). All methods cost
    O(d), except `covariance`. KL divergences are analytic between all distributions of this
    package, and with the TFP normals that `MultivariateNormalAR1` lists. To predict at times
    without an observation, include them in `times` and use `conditional`.

    ```python
    path = tfp_ar1.MultivariateNormalOU(
        loc=tf.zeros(4), marginal_scale=2.0, length_scale=1.5, times=[0.0, 0.1, 1.0, 5.0])
    path.sample(3)  # shape [3, 4]
    ```

    Args:
      loc: floating-point tensor `[B1, ..., Bb, d]`, the mean at the given times. It may be a scalar
        or `[B1, ..., Bb, 1]` for all times; `None`, the default, is 0.
      marginal_scale: positive floating-point tensor `[B1, ..., Bb]`, the standard deviation σ of
        every coordinate.
      length_scale: positive floating-point tensor `[B1, ..., Bb]`, the time ℓ over which the
        correlation falls by a factor e, in the unit of `times`.
      times: floating-point tensor `[B1, ..., Bb, d]`, non-decreasing along the last axis. They are
        data: `make_trainable` takes them but does not make them a variable. In float32, times far
        from 0, such as seconds since 1970, round to equal ones: subtract the first. Repeated times
        are for paths observed with noise (`with_observation_noise`): the coordinates there are
        equal, and the density of the path itself is unbounded.
      validate_args: if `True`, parameters are checked when the graph runs, at some cost. If
        `False`, invalid parameters may give NaN.
      allow_nan_stats: if `False`, raises where a statistic is undefined. (All are defined here.)
      name: name prefixed to operations created by this class.

    Raises:
      ValueError: if one of the other parameters is missing, if `times` is a scalar, if the last
        dimension of `loc` is neither d nor 1, or if `times` are known and decrease or have been
        rounded to equal values.
      TypeError: if the parameters differ in dtype or are not floating-point.
    """

    declaration = (declare.MARGINAL_SCALE, declare.LENGTH_SCALE, declare.TIMES)

    def __init__(
        self,
        loc: Any = None,
        marginal_scale: Any = None,
        length_scale: Any = None,
        times: Any = None,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "MultivariateNormalOU",
    ):
        super().__init__(dict(locals()))

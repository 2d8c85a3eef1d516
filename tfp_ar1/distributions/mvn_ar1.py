"""The multivariate normal with first-order autoregressive covariance."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfp_ar1.correlation import LagOneCorrelation, check_one_given
from tfp_ar1.distributions import declaration as declare
from tfp_ar1.distributions import fit
from tfp_ar1.distributions.gaussian_markov_chain import GaussianMarkovChain
from tfp_ar1.distributions.transitions import tensors
from tfp_ar1.linear_operators.ar1_cholesky import LinearOperatorAR1Cholesky

__all__ = ["MultivariateNormalAR1"]


class MultivariateNormalAR1(GaussianMarkovChain):
    r"""Multivariate normal whose covariance is that of a stationary AR(1) process.

    The distribution on R^d is parameterized by a location vector `loc`, one standard deviation
    `marginal_scale` (σ) shared by all coordinates, and one lag-one `correlation` (ρ). Each may have
    batch dimensions.

    #### Mathematical details

    ```none
    X ~ N(loc, C),    C[i, j] = σ² ρ^|i-j|
    X_0 = loc_0 + σ ε_0
    X_t = loc_t + ρ (X_{t-1} - loc_{t-1}) + σ √(1 - ρ²) ε_t,    ε_t ~ N(0, 1)
    ```

    This is the approximate posterior of the ρ-VAE (equation 4 of arXiv:1909.06236, where s = σ²).
    Sampling, `log_prob`, `entropy`, the means and variances and the KL divergences below cost O(d)
    time and memory; only `covariance` forms a d × d matrix. `scale` is the Cholesky factor of C as
    a `LinearOperatorAR1Cholesky`.

    `fisher_z = atanh ρ` is to `correlation` what `logits` is to `probs`: every real number is
    valid, and log-determinants, samples, and KL divergences keep full accuracy where ρ itself
    rounds to ±1 (in float32 from `fisher_z` = 8 on).

    #### KL divergences

    `tfd.kl_divergence` is analytic, under batch broadcasting, between this distribution and, on
    either side: itself; `tfd.MultivariateNormalDiag` and any `MultivariateNormalLinearOperator`
    with a diagonal scale; `tfd.Independent(tfd.Normal(...), 1)`; `tfd.Sample(tfd.Normal(...), d)`:
    all O(d). With a scale that is diagonal plus an update of rank r, such as that of
    `tfd.MultivariateNormalDiagPlusLowRank`, it costs O(d r²). With any other
    `tfd.MultivariateNormalLinearOperator`, such as `MultivariateNormalTriL`, it costs O(d²) if that
    is on the left side, and d solves with its scale if it is on the right side.

    #### Examples

    ```python
    import tensorflow_probability as tfp
    import tfp_ar1

    tfd = tfp.distributions

    # A random path of 100 steps, smooth because neighbours have correlation 0.95.
    path = tfp_ar1.MultivariateNormalAR1(loc=tf.zeros(100), marginal_scale=2.0, correlation=0.95)
    x = path.sample(3)                      # shape [3, 100]
    path.log_prob(x)                        # shape [3]

    # A batch of two posteriors on R^10 against a standard normal prior.
    q = tfp_ar1.MultivariateNormalAR1(
        loc=tf.zeros([2, 10]), marginal_scale=[0.5, 1.0], fisher_z=[0.1, -2.0])
    prior = tfd.MultivariateNormalDiag(loc=tf.zeros(10))
    tfd.kl_divergence(q, prior)             # shape [2]
    ```

    Args:
      loc: floating-point tensor `[B1, ..., Bb, d]`, the mean.
      marginal_scale: positive floating-point tensor `[B1, ..., Bb]`, the standard deviation σ of
        every coordinate (√s in the paper). Default: 1.
      correlation: floating-point tensor `[B1, ..., Bb]`, ρ in (-1, 1). Exactly one of
        `correlation` and `fisher_z` must be given.
      fisher_z: floating-point tensor `[B1, ..., Bb]`, `atanh ρ`, any finite value.
      validate_args: if `True`, parameters are checked when the graph runs, at some cost. If
        `False`, invalid parameters may give NaN.
      allow_nan_stats: if `False`, raises where a statistic is undefined. (All are defined here.)
      name: name prefixed to operations created by this class.

    Raises:
      ValueError: if both or neither of `correlation` and `fisher_z` are given, or if `loc` is a
        scalar or `None`.
      TypeError: if the parameters differ in dtype or are not floating-point.
    """

    declaration = (declare.MARGINAL_SCALE, *declare.correlation(per="member"))

    def __init__(
        self,
        loc: Any,
        marginal_scale: Any = 1.0,
        correlation: Any = None,
        fisher_z: Any = None,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "MultivariateNormalAR1",
    ):
        super().__init__(dict(locals()))

    @classmethod
    def from_innovation_scale(
        cls,
        loc: Any,
        innovation_scale: Any,
        correlation: Any = None,
        fisher_z: Any = None,
        **options: Any,
    ) -> MultivariateNormalAR1:
        """Makes the distribution with a given innovation scale, `σ √(1 - ρ²)`.

        This is the stationary `X_t = ρ X_(t-1) + innovation_scale ε_t` of time series models. The
        property `innovation_scale` is the inverse.

        Args:
          loc: the mean, `[..., d]`.
          innovation_scale: positive tensor `[...]`.
          correlation: ρ, the coefficient of `X_(t-1)`, as in the constructor.
          fisher_z: `atanh ρ`, in place of `correlation`.
          **options: `validate_args`, `allow_nan_stats` and `name`, as in the constructor.

        Raises:
          ValueError: as in the constructor.
        """
        check_one_given(correlation, fisher_z)
        given = tensors(
            innovation_scale=innovation_scale, correlation=correlation, fisher_z=fisher_z
        )
        rho = LagOneCorrelation(given.get("correlation"), given.get("fisher_z"))
        scale = given["innovation_scale"] * rho.inverse_unit_innovation_scale
        return cls(loc, scale, correlation, fisher_z, **options)

    @classmethod
    def _make_scale(cls, given: dict[str, Any], num_rows: Any) -> LinearOperatorAR1Cholesky:
        return LinearOperatorAR1Cholesky(num_rows, **given)

    @classmethod
    def _maximum_likelihood_parameters(cls, value: tf.Tensor) -> dict[str, tf.Tensor]:
        return fit.equal_steps(value)

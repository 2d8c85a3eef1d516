"""The multivariate normal with first-order antedependent covariance, ANTE(1)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfp_ar1.distributions import declaration as declare
from tfp_ar1.distributions import fit, state_space, transitions
from tfp_ar1.distributions.gaussian_markov_chain import GaussianMarkovChain

__all__ = ["MultivariateNormalANTE1"]


class MultivariateNormalANTE1(GaussianMarkovChain):
    r"""Multivariate normal with ANTE(1) covariance: first-order antedependence.

    It has a standard deviation for each of the d coordinates and a correlation for each of the
    d - 1 pairs of neighbours. Every Gaussian Markov chain with scalar states has such a covariance
    (Gabriel, 1962; Zimmerman and Núñez-Antón, "Antedependence Models for Longitudinal Data", 2009),
    for example the posterior of an AR(1) path observed with noise.

    #### Mathematical details

    ```none
    X ~ N(loc, C),    C[i, j] = σ_i σ_j ρ_(j+1) … ρ_i    for i ≥ j
    X_t = loc_t + σ_t w_t
    w_0 = ε_0,    w_t = ρ_t w_{t-1} + √(1 - ρ_t²) ε_t,    ε_t ~ N(0, 1)
    ```

    With equal ρ_t it is `MultivariateNormalARH1`; with equal σ_t as well, `MultivariateNormalAR1`.
    All methods cost O(d), except `covariance`. KL divergences are analytic between all
    distributions of this package, and with the TFP normals that `MultivariateNormalAR1` lists.

    ```python
    path = tfp_ar1.MultivariateNormalANTE1(
        loc=tf.zeros(3), scale_diag=[1.0, 2.0, 4.0], correlation=[0.5, -0.5])
    path.covariance()
    # ==> [[ 1.,  1., -1.],
    #      [ 1.,  4., -4.],
    #      [-1., -4., 16.]]
    ```

    Args:
      loc: floating-point tensor `[B1, ..., Bb, d]`, the mean. It broadcasts against the
        coordinates, as a scalar or `[B1, ..., Bb, 1]`; `None`, the default, is 0.
      scale_diag: positive floating-point tensor `[B1, ..., Bb, d]`, the standard deviation σ_t of
        each coordinate.
      correlation: floating-point tensor `[B1, ..., Bb, d - 1]`, in (-1, 1); entry t - 1 is ρ_t,
        between the coordinates t - 1 and t. Exactly one of `correlation` and `fisher_z` must be
        given.
      fisher_z: floating-point tensor `[B1, ..., Bb, d - 1]`, `atanh ρ_t`, any finite value. Keeps
        full accuracy where ρ_t rounds to ±1.
      validate_args: if `True`, parameters are checked when the graph runs, at some cost. If
        `False`, invalid parameters may give NaN.
      allow_nan_stats: if `False`, raises where a statistic is undefined. (All are defined here.)
      name: name prefixed to operations created by this class.

    Raises:
      ValueError: if both or neither of `correlation` and `fisher_z` are given, if
        `scale_diag` is missing or a scalar, if the last dimension of `loc` is neither d nor 1, or
        if the correlation lacks an entry for each step.
      TypeError: if the parameters differ in dtype or are not floating-point.
    """

    declaration = (declare.SCALE_DIAG, *declare.correlation(per="step"))

    def __init__(
        self,
        loc: Any = None,
        scale_diag: Any = None,
        correlation: Any = None,
        fisher_z: Any = None,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "MultivariateNormalANTE1",
    ):
        super().__init__(dict(locals()))

    @classmethod
    def from_transitions(
        cls,
        loc: Any,
        coefficients: Any,
        innovation_scale: Any,
        initial_scale: Any,
        **options: Any,
    ) -> MultivariateNormalANTE1:
        """Makes the distribution of a mean plus `x_t = φ_t x_(t-1) + q_t ε_t`, `x_0 = s ε_0`.

        Examples are a `tfd.MarkovChain` or `tfd.LinearGaussianStateSpaceModel` with scalar states,
        and random walks, where φ = 1. The properties `coefficients`, `innovation_scale` and
        `initial_scale` of any member are the inverse. O(d).

        Args:
          loc: the mean of the path, `[..., d]`, or a scalar or `None` as in the constructor.
          coefficients: φ, any real numbers, `[..., d - 1]`; a scalar or `[..., 1]` for all steps.
          innovation_scale: q, positive, shaped like `coefficients`. One of them, or `loc`, sets the
            size.
          initial_scale: s, the standard deviation of the first coordinate, `[...]`. It may be 0,
            for a known start; the path then has draws, moments and posteriors, but no density.
          **options: `validate_args`, `allow_nan_stats` and `name`, as in the constructor.

        Raises:
          ValueError: if the numbers of steps differ, or no argument determines them.
        """
        given = transitions.tensors(
            loc=loc,
            coefficients=coefficients,
            innovation_scale=innovation_scale,
            initial_scale=initial_scale,
        )
        loc = given.pop("loc", None)
        return cls(loc, **transitions.from_transitions(loc=loc, **given), **options)

    @classmethod
    def from_markov_chain(cls, chain: Any, **options: Any) -> MultivariateNormalANTE1:
        """Converts a `tfd.MarkovChain` of scalar normals, in O(d).

        ```python
        walk = tfd.MarkovChain(
            initial_state_prior=tfd.Normal(0.0, 2.0),
            transition_fn=lambda step, x: tfd.Normal(x, 0.5),
            num_steps=100)
        path = tfp_ar1.MultivariateNormalANTE1.from_markov_chain(walk)
        ```

        Args:
          chain: a chain of `tfd.Normal`s, event shape `[d]`, or of normals over vectors of size 1,
            event shape `[d, 1]`. Means must be affine in the previous state, and scales must not
            depend on it; this is checked by evaluating the transition function at a few states.
          **options: `validate_args`, `allow_nan_stats` and `name`, as in the constructor.

        Returns:
          A distribution of event shape `[d]`.

        Raises:
          ValueError: if the chain does not meet these conditions. In a graph, where values are not
            known yet, `validate_args` asserts them.
          TypeError: if `chain` is not a `tfd.MarkovChain`.
        """
        is_checked = options.get("validate_args", False)
        return cls(**state_space.of_markov_chain(chain, is_checked), **options)

    @classmethod
    def from_state_space_model(cls, model: Any, **options: Any) -> MultivariateNormalANTE1:
        """Converts a `tfd.LinearGaussianStateSpaceModel`, without its observation noise.

        `tfp_ar1.sts.noisy_chain` includes the noise; this distribution is its `path`.

        Args:
          model: a model of latent size 1 and event shape `[d, 1]`. Its parameters may change from
            step to step.
          **options: `validate_args`, `allow_nan_stats` and `name`, as in the constructor.

        Returns:
          A distribution of event shape `[d]`.

        Raises:
          ValueError: if states or observations are not scalar, or an `observation_matrix` or the
            scale of a transition is known to be 0.
          TypeError: if `model` is not a `tfd.LinearGaussianStateSpaceModel`.
        """
        parameters, _ = state_space.of_state_space_model(model)
        return cls(**parameters, **options)

    @classmethod
    def from_precision(
        cls, loc: Any, diagonal: Any, off_diagonal: Any, **options: Any
    ) -> MultivariateNormalANTE1:
        """Makes the distribution from a tridiagonal precision matrix, in O(d).

        The inverse is `precision().diagonals` of any member.

        Args:
          loc: the mean, as in the constructor.
          diagonal: `[..., d]`, the diagonal of the precision matrix.
          off_diagonal: `[..., d - 1]`, the subdiagonal. A matrix that is not positive definite
            gives NaN, which `validate_args` rejects.
          **options: `validate_args`, `allow_nan_stats` and `name`, as in the constructor.

        Raises:
          ValueError: unless `off_diagonal` has one entry less than `diagonal`.
        """
        given = transitions.tensors(loc=loc, diagonal=diagonal, off_diagonal=off_diagonal)
        loc, is_checked = given.pop("loc", None), options.get("validate_args", False)
        return cls(loc, **transitions.from_precision(**given, validate_args=is_checked), **options)

    @classmethod
    def from_precision_cholesky(
        cls, loc: Any, diagonal: Any, off_diagonal: Any, lower: bool = True, **options: Any
    ) -> MultivariateNormalANTE1:
        """Makes the distribution with the precision matrix `R Rᵀ`, R bidiagonal, in O(d).

        The inverse, for lower R, is `precision().cholesky().diagonals` of any member.

        Args:
          loc: the mean, as in the constructor.
          diagonal: `[..., d]`, the diagonal of R, not 0.
          off_diagonal: `[..., d - 1]`, the other diagonal: `R[t, t - 1]`, or `R[t - 1, t]` for an
            upper R, the output of GP-VAE encoders (arXiv:1907.04155).
          lower: whether R is lower triangular.
          **options: `validate_args`, `allow_nan_stats` and `name`, as in the constructor.

        Raises:
          ValueError: unless `off_diagonal` has one entry less than `diagonal`.
        """
        given = transitions.tensors(loc=loc, diagonal=diagonal, off_diagonal=off_diagonal)
        loc = given.pop("loc", None)
        return cls(loc, **transitions.from_precision_cholesky(**given, lower=lower), **options)

    @classmethod
    def _maximum_likelihood_parameters(cls, value: tf.Tensor) -> dict[str, tf.Tensor]:
        return fit.antedependent(value)


GaussianMarkovChain.posterior_class = MultivariateNormalANTE1

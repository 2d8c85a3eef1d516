"""The multivariate normal with first-order antedependent covariance, ANTE(1)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability.python.internal import tensor_util

from tfp_ar1.correlation import check_one_given
from tfp_ar1.distributions import fit
from tfp_ar1.distributions import gaussian_markov_chain as markov
from tfp_ar1.distributions.gaussian_markov_chain import GaussianMarkovChain
from tfp_ar1.linear_operators.ante1_cholesky import LinearOperatorANTE1Cholesky
from tfp_ar1.linear_operators.markov_cholesky import common_float_dtype

__all__ = ["MultivariateNormalANTE1"]


class MultivariateNormalANTE1(GaussianMarkovChain):
    r"""Multivariate normal with ANTE(1) covariance: first-order antedependence.

    It has a standard deviation for each of the d coordinates and a correlation for each of the
    d - 1 pairs of neighbours. Every Gaussian Markov chain with scalar states has such a covariance
    (Gabriel, 1962; Zimmerman and Núñez-Antón, "Antedependence Models for Longitudinal Data", 2009):
    for example the posterior of an AR(1) path that was observed with noise.

    #### Mathematical details

    ```none
    X ~ N(loc, C),    C[i, j] = σ_i σ_j ρ_(j+1) … ρ_i    for i ≥ j
    X_t = loc_t + σ_t w_t
    w_0 = ε_0,    w_t = ρ_t w_{t-1} + √(1 - ρ_t²) ε_t,    ε_t ~ N(0, 1)
    ```

    With equal ρ_t it is `MultivariateNormalARH1`, and with equal σ_t too `MultivariateNormalAR1`.
    All methods cost O(d), except `covariance`. KL divergences are analytic between all
    distributions of this package, and with the normals of TFP that `MultivariateNormalAR1` lists.

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
        `scale_diag` is missing or a scalar, if `loc` has another last dimension, but not 1, or if
        the correlation has not an entry for each step.
      TypeError: if the parameters differ in dtype or are not floating-point.
    """

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
        parameters = dict(locals())
        markov.check_required(scale_diag=scale_diag)
        check_one_given(correlation, fisher_z)
        given = {
            "loc": loc,
            "scale_diag": scale_diag,
            "correlation": correlation,
            "fisher_z": fisher_z,
        }
        with tf.name_scope(name) as name:
            dtype = common_float_dtype(given)
            convert = tensor_util.convert_nonref_to_tensor
            scale = LinearOperatorANTE1Cholesky(
                scale_diag=convert(scale_diag, dtype=dtype, name="scale_diag"),
                correlation=convert(correlation, dtype=dtype, name="correlation"),
                fisher_z=convert(fisher_z, dtype=dtype, name="fisher_z"),
            )
            super().__init__(loc, scale, parameters, validate_args, allow_nan_stats, name)

    @property
    def scale_diag(self) -> Any:
        """σ_t, the standard deviation of each coordinate, as given."""
        return self.scale.scale_diag

    @property
    def correlation(self) -> Any:
        """ρ_t as given, or `None`; see `correlation_parameter`."""
        return self.scale.correlation

    @property
    def fisher_z(self) -> Any:
        """`atanh ρ_t` as given, or `None`."""
        return self.scale.fisher_z

    def _marginal_parameters(self, kept: slice) -> dict[str, Any]:
        return {
            "scale_diag": tf.convert_to_tensor(self.scale_diag)[..., kept],
            **markov.correlation_of_steps(self.scale, kept),
        }

    @classmethod
    def _maximum_likelihood_parameters(cls, value: tf.Tensor) -> dict[str, tf.Tensor]:
        return fit.antedependent(value)

    @classmethod
    def _parameter_properties(
        cls, dtype: Any, num_classes: int | None = None
    ) -> dict[str, tfp.util.ParameterProperties]:
        return {
            "loc": tfp.util.ParameterProperties(event_ndims=1),
            "scale_diag": markov.properties_of_positive(dtype, event_ndims=1),
            **markov.properties_of_correlation(dtype, **markov.PER_STEP),
        }

    def _checks(self) -> dict[str, Any]:
        return {
            "scale_diag": markov.assert_positive("scale_diag"),
            **markov.CHECKS_OF_CORRELATION,
        }

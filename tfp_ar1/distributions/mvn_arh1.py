"""The multivariate normal with heterogeneous first-order autoregressive covariance, ARH(1)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability.python.internal import tensor_util

from tfp_ar1.correlation import check_one_given
from tfp_ar1.distributions import gaussian_markov_chain as markov
from tfp_ar1.distributions.gaussian_markov_chain import GaussianMarkovChain
from tfp_ar1.linear_operators.arh1_cholesky import LinearOperatorARH1Cholesky
from tfp_ar1.linear_operators.markov_cholesky import common_float_dtype

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
    this package, and with the normals of TFP that `MultivariateNormalAR1` lists.

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
        `scale_diag` is missing or a scalar, or if `loc` has another last dimension, but not 1.
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
        name: str = "MultivariateNormalARH1",
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
            scale = LinearOperatorARH1Cholesky(
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
        """ρ as given, or `None`; see `correlation_parameter`."""
        return self.scale.correlation

    @property
    def fisher_z(self) -> Any:
        """`atanh ρ` as given, or `None`."""
        return self.scale.fisher_z

    def _marginal_parameters(self, kept: slice) -> dict[str, Any]:
        return {
            "scale_diag": tf.convert_to_tensor(self.scale_diag)[..., kept],
            **markov.correlation_at_lag(self.scale, kept.step),
        }

    @classmethod
    def _parameter_properties(
        cls, dtype: Any, num_classes: int | None = None
    ) -> dict[str, tfp.util.ParameterProperties]:
        return {
            "loc": tfp.util.ParameterProperties(event_ndims=1),
            "scale_diag": markov.properties_of_positive(dtype, event_ndims=1),
            **markov.properties_of_correlation(dtype, **markov.PER_MEMBER),
        }

    def _checks(self) -> dict[str, Any]:
        return {
            "scale_diag": markov.assert_positive("scale_diag"),
            **markov.CHECKS_OF_CORRELATION,
        }

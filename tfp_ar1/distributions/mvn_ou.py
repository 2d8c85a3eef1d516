"""The multivariate normal of an Ornstein–Uhlenbeck process at given times."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability.python.internal import tensor_util

from tfp_ar1.distributions import gaussian_markov_chain as markov
from tfp_ar1.distributions.gaussian_markov_chain import GaussianMarkovChain
from tfp_ar1.linear_operators.markov_cholesky import common_float_dtype
from tfp_ar1.linear_operators.ou_cholesky import LinearOperatorOUCholesky

tfb = tfp.bijectors

__all__ = ["MultivariateNormalOU"]


class MultivariateNormalOU(GaussianMarkovChain):
    r"""Multivariate normal of an Ornstein–Uhlenbeck process at given times.

    The stationary process in continuous time whose values at equal distances are AR(1): the
    Gaussian process with the exponential (Matérn-1/2) kernel, in O(d) for d times, which may be
    irregular and differ between members of the batch.

    #### Mathematical details

    ```none
    X ~ N(loc, C),    C[i, j] = σ² exp(-|τ_i - τ_j| / ℓ)
    dX = -(X - loc) dτ / ℓ + σ √(2 / ℓ) dW    (for constant loc)
    ```

    As `tfd.GaussianProcess` with `tfp.math.psd_kernels.MaternOneHalf(amplitude=σ, length_scale=ℓ)`.
    At equally spaced times it is `MultivariateNormalAR1` with ρ = exp(-Δτ / ℓ). All methods cost
    O(d), except `covariance`. KL divergences are analytic between all distributions of this
    package, and with the normals of TFP that `MultivariateNormalAR1` lists. What is known at times
    without an observation: `conditional`, with those times among `times`.

    ```python
    path = tfp_ar1.MultivariateNormalOU(
        loc=tf.zeros(4), marginal_scale=2.0, length_scale=1.5, times=[0.0, 0.1, 1.0, 5.0])
    path.sample(3)  # shape [3, 4]
    ```

    Args:
      loc: floating-point tensor `[B1, ..., Bb, d]`, the mean at the given times. It
        broadcasts against them, as a scalar or `[B1, ..., Bb, 1]`; `None`, the default, is 0.
      marginal_scale: positive floating-point tensor `[B1, ..., Bb]`, the standard deviation σ of
        every coordinate.
      length_scale: positive floating-point tensor `[B1, ..., Bb]`, the time ℓ over which the
        correlation falls by a factor e, in the unit of `times`.
      times: floating-point tensor `[B1, ..., Bb, d]`, strictly increasing along the last axis.
        They are data: `make_trainable` takes them, and makes no variable of them. In float32,
        times far from 0, such as seconds since 1970, round to equal ones: subtract the first.
      validate_args: if `True`, parameters are checked when the graph runs, at some cost. If
        `False`, invalid parameters may give NaN.
      allow_nan_stats: if `False`, raises where a statistic is undefined. (All are defined here.)
      name: name prefixed to operations created by this class.

    Raises:
      ValueError: if one of the other parameters is missing, if `times` is a scalar, if `loc` has
        another last dimension, but not 1, or if `times` are known and not strictly increasing.
      TypeError: if the parameters differ in dtype or are not floating-point.
    """

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
        parameters = dict(locals())
        markov.check_required(marginal_scale=marginal_scale, length_scale=length_scale, times=times)
        given = {
            "loc": loc,
            "marginal_scale": marginal_scale,
            "length_scale": length_scale,
            "times": times,
        }
        with tf.name_scope(name) as name:
            dtype = common_float_dtype(given)
            convert = tensor_util.convert_nonref_to_tensor
            times = convert(times, dtype=dtype, name="times")
            _check_times(times)
            scale = LinearOperatorOUCholesky(
                marginal_scale=convert(marginal_scale, dtype=dtype, name="marginal_scale"),
                length_scale=convert(length_scale, dtype=dtype, name="length_scale"),
                times=times,
            )
            super().__init__(loc, scale, parameters, validate_args, allow_nan_stats, name)

    @property
    def marginal_scale(self) -> Any:
        """σ, the standard deviation of every coordinate, as given."""
        return self.scale.marginal_scale

    @property
    def length_scale(self) -> Any:
        """ℓ, the time over which correlation falls by a factor e, as given."""
        return self.scale.length_scale

    @property
    def times(self) -> Any:
        """τ_t, the time of each coordinate, as given."""
        return self.scale.times

    def _marginal_parameters(self, kept: slice) -> dict[str, Any]:
        return {
            "marginal_scale": self.marginal_scale,
            "length_scale": self.length_scale,
            "times": tf.convert_to_tensor(self.times)[..., kept],
        }

    @classmethod
    def _parameter_properties(
        cls, dtype: Any, num_classes: int | None = None
    ) -> dict[str, tfp.util.ParameterProperties]:
        return {
            "loc": tfp.util.ParameterProperties(event_ndims=1),
            "marginal_scale": markov.properties_of_positive(dtype, **markov.PER_MEMBER),
            "length_scale": markov.properties_of_positive(dtype, **markov.PER_MEMBER),
            # Not preferred, so that no variable is made of them.
            "times": tfp.util.ParameterProperties(
                event_ndims=1, default_constraining_bijector_fn=tfb.Ascending, is_preferred=False
            ),
        }

    def _checks(self) -> dict[str, Any]:
        return {
            "marginal_scale": markov.assert_positive("marginal_scale"),
            "length_scale": markov.assert_positive("length_scale"),
            "times": lambda times: tf.debugging.assert_less(
                times[..., :-1],
                times[..., 1:],
                message="`times` must be strictly increasing along the last axis.",
            ),
        }


def _check_times(times: Any) -> None:
    """Raises `ValueError` if times are known, and not strictly increasing."""
    values = None if tensor_util.is_ref(times) else tf.get_static_value(times)
    if values is None or values.ndim == 0:
        return
    wrong = np.argwhere(~(values[..., 1:] > values[..., :-1]))
    if len(wrong):
        *member, i = wrong[0]
        before, after = values[(*member, i)], values[(*member, i + 1)]
        raise ValueError(
            f"`times` must be strictly increasing along the last axis; got {after} after {before} "
            f"at position {i + 1}, in {values.dtype.name}. Sort the observations by time, and give "
            f"one for each time. (Times far from 0 may be equal after rounding: subtract the "
            f"first.)"
        )

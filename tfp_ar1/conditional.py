"""An AR(1) normal given some of its coordinates: missing values, in O(d)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability.python.internal import distribution_util, samplers
from tensorflow_probability.python.internal import prefer_static as ps

if TYPE_CHECKING:
    from tfp_ar1.mvn_ar1 import MultivariateNormalAR1

__all__ = ["ConditionalAR1"]


class ConditionalAR1:
    """The law of all coordinates of an AR(1) normal, given those that were observed.

    The process is Markov, so a missing coordinate depends on the nearest observed one on either
    side alone. With a and b the distances to them, and r_k = 1 - ρ^(2k),

        mean     = loc + [ρ^a r_b w_left + ρ^b r_a w_right] / r_(a+b),    w = value - loc
        variance = σ² r_a r_b / r_(a+b)

    where a side without an observed coordinate drops out (r = 1, ρ^k = 0). Every method costs O(d).

    Made by `MultivariateNormalAR1.conditional`.

    Args:
      distribution: the `MultivariateNormalAR1`.
      value: floating-point tensor `[..., d]`, broadcast against the batch shape of `distribution`.
        Entries that are not observed are ignored, and may be NaN.
      observed: boolean tensor `[..., d]`, `True` where `value` is known.

    Raises:
      TypeError: if `observed` is not boolean.
      ValueError: if the last dimension of `value` or `observed` is not the event size.
    """

    def __init__(self, distribution: MultivariateNormalAR1, value: Any, observed: Any):
        value = tf.convert_to_tensor(value, dtype=distribution.dtype, name="value")
        observed = tf.convert_to_tensor(observed, name="observed")
        if observed.dtype != tf.bool:
            raise TypeError(f"`observed` must be boolean; got dtype {observed.dtype.name}.")
        for name, x in (("value", value), ("observed", observed)):
            if not x.shape[-1:].is_compatible_with(distribution.event_shape):
                raise ValueError(
                    f"The last dimension of `{name}` must be the event size "
                    f"{distribution.event_shape[-1]}; got shape {x.shape}."
                )
        self.distribution = distribution
        self._loc = tf.convert_to_tensor(distribution.loc)
        self._operator = distribution.scale._convert_variables_to_tensors()
        self._rho, self._scale = self._operator.read_parameters(for_columns=True)
        shape = ps.broadcast_shape(ps.shape(value), ps.shape(observed))
        batch_and_event = ps.concat(
            [distribution.batch_shape_tensor(), distribution.event_shape_tensor()], axis=0
        )
        shape = ps.broadcast_shape(shape, batch_and_event)
        self.observed = tf.broadcast_to(observed, shape)
        # What is missing must not reach a product, since 0 · NaN is NaN; nor a gradient.
        self.value = tf.where(self.observed, value, self._loc)
        self._find_neighbours(shape)

    def _find_neighbours(self, shape: Any) -> None:
        size = shape[-1]
        position = tf.broadcast_to(tf.range(size), shape)
        left = tf.where(self.observed, position, -1)
        right = tf.where(self.observed, position, size)

        def last_so_far(indices: tf.Tensor) -> tf.Tensor:
            return tfp.math.scan_associative(tf.maximum, indices, axis=indices.shape.rank - 1)

        left = last_so_far(left)
        right = -tf.reverse(last_so_far(tf.reverse(-right, axis=[-1])), axis=[-1])
        self._has_left, self._has_right = left >= 0, right < size
        self._left, self._right = tf.maximum(left, 0), tf.minimum(right, size - 1)
        self._left_distance, self._right_distance = position - self._left, self._right - position

    def _weights(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The weights of the two neighbours, and the variance at marginal scale 1."""
        zero, one = tf.zeros([], self.value.dtype), tf.ones([], self.value.dtype)
        left, left_rest = self._rho.power(self._left_distance)
        right, right_rest = self._rho.power(self._right_distance)
        _, rest = self._rho.power(self._left_distance + self._right_distance)
        left, left_rest = (
            tf.where(self._has_left, left, zero),
            tf.where(self._has_left, left_rest, one),
        )
        right, right_rest = (
            tf.where(self._has_right, right, zero),
            tf.where(self._has_right, right_rest, one),
        )
        # At an observed coordinate both distances are 0; its result is replaced by the value.
        two_sided = self._has_left & self._has_right & ~self.observed
        rest = tf.where(two_sided, rest, one)
        return left * right_rest / rest, right * left_rest / rest, left_rest * right_rest / rest

    def _interpolate(self, w: tf.Tensor) -> tf.Tensor:
        """The weighted sum of the two neighbours' entries in `w`, for each coordinate."""
        left_weight, right_weight, _ = self._weights()
        return left_weight * _take(w, self._left) + right_weight * _take(w, self._right)

    def mean(self) -> tf.Tensor:
        """The conditional mean `[..., d]`; the value itself where it was observed."""
        mean = self._loc + self._interpolate(self.value - self._loc)
        return tf.where(self.observed, self.value, mean)

    def variance(self) -> tf.Tensor:
        """The conditional variance `[..., d]`; 0 where the coordinate was observed."""
        _, _, variance = self._weights()
        return tf.where(self.observed, tf.zeros_like(variance), variance * self._scale**2)

    def stddev(self) -> tf.Tensor:
        """The conditional standard deviation `[..., d]`."""
        _, _, variance = self._weights()
        # The root of the 0 that stands for an observed coordinate would have no gradient.
        return tf.where(self.observed, tf.zeros_like(variance), tf.sqrt(variance) * self._scale)

    def observed_log_prob(self) -> tf.Tensor:
        """The log-density `[...]` of the observed coordinates; 0 where there are none."""

        # Of each observed coordinate given the observed one before it.
        def before(x: tf.Tensor, fill: Any) -> tf.Tensor:
            first = tf.fill(ps.concat([ps.shape(x)[:-1], [1]], axis=0), tf.cast(fill, x.dtype))
            return tf.concat([first, x[..., :-1]], axis=-1)

        has_previous = before(self._has_left, False)
        gap = tf.where(has_previous, before(self._left_distance, 0) + 1, 1)
        w = self.value - self._loc
        previous = _take(w, before(self._left, 0))
        power, rest = self._rho.power(gap)
        zero, one = tf.zeros([], w.dtype), tf.ones([], w.dtype)
        variance = tf.where(has_previous, rest, one)
        residual = (w - tf.where(has_previous, power, zero) * previous) / self._scale
        log_prob = -0.5 * (
            tf.square(residual) / variance
            + tf.math.log(variance)
            + 2.0 * tf.math.log(self._scale)
            + np.log(2.0 * np.pi)
        )
        return tf.reduce_sum(tf.where(self.observed, log_prob, zero), axis=-1)

    def sample(self, sample_shape: Any = (), seed: Any = None) -> tf.Tensor:
        """Draws `[*sample_shape, ..., d]` that have the observed values where there are such.

        A draw x of the unconditional law plus E[· | value] - E[· | x], which has the conditional
        law (Matheron's rule).

        Args:
          sample_shape: integer or list of integers.
          seed: as in `tfd.Distribution.sample`.
        """
        sample_shape = distribution_util.expand_to_vector(
            ps.convert_to_shape_tensor(sample_shape, dtype_hint=tf.int32)
        )
        shape = ps.concat([sample_shape, ps.shape(self.value)], axis=0)
        noise = samplers.normal(shape, dtype=self.value.dtype, seed=seed)
        x = self._loc + self._operator.matvec(noise)
        return tf.where(self.observed, self.value, x + self._interpolate(self.value - x))


def _take(x: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    index = tf.broadcast_to(index, ps.shape(x))
    return tf.gather(x, index, axis=-1, batch_dims=x.shape.rank - 1)

"""A Gaussian Markov chain given some of its coordinates: missing values, in O(d)."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
from tensorflow_probability.python.internal import distribution_util, samplers
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1 import recurrence
from tfp_ar1.linear_operators.chain import Chain, widened

__all__ = ["ConditionalMarkov"]


class ConditionalMarkov:
    """The distribution of all coordinates of a Gaussian Markov chain, given the observed ones.

    A missing coordinate depends on the nearest observed one on either side alone. With the products
    of the lag-one correlations between, a and b, with r_a = 1 - a² and r_b = 1 - b², and with
    w = (value - loc) / σ,

        mean     = loc + σ [a r_b w_left + b r_a w_right] / (1 - a² b²)
        variance = σ² r_a r_b / (1 - a² b²)

    where a side without an observed coordinate drops out (a = 0). The products come from the
    recurrence itself, cut at what is observed, in terms of 1 - |a|, so that nothing cancels where
    neighbours are nearly equal. Every method costs O(d).

    Made by `GaussianMarkovChain.conditional`.

    Args:
      value: floating-point tensor `[..., d]`, broadcast against the batch shape. Entries that are
        not observed are ignored, and may be NaN.
      observed: boolean tensor `[..., d]`, `True` where `value` is known.
      loc: the mean of the chain, a scalar or `[..., d]` or `[..., 1]`.
      chain: its standard deviations and correlations.
      batch_shape: its batch shape, as known as it can be.

    Raises:
      TypeError: if `observed` is not boolean.
      ValueError: if the last dimension of `value` or `observed` is not the event size.
    """

    def __init__(self, value: Any, observed: Any, loc: tf.Tensor, chain: Chain, batch_shape: Any):
        value = tf.convert_to_tensor(value, dtype=chain.dtype, name="value")
        observed = tf.convert_to_tensor(observed, name="observed")
        if observed.dtype != tf.bool:
            raise TypeError(f"`observed` must be boolean; got dtype {observed.dtype.name}.")
        size = tf.get_static_value(chain.size)
        for name, x in (("value", value), ("observed", observed)):
            if not x.shape[-1:].is_compatible_with([size]):
                raise ValueError(
                    f"The last dimension of `{name}` must be the event size {size}; got shape "
                    f"{x.shape}."
                )
        self._dtype = chain.dtype
        self._loc, self._chain = widened(loc), chain.widened()
        rho, event_shape = self._chain.rho, ps.reshape(chain.size, [1])
        self._observed = tf.broadcast_to(
            observed, ps.broadcast_shape(ps.shape(observed), event_shape)
        )
        batch_and_event = ps.concat([batch_shape, event_shape], axis=0)
        shape = ps.broadcast_shape(ps.shape(value), ps.shape(self._observed))
        self.observed = tf.broadcast_to(self._observed, ps.broadcast_shape(shape, batch_and_event))
        # What is missing must not reach a product, since 0 · NaN is NaN; nor a gradient.
        self.value = tf.where(self.observed, value, loc)
        # Coordinates are sign-flipped so that all correlations of the chain are positive.
        signs = rho.along_steps(rho.sign) * tf.ones([self._chain.num_steps], rho.dtype)
        self._sign_flips = recurrence.pad(tf.math.cumprod(signs, axis=-1), 1, 0, value=1.0)
        self._left, self._right = (
            _NearestObserved(self._chain, self._observed, r) for r in (False, True)
        )

    def _weights(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The weights of the two neighbours, and the variance at marginal scale 1."""
        left, right = self._left.remainder, self._right.remainder
        # 1 - a² b², from 1 - a b. An observed coordinate's result is replaced.
        one_minus_abs = self._left.one_minus_abs + self._left.size * self._right.one_minus_abs
        rest = _one_minus_square(self._left.size * self._right.size, one_minus_abs)
        rest = tf.where(self._observed, tf.ones([], rest.dtype), rest)
        right_share = left / rest
        left_weight = self._left.size * (right / rest)
        right_weight = self._right.size * right_share
        return left_weight, right_weight, right_share * right

    def _interpolate(self, w: tf.Tensor) -> tf.Tensor:
        """The weighted sum of the two neighbours' entries in `w`, for each coordinate."""
        left_weight, right_weight, _ = self._weights()
        w = self._sign_flips * self._chain.over_coordinate_scale(w)
        y = left_weight * self._left.nearest(w) + right_weight * self._right.nearest(w)
        return self._chain.times_coordinate_scale(self._sign_flips * y)

    def mean(self) -> tf.Tensor:
        """The conditional mean `[..., d]`; the value itself where it was observed."""
        mean = self._loc + self._interpolate(widened(self.value) - self._loc)
        return tf.where(self.observed, self.value, self._narrowed(mean))

    def variance(self) -> tf.Tensor:
        """The conditional variance `[..., d]`; 0 where the coordinate was observed."""
        _, _, variance = self._weights()
        variance *= self._chain.scale**2
        return self._narrowed(tf.where(self.observed, tf.zeros_like(variance), variance))

    def stddev(self) -> tf.Tensor:
        """The conditional standard deviation `[..., d]`."""
        _, _, variance = self._weights()
        # The root of the 0 that stands for an observed coordinate would have no gradient.
        root = tf.sqrt(tf.where(self._observed, tf.ones_like(variance), variance))
        stddev = root * self._chain.scale
        return self._narrowed(tf.where(self.observed, tf.zeros_like(stddev), stddev))

    def observed_log_prob(self) -> tf.Tensor:
        """The log-density `[...]` of the observed coordinates; 0 where there are none."""
        # Of each observed coordinate given the observed one before it, whose mean is a w.
        w = widened(self.value) - self._loc
        w = self._sign_flips * self._chain.over_coordinate_scale(w)
        previous, variance = self._left.nearest(w), self._left.remainder
        # By a difference that is exact for nearly equal neighbours, as `recurrence.whiten`.
        residual = (w - previous) + self._left.one_minus_abs * previous
        residual /= self._chain.shared_scale[..., tf.newaxis]
        log_prob = -0.5 * (
            tf.square(residual) / variance
            + tf.math.log(variance)
            + 2.0 * tf.math.log(self._chain.scale)
            + math.log(2.0 * math.pi)
        )
        zero = tf.zeros([], log_prob.dtype)
        log_prob = tf.reduce_sum(tf.where(self.observed, log_prob, zero), axis=-1)
        return self._narrowed(log_prob)

    def sample(self, sample_shape: Any = (), seed: Any = None) -> tf.Tensor:
        """Draws `[*sample_shape, ..., d]` that have the observed values where there are such.

        A draw x of the unconditional distribution plus E[· | value] - E[· | x], which has the
        conditional distribution (Matheron's rule).

        Args:
          sample_shape: integer or list of integers.
          seed: as in `tfd.Distribution.sample`.
        """
        sample_shape = distribution_util.expand_to_vector(
            ps.convert_to_shape_tensor(sample_shape, dtype_hint=tf.int32)
        )
        shape = ps.concat([sample_shape, ps.shape(self.value)], axis=0)
        noise = samplers.normal(shape, dtype=self.value.dtype, seed=seed)
        x = self._loc + self._chain.matvec(widened(noise))
        x += self._interpolate(widened(self.value) - x)
        return tf.where(self.observed, self.value, self._narrowed(x))

    def _narrowed(self, x: tf.Tensor) -> tf.Tensor:
        """`x` in the dtype of the distribution, which may be narrower than the computation's."""
        return tf.cast(x, self._dtype)


@tf.custom_gradient
def _one_minus_square(x: tf.Tensor, one_minus_abs: tf.Tensor) -> tf.Tensor:
    """`1 - x²` from x and 1 - x, with its derivative -2x, which the latter would blur."""
    return one_minus_abs * (1.0 + x), lambda dy: (-2.0 * x * dy, tf.zeros_like(one_minus_abs))


class _NearestObserved:
    """For each coordinate, the nearest observed one on one side, the left or the right.

    Args:
      chain: the chain.
      observed: boolean tensor `[..., d]`.
      reverse: `False` for the left side, `True` for the right one.
    """

    def __init__(self, chain: Chain, observed: tf.Tensor, reverse: bool):
        self._reverse = reverse
        neighbours = observed[..., 1:] if reverse else observed[..., :-1]
        self._linked = tf.logical_not(neighbours)
        rho = chain.rho
        ones = tf.ones([chain.num_steps], chain.dtype)
        size, one_minus_abs = (
            rho.along_steps(rho.sign * x) * ones for x in (rho.value, rho.signed_one_minus_abs)
        )
        # a, the product of the |ρ| up to the neighbour, 0 for none, and 1 - a, each accurate where
        # it is small. One step more from a coordinate that is not observed: |ρ| a, and
        # 1 - |ρ| + |ρ| (1 - a).
        start = tf.where(self._linked, tf.zeros_like(ones), size)
        one_minus_abs = tf.broadcast_to(one_minus_abs, ps.shape(start))
        inputs = [self._from_steps(start, end=0.0), self._from_steps(one_minus_abs, end=1.0)]
        self.size, one_minus_abs = tf.unstack(
            recurrence.segmented_recurrence(tf.stack(inputs), self._linked, rho, reverse), num=2
        )
        # The derivative of 1 - a is that of -a, which the recurrence has without cancellation.
        no_value = self.size - tf.stop_gradient(self.size)
        self.one_minus_abs = tf.stop_gradient(one_minus_abs) - no_value
        self.remainder = _one_minus_square(self.size, self.one_minus_abs)

    def nearest(self, w: tf.Tensor) -> tf.Tensor:
        """The neighbour's entry in `w` of shape `[..., d]`; 0 where there is none."""
        neighbours = w[..., 1:] if self._reverse else w[..., :-1]
        known = tf.where(self._linked, tf.zeros([], w.dtype), neighbours)
        known = self._from_steps(known, end=0.0)
        return recurrence.segmented_recurrence(known, self._linked, reverse=self._reverse)

    def _from_steps(self, steps: tf.Tensor, end: float) -> tf.Tensor:
        """Entries for each step at the coordinate that it leads to; `end` where none does."""
        return recurrence.pad(steps, int(not self._reverse), int(self._reverse), end)

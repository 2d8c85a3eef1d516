"""An AR(1) normal given some of its coordinates: missing values, in O(d)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow_probability.python.internal import distribution_util, samplers
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1 import linear_operator_ar1_cholesky as ar1_cholesky
from tfp_ar1.correlation import LagOneCorrelation

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
        self._operator = ar1_cholesky.with_tensors(distribution.scale)
        self._rho, self._scale = self._operator.read_parameters(for_columns=True)
        event_shape = ps.reshape(distribution._event_size(), [1])
        self._observed = tf.broadcast_to(
            observed, ps.broadcast_shape(ps.shape(observed), event_shape)
        )
        self._left, self._right = _neighbours(self._observed)
        batch_shape = distribution._static_or_dynamic_batch_shape()
        batch_and_event = ps.concat([batch_shape, event_shape], axis=0)
        shape = ps.broadcast_shape(ps.shape(value), ps.shape(self._observed))
        self.observed = tf.broadcast_to(self._observed, ps.broadcast_shape(shape, batch_and_event))
        # What is missing must not reach a product, since 0 · NaN is NaN; nor a gradient.
        self.value = tf.where(self.observed, value, self._loc)
        # Where ρ is negative, every other coordinate is turned round: a process with |ρ|.
        is_odd = tf.equal(tf.range(ps.shape(observed)[-1]) % 2, 1)
        self._turn = tf.where(is_odd, self._rho.sign, tf.ones([], value.dtype))

    def _weights(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The weights of the two neighbours, and the variance at marginal scale 1."""
        left, left_rest = self._left.influence(self._rho)
        right, right_rest = self._right.influence(self._rho)
        # 1 - ρ^(2(a+b)), without a difference. 0 at an observed coordinate, whose result is
        # replaced by the value.
        rest = left_rest + right_rest * (1.0 - left_rest)
        rest = tf.where(self._observed, tf.ones([], rest.dtype), rest)
        right_share = left_rest / rest
        return left * (right_rest / rest), right * right_share, right_share * right_rest

    def _interpolate(self, w: tf.Tensor) -> tf.Tensor:
        """The weighted sum of the two neighbours' entries in `w`, for each coordinate."""
        left_weight, right_weight, _ = self._weights()
        w *= self._turn
        return self._turn * (left_weight * self._left.take(w) + right_weight * self._right.take(w))

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
        root = tf.sqrt(tf.where(self._observed, tf.ones_like(variance), variance))
        return tf.where(self.observed, tf.zeros_like(variance), root * self._scale)

    def observed_log_prob(self) -> tf.Tensor:
        """The log-density `[...]` of the observed coordinates; 0 where there are none."""
        # Of each observed coordinate given the observed one before it.
        before = self._left.one_step_earlier()
        zero = tf.zeros([], self.value.dtype)
        size, variance = before.influence(self._rho)
        w = self._turn * (self.value - self._loc)
        previous = tf.where(before.exists, before.take(w), zero)
        # w - |ρ|^k previous, by a difference that is exact for nearly equal neighbours: `whiten`.
        complement = variance / (1.0 + size)
        residual = (w - previous + complement * previous) / self._scale
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


class _Neighbour(NamedTuple):
    """For each coordinate, the nearest observed one on one side; tensors `[..., d]`.

    `exists` is whether there is one, `index` where it is (any valid index if there is none), and
    `distance` how far away.
    """

    exists: tf.Tensor
    index: tf.Tensor
    distance: tf.Tensor

    def influence(self, rho: LagOneCorrelation) -> tuple[tf.Tensor, tf.Tensor]:
        """The size of its correlation, and the variance that it leaves: 0 and 1 for none."""
        size, rest = rho.decay(self.distance)
        zero, one = tf.zeros([], rho.dtype), tf.ones([], rho.dtype)
        return tf.where(self.exists, size, zero), tf.where(self.exists, rest, one)

    def take(self, x: tf.Tensor) -> tf.Tensor:
        """The neighbour's entry in `x` of shape `[..., d]`."""
        if self.index.shape.rank == 1:
            return tf.gather(x, self.index, axis=-1)
        index = tf.broadcast_to(self.index, ps.broadcast_shape(ps.shape(self.index), ps.shape(x)))
        x = tf.broadcast_to(x, ps.shape(index))
        shape = ps.shape(x)
        x, index = (tf.reshape(each, [-1, shape[-1]]) for each in (x, index))
        return tf.reshape(tf.gather(x, index, axis=-1, batch_dims=1), shape)

    def one_step_earlier(self) -> _Neighbour:
        """For each coordinate, the neighbour of the one before it; none for the first."""

        def shifted(x: tf.Tensor, first: Any) -> tf.Tensor:
            return tf.concat(
                [tf.fill(tf.shape(x[..., :1]), tf.cast(first, x.dtype)), x[..., :-1]], -1
            )

        return _Neighbour(
            shifted(self.exists, False),
            shifted(self.index, 0),
            1 + shifted(self.distance, 0),
        )


def _neighbours(observed: tf.Tensor) -> tuple[_Neighbour, _Neighbour]:
    """The nearest observed coordinates on the left and on the right of each, or itself."""
    size = ps.shape(observed)[-1]
    position = tf.range(size)
    both = tf.stack([observed, tf.reverse(observed, axis=[-1])])
    last = _running_maximum(tf.where(both, position, -1))
    exists, last = last >= 0, tf.maximum(last, 0)
    left, right = last[0], size - 1 - tf.reverse(last[1], axis=[-1])
    return (
        _Neighbour(exists[0], left, position - left),
        _Neighbour(tf.reverse(exists[1], axis=[-1]), right, right - position),
    )


def _running_maximum(x: tf.Tensor) -> tf.Tensor:
    """The maximum of each entry and all before it along the last axis, for non-negatives and -1.

    Doubling for small sizes; else blocks of 16, one step after the other in all of them at once,
    and the running maximum of what each carries on.
    """
    size = tf.compat.dimension_value(x.shape[-1])
    if size is None:
        size = tf.shape(x)[-1]

        def step(shift: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            # Entries that have nothing `shift` places before them are compared with themselves.
            shifted = tf.concat([x[..., :shift], x[..., : size - shift]], axis=-1)
            return 2 * shift, tf.maximum(x, shifted)

        _, x = tf.while_loop(
            lambda shift, _: shift < size,
            step,
            (tf.constant(1), x),
            shape_invariants=(tf.TensorShape([]), x.shape),
        )
        return x
    if size <= 128:
        shift = 1
        while shift < size:
            x = tf.concat([x[..., :shift], tf.maximum(x[..., shift:], x[..., :-shift])], axis=-1)
            shift *= 2
        return x
    padding = -size % 16
    shape = ps.shape(x)
    none = tf.fill(ps.concat([shape[:-1], [padding]], axis=0), tf.constant(-1, x.dtype))
    padded = tf.concat([x, none], axis=-1) if padding else x
    blocks = tf.reshape(padded, ps.concat([shape[:-1], [-1, 16]], axis=0))
    steps = tf.unstack(blocks, axis=-1)
    for j in range(1, 16):
        steps[j] = tf.maximum(steps[j], steps[j - 1])
    carried = _running_maximum(steps[-1])
    carried = tf.concat(
        [tf.fill(tf.shape(carried[..., :1]), tf.constant(-1, x.dtype)), carried[..., :-1]], -1
    )
    # A transposition is faster than a stack along the last axis.
    y = tf.maximum(tf.stack(steps), carried)
    y = tf.transpose(y, [*range(1, y.shape.rank), 0])
    return tf.reshape(y, ps.shape(padded))[..., :size]

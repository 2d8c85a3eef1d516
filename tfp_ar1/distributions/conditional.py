"""A Gaussian Markov chain given some of its coordinates: missing values, in O(d)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability import distributions as tfd
from tensorflow_probability.python.internal import prefer_static as ps
from tensorflow_probability.python.internal import samplers, tensor_util, tensorshape_util

from tfp_ar1 import recurrence
from tfp_ar1._backend import elementwise_gradient
from tfp_ar1._scan_schemes import Coefficients
from tfp_ar1.correlation import LagOneCorrelation
from tfp_ar1.distributions.derived import DerivedFromPath
from tfp_ar1.linear_operators.chain import log_abs, widened

__all__ = ["ConditionalMarkov", "NearestObserved"]


class ConditionalMarkov(DerivedFromPath):
    """The distribution of all coordinates of a Gaussian Markov chain, given the observed ones.

    A missing coordinate depends only on the nearest observed one on either side. Let a and b be the
    products of the lag-one correlations in between. With r_a = 1 - a², r_b = 1 - b² and
    w = (value - loc) / σ,

        mean     = loc + σ [a r_b w_left + b r_a w_right] / (1 - a² b²)
        variance = σ² r_a r_b / (1 - a² b²)

    A side without an observed coordinate drops out (a = 0). The recurrence itself, cut at the
    observed coordinates, computes the products, in terms of 1 - |a|, so that nothing cancels where
    neighbours are nearly equal. Every method costs O(d), except `covariance`.

    Observed coordinates are point masses: they have their values in draws and in the mean, and
    variance 0. `log_prob` is the density of the other coordinates, or -∞ if an observed one has
    another value.

    Returned by `GaussianMarkovChain.conditional`.

    Args:
      path: the `GaussianMarkovChain` of event shape `[d]`.
      value: floating-point tensor `[..., d]`, broadcast against the batch shape. Entries that are
        not observed are ignored and may be NaN.
      observed: boolean tensor `[..., d]`, `True` where `value` is known.
      validate_args: as for every distribution; adds no checks of its own.
      allow_nan_stats: if `False`, raises where a statistic is undefined. (All are defined here.)
      name: name prefixed to operations created by this class.

    Raises:
      TypeError: if `observed` is not boolean.
      ValueError: if the last dimension of `value` or `observed` is not the event size.
    """

    def __init__(
        self,
        path: Any,
        value: Any,
        observed: Any,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "ConditionalMarkov",
    ):
        parameters = dict(locals())
        self._value = tensor_util.convert_nonref_to_tensor(value, path.dtype, name="value")
        if observed is None:
            raise TypeError("`observed` must be a boolean tensor; got None.")
        super().__init__(parameters)
        for argument, x in (("value", self._value), ("observed", self._observed)):
            if not tensorshape_util.is_compatible_with(x.shape[-1:], path.event_shape):
                raise ValueError(
                    f"The last dimension of `{argument}` must be the event size "
                    f"{path.event_shape[-1]}; got shape {x.shape}."
                )

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: int | None = None) -> dict[str, Any]:
        value = tfp.util.ParameterProperties(event_ndims=1, is_preferred=False)
        return {**super()._parameter_properties(dtype), "value": value}

    @property
    def value(self) -> Any:
        """The `value` argument: the observations."""
        return self._value

    def observed_log_prob(self, name: str = "observed_log_prob") -> tf.Tensor:
        """Returns the log-density `[...]` of the observed coordinates; 0 if there are none."""
        with self._name_and_control_scope(name):
            return self._narrowed(self._given().observed_log_prob())

    def one_step_predictive(self, name: str = "one_step_predictive") -> tfd.Normal:
        """Returns the distribution of each coordinate given earlier observations: `[..., d]`."""
        with self._name_and_control_scope(name):
            given = self._given()
            mean, stddev = given.from_previous_observed()
            return tfd.Normal(self._narrowed(mean), self._narrowed(stddev))

    def forecast(
        self,
        num_steps: int | None = None,
        times: Any = None,
        loc: Any = None,
        name: str = "forecast",
    ) -> Any:
        """Returns the distribution of future coordinates: `path.forecast(self, ...)`."""
        return self.path.forecast(self, num_steps, times, loc, name)

    def _given(self) -> _Given:
        """Reads the parameters, anew in each method."""
        observed = tf.convert_to_tensor(self._observed)
        return _Given(self.path, self._value, observed, self._whole_shape())

    def _mean(self) -> tf.Tensor:
        given = self._given()
        mean = given.loc + given.interpolate(widened(given.value) - given.loc)
        return tf.where(given.observed, given.value, self._narrowed(mean))

    def _variance(self) -> tf.Tensor:
        given = self._given()
        variance = given.of_nearest().variance * given.chain.scale**2
        return self._narrowed(tf.where(given.observed, tf.zeros_like(variance), variance))

    def _stddev(self) -> tf.Tensor:
        given = self._given()
        stddev = given.unit_stddev() * tf.math.abs(given.chain.scale)
        return self._narrowed(tf.where(given.observed, tf.zeros_like(stddev), stddev))

    def _covariance(self) -> tf.Tensor:
        return self._narrowed(self._given().covariance())

    def _log_prob(self, x: tf.Tensor) -> tf.Tensor:
        given = self._given()
        terms = tf.where(given.observed, tf.zeros([], given.chain.dtype), given.log_prob_terms(x))
        log_prob = tf.reduce_sum(terms, axis=-1)
        differs = tf.reduce_any(tf.logical_and(given.observed, x != given.value), axis=-1)
        return self._narrowed(tf.where(differs, tf.constant(-np.inf, log_prob.dtype), log_prob))

    def _entropy(self) -> tf.Tensor:
        given = self._given()
        terms = 0.5 * (tf.math.log(given.of_previous().variance) + 1.0 + math.log(2.0 * math.pi))
        terms += log_abs(given.chain.scale)
        terms = tf.where(given.observed, tf.zeros_like(terms), terms)
        return self._narrowed(tf.reduce_sum(terms, axis=-1))

    def _sample_n(self, n: Any, seed: Any = None) -> tf.Tensor:
        # A draw x of the unconditional distribution plus E[· | value] - E[· | x], which has the
        # conditional distribution (Matheron's rule).
        given = self._given()
        noise = samplers.normal(
            ps.concat([[n], ps.shape(given.value)], axis=0), dtype=self.dtype, seed=seed
        )
        x = given.loc + given.chain.matvec(widened(noise))
        x += given.interpolate(widened(given.value) - x)
        return tf.where(given.observed, given.value, self._narrowed(x))

    def _narrowed(self, x: tf.Tensor) -> tf.Tensor:
        """Casts to the distribution's dtype, which may be narrower than the computation's."""
        return tf.cast(x, self.dtype)


class _Weights(NamedTuple):
    """The mean `left w_left + right w_right` and the variance of a coordinate, for σ = 1."""

    left: tf.Tensor
    right: tf.Tensor
    variance: tf.Tensor


class _Given:
    """Quantities computed from a path and observations, with the parameters read once."""

    def __init__(self, path: Any, value: tf.Tensor, observed: tf.Tensor, shape: Any):
        loc = path._loc_or_zero()
        self.loc, self.chain = widened(loc), path.scale.chain().widened()
        # These depend only on the mask, so they are computed once for all values that share it.
        self._observed = tf.broadcast_to(
            observed, ps.broadcast_shape(ps.shape(observed), ps.reshape(self.chain.size, [1]))
        )
        self.observed = tf.broadcast_to(self._observed, shape)
        # Missing values must not enter a product, since 0 · NaN is NaN, nor a gradient.
        self.value = tf.where(self.observed, value, loc)
        self._sign_flips = self.chain.sign_flips()
        self._steps = size, one_minus_abs = self.chain.abs_steps()
        self._left, self._right = (
            NearestObserved(self.chain.rho, size, one_minus_abs, self._observed, reverse)
            for reverse in (False, True)
        )

    def of_nearest(self) -> _Weights:
        """Returns the weights of the nearest observed coordinates on both sides."""
        left = self._left
        return self._weights(left.size, left.one_minus_abs, left.remainder)

    def of_previous(self) -> _Weights:
        """Returns the weights of the previous coordinate, observed or not, and next observed."""
        size, one_minus_abs = self._previous()
        return self._weights(size, one_minus_abs, _one_minus_square(size, one_minus_abs))

    def _previous(self) -> tuple[tf.Tensor, tf.Tensor]:
        """|ρ_t| and 1 - |ρ_t|; 0 and 1 for the first coordinate, which has no predecessor."""
        size, one_minus_abs = self._steps
        return recurrence.pad(size, 1, 0), recurrence.pad(one_minus_abs, 1, 0, value=1.0)

    def _weights(self, a: tf.Tensor, one_minus_a: tf.Tensor, remainder: tf.Tensor) -> _Weights:
        """Returns the weights, given the left neighbour's correlation a and `remainder` 1 - a²."""
        # 1 - a² b², from 1 - a b; 1 at observed coordinates, whose results are not used.
        one_minus_abs = one_minus_a + a * self._right.one_minus_abs
        rest = _one_minus_square(a * self._right.size, one_minus_abs)
        rest = tf.where(self._observed, tf.ones([], rest.dtype), rest)
        right_share = remainder / rest
        left_weight = a * (self._right.remainder / rest)
        right_weight = self._right.size * right_share
        return _Weights(left_weight, right_weight, right_share * self._right.remainder)

    def unit_stddev(self) -> tf.Tensor:
        """Returns standard deviations for σ = 1, with 1 in place of 0 at observed coordinates."""
        # At observed coordinates the variance is 0, and the square root has no gradient there.
        variance = self.of_nearest().variance
        return tf.sqrt(tf.where(self._observed, tf.ones_like(variance), variance))

    def _standardized(self, x: tf.Tensor) -> tf.Tensor:
        """Returns `x - loc` with signs flipped, divided by σ if σ differs between coordinates."""
        return self._sign_flips * self.chain.over_coordinate_scale(widened(x) - self.loc)

    def interpolate(self, w: tf.Tensor) -> tf.Tensor:
        """Returns, for each coordinate, the weighted sum of its two neighbours' entries in `w`."""
        weights = self.of_nearest()
        w = self._sign_flips * self.chain.over_coordinate_scale(w)
        y = weights.left * self._left.nearest(w) + weights.right * self._right.nearest(w)
        return self.chain.times_coordinate_scale(self._sign_flips * y)

    def observed_log_prob(self) -> tf.Tensor:
        """Returns the log-density of the observed coordinates."""
        # Given the previous observed coordinate w, an observed coordinate has mean a w.
        w = self._standardized(self.value)
        previous = self._left.nearest(w)
        # As in `recurrence.whiten`, this difference is exact for close neighbours.
        residual = (w - previous) + self._left.one_minus_abs * previous
        terms = self._log_density(residual, self._left.remainder)
        return tf.reduce_sum(tf.where(self.observed, terms, tf.zeros([], terms.dtype)), axis=-1)

    def from_previous_observed(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns mean and standard deviation of each coordinate given those observed before it."""
        w = self._left.size * self._left.nearest(self._standardized(self.value))
        mean = self.loc + self.chain.times_coordinate_scale(self._sign_flips * w)
        stddev = tf.math.abs(self.chain.scale) * tf.sqrt(self._left.remainder)
        return mean, tf.broadcast_to(stddev, ps.shape(mean))

    def log_prob_terms(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the log-density of each missing coordinate given those before it."""
        w = self._standardized(tf.where(self.observed, self.value, x))
        previous, following = recurrence.pad(w[..., :-1], 1, 0), self._right.nearest(w)
        weights, (a, one_minus_a) = self.of_previous(), self._previous()
        # w - left w_previous - right w_following, with 1 - left - right in closed form.
        rest = one_minus_a * self._right.one_minus_abs / (1.0 + a * self._right.size)
        residual = (w - previous) + rest * previous + weights.right * (previous - following)
        return self._log_density(residual, weights.variance)

    def _log_density(self, residual: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
        residual /= self.chain.shared_scale[..., tf.newaxis]
        return -0.5 * (
            tf.square(residual) / variance
            + tf.math.log(variance)
            + 2.0 * log_abs(self.chain.scale)
            + math.log(2.0 * math.pi)
        )

    def covariance(self) -> tf.Tensor:
        """Returns the covariance: missing coordinates are again a chain, cut at observed ones."""
        unit, is_missing = self.unit_stddev(), tf.logical_not(self._observed)
        linked = tf.logical_and(is_missing[..., 1:], is_missing[..., :-1])
        # Correlations of neighbours, from the regression slopes on the previous coordinate.
        steps = self.of_previous().left[..., 1:] * unit[..., :-1] / unit[..., 1:]
        steps = tf.where(linked, steps, tf.zeros_like(steps))[..., tf.newaxis, :]
        identity = tf.eye(self.chain.size, dtype=unit.dtype)
        products = recurrence.step_recurrence(
            identity, Coefficients(steps, 1.0 - tf.math.abs(steps))
        )
        correlations = products + tf.linalg.matrix_transpose(products) - identity
        scale = self._sign_flips * unit * self.chain.scale
        scale = tf.where(self.observed, tf.zeros_like(scale), scale)
        return scale[..., tf.newaxis] * correlations * scale[..., tf.newaxis, :]


@elementwise_gradient
def _one_minus_square(x: tf.Tensor, one_minus_abs: tf.Tensor) -> tf.Tensor:
    """`1 - x²` from x and 1 - x; its derivative is -2x exactly, without rounding from 1 - x."""
    return one_minus_abs * (1.0 + x), lambda dy: (-2.0 * x * dy, tf.zeros_like(one_minus_abs))


class NearestObserved:
    """The nearest observed coordinate on one side, left or right, of each coordinate.

    Args:
      rho: the correlations of the chain.
      size: |ρ_t| of each step, `[..., d - 1]`.
      one_minus_abs: 1 - |ρ_t|.
      observed: boolean tensor `[..., d]`.
      reverse: `False` for the left side, `True` for the right one.
    """

    def __init__(
        self,
        rho: LagOneCorrelation,
        size: tf.Tensor,
        one_minus_abs: tf.Tensor,
        observed: tf.Tensor,
        reverse: bool,
    ):
        self._reverse = reverse
        neighbours = observed[..., 1:] if reverse else observed[..., :-1]
        self._linked = tf.logical_not(neighbours)
        # a, the product of the |ρ| up to the neighbour (0 if there is none), and 1 - a, each
        # accurate where it is small. Across a coordinate that is not observed, they become |ρ| a
        # and 1 - |ρ| + |ρ| (1 - a).
        start = tf.where(self._linked, tf.zeros_like(size), size)
        one_minus_abs = tf.broadcast_to(one_minus_abs, ps.shape(start))
        inputs = [self._from_steps(start, end=0.0), self._from_steps(one_minus_abs, end=1.0)]
        self.size, one_minus_abs = tf.unstack(
            recurrence.segmented_recurrence(tf.stack(inputs), self._linked, rho, reverse), num=2
        )
        # 1 - a takes its derivative from -a, which the recurrence computes without cancellation.
        no_value = self.size - tf.stop_gradient(self.size)
        self.one_minus_abs = tf.stop_gradient(one_minus_abs) - no_value
        self.remainder = _one_minus_square(self.size, self.one_minus_abs)

    def nearest(self, w: tf.Tensor) -> tf.Tensor:
        """Returns the neighbour's entry in `w`, `[..., d]`; 0 where there is no neighbour."""
        neighbours = w[..., 1:] if self._reverse else w[..., :-1]
        known = tf.where(self._linked, tf.zeros([], w.dtype), neighbours)
        known = self._from_steps(known, end=0.0)
        return recurrence.segmented_recurrence(known, self._linked, reverse=self._reverse)

    def _from_steps(self, steps: tf.Tensor, end: float) -> tf.Tensor:
        """Moves entries of steps to the coordinates that they lead to; `end` where none does."""
        return recurrence.pad(steps, int(not self._reverse), int(self._reverse), end)

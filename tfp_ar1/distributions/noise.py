"""A Gaussian Markov chain observed with noise: marginal likelihood and posterior, in O(d)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability import distributions as tfd
from tensorflow_probability.python.internal import prefer_static as ps
from tensorflow_probability.python.internal import samplers, tensor_util, tensorshape_util

from tfp_ar1 import recurrence
from tfp_ar1.distributions.derived import DerivedFromPath
from tfp_ar1.linear_operators.chain import log_abs, widened
from tfp_ar1.messages import Messages, largest_precision

__all__ = ["MarkovSites", "NoisyGaussianMarkovChain", "posterior_of_path"]


class NoisyGaussianMarkovChain(DerivedFromPath):
    """The distribution of `y = path + noise`, with independent normal noise at each coordinate.

    `log_prob(y)` is the marginal likelihood of noisy observations, some of which may be missing.
    Everything costs O(d), except `covariance`. Returned by
    `GaussianMarkovChain.with_observation_noise`.

    ```python
    path = tfp_ar1.MultivariateNormalAR1(tf.zeros(100), marginal_scale=1.0, correlation=0.9)
    noisy = path.with_observation_noise(0.5)
    y = noisy.sample(seed=1)
    noisy.log_prob(y)               # the marginal likelihood
    noisy.posterior(y).mean()       # the path, smoothed
    ```

    Args:
      path: the `GaussianMarkovChain` of event shape `[d]`.
      noise_scale: floating-point tensor, the standard deviation (not the variance) of the noise:
        a scalar, `[..., d]`, or `[..., 1]` for one number per batch member. Not negative. Where it
        is infinite nothing is observed; 0 is treated as 1e-15 of the path's own standard deviation
        (in float32).
      observed: boolean tensor `[..., d]`, `True` where y is known (the negation of `mask` and
        `is_missing` elsewhere in TFP). Other entries of y are ignored and may be NaN. Default: all.
      validate_args: if `True`, `noise_scale` is checked when the graph runs.
      allow_nan_stats: if `False`, raises where a statistic is undefined. (All are defined here.)
      name: name prefixed to operations created by this class.

    Raises:
      ValueError: if the last dimension of an argument is neither 1 nor d, or the noise is known to
        be negative.
      TypeError: if `observed` is not boolean.
    """

    def __init__(
        self,
        path: Any,
        noise_scale: Any,
        observed: Any = None,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "NoisyGaussianMarkovChain",
    ):
        parameters = dict(locals())
        self._noise_scale = tensor_util.convert_nonref_to_tensor(
            noise_scale, dtype=path.dtype, name="noise_scale"
        )
        _check_not_negative("noise_scale", self._noise_scale)
        super().__init__(parameters)
        _check_last_dimension(path, noise_scale=self._noise_scale, observed=self._observed)

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: int | None = None) -> dict[str, Any]:
        noise_scale = tfp.util.ParameterProperties(
            event_ndims=1, default_constraining_bijector_fn=tfp.bijectors.Softplus
        )
        return {**super()._parameter_properties(dtype), "noise_scale": noise_scale}

    @property
    def noise_scale(self) -> Any:
        """The `noise_scale` argument: the standard deviation of the noise."""
        return self._noise_scale

    def posterior(self, value: Any, name: str = "posterior") -> Any:
        """Returns the distribution of the path given y: the most general member of the family.

        Args:
          value: y, `[..., d]`.
          name: name prefixed to operations created by this method.

        Returns:
          Distribution over the path, of the broadcast batch shape. Its `tfd.kl_divergence` to the
          same object `path` is computed from the observations, so it is accurate even where the
          rounded parameters of the two are equal.
        """
        with self._name_and_control_scope(name):
            messages, seen = self._messages()
            w, _ = self._standardized(tf.convert_to_tensor(value, self.dtype), messages, seen)
            return _posterior(self.path, messages, messages.tau * w, w)

    def one_step_predictive(self, value: Any, name: str = "one_step_predictive") -> tfd.Normal:
        """Returns the distribution of each y_t given earlier observations: batch shape `[..., d]`.

        Args:
          value: y, `[..., d]`.
          name: name prefixed to operations created by this method.

        Returns:
          Normal whose scale includes the noise; where the noise is infinite, it is the path's.
        """
        with self._name_and_control_scope(name):
            messages, seen = self._messages()
            w, _ = self._standardized(tf.convert_to_tensor(value, self.dtype), messages, seen)
            scale, noise = messages.chain.scale, widened(tf.convert_to_tensor(self._noise_scale))
            mean = messages.predicted(messages.tau * w, w)
            mean = widened(self.path._loc_or_zero()) + scale * mean
            noise = tf.where(tf.math.is_finite(noise), noise, tf.zeros_like(noise))
            stddev = tf.sqrt(tf.square(scale) / (1.0 + messages.left) + tf.square(noise))
            return tfd.Normal(tf.cast(mean, self.dtype), tf.cast(stddev, self.dtype))

    def _messages(self) -> tuple[Messages, tf.Tensor | None]:
        """Returns the messages, and where y is observed; `None` means everywhere."""
        chain = self.path.scale.chain().widened()
        noise = widened(tf.convert_to_tensor(self._noise_scale))
        seen, static = self._observed, tf.get_static_value(noise)
        if static is None or not np.all(np.isfinite(static)):
            is_finite = tf.math.is_finite(noise)
            seen = is_finite if seen is None else tf.logical_and(seen, is_finite)
        if seen is not None:
            noise = tf.where(seen, noise, tf.ones_like(noise))
        # Precisions beyond the largest are clipped: they act the same, and have no gradient.
        scale = tf.math.abs(chain.scale)
        tau = tf.square(scale / tf.maximum(noise, scale * largest_precision(scale.dtype) ** -0.5))
        if seen is not None:
            tau = tf.where(seen, tau, tf.zeros_like(tau))
        return Messages(chain, tau), seen

    def _standardized(
        self, value: tf.Tensor, messages: Messages, seen: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Returns `(y - loc) / σ`, 0 where not observed; and where observed, in the same shape."""
        if seen is not None:
            # Here too, so that NaN does not reach the derivative with respect to the scale.
            value = tf.where(seen, value, tf.zeros_like(value))
        w = (widened(value) - widened(self.path._loc_or_zero())) / messages.chain.scale
        w += tf.zeros([messages.chain.size], w.dtype)
        if seen is None:
            return w, None
        seen = tf.broadcast_to(seen, ps.broadcast_shape(ps.shape(seen), ps.shape(w)))
        return tf.where(seen, w, tf.zeros_like(w)), seen

    def _log_prob(self, y: tf.Tensor) -> tf.Tensor:
        messages, seen = self._messages()
        w, seen = self._standardized(y, messages, seen)
        if seen is not None:
            w = _filled(messages, w, seen)
        # 0 where nothing is observed.
        precision = messages.relative_precision()
        quadratic = tf.reduce_sum(precision * tf.square(messages.innovations(w)), axis=-1)
        terms = self._log_normalization_terms(messages, precision)
        return tf.cast(-0.5 * quadratic - tf.reduce_sum(terms, axis=-1), self.dtype)

    def _log_normalization_terms(self, messages: Messages, precision: tf.Tensor) -> tf.Tensor:
        """Returns `½ log(2π var[y_t | earlier])` at observed coordinates, else 0; `[..., d]`."""
        is_seen = precision > 0.0
        log_precision = tf.math.log(tf.where(is_seen, precision, tf.ones_like(precision)))
        terms = log_abs(messages.chain.scale) - 0.5 * log_precision + 0.5 * math.log(2.0 * math.pi)
        return tf.where(is_seen, terms, tf.zeros_like(terms))

    def _entropy(self) -> tf.Tensor:
        """Returns the entropy of the observed coordinates of y."""
        messages, _ = self._messages()
        precision = messages.relative_precision()
        half = 0.5 * tf.cast(precision > 0.0, precision.dtype)
        terms = self._log_normalization_terms(messages, precision) + half
        entropy = tf.cast(tf.reduce_sum(terms, axis=-1), self.dtype)
        return tf.broadcast_to(entropy, self.batch_shape_tensor())

    def _sample_n(self, n: Any, seed: Any = None) -> tf.Tensor:
        of_path, of_noise = samplers.split_seed(seed, salt="noisy_gaussian_markov_chain")
        shape = ps.concat([[n], self._whole_shape()], axis=0)
        path = self.path.scale.chain().matvec(
            samplers.normal(shape, dtype=self.dtype, seed=of_path)
        )
        noise = samplers.normal(shape, dtype=self.dtype, seed=of_noise)
        return self.path._loc_or_zero() + path + self._noise_scale * noise

    def _mean(self) -> tf.Tensor:
        return tf.broadcast_to(self.path.mean(), self._whole_shape())

    def _variance(self) -> tf.Tensor:
        variance = self.path.variance() + tf.square(self._noise_scale)
        return tf.broadcast_to(variance, self._whole_shape())

    def _covariance(self) -> tf.Tensor:
        covariance = self.path.covariance()
        shape = ps.concat([self.batch_shape_tensor(), ps.shape(covariance)[-2:]], axis=0)
        return tf.linalg.set_diag(tf.broadcast_to(covariance, shape), self._variance())

    def _parameter_control_dependencies(self, is_init: bool) -> list[Any]:
        if not self.validate_args or is_init == tensor_util.is_ref(self._noise_scale):
            return []
        message = "`noise_scale` must not be negative."
        return [tf.debugging.assert_non_negative(self._noise_scale, message=message)]


class MarkovSites:
    """A Gaussian Markov chain times a Gaussian factor (a site) at each coordinate.

    The product is `chain(x) Π_t exp(η_t x_t - ½ λ_t x_t²)`. Observations y_t with noise of standard
    deviation r_t have λ_t = 1 / r_t² and η_t = y_t / r_t². η and λ are natural parameters, which
    encoders output and variational inference updates: any η and any λ ≥ 0 are valid, with λ = η = 0
    where nothing is observed. Every method costs O(d). Returned by
    `GaussianMarkovChain.with_sites`.

    Args:
      path: the `GaussianMarkovChain` of event shape `[d]`.
      information: floating-point tensor `[..., d]`, η.
      precision: floating-point tensor `[..., d]` or `[..., 1]`, λ, non-negative and finite.

    Raises:
      ValueError: if the last dimension of an argument is neither 1 nor d, or a precision is known
        to be negative.
    """

    def __init__(self, path: Any, information: Any, precision: Any):
        self._path, self._dtype = path, path.dtype
        information = tf.convert_to_tensor(information, path.dtype, name="information")
        precision = tf.convert_to_tensor(precision, path.dtype, name="precision")
        _check_last_dimension(path, information=information, precision=precision)
        _check_not_negative("precision", precision)
        chain = path.scale.chain().widened()
        self._information, self._precision = widened(information), widened(precision)
        tau = self._precision * tf.square(chain.scale)
        self._messages = Messages(chain, tf.minimum(tau, largest_precision(tau.dtype)))
        self._loc = widened(path._loc_or_zero())
        h = (self._information - self._precision * self._loc) * chain.scale
        self._h = h + tf.zeros([chain.size], h.dtype)

    def posterior(self) -> Any:
        """Returns the normalized product, of the same class as `path.posterior`."""
        return _posterior(self._path, self._messages, self._h, None)

    def log_normalizer(self) -> tf.Tensor:
        """Returns `log ∫ chain(x) Π_t exp(η_t x_t - ½ λ_t x_t²) dx`, `[...]`."""
        at_loc = (self._information - 0.5 * self._precision * self._loc) * self._loc
        at_loc += tf.zeros([self._messages.chain.size], at_loc.dtype)
        rest = self._messages.log_normalizer(self._h)
        return tf.cast(tf.reduce_sum(at_loc, axis=-1) + rest, self._dtype)

    def kl_divergence(self) -> tf.Tensor:
        """Returns KL(posterior ‖ chain) in nats, `[...]`."""
        terms = self._messages.kl_terms(self._h)
        return tf.cast(tf.reduce_sum(terms, axis=-1), self._dtype)


def _posterior(path: Any, messages: Messages, h: tf.Tensor, w: tf.Tensor | None) -> Any:
    return posterior_of_path(path, *messages.posterior(h, w), lambda: messages.kl_terms(h, w))


def posterior_of_path(
    path: Any,
    mean: tf.Tensor,
    stddev: tf.Tensor,
    fisher_z: tf.Tensor,
    kl_terms: Callable[[], tf.Tensor],
) -> Any:
    """Returns the posterior with given standardized moments and given KL terms to `path`."""
    scale = path.scale.chain().widened().scale
    parameters = {
        "loc": widened(path._loc_or_zero()) + scale * mean,
        "scale_diag": scale * stddev,
        "fisher_z": fisher_z,
    }
    posterior = path.posterior_class(
        **{name: tf.cast(x, path.dtype) for name, x in parameters.items()},
        validate_args=path.validate_args,
        allow_nan_stats=path.allow_nan_stats,
    )
    posterior._kl_terms_to = lambda other: kl_terms() if other is path else None
    posterior._made_from = lambda: path
    return posterior


def _filled(messages: Messages, w: tf.Tensor, seen: tf.Tensor) -> tf.Tensor:
    """Fills gaps in `w` with the last observed value, sign-flipped for each ρ < 0.

    This only affects rounding errors: it makes differences of neighbours exact.
    """
    flips = messages.chain.sign_flips()
    filled = flips * recurrence.segmented_recurrence(flips * w, tf.logical_not(seen[..., 1:]))
    return tf.where(seen, w, tf.stop_gradient(filled))


def _check_last_dimension(path: Any, **arguments: Any) -> None:
    size = tf.compat.dimension_value(path.event_shape[-1])
    for name, x in arguments.items():
        last = None if x is None or not tensorshape_util.rank(x.shape) else x.shape[-1]
        if None not in (size, last) and last not in (1, size):
            raise ValueError(
                f"The last dimension of `{name}` must be the event size {size}, or 1 if all "
                f"coordinates share a number; got shape {x.shape}. For one number per batch member "
                f"pass `{name}[..., tf.newaxis]`."
            )


def _check_not_negative(name: str, x: Any) -> None:
    values = None if tensor_util.is_ref(x) else tf.get_static_value(x)
    if values is not None and np.any(values < 0):
        raise ValueError(f"`{name}` must not be negative; got {np.min(values)}.")

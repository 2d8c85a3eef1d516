"""`SequenceVAE`: a variational autoencoder for time series, with latent paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability.python.internal import samplers

from tfp_ar1.distributions.kl import kl_terms, log_prob_terms
from tfp_ar1.distributions.mvn_ar1 import MultivariateNormalAR1
from tfp_ar1.layers.prior import (
    MultivariateNormalAR1Prior,
    Prior,
    checked_prior,
    current_prior,
)
from tfp_ar1.vae import data_checks, evaluation, likelihoods, network_checks, objectives
from tfp_ar1.vae.rho_vae import RhoVAE
from tfp_ar1.vae.sequence_networks import SequencePosteriorHead

tfd = tfp.distributions

__all__ = ["SequenceVAE"]


class _Series(NamedTuple):
    """A batch of series, taken apart."""

    values: tf.Tensor  # [batch, steps, features], 0 where nothing was observed
    observed: tf.Tensor  # boolean, the same shape
    valid: tf.Tensor  # boolean [batch, steps], false behind the end of a series
    length: tf.Tensor | None  # int32 [batch], or `None` where all series have all steps


class _Parts(NamedTuple):
    """What the methods take as data: an array, or a dictionary."""

    x: Any
    length: Any = None
    mask: Any = None

    @classmethod
    def of(cls, data: Any) -> _Parts:
        """Raises `ValueError` if a key is missing or unknown."""
        if not isinstance(data, Mapping):
            return cls(data)
        if not {"x"} <= set(data) <= set(cls._fields):
            raise ValueError(
                f"Data in a dictionary must have the key 'x', and may have 'length' and 'mask'; "
                f"got {list(data)}."
            )
        return cls(**data)


@keras.saving.register_keras_serializable(package="tfp_ar1")
class SequenceVAE(RhoVAE):
    """A variational autoencoder for time series, whose latents are paths in time.

    The latents of one series are `channels` paths of `steps` coordinates. A priori each path is a
    stationary AR(1) process, by default with a correlation that is learned; a posteriori any family
    of `RhoVAE` that has an order, with the KL in closed form. The decoder, as a rule, sees
    the latents of one step at a time: what connects the steps is the prior.

    ```python
    encoder, decoder = tfp_ar1.vae.sequence_networks.convolutional((100, 1), channels=2)
    vae = tfp_ar1.SequenceVAE(encoder, decoder, channels=2, steps=100, seed=0)
    vae.compile(optimizer=keras.optimizers.Adam(1e-3))
    vae.fit(x_train, epochs=30, validation_data=(x_test,))  # x [N, 100, 1]
    vae.impute(x_with_gaps)  # NaN where nothing was observed; or impute(x, mask)
    vae.forecast(x_test, steps=10)
    ```

    **Data.** An array `[N, steps, features]`, where NaN marks a value that was not observed: its
    likelihood term drops out, and the encoder sees that it is missing. Or a dictionary with that
    array as `"x"` and one or both of

    * `"length"`, for series of unequal lengths: integers `[N]` from 1 to `steps`. What x holds from
      step `length` on is padding, and changes no result;
    * `"mask"`: booleans `[N, steps]` or `[N, steps, features]`, true where x was observed, as
      Keras's masks are. What x holds elsewhere changes no result.

    `fit` and `evaluate` also take `tf.data.Dataset`s of either, whose batches may have fewer steps,
    such as those of `padded_batch`. Values and lengths in these are checked as they come.

    Training, metrics, objectives, sample weights, saving and `export` (for series of full length)
    are those of `RhoVAE`. The metric `correlation` is the posteriors' mean over the channels,
    `prior_correlation` that of a prior that is learned.

    Args:
      encoder: Keras model of two inputs, `[batch, steps, 2 * features]` and boolean
        `[batch, steps]`, to features `[batch, steps, units]`. The first input holds the data, with
        straight lines where values are missing between observed ones (beyond them the nearest is
        held; 0 where there is none), and then 1 where they were observed and 0 elsewhere; the
        second says which steps there are: the features of these must not depend on the others.
      decoder: Keras model from `[batch, channels]` to `[batch, features]`, which is applied to each
        step; or one from whole paths, `[batch, steps, channels]` to `[batch, steps, features]`,
        which cannot forecast. Logits for a Bernoulli likelihood, means for a Gaussian one.
      channels: number of latent channels, at least 1.
      steps: number of steps T, at least 1; the longest series has so many.
      posterior: `"ar1"`, `"diag"`, `"arh1"`, `"ante1"` or `"isotropic"`: the law of each channel's
        path, the channels being independent of each other.
      prior: `"ar1"`, one learned correlation for each channel, which starts as N(0, I); `None` for
        N(0, I); or a `MultivariateNormalAR1` of batch shape `[channels]` and event shape `[steps]`
        with constant parameters; or a layer that learns one,
        `MultivariateNormalAR1Prior(steps, channels=channels)`.
      objective: what to minimize, as for `RhoVAE`; default `ELBO()`.
      likelihood: `"gaussian"`, `"bernoulli"`, or a `tfp_ar1.vae.likelihoods.Likelihood` whose
        values are independent.
      seed: integer seed of the noise, or `None` for a random one.
      **kwargs: arguments of `keras.Model`, such as `name` and `dtype`.

    Raises:
      TypeError: if the prior is not a distribution.
      ValueError: if a name is unknown, a size is not a positive integer, the prior does not fit, or
        encoder and decoder have unfit shapes.
    """

    def __init__(
        self,
        encoder: keras.Model,
        decoder: keras.Model,
        channels: int,
        steps: int,
        posterior: str = "ar1",
        prior: Prior | str | None = "ar1",
        objective: str | objectives.Objective | None = None,
        likelihood: str | likelihoods.Likelihood = "gaussian",
        seed: int | None = None,
        **kwargs,
    ):
        # The constructor of the base makes prior and head by the methods below, which need it.
        self.channels = objectives.checked_count("channels", channels, at_least=1)
        super().__init__(
            encoder,
            decoder,
            latent_dim=objectives.checked_count("steps", steps, at_least=1),
            posterior=posterior,
            prior=prior,
            objective=objective,
            likelihood=likelihood,
            seed=seed,
            **kwargs,
        )

    def _data_shape_of(
        self, encoder_shapes: list[tuple[int | None, ...]]
    ) -> tuple[int | None, ...] | None:
        """The shape of one series, from those of the encoder's inputs; `None` if not known."""
        if not encoder_shapes:
            return None
        if [len(shape) for shape in encoder_shapes] != [3, 2]:
            raise ValueError(
                f"The encoder of `SequenceVAE` must take two inputs, of shapes (batch, steps, "
                f"2 * features), the data beside what says where they were observed, and (batch, "
                f"steps), boolean, which steps there are; it takes {encoder_shapes}. See "
                f"`tfp_ar1.vae.sequence_networks`; one that needs no lengths is made by "
                f"keras.Model([x, keras.Input((steps,), dtype='bool')], features)."
            )
        _, steps, size = encoder_shapes[0]
        return steps, None if size is None else size // 2

    @property
    def steps(self) -> int:
        """The number of steps T of the longest series."""
        return self.latent_dim

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of the latents z of one series: `(channels, steps)`."""
        return (self.channels, self.latent_dim)

    def _make_prior(self, prior: Prior | Mapping[str, Any] | str | None) -> Prior:
        """The prior that is given or named, checked: AR(1), of which N(0, I) has ρ = 0."""
        dtype = self.distribution_dtype
        if isinstance(prior, str):
            if prior != "ar1":
                raise ValueError(
                    f"Unknown prior {prior!r}; expected 'ar1', `None` for N(0, I), a "
                    f"`MultivariateNormalAR1`, or a layer that learns one."
                )
            prior = MultivariateNormalAR1Prior(
                self.steps, channels=self.channels, dtype=dtype.name, name="prior"
            )
        prior = checked_prior(prior, self.steps, dtype, batch_shape=(self.channels,))
        if prior is None:
            return MultivariateNormalAR1(
                tf.zeros(self.latent_shape, dtype), correlation=tf.zeros([], dtype)
            )
        if not isinstance(current_prior(prior), MultivariateNormalAR1):
            raise ValueError(
                f"The prior over sequences must be a `MultivariateNormalAR1` (ρ = 0 for white "
                f"noise), which has a law by which a path goes on; got {current_prior(prior)!r}."
            )
        return prior

    def _make_posterior_head(self) -> keras.layers.Layer:
        """The layer from features to the posterior's parameters."""
        return SequencePosteriorHead(
            self.posterior_name,
            self.channels,
            dtype=self.distribution_dtype.name,
            name="posterior_parameters",
        )

    def build(self, input_shape: Any) -> None:
        """Builds the parts for data of this shape, and checks that they fit together.

        Args:
          input_shape: `(batch or None, steps, features)`, or a dictionary with it at `"x"`.

        Raises:
          ValueError: if shapes do not fit.
        """
        shape = tuple(input_shape["x"] if isinstance(input_shape, Mapping) else input_shape)
        if len(shape) != 3 or shape[1] != self.steps or shape[2] is None:
            raise ValueError(
                f"The data must be of shape (batch, {self.steps}, features); got {shape}."
            )
        steps, size = shape[1:]
        inputs = [
            keras.KerasTensor((None, steps, 2 * size)),
            keras.KerasTensor((None, steps), dtype="bool"),
        ]
        features = network_checks.one_output(
            "encoder",
            self.encoder(inputs),
            "Give the features (batch, steps, units) alone: the model makes mean and covariance of "
            "them.",
        )
        if len(features) != 3 or features[1] != steps or features[-1] is None:
            raise ValueError(
                f"The encoder must give features of shape (batch, {steps}, units), some for each "
                f"step; it gives {features}."
            )
        if not self.posterior_head.built:
            self.posterior_head.build(features)
        latents = getattr(self.decoder, "input_shape", None) if self.decoder.built else None
        # A subclassed decoder does not say what it takes; a step is what is usual.
        self._decodes_steps = not isinstance(latents, tuple) or len(latents) == 2
        wanted = (self.channels,) if self._decodes_steps else (steps, self.channels)
        if isinstance(latents, tuple) and any(
            n not in (None, m) for n, m in zip(latents[1:], wanted, strict=False)
        ):
            raise ValueError(
                f"The decoder must take the latents of a step, (batch, {self.channels}), or of a "
                f"path, (batch, {steps}, {self.channels}); it takes inputs of shape {latents}."
            )
        outputs = network_checks.one_output(
            "decoder",
            self.decoder(keras.KerasTensor((None, *wanted))),
            "Give what the likelihood takes: logits, or means.",
        )
        expected = (size,) if self._decodes_steps else (steps, size)
        if tuple(outputs[1:]) != expected:
            raise ValueError(
                f"The decoder must give outputs of shape {('batch', *expected)} for latents of "
                f"shape {('batch', *wanted)}; it gives {tuple(outputs)}."
            )
        self.likelihood.check_decoder(self.decoder)
        if not self.likelihood.built:
            self.likelihood.build((None, steps, size))
        self.data_shape = (steps, size)
        self.built = True

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """The shape of the data."""
        return tuple(input_shape["x"] if isinstance(input_shape, Mapping) else input_shape)

    def checked_data(self, x: Any) -> np.ndarray | tf.Tensor | dict[str, np.ndarray | tf.Tensor]:
        """Data in memory, or a batch in a graph: one array, or a dictionary with lengths or a mask.

        What is masked in an `np.ma.MaskedArray` was not observed: it becomes NaN.

        Args:
          x: whatever `data_checks.as_array` takes, or a dictionary of such.

        Raises:
          ValueError: if data, lengths or a mask are not what the model is for, in shape or, outside
            a graph, in values.
          TypeError: if they are no data.
        """
        while isinstance(x, list | tuple) and len(x) == 1 and isinstance(x[0], Mapping):
            (x,) = x
        parts = _Parts.of(x)
        data = {"x": data_checks.nan_where_masked(data_checks.as_array("x", parts.x))}
        for name, part in (("length", parts.length), ("mask", parts.mask)):
            if part is not None:
                data[name] = data_checks.unmasked(
                    name, data_checks.as_array(name, part), "fill them in"
                )
        if any(tf.is_symbolic_tensor(part) for part in data.values()):
            self.check_shape(data["x"].shape)
        else:
            parts = {k: keras.ops.convert_to_numpy(part) for k, part in data.items()}
            self._check_values(**parts)
            if "mask" in data and data["mask"].ndim == 2:
                # Of one rank, or a function that was traced for the other would not take it.
                data["mask"] = data["mask"][..., np.newaxis]
        return data if isinstance(x, Mapping) else data["x"]

    def _check_values(
        self, x: np.ndarray, length: np.ndarray | None = None, mask: np.ndarray | None = None
    ) -> None:
        if x.ndim != 3 or x.shape[1] != self.steps:
            raise ValueError(
                f"Expected data of shape [N, {self.steps}, features], N at least 1; got {x.shape}."
            )
        self.check_shape(x.shape)
        observed = ~np.isnan(x)
        if length is not None:
            if length.shape != x.shape[:1] or not np.issubdtype(length.dtype, np.integer):
                raise ValueError(
                    f"`length` must hold an integer for each of {len(x)} series; got dtype "
                    f"{length.dtype} and shape {length.shape}."
                )
            if len(x) and (length.min() < 1 or length.max() > self.steps):
                raise ValueError(
                    f"`length` must be from 1 to {self.steps}, the number of steps; got values "
                    f"from {length.min()} to {length.max()}."
                )
            observed &= (np.arange(self.steps) < length[:, np.newaxis])[..., np.newaxis]
        if mask is not None:
            if mask.dtype != bool or mask.shape not in (
                x.shape,
                x.shape[:2],
                (*x.shape[:2], 1),
            ):
                raise ValueError(
                    f"`mask` must hold booleans, true where x was observed, of shape {x.shape[:2]} "
                    f"or {x.shape}; got dtype {mask.dtype} and shape {mask.shape}."
                )
            observed &= mask if mask.ndim == 3 else mask[..., np.newaxis]
        data_checks.check_values(self, x[observed])

    def assertions(self, x: Any) -> list[tf.Operation]:
        """What must hold for a batch in a graph, where values are not known when it is made."""
        series = self._series(x)
        allowed = self.likelihood.allowed(series.values) | ~series.observed
        checks = [data_checks.assert_all(allowed, self.likelihood.needs)]
        if series.length is not None:
            within = (series.length >= 1) & (series.length <= self.steps)
            message = f"`length` must be from 1 to {self.steps}, the number of steps"
            checks.append(data_checks.assert_all(within, message))
        return checks

    def _series(self, x: Any) -> _Series:
        """Data as the methods take it, taken apart."""
        x, length, mask = _Parts.of(x)
        x = tf.cast(keras.ops.convert_to_tensor(x), self.distribution_dtype)
        if not self.built:
            self.build(tuple(x.shape))
        self.check_shape(x.shape)
        x = self._with_all_steps(tf.ensure_shape(x, [None, None, self.data_shape[-1]]), np.nan)
        if length is None:
            valid = tf.ones(tf.shape(x)[:2], tf.bool)
        else:
            length = tf.cast(length, tf.int32)
            if length.shape.rank not in (None, 1):
                raise ValueError(f"`length` must be of shape [N]; got {length.shape}.")
            length = tf.ensure_shape(length, [None])
            valid = tf.range(self.steps) < length[:, tf.newaxis]
        observed = valid[..., tf.newaxis] & ~tf.math.is_nan(x)
        if mask is not None:
            mask = tf.convert_to_tensor(mask)
            if mask.dtype != tf.bool or mask.shape.rank not in (2, 3):
                raise ValueError(
                    f"`mask` must hold booleans of shape [N, {self.steps}], or that of x; got "
                    f"dtype {mask.dtype.name} and shape {mask.shape}."
                )
            mask = mask if mask.shape.rank == 3 else mask[..., tf.newaxis]
            observed &= self._with_all_steps(mask, False)
        # Zeros before anything is computed, or the gradients would be NaN too.
        return _Series(tf.where(observed, x, tf.zeros_like(x)), observed, valid, length)

    def _with_all_steps(self, x: tf.Tensor, value: float | bool) -> tf.Tensor:
        """`x`, `[batch, steps or fewer, ...]`, with the value in steps that the batch lacks.

        The batches of `tf.data.Dataset.padded_batch` end where their longest series does.
        """
        if x.shape[1] is not None:
            return x
        lacking = self.steps - tf.shape(x)[1]
        check = tf.debugging.assert_non_negative(
            lacking, message=f"A batch has series of more than {self.steps} steps."
        )
        with tf.control_dependencies([check]):
            x = tf.pad(x, [[0, 0], [0, lacking], [0, 0]], constant_values=value)
        return tf.ensure_shape(x, [None, self.steps, None])

    def encode(self, x: Any, training: bool = False) -> tfd.Distribution:
        """The posterior q(z | x): batch shape `[batch, channels]`, event shape `[steps]`.

        Coordinates behind the end of a series mean nothing.

        Args:
          x: data `[batch, steps, features]`, or a dictionary with lengths.
          training: passed on to the encoder.
        """
        series = self._series(self.checked_data(x))
        indicator = tf.cast(series.observed, series.values.dtype)
        inputs = tf.concat([_interpolated(series), indicator], axis=-1)
        features = self.encoder([inputs, series.valid], training=training)
        params = self.posterior_head(tf.cast(features, self.distribution_dtype), series.valid)
        return self.posterior.new(params, self.steps)

    def decoder_outputs(self, z: Any, training: bool = False) -> tf.Tensor:
        """What the decoder gives for paths `[batch, channels, steps]`, `[batch, steps, features]`.

        A decoder of single steps takes paths of any number of steps.
        """
        z = tf.linalg.matrix_transpose(z)
        if not self._decodes_steps:
            return super().decoder_outputs(z, training=training)
        outputs = super().decoder_outputs(tf.reshape(z, [-1, self.channels]), training=training)
        return tf.reshape(outputs, [-1, tf.shape(z)[1], self.data_shape[-1]])

    def kl_to_prior(self, posterior: tfd.Distribution, x: Any = None) -> tf.Tensor:
        """KL(q(z | x) ‖ p(z)), exact, in nats per series, over its own steps.

        The marginals of a Markov chain are Markov chains, so that the KL over the first steps is
        the sum of the first terms of the chain rule.

        Args:
          posterior: q(z | x), from `encode`.
          x: the data, for their lengths; `None` for series of all steps.
        """
        terms = kl_terms(posterior, self.prior)
        return self._sum_over_steps(terms, None if x is None else self._series(x))

    def posterior_correlation(self, posterior: tfd.Distribution, x: Any = None) -> tf.Tensor:
        """The posterior's mean lag-one correlation over the channels, `[batch]`."""
        if self.posterior_name != "ante1":
            return tf.reduce_mean(self.posterior.correlation(posterior), axis=-1)
        # One for each pair of steps: those of a series' own steps count.
        rho = posterior.correlation_parameter()
        pairs = tf.ones_like(rho)
        if x is not None:
            pairs *= tf.cast(self._series(x).valid[:, tf.newaxis, 1:], rho.dtype)
        number = tf.reduce_sum(pairs, axis=[-2, -1])
        return tf.reduce_sum(rho * pairs, axis=[-2, -1]) / tf.maximum(number, 1)

    def _sum_over_steps(self, terms: tf.Tensor, series: _Series | None) -> tf.Tensor:
        """Sums terms `[..., batch, channels, steps]` over the steps that a series has."""
        if series is not None:
            terms = tf.where(series.valid[:, tf.newaxis], terms, tf.zeros_like(terms))
        return tf.reduce_sum(terms, axis=[-2, -1])

    def draw(
        self,
        x: Any,
        posterior: tfd.Distribution,
        num_samples: int,
        seed: tf.Tensor,
        training: bool = False,
    ) -> objectives.Draws:
        """Draws K paths for each series, and weighs them by what they say about its own steps.

        Arguments as for `RhoVAE.draw`. Behind the end of a series the paths that are returned go on
        by the law of the prior.
        """
        series = self._series(x)
        z_seed, path_seed = samplers.split_seed(seed)
        z = posterior.sample(num_samples, seed=z_seed)
        outputs = self.decoder_outputs(tf.reshape(z, [-1, *self.latent_shape]), training=training)
        values, observed = (tf.tile(a, [num_samples, 1, 1]) for a in series[:2])
        terms = self.likelihood.log_prob_terms(values, outputs)
        log_p = tf.reduce_sum(tf.where(observed, terms, tf.zeros_like(terms)), axis=[1, 2])
        log_p = tf.reshape(log_p, [num_samples, -1])
        log_ratio = log_prob_terms(self.prior, z) - log_prob_terms(posterior, z)
        log_weight = log_p + self._sum_over_steps(log_ratio, series)
        if series.length is not None:
            z = self._continued(z, series, 0, path_seed)
        return objectives.Draws(z, log_p, log_weight)

    def _continued(self, z: tf.Tensor, series: _Series, more: int, seed: Any) -> tf.Tensor:
        """Paths that go on behind the end of each series, by the law of the prior.

        Given its last coordinate, what follows in a Markov chain is independent of what was before.
        So it is drawn as `u_t + ρ^(t-l) (z_l - u_l)` for a path u of the prior that is independent
        of z, where l is the last step: of mean and covariance as given z_l.

        Args:
          z: paths `[K, batch, channels, steps]`.
          series: the data.
          more: how many steps to add.
          seed: for `tfd.Distribution.sample`; `None` for the mean of what follows.

        Returns:
          Tensor `[K, batch, channels, steps + more]`. What is added behind the last step has the
          prior's mean of the last step.
        """
        prior = self.prior
        loc = tf.concat([prior.loc, tf.repeat(prior.loc[..., -1:], more, axis=-1)], axis=-1)
        law = MultivariateNormalAR1(
            loc, prior.marginal_scale, correlation=prior.correlation, fisher_z=prior.fisher_z
        )
        u = law.mean() if seed is None else law.sample(tf.shape(z)[:2], seed=seed)
        u = tf.broadcast_to(u, tf.concat([tf.shape(z)[:2], tf.shape(loc)], axis=0))
        z = tf.pad(z, [[0, 0], [0, 0], [0, 0], [0, more]])

        step, last = tf.range(self.steps + more), self._last_step(series)
        offset = tf.reduce_sum(tf.where(step == last, z - u, tf.zeros_like(z)), -1, keepdims=True)
        # At least 1: 0^0 has no derivative, and where it would be needed z is known.
        distance = tf.cast(tf.maximum(step - last, 1), z.dtype)
        rho = law.correlation_parameter()[..., tf.newaxis]
        return tf.where(step <= last, z, u + tf.pow(rho, distance) * offset)

    def _last_step(self, series: _Series) -> tf.Tensor:
        """The index of each series' last step, `[batch, 1, 1]`, or a scalar if all have all."""
        if series.length is None:
            return tf.constant(self.steps - 1)
        return series.length[:, tf.newaxis, tf.newaxis] - 1

    @tf.function(reduce_retracing=True)
    def posterior_summary(
        self, x: Any, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """What the posteriors of a batch look like, for `tfp_ar1.vae.evaluation`.

        Args:
          x: data `[batch, steps, features]`, or a dictionary with lengths.
          seed: int32 tensor `[2]`.

        Returns:
          The mean and one draw of q(z | x), both `[batch, channels, steps]`, which behind the end
          of a series go on by the law of the prior; the root mean square of its standard deviations
          and its mean lag-one correlation, both `[batch]`.
        """
        series, posterior = self._series(x), self.encode(x)
        z_seed, path_seed = samplers.split_seed(seed)
        mean = self._continued(posterior.mean()[tf.newaxis], series, 0, seed=None)[0]
        z = self._continued(posterior.sample(1, seed=z_seed), series, 0, seed=path_seed)[0]
        number = self.channels * tf.reduce_sum(tf.cast(series.valid, mean.dtype), axis=-1)
        variance = self._sum_over_steps(posterior.variance(), series) / number
        return mean, z, tf.sqrt(variance), self.posterior_correlation(posterior, x)

    def impute(
        self,
        x: Any,
        mask: Any = None,
        num_samples: int = 100,
        seed: int | None = None,
        batch_size: int = 128,
    ) -> np.ndarray:
        """Draws of whole series, given what is observed of them.

        They include the noise of observation: quantiles over the draws are prediction intervals.

        Args:
          x: data `[N, steps, features]` with NaN where nothing was observed, or a dictionary.
          mask: booleans `[N, steps]` or `[N, steps, features]`, true where x was observed. What x
            holds elsewhere is not used, and may be NaN or not.
          num_samples: number S of draws of each series.
          seed: integer for the same draws each time, or `None` to go on with the model's own seed.
          batch_size: series at a time. Draws are made in portions, so that memory stays bounded.

        Returns:
          Array `[S, N, steps, features]`: where a value was observed, that value. Behind the end of
          a series is its forecast.

        Raises:
          ValueError: if the data are not what the model is for, or have a mask already.
        """
        if mask is not None:
            parts = _Parts.of(x)
            if parts.mask is not None:
                raise ValueError("Pass `mask` either as an argument or in the dictionary.")
            x = {k: v for k, v in parts._replace(mask=mask)._asdict().items() if v is not None}
        return self._draws(self._impute, x, self.steps, num_samples, seed, batch_size)

    def forecast(
        self,
        x: Any,
        steps: int,
        num_samples: int = 100,
        seed: int | None = None,
        batch_size: int = 128,
    ) -> np.ndarray:
        """Draws of what follows each series.

        The latent paths go on from their last step by their own law, the prior's: k steps later
        they are `ρ^k z_last + √(1 - ρ^2k) ε` for a prior of mean 0 and variance 1. Draws include
        the noise of observation: quantiles over them are prediction intervals.

        Args:
          x: data `[N, T, features]`, or a dictionary with lengths.
          steps: number h of steps to forecast, behind the last step of each series.
          num_samples: number S of draws of each series.
          seed: integer for the same draws each time, or `None` to go on with the model's own seed.
          batch_size: series at a time. Draws are made in portions, so that memory stays bounded.

        Returns:
          Array `[S, N, h, features]`.

        Raises:
          ValueError: if the data are not what the model is for, or the decoder takes whole paths.
        """
        steps = objectives.checked_count("steps", steps, at_least=1)
        if not self._decodes_steps:
            raise ValueError(
                f"A decoder of whole paths of {self.steps} steps cannot decode what follows them; "
                f"`forecast` needs one of single steps, from [batch, {self.channels}]."
            )

        def draw(x: Any, num_samples: int, seed: tf.Tensor) -> tf.Tensor:
            return self._forecast(x, steps, num_samples, seed)

        return self._draws(draw, x, self.steps + steps, num_samples, seed, batch_size)

    def _draws(
        self,
        draw: Callable[[Any, int, tf.Tensor], tf.Tensor],
        x: Any,
        steps: int,
        num_samples: int,
        seed: int | None,
        batch_size: int,
    ) -> np.ndarray:
        """Calls `draw(x, num_samples, seed)`, which decodes `steps` steps, in portions."""
        x = evaluation.checked_data(self, x)
        num_samples = objectives.checked_count("num_samples", num_samples, at_least=1)
        batch_size = objectives.checked_count("batch_size", batch_size, at_least=1)
        seed = self.next_seed() if seed is None else objectives.checked_seed(seed)
        size = steps * self.data_shape[-1]
        portion = evaluation.portion_of_samples(num_samples, batch_size, size)
        batches = []
        for index, batch in enumerate(evaluation.batches(x, batch_size)):
            portions = []
            for start in range(0, num_samples, portion):
                n = min(portion, num_samples - start)
                portion_seed = samplers.fold_in(seed, index * num_samples + start)
                portions.append(draw(batch, n, portion_seed).numpy())
            batches.append(np.concatenate(portions))
        return np.concatenate(batches, axis=1)

    @tf.function(reduce_retracing=True)
    def _impute(self, x: Any, num_samples: int, seed: tf.Tensor) -> tf.Tensor:
        series, (z, noise_seed) = self._series(x), self._draw_continued(x, 0, num_samples, seed)
        draws = self._observations(z, noise_seed)
        return tf.where(series.observed, series.values, draws)

    @tf.function(reduce_retracing=True)
    def _forecast(self, x: Any, steps: int, num_samples: int, seed: tf.Tensor) -> tf.Tensor:
        z, noise_seed = self._draw_continued(x, steps, num_samples, seed)
        following = self._last_step(self._series(x)) + 1 + tf.range(steps)
        following = tf.broadcast_to(following, tf.concat([tf.shape(z)[:3], [steps]], axis=0))
        return self._observations(tf.gather(z, following, axis=-1, batch_dims=3), noise_seed)

    def _draw_continued(
        self, x: Any, more: int, num_samples: int, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Draws of the posterior that go on behind the end of each series, and another seed."""
        z_seed, path_seed, noise_seed = samplers.split_seed(seed, n=3)
        z = self.encode(x).sample(num_samples, seed=z_seed)
        return self._continued(z, self._series(x), more, path_seed), noise_seed

    def _observations(self, z: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Draws of p(x | z), `[K, batch, steps, features]`, for `[K, batch, channels, steps]`."""
        data = self.decode(tf.reshape(z, [-1, self.channels, tf.shape(z)[-1]])).sample(seed=seed)
        return tf.reshape(data, [tf.shape(z)[0], tf.shape(z)[1], -1, self.data_shape[-1]])

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, in a form that Keras can save."""
        config = super().get_config()
        del config["latent_dim"]
        return {**config, "channels": self.channels, "steps": self.steps}


def _interpolated(series: _Series) -> tf.Tensor:
    """The values, with straight lines where they are missing between observed ones.

    Before the first and behind the last observed value it is held; behind the end of a series, and
    where nothing was observed, there is 0.
    """
    steps = tf.range(tf.shape(series.values)[1])[tf.newaxis, :, tf.newaxis]
    last = tf.shape(series.values)[1] - 1
    # The nearest observed step not after each, and not before it, if there is one.
    before = tfp.math.scan_associative(tf.maximum, tf.where(series.observed, steps, -1), axis=1)
    after = last - tf.reverse(
        tfp.math.scan_associative(
            tf.maximum, tf.reverse(tf.where(series.observed, last - steps, -1), [1]), axis=1
        ),
        [1],
    )
    before, after = tf.where(before < 0, after, before), tf.where(after > last, before, after)
    before, after = (tf.clip_by_value(index, 0, last) for index in (before, after))

    def at(index: tf.Tensor) -> tf.Tensor:
        by_feature = [tf.linalg.matrix_transpose(tensor) for tensor in (series.values, index)]
        return tf.linalg.matrix_transpose(tf.gather(*by_feature, batch_dims=2))

    span = tf.maximum(after - before, 1)
    weight = tf.cast(steps - before, series.values.dtype) / tf.cast(span, series.values.dtype)
    low = at(before)
    return tf.where(series.valid[..., tf.newaxis], low + weight * (at(after) - low), 0)

"""`SequenceVAE`: a variational autoencoder for time series, with latent paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd
from tensorflow_probability.python.internal import dtype_util, samplers
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1 import _keras_backend
from tfp_ar1.distributions.kl import kl_terms, log_prob_terms
from tfp_ar1.distributions.mvn_ar1 import MultivariateNormalAR1
from tfp_ar1.layers.prior import MultivariateNormalAR1Prior, Prior, checked_prior, current_prior
from tfp_ar1.vae import batching, data_checks, likelihoods, network_checks, objectives
from tfp_ar1.vae.base import VAE, distribution_dtype
from tfp_ar1.vae.sequence_data import Parts, Series, check_parts, interpolated, unpacked
from tfp_ar1.vae.sequence_head import SequencePosteriorHead


@keras.saving.register_keras_serializable(package="tfp_ar1")
class SequenceVAE(VAE):
    """A variational autoencoder for time series, whose latents are paths in time.

    The latents of one series are `channels` paths of `steps` coordinates. The prior of each path is
    a stationary AR(1) process, by default with a learned correlation; the posterior is any family
    of `RhoVAE` that has an order, with the KL in closed form. The decoder usually sees the latents
    of one timestep at a time, so the prior is what connects the timesteps.

    ```python
    encoder, decoder = tfp_ar1.vae.sequence_networks.convolutional((100, 1), channels=2)
    vae = tfp_ar1.SequenceVAE(encoder, decoder, channels=2, steps=100, seed=0)
    vae.compile(optimizer=keras.optimizers.Adam(1e-3))
    vae.fit(x_train, epochs=30, validation_data=(x_test,))  # x [N, 100, 1]
    vae.impute(x_with_gaps)  # NaN where nothing was observed; or impute(x, mask)
    vae.forecast(x_test, steps=10)
    ```

    **Data.** An array `[N, steps, features]`, where NaN marks a value that was not observed: it has
    no likelihood term, and the encoder sees that it is missing. Or a dictionary with that array as
    `"x"` and one or both of

    * `"length"`, for series of unequal lengths: integers `[N]` from 1 to `steps`. Values of x from
      timestep `length` on are padding and do not affect any result;
    * `"mask"`: booleans `[N, steps]` or `[N, steps, features]`, true where x was observed, as in
      Keras. Values of x elsewhere do not affect any result.

    `fit` and `evaluate` also take a `tf.data.Dataset` of either, whose batches may have fewer
    timesteps, such as those of `padded_batch`. Its values and lengths are checked batch by batch.

    Training, metrics, objectives, sample weights, saving and `export` (for series of full length)
    work as in `RhoVAE`. The metric `correlation` is the posteriors' mean over the channels,
    `prior_correlation` that of a learned prior.

    Args:
      encoder: Keras model from two inputs, `[batch, steps, 2 * features]` and boolean
        `[batch, steps]`, to features `[batch, steps, units]`. The first input holds the data, with
        missing values interpolated linearly (the nearest observed value before the first and after
        the last; 0 if there is none), followed by indicators, 1 where observed and 0 elsewhere. The
        second marks the valid timesteps, whose features must not depend on the other timesteps.
      decoder: Keras model from `[batch, channels]` to `[batch, features]`, applied to each
        timestep; or from whole paths, `[batch, steps, channels]` to `[batch, steps, features]`,
        which cannot forecast. Logits for a Bernoulli likelihood, means for a Gaussian one.
      channels: number of latent channels, at least 1.
      steps: number of timesteps T of the longest series, at least 1.
      posterior: the distribution of each channel's path, with independent channels: any family of
        `RhoVAE` but `"full"`; or `"sites"`, where the encoder outputs a Gaussian factor for each
        timestep at which anything was observed, and the posterior is exactly the prior times these
        factors (see `tfp_ar1.params.sites`). In gaps and past the end of a series the posterior
        then follows from the prior.
      prior: `"ar1"` for one learned correlation per channel, initially N(0, I); `None` for N(0, I);
        a `MultivariateNormalAR1` of batch shape `[channels]` and event shape `[steps]` with
        constant parameters; or a layer that learns one,
        `MultivariateNormalAR1Prior(steps, channels=channels)`. For forecasts beyond the data's fast
        movements, different initial time scales may help, such as
        `correlation=[0.9, 0.99, 0.999]` for 3 channels.
      objective: what to minimize, as for `RhoVAE`; default `ELBO()`.
      likelihood: `"gaussian"`, `"bernoulli"`, or a `tfp_ar1.vae.likelihoods.Likelihood` with
        independent values.
      seed: integer seed of the noise, or `None` for a random one.
      **kwargs: arguments of `keras.Model`, such as `name` and `dtype`.

    Raises:
      TypeError: if the prior is not a distribution.
      ValueError: if a name is unknown, a size is not a positive integer, or the prior or the shapes
        of encoder and decoder do not fit.
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
        channels = batching.checked_count("channels", channels, at_least=1)
        steps = batching.checked_count("steps", steps, at_least=1)
        dtype = distribution_dtype(kwargs.get("dtype"))
        prior = _checked_prior(prior, channels, steps, dtype)
        super().__init__(encoder, decoder, posterior, prior, objective, likelihood, seed, **kwargs)
        self.channels, self.steps = channels, steps
        self.latent_shape = (channels, steps)  # of the latents z of one series
        self.posterior_head = SequencePosteriorHead(
            posterior, channels, dtype=dtype_util.name(dtype), name="posterior_parameters"
        )
        inputs = network_checks.input_shapes(encoder)
        if inputs and [len(shape) for shape in inputs] != [3, 2]:
            raise ValueError(
                f"The encoder of `SequenceVAE` must take two inputs, the data followed by "
                f"indicators of what was observed, (batch, steps, 2 * features), and the valid "
                f"steps, boolean (batch, steps); it takes {inputs}. See "
                f"`tfp_ar1.vae.sequence_networks`; for an encoder that needs no lengths use "
                f"keras.Model([x, keras.Input((steps,), dtype='bool')], features)."
            )
        if inputs:
            num_timesteps, width = inputs[0][1:]
            self.build_for((num_timesteps, None if width is None else width // 2))

    def build(self, input_shape: Any) -> None:
        """Builds the parts for data of this shape, and checks that they fit together.

        Args:
          input_shape: `(batch or None, steps, features)`, or a dictionary with it at `"x"`.

        Raises:
          ValueError: if shapes do not fit.
        """
        shape = tuple(input_shape["x"] if isinstance(input_shape, Mapping) else input_shape)
        if len(shape) != 3 or shape[1] != self.steps or shape[2] is None:
            expected = f"(batch, {self.steps}, features)"
            raise ValueError(f"The data must be of shape {expected}; got {shape}.")
        features = shape[2]
        inputs = [
            keras.KerasTensor((None, self.steps, 2 * features)),
            keras.KerasTensor((None, self.steps), dtype="bool"),
        ]
        # A subclassed decoder may have no input shape; assume that it takes single timesteps.
        decoded = network_checks.input_shapes(self.decoder)
        self._decodes_steps = len(decoded) != 1 or len(decoded[0]) == 2
        times = () if self._decodes_steps else (self.steps,)
        if not network_checks.takes(self.decoder, (*times, self.channels)):
            raise ValueError(
                f"The decoder must take the latents of a step, (batch, {self.channels}), or of a "
                f"path, (batch, {self.steps}, {self.channels}); it takes inputs of shape {decoded}."
            )
        latents, outputs = (*times, self.channels), (*times, features)
        advice = "Output features for each step; the model computes mean and covariance from them."
        self.build_parts(shape[1:], inputs, (self.steps, "units"), latents, outputs, advice)

    def checked_data(self, x: Any) -> np.ndarray | tf.Tensor | dict[str, np.ndarray | tf.Tensor]:
        """Checks and converts data in memory or a batch in a graph: an array or a dictionary.

        Masked values of an `np.ma.MaskedArray` count as not observed and become NaN.

        Raises:
          ValueError: if data, lengths or a mask do not fit the model, in shape or, outside a graph,
            in values.
          TypeError: if x cannot be converted to an array.
        """
        while isinstance(x, list | tuple) and len(x) == 1 and isinstance(x[0], Mapping):
            (x,) = x
        data = Parts.of(x).given()
        for name, part in data.items():
            part = data_checks.as_array(name, part)
            if name == "x":
                data[name] = data_checks.nan_where_masked(part)
            else:
                data[name] = data_checks.unmasked(name, part, "fill them in")
        symbolic = any(_keras_backend.is_symbolic(part) for part in data.values())
        shape = data["x"].shape
        if not symbolic and (len(shape) != 3 or shape[1] != self.steps):
            expected = f"[N, {self.steps}, features], N at least 1"
            raise ValueError(f"Expected data of shape {expected}; got {tuple(shape)}.")
        self.check_shape(shape)
        if not symbolic:
            arrays = {name: keras.ops.convert_to_numpy(part) for name, part in data.items()}
            data_checks.check_values(self, arrays["x"][check_parts(**arrays)])
            if "mask" in data and data["mask"].ndim == 2:
                # Always of rank 3, so that functions are traced for one rank only.
                data["mask"] = data["mask"][..., np.newaxis]
        return data if isinstance(x, Mapping) else data["x"]

    def assertions(self, x: Any) -> list[tf.Operation]:
        """Assertions about a batch in a graph, whose values are not known at trace time."""
        series = self._series(x)
        allowed = self.likelihood.allowed(series.values) | ~series.observed
        checks = [_keras_backend.assert_all(allowed, self.likelihood.needs)]
        if series.length is not None:
            within = (series.length >= 1) & (series.length <= self.steps)
            message = f"`length` must be from 1 to {self.steps}, the number of steps"
            checks.append(_keras_backend.assert_all(within, message))
        return checks

    def _series(self, x: Any) -> Series:
        """Unpacks data as the methods take it."""
        parts = Parts.of(x)
        x = keras.ops.convert_to_tensor(parts.x)
        if not self.built:
            self.build(tuple(x.shape))
        self.check_shape(x.shape)
        return unpacked(parts._replace(x=x), self.data_shape, self.distribution_dtype)

    def encode(self, x: Any, training: bool = False) -> tfd.Distribution:
        """Returns the posterior q(z | x): batch shape `[batch, channels]`, event shape `[steps]`.

        Coordinates past the end of a series are meaningless.

        Args:
          x: data `[batch, steps, features]`, or a dictionary with lengths.
          training: passed on to the encoder.
        """
        series = self._series(self.checked_data(x))
        indicator = tf.cast(series.observed, series.values.dtype)
        inputs = tf.concat([interpolated(series), indicator], axis=-1)
        features = self.encoder([inputs, series.valid], training=training)
        params = self.posterior_head(tf.cast(features, self.distribution_dtype), series.valid)
        observed = tf.reduce_any(series.observed, axis=-1)[:, tf.newaxis]
        return self.posterior.new(params, self.steps, self.prior, observed)

    def decoder_outputs(self, z: Any, training: bool = False) -> tf.Tensor:
        """Returns the decoder's outputs `[batch, T, features]` for paths `[batch, channels, T]`."""
        z = tf.linalg.matrix_transpose(z)
        if not self._decodes_steps:
            return super().decoder_outputs(z, training=training)
        outputs = super().decoder_outputs(tf.reshape(z, [-1, self.channels]), training=training)
        return tf.reshape(outputs, [-1, ps.shape(z)[1], outputs.shape[-1]])

    def kl_to_prior(self, posterior: tfd.Distribution, x: Any = None) -> tf.Tensor:
        """Returns the exact KL(q(z | x) ‖ p(z)) in nats per series, over its own timesteps.

        For a posterior by sites this is the KL to the prior that it was made from.
        """
        terms = self._kl_terms(posterior)
        if x is None:
            return tf.reduce_sum(terms, axis=[-2, -1])
        return self._series(x).sum_over_timesteps(terms)

    def _kl_terms(self, posterior: tfd.Distribution) -> tf.Tensor:
        """Returns the terms of the KL by the chain rule, `[batch, channels, steps]`.

        The marginals of a Markov chain are Markov chains, so the KL over the first timesteps is the
        sum of the first terms.
        """
        # A learned prior is a new object each time, but a posterior made from a prior knows its KL
        # only to that object (see `tfp_ar1.messages`).
        prior = getattr(posterior, "_made_from", lambda: None)()
        return kl_terms(posterior, self.prior if prior is None else prior)

    def posterior_correlation(self, posterior: tfd.Distribution, x: Any = None) -> tf.Tensor:
        """Returns the posterior's mean lag-one correlation over the channels, `[batch]`."""
        if not self.posterior.has_correlations:
            return tf.reduce_mean(self.posterior.correlation(posterior), axis=-1)
        # One correlation for each step between timesteps; only steps within a series count.
        rho = posterior.correlation_parameter()
        counted = tf.ones_like(rho)
        if x is not None:
            counted *= tf.cast(self._series(x).valid[:, tf.newaxis, 1:], rho.dtype)
        number = tf.reduce_sum(counted, axis=[-2, -1])
        return tf.reduce_sum(rho * counted, axis=[-2, -1]) / tf.maximum(number, 1)

    def draw(
        self, x: Any, posterior: Any, num_samples: int, seed: tf.Tensor, training: bool = False
    ) -> objectives.Draws:
        """Draws K paths for each series and weighs them over its own timesteps.

        As `RhoVAE.draw`. Past the end of a series, the returned paths follow the prior.
        """
        series = self._series(x)
        z_seed, path_seed = samplers.split_seed(seed)
        z = posterior.sample(num_samples, seed=z_seed)
        log_p = tf.reduce_sum(self._log_prob_terms(series, z, training), axis=[1, 2])
        log_p = tf.reshape(log_p, [num_samples, -1])
        log_ratio = log_prob_terms(self.prior, z) - log_prob_terms(posterior, z)
        log_weight = log_p + series.sum_over_timesteps(log_ratio)
        if series.length is not None:
            z = self._continued(z, series, 0, path_seed)
        return objectives.Draws(z, log_p, log_weight)

    def _log_prob_terms(self, series: Series, z: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns log p(x | z) by value, `[K * batch, steps, features]`; 0 where not observed."""
        outputs = self.decoder_outputs(tf.reshape(z, [-1, *self.latent_shape]), training=training)
        values, observed = (tf.tile(a, [ps.shape(z)[0], 1, 1]) for a in series[:2])
        terms = self.likelihood.log_prob_terms(values, outputs)
        return tf.where(observed, terms, tf.zeros_like(terms))

    @_keras_backend.compiled_method
    def step_terms(self, x: Any, seed: tf.Tensor, num_samples: int) -> tuple[tf.Tensor, tf.Tensor]:
        """`[K, batch, steps]`: log p(x_t | z_t); `[batch, steps]`: the terms of KL(q ‖ prior)."""
        series, posterior = self._series(x), self.encode(x)
        z_seed, _ = samplers.split_seed(seed)
        z = posterior.sample(num_samples, seed=z_seed)
        log_p = tf.reduce_sum(self._log_prob_terms(series, z), axis=-1)
        kl = tf.reduce_sum(self._kl_terms(posterior), axis=-2)
        log_p = tf.reshape(log_p, [num_samples, -1, self.steps])
        return log_p, tf.where(series.valid, kl, tf.zeros_like(kl))

    def _continued(self, z: tf.Tensor, series: Series, more: int, seed: Any) -> tf.Tensor:
        """Continues paths `[K, batch, channels, steps]` past the end of each series.

        Also by `more` timesteps beyond `steps`, where the prior keeps its last mean. Given its last
        coordinate z_l, the rest of a Markov chain is independent of what came before. It is drawn
        as `u_t + ρ^(t-l) (z_l - u_l)`, where l is the last timestep and u a path drawn from the
        prior independently of z: this has the mean and covariance given z_l. Without a seed, u is
        the prior's mean.
        """
        prior = self.prior
        loc = tf.concat([prior.loc, tf.repeat(prior.loc[..., -1:], more, axis=-1)], axis=-1)
        extended = MultivariateNormalAR1(
            loc, prior.marginal_scale, correlation=prior.correlation, fisher_z=prior.fisher_z
        )
        u = extended.mean() if seed is None else extended.sample(ps.shape(z)[:2], seed=seed)
        u = tf.broadcast_to(u, ps.concat([ps.shape(z)[:2], ps.shape(loc)], axis=0))
        z = tf.pad(z, [[0, 0], [0, 0], [0, 0], [0, more]])

        step, last = tf.range(self.steps + more), series.last_step()
        offset = tf.reduce_sum(tf.where(step == last, z - u, tf.zeros_like(z)), -1, keepdims=True)
        # At least 1, because 0^0 has no derivative; at distances below 1, z is used instead.
        distance = tf.cast(tf.maximum(step - last, 1), z.dtype)
        rho = extended.correlation_parameter()[..., tf.newaxis]
        return tf.where(step <= last, z, u + tf.pow(rho, distance) * offset)

    @_keras_backend.compiled_method
    def posterior_summary(self, x: Any, seed: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Like `RhoVAE.posterior_summary`; past the end of a series both paths follow the prior."""
        series, posterior = self._series(x), self.encode(x)
        z_seed, path_seed = samplers.split_seed(seed)
        mean = self._continued(posterior.mean()[tf.newaxis], series, 0, seed=None)[0]
        z = self._continued(posterior.sample(1, seed=z_seed), series, 0, seed=path_seed)[0]
        number = self.channels * tf.reduce_sum(tf.cast(series.valid, mean.dtype), axis=-1)
        variance = series.sum_over_timesteps(posterior.variance()) / number
        return mean, z, tf.sqrt(variance), self.posterior_correlation(posterior, x)

    def impute(
        self,
        x: Any,
        mask: Any = None,
        num_samples: int = 100,
        seed: int | None = None,
        batch_size: int = 128,
        summarize: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> np.ndarray:
        """Draws whole series given their observed values.

        Draws include observation noise, so quantiles over them are prediction intervals.

        Args:
          x: data `[N, steps, features]` with NaN where nothing was observed, or a dictionary.
          mask: as in a dictionary, which then must not have a mask.
          num_samples: number S of draws per series.
          seed: integer for reproducible draws, or `None` to use the model's own seed.
          batch_size: series at a time. Draws are made in portions, so memory stays bounded.
          summarize: a function of the draws `[S, n, T, features]` of n series that keeps axis 1,
            such as `lambda x: np.quantile(x, (0.05, 0.95), axis=0)`; its results are returned
            instead, so the draws of all series are never in memory together.

        Returns:
          Array `[S, N, steps, features]`. Observed values are kept; past the end of a series is its
          forecast.

        Raises:
          ValueError: if the data do not fit the model.
        """
        if mask is not None:
            parts = Parts.of(x)
            if parts.mask is not None:
                raise ValueError("Pass `mask` either as an argument or in the dictionary.")
            x = parts._replace(mask=mask).given()
        return self._draws(self.impute_draws, x, 0, num_samples, seed, batch_size, summarize)

    def forecast(
        self,
        x: Any,
        steps: int,
        num_samples: int = 100,
        seed: int | None = None,
        batch_size: int = 128,
        summarize: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> np.ndarray:
        """Draws forecasts of each series.

        From its last timestep on, a latent path follows the prior: k timesteps later it is
        `ρ^k z_last + √(1 - ρ^2k) ε` for a prior of mean 0 and variance 1. Draws include observation
        noise, so quantiles over them are prediction intervals.

        Args:
          x: data `[N, T, features]`, or a dictionary with lengths.
          steps: number h of timesteps to forecast after the last one of each series.
          num_samples: number S of draws per series.
          seed: as for `impute`.
          batch_size: as for `impute`.
          summarize: as for `impute`.

        Returns:
          Array `[S, N, h, features]`.

        Raises:
          ValueError: if the data do not fit the model, or the decoder takes whole paths.
        """
        steps = batching.checked_count("steps", steps, at_least=1)
        if not self._decodes_steps:
            raise ValueError(
                f"A decoder of whole paths of {self.steps} steps cannot decode later steps; "
                f"`forecast` needs a decoder of single steps, from [batch, {self.channels}]."
            )
        return self._draws(self.forecast_draws, x, steps, num_samples, seed, batch_size, summarize)

    def _draws(
        self, fn: Any, x: Any, more: int, num_samples: int, seed: Any, batch_size: int, reduce: Any
    ) -> np.ndarray:
        """Calls `fn(x, more, num_samples, seed)` in portions, for `more` timesteps than in x."""
        x = data_checks.checked_arrays(self, x)
        num_samples = batching.checked_count("num_samples", num_samples, at_least=1)
        batch_size = batching.checked_count("batch_size", batch_size, at_least=1)
        seed = self.next_seed() if seed is None else batching.checked_seed(seed)
        size = (self.steps + more) * self.data_shape[-1]
        batches = []
        for index, batch in enumerate(batching.batches(x, batch_size)):
            first = index * num_samples
            portions = [
                fn(batch, more, n, samplers.fold_in(seed, first + start))
                for start, n in batching.portions(num_samples, batch_size, size)
            ]
            draws = np.concatenate(portions)
            batches.append(draws if reduce is None else reduce(draws))
        return np.concatenate(batches, axis=1)

    @_keras_backend.compiled_method
    def impute_draws(self, x: Any, more: int, num_samples: int, seed: tf.Tensor) -> tf.Tensor:
        """Draws whole series `[K, batch, steps, features]`; see `impute`. `more` is 0."""
        series, (z, noise_seed) = self._series(x), self._draw_continued(x, more, num_samples, seed)
        draws = self._observations(z, noise_seed)
        return tf.where(series.observed, series.values, draws)

    @_keras_backend.compiled_method
    def forecast_draws(self, x: Any, steps: int, num_samples: int, seed: tf.Tensor) -> tf.Tensor:
        """Draws forecasts `[K, batch, steps, features]`; see `forecast`."""
        z, noise_seed = self._draw_continued(x, steps, num_samples, seed)
        following = self._series(x).last_step() + 1 + tf.range(steps)
        following = tf.broadcast_to(following, ps.concat([ps.shape(z)[:3], [steps]], axis=0))
        return self._observations(tf.gather(z, following, axis=-1, batch_dims=3), noise_seed)

    def _draw_continued(
        self, x: Any, more: int, num_samples: int, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Draws posterior paths, continued past the end of each series; also returns a new seed."""
        z_seed, path_seed, noise_seed = samplers.split_seed(seed, n=3)
        z = self.encode(x).sample(num_samples, seed=z_seed)
        return self._continued(z, self._series(x), more, path_seed), noise_seed

    def _observations(self, z: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Draws x `[K, batch, steps, features]` from p(x | z), z `[K, batch, channels, steps]`."""
        data = self.decode(tf.reshape(z, [-1, self.channels, ps.shape(z)[-1]])).sample(seed=seed)
        return tf.reshape(data, [ps.shape(z)[0], ps.shape(z)[1], -1, self.data_shape[-1]])

    @property
    def draw_endpoints(self) -> tuple[str, ...]:
        """See `VAE`."""
        return ("impute", "forecast") if self._decodes_steps else ("impute",)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, in a form that Keras can save."""
        return {**super().get_config(), "channels": self.channels, "steps": self.steps}


def _checked_prior(prior: Any, channels: int, num_timesteps: int, dtype: tf.DType) -> Prior:
    """Returns the given or named prior, which must be AR(1); N(0, I) is AR(1) with ρ = 0."""
    if isinstance(prior, str):
        if prior != "ar1":
            raise ValueError(
                f"Unknown prior {prior!r}; expected 'ar1', `None` for N(0, I), a "
                f"`MultivariateNormalAR1`, or a layer that learns one."
            )
        options = {"channels": channels, "dtype": dtype_util.name(dtype), "name": "prior"}
        prior = MultivariateNormalAR1Prior(num_timesteps, **options)
    prior = checked_prior(prior, num_timesteps, dtype, batch_shape=(channels,))
    if prior is None:
        loc = tf.zeros([channels, num_timesteps], dtype)
        return MultivariateNormalAR1(loc, correlation=tf.zeros([], dtype))
    if not isinstance(current_prior(prior), MultivariateNormalAR1):
        raise ValueError(
            f"The prior over sequences must be a `MultivariateNormalAR1` (ρ = 0 for white noise), "
            f"which determines how a path continues; got {current_prior(prior)!r}."
        )
    return prior

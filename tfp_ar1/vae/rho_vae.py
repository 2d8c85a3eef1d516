"""`RhoVAE`: a variational autoencoder with a choice of posteriors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd
from tensorflow_probability.python.internal import dtype_util
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1 import _keras_backend, priors
from tfp_ar1 import params as ar1_params
from tfp_ar1.layers.prior import Prior, checked_prior
from tfp_ar1.vae import data_checks, likelihoods, network_checks, objectives
from tfp_ar1.vae.base import VAE, distribution_dtype


@keras.saving.register_keras_serializable(package="tfp_ar1")
class RhoVAE(VAE):
    """A variational autoencoder, by default with the AR(1) posterior of the ρ-VAE paper.

    A dense layer maps the encoder's features to the parameters of the posterior q(z | x); the
    decoder maps a sample z to the likelihood p(x | z). Train the model with `compile` and `fit`,
    without a loss or targets:

    ```python
    encoder, decoder = tfp_ar1.vae.architectures.mlp(data_shape=(28, 28), latent_dim=10)
    vae = tfp_ar1.RhoVAE(encoder, decoder, latent_dim=10, seed=0)
    vae.compile(optimizer=keras.optimizers.Adam(1e-3))
    vae.fit(x_train, epochs=15, batch_size=128, validation_data=(x_test,))
    vae.generate(16)
    ```

    `fit` and `evaluate` report, in nats per example: `loss`, the training objective;
    `reconstruction`, -E_q[log p(x | z)] from one sample; `kl`, the exact KL(q ‖ prior); and
    `correlation`, the mean lag-one correlation of the posteriors. The negative ELBO is
    `reconstruction + kl`. If the prior learns a correlation, `prior_correlation` is its mean.
    Distributions are computed in float32 (float64 under that policy), also under mixed precision.

    Args:
      encoder: Keras model from data `[batch, *data_shape]` to features `[batch, units]`.
      decoder: Keras model from latent vectors `[batch, latent_dim]` to `[batch, *data_shape]`:
        logits for a Bernoulli likelihood, means for a Gaussian one.
      latent_dim: size d of the latent vectors, at least 1.
      posterior: `"ar1"` (one variance and one correlation, the ρ-VAE), `"diag"` (a variance for
        each dimension, the standard VAE), `"isotropic"` (one variance), `"full"` (any covariance,
        by its Cholesky factor), or another key of `tfp_ar1.vae.posteriors.POSTERIORS` except
        `"sites"`, which is for paths in time.
      prior: distribution over vectors of size d with constant parameters, or a layer that learns
        one (`tfp_ar1.layers.MultivariateNormalAR1Prior`); default N(0, I).
      objective: what to minimize: `"elbo"`, `"infovae"`, `"iwae"`, or one of
        `tfp_ar1.vae.objectives`; default `ELBO()`. For the β-VAE: `ELBO(beta=4.0)`.
      likelihood: `"bernoulli"`, `"gaussian"`, or a `tfp_ar1.vae.likelihoods.Likelihood`.
      seed: integer seed of the noise, or `None` for a random one.
      **kwargs: arguments of `keras.Model`, such as `name` and `dtype`.

    Raises:
      TypeError: if the prior is not a distribution, or encoder or decoder not a Keras 3 model.
      ValueError: if another argument is invalid, or parts do not fit together (raised when the
        model is built if the encoder has no input shape yet).
    """

    def __init__(
        self,
        encoder: keras.Model,
        decoder: keras.Model,
        latent_dim: int,
        posterior: str = "ar1",
        prior: Prior | None = None,
        objective: str | objectives.Objective | None = None,
        likelihood: str | likelihoods.Likelihood = "bernoulli",
        seed: int | None = None,
        **kwargs,
    ):
        latent_dim = ar1_params.checked_event_size(latent_dim)
        dtype = distribution_dtype(kwargs.get("dtype"))
        prior = checked_prior(prior, latent_dim, dtype)
        if prior is None:
            prior = priors.standard_normal(latent_dim, dtype)
        super().__init__(encoder, decoder, posterior, prior, objective, likelihood, seed, **kwargs)
        if self.posterior.needs_prior:
            raise ValueError(
                f"The posterior {posterior!r} is for latents that are paths in time: use it with "
                f"`SequenceVAE`, or choose another posterior."
            )
        self.latent_dim = latent_dim
        self.latent_shape = (latent_dim,)  # of the latents z of one example
        # Made now, like every other initializer, so that equal seeds give equal weights.
        self._loc_initializer = keras.initializers.GlorotUniform()
        self.posterior_head = keras.layers.Dense(
            self.posterior.params_size(latent_dim),
            kernel_initializer=self._initial_head_kernel,
            dtype=dtype_util.name(dtype),
            name="posterior_parameters",
        )
        inputs = network_checks.input_shapes(encoder)
        if len(inputs) > 1:
            raise ValueError(
                f"The encoder of `RhoVAE` must take one input, the data; it takes {len(inputs)}, "
                f"of shapes {inputs}. Combine the inputs of an example in one array; for series "
                f"see `SequenceVAE`."
            )
        self.build_for(inputs[0][1:] if inputs else None)

    def build(self, input_shape: Any) -> None:
        """Builds the parts for data of this shape, and checks that they fit together.

        Args:
          input_shape: `(batch or None, *data_shape)`.

        Raises:
          ValueError: if the encoder does not output vectors, or the decoder not the data's shape.
        """
        data_shape = tuple(input_shape[1:])
        if not network_checks.takes(self.decoder, self.latent_shape):
            raise ValueError(
                f"The decoder must take latent vectors of size {self.latent_dim}; it takes inputs "
                f"of shape {self.decoder.input_shape}."
            )
        inputs = keras.KerasTensor((None, *data_shape))
        advice = (
            "Output only features, and end with a Flatten or a pooling layer; the model computes "
            "mean and covariance from them."
        )
        self.build_parts(data_shape, inputs, ("units",), self.latent_shape, data_shape, advice)

    def _initial_head_kernel(self, shape: tuple[int, int], dtype: Any = None) -> tf.Tensor:
        """Random for the mean, which comes first in all families; 0 for the rest: covariance I."""
        units, size = shape
        loc = self._loc_initializer((units, self.latent_dim), dtype)
        return tf.concat([loc, tf.zeros((units, size - self.latent_dim), loc.dtype)], axis=-1)

    def encode(self, x: Any, training: bool = False) -> tfd.Distribution:
        """Returns the posterior q(z | x): batch shape `[batch]`, event shape `[latent_dim]`.

        Args:
          x: data `[batch, *data_shape]`.
          training: passed on to the encoder.
        """
        x = keras.ops.convert_to_tensor(self.checked_data(x))
        if not self.built:
            self.build(tuple(x.shape))
        features = self.encoder(x, training=training)
        params = self.posterior_head(tf.cast(features, self.distribution_dtype))
        return self.posterior.new(params, self.latent_dim)

    def kl_to_prior(self, posterior: tfd.Distribution, x: Any = None) -> tf.Tensor:
        """Returns the exact KL(q(z | x) ‖ p(z)) in nats per example; x is for `SequenceVAE`."""
        return priors.kl_divergence(posterior, self.prior)

    def posterior_correlation(self, posterior: tfd.Distribution, x: Any = None) -> tf.Tensor:
        """Returns the mean lag-one correlation of each example's posterior; x is not used."""
        return self.posterior.correlation(posterior)

    def draw(
        self, x: Any, posterior: Any, num_samples: int, seed: tf.Tensor, training: bool = False
    ) -> objectives.Draws:
        """Draws K latent vectors for each example from its posterior and weighs them."""
        # Computes the density from the noise of the draw, not from its rounded coordinates.
        z, log_q = posterior.experimental_sample_and_log_prob(num_samples, seed=seed)
        outputs = self.decoder_outputs(tf.reshape(z, [-1, *self.latent_shape]), training=training)
        x = tf.cast(x, outputs.dtype)
        targets = tf.tile(x, [num_samples] + [1] * (len(x.shape) - 1))
        log_p = tf.reshape(self.likelihood.log_prob(targets, outputs), ps.shape(log_q))
        return objectives.Draws(z, log_p, log_weight=log_p + self.prior.log_prob(z) - log_q)

    @_keras_backend.compiled_method
    def posterior_summary(self, x: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Summarizes the posteriors of a batch.

        The mean and one draw of q(z | x), both `[batch, *latent_shape]`; the root mean square of
        its standard deviations and its mean lag-one correlation, both `[batch]`.
        """
        posterior = self.encode(x)
        return (
            posterior.mean(),
            posterior.sample(seed=seed),
            tf.sqrt(tf.reduce_mean(posterior.variance(), axis=-1)),
            self.posterior_correlation(posterior, x),
        )

    def checked_data(self, x: Any) -> np.ndarray | tf.Tensor:
        """Checks data in memory or a batch in a graph, and returns them as one array.

        Raises:
          ValueError: if they do not fit the model, in shape or, outside a graph, in values.
          TypeError: if x cannot be converted to an array.
        """
        if isinstance(x, Mapping):
            raise ValueError(
                f"`{type(self).__name__}` takes one array, not a dictionary; got one with the keys "
                f"{list(x)}. Pass only the array of the data."
            )
        advice = "fill them in, or use `SequenceVAE`, which allows gaps"
        x = data_checks.unmasked("x", data_checks.as_array("x", x), advice)
        self.check_shape(x.shape)
        if not _keras_backend.is_symbolic(x):
            data_checks.check_values(self, keras.ops.convert_to_numpy(x))
        return x

    def assertions(self, x: tf.Tensor) -> list[tf.Operation]:
        """Assertions about a batch in a graph, whose values are not known at trace time."""
        values = tf.cast(x, self.distribution_dtype)
        return [_keras_backend.assert_all(self.likelihood.allowed(values), self.likelihood.needs)]

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, in a form that Keras can save."""
        return {**super().get_config(), "latent_dim": self.latent_dim}

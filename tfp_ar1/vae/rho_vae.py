"""`RhoVAE`: a variational autoencoder whose posterior is chosen by one argument."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ar1 import params as ar1_params
from tfp_ar1 import priors
from tfp_ar1._keras_common import Keras3Mixin
from tfp_ar1.layers.prior import Prior, checked_prior, current_prior, prior_to_config
from tfp_ar1.layers.seeding import SeededMixin
from tfp_ar1.vae import data_checks, evaluation, likelihoods, network_checks, objectives, posteriors
from tfp_ar1.vae.multiworker import MultiWorkerMixin

tfd = tfp.distributions

__all__ = ["RhoVAE"]


@keras.saving.register_keras_serializable(package="tfp_ar1")
class RhoVAE(SeededMixin, MultiWorkerMixin, Keras3Mixin, data_checks.CheckedDataMixin, keras.Model):
    """A variational autoencoder, by default with the AR(1) posterior of the ρ-VAE paper.

    The encoder's features go through one dense layer to the parameters of the posterior q(z | x);
    a sample z goes through the decoder to the likelihood p(x | z). Train it with `compile` and
    `fit`, without a loss or targets:

    ```python
    encoder, decoder = tfp_ar1.vae.architectures.mlp(data_shape=(28, 28), latent_dim=10)
    vae = tfp_ar1.RhoVAE(encoder, decoder, latent_dim=10, seed=0)
    vae.compile(optimizer=keras.optimizers.Adam(1e-3))
    vae.fit(x_train, epochs=15, batch_size=128, validation_data=(x_test,))
    vae.generate(16)
    ```

    `fit` and `evaluate` report, in nats per example: `loss`, what is minimized; `reconstruction`,
    -E_q[log p(x | z)] from one sample; `kl`, KL(q ‖ prior), exact and summed over dimensions; and
    `correlation`, the mean lag-one correlation of the posteriors. The negative ELBO is
    `reconstruction + kl`. Where the prior learns a correlation, `prior_correlation` is its mean.

    Distributions are computed in float32 (float64 under that policy), also under mixed precision.

    Args:
      encoder: Keras model from data `[batch, *data_shape]` to features `[batch, units]`.
      decoder: Keras model from latent vectors `[batch, latent_dim]` to `[batch, *data_shape]`:
        logits for a Bernoulli likelihood, means for a Gaussian one.
      latent_dim: size d of the latent vectors, at least 1.
      posterior: `"ar1"` (one variance and one correlation, the ρ-VAE), `"diag"` (a variance for
        each dimension, the standard VAE), `"isotropic"` (one variance) or `"full"` (any covariance,
        by its Cholesky factor).
      prior: distribution over vectors of size d, with constant parameters, or a layer that learns
        one (`tfp_ar1.layers.MultivariateNormalAR1Prior`); default N(0, I).
      objective: what to minimize: `"elbo"`, `"infovae"`, `"iwae"`, or one of
        `tfp_ar1.vae.objectives`; default `ELBO()`. For the β-VAE: `ELBO(beta=4.0)`.
      likelihood: `"bernoulli"`, `"gaussian"`, or a `tfp_ar1.vae.likelihoods.Likelihood`.
      seed: integer seed of the noise, or `None` for a random one.
      **kwargs: arguments of `keras.Model`, such as `name` and `dtype`.

    Raises:
      TypeError: if the prior is not a distribution, or encoder or decoder not a Keras 3 model.
      ValueError: if a name is unknown, `latent_dim` is not a positive integer, the prior does not
        fit, or encoder and decoder have unfit shapes (for an encoder that does not know the shape
        of its data yet: when the model is built).
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
        super().__init__(**kwargs)
        self.latent_dim = ar1_params.checked_event_size(latent_dim)
        self.posterior_name = posterior
        self.posterior = posteriors.get(posterior)
        self.distribution_dtype = tf.float64 if self.compute_dtype == "float64" else tf.float32
        self._prior = self._make_prior(prior)
        self.objective = objectives.get("elbo" if objective is None else objective)
        for part in (encoder, decoder):
            if not isinstance(part, keras.layers.Layer):
                raise TypeError(f"Encoder and decoder must be Keras 3 models; got {part!r}.")
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihoods.get(likelihood)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.posterior_head = self._make_posterior_head()
        self.term_metrics = {
            name: keras.metrics.Mean(name=name) for name in objectives.Terms._fields
        }
        learned = isinstance(self._prior, keras.layers.Layer)
        self.prior_metrics = (
            [keras.metrics.Mean(name="prior_correlation")]
            if learned and hasattr(self.prior, "correlation_parameter")
            else []
        )
        # Where the encoder knows the shape of its data, all weights are made here and now.
        data_shape = self._data_shape_of(network_checks.input_shapes(encoder))
        if data_shape is not None and None not in data_shape:
            self.build((None, *data_shape))
            # Keras locks what is built, but a subclass may have layers and metrics to add.
            self._tracker.unlock()

    def _data_shape_of(
        self, encoder_shapes: list[tuple[int | None, ...]]
    ) -> tuple[int | None, ...] | None:
        """The shape of one example, from those of the encoder's inputs; `None` if not known.

        Raises:
          ValueError: if these are not what the model can give.
        """
        if len(encoder_shapes) > 1:
            raise ValueError(
                f"The encoder of `RhoVAE` must take one input, the data; it takes "
                f"{len(encoder_shapes)}, of shapes {encoder_shapes}. Give it one array with all "
                f"that belongs to an example; for series see `SequenceVAE`."
            )
        return encoder_shapes[0][1:] if encoder_shapes else None

    def build(self, input_shape: Any) -> None:
        """Builds the parts for data of this shape, and checks that they fit together.

        Args:
          input_shape: `(batch or None, *data_shape)`.

        Raises:
          ValueError: if the encoder does not give vectors, or the decoder not the data's shape.
        """
        # Symbolic calls, since a subclassed model need not know how to compute its output's shape.
        features = network_checks.one_output(
            "encoder",
            self.encoder(keras.KerasTensor((None, *input_shape[1:]))),
            "Give the features (batch, units) alone: the model makes mean and covariance of them.",
        )
        if len(features) != 2 or features[-1] is None:
            raise ValueError(
                f"The encoder must give features of shape (batch, units); it gives {features} for "
                f"data of shape {tuple(input_shape)}. End it with a Flatten or a pooling layer."
            )
        if not self.posterior_head.built:
            self.posterior_head.build(features)
        latents = getattr(self.decoder, "input_shape", None) if self.decoder.built else None
        if isinstance(latents, tuple) and latents[1:] not in ((self.latent_dim,), (None,)):
            raise ValueError(
                f"The decoder must take latent vectors of size {self.latent_dim}; it takes inputs "
                f"of shape {latents}."
            )
        outputs = network_checks.one_output(
            "decoder",
            self.decoder(keras.KerasTensor((None, self.latent_dim))),
            "Give what the likelihood takes: logits, or means.",
        )
        if tuple(outputs[1:]) != tuple(input_shape[1:]):
            raise ValueError(
                f"The decoder must give outputs of the data's shape {tuple(input_shape[1:])}; it "
                f"gives {tuple(outputs[1:])}."
            )
        self.likelihood.check_decoder(self.decoder)
        if not self.likelihood.built:
            self.likelihood.build(outputs)
        self.data_shape = tuple(input_shape[1:])
        self.built = True

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of the latents z of one example: `(latent_dim,)`."""
        return (self.latent_dim,)

    def _make_prior(self, prior: Prior | Mapping[str, Any] | None) -> Prior:
        """The prior that is given, checked, or else N(0, I)."""
        prior = checked_prior(prior, self.latent_dim, self.distribution_dtype)
        if prior is None:
            return priors.standard_normal(self.latent_dim, self.distribution_dtype)
        return prior

    def _make_posterior_head(self) -> keras.layers.Layer:
        """The layer from features to the posterior's parameters."""
        # Made now, as every other initializer is, so that equal seeds give equal weights.
        self._loc_initializer = keras.initializers.GlorotUniform()
        return keras.layers.Dense(
            self.posterior.params_size(self.latent_dim),
            kernel_initializer=self._initial_head_kernel,
            dtype=self.distribution_dtype.name,
            name="posterior_parameters",
        )

    def _initial_head_kernel(self, shape: tuple[int, int], dtype: Any = None) -> tf.Tensor:
        """Random for the mean, which all families have first; 0 for the covariance: I at first."""
        units, size = shape
        loc = self._loc_initializer((units, self.latent_dim), dtype)
        return tf.concat([loc, tf.zeros((units, size - self.latent_dim), loc.dtype)], axis=-1)

    @property
    def prior(self) -> tfd.Distribution:
        """The prior p(z), for the present weights where it is learned."""
        return current_prior(self._prior)

    def encode(self, x: Any, training: bool = False) -> tfd.Distribution:
        """The posterior q(z | x): batch shape `[batch]`, event shape `[latent_dim]`.

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

    def decoder_outputs(self, z: Any, training: bool = False) -> tf.Tensor:
        """What the decoder gives for latent vectors `[batch, latent_dim]`, in full precision."""
        if not self.built:
            raise ValueError(
                "The model is not built yet; call it on data, or `build` it, before it decodes."
            )
        outputs = self.decoder(tf.cast(z, self.compute_dtype), training=training)
        return tf.cast(outputs, self.distribution_dtype)

    def decode(self, z: Any, training: bool = False) -> tfd.Distribution:
        """The likelihood p(x | z): batch shape `[batch]`, event shape `data_shape`.

        Args:
          z: latent vectors `[batch, latent_dim]`.
          training: passed on to the decoder.
        """
        data_checks.not_symbolic(z)
        return self.likelihood.distribution(self.decoder_outputs(z, training=training))

    def kl_to_prior(self, posterior: tfd.Distribution, x: Any = None) -> tf.Tensor:
        """KL(q(z | x) ‖ p(z)), exact, in nats per example.

        Args:
          posterior: q(z | x), from `encode`.
          x: the data. Not needed here; for models where they say how much of z there is.
        """
        return priors.kl_divergence(posterior, self.prior)

    def posterior_correlation(self, posterior: tfd.Distribution, x: Any = None) -> tf.Tensor:
        """The mean lag-one correlation of each example's posterior; arguments as above."""
        return self.posterior.correlation(posterior)

    def reconstruct(self, x: Any) -> tf.Tensor:
        """The mean of p(x | z) at the posterior's mean z, for data `[batch, *data_shape]`."""
        return self.decode(self.encode(x).mean()).mean()

    def generate(self, n: int, seed: int | None = None) -> tf.Tensor:
        """New data: the mean of p(x | z) for n draws z of the prior.

        Args:
          n: how many.
          seed: integer for the same data each time, or `None` to go on with the model's own seed.

        Returns:
          Tensor `[n, *data_shape]`.
        """
        seed = self.next_seed() if seed is None else objectives.checked_seed(seed)
        z = self.prior.sample(n, seed=seed)
        return self.decode(z).mean()

    def correlation(self, x: Any, batch_size: int = 128) -> np.ndarray:
        """The mean lag-one correlation of each example's posterior, an array `[N]`.

        ρ itself for the AR(1) posterior, 0 for a diagonal one.
        """
        return evaluation.correlation(self, x, batch_size=batch_size)

    def log_likelihood(self, x: Any, num_samples: int = 100, batch_size: int = 128) -> np.ndarray:
        """Importance-weighted estimate of log p(x), in nats per example.

        `log 1/K Σ_k p(x | z_k) p(z_k) / q(z_k | x)` with K draws of the posterior: on average a
        lower bound, which approaches log p(x) as K grows (Burda et al., arXiv:1509.00519).

        Args:
          x: data `[N, *data_shape]`.
          num_samples: K, at least 1.
          batch_size: examples at a time. Samples are drawn in portions, so that memory stays
            bounded whatever N and K.

        Returns:
          Array `[N]`.
        """
        return evaluation.log_likelihood(self, x, num_samples=num_samples, batch_size=batch_size)

    def draw(
        self,
        x: tf.Tensor,
        posterior: tfd.Distribution,
        num_samples: int,
        seed: tf.Tensor,
        training: bool = False,
    ) -> objectives.Draws:
        """Draws K latent vectors for each example, and weighs them.

        Args:
          x: data `[batch, *data_shape]`.
          posterior: q(z | x), from `encode`.
          num_samples: K.
          seed: int32 tensor `[2]`.
          training: passed on to the decoder.
        """
        # The density of a draw from the noise that made it, not from its rounded coordinates.
        z, log_q = posterior.experimental_sample_and_log_prob(num_samples, seed=seed)
        outputs = self.decoder_outputs(tf.reshape(z, [-1, *self.latent_shape]), training=training)
        x = tf.cast(x, outputs.dtype)
        targets = tf.tile(x, [num_samples] + [1] * (x.shape.rank - 1))
        log_p = tf.reshape(self.likelihood.log_prob(targets, outputs), tf.shape(log_q))
        return objectives.Draws(z, log_p, log_weight=log_p + self.prior.log_prob(z) - log_q)

    @tf.function(reduce_retracing=True)
    def importance_terms(
        self, x: tf.Tensor, seed: tf.Tensor, num_samples: int
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """What the estimates of `tfp_ar1.vae.evaluation` are made of, for K draws of q(z | x).

        Args:
          x: data `[batch, *data_shape]`.
          seed: int32 tensor `[2]`.
          num_samples: K.

        Returns:
          log p(x | z) and log p(x | z) p(z) / q(z | x), both `[K, batch]`, and KL(q ‖ prior),
          `[batch]`.
        """
        posterior = self.encode(x)
        draws = self.draw(x, posterior, num_samples, seed)
        return draws.log_p, draws.log_weight, self.kl_to_prior(posterior, x)

    @tf.function(reduce_retracing=True)
    def posterior_summary(
        self, x: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """What the posteriors of a batch look like, for `tfp_ar1.vae.evaluation`.

        Args:
          x: data `[batch, *data_shape]`.
          seed: int32 tensor `[2]`.

        Returns:
          The mean and one draw of q(z | x), both `[batch, latent_dim]`; the root mean square of its
          standard deviations and its mean lag-one correlation, both `[batch]`.
        """
        posterior = self.encode(x)
        return (
            posterior.mean(),
            posterior.sample(seed=seed),
            tf.sqrt(tf.reduce_mean(posterior.variance(), axis=-1)),
            self.posterior_correlation(posterior, x),
        )

    @tf.function(reduce_retracing=True)
    def mean_correlation(self, x: tf.Tensor) -> tf.Tensor:
        """The mean lag-one correlation of the posteriors of a batch, `[batch]`."""
        return self.posterior_correlation(self.encode(x), x)

    def call(self, x: Any, training: bool = False) -> tf.Tensor:
        """The mean of p(x | z), with z the posterior's mean, or a sample of it in training."""
        posterior = self.encode(x, training=training)
        z = posterior.sample(seed=self.next_seed()) if training else posterior.mean()
        return self.likelihood(self.decoder_outputs(z, training=training))

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """The shape of the data."""
        return tuple(input_shape)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The tracked means, `loss`, `reconstruction`, `kl`, `correlation` and of the prior.

        Then the metrics that a subclass or a layer has added.
        """
        own = [*self.term_metrics.values(), *self.prior_metrics]
        names = {metric.name for metric in own}  # Keras makes a `loss` that nothing updates
        return [*own, *(metric for metric in super().metrics if metric.name not in names)]

    def compile(
        self,
        optimizer: Any = "adam",
        loss: None = None,
        loss_weights: None = None,
        metrics: None = None,
        weighted_metrics: None = None,
        **kwargs,
    ) -> None:
        """Configures training: as `keras.Model.compile`, without `loss` and `metrics`.

        Args:
          optimizer: a Keras optimizer, or its name; `None` for a model that is only evaluated.
          loss: must be `None`, or empty, as the following three.
          loss_weights: see `loss`.
          metrics: see `loss`.
          weighted_metrics: see `loss`.
          **kwargs: `jit_compile`, `run_eagerly`, `steps_per_execution`, `auto_scale_loss`.

        Raises:
          ValueError: if a loss or metrics are given, or, for a model of several replicas, an option
            that Keras cannot train these with.
        """
        of_keras = {
            "loss": loss,
            "loss_weights": loss_weights,
            "metrics": metrics,
            "weighted_metrics": weighted_metrics,
        }
        for name, value in of_keras.items():
            if value is not None and value not in ([], (), {}):
                raise ValueError(
                    f"`{type(self).__name__}` has a loss and metrics of its own; `{name}={value!r}`"
                    f" would be ignored; leave it out. Use the argument `objective` of "
                    f"`{type(self).__name__}` to change the loss."
                )
        if self.distribute_strategy.num_replicas_in_sync > 1:
            # Keras fails with either, a single Dense layer too, and says nothing of the reason.
            for name, fails in (
                ("jit_compile", kwargs.get("jit_compile") is True),
                ("steps_per_execution", (kwargs.get("steps_per_execution") or 1) > 1),
            ):
                if fails:
                    raise ValueError(
                        f"Keras cannot train several replicas with `{name}={kwargs[name]}`; leave "
                        "it out."
                    )
            kwargs["jit_compile"] = False
        super().compile(optimizer=optimizer, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a model that is being loaded as it was compiled when it was saved."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built and self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def check_data(self, x: Any) -> None:
        """Raises `ValueError` if data are not what the model is for, in shape or in values."""
        self.checked_data(x)

    def checked_data(self, x: Any) -> np.ndarray | tf.Tensor:
        """Data in memory, or a batch in a graph, as one array.

        Args:
          x: whatever `data_checks.as_array` takes.

        Raises:
          ValueError: if they are not what the model is for, in shape or, outside a graph, values.
          TypeError: if they are no data.
        """
        if isinstance(x, Mapping):
            raise ValueError(
                f"`{type(self).__name__}` takes one array, not a dictionary, here with the keys "
                f"{list(x)}; give the array of the data alone."
            )
        x = data_checks.unmasked(
            "x",
            data_checks.as_array("x", x),
            "fill them in, or use `SequenceVAE`, which knows gaps",
        )
        self.check_shape(x.shape)
        if not tf.is_symbolic_tensor(x):
            data_checks.check_values(self, keras.ops.convert_to_numpy(x))
        return x

    def assertions(self, x: tf.Tensor) -> list[tf.Operation]:
        """What must hold for a batch in a graph, where values are not known when it is made."""
        values = tf.cast(x, self.distribution_dtype)
        return [data_checks.assert_all(self.likelihood.allowed(values), self.likelihood.needs)]

    def check_shape(self, shape: Any) -> None:
        """Raises `ValueError` if this cannot be the shape of a batch of data."""
        shape = tf.TensorShape(shape)
        if shape.rank is not None and shape.rank < 2:
            raise ValueError(
                f"Expected data of shape [N, *data_shape], N at least 1; got {tuple(shape)}."
            )
        if self.built and not shape.is_compatible_with([None, *self.data_shape]):
            raise ValueError(
                f"The model is for data of shape (batch, {str(self.data_shape)[1:-1]}); got "
                f"{shape}."
            )

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of the optimizer on a batch."""
        x, _, sample_weight = self._asserted(data)
        if self.optimizer is None:
            raise ValueError("The model was compiled without an optimizer, and cannot be trained.")
        with tf.GradientTape() as tape:
            loss = self._loss(x, sample_weight, training=True)
            scaled_loss = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        if variables:
            gradients = tape.gradient(scaled_loss, [v.value for v in variables])
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        else:  # as Keras does
            warnings.warn("The model does not have any trainable weights.", stacklevel=2)
        return self.get_metrics_result()

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Updates the metrics with a batch."""
        x, _, sample_weight = self._asserted(data)
        self._loss(x, sample_weight, training=False)
        return self.get_metrics_result()

    def _loss(self, x: tf.Tensor, sample_weight: tf.Tensor | None, training: bool) -> tf.Tensor:
        """A replica's part of the mean loss of a batch, with what layers add; updates the metrics.

        The mean is over the whole batch, however it is shared out among the replicas, which may be
        unevenly at the end of the data. The sum of the parts is the loss.
        """
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        examples = tf.shape(keras.tree.flatten(x)[0])[0]
        if replicas > 1:
            x, sample_weight = _never_empty(x, sample_weight)
        terms = self.objective(self, x, training=training)
        loss = terms.loss
        if sample_weight is not None:
            loss *= tf.cast(sample_weight, loss.dtype)
        penalties = [tf.cast(penalty, loss.dtype) for penalty in self.losses]
        if penalties:
            terms = terms._replace(loss=terms.loss + tf.add_n(penalties))
        for name, metric in self.term_metrics.items():
            metric.update_state(getattr(terms, name), sample_weight=sample_weight)
        for metric in self.prior_metrics:
            metric.update_state(self.prior.correlation_parameter())
        examples = tf.cast(examples, loss.dtype)
        if replicas > 1:
            examples = tf.distribute.get_replica_context().all_reduce("SUM", examples)
        # Where records of the data are skipped, a batch can be empty.
        mean = tf.math.divide_no_nan(tf.reduce_sum(loss), examples)
        return tf.add_n([mean, *(penalty / replicas for penalty in penalties)])

    def export(
        self, filepath: Any, format: str = "tf_saved_model", verbose: bool | None = None, **kwargs
    ) -> None:
        """Writes the model for use without this package: as `keras.Model.export`.

        The SavedModel, which TensorFlow alone can load and serve, has these endpoints; all take any
        number of examples:

        * `serve(x)` and `reconstruct(x)`: as `RhoVAE.reconstruct`;
        * `encode(x)`: a dictionary with `mean` and `stddev`, `[batch, *latent_shape]`, and
          `correlation`, `[batch]`, of the posterior;
        * `decode(z)`: the mean of p(x | z);
        * `generate(n, seed)`: new data, for an int32 scalar n and an int32 vector `[2]`; the
          same seed gives the same data;
        * `log_likelihood(x, num_samples, seed)`: the importance-weighted estimate of log p(x), in
          nats, `[batch]`, for an int32 scalar number of draws and an int32 vector `[2]`. Draws are
          made one at a time, so that memory does not grow with their number; the k-th is the same
          whatever their number. It is an error if there are none.

        Args:
          filepath: folder to write.
          format: `"tf_saved_model"`; any other format has `serve` alone. What `"litert"` makes of
            a `SequenceVAE` needs an interpreter with TensorFlow's operations (Flex).
          verbose: whether to print the endpoints.
          **kwargs: as in Keras.

        Raises:
          ValueError: if the model is not built.
        """
        if not self.built:
            raise ValueError("The model is not built yet; call it on data before it is exported.")
        if format != "tf_saved_model":
            # Keras exports what was called; training does not call the model.
            self(keras.KerasTensor((None, *self.data_shape)))
            super().export(filepath, format=format, verbose=verbose, **kwargs)
            return
        dtype = self.distribution_dtype
        data = tf.TensorSpec([None, *self.data_shape], dtype, name="x")
        latents = tf.TensorSpec([None, *self.latent_shape], dtype, name="z")

        def encode(x: tf.Tensor) -> dict[str, tf.Tensor]:
            posterior = self.encode(x)
            return {
                "mean": posterior.mean(),
                "stddev": posterior.stddev(),
                "correlation": self.posterior_correlation(posterior, x),
            }

        def generate(n: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
            return self.decode(self.prior.sample(n, seed=seed)).mean()

        def log_likelihood(x: tf.Tensor, num_samples: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
            tf.debugging.assert_positive(
                num_samples, "`num_samples`, the number of draws, must be at least 1"
            )
            posterior = self.encode(x)

            def add(k: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                draw_seed = tf.random.experimental.stateless_fold_in(seed, k)
                log_weight = self.draw(x, posterior, 1, draw_seed).log_weight[0]
                both = tf.stack([total, tf.cast(log_weight, total.dtype)])
                return k + 1, tf.reduce_logsumexp(both, axis=0)

            # In float64, since a sum of many float32 weights would lose the small ones.
            start = tf.fill(tf.shape(x)[:1], tf.constant(-np.inf, tf.float64))
            _, total = tf.while_loop(
                lambda k, _: k < num_samples, add, (0, start), parallel_iterations=1
            )
            return tf.cast(total - tf.math.log(tf.cast(num_samples, total.dtype)), dtype)

        archive = keras.export.ExportArchive()
        archive.track(self)
        archive.add_endpoint("serve", self.reconstruct, [data], **kwargs)
        archive.add_endpoint("reconstruct", self.reconstruct, [data], **kwargs)
        archive.add_endpoint("encode", encode, [data], **kwargs)
        archive.add_endpoint("decode", lambda z: self.decode(z).mean(), [latents], **kwargs)
        n, num_samples = (tf.TensorSpec([], tf.int32, name=name) for name in ("n", "num_samples"))
        seed = tf.TensorSpec([2], tf.int32, name="seed")
        archive.add_endpoint("generate", generate, [n, seed], **kwargs)
        archive.add_endpoint("log_likelihood", log_likelihood, [data, num_samples, seed], **kwargs)
        archive.write_out(filepath, verbose=True if verbose is None else verbose)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, in a form that Keras can save."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "encoder": serialize(self.encoder),
            "decoder": serialize(self.decoder),
            "latent_dim": self.latent_dim,
            "posterior": self.posterior_name,
            "prior": prior_to_config(self._prior),
            "objective": serialize(self.objective),
            "likelihood": serialize(self.likelihood),
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> RhoVAE:
        """Makes the model again from `get_config`, with fresh weights."""
        config = dict(config)
        for part in ("encoder", "decoder", "objective", "likelihood"):
            config[part] = keras.saving.deserialize_keras_object(
                config[part], custom_objects=custom_objects
            )
        return cls(**config)


def _never_empty(x: Any, sample_weight: Any) -> tuple[Any, tf.Tensor]:
    """A share of a batch; where it is empty, one example of ones and with the weight 0.

    The smallest batches leave nothing for some replicas, and TensorFlow's dilated convolutions fail
    on nothing.
    """
    number = tf.shape(keras.tree.flatten(x)[0])[0]
    missing = tf.cast(tf.equal(number, 0), tf.int32)

    def padded(part: tf.Tensor, value: int) -> tf.Tensor:
        part = tf.convert_to_tensor(part)
        paddings = tf.pad([[0, missing]], [[0, part.shape.rank - 1], [0, 0]])
        return tf.pad(part, paddings, constant_values=tf.cast(value, part.dtype))

    if sample_weight is None:
        sample_weight = tf.ones([number])
    return keras.tree.map_structure(lambda part: padded(part, 1), x), padded(sample_weight, 0)

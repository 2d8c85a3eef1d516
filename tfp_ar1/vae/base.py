"""Base class of `RhoVAE` and `SequenceVAE`: parts, training, estimates, saving and export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd
from tensorflow_probability.python.internal import samplers

from tfp_ar1 import _keras_backend
from tfp_ar1._keras_common import Keras3Mixin
from tfp_ar1.layers.prior import Prior, current_prior, prior_to_config
from tfp_ar1.layers.seeding import SeededMixin
from tfp_ar1.vae import (
    batching,
    data_checks,
    likelihoods,
    network_checks,
    objectives,
    posteriors,
    serving,
)

Shape = tuple[Any, ...]

# The arguments that Keras serializes as objects.
_PARTS = ("encoder", "decoder", "objective", "likelihood")


def distribution_dtype(policy: Any = None) -> tf.DType:
    """Returns the dtype of distributions under a Keras dtype policy (default: the global one)."""
    compute_dtype = keras.dtype_policies.get(policy).compute_dtype
    return tf.float64 if compute_dtype == "float64" else tf.float32


class VAE(
    SeededMixin,
    Keras3Mixin,
    data_checks.CheckedDataMixin,
    _keras_backend.TrainerMixin,
    keras.Model,
):
    """Base class of the variational autoencoders `RhoVAE` (vectors) and `SequenceVAE` (paths).

    The constructor of a subclass makes the prior and calls this constructor (arguments and errors
    as for `RhoVAE`). It then sets `posterior_head`, a layer from features to the posterior's
    parameters, and the `latent_shape` of one example, and calls `build_for` with the shape of its
    data. The subclass defines `encode`, `draw`, `kl_to_prior`, `posterior_correlation`,
    `posterior_summary`, `checked_data` and `assertions`, as `RhoVAE` does.
    """

    data_shape: Shape  # of one example; set when the model is built

    def __init__(
        self,
        encoder: keras.Model,
        decoder: keras.Model,
        posterior: str,
        prior: Prior,
        objective: str | objectives.Objective | None,
        likelihood: str | likelihoods.Likelihood,
        seed: int | None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.posterior_name = posterior
        self.posterior = posteriors.get(posterior)
        self.distribution_dtype = distribution_dtype(self.dtype_policy)
        # Before the other parts: saved optimizers number the weights in the order of the parts.
        self._prior = prior
        self.objective = objectives.get("elbo" if objective is None else objective)
        for part in (encoder, decoder):
            if not isinstance(part, keras.layers.Layer):
                raise TypeError(f"Encoder and decoder must be Keras 3 models; got {part!r}.")
        self.encoder, self.decoder = encoder, decoder
        self.likelihood = likelihoods.get(likelihood)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        names = objectives.Terms._fields
        self.term_metrics = {name: keras.metrics.Mean(name=name) for name in names}
        self.prior_metrics = []
        if isinstance(prior, keras.layers.Layer) and hasattr(self.prior, "correlation_parameter"):
            self.prior_metrics = [keras.metrics.Mean(name="prior_correlation")]

    def build_for(self, data_shape: tuple[int | None, ...] | None) -> None:
        """Builds the model at once if the encoder has a known input shape."""
        if data_shape is not None and None not in data_shape:
            self.build((None, *data_shape))
            # Keras locks a model once built, but a subclass may still add layers and metrics.
            self._tracker.unlock()

    def build_parts(
        self, data: Shape, inputs: Any, features: Shape, latents: Shape, outputs: Shape, advice: str
    ) -> None:
        """Builds encoder, head, decoder and likelihood, and checks that they fit together.

        The encoder must map the symbolic `inputs` to `features`, or the error gives `advice`; the
        decoder must map `latents` to `outputs`. All are shapes of one example; a word in a shape
        stands for any number.
        """
        # Symbolic calls, since subclassed models may not implement `compute_output_shape`.
        given = network_checks.one_output("encoder", self.encoder(inputs), features, advice)
        if not self.posterior_head.built:
            self.posterior_head.build(given)
        given = self.decoder(keras.KerasTensor((None, *latents)))
        advice = "Output what the likelihood takes, logits or means, in the data's shape."
        if (number := self.likelihood.outputs_per_value) > 1:
            outputs = (*outputs[:-1], number * outputs[-1])
            advice = f"{type(self.likelihood).__name__} takes {number} numbers for each value."
        network_checks.one_output("decoder", given, outputs, advice)
        self.likelihood.check_decoder(self.decoder)
        if not self.likelihood.built:
            self.likelihood.build((None, *data))
        self.data_shape = data
        self.built = True

    @property
    def prior(self) -> tfd.Distribution:
        """The prior p(z); for a learned one, with its current weights."""
        return current_prior(self._prior)

    def decoder_outputs(self, z: Any, training: bool = False) -> tf.Tensor:
        """Decodes latent vectors `[batch, latent_dim]`, in full precision."""
        if not self.built:
            raise ValueError("The model is not built yet; call it on data, or `build` it, first.")
        outputs = self.decoder(tf.cast(z, self.compute_dtype), training=training)
        return tf.cast(outputs, self.distribution_dtype)

    def decode(self, z: Any, training: bool = False) -> tfd.Distribution:
        """Returns the likelihood p(x | z): batch shape `[batch]`, event shape `data_shape`.

        Args:
          z: latents `[batch, *latent_shape]`.
          training: passed on to the decoder.
        """
        data_checks.not_symbolic(z)
        return self.likelihood.distribution(self.decoder_outputs(z, training=training))

    def reconstruct(self, x: Any) -> tf.Tensor:
        """Returns the mean of p(x | z) at the posterior mean z, for data `[batch, *data_shape]`."""
        return self.decode(self.encode(x).mean()).mean()

    def generate(self, n: int, seed: int | None = None, noise: bool = False) -> tf.Tensor:
        """Generates data: the mean of p(x | z) for n draws z from the prior, or a draw of x.

        Args:
          n: number of examples to generate.
          seed: integer for reproducible data, or `None` to use the model's own seed.
          noise: whether to draw x from p(x | z) instead of returning its mean.

        Returns:
          Tensor `[n, *data_shape]`.
        """
        seed = self.next_seed() if seed is None else batching.checked_seed(seed)
        x = self.decode(self.prior.sample(n, seed=seed))
        return x.sample(seed=samplers.fold_in(seed, 1)) if noise else x.mean()

    def correlation(self, x: Any, batch_size: int = 128) -> np.ndarray:
        """Returns the mean lag-one correlation of each example's posterior, an array `[N]`.

        For the AR(1) posterior this is ρ, for a diagonal one 0.
        """
        batches = batching.batches(data_checks.checked_arrays(self, x), batch_size)
        return np.concatenate([np.asarray(self.mean_correlation(batch)) for batch in batches])

    def log_likelihood(self, x: Any, num_samples: int = 100, batch_size: int = 128) -> np.ndarray:
        """Returns an importance-weighted estimate of log p(x), in nats per example.

        `log 1/K Σ_k p(x | z_k) p(z_k) / q(z_k | x)` with K draws from the posterior: on average a
        lower bound, which approaches log p(x) as K grows (Burda et al., arXiv:1509.00519).

        Args:
          x: data `[N, *data_shape]`.
          num_samples: K, at least 1.
          batch_size: examples at a time. Samples are drawn in portions, so memory stays bounded
            for any N and K.

        Returns:
          Array `[N]`.
        """
        x = data_checks.checked_arrays(self, x)
        return batching.log_likelihood(self.importance_terms, x, num_samples, batch_size)

    @_keras_backend.compiled_method
    def importance_terms(self, x: Any, seed: tf.Tensor, num_samples: int) -> tuple[tf.Tensor, ...]:
        """`[K, batch]`: log p(x | z), log p(x | z) p(z) / q(z | x); `[batch]`: KL(q ‖ prior)."""
        posterior = self.encode(x)
        _, log_p, log_weight = self.draw(x, posterior, num_samples, seed)
        return log_p, log_weight, self.kl_to_prior(posterior, x)

    @_keras_backend.compiled_method
    def mean_correlation(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the mean lag-one correlation of each posterior of a batch, `[batch]`."""
        return self.posterior_correlation(self.encode(x), x)

    def call(self, x: Any, training: bool = False) -> tf.Tensor:
        """Returns the mean of p(x | z) at the posterior mean z, or at a sample z in training."""
        posterior = self.encode(x, training=training)
        z = posterior.sample(seed=self.next_seed()) if training else posterior.mean()
        return self.likelihood(self.decoder_outputs(z, training=training))

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """The shape of the data."""
        return tuple(input_shape["x"] if isinstance(input_shape, Mapping) else input_shape)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The means of `Terms` and of the prior's correlation, then metrics a subclass added."""
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
          loss: must be `None` or empty, like the following three.
          loss_weights: see `loss`.
          metrics: see `loss`.
          weighted_metrics: see `loss`.
          **kwargs: `jit_compile`, `run_eagerly`, `steps_per_execution`, `auto_scale_loss`.

        Raises:
          ValueError: if a loss or metrics are given, or an option with which Keras cannot train on
            several replicas.
        """
        names = ("loss", "loss_weights", "metrics", "weighted_metrics")
        values = (loss, loss_weights, metrics, weighted_metrics)
        for name, value in zip(names, values, strict=True):
            if value is not None and value not in ([], (), {}):
                raise ValueError(
                    f"`{type(self).__name__}` has a loss and metrics of its own; `{name}={value!r}`"
                    f" would be ignored; leave it out. Use the argument `objective` of "
                    f"`{type(self).__name__}` to change the loss."
                )
        super().compile(optimizer=optimizer, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a model being loaded as it was compiled when saved."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built and self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def check_data(self, x: Any) -> None:
        """Raises `ValueError` if the data do not fit the model, in shape or in values."""
        self.checked_data(x)

    def check_shape(self, shape: Any) -> None:
        """Raises `ValueError` if this cannot be the shape of a batch of data."""
        shape = tf.TensorShape(shape)
        if shape.rank is not None and shape.rank < 2:
            expected = data_checks.SHAPE
            raise ValueError(f"Expected data of shape {expected}; got {tuple(shape)}.")
        if self.built and not shape.is_compatible_with([None, *self.data_shape]):
            expected = f"(batch, {str(self.data_shape)[1:-1]})"
            raise ValueError(f"The model is for data of shape {expected}; got {shape}.")

    def check_has_optimizer(self) -> None:
        """Raises `ValueError` for a model that was compiled to be evaluated only."""
        if self.optimizer is None:
            raise ValueError("The model was compiled without an optimizer, and cannot be trained.")

    def loss_of_batch(self, x: Any, sample_weight: Any, training: bool) -> tf.Tensor:
        """Returns a replica's part of the mean loss of a batch, and updates the metrics.

        Includes the losses that layers add. The parts sum to the mean over the whole batch, however
        unevenly it is split between replicas.
        """
        x, sample_weight, examples, replicas = _keras_backend.shared_out(x, sample_weight)
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
        # A batch can be empty where records of the data are skipped.
        mean = tf.math.divide_no_nan(tf.reduce_sum(loss), tf.cast(examples, loss.dtype))
        return tf.add_n([mean, *(penalty / replicas for penalty in penalties)])

    def export(
        self, filepath: Any, format: str = "tf_saved_model", verbose: bool | None = None, **kwargs
    ) -> None:
        """Exports the model for use without this package, like `keras.Model.export`.

        TensorFlow alone can load and serve the SavedModel. Its endpoints take any number of
        examples:

        * `serve(x)` and `reconstruct(x)`: as `RhoVAE.reconstruct`;
        * `encode(x)`: a dictionary with the posterior's `mean` and `stddev`,
          `[batch, *latent_shape]`, and `correlation`, `[batch]`;
        * `decode(z)`: the mean of p(x | z);
        * `generate(n, seed)`: new data, for an int32 scalar n and an int32 vector `[2]`; the
          same seed gives the same data;
        * `log_likelihood(x, num_samples, seed)`: the importance-weighted estimate of log p(x), in
          nats, `[batch]`, for an int32 scalar number of draws and an int32 vector `[2]`. Draws are
          made one at a time, so memory does not grow with their number; the k-th draw does not
          depend on it. Zero draws are an error.

        The endpoints of a `SequenceVAE` take series of full length, with NaN for missing values.
        There are two more:

        * `impute(x, num_samples, seed)`: a dictionary with `draws`, `[num_samples, *x.shape]`, as
          from `SequenceVAE.impute`, and their `mean` and `stddev`, of the shape of x;
        * `forecast(x, steps, num_samples, seed)`: the same for the steps that follow, for an int32
          scalar number of steps; not with a decoder of whole paths.

        With the seed `[s, 0]` the draws equal those of the methods with the seed s, for as many
        series and draws as the methods process in one batch.

        Args:
          filepath: folder to write.
          format: `"tf_saved_model"`; or `"litert"`, which has only `serve`, and for a `SequenceVAE`
            needs an interpreter with TensorFlow's operations (Flex). Other formats are refused:
            Keras's `"onnx"` export of the model is not a valid graph, though it reports success.
            Run the SavedModel instead, or export the parts, `model.encoder` and `model.decoder`,
            which are plain Keras models.
          verbose: whether to print the endpoints.
          **kwargs: as in Keras.

        Raises:
          ValueError: if the model is not built, or cannot be exported to this format.
        """
        _keras_backend.check_can_export()
        if not self.built:
            raise ValueError("The model is not built yet; call it on data before it is exported.")
        if format not in ("tf_saved_model", "litert"):
            raise ValueError(
                f"Cannot export to format={format!r}: Keras would report success, but its graph of "
                f"the posterior and the likelihood is not valid. Use format='tf_saved_model', "
                f"which TensorFlow and TensorFlow Serving run, or export the parts separately: "
                f"`encoder` and `decoder` are plain Keras models."
            )
        if format == "tf_saved_model":
            serving.export(self, filepath, verbose, **kwargs)
            return
        # Keras exports only a model that was called, and training does not call it.
        self(keras.KerasTensor((None, *self.data_shape)))
        super().export(filepath, format=format, verbose=verbose, **kwargs)

    @property
    def draw_endpoints(self) -> tuple[str, ...]:
        """The endpoints that `export` adds to those of every model."""
        return ()

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, in a form that Keras can save."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            **{part: serialize(getattr(self, part)) for part in _PARTS},
            "posterior": self.posterior_name,
            "prior": prior_to_config(self._prior),
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> VAE:
        """Recreates the model from `get_config`, with fresh weights."""
        make = keras.saving.deserialize_keras_object
        parts = {part: make(config[part], custom_objects=custom_objects) for part in _PARTS}
        return cls(**{**config, **parts})

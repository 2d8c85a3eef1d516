"""Keras 3: a layer that samples from an AR(1) normal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability.python.internal import samplers

from tfp_ar1 import params as ar1_params
from tfp_ar1 import priors

tfd = tfp.distributions

__all__ = ["MultivariateNormalAR1", "SeededMixin"]

if keras.config.backend() != "tensorflow":
    raise ImportError(
        f"`tfp_ar1` needs Keras on its TensorFlow backend; this process uses "
        f"{keras.config.backend()!r}. Set the environment variable KERAS_BACKEND=tensorflow before "
        f"Keras is imported."
    )


class SeededMixin:
    """For a Keras layer or model that draws noise: its seed, saved and loaded with its weights.

    Keras does not save the state of a `SeedGenerator`; with it, training that is resumed draws
    the noise that uninterrupted training would have drawn. The seeds of `Dropout` layers in a
    model are Keras's own, and are not saved.
    """

    seed_generator: keras.random.SeedGenerator

    def next_seed(self) -> tf.Tensor:
        """A fresh seed for TFP, an int32 tensor `[2]`; a different one on each replica."""
        # The state is int64, TFP takes int32.
        seed = tf.math.floormod(self.seed_generator.next(), tf.int32.max - 1)
        seed = tf.ensure_shape(tf.cast(seed, tf.int32), [2])
        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            seed = samplers.fold_in(seed, replica.replica_id_in_sync_group)
        return seed

    def save_own_variables(self, store: Any) -> None:
        """Saves the weights of this object itself, and the state of its seed."""
        super().save_own_variables(store)
        store["seed_state"] = self.seed_generator.state

    def load_own_variables(self, store: Any) -> None:
        """Loads what `save_own_variables` has saved."""
        keys = list(store.keys())
        super().load_own_variables({key: store[key] for key in keys if key != "seed_state"})
        if "seed_state" in keys:
            self.seed_generator.state.assign(store["seed_state"])


def checked_prior(
    prior: tfd.Distribution | Mapping[str, Any] | None, event_size: int, dtype: tf.DType
) -> tfd.Distribution | None:
    """A prior as given or from its configuration, or an error if it does not fit.

    Raises:
      TypeError: if the prior is not a distribution.
      ValueError: if the prior is not over vectors of `event_size`, has a batch that is not empty,
        is of another dtype, or holds variables, which Keras would not see.
    """
    if isinstance(prior, Mapping):
        prior = priors.from_config(prior)
    if prior is None:
        return None
    if not isinstance(prior, tfd.Distribution):
        raise TypeError(f"The prior must be a `tfd.Distribution`, or `None`; got {prior!r}.")
    if prior.event_shape != [event_size] or prior.batch_shape.rank != 0:
        raise ValueError(
            f"The prior must be one distribution over vectors of size {event_size}; got batch "
            f"shape {prior.batch_shape} and event shape {prior.event_shape}."
        )
    if prior.dtype != dtype:
        raise ValueError(
            f"The prior must be of dtype {dtype.name}; got {prior.dtype.name}. (NumPy arrays are "
            f"float64 unless they are told otherwise.)"
        )
    if prior.variables:
        raise ValueError(
            f"The prior holds variables ({[v.name for v in prior.variables]}), which Keras would "
            f"neither train nor save. Give it constants."
        )
    return prior


@keras.saving.register_keras_serializable(package="tfp_ar1")
class MultivariateNormalAR1(SeededMixin, keras.layers.Layer):
    """Samples from a normal with first-order autoregressive covariance, O(d) for d coordinates.

    The layer takes packed parameters `[loc (d), log s, fisher_z]` along the last axis, as a `Dense`
    layer puts them out (see `tfp_ar1.params`), and returns one sample for each example, through
    which gradients flow. With a `prior` it adds the analytic KL divergence, averaged over the
    batch, to the losses of the model. It samples in training and inference alike;
    `layer.distribution(params)` is the distribution itself, for its mean or its `log_prob`.

    ```python
    d = 8
    encoder = keras.Sequential([
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(tfp_ar1.layers.MultivariateNormalAR1.params_size(d)),
        tfp_ar1.layers.MultivariateNormalAR1(d, prior=tfd.MultivariateNormalDiag(tf.zeros(d))),
    ])
    ```

    Input shape: `[batch, ..., event_size + 2]`. Output shape: `[batch, ..., event_size]`.

    Under a half-precision dtype policy the parameters, the sample and the KL are computed in
    float32, and only the sample that is returned is cast.

    Args:
      event_size: number of coordinates d, at least 1.
      prior: a `tfd.Distribution` over vectors of size d, with constant parameters and a registered
        KL divergence (N(0, I) in any of its TFP spellings, AR(1), …), or `None` for no KL.
      kl_weight: factor of the KL in the losses (β of the β-VAE), at least 0.
      seed: integer seed of the noise, or `None` for a random one.
      **kwargs: arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Raises:
      ValueError: if `event_size` is not a positive integer, `kl_weight` is negative, or the prior
        does not fit.
    """

    def __init__(
        self,
        event_size: int,
        prior: tfd.Distribution | None = None,
        kl_weight: float = 1.0,
        seed: int | None = None,
        **kwargs,
    ):
        # Autocasting would round the parameters to half precision before they are used.
        super().__init__(autocast=False, **kwargs)
        if not kl_weight >= 0:
            raise ValueError(f"`kl_weight` must not be negative; got {kl_weight}.")
        self.event_size = ar1_params.checked_event_size(event_size)
        self.prior = checked_prior(prior, self.event_size, self._distribution_dtype)
        self.kl_weight = kl_weight
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    @staticmethod
    def params_size(event_size: int) -> int:
        """The number of packed parameters, `event_size + 2`."""
        return ar1_params.params_size(event_size)

    @property
    def _distribution_dtype(self) -> tf.DType:
        return tf.float64 if self.compute_dtype == "float64" else tf.float32

    def distribution(self, params: Any) -> tfd.Distribution:
        """The distribution for packed parameters `[..., event_size + 2]`."""
        params = tf.cast(keras.ops.convert_to_tensor(params), self._distribution_dtype)
        return ar1_params.new(params, self.event_size)

    def call(self, params: Any) -> tf.Tensor:
        """Returns a sample for each example, and adds the KL to the losses if there is a prior."""
        distribution = self.distribution(params)
        if self.prior is not None:
            kl = tf.reduce_mean(tfd.kl_divergence(distribution, self.prior))
            self.add_loss(self.kl_weight * kl)
        return tf.cast(distribution.sample(seed=self.next_seed()), self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The input shape with its last dimension replaced by `event_size`."""
        size = ar1_params.params_size(self.event_size)
        ar1_params.check_params_shape(input_shape, size, self.event_size)
        return (*input_shape[:-1], self.event_size)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, the prior as a plain configuration."""
        return {
            **super().get_config(),
            "event_size": self.event_size,
            "prior": None if self.prior is None else priors.to_config(self.prior),
            "kl_weight": self.kl_weight,
            "seed": self.seed,
        }

"""Keras 3 layers that sample from the members of the family, one for each packed layout."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_ar1 import _keras_backend, _keras_common
from tfp_ar1 import params as ar1_params
from tfp_ar1.distributions.kl import kl_terms
from tfp_ar1.layers.prior import Prior, checked_prior, current_prior, prior_to_config
from tfp_ar1.layers.seeding import SeededMixin


class MarkovChainLayer(SeededMixin, _keras_common.Keras3Mixin, keras.layers.Layer):
    """Base class of the layers; each sets `family`.

    The layer takes packed parameters along the last axis (see `tfp_ar1.params`), such as the output
    of a `Dense` layer, and returns one sample per example, in training and in inference, in O(d)
    for d coordinates. Gradients flow through the sample. With a `prior` the layer adds the exact KL
    divergence per example, averaged over the batch, to the losses of the model.
    `layer.distribution(params)` returns the distribution itself.

    ```python
    d = 8
    encoder = keras.Sequential([
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(tfp_ar1.layers.MultivariateNormalAR1.params_size(d)),
        tfp_ar1.layers.MultivariateNormalAR1(d, prior=tfd.MultivariateNormalDiag(tf.zeros(d))),
    ])
    ```

    Input shape: `[batch, ..., params_size(event_size)]`. Output shape: `[batch, ..., event_size]`.
    Further axes, such as channels or steps, are parts of the example, over which the KL is summed.
    Masked steps (Keras mask) add no KL. Under a half-precision dtype policy everything is computed
    in float32, and only the returned sample is cast.

    With `time_major` the layer takes the output of a network over time, such as convolutions,
    `[batch, ..., event_size, k * channels]` (see `tfp_ar1.params.from_time_major`), and returns
    samples `[batch, ..., event_size, channels]`. A Keras mask `[batch, ..., event_size]` then marks
    the valid timesteps; only timesteps at the end may be masked. The distribution has batch shape
    `[batch, ..., channels]`.

    ```python
    channels, num_timesteps = 2, 100
    encoder = keras.Sequential([
        keras.layers.Conv1D(32, 5, padding="same", activation="relu"),
        keras.layers.Dense(tfp_ar1.params.time_major_size(channels, "arh1")),
        tfp_ar1.layers.MultivariateNormalARH1(
            num_timesteps,
            tfp_ar1.layers.MultivariateNormalAR1Prior(num_timesteps, channels=channels),
            time_major=True,
        ),
    ])
    ```

    Args:
      event_size: number of coordinates d, at least 1.
      prior: a `tfd.Distribution` over vectors of size d with constant parameters and a registered
        KL divergence (N(0, I) as any TFP normal, AR(1), …); a layer that learns one
        (`MultivariateNormalAR1Prior`); or `None` for no KL. Its batch shape is `[]` or that of one
        example, `[channels]` for parameters `[batch, channels, …]`.
      kl_weight: factor of the KL in the losses (β of the β-VAE), at least 0. The attribute may be
        set at any time; a variable given here is read at every step, but not trained.
      seed: integer seed of the noise, or `None` for a random one.
      reinterpreted_batch_ndims: number of last batch axes over which the KL is summed, as in
        `tfd.Independent`; it is averaged over the axes before them. `None` for all but the first;
        0 to average over all axes.
      scale_map: how real numbers become standard deviations, `"exp"` or `"softplus"`; see
        `tfp_ar1.params.new`.
      time_major: whether the coordinates are the second-to-last axis of inputs and samples.
      **kwargs: arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Raises:
      ValueError: if an argument is invalid, or the prior does not fit; when called, if there are
        fewer batch axes than `reinterpreted_batch_ndims`, or the prior's do not fit them.
      TypeError: if called in a tf_keras model; use `tfp_ar1.tfpl` there.
    """

    family: str

    def __init__(
        self,
        event_size: int,
        prior: Prior | None = None,
        kl_weight: float | tf.Variable | keras.Variable = 1.0,
        seed: int | None = None,
        reinterpreted_batch_ndims: int | None = None,
        scale_map: str = "exp",
        time_major: bool = False,
        **kwargs,
    ):
        # Autocasting would round the parameters to half precision before they are used.
        super().__init__(autocast=False, **kwargs)
        self.event_size = ar1_params.checked_event_size(event_size)
        self.prior = checked_prior(prior, self.event_size, self._distribution_dtype, None)
        ndims = _keras_common.checked_reinterpreted_batch_ndims(reinterpreted_batch_ndims)
        self.reinterpreted_batch_ndims = ndims
        self.scale_map = ar1_params.checked_scale_map(scale_map)
        self.time_major = bool(time_major)
        self._kl_weight = _keras_backend.hyperparameter(kl_weight)
        self.kl_weight = _keras_backend.number(kl_weight)  # Not as a weight of the layer.
        self.supports_masking = True
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    @classmethod
    def params_size(cls, event_size: int) -> int:
        """Returns the number of packed parameters per example; see `tfp_ar1.params`."""
        return ar1_params.params_size(event_size, cls.family)

    @property
    def kl_weight(self) -> float:
        """The factor of the KL in the losses; may be changed during training."""
        return _keras_backend.number(self._kl_weight)

    @kl_weight.setter
    def kl_weight(self, value: Any) -> None:
        weight = _keras_common.checked_weight(_keras_backend.number(value), "kl_weight")
        with tf.init_scope():
            self._kl_weight.assign(weight)

    @property
    def variables(self) -> list[keras.Variable]:
        """Keras's variables, and the KL factor if it must be passed to training steps."""
        return [*super().variables, *_keras_backend.given_to_steps(self._kl_weight)]

    @property
    def _distribution_dtype(self) -> tf.DType:
        return tf.float64 if self.compute_dtype == "float64" else tf.float32

    def distribution(self, params: Any, mask: Any = None) -> tfd.Distribution:
        """Returns the distribution for the layer's inputs; the mask is used with `time_major`."""
        return self._distribution(self._packed(params, mask), self._current_prior(), mask)

    def _current_prior(self) -> tfd.Distribution | None:
        return None if self.prior is None else current_prior(self.prior)

    def _packed(self, params: Any, mask: Any) -> tf.Tensor:
        """Returns packed parameters `[..., params_size(event_size)]`, in float32 or float64."""
        if isinstance(params, keras.KerasTensor):
            raise TypeError(
                "`distribution` takes values, not a placeholder of a functional model. Make a "
                "model of the layers up to the parameters, and pass its outputs for data."
            )
        params = tf.cast(keras.ops.convert_to_tensor(params), self._distribution_dtype)
        if not self.time_major:
            return params
        ar1_params.time_major_channels(params.shape, self.family, self.event_size)
        return ar1_params.from_time_major(params, self.family, mask)

    def _distribution(
        self, packed: tf.Tensor, prior: tfd.Distribution | None, mask: Any
    ) -> tfd.Distribution:
        return ar1_params.new(packed, self.event_size, family=self.family, scale_map=self.scale_map)

    def _kl(self, distribution: tfd.Distribution, prior: tfd.Distribution, mask: Any) -> tf.Tensor:
        """Returns the KL of the unmasked steps, with the distribution's batch shape."""
        if mask is None:
            return tfd.kl_divergence(distribution, prior)
        if self.time_major:
            # By the chain rule, the first n terms sum to the KL of the first n timesteps.
            terms = kl_terms(distribution, prior)
            terms = tf.where(mask[..., tf.newaxis, :], terms, tf.zeros_like(terms))
            return tf.reduce_sum(terms, axis=-1)
        kl = tfd.kl_divergence(distribution, prior)
        for _ in range(len(kl.shape) - len(mask.shape)):
            mask = mask[..., tf.newaxis]
        return tf.where(mask, kl, tf.zeros_like(kl))

    def call(self, params: Any, mask: Any = None) -> tf.Tensor:
        """Returns a sample for each example, and adds the KL to the losses if there is a prior."""
        # One object for both: a posterior by sites knows its KL to the prior it was made from.
        prior = self._current_prior()
        packed = self._packed(params, mask)
        distribution = self._distribution(packed, prior, mask)
        if prior is not None:
            if _keras_backend.in_vectorized_map(packed):
                raise ValueError(
                    "In `TimeDistributed` over an unknown number of steps, as in any "
                    "`tf.vectorized_map`, only the KL of the first step would count. Call the "
                    "layer on all steps at once, `[batch, steps, size]`."
                )
            ndims = self.reinterpreted_batch_ndims
            _keras_common.check_batch_axes(distribution, prior, ndims)
            kl = self._kl(distribution, prior, mask)
            kl = _keras_common.mean_over_examples(kl, ndims)
            self.add_loss(tf.cast(_keras_backend.value(self._kl_weight), kl.dtype) * kl)
        sample = distribution.sample(seed=self.next_seed())
        sample = tf.linalg.matrix_transpose(sample) if self.time_major else sample
        return tf.cast(sample, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the input shape with `event_size`, or the channels, as its last dimension."""
        if self.time_major:
            given = (input_shape, self.family, self.event_size)
            return (*input_shape[:-2], self.event_size, ar1_params.time_major_channels(*given))
        size = self.params_size(self.event_size)
        ar1_params.check_params_shape(input_shape, size, self.event_size)
        return (*input_shape[:-1], self.event_size)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, the prior as a plain configuration."""
        return {
            **super().get_config(),
            "event_size": self.event_size,
            "prior": None if self.prior is None else prior_to_config(self.prior),
            "kl_weight": self.kl_weight,
            "seed": self.seed,
            "reinterpreted_batch_ndims": self.reinterpreted_batch_ndims,
            "scale_map": self.scale_map,
            "time_major": self.time_major,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> MarkovChainLayer:
        """Recreates the layer from `get_config`."""
        # Files without the argument were written by a version that averaged over all axes.
        return super().from_config({"reinterpreted_batch_ndims": 0, **config})


@functools.cache
def layer_class(family: str) -> type[MarkovChainLayer]:
    """Returns a member's layer class, registered so that Keras can load it by name."""
    cls = _keras_common.member_layer(MarkovChainLayer, family, "tfp_ar1.layers")
    return keras.saving.register_keras_serializable(package="tfp_ar1")(cls)

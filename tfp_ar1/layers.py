"""Keras 3: layers that sample from AR(1) and its relatives, and a prior that is learned."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability.python.internal import samplers

from tfp_ar1 import params as ar1_params
from tfp_ar1 import priors

tfd = tfp.distributions

__all__ = [
    "MultivariateNormalANTE1",
    "MultivariateNormalAR1",
    "MultivariateNormalAR1Prior",
    "MultivariateNormalARH1",
    "SeededMixin",
]

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


class Keras3Mixin:
    """For a layer or model of Keras 3: says so where it is put into one of tf_keras."""

    def __repr__(self) -> str:
        """Says where it belongs; the errors of tf_keras print it."""
        return f"{super().__repr__()[:-1]}, of Keras 3; in tf_keras models use tfp_ar1.tfpl>"

    def __call__(self, *args, **kwargs) -> Any:
        """As in Keras, outside of tf_keras models, which would lose the KL."""
        tf_keras = sys.modules.get("tf_keras.src.engine.base_layer_utils")
        inside = tf_keras is not None and tf_keras.call_context().in_call
        modules = (type(value).__module__ for value in (*args, *kwargs.values()))
        if inside or any(module.startswith("tf_keras.") for module in modules):
            raise TypeError(f"A layer was called in a model of the other Keras: {self!r}.")
        return super().__call__(*args, **kwargs)


@keras.saving.register_keras_serializable(package="tfp_ar1")
class MultivariateNormalAR1Prior(keras.layers.Layer):
    """A prior with first-order autoregressive covariance that is learned with the model.

    To be given as `prior` to `RhoVAE` or to the layer `MultivariateNormalAR1`, whose weights it
    joins; it takes no input. It starts as N(0, I) unless `correlation` says otherwise.

    A decoder that may rotate and scale its latent space makes most priors equal; where the latent
    coordinates have an order that the decoder must respect, the correlation matters.

    Args:
      event_size: number of coordinates d, at least 1.
      learn: which of `"loc"`, `"marginal_scale"` and `"correlation"` are trained.
      correlation: ρ at the start, in (-1, 1).
      channels: makes a distribution of batch shape `[channels]`, each with parameters of its own,
        as `SequenceVAE` needs it; `None` for a single distribution of batch shape `[]`.
      **kwargs: arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Raises:
      ValueError: if `event_size` or `channels` is not a positive integer, `learn` names something
        else, or `correlation` is not in (-1, 1).
    """

    def __init__(
        self,
        event_size: int,
        learn: Sequence[str] = ("correlation",),
        correlation: float = 0.0,
        channels: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.event_size = ar1_params.checked_event_size(event_size)
        if channels is not None and (channels % 1 != 0 or channels < 1):
            raise ValueError(f"`channels` must be a positive integer, or `None`; got {channels!r}.")
        self.channels = None if channels is None else int(channels)
        self.learn = [learn] if isinstance(learn, str) else list(learn)
        unknown = sorted(set(self.learn) - {"loc", "marginal_scale", "correlation"})
        if unknown:
            raise ValueError(
                f"`learn` may name 'loc', 'marginal_scale' and 'correlation'; got {unknown}."
            )
        if not -1.0 < correlation < 1.0:
            raise ValueError(f"`correlation` must lie strictly in (-1, 1); got {correlation}.")
        self.correlation = float(correlation)

        def weight(name: str, shape: tuple[int, ...], value: float, learned: str) -> Any:
            return self.add_weight(
                name=name,
                shape=shape if self.channels is None else (self.channels, *shape),
                initializer=keras.initializers.Constant(value),
                trainable=learned in self.learn,
                # Half a precision is not enough for a covariance.
                autocast=False,
            )

        self.loc = weight("loc", (self.event_size,), 0.0, "loc")
        self.log_s = weight("log_s", (1,), 0.0, "marginal_scale")
        self.fisher_z = weight("fisher_z", (1,), np.arctanh(self.correlation), "correlation")
        self.built = True

    def distribution(self) -> tfd.Distribution:
        """The prior for the present weights, of batch shape `[]` or `[channels]`."""
        packed = keras.ops.concatenate([self.loc, self.log_s, self.fisher_z], axis=-1)
        return ar1_params.new(packed, self.event_size)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "event_size": self.event_size,
            "learn": self.learn,
            "correlation": self.correlation,
            "channels": self.channels,
        }


Prior = tfd.Distribution | keras.layers.Layer


def current_prior(prior: Prior) -> tfd.Distribution:
    """The prior as a distribution: itself, or what a layer that learns it makes it now."""
    return prior.distribution() if isinstance(prior, keras.layers.Layer) else prior


def prior_to_config(prior: Prior) -> dict[str, Any]:
    """The prior in a form that Keras can save, and `checked_prior` takes."""
    if isinstance(prior, keras.layers.Layer):
        return keras.saving.serialize_keras_object(prior)
    return priors.to_config(prior)


def checked_prior(
    prior: Prior | Mapping[str, Any] | None,
    event_size: int,
    dtype: tf.DType,
    batch_shape: Sequence[int] | None = (),
) -> Prior | None:
    """A prior as given or from its configuration, or an error if it does not fit.

    A `batch_shape` of `None` allows any.

    Raises:
      TypeError: if the prior is neither a distribution nor a layer with a method `distribution`.
      ValueError: if the prior is not over vectors of `event_size`, is of another batch shape or
        dtype, holds variables, which Keras would not see, or is of a class that cannot be saved.
    """
    if isinstance(prior, Mapping):
        is_layer = "class_name" in prior
        prior = (keras.saving.deserialize_keras_object if is_layer else priors.from_config)(prior)
    if prior is None:
        return None
    learned = isinstance(prior, keras.layers.Layer) and hasattr(prior, "distribution")
    if not isinstance(prior, tfd.Distribution) and not learned:
        raise TypeError(
            f"The prior must be a `tfd.Distribution`, a layer that learns one, such as "
            f"`MultivariateNormalAR1Prior`, or `None`; got {prior!r}."
        )
    distribution = current_prior(prior)
    batch_fits = tf.TensorShape(batch_shape).is_compatible_with(distribution.batch_shape)
    if distribution.event_shape != [event_size] or not batch_fits:
        one = f"of batch shape {tuple(batch_shape)}" if batch_shape else "one distribution"
        raise ValueError(
            f"The prior must be {one} over vectors of size {event_size}; got batch shape "
            f"{distribution.batch_shape} and event shape {distribution.event_shape}."
        )
    if distribution.dtype != dtype:
        raise ValueError(
            f"The prior must be of dtype {dtype.name}; got {distribution.dtype.name}. (NumPy "
            f"arrays are float64 unless they are told otherwise.)"
        )
    if distribution.variables:
        raise ValueError(
            f"The prior holds variables ({[v.name for v in distribution.variables]}), which Keras "
            f"would neither train nor save. Give it constants, or let a layer own its weights: "
            f"`tfp_ar1.layers.MultivariateNormalAR1Prior`."
        )
    if not learned:
        priors.check_can_be_saved(distribution)
    return prior


class _MarkovChainLayer(SeededMixin, Keras3Mixin, keras.layers.Layer):
    """What the layers share: a sample of the normal of a family of `params`, and its KL.

    Subclasses name the `family`; the arguments are described in `MultivariateNormalAR1`.
    """

    family: str

    def __init__(
        self,
        event_size: int,
        prior: Prior | None = None,
        kl_weight: float | tf.Variable | keras.Variable = 1.0,
        seed: int | None = None,
        reinterpreted_batch_ndims: int | None = None,
        **kwargs,
    ):
        # Autocasting would round the parameters to half precision before they are used.
        super().__init__(autocast=False, **kwargs)
        self.event_size = ar1_params.checked_event_size(event_size)
        self.prior = checked_prior(prior, self.event_size, self._distribution_dtype, None)
        self.reinterpreted_batch_ndims = priors.checked_reinterpreted_batch_ndims(
            reinterpreted_batch_ndims
        )
        # A variable, so that what is assigned to it reaches functions that are compiled already;
        # TensorFlow's, which Keras neither trains nor saves among the weights.
        given = kl_weight.value if isinstance(kl_weight, keras.Variable) else kl_weight
        with tf.init_scope():
            own = tf.Variable(0.0, trainable=False, dtype=tf.float64)
        self._kl_weight = given if isinstance(given, tf.Variable) else own
        self.kl_weight = given
        self.supports_masking = True
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    @classmethod
    def params_size(cls, event_size: int) -> int:
        """The number of packed parameters for each example; see `tfp_ar1.params`."""
        return ar1_params.params_size(event_size, cls.family)

    @property
    def kl_weight(self) -> float:
        """The factor of the KL in the losses; it may be set while the model is trained."""
        with tf.init_scope():
            return float(self._kl_weight.numpy())

    @kl_weight.setter
    def kl_weight(self, value: Any) -> None:
        with tf.init_scope():
            weight = float(tf.convert_to_tensor(value, dtype_hint=tf.float64))
            if not weight >= 0:
                raise ValueError(f"`kl_weight` must not be negative; got {weight}.")
            self._kl_weight.assign(weight)

    @property
    def _distribution_dtype(self) -> tf.DType:
        return tf.float64 if self.compute_dtype == "float64" else tf.float32

    def distribution(self, params: Any) -> tfd.Distribution:
        """The distribution for packed parameters `[..., params_size(event_size)]`."""
        if isinstance(params, keras.KerasTensor):
            raise TypeError(
                "`distribution` takes values, not a placeholder of a functional model. Make a "
                "model of the layers up to the parameters, and pass what it returns for data."
            )
        params = tf.cast(keras.ops.convert_to_tensor(params), self._distribution_dtype)
        return ar1_params.new(params, self.event_size, family=self.family)

    def call(self, params: Any, mask: Any = None) -> tf.Tensor:
        """Returns a sample for each example, and adds the KL to the losses if there is a prior."""
        distribution = self.distribution(params)
        if self.prior is not None:
            if "loop_body" in tf.get_current_name_scope():
                raise ValueError(
                    "In `TimeDistributed` over an unknown number of steps, as in any "
                    "`tf.vectorized_map`, the KL would be that of the first step alone. Call the "
                    "layer on all steps at once, `[batch, steps, size]`."
                )
            prior, ndims = current_prior(self.prior), self.reinterpreted_batch_ndims
            priors.check_batch_axes(distribution, prior, ndims)
            kl = tfd.kl_divergence(distribution, prior)
            if mask is not None:
                for _ in range(kl.shape.rank - mask.shape.rank):
                    mask = mask[..., tf.newaxis]
                kl = tf.where(mask, kl, tf.zeros_like(kl))
            kl = priors.mean_over_examples(kl, ndims)
            self.add_loss(tf.cast(self._kl_weight, kl.dtype) * kl)
        return tf.cast(distribution.sample(seed=self.next_seed()), self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The input shape with its last dimension replaced by `event_size`."""
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
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> _MarkovChainLayer:
        """Makes the layer again from `get_config`."""
        # Files without the argument are of a version that averaged over all axes.
        return super().from_config({"reinterpreted_batch_ndims": 0, **config})


@keras.saving.register_keras_serializable(package="tfp_ar1")
class MultivariateNormalAR1(_MarkovChainLayer):
    """Samples from a normal with first-order autoregressive covariance, O(d) for d coordinates.

    The layer takes packed parameters `[loc (d), log s, fisher_z]` along the last axis, as a `Dense`
    layer puts them out (see `tfp_ar1.params`), and returns one sample for each example, through
    which gradients flow. With a `prior` it adds the analytic KL divergence of an example, averaged
    over the batch, to the losses of the model. It samples in training and inference alike;
    `layer.distribution(params)` is the distribution itself, for its mean or its `log_prob`.

    ```python
    d = 8
    encoder = keras.Sequential([
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(tfp_ar1.layers.MultivariateNormalAR1.params_size(d)),
        tfp_ar1.layers.MultivariateNormalAR1(d, prior=tfd.MultivariateNormalDiag(tf.zeros(d))),
    ])
    ```

    Input shape: `[batch, ..., event_size + 2]`. Output shape: `[batch, ..., event_size]`. Further
    axes, such as channels or steps, are parts of the example: the KL is summed over them, as the
    ELBO has it, and averaged over the first axis alone (but see `reinterpreted_batch_ndims`).
    Steps that a Keras mask leaves out have no KL.

    Under a half-precision dtype policy the parameters, the sample and the KL are computed in
    float32, and only the sample that is returned is cast.

    Args:
      event_size: number of coordinates d, at least 1.
      prior: a `tfd.Distribution` over vectors of size d, with constant parameters and a registered
        KL divergence (N(0, I) in any of its TFP spellings, AR(1), …); a layer that learns one
        (`MultivariateNormalAR1Prior`); or `None` for no KL. Its batch shape is `[]` or, for
        parameters `[batch, channels, …]`, that of one example, `[channels]`.
      kl_weight: factor of the KL in the losses (β of the β-VAE), at least 0. The attribute may be
        set at any time, by a callback say; a variable that is given is read at every step, and not
        trained.
      seed: integer seed of the noise, or `None` for a random one.
      reinterpreted_batch_ndims: over how many of the last batch axes the KL is summed, as in
        `tfd.Independent`; it is averaged over those before. `None` for all but the first; 0 for
        the mean over all.
      **kwargs: arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Raises:
      ValueError: if `event_size` is not a positive integer, `kl_weight` is negative,
        `reinterpreted_batch_ndims` is not a non-negative integer, or the prior does not fit; when
        called, if there are fewer batch axes than that, or the prior has other ones.
      TypeError: if called in a tf_keras model, which has the layers of `tfp_ar1.tfpl`.
    """

    family = "ar1"


@keras.saving.register_keras_serializable(package="tfp_ar1")
class MultivariateNormalARH1(_MarkovChainLayer):
    """Samples from a normal with ARH(1) covariance: AR(1) with a scale for each coordinate.

    As `MultivariateNormalAR1`, with the same arguments and errors, for packed parameters
    `[loc (d), log s (d), fisher_z]`. Its distribution is `tfp_ar1.MultivariateNormalARH1`.

    Input shape: `[batch, ..., 2 event_size + 1]`. Output shape: `[batch, ..., event_size]`.
    """

    family = "arh1"


@keras.saving.register_keras_serializable(package="tfp_ar1")
class MultivariateNormalANTE1(_MarkovChainLayer):
    """Samples from a normal with ANTE(1) covariance: a scale for each coordinate and ρ per step.

    As `MultivariateNormalAR1`, with the same arguments and errors, for packed parameters
    `[loc (d), log s (d), fisher_z (d - 1)]`. Its distribution is
    `tfp_ar1.MultivariateNormalANTE1`.

    Input shape: `[batch, ..., 3 event_size - 1]`. Output shape: `[batch, ..., event_size]`.
    """

    family = "ante1"

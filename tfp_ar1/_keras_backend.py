"""Backend-specific code of layers and models, for Keras 3 on TensorFlow.

`tfp_ar1_jax/_keras_backend.py` is its counterpart.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability.python.internal import samplers

from tfp_ar1._typing import MixinBase

if keras.config.backend() != "tensorflow":
    raise ImportError(
        f"`tfp_ar1` needs Keras on its TensorFlow backend; this process uses "
        f"{keras.config.backend()!r}. Set the environment variable KERAS_BACKEND=tensorflow before "
        f"Keras is imported. With KERAS_BACKEND=jax use `tfp_ar1_jax`, which has the same layers "
        f"and models. Other backends, such as 'torch', are not supported, because TensorFlow "
        f"Probability does not support them."
    )

# Decorator: compiles a method of a model, once for each model.
compiled_method = tf.function(reduce_retracing=True, autograph=False)
is_symbolic = tf.is_symbolic_tensor


def seed_of(first: int, second: int) -> tf.Tensor:
    """Makes a seed for TFP from two 32-bit integers."""
    return tf.constant([first, second], tf.int32)


def widest() -> Any:
    """Returns the most precise floating-point dtype available."""
    return np.float64


def next_seed(generator: keras.random.SeedGenerator) -> tf.Tensor:
    """Returns a fresh seed for TFP, an int32 tensor `[2]`, different on each replica."""
    # The state is int64; TFP takes int32.
    seed = tf.math.floormod(generator.next(), tf.int32.max - 1)
    seed = tf.ensure_shape(tf.cast(seed, tf.int32), [2])
    replica = tf.distribute.get_replica_context()
    if replica is not None and replica.num_replicas_in_sync > 1:
        seed = samplers.fold_in(seed, replica.replica_id_in_sync_group)
    return seed


def hyperparameter(given: Any) -> tf.Variable:
    """Makes a number that may change during training, but is neither trained nor saved.

    Returns the variable if one is given, else a new one that the caller must assign. A variable,
    so that changes reach compiled functions; TensorFlow's own kind, because Keras ignores it.
    """
    given = given.value if isinstance(given, keras.Variable) else given
    if isinstance(given, tf.Variable):
        return given
    with tf.init_scope():
        return tf.Variable(0.0, trainable=False, dtype=tf.float64)


def value(x: tf.Variable) -> tf.Tensor:
    """Returns the current value of a hyperparameter."""
    return tf.convert_to_tensor(x)


def number(x: Any) -> float:
    """Returns the value of a number, a variable or a scalar tensor."""
    with tf.init_scope():
        return float(tf.convert_to_tensor(x, dtype_hint=tf.float64))


def given_to_steps(_: tf.Variable) -> list[keras.Variable]:
    """Variables that Keras must also pass to training steps: none, since graphs capture them."""
    return []


def in_vectorized_map(_: tf.Tensor) -> bool:
    """Whether a tensor belongs to one iteration of a vectorized loop."""
    return "loop_body" in tf.get_current_name_scope()


def dense_instead(name: str, x: Any) -> str:
    """Returns code for messages that makes a tensor dense; an empty string if it is dense."""
    if isinstance(x, tf.RaggedTensor):
        series = f"{{'x': {name}.to_tensor(), 'length': {name}.row_lengths()}}"
        return f"{name}.to_tensor(), and for series {series}"
    return f"tf.sparse.to_dense({name})" if isinstance(x, tf.SparseTensor) else ""


def checked_stream(model: Any, x: Any) -> Any:
    """Returns streamed data with the checks that training steps do not make."""
    if isinstance(x, keras.utils.PyDataset):
        model.checked_batch(x[0], "the first batch")
    if not isinstance(x, tf.data.Dataset):
        return x
    spec = keras.utils.unpack_x_y_sample_weight(x.element_spec)[0]
    spec = spec.get("x") if isinstance(spec, dict) else spec
    if isinstance(spec, tf.TensorSpec):
        model.check_shape(spec.shape)

    def check(*batch: Any) -> Any:
        data = batch if isinstance(x.element_spec, tuple) else batch[0]
        return keras.utils.pack_x_y_sample_weight(*model.asserted(data))

    # XLA leaves assertions out.
    return x.map(check) if model.jit_compile else x


def assert_all(allowed: tf.Tensor, message: str) -> tf.Operation | None:
    """Asserts in the graph that all entries are true; the error says how many are not."""
    wrong = tf.size(allowed) - tf.reduce_sum(tf.cast(allowed, tf.int32))
    return tf.debugging.Assert(wrong == 0, [f"{message}; values that are not:", wrong])


def shared_out(x: Any, sample_weight: Any) -> tuple[Any, Any, tf.Tensor, int]:
    """Returns a replica's part of a batch, the number of examples in all parts, and of replicas."""
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    examples = tf.shape(keras.tree.flatten(x)[0])[0]
    if replicas > 1:
        x, sample_weight = _never_empty(x, sample_weight)
        examples = tf.distribute.get_replica_context().all_reduce("SUM", examples)
    return x, sample_weight, examples, replicas


def _never_empty(x: Any, sample_weight: Any) -> tuple[Any, tf.Tensor]:
    """Pads an empty share by an example of weight 0: dilated convolutions fail on empty batches."""
    number = tf.shape(keras.tree.flatten(x)[0])[0]
    missing = tf.cast(tf.equal(number, 0), tf.int32)

    def padded(part: tf.Tensor, value: int) -> tf.Tensor:
        part = tf.convert_to_tensor(part)
        paddings = tf.pad([[0, missing]], [[0, part.shape.rank - 1], [0, 0]])
        return tf.pad(part, paddings, constant_values=tf.cast(value, part.dtype))

    if sample_weight is None:
        sample_weight = tf.ones([number])
    return keras.tree.map_structure(lambda part: padded(part, 1), x), padded(sample_weight, 0)


class MultiWorkerMixin(MixinBase):
    """Overrides that let Keras 3 train under `tf.distribute.MultiWorkerMirroredStrategy`.

    Upstream: https://github.com/keras-team/keras/issues/20585. `tests/cli/test_distributed.py`
    fails when a version of Keras no longer needs one of the two overrides; then remove it.
    """

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Builds the optimizer in the strategy's scope.

        Keras would run a first batch symbolically. A built model does not need that, and with
        several workers it fails.
        """
        if self._distribute_strategy is None or not self.built:
            super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)
        elif self.optimizer is not None and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)

    def _make_function(self, step_function: Callable[[Any], dict[str, tf.Tensor]]) -> Callable:
        """Adds a first axis to a step's logs, over which Keras averages the workers."""
        strategy = self.distribute_strategy
        of_workers = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        # With a single replica Keras takes the logs as they are.
        if not of_workers or strategy.num_replicas_in_sync == 1:
            return super()._make_function(step_function)

        def step(data: Any) -> dict[str, tf.Tensor]:
            logs = step_function(data)
            return {name: tf.reshape(value, [1]) for name, value in logs.items()}

        return super()._make_function(step)


class TrainerMixin(MultiWorkerMixin):
    """The steps of a `keras.Model` with `asserted_parts` and `loss_of_batch`, such as `VAE`."""

    def asserted(self, data: Any) -> tuple[Any, Any, tf.Tensor | None]:
        """Returns data, targets and weights of a batch, in a graph with assertions attached."""
        x, y, weight, checks = self.asserted_parts(data)
        with tf.control_dependencies(checks):
            return keras.tree.map_structure(tf.identity, x), y, weight

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Takes one optimizer step on a batch."""
        x, _, sample_weight = self.asserted(data)
        self.check_has_optimizer()
        with tf.GradientTape() as tape:
            loss = self.loss_of_batch(x, sample_weight, training=True)
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
        x, _, sample_weight = self.asserted(data)
        self.loss_of_batch(x, sample_weight, training=False)
        return self.get_metrics_result()

    def predict_step(self, data: Any) -> tf.Tensor:
        """Returns the reconstructions of a batch."""
        return super().predict_step(self.asserted(data)[0])

    def compile(self, **kwargs) -> None:
        """Like `keras.Model.compile`; rejects options that fail on several replicas."""
        if self.distribute_strategy.num_replicas_in_sync > 1:
            # With either option Keras fails, even for a single Dense layer, without a clear reason.
            harmless = {"jit_compile": (None, False, "auto"), "steps_per_execution": (None, 1)}
            for name, allowed in harmless.items():
                if (value := kwargs.get(name)) not in allowed:
                    option = f"`{name}={value}`"
                    raise ValueError(
                        f"Keras cannot train several replicas with {option}; leave it out."
                    )
            kwargs["jit_compile"] = False
        super().compile(**kwargs)


def check_can_export() -> None:
    """Does nothing: TensorFlow can write SavedModels."""

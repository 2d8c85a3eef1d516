"""Backend-specific code of layers and models, for Keras 3 on JAX."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from tfp_ar1_jax._typing import MixinBase

if keras.config.backend() != "jax":
    raise ImportError(
        f"The layers and models of `tfp_ar1_jax` need Keras on its JAX backend; this process uses "
        f"{keras.config.backend()!r}. Set the environment variable KERAS_BACKEND=jax before Keras "
        f"is imported, or use `tfp_ar1`, which has the same for TensorFlow."
    )


def compiled_method(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: compiles a method of a model, once for each model.

    Compiled functions take the current values of the model's variables. Integers are static.
    """
    signature = inspect.signature(method)
    compiled: Any = weakref.WeakKeyDictionary()  # by model; functions must not reference the model

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        args = signature.bind(self, *args, **kwargs).args[1:]
        if not self.built:
            self.encode(args[0])  # Builds the model: tracing cannot create variables.
        reference = weakref.ref(self)

        def run(values: list[jax.Array], *args: Any) -> Any:
            model: Any = reference()
            with keras.StatelessScope(state_mapping=zip(model.variables, values, strict=True)):
                return method(model, *args)

        static = tuple(i for i, arg in enumerate(args) if isinstance(arg, int))
        functions = compiled.setdefault(self, {})
        if static not in functions:
            functions[static] = jax.jit(run, static_argnums=tuple(i + 1 for i in static))
        return functions[static]([v.value for v in self.variables], *args)

    return call


def is_symbolic(x: Any) -> bool:
    """Whether `x` is a tracer, whose values are not known yet."""
    return isinstance(x, jax.core.Tracer)


def seed_of(first: int, second: int) -> jax.Array:
    """Makes a key for TFP from two 32-bit integers."""
    return jnp.asarray(np.array([first, second]).astype(np.uint32))


def widest() -> Any:
    """Returns the most precise floating-point dtype available."""
    return jax.dtypes.canonicalize_dtype(np.float64)


def next_seed(generator: keras.random.SeedGenerator) -> jax.Array:
    """Returns a fresh key for TFP, a uint32 array `[2]`."""
    return generator.next()


def hyperparameter(given: Any) -> _Hidden:
    """Makes a number that may change during training, but is neither trained nor saved.

    Holds the variable if one is given, else a new one that the caller must assign.
    """
    variable = given if isinstance(given, keras.Variable) else keras.Variable(0.0)
    variable.trainable = False  # Otherwise `given_to_steps` would make Keras train it.
    return _Hidden(variable)


class _Hidden:
    """Hides a variable from Keras, which would treat it as a weight of the layer."""

    def __init__(self, variable: keras.Variable):
        self.variable = variable
        self.assign = variable.assign


def value(x: _Hidden) -> jax.Array:
    """Returns the current value of a hyperparameter."""
    return x.variable.value


def number(x: Any) -> float:
    """Returns the value of a number, variable or scalar array, with the digits of its precision."""
    x = x.variable if isinstance(x, _Hidden) else x
    return float(str(keras.ops.convert_to_numpy(x))) if hasattr(x, "dtype") else float(x)


def given_to_steps(x: _Hidden) -> list[keras.Variable]:
    """Variables besides weights that Keras must pass to training steps, as it does with seeds."""
    return [x.variable]


def in_vectorized_map(x: jax.Array) -> bool:
    """Whether an array belongs to one iteration of a vectorized loop."""
    return isinstance(x, jax.interpreters.batching.BatchTracer)


def dense_instead(name: str, x: Any) -> str:
    """Returns code for messages that makes a tensor dense; an empty string if it is dense."""
    return f"{name}.todense()" if hasattr(x, "todense") else ""


def checked_stream(model: Any, x: Any) -> Any:
    """Returns streamed data with each batch checked as it is read: compiled code has no checks.

    Of data that are read ahead, such as a `tf.data.Dataset`, only the first batch is checked.
    """
    if isinstance(x, keras.utils.PyDataset):
        return _CheckedDataset(model, x)
    if hasattr(x, "as_numpy_iterator"):
        model.checked_batch(next(iter(x.take(1).as_numpy_iterator())), "the first batch")
    return x


class _CheckedDataset(keras.utils.PyDataset):
    """A `PyDataset` whose batches are checked."""

    def __init__(self, model: Any, dataset: keras.utils.PyDataset):
        options = ("workers", "use_multiprocessing", "max_queue_size")
        super().__init__(**{name: getattr(dataset, name) for name in options})
        self._model, self._dataset = model, dataset

    @property
    def num_batches(self) -> int | None:
        return self._dataset.num_batches

    def __getitem__(self, index: int) -> Any:
        batch = self._dataset[index]
        self._model.checked_batch(batch, f"batch {index}")
        return batch

    def on_epoch_begin(self) -> None:
        self._dataset.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self._dataset.on_epoch_end()


def assert_all(allowed: jax.Array, message: str) -> None:
    """Does nothing: compiled code cannot raise errors."""


def shared_out(x: Any, sample_weight: Any) -> tuple[Any, Any, int, int]:
    """Returns the batch, its weights, the number of examples and of parts, which is 1.

    A step sees the whole batch, also under `keras.distribution`, where XLA splits it.
    """
    return x, sample_weight, len(keras.tree.flatten(x)[0]), 1


class TrainerMixin(MixinBase):
    """The steps of a `keras.Model` with `loss_of_batch`, such as `VAE`.

    Keras's own steps would call the model first, and so draw twice.
    """

    def train_step(self, state: Any, data: Any) -> tuple[dict[str, jax.Array], Any]:
        """Takes one optimizer step on a batch; see `keras.Model.train_step`."""
        trainable, other, of_optimizer, of_metrics = state

        def loss(trainable: list[jax.Array]) -> Any:
            mapping = self._mapping(trainable, other, of_metrics)
            mapping += zip(self.optimizer.variables, of_optimizer, strict=True)
            loss, logs, (_, *updated) = self._in_scope(mapping, data, training=True)
            return loss, (logs, updated)

        gradients, (logs, (other, of_metrics)) = jax.grad(loss, has_aux=True)(trainable)
        trainable, of_optimizer = self.optimizer.stateless_apply(of_optimizer, gradients, trainable)
        return logs, (trainable, other, of_optimizer, of_metrics)

    def test_step(self, state: Any, data: Any) -> tuple[dict[str, jax.Array], Any]:
        """Updates the metrics with a batch; see `keras.Model.test_step`."""
        _, logs, state = self._in_scope(self._mapping(*state), data, training=False)
        return logs, state

    def _groups(self) -> tuple[list[keras.Variable], ...]:
        return self.trainable_variables, self.non_trainable_variables, self.metrics_variables

    def _mapping(self, *values: Iterable[jax.Array]) -> list[tuple[keras.Variable, jax.Array]]:
        pairs = zip(self._groups(), values, strict=True)
        return [pair for group in pairs for pair in zip(*group, strict=True)]

    def _in_scope(self, mapping: Any, data: Any, training: bool) -> tuple[Any, Any, Any]:
        """Returns the loss, the logs, and the updated values of the three groups of variables."""
        x, _, sample_weight, _ = self.asserted_parts(data)
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
            loss = self.loss_of_batch(x, sample_weight, training=training)
            logs = self.get_metrics_result()
            loss = self.optimizer.scale_loss(loss) if training else loss
        updated = ([scope.get_current_value(v) for v in group] for group in self._groups())
        return loss, logs, tuple(updated)


def check_can_export() -> None:
    """Raises `NotImplementedError`: only TensorFlow writes SavedModels."""
    raise NotImplementedError(
        "Only TensorFlow writes SavedModels: save the model as a .keras file, which is the same on "
        "both backends, and load and export it with `tfp_ar1` under KERAS_BACKEND=tensorflow."
    )

"""What differs between backends in layers and models, for Keras 3 on JAX."""

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
    """Decorator: a method of a model that is compiled, for each model once.

    What the model's variables hold at a call is given to it. Integers are static.
    """
    signature = inspect.signature(method)
    compiled: Any = weakref.WeakKeyDictionary()  # by model, which the functions must not hold

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        args = signature.bind(self, *args, **kwargs).args[1:]
        if not self.built:
            self.encode(args[0])  # No variables can be made while a function is traced.
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
    """Whether it stands for values that are not known yet."""
    return isinstance(x, jax.core.Tracer)


def seed_of(first: int, second: int) -> jax.Array:
    """The key that TFP takes, made of two integers of 32 bits."""
    return jnp.asarray(np.array([first, second]).astype(np.uint32))


def widest() -> Any:
    """The dtype of the most precise numbers that there are."""
    return jax.dtypes.canonicalize_dtype(np.float64)


def next_seed(generator: keras.random.SeedGenerator) -> jax.Array:
    """A fresh key for TFP, a uint32 array `[2]`."""
    return generator.next()


def hyperparameter(given: Any) -> _Hidden:
    """A number that may be set while a model is trained, and is not trained nor saved with it.

    The variable that is given, or one of its own, which is to be assigned.
    """
    variable = given if isinstance(given, keras.Variable) else keras.Variable(0.0)
    variable.trainable = False  # Or `given_to_steps` would have it trained.
    return _Hidden(variable)


class _Hidden:
    """A variable that Keras does not see among the attributes of a layer, and take for a weight."""

    def __init__(self, variable: keras.Variable):
        self.variable = variable
        self.assign = variable.assign


def value(x: _Hidden) -> jax.Array:
    """What a hyperparameter is now."""
    return x.variable.value


def number(x: Any) -> float:
    """The value of a number, a variable or an array of one, as it is written in its precision."""
    x = x.variable if isinstance(x, _Hidden) else x
    return float(str(keras.ops.convert_to_numpy(x))) if hasattr(x, "dtype") else float(x)


def given_to_steps(x: _Hidden) -> list[keras.Variable]:
    """What Keras must give to training steps besides weights, as it does with seeds."""
    return [x.variable]


def in_vectorized_map(x: jax.Array) -> bool:
    """Whether an array is that of one iteration of a loop that runs all at once."""
    return isinstance(x, jax.interpreters.batching.BatchTracer)


def dense_instead(name: str, x: Any) -> str:
    """What to write instead of a tensor that is not dense, or nothing."""
    return f"{name}.todense()" if hasattr(x, "todense") else ""


def checked_stream(model: Any, x: Any) -> Any:
    """What gives batches, with a check of each where it is read: compiled code has none.

    Of what reads ahead by itself, such as a `tf.data.Dataset`, the first batch is checked.
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
    """Nothing: compiled code cannot stop."""


def shared_out(x: Any, sample_weight: Any) -> tuple[Any, Any, int, int]:
    """The batch, its weights, the number of examples, and of parts: a step sees all of a batch.

    Under `keras.distribution` too, where XLA shares it out.
    """
    return x, sample_weight, len(keras.tree.flatten(x)[0]), 1


class TrainerMixin(MixinBase):
    """The steps of a `keras.Model` that has `loss_of_batch`, as `VAE` has.

    Keras's own would call the model first, and draw twice.
    """

    def train_step(self, state: Any, data: Any) -> tuple[dict[str, jax.Array], Any]:
        """One step of the optimizer on a batch; see `keras.Model.train_step`."""
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
        """The loss, what is reported, and what the three groups of variables then hold."""
        x, _, sample_weight, _ = self.asserted_parts(data)
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
            loss = self.loss_of_batch(x, sample_weight, training=training)
            logs = self.get_metrics_result()
            loss = self.optimizer.scale_loss(loss) if training else loss
        updated = ([scope.get_current_value(v) for v in group] for group in self._groups())
        return loss, logs, tuple(updated)


def check_can_export() -> None:
    """Raises `NotImplementedError`: a SavedModel is TensorFlow's."""
    raise NotImplementedError(
        "A SavedModel is made on TensorFlow: save the model as a .keras file, which is the same on "
        "both backends, and load and export it with `tfp_ar1` under KERAS_BACKEND=tensorflow."
    )

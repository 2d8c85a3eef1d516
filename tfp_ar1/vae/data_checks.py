"""Conversion and checks of the data that `RhoVAE` and `SequenceVAE` take.

Arrays in memory are checked as a whole, by the model's `checked_data`. Streamed data are checked
batch by batch, where they are read or by assertions in the graph. XLA leaves assertions out; a
`tf.data.Dataset` is then checked in its own pipeline, and a `PyDataset` only in its first batch. On
JAX there are no such assertions; see `checked_stream` in its `_keras_backend`.
"""

from __future__ import annotations

import inspect
import numbers
import types
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import ml_dtypes
import numpy as np
import tensorflow as tf
from tensorflow_probability.python.internal import tensorshape_util

from tfp_ar1 import _keras_backend
from tfp_ar1._typing import MixinBase

SHAPE = "[N, *data_shape], N at least 1"
_REAL = ("float", "bfloat", "int", "uint", "bool")
_WEIGHTS = "`sample_weight` must be finite and not negative"


def as_array(name: str, x: Any) -> np.ndarray | tf.Tensor:
    """Converts data to one array of numbers; masked arrays stay masked, tensors stay tensors.

    Accepts whatever converts to an array, such as a `DataFrame` or nested lists of numbers, or a
    list or tuple with one such element.
    """
    if isinstance(x, list | tuple):
        leaves = keras.tree.flatten(x)
        if not all(isinstance(leaf, numbers.Number | np.generic) for leaf in leaves):
            if len(x) == 1:
                return as_array(name, x[0])
            raise ValueError(
                f"`{name}` must be one array, whose first axis counts the examples; got a "
                f"{type(x).__name__} of {len(x)}, the first of type {type(x[0]).__name__}. For "
                f"examples write np.stack({name}), for batches np.concatenate({name}); pad those "
                "of unequal shapes first."
            )
        try:
            x = np.asarray(x)
        except ValueError as error:
            raise ValueError(f"`{name}` holds lists of unequal lengths; pad them first.") from error
    dense = f"{name}.toarray()" if hasattr(x, "toarray") else ""
    if instead := dense or _keras_backend.dense_instead(name, x):
        raise ValueError(f"`{name}` is a {type(x).__name__}; give {instead}.")
    not_symbolic(x)
    if isinstance(x, keras.Variable) or keras.ops.is_tensor(x):
        x = keras.ops.convert_to_tensor(x)
        # Complex numbers, text and such have other names on every backend.
        real = keras.backend.standardize_dtype(x.dtype).startswith(_REAL)
    else:
        if hasattr(x, "to_numpy"):
            x = x.to_numpy()
        elif not isinstance(x, np.ndarray):
            if not hasattr(x, "__array__") and not isinstance(x, numbers.Number):
                raise TypeError(f"`{name}` must be an array; got an object of {type(x)}.")
            x = np.asarray(x)
        real = x.dtype.kind in "buif" or x.dtype.name == "bfloat16"
        if x.dtype.kind == "f" and (x.dtype.itemsize > 8 or not x.dtype.isnative):
            x = x.astype(np.float64)  # The backends support neither.
    if not real:
        raise ValueError(
            f"The data must be numbers; got dtype {getattr(x.dtype, 'name', x.dtype)} in `{name}`. "
            f"Convert numbers stored in other dtypes with {name}.astype('float32')."
        )
    return x


def not_symbolic(x: Any) -> None:
    """Raises `ValueError` for a symbolic input of a functional model."""
    if isinstance(x, keras.KerasTensor):
        raise ValueError(
            f"This method returns a distribution, or computes with one, which a functional model "
            f"cannot hold; got a KerasTensor of shape {x.shape}. Call the model itself for the "
            "reconstruction, or call the method inside the `call` of a layer of your own, such as "
            "`return self.vae.encode(x).mean()`."
        )


def nan_where_masked(x: np.ndarray | tf.Tensor) -> np.ndarray | tf.Tensor:
    """Replaces masked values of a masked array by NaN; returns other arrays unchanged."""
    if not np.ma.isMaskedArray(x):
        return x
    return np.where(x.mask, np.nan, x.data) if np.ma.is_masked(x) else x.data


def unmasked(name: str, x: np.ndarray | tf.Tensor, instead: str) -> np.ndarray | tf.Tensor:
    """Returns the array without its mask; raises `ValueError` if a value is masked."""
    if np.ma.is_masked(x):
        raise ValueError(
            f"{np.ma.count_masked(x)} of {x.size} values of `{name}` are masked, but would be used "
            f"anyway; {instead}."
        )
    return x.data if np.ma.isMaskedArray(x) else x


def check_values(model: Any, x: np.ndarray) -> None:
    """Raises `ValueError` for values that the likelihood rejects or a dtype cannot hold."""
    model.likelihood.check(x)
    dtypes = (model.compute_dtype, keras.config.floatx(), model.distribution_dtype)
    smallest = min(map(keras.backend.standardize_dtype, dtypes), key=_largest)
    limit = _largest(smallest)
    if x.size and _largest(x.dtype.name) > limit:
        largest = max(-float(x.min()), float(x.max()))
        if largest > limit:
            raise ValueError(
                f"The data have values of up to {largest:g}, beyond {limit:g}, the largest "
                f"{smallest}, in which the model computes; rescale them."
            )


def _largest(dtype: str) -> float:
    """Returns the largest number of a dtype."""
    if dtype == "bool":
        return 1.0
    return float(ml_dtypes.finfo(dtype).max if "float" in dtype else np.iinfo(dtype).max)


def checked_examples(model: Any, x: Any) -> Any:
    """Returns `model.checked_data(x)`; raises `ValueError` if there are no examples."""
    x = model.checked_data(x)
    shape = (x["x"] if isinstance(x, Mapping) else x).shape
    if 0 in tuple(shape):
        raise ValueError(f"Expected data of shape {SHAPE}; got {tuple(shape)}.")
    return x


def checked_arrays(model: Any, x: Any) -> Any:
    """Returns the data as NumPy arrays; errors as for `checked_examples`."""
    return keras.tree.map_structure(keras.ops.convert_to_numpy, checked_examples(model, x))


def _checked_weight(sample_weight: Any, x: Any) -> np.ndarray | tf.Tensor | None:
    """Returns the weights of the examples, `[N]`."""
    if sample_weight is None:
        return None
    weight = as_array("sample_weight", sample_weight)
    weight = unmasked("sample_weight", weight, "give the weight 0 to examples to ignore")
    number, shape = keras.tree.flatten(x)[0].shape[0], tuple(weight.shape)
    if shape not in ((number,), (number, 1)):
        wanted = f"one number for each of {number} examples"
        raise ValueError(f"`sample_weight` must hold {wanted}; got shape {shape}.")
    weight = keras.ops.convert_to_numpy(weight).reshape(-1)
    if not np.all(_weights_allowed(weight)):
        raise ValueError(f"{_WEIGHTS}; got values from {weight.min():g} to {weight.max():g}.")
    return weight


def _weights_allowed(weight: Any) -> Any:
    # False for NaN too.
    return (weight >= 0) & (weight < np.inf)


def _is_stream(x: Any) -> bool:
    """Whether the data come in batches, in a form that Keras supports or an unknown one."""
    if x is None or isinstance(x, keras.utils.PyDataset):
        return True
    arrays = str | list | tuple | Mapping | keras.Variable
    return not (isinstance(x, arrays) or hasattr(x, "__array__") or hasattr(x, "shape"))


class CheckedDataMixin(MixinBase):
    """Checks data in the methods of `keras.Model` that take them.

    The model's `checked_data(x)` converts data in memory to the form that it works with, or raises;
    its `assertions(x)` check a batch in the graph.
    """

    def _checked(self, x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
        """Returns checked data, targets and weights to pass to Keras."""
        if _is_stream(x):
            return self._checked_stream(x), y, sample_weight
        x = checked_examples(self, x)
        sample_weight = _checked_weight(sample_weight, x)
        if isinstance(y, list | tuple):
            y = np.asarray(y)
        # Without targets, Keras silently drops sample weights.
        if y is None and sample_weight is not None:
            y = keras.tree.flatten(x)[0]
        return x, y, sample_weight

    def checked_batch(self, batch: Any, where: str | None = None) -> Any:
        """Checks a batch of a stream: `x`, `(x,)`, `(x, y)` or `(x, y, weight)`.

        With `where`, which names the batch in messages, no value may be masked.
        """
        if where is not None:
            for part in keras.tree.flatten(batch):
                unmasked(where, part, "put NaN where something is missing")
            batch = tuple(batch) if isinstance(batch, list) else batch
        if not isinstance(batch, tuple):
            return self.checked_data(batch)
        x = self.checked_data(batch[0])
        weights = tuple(_checked_weight(part, x) for part in batch[2:3])
        return (x, *batch[1:2], *weights, *batch[3:])

    def _checked_stream(self, x: Any) -> Any:
        if isinstance(x, types.GeneratorType):
            # Other batches are left to Keras, which raises an error that asks for tuples.
            return (self.checked_batch(b) if isinstance(b, tuple) else b for b in x)
        return _keras_backend.checked_stream(self, x)

    def asserted_parts(self, data: Any) -> tuple[Any, Any, Any, list[Any]]:
        """Returns data, targets, weights `[batch]` and assertions for a batch in a graph."""
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        x = self.checked_data(x)
        checks = self.assertions(x)
        if weight is not None:
            weight = tf.convert_to_tensor(weight)
            rank = tensorshape_util.rank(weight.shape)
            if rank == 2 and weight.shape[1] == 1:
                weight = tf.squeeze(weight, 1)
            elif rank not in (None, 1):
                wanted = "one number for each example"
                raise ValueError(f"`sample_weight` must hold {wanted}; got shape {weight.shape}.")
            checks.append(_keras_backend.assert_all(_weights_allowed(weight), _WEIGHTS))
        return x, y, weight, checks

    def __call__(self, x: Any, *args, **kwargs) -> Any:
        """Returns the reconstructions; checks data first, as Keras drops the mask of an array."""
        if not any(isinstance(part, keras.KerasTensor) for part in keras.tree.flatten(x)):
            x = self.checked_data(x)
        return super().__call__(x, *args, **kwargs)

    def fit(self, x: Any = None, y: Any = None, *args, **kwargs) -> keras.callbacks.History:
        """Trains the model, like `keras.Model.fit`; targets `y` are ignored.

        With sample weights, the training loss is the sum of weight times loss divided by the number
        of examples, as everywhere in Keras. The reported metrics, including `loss`, are weighted
        means: divided by the sum of the weights.

        Monitor `val_loss` for early stopping or to lower the learning rate, not `kl`, which rises
        as the model learns to use its latents.

        Args:
          x: array `[N, *data_shape]`, `tf.data.Dataset`, or anything else that Keras takes.
          y: not needed.
          *args: as in Keras.
          **kwargs: as in Keras; `validation_data` may be `(x_test,)`.

        Raises:
          ValueError: if x, `validation_data` or `sample_weight` do not fit the model, in shape or
            in values.
          tf.errors.InvalidArgumentError: if a batch of a dataset does not.
        """
        bound = _bound(super().fit, x, y, *args, **kwargs)
        if bound.get("class_weight") is not None and y is None and not _is_stream(x):
            raise ValueError("`class_weight` needs the classes, as targets `y`.")
        self.check_has_optimizer()
        _warn_of_monitors(bound.get("callbacks"))
        self._check_arguments(bound)
        validation = bound.get("validation_data")
        if validation is not None:
            if isinstance(validation, list | tuple) and len(validation) > 3:
                raise ValueError(
                    "`validation_data` must be x, (x,), (x, y) or (x, y, sample_weight); got a "
                    f"{type(validation).__name__} of {len(validation)}."
                )
            parts = keras.utils.unpack_x_y_sample_weight(validation)
            bound["validation_data"] = self._checked(*parts)
        return super().fit(**bound)

    def _check_arguments(self, bound: dict[str, Any]) -> None:
        names = ("x", "y", "sample_weight")
        bound.update(zip(names, self._checked(*map(bound.get, names)), strict=True))

    def evaluate(self, x: Any = None, y: Any = None, *args, **kwargs) -> Any:
        """Evaluates the model, like `keras.Model.evaluate`; targets `y` are ignored.

        Raises:
          ValueError: if x does not fit the model, in shape or in values.
        """
        bound = _bound(super().evaluate, x, y, *args, **kwargs)
        # Inside `fit`, Keras reuses validation data that were checked before.
        if not bound.get("kwargs", {}).get("_use_cached_eval_dataset"):
            self._check_arguments(bound)
        bound.update(bound.pop("kwargs", {}))
        return super().evaluate(**bound)

    def predict(self, x: Any, *args, **kwargs) -> np.ndarray:
        """Returns the reconstructions, like `keras.Model.predict`; errors as for `fit`."""
        return super().predict(self._checked(x, None, None)[0], *args, **kwargs)

    def train_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, *args, **kwargs
    ) -> Any:
        """Trains on one batch, like `keras.Model.train_on_batch`; errors as for `fit`."""
        self.check_has_optimizer()
        return super().train_on_batch(*self._checked(x, y, sample_weight), *args, **kwargs)

    def test_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, *args, **kwargs
    ) -> Any:
        """Evaluates one batch, like `keras.Model.test_on_batch`; errors as for `fit`."""
        return super().test_on_batch(*self._checked(x, y, sample_weight), *args, **kwargs)

    def predict_on_batch(self, x: Any) -> np.ndarray:
        """Returns the reconstructions of one batch; errors as for `fit`."""
        return super().predict_on_batch(checked_examples(self, x))


def _warn_of_monitors(callbacks: Any) -> None:
    for callback in keras.tree.flatten(getattr(callbacks, "callbacks", callbacks)):
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor.removeprefix("val_") == "kl":
            warnings.warn(
                f"`{type(callback).__name__}` monitors `{monitor}`, which is not a measure of "
                "success: it rises as the model learns to use its latents. Monitor `val_loss`.",
                stacklevel=3,
            )


def _bound(function: Any, *args, **kwargs) -> dict[str, Any]:
    """Returns the arguments by name."""
    return dict(inspect.signature(function).bind(*args, **kwargs).arguments)

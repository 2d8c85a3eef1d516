"""The data of `SequenceVAE`: series with missing values and unequal lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability.python.internal import prefer_static as ps
from tensorflow_probability.python.internal import tensorshape_util


class Parts(NamedTuple):
    """The data as given: an array, or the entries of a dictionary."""

    x: Any
    length: Any = None
    mask: Any = None

    @classmethod
    def of(cls, data: Any) -> Parts:
        """Unpacks data; raises `ValueError` if a key is missing or unknown."""
        if not isinstance(data, Mapping):
            return cls(data)
        if not {"x"} <= set(data) <= set(cls._fields):
            raise ValueError(
                f"Data in a dictionary must have the key 'x', and may have 'length' and 'mask'; "
                f"got {list(data)}."
            )
        return cls(**data)

    def given(self) -> dict[str, Any]:
        """Returns the entries that are present, by name."""
        parts = self._asdict().items()
        return {name: part for name, part in parts if name == "x" or part is not None}


class Series(NamedTuple):
    """A batch of series in a graph."""

    values: tf.Tensor  # [batch, num_timesteps, features], 0 where nothing was observed
    observed: tf.Tensor  # boolean, the same shape
    valid: tf.Tensor  # boolean [batch, num_timesteps], false past the end of a series
    length: tf.Tensor | None  # int32 [batch], or `None` if all series have full length

    def sum_over_timesteps(self, terms: tf.Tensor) -> tf.Tensor:
        """Sums terms `[..., batch, channels, num_timesteps]` over channels and valid timesteps."""
        terms = tf.where(self.valid[:, tf.newaxis], terms, tf.zeros_like(terms))
        return tf.reduce_sum(terms, axis=[-2, -1])

    def last_step(self) -> tf.Tensor:
        """Returns the index of the last timestep: `[batch, 1, 1]`, or a scalar at full length."""
        if self.length is None:
            return tf.constant(self.valid.shape[1] - 1)
        return self.length[:, tf.newaxis, tf.newaxis] - 1


def check_parts(
    x: np.ndarray, length: np.ndarray | None = None, mask: np.ndarray | None = None
) -> np.ndarray:
    """Checks lengths and mask of data in memory, and returns where x was observed."""
    num_timesteps, observed = x.shape[1], ~np.isnan(x)
    if length is not None:
        if length.shape != x.shape[:1] or not np.issubdtype(length.dtype, np.integer):
            raise ValueError(
                f"`length` must hold an integer for each of {len(x)} series; got dtype "
                f"{length.dtype} and shape {length.shape}."
            )
        if len(x) and (length.min() < 1 or length.max() > num_timesteps):
            raise ValueError(
                f"`length` must be from 1 to {num_timesteps}, the number of steps; got values "
                f"from {length.min()} to {length.max()}."
            )
        observed &= (np.arange(num_timesteps) < length[:, np.newaxis])[..., np.newaxis]
    if mask is not None:
        observed &= _mask_of_values(mask, x.shape)
    return observed


def _mask_of_values(mask: Any, shape: Any) -> Any:
    """Returns the mask with an axis of features; raises `ValueError` if it does not fit `shape`."""
    x, given = tf.TensorShape(shape), tf.TensorShape(mask.shape)
    allowed = (x, x[:2], x[:2].concatenate([1]))
    fits = given.rank is not None and any(given.is_compatible_with(each) for each in allowed)
    if mask.dtype != bool or not fits:
        raise ValueError(
            f"`mask` must hold booleans, true where x was observed, of shape {x[:2]} or {x}; got "
            f"dtype {getattr(mask.dtype, 'name', mask.dtype)} and shape {given}."
        )
    return mask if given.rank == 3 else mask[..., np.newaxis]


def unpacked(parts: Parts, data_shape: Any, dtype: tf.DType) -> Series:
    """Returns the batch as tensors of all timesteps.

    Raises:
      ValueError: if the lengths or the mask have an unfit shape.
    """
    num_timesteps, num_features = data_shape
    x = tf.ensure_shape(tf.cast(parts.x, dtype), [None, None, num_features])
    x = _with_all_timesteps(x, num_timesteps, np.nan)
    length, mask = parts.length, parts.mask
    if length is None:
        valid = tf.ones(ps.shape(x)[:2], tf.bool)
    else:
        length = tf.cast(length, tf.int32)
        if tensorshape_util.rank(length.shape) not in (None, 1):
            raise ValueError(f"`length` must be of shape [N]; got {length.shape}.")
        length = tf.ensure_shape(length, [None])
        valid = tf.range(num_timesteps) < length[:, tf.newaxis]
    observed = valid[..., tf.newaxis] & ~tf.math.is_nan(x)
    if mask is not None:
        mask = _mask_of_values(tf.convert_to_tensor(mask), x.shape)
        observed &= _with_all_timesteps(mask, num_timesteps, False)
    # Replace NaN before any computation, or the gradients would be NaN too.
    return Series(tf.where(observed, x, tf.zeros_like(x)), observed, valid, length)


def _with_all_timesteps(x: tf.Tensor, num_timesteps: int, value: float | bool) -> tf.Tensor:
    """Pads `x`, `[batch, timesteps, ...]`, to all timesteps with the value.

    The batches of `tf.data.Dataset.padded_batch` end with their longest series.
    """
    if x.shape[1] is not None:
        return x
    lacking = num_timesteps - ps.shape(x)[1]
    check = tf.debugging.assert_non_negative(
        lacking, message=f"A batch has series of more than {num_timesteps} steps."
    )
    with tf.control_dependencies([check]):
        x = tf.pad(x, [[0, 0], [0, lacking], [0, 0]], constant_values=value)
    return tf.ensure_shape(x, [None, num_timesteps, None])


def interpolated(series: Series) -> tf.Tensor:
    """Interpolates missing values linearly between observed ones.

    The first and last observed values extend outwards. Past the end of a series, and where nothing
    was observed, the result is 0.
    """
    steps = tf.range(ps.shape(series.values)[1])[tf.newaxis, :, tf.newaxis]
    last = ps.shape(series.values)[1] - 1
    # The nearest observed timestep at or before each timestep, and at or after it, if any.
    before = tfp.math.scan_associative(tf.maximum, tf.where(series.observed, steps, -1), axis=1)
    after = last - tf.reverse(
        tfp.math.scan_associative(
            tf.maximum, tf.reverse(tf.where(series.observed, last - steps, -1), [1]), axis=1
        ),
        [1],
    )
    before, after = tf.where(before < 0, after, before), tf.where(after > last, before, after)
    before, after = (tf.clip_by_value(index, 0, last) for index in (before, after))

    def at(index: tf.Tensor) -> tf.Tensor:
        by_feature = [tf.linalg.matrix_transpose(tensor) for tensor in (series.values, index)]
        return tf.linalg.matrix_transpose(tf.gather(*by_feature, batch_dims=2))

    span = tf.maximum(after - before, 1)
    weight = tf.cast(steps - before, series.values.dtype) / tf.cast(span, series.values.dtype)
    low = at(before)
    return tf.where(series.valid[..., tf.newaxis], low + weight * (at(after) - low), 0)

"""Checks of constructor arguments that go beyond single values."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_probability.python.internal import dtype_util, tensor_util, tensorshape_util
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1.linear_operators.markov_cholesky import LinearOperatorMarkovCholesky

__all__ = ["check_loc", "check_times", "num_coordinates"]


def check_times(times: Any) -> None:
    """Raises `ValueError` if known times decrease, or are equal only because of rounding."""
    values = None if tensor_util.is_ref(times) else tf.get_static_value(times)
    if values is None or values.ndim == 0 or values.shape[-1] < 2:
        return
    before, after = values[..., :-1], values[..., 1:]
    wrong = ~(after >= before)
    message = "must not decrease along the last axis", "Sort the observations by time."
    if not np.any(wrong):
        # Repeated times may be intended, unless the spacing of floats is close to the mean step.
        wide = values.astype(np.float64)
        step = np.mean(np.diff(wide, axis=-1), axis=-1, keepdims=True)
        epsilon = float(np.spacing(np.ones([], values.dtype)))
        spacing = epsilon * np.max(np.abs(wide), axis=-1, keepdims=True)
        wrong = (after == before) & (4.0 * spacing > step)
        message = "are equal after rounding", "Subtract the first, or use float64."
    if np.any(wrong):
        index = tuple(np.argwhere(wrong)[0])
        raise ValueError(
            f"`times` {message[0]}; got {after[index]} after {before[index]} at position "
            f"{index[-1] + 1}, in {dtype_util.name(values.dtype)}. {message[1]}"
        )


def num_coordinates(loc: Any) -> Any:
    """Returns the number of coordinates of `loc`, as a Python integer if it is known statically.

    Raises:
      ValueError: if `loc` is a scalar or `None`.
    """
    if loc is None or tensorshape_util.rank(loc.shape) == 0:
        raise ValueError(
            f"`loc` must have at least one dimension, because its last one sets the number of "
            f"coordinates: for d equal ones write `loc=tf.fill([d], value)`; got {loc!r}."
        )
    size = tf.compat.dimension_value(loc.shape[-1]) if tensorshape_util.rank(loc.shape) else None
    return ps.shape(loc)[-1] if size is None else size


def check_loc(loc: Any, sized: str, parameter: Any, scale: LinearOperatorMarkovCholesky) -> None:
    """Raises `ValueError` unless `loc` has as many coordinates as the parameter `sized`, or 1."""
    size: Any = [] if loc is None else tf.TensorShape(loc.shape)[-1:]
    if size in ([], [1]) or size.is_compatible_with(scale.shape[-1:]):
        return
    shape = parameter.shape
    message = (
        f"`loc` must have {shape[-1]} coordinates along its last axis, like `{sized}`, or 1 for "
        f"all of them; got shapes {loc.shape} and {shape}."
    )
    if (tensorshape_util.rank(shape) or 0) > 1 and shape[-1] == 1:
        message += (
            f" The last axis of `{sized}` runs over the coordinates: remove an axis of features, "
            f"as in the index points of a Gaussian process, with `{sized}[..., 0]`."
        )
    raise ValueError(message)

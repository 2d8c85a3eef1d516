"""Whether encoders and decoders take and give what a model needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

__all__ = ["input_shapes", "last_activation", "one_output"]

_CHANGE_SHAPES_ONLY = (
    keras.layers.InputLayer
    | keras.layers.Reshape
    | keras.layers.Flatten
    | keras.layers.Permute
    | keras.layers.Cropping1D
    | keras.layers.Cropping2D
    | keras.layers.Cropping3D
)


def input_shapes(network: keras.Model) -> list[tuple[int | None, ...]]:
    """The shape of each input of a network; none for one that does not say what it takes."""
    shape = getattr(network, "input_shape", None) if network.built else None
    if shape is None:
        return []
    if isinstance(shape, Mapping):
        return list(shape.values())
    return list(shape) if all(isinstance(part, list | tuple) for part in shape) else [shape]


def one_output(name: str, outputs: Any, advice: str) -> tuple[int | None, ...]:
    """The shape of what a network gives for symbolic inputs.

    Args:
      name: of the network.
      outputs: what it gives.
      advice: what to do where that is not one tensor.

    Raises:
      ValueError: if it is not.
    """
    if not isinstance(outputs, keras.KerasTensor):
        number = f" of {len(outputs)}" if hasattr(outputs, "__len__") else ""
        raise ValueError(
            f"The {name} must give one tensor; it gives a {type(outputs).__name__}{number}. "
            f"{advice}"
        )
    return outputs.shape


def last_activation(layer: Any) -> str:
    """The name of what a network applies last, shapes aside, such as `"dense"` or `"sigmoid"`."""
    for last in reversed(getattr(layer, "operations", None) or getattr(layer, "layers", [])):
        if not isinstance(last, _CHANGE_SHAPES_ONLY):
            return last_activation(last)
    function = getattr(layer, "activation", layer)
    name = getattr(function, "__name__", type(function).__name__)
    return name.lower().replace("_", "")

"""Checks of the inputs and outputs of encoders and decoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import layers

_CHANGE_SHAPES_ONLY = (
    *(layers.InputLayer, layers.Reshape, layers.Flatten, layers.Permute),
    *(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D),
)


def input_shapes(network: keras.Model) -> list[tuple[int | None, ...]]:
    """Returns the shape of each input of a network; an empty list if they are not known."""
    shape = getattr(network, "input_shape", None) if network.built else None
    if shape is None:
        return []
    if isinstance(shape, Mapping):
        return list(shape.values())
    return list(shape) if all(isinstance(part, list | tuple) for part in shape) else [shape]


def takes(network: keras.Model, shape: tuple[int, ...]) -> bool:
    """Whether a network takes examples of this shape; true if its inputs are not known."""
    return all(
        len(given) == len(shape) + 1
        and all(n in (None, m) for n, m in zip(given[1:], shape, strict=True))
        for given in input_shapes(network)
    )


def one_output(
    name: str, outputs: Any, shape: tuple[int | str, ...], advice: str
) -> tuple[int | None, ...]:
    """Returns the shape of a network's symbolic output; raises `ValueError` if it is not `shape`.

    `shape` is that of one example; a word in it stands for any number. The error ends in `advice`.
    """
    if isinstance(outputs, keras.KerasTensor):
        given: Any = tuple(outputs.shape)
        if len(given) == len(shape) + 1 and all(
            n is not None if isinstance(m, str) else n == m
            for n, m in zip(given[1:], shape, strict=True)
        ):
            return given
        description = str(given)
    else:
        number = f" of {len(outputs)}" if hasattr(outputs, "__len__") else ""
        description = f"a {type(outputs).__name__}{number}"
    wanted = ", ".join(map(str, ("batch", *shape)))
    raise ValueError(
        f"The {name} must output one tensor of shape ({wanted}); it outputs {description}. {advice}"
    )


def last_activation(layer: Any) -> str:
    """Returns the name of a network's last activation or layer, such as `"sigmoid"` or `"dense"`.

    Layers that only change shapes are skipped.
    """
    for last in reversed(getattr(layer, "operations", None) or getattr(layer, "layers", [])):
        if not isinstance(last, _CHANGE_SHAPES_ONLY):
            return last_activation(last)
    function = getattr(layer, "activation", layer)
    name = getattr(function, "__name__", type(function).__name__)
    return name.lower().replace("_", "")

"""Checks of arguments, used throughout the package."""

from __future__ import annotations

import numbers
import reprlib
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def checked_count(name: str, value: Any, at_least: int, wanted: str | None = None) -> int:
    """Returns an integer argument, or raises `ValueError`; `wanted` describes it in the message."""
    whole = isinstance(value, numbers.Real) and value % 1 == 0
    if not whole or value < at_least:
        wanted = wanted or f"an integer of at least {at_least}"
        raise ValueError(f"`{name}` must be {wanted}; got {reprlib.repr(value)}.")
    return int(value)


def named(kind: str, name: Any, table: Mapping[str, T]) -> T:
    """Returns the entry of that name, or raises `ValueError` with the known names."""
    if name not in table:
        raise ValueError(f"Unknown {kind} {name!r}; expected one of {list(table)}.")
    return table[name]

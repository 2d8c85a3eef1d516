"""Definitions for type checkers only."""

from typing import TYPE_CHECKING, Any

__all__ = ["MixinBase"]

# The base of a mixin: to type checkers it has whatever the class has that it is mixed into.
if TYPE_CHECKING:
    MixinBase = Any
else:
    MixinBase = object

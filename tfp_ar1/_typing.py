"""Definitions for type checkers only."""

from typing import TYPE_CHECKING, Any

__all__ = ["MixinBase"]

# Base class of mixins. To type checkers it has every attribute, such as those of the final class.
if TYPE_CHECKING:
    MixinBase = Any
else:
    MixinBase = object

"""What the values of options may be, where click has no type for it."""

import math
from typing import Any

import click


class Finite(click.FloatRange):
    """A range without NaN, which click's ranges let through, and without infinity."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:  # noqa: D102
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


class Counts(click.ParamType):
    """Positive whole numbers with commas between."""

    name = "integers"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:  # noqa: D102
        try:
            numbers = tuple(int(part) for part in value.split(","))
        except ValueError:
            numbers = (0,)
        if min(numbers) < 1:
            self.fail(
                f"{value!r} is not a list of positive whole numbers like 400 or 400,200.",
                param,
                ctx,
            )
        return numbers

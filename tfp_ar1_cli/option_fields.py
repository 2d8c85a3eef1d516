"""Options as fields of dataclasses, and types of values that click lacks."""

import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Callable
from typing import Any

import click

from tfp_ar1_cli import backend
from tfp_ar1_cli.names import MODELS

COUNT = click.IntRange(min=1)
SEED = click.IntRange(0, 2**31 - 1)
PATH = click.Path(path_type=pathlib.Path)
OTHER_RUN = click.Path(file_okay=False, resolve_path=True)
FOLDER = click.Path(exists=True, file_okay=False, resolve_path=True)
_METAVARS = {click.IntRange: "N", click.FloatRange: "X", click.Path: "FOLDER"}


class Finite(click.FloatRange):
    """A range that refuses infinity, and NaN, which click's ranges let through."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:  # noqa: D102
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


class _List(click.ParamType):
    """Numbers, separated by commas."""

    name = "numbers"
    type_of_each: type = float
    described: str

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self.type_of_each(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if not numbers or not self.allows(numbers):
            self.fail(f"{value!r} is not a list of {self.described}.", param, ctx)
        return numbers

    def allows(self, numbers: tuple) -> bool:
        """Whether these may be given."""
        raise NotImplementedError


class Counts(_List):
    """Positive whole numbers, separated by commas."""

    name, type_of_each = "integers", int
    described = "positive whole numbers like 400 or 400,200"

    def allows(self, numbers: tuple[int, ...]) -> bool:  # noqa: D102
        return min(numbers) >= 1


class Levels(_List):
    """Increasing numbers between 0 and 1, separated by commas."""

    described = "increasing numbers between 0 and 1 like 0.05,0.95"

    def allows(self, numbers: tuple[float, ...]) -> bool:  # noqa: D102
        return all(0 < x < 1 for x in numbers) and list(numbers) == sorted(set(numbers))


class Correlations(_List):
    """Numbers between -1 and 1, separated by commas."""

    described = "numbers between -1 and 1 like 0.9,0.99,0.999"

    def allows(self, numbers: tuple[float, ...]) -> bool:  # noqa: D102
        return all(-1 < x < 1 for x in numbers)


class Size(click.ParamType):
    """Height and width, or one number for both."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:  # noqa: D102
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([1-9]\d{0,4})(?:[xX×]([1-9]\d{0,4}))?", value)
        if match is None:
            self.fail(
                f"{value!r} is not a size in pixels, HEIGHTxWIDTH like 48x64, or 64 for a square.",
                param,
                ctx,
            )
        return int(match[1]), int(match[2] or match[1])


def option(
    kind: Any,
    help_text: str,
    default: Any = None,
    *names: str,
    later: bool | str = False,
    **click_args,
) -> Any:
    """Returns a dataclass field that is also a command-line option.

    Args:
      kind: The click type.
      help_text: The text for `--help`.
      default: The default; or a dictionary with the default of each model that has the option.
      *names: Names of the option besides that of the field.
      later: Whether runs of the first version lack the option, or the model whose runs lack it.
        Those runs did what the default says.
      **click_args: Further arguments of `click.option`.
    """
    depends = isinstance(default, dict)
    if depends and "show_default" not in click_args:
        values = [",".join(map(str, d)) if type(d) is tuple else d for d in default.values()]
        click_args["show_default"] = "; for sequences ".join(map(str, values))
    click_args = {
        "default": None if depends else default,
        "metavar": next((m for t, m in _METAVARS.items() if isinstance(kind, t)), None),
        "type": kind,
        "help": help_text,
        **click_args,
    }
    if click_args.get("required"):
        del click_args["default"]
    defaults = default if depends else dict.fromkeys(MODELS, default)
    metadata = {"names": names, "click": click_args, "later": later, "defaults": defaults}
    return dataclasses.field(default=click_args.get("default"), metadata=metadata)


def run_argument() -> Any:
    """The argument RUN."""
    return dataclasses.field(metadata={"click": {"metavar": "RUN", "type": PATH}})


def takes(options: type) -> Callable[[Callable], Callable]:
    """Turns a function of an options object, and of further options, into a click callback."""

    def decorate(function: Callable) -> Callable:
        fields = dataclasses.fields(options)

        @functools.wraps(function)
        def call(*args: Any, **values: Any) -> Any:
            backend.check()
            mine = {field.name: values.pop(field.name) for field in fields}
            return function(*args, options=options(**mine), **values)

        for field in reversed(fields):
            name, metadata = field.name, field.metadata
            if "names" in metadata:
                flag = f"--{name.replace('_', '-')}"
                decorator = click.option(*metadata["names"], flag, name, **metadata["click"])
            else:
                decorator = click.argument(name, **metadata["click"])
            call = decorator(call)
        return call

    return decorate

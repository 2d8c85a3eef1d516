"""The results: lines of JSON, one for each data set, variant and seed."""

import json
import pathlib
from typing import Any

# The settings that identify a run; every line has all of them.
SETTINGS = ("dataset", "variant", "seed", "epochs")


def key_of(record: dict[str, Any]) -> tuple[Any, ...]:
    """The settings of a record."""
    return tuple(record[key] for key in SETTINGS)


def read(file: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a file of results; none if there is no such file."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]

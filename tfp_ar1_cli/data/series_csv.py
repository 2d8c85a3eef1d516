"""Series in .csv files.

The csv module reads them, not pandas, which cannot tell a shorter row from one that ends in empty
cells, does not say where a cell is that is no number, and rounds some numbers in another way.
"""

import codecs
import csv
import itertools
import math
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

import numpy as np

from tfp_ar1_cli.data.files import available_memory, check_memory, check_regular
from tfp_ar1_cli.errors import UserError

ADVICE = "give fewer series, or shorter ones"
_HEADER = "series,step,NAME,..."
# More missing values than this for each row of a file are a mistake in the numbers of the steps.
_MOST_MISSING = 1000
# How missing values are written by R, pandas, spreadsheets and databases.
_MISSING = ("", "na", "n/a", "#n/a", "<na>", "nan", "-nan", "null", "none")
# Of memory: for each character of a row, and for each value of the series.
_BYTES_PER_CHARACTER, _BYTES_PER_VALUE = 40, 32


def read_csv(path: pathlib.Path, notes: list[str]) -> dict[str, Any]:
    """Reads a file of either form (see `series.load`): `x`, `length`, and `names` of the channels.

    A `UserError` at the first row that is not as it must be.
    """
    check_regular(path)
    with path.open("rb") as file:
        utf16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    try:
        with path.open(newline="", encoding="utf-16" if utf16 else "utf-8-sig") as file:
            reader = csv.reader(_lines(file, path))
            # With the number of the line, as an editor counts; without those that are blank.
            rows = (
                (reader.line_num, row) for row in reader if len(row) > 1 or "".join(row).strip()
            )
            first = next(rows, None)
            if first is None:
                raise UserError(
                    f"{path}: is empty; expected a row for each series, a column for each step, or "
                    f"the header {_HEADER}."
                )
            if [cell.strip().lower() for cell in first[1][:2]] == ["series", "step"]:
                return _of_steps(path, first[1], rows)
            return _of_series(path, itertools.chain([first], rows), notes)
    except (UnicodeError, csv.Error) as error:
        raise UserError(
            f"{path}: cannot be read as .csv: {error}; unpack it if it is compressed, or save it "
            "as text in UTF-8."
        ) from error


def _lines(file: TextIO, path: pathlib.Path) -> Iterator[str]:
    """The lines of a file, none of which takes more memory than there is."""
    most = available_memory() // _BYTES_PER_CHARACTER
    while line := file.readline(most + 1):
        if len(line) > most:
            raise UserError(f"{path}: a row of more than {most} characters is too long; {ADVICE}.")
        yield line


def _of_series(
    path: pathlib.Path, rows: Iterable[tuple[int, list[str]]], notes: list[str]
) -> dict[str, Any]:
    """The series of a file that has a row for each, and no header."""
    numbers: list[np.ndarray] = []
    first_row: list[str] = []
    first_column: list[str] = []
    empty_ends: list[int] = []
    fraction_below = fraction_beside = False
    for number, row in rows:
        where = f"{path}: row {number}, column"
        numbers.append(np.array([_as_number(x, f"{where} {j}") for j, x in enumerate(row, 1)]))
        cells = [cell.strip() for cell in row]
        empty_ends.append(len(row) - max((j for j, x in enumerate(cells, 1) if x), default=0))
        fraction_below |= bool(first_row) and "." in "".join(cells)
        fraction_beside |= "." in "".join(cells[1:])
        first_row = first_row or cells
        first_column.append(cells[0])
    # The numbers of columns and of rows that tables are written with.
    counts, sure = None, False
    if not first_row[0] and _count(first_row[1:], 1) and _count(first_column[1:], 1):
        counts, sure = "row 1 and column 1 count", True
    elif len(first_column) > 1 and _count(first_row, 3):
        counts, sure = "row 1 counts", fraction_below
    elif len(first_row) > 1 and _count(first_column, 3):
        counts, sure = "column 1 counts", fraction_beside
    if sure:
        raise UserError(
            f"{path}: {counts} the columns or rows of a table, and would be read as values; write "
            "it without them, in pandas by to_csv(header=False, index=False). If they are values, "
            "write them as 0.0, 1.0, ..."
        )
    if counts:
        notes.append(f"In {path}, {counts} from {first_row[0]} on, which is read as values.")
    if end := min(empty_ends):
        notes.append(f"Each row of {path} ends in {end} empty cells, which are not read.")
        numbers = [row[:-end] for row in numbers]
    length = np.array([len(row) for row in numbers])
    check_memory(
        path,
        len(length) * int(length.max()) * _BYTES_PER_VALUE,
        f"the longest of {len(length)} rows has {length.max()} cells; look whether that is right",
    )
    x = np.full((len(length), length.max()), np.nan)
    for i, values in enumerate(numbers):
        x[i, : len(values)] = values
    return {"x": x, "length": length}


def _count(cells: list[str], at_least: int) -> bool:
    """Whether cells are 0, 1, 2, ... or 1, 2, 3, ..."""
    if len(cells) < at_least or cells[0] not in ("0", "1"):
        return False
    return cells == [str(int(cells[0]) + i) for i in range(len(cells))]


def _of_steps(
    path: pathlib.Path, header: list[str], rows: Iterable[tuple[int, list[str]]]
) -> dict[str, Any]:
    """The series of a file that has a row for each step of each series, below its header."""
    names = [cell.strip() for cell in header[2:]]
    while names and not names[-1]:  # Commas at the end of each row.
        names.pop()
    if not names or not all(names) or len(set(names)) < len(names):
        raise UserError(
            f"{path}: row 1 must be the header {_HEADER}, with a name for each channel, all "
            f"different; got {','.join(header)}."
        )
    num_cells = 2 + len(names)
    series: dict[str, dict[int, list[float]]] = {}
    for number, row in rows:
        where = f"{path}: row {number}"
        if len(row) < num_cells or any(cell.strip() for cell in row[num_cells:]):
            raise UserError(
                f"{where}: has {len(row)} cells, but the header has {num_cells}; leave cells "
                "empty where values are missing."
            )
        try:
            step = int(row[1] if "_" not in row[1] else "")
        except ValueError as error:
            raise UserError(
                f"{where}: step {row[1]!r} is not a whole number; {_hint(row[1])}number the steps "
                "0, 1, 2, ..."
            ) from error
        steps = series.setdefault(row[0].strip(), {})
        if step in steps:
            raise UserError(f"{where}: repeats step {step} of series {row[0].strip()!r}.")
        steps[step] = [
            _as_number(cell, f"{where}, column {j}") for j, cell in enumerate(row[2:num_cells], 3)
        ]
    if not series:
        raise UserError(f"{path}: has a header and no rows.")
    first = {name: min(steps) for name, steps in series.items()}
    length = np.array([max(steps) - first[name] + 1 for name, steps in series.items()])
    num_rows = sum(map(len, series.values()))
    values = len(series) * int(length.max()) * len(names)
    if values > _MOST_MISSING * num_rows * len(names):
        raise UserError(
            f"{path}: the longest series goes over {length.max()} steps, nearly all of which are "
            "missing; steps must count the steps (0, 1, 2, ...), not seconds or dates."
        )
    factor = math.gcd(*(step - first[name] for name, steps in series.items() for step in steps))
    if factor > 1:
        raise UserError(
            f"{path}: the steps of each series lie {factor} apart, or a multiple of it, so that "
            f"{1 - num_rows / int(length.sum()):.0%} of them would be missing; divide their "
            f"numbers by {factor}. If they are missing indeed, add a row for one of them, with "
            "empty cells."
        )
    check_memory(path, values * _BYTES_PER_VALUE, ADVICE)
    x = np.full((len(series), length.max(), len(names)), np.nan)
    for i, (name, steps) in enumerate(series.items()):
        x[i, [step - first[name] for step in steps]] = list(steps.values())
    return {"x": x, "length": length, "names": names}


def _as_number(cell: str, where: str) -> float:
    text = cell.strip()
    if text.lower() in _MISSING:
        return np.nan
    try:
        # Python's own notation, 1_000, is that of no table.
        return float(text if "_" not in text else "")
    except ValueError as error:
        raise UserError(
            f"{where}: {cell!r} is not a number; {_hint(text)}expected a row for each series, "
            f"without a header, or a row for each step under the header {_HEADER}, and empty cells "
            "where values are missing."
        ) from error


def _hint(text: str) -> str:
    """What is wrong with a cell that is no number, as the beginning of a sentence, if known."""
    if re.search(r"[;\t]|^[-+]?\d+,\d+$", text):
        return "cells must be separated by commas, and decimals by points; "
    if re.match(r"\d{1,4}[-/.]\d{1,2}[-/.]\d|\d{1,2}:\d|(date|time)", text.lower()):
        return "dates and times are not read, only the numbers of the steps; "
    return ""

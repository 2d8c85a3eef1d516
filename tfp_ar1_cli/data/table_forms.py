"""Finds the series, times, features and steps of a table."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfp_ar1_cli.data import times
from tfp_ar1_cli.data.files import check_memory
from tfp_ar1_cli.data.series_table import Columns, SeriesRows, SeriesTable, StepRows
from tfp_ar1_cli.data.tables import ADVICE, Cells, has_decimal_comma, is_number
from tfp_ar1_cli.errors import UserError
from tfp_ar1_cli.progress import counted

if TYPE_CHECKING:
    import pandas as pd

EXPECTED = (
    "a row for each step, under a header such as date,value or series,date,NAME,..., or a row for "
    "each series without a header"
)
_SERIES = ("series", "unique_id", "item_id", "series_id", "id", "item", "sensor")
_TIMES = (
    *("step", "time", "date", "datetime", "timestamp", "ds", "t", "index", "period"),
    *("year", "quarter", "month", "week", "day", "hour"),
)
# Columns called t0, t1, ... are steps; x1, x2, ... are features.
_STEP_NAME = re.compile(r"(t|step|time|timestep|lag|day|week|month|year)?[ _]?(\d+)", re.IGNORECASE)
# Memory for each value of the series.
_BYTES_PER_VALUE = 64


def of_cells(path: Any, cells: Cells, columns: str, labelled: bool = False) -> SeriesTable:
    """Reads the series from the cells of a text.

    Args:
      path: The file, for messages.
      cells: Its cells.
      columns: `"features"` or `"series"`: the role of columns of values, if rows are steps.
      labelled: Whether column 1 may hold class labels, as in UCR's files without a header.

    Raises:
      UserError: If a cell is not a number, or the times are irregular.
    """
    frame = cells.frame
    first = frame.iloc[0].tolist()[: int(cells.length[0])]
    if not _is_header(first):
        notes: list[str] = []
        kinds = _kinds(frame)
        if "date" in kinds and len(first) > 1:
            frame = frame.set_axis(_default_names(kinds), axis=1)
            return of_frame(path, frame, columns)
        if len(first) == 1 and len(frame) > 1 and max(cells.length) == 1:
            return of_frame(path, frame.set_axis(["value"], axis=1), columns)
        _check_counts(path, frame, notes)
        if labelled and all(is_number(x) and float(x).is_integer() for x in frame[0]):
            notes.append("Column 1 is read as class labels, which are not used.")
            frame, kinds = frame.iloc[:, 1:], kinds[1:]
            cells = dataclasses.replace(cells, length=cells.length - 1)
        return _series_rows(path, frame, cells.length, None, kinds[0] == "text", notes)
    names, body = first, frame.iloc[1:]
    if body.empty:
        raise UserError(f"{path}: has a header and no rows.")
    while names and not names[-1] and (body[len(names) - 1] == "").all():
        names.pop()
    for line, number in zip(body.index, cells.length[1:], strict=True):
        if number > len(names) and (
            body.loc[line].tolist()[len(names) :] != [""] * (frame.shape[1] - len(names))
        ):
            raise UserError(
                f"{path}: row {line}: has {number} cells, but the header has {len(names)}; leave "
                "cells empty where values are missing."
            )
    body = body.iloc[:, : len(names)]
    offset = 1 if names[0] == "" or not _STEP_NAME.fullmatch(names[0]) else 0
    steps = _step_labels(names[offset:])
    if steps and len(names) - offset > 1:
        text = offset == 1
        return _series_rows(path, body, cells.length[1:], names, text, [])
    if names[0] == "" and _counts(body[0].tolist(), 1):
        names, body = names[1:], body.iloc[:, 1:]  # The index of a data frame.
    return of_frame(path, body.set_axis(_checked_names(path, names), axis=1), columns)


def _checked_names(path: Any, names: list[str]) -> list[str]:
    # The first may be the unnamed index of a data frame.
    if not all(names[1:]) or len(set(names)) < len(names):
        raise UserError(
            f"{path}: row 1 must be a header with a name for each column, all different; got "
            f"{','.join(names)}."
        )
    return names


def _is_name(cell: str) -> bool:
    """Whether a cell can only be a name: neither a number nor a date."""
    return not (is_number(cell) or has_decimal_comma(cell) or times.read_dates([cell]))


def _is_header(first: list[str]) -> bool:
    """Whether the first row names the columns."""
    rest = [cell for cell in first[1:] if cell]
    if any(_is_name(cell) for cell in rest):
        return True
    if len(first) > 2 and _step_labels(first[1:]):
        # Labels of steps, and in the corner nothing or the name of the column of series.
        return not first[0] or _is_name(first[0])
    return len(first) == 1 and bool(first[0]) and _is_name(first[0])


def _step_labels(names: Sequence[str]) -> bool:
    """Whether names are labels of steps: consecutive numbers with one prefix, or dates."""
    found = [_STEP_NAME.fullmatch(name) for name in names]
    if names and all(found):
        numbers = [int(m[2]) for m in found if m]
        alike = len({(m[1] or "").lower() for m in found if m}) == 1
        return alike and numbers == list(range(numbers[0], numbers[0] + len(names)))
    if len(names) < 2 or any(map(is_number, names)) or not all(names):
        return False
    dates = times.read_dates(list(names))
    return dates is not None and bool(dates.values.notna().all())


def _counts(cells: list[str], at_least: int) -> bool:
    """Whether cells are 0, 1, 2, ... or 1, 2, 3, ..."""
    if len(cells) < at_least or cells[0] not in ("0", "1"):
        return False
    return cells == [str(int(cells[0]) + i) for i in range(len(cells))]


def _check_counts(path: Any, frame: pd.DataFrame, notes: list[str]) -> None:
    """Refuses row or column numbers that were written with a table, or notes them if in doubt."""
    first_row, first_column = frame.iloc[0].tolist(), frame[0].tolist()
    counts, sure = None, False
    if len(first_column) > 1 and _counts(first_row, 3):
        counts = "row 1 counts"
        sure = any("." in cell for cell in frame.iloc[1:].to_numpy().ravel())
    elif len(first_row) > 1 and _counts(first_column, 3):
        counts = "column 1 counts"
        sure = any("." in cell for cell in frame.iloc[:, 1:].to_numpy().ravel())
    if sure:
        raise UserError(
            f"{path}: {counts} the columns or rows of a table, and would be read as values; write "
            "it without them, in pandas with to_csv(header=False, index=False), or name the column "
            "in a header. If they are values, write them as 0.0, 1.0, ..."
        )
    if counts:
        notes.append(f"In {path}, {counts} from {first_row[0]} on, which is read as values.")


def _default_names(kinds: Sequence[str]) -> list[str]:
    """Names for the columns of a table without a header."""
    names, number = [], 0
    for kind in kinds:
        number += kind == "number"
        names.append({"date": "date", "text": "series"}.get(kind, f"value {number}"))
    return ["value" if name == "value 1" and number == 1 else name for name in names]


def _kinds(frame: pd.DataFrame) -> list[str]:
    """The kind of most cells of each column: `number` (also if empty), `date` or `text`."""
    kinds = []
    for position in range(frame.shape[1]):
        column = frame.iloc[:, position]
        if column.dtype.kind in "biuf":
            kinds.append("number")
        elif column.dtype.kind == "M" or str(column.dtype).startswith("period"):
            kinds.append("date")
        else:
            sample = column.iloc[:: max(1, len(column) // 1000)].dropna()
            cells = [str(cell) for cell in sample if cell != ""]
            numbers = sum(map(is_number, cells))
            dates = None if numbers or not cells else times.read_dates(cells[:50])
            most = numbers >= max(1, len(cells) / 2) or not cells
            kinds.append("date" if dates else "number" if most else "text")
    return kinds


def of_frame(path: Any, frame: pd.DataFrame, columns: str = "features") -> SeriesTable:
    """Reads the series of a table with named columns and a row for each step.

    Args:
      path: The source of the table, for messages.
      frame: The table.
      columns: As in `of_cells`.

    Raises:
      UserError: If a cell is not a number, a time repeats, or the times are irregular.
    """
    notes: list[str] = []
    frame = _without_index(frame)
    names = [str(name) for name in frame.columns]
    what = _choose(path, frame, names, notes)
    if not what.values:
        raise UserError(
            f"{path}: none of the columns {', '.join(names)} holds values; expected {EXPECTED}."
        )
    numbers = np.stack([_numbers(path, frame, column) for column in what.values], axis=-1)
    groups: dict[Any, list[int]] = {}
    keys = [""] * len(frame) if what.series is None else frame.iloc[:, what.series].tolist()
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    write_time: Callable[[Any], Any] = str
    spacing, start = None, [None] * len(groups)
    positions = [np.arange(len(rows)) for rows in groups.values()]
    order = [np.array(rows) for rows in groups.values()]
    if what.time is not None:
        when, write_time, note = _times(path, frame, what.time)
        notes += [f"In {path}, {note}."] * bool(note)
        sorted_times = []
        for index, (key, rows) in enumerate(groups.items()):
            mine = when[rows]
            place = np.argsort(mine, kind="stable")
            order[index], mine = np.array(rows)[place], mine[place]
            repeated = np.flatnonzero(mine[1:] == mine[:-1])
            if len(repeated):
                at = order[index][repeated[0] + 1]
                of = f" of series {key!r}" * (what.series is not None)
                raise UserError(
                    f"{path}: row {frame.index[at]}: repeats {names[what.time]} "
                    f"{frame.iloc[at, what.time]}{of}; {_repeats_hint(what)}"
                )
            sorted_times.append(mine)
        try:
            spacing = times.spacing_of(sorted_times)
        except times.Irregular as error:
            raise UserError(
                f"{path}: the times of column {names[what.time]} {error}. Steps must be equally "
                "spaced: resample them to a grid first, in pandas with "
                "frame.resample('1h').mean(), and leave steps without a value empty."
            ) from error
        positions = [spacing.positions(mine) for mine in sorted_times]
        start = [mine[0] for mine in sorted_times]
    length = np.array([position[-1] + 1 for position in positions])
    shape = (len(groups), int(length.max()))
    check_memory(path, math.prod(shape) * len(what.values) * _BYTES_PER_VALUE, ADVICE)
    row = np.full(shape, -1)
    for index, (position, of_step) in enumerate(zip(positions, order, strict=True)):
        row[index, position] = of_step
    x = np.where(row[..., None] >= 0, numbers[row], np.nan)
    own_names = [names[column] for column in what.values]
    as_series = columns == "series" and len(groups) == 1 and len(own_names) > 1
    ids = ["0"] if what.series is None else [str(key) for key in groups]
    layout = StepRows(frame, what, as_series, row, length, start, list(groups), spacing, write_time)
    if as_series:
        length = np.repeat(length, len(own_names))
        x = np.moveaxis(x, -1, 0).reshape(len(own_names), -1, 1)
        ids, own_names = own_names, ["value"]
    elif len(groups) == 1 and len(own_names) > 1:
        notes.append(
            f"Each of the {len(own_names)} columns of values of {path} is read as a feature of one "
            "series; with --columns series, as a series."
        )
    said = spacing.name if spacing else None
    if said == "1" and what.time is not None and names[what.time].lower() == "step":
        said = None
    return SeriesTable(x, length, own_names, ids, said, notes, layout)


def _repeats_hint(what: Columns) -> str:
    if what.series is None:
        return "if the table holds several series, add a column that names them."
    return "give each time of a series once; one column must name the series."


def _without_index(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with an index of names or times as columns; drops an index that only counts."""
    import pandas as pd

    index = frame.index
    counts = isinstance(index, pd.RangeIndex) or (index.nlevels == 1 and index.dtype.kind in "iu")
    if index.names == [None] * index.nlevels and counts:
        return frame
    names = [
        name or ("time" if i == index.nlevels - 1 else "series")
        for i, name in enumerate(index.names)
    ]
    if index.nlevels == 1 and index.dtype.kind not in "Miuf" and index.names == [None]:
        names = ["time" if str(index.dtype).startswith("period") else "series"]
    return frame.reset_index(names=names)


def _choose(path: Any, frame: pd.DataFrame, names: list[str], notes: list[str]) -> Columns:
    """Chooses the columns of series, time and values."""
    kinds, lower = _kinds(frame), [name.strip().lower() for name in names]
    rest = list(range(len(names)))

    def first(test: Callable[[int], bool]) -> int | None:
        return next((column for column in rest if test(column)), None)

    series = first(lambda c: lower[c] in _SERIES)
    if series is None:
        # Text that repeats names the series of each row.
        series = first(lambda c: kinds[c] == "text" and frame.iloc[:, c].nunique() < len(frame))
    rest = [column for column in rest if column != series]
    time = first(lambda c: kinds[c] == "date")
    if time is None:
        time = first(lambda c: lower[c] in _TIMES and kinds[c] == "number")
        if time is not None and len(rest) == 1:
            time = None  # The only column must hold values.
    rest = [column for column in rest if column != time]
    if series is None and time is not None and frame.iloc[:, time].duplicated().any():
        # Whole numbers that make times unique, such as numbers of shops or sensors.
        series = first(lambda c: _tells_series_apart(frame, c, time) and kinds[c] == "number")
        if series is not None:
            notes.append(f"Column {names[series]} of {path} is read as the names of the series.")
            rest.remove(series)
    unread = [column for column in rest if kinds[column] != "number"]
    for column in unread:
        cells = [str(x) for x in frame.iloc[:, column]]
        if any(map(is_number, cells)) or len(rest) == len(unread) == 1:
            _numbers(path, frame, column)  # Raises an error that names the cell.
    if unread:
        notes.append(f"Not read from {path}: {', '.join(names[column] for column in unread)}.")
    return Columns(series, time, [column for column in rest if column not in unread])


def _tells_series_apart(frame: pd.DataFrame, column: int, time: int) -> bool:
    """Whether a column holds few distinct whole numbers that make the rows' times unique."""
    cells = frame.iloc[:, column]
    whole = cells.map(lambda cell: re.fullmatch(r"\d+(\.0)?", str(cell)) is not None)
    few = cells.nunique() <= len(frame) / 2
    return bool(few and whole.all() and not frame.iloc[:, [column, time]].duplicated().any())


def _numbers(path: Any, frame: pd.DataFrame, column: int) -> np.ndarray:
    """The numbers of a column; raises `UserError` at the first cell that is not a number."""
    import pandas as pd

    cells = frame.iloc[:, column]
    if cells.dtype.kind in "biuf":
        return cells.to_numpy(np.float64, na_value=np.nan)
    if pd.api.types.is_numeric_dtype(cells):
        return cells.astype("float64").to_numpy()
    return np.array(
        [
            _as_number(cell, f"{path}: row {row}, column {column + 1}")
            for row, cell in zip(cells.index, cells, strict=True)
        ]
    )


def numbers_of(cells: Sequence[str], where: str) -> list[float]:
    """The numbers in a row of cells, NaN where missing; raises `UserError` at any other cell."""
    stripped = ("" if cell.strip() in ("?", "NaN") else cell.strip() for cell in cells)
    return [_as_number(cell, f"{where}, value {i}") for i, cell in enumerate(stripped, 1)]


def _as_number(cell: Any, where: str) -> float:
    if cell is None or cell != cell or cell == "":
        return np.nan
    if not is_number(str(cell)):
        hint = ""
        if re.search(r"[;\t]|^[-+]?\d+,\d+$", str(cell)):
            hint = "separate cells with commas and use decimal points, or separate with ; or tab; "
        raise UserError(
            f"{where}: {cell!r} is not a number; {hint}expected {EXPECTED}, and empty cells where "
            "values are missing."
        )
    return float(cell)


def _times(path: Any, frame: pd.DataFrame, column: int) -> tuple[Any, Callable[[Any], Any], str]:
    """The times of a column, their formatter, and a note; raises `UserError` at any other cell."""
    import pandas as pd

    cells, name = frame.iloc[:, column], frame.columns[column]

    def check(wrong: Any) -> None:
        if len(at := np.flatnonzero(wrong)):
            raise UserError(
                f"{path}: row {frame.index[at[0]]}, column {column + 1}: "
                f"{str(cells.iloc[at[0]])!r} is not a time like the others of column {name}; "
                "correct it, or leave the row out."
            )

    check((cells.isna() | (cells == "")).to_numpy())
    if isinstance(cells.dtype, pd.PeriodDtype):
        frequency: Any = cells.dtype.freq
        return pd.DatetimeIndex(cells.dt.to_timestamp()), lambda x: pd.Period(x, frequency), ""
    if cells.dtype.kind == "M":
        return pd.DatetimeIndex(cells), lambda x: x, ""
    text = cells.dtype.kind not in "biuf"
    if not text or all(map(is_number, cells)):
        numbers = _numbers(path, frame, column)
        days = [f"{x:.0f}" for x in numbers]
        if "date" in str(name).lower() and all(re.fullmatch(r"[12]\d{7}", x) for x in days):
            found = pd.DatetimeIndex(pd.to_datetime(days, format="%Y%m%d", errors="coerce"))
            check(found.isna())
            return found, lambda x: x.strftime("%Y%m%d"), ""
        whole = not any("." in cell for cell in cells) if text else cells.dtype.kind in "iu"
        written: Callable[[Any], Any] = int if whole else float
        return numbers, lambda x: str(written(x)) if text else written(x), ""
    dates = times.read_dates(list(map(str, cells)))
    check(np.ones(len(cells), bool) if dates is None else dates.values.isna())
    assert dates is not None
    return dates.values, dates.write, dates.note


def _series_rows(
    path: Any,
    frame: pd.DataFrame,
    length: np.ndarray,
    header: list[str] | None,
    named: bool,
    notes: list[str],
) -> SeriesTable:
    """The series of a table with a row for each; if `named`, column 1 names them."""
    names = frame.iloc[:, 0].tolist() if named else None
    body = frame.iloc[:, 1:] if named else frame
    length = np.minimum(length - named, body.shape[1])
    empty = (body != "").to_numpy()
    last = np.where(empty, np.arange(1, body.shape[1] + 1), 0).max(axis=1)
    end = int((length - last).min())
    if end and header is None:
        notes.append(
            f"Each row of {path} ends in {counted(end, 'empty cell')}, which are not read."
        )
        length, body = length - end, body.iloc[:, : body.shape[1] - end]
    first = 1 + named
    x = np.full(body.shape, np.nan)
    for index, (line, cells) in enumerate(zip(body.index, body.to_numpy(), strict=True)):
        x[index] = [
            _as_number(cell, f"{path}: row {line}, column {column}")
            for column, cell in enumerate(cells, first)
        ]
    steps, spacing, more, note = None, None, None, ""
    if header is not None:
        steps = header[1:] if named else header
        dates = None if is_number(steps[0]) else times.read_dates(steps)
        if dates is not None and dates.values.notna().all() and len(steps) > 1:
            try:
                found = times.spacing_of([dates.values])
            except times.Irregular as error:
                raise UserError(
                    f"{path}: the times of the header {error}; steps must be equally spaced."
                ) from error
            write, spacing, note = dates.write, found.name, dates.note
            x, length, steps = _on_grid(x, found, dates.values, write)
            more = _following_dates(found, dates.values[0], len(steps), write)
        else:
            more = _following_numbers(steps)
    notes = [*notes, *([f"In {path}, {note}."] * bool(note))]
    layout = SeriesRows(
        names,
        steps,
        header[0] or "series" if header and named else "series",
        more or _following_numbers([str(x.shape[1] - 1)]),
    )
    ids = names or [str(i) for i in range(len(x))]
    return SeriesTable(x[..., None], length, ["value"], ids, spacing, notes, layout)


def _on_grid(
    x: np.ndarray, spacing: times.Spacing, dates: Any, write: Callable[[Any], str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Adds columns for missing dates; returns the values, the lengths and the labels of steps."""
    position = spacing.positions(dates)
    grid = np.full((len(x), position[-1] + 1), np.nan)
    grid[:, position] = x
    steps = [write(time) for time in spacing.times(dates[0], grid.shape[1])]
    return grid, np.full(len(x), grid.shape[1]), steps


def _following_dates(
    spacing: times.Spacing, start: Any, done: int, write: Callable[[Any], str]
) -> Callable[[int], list[Any]]:
    return lambda count: [write(x) for x in spacing.times(start, done + count)[done:]]


def _following_numbers(steps: Sequence[str]) -> Callable[[int], list[Any]]:
    """Continues the labels of steps: after `t7` come `t8`, `t9`, ..."""
    found = re.search(r"\d+$", steps[-1])
    stem, last = (steps[-1][: found.start()], int(found[0])) if found else ("", len(steps) - 1)
    return lambda count: [f"{stem}{last + 1 + i}" for i in range(count)]

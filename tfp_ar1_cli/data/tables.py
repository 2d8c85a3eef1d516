"""Reads and writes tables: text in common dialects, compressed or not, and parquet.

pandas reads every cell of a text as a string first, so messages can name a cell that is no number.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import gzip
import io
import pathlib
import re
import zlib
from typing import TYPE_CHECKING

import numpy as np

from tfp_ar1_cli.atomic import atomic
from tfp_ar1_cli.data.files import available_memory, check_memory, check_regular
from tfp_ar1_cli.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

ADVICE = "give fewer series, or shorter ones"
TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".dat")
PARQUET_SUFFIXES = (".parquet", ".pq")
# Missing values as written by pandas, R, spreadsheets, databases and UCR, in lower case.
_MISSING = (
    *("", "na", "n/a", "#n/a", "#na", "#n/a n/a", "<na>", "nan", "-nan", "nat", "null", "none"),
    *("1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "?", "."),
)
# Memory for each character of a text, and for each cell, including padding of shorter rows.
_BYTES_PER_CHARACTER, _BYTES_PER_CELL = 40, 60
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?inf(inity)?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How a text is written: the separator between cells, and the decimal separator."""

    separator: str = ","
    decimal: str = "."


@dataclasses.dataclass(frozen=True)
class Cells:
    """The cells of a text, as strings.

    Attributes:
      frame: Stripped strings, `""` where a value is missing or past the end of a row; the index
        is the line number, counted from 1. Blank lines are left out.
      length: The number of cells of each row.
      dialect: The dialect of the text.
    """

    frame: pd.DataFrame
    length: np.ndarray
    dialect: Dialect


def read_text(path: pathlib.Path, least: str) -> Cells:
    """Reads the cells of a text; raises `UserError` if it cannot be read or is empty.

    Args:
      path: The file.
      least: The expected content, for the message about an empty file.
    """
    import pandas as pd

    text = _text(path)
    try:
        separator = _separator(text)
        words = separator == " "
        lines = io.StringIO(text, newline=None).read().split("\n")
        if words:
            lines, separator = [",".join(line.split()) for line in lines], ","
        reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
        # pandas cannot tell a shorter row from one that ends in empty cells.
        rows = [(reader.line_num, len(row)) for row in reader]
        if rows and not rows[-1][1]:
            rows.pop()  # The empty string after the last line break.
        if not any(line.strip(f"{separator} \t") for line in lines):
            raise UserError(f"{path}: is empty; expected {least}.")
        width = max(number for _, number in rows)
        check_memory(
            path,
            len(rows) * width * _BYTES_PER_CELL,
            f"the longest of {len(rows)} rows has {width} cells; check whether that is right",
        )
        frame = pd.read_csv(
            io.StringIO("\n".join(lines)),
            sep=separator,
            header=None,
            names=range(width),
            index_col=False,
            dtype=str,
            na_filter=False,
            skip_blank_lines=False,
            skipinitialspace=True,
        )
    except (csv.Error, pd.errors.ParserError) as error:
        raise UserError(
            f"{path}: cannot be read as a table: {error}; save it as text in UTF-8, with one "
            "separator between cells."
        ) from error
    frame = frame.astype(object).map(str.strip)
    frame = frame.where(~frame.map(str.lower).isin(_MISSING), "")
    # pandas ignores blank lines at the end.
    rows = rows[: len(frame)]
    frame.index = pd.Index([line for line, _ in rows])
    length = np.array([number for _, number in rows])
    there = length > (0 if width == 1 else 1)
    there |= (frame != "").any(axis=1).to_numpy()
    decimal = "."
    if separator != "," and _decimals_are_commas(frame):
        decimal = ","
        frame = frame.map(lambda cell: cell.replace(",", ".") if has_decimal_comma(cell) else cell)
    return Cells(frame[there], length[there], Dialect(" " if words else separator, decimal))


def read_lines(path: pathlib.Path) -> list[tuple[int, str]]:
    """The stripped lines of a text and their numbers, from 1."""
    lines = io.StringIO(_text(path), newline=None)
    return [(number, line.strip()) for number, line in enumerate(lines, 1)]


def _text(path: pathlib.Path) -> str:
    check_regular(path)
    most = available_memory() // _BYTES_PER_CHARACTER
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        try:
            if start[:2] == b"\x1f\x8b":
                content = gzip.GzipFile(fileobj=file).read(most + 1)
            else:
                content = file.read(most + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(
                f"{path}: truncated or damaged gzip file ({error}); copy or compress it again."
            ) from error
    if len(content) > most:
        raise UserError(
            f"{path}: holds more than {most} bytes of text, too many for the memory; {ADVICE}."
        )
    utf16 = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeError as error:
        raise UserError(
            f"{path}: cannot be read as text: {error}; unpack it if it is compressed other "
            "than with gzip, or save it as text in UTF-8."
        ) from error
    if "\0" in text:
        raise UserError(f"{path}: cannot be read as text: it holds zero bytes; save it in UTF-8.")
    return text


def _separator(text: str) -> str:
    """The separator between cells; a space stands for any whitespace."""
    lines = [line for line in text[:100_000].splitlines()[:200] if line.strip()]
    for separator in "\t;|":
        if sum(separator in line for line in lines) > len(lines) / 2:
            return separator
    if lines and not any("," in line for line in lines):
        words = [line.split() for line in lines]
        if all(len(row) > 1 and all(map(is_number, row)) for row in words):
            return " "
    return ","


def is_number(cell: str) -> bool:
    """Whether a cell is a number, finite or infinite."""
    return _NUMBER.fullmatch(cell) is not None


def has_decimal_comma(cell: str) -> bool:
    """Whether a cell is a number with a decimal comma."""
    return cell.count(",") == 1 and is_number(cell.replace(",", ".")) and "." not in cell


def _decimals_are_commas(frame: pd.DataFrame) -> bool:
    """Whether some number has a decimal comma and none has a point."""
    cells = frame.to_numpy().ravel()
    commas = any(has_decimal_comma(cell) for cell in cells)
    return commas and not any("." in cell and is_number(cell) for cell in cells)


def read_parquet(path: pathlib.Path) -> pd.DataFrame:
    """Reads a parquet file; raises `UserError` if it cannot be read."""
    import pandas as pd

    check_regular(path)
    try:
        return pd.read_parquet(path)
    except ImportError as error:
        raise UserError(
            f"{path}: pandas reads parquet files with the package pyarrow, which is not installed; "
            "run: pip install pyarrow"
        ) from error
    except Exception as error:  # Arbitrary bytes fail in many ways.
        first = str(error).partition("\n")[0]
        raise UserError(f"{path}: cannot be read as parquet: {first}") from error


def check_output(path: pathlib.Path) -> None:
    """Raises `UserError` unless the suffix is one of the output formats."""
    unpacked = pathlib.Path(path.name.removesuffix(".gz")).suffix
    if unpacked not in TEXT_SUFFIXES and path.suffix not in (*PARQUET_SUFFIXES, ".npz"):
        text, parquet = ", ".join(TEXT_SUFFIXES), ", ".join(PARQUET_SUFFIXES)
        raise UserError(f"{path}: --out must end in {text} (also .gz), {parquet} or .npz.")


def write(path: pathlib.Path, frame: pd.DataFrame, dialect: Dialect | None = None) -> None:
    """Writes a table as text or parquet, by its suffix; numbers keep all their digits."""
    with atomic(path) as temporary:
        if path.suffix in PARQUET_SUFFIXES:
            frame.to_parquet(temporary, index=False)
            return
        separator, decimal = dataclasses.astuple(dialect or Dialect())
        if pathlib.Path(path.name.removesuffix(".gz")).suffix == ".tsv":
            separator = "\t"
        frame.to_csv(
            temporary,
            index=False,
            sep=separator,
            decimal=decimal,
            compression="gzip" if path.suffix == ".gz" else None,
        )

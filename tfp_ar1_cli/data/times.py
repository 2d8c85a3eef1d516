"""The times of the steps of series: reading dates, finding the spacing, and continuing them.

A time is a date, or a number such as a year or a count of seconds. pandas is imported when needed.
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

# Formats to try besides those that pandas guesses from the first date.
_FORMATS = ("ISO8601", "%b %Y", "%B %Y", "%Y %b", "%b-%y", "%d-%b-%y", "%Y/%m", "%H:%M:%S")
# The least share of the steps from the first to the last time that must be in the data, unless at
# least this share of neighbouring times are one step apart.
_LEAST_PRESENT, _LEAST_ADJACENT = 0.1, 0.5


class Irregular(ValueError):
    """Times that no spacing fits; the message is the end of a sentence."""


@dataclasses.dataclass(frozen=True)
class Dates:
    """Cells of text that were read as dates.

    Attributes:
      values: The dates; NaT where a cell is no date.
      write: Formats a date in the same way.
      note: A note if the dates are ambiguous.
    """

    values: pd.DatetimeIndex
    write: Callable[[pd.Timestamp], str]
    note: str = ""


def read_dates(cells: Sequence[str]) -> Dates | None:
    """Reads dates in the format that fits most cells; None if it fits less than half of them."""
    import pandas as pd
    from pandas.tseries.api import guess_datetime_format

    first, german = cells[0], "." in cells[0]
    best: tuple[int, Any, str] = (0, None, "")
    read_all = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas warns about guessed formats.
        # Day and month may be in either order, unless the year comes first.
        ways = [german] if first[:4].isdigit() else [german, not german]
        guesses = [guess_datetime_format(first, dayfirst=x) for x in ways]
        for form in dict.fromkeys((*filter(None, guesses), *_FORMATS)):
            try:
                values = pd.to_datetime(pd.Series(cells), format=form, errors="coerce")
            except ValueError:  # Several time zones.
                values = pd.to_datetime(pd.Series(cells), format=form, errors="coerce", utc=True)
            found = int(values.notna().sum())
            best = max(best, (found, values, form), key=lambda x: x[0])
            read_all += [form] * (found == len(cells))
            if read_all and form not in guesses[:-1]:
                break
        if not best[0]:
            with_quarters = _read_quarters(cells)
            if with_quarters is not None:
                return with_quarters
    found, values, form = best
    if found < max(1, len(cells) / 2):
        return None
    note = ""
    if len(set(guesses) & set(read_all)) > 1:
        note = f"the dates, such as {first}, are read as {_in_words(form)}"
    return Dates(pd.DatetimeIndex(values), _writer(form, first), note)


def _read_quarters(cells: Sequence[str]) -> Dates | None:
    """Reads dates like 2020Q1 or 2020-Q1."""
    import pandas as pd

    plain = [cell.replace("-", "").replace(" ", "").upper() for cell in cells]
    if not all(len(x) == 6 and x[4] == "Q" and x[5] in "1234" for x in plain):
        return None
    try:
        values = pd.PeriodIndex(plain, freq="Q").to_timestamp()
    except ValueError:
        return None
    between = cells[0][4:-2]
    return Dates(values, lambda date: f"{date.year}{between}Q{date.quarter}")


def _in_words(form: str) -> str:
    for code, word in (("%m", "month"), ("%d", "day"), ("%Y", "year"), ("%y", "year")):
        form = form.replace(code, word)
    return form


def _writer(form: str, first: str) -> Callable[[pd.Timestamp], str]:
    if form == "ISO8601":
        return lambda date: date.isoformat(sep="T" if "T" in first else " ")[: max(10, len(first))]
    if "%z" in form:
        import pandas as pd

        zone = pd.Timestamp(first).tz
        return lambda date: date.tz_convert(zone).isoformat(sep="T" if "T" in first else " ")
    # Fractions of a second have as many digits as in the first date.
    return lambda date: date.strftime(form)[: len(first) if "%f" in form else None]


@dataclasses.dataclass(frozen=True)
class Spacing:
    """The distance between neighbouring steps.

    Attributes:
      step: A number, or for dates a `pandas.Timedelta` or a calendar offset of pandas.
      name: The distance in words, such as `7 days` or `1 month`.
    """

    step: Any
    name: str

    def positions(self, times: Any) -> np.ndarray:
        """The step number of each time, from 0; the times must be sorted."""
        import pandas as pd

        if isinstance(self.step, float | pd.Timedelta):
            return np.rint((times - times[0]) / self.step).astype(np.int64)
        return _grid(times[0], times[-1], self.step).get_indexer(times)

    def times(self, start: Any, count: int) -> list[Any]:
        """The first `count` times from `start`."""
        import pandas as pd

        if isinstance(self.step, float):
            # Rounded to 12 digits, because 0.1 + 0.2 is 0.30000000000000004.
            return [float(f"{start + i * self.step:.12g}") for i in range(count)]
        return list(pd.date_range(start, periods=count, freq=self.step))


def _grid(first: Any, last: Any, step: Any) -> pd.DatetimeIndex:
    import pandas as pd

    return pd.date_range(first, last, freq=step)


def spacing_of(series: Sequence[Any]) -> Spacing:
    """Finds the common spacing of the times of all series, which must be sorted and unique.

    If several spacings explain all times, the one with the fewest missing steps is chosen: business
    days if there are no weekends, months if all times are on the first of a month.

    Raises:
      Irregular: If there is none.
    """
    dates = not isinstance(series[0], np.ndarray)
    candidates = list(_of_dates(series) if dates else _of_numbers(series))
    # The number of steps from the first to the last time, over all series, for each candidate.
    sizes = [sum(int(x.positions(times)[-1]) + 1 for times in series) for x in candidates]
    if candidates:
        size, spacing = min(zip(sizes, candidates, strict=True), key=lambda pair: pair[0])
        positions = [spacing.positions(times) for times in series]
        gaps = np.concatenate([np.diff(x) for x in positions])
        present = sum(map(len, series)) / size
        if present >= _LEAST_PRESENT or np.mean(gaps == 1) >= _LEAST_ADJACENT:
            return spacing
    raise Irregular(_usual(series, dates))


def _of_dates(series: Sequence[pd.DatetimeIndex]) -> list[Spacing]:
    import pandas as pd

    every: Any = series[0].append(list(series[1:]))
    steps = np.concatenate([np.diff(times.as_unit("ns").asi8) for times in series])
    if not len(steps):
        return [Spacing(pd.Timedelta(days=1), "1 day")]
    found = []
    if len(set(every - every.normalize())) == 1:
        months = [np.diff(times.year * 12 + times.month) for times in series]
        number = int(np.gcd.reduce(np.concatenate(months)))
        name = f"{number // 12} year" if number % 12 == 0 else f"{number} month"
        name += "s" * (not name.startswith("1 "))
        if number and len(set(every.day)) == 1:
            found.append(Spacing(pd.DateOffset(months=number), name))
        elif number and every.is_month_end.all():
            found.append(Spacing(pd.offsets.MonthEnd(number), name))
    fixed = pd.Timedelta(int(np.gcd.reduce(steps)), "ns")
    found.append(Spacing(fixed, _duration(fixed)))
    if fixed == pd.Timedelta(days=1) and (every.day_of_week < 5).all():
        found.append(Spacing(pd.offsets.BusinessDay(), "1 business day"))
    return found


def _of_numbers(series: Sequence[np.ndarray]) -> list[Spacing]:
    steps = np.concatenate([np.diff(times) for times in series])
    if not len(steps):
        return [Spacing(1.0, "1")]
    for decimals in itertools.chain([None], range(10)):
        if decimals is None:
            # Rounded numbers may not lie on any decimal grid: 0, 0.33, 0.67, 1.
            number = np.rint(steps / steps.min())
            step = float(steps.sum() / number.sum())
            fits = np.abs(steps / step - number).max() < 0.02
        else:
            scaled = np.rint(np.concatenate(series) * 10.0**decimals)
            whole = np.abs(scaled / 10.0**decimals - np.concatenate(series)).max() == 0
            scaled_steps = np.rint(steps * 10.0**decimals).astype(np.int64)
            step = float(np.gcd.reduce(scaled_steps) / 10.0**decimals)
            fits = bool(whole) and step > 0
        if fits:
            return [Spacing(step, f"{step:.12g}")]
    return []


def _usual(series: Sequence[Any], dates: bool) -> str:
    """The distances between irregular times, in words."""
    import pandas as pd

    if not dates:
        steps = np.concatenate([np.diff(times) for times in series])
        return f"are irregular, from {steps.min():.6g} to {steps.max():.6g} apart"
    steps = np.concatenate([np.diff(times.as_unit("ns").asi8) for times in series])
    low, middle, high = (
        _duration(pd.Timedelta(int(x), "ns")) for x in (steps.min(), np.median(steps), steps.max())
    )
    return f"are irregular, from {low} to {high} apart, mostly around {middle}"


def _duration(value: pd.Timedelta) -> str:
    """A duration in the largest unit that gives a whole number or one above 100."""
    seconds = value.total_seconds()
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        number = seconds / size
        if seconds >= size and (number == round(number) or number > 100):
            return f"{number:.6g} {unit}{'s' * (number != 1)}"
    return f"{seconds:.6g} s"

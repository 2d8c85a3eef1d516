"""Series in tables: their layout, and writing values back in the same layout.

A table has either a row for each step, with columns for the values and optionally one each for the
series and the time, or a row for each series, with a column for each step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tfp_ar1_cli.data import times
from tfp_ar1_cli.data.tables import Dialect
from tfp_ar1_cli.errors import UserError
from tfp_ar1_cli.progress import counted

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class SeriesTable:
    """Series, and their layout in a table.

    Attributes:
      x: float64 `[series, steps, features]`, NaN where a value is missing and past the end.
      length: The number of steps of each series.
      names: The names of the features.
      ids: The names of the series.
      spacing: The time between steps, in words; None if there are no times.
      notes: Notes for the user on how the table was interpreted.
      layout: The layout of the series in the table.
      dialect: The dialect of the text, if the table was read from text.
    """

    x: np.ndarray
    length: np.ndarray
    names: list[str]
    ids: list[str]
    spacing: str | None
    notes: list[str]
    layout: _Layout
    dialect: Dialect | None = None

    def describe(self) -> str:
        """A summary such as `8 series of 541 steps every 60 s, 2% missing, 1 feature (value)`."""
        low, high = int(self.length.min()), int(self.length.max())
        steps = counted(high, "step") if low == high else f"{low} to {high} steps"
        every = f" every {self.spacing}" if self.spacing else ""
        number = "1 series" if len(self.x) == 1 else f"{len(self.x)} series"
        features = counted(len(self.names), "feature")
        shown = ", ".join(self.names[:6]) + ", ..." * (len(self.names) > 6)
        return f"{number} of {steps}{every}, {self._missing()} missing, {features} ({shown})"

    def _missing(self) -> str:
        """The share of values missing before the end of each series, in words."""
        total = int(self.length.sum()) * len(self.names)
        share = 1 - np.count_nonzero(~np.isnan(self.x)) / total
        return "under 1%" if 0 < share < 0.005 else f"{share:.0%}" if share else "none"

    def select(self, names: Sequence[str], what: str) -> SeriesTable:
        """Selects a model's features: by name if the table has all these names, else all features.

        Raises a `UserError` that begins with `what` if the number of features differs.
        """
        if set(names) <= set(self.names):
            chosen = [self.names.index(name) for name in names]
            return dataclasses.replace(self, x=self.x[..., chosen], names=list(names))
        if len(names) != len(self.names):
            raise UserError(
                f"{what}: has {counted(len(self.names), 'feature')} ({', '.join(self.names)}), but "
                f"the model was trained on {len(names)} ({', '.join(names)}); give the same "
                "features."
            )
        return self

    def rows(self, values: Mapping[str, np.ndarray], width: int | None = None) -> pd.DataFrame:
        """The table with these values, for every step, in place of its own; see `_Layout`."""
        return self.layout.rows(self, values, width)


class _Layout:
    """The layout of series in a table.

    Values are arrays `[series, steps, width]` by statistic: those of `""` go under the names of the
    features, those of `sd` beside them under `NAME_sd`. If `width` is given, there are `width`
    columns named after the statistic instead of one for each feature.
    """

    def rows(
        self, table: SeriesTable, values: Mapping[str, np.ndarray], width: int | None
    ) -> pd.DataFrame:
        """The table with values in place of its own."""
        raise NotImplementedError

    def following(self, table: SeriesTable, values: Mapping[str, np.ndarray]) -> pd.DataFrame:
        """Only the steps after the last of each series, in the same layout."""
        raise NotImplementedError

    def labels(self, series: int, count: int) -> Sequence[Any]:
        """Labels of the first steps of a series: their times or their numbers."""
        return range(count)


class Columns(NamedTuple):
    """The roles of a table's columns, by position."""

    series: int | None
    time: int | None
    values: list[int]


@dataclasses.dataclass(frozen=True)
class StepRows(_Layout):
    """A row for each step.

    Attributes:
      frame: The table.
      columns: The roles of its columns.
      as_series: Whether each column of values is a series, not a feature.
      row: int `[group of rows, steps]`: the row of each step; -1 where the table has none.
      start: The time of the first step of each group.
      spacing: The spacing of the times.
      write_time: Formats a time as in the table.
    """

    frame: pd.DataFrame
    columns: Columns
    as_series: bool
    row: np.ndarray
    length: np.ndarray
    start: list[Any]
    ids: list[Any]
    spacing: times.Spacing | None
    write_time: Callable[[Any], Any]

    def rows(  # noqa: D102
        self, table: SeriesTable, values: Mapping[str, np.ndarray], width: int | None = None
    ) -> pd.DataFrame:
        group, step = np.nonzero(np.arange(self.row.shape[1]) < self.length[:, None])
        row = self.row[group, step]
        # A missing step goes after its predecessor, or before it if the table runs backwards in
        # time.
        back = np.array([len(r[r >= 0]) > 1 and r[r >= 0][0] > r[r >= 0][-1] for r in self.row])
        known = np.maximum.accumulate(np.where(row >= 0, np.arange(len(row)), 0))
        place = row[known] + np.where(row < 0, np.where(back[group], -0.5, 0.5), 0)
        order = np.lexsort((np.where(back[group], -step, step), place))
        group, step, row = group[order], step[order], row[order]
        out = self.frame.reset_index(drop=True).reindex(row).reset_index(drop=True)
        self._fill(out, row < 0, group, step)
        return self._with(out, table, values, group, step, width)

    def following(self, table: SeriesTable, values: Mapping[str, np.ndarray]) -> pd.DataFrame:  # noqa: D102
        ahead = next(iter(values.values())).shape[1]
        group = np.repeat(np.arange(len(self.length)), ahead)
        step = np.tile(np.arange(ahead), len(self.length))
        out = self.frame.iloc[:0].reindex(range(len(group)))
        self._fill(out, np.ones(len(group), bool), group, step + self.length[group])
        return self._with(out, table, values, group, step, None)

    def labels(self, series: int, count: int) -> Sequence[Any]:  # noqa: D102
        if self.columns.time is None or self.spacing is None:
            return range(count)
        start = self.start[0 if self.as_series else series]
        return list(map(self.write_time, self.spacing.times(start, count)))

    def _fill(
        self, out: pd.DataFrame, new: np.ndarray, group: np.ndarray, step: np.ndarray
    ) -> None:
        """Fills in the series and the time of new rows."""
        at = np.flatnonzero(new)
        if self.columns.series is not None:
            column: Any = out.iloc[:, self.columns.series].astype(object)
            column.iloc[at] = [self.ids[g] for g in group[at]]
            out.isetitem(self.columns.series, column)
        if self.columns.time is None or self.spacing is None or not len(at):
            return
        count = np.zeros(len(self.start), int)
        np.maximum.at(count, group[at], step[at] + 1)
        grid = [self.spacing.times(start, n) for start, n in zip(self.start, count, strict=True)]
        cells = [self.write_time(grid[g][s]) for g, s in zip(group[at], step[at], strict=True)]
        column = out.iloc[:, self.columns.time]
        if column.dtype.kind != "M":
            column = column.astype(object)
        column.iloc[at] = cells
        out.isetitem(self.columns.time, column)

    def _with(
        self,
        out: pd.DataFrame,
        table: SeriesTable,
        values: Mapping[str, np.ndarray],
        group: np.ndarray,
        step: np.ndarray,
        width: int | None,
    ) -> pd.DataFrame:
        import pandas as pd

        own = [str(self.frame.columns[c]) for c in self.columns.values]
        parts: dict[Any, Any] = {}
        for position, name in enumerate(out.columns):
            if position not in self.columns.values:
                parts[name] = out.iloc[:, position]
                continue
            if width is not None:
                continue
            name, index = str(name), own.index(str(name))
            for statistic, array in values.items():
                if self.as_series:
                    cells = array[index, step, 0]
                elif name in table.names:
                    cells = array[group, step, table.names.index(name)]
                else:  # A feature that the model does not have.
                    parts.setdefault(name, out.iloc[:, position])
                    continue
                parts[f"{name}_{statistic}" if statistic else name] = cells
        for statistic, array in values.items() if width is not None else ():
            for index in range(width or 0):
                name = statistic.format(index + 1)
                of = list(enumerate(own)) if self.as_series else [(None, "")]
                for column, label in of:
                    cells = array[group if column is None else column, step, index]
                    parts[f"{label}_{name}".lstrip("_")] = cells
        return pd.DataFrame(parts)


@dataclasses.dataclass(frozen=True)
class SeriesRows(_Layout):
    """A row for each series, a column for each step.

    Attributes:
      ids: The cells that name the series; None if there are none.
      steps: The header, a label for each step; None if there is none.
      name: The name of the column of series.
      more: Returns labels for a number of steps after the last.
    """

    ids: list[Any] | None
    steps: list[Any] | None
    name: str = "series"
    more: Callable[[int], list[Any]] = lambda count: list(range(count))

    def rows(  # noqa: D102
        self, table: SeriesTable, values: Mapping[str, np.ndarray], width: int | None = None
    ) -> pd.DataFrame:
        steps = self.steps or list(range(table.x.shape[1]))
        if width is not None:
            values = {
                statistic.format(index + 1): array[..., [index]]
                for statistic, array in values.items()
                for index in range(width)
            }
        return self._stacked(table, values, steps)

    def following(self, table: SeriesTable, values: Mapping[str, np.ndarray]) -> pd.DataFrame:  # noqa: D102
        return self._stacked(table, values, self.more(next(iter(values.values())).shape[1]))

    def labels(self, series: int, count: int) -> Sequence[Any]:  # noqa: D102
        return range(count) if self.steps is None else self.steps[:count]

    def _stacked(
        self, table: SeriesTable, values: Mapping[str, np.ndarray], steps: list[Any]
    ) -> pd.DataFrame:
        import pandas as pd

        ids = self.ids or table.ids
        stacked = np.stack([array[..., 0] for array in values.values()], axis=1)
        out = pd.DataFrame(stacked.reshape(-1, stacked.shape[2]), columns=steps)
        out.insert(0, "statistic", [name or "value" for name in values] * len(ids))
        out.insert(0, self.name, np.repeat(np.array(ids, object), len(values)))
        return out


class ArrayRows(_Layout):
    """Series from arrays: written as a row for each step, under `series,step,NAME,...`."""

    def rows(  # noqa: D102
        self, table: SeriesTable, values: Mapping[str, np.ndarray], width: int | None = None
    ) -> pd.DataFrame:
        return self._as_steps(table).rows(table, values, width)

    def following(self, table: SeriesTable, values: Mapping[str, np.ndarray]) -> pd.DataFrame:  # noqa: D102
        return self._as_steps(table).following(table, values)

    def _as_steps(self, table: SeriesTable) -> StepRows:
        import pandas as pd

        series, steps, _ = table.x.shape
        group, step = np.nonzero(np.arange(steps) < table.length[:, None])
        values = {name: table.x[group, step, i] for i, name in enumerate(table.names)}
        frame = pd.DataFrame({"series": np.array(table.ids, object)[group], "step": step, **values})
        row = np.full((series, steps), -1)
        row[group, step] = np.arange(len(frame))
        columns = Columns(0, 1, list(range(2, frame.shape[1])))
        start, spacing = [0.0] * series, times.Spacing(1.0, "1")
        return StepRows(frame, columns, False, row, table.length, start, table.ids, spacing, int)


def of_arrays(
    x: np.ndarray, length: np.ndarray, names: Sequence[str], ids: Sequence[str] | None
) -> SeriesTable:
    """A table of series from arrays `[series, steps, features]`; without `ids`, numbered from 0."""
    found = list(map(str, range(len(x)) if ids is None else ids))
    return SeriesTable(x, length, list(names), found, None, [], ArrayRows())

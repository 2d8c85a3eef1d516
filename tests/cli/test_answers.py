"""What trained models answer as files and from Python: equal to what the models give themselves."""

import json

import keras
import numpy as np
import pandas as pd
import pytest

from tfp_ar1_cli import answer_options, trained
from tfp_ar1_cli.data.series import Units

NUM = 7
LEVELS = (0.1, 0.5)


@pytest.fixture(scope="module")
def run(finished_series):
    """The folder of a run on series of 12 steps and 2 channels, its model and its units."""
    folder = finished_series[0]
    units = json.loads((folder / "config.json").read_text())["data"]["units"]
    return folder, keras.saving.load_model(folder / "model.keras"), Units(**units)


@pytest.fixture(scope="module")
def series():
    """Five series of 12 steps, 2 channels, with gaps; the last of 9 steps."""
    rng = np.random.default_rng(5)
    x = 40 + 10 * np.cumsum(rng.normal(size=(5, 12, 2)), axis=1)
    x[rng.random(x.shape) < 0.3] = np.nan
    x[4, 9:] = np.nan
    return x, np.array([12, 12, 12, 12, 9])


def given(model, units, x, length):
    return {"x": units.standardise(x).astype(np.float32), "length": length.astype(np.int32)}


def test_impute_is_what_the_model_gives_to_the_last_digit(cli, run, series, tmp_path):
    folder, model, units = run
    x, length = series
    np.savez(tmp_path / "own.npz", x=x, length=length, ids=list("abcde"), names=["p", "q"])
    draws = model.impute(given(model, units, x, length), num_samples=NUM, seed=3)
    draws = draws.astype(np.float64)
    observed = ~np.isnan(x)
    mean = np.where(observed, x, units.restore(draws.mean(axis=0)))
    low = np.where(observed, x, units.restore(np.quantile(draws, 0.1, axis=0)))
    sd = np.where(observed, 0, draws.std(axis=0) * units.scale)
    options = ("--num-samples", NUM, "--seed", 3, "--quantiles", "0.1,0.5")
    for out, read in (("filled.tsv.gz", pd.read_table), ("filled.parquet", pd.read_parquet)):
        code, stdout, _ = cli("impute", folder, tmp_path / "own.npz", "--out", out, *options)
        assert (code, stdout) == (0, f"{out}\n")
        frame = read(out)
        assert frame["series"].tolist() == [
            i for i, n in zip("abcde", length, strict=True) for _ in range(n)
        ]
        inside = np.arange(12) < length[:, None]
        for channel, name in enumerate("pq"):
            for suffix, expected in (("", mean), ("_sd", sd), ("_q0.1", low)):
                np.testing.assert_array_equal(
                    frame[f"{name}{suffix}"], expected[inside][:, channel]
                )
    code, stdout, _ = cli("impute", folder, tmp_path / "own.npz", *options)
    assert (code, stdout) == (0, "own-imputed.npz\n")
    with np.load("own-imputed.npz") as file:
        inside = np.broadcast_to((np.arange(12) < length[:, None])[..., None], x.shape)
        np.testing.assert_array_equal(file["x"][inside], mean[inside])
        np.testing.assert_array_equal(file["quantiles"][0][inside], low[inside])
    # The next free name, and nothing is overwritten.
    assert str(answer_options.new_file(None, "own.npz", "imputed")) == "own-imputed-2.npz"
    code, _, err = cli("impute", folder, tmp_path / "own.npz", "--out", "filled.parquet")
    assert code == 2
    assert "filled.parquet: already exists" in err


def test_forecasts_go_on_with_the_dates(run, series, tmp_path):
    folder, model, units = run
    x, length = series
    dates = pd.date_range("2020-01-31", periods=12, freq="ME")
    frame = pd.concat(
        [
            pd.DataFrame({"id": i, "month": dates[:n], "a": x[i, :n, 0], "b": x[i, :n, 1]})
            for i, n in enumerate(length)
        ]
    )
    mine = trained.load(folder)
    ahead = mine.forecast(frame, 3, LEVELS, num_samples=NUM, seed=2)
    draws = model.forecast(given(model, units, x, length), 3, num_samples=NUM, seed=2)
    expected = units.restore(draws.astype(np.float64).mean(axis=0))
    np.testing.assert_array_equal(ahead["b"], expected[..., 1].reshape(-1))
    assert ahead["id"].tolist() == np.repeat(np.arange(5), 3).tolist()
    assert ahead["month"].tolist()[:2] == [pd.Timestamp("2021-01-31"), pd.Timestamp("2021-02-28")]
    assert ahead["month"].iloc[-1] == pd.Timestamp("2020-12-31")  # The short series.
    assert list(ahead)[2:6] == ["a", "a_sd", "a_q0.1", "a_q0.5"]
    arrays = mine.forecast({"x": x, "length": length}, 3, LEVELS, num_samples=NUM, seed=2)
    np.testing.assert_array_equal(arrays["x"], expected)
    # Rows that lack are filled in; whole rows of missing values are the same.
    dropped = mine.impute(frame.dropna(), LEVELS, NUM)
    assert len(dropped) >= len(frame.dropna())
    assert not dropped[["a", "b"]].isna().any().any()


def test_long_series_are_seen_in_windows_that_overlap(run):
    folder, model, units = run
    x = 40 + np.cumsum(np.random.default_rng(0).normal(size=(1, 20, 2)), axis=1)
    # Windows from 0, 6 and 8 on: each step as in the one whose middle is nearest.
    starts, owner = (0, 6, 8), [0] * 9 + [1] * 4 + [2] * 7
    means = [
        np.asarray(model.encode(given(model, units, x[:, s : s + 12], np.array([12]))).mean())[0]
        for s in starts
    ]
    expected = [means[w][:, t - starts[w]] for t, w in enumerate(owner)]
    codes = trained.load(folder).encode(pd.DataFrame(x[0], columns=["channel 1", "channel 2"]))
    assert list(codes) == ["z1", "z2", "z1_sd", "z2_sd"]
    np.testing.assert_allclose(codes[["z1", "z2"]], expected, rtol=1e-5, atol=1e-6)


def test_scores_are_those_of_evaluate(cli, run, series, tmp_path):
    folder = run[0]
    x, length = series
    np.savez(tmp_path / "own.npz", x=x, length=length)
    code, out, _ = cli("evaluate", folder, "--dataset", f"npz:{tmp_path / 'own.npz'}", "--json")
    assert code == 0
    metrics = json.loads(out)
    assert cli("score", folder, tmp_path / "own.npz", "--out", "scores.csv")[0] == 0
    scores = pd.read_csv("scores.csv")
    assert list(scores)[:4] == ["series", "start", "steps", "observed"]
    assert scores["steps"].tolist() == length.tolist()
    for name in ("neg_elbo", "reconstruction", "kl", "nll_iw"):
        np.testing.assert_allclose(scores[name].mean(), metrics[name], rtol=1e-6)
    assert cli("score", folder, tmp_path / "own.npz", "--per-step", "--out", "steps.csv")[0] == 0
    steps = pd.read_csv("steps.csv")
    assert list(steps) == ["series", "step", "neg_elbo"]
    by_series = steps.groupby("series")["neg_elbo"].sum()
    np.testing.assert_allclose(by_series, scores["neg_elbo"], rtol=1e-5)


def test_reconstructions_stand_beside_the_values(run, series):
    folder, _, _ = run
    x, length = series
    mine = trained.load(folder)
    found = mine.reconstruct({"x": x, "length": length}, LEVELS, num_samples=400)
    # Of draws around the mean of p(x | z); the noise of observation is part of them.
    center = mine.units.restore(
        np.asarray(mine.model.reconstruct(given(None, mine.units, x, length)))
    )
    inside = np.arange(12) < length[:, None]
    error = (found["x"] - center)[inside] / found["sd"][inside]
    assert np.abs(error).max() < 0.5
    table = mine.reconstruct(pd.DataFrame(x[0]), LEVELS, num_samples=4)
    np.testing.assert_array_equal(table["0"], x[0, :, 0])
    assert "0_reconstruction" in table


def test_images_are_encoded_scored_and_reconstructed(cli, finished, images):
    folder = finished[0]
    model = keras.saving.load_model(folder / "model.keras")
    x = np.load(images)
    x = np.concatenate([x["x_train"], x["x_test"]]).astype(np.float32)
    assert cli("encode", folder, f"npz:{images}", "--out", "codes.csv")[:2] == (0, "codes.csv\n")
    posterior = model.encode(x)
    codes = pd.read_csv("codes.csv")
    np.testing.assert_allclose(codes[["z1", "z2", "z3"]], posterior.mean(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(codes[["z3_sd"]], posterior.stddev()[:, 2:], rtol=1e-5)
    assert cli("score", folder, images, "--out", "scores.parquet")[0] == 0
    scores = pd.read_parquet("scores.parquet")
    np.testing.assert_allclose(scores["neg_elbo"], scores["reconstruction"] + scores["kl"])
    expected = -model.log_likelihood(x, num_samples=4)
    np.testing.assert_allclose(scores["nll_iw"], expected, rtol=0.05)
    assert cli("reconstruct", folder, images)[:2] == (0, "tiny-reconstructed.npz\n")
    found = np.load("tiny-reconstructed.npz")["x"]
    np.testing.assert_allclose(found, model.reconstruct(x), rtol=1e-5, atol=1e-6)


def test_mistakes(refused, run, finished, tmp_path):
    folder, images = run[0], finished[0]
    path = tmp_path / "own.csv"
    path.write_text("series,step,a,b,c\nu,0,1,2,3\nu,1,1,2,3\n")
    pair = tmp_path / "pair.csv"
    pair.write_text("series,step,a,b\nu,0,1,2\nu,1,1,2\n")
    for expected, *argv in (
        ("impute is for models of series", "impute", images, path),
        ("has 3 features (a, b, c), but the model was trained on 2", "impute", folder, path),
        ("no.csv: No such file", "forecast", folder, "no.csv", "--steps", 2),
        ("Missing option '--steps'", "forecast", folder, pair),
        (
            "--out must end in .csv, .tsv, .txt, .dat (also .gz), .parquet",
            "impute",
            folder,
            pair,
            "--out",
            "a.xls",
        ),
        (".pq or .npz", "impute", folder, pair, "--out", "a.npz.gz"),
        ("images are written to .npz files", "reconstruct", images, pair, "--out", "a.csv"),
        ("nowhere: no such folder", "encode", folder, pair, "--out", "nowhere/a.csv"),
        (
            "list of increasing numbers between 0 and 1",
            "impute",
            folder,
            pair,
            "--quantiles",
            "1,2",
        ),
        ("--per-step is for models of series", "score", images, pair, "--per-step"),
        ("pig_cvp is the name of a data set; give a file", "impute", folder, "pig_cvp"),
    ):
        assert expected in refused(*argv)

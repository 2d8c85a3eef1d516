"""What the causes of errors on series are told by, on data whose answers are known."""

import json
import pathlib

import numpy as np
import oracles
import pytest
import scipy.stats

from experiments.series import baselines, measures, page
from experiments.series.data import Series

ROOT = pathlib.Path(__file__).parents[2]


def normal_predictor(mean, stddev):
    """Predicts N(mean, stddev²) for every value, whatever is known."""

    def predict(x, length, steps):
        shape = x[:, steps].shape
        quantiles = mean + stddev * scipy.stats.norm.ppf(measures.LEVELS)
        quantiles = np.broadcast_to(quantiles[:, None, None, None], (len(quantiles), *shape))
        return measures.Draws(np.full(shape, mean), np.full(shape, stddev), quantiles)

    return predict


def test_scores_of_white_noise():
    """Intervals that are right, and ones that are half as wide."""
    x = 1 + 2 * np.random.default_rng(0).normal(size=(2000, 100, 1))
    right = measures.predictions(normal_predictor(1.0, 2.0), x, most=2000)
    narrow = measures.predictions(normal_predictor(1.0, 1.0), x[:1000])
    half = 2 * scipy.stats.norm.cdf(scipy.stats.norm.ppf(0.95) / 2) - 1
    for task in ("single_20", "single_50", "gap", "forecast_1", "forecast_50"):
        assert right[f"{task}_rmse"] == pytest.approx(2.0, rel=0.06)
        assert right[f"{task}_coverage"] == pytest.approx(0.9, abs=0.03)
        assert right[f"{task}_coverage_50"] == pytest.approx(0.5, abs=0.05)
        assert narrow[f"{task}_coverage"] == pytest.approx(half, abs=0.06)
    assert len(right["forecast_50_coverage_by_roughness"]) == 4
    # Half as wide needs twice the factor; then the others are covered.
    found = measures.calibrated(right, narrow)
    assert found["single_20_factor"] == pytest.approx(2 * scipy.stats.norm.ppf(0.95), rel=0.03)
    assert found["single_20_calibrated_coverage"] == pytest.approx(0.999, abs=0.002)
    assert not [name for name in right if name.endswith("ratios")]


def test_differences():
    walk = np.cumsum(np.random.default_rng(0).normal(size=(500, 100, 1)), axis=1)
    found = measures.variogram(walk)
    np.testing.assert_allclose(found["differences"], np.sqrt(measures.LAGS), rtol=0.1)


@pytest.mark.parametrize(
    ("name", "length_scale"),
    [
        pytest.param("chain", -1 / np.log(0.8), marks=pytest.mark.slow),
        ("chain_half_dropped", -1 / np.log(0.8)),
        # For a chain that is not told the times, the series is a faster one.
        pytest.param("chain_half_dropped_no_times", -0.5 / np.log(0.8), marks=pytest.mark.slow),
    ],
)
def test_chain_learns_what_made_the_data(name, length_scale):
    """And predicts what is hidden as dense matrices do."""
    covariance = oracles.ar1_covariance(1.5, 0.8, 40) + 0.3**2 * np.eye(40)
    noise = np.random.default_rng(0).normal(size=(800, 40))
    x = (2 + noise @ np.linalg.cholesky(covariance).T)[..., None]
    data = Series(x, x[:50])
    predict, found = baselines.fit(name, data)
    chain = baselines.Chain(**found["chains"][0])
    assert chain.mean == pytest.approx(2, abs=0.1)
    assert chain.stddev == pytest.approx(1.5, rel=0.1)
    assert chain.length_scale == pytest.approx(length_scale, rel=0.15)
    hidden = np.arange(40) % 3 == 1
    draws = predict(np.where(hidden[:, None], np.nan, data.test), 40, hidden)
    rho = np.exp(-1 / chain.length_scale)
    fitted = oracles.ar1_covariance(chain.stddev, rho, 40) + chain.noise**2 * np.eye(40)
    known = fitted[np.ix_(~hidden, ~hidden)]
    gain = np.linalg.solve(known, fitted[np.ix_(~hidden, hidden)]).T
    mean = chain.mean + (data.test[:, ~hidden, 0] - chain.mean) @ gain.T
    variance = np.diag(fitted[np.ix_(hidden, hidden)] - gain @ fitted[np.ix_(~hidden, hidden)])
    np.testing.assert_allclose(draws.mean[..., 0], mean, atol=1e-8)
    np.testing.assert_allclose(draws.stddev[..., 0], np.tile(np.sqrt(variance), (50, 1)), atol=1e-8)


def test_a_chain_of_fast_series():
    """The search must not stop at its start, though the process is nearly noise itself."""
    covariance = oracles.ar1_covariance(1.5, 0.3, 40) + 0.3**2 * np.eye(40)
    x = np.random.default_rng(0).normal(size=(400, 40)) @ np.linalg.cholesky(covariance).T
    times = np.tile(np.arange(40.0), (400, 1))
    chain = baselines.fit_chain(x, times, np.ones_like(x, bool))
    assert chain.stddev**2 + chain.noise**2 == pytest.approx(covariance[0, 0], rel=0.05)
    neighbours = chain.stddev**2 * np.exp(-1 / chain.length_scale)
    assert neighbours == pytest.approx(covariance[0, 1], rel=0.1)


def test_page(tmp_path):
    made = {"dataset": "d", "versions": {"python": "3"}, "code": "c", "command": "run"}
    lines = [
        {"variant": v, "seed": s, "epochs": 2, "x": {"y": [0, base + s**2]}} | made
        for v, base in (("base", 1.0), ("other", 2.0))
        for s in range(3)
    ]
    lines += [{"variant": "line", "seed": 0, "epochs": 0, "x": {"y": [0, 4.0]}} | made]
    results, template = tmp_path / "results.jsonl", tmp_path / "a.template.md"
    results.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    template.write_text(
        '{{ mean("x.y.1", "base", "d", 1) }}|{{ mean("x.y.1", "line", "d", 1) }}|'
        '{{ difference("x.y.1", "other", "base", "d", 1) }}|'
        '{{ difference("x.y.1", "other", "line", "d", 1) }}|{{ seeds("other", "d") }}'
        '|{{ each("x.y.1", "base", "d", 1) }}',
        encoding="utf-8",
    )
    page.write(results, template, tmp_path / "a.md")
    x = np.array([1.0, 2.0, 5.0])
    half = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(x)
    low, high = (f"{y:+.1f}".replace("-", "−") for y in (-1 / 3 - half, -1 / 3 + half))
    text = (tmp_path / "a.md").read_text(encoding="utf-8").split("\n\n")[1]
    assert text == f"2.7 ± 1.2|4.0|+1.0 [+1.0, +1.0]|−0.3 [{low}, {high}]|3|1.0, 2.0, 5.0"
    results.write_text(results.read_text() + "\n" + json.dumps(lines[0]), encoding="utf-8")
    with pytest.raises(ValueError, match="twice"):
        page.write(results, template, tmp_path / "a.md")


def test_the_committed_page_is_that_of_the_results(tmp_path):
    docs, results = ROOT / "docs/series", ROOT / "experiments/results/series_causes.jsonl"
    page.write(results, docs / "causes.template.md", tmp_path / "causes.md")
    assert (tmp_path / "causes.md").read_bytes() == (docs / "causes.md").read_bytes()

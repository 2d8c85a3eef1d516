"""The benchmarks compare what they say, and their pages say what was measured."""

import json
import sys

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from test_docs import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import contenders, measure, noise, report

RESULTS = ROOT / "benchmarks" / "results" / "speed.json"
CORRELATED = [
    name
    for name, contender in contenders.CONTENDERS.items()
    if name != "Diag" and "log_prob" in contender.operations
]


@pytest.mark.parametrize(
    ("among", "name"),
    [("CONTENDERS", name) for name in CORRELATED]
    + [("FAMILY", name) for name in contenders.FAMILY if name != "Diag"],
)
def test_contenders_have_the_same_density(among, name):
    contender = getattr(contenders, among)[name]
    parameters = contender.parameters(3, 8)
    x = np.random.default_rng(0).normal(size=[3, 8]).astype(np.float32)
    lags = np.abs(np.subtract.outer(np.arange(8), np.arange(8)))
    covariance = contenders._SIGMA**2 * contenders._RHO**lags
    expected = [
        stats.multivariate_normal(loc, covariance).logpdf(row)
        for loc, row in zip(parameters["loc"].numpy(), x, strict=True)
    ]
    np.testing.assert_allclose(contender.make(parameters).log_prob(x), expected, rtol=1e-4)


@pytest.mark.slow
def test_contenders_have_the_same_noisy_density():
    *_, y = noise.arguments(3, 8)
    lags = np.abs(np.subtract.outer(np.arange(8), np.arange(8)))
    covariance = noise._SIGMA**2 * noise._RHO**lags + noise._NOISE**2 * np.eye(8)
    expected = stats.multivariate_normal(np.zeros(8), covariance).logpdf(y)
    functions = {**noise.of_others(3, 8, False), **noise.of_tensorflow(3, 8, False)}
    for name, f in functions.items():
        if name not in ("tfp_ar1, posterior", "tfp_ar1, path without noise"):
            np.testing.assert_allclose(f(), expected, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("name", ["tf.scan", "Python loop"])
def test_recursions_have_the_same_covariance(name):
    contender = contenders.CONTENDERS[name]
    parameters = contender.parameters(20000, 4)
    parameters["loc"] = tf.zeros([20000, 4])
    draws = contender.make(parameters).sample(seed=tf.constant([1, 2])).numpy()
    lags = np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    covariance = contenders._SIGMA**2 * contenders._RHO**lags
    # The standard error of an entry is at most √2 σ² / √20000 = 0.017.
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.07)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", contenders.FAMILY)
def test_family_draws_once_for_each_member(name, shared):
    """A batch of distributions, or one for all: b paths either way."""
    b, d = 30, 40
    options = {"among": contenders.FAMILY, "shared": shared}
    f = contenders.function(name, "sample", False, b, d, "graph", **options)
    # Σ E z². The standard deviation of the sum is about 170.
    loc = contenders._loc(1 if shared else b, d).numpy()
    expected = b * d * (np.mean(np.square(loc)) + contenders._SIGMA**2)
    assert abs(float(f()) - expected) < 700
    gradients = contenders.function(name, "log_prob", True, b, d, "graph", **options)()
    assert len(gradients) == len(contenders.FAMILY[name].parameters(1, 2)) + 1  # and by x
    assert all(np.all(np.isfinite(g)) for g in gradients)


def test_measure_tells_a_slow_function_from_a_fast_one():
    fast, slow = np.ones(10), np.ones(10**6)
    times = measure.interleaved({"fast": fast.sum, "slow": slow.sum}, seconds=0.2)
    assert times["fast"]["ratio"] == 1.0
    assert times["slow"]["ratio"] > 5
    assert times["slow"]["lower"] <= times["slow"]["median"] <= times["slow"]["upper"]


def test_pages_show_what_was_measured():
    results = json.loads(RESULTS.read_text())
    assert RESULTS.with_suffix(".md").read_text() == report.tables(results)
    readme = (ROOT / "README.md").read_text()
    assert (
        report.with_section(readme, report.README_MARKS, report.readme_section(results)) == readme
    )
    page = (ROOT / "docs" / "speed.md").read_text()
    on_jax = [json.loads(file.read_text()) for file in sorted(RESULTS.parent.glob("jax-*.json"))]
    assert report.with_section(page, report.JAX_MARKS, report.jax_section(on_jax)) == page


def test_readme_says_the_range_beside_the_diagonal_normal():
    entries = json.loads(RESULTS.read_text())["ratios"]["results"]
    readme = (ROOT / "README.md").read_text()
    for operation, text in (
        ("sample", "sampling takes {} times"),
        ("log_prob", "`log_prob` {} times"),
    ):
        graph = [e for e in entries if (e["mode"], e["operation"]) == ("graph", operation)]
        ratios = [e["times"]["AR1"]["ratio"] for e in graph]
        assert text.format(f"{min(ratios):.2f} to {max(ratios):.2f}") in readme

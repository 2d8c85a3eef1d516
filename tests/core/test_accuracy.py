"""Rounding errors over the whole range of the parameters, against decimals.

`benchmarks/measure_accuracy.py`, which measures what docs/accuracy.md states, has the operations
and, with the decimals of tests/exact.py, the measure of an error: units of
rounding errors (eps) of the *terms* that are added up to a result. That is what an implementation
can be held to at any parameters: it allows for the cancellation that is in the result, such as a
log-density that happens to be near zero, and for none inside the computation. Whitening, for one,
may lose what was lost when `w = x - loc` was rounded (a backward error: L⁻¹ magnifies it by
1/√(1 - ρ²)), but nothing to `w_t - ρ w_{t-1}` itself (a forward error relative to
`|w_t ∓ w_{t-1}|`, which is far smaller for neighbours that are nearly equal).
"""

import importlib.util
import json
import pathlib

import hypothesis
import hypothesis.strategies
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]

# The largest error of a value and of a derivative, in eps of the terms; float64 against decimals,
# and float32 against float64: 40 eps are 5e-6 in float32, 9e-15 in float64. Most of what is more
# than a few comes from exponentials of log cosh(fisher_z), which magnify its rounding |fisher_z|
# times, and quadratic forms square them.
BOUNDS = {
    "matvec": {"value": 20, "gradient": 40},
    "matvec_adjoint": {"value": 40, "gradient": 40},
    "solvevec": {"value": 40, "gradient": 40},
    "solvevec_adjoint": {"value": 40, "gradient": 40},
    "log_prob": {"value": 80, "gradient": 80},
    "entropy": {"value": 4, "gradient": 4},
    "kl_ar1_ar1": {"value": 80, "gradient": 80},
    "kl_ar1_diag": {"value": 8, "gradient": 8},
    "kl_diag_ar1": {"value": 80, "gradient": 80},
    "marginal": {"value": 6, "gradient": 6},
    "conditional_mean": {"value": 6, "gradient": 6},
    "conditional_variance": {"value": 16, "gradient": 16},
    "observed_log_prob": {"value": 80, "gradient": 80},
}


def load_benchmark():
    path = ROOT / "benchmarks" / "measure_accuracy.py"
    spec = importlib.util.spec_from_file_location("measure_accuracy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


accuracy = load_benchmark()

LOG_SCALE = 15  # σ from 1e-15 to 1e15: s over 60 orders of magnitude, which float32 has, too
NEAREST = 1e-7  # 1 - |ρ|
FISHER_Z = {"float32": 40, "float64": 60}  # |atanh ρ|; float32 has numbers for 1 - ρ² up to 43
# The gradients of these pass through 1 / (1 - ρ²) times a scale, or its square, and overflow.
OBSERVED_FISHER_Z = {"float32": 20, "float64": 60}
SOONER = ("conditional_mean", "observed_log_prob")
SIZES = (1, 2, 3, 7, 31, 32, 33, 100, 256, 257, 513)
# Of these the exact values take longest.
SMALL_SIZES = SIZES[:-2]


def rounded(x, dtype):
    """To the dtype. What is next to the smallest numbers of float32 counts as zero."""
    x = np.asarray(x, dtype)
    return np.where(np.abs(x) < 1e-32, 0, x).astype(np.float64)


def correlation(pick, rng, by, largest):
    """ρ or atanh ρ."""
    kinds = {
        "correlation": {
            "close to one": lambda: 1 - NEAREST ** rng.uniform(0.3, 1),
            "closest to one": lambda: 1 - NEAREST,
            "any": lambda: rng.uniform(0.1, 0.99),
            "small": lambda: 10 ** rng.uniform(-9, -1),
            "zero": lambda: 0.0,
        },
        "fisher_z": {
            "rho rounds to one": lambda: rng.uniform(5, 20),
            "any": lambda: rng.uniform(0.1, 5),
            "small": lambda: 10 ** rng.uniform(-9, -1),
            "extreme": lambda: rng.uniform(20, largest),
            "most extreme": lambda: largest,
            "zero": lambda: 0.0,
        },
    }[by]
    return pick([1, -1]) * kinds[pick([*kinds])]()


def inputs_of(name, dtype, sizes, seed):
    """`(by, inputs)` for an operation; numbers that the dtype has."""
    largest = (OBSERVED_FISHER_Z if name in SOONER else FISHER_Z)[dtype]
    rng = np.random.default_rng(seed)

    def pick(options):
        return options[rng.integers(len(options))]

    by = pick(["fisher_z", "correlation"])
    corr = rounded(correlation(pick, rng, by, largest), dtype)
    log_scale = pick([*[rng.uniform(-15, 15)] * 4, -LOG_SCALE, LOG_SCALE])
    scale = 10**log_scale
    if name == "marginal":
        return by, {"corr": corr, "step": pick([2, 3, 10, 1000])}
    size = pick(sizes)
    if name == "entropy":
        return by, {"scale": rounded(scale, dtype), "corr": corr, "size": size}
    noise = rng.normal(size=size)
    inputs = {"scale": scale, "corr": corr}
    if name in WEIGHTED:
        inputs |= {"weights": rng.normal(size=size)}
    # A draw of the distribution, or what lies far from any.
    path = np.asarray(accuracy.operator(by, np.float64(scale), corr, size).matvec(noise))
    x = noise if name.startswith("matvec") else pick([path, noise * scale])
    if name.startswith(("matvec", "solvevec")):
        inputs |= {"x": x}
    else:
        loc = pick([0.0, 1.0, 1e3]) * scale * rng.normal(size=size)
        inputs |= {"loc": loc}
    if name in ("log_prob", *CONDITIONAL):
        inputs |= {"x": x + loc}
    if name in CONDITIONAL:
        inputs |= {"observed": rng.random(size) < pick([0.5, 0.1, 0.9, 1.0])}
    if name.startswith("kl"):
        # A similar scale, or any other of the range.
        offset = pick([*[rng.uniform(-1, 1)] * 2, 0.0, 1e-6, rng.uniform(-20, 20)])
        other_scale = 10 ** np.clip(log_scale + offset, -LOG_SCALE, LOG_SCALE)
        inputs |= {"other_scale": other_scale}
        inputs |= {"other_loc": pick([0.0 * x, loc, loc + x])}
        if name == "kl_ar1_ar1":
            inputs |= {"other_corr": correlation(pick, rng, by, largest)}
        else:
            inputs["other_scale"] *= rng.choice(rng.uniform(0.5, 2, 100), size)
            if pick([False, False, True]):  # N(0, I)
                inputs |= {"other_loc": np.zeros(size), "other_scale": np.ones(size)}
    return by, {k: v if k == "observed" else rounded(v, dtype) for k, v in inputs.items()}


CONDITIONAL = {"conditional_mean", "conditional_variance", "observed_log_prob"}
# Whose results are vectors, of which a weighted sum is differentiated.
WEIGHTED = {
    "matvec",
    "matvec_adjoint",
    "solvevec",
    "solvevec_adjoint",
    "conditional_mean",
    "conditional_variance",
}


def check(name, by, inputs, dtype):
    exact = accuracy.reference(name, by, inputs)
    double = accuracy.compute(name, by, inputs, "float64")
    compare(name, double, exact)
    if dtype == "float32":
        # The float64 result in place of the decimals, in units of the same terms.
        expected = {k: e._replace(value=double[k]) for k, e in exact.items()}
        compare(name, accuracy.compute(name, by, inputs, "float32"), expected)


def compare(name, actual, expected):
    limit = 0.5 * float(np.finfo(actual["value"].dtype).max)
    fits = np.abs(expected["value"].value) < limit
    assert not np.any(np.isnan(actual["value"])), "NaN"
    assert np.all(np.isfinite(actual["value"][fits])), "infinite"
    for result, computed in actual.items():
        if result != "value" and not np.all(fits):
            continue
        if result not in expected:  # has no decimals
            assert np.all(np.isfinite(computed)), result
            continue
        bound = BOUNDS[name]["value" if result == "value" else "gradient"]
        error = accuracy.error(computed, expected[result])
        assert error.units <= bound, (
            f"{computed.dtype} {result}: {error.units:.3g} eps of the terms, more than {bound}"
        )


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", BOUNDS)
def test_any_parameters(name, dtype):
    sizes = SMALL_SIZES if name in CONDITIONAL else SIZES

    # Fewer in float64, in which what is for float32 is computed too, and where decimals take long.
    examples = (15 if dtype == "float64" else 30) // (2 if name in CONDITIONAL else 1)

    # A seed is all that is drawn, so that there is nothing to shrink.
    @hypothesis.settings(max_examples=examples, phases=[hypothesis.Phase.generate])
    @hypothesis.given(hypothesis.strategies.integers(0, 2**32 - 1))
    def run(seed):
        check(name, *inputs_of(name, dtype, sizes, seed), dtype)

    run()


@pytest.mark.parametrize("by", ["correlation", "fisher_z"])
@pytest.mark.parametrize("small", [0.0, 7e-8, -1e-3])
@pytest.mark.parametrize("other_scale", [600.0, 0.01])
def test_kl_derivatives_in_a_correlation_near_zero(by, small, other_scale):
    """They are near 0, while those of the ratio of two innovation variances are made of ±1."""
    inputs = {"loc": np.zeros(7), "scale": 1.0, "other_loc": np.zeros(7)}
    inputs = {k: rounded(v, "float32") for k, v in inputs.items()} | {"other_scale": other_scale}
    for corr, other_corr in ((small, 0.6), (0.6, small), (small, -small)):
        pair = {"corr": rounded(corr, "float32"), "other_corr": rounded(other_corr, "float32")}
        check("kl_ar1_ar1", by, inputs | pair, "float32")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by", "corr", "dtype"),
    [
        ("correlation", 1 - NEAREST, "float32"),
        ("correlation", -1 + NEAREST, "float64"),
        *(("fisher_z", u, "float32") for u in (5.0, -8.0, 13.0, 20.0, 40.0)),
        ("fisher_z", -40.0, "float64"),
    ],
)
def test_conditional_of_a_draw_with_neighbours_nearly_equal(by, corr, dtype):
    """All or half of it observed: no less accurate than `log_prob`."""
    rng = np.random.default_rng(0)
    path = accuracy.operator(by, np.float64(1.0), np.float64(corr), 100)
    x = np.asarray(path.matvec(rng.normal(size=100)))
    inputs = {"loc": np.zeros(100), "scale": 1.0, "corr": corr, "x": x}
    inputs = {k: rounded(v, dtype) for k, v in inputs.items()}
    check("log_prob", by, inputs, dtype)
    for name in sorted(CONDITIONAL):
        if name == "observed_log_prob" and abs(corr) > OBSERVED_FISHER_Z[dtype]:
            continue
        for observed in (np.full(100, True), rng.random(100) < 0.5):
            check(name, by, {**inputs, "observed": observed}, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BOUNDS if name != "marginal"])
def test_a_hundred_thousand_coordinates(name):
    size = 30_000 if name in CONDITIONAL else 100_000  # what takes decimals longest

    check(name, *inputs_of(name, "float32", (size,), seed=3), "float32")


def test_page_shows_what_was_measured():
    page = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
    results = json.loads(accuracy.RESULTS.read_text(encoding="utf-8"))
    assert accuracy.page_with(page, results) == page
    measured = {(entry["operation"], entry["result"]) for entry in results["entries"]}
    assert measured >= {(name, what) for name in BOUNDS for what in ("value", "gradients")}

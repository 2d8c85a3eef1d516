"""Measures the rounding errors of `tfp_ar1` and writes them as JSON and as a Markdown table.

    python benchmarks/measure_accuracy.py

Every operation is compared, in float32 and in float64, with decimals of 120 digits for the same
floating-point inputs. Besides the value, the references return the *terms* of each result: the sum
of the absolute values of its summands, each times the factor by which a rounding error of its
arguments is magnified. Errors are stated relative to the value and in rounding errors (the dtype's
eps) of the terms. Implementations should be judged by the latter, because it allows for
cancellation in the result but not inside the computation. The references are those of the tests,
in `tests/exact.py`.
"""

from __future__ import annotations

import argparse
import decimal
import functools
import json
import os
import pathlib
import platform
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))

import exact

ROOT = pathlib.Path(__file__).resolve().parents[1]
tfd = tfp.distributions

RESULTS = ROOT / "benchmarks" / "results" / "accuracy.json"
PAGE = ROOT / "docs" / "accuracy.md"
BEGIN, END = "<!-- begin: benchmarks/measure_accuracy.py -->", "<!-- end -->"

DTYPES = ("float32", "float64")

# --- The operations of the package -----------------------------------------------------------


def operator(by, scale, corr, size):
    """The operator of the package."""
    return tfp_ar1.LinearOperatorAR1Cholesky(size, marginal_scale=scale, **{by: corr})


def distribution(by, loc, scale, corr):
    """The distribution of the package."""
    return tfp_ar1.MultivariateNormalAR1(loc, scale, **{by: corr})


def _entropy(by, scale, corr, size):
    return distribution(by, tf.zeros(size, scale.dtype), scale, corr).entropy()


def _marginal(by, corr, step):
    whole = distribution(by, tf.zeros(1 + step, corr.dtype), tf.ones([], corr.dtype), corr)
    return whole.marginal(step=step).scale.fisher_z


def _conditional(by, loc, scale, corr, x, observed):
    return distribution(by, loc, scale, corr).conditional(x, observed)


class Operation(NamedTuple):
    """An operation of the package, its reference, and its title in the table."""

    compute: Callable[..., Any]
    reference: Callable[..., dict[str, exact.Reference]]
    title: str


OPERATIONS = {
    "matvec": Operation(
        lambda by, scale, corr, x: operator(by, scale, corr, len(x)).matvec(x),
        exact.reference_matvec,
        "sample from given noise (`scale.matvec`)",
    ),
    "matvec_adjoint": Operation(
        lambda by, scale, corr, x: operator(by, scale, corr, len(x)).matvec(x, adjoint=True),
        exact.reference_matvec_adjoint,
        "`scale.matvec(adjoint=True)`",
    ),
    "solvevec": Operation(
        lambda by, scale, corr, x: operator(by, scale, corr, len(x)).solvevec(x),
        exact.reference_solvevec,
        "whitening (`scale.solvevec`)",
    ),
    "solvevec_adjoint": Operation(
        lambda by, scale, corr, x: operator(by, scale, corr, len(x)).solvevec(x, adjoint=True),
        exact.reference_solvevec_adjoint,
        "`scale.solvevec(adjoint=True)`",
    ),
    "log_prob": Operation(
        lambda by, loc, scale, corr, x: distribution(by, loc, scale, corr).log_prob(x),
        exact.reference_log_prob,
        "`log_prob`",
    ),
    "entropy": Operation(_entropy, exact.reference_entropy, "`entropy`"),
    "kl_ar1_ar1": Operation(
        lambda by, loc, scale, corr, other_loc, other_scale, other_corr: tfd.kl_divergence(
            distribution(by, loc, scale, corr), distribution(by, other_loc, other_scale, other_corr)
        ),
        exact.reference_kl_ar1_ar1,
        "KL(AR(1) ‖ AR(1))",
    ),
    "kl_ar1_diag": Operation(
        lambda by, loc, scale, corr, other_loc, other_scale: tfd.kl_divergence(
            distribution(by, loc, scale, corr), tfd.MultivariateNormalDiag(other_loc, other_scale)
        ),
        exact.reference_kl_ar1_diag,
        "KL(AR(1) ‖ diagonal)",
    ),
    "kl_diag_ar1": Operation(
        lambda by, loc, scale, corr, other_loc, other_scale: tfd.kl_divergence(
            tfd.MultivariateNormalDiag(other_loc, other_scale), distribution(by, loc, scale, corr)
        ),
        exact.reference_kl_diag_ar1,
        "KL(diagonal ‖ AR(1))",
    ),
    "marginal": Operation(_marginal, exact.reference_marginal, "`marginal(step=k)`: its Fisher z"),
    "conditional_mean": Operation(
        lambda *args, **inputs: _conditional(*args, **inputs).mean(),
        exact.reference_conditional_mean,
        "`conditional`: mean",
    ),
    "conditional_variance": Operation(
        lambda *args, **inputs: _conditional(*args, **inputs).variance(),
        exact.reference_conditional_variance,
        "`conditional`: variance",
    ),
    "observed_log_prob": Operation(
        lambda *args, **inputs: _conditional(*args, **inputs).observed_log_prob(),
        exact.reference_observed_log_prob,
        "`conditional`: `observed_log_prob`",
    ),
}
# Inputs that are neither differentiated nor converted to the dtype.
_STATIC = {"size", "step", "observed", "weights"}


def reference(name: str, by: str, inputs: dict[str, Any]) -> dict[str, exact.Reference]:
    """The exact value and derivatives of an operation at exactly these inputs."""
    with decimal.localcontext(exact.CONTEXT):
        results = OPERATIONS[name].reference(by, **inputs)
    # A result without terms is exactly 0; drop the last digits of a finite difference.
    return {k: e._replace(value=np.where(e.terms == 0, 0.0, e.value)) for k, e in results.items()}


def compute(
    name: str, by: str, inputs: dict[str, Any], dtype: str, gradients: bool = True
) -> dict[str, np.ndarray]:
    """The package's results in `dtype`; `weights` are the output gradients of vectors."""
    inputs = dict(inputs)
    weights = inputs.pop("weights", None)
    tensors = {k: tf.constant(v, dtype) for k, v in inputs.items() if k not in _STATIC}
    static = {k: v for k, v in inputs.items() if k in _STATIC}
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = OPERATIONS[name].compute(by, **tensors, **static)
    results = {"value": value}
    if gradients:
        weights = None if weights is None else tf.constant(weights, dtype)
        results |= tape.gradient(
            value, tensors, output_gradients=weights, unconnected_gradients="zero"
        )
    return {k: v.numpy() for k, v in results.items()}


class Error(NamedTuple):
    """The largest error among the entries of one result."""

    relative: float  # relative to the largest entry
    units: float  # in eps of the entry's terms


def error(actual: np.ndarray, expected: exact.Reference) -> Error:
    """The error of `actual` where its dtype can represent the terms.

    Differences below four times the smallest normal number count as zero, because TensorFlow
    flushes subnormal numbers.
    """
    info = np.finfo(actual.dtype)
    fits = expected.terms < 0.5 * float(info.max)
    with np.errstate(all="ignore"):
        difference = np.where(fits, np.abs(actual.astype(np.float64) - expected.value), 0.0)
        difference = np.maximum(difference - 4 * float(info.tiny), 0.0)
        units = np.where(difference == 0, 0.0, difference / (expected.terms * float(info.eps)))
        largest = np.max(np.where(fits, np.abs(expected.value), 0.0), initial=0.0)
        relative = np.max(difference, initial=0.0)
        relative = relative / largest if largest else 0.0
    units = np.where(np.isnan(units), np.inf, units)
    return Error(float(relative), float(np.max(units, initial=0.0)))


# --- The grid --------------------------------------------------------------------------------

CORRELATIONS = [
    *(("correlation", rho) for rho in (0.0, 0.5, -0.9, 0.999, 1 - 1e-7, -(1 - 1e-7))),
    *(("fisher_z", u) for u in (1.0, -5.0, 10.0, 20.0)),
]
SCALES = (1e-15, 1e-3, 1.0, 1e3, 1e15)
SIZES = (2, 100, 2000)
LARGEST = 100_000  # Only at scale 1, to save time.
SEED = 0


def cases() -> list[tuple[str, float, float, int]]:
    """The grid, as `(by, corr, scale, size)`."""
    sizes = [(scale, size) for scale in SCALES for size in SIZES] + [(1.0, LARGEST)]
    return [(by, corr, scale, size) for by, corr in CORRELATIONS for scale, size in sizes]


def neighbour(by: str, corr: float) -> float:
    """Another correlation of the same sign, 1.5 times as far from ±1; or a `fisher_z` less by ½."""
    if by == "fisher_z":
        return corr - 0.5
    return float(np.copysign(1 - 1.5 * (1 - abs(corr)), corr))


def inputs_for(
    name: str, by: str, corr: float, scale: float, size: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Inputs of an operation, representable in float32 so that both dtypes get the same."""
    corr, scale = float(np.float32(corr)), float(np.float32(scale))
    noise = rng.normal(size=size)
    path = operator(by, np.float64(scale), np.float64(corr), size)
    sample = path.matvec(noise).numpy()
    loc = rng.normal(size=size) * scale
    other_scale = scale * rng.choice(rng.uniform(0.5, 2.0, 100), size)
    zeros = np.zeros(size)
    kl = {"loc": loc, "scale": scale, "corr": corr, "other_loc": zeros}
    conditional = {
        "loc": zeros,
        "scale": scale,
        "corr": corr,
        "x": sample,
        "observed": rng.random(size) < 0.5,
    }
    inputs = {
        "matvec": {"scale": scale, "corr": corr, "x": noise},
        "matvec_adjoint": {"scale": scale, "corr": corr, "x": noise},
        "solvevec": {"scale": scale, "corr": corr, "x": sample},
        "solvevec_adjoint": {"scale": scale, "corr": corr, "x": sample},
        "log_prob": {"loc": zeros, "scale": scale, "corr": corr, "x": sample},
        "entropy": {"scale": scale, "corr": corr, "size": size},
        "kl_ar1_ar1": {**kl, "other_scale": 1.3 * scale, "other_corr": neighbour(by, corr)},
        "kl_ar1_diag": {**kl, "other_scale": other_scale},
        "kl_diag_ar1": {**kl, "loc": zeros, "other_loc": loc, "other_scale": other_scale},
        "marginal": {"corr": corr, "step": size},
        "conditional_mean": conditional,
        "conditional_variance": conditional,
        "observed_log_prob": conditional,
    }[name]
    return {k: v if k in _STATIC else np.float64(np.float32(v)) for k, v in inputs.items()}


def measure(progress: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Measures errors over the whole grid; an entry for each result of each operation."""
    entries = []
    for name, operation in OPERATIONS.items():
        progress(name)
        errors: dict[tuple[str, str], list[Error]] = {}
        for number, (by, corr, scale, size) in enumerate(cases()):
            rng = np.random.default_rng([SEED, number])
            inputs = inputs_for(name, by, corr, scale, size, rng)
            expected = reference(name, by, inputs)
            for dtype in DTYPES:
                actual = compute(name, by, inputs, dtype)
                for result, value in actual.items():
                    if result not in expected:
                        continue
                    what = "value" if result == "value" else "gradients"
                    errors.setdefault((what, dtype), []).append(error(value, expected[result]))
        for what in dict.fromkeys(what for what, _ in errors):
            title = operation.title if what == "value" else f"{operation.title}, gradients"
            entry = {"operation": name, "result": what, "title": title}
            for dtype in DTYPES:
                found = errors[what, dtype]
                relative, units = ([e[i] for e in found] for i in range(2))
                entry[dtype] = {
                    "comparisons": len(found),
                    "median_relative_error": float(np.median(relative)),
                    "max_relative_error": max(relative),
                    "max_error_in_eps_of_terms": max(units),
                }
            entries.append(entry)
    return entries


def table(results: dict[str, Any]) -> str:
    """The Markdown table of the results of `measure`."""
    lines = [
        "| operation | float32: median | maximum | in eps of the terms "
        "| float64: median | maximum | in eps of the terms |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in results["entries"]:
        columns = [entry["title"]]
        for dtype in DTYPES:
            e = entry[dtype]
            columns += [
                f"{e['median_relative_error']:.1e}",
                f"{e['max_relative_error']:.1e}",
                f"{e['max_error_in_eps_of_terms']:.3g}",
            ]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def page_with(page: str, results: dict[str, Any]) -> str:
    """The page with the table between the markers replaced."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(results)}\n{END}{after}"


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def main() -> None:
    """Measures, then writes the JSON and, for the default file, the table in the docs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=RESULTS,
        help="the JSON file; with the default the table in docs/accuracy.md is rewritten too",
    )
    arguments = parser.parse_args()
    if arguments.out != RESULTS and arguments.out.exists():
        parser.error(f"{arguments.out} already exists; choose another --out or remove it first.")
    results = {
        "command": "python benchmarks/measure_accuracy.py",
        "versions": {
            "python": platform.python_version(),
            "tfp_ar1": tfp_ar1.__version__,
            "tensorflow": tf.__version__,
            "tensorflow-probability": tfp.__version__,
            "numpy": np.__version__,
        },
        "machine": platform.machine(),
        "seed": SEED,
        "grid": {
            "correlations": [{by: corr} for by, corr in CORRELATIONS],
            "marginal_scales": SCALES,
            "sizes": SIZES,
            "size_at_marginal_scale_1_only": LARGEST,
        },
        "reference": f"decimals of {exact.CONTEXT.prec} digits",
        "entries": measure(functools.partial(print, file=sys.stderr)),
    }
    write_atomically(arguments.out, json.dumps(results, indent=1) + "\n")
    if arguments.out == RESULTS:
        write_atomically(PAGE, page_with(PAGE.read_text(encoding="utf-8"), results))
    print(table(results))


if __name__ == "__main__":
    main()

"""The command line: `python -m benchmarks run` and `python -m benchmarks report`."""

from __future__ import annotations

import datetime
import importlib.util
import itertools
import json
import os
import pathlib
import platform
import re
import sys
from collections.abc import Iterable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click

_RESULTS = pathlib.Path(__file__).parent / "results" / "speed.json"
_SIZES = [(128, 16), (128, 64), (128, 256), (64, 4096), (1, 1_000_000)]
_SWEEP = [4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1_000_000]
_MODES = ("graph", "xla", "eager")
# The same total number of coordinates, in ever longer paths.
_GROWTH = [(256, 4096), (64, 16384), (16, 65536), (4, 262144), (1, 1_048_576)]
_NOISY_SIZES = [(128, 64), (64, 4096), (1, 1_000_000)]
_FAMILY_SIZES = [(128, 64), (64, 4096), (1, 100_000)]
_SUITES = (
    "ratios",
    "alternatives",
    "family",
    "growth",
    "noise",
    "sweep",
    "memory",
    "training",
    "profile",
    "schemes",
    "jax",
    "jax-training",
)
# A contender is not tried at larger sizes if one call takes longer, in seconds.
_PATIENCE = 1.0
# Fast enough for a million coordinates.
_LINEAR = ("Diag", "AR1")
_LARGEST_MEMORY = 4e9


@click.group()
def main() -> None:
    """Speed and memory of `tfp_ar1` and its alternatives."""


@main.command()
@click.option(
    "--out",
    type=click.Path(path_type=pathlib.Path),
    help="A file, or a folder for speed.json or jax-DEVICE.json. [default: benchmarks/results]",
)
# The suites of JAX need a process of their own, as its threads slow down TensorFlow.
@click.option("--suite", "suites", multiple=True, type=click.Choice(_SUITES), default=_SUITES[:-2])
@click.option("--mode", "modes", multiple=True, type=click.Choice(_MODES), default=_MODES)
@click.option("--seconds", default=2.0, show_default=True, help="Time per comparison.")
def run(
    out: pathlib.Path | None, suites: tuple[str, ...], modes: tuple[str, ...], seconds: float
) -> None:
    """Measure, and write the results; those of other suites in the file are kept."""
    for suite in suites:
        entries = {
            "ratios": ratios,
            "alternatives": alternatives,
            "family": family,
            "growth": growth,
            "noise": noise,
            "sweep": sweep,
            "memory": memory,
            "training": training,
            "profile": profile,
            "schemes": schemes,
            "jax": on_jax,
            "jax-training": training_on_jax,
        }[suite]
        found: dict[str, Any] = {
            "command": " ".join(
                [f"python -m benchmarks run --suite {suite} --seconds {seconds:g}"]
                + [f"--mode {mode}" for mode in modes if suite == "ratios"]
            ),
            "environment": environment(),
            "results": [],
        }
        for entry in entries(modes, seconds):
            click.echo(json.dumps(entry))
            found["results"].append(entry)
            file = _file_of_device() if suite.startswith("jax") else _RESULTS
            if out is not None:
                file = out / file.name if out.is_dir() else out
            results = json.loads(file.read_text()) if file.exists() else {}
            _write(file, {**results, suite: found})


def _file_of_device() -> pathlib.Path:
    from benchmarks import of_jax

    return _RESULTS.with_name(f"jax-{re.sub(r'[^a-z0-9]+', '-', of_jax.device().lower())}.json")


def _write(path: pathlib.Path, results: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(path)


def environment() -> dict[str, Any]:
    """Describes the machine, its load, and the versions."""
    from importlib import metadata

    packages = ("tfp_ar1", "tensorflow", "tensorflow-probability", "keras", "numpy")
    packages += ("jax", "tfp-nightly", "tinygp", "dynamax")
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
        if pathlib.Path("/proc/cpuinfo").exists()
        else iter(()),
        platform.processor(),
    )
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        # Load of the last minute, before this program adds to it.
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{p: metadata.version(p) for p in packages if any(metadata.distributions(name=p))},
    }


def ratios(modes: tuple[str, ...], seconds: float) -> Any:
    """AR1 relative to Diag, for every operation at the five sizes."""
    for mode, (b, d) in itertools.product(modes, _SIZES):
        yield from _compare(("Diag", "AR1"), b, d, mode, (False, True), seconds)


def alternatives(modes: tuple[str, ...], seconds: float) -> Any:
    """All contenders, with gradients, in graph mode, at sizes where matrices are not huge."""
    from benchmarks import contenders

    names = ("AR1", "Diag", *(n for n in contenders.CONTENDERS if n not in ("AR1", "Diag")))
    for b, d in [(128, 64), (128, 256)]:
        yield from _compare(names, b, d, "graph", (True,), seconds)


def family(modes: tuple[str, ...], seconds: float) -> Any:
    """Diag, AR1 and its relatives in graph mode, with parameters shared by the batch or not."""
    from benchmarks import contenders

    for shared, (b, d) in itertools.product((True, False), _FAMILY_SIZES):
        options = {"among": contenders.FAMILY, "shared": shared}
        found = _compare(contenders.FAMILY, b, d, "graph", (False, True), seconds, **options)
        for entry in found:
            yield {"shared": shared, **entry}


def growth(modes: tuple[str, ...], seconds: float) -> Any:
    """AR1 and Diag in graph mode, with a fixed total size in paths of different lengths."""
    for b, d in _GROWTH:
        yield from _compare(("Diag", "AR1"), b, d, "graph", (False, True), seconds)


def noise(modes: tuple[str, ...], seconds: float) -> Any:
    """The likelihood of a noisy path against Kalman filters, in graph mode, and its peak memory."""
    from benchmarks import measure
    from benchmarks import noise as noisy

    cases = list(itertools.product(_NOISY_SIZES, (False, True)))
    # TensorFlow first: the threads of JAX would slow it down.
    found = [measure.interleaved(noisy.of_tensorflow(*size, g), 5 * seconds) for size, g in cases]
    for ((b, d), gradients), times in zip(cases, found, strict=True):
        others = measure.interleaved(noisy.of_others(b, d, gradients), 5 * seconds)
        entry = {"batch": b, "size": d, "gradients": gradients, "times": {**others, **times}}
        if b == 1:
            entry["bytes"] = measure.peak_memory("benchmarks.noise", ["tfp_ar1", gradients, b, d])
        yield entry


def _compare(
    names: Iterable[str],
    b: int,
    d: int,
    mode: str,
    gradients: Iterable[bool],
    seconds: float,
    **options: Any,
) -> Any:
    from benchmarks import contenders, measure

    among = options.get("among", contenders.CONTENDERS)
    for operation, with_gradients in itertools.product(contenders.OPERATIONS, gradients):
        functions = {
            name: contenders.function(name, operation, with_gradients, b, d, mode, **options)
            for name in names
            if operation in among[name].operations
        }
        yield {
            "mode": mode,
            "batch": b,
            "size": d,
            "operation": operation,
            "gradients": with_gradients,
            "times": measure.interleaved(functions, seconds),
        }


def sweep(modes: tuple[str, ...], seconds: float) -> Any:
    """Sampling and log_prob of all contenders in graph mode, with gradients, d from 4 to 10⁶."""
    from benchmarks import contenders, measure

    given_up: dict[tuple[str, str], str] = {}
    for d, operation in itertools.product(_SWEEP, ("sample", "log_prob")):
        functions = {}
        for name, contender in contenders.CONTENDERS.items():
            if operation not in contender.operations:
                continue
            if (name, operation) not in given_up:
                needed = contender.bytes_needed(1, d)
                if needed > _LARGEST_MEMORY:
                    given_up[name, operation] = f"needs more than {needed / 2**30:.0f} GiB"
                elif name == "Python loop" and d > 1024:
                    given_up[name, operation] = "the graph takes minutes to build"
            if (name, operation) not in given_up:
                functions[name] = contenders.function(name, operation, True, 1, d, "graph")
        times = measure.interleaved(functions, seconds)
        for name, time in times.items():
            if time["median"] > _PATIENCE:
                given_up[name, operation] = f"takes {time['median']:.0f} s at d = {d}"
        yield {
            "operation": operation,
            "size": d,
            "times": times,
            "given_up": {name: why for (name, op), why in given_up.items() if op == operation},
        }


def memory(modes: tuple[str, ...], seconds: float) -> Any:
    """The peak memory of log_prob and sampling, with gradients."""
    from benchmarks import contenders, measure

    for (b, d), operation in itertools.product(
        [(128, 256), (1, 1_000_000)], ("sample", "log_prob")
    ):
        for name, contender in contenders.CONTENDERS.items():
            if operation not in contender.operations or "loop" in name:
                continue
            if contender.bytes_needed(b, d) < _LARGEST_MEMORY and (d < 1e4 or name in _LINEAR):
                peak = measure.peak_memory("benchmarks.contenders", [name, operation, True, b, d])
                yield {"name": name, "operation": operation, "batch": b, "size": d, "bytes": peak}


def training(modes: tuple[str, ...], seconds: float) -> Any:
    """A training step of `RhoVAE` with the paper's network and batches of 128."""
    import keras
    import numpy as np

    import tfp_ar1
    from benchmarks import measure
    from tfp_ar1.vae.architectures import mlp

    x = np.random.default_rng(0).uniform(size=(128, 28, 28)).astype("float32")

    def step(posterior: str, latent_dim: int, jit_compile: bool) -> Any:
        model = tfp_ar1.RhoVAE(
            *mlp(data_shape=(28, 28), latent_dim=latent_dim), latent_dim, posterior=posterior
        )
        model.compile(keras.optimizers.Adam(1e-3), jit_compile=jit_compile)
        return lambda: model.train_on_batch(x)

    for latent_dim, jit_compile in itertools.product((10, 50), (False, True)):
        functions = {p: step(p, latent_dim, jit_compile) for p in ("diag", "ar1", "full")}
        yield {
            "latent_dim": latent_dim,
            "jit_compile": jit_compile,
            "times": measure.interleaved(functions, 10 * seconds),
        }


def profile(modes: tuple[str, ...], seconds: float) -> Any:
    """Sampling with gradients in graph mode by kind of operation, at the sizes of `ratios`."""
    from benchmarks import profile as profiles

    for (b, d), name in itertools.product(_SIZES[1:], ("Diag", "AR1")):
        found = profiles.by_operation(name, "sample", True, b, d)
        yield {
            "name": name,
            "operation": "sample",
            "gradients": True,
            "batch": b,
            "size": d,
            **found,
        }


def schemes(modes: tuple[str, ...], seconds: float) -> Any:
    """Sampling with gradients for each scheme of the recurrence, in graph mode."""
    from benchmarks import contenders, measure
    from tfp_ar1 import _scan_schemes

    chosen = _scan_schemes._LARGEST_SIZE_FOR_DOUBLING, _scan_schemes._BLOCK_SIZE
    for b, d in [(128, 64), (128, 256), (128, 512), (64, 1024), (64, 4096), (1, 1_000_000)]:
        functions = {"Diag": contenders.function("Diag", "sample", True, b, d, "graph")}
        for block_size in (None, 8, 16, 32, 64):
            if block_size is None and d > 1024:
                continue
            # Both are read when the function is traced, in its first call.
            _scan_schemes._LARGEST_SIZE_FOR_DOUBLING = d if block_size is None else 48
            _scan_schemes._BLOCK_SIZE = block_size
            name = "doubling" if block_size is None else f"blocks of {block_size}"
            functions[name] = contenders.function("AR1", "sample", True, b, d, "graph")
            functions[name]()
        _scan_schemes._LARGEST_SIZE_FOR_DOUBLING, _scan_schemes._BLOCK_SIZE = chosen
        yield {"batch": b, "size": d, "times": measure.interleaved(functions, 2 * seconds)}


def on_jax(modes: tuple[str, ...], seconds: float) -> Any:
    """AR1, Diag and others on JAX, and AR1 on TensorFlow if it is installed."""
    if importlib.util.find_spec("tensorflow") is not None:
        cases = list(itertools.product(("graph", "xla"), _SIZES))
        found = [_compare(("AR1",), *size, mode, (False, True), seconds) for mode, size in cases]
        # Run these before JAX starts its threads.
        yield from list(itertools.chain.from_iterable(found))
    from benchmarks import of_jax

    yield from of_jax.results(_SIZES, seconds)


def training_on_jax(modes: tuple[str, ...], seconds: float) -> Any:
    """A step of `fit` of the models on JAX."""
    from benchmarks import training_on_jax

    yield from training_on_jax.results(seconds)


@main.command()
@click.argument("results", type=click.Path(exists=True, path_type=pathlib.Path), default=_RESULTS)
@click.option("--readme", type=click.Path(exists=True, path_type=pathlib.Path))
@click.option(
    "--page", type=click.Path(exists=True, path_type=pathlib.Path), help="For the JAX tables."
)
def report(results: pathlib.Path, readme: pathlib.Path | None, page: pathlib.Path | None) -> None:
    """Write tables (.md) and the picture (.png) beside RESULTS, and tables in README and docs."""
    from benchmarks import report as reports

    contents = json.loads(results.read_text())
    tables, picture = results.with_suffix(".md"), results.with_suffix(".png")
    tables.write_text(reports.tables(contents))
    reports.picture(contents["sweep"]["results"], picture)
    click.echo(f"Wrote {tables} and {picture}.")
    if readme is not None:
        section = reports.readme_section(contents)
        text = reports.with_section(readme.read_text(), reports.README_MARKS, section)
        readme.write_text(text)
        click.echo(f"Wrote the tables of {readme}.")
    if page is not None:
        files = sorted(results.parent.glob("jax-*.json"))
        section = reports.jax_section([json.loads(file.read_text()) for file in files])
        page.write_text(reports.with_section(page.read_text(), reports.JAX_MARKS, section))
        click.echo(f"Wrote the tables of {page}.")


if __name__ == "__main__":
    sys.exit(main())

"""The command line: `python -m benchmarks run` and `python -m benchmarks report`."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import pathlib
import platform
import sys
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click

_RESULTS = pathlib.Path(__file__).parent / "results" / "speed.json"
_SIZES = [(128, 16), (128, 64), (128, 256), (64, 4096), (1, 1_000_000)]
_SWEEP = [4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1_000_000]
_MODES = ("graph", "xla", "eager")
_SUITES = ("ratios", "sweep", "memory", "training")
# A contender that takes longer for one call is not tried at larger sizes.
_PATIENCE = 3.0
_LARGEST_MEMORY = 4e9


@click.group()
def main() -> None:
    """Speed and memory of `tfp_ar1` beside what one would use instead."""


@main.command()
@click.option("--out", type=click.Path(path_type=pathlib.Path), default=_RESULTS, show_default=True)
@click.option("--suite", "suites", multiple=True, type=click.Choice(_SUITES), default=_SUITES)
@click.option("--mode", "modes", multiple=True, type=click.Choice(_MODES), default=_MODES)
@click.option("--seconds", default=2.0, show_default=True, help="For each comparison.")
def run(out: pathlib.Path, suites: tuple[str, ...], modes: tuple[str, ...], seconds: float) -> None:
    """Measure; results of suites that are not run again are kept in the file."""
    results = json.loads(out.read_text()) if out.exists() else {}
    for suite in suites:
        entries = {"ratios": ratios, "sweep": sweep, "memory": memory, "training": training}[suite]
        results[suite] = {
            "command": " ".join(
                [f"python -m benchmarks run --suite {suite} --seconds {seconds:g}"]
                + [f"--mode {mode}" for mode in modes if suite == "ratios"]
            ),
            "environment": environment(),
            "results": [],
        }
        for entry in entries(modes, seconds):
            click.echo(json.dumps(entry))
            results[suite]["results"].append(entry)
            _write(out, results)


def _write(path: pathlib.Path, results: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(path)


def environment() -> dict[str, Any]:
    """The machine and the versions."""
    from importlib import metadata

    packages = ("tfp_ar1", "tensorflow", "tensorflow-probability", "keras", "numpy")
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
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
    }


def ratios(modes: tuple[str, ...], seconds: float) -> Any:
    """Every operation at the five sizes, beside Diag; TriL where its matrices are not huge."""
    from benchmarks import contenders, measure

    for mode, (b, d) in itertools.product(modes, _SIZES):
        for operation, gradients in itertools.product(contenders.OPERATIONS, (False, True)):
            names = ["Diag", "AR1"]
            if contenders.CONTENDERS["TriL"].bytes_needed(b, d) < _LARGEST_MEMORY:
                names.append("TriL")
            functions = {
                name: contenders.function(name, operation, gradients, b, d, mode) for name in names
            }
            yield {
                "mode": mode,
                "batch": b,
                "size": d,
                "operation": operation,
                "gradients": gradients,
                "times": measure.interleaved(functions, seconds),
            }


def sweep(modes: tuple[str, ...], seconds: float) -> Any:
    """Sampling and log_prob with gradients for d from 4 to 10⁶ by graphs, with all contenders."""
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
    """The peak memory of log_prob and of sampling, with gradients."""
    from benchmarks import contenders, measure

    for (b, d), operation in itertools.product(
        [(128, 256), (1, 1_000_000)], ("sample", "log_prob")
    ):
        for name in ("Diag", "AR1", "TriL"):
            if contenders.CONTENDERS[name].bytes_needed(b, d) < _LARGEST_MEMORY:
                peak = measure.peak_memory(name, operation, True, b, d)
                yield {"name": name, "operation": operation, "batch": b, "size": d, "bytes": peak}


def training(modes: tuple[str, ...], seconds: float) -> Any:
    """A training step of `RhoVAE` with the paper's network at batch 128."""
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


@main.command()
@click.argument("results", type=click.Path(exists=True, path_type=pathlib.Path), default=_RESULTS)
def report(results: pathlib.Path) -> None:
    """Write tables (.md) and the picture (.png) beside RESULTS."""
    from benchmarks import report as reports

    contents = json.loads(results.read_text())
    results.with_suffix(".md").write_text(reports.tables(contents))
    click.echo(f"Wrote {results.with_suffix('.md')}.")
    if "sweep" in contents:
        reports.picture(contents["sweep"]["results"], results.with_suffix(".png"))
        click.echo(f"Wrote {results.with_suffix('.png')}.")


if __name__ == "__main__":
    sys.exit(main())

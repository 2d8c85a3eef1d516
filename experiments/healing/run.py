"""Trains and evaluates methods, several seeds at once, and writes a line as each one ends."""

import concurrent.futures
import functools
import json
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import time
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.healing import classifier, data, model
from experiments.healing.latents import METHODS
from experiments.healing.results import SETTINGS, key_of, read

# Seconds kept for the last evaluation and the classifiers.
_RESERVE = 45


class Options(NamedTuple):
    """The runs and their output; see `python -m experiments.healing run --help`."""

    data_dir: pathlib.Path
    out: pathlib.Path
    methods: list[str]
    seeds: list[int]
    together: int
    epochs: int
    num_train: int
    num_test: int
    beta: float
    missing: str
    degrees: float
    seconds: float
    code: str


class Task(NamedTuple):
    """A method, and the seeds to train at once."""

    method: str
    seeds: list[int]


class Programs(NamedTuple):
    """Compiled programs: initial states of seeds, an epoch of all seeds, measures of one seed."""

    initial: Any
    train: Any
    evaluate: Any


def run(options: Options) -> None:
    """Runs whatever has no line in the file of results yet, within the time limit."""
    end = time.monotonic() + options.seconds
    done = {key_of(record) for record in read(options.out)} if options.out.exists() else set()
    tasks = _tasks(options, done)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    with (
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads,
        concurrent.futures.ProcessPoolExecutor(mp_context=spawn) as processes,
        options.out.open("a", encoding="utf-8") as file,
    ):
        # Compile each method once, while the data are prepared.
        shapes = dict.fromkeys((task.method, len(task.seeds)) for task in tasks)
        programs = {shape: threads.submit(_compile, options, *shape) for shape in shapes}
        train, test = data.load(
            options.data_dir,
            options.num_train,
            options.num_test,
            options.degrees,
            options.missing,
        )
        train_pixels, test_pixels = jnp.asarray(train.pixels), jnp.asarray(test.pixels)
        _say(f"data ready; {len(tasks)} tasks", end)
        pending: dict[concurrent.futures.Future, dict[str, Any]] = {}
        longest = 0.0
        for task in tasks:
            if time.monotonic() + longest + _RESERVE > end:
                _say(f"no time for {task.method} {task.seeds}", end)
                continue
            try:
                compiled = programs[task.method, len(task.seeds)].result()
                start = time.monotonic()
                records, imputed = _run_task(
                    options, task, compiled, train_pixels, test_pixels, end
                )
            except Exception as error:  # One method must not cost the others their lines.
                _say(f"{task.method} failed: {error!r}", end)
                continue
            longest = max(longest, time.monotonic() - start)
            for record, bits in zip(records, imputed, strict=True):
                future = processes.submit(classifier.auroc, bits, test.labels)
                pending[future] = record
            _write_done(file, pending, 0.0)
        threads.shutdown(wait=False, cancel_futures=True)
        _write_done(file, pending, max(0.0, end - time.monotonic()))
        for record in pending.values():  # Time is up: write them without the AUROC.
            _write(file, record | {"auroc": None})
        for process in list(processes._processes.values()) if pending else []:
            process.terminate()


def _tasks(options: Options, done: set[tuple[Any, ...]]) -> list[Task]:
    """All methods with the first group of seeds, then with the next, except finished runs."""
    settings = _settings(options)
    seeds = [
        options.seeds[i : i + options.together]
        for i in range(0, len(options.seeds), options.together)
    ]
    tasks = (
        Task(
            method,
            [s for s in group if key_of(settings | {"method": method, "seed": s}) not in done],
        )
        for group in seeds
        for method in options.methods
    )
    return [task for task in tasks if task.seeds]


def _settings(options: Options) -> dict[str, Any]:
    return {key: getattr(options, key) for key in SETTINGS if key not in ("method", "seed")}


def _compile(options: Options, name: str, num_seeds: int) -> Programs:
    method, steps = METHODS[name], options.num_train // model.BATCH

    def pixels(number: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((number, data.FRAMES, data.PIXELS), np.uint8)

    seeds = jax.ShapeDtypeStruct((num_seeds,), np.int32)
    initial = jax.jit(jax.vmap(functools.partial(model.initial, method))).lower(seeds)
    states = initial.out_info
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), states)
    train = model.train.lower(states, pixels(options.num_train), method, options.beta, steps)
    evaluate = model.evaluate.lower(one.parameters, pixels(options.num_test), one.key, method)
    return Programs(initial.compile(), train.compile(), evaluate.compile())


def _run_task(
    options: Options,
    task: Task,
    programs: Programs,
    train_pixels: jax.Array,
    test_pixels: jax.Array,
    end: float,
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """The results of a task's seeds except the classifier's, and the imputed sequences."""
    states = programs.initial(jnp.asarray(task.seeds, jnp.int32))
    seconds, losses = [], []
    for _ in range(options.epochs):
        start = time.monotonic()
        states, loss = programs.train(states, train_pixels)
        losses.append(np.asarray(loss).tolist())  # Waits for the epoch.
        seconds.append(time.monotonic() - start)
        if len(seconds) == 1 and seconds[0] * (options.epochs - 1) > end - time.monotonic():
            raise TimeoutError(f"{options.epochs} epochs of {seconds[0]:.1f} s are too many")
    per_epoch = statistics.median(seconds)
    _say(f"{task.method} {task.seeds}: {per_epoch:.2f} s an epoch, loss {losses[-1]}", end)
    records, imputed = [], []
    for row, seed in enumerate(task.seeds):
        parameters, key = jax.tree.map(lambda x, row=row: x[row], (states.parameters, states.key))
        sums, bits = programs.evaluate(parameters, test_pixels, key)
        measures = {name: np.asarray(x, np.float64) for name, x in sums.items()}
        num_missing = int(jnp.sum(test_pixels >= data.HIDDEN))
        records.append(
            _settings(options)
            | {"method": task.method, "seed": seed}
            | {name: measures[name].sum() / num_missing for name in ("nll", "nll_mixed", "mse")}
            | {name: measures[name].sum() / len(test_pixels) for name in ("neg_elbo", "kl")}
            | {n: measures[n].mean() for n in ("posterior_correlation", "posterior_scale", "seen")}
            | _of_prior(parameters)
            | {
                "seconds_per_epoch": per_epoch,
                "seeds_at_once": len(task.seeds),
                "history": [float(f"{epoch[row]:.7g}") for epoch in losses],
                "device": jax.devices()[0].device_kind,
                "versions": versions(),
                "code": options.code or code(),
                "command": " ".join(["python -m experiments.healing", *sys.argv[1:]]),
            }
        )
        imputed.append(np.asarray(bits))
        line = (f"{k} {records[-1][k]:.4f}" for k in ("nll", "nll_mixed", "mse", "neg_elbo", "kl"))
        _say(f"{task.method} seed {seed}: {', '.join(line)}", end)
    return records, imputed


def _of_prior(parameters: model.Parameters) -> dict[str, float]:
    """Quantiles of a prior's learned correlations."""
    if "prior" not in parameters:
        return {}
    rho = np.tanh(np.asarray(parameters["prior"], np.float64))
    low, median, high = np.quantile(rho, (0.1, 0.5, 0.9)).tolist()
    return {"prior_correlation": median, "prior_correlation_10": low, "prior_correlation_90": high}


def _write_done(file: Any, pending: dict[Any, dict[str, Any]], seconds: float) -> None:
    """Writes results whose classifiers finish within this time."""
    try:
        for future in concurrent.futures.as_completed(list(pending), timeout=seconds):
            if error := future.exception():
                print(f"classifier: {error!r}", flush=True)
            auroc = None if error else future.result()
            _write(file, pending.pop(future) | {"auroc": auroc})
    except TimeoutError:
        pass


def _write(file: Any, record: dict[str, Any]) -> None:
    try:
        file.write(json.dumps(record, allow_nan=False) + "\n")
    except ValueError:
        print(f"{record['method']} seed {record['seed']}: not finite, so not written", flush=True)
    file.flush()


@functools.cache
def versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on."""
    packages = ("jax", "jaxlib", "tfp-nightly", "tensorflow-probability", "optax", "numpy")
    found = {}
    for package in (*packages, "scipy", "scikit-learn"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"python": sys.version.split()[0], **found}


@functools.cache
def code() -> str:
    """The commit of this checkout, or `unknown`."""
    root = str(pathlib.Path(__file__).parents[2])
    git = subprocess.run(
        ["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return git.stdout.strip() or "unknown"


def _say(text: str, end: float) -> None:
    print(f"[{end - time.monotonic():6.1f} s left] {text}", flush=True)

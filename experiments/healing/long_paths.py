"""The cost of a gradient for long paths: GP-VAE's dense matrices, and chains in O(steps).

All methods share one small network over time: a convolution of width 3 to 64 units, a dense layer
to the posterior over 8 latent paths, one draw, and a dense layer back to 16 features. The loss is a
Gaussian likelihood plus the KL divergence to a Matérn-1/2 prior. Batches of 8, float32.
"""

import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.healing import run
from experiments.healing.latents import METHODS, POSTERIORS, Method, posterior_and_kl
from experiments.healing.model import LIBRARY

METHODS_OF_PATHS = {
    "gp_vae_matern": METHODS["gp_vae_matern"],
    "ante1": METHODS["ante1_ar1_fixed"],
    "sites": Method("sites", "ar1_fixed"),
}
STEPS = (10, 30, 100, 300, 1000, 3000, 10_000)
_BATCH, _FEATURES, _UNITS, _LATENTS = 8, 16, 64, 8
_REPEATS, _LEAST_REPEATS, _MOST_SECONDS = 200, 5, 60
# For shorter paths, Python and JAX themselves take most of the memory of a process.
_PEAKS_FROM = 1000


def loss(weights: dict[str, jax.Array], method: Method, x: jax.Array, key: jax.Array) -> jax.Array:
    """The mean loss over a batch `[batch, steps, features]`."""
    padded, steps = jnp.pad(x, ((0, 0), (1, 1), (0, 0))), x.shape[1]
    hidden = jax.nn.relu(
        sum(padded[:, i : i + steps] @ weight for i, weight in enumerate(weights["over_time"]))
    )
    with jax.default_matmul_precision("highest"):
        posterior, kl = posterior_and_kl(LIBRARY, method, hidden @ weights["posterior"], None)
        paths = posterior.sample(seed=key)
    error = x - jnp.swapaxes(paths, -1, -2) @ weights["back"]
    return jnp.mean(0.5 * jnp.sum(jnp.square(error), axis=(1, 2)) + kl)


def measure(out: pathlib.Path, seconds: float, most_bytes: float, code: str) -> None:
    """Writes a line for each method and number of steps that is not in the file yet.

    Runs are interleaved, so other load on the machine affects all methods equally. A method that
    needs `most_bytes` or more is not run, and longer paths are not tried with it.

    Args:
      out: the file of results.
      seconds: time limit.
      most_bytes: programs that need this much memory or more are not run.
      code: the commit, if git cannot tell it.
    """
    end = time.monotonic() + seconds
    lines = out.read_text("utf-8").splitlines() if out.exists() else []
    done = {(line["method"], line["steps"]): line for line in map(json.loads, lines)}
    ended = {name: steps for (name, steps), line in done.items() if line["seconds"] is None}
    for steps in STEPS:
        todo = [x for x in METHODS_OF_PATHS if (x, steps) not in done]
        todo = [x for x in todo if steps <= ended.get(x, steps)]
        if time.monotonic() > end:
            break
        programs = {name: _compile(name, steps) for name in todo}
        sizes = {name: _temporary_bytes(program) for name, program in programs.items()}
        fitting = {name: programs[name] for name in todo if sizes[name] < most_bytes}
        ended |= dict.fromkeys(programs.keys() - fitting.keys(), steps)
        times = _times(fitting)
        del programs
        for name in todo:
            record = {
                "method": name,
                "steps": steps,
                "bytes": sizes[name],
                "seconds": statistics.median(times[name]) if name in times else None,
                "repeats": len(times.get(name, ())),
                "peak_bytes": None,
                "device": _device(),
                "xla_flags": os.environ.get("XLA_FLAGS", ""),
                "versions": run.versions(),
                "command": " ".join(["python -m experiments.healing", *sys.argv[1:]]),
                "code": code or run.code(),
            }
            if name in fitting and steps >= _PEAKS_FROM:
                spawn = multiprocessing.get_context("spawn")
                with concurrent.futures.ProcessPoolExecutor(1, spawn) as process:
                    record["peak_bytes"] = process.submit(_peak_bytes, name, steps).result()
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            keys = ("method", "steps", "seconds", "bytes", "peak_bytes")
            print({key: record[key] for key in keys}, flush=True)


def _compile(name: str, steps: int) -> tuple[Any, Any]:
    rng, method = np.random.default_rng(0), METHODS_OF_PATHS[name]
    shapes = {
        "over_time": (3, _FEATURES, _UNITS),
        "posterior": (_UNITS, POSTERIORS[method.posterior] * _LATENTS),
        "back": (_LATENTS, _FEATURES),
    }
    weights = {k: jnp.asarray(0.1 * rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
    x = jnp.asarray(rng.normal(size=(_BATCH, steps, _FEATURES)), jnp.float32)
    arguments = (weights, x, jax.random.key(0))
    gradient = jax.jit(jax.value_and_grad(lambda weights, x, key: loss(weights, method, x, key)))
    return gradient.lower(*arguments).compile(), arguments


def _temporary_bytes(compiled: tuple[Any, Any]) -> int:
    """The memory that XLA allocates for a run, besides arguments and results."""
    return int(compiled[0].memory_analysis().temp_size_in_bytes)


def _times(programs: dict[str, tuple[Any, Any]]) -> dict[str, list[float]]:
    """The seconds of interleaved runs, without the first, which includes loading the program."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    start = time.perf_counter()
    for _ in range(1 + _REPEATS):
        for name, (program, arguments) in programs.items():
            before = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            times[name].append(time.perf_counter() - before)
        if time.perf_counter() - start > _MOST_SECONDS and len(times[name]) > _LEAST_REPEATS:
            break
    return {name: seconds[1:] for name, seconds in times.items()}


def _peak_bytes(name: str, steps: int) -> int:
    """The peak memory of this process, which does nothing else, after one run."""
    program, arguments = _compile(name, steps)
    jax.block_until_ready(program(*arguments))
    # Not `getrusage`: a process inherits its maximum from the parent process.
    status = pathlib.Path("/proc/self/status").read_text("utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def _device() -> str:
    """The name of the GPU or of the processor, which JAX only calls "cpu"."""
    kind = jax.devices()[0].device_kind
    if kind != "cpu":
        return kind
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    names = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in names if line.startswith("model name")]
    return f"{names[0]} ({len(names)} cores)" if names else kind

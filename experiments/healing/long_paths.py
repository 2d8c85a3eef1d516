"""What a gradient costs as paths become long: GP-VAE's dense matrices, and chains in O(steps).

One small network over time, the same for each method: a convolution of width 3 to 64 units, a dense
layer to the posterior of 8 latent paths, one draw, and a dense layer back to 16 features; the loss
is a Gaussian likelihood plus the KL divergence to a Matérn-1/2 prior. Batches of 8, float32.
"""

import concurrent.futures
import json
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
_REPEATS = 20


def loss(weights: dict[str, jax.Array], method: Method, x: jax.Array, key: jax.Array) -> jax.Array:
    """The mean over a batch `[batch, steps, features]`."""
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

    Args:
      out: the file of results.
      seconds: when to have ended.
      most_bytes: a program that needs more memory than this is not run.
      code: the commit, where git does not know it.
    """
    end = time.monotonic() + seconds
    lines = out.read_text("utf-8").splitlines() if out.exists() else []
    done = {(line["method"], line["steps"]) for line in map(json.loads, lines)}
    todo = [(name, steps) for steps in STEPS for name in METHODS_OF_PATHS]
    todo = [key for key in todo if key not in done]
    with (
        concurrent.futures.ThreadPoolExecutor() as threads,
        out.open("a", encoding="utf-8") as file,
    ):
        programs = {key: threads.submit(_compile, *key) for key in todo}
        for name, steps in todo:
            if time.monotonic() > end:
                threads.shutdown(wait=False, cancel_futures=True)
                break
            record = _measure(programs[name, steps].result(), name, steps, most_bytes)
            record["code"] = code or run.code()
            file.write(json.dumps(record) + "\n")
            file.flush()
            print({k: record[k] for k in ("method", "steps", "seconds", "bytes")}, flush=True)


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


def _measure(compiled: tuple[Any, Any], name: str, steps: int, most_bytes: float) -> dict[str, Any]:
    program, arguments = compiled
    memory = program.memory_analysis().temp_size_in_bytes
    record: dict[str, Any] = {"method": name, "steps": steps, "bytes": memory, "seconds": None}
    if memory < most_bytes:
        times = []
        for _ in range(_REPEATS):
            start = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            times.append(time.perf_counter() - start)
            if sum(times) > 10:
                break
        # The first one includes loading the program.
        record["seconds"] = statistics.median(times[1:] or times)
    return record | {
        "device": jax.devices()[0].device_kind,
        "versions": run.versions(),
        "command": " ".join(["python -m experiments.healing", *sys.argv[1:]]),
    }

"""The distributions on JAX, jitted, and their alternatives.

All but the diagonal normal have the same distribution. `python -m benchmarks run --suite jax`
measures them, with TensorFlow if it is installed. Libraries that are not installed are left out:
`pip install dynamax tinygp`. (celerite2.jax supports neither float32 nor batches; it is in the
suite `noise`.)
"""

from __future__ import annotations

import concurrent.futures
import functools
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tensorflow_probability.substrates import jax as tfp

import tfp_ar1_jax
from benchmarks import measure

tfd = tfp.distributions

_RHO, _SIGMA = 0.7, 1.3
# On accelerators, every sequential step is a kernel launch.
_LARGEST_OF_SERIAL = 4096
# A contender is not measured if one call takes longer, in seconds.
_PATIENCE = 0.5

Parameters = dict[str, jax.Array]


class _ByHand(NamedTuple):
    """A solution in a few lines: innovations, and `jax.lax.associative_scan`."""

    loc: jax.Array
    scale: jax.Array
    rho: jax.Array

    def log_prob(self, x: jax.Array) -> jax.Array:
        rho, scale = self.rho[:, None], self.scale[:, None]
        w = x - self.loc
        innovation_scale = scale * jnp.sqrt(1.0 - rho**2)
        first = jax.scipy.stats.norm.logpdf(w[:, :1], 0.0, scale)
        later = jax.scipy.stats.norm.logpdf(w[:, 1:], rho * w[:, :-1], innovation_scale)
        return jnp.sum(first, -1) + jnp.sum(later, -1)

    def sample(self, seed: jax.Array) -> jax.Array:
        noise = jax.random.normal(seed, self.loc.shape)
        rho = jnp.broadcast_to(self.rho[:, None], noise.shape)
        steps = jnp.where(jnp.arange(noise.shape[-1]) == 0, noise, jnp.sqrt(1.0 - rho**2) * noise)

        def join(p: Any, q: Any) -> Any:
            return p[0] * q[0], q[0] * p[1] + q[1]

        path = jax.lax.associative_scan(join, (rho, steps), axis=-1)[1]
        return self.loc + self.scale[:, None] * path


class _OfEach(NamedTuple):
    """Batches a process of one path, `make(loc=, scale=, fisher_z=)`, with `jax.vmap`."""

    make: Callable[..., Any]
    parameters: Parameters

    def log_prob(self, x: jax.Array) -> jax.Array:
        return jax.vmap(lambda p, x: self.make(**p).log_prob(x))(self.parameters, x)

    def sample(self, seed: jax.Array) -> jax.Array:
        keys = jax.random.split(seed, len(self.parameters["loc"]))
        return jax.vmap(lambda p, key: self.make(**p).sample(key))(self.parameters, keys)


class _TinyGP:
    def __init__(self, loc: jax.Array, scale: jax.Array, fisher_z: jax.Array):
        from tinygp import GaussianProcess
        from tinygp.kernels import quasisep

        kernel = quasisep.Exp(scale=-1.0 / jnp.log(jnp.tanh(fisher_z)), sigma=scale)
        times = jnp.arange(loc.shape[-1], dtype=loc.dtype)
        # tinygp requires a noise variance; with 0, the distribution is that of the others.
        self.process = GaussianProcess(kernel, times, diag=jnp.zeros_like(loc))
        self.loc = loc

    def log_prob(self, x: jax.Array) -> jax.Array:
        return self.process.log_probability(x - self.loc)

    def sample(self, seed: jax.Array) -> jax.Array:
        return self.loc + self.process.sample(seed)


class _Dynamax:
    """The Kalman filter of dynamax, without noise."""

    def __init__(
        self, loc: jax.Array, scale: jax.Array, fisher_z: jax.Array, is_parallel: bool = False
    ):
        from dynamax.linear_gaussian_ssm import inference, parallel_inference

        rho, variance, one = jnp.tanh(fisher_z), scale**2, jnp.ones([1, 1])
        self.filter = (parallel_inference if is_parallel else inference).lgssm_filter
        self.loc = loc
        self.parameters = inference.make_lgssm_params(
            jnp.zeros(1), variance * one, rho * one, variance * (1.0 - rho**2) * one, one, 0.0 * one
        )

    def log_prob(self, x: jax.Array) -> jax.Array:
        return self.filter(self.parameters, (x - self.loc)[:, None]).marginal_loglik


def _ar1_parameters(b: int, d: int) -> Parameters:
    fisher_z = jnp.full([b], float(np.arctanh(_RHO)))
    return {"loc": _normal(3, b, d), "scale": jnp.full([b], _SIGMA), "fisher_z": fisher_z}


def _diag_parameters(b: int, d: int) -> Parameters:
    return {"loc": _normal(3, b, d), "scale_diag": jnp.full([b, d], _SIGMA)}


def _normal(seed: int, b: int, d: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), [b, d])


class Contender(NamedTuple):
    """As in `contenders`; `needs` is a package, `is_serial` means one step after another."""

    make: Callable[[Parameters], Any]
    operations: tuple[str, ...]
    parameters: Callable[[int, int], Parameters] = _ar1_parameters
    needs: str = "jax"
    is_serial: bool = False
    largest: int = 1_000_000


# The operations, as in `contenders.OPERATIONS`.
OPERATIONS: dict[str, Callable[[Any, jax.Array, jax.Array], jax.Array]] = {
    "sample": lambda law, x, seed: jnp.sum(jnp.square(law.sample(seed=seed))),
    "log_prob": lambda law, x, seed: jnp.sum(law.log_prob(x)),
    "kl": lambda law, x, seed: jnp.sum(
        tfd.kl_divergence(law, tfd.MultivariateNormalDiag(jnp.zeros(x.shape[-1])))
    ),
    "entropy": lambda law, x, seed: jnp.sum(law.entropy()),
}

CONTENDERS = {
    "Diag": Contender(
        lambda p: tfd.MultivariateNormalDiag(p["loc"], p["scale_diag"]),
        tuple(OPERATIONS),
        _diag_parameters,
    ),
    "AR1": Contender(
        lambda p: tfp_ar1_jax.MultivariateNormalAR1(p["loc"], p["scale"], fisher_z=p["fisher_z"]),
        tuple(OPERATIONS),
    ),
    "by hand": Contender(
        lambda p: _ByHand(p["loc"], p["scale"], jnp.tanh(p["fisher_z"])), ("sample", "log_prob")
    ),
    "tinygp": Contender(
        lambda p: _OfEach(_TinyGP, p),
        ("sample", "log_prob"),
        needs="tinygp",
        is_serial=True,
    ),
    "dynamax": Contender(
        lambda p: _OfEach(_Dynamax, p),
        ("log_prob",),
        needs="dynamax",
        is_serial=True,
        largest=4096,
    ),
    "dynamax, parallel": Contender(
        lambda p: _OfEach(functools.partial(_Dynamax, is_parallel=True), p),
        ("log_prob",),
        needs="dynamax",
        largest=4096,
    ),
}


def function(name: str, operation: str, gradients: bool, b: int, d: int) -> Callable[[], Any]:
    """A compiled function of no arguments that does the operation once."""
    contender = CONTENDERS[name]
    parameters, x, seed = contender.parameters(b, d), _normal(5, b, d), jax.random.key(1)
    # As on TensorFlow, take no gradients that are always 0.
    fixed = {"loc": parameters.pop("loc")} if operation == "entropy" else {}
    sources = (parameters, x) if operation == "log_prob" else (parameters,)

    def value(sources: Any, fixed: Parameters, x: jax.Array, seed: jax.Array) -> jax.Array:
        parameters, *given = sources
        law = contender.make({**fixed, **parameters})
        return OPERATIONS[operation](law, given[0] if given else x, seed)

    arguments = (sources, fixed, x, seed)
    compiled = jax.jit(jax.grad(value) if gradients else value).lower(*arguments).compile()
    return lambda: jax.block_until_ready(compiled(*arguments))


def skipped(name: str, d: int) -> str | None:
    """The reason for not measuring a contender, or `None`."""
    contender, platform = CONTENDERS[name], jax.default_backend()
    if importlib.util.find_spec(contender.needs) is None:
        return "is not installed"
    if d > contender.largest or (
        contender.is_serial and platform != "cpu" and d > _LARGEST_OF_SERIAL
    ):
        return f"takes too long for {d} steps"
    return None


def device() -> str:
    """The name of the device of JAX."""
    return jax.devices()[0].device_kind


def results(sizes: list[tuple[int, int]], seconds: float) -> Iterator[dict[str, Any]]:
    """Yields an entry for each operation and size, with and without gradients."""
    for b, d in sizes:
        left_out = {name: why for name in CONTENDERS if (why := skipped(name, d))}
        cases = list(itertools.product(OPERATIONS, (False, True)))
        keys = [
            (name, *case)
            for case in cases
            for name, contender in CONTENDERS.items()
            if case[0] in contender.operations and name not in left_out
        ]
        # Compile in parallel, as this takes longest.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            found = pool.map(lambda key, b=b, d=d: function(*key, b, d), keys)
            functions = dict(zip(keys, found, strict=True))
        for case in cases:
            chosen = {name: f for (name, *of), f in functions.items() if (*of,) == case}
            why = {n: w for n, w in left_out.items() if case[0] in CONTENDERS[n].operations}
            for name in list(chosen)[2:]:
                chosen[name]()
                if (time := measure.timed(chosen[name], 1)) > _PATIENCE:
                    why[name] = f"takes {time:.1f} s at {b} × {d}"
                    del chosen[name]
            yield {
                "mode": f"JAX, {device()}",
                "batch": b,
                "size": d,
                "operation": case[0],
                "gradients": case[1],
                "times": measure.interleaved(chosen, seconds),
                "skipped": why,
            }

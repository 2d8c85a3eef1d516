"""The compared implementations; all but the diagonal normal have the same distribution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1

tfd = tfp.distributions

Parameters = dict[str, tf.Tensor]


class Contender(NamedTuple):
    """An implementation to compare.

    Attributes:
      make: the distribution for given parameters.
      parameters: the parameters for a batch of B and d coordinates; gradients are taken by them.
      operations: the supported `OPERATIONS`.
      bytes_needed: a lower bound on the memory for (B, d), to skip cases that are too large.
    """

    make: Callable[[Parameters], tfd.Distribution]
    parameters: Callable[[int, int], Parameters]
    operations: tuple[str, ...]
    bytes_needed: Callable[[int, int], float] = lambda b, d: 40.0 * b * d


# Operations on a distribution; each returns a scalar, of which gradients are taken too.
OPERATIONS: dict[str, Callable[[tfd.Distribution, tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "sample": lambda law, x, seed: tf.reduce_sum(tf.square(_draw(law, x, seed))),
    "log_prob": lambda law, x, seed: tf.reduce_sum(law.log_prob(x)),
    "kl": lambda law, x, seed: tf.reduce_sum(tfd.kl_divergence(law, _standard_normal(x.shape[-1]))),
    "entropy": lambda law, x, seed: tf.reduce_sum(law.entropy()),
}

_RHO, _SIGMA = 0.7, 1.3


def _draw(law: tfd.Distribution, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """One draw per row of x, from each batch member or all from one distribution."""
    if isinstance(law, tfd.Distribution) and law.batch_shape.rank == 0:
        return law.sample(x.shape[:-1], seed=seed)
    return law.sample(seed=seed)


def _standard_normal(size: int) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(loc=tf.zeros([size]))


def _loc(b: int, d: int) -> tf.Tensor:
    return tf.random.stateless_normal([b, d], seed=[3, 4])


def _ar1_parameters(b: int, d: int) -> Parameters:
    return {
        "loc": _loc(b, d),
        "scale": tf.fill([b], _SIGMA),
        "fisher_z": tf.fill([b], float(np.arctanh(_RHO))),
    }


def _tril_parameters(b: int, d: int) -> Parameters:
    lags = np.abs(np.subtract.outer(np.arange(d), np.arange(d)))
    factor = np.linalg.cholesky(_SIGMA**2 * _RHO**lags).astype(np.float32)
    return {"loc": _loc(b, d), "scale_tril": tf.tile(factor[np.newaxis], [b, 1, 1])}


def _tril_of_ar1(p: Parameters) -> tfd.Distribution:
    """The usual solution without this package: the covariance from σ and ρ, and its factor."""
    steps = tf.range(p["loc"].shape[-1], dtype=tf.float32)
    lags = tf.abs(steps - steps[:, tf.newaxis])
    rho, scale = (t[:, tf.newaxis, tf.newaxis] for t in (tf.tanh(p["fisher_z"]), p["scale"]))
    covariance = tf.square(scale) * tf.pow(rho, lags)
    return tfd.MultivariateNormalTriL(p["loc"], tf.linalg.cholesky(covariance))


def _markov_chain(p: Parameters) -> tfd.Distribution:
    rho, scale = tf.tanh(p["fisher_z"]), p["scale"]
    loc = p["loc"]

    steps_first = tf.transpose(p["loc"])

    def transition(step: tf.Tensor, state: tf.Tensor) -> tfd.Distribution:
        # `log_prob` passes all steps at once, along the first axis.
        before, now = tf.gather(steps_first, step), tf.gather(steps_first, step + 1)
        return tfd.Normal(now + rho * (state - before), scale * tf.sqrt(1.0 - tf.square(rho)))

    return tfd.MarkovChain(
        initial_state_prior=tfd.Normal(loc[:, 0], scale),
        transition_fn=transition,
        num_steps=loc.shape[-1],
    )


def _gaussian_process(p: Parameters) -> tfd.Distribution:
    length_scale = -1.0 / tf.math.log(tf.tanh(p["fisher_z"]))
    kernel = tfp.math.psd_kernels.MaternOneHalf(p["scale"], length_scale)
    loc = p["loc"]
    points = tf.range(loc.shape[-1], dtype=tf.float32)[:, tf.newaxis]
    return tfd.GaussianProcess(kernel, points, mean_fn=lambda _: loc)


def _state_space(p: Parameters) -> tfd.Distribution:
    rho, scale = tf.tanh(p["fisher_z"]), p["scale"]
    process = tfp.sts.AutoregressiveStateSpaceModel(
        num_timesteps=p["loc"].shape[-1],
        coefficients=rho[:, tf.newaxis],
        level_scale=scale * tf.sqrt(1.0 - tf.square(rho)),
        initial_state_prior=tfd.MultivariateNormalDiag(
            tf.zeros([1]), scale_diag=scale[:, tf.newaxis]
        ),
    )
    return _Located(process, p["loc"])


class _Located:
    """A process with mean 0, `[B, d, 1]`, shifted to a mean `[B, d]`."""

    def __init__(self, process: tfd.Distribution, loc: tf.Tensor):
        self.process, self.loc = process, loc

    def sample(self, seed: tf.Tensor) -> tf.Tensor:
        return self.loc + self.process.sample(seed=seed)[..., 0]

    def log_prob(self, x: tf.Tensor) -> tf.Tensor:
        return self.process.log_prob((x - self.loc)[..., tf.newaxis])


class _Recursion:
    """Sampling step by step, with `tf.scan` or a Python loop (like code for PyTorch)."""

    def __init__(self, p: Parameters, by: str):
        self.loc, self.scale, self.rho = p["loc"], p["scale"], tf.tanh(p["fisher_z"])
        self.by = by

    def sample(self, seed: tf.Tensor) -> tf.Tensor:
        noise = tf.transpose(tf.random.stateless_normal(self.loc.shape, seed=seed))
        step = tf.sqrt(1.0 - tf.square(self.rho))
        if self.by == "scan":
            later = tf.scan(lambda u, e: self.rho * u + step * e, noise[1:], initializer=noise[0])
            path = tf.concat([noise[:1], later], axis=0)
        else:
            steps = [noise[0]]
            for t in range(1, noise.shape[0]):
                steps.append(self.rho * steps[-1] + step * noise[t])
            path = tf.stack(steps)
        return self.loc + self.scale[:, tf.newaxis] * tf.transpose(path)


CONTENDERS = {
    "AR1": Contender(
        lambda p: tfp_ar1.MultivariateNormalAR1(p["loc"], p["scale"], fisher_z=p["fisher_z"]),
        _ar1_parameters,
        tuple(OPERATIONS),
    ),
    "Diag": Contender(
        lambda p: tfd.MultivariateNormalDiag(p["loc"], p["scale_diag"]),
        lambda b, d: {"loc": _loc(b, d), "scale_diag": tf.fill([b, d], _SIGMA)},
        tuple(OPERATIONS),
    ),
    "TriL": Contender(
        lambda p: tfd.MultivariateNormalTriL(p["loc"], p["scale_tril"]),
        _tril_parameters,
        tuple(OPERATIONS),
        lambda b, d: 16.0 * b * d**2,
    ),
    "TriL from ρ": Contender(
        _tril_of_ar1,
        _ar1_parameters,
        tuple(OPERATIONS),
        lambda b, d: 40.0 * b * d**2,
    ),
    "MarkovChain": Contender(_markov_chain, _ar1_parameters, ("sample", "log_prob")),
    "GaussianProcess": Contender(
        _gaussian_process,
        _ar1_parameters,
        ("sample", "log_prob"),
        lambda b, d: 24.0 * b * d**2,
    ),
    "sts": Contender(_state_space, _ar1_parameters, ("sample", "log_prob")),
    "tf.scan": Contender(lambda p: _Recursion(p, "scan"), _ar1_parameters, ("sample",)),
    "Python loop": Contender(lambda p: _Recursion(p, "loop"), _ar1_parameters, ("sample",)),
}

# The family, all parameterized by correlations, so AR1 has the same parameters as its relatives.
FAMILY = {
    "Diag": CONTENDERS["Diag"],
    "AR1": Contender(
        lambda p: tfp_ar1.MultivariateNormalAR1(p["loc"], p["scale"], p["correlation"]),
        lambda b, d: {
            "loc": _loc(b, d),
            "scale": tf.fill([b], _SIGMA),
            "correlation": tf.fill([b], _RHO),
        },
        tuple(OPERATIONS),
    ),
    "ARH1": Contender(
        lambda p: tfp_ar1.MultivariateNormalARH1(p["loc"], p["scale_diag"], p["correlation"]),
        lambda b, d: {
            "loc": _loc(b, d),
            "scale_diag": tf.fill([b, d], _SIGMA),
            "correlation": tf.fill([b], _RHO),
        },
        tuple(OPERATIONS),
    ),
    "ANTE1": Contender(
        lambda p: tfp_ar1.MultivariateNormalANTE1(p["loc"], p["scale_diag"], p["correlation"]),
        lambda b, d: {
            "loc": _loc(b, d),
            "scale_diag": tf.fill([b, d], _SIGMA),
            "correlation": tf.fill([b, d - 1], _RHO),
        },
        tuple(OPERATIONS),
    ),
    "OU": Contender(
        lambda p: tfp_ar1.MultivariateNormalOU(
            p["loc"], p["scale"], p["length_scale"], times=p["times"]
        ),
        lambda b, d: {
            "loc": _loc(b, d),
            "scale": tf.fill([b], _SIGMA),
            "length_scale": tf.fill([b], float(-1 / np.log(_RHO))),
            "times": tf.tile(tf.range(d, dtype=tf.float32)[tf.newaxis], [b, 1]),
        },
        tuple(OPERATIONS),
    ),
}


def function(
    name: str,
    operation: str,
    gradients: bool,
    b: int,
    d: int,
    mode: str = "graph",
    among: Mapping[str, Contender] = CONTENDERS,
    shared: bool = False,
) -> Callable:
    """A function of no arguments that runs the operation once, in `graph`, `xla` or `eager` mode.

    Parameters, values and the seed are passed as tensors, so nothing can be folded into constants:
    with a fixed seed TensorFlow would draw the noise once, when it optimizes the graph.
    With `shared`, one distribution has all b paths: its parameters have no batch dimension.
    """
    contender = among[name]
    parameters = contender.parameters(1 if shared else b, d)
    if shared:
        parameters = {key: value[0] for key, value in parameters.items()}
    x = tf.random.stateless_normal([b, d], seed=[5, 6])
    seed = tf.constant([1, 2])

    def value(parameters: Parameters, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return OPERATIONS[operation](contender.make(parameters), x, seed)

    def with_gradients(parameters: Parameters, x: tf.Tensor, seed: tf.Tensor) -> list[tf.Tensor]:
        sources = [*parameters.values(), x]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            y = value(parameters, x, seed)
        return [g for g in tape.gradient(y, sources) if g is not None]

    f = with_gradients if gradients else value
    if mode != "eager":
        f = tf.function(f, jit_compile=mode == "xla", autograph=False)
    return lambda: f(parameters, x, seed)

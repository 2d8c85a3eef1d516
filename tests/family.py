"""The members of the family as test cases, and the statistics that every member has.

A case has three functions: `parameters(rng, batch, size)` returns arrays,
`distribution(*parameters)` the package's distribution, and `moments(*parameters)` the mean and the
covariance by textbook formulas, in dense TensorFlow operations that share no code with the package.

`STATISTICS` are the results of a distribution, of its operators and of its conditional; `OTHERS`
are the other distributions in KLs.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import oracles
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ar1 import (
    MultivariateNormalANTE1,
    MultivariateNormalAR1,
    MultivariateNormalARH1,
    MultivariateNormalOU,
)
from tfp_ar1.distributions.kl import kl_terms, log_prob_terms

__all__ = ["kl_terms", "log_prob_terms"]

tfb = tfp.bijectors
tfd = tfp.distributions

RHO = np.array(oracles.CORRELATIONS)
SEED = (1, 2)
# Nothing here needs autograph, which is slow.
function = functools.partial(tf.function, autograph=False)


def draw(*shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def normal(rng, *shape):
    return rng.normal(size=shape)


def positive(rng, *shape):
    return rng.uniform(0.5, 2.0, shape)


# --- The members ---------------------------------------------------------------------------------


class Member:
    """A class of the family; `names` are the names of its parameters, `loc` first."""

    cls = None
    names = ()

    def distribution(self, *parameters, size=None, **options):
        return self.cls(**dict(zip(self.names, parameters, strict=True)), **options)

    def event_ndims(self):
        properties = self.cls.parameter_properties()
        return {name: properties[name].event_ndims for name in self.names}


class Correlated(Member):
    """A member whose last parameter is a correlation, given as `correlation` or `fisher_z`."""

    def __init__(self, by):
        self.by = by
        self.names = (*self.names, by)

    def given(self, rho):
        return rho if self.by == "correlation" else np.arctanh(rho)

    def rho(self, given):
        return given if self.by == "correlation" else tf.tanh(given)


class AR1(Correlated):
    cls = MultivariateNormalAR1
    names = ("loc", "marginal_scale")

    def parameters(self, rng, batch, size):
        rho = rng.permutation(np.resize(RHO, batch).ravel()).reshape(batch)
        return normal(rng, *batch, size), positive(rng, *batch), self.given(rho)

    def moments(self, loc, scale, given, size):
        rho = self.rho(given)
        return loc, oracles.tf_covariance(scale, rho, size)


class ARH1(Correlated):
    cls = MultivariateNormalARH1
    names = ("loc", "scale_diag")

    def parameters(self, rng, batch, size):
        rho = rng.permutation(np.resize(RHO, batch).ravel()).reshape(batch)
        return normal(rng, *batch, size), positive(rng, *batch, size), self.given(rho)

    def moments(self, loc, scale, given, size):
        rho = self.rho(given)
        correlations = oracles.tf_covariance(tf.ones_like(rho), rho, size)
        return loc, scale[..., :, None] * scale[..., None, :] * correlations


class ANTE1(Correlated):
    cls = MultivariateNormalANTE1
    names = ("loc", "scale_diag")

    def parameters(self, rng, batch, size):
        rho = rng.choice(RHO, (*batch, size - 1))
        return normal(rng, *batch, size), positive(rng, *batch, size), self.given(rho)

    def moments(self, loc, scale, given, size):
        correlations = oracles.tf_antedependent_correlations(self.rho(given))
        return loc, scale[..., :, None] * scale[..., None, :] * correlations


class OU(Member):
    cls = MultivariateNormalOU
    names = ("loc", "marginal_scale", "length_scale", "times")

    def parameters(self, rng, batch, size):
        times = np.cumsum(rng.uniform(0.05, 2.0, (*batch, size)), axis=-1)
        return normal(rng, *batch, size), positive(rng, *batch), positive(rng, *batch), times

    def moments(self, loc, scale, length_scale, times, size):
        distances = tf.abs(times[..., :, None] - times[..., None, :])
        scale, length_scale = (x[..., None, None] for x in (scale, length_scale))
        return loc, scale**2 * tf.exp(-distances / length_scale)


MEMBERS = {
    "AR1": AR1("correlation"),
    "AR1 by fisher_z": AR1("fisher_z"),
    "ARH1": ARH1("correlation"),
    "ARH1 by fisher_z": ARH1("fisher_z"),
    "ANTE1": ANTE1("correlation"),
    "ANTE1 by fisher_z": ANTE1("fisher_z"),
    "OU": OU(),
}
# One of each class. A correlation and a Fisher z take different branches, as do one value for all
# steps and one per step: these cover all four; OU has a Fisher z per step.
ONE_OF_EACH = ("AR1", "ARH1 by fisher_z", "ANTE1", "OU")


def as_float32(a):
    """Rounds to float32, so both dtypes get the same numbers; returns float64."""
    return np.asarray(a).astype("float32").astype("float64")


def random_parameters(case, batch, size, seed=0):
    rng = np.random.default_rng(seed)
    return [as_float32(a) for a in case.parameters(rng, batch, size)]


def parameters_of_shapes(case, batches, size, seed=0):
    """Random parameters with a batch shape for each."""
    return [random_parameters(case, batch, size, seed)[i] for i, batch in enumerate(batches)]


def cast(arrays, dtype):
    return [np.asarray(a).astype(dtype) for a in arrays]


def as_dense(case, parameters, size):
    mean, covariance = case.moments(*map(tf.constant, parameters), size=size)
    return oracles.Dense(np.asarray(mean), np.asarray(covariance))


def dense_distribution(case, *parameters):
    """TFP's normal, with gradients through the dense covariance and its factorization."""
    mean, covariance = case.moments(*parameters, size=parameters[0].shape[-1])
    return tfd.MultivariateNormalTriL(mean, tf.linalg.cholesky(covariance))


# --- One distribution of each, batch shape [2, 3]; each parameter lacks part of the batch shape ---

SIZE, BATCH_SHAPE = 4, (2, 3)
LOC, SCALE_DIAG = draw(2, 1, SIZE), np.exp(0.3 * draw(3, SIZE, seed=8))
_SCALE, _RHO, _RHOS = np.array([0.7, 1.0, 2.0]), np.array([[0.6], [-0.3]]), draw(2, 1, 3, seed=9)
ARGUMENTS = {
    "AR1": (LOC, _SCALE, _RHO),
    "AR1 by fisher_z": (LOC, _SCALE, np.arctanh(_RHO)),
    "ARH1": (LOC, SCALE_DIAG, _RHO),
    "ARH1 by fisher_z": (LOC, SCALE_DIAG, np.arctanh(_RHO)),
    "ANTE1": (LOC, SCALE_DIAG, np.tanh(_RHOS)),
    "ANTE1 by fisher_z": (LOC, SCALE_DIAG, _RHOS),
    "OU": (
        LOC,
        _SCALE,
        np.array([[0.6], [1.3]]),
        np.cumsum(np.exp(0.3 * draw(3, SIZE, seed=10)), axis=-1),
    ),
}
ARGUMENTS = {m: dict(zip(MEMBERS[m].names, a, strict=True)) for m, a in ARGUMENTS.items()}
DENSE = {m: as_dense(MEMBERS[m], a.values(), SIZE) for m, a in ARGUMENTS.items()}
VALUE = draw(*BATCH_SHAPE, SIZE, seed=1)
OBSERVED = np.array([True, False, False, True])

# Ways to pass a parameter, made from its name and its value.
BIJECTORS = {
    "loc": tfb.Sinh(),
    "marginal_scale": tfb.Exp(),
    "correlation": tfb.Tanh(),
    "fisher_z": tfb.Sinh(),
}


def constant(_, value):
    return tf.constant(value)


def deferred(name, value):
    bijector = BIJECTORS.get(name, tfb.Identity())
    return tfp.util.DeferredTensor(tf.Variable(bijector.inverse(value)), bijector.forward)


KINDS = {
    "Variable": lambda _, value: tf.Variable(value),
    "TransformedVariable": lambda name, value: tfp.util.TransformedVariable(
        value, BIJECTORS.get(name, tfb.Identity())
    ),
    "DeferredTensor": deferred,
    "constant": constant,
}


def arguments(member, make=constant):
    return {name: make(name, value) for name, value in ARGUMENTS[member].items()}


def distribution(member, make=constant, **others):
    return MEMBERS[member].cls(**arguments(member, make), **others)


def first(member):
    """The parameters of the first member of the batch."""
    event_ndims = MEMBERS[member].event_ndims()
    return {
        name: value[(0,) * (value.ndim - event_ndims[name])]
        for name, value in ARGUMENTS[member].items()
    }


# --- Statistics -----------------------------------------------------------------------------------


class Statistic(NamedTuple):
    compute: Any  # of a distribution and a value
    event_ndims: int
    depends_on: str  # (l)oc, (s)cale, (c)orrelation


DISTRIBUTION = {
    "mean": Statistic(lambda p, _: p.mean(), 1, "l"),
    "mode": Statistic(lambda p, _: p.mode(), 1, "l"),
    "stddev": Statistic(lambda p, _: p.stddev(), 1, "s"),
    "variance": Statistic(lambda p, _: p.variance(), 1, "s"),
    "covariance": Statistic(lambda p, _: p.covariance(), 2, "sc"),
    "entropy": Statistic(lambda p, _: p.entropy(), 0, "sc"),
    "log_prob": Statistic(lambda p, x: p.log_prob(x), 0, "lsc"),
    "unnormalized_log_prob": Statistic(lambda p, x: p.unnormalized_log_prob(x), 0, "lsc"),
    "prob": Statistic(lambda p, x: p.prob(x), 0, "lsc"),
    "sample": Statistic(lambda p, _: p.sample(seed=SEED), 1, "lsc"),
    "sample with its log_prob": Statistic(
        lambda p, _: p.experimental_sample_and_log_prob(seed=SEED)[0], 1, "lsc"
    ),
    "log_prob of its sample": Statistic(
        lambda p, _: p.experimental_sample_and_log_prob(seed=SEED)[1], 0, "sc"
    ),
    "marginal": Statistic(lambda p, x: p.marginal(1, None, 2).log_prob(x[..., 1::2]), 0, "lsc"),
    "contiguous marginal": Statistic(lambda p, x: p.marginal(1).log_prob(x[..., 1:]), 0, "lsc"),
    "precision.matvec": Statistic(lambda p, x: p.precision().matvec(x), 1, "sc"),
    "precision.solvevec": Statistic(lambda p, x: p.precision().solvevec(x), 1, "sc"),
}
# These have the batch shape of the scale or of the correlation, not of the distribution.
OPERATORS = {
    "correlation_parameter": Statistic(lambda p, _: p.correlation_parameter(), 0, "c"),
    "precision.to_dense": Statistic(lambda p, _: p.precision().to_dense(), 2, "sc"),
    "precision.determinant": Statistic(lambda p, _: p.precision().determinant(), 0, "sc"),
    "scale.matvec": Statistic(lambda p, x: p.scale.matvec(x), 1, "sc"),
    "scale.solvevec": Statistic(lambda p, x: p.scale.solvevec(x, adjoint=True), 1, "sc"),
    "scale.solve": Statistic(lambda p, _: p.scale.solve(tf.eye(SIZE, dtype=p.dtype)), 2, "sc"),
    "scale.to_dense": Statistic(lambda p, _: p.scale.to_dense(), 2, "sc"),
    "scale.diag_part": Statistic(lambda p, _: p.scale.diag_part(), 1, "sc"),
    "scale.trace": Statistic(lambda p, _: p.scale.trace(), 0, "sc"),
    "scale.log_abs_determinant": Statistic(lambda p, _: p.scale.log_abs_determinant(), 0, "sc"),
}


def conditional(method):
    return lambda p, x: getattr(p.conditional(x, OBSERVED), method)()


CONDITIONAL = {
    "conditional.mean": Statistic(conditional("mean"), 1, "lc"),
    "conditional.variance": Statistic(conditional("variance"), 1, "sc"),
    "conditional.stddev": Statistic(conditional("stddev"), 1, "sc"),
    "conditional.observed_log_prob": Statistic(conditional("observed_log_prob"), 0, "lsc"),
    "conditional.sample": Statistic(
        lambda p, x: p.conditional(x, OBSERVED).sample(seed=SEED), 1, "lsc"
    ),
}
STATISTICS = DISTRIBUTION | OPERATORS | CONDITIONAL
# For tests that only check that the parameters arrive.
FEW = {name: STATISTICS[name] for name in ("log_prob", "sample", "covariance", "scale.matvec")}
# The positions of (l)oc, (s)cale and (c)orrelation among the parameters.
_LETTERS = {"l": slice(0, 1), "s": slice(1, 2), "c": slice(2, None)}


def names_of(letters, member):
    return [name for letter in letters for name in MEMBERS[member].names[_LETTERS[letter]]]


def compute(p, x, table=STATISTICS):
    return {name: s.compute(p, x) for name, s in table.items()}


def assert_all_close(actual, expected, what="same computation"):
    """Compares two results of `compute`."""
    assert actual.keys() == expected.keys()
    for name in expected:
        ndims = STATISTICS[name].event_ndims
        oracles.assert_close(actual[name], expected[name], what, ndims, err_msg=name)


# The other distributions in KLs, from `make(name, value)`.
OTHERS = {
    "AR1": lambda make: MultivariateNormalAR1(
        make("other loc", draw(3, SIZE, seed=2)),
        make("other scale", np.array([[1.1], [0.4]])),
        fisher_z=make("other fisher_z", np.array([0.1, -2.0, 0.4])),
    ),
    "Diag": lambda make: tfd.MultivariateNormalDiag(
        make("other loc", draw(SIZE, seed=2)),
        make("other scale", np.array([0.5, 1.0, 2.0, 1.5])),
    ),
    "Independent": lambda make: tfd.Independent(
        tfd.Normal(make("other loc", draw(SIZE, seed=2)), make("other scale", np.float64(0.6))), 1
    ),
    "Sample": lambda make: tfd.Sample(
        tfd.Normal(make("other loc", np.float64(0.3)), make("other scale", np.float64(0.6))), SIZE
    ),
    "TriL": lambda make: tfd.MultivariateNormalTriL(
        make("other loc", draw(SIZE, seed=2)),
        make("other scale", np.tril(draw(SIZE, SIZE, seed=3), -1) + 2.0 * np.eye(SIZE)),
    ),
}


def kl(p, q, reverse):
    return tfd.kl_divergence(q, p) if reverse else tfd.kl_divergence(p, q)


def refuse(*_args, **_kwargs):
    """Replaces `to_dense` in tests where nothing may be made dense."""
    raise AssertionError("to_dense was called")

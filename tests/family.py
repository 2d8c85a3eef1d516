"""The distributions of the package as cases: random parameters, the distribution, dense moments.

A case has three functions: `parameters(rng, batch, size)` gives arrays, `distribution(*parameters)`
is the package's, and `moments(*parameters)` the mean and the covariance as the textbook has them,
in dense TensorFlow operations that share no code with the package.
"""

import numpy as np
import oracles
import tensorflow as tf

from tfp_ar1 import (
    MultivariateNormalANTE1,
    MultivariateNormalAR1,
    MultivariateNormalARH1,
    MultivariateNormalOU,
)

RHO = np.array(oracles.CORRELATIONS)


def normal(rng, *shape):
    return rng.normal(size=shape)


def positive(rng, *shape):
    return rng.uniform(0.5, 2.0, shape)


class Member:
    """A class of the family whose parameters, `loc` first, have the names `names`."""

    cls = None
    names = ()

    def distribution(self, *parameters, size=None, **options):
        return self.cls(**dict(zip(self.names, parameters, strict=True)), **options)


class Correlated(Member):
    """A member whose last parameter is a correlation, spelled as one of two."""

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


# AR(1), which has tests of its own throughout, and those that pass the same.
AR1S = {"AR1": AR1("correlation"), "AR1 by fisher_z": AR1("fisher_z")}
RELATIVES = {
    "ARH1": ARH1("correlation"),
    "ARH1 by fisher_z": ARH1("fisher_z"),
    "ANTE1": ANTE1("correlation"),
    "ANTE1 by fisher_z": ANTE1("fisher_z"),
    "OU": OU(),
}
# Where one spelling of each is enough.
ONE_OF_EACH = ("ARH1", "ANTE1 by fisher_z", "OU")


def as_float32(a):
    """Rounded to float32, so that both dtypes are given the same numbers; as float64."""
    return np.asarray(a).astype("float32").astype("float64")


def random_parameters(case, batch, size, seed=0):
    rng = np.random.default_rng(seed)
    return [as_float32(a) for a in case.parameters(rng, batch, size)]


def parameters_of_shapes(case, batches, size, seed=0):
    """A batch shape for each parameter."""
    return [random_parameters(case, batch, size, seed)[i] for i, batch in enumerate(batches)]


def cast(arrays, dtype):
    return [np.asarray(a).astype(dtype) for a in arrays]


def as_dense(case, parameters, size):
    mean, covariance = case.moments(*map(tf.constant, parameters), size=size)
    return oracles.Dense(mean.numpy(), covariance.numpy())

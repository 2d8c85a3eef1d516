"""Values, gradients, shapes and draws of every member of the family, against dense Gaussians.

KLs are in test_kl, conditionals in test_conditional, marginals in test_marginal, operators in
test_operators, correlations next to ±1 in test_extremes, and TFP's contract in test_contract.
"""

import functools
import itertools

import derivatives
import family
import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from family import MEMBERS, SEED, as_dense, cast, draw, log_prob_terms, random_parameters

from tfp_ar1 import (
    MultivariateNormalAR1,
)
from tfp_ar1.distributions.gaussian_markov_chain import GaussianMarkovChain

tfd = tfp.distributions

one_of_each = pytest.mark.parametrize("name", family.ONE_OF_EACH)


def sizes(name):
    """From 129 coordinates on steps that differ are taken in blocks, from 257 on those alike."""
    return (1, 2, 3, 300) if "AR" in name else (1, 2, 3, 150)


each_size = pytest.mark.parametrize(
    ("size", "name"), [(size, name) for name in MEMBERS for size in sizes(name)]
)


def noise_like(x, seed=SEED):
    """The normal noise beneath a sample with that seed."""
    return MultivariateNormalAR1(tf.zeros_like(x), correlation=0.0).sample(seed=seed)


def log_prob_through_precision(p, x):
    """Up to normalization."""
    w = x - p.loc
    return -0.5 * tf.reduce_sum(w * p.precision().matvec(w), axis=-1)


@each_size
def test_values(size, name):
    case = MEMBERS[name]
    parameters = random_parameters(case, (5,), size)
    dense = as_dense(case, parameters, size)
    value = family.as_float32(draw(5, size, seed=1))
    variance = np.diagonal(dense.covariance, axis1=-2, axis2=-1)
    log_prob = dense.log_prob(value)
    for dtype in oracles.DTYPES:
        p, x = case.distribution(*cast(parameters, dtype)), tf.constant(value, dtype)
        sample = (dense.factor @ np.float64(noise_like(x))[..., None])[..., 0]
        for method, actual, expected, event_ndims in (
            ("log_prob", p.log_prob(x), log_prob, 0),
            ("prob", p.prob(x), np.exp(log_prob), 0),
            ("log_prob_terms", tf.reduce_sum(log_prob_terms(p, x), -1), log_prob, 0),
            ("entropy", p.entropy(), dense.entropy(), 0),
            ("mean", p.mean(), dense.mean, 1),
            ("mode", p.mode(), dense.mean, 1),
            ("variance", p.variance(), variance, 1),
            ("stddev", p.stddev(), np.sqrt(variance), 1),
            ("covariance", p.covariance(), dense.covariance, 2),
            (
                "precision",
                log_prob_through_precision(p, x),
                log_prob - dense.log_prob(dense.mean),
                0,
            ),
            ("sample", p.sample(seed=SEED) - p.loc, sample, 1),
        ):
            assert actual.dtype == dtype
            message = f"{method}, {dtype}"
            oracles.assert_close(actual, expected, event_ndims=event_ndims, err_msg=message)


@one_of_each
def test_log_prob_terms(name):
    """The first n of them sum to the log-density of the first n coordinates."""
    case, size = MEMBERS[name], 6
    parameters = random_parameters(case, (3,), size)
    dense, value = as_dense(case, parameters, size), draw(2, 1, size, seed=1)
    terms = log_prob_terms(case.distribution(*parameters), value)
    assert terms.shape == (2, 3, size)
    sums = np.cumsum(terms, axis=-1)
    for n in range(1, size + 1):
        first = oracles.Dense(dense.mean[..., :n], dense.covariance[..., :n, :n])
        oracles.assert_close(sums[..., n - 1], first.log_prob(value[..., :n]), err_msg=f"{n}")


def test_log_prob_terms_of_independent_normals():
    loc, scale, value = draw(3), np.array([0.5, 1.0, 2.0]), draw(4, 3, seed=1)
    iid = tfd.Normal(np.float64(0.3), 2.0)
    for p, normal in (
        (tfd.MultivariateNormalDiag(loc, scale), tfd.Normal(loc, scale)),
        (tfd.Independent(tfd.Normal(loc, scale), 1), tfd.Normal(loc, scale)),
        (tfd.Sample(iid, 3), iid),
    ):
        expected = normal.log_prob(value)
        oracles.assert_close(log_prob_terms(p, value), expected, event_ndims=1)
    with pytest.raises(TypeError, match="`GaussianMarkovChain` or a vector of independent"):
        log_prob_terms(tfd.MultivariateNormalTriL(loc, np.eye(3)), value)


def weighted_sample(p, noise, weights):
    if isinstance(p, GaussianMarkovChain):
        sample = p.sample(seed=SEED)
    else:
        sample = p.loc + p.scale.matvec(tf.cast(noise, p.dtype))
    return tf.reduce_sum(tf.cast(weights, p.dtype) * sample, axis=-1)


@each_size
def test_gradients(size, name):
    """Against automatic differentiation through the dense covariance and its factorization."""
    case = MEMBERS[name]
    parameters = random_parameters(case, (5,), size)
    value, weights = family.as_float32(draw(5, size, seed=1)), draw(5, size, seed=3)
    methods = ("log_prob", "entropy", "sample")

    def compute(make, method, *arguments, noise=None):
        *parameters, x = arguments
        p = make(*parameters)
        if method == "sample":
            result = weighted_sample(p, noise, weights)
        else:
            result = p.entropy() if method == "entropy" else p.log_prob(x)
        # Connected to all, also where they have no influence.
        return result + 0 * sum(map(tf.reduce_sum, arguments))

    dense = functools.partial(family.dense_distribution, case)
    for method, dtype in itertools.product(methods, oracles.DTYPES):
        given = cast((*parameters, value), dtype)
        actual = oracles.tf_gradients(functools.partial(compute, case.distribution, method), given)
        if method == "sample" or dtype == oracles.DTYPES[0]:
            # Noise depends on the dtype.
            noise = noise_like(tf.constant(given[-1]))
            expected = oracles.tf_gradients(
                functools.partial(compute, dense, method, noise=noise), (*parameters, value)
            )
        for key, a, e in zip((*case.names, "value"), actual, expected, strict=True):
            assert a.dtype == dtype
            message = f"{method}, {key}, {dtype}"
            oracles.assert_close(a, e, "gradient", a.ndim - 1, err_msg=message, at_least=0.1)


@pytest.mark.slow
@one_of_each
@pytest.mark.parametrize("quantity", ["log_prob", "kl to AR1", "kl from AR1"])
def test_second_derivatives(name, quantity):
    case, size = MEMBERS[name], 3
    parameters = random_parameters(case, (), size, seed=2)
    value, loc = draw(size, seed=1), draw(size, seed=2)
    other = oracles.tf_ar1(loc, tf.constant(1.3, "float64"), tf.constant(0.4, "float64"))
    shapes = [np.shape(a) for a in parameters]

    def unpacked(packed):
        parts = tf.split(packed, [int(np.prod(s)) for s in shapes])
        return [tf.reshape(part, s) for part, s in zip(parts, shapes, strict=True)]

    def ours(packed):
        p = case.distribution(*unpacked(packed))
        q = MultivariateNormalAR1(loc, 1.3, correlation=0.4)
        if quantity == "log_prob":
            return p.log_prob(value)
        return tfd.kl_divergence(*((p, q) if quantity == "kl to AR1" else (q, p)))

    def dense(packed):
        p = family.dense_distribution(case, *unpacked(packed))
        if quantity == "log_prob":
            return p.log_prob(value)
        moments = [(d.loc, d.covariance()) for d in (p, other)]
        return oracles.tf_kl(*(moments if quantity == "kl to AR1" else moments[::-1]))

    packed = np.concatenate([np.ravel(a) for a in parameters])
    actual, expected = (oracles.second_derivatives(f, packed) for f in (ours, dense))
    oracles.assert_close(actual, expected, "second derivative", event_ndims=1)


# Batch shapes of the parameters (of length_scale and times, for OU, the last two) and of a value.
BROADCASTS = [
    ((3,), (), (), (), ()),
    ((), (3,), (), (), ()),
    ((), (), (3,), (), ()),
    ((), (), (), (3,), (3,)),
    ((2, 1), (4,), (), (2, 1), ()),
    ((4,), (), (2, 1), (1,), (6, 2, 4)),
    ((1,), (2, 1), (4,), (), (2, 4)),
]


def everything(p, value):
    names = ("entropy", "mean", "mode", "variance", "stddev", "covariance")
    return {name: getattr(p, name)() for name in names} | {
        "log_prob": p.log_prob(value),
        "sample": p.sample([2, 3], seed=SEED),
        "one sample": p.sample(seed=SEED),
        "log_prob_terms": log_prob_terms(p, value),
        "precision": p.precision().matvec(value),
        "marginal": p.marginal(0, None, 2).covariance(),
        "conditional": p.conditional(value, value > 0).mean(),
        "batch_shape": p.batch_shape_tensor(),
        "event_shape": p.event_shape_tensor(),
    }


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "ANTE1" else pytest.mark.slow)
        for name in family.ONE_OF_EACH
    ],
)
def test_broadcasting(name):
    """With shapes that are known, and in one graph that knows none of them."""
    case = MEMBERS[name]
    count = len(case.names)

    @tf.function(input_signature=[tf.TensorSpec(None, "float64")] * (count + 1), autograph=False)
    def everything_unknown(*arguments):
        return everything(case.distribution(*arguments[:-1]), arguments[-1])

    for (*batches, value_shape), size in [
        *((shapes, 4) for shapes in BROADCASTS),
        (BROADCASTS[-1], 1),
    ]:
        parameters = family.parameters_of_shapes(case, batches[:count], size)
        value = draw(*value_shape, size, seed=5)
        dense = as_dense(case, parameters, size)
        p = case.distribution(*parameters)
        batch_shape = dense.batch_shape
        assert p.batch_shape == batch_shape
        assert p.event_shape == (size,)
        mean = np.broadcast_to(dense.mean, (*batch_shape, size))
        covariance = np.broadcast_to(dense.covariance, (*batch_shape, size, size))
        variance = np.diagonal(covariance, axis1=-2, axis2=-1)
        known = everything(p, tf.constant(value))
        for kind, actual in (
            ("known", known),
            ("unknown", everything_unknown(*parameters, value)),
        ):
            message = f"{batches}, {value_shape}, {size}, {kind}"
            for key, expected, event_ndims in (
                ("log_prob", dense.log_prob(value), 0),
                ("entropy", dense.entropy(), 0),
                ("mean", mean, 1),
                ("mode", mean, 1),
                ("variance", variance, 1),
                ("stddev", np.sqrt(variance), 1),
                ("covariance", covariance, 2),
                ("marginal", covariance[..., ::2, ::2], 2),
                ("sample", known["sample"], 1),
                ("log_prob_terms", known["log_prob_terms"], 1),
                ("precision", known["precision"], 1),
                ("conditional", known["conditional"], 1),
            ):
                oracles.assert_close(
                    actual[key], expected, event_ndims=event_ndims, err_msg=f"{message}: {key}"
                )
            assert actual["sample"].shape == (2, 3, *batch_shape, size)
            assert actual["one sample"].shape == (*batch_shape, size)
            assert tuple(actual["batch_shape"]) == batch_shape
            assert tuple(actual["event_shape"]) == (size,)


@pytest.mark.parametrize("name", [pytest.param("AR1 by fisher_z", marks=pytest.mark.slow), "OU"])
def test_eager_function_and_xla_agree(name):
    """test_recurrence has the same for a size in blocks."""
    case, size = MEMBERS[name], 5
    arguments = [tf.constant(a) for a in (*random_parameters(case, (3,), size), draw(3, size))]

    def results(*arguments):
        *parameters, value = arguments
        p = case.distribution(*parameters)
        # XLA has another generator, so noise takes the place of a sample.
        return p.log_prob(value), p.entropy(), p.scale.matvec(value)

    def total(*arguments):
        return tf.add_n([tf.reduce_sum(tf.sin(r)) for r in results(*arguments)])

    def values_and_gradients(*arguments):
        p = case.distribution(*arguments[:-1])
        # XLA's samples are what its own noise makes.
        sample = p.sample(seed=SEED) - p.loc - p.scale.matvec(noise_like(p.loc))
        gradients = derivatives.gradients(total, arguments)
        return (*results(*arguments), 1 + sample), gradients

    eager = values_and_gradients(*arguments)
    for options in ({}, {"jit_compile": True}):
        graph = tf.function(values_and_gradients, autograph=False, **options)(*arguments)
        for what, ours, theirs in zip(("same computation", "gradient"), eager, graph, strict=True):
            for e, g in zip(ours, theirs, strict=True):
                oracles.assert_close(g, e, what, len(e.shape) - 1)


@one_of_each
@pytest.mark.parametrize(
    ("size", "num_samples"), [(2, 20_000), pytest.param(600, 4000, marks=pytest.mark.slow)]
)
def test_moments_of_samples(size, num_samples, name):
    """The mean and every covariance within 6.5 standard errors of a normal sample's."""
    case = MEMBERS[name]
    parameters = random_parameters(case, (3,), size)
    p, dense = case.distribution(*cast(parameters, "float32")), as_dense(case, parameters, size)
    samples = np.asarray(p.sample(num_samples, seed=(4, 5))).astype("float64")
    variance = np.diagonal(dense.covariance, axis1=-2, axis2=-1)
    error = np.abs(samples.mean(axis=0) - dense.mean) / np.sqrt(variance / num_samples)
    assert np.max(error) < 6.5
    centred = np.moveaxis(samples - dense.mean, 0, 1)
    covariance = centred.swapaxes(-1, -2) @ centred / num_samples
    standard_error = np.sqrt(
        (variance[:, :, None] * variance[:, None, :] + dense.covariance**2) / num_samples
    )
    assert np.max(np.abs(covariance - dense.covariance) / standard_error) < 6.5

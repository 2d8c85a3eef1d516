"""Chains from the parameters that others have, against matrices and decimals."""

import decimal

import derivatives
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1
from tfp_ar1 import MultivariateNormalANTE1

tfd = tfp.distributions


def transitions(size, seed=0):
    """φ, q, s of two paths and the covariances."""
    rng = np.random.default_rng(seed)
    phi, q = rng.uniform(-1.2, 1.2, (2, size - 1)), rng.uniform(0.3, 2.0, size - 1)
    start = rng.uniform(0.5, 2.0, 2)
    covariances = []
    for phi_, s in zip(phi, start, strict=True):
        inverse = np.linalg.inv(np.eye(size) - np.diag(phi_, -1))
        covariances.append(inverse @ np.diag(np.append(s, q) ** 2) @ inverse.T)
    return phi, q, start, np.array(covariances)


def close(actual, desired, rtol=1e-10):
    atol = rtol * np.max(np.abs(desired), initial=1e-300)
    np.testing.assert_allclose(actual, desired, rtol=rtol, atol=atol)


@pytest.mark.parametrize("size", [1, 2, 3, 40])
def test_from_transitions_and_back(size):
    phi, q, start, covariance = transitions(size)
    path = MultivariateNormalANTE1.from_transitions(None, phi, q, start)
    close(path.covariance(), covariance)
    close(path.coefficients, phi)
    close(path.innovation_scale, np.broadcast_to(q, phi.shape))
    close(path.initial_scale, start)


@pytest.mark.parametrize("size", [1, 2, 3, 40])
def test_from_precision_and_its_factors_and_back(size):
    *_, covariance = transitions(size)
    precision = np.linalg.inv(covariance)

    def diagonals(matrix, k):
        return np.diagonal(matrix, 0, -2, -1), np.diagonal(matrix, k, -2, -1)

    path = MultivariateNormalANTE1.from_precision(None, *diagonals(precision, 1))
    close(path.covariance(), covariance)
    close(path.precision().diagonals[..., 1, :], diagonals(precision, 1)[0])
    lower = np.linalg.cholesky(precision)
    path = MultivariateNormalANTE1.from_precision_cholesky(None, *diagonals(lower, -1))
    close(path.covariance(), covariance)
    close(path.precision().cholesky().diagonals[..., 1, :], diagonals(lower, -1)[0])
    upper = np.linalg.cholesky(precision[:, ::-1, ::-1])[:, ::-1, ::-1]
    path = MultivariateNormalANTE1.from_precision_cholesky(None, *diagonals(upper, 1), lower=False)
    close(path.covariance(), covariance)


def test_one_number_for_all_steps():
    walk = MultivariateNormalANTE1.from_transitions(tf.zeros(5), 1.0, 0.5, 2.0)
    times = np.arange(5)
    close(walk.covariance(), 4.0 + 0.25 * np.minimum(times[:, None], times), 1e-6)
    steps = MultivariateNormalANTE1.from_transitions(None, [0.5], [[1.0] * 4, [2.0] * 4], 1.0)
    assert steps.batch_shape == [2]
    assert steps.event_shape == [5]


def test_known_start():
    """A Brownian motion from 0: draws, moments and posteriors, with gradients."""
    scale, start = tf.constant(0.5), tf.constant(0.0)

    def total(scale, start):
        walk = MultivariateNormalANTE1.from_transitions(tf.zeros(4), 1.0, scale, start)
        return tf.reduce_sum(walk.sample(seed=(1, 2)) + walk.stddev())

    assert np.all(np.isfinite(derivatives.gradients(total, [scale, start])))
    walk = MultivariateNormalANTE1.from_transitions(tf.zeros(4), 1.0, scale, start)
    close(walk.stddev(), 0.5 * np.sqrt(np.arange(4)), 1e-6)
    assert walk.sample(seed=(1, 2))[0] == 0.0


@pytest.mark.parametrize("distance", [0.0, 1e-7, 1e-3])
@pytest.mark.parametrize("size", [1000, 100_000])
def test_long_paths_near_the_unit_root_in_float32(size, distance):
    phi, q = np.float32(1 - distance), np.float32(0.1)
    path = MultivariateNormalANTE1.from_transitions(tf.zeros(size), phi, q, 1.0)
    variance, expected = 1.0, np.empty((2, size))
    for t in range(size):
        scale = np.sqrt(variance)
        expected[:, t] = scale, np.arcsinh(float(phi) * scale / float(q))
        variance = float(phi) ** 2 * variance + float(q) ** 2
    np.testing.assert_allclose(path.stddev(), expected[0], rtol=1e-5)
    np.testing.assert_allclose(path.scale.fisher_z, expected[1, :-1], rtol=1e-5)


def test_precision_next_to_singular_in_float32():
    """A random walk's, with 1e-3 on its first entry: against a Cholesky factor in decimals."""
    diagonal = np.full(100, 2.0, np.float32)
    diagonal[0], diagonal[-1] = 1.001, 1.0
    path = MultivariateNormalANTE1.from_precision(None, diagonal, np.full(99, -1.0, np.float32))
    pivots = [decimal.Decimal(float(diagonal[0]))]
    for x in diagonal[1:]:
        pivots.append(decimal.Decimal(float(x)) - 1 / pivots[-1])
    variance = 1 / pivots[-1]  # of the last coordinate
    np.testing.assert_allclose(path.stddev()[-1], float(variance.sqrt()), rtol=1e-4)


def test_derivatives_of_first_and_second_order():
    rng = np.random.default_rng(0)
    inputs = [tf.constant(rng.uniform(0.5, 1.0, n)) for n in (4, 4)] + [tf.constant(0.7)]
    inputs[2] = tf.constant(np.float64(0.7))

    def ours(phi, q, s):
        path = MultivariateNormalANTE1.from_transitions(None, phi, q, s)
        return tf.reduce_sum(tf.sin(path.covariance()))

    def of_matrices(phi, q, s):
        inverse = tf.linalg.inv(tf.eye(5, dtype=tf.float64) - tf.linalg.diag(phi, k=-1))
        scale = inverse * tf.concat([s[None], q], axis=0)
        return tf.reduce_sum(tf.sin(tf.matmul(scale, scale, transpose_b=True)))

    def first_and_second(function):
        def first(*inputs):
            return derivatives.gradients(function, inputs)

        def total(*inputs):
            return sum(tf.reduce_sum(x**2) for x in first(*inputs))

        return [*first(*inputs), *derivatives.gradients(total, inputs)]

    expected = first_and_second(of_matrices)
    for function in (ours, tf.function(ours)):
        for x, y in zip(first_and_second(function), expected, strict=True):
            close(x, y, 1e-9)


@pytest.mark.parametrize("given", [{"correlation": [0.5, -0.9]}, {"fisher_z": [0.5, 12.0]}])
def test_from_innovation_scale(given):
    path = tfp_ar1.MultivariateNormalAR1.from_innovation_scale(tf.zeros(3), [0.5, 2.0], **given)
    close(path.innovation_scale, [0.5, 2.0], 1e-6)
    close(path.coefficients, path.correlation_parameter(), 1e-6)
    ou = tfp_ar1.MultivariateNormalOU(tf.zeros(3), 2.0, 1.5, [0.0, 1.0, 3.0])
    close(ou.coefficients, np.exp([-1 / 1.5, -2 / 1.5]), 1e-6)
    close(ou.innovation_scale, 2.0 * np.sqrt(1 - np.exp([-2 / 1.5, -4 / 1.5])), 1e-6)


def test_the_same_as_a_markov_chain_of_tfp():
    chain = tfd.MarkovChain(
        tfd.Normal(0.0, 2.0), lambda _, x: tfd.Normal(0.9 * x, 0.5), num_steps=6
    )
    path = MultivariateNormalANTE1.from_transitions(tf.zeros(6), 0.9, 0.5, 2.0)
    x = chain.sample(3, seed=(1, 2))
    close(path.log_prob(x), chain.log_prob(x), 1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f.from_transitions(None, 0.5, 1.0, 1.0), "number of steps is not known"),
        (lambda f: f.from_transitions(tf.zeros(4), [0.5, 0.5], 1.0, 1.0), "one entry less"),
        (lambda f: f.from_transitions(None, [0.5, 0.5], [1.0, 1.0, 1.0], 1.0), "one entry less"),
        (lambda f: f.from_precision(None, tf.ones(4), tf.ones(4)), "one entry less"),
        (lambda f: f.from_precision_cholesky(None, tf.ones(4), tf.ones(2)), "one entry less"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(MultivariateNormalANTE1)


def test_precision_that_is_not_positive_definite_is_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match="not positive definite"):
        MultivariateNormalANTE1.from_precision(None, [1.0, 1.0], [2.0], validate_args=True)

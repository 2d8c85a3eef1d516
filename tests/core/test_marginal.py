"""Marginals over ranges of coordinates."""

import decimal
import math

import derivatives
import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from family import MEMBERS, ONE_OF_EACH, as_dense, cast, random_parameters

import tfp_ar1

tfd = tfp.distributions


@pytest.mark.parametrize(
    "where", [(0, None, 1), (2, 7, 1), (1, None, 2), (0, -1, 3), (-2, None, 1), (4, 5, 1)]
)
@pytest.mark.parametrize("name", MEMBERS)
def test_marginal_is_the_submatrix(name, where):
    case, kept = MEMBERS[name], slice(*where)
    parameters = random_parameters(case, (3,), 9)
    distribution = case.distribution(*parameters, validate_args=True, allow_nan_stats=False)
    dense, marginal = as_dense(case, parameters, 9), distribution.marginal(*where)
    assert type(marginal) is type(distribution)
    assert (marginal.validate_args, marginal.allow_nan_stats) == (True, False)
    oracles.assert_close(marginal.mean(), dense.mean[:, kept], event_ndims=1)
    oracles.assert_close(marginal.covariance(), dense.covariance[:, kept, kept], event_ndims=2)


@pytest.mark.parametrize("signs", [[1, 1, 1, 1], [-1, 1, 1, -1], [-1, -1, 1, 1]])
def test_marginal_of_steps_keeps_accuracy_where_correlation_rounds_to_one(signs):
    u = np.float32(signs) * 15
    distribution = tfp_ar1.MultivariateNormalANTE1(tf.zeros(5), tf.ones(5), fisher_z=u)
    expected = (15.0 - np.log(2) / 2) * np.array([signs[0] * signs[1], signs[2] * signs[3]])
    np.testing.assert_allclose(distribution.marginal(step=2).fisher_z, expected, rtol=1e-6)


@tf.function
def neighbour_at_300_steps(u):
    p = tfp_ar1.MultivariateNormalANTE1(0.0, tf.ones(900), fisher_z=u)
    return p.marginal(start=5, step=300).fisher_z[1]


@pytest.mark.parametrize("near", ["one", "zero"])
def test_marginal_of_long_steps_against_decimals(near):
    """Of antedependence: products of 300 correlations, and their derivatives."""
    rng = np.random.default_rng(0)
    size = rng.uniform(6, 16, 899) if near == "one" else 3.0 + rng.normal(size=899)
    u = np.float32(rng.choice([-1.0, 1.0], 899) * size)
    with decimal.localcontext(decimal.Context(prec=50)):
        exponentials = [(2 * decimal.Decimal(float(x))).exp() for x in u[305:605]]
        rhos = [(e - 1) / (e + 1) for e in exponentials]
        product = math.prod(rhos)
        expected = ((1 + product) / (1 - product)).ln() / 2
        slopes = [product / rho * (1 - rho**2) / (1 - product**2) for rho in rhos]
    np.testing.assert_allclose(neighbour_at_300_steps(u), float(expected), rtol=1e-6)
    gradient = oracles.tf_gradients(neighbour_at_300_steps, [u])[0]
    np.testing.assert_allclose(gradient[305:605], np.float64(slopes), rtol=3e-6, atol=1e-30)


def test_marginal_of_long_steps_in_few_operations():
    graph = neighbour_at_300_steps.get_concrete_function(tf.TensorSpec([899])).graph
    assert len(graph.get_operations()) < 600


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_marginal_of_a_step_beyond_the_path(name, dtype):
    """One coordinate, at once, with gradients; also where the size is not known before."""
    case = MEMBERS[name]
    parameters = cast(random_parameters(case, (), 4), dtype)

    def log_prob(*parameters, step=10**9):
        return case.distribution(*parameters).marginal(step=step).log_prob(tf.ones([1], dtype))

    loc, scale = (x.ravel()[0] for x in parameters[:2])
    expected = tfd.Normal(loc, scale).log_prob(dtype(1))
    unknown = [tf.TensorSpec((*x.shape[:-1], None) if x.ndim else (), dtype) for x in parameters]
    compiled = tf.function(log_prob, input_signature=unknown)
    for found in (log_prob(*parameters), log_prob(*parameters, step=10**12), compiled(*parameters)):
        np.testing.assert_allclose(found, expected, rtol=2e-3 if dtype is np.float16 else 1e-12)
    for gradient in oracles.tf_gradients(log_prob, parameters):
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_marginal_by_other_kinds_of_integers(name):
    case = MEMBERS[name]
    parameters = random_parameters(case, (), 9)
    p, x = case.distribution(*parameters), np.ones(9)
    dense = as_dense(case, parameters, 9)

    def expected(kept):
        covariance = dense.covariance[kept, kept]
        return tfd.MultivariateNormalFullCovariance(dense.mean[kept], covariance).log_prob(x[kept])

    for start, stop, step in [(-(10**12), 10**12, 2), (1, -2, 3)]:
        kept = slice(start, stop, step)
        for kind in (int, np.int64, tf.constant):
            if abs(start) < 9 or kind is not tf.constant:
                found = p.marginal(kind(start), kind(stop), kind(step)).log_prob(x[kept])
                np.testing.assert_allclose(found, expected(kept), rtol=1e-10)
    in_graph = tf.function(lambda start: p.marginal(start, step=2).log_prob(x[1::2]))
    found = in_graph(tf.constant(1))
    np.testing.assert_allclose(found, expected(slice(1, None, 2)), rtol=1e-10)


def test_marginal_has_gradients():
    def of_marginal(rho):
        p = tfp_ar1.MultivariateNormalAR1(np.zeros(9), correlation=rho)
        return p.marginal(step=3).correlation_parameter()

    (gradient,) = derivatives.gradients(of_marginal, [tf.constant(0.6, tf.float64)])
    np.testing.assert_allclose(gradient, 3 * 0.6**2, rtol=1e-12)


def test_marginal_refuses_an_empty_range():
    distribution = tfp_ar1.MultivariateNormalAR1(tf.zeros(3), correlation=0.5)
    with pytest.raises(ValueError, match="start=2, stop=2, step=1 has no coordinate"):
        distribution.marginal(2, 2)
    for step in (0, -1, 1.5, None, "2"):
        with pytest.raises(ValueError, match=f"`step` must be a positive integer; got {step!r}"):
            distribution.marginal(step=step)

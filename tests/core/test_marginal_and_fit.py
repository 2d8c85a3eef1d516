"""Marginals over ranges of coordinates, and the maximum-likelihood estimate."""

import decimal
import math

import numpy as np
import oracles
import pytest
import scipy.optimize
import tensorflow as tf
import tensorflow_probability as tfp
from family import AR1S, RELATIVES, as_dense, cast, random_parameters

import tfp_ar1

tfd = tfp.distributions

LOC = np.random.default_rng(0).normal(size=(3, 9))
SCALE, CORRELATION = np.array([0.7, 1.0, 2.0]), np.array([0.8, -0.6, 0.0])


@pytest.mark.parametrize("where", [(0, None, 1), (2, 7, 1), (1, None, 2), (0, -1, 3), (4, 5, 1)])
@pytest.mark.parametrize("parameter", ["correlation", "fisher_z"])
def test_marginal_is_the_submatrix(where, parameter):
    value = {"correlation": CORRELATION, "fisher_z": np.arctanh(CORRELATION)}[parameter]
    distribution = tfp_ar1.MultivariateNormalAR1(LOC, SCALE, **{parameter: value})
    marginal = distribution.marginal(*where)
    kept = slice(*where)
    covariance = oracles.ar1_covariance(SCALE, CORRELATION, 9)[:, kept, kept]
    oracles.assert_close(marginal.mean(), LOC[:, kept], event_ndims=1)
    oracles.assert_close(marginal.covariance(), covariance, event_ndims=2)


def test_marginal_keeps_accuracy_where_correlation_rounds_to_one():
    marginal = tfp_ar1.MultivariateNormalAR1(tf.zeros(9), fisher_z=15.0).marginal(step=2)
    # 1 - ρ² of two steps is twice that of one, to first order: a shift of u by log(2)/2.
    np.testing.assert_allclose(marginal.fisher_z, 15.0 - np.log(2) / 2, rtol=1e-6)


@pytest.mark.parametrize(
    "where", [(0, None, 1), (2, 7, 1), (1, None, 2), (0, -1, 3), (-2, None, 1), (4, 5, 1)]
)
@pytest.mark.parametrize("name", RELATIVES)
def test_marginal_of_relatives(name, where):
    case, kept = RELATIVES[name], slice(*where)
    parameters = random_parameters(case, (3,), 9)
    distribution, dense = case.distribution(*parameters), as_dense(case, parameters, 9)
    marginal = distribution.marginal(*where)
    assert type(marginal) is type(distribution)
    oracles.assert_close(marginal.mean(), dense.mean[:, kept], event_ndims=1)
    oracles.assert_close(marginal.covariance(), dense.covariance[:, kept, kept], event_ndims=2)


@pytest.mark.parametrize("signs", [[1, 1, 1, 1], [-1, 1, 1, -1], [-1, -1, 1, 1]])
def test_marginal_of_steps_keeps_accuracy_where_correlation_rounds_to_one(signs):
    u = np.float32(signs) * 15
    distribution = tfp_ar1.MultivariateNormalANTE1(tf.zeros(5), tf.ones(5), fisher_z=u)
    expected = (15.0 - np.log(2) / 2) * np.array([signs[0] * signs[1], signs[2] * signs[3]])
    np.testing.assert_allclose(distribution.marginal(step=2).fisher_z, expected, rtol=1e-6)


@pytest.mark.parametrize("near", ["one", "zero"])
def test_marginal_of_long_steps_against_decimals(near):
    """Of antedependence: products of 300 correlations, their derivatives, in few operations."""
    rng = np.random.default_rng(0)
    size = rng.uniform(6, 16, 899) if near == "one" else 3.0 + rng.normal(size=899)
    u = np.float32(rng.choice([-1.0, 1.0], 899) * size)

    def neighbour(u):
        p = tfp_ar1.MultivariateNormalANTE1(0.0, tf.ones(900), fisher_z=u)
        return p.marginal(start=5, step=300).fisher_z[1]

    with decimal.localcontext(prec=50):
        exponentials = [(2 * decimal.Decimal(float(x))).exp() for x in u[305:605]]
        rhos = [(e - 1) / (e + 1) for e in exponentials]
        product = math.prod(rhos)
        expected = ((1 + product) / (1 - product)).ln() / 2
        slopes = [product / rho * (1 - rho**2) / (1 - product**2) for rho in rhos]
    compiled = tf.function(neighbour)
    np.testing.assert_allclose(compiled(u), float(expected), rtol=1e-6)
    gradient = oracles.tf_gradients(compiled, [u])[0]
    np.testing.assert_allclose(gradient[305:605], np.float64(slopes), rtol=3e-6, atol=1e-30)
    assert len(compiled.get_concrete_function(tf.TensorSpec([899])).graph.get_operations()) < 600


@pytest.mark.parametrize("name", ["AR1", "ARH1", "ANTE1", "OU"])
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_marginal_of_a_step_beyond_the_path(name, dtype):
    """One coordinate, at once, with gradients; also where the size is not known before."""
    case = (RELATIVES | AR1S)[name]
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


@pytest.mark.parametrize("name", ["AR1", "ARH1", "ANTE1", "OU"])
def test_marginal_by_other_kinds_of_integers(name):
    case = (RELATIVES | AR1S)[name]
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
    with tf.GradientTape() as tape:
        rho = tf.Variable(0.6, dtype=tf.float64)
        marginal = tfp_ar1.MultivariateNormalAR1(np.zeros(9), correlation=rho).marginal(step=3)
        y = marginal.correlation_parameter()
    np.testing.assert_allclose(tape.gradient(y, rho), 3 * 0.6**2, rtol=1e-12)


def test_marginal_refuses_an_empty_range():
    distribution = tfp_ar1.MultivariateNormalAR1(tf.zeros(3), correlation=0.5)
    with pytest.raises(ValueError, match="start=2, stop=2, step=1 has no coordinate"):
        distribution.marginal(2, 2)
    for step in (0, -1, 1.5, None, "2"):
        with pytest.raises(ValueError, match=f"`step` must be a positive integer; got {step!r}"):
            distribution.marginal(step=step)


@pytest.mark.parametrize("size", [1, 2, 3, 20])
@pytest.mark.parametrize("correlation", [-0.95, 0.0, 0.7])
def test_fit_is_the_maximum_of_the_likelihood(size, correlation):
    truth = tfp_ar1.MultivariateNormalAR1(np.ones(size), 1.7, correlation=np.float64(correlation))
    x = truth.sample(30, seed=1).numpy()
    fitted = tfp_ar1.MultivariateNormalAR1.experimental_fit(x)
    np.testing.assert_allclose(fitted.loc, x.mean(axis=0), rtol=1e-12)

    def negative_log_likelihood(parameters):
        covariance = oracles.ar1_covariance(np.exp(parameters[0]), np.tanh(parameters[1]), size)
        w = x - x.mean(axis=0)
        quadratic = np.sum(w * np.linalg.solve(covariance, w.T).T)
        return 0.5 * (quadratic + len(x) * np.linalg.slogdet(covariance)[1])

    found = np.array([np.log(fitted.marginal_scale), fitted.fisher_z.numpy()])
    best = scipy.optimize.minimize(negative_log_likelihood, [0.0, 0.0], method="Nelder-Mead")
    assert negative_log_likelihood(found) <= best.fun + 1e-6
    if size == 1:
        assert fitted.fisher_z == 0


def test_fit_of_a_batch():
    truth = tfp_ar1.MultivariateNormalAR1(LOC, SCALE, correlation=CORRELATION)
    fitted = tfp_ar1.MultivariateNormalAR1.experimental_fit(truth.sample(5000, seed=2))
    assert fitted.batch_shape == [3]
    np.testing.assert_allclose(fitted.correlation_parameter(), CORRELATION, atol=0.02)
    np.testing.assert_allclose(fitted.marginal_scale, SCALE, rtol=0.03)


@pytest.mark.parametrize("size", [1, 2, 6])
def test_fit_of_antedependence_is_the_maximum_of_the_likelihood(size):
    """Which the moments of the draws are."""
    mixture = np.random.default_rng(1).normal(size=(size, size))
    x = np.random.default_rng(0).normal(size=(30, 2, size)) @ mixture
    fitted = tfp_ar1.MultivariateNormalANTE1.experimental_fit(x)
    assert fitted.batch_shape == [2]
    for i in range(2):
        np.testing.assert_allclose(fitted.loc[i], x[:, i].mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(fitted.scale_diag[i], x[:, i].std(axis=0), rtol=1e-12)
        correlations = np.atleast_2d(np.corrcoef(x[:, i].T))
        expected = np.diagonal(correlations, offset=1)
        np.testing.assert_allclose(np.tanh(fitted.fisher_z[i]), expected, rtol=1e-10, atol=1e-12)
    best = tf.reduce_sum(fitted.log_prob(x), axis=0)
    for step in (-1e-3, 1e-3):
        for neighbour in (
            fitted.copy(loc=fitted.loc + step),
            fitted.copy(scale_diag=fitted.scale_diag * (1 + step)),
            *([] if size == 1 else [fitted.copy(fisher_z=fitted.fisher_z * (1 + step))]),
        ):
            assert np.all(best > tf.reduce_sum(neighbour.log_prob(x), axis=0))

"""Marginals over ranges of coordinates, and the maximum-likelihood estimate."""

import numpy as np
import oracles
import pytest
import scipy.optimize
import tensorflow as tf
from family import RELATIVES, as_dense, random_parameters

import tfp_ar1

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
    with pytest.raises(ValueError, match="`step` must be a positive integer; got 0"):
        distribution.marginal(step=0)


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

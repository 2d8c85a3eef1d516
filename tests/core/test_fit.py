"""Maximum-likelihood fits: near the unit root, of degenerate data, and without a closed form."""

import decimal
from decimal import Decimal

import derivatives
import numpy as np
import oracles
import pytest
import scipy.optimize
import tensorflow as tf

from tfp_ar1 import (
    MultivariateNormalANTE1,
    MultivariateNormalAR1,
    MultivariateNormalARH1,
    MultivariateNormalOU,
)

CLOSED = [MultivariateNormalAR1, MultivariateNormalANTE1]


def paths(complement, sign, size, count=4, seed=0):
    """AR(1) paths of scale 1 with the correlation `sign (1 - complement)`."""
    w = np.random.default_rng(seed).normal(size=(count, size))
    for t in range(1, size):
        w[:, t] *= np.sqrt(complement * (2 - complement))
        w[:, t] += sign * (1 - complement) * w[:, t - 1]
    return w


def by_decimals(x):
    """`fisher_z` and scale of AR(1), by bisection in the correlation, with 80 digits."""
    with decimal.localcontext(decimal.Context(prec=80)):
        n, d = x.shape
        columns = [[Decimal(float(v)) for v in column] for column in x.T]
        w = [[v - sum(column) / n for v in column] for column in columns]
        squares = [sum(v * v for v in column) for column in w]
        a, c = sum(squares) / n, sum(squares[1:-1], Decimal(0)) / n
        b = sum(w[t][i] * w[t - 1][i] for t in range(1, d) for i in range(n)) / n
        low, high = Decimal(-1), Decimal(1)
        for _ in range(180):
            rho = (low + high) / 2
            slope = (d - 1) * c * rho**3 - (d - 2) * b * rho**2 - (a + d * c) * rho + d * b
            low, high = (rho, high) if slope > 0 else (low, rho)
        variance = (a - 2 * b * rho + c * rho**2) / (d * (1 - rho**2))
        return float(((1 + rho) / (1 - rho)).ln() / 2), float(variance.sqrt())


@pytest.mark.parametrize("size", [1, 2, 3, 20])
@pytest.mark.parametrize("correlation", [-0.95, 0.0, 0.7])
def test_fit_is_the_maximum_of_the_likelihood(size, correlation):
    truth = MultivariateNormalAR1(np.ones(size), 1.7, correlation=np.float64(correlation))
    x = np.asarray(truth.sample(30, seed=1))
    fitted = MultivariateNormalAR1.experimental_fit(x)
    np.testing.assert_allclose(fitted.loc, x.mean(axis=0), rtol=1e-12)

    def negative_log_likelihood(parameters):
        covariance = oracles.ar1_covariance(np.exp(parameters[0]), np.tanh(parameters[1]), size)
        w = x - x.mean(axis=0)
        quadratic = np.sum(w * np.linalg.solve(covariance, w.T).T)
        return 0.5 * (quadratic + len(x) * np.linalg.slogdet(covariance)[1])

    found = np.array([np.log(fitted.marginal_scale), np.asarray(fitted.fisher_z)])
    best = scipy.optimize.minimize(negative_log_likelihood, [0.0, 0.0], method="Nelder-Mead")
    assert negative_log_likelihood(found) <= best.fun + 1e-6
    if size == 1:
        assert fitted.fisher_z == 0


def test_fit_of_a_batch():
    scale, correlation = np.array([0.7, 1.0, 2.0]), np.array([0.8, -0.6, 0.0])
    truth = MultivariateNormalAR1(np.ones((3, 9)), scale, correlation=correlation)
    x, fit = truth.sample(5000, seed=2), MultivariateNormalAR1.experimental_fit
    fitted = fit(x, validate_args=True)
    assert type(fitted) is MultivariateNormalAR1
    assert fitted.validate_args
    assert fitted.batch_shape == [3]
    np.testing.assert_allclose(fitted.correlation_parameter(), correlation, atol=0.02)
    np.testing.assert_allclose(fitted.marginal_scale, scale, rtol=0.03)
    # In other shapes, and in graphs.
    for same in (
        fit(tf.reshape(x, [50, 100, 3, 9]), sample_ndims=2),
        tf.function(fit)(x),
        tf.function(fit, jit_compile=True)(x),
    ):
        oracles.assert_close(same.log_prob(x[0]), fitted.log_prob(x[0]))


@pytest.mark.parametrize("size", [1, 2, 6])
def test_fit_of_antedependence_is_the_maximum_of_the_likelihood(size):
    """Which the moments of the draws are."""
    mixture = np.random.default_rng(1).normal(size=(size, size))
    x = np.random.default_rng(0).normal(size=(30, 2, size)) @ mixture
    fitted = MultivariateNormalANTE1.experimental_fit(x)
    assert fitted.batch_shape == [2]
    for i in range(2):
        np.testing.assert_allclose(fitted.loc[i], x[:, i].mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(fitted.scale_diag[i], x[:, i].std(axis=0), rtol=1e-12)
        correlations = np.atleast_2d(np.corrcoef(x[:, i].T))
        expected = np.diagonal(correlations, offset=1)
        np.testing.assert_allclose(np.tanh(fitted.fisher_z[i]), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("loc", [0.0, 1e4])
def test_near_the_unit_root(dtype, sign, loc):
    # float32 cannot hold a smaller difference beside a mean of 1e4.
    smallest = 1e-5 if dtype == "float32" and loc else 1e-12
    rtol = 3e-7 if dtype == "float32" else 1e-10
    for complement in (1e-1, 1e-5, smallest):
        for size in (2, 3, 100):
            x = (paths(complement, sign, size) + loc).astype(dtype)
            fitted = MultivariateNormalAR1.experimental_fit(x)
            fisher_z, scale = by_decimals(x)
            np.testing.assert_allclose(fitted.fisher_z, fisher_z, rtol=rtol)
            np.testing.assert_allclose(fitted.marginal_scale, scale, rtol=rtol)


def test_antedependence_near_the_unit_root():
    x = paths(1e-12, 1, 2)
    with decimal.localcontext(decimal.Context(prec=80)):
        a, b = ([Decimal(float(v)) for v in column] for column in x.T)
        a, b = ([v - sum(y) / len(y) for v in y] for y in (a, b))
        r = sum(u * v for u, v in zip(a, b, strict=True))
        r /= (sum(u * u for u in a) * sum(v * v for v in b)).sqrt()
        expected = float(((1 + r) / (1 - r)).ln() / 2)
    fitted = MultivariateNormalANTE1.experimental_fit(x)
    np.testing.assert_allclose(fitted.fisher_z, [expected], rtol=1e-10)


def parameters(fitted):
    return [np.asarray(x, np.float64) for x in fitted.parameters.values() if tf.is_tensor(x)]


@pytest.mark.parametrize("cls", CLOSED)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_degenerate_data(cls, dtype):
    """As tfd.Normal, which gives the scale 0 to equal draws, and refuses it if asked to."""
    x = tf.cast(paths(0.5, 1, 3), dtype)
    for equal in (x[:1], tf.zeros_like(x), 3.3 * tf.ones_like(x)):
        loc, scale, fisher_z = parameters(cls.experimental_fit(equal))
        np.testing.assert_array_equal(loc, np.asarray(equal[0], np.float64))
        assert not np.any(scale)
        assert not np.any(fisher_z)
        with pytest.raises(tf.errors.InvalidArgumentError, match="scale"):
            cls.experimental_fit(equal, validate_args=True)
    for factor in (1, -1):
        perfect = tf.stack([x[:, 0], factor * x[:, 0]], axis=-1)
        _, scale, fisher_z = parameters(cls.experimental_fit(perfect, validate_args=True))
        assert np.all(np.isfinite(fisher_z) & (factor * fisher_z > 4))
        assert np.all(np.isfinite(scale) & (scale > 0))
    for bad in (np.nan, np.inf):
        spoiled = tf.concat([x, bad * x[:1]], axis=0)
        assert not np.any(np.isfinite(parameters(cls.experimental_fit(spoiled))[1:][0]))
        with pytest.raises(tf.errors.InvalidArgumentError, match="scale"):
            cls.experimental_fit(spoiled, validate_args=True)


@pytest.mark.parametrize("cls", CLOSED)
def test_kinds_of_data(cls):
    integers = np.array([[1, 2, 4], [2, 1, 0], [3, 3, 3]])
    fitted = cls.experimental_fit(integers)
    assert fitted.dtype == tf.float32
    same = cls.experimental_fit(integers.astype("float32"))
    for got, expected in zip(parameters(fitted), parameters(same), strict=True):
        np.testing.assert_array_equal(got, expected)
    # As TFP's own tests call it.
    given = cls._maximum_likelihood_parameters(integers.astype("float32"))
    np.testing.assert_array_equal(given["fisher_z"], same.fisher_z)
    with pytest.raises(ValueError, match=r"One series is `value\[tf.newaxis\]`"):
        cls.experimental_fit(np.ones(3))
    with pytest.raises(TypeError, match="real numbers; got dtype complex128"):
        cls.experimental_fit(np.ones([2, 3], complex))


def test_derivative_of_the_fit():
    x = tf.constant(paths(0.1, 1, 6))
    (gradient,) = derivatives.gradients(
        lambda x: MultivariateNormalAR1.experimental_fit(x).fisher_z, [x]
    )
    step = np.random.default_rng(1).normal(size=x.shape)
    up, down = (MultivariateNormalAR1.experimental_fit(x + h * step) for h in (1e-5, -1e-5))
    expected = (up.fisher_z - down.fisher_z) / 2e-5
    np.testing.assert_allclose(np.sum(gradient * step), expected, rtol=1e-7)


def best_by_scipy(x, times):
    """Mean, scale and length scale of a single series, by the dense density."""
    distances = np.abs(times[:, None] - times)

    def loss(p):
        covariance = np.exp(2 * p[1] - distances * np.exp(-p[2]))
        w = x - p[0]
        return w @ np.linalg.solve(covariance, w) + np.linalg.slogdet(covariance)[1]

    options = {"xatol": 1e-8, "fatol": 1e-10, "maxiter": 5000}
    start = [x.mean(), np.log(x.std()), 0.0]
    best = scipy.optimize.minimize(loss, start, method="Nelder-Mead", options=options)
    return best.x[0], *np.exp(best.x[1:])


@pytest.mark.slow
def test_one_series_with_missing_values():
    path = 5.0 + 2.0 * paths(0.3, 1, 50, count=1)[0]
    known = np.random.default_rng(0).random(50) > 0.3
    times = np.arange(50.0)
    loc, scale, length_scale = best_by_scipy(path[known], times[known])
    value = np.where(known, path, np.nan)[np.newaxis]
    fitted = MultivariateNormalAR1.experimental_fit(value, observed=known, shared_loc=True)
    np.testing.assert_allclose(fitted.loc, np.full(50, loc), rtol=1e-5)
    np.testing.assert_allclose(fitted.marginal_scale, scale, rtol=1e-5)
    np.testing.assert_allclose(np.tanh(fitted.fisher_z), np.exp(-1 / length_scale), rtol=1e-5)


@pytest.mark.slow
def test_ou_at_irregular_times():
    times = np.cumsum(np.random.default_rng(0).uniform(0.1, 3.0, 60))
    x = np.asarray(MultivariateNormalOU(np.full(60, 5.0), 2.0, 7.0, times).sample(seed=3))
    fitted = MultivariateNormalOU.experimental_fit(x[np.newaxis], shared_loc=True, times=times)
    expected = best_by_scipy(x, times)
    got = fitted.loc[0], fitted.marginal_scale, fitted.length_scale
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="Missing required `times`"):
        MultivariateNormalOU.experimental_fit(x[np.newaxis])


@pytest.mark.slow
def test_arh1_has_no_slope_left():
    """In the gradient of the dense density, by each of its parameters."""
    rng = np.random.default_rng(0)
    x = paths(0.2, -1, 5, count=30) * rng.uniform(0.1, 9, 5) + rng.normal(size=5)
    fitted = MultivariateNormalARH1.experimental_fit(x)
    np.testing.assert_allclose(fitted.loc, x.mean(axis=0), rtol=1e-10)
    log_scale = np.log(fitted.scale_diag)

    def loss(p):
        z = (x - x.mean(axis=0)) * np.exp(-p[:-1])
        lags = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
        c = np.tanh(p[-1]) ** lags
        quadratic = np.mean(np.sum(z * np.linalg.solve(c, z.T).T, axis=-1))
        return quadratic + np.linalg.slogdet(c)[1] + 2 * np.sum(p[:-1])

    found = np.append(log_scale, fitted.fisher_z)
    np.testing.assert_allclose(scipy.optimize.approx_fprime(found, loss), 0, atol=1e-5)

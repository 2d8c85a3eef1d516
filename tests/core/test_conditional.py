"""Missing values: the conditional of an AR(1) normal against dense algebra."""

import numpy as np
import oracles
import pytest
import scipy.stats
import tensorflow as tf
from family import RELATIVES, as_dense, random_parameters

import tfp_ar1

D = 9
RNG = np.random.default_rng(0)
LOC, X = RNG.normal(size=(3, D)), RNG.normal(size=(3, D))
SCALE, CORRELATION = np.array([0.7, 1.0, 2.0]), np.array([0.8, -0.6, 0.99])
COVARIANCE = oracles.ar1_covariance(SCALE, CORRELATION, D)
MASKS = {
    "scattered": [0, 1, 0, 0, 1, 1, 0, 1, 0],
    "none": [0] * D,
    "all": [1] * D,
    "first": [1] + [0] * (D - 1),
    "last": [0] * (D - 1) + [1],
    "middle": [0, 0, 0, 0, 1, 0, 0, 0, 0],
    "ends": [1] + [0] * (D - 2) + [1],
}


def dense(loc, covariance, x, observed):
    """Mean, covariance and the observed coordinates' log-density, by Schur complements."""
    missing = ~observed
    gain = covariance[np.ix_(missing, observed)] @ np.linalg.inv(
        covariance[np.ix_(observed, observed)]
    )
    mean, conditional = x.copy(), np.zeros((len(x), len(x)))
    mean[missing] = loc[missing] + gain @ (x - loc)[observed]
    conditional[np.ix_(missing, missing)] = (
        covariance[np.ix_(missing, missing)] - gain @ covariance[np.ix_(observed, missing)]
    )
    log_prob = 0.0
    if observed.any():
        law = scipy.stats.multivariate_normal(loc[observed], covariance[np.ix_(observed, observed)])
        log_prob = law.logpdf(x[observed])
    return mean, conditional, log_prob


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("parameter", ["correlation", "fisher_z"])
def test_agrees_with_dense_algebra(mask, parameter):
    observed = np.array(MASKS[mask], bool)
    value = {"correlation": CORRELATION, "fisher_z": np.arctanh(CORRELATION)}[parameter]
    distribution = tfp_ar1.MultivariateNormalAR1(LOC, SCALE, **{parameter: value})
    conditional = distribution.conditional(np.where(observed, X, np.nan), observed)
    samples = conditional.sample(20_000, seed=1).numpy()
    for i in range(3):
        mean, covariance, log_prob = dense(LOC[i], COVARIANCE[i], X[i], observed)
        variance = np.diag(covariance)
        oracles.assert_close(conditional.mean()[i], mean, event_ndims=1)
        oracles.assert_close(conditional.variance()[i], variance, event_ndims=1)
        oracles.assert_close(conditional.stddev()[i], np.sqrt(variance), event_ndims=1)
        oracles.assert_close(conditional.observed_log_prob()[i], log_prob)
        np.testing.assert_array_equal(samples[:, i, observed], np.tile(X[i, observed], (20_000, 1)))
        # Five standard errors of an empirical covariance.
        bound = 5 * np.sqrt((np.outer(variance, variance) + covariance**2) / 20_000) + 1e-12
        assert np.all(np.abs(np.cov(samples[:, i].T) - covariance) <= bound)


@pytest.mark.parametrize("size", [127, 128, 129, 400, 2100])
@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_many_coordinates(size, rate):
    """From here on neighbours are searched in blocks."""
    rng = np.random.default_rng(size)
    x, loc, observed = rng.normal(size=size), rng.normal(size=size), rng.uniform(size=size) < rate
    distribution = tfp_ar1.MultivariateNormalAR1(loc, 1.5, correlation=-0.97)
    conditional = distribution.conditional(x, observed)
    covariance = oracles.ar1_covariance(1.5, -0.97, size)
    mean, covariance, log_prob = dense(loc, covariance, x, observed)
    oracles.assert_close(conditional.mean(), mean, event_ndims=1)
    oracles.assert_close(conditional.variance(), np.diag(covariance), event_ndims=1)
    oracles.assert_close(conditional.observed_log_prob(), log_prob)


@pytest.mark.parametrize("mask", ["scattered", "first", "last"])
def test_gradients_agree_with_finite_differences(mask):
    observed = np.array(MASKS[mask], bool)

    def objective(correlation, scale, loc, x):
        distribution = tfp_ar1.MultivariateNormalAR1(loc, scale, correlation=correlation)
        conditional = distribution.conditional(tf.where(observed, x, np.nan), observed)
        return (
            tf.reduce_sum(conditional.observed_log_prob())
            + tf.reduce_sum(tf.sin(conditional.mean()))
            + tf.reduce_sum(conditional.stddev())
        )

    arguments = [tf.constant(a) for a in (CORRELATION, SCALE, LOC, X)]
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        y = objective(*arguments)
    gradients = tape.gradient(y, arguments)
    for k, (argument, gradient) in enumerate(zip(arguments, gradients, strict=True)):
        assert np.all(np.isfinite(gradient))
        direction = np.random.default_rng(k).normal(size=argument.shape) * 1e-6

        def moved(sign, k=k, direction=direction):
            a = list(arguments)
            a[k] = a[k] + sign * direction
            return objective(*a)

        slope = (moved(1) - moved(-1)) / 2
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-4, atol=1e-12)


def test_zero_correlation_has_finite_gradients():
    observed = np.array(MASKS["scattered"], bool)
    with tf.GradientTape() as tape:
        correlation = tf.Variable(0.0)
        distribution = tfp_ar1.MultivariateNormalAR1(tf.zeros(D), correlation=correlation)
        conditional = distribution.conditional(X[0].astype(np.float32), observed)
        y = tf.reduce_sum(conditional.mean()) + conditional.observed_log_prob()
    # At ρ = 0 a missing coordinate leans on each observed neighbour by its value times dρ, and
    # neighbours that are both observed add their product.
    pairs = sum(X[0][t] * X[0][t - 1] for t in range(1, D) if observed[t] and observed[t - 1])
    leans = sum(
        X[0][s]
        for t in range(D)
        for s in (t - 1, t + 1)
        if 0 <= s < D and not observed[t] and observed[s]
    )
    np.testing.assert_allclose(tape.gradient(y, correlation), pairs + leans, rtol=1e-4)


def test_broadcasts_values_masks_and_batch():
    distribution = tfp_ar1.MultivariateNormalAR1(LOC, SCALE, correlation=CORRELATION)
    observed = np.random.default_rng(3).random((4, 1, D)) < 0.5
    conditional = distribution.conditional(X[0], observed)
    assert conditional.mean().shape == (4, 3, D)
    assert conditional.observed_log_prob().shape == (4, 3)
    assert conditional.sample([2, 5], seed=0).shape == (2, 5, 4, 3, D)
    mean, _, log_prob = dense(LOC[1], COVARIANCE[1], X[0], observed[2, 0])
    oracles.assert_close(conditional.mean()[2, 1], mean, event_ndims=1)
    oracles.assert_close(conditional.observed_log_prob()[2, 1], log_prob)


def test_keeps_accuracy_where_correlation_rounds_to_one():
    # Between two observations a step apart on either side, 1 - ρ² = sech²(15) is left.
    u = 15.0
    distribution = tfp_ar1.MultivariateNormalAR1(tf.zeros(3), fisher_z=u)
    variance = distribution.conditional([1.0, 0.0, 1.0], [True, False, True]).variance()
    step = 1 / np.cosh(u) ** 2
    two_steps = step * (2 - step)
    np.testing.assert_allclose(variance, [0, step**2 / two_steps, 0], rtol=3e-4)


def test_runs_in_a_graph_and_at_a_hundred_thousand_coordinates():
    size = 100_000
    distribution = tfp_ar1.MultivariateNormalAR1(tf.zeros(size), correlation=0.9)
    x = distribution.sample(seed=1)
    observed = tf.constant(np.random.default_rng(0).random(size) < 0.5)

    @tf.function
    def terms(x, observed):
        conditional = distribution.conditional(x, observed)
        return conditional.mean(), conditional.stddev(), conditional.observed_log_prob()

    mean, stddev, log_prob = terms(x, observed)
    missing = ~observed.numpy()
    z = ((x - mean) / stddev).numpy()[missing]
    # Standardized errors of the missing half: their mean square is 1, to its standard error.
    assert abs(np.mean(z**2) - 1) < 0.05
    assert np.isfinite(log_prob)


def test_refuses_what_does_not_fit():
    distribution = tfp_ar1.MultivariateNormalAR1(tf.zeros(3), correlation=0.5)
    with pytest.raises(TypeError, match="`observed` must be boolean; got dtype int32"):
        distribution.conditional([1.0, 2.0, 3.0], [1, 0, 1])
    with pytest.raises(ValueError, match="last dimension of `value` must be the event size 3"):
        distribution.conditional([1.0, 2.0], [True, False, True])
    with pytest.raises(ValueError, match="last dimension of `observed` must be the event size 3"):
        distribution.conditional([1.0, 2.0, 3.0], [True, False])


# --- The rest of the family ------------------------------------------------------------------

each_relative = pytest.mark.parametrize("name", RELATIVES)


def random_observed(size):
    """For four members of a batch: some, others, none, all."""
    observed = np.random.default_rng(size).random((4, size)) < 0.4
    observed[2], observed[3] = False, True
    return observed


@each_relative
@pytest.mark.parametrize("size", [1, 9, 150])
def test_relatives_agree_with_dense_algebra(size, name):
    case = RELATIVES[name]
    parameters = random_parameters(case, (4,), size)
    distribution, law = case.distribution(*parameters), as_dense(case, parameters, size)
    x, observed = np.random.default_rng(1).normal(size=(4, size)), random_observed(size)
    conditional = distribution.conditional(np.where(observed, x, np.nan), observed)
    samples = conditional.sample(2, seed=(1, 2)).numpy()
    unconditional = distribution.sample(2, seed=(1, 2)).numpy()
    for i, known in enumerate(observed):
        mean, covariance, log_prob = dense(law.mean[i], law.covariance[i], x[i], known)
        variance = np.diag(covariance)
        oracles.assert_close(conditional.mean()[i], mean, event_ndims=1)
        oracles.assert_close(conditional.variance()[i], variance, event_ndims=1)
        oracles.assert_close(conditional.stddev()[i], np.sqrt(variance), event_ndims=1)
        oracles.assert_close(conditional.observed_log_prob()[i], log_prob)
        # A draw of the unconditional law is moved by what the observed differ from it.
        for sample, draw in zip(samples[:, i], unconditional[:, i], strict=True):
            mean_given_draw = dense(law.mean[i], law.covariance[i], draw, known)[0]
            oracles.assert_close(sample, draw + mean - mean_given_draw, event_ndims=1)
        np.testing.assert_array_equal(samples[:, i, known], np.tile(x[i, known], (2, 1)))


@each_relative
@pytest.mark.parametrize("size", [1, 7])
def test_gradients_of_relatives_agree_with_finite_differences(size, name):
    case, observed = RELATIVES[name], random_observed(size)
    arguments = [*random_parameters(case, (4,), size, seed=3), np.ones((4, size))]

    def objective(*arguments):
        *parameters, x = map(tf.convert_to_tensor, arguments)
        conditional = case.distribution(*parameters).conditional(
            tf.where(observed, x, np.nan), observed
        )
        vectors = (
            tf.sin(conditional.mean()) + conditional.stddev() + conditional.sample(seed=(1, 2))
        )
        connected = 0 * sum(map(tf.reduce_sum, [*parameters, x]))
        return tf.reduce_sum(conditional.observed_log_prob()) + tf.reduce_sum(vectors) + connected

    gradients = oracles.tf_gradients(objective, arguments)
    for i, gradient in enumerate(gradients):
        step = np.random.default_rng(i).normal(size=gradient.shape)
        up, down = (
            [a + h * step if i == j else a for j, a in enumerate(arguments)] for h in (1e-6, -1e-6)
        )
        slope = (objective(*up) - objective(*down)) / 2e-6
        np.testing.assert_allclose(np.sum(gradient * step), slope, rtol=1e-5, atol=1e-7)


def test_relatives_keep_accuracy_where_correlation_rounds_to_one():
    """As AR1 above; the scales multiply what is left."""
    distribution = tfp_ar1.MultivariateNormalANTE1(
        tf.zeros(3), [1.0, 3.0, 0.5], fisher_z=[15.0, -15.0]
    )
    conditional = distribution.conditional([1.0, 0.0, -0.5], [True, False, True])
    step = 1 / np.cosh(15.0) ** 2
    variance = 9 * step**2 / (step * (2 - step))
    np.testing.assert_allclose(conditional.variance(), [0, variance, 0], rtol=3e-4)
    np.testing.assert_allclose(conditional.mean(), [1, 3, -0.5], rtol=1e-6)


@pytest.mark.parametrize("name", ["ARH1", "ANTE1", "OU"])
def test_relatives_broadcast_values_and_masks(name):
    case = RELATIVES[name]
    parameters = random_parameters(case, (3,), D)
    law, x = as_dense(case, parameters, D), X[0]
    observed = np.random.default_rng(3).random((4, 1, D)) < 0.5
    conditional = case.distribution(*parameters).conditional(x, observed)
    assert conditional.sample([2, 5], seed=0).shape == (2, 5, 4, 3, D)
    mean, _, log_prob = dense(law.mean[1], law.covariance[1], x, observed[2, 0])
    oracles.assert_close(conditional.mean()[2, 1], mean, event_ndims=1)
    oracles.assert_close(conditional.observed_log_prob()[2, 1], log_prob)

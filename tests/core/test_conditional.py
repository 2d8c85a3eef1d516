"""Missing values: the conditional of every member against dense algebra."""

import numpy as np
import oracles
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp
from family import MEMBERS, ONE_OF_EACH, as_dense, random_parameters

import tfp_ar1

tfd = tfp.distributions

D = 9
X = np.random.default_rng(0).normal(size=(3, D))
SCATTERED = np.array([0, 1, 0, 0, 1, 1, 0, 1, 0], bool)
one_of_each = pytest.mark.parametrize("name", ONE_OF_EACH)


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
        given = scipy.stats.multivariate_normal(
            loc[observed], covariance[np.ix_(observed, observed)]
        )
        log_prob = given.logpdf(x[observed])
    return mean, conditional, log_prob


def random_observed(size):
    """For the members of a batch: some, others, none, all, the first, the last, and the ends."""
    observed = np.random.default_rng(size).random((7, size)) < 0.4
    observed[2], observed[3:] = False, [[True]] * 4
    if size > 2:
        observed[4, 1:] = observed[5, :-1] = observed[6, 1:-1] = False
    return observed


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("size", [1, 9, pytest.param(150, marks=pytest.mark.slow)])
def test_agrees_with_dense_algebra(size, name):
    case, count = MEMBERS[name], 7
    parameters = random_parameters(case, (count,), size)
    distribution, whole = case.distribution(*parameters), as_dense(case, parameters, size)
    x, observed = np.random.default_rng(1).normal(size=(count, size)), random_observed(size)
    conditional = distribution.conditional(np.where(observed, x, np.nan), observed)
    samples = np.asarray(conditional.sample(2, seed=(1, 2)))
    unconditional = np.asarray(distribution.sample(2, seed=(1, 2)))
    for i, known in enumerate(observed):
        mean, covariance, log_prob = dense(whole.mean[i], whole.covariance[i], x[i], known)
        variance = np.diag(covariance)
        oracles.assert_close(conditional.mean()[i], mean, event_ndims=1)
        oracles.assert_close(conditional.variance()[i], variance, event_ndims=1)
        oracles.assert_close(conditional.stddev()[i], np.sqrt(variance), event_ndims=1)
        oracles.assert_close(conditional.observed_log_prob()[i], log_prob)
        # A draw of the unconditional distribution is moved by what the observed differ from it.
        for sample, draw in zip(samples[:, i], unconditional[:, i], strict=True):
            mean_given_draw = dense(whole.mean[i], whole.covariance[i], draw, known)[0]
            oracles.assert_close(sample, draw + mean - mean_given_draw, event_ndims=1)
        np.testing.assert_array_equal(samples[:, i, known], np.tile(x[i, known], (2, 1)))


@pytest.mark.parametrize("size", [128, 129, 2100])
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


@pytest.mark.slow
@one_of_each
@pytest.mark.parametrize("size", [1, 7])
def test_gradients_agree_with_finite_differences(size, name):
    case, observed = MEMBERS[name], random_observed(size)[:4]
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


@one_of_each
def test_broadcasts_values_and_masks(name):
    case = MEMBERS[name]
    parameters = random_parameters(case, (3,), D)
    whole, x = as_dense(case, parameters, D), X[0]
    observed = np.random.default_rng(3).random((4, 1, D)) < 0.5
    conditional = case.distribution(*parameters).conditional(x, observed)
    assert conditional.mean().shape == (4, 3, D)
    assert conditional.observed_log_prob().shape == (4, 3)
    assert conditional.sample([2, 5], seed=0).shape == (2, 5, 4, 3, D)
    mean, _, log_prob = dense(whole.mean[1], whole.covariance[1], x, observed[2, 0])
    oracles.assert_close(conditional.mean()[2, 1], mean, event_ndims=1)
    oracles.assert_close(conditional.observed_log_prob()[2, 1], log_prob)


@pytest.mark.slow
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
    missing = ~np.asarray(observed)
    z = np.asarray((x - mean) / stddev)[missing]
    # Standardized errors of the missing half: their mean square is 1, to its standard error.
    assert abs(np.mean(z**2) - 1) < 0.05
    assert np.isfinite(log_prob)


def test_refuses_what_does_not_fit():
    distribution = tfp_ar1.MultivariateNormalAR1(tf.zeros(3), correlation=0.5)
    with pytest.raises(TypeError, match="`observed` must be boolean; got dtype int32"):
        distribution.conditional([1.0, 2.0, 3.0], [1, 0, 1])
    with pytest.raises(TypeError, match="`observed` must be a boolean tensor; got None"):
        distribution.conditional([1.0, 2.0, 3.0], None)
    with pytest.raises(ValueError, match="last dimension of `value` must be the event size 3"):
        distribution.conditional([1.0, 2.0], [True, False, True])
    with pytest.raises(ValueError, match="last dimension of `observed` must be the event size 3"):
        distribution.conditional([1.0, 2.0, 3.0], [True, False])


def test_keeps_accuracy_of_steps_where_correlation_rounds_to_one():
    """The scales multiply what is left."""
    distribution = tfp_ar1.MultivariateNormalANTE1(
        tf.zeros(3), [1.0, 3.0, 0.5], fisher_z=[15.0, -15.0]
    )
    conditional = distribution.conditional([1.0, 0.0, -0.5], [True, False, True])
    step = 1 / np.cosh(15.0) ** 2
    variance = 9 * step**2 / (step * (2 - step))
    np.testing.assert_allclose(conditional.variance(), [0, variance, 0], rtol=3e-4)
    np.testing.assert_allclose(conditional.mean(), [1, 3, -0.5], rtol=1e-6)


class TestAsADistribution:
    """Point masses at what is observed; of the others, the dense normal's."""

    def conditional(self, name="ANTE1", batch=(), size=9):
        member, rng = MEMBERS[name], np.random.default_rng(1)
        parameters = member.parameters(rng, batch, size)
        observed = rng.random(size) < 0.4
        value = np.where(observed, rng.normal(size=(*batch, size)), np.nan)
        path = member.distribution(*parameters, size=size)
        return path.conditional(value, observed), observed, value

    @pytest.mark.parametrize("name", ONE_OF_EACH)
    def test_density_and_covariance(self, name):
        conditional, observed, value = self.conditional(name, (2,))
        assert isinstance(conditional, tfd.Distribution)
        missing = np.flatnonzero(~observed)
        covariance = np.asarray(conditional.covariance())
        known = np.flatnonzero(observed)
        dense = np.asarray(conditional.path.covariance())
        gain = dense[:, missing[:, None], known] @ np.linalg.inv(dense[:, known[:, None], known])
        expected = np.zeros_like(dense)
        expected[:, missing[:, None], missing] = (
            dense[:, missing[:, None], missing] - gain @ dense[:, known[:, None], missing]
        )
        np.testing.assert_allclose(covariance, expected, atol=1e-10)
        np.testing.assert_allclose(
            conditional.variance(), np.diagonal(covariance, 0, 1, 2), atol=1e-12
        )
        of_missing = tfd.MultivariateNormalFullCovariance(
            np.asarray(conditional.mean())[:, missing], covariance[:, missing[:, None], missing]
        )
        x, log_prob = conditional.experimental_sample_and_log_prob(3, seed=(1, 2))
        expected = of_missing.log_prob(np.asarray(x)[..., missing])
        np.testing.assert_allclose(log_prob, expected, rtol=1e-8)
        np.testing.assert_allclose(conditional.entropy(), of_missing.entropy(), rtol=1e-8)
        np.testing.assert_array_equal(np.asarray(x)[..., known], np.stack([value[:, known]] * 3))
        assert np.all(np.isneginf(conditional.log_prob(x + 1.0)))

    def test_density_where_correlation_rounds_to_one(self):
        """Differences of neighbours lose no digit: against float64 of the same numbers."""
        u, observed = 12.0, np.arange(30) % 10 == 0
        x = tfp_ar1.MultivariateNormalAR1(np.zeros(30), 1.0, fisher_z=u).sample(seed=(1, 2))
        of = {}
        for dtype in ("float32", "float64"):
            x = tf.cast(tf.cast(x, tf.float32), dtype)
            path = tfp_ar1.MultivariateNormalAR1(np.zeros(30, dtype), 1.0, fisher_z=u)
            of[dtype] = path.conditional(x, observed).log_prob(x)
        np.testing.assert_allclose(of["float32"], of["float64"], rtol=1e-5)

    def test_transformations(self):
        conditional, *_ = self.conditional(batch=(2, 3))
        x = conditional.sample(4, seed=(1, 2))
        expected = conditional.log_prob(x)
        compiled = tf.function(conditional.log_prob, jit_compile=True)(x)
        np.testing.assert_allclose(compiled, expected)
        np.testing.assert_allclose(tf.vectorized_map(conditional.log_prob, x), expected)
        np.testing.assert_allclose(conditional[0, 1].log_prob(x[:, 0, 1]), expected[:, 0, 1])
        returned = tf.function(lambda d: d)(conditional)
        np.testing.assert_allclose(returned.mean(), conditional.mean())
        assert conditional.batch_shape == (2, 3)

    def test_in_a_joint_distribution(self):
        conditional, observed, value = self.conditional()
        model = tfd.JointDistributionSequential(
            [conditional, lambda x: tfd.Independent(tfd.Normal(x, np.float64(0.1)), 1)]
        )
        x, y = model.sample(seed=(1, 2))
        np.testing.assert_array_equal(x[observed], value[observed])
        assert np.isfinite(model.log_prob(x, y))

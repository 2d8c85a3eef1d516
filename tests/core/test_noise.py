"""Chains observed with noise: against dense matrices, decimals and a Kalman filter of TFP."""

import derivatives
import exact
import family
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1
from tfp_ar1.distributions.kl import kl_terms

tfd = tfp.distributions
SEED = (1, 2)


def case(kind, size, batch=(), seed=0):
    """A member by name, its parameters, observations, noise and which are observed."""
    rng = np.random.default_rng(seed)
    member = family.MEMBERS[kind]
    parameters = member.parameters(rng, batch, size)
    noise = rng.uniform(0.3, 2.0, (*batch, size))
    observed = rng.random((*batch, size)) < 0.6
    return member, parameters, 2.0 * rng.normal(size=(*batch, size)), noise, observed


def dense(mean, covariance, y, noise, observed):
    """Log-likelihood, mean and covariance given the observed entries, of matrices; in TensorFlow.

    What is not observed has a noise without end: its row of the gain is 0.
    """
    seen = tf.cast(observed, tf.float64)
    error = tf.where(observed, y - mean, tf.zeros_like(y))
    of_y = covariance * seen[..., :, None] * seen[..., None, :]
    of_y += tf.linalg.diag(tf.where(observed, noise**2, tf.ones_like(noise)))
    factor = tf.linalg.cholesky(of_y)
    whitened = tf.linalg.triangular_solve(factor, error[..., None])[..., 0]
    log_dets = tf.math.log(tf.linalg.diag_part(factor))
    log_prob = -tf.reduce_sum(
        0.5 * whitened**2 + log_dets + 0.5 * np.log(2 * np.pi) * seen, axis=-1
    )
    gain = tf.linalg.matrix_transpose(
        tf.linalg.cholesky_solve(factor, covariance * seen[..., :, None])
    )
    return (
        log_prob,
        mean + tf.linalg.matvec(gain, error),
        covariance - tf.matmul(gain, covariance * seen[..., :, None]),
    )


def close(actual, desired, rtol=1e-9, err_msg=""):
    """To a share of the largest entry."""
    desired = np.asarray(desired)
    atol = rtol * max(1e-300, float(np.max(np.abs(desired), initial=0.0)))
    np.testing.assert_allclose(actual, desired, rtol=rtol, atol=atol, err_msg=err_msg)


@pytest.mark.parametrize("size", [1, 2, 3, 64, 129, pytest.param(700, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", family.ONE_OF_EACH)
def test_against_matrices(kind, size):
    member, parameters, y, noise, observed = case(kind, size, batch=(3,))
    mean, covariance = member.moments(*parameters, size=size)
    log_prob, posterior_mean, posterior_covariance = dense(mean, covariance, y, noise, observed)
    path = member.distribution(*parameters, size=size)
    noisy = path.with_observation_noise(noise, observed)
    value = np.where(observed, y, np.nan)
    close(noisy.log_prob(value), log_prob)
    close(noisy.covariance(), covariance + np.eye(size) * noise[..., None] ** 2)
    close(noisy.variance(), np.asarray(noisy.stddev()) ** 2)
    close(noisy.mean(), mean)
    posterior = noisy.posterior(value)
    assert isinstance(posterior, tfp_ar1.MultivariateNormalANTE1)
    close(posterior.mean(), posterior_mean)
    close(posterior.covariance(), posterior_covariance)
    # The KL of a copy of the path is computed from the two sets of parameters.
    kl = tfd.kl_divergence(posterior, path)
    close(kl, tfd.kl_divergence(posterior, path.copy()), rtol=1e-7)
    close(tf.reduce_sum(kl_terms(posterior, path), axis=-1), kl)
    # The same observations as natural parameters.
    precision = np.where(observed, noise**-2.0, 0.0)
    sites = path.with_sites(np.where(observed, y, 0.0) * precision, precision)
    close(sites.posterior().mean(), posterior_mean)
    close(sites.posterior().covariance(), posterior_covariance)
    close(sites.kl_divergence(), kl)
    of_sites = tfd.Normal(np.float64(0.0), noise).log_prob(np.where(observed, y, 0.0))
    close(sites.log_normalizer(), log_prob - np.where(observed, of_sites, 0.0).sum(-1))


@pytest.mark.parametrize("kind", family.ONE_OF_EACH)
def test_nothing_and_everything_observed(kind):
    member, parameters, y, noise, _ = case(kind, 7, batch=(2,))
    path = member.distribution(*parameters, size=7)
    close(path.with_observation_noise(noise, y == np.inf).log_prob(y), np.zeros(2))
    nothing = path.posterior(y, np.inf)
    close(nothing.mean(), path.mean())
    close(nothing.covariance(), path.covariance())
    close(tfd.kl_divergence(nothing, path), np.zeros(2))
    everything = path.with_observation_noise(noise)
    whole = tfd.MultivariateNormalFullCovariance(everything.mean(), everything.covariance())
    close(everything.log_prob(y), whole.log_prob(y))
    close(everything.entropy(), whole.entropy())


def test_without_noise_it_is_the_exact_conditional():
    member, parameters, y, _, observed = case("ANTE1", 50)
    path = member.distribution(*parameters, size=50)
    conditional = path.conditional(y, observed)
    for noise in (0.0, 1e-9):
        posterior = path.posterior(y, noise, observed)
        close(posterior.mean(), conditional.mean(), 1e-8)
        np.testing.assert_allclose(posterior.stddev(), conditional.stddev(), atol=1e-8)
    close(
        path.with_observation_noise(0.0, observed).log_prob(y),
        conditional.observed_log_prob(),
        1e-8,
    )


def functions(kind):
    """Sums of all that is computed, by the package and by matrices; and their arguments."""
    member, parameters, y, noise, observed = case(kind, 5)
    weights = np.random.default_rng(3).normal(size=5)

    def ours(*parameters):
        *parameters, noise = parameters
        path = member.distribution(*parameters, size=5)
        noisy = path.with_observation_noise(noise, observed)
        posterior = noisy.posterior(y)
        return (
            noisy.log_prob(y)
            + tf.reduce_sum(weights * (posterior.mean() + posterior.stddev()))
            + tf.reduce_sum(posterior.covariance())
        )

    def of_matrices(*parameters):
        *parameters, noise = parameters
        mean, covariance = member.moments(*parameters, size=5)
        log_prob, mean, covariance = dense(mean, covariance, y, noise, observed)
        stddev = tf.sqrt(tf.linalg.diag_part(covariance))
        return log_prob + tf.reduce_sum(weights * (mean + stddev)) + tf.reduce_sum(covariance)

    return ours, of_matrices, [tf.constant(x) for x in (*parameters, noise)]


def first_and_second(function, variables):
    """The first ones, and those of the sum of their squares."""

    def first(*variables):
        return derivatives.gradients(function, variables)

    def total(*variables):
        return sum(tf.reduce_sum(tf.square(x)) for x in first(*variables))

    return [*first(*variables), *derivatives.gradients(total, variables)]


@pytest.mark.parametrize("kind", ["AR1", "ANTE1"])
def test_gradients(kind):
    ours, of_matrices, variables = functions(kind)
    for function in (ours, tf.function(ours, autograph=False)):
        actual, expected = (
            tfp.math.value_and_gradient(f, variables)[1] for f in (function, of_matrices)
        )
        for x, y in zip(actual, expected, strict=True):
            close(x, y, 1e-7)


def test_what_is_missing_reaches_no_gradient():
    scale, noise, y = tf.constant(2.0), tf.constant(0.5), tf.constant([1.0, np.nan, 3.0])

    def ours(scale, noise, y):
        path = tfp_ar1.MultivariateNormalAR1(tf.zeros(3), scale, 0.5)
        noisy = path.with_observation_noise(noise, ~np.isnan([1.0, np.nan, 3.0]))
        predicted = tf.reduce_sum(noisy.one_step_predictive(y).mean())
        return noisy.log_prob(y) + tf.reduce_sum(noisy.posterior(y).mean()) + predicted

    for gradient in tfp.math.value_and_gradient(ours, [scale, noise, y])[1]:
        assert np.all(np.isfinite(gradient))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["AR1", "ANTE1 by fisher_z"])
def test_second_derivatives_of_a_compiled_function(kind):
    ours, of_matrices, variables = functions(kind)
    actual = first_and_second(tf.function(ours, autograph=False), variables)
    for x, y in zip(actual, first_and_second(of_matrices, variables), strict=True):
        close(x, y, 1e-7)


EXTREMES = [(u, noise) for u in (-20.0, -8.0, 1e-3, 3.0, 20.0) for noise in (1e-6, 1.0, 1e6)]


@pytest.mark.parametrize(("u", "noise"), EXTREMES)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_extreme_correlations_and_noise(u, noise, dtype):
    """Against the Kalman smoother in decimals."""
    rng = np.random.default_rng(0)
    size, tolerance = 40, {"float32": 3e-4, "float64": 1e-9}[dtype]
    observed = rng.random(size) < 0.6
    fisher_z = (u * rng.uniform(0.9, 1.0, size - 1)).astype(dtype)
    scale = rng.uniform(0.5, 2.0, size).astype(dtype)
    noise = (noise * rng.uniform(0.5, 1.5, size)).astype(dtype)
    loc = np.zeros(size, dtype)
    path = tfp_ar1.MultivariateNormalANTE1(loc, scale, fisher_z=fisher_z)
    wide = tfp_ar1.MultivariateNormalANTE1(
        *(x.astype("float64") for x in (loc, scale)), fisher_z=fisher_z.astype("float64")
    )
    # One path for all backends, near 0: of 1, float32 rounds away a twentieth of a noise of 1e-6.
    normal = np.append(0.2, rng.normal(size=size - 1))
    y = np.asarray(wide.scale.matvec(normal) + noise * rng.normal(size=size)).astype(dtype)
    noisy = path.with_observation_noise(noise, observed)
    posterior = noisy.posterior(np.where(observed, y, np.nan).astype(dtype))
    expected = exact.noisy(
        exact.Exact(tuple(loc), tuple(scale), tuple(fisher_z)), y, noise, observed
    )
    mean, variance, fisher_z = (
        np.array(x, np.float64) for x in (expected.mean, expected.variance, expected.fisher_z)
    )
    stddev = np.sqrt(variance)
    np.testing.assert_allclose(
        noisy.log_prob(y), float(expected.log_prob), rtol=tolerance, atol=tolerance * size
    )
    assert np.all(np.abs(posterior.mean() - mean) <= tolerance * (np.abs(mean) + stddev))
    np.testing.assert_allclose(posterior.stddev(), stddev, rtol=tolerance)
    np.testing.assert_allclose(
        posterior.scale.fisher_z, fisher_z, rtol=tolerance, atol=1e-3 * tolerance
    )
    # At a noise of 1e6 it is 1e-11, which only the message of the observations gives.
    np.testing.assert_allclose(
        tfd.kl_divergence(posterior, path), float(expected.kl), rtol=3 * tolerance
    )


def test_likelihood_is_that_of_the_kalman_filter_of_tfp():
    rng = np.random.default_rng(0)
    rho, scale, noise, y = 0.8, 1.5, 0.7, rng.normal(size=(4, 30))
    model = tfd.LinearGaussianStateSpaceModel(
        30,
        tf.linalg.LinearOperatorFullMatrix(np.array([[rho]])),
        tfd.MultivariateNormalDiag(np.zeros(1), [scale * np.sqrt(1 - rho**2)]),
        tf.linalg.LinearOperatorIdentity(1, dtype=tf.float64),
        tfd.MultivariateNormalDiag(np.zeros(1), [noise]),
        tfd.MultivariateNormalDiag(np.zeros(1), [scale]),
    )
    path = tfp_ar1.MultivariateNormalAR1(np.zeros(30), scale, rho)
    noisy = path.with_observation_noise(np.float64(noise))
    close(noisy.log_prob(y), model.log_prob(y[..., None]))
    means, covariances = model.posterior_marginals(y[..., None])
    close(noisy.posterior(y).mean(), means[..., 0], 1e-8)
    close(noisy.posterior(y).variance()[0], covariances[..., 0, 0], 1e-8)


class TestAsADistribution:
    def noisy(self, **options):
        path = tfp_ar1.MultivariateNormalOU(
            np.zeros(4, np.float32), [1.0, 2.0], [[0.5], [1.0], [3.0]], [0.0, 0.5, 2.0, 2.1]
        )
        return path.with_observation_noise([[0.1], [0.5]], **options)

    def test_shapes_and_draws(self):
        noisy = self.noisy()
        assert noisy.batch_shape == [3, 2]
        assert noisy.event_shape == [4]
        draws = noisy.sample(40_000, seed=SEED)
        assert draws.shape == (40_000, 3, 2, 4)
        np.testing.assert_allclose(np.mean(draws, axis=0), noisy.mean(), atol=0.05)
        np.testing.assert_allclose(
            tfp.stats.covariance(draws, sample_axis=0, event_axis=-1), noisy.covariance(), atol=0.1
        )
        # Members of the batch are drawn independently, though they share a path's parameters.
        path = tfp_ar1.MultivariateNormalAR1(np.zeros(4, np.float32), 1.0, 0.5)
        two = path.with_observation_noise([[1e-3], [1e-3]]).sample(seed=SEED)
        assert not np.allclose(two[0], two[1], atol=0.05)

    def test_slices_composites_and_copies(self):
        noisy = self.noisy()
        y = noisy.sample(seed=SEED)
        close(noisy[1:, 0].log_prob(y[1:, 0]), noisy.log_prob(y)[1:, 0], 1e-5)
        returned = tf.function(lambda d: d)(noisy)
        close(returned.log_prob(y), noisy.log_prob(y), 1e-5)
        close(
            noisy.copy(noise_scale=0.3).log_prob(y),
            noisy.path.with_observation_noise(0.3).log_prob(y),
            1e-5,
        )
        posterior = noisy.posterior(y)
        assert posterior[0].batch_shape == [2]
        close(tf.function(lambda d: d.mean())(posterior), posterior.mean(), 1e-5)

    def test_in_a_joint_distribution(self):
        @tfd.JointDistributionCoroutineAutoBatched
        def model():
            scale = yield tfd.LogNormal(0.0, 1.0, name="scale")
            path = tfp_ar1.MultivariateNormalAR1(tf.zeros(5), scale, 0.5)
            yield path.with_observation_noise(0.5).copy(name="y")

        y = np.linspace(-1, 1, 5, dtype=np.float32)
        path = tfp_ar1.MultivariateNormalAR1(np.zeros(5, np.float32), 2.0, 0.5)
        expected = tfd.LogNormal(0.0, 1.0).log_prob(2.0) + path.with_observation_noise(
            0.5
        ).log_prob(y)
        close(model.log_prob(scale=2.0, y=y), expected, 1e-5)
        assert model.sample(3, seed=SEED).y.shape == (3, 5)

    def test_compiled_and_vectorized(self):
        noisy = self.noisy()
        y = noisy.sample(6, seed=SEED)
        expected = noisy.log_prob(y)
        close(tf.function(noisy.log_prob, jit_compile=True)(y), expected, 1e-5)
        close(tf.vectorized_map(noisy.log_prob, y), expected, 1e-5)

    def test_in_a_graph_of_unknown_size(self):
        @tf.function(input_signature=[tf.TensorSpec([None])])
        def of_unknown_size(y):
            path = tfp_ar1.MultivariateNormalAR1(tf.zeros_like(y), 1.5, 0.7)
            posterior = path.posterior(y, 0.5)
            return path.with_observation_noise(0.5).log_prob(y), posterior.mean()

        for size in (1, 5, 200):
            y = np.random.default_rng(0).normal(size=size).astype("float32")
            path = tfp_ar1.MultivariateNormalAR1(np.zeros(size, np.float32), 1.5, 0.7)
            log_prob, mean = of_unknown_size(y)
            close(log_prob, path.with_observation_noise(0.5).log_prob(y), 1e-5)
            close(mean, path.posterior(y, 0.5).mean(), 1e-5)

    def test_half_precision(self):
        path = tfp_ar1.MultivariateNormalAR1(np.zeros(300, np.float16), 1.0, 0.9)
        y = path.sample(seed=SEED)
        noisy = path.with_observation_noise(0.25)
        wide = tfp_ar1.MultivariateNormalAR1(
            np.zeros(300), 1.0, np.float64(np.float16(0.9))
        ).with_observation_noise(0.25)
        assert noisy.log_prob(y).dtype == tf.float16
        close(noisy.log_prob(y), wide.log_prob(tf.cast(y, tf.float64)), 2e-3)
        close(noisy.posterior(y).mean(), wide.posterior(tf.cast(y, tf.float64)).mean(), 2e-3)

    def test_bad_arguments(self):
        path = tfp_ar1.MultivariateNormalAR1(np.zeros(5, np.float32), [1.0, 1.0, 1.0], 0.5)
        for call, error, message in (
            (lambda: path.with_observation_noise(-1.0), ValueError, "must not be negative; got -1"),
            (lambda: path.with_observation_noise([1.0, 2.0, 3.0]), ValueError, "tf.newaxis"),
            (lambda: path.posterior(np.zeros(5), 1.0, np.ones(5)), TypeError, "boolean"),
            (lambda: path.with_sites(np.zeros(5), -np.ones(5)), ValueError, "`precision` must not"),
            (lambda: path.with_sites(np.zeros(4), np.ones(5)), ValueError, "`information` must be"),
        ):
            with pytest.raises(error, match=message):
                call()

    def test_bad_noise_of_a_variable(self):
        path = tfp_ar1.MultivariateNormalAR1(np.zeros(5, np.float32), [1.0, 1.0, 1.0], 0.5)
        negative = tf.Variable(-1.0)
        noisy = path.with_observation_noise(negative, validate_args=True)
        with pytest.raises(tf.errors.InvalidArgumentError, match="must not be negative"):
            noisy.log_prob(np.zeros(5, np.float32))


def test_intervals_cover():
    """At their level, on data from the model; those of the noise left out do not."""
    path = tfp_ar1.MultivariateNormalAR1(np.zeros(200), 1.0, 0.95)
    x = path.sample(200, seed=SEED)
    y = x + np.random.default_rng(0).normal(size=x.shape)

    def coverage(posterior):
        return np.mean(np.abs(x - posterior.mean()) < 1.6449 * posterior.stddev())

    assert abs(coverage(path.posterior(y, 1.0)) - 0.9) < 0.01
    assert coverage(path.posterior(y, 0.1)) < 0.5

"""What follows a path, each coordinate from the earlier ones, and each by itself: by matrices."""

import derivatives
import family
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from test_noise import close, dense

import tfp_ar1

tfd = tfp.distributions
SEED = (1, 2)
STATIONARY = ["AR1", "AR1 by fisher_z", "OU"]
AFTER = 4


def case(kind, batch=(3,), size=6):
    """A path, the same with `AFTER` coordinates more, its moments, data and noise."""
    rng = np.random.default_rng(0)
    member = family.MEMBERS[kind]
    parameters = list(member.parameters(rng, batch, size + AFTER))
    parameters[0] = np.concatenate(
        [parameters[0][..., :size], np.repeat(parameters[0][..., size - 1 : size], AFTER, -1)], -1
    )
    whole = member.distribution(*parameters, size=size + AFTER)
    moments = member.moments(*parameters, size=size + AFTER)
    y, noise = rng.normal(size=(*batch, size)), rng.uniform(0.3, 2.0, (*batch, size))
    return whole.marginal(0, size), whole, moments, y, noise, rng.random((*batch, size)) < 0.6


def padded(x, value):
    return np.concatenate([x, np.full((*x.shape[:-1], AFTER), value)], axis=-1)


@pytest.mark.parametrize("kind", STATIONARY)
def test_forecast(kind):
    path, whole, (mean, covariance), y, noise, observed = case(kind)
    more = {"times": whole.times[..., 6:]} if kind == "OU" else {"num_steps": AFTER}
    *_, (_, all_means, all_covariances) = [
        dense(mean, covariance, padded(y, 0.0), padded(noise, 1.0), padded(observed, False))
    ]
    forecast = path.forecast(path.posterior(y, noise, observed), **more)
    assert isinstance(forecast, tfp_ar1.MultivariateNormalANTE1)
    assert forecast.batch_shape == [3]
    close(forecast.mean(), all_means[..., 6:])
    close(forecast.covariance(), all_covariances[..., 6:, 6:])
    # Given exactly what is observed; the last coordinate is in one of the three members.
    conditional = path.conditional(y, observed)
    exact = whole.conditional(padded(y, 0.0), padded(observed, False))
    forecast = conditional.forecast(**more)
    close(forecast.mean(), exact.mean()[..., 6:])
    close(forecast.covariance(), exact.covariance()[..., 6:, 6:])
    # A mean that is given, and one for all.
    other = path.forecast(conditional, **more, loc=np.full(AFTER, 2.0))
    shift = 2.0 - (0.0 if path.loc is None else path.loc[..., -1:])
    close(other.mean(), forecast.mean() + shift)
    # Nothing known: the path itself.
    nothing = path.forecast(path, **more)
    close(nothing.covariance(), covariance[..., 6:, 6:])


def test_forecast_far_ahead_and_its_gradient():
    """From a known coordinate, where ρ rounds to 1; and where ρ is 0."""
    for u in (0.0, 9.0):
        u, x = tf.constant(u), tf.constant([3.0])

        def ends_of(u, x):
            path = tfp_ar1.MultivariateNormalAR1(tf.zeros(1), 2.0, fisher_z=u)
            last = path.conditional(x, [True]).forecast(100_000)
            return last.mean()[-1], last.stddev()[-1]

        ends = ends_of(u, x)
        decay = np.tanh(np.float64(np.asarray(u))) ** 100_000
        np.testing.assert_allclose(ends[0], 3.0 * decay, rtol=1e-5)
        np.testing.assert_allclose(ends[1], 2.0 * np.sqrt(1 - decay**2), rtol=1e-5)
        gradients = derivatives.gradients(lambda *a: sum(ends_of(*a)), [u, x])
        assert np.all(np.isfinite(np.concatenate([np.ravel(g) for g in gradients])))
        np.testing.assert_allclose(gradients[1], [decay], rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("kind", ["AR1", "ANTE1", "OU"])
def test_one_step_predictive(kind):
    """Each coordinate from those observed before it, one system of equations for each."""
    path, _, (mean, covariance), y, noise, observed = case(kind)
    value = np.where(observed, y, np.nan)
    exact = path.conditional(value, observed).one_step_predictive()
    noisy = path.with_observation_noise(noise, observed).one_step_predictive(value)
    for t in range(6):
        before = observed & (np.arange(6) < t)
        for predictive, r in ((exact, 1e-9 * noise), (noisy, noise)):
            _, m, c = dense(mean[..., :6], covariance[..., :6, :6], y, r, before)
            variance = c[..., t, t] + (r[..., t] ** 2 if predictive is noisy else 0.0)
            close(predictive.mean()[..., t], m[..., t], 1e-6)
            close(predictive.variance()[..., t], variance, 1e-6)
    # Their densities make the likelihood.
    terms = np.where(observed, noisy.log_prob(y), 0.0)
    close(np.sum(terms, -1), path.with_observation_noise(noise, observed).log_prob(value))


@pytest.mark.parametrize("noise", [1e-6, 1e6])
def test_one_step_predictive_in_float32(noise):
    rng = np.random.default_rng(0)
    y = noise * rng.normal(size=300) + np.cumsum(0.02 * rng.normal(size=300))

    def predictive(dtype):
        path = tfp_ar1.MultivariateNormalAR1(np.zeros(300, dtype), 1.0, fisher_z=5.0)
        noisy = path.with_observation_noise(noise)
        return noisy.one_step_predictive(y.astype("float32").astype(dtype))

    single, double = predictive("float32"), predictive("float64")
    close(single.stddev(), double.stddev(), 1e-5)
    np.testing.assert_allclose(single.mean(), double.mean(), atol=3e-6)


def test_marginals():
    path, _, _, y, noise, observed = case("AR1")
    for distribution in (
        path,
        path.conditional(y, observed),
        path.with_observation_noise(noise, observed),
        path.posterior(y, noise),
    ):
        marginals = distribution.marginals()
        assert isinstance(marginals, tfd.Normal)
        assert marginals.batch_shape == [3, 6]
        close(
            marginals.quantile(np.float64(0.975)),
            distribution.mean() + 1.9599639845400545 * distribution.stddev(),
        )


@pytest.mark.slow
def test_compiled_with_unknown_sizes():
    @tf.function(input_signature=[tf.TensorSpec([None, None])] * 2)
    def run(y, future):
        times = tf.cast(tf.range(tf.shape(y)[-1]), y.dtype)
        path = tfp_ar1.MultivariateNormalOU(None, 1.0, 2.0, times)
        posterior = path.posterior(y, 0.5)
        predictive = path.with_observation_noise(0.5).one_step_predictive(y)
        return path.forecast(posterior, times=future).mean(), predictive.mean()

    y, future = np.ones([2, 5], np.float32), np.float32([[5.0, 7.5, 8.0]])
    path = tfp_ar1.MultivariateNormalOU(None, 1.0, 2.0, np.arange(5, dtype=np.float32))
    expected = path.forecast(path.posterior(y, 0.5), times=future)
    forecast, predicted = run(y, future)
    assert expected.event_shape == [3]
    close(forecast, expected.mean(), 1e-6)
    close(predicted, path.with_observation_noise(0.5).one_step_predictive(y).mean(), 1e-6)


def test_what_cannot_be_continued():
    ar1 = tfp_ar1.MultivariateNormalAR1(tf.zeros(3), 1.0, 0.5)
    ou = tfp_ar1.MultivariateNormalOU(None, 1.0, 1.0, [0.0, 1.0, 2.0])
    arh1 = tfp_ar1.MultivariateNormalARH1(None, tf.ones(3), 0.5)
    for call, message in (
        (lambda: ar1.forecast(ar1), "`num_steps` must be a positive integer; got None"),
        (lambda: ar1.forecast(ar1, 0), "positive integer; got 0"),
        (lambda: ar1.forecast(ar1, times=[3.0]), "has no times; give `num_steps`"),
        (lambda: ou.forecast(ou, 3), "needs the `times`"),
        (lambda: ou.forecast(ou, 2, times=[3.0]), "`num_steps` is 2"),
        (lambda: ou.forecast(ou, times=[1.5]), "must not decrease.*1.5 after 2.0"),
        (lambda: arh1.forecast(arh1, 3), r"ARH1 cannot be continued: .*\['scale_diag'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


class TestRepeatedTimes:
    """Several observations at one time are observations of one coordinate."""

    TIMES = np.array([0.0, 0.5, 0.5, 0.5, 2.0, 2.0])

    def dense(self, length_scale, y, noise):
        lag = abs(np.subtract.outer(self.TIMES, self.TIMES))
        covariance = 4.0 * tf.exp(-tf.constant(lag) / length_scale)
        return dense(tf.zeros(6, tf.float64), covariance, y, noise, np.ones(6, bool))

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_against_matrices(self, dtype):
        rng = np.random.default_rng(0)
        y, noise = (x.astype(dtype) for x in (rng.normal(size=6), rng.uniform(0.1, 1.0, 6)))

        def ours(length_scale, noise):
            path = tfp_ar1.MultivariateNormalOU(None, 2.0, length_scale, self.TIMES.astype(dtype))
            noisy, posterior = path.with_observation_noise(noise), path.posterior(y, noise)
            return noisy.log_prob(y), posterior.mean(), posterior.variance()

        def matrices(length_scale, noise):
            log_prob, mean, covariance = self.dense(length_scale, y.astype("float64"), noise)
            return log_prob, mean, tf.linalg.diag_part(covariance)

        tolerance = {"float32": 1e-4, "float64": 1e-10}[dtype]
        arguments = [tf.constant(1.5, dtype), tf.constant(noise)]
        wide = [tf.cast(x, tf.float64) for x in arguments]
        for x, expected in zip(ours(*arguments), matrices(*wide), strict=True):
            close(x, expected, tolerance)
        total = [
            tfp.math.value_and_gradient(lambda *a, f=f: sum(map(tf.reduce_sum, f(*a))), x)[1]
            for f, x in ((ours, arguments), (matrices, wide))
        ]
        for x, expected in zip(*total, strict=True):
            close(x, expected, 10 * tolerance)

    def test_given_one_of_them_the_others_are_known(self):
        path = tfp_ar1.MultivariateNormalOU(None, 2.0, 1.5, self.TIMES.astype("float32"))
        observed = np.array([False, True, False, False, False, False])
        known = path.conditional(np.full(6, 0.7, np.float32), observed)
        np.testing.assert_allclose(known.mean()[1:4], [0.7] * 3, rtol=1e-6)
        np.testing.assert_allclose(known.stddev()[1:4], np.zeros(3), atol=1e-7)
        draw = path.sample(seed=SEED)
        np.testing.assert_allclose(draw[1], draw[3], atol=1e-6)

    def test_no_estimate_without_noise(self):
        with pytest.raises(ValueError, match="`times` are repeated"):
            tfp_ar1.MultivariateNormalOU.experimental_fit(np.ones([2, 6]), times=self.TIMES)

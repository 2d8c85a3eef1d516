"""The AR(1) component among TFP's own, against dense matrices and TFP's autoregression."""

import family
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1

tfd, tfb, sts = tfp.distributions, tfp.bijectors, tfp.sts
SIGMA, RHO, NOISE, OFFSET = np.array([2.0, 0.7]), np.array([0.9, -0.5]), 0.6, 10.0
SIZE = 12


def series():
    y = OFFSET + np.cumsum(family.draw(2, SIZE), axis=-1)
    y[0, 3:6] = np.nan
    return y


def priors():
    """In float64."""
    return {
        "marginal_scale_prior": tfd.LogNormal(np.zeros(2), 1.0),
        "correlation_prior": tfd.Uniform(-np.ones(2), 1.0),
    }


def test_likelihood():
    """Is that of the noisy path, and of TFP's `Autoregressive` from the stationary distribution."""
    y = series()
    stationary = tfd.MultivariateNormalDiag(scale_diag=SIGMA[:, None])
    level_scale = SIGMA * np.sqrt(1.0 - RHO**2)
    ours, theirs = (
        tfp_ar1.sts.AR1(observed_time_series=y),
        sts.Autoregressive(1, initial_state_prior=stationary, observed_time_series=y),
    )
    models = [
        sts.Sum([component], constant_offset=np.float64(OFFSET), observed_time_series=y)
        for component in (ours, theirs)
    ]
    ssms = [
        model.make_state_space_model(SIZE, parameters, mask=np.isnan(y))
        for model, parameters in zip(
            models, ([NOISE, SIGMA, RHO], [NOISE, RHO[:, None], level_scale]), strict=True
        )
    ]
    filled = np.nan_to_num(y)[..., None]
    log_prob, expected = family.function(lambda: [ssm.log_prob(filled) for ssm in ssms])()
    np.testing.assert_allclose(log_prob, expected, rtol=1e-10)
    path = tfp_ar1.MultivariateNormalAR1(np.full(SIZE, OFFSET), SIGMA, RHO)
    noisy = path.with_observation_noise(NOISE, ~np.isnan(y))
    np.testing.assert_allclose(log_prob, noisy.log_prob(y), rtol=1e-10)
    np.testing.assert_allclose(log_prob, tfp_ar1.sts.noisy_chain(ssms[0]).log_prob(y), rtol=1e-10)


def test_parameters_and_their_priors():
    y = series()
    component = tfp_ar1.sts.AR1(observed_time_series=100.0 * y, name="level")
    scale, correlation = component.parameters
    assert component.batch_shape == [2]
    np.testing.assert_allclose(
        np.exp(scale.prior.distribution.loc), 100.0 * np.nanstd(y, axis=-1), rtol=1e-6
    )
    for parameter, supported in ((scale, (0.0, np.inf)), (correlation, (-1.0, 1.0))):
        extremes = parameter.bijector.forward(np.float64([[-300.0], [300.0]]))
        assert np.all((extremes > supported[0]) & (extremes < supported[1]))
        assert np.all(np.isfinite(parameter.prior.log_prob(extremes)))
    # TensorFlow's names are those of scopes, with slashes.
    assert component.copy(name="other").name.replace("/", "") == "other"
    total = component + sts.LocalLevel(observed_time_series=y)
    assert [p.name.replace("/", "") for p in total.parameters][1:3] == [
        "level_marginal_scale",
        "level_correlation",
    ]
    # Without data, and with priors of one's own.
    assert tfp_ar1.sts.AR1().parameters[0].prior.dtype == tf.float32
    positive = tfp_ar1.sts.AR1(
        correlation_prior=tfd.Beta(np.float64(2.0), 1.0),
        correlation_constraining_bijector=tfb.Sigmoid(),
    )
    scale, correlation = positive.parameters
    assert scale.prior.dtype == correlation.prior.dtype == tf.float64
    assert (
        positive.make_state_space_model(3, [np.float64(1.0), np.float64(0.5)]).dtype == tf.float64
    )


@pytest.mark.slow
def test_forecasts_and_decompositions():
    """At given parameters, all that `tfp.sts` makes of a sum follows from its covariances."""
    y, ahead = series(), 4
    drift, start = 0.8, 3.0
    level = sts.LocalLevel(
        level_scale_prior=tfd.LogNormal(np.float64(0.0), 1.0),
        initial_level_prior=tfd.Normal(np.float64(0.0), start),
    )
    model = sts.Sum(
        [tfp_ar1.sts.AR1(**priors()), level],
        constant_offset=np.float64(OFFSET),
        observation_noise_scale_prior=tfd.LogNormal(np.float64(0.0), 1.0),
    )
    # One draw of each parameter.
    parameters = [np.full([1, 2], NOISE), SIGMA[None], RHO[None], np.full([1, 2], drift)]
    time = np.arange(SIZE + ahead)
    of_ar1 = SIGMA[:, None, None] ** 2 * RHO[:, None, None] ** np.abs(time[:, None] - time)
    of_level = start**2 + drift**2 * np.minimum(time[:, None], time)

    @family.function
    def compute():
        forecast = sts.forecast(model, y, parameters, num_steps_forecast=ahead)
        parts = sts.decompose_by_component(model, y, parameters)
        imputed, predicted = (
            f(model, y, parameters, timesteps_are_event_shape=False)
            for f in (sts.impute_missing_values, sts.one_step_predictive)
        )
        results = forecast, parts[model.components[0]], imputed, predicted
        return [(d.mean(), d.stddev()) for d in results]

    forecast, part, imputed, predicted = compute()
    for i in range(2):
        seen = np.flatnonzero(~np.isnan(y[i]))
        covariance = of_ar1[i] + of_level + NOISE**2 * np.eye(len(time))

        def given(cross, prior, seen, i=i, covariance=covariance):
            gain = cross[:, seen] @ np.linalg.inv(covariance[np.ix_(seen, seen)])
            variance = np.diag(prior - gain @ cross[:, seen].T)
            return gain @ (y[i, seen] - OFFSET), np.sqrt(variance)

        mean, stddev = given(covariance[SIZE:], covariance[SIZE:, SIZE:], seen)
        np.testing.assert_allclose(forecast[0][i, :, 0], OFFSET + mean, rtol=1e-8)
        np.testing.assert_allclose(forecast[1][i, :, 0], stddev, rtol=1e-8)
        mean, stddev = given(of_ar1[i, :SIZE], of_ar1[i, :SIZE, :SIZE], seen)
        np.testing.assert_allclose(part[0][i], mean, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(part[1][i], stddev, rtol=1e-8)
        missing = np.flatnonzero(np.isnan(y[i]))
        mean, stddev = given(covariance[missing], covariance[np.ix_(missing, missing)], seen)
        np.testing.assert_allclose(np.asarray(imputed[0])[i, missing], OFFSET + mean, rtol=1e-8)
        without_noise = np.sqrt(stddev**2 - NOISE**2)
        np.testing.assert_allclose(np.asarray(imputed[1])[i, missing], without_noise, rtol=1e-8)
        mean, stddev = given(covariance[9:10], covariance[9:10, 9:10], seen[seen < 9])
        np.testing.assert_allclose(np.asarray(predicted[0])[i, 9], OFFSET + mean[0], rtol=1e-8)
        np.testing.assert_allclose(np.asarray(predicted[1])[i, 9], stddev[0], rtol=1e-8)


@pytest.mark.slow
def test_fits():
    """By variational inference and then by HMC, which starts from it."""
    y = np.float32([1.0, 2.0, np.nan, 0.0, 3.0, 2.0])
    model = sts.Sum([tfp_ar1.sts.AR1(observed_time_series=y)], observed_time_series=y)
    samples, _ = sts.fit_with_hmc(
        model,
        y,
        num_results=1,
        num_warmup_steps=1,
        num_variational_steps=1,
        num_leapfrog_steps=1,
        seed=(1, 2),
    )
    assert len(samples) == len(model.parameters) == 3
    assert all(np.all(np.isfinite(x)) for x in samples)

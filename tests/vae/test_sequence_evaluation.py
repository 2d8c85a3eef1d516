"""Measures of imputations and forecasts, and the baselines: by hand, and against dense algebra."""

import warnings

import numpy as np
import pytest
import scipy.optimize
from sklearn.gaussian_process import GaussianProcessRegressor, kernels

from experiments import series_baselines
from tfp_ar1.vae import sequence_evaluation
from tfp_ar1.vae.sequence_evaluation import Prediction, evaluate, hidden_steps

NAN = np.nan


# What is hidden, and what is measured


def test_hidden_steps():
    length = np.array([10, 7, 2, 10])
    for share, expected in ((0.2, [2, 1, 1, 2]), (0.5, [5, 4, 1, 5]), (0.99, [9, 6, 1, 9])):
        hidden = hidden_steps(length, 10, share, seed=1)
        assert hidden.sum(axis=1).tolist() == expected
        assert not hidden[np.arange(10) >= length[:, None]].any()
        np.testing.assert_array_equal(hidden, hidden_steps(length, 10, share, seed=1))
        assert not np.array_equal(hidden, hidden_steps(length, 10, share, seed=2))
    # Every step is hidden about as often as any other.
    often = hidden_steps(np.full(4000, 10), 10, 0.2, seed=0).mean(axis=0)
    np.testing.assert_allclose(often, 0.2, atol=0.03)


def test_shares_that_cannot_be_hidden():
    for share in (0, 1, -0.2, NAN):
        with pytest.raises(ValueError, match="`share` must be in"):
            hidden_steps(np.array([5]), 5, share, seed=0)


def test_errors_and_coverage_by_hand():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 20, 2)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = NAN
    length = rng.integers(2, 21, 30)
    seen = []

    def predict(known, known_length):
        seen.append((known, known_length))
        ones = np.ones(x.shape)
        return Prediction(0.5 * ones, -0.25 * ones, 1.0 * ones)

    results = evaluate(predict, x, length, shares=(0.2, 0.5), horizons=(1, 5), seed=3)
    inside = np.arange(20) < length[:, None]
    for (known, _), share in zip(seen, (0.2, 0.5), strict=False):
        hidden = hidden_steps(length, 20, share, seed=3)
        np.testing.assert_array_equal(known[inside & ~hidden], x[inside & ~hidden])
        # Neither what is hidden nor what lies past the end is shown.
        assert np.isnan(known[hidden | ~inside]).all()
        truth = x[hidden]
        truth = truth[~np.isnan(truth)]
        name = f"{100 * share:.0f}"
        rmse = np.sqrt(np.mean((truth - 0.5) ** 2))
        np.testing.assert_allclose(results[f"imputation_rmse_{name}"], rmse, rtol=1e-6)
        covered = np.mean((truth >= -0.25) & (truth <= 1))
        np.testing.assert_allclose(results[f"imputation_coverage_{name}"], covered)
        assert results[f"imputation_width_{name}"] == 1.25
    known, known_length = seen[2]
    np.testing.assert_array_equal(known_length, length // 2)
    for i, n in enumerate(length):
        np.testing.assert_array_equal(known[i, : n // 2], x[i, : n // 2])
        assert np.isnan(known[i, n // 2 :]).all()
    truth = np.array([x[i, n // 2 + 4] for i, n in enumerate(length) if n // 2 + 4 < n])
    rmse = np.sqrt(np.nanmean((truth - 0.5) ** 2))
    np.testing.assert_allclose(results["forecast_rmse_5"], rmse, rtol=1e-6)
    assert len(seen) == 3


@pytest.mark.parametrize("steps", [10, 11])
def test_a_horizon_is_a_number_of_steps(steps):
    # The last value of a straight line is h too low for the forecast of h steps.
    x = np.tile(np.arange(float(steps))[:, None], (4, 1, 1))
    results = evaluate(series_baselines.last_value, x, horizons=(1, 3, 5, 6, 50))
    expected = {1: 1.0, 3: 3.0, 5: 5.0} | ({6: 6.0} if steps == 11 else {})
    forecasts = {k: v for k, v in results.items() if k.startswith("forecast")}
    assert forecasts == {f"forecast_rmse_{h}": error for h, error in expected.items()}


def test_series_that_are_too_short():
    with pytest.raises(ValueError, match="at least 2 steps; the shortest has 1"):
        evaluate(series_baselines.last_value, np.zeros((2, 5, 1)), np.array([5, 1]))


def test_predictions_of_a_model(monkeypatch):
    class Model:
        def impute(self, inputs, num_samples, seed):
            calls.append(len(inputs["x"]))
            assert len(inputs["length"]) == len(inputs["x"])
            draws = np.arange(num_samples)[:, None, None, None]
            return np.where(np.isnan(inputs["x"]), draws, inputs["x"])

    # 101 draws, 0 to 100, of which the mean and the quantiles are known.
    x = np.full((5, 4, 2), NAN)
    x[:, 0] = 7
    for most, expected in ((2**23, [5]), (101 * 16, [2, 2, 1])):
        calls = []
        monkeypatch.setattr(sequence_evaluation, "_MAX_DRAWS", most)
        predict = sequence_evaluation.of_model(Model(), num_samples=101)
        mean, low, high = predict(x, np.full(5, 4))
        assert calls == expected
        for part, value in ((mean, 50), (low, 5), (high, 95)):
            assert part.shape == x.shape
            np.testing.assert_allclose(part[:, 0], 7)
            np.testing.assert_allclose(part[:, 1:], value)


# Baselines


def predict_one(predictor, path):
    prediction = predictor(np.array(path, np.float64)[None, :, None], np.array([len(path)]))
    return prediction.mean[0, :, 0]


@pytest.mark.parametrize(
    ("path", "last", "linear"),
    [
        ([NAN, 2, NAN, NAN, 5, NAN], [2, 2, 2, 2, 5, 5], [2, 2, 3, 4, 5, 5]),
        ([1, NAN, NAN, NAN], [1, 1, 1, 1], [1, 1, 1, 1]),
        ([NAN, NAN, 4], [4, 4, 4], [4, 4, 4]),
        ([NAN, NAN], [0, 0], [0, 0]),
        ([1, 2, 3], [1, 2, 3], [1, 2, 3]),
    ],
)
def test_last_value_and_linear_interpolation(path, last, linear):
    np.testing.assert_allclose(predict_one(series_baselines.last_value, path), last)
    np.testing.assert_allclose(predict_one(series_baselines.linear_interpolation, path), linear)


def dense(rho, noise, size):
    step = np.arange(size)
    return rho ** np.abs(step - step[:, None]) + noise * np.eye(size)


def dense_likelihood(path, rho, noise):
    """The log-likelihood at the generalized least squares mean and variance."""
    known = ~np.isnan(path)
    x = path[known]
    covariance = dense(rho, noise, len(path))[np.ix_(known, known)]
    inverse = np.linalg.inv(covariance)
    mean = np.sum(inverse @ x) / inverse.sum()
    variance = (x - mean) @ inverse @ (x - mean) / len(x)
    log_likelihood = -0.5 * (
        len(x) * (np.log(2 * np.pi * variance) + 1) + np.linalg.slogdet(covariance)[1]
    )
    return log_likelihood, mean, variance


def paths_of(rho, noise, n=1, size=60, seed=0, mean=3.0, scale=2.0):
    rng = np.random.default_rng(seed)
    return mean + scale * rng.multivariate_normal(np.zeros(size), dense(rho, noise, size), size=n)


def test_likelihood_of_the_filter():
    paths = paths_of(0.9, 0.3, n=4) + np.array([0, 1e6, 0, 0])[:, None]
    paths[0, ::3] = paths[1, :10] = paths[2, -20:] = NAN
    paths[3, 1:] = NAN
    rho, noise = np.array([0.5, 0.99, 0.9, 0.3]), np.array([0.1, 1e-3, 2.0, 1.0])
    actual = series_baselines.matern_half_likelihood(paths, rho, noise)
    for i in range(3):
        expected = dense_likelihood(paths[i], rho[i], noise[i])
        np.testing.assert_allclose([part[i] for part in actual], expected, rtol=1e-6)
    # One value: its mean is that value.
    np.testing.assert_allclose(actual[1][3], paths[3, 0])
    assert np.isfinite(actual[0][3])


@pytest.mark.parametrize(("rho", "noise"), [(0.95, 0.2), (0.5, 0.01), (0.8, 1.0)])
def test_fit_is_the_maximum(rho, noise):
    paths = paths_of(rho, noise, n=3, seed=4)
    paths[1, ::4] = NAN
    mean, variance, fitted_rho, fitted_noise = series_baselines.fit_matern_half(paths)
    for i, path in enumerate(paths):

        def loss(parameters, path=path):
            return -dense_likelihood(path, np.exp(-np.exp(-parameters[0])), np.exp(parameters[1]))[
                0
            ]

        bounds = np.log([(0.2, 9000), (1e-4, 100)])
        starts = np.log([(2, 0.1), (20, 0.1), (5, 2), (100, 1)])
        best = min(scipy.optimize.minimize(loss, start, bounds=bounds).fun for start in starts)
        found = dense_likelihood(path, fitted_rho[i], fitted_noise[i])
        assert -found[0] < best + 0.01
        np.testing.assert_allclose([mean[i], variance[i]], found[1:], rtol=1e-6)


def test_predictions_are_those_of_a_gaussian_process():
    path = paths_of(0.9, 0.1, seed=2)[0]
    known = np.random.default_rng(0).random(60) < 0.6
    known[50:] = False
    x = np.where(known, path, NAN)[None, :, None]
    mean, low, high = (part[0, :, 0] for part in series_baselines.matern_half(x, None))
    loc, variance, rho, noise = (p[0] for p in series_baselines.fit_matern_half(x[..., 0]))
    kernel = variance * kernels.Matern(-1 / np.log(rho), nu=0.5) + kernels.WhiteKernel(
        variance * noise
    )
    process = GaussianProcessRegressor(kernel, optimizer=None, alpha=0)
    step = np.arange(60.0)[:, None]
    process.fit(step[known], path[known] - loc)
    expected, stddev = process.predict(step, return_std=True)
    np.testing.assert_allclose(mean, expected + loc, rtol=1e-6)
    np.testing.assert_allclose(high - low, 2 * 1.6448536269514722 * stddev, rtol=1e-5)


def test_paths_without_information():
    x = np.full((3, 5, 1), NAN)
    x[0] = 2.0
    x[1, 3] = 7.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean, low, high = series_baselines.matern_half(x, None)
    np.testing.assert_allclose(mean[:, :, 0], [[2] * 5, [7] * 5, [0] * 5], atol=1e-6)
    assert np.isfinite(low).all()
    assert np.isfinite(high).all()

"""Baselines without a trained model, for `tfp_ar1.vae.sequence_evaluation.evaluate`.

Each predicts from the known values of one path (one feature of a series), without training. They
take series `[N, steps, features]` with NaN for unknown values, and predict 0 for a path without
known values; they ignore the lengths.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import scipy.stats

from tfp_ar1.vae import sequence_evaluation
from tfp_ar1.vae.sequence_evaluation import Prediction

_Z90 = scipy.stats.norm.ppf(0.95)
# Paths at a time, to bound the memory of their covariance matrices [steps, steps].
_ROWS = 256


def last_value(x: np.ndarray, length: np.ndarray | None) -> Prediction:
    """The last known value, or the first known value if none comes before."""
    return Prediction(_filled(x, lambda paths: paths.ffill().bfill()))


def linear_interpolation(x: np.ndarray, length: np.ndarray | None) -> Prediction:
    """Linear interpolation between known values; the nearest known value beyond them."""
    return Prediction(_filled(x, lambda paths: paths.interpolate(limit_direction="both")))


def matern_half(x: np.ndarray, length: np.ndarray | None) -> Prediction:
    """A Gaussian process with a Matérn-1/2 kernel, a mean and noise, fitted to each path.

    At integer steps this is an AR(1) process observed with white noise:
    `Cov(x_i, x_j) = s (ρ^|i-j| + r [i = j])`. Mean, s, ρ and r are maximum likelihood estimates,
    and intervals include the noise; the process is N(0, 1) if nothing is known.
    """
    num, steps, features = x.shape
    paths = np.moveaxis(x, -1, 1).reshape(-1, steps).astype(np.float64)
    fitted = (paths, *fit_matern_half(paths))
    parts = [
        _conditional(*(array[start : start + _ROWS] for array in fitted))
        for start in range(0, len(paths), _ROWS)
    ]
    mean, stddev = (
        np.moveaxis(np.concatenate(column).reshape(num, features, steps), 1, -1)
        for column in zip(*parts, strict=True)
    )
    return Prediction(mean, mean - _Z90 * stddev, mean + _Z90 * stddev)


BASELINES = {
    "last_value": last_value,
    "linear_interpolation": linear_interpolation,
    "matern_half": matern_half,
}


def evaluate(x: np.ndarray, length: np.ndarray) -> dict[str, float]:
    """The measures of `sequence_evaluation.evaluate` for each baseline, as `last_value_...` etc."""
    return {
        f"{name}_{measure}": value
        for name, baseline in BASELINES.items()
        for measure, value in sequence_evaluation.evaluate(baseline, x, length).items()
    }


def fit_matern_half(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Maximum likelihood for an AR(1) process with white noise, separately for each path.

    Mean and variance have a closed form given ρ and r. These two are searched on a grid that is
    refined around each path's best point, for all paths at once: SciPy's optimizers take one path
    at a time, which is about a hundred times slower.

    Args:
      x: paths, float64 `[N, steps]`, NaN for unknown values.

    Returns:
      The mean, the variance s of the process, its correlation ρ from 0 to 0.9999, and the variance
      of the noise relative to s, r from 1e-4 to 100; all `[N]`.
    """
    # Logarithms of the length scale in steps, -1 / log ρ, and of the relative noise variance r.
    low, high = np.log([-1 / np.log(1e-3), 1e-4]), np.log([-1 / np.log(0.9999), 1e2])
    best = np.tile((low + high) / 2, (len(x), 1))
    half = (high - low) / 2
    for points in (13, 7, 7, 7, 7):
        centre, highest = best.copy(), np.full(len(x), -np.inf)
        for i, j in np.ndindex(points, points):
            offset = half * (2 * np.array([i, j]) / (points - 1) - 1)
            candidate = np.clip(centre + offset, low, high)
            log_likelihood = matern_half_likelihood(x, *_rho_and_noise(candidate))[0]
            better = log_likelihood > highest
            best[better], highest[better] = candidate[better], log_likelihood[better]
        half *= 2 / (points - 1)
    rho, noise = _rho_and_noise(best)
    _, mean, variance = matern_half_likelihood(x, rho, noise)
    return mean, variance, rho, noise


def matern_half_likelihood(
    x: np.ndarray, rho: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The profile likelihood of ρ and r over mean and variance, by a Kalman filter in O(steps).

    The filter is linear in the data, so a filter with unit variance, run on the data and on a
    constant 1, gives the generalized least squares estimate of the mean.

    Returns:
      The log-likelihood, the mean and the variance of the process, all `[N]`; mean 0 and variance 1
      for a path without known values.
    """
    known = ~np.isnan(x)
    count = known.sum(axis=1)
    # Subtract the average: otherwise the squares of the data would swamp those of the residuals.
    average = np.where(known, x, 0).sum(axis=1) / np.maximum(count, 1)
    data = np.where(known, x - average[:, None], 0).T
    # The filter's states for the data and the constant, and the sums of innovation products.
    of_data = of_one = xx = x1 = one = log_variance = np.zeros(len(x))
    variance = np.ones(len(x))
    for t, seen in enumerate(known.T):
        if t:
            of_data, of_one = rho * of_data, rho * of_one
            variance = rho**2 * variance + (1 - rho**2)
        total = variance + noise
        weight = seen / total
        data_innovation, one_innovation = data[t] - of_data, 1 - of_one
        xx = xx + weight * data_innovation**2
        x1 = x1 + weight * data_innovation * one_innovation
        one = one + weight * one_innovation**2
        log_variance = log_variance + seen * np.log(total)
        gain = variance * weight
        of_data, of_one = of_data + gain * data_innovation, of_one + gain * one_innovation
        variance = variance * (1 - gain)
    mean = x1 / np.where(count, one, 1)
    residual = xx - mean * x1
    # A constant path has no residual; the bound keeps its likelihood finite.
    variance = np.where(count, np.maximum(residual / np.maximum(count, 1), 1e-12), 1.0)
    log_likelihood = -0.5 * (count * (np.log(2 * np.pi * variance) + 1) + log_variance)
    return log_likelihood, average + mean, variance


def _rho_and_noise(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.exp(-np.exp(-parameters[:, 0])), np.exp(parameters[:, 1])


def _conditional(
    x: np.ndarray, mean: np.ndarray, variance: np.ndarray, rho: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every value given the known ones, both `[N, steps]`."""
    step = np.arange(x.shape[1])
    covariance = rho[:, None, None] ** np.abs(step - step[:, None])
    known = ~np.isnan(x)
    # Unknown values get a row of the identity and do not enter the other rows.
    among = covariance * (known[:, None] & known[..., None])
    among += np.eye(len(step)) * np.where(known, noise[:, None], 1.0)[:, None]
    weights = np.linalg.solve(among, covariance * known[..., None])
    residual = np.where(known, x - mean[:, None], 0)
    left = 1 + noise[:, None] - np.sum(covariance * known[..., None] * weights, axis=1)
    prediction = mean[:, None] + np.einsum("nkt,nk->nt", weights, residual)
    return prediction, np.sqrt(variance[:, None] * left)


def _filled(x: np.ndarray, fill: Callable[[pd.DataFrame], pd.DataFrame]) -> np.ndarray:
    """Applies `fill` to a frame with a column per series and feature; remaining NaN become 0."""
    num, steps, features = x.shape
    frame = fill(pd.DataFrame(x.transpose(1, 0, 2).reshape(steps, -1))).fillna(0)
    return frame.to_numpy().reshape(steps, num, features).transpose(1, 0, 2)

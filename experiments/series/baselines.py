"""Baselines without a network: straight lines, a process per window, one noisy chain for all."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1
from experiments import series_baselines
from experiments.series import measures
from experiments.series.data import Series
from experiments.series.measures import LEVELS, Draws, Predictor


class Chain(NamedTuple):
    """A noisy Ornstein–Uhlenbeck process: four numbers per feature, shared by all windows."""

    mean: Any
    stddev: Any
    length_scale: Any
    noise: Any

    def path(self, times: Any) -> tfp_ar1.MultivariateNormalOU:
        """The process without the noise, at times `[..., n]`."""
        loc = self.mean * tf.ones_like(times)
        return tfp_ar1.MultivariateNormalOU(loc, self.stddev, self.length_scale, times)


def fit_chain(values: np.ndarray, times: np.ndarray, observed: np.ndarray) -> Chain:
    """Maximum likelihood for paths `[N, n]` at `times` `[N, n]`, known where `observed`.

    Raises:
      RuntimeError: if the search for the maximum fails.
    """
    values, times = (tf.constant(x, tf.float64) for x in (values, times))

    def loss(parameters: Any) -> Any:
        mean, *logs = tf.unstack(parameters)
        chain = Chain(mean, *map(tf.exp, logs))
        noisy = chain.path(times).with_observation_noise(chain.noise, observed=observed)
        return -tf.reduce_mean(noisy.log_prob(values))

    gradient = tf.function(lambda x: tfp.math.value_and_gradient(loss, x))
    found = scipy.optimize.minimize(
        lambda x: [y.numpy() for y in gradient(tf.constant(x))],
        np.float64([0, 0, 0, -1]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(None, None), *[(-15, 15)] * 3],  # The noise of smooth series falls to nothing.
    )
    if not found.success:
        raise RuntimeError(f"The chain could not be fitted: {found.message}")
    mean, *logs = found.x
    return Chain(mean, *np.exp(logs))


def of_chains(chains: list[Chain], x: np.ndarray, length: int, steps: Any) -> Draws:
    """Normal predictions for series given their known values, including the noise."""
    means, stddevs = [], []
    for chain, y in zip(chains, np.moveaxis(x.astype(np.float64), -1, 0), strict=True):
        times = tf.range(y.shape[1], dtype=tf.float64)
        noise = tf.constant(chain.noise, tf.float64)
        noisy = chain.path(times).with_observation_noise(noise, observed=~np.isnan(y))
        posterior = noisy.posterior(y)
        means.append(posterior.mean().numpy()[:, steps])
        stddevs.append(np.sqrt(posterior.variance().numpy() + chain.noise**2)[:, steps])
    return _of_normal(np.stack(means, axis=-1), np.stack(stddevs, axis=-1))


def fit(name: str, data: Series) -> tuple[Predictor, dict[str, Any]]:
    """The predictor of one of `NAMES`, and the parameters it learned from the training set."""
    return NAMES[name](data)


def _chain(data: Series, dropped: bool = False, with_times: bool = True) -> Any:
    """Fits chains to all steps or a random half, at their own times or at 0, 1, ..."""
    num, steps, features = data.train.shape
    kept = np.tile(np.arange(steps), (num, 1))
    if dropped:
        order = np.random.default_rng(0).random((num, steps)).argsort(axis=1)
        kept = np.sort(order[:, : steps // 2], axis=1)
    times = (kept if with_times else np.tile(np.arange(kept.shape[1]), (num, 1))).astype(np.float64)
    chains = []
    for feature in range(features):
        values = np.take_along_axis(data.train[..., feature].astype(np.float64), kept, axis=1)
        chains.append(fit_chain(np.nan_to_num(values), times, ~np.isnan(values)))
    return functools.partial(of_chains, chains), {"chains": [c._asdict() for c in chains]}


def _of_path(predict: Callable[..., Any]) -> Callable[[Series], Any]:
    """Wraps a predictor of `series_baselines`, which learns nothing from the training set."""

    def predictor(x: np.ndarray, length: int, steps: Any) -> Draws:
        mean, _, high = predict(x, np.full(len(x), length))
        stddev = np.full_like(mean, np.nan)
        if high is not None:
            stddev = (high - mean) / scipy.stats.norm.ppf(0.95)
        return _of_normal(mean[:, steps], stddev[:, steps])

    return lambda data: (predictor, {})


def _of_normal(mean: np.ndarray, stddev: np.ndarray) -> Draws:
    quantiles = mean + scipy.stats.norm.ppf(LEVELS)[:, None, None, None] * stddev
    return measures.Draws(mean, stddev, quantiles)


NAMES: dict[str, Callable[[Series], tuple[Predictor, dict[str, Any]]]] = {
    "straight_line": _of_path(series_baselines.linear_interpolation),
    "last_value": _of_path(series_baselines.last_value),
    "process_of_window": _of_path(series_baselines.matern_half),
    "chain": _chain,
    "chain_half_dropped": functools.partial(_chain, dropped=True),
    "chain_half_dropped_no_times": functools.partial(_chain, dropped=True, with_times=False),
}

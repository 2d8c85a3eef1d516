"""The endpoints of an exported model; `VAE.export` describes them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability.python.internal import samplers


def export(model: Any, filepath: Any, verbose: bool | None, **kwargs) -> None:
    """Writes a SavedModel of a built `VAE`; arguments as in `VAE.export`."""
    dtype = model.distribution_dtype
    data = tf.TensorSpec([None, *model.data_shape], dtype, name="x")
    latents = tf.TensorSpec([None, *model.latent_shape], dtype, name="z")
    n, num_samples = (tf.TensorSpec([], tf.int32, name=name) for name in ("n", "num_samples"))
    seed = tf.TensorSpec([2], tf.int32, name="seed")

    def encode(x: tf.Tensor) -> dict[str, tf.Tensor]:
        posterior = model.encode(x)
        return {
            "mean": posterior.mean(),
            "stddev": posterior.stddev(),
            "correlation": model.posterior_correlation(posterior, x),
        }

    def generate(n: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return model.decode(model.prior.sample(n, seed=seed)).mean()

    def log_likelihood(x: tf.Tensor, num_samples: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        num_samples = _positive("`num_samples`, the number of draws,", num_samples)
        posterior = model.encode(x)

        def add(k: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            draw_seed = tf.random.experimental.stateless_fold_in(seed, k)
            log_weight = model.draw(x, posterior, 1, draw_seed).log_weight[0]
            both = tf.stack([total, tf.cast(log_weight, total.dtype)])
            return k + 1, tf.reduce_logsumexp(both, axis=0)

        # In float64, because a long float32 sum would lose small weights.
        start = tf.fill(tf.shape(x)[:1], tf.constant(-np.inf, tf.float64))
        _, total = tf.while_loop(
            lambda k, _: k < num_samples, add, (0, start), parallel_iterations=1
        )
        return tf.cast(total - tf.math.log(tf.cast(num_samples, total.dtype)), dtype)

    def impute(x: tf.Tensor, num_samples: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        return _draws(model.impute_draws, x, 0, num_samples, seed)

    def forecast(
        x: tf.Tensor, steps: tf.Tensor, num_samples: tf.Tensor, seed: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        steps = _positive("`steps`, the number of steps to forecast,", steps)
        return _draws(model.forecast_draws, x, steps, num_samples, seed)

    steps = tf.TensorSpec([], tf.int32, name="steps")
    of_series = {
        "impute": (impute, [data, num_samples, seed]),
        "forecast": (forecast, [data, steps, num_samples, seed]),
    }
    archive = keras.export.ExportArchive()
    archive.track(model)
    for name, endpoint, signature in (
        ("serve", model.reconstruct, [data]),
        ("reconstruct", model.reconstruct, [data]),
        ("encode", encode, [data]),
        ("decode", lambda z: model.decode(z).mean(), [latents]),
        ("generate", generate, [n, seed]),
        ("log_likelihood", log_likelihood, [data, num_samples, seed]),
        *((name, *of_series[name]) for name in model.draw_endpoints),
    ):
        archive.add_endpoint(name, endpoint, signature, **kwargs)
    archive.write_out(filepath, verbose=True if verbose is None else verbose)


def _draws(
    draw: Any, x: tf.Tensor, steps: Any, num_samples: tf.Tensor, seed: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Returns the draws of a method of `SequenceVAE`, and the mean and stddev of each value."""
    num_samples = _positive("`num_samples`, the number of draws,", num_samples)
    draws = draw(x, steps, num_samples, samplers.fold_in(seed, 0))
    mean, variance = tf.nn.moments(draws, axes=[0])
    return {"draws": draws, "mean": mean, "stddev": tf.sqrt(variance)}


def _positive(what: str, number: tf.Tensor) -> tf.Tensor:
    with tf.control_dependencies(
        [tf.debugging.assert_positive(number, f"{what} must be at least 1")]
    ):
        return tf.identity(number)

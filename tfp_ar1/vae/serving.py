"""The endpoints of an exported model; `VAE.export` says what they are."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf


def export(model: Any, filepath: Any, verbose: bool | None, **kwargs) -> None:
    """Writes a SavedModel of a `VAE` that is built; arguments as in `VAE.export`."""
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
        tf.debugging.assert_positive(
            num_samples, "`num_samples`, the number of draws, must be at least 1"
        )
        posterior = model.encode(x)

        def add(k: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            draw_seed = tf.random.experimental.stateless_fold_in(seed, k)
            log_weight = model.draw(x, posterior, 1, draw_seed).log_weight[0]
            both = tf.stack([total, tf.cast(log_weight, total.dtype)])
            return k + 1, tf.reduce_logsumexp(both, axis=0)

        # In float64, since a sum of many float32 weights would lose the small ones.
        start = tf.fill(tf.shape(x)[:1], tf.constant(-np.inf, tf.float64))
        _, total = tf.while_loop(
            lambda k, _: k < num_samples, add, (0, start), parallel_iterations=1
        )
        return tf.cast(total - tf.math.log(tf.cast(num_samples, total.dtype)), dtype)

    archive = keras.export.ExportArchive()
    archive.track(model)
    for name, endpoint, signature in (
        ("serve", model.reconstruct, [data]),
        ("reconstruct", model.reconstruct, [data]),
        ("encode", encode, [data]),
        ("decode", lambda z: model.decode(z).mean(), [latents]),
        ("generate", generate, [n, seed]),
        ("log_likelihood", log_likelihood, [data, num_samples, seed]),
    ):
        archive.add_endpoint(name, endpoint, signature, **kwargs)
    archive.write_out(filepath, verbose=True if verbose is None else verbose)

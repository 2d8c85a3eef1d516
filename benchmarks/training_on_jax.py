"""Time of a step of `fit` of `RhoVAE` and `SequenceVAE` on JAX.

python -m benchmarks run --suite jax-training
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
from tfp_ar1_jax.vae import architectures, sequence_networks

import tfp_ar1_jax

_BATCH, _STEPS, _NUM_TIMESTEPS, _CHANNELS = 128, 200, 100, 2


def _image_model(posterior: str, latent_dim: int) -> Any:
    """The paper's network for images of 28 × 28."""
    networks = architectures.mlp((28, 28), latent_dim)
    return tfp_ar1_jax.RhoVAE(*networks, latent_dim, posterior=posterior, seed=0)


def _sequence_model(posterior: str) -> Any:
    """The default network for series of 100 steps of one feature."""
    networks = sequence_networks.convolutional((_NUM_TIMESTEPS, 1), _CHANNELS)
    options = {"channels": _CHANNELS, "steps": _NUM_TIMESTEPS, "posterior": posterior, "seed": 0}
    return tfp_ar1_jax.SequenceVAE(*networks, **options)


def results(seconds: float) -> Iterator[dict[str, Any]]:
    """The median seconds per step for each group of models, from interleaved epochs."""
    rng, number = np.random.default_rng(0), _BATCH * _STEPS
    images = rng.uniform(size=(number, 28, 28)).astype("float32")
    series = rng.normal(size=(number, _NUM_TIMESTEPS, 1)).astype("float32")
    groups = [
        (
            f"RhoVAE, {dim} latents",
            images,
            {p: _image_model(p, dim) for p in ("diag", "ar1", "full")},
        )
        for dim in (10, 50)
    ]
    posteriors = ("diag", "ar1", "ante1", "sites")
    of_paths = {posterior: _sequence_model(posterior) for posterior in posteriors}
    groups.append((f"SequenceVAE, {_CHANNELS} x {_NUM_TIMESTEPS} latents", series, of_paths))
    for what, x, models in groups:
        times: dict[str, list[float]] = {posterior: [] for posterior in models}
        for model in models.values():
            model.compile(keras.optimizers.Adam(1e-3))
            model.fit(x[:_BATCH], batch_size=_BATCH, verbose=0)  # Compiles.
        end = time.perf_counter() + 10 * seconds
        while time.perf_counter() < end or len(times["diag"]) < 3:
            for posterior, model in models.items():
                start = time.perf_counter()
                model.fit(x, batch_size=_BATCH, verbose=0)
                times[posterior].append((time.perf_counter() - start) / _STEPS)
        yield {
            "model": what,
            "batch": _BATCH,
            "times": {posterior: statistics.median(found) for posterior, found in times.items()},
        }

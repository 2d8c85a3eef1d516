"""Helpers for short trainings of small Keras models."""

import keras
import numpy as np
from sklearn.datasets import load_digits

DIGITS = (load_digits().images / 16).astype("float32")


def compiled(model, optimizer=keras.optimizers.Adam, learning_rate=0.01, **options):
    """Compiles without XLA unless asked for, because XLA takes seconds."""
    model.compile(optimizer(learning_rate), **{"jit_compile": False, **options})
    return model


def fitted(model, *data, **options):
    """Trains in a fixed order."""
    model.fit(*data, **{"shuffle": False, "verbose": 0, **options})
    return model


def assert_same_weights(first, second, atol=0.0):
    assert len(first.weights) == len(second.weights) > 0
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)

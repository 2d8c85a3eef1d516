"""A saved seed for Keras layers and models that draw noise."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_ar1 import _keras_backend
from tfp_ar1._typing import MixinBase


class SeededMixin(MixinBase):
    """Saves and loads the seed of a Keras layer or model along with its weights.

    Resumed training then draws the same noise as uninterrupted training. Keras does not save the
    seeds of its own layers, such as `Dropout`.
    """

    seed_generator: keras.random.SeedGenerator

    def next_seed(self) -> tf.Tensor:
        """Returns a fresh seed for TFP, `[2]`, different on each replica."""
        return _keras_backend.next_seed(self.seed_generator)

    def save_own_variables(self, store: Any) -> None:
        """Saves this object's own weights and the state of its seed."""
        super().save_own_variables(store)
        store["seed_state"] = self.seed_generator.state

    def load_own_variables(self, store: Any) -> None:
        """Loads what `save_own_variables` saved."""
        keys = list(store.keys())
        super().load_own_variables({key: store[key] for key in keys if key != "seed_state"})
        if "seed_state" in keys:
            self.seed_generator.state.assign(store["seed_state"])

"""The seed of a Keras layer or model that draws noise."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_ar1 import _keras_backend
from tfp_ar1._typing import MixinBase


class SeededMixin(MixinBase):
    """For a Keras layer or model that draws noise: its seed, saved and loaded with its weights.

    With it, training that is resumed draws the noise that uninterrupted training would have drawn.
    Keras does not save its own, those of `Dropout` layers in a model for instance.
    """

    seed_generator: keras.random.SeedGenerator

    def next_seed(self) -> tf.Tensor:
        """A fresh seed for TFP, `[2]`; a different one on each replica."""
        return _keras_backend.next_seed(self.seed_generator)

    def save_own_variables(self, store: Any) -> None:
        """Saves the weights of this object itself, and the state of its seed."""
        super().save_own_variables(store)
        store["seed_state"] = self.seed_generator.state

    def load_own_variables(self, store: Any) -> None:
        """Loads what `save_own_variables` has saved."""
        keys = list(store.keys())
        super().load_own_variables({key: store[key] for key in keys if key != "seed_state"})
        if "seed_state" in keys:
            self.seed_generator.state.assign(store["seed_state"])

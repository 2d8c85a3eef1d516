"""Layers for Keras 3 that sample from the members of the family, and a learnable prior."""

from typing import Any

from tfp_ar1._keras_common import layer_named
from tfp_ar1.families import PACKED
from tfp_ar1.layers.markov_chain import layer_class
from tfp_ar1.layers.prior import MultivariateNormalAR1Prior
from tfp_ar1.layers.seeding import SeededMixin
from tfp_ar1.layers.sites import MarkovSites

# Made on import, so that Keras finds them in saved models.
_LAYERS = {layer.__name__: layer for layer in map(layer_class, PACKED)}
globals().update(_LAYERS)

__all__ = [*_LAYERS, "MarkovSites", "MultivariateNormalAR1Prior", "SeededMixin"]


def __getattr__(name: str) -> Any:
    """Returns the layer of a member that was added to the family after this import."""
    return layer_named(name, layer_class, __name__)

"""Layers for tf_keras, one for each member of the family, and KL regularizers.

The counterpart of `tfp_ar1.layers` for tf_keras (Keras 2). As in `tfp.layers`, the layers return
distributions. `import tfp_ar1` alone does not load this package. Nothing here is pickled: models
are saved and loaded in safe mode as `.keras`, as h5 and in TensorFlow's format.
"""

from typing import Any

from tfp_ar1._keras_common import layer_named
from tfp_ar1.families import PACKED
from tfp_ar1.tfpl.kl import KLDivergenceAddLoss, KLDivergenceRegularizer
from tfp_ar1.tfpl.markov_chain import layer_class

# Made on import, so that tf_keras finds them in saved models.
_LAYERS = {layer.__name__: layer for layer in map(layer_class, PACKED)}
globals().update(_LAYERS)

__all__ = [*_LAYERS, "KLDivergenceAddLoss", "KLDivergenceRegularizer"]


def __getattr__(name: str) -> Any:
    """Returns the layer of a member that was added to the family after this import."""
    return layer_named(name, layer_class, __name__)

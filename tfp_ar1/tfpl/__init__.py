"""tf_keras: the members of the family as layers in the manner of `tfp.layers`; KL regularizers.

The counterpart of `tfp_ar1.layers` for tf_keras (Keras 2), whose layers return distributions.
`import tfp_ar1` alone does not load it. Nothing here is pickled: models are saved and loaded in
safe mode as `.keras`, as h5 and in TensorFlow's format.
"""

from typing import Any

from tfp_ar1._keras_common import layer_named
from tfp_ar1.families import PACKED
from tfp_ar1.tfpl.kl import KLDivergenceAddLoss, KLDivergenceRegularizer
from tfp_ar1.tfpl.markov_chain import layer_class

# At once, so that tf_keras finds them in saved models.
_LAYERS = {layer.__name__: layer for layer in map(layer_class, PACKED)}
globals().update(_LAYERS)

__all__ = [*_LAYERS, "KLDivergenceAddLoss", "KLDivergenceRegularizer"]


def __getattr__(name: str) -> Any:
    """The layer of a member that has been added to the family since."""
    return layer_named(name, layer_class, __name__)

"""Code shared by the layers for Keras 3 (`layers`) and tf_keras (`tfpl`); imports neither Keras."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow_probability import distributions as tfd
from tensorflow_probability.python.internal import dtype_util
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1._checks import checked_count
from tfp_ar1._typing import MixinBase
from tfp_ar1.families import PACKED


def member_layer(base: Any, family: str, package: str) -> Any:
    """Makes the layer class of a member of the family: a subclass of `base` with its name."""
    name = PACKED[family].__name__
    shared = inspect.cleandoc(base.__doc__).split("\n", 1)[1]
    first = f"Layer for the distribution `tfp_ar1.{name}`, `{family!r}` in `tfp_ar1.params`."
    attributes = {"family": family, "__doc__": f"{first}\n{shared}", "__module__": package}
    return type(name, (base,), attributes)


def layer_named(name: str, layer_class: Callable[[str], Any], package: str) -> Any:
    """Looks up a layer by name, for the `__getattr__` of a package of layers."""
    for family, distribution in PACKED.items():
        if distribution.__name__ == name:
            return layer_class(family)
    raise AttributeError(f"module {package!r} has no attribute {name!r}")


class _OneKerasMixin(MixinBase):
    """Refuses to be called in a model of the other Keras, which would silently lose the KL."""

    def __call__(self, *args, **kwargs) -> Any:
        """Calls the layer after checking that the model belongs to the same Keras."""
        modules = (type(value).__module__ for value in (*args, *kwargs.values()))
        if self._in_other_keras() or any(m.startswith(self._other_keras) for m in modules):
            raise TypeError(f"A layer was called in a model of the other Keras: {self!r}.")
        return super().__call__(*args, **kwargs)


class Keras3Mixin(_OneKerasMixin):
    """For layers and models of Keras 3: raises a clear error inside tf_keras models."""

    _other_keras = "tf_keras."

    def __repr__(self) -> str:
        """Says where the object belongs; tf_keras prints this in its errors."""
        return f"{super().__repr__()[:-1]}, of Keras 3; in tf_keras models use tfp_ar1.tfpl>"

    def _in_other_keras(self) -> bool:
        utils = sys.modules.get("tf_keras.src.engine.base_layer_utils")
        return utils is not None and utils.call_context().in_call


class TFKerasMixin(_OneKerasMixin):
    """For layers of tf_keras: raises a clear error inside Keras 3 models."""

    _other_keras = "keras."

    def __repr__(self) -> str:
        """Says where the object belongs; Keras 3 prints this in its errors."""
        return (
            f"<{type(self).__name__} name={self.name}, a tf_keras layer; in Keras 3 models use "
            f"tfp_ar1.layers, with `prior` for the KL>"
        )

    def _in_other_keras(self) -> bool:
        state = sys.modules.get("keras.src.backend.common.global_state")
        return state is not None and state.get_global_attribute("current_call_ctx") is not None


def mean_over_examples(kl: tf.Tensor, ndims: int | None) -> tf.Tensor:
    """Returns the KL divergence per example, averaged over the examples; 0 if there are none.

    `kl` has the posterior's batch shape. It is summed over its last `ndims` axes, by default all
    but the first, which are parts of one example: the `reinterpreted_batch_ndims` of the layers.
    """
    rank = ps.rank(kl)
    first = ps.minimum(1, rank) if ndims is None else rank - ndims
    kl = tf.reduce_sum(kl, axis=ps.range(first, rank))
    return tf.math.divide_no_nan(tf.reduce_sum(kl), tf.cast(tf.size(kl), kl.dtype))


def check_batch_axes(
    posterior: tfd.Distribution, prior: tfd.Distribution, ndims: int | None
) -> None:
    """Raises `ValueError` if the prior is known not to fit one example of `ndims` batch axes."""
    shape = posterior.batch_shape
    if ndims is not None and shape.rank is not None and shape.rank < ndims:
        needed = f"`reinterpreted_batch_ndims={ndims}` needs a distribution with as many batch axes"
        raise ValueError(f"{needed}; got batch shape {shape}.")
    # The first axis counts examples, unless all axes are parts of one example.
    one = shape if shape.rank == ndims else tf.TensorShape([1]).concatenate(shape[1:])
    try:
        fits = one.is_compatible_with(tf.broadcast_static_shape(prior.batch_shape, one))
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"The prior has batch shape {prior.batch_shape} where the distribution has {shape}. "
            f"Its batch axes must be those of one example, `[channels]` for `[batch, channels]`."
        )


def check_dtype(prior: tfd.Distribution, dtype: tf.DType) -> None:
    """Raises `ValueError` if the prior does not have the posterior's dtype."""
    if prior.dtype != dtype:
        raise ValueError(
            f"The prior must be of dtype {dtype_util.name(dtype)}; got "
            f"{dtype_util.name(prior.dtype)}. (NumPy arrays are float64 by default.)"
        )


def checked_reinterpreted_batch_ndims(ndims: Any) -> int | None:
    """Returns `ndims`, or raises `ValueError` unless it is a non-negative integer or `None`."""
    wanted = "a non-negative integer or `None`"
    return ndims if ndims is None else checked_count("reinterpreted_batch_ndims", ndims, 0, wanted)


def checked_weight(weight: Any, name: str) -> Any:
    """Returns the factor of a KL, or raises `ValueError` if it is negative or NaN."""
    if not weight >= 0:
        raise ValueError(f"`{name}` must not be negative; got {weight}.")
    return weight

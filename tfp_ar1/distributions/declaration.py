"""Declarations of the parameters of each family member, from which everything else is derived."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability.python.internal import dtype_util
from tensorflow_probability.python.internal import prefer_static as ps

tfb = tfp.bijectors

__all__ = ["LENGTH_SCALE", "MARGINAL_SCALE", "SCALE_DIAG", "TIMES", "Parameter", "correlation"]


class Parameter(NamedTuple):
    """A parameter of a member of the family, other than `loc`.

    Attributes:
      name: the name of the constructor's argument, and of the property that returns its value.
      per: whether there is one number for each batch member, for each coordinate, or for each
        step from one coordinate to the next.
      doc: documentation of the property.
      bijector: function that takes a dtype and returns the bijector from real numbers.
      check: function that takes name and value and returns an assertion that the value is valid.
      packed: how packed parameters hold it (see `tfp_ar1.params`), if at all.
      is_required: whether the constructor requires it.
      is_preferred: whether `make_trainable` makes it a variable.
    """

    name: str
    per: Literal["member", "coordinate", "step"]
    doc: str
    bijector: Callable[[Any], Any]
    check: Callable[[str, tf.Tensor], Any]
    packed: Literal["log_variance", "fisher_z"] | None = None
    is_required: bool = True
    is_preferred: bool = True

    def properties(self, dtype: Any) -> tfp.util.ParameterProperties:
        """TFP's description of the parameter."""
        shapes: dict[str, dict[str, Any]] = {
            "member": {"shape_fn": lambda shape: shape[:-1]},
            "coordinate": {"event_ndims": 1},
            "step": {
                "event_ndims": 1,
                "shape_fn": lambda shape: ps.concat(
                    [shape[:-1], [ps.maximum(shape[-1] - 1, 0)]], axis=0
                ),
            },
        }
        return tfp.util.ParameterProperties(
            default_constraining_bijector_fn=self.bijector(dtype),
            is_preferred=self.is_preferred,
            **shapes[self.per],
        )


def _softplus(dtype: Any) -> Any:
    return lambda: tfb.Softplus(low=dtype_util.eps(dtype))


def _tanh(dtype: Any) -> Any:
    eps = dtype_util.eps(dtype)
    # The correlation must stay below 1 even where tanh rounds to 1.
    bound = np.asarray(1.0 - 2.0 * eps, eps.dtype)
    return lambda: tfb.Chain([tfb.Scale(bound), tfb.Tanh()])


def _assert_positive(name: str, x: tf.Tensor) -> Any:
    return tf.debugging.assert_positive(x, message=f"`{name}` must be positive.")


def _assert_correlation(name: str, x: tf.Tensor) -> Any:
    message = f"`{name}` must lie strictly between -1 and 1."
    return tf.debugging.assert_less(tf.math.abs(x), tf.ones([], x.dtype), message=message)


def _assert_not_decreasing(name: str, x: tf.Tensor) -> Any:
    message = f"`{name}` must not decrease along the last axis."
    return tf.debugging.assert_less_equal(x[..., :-1], x[..., 1:], message=message)


MARGINAL_SCALE = Parameter(
    "marginal_scale",
    "member",
    "σ, the standard deviation of every coordinate, as given.",
    _softplus,
    _assert_positive,
    packed="log_variance",
)
SCALE_DIAG = Parameter(
    "scale_diag",
    "coordinate",
    "σ_t, the standard deviation of each coordinate, as given.",
    _softplus,
    _assert_positive,
    packed="log_variance",
)
LENGTH_SCALE = Parameter(
    "length_scale",
    "member",
    "ℓ, the time over which correlation falls by a factor e, as given.",
    _softplus,
    _assert_positive,
)
# Times are data, so `make_trainable` does not make them a variable.
TIMES = Parameter(
    "times",
    "coordinate",
    "τ_t, the time of each coordinate, as given.",
    lambda dtype: tfb.Ascending,
    _assert_not_decreasing,
    is_preferred=False,
)


def correlation(per: Literal["member", "step"]) -> tuple[Parameter, Parameter]:
    """Returns the parameters `correlation` and `fisher_z`; users must give exactly one."""
    return (
        Parameter(
            "correlation",
            per,
            "ρ as given, or `None`; see `correlation_parameter`.",
            _tanh,
            _assert_correlation,
            is_required=False,
            is_preferred=False,
        ),
        Parameter(
            "fisher_z",
            per,
            "`atanh ρ` as given, or `None`.",
            lambda dtype: tfb.Identity,
            lambda name, x: tf.debugging.assert_all_finite(x, f"`{name}` must be finite."),
            packed="fisher_z",
            is_required=False,
        ),
    )

"""The one mapping from packed parameters, as a network outputs them, to the distribution.

For d coordinates the last axis holds `loc` (d numbers), then, as the member declares them, the
logarithm of the marginal variance, of all coordinates or of each, and the Fisher z-transform
`atanh ρ` of the correlation, of all steps or of each:

* `MultivariateNormalAR1`: `[loc (d), log s, fisher_z]`;
* `MultivariateNormalARH1`: `[loc (d), log s (d), fisher_z]`;
* with a correlation for each step: `[loc (d), log s (d), fisher_z (d - 1)]`.

A vector of zeros is the standard normal.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfp_ar1._checks import checked_count, named
from tfp_ar1.distributions.gaussian_markov_chain import GaussianMarkovChain
from tfp_ar1.families import PACKED

__all__ = ["FISHER_Z_BOUND", "LOC_BOUND", "LOG_S_BOUND", "bounded", "new", "params_size"]

# Values beyond these bounds are clipped to them. Any finite float32 vector then gives finite
# samples, KL divergences and gradients, and no model that is worth anything gets there.
LOC_BOUND = 1e15  # |loc|: its square, times d, still fits a float32
LOG_S_BOUND = 40.0  # |log s|: standard deviations from 2e-9 to 5e8
FISHER_Z_BOUND = 20.0  # |fisher_z|: |ρ| up to 1 - 8e-18
# The same in float16, whose largest number is 65504: the squares of 30 coordinates fit it.
_FLOAT16_BOUNDS = {LOC_BOUND: 32.0, LOG_S_BOUND: 7.0, FISHER_Z_BOUND: 5.0}


def params_size(event_size: int, family: str = "ar1") -> int:
    """The number of packed parameters of a distribution over vectors of `event_size`.

    Args:
      event_size: number of coordinates d, at least 1.
      family: the name of a member in `tfp_ar1.families.PACKED`.

    Returns:
      d + 2 for AR(1), 2d + 1 for ARH(1), 3d - 1 with a correlation for each step.

    Raises:
      ValueError: if `event_size` is not a positive integer, or the family is unknown.
    """
    d = checked_event_size(event_size)
    declaration = named("family", family, PACKED).declaration
    return d + sum(parameter.num_packed(d) for parameter in declaration)


def new(
    params: Any, event_size: int, validate_args: bool = False, family: str = "ar1"
) -> GaussianMarkovChain:
    """Makes the distribution from packed parameters.

    Args:
      params: floating-point tensor `[..., params_size(event_size, family)]`; any finite values,
        which are clipped to ±`LOC_BOUND`, ±`LOG_S_BOUND` and ±`FISHER_Z_BOUND`; in float16 to
        ±32, ±7 and ±5.
      event_size: number of coordinates d, at least 1.
      validate_args: passed on to the distribution.
      family: the name of a member in `tfp_ar1.families.PACKED`.

    Returns:
      Distribution of the member's class, of batch shape `[...]` and event shape `[event_size]`.

    Raises:
      ValueError: as `params_size`, or if the last dimension of `params` is of another size.
    """
    d = event_size
    params = checked_params(params, params_size(d, family), d)
    member: Any = PACKED[family]
    unpacked, start = {"loc": bounded(params[..., :d], LOC_BOUND)}, d
    for parameter in member.declaration:
        if parameter.packed is None:
            continue
        stop = start + parameter.num_packed(d)
        x = params[..., start] if parameter.per == "member" else params[..., start:stop]
        is_scale, start = parameter.packed == "log_variance", stop
        value = scale_from_log_variance(x) if is_scale else bounded(x, FISHER_Z_BOUND)
        unpacked[parameter.name] = value
    return member(**unpacked, validate_args=validate_args)


def bounded(x: tf.Tensor, bound: float) -> tf.Tensor:
    """Clips to ±`bound`, one of the bounds above, or to what takes its place in float16."""
    if x.dtype == tf.float16:
        bound = _FLOAT16_BOUNDS[bound]
    return tf.clip_by_value(x, -bound, bound)


def scale_from_log_variance(log_variance: tf.Tensor) -> tf.Tensor:
    """The standard deviation `√s` from `log s`, bounded; for every family of posteriors."""
    return tf.math.exp(0.5 * bounded(log_variance, LOG_S_BOUND))


def checked_event_size(event_size: int) -> int:
    """Returns `event_size`, or raises `ValueError` if it is not a positive integer."""
    return checked_count("event_size", event_size, 1, "a positive integer")


def checked_params(params: Any, size: int, event_size: int) -> tf.Tensor:
    """Returns `params` as a tensor, or raises `ValueError` if its last dimension is not `size`."""
    params = tf.convert_to_tensor(params, name="params")
    check_params_shape(params.shape, size, event_size)
    if params.shape.rank is not None and params.shape[-1] is None:
        # A mixture layer of TFP reshapes to [..., components, -1]; layers after it need a size.
        params = tf.ensure_shape(params, [*params.shape[:-1], size])
    return params


def check_params_shape(shape: Any, size: int, event_size: int) -> None:
    """Raises `ValueError` if the last dimension of a shape of `params` is not `size`."""
    shape = tf.TensorShape(shape)
    if shape.rank == 0 or not shape[-1:].is_compatible_with([size]):
        raise ValueError(
            f"`params` must have {size} entries along its last axis for `event_size={event_size}`; "
            f"got shape {shape}."
        )

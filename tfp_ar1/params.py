"""The one mapping from packed parameters, as a network puts them out, to the distribution.

The last axis holds `[loc (d), log s, fisher_z]`: the mean, the logarithm of the marginal variance,
and the Fisher z-transform `atanh ρ` of the correlation. A vector of zeros is the standard normal.
"""

from __future__ import annotations

import numbers
from typing import Any

import tensorflow as tf

from tfp_ar1.mvn_ar1 import MultivariateNormalAR1

__all__ = ["FISHER_Z_BOUND", "LOC_BOUND", "LOG_S_BOUND", "bounded", "new", "params_size"]

# Values beyond these bounds are clipped to them. Any finite float32 vector then gives finite
# samples, KL divergences and gradients, and no model that is worth anything gets there.
LOC_BOUND = 1e15  # |loc|: its square, times d, still fits a float32
LOG_S_BOUND = 40.0  # |log s|: standard deviations from 2e-9 to 5e8
FISHER_Z_BOUND = 20.0  # |fisher_z|: |ρ| up to 1 - 8e-18


def params_size(event_size: int) -> int:
    """The number of packed parameters of a distribution over vectors of `event_size`: two more.

    Args:
      event_size: number of coordinates d, at least 1.

    Returns:
      d + 2.

    Raises:
      ValueError: if `event_size` is not a positive integer.
    """
    return checked_event_size(event_size) + 2


def new(params: Any, event_size: int, validate_args: bool = False) -> MultivariateNormalAR1:
    """Makes the distribution from packed parameters.

    Args:
      params: floating-point tensor `[..., event_size + 2]`, holding `[loc, log s, fisher_z]`; any
        finite values. `loc` is clipped to ±`LOC_BOUND`, `log s` to ±`LOG_S_BOUND` and `fisher_z`
        to ±`FISHER_Z_BOUND`.
      event_size: number of coordinates d, at least 1.
      validate_args: passed on to the distribution.

    Returns:
      `MultivariateNormalAR1` of batch shape `[...]` and event shape `[event_size]`.

    Raises:
      ValueError: if `event_size` is not a positive integer, or the last dimension of `params` is
        not `event_size + 2`.
    """
    params = checked_params(params, params_size(event_size), event_size)
    return MultivariateNormalAR1(
        loc=bounded(params[..., :event_size], LOC_BOUND),
        marginal_scale=scale_from_log_variance(params[..., event_size]),
        fisher_z=bounded(params[..., event_size + 1], FISHER_Z_BOUND),
        validate_args=validate_args,
    )


def bounded(x: tf.Tensor, bound: float) -> tf.Tensor:
    """Clips to ±`bound`."""
    return tf.clip_by_value(x, -bound, bound)


def scale_from_log_variance(log_variance: tf.Tensor) -> tf.Tensor:
    """The standard deviation `√s` from `log s`, bounded; for every family of posteriors."""
    return tf.math.exp(0.5 * bounded(log_variance, LOG_S_BOUND))


def checked_event_size(event_size: int) -> int:
    """Returns `event_size`, or raises `ValueError` if it is not a positive integer."""
    whole = isinstance(event_size, numbers.Real) and int(event_size) == event_size
    if not whole or event_size < 1:
        raise ValueError(f"`event_size` must be a positive integer; got {event_size!r}.")
    return int(event_size)


def checked_params(params: Any, size: int, event_size: int) -> tf.Tensor:
    """Returns `params` as a tensor, or raises `ValueError` if its last dimension is not `size`."""
    params = tf.convert_to_tensor(params, name="params")
    check_params_shape(params.shape, size, event_size)
    return params


def check_params_shape(shape: Any, size: int, event_size: int) -> None:
    """Raises `ValueError` if the last dimension of a shape of `params` is not `size`."""
    shape = tf.TensorShape(shape)
    if shape.rank == 0 or not shape[-1:].is_compatible_with([size]):
        raise ValueError(
            f"`params` must have {size} entries along its last axis for `event_size={event_size}`; "
            f"got shape {shape}."
        )

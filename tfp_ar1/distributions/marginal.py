"""Parameters of a chain's marginal over some coordinates, from products of correlations."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1 import recurrence

__all__ = ["marginal_parameters"]


def marginal_parameters(path: Any, kept: slice) -> dict[str, Any]:
    """Returns the parameters of a `GaussianMarkovChain`, other than `loc`, for a slice."""
    parameters: dict[str, Any] = {}
    for parameter in path.declaration:
        if parameter.name == "correlation":
            at = _correlation_at_lag if parameter.per == "member" else _correlation_of_steps
            parameters |= at(path.scale, kept)
        elif parameter.name != "fisher_z":
            value = getattr(path, parameter.name)
            if parameter.per == "coordinate":
                value = tf.convert_to_tensor(value)[..., kept]
            parameters[parameter.name] = value
    return parameters


def _correlation_at_lag(scale: Any, kept: slice) -> dict[str, Any]:
    """Returns the parameter for correlation ρ^step, for an operator with one ρ for all steps."""
    step = kept.step
    if step == 1:
        return {"correlation": scale.correlation, "fisher_z": scale.fisher_z}
    rho = scale.chain().widened().rho
    size, remainder = rho.decay(tf.constant(step))
    # atanh(r) with 1 - r² given: nothing cancels where r is nearly 1.
    fisher_z = tf.math.log1p(size) - 0.5 * tf.math.log(remainder)
    return {"fisher_z": tf.cast(rho.sign * fisher_z if step % 2 else fisher_z, scale.dtype)}


def _correlation_of_steps(scale: Any, kept: slice) -> dict[str, Any]:
    """Returns the parameter for neighbours in a slice, for an operator with a ρ per step."""
    given_as_tensors = any(map(tf.is_tensor, (kept.start, kept.stop)))
    coordinates = (tf if given_as_tensors else ps).range(scale._size())[kept]
    step = kept.step
    count = ps.maximum(ps.size(coordinates) - 1, 0)
    first = ps.reduce_sum(coordinates[:1])

    def taken(x: tf.Tensor) -> tf.Tensor:
        x = x[..., first : first + count * step]
        return tf.reshape(x, ps.concat([ps.shape(x)[:-1], [count, step]], axis=0))

    if step == 1:
        name = "fisher_z" if scale.correlation is None else "correlation"
        given = tf.convert_to_tensor(getattr(scale, name))
        return {name: given[..., first : first + count]}
    rho = scale.chain().rho
    value, one_minus_abs = recurrence.product_of_steps(
        taken(rho.value), taken(rho.sign * rho.signed_one_minus_abs), count=step
    )
    size = tf.math.abs(value)
    near_zero = tf.math.atanh(tf.clip_by_value(value, -0.5, 0.5))
    near_one = 0.5 * tf.math.sign(value) * (tf.math.log1p(size) - tf.math.log(one_minus_abs))
    return {"fisher_z": tf.where(size < 0.5, near_zero, near_one)}

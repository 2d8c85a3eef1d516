"""Forecasts of a stationary path from the distribution of its last coordinate."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow_probability.python.internal import prefer_static as ps
from tensorflow_probability.python.internal import tensorshape_util

from tfp_ar1._checks import checked_count
from tfp_ar1.distributions.conditional import NearestObserved
from tfp_ar1.linear_operators.chain import widened

__all__ = ["forecast"]


def forecast(
    path: Any,
    mean: tf.Tensor,
    stddev: tf.Tensor,
    num_steps: int | None,
    times: Any = None,
    loc: Any = None,
) -> Any:
    """Returns the distribution of the coordinates that follow those of a `GaussianMarkovChain`.

    Given the last coordinate x_(d-1), the future is independent of the past: it is a chain with the
    transitions of the path, starting from the given mean and standard deviation.

    Arguments are those of `GaussianMarkovChain.forecast`, except `mean` and `stddev`, `[...]`,
    which are those of x_(d-1) given the data.
    """
    steps = _continued(path, num_steps, times)
    last = path._loc_or_zero()
    last = last[..., -1:] if tensorshape_util.rank(last.shape) else last[tf.newaxis]
    loc = last if loc is None else tf.convert_to_tensor(loc, path.dtype, name="loc")
    # In at least float32: half precision cannot hold the powers of ρ.
    chain = steps.scale.chain().widened()
    rho, flips = chain.rho, chain.sign_flips()
    is_last = tf.equal(tf.range(chain.size), 0)
    size, one_minus_abs = chain.abs_steps()
    nearest = NearestObserved(rho, size, one_minus_abs, is_last, reverse=False)
    # For the last coordinate (P = 1) and those after it, with P the product of the correlations
    # since then, the variances are v = 1 - P² + P² v_(d-1), in units of the path's own.
    product = tf.where(is_last, tf.ones_like(nearest.size), nearest.size)
    rest = tf.where(is_last, tf.zeros_like(nearest.size), nearest.remainder)
    unit = widened(stddev)[..., tf.newaxis] / tf.math.abs(chain.scale)
    variance = rest + tf.square(product * unit)
    deviation = (widened(mean) - widened(last[..., 0]))[..., tf.newaxis]
    stddev = tf.sqrt(variance[..., 1:])
    before = tf.concat([tf.broadcast_to(unit, ps.shape(variance[..., :1])), stddev], axis=-1)
    slope = rho.along_steps(rho.value * rho.inverse_unit_innovation_scale)
    parameters = {
        "loc": widened(loc) + deviation * (flips * product)[..., 1:],
        "scale_diag": chain.scale * stddev,
        "fisher_z": tf.math.asinh(slope * before[..., :-1])[..., 1:],
    }
    return path.posterior_class(
        **{name: tf.cast(x, path.dtype) for name, x in parameters.items()},
        validate_args=path.validate_args,
        allow_nan_stats=path.allow_nan_stats,
    )


def _continued(path: Any, num_steps: int | None, times: Any) -> Any:
    """Returns the path from its last coordinate on, without its mean."""
    name = type(path).__name__
    apart = [p.name for p in path.declaration if p.per != "member" and p.name != "times"]
    if apart:
        raise ValueError(
            f"A {name} cannot be continued: its parameters {apart} end with the path. Make a path "
            f"of all coordinates, past and future, and condition it on the observed ones."
        )
    given = {p.name: getattr(path, p.name) for p in path.declaration}
    if "times" not in given:
        if times is not None:
            raise ValueError(f"A {name} has no times; give `num_steps`.")
        num_steps = checked_count("num_steps", num_steps, 1, "a positive integer")
        return type(path)(tf.zeros([num_steps + 1], path.dtype), **given)
    if times is None:
        raise ValueError(f"A {name} needs the `times` of future coordinates; got only `num_steps`.")
    before = tf.convert_to_tensor(given["times"])[..., -1:]
    times = tf.convert_to_tensor(times, path.dtype, name="times")
    if not tensorshape_util.is_compatible_with(times.shape[-1:], [num_steps]):
        raise ValueError(f"`num_steps` is {num_steps}, and `times` has the shape {times.shape}.")
    batch = ps.broadcast_shape(ps.shape(before)[:-1], ps.shape(times)[:-1])
    given["times"] = tf.concat(
        [tf.broadcast_to(x, ps.concat([batch, ps.shape(x)[-1:]], axis=0)) for x in (before, times)],
        axis=-1,
    )
    return type(path)(**given, validate_args=path.validate_args)

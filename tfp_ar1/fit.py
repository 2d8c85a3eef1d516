"""Maximum-likelihood estimates: of complete draws in closed form, and of all else by L-BFGS.

All is computed in float64, whatever the dtype of the data. No estimate is infinite: where the
likelihood grows towards a correlation of ±1, as for equal series, the distance from ±1 that the
data's rounding hides, the square of the dtype's epsilon, takes the place of 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability.python.internal import prefer_static as ps

__all__ = ["antedependent", "by_optimization", "checked_value", "equal_steps"]

# The fisher_z at which the search for a maximum starts; the best of the maxima found is taken.
_STARTS = (-1.5, 0.0, 1.5, 4.0)


def checked_value(value: Any) -> tf.Tensor:
    """Returns data as a floating-point tensor; integers become the default type, float32.

    Raises:
      TypeError: if the data are neither floating-point numbers nor integers.
      ValueError: if they have not both an axis of draws and one of coordinates.
    """
    value = tf.convert_to_tensor(value, name="value")
    if value.dtype.is_integer:
        value = tf.cast(value, tf.float32)
    if not value.dtype.is_floating:
        raise TypeError(f"`value` must be real numbers; got dtype {value.dtype.name}.")
    if value.shape.rank is not None and value.shape.rank < 2:
        raise ValueError(
            f"`value` must have shape `[n, ..., d]`, an axis of draws before that of coordinates; "
            f"got shape {value.shape}. One series is `value[tf.newaxis]`."
        )
    return value


def equal_steps(value: tf.Tensor) -> dict[str, tf.Tensor]:
    """The estimate of AR(1), from independent draws along axis 0.

    With w the draws less their mean, P = ½ Σ (w_t ∓ w_(t-1))², E the sum of the squares of the
    first and the last coordinate and C that of the others, |ρ| = 1 - δ is best for σ at its best
    at the one root in (0, 1] of

        2 P + [2 (d - 2) P - (d - 1) E] δ + [(d - 2) (E/2 - P) - (2 d - 1) C] δ² + (d - 1) C δ³

    (Beach and MacKinnon, 1978, for a single series, here in δ: nothing cancels near |ρ| = 1).
    """
    loc, w, size, floor = _centred(value)
    largest = tf.reduce_max(tf.math.abs(w), axis=[0, -1])
    unit = tf.where(tf.equal(largest, 0.0), tf.ones_like(largest), largest)
    w /= unit[..., tf.newaxis]
    squares = tf.reduce_mean(tf.square(w), axis=0)
    inner = tf.reduce_sum(squares[..., 1:-1], axis=-1)
    # The last coordinate is another one than the first only from d = 2 on.
    ends = tf.reduce_sum(squares[..., :1], axis=-1)
    ends += tf.reduce_sum(squares[..., 1:][..., -1:], axis=-1)
    apart, together = (
        0.5 * tf.reduce_sum(tf.reduce_mean(tf.square(x), axis=0), axis=-1)
        for x in (w[..., 1:] - w[..., :-1], w[..., 1:] + w[..., :-1])
    )
    both = apart + together
    # Without steps, or if all draws are equal, any ρ is as good; 0 is taken.
    none = tf.equal(both, 0.0)
    both = tf.where(none, tf.ones_like(both), both)
    p = tf.where(none, both, tf.maximum(tf.minimum(apart, together), floor * both))
    c3 = (size - 1.0) * inner
    c2 = (size - 2.0) * (0.5 * ends - p) - (2.0 * size - 1.0) * inner
    c1 = 2.0 * (size - 2.0) * p - (size - 1.0) * ends
    c0 = 2.0 * p

    def complement(u: tf.Tensor) -> tf.Tensor:
        return 2.0 * tf.math.sigmoid(-2.0 * u)

    def polynomial(u: tf.Tensor) -> tf.Tensor:
        delta = complement(u)
        return ((c3 * delta + c2) * delta + c1) * delta + c0

    # At this δ the polynomial is positive, and at δ = 1 it is -d |Σ w_t w_(t-1)|.
    nearest = tf.minimum(p / (size * both), 0.25)
    u = tfp.math.find_root_chandrupatla(
        polynomial, low=tf.zeros_like(p), high=0.5 * tf.math.log(2.0 / nearest - 1.0)
    ).estimated_root
    # A step of Newton: the last digits, the derivative, and NaN where the data have one.
    u = tf.stop_gradient(u)
    delta = complement(u)
    slope = (delta - 2.0) * delta * ((3.0 * c3 * delta + 2.0 * c2) * delta + c1)
    slope = tf.where(none, tf.ones_like(slope), tf.stop_gradient(slope))
    u = tf.where(none, tf.zeros_like(u), u - polynomial(u) / slope)
    delta = complement(u)
    variance = 2.0 * p * (1.0 - delta) + (ends + inner * delta) * delta
    variance /= size * delta * (2.0 - delta)
    estimates = {
        "loc": loc,
        "marginal_scale": unit * tf.math.sqrt(variance),
        "fisher_z": tf.where(together < apart, -u, u),
    }
    return {name: tf.cast(x, value.dtype) for name, x in estimates.items()}


def antedependent(value: tf.Tensor) -> dict[str, tf.Tensor]:
    """The estimate of ANTE(1): moments of the draws along axis 0."""
    loc, w, _, floor = _centred(value)
    largest = tf.reduce_max(tf.math.abs(w), axis=0)
    w = tf.math.divide_no_nan(w, largest)
    scale = tf.math.sqrt(tf.reduce_mean(tf.square(w), axis=0))
    w = tf.math.divide_no_nan(w, scale)
    # 1 ± r is half of the mean of (w_t ± w_(t-1))²; both are 0 next to a constant coordinate.
    plus, minus = (
        tf.math.log(tf.maximum(0.5 * tf.reduce_mean(tf.square(x), axis=0), floor))
        for x in (w[..., 1:] + w[..., :-1], w[..., 1:] - w[..., :-1])
    )
    estimates = {"loc": loc, "scale_diag": largest * scale, "fisher_z": 0.5 * (plus - minus)}
    return {name: tf.cast(x, value.dtype) for name, x in estimates.items()}


def _centred(value: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, float]:
    """The mean, the draws less their mean, d, and the square of the dtype's epsilon."""
    floor = float(np.spacing(np.ones([], value.dtype.as_numpy_dtype))) ** 2
    value = tf.cast(value, tf.float64)
    # Subtracting the first draw is exact where the mean is large: nothing is lost in `w`.
    w = value - value[:1]
    mean = tf.reduce_mean(w, axis=0)
    loc = mean + tf.reduce_sum(value[:1], axis=0)
    return loc, w - mean, tf.cast(ps.shape(value)[-1], tf.float64), floor

"""Maximum-likelihood estimates: in closed form for complete draws, otherwise by L-BFGS.

Everything is computed in float64, whatever the dtype of the data. No estimate is infinite: where
the likelihood grows towards a correlation of ±1, as for equal series, the estimate keeps the
distance eps² from ±1, with the dtype's epsilon, which is below the rounding of the data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability.python.internal import dtype_util, tensorshape_util
from tensorflow_probability.python.internal import prefer_static as ps

__all__ = ["antedependent", "by_optimization", "checked_value", "equal_steps"]

# Values of fisher_z at which the search for a maximum starts; the best maximum found is used.
_STARTS = (-1.5, 0.0, 1.5, 4.0)


def checked_value(value: Any, sample_ndims: int = 1) -> tf.Tensor:
    """Returns data as a floating-point tensor; integers become float32.

    Raises:
      TypeError: if the data are neither floating-point numbers nor integers.
      ValueError: if the data lack an axis of draws or an axis of coordinates.
    """
    value = tf.convert_to_tensor(value, name="value")
    if dtype_util.is_integer(value.dtype):
        value = tf.cast(value, tf.float32)
    if not dtype_util.is_floating(value.dtype):
        raise TypeError(f"`value` must be real numbers; got dtype {dtype_util.name(value.dtype)}.")
    if (
        tensorshape_util.rank(value.shape) is not None
        and tensorshape_util.rank(value.shape) <= sample_ndims
    ):
        raise ValueError(
            f"`value` must have shape `[n, ..., d]`, an axis of draws before that of coordinates; "
            f"got shape {value.shape}. One series is `value[tf.newaxis]`."
        )
    return value


def equal_steps(value: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the AR(1) estimate from independent draws along axis 0.

    Let w be the draws minus their mean, P = ½ Σ (w_t ∓ w_(t-1))², E the sum of squares of the first
    and the last coordinate, and C that of the others. With σ profiled out, the likelihood is
    largest at |ρ| = 1 - δ for the unique root δ in (0, 1] of

        2 P + [2 (d - 2) P - (d - 1) E] δ + [(d - 2) (E/2 - P) - (2 d - 1) C] δ² + (d - 1) C δ³

    (Beach and MacKinnon, 1978, for a single series; here in terms of δ, so that nothing cancels
    near |ρ| = 1).
    """
    loc, w, size, floor = _centred(value)
    largest = tf.reduce_max(tf.math.abs(w), axis=[0, -1])
    unit = tf.where(tf.equal(largest, 0.0), tf.ones_like(largest), largest)
    w /= unit[..., tf.newaxis]
    squares = tf.reduce_mean(tf.square(w), axis=0)
    inner = tf.reduce_sum(squares[..., 1:-1], axis=-1)
    # The last coordinate differs from the first only if d ≥ 2.
    ends = tf.reduce_sum(squares[..., :1], axis=-1)
    ends += tf.reduce_sum(squares[..., 1:][..., -1:], axis=-1)
    apart, together = (
        0.5 * tf.reduce_sum(tf.reduce_mean(tf.square(x), axis=0), axis=-1)
        for x in (w[..., 1:] - w[..., :-1], w[..., 1:] + w[..., :-1])
    )
    both = apart + together
    # Without steps, or if all draws are equal, every ρ has the same likelihood; take 0.
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
    # A Newton step supplies the last digits, the derivatives, and NaN where the data have NaN.
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
    """Returns the ANTE(1) estimate, from the moments of the draws along axis 0."""
    loc, w, _, floor = _centred(value)
    largest = tf.reduce_max(tf.math.abs(w), axis=0)
    w = tf.math.divide_no_nan(w, largest)
    scale = tf.math.sqrt(tf.reduce_mean(tf.square(w), axis=0))
    w = tf.math.divide_no_nan(w, scale)
    # 1 ± r is half the mean of (w_t ± w_(t-1))²; both are 0 next to a constant coordinate.
    plus, minus = (
        tf.math.log(tf.maximum(0.5 * tf.reduce_mean(tf.square(x), axis=0), floor))
        for x in (w[..., 1:] + w[..., :-1], w[..., 1:] - w[..., :-1])
    )
    estimates = {"loc": loc, "scale_diag": largest * scale, "fisher_z": 0.5 * (plus - minus)}
    return {name: tf.cast(x, value.dtype) for name, x in estimates.items()}


def _centred(value: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, float]:
    """Returns the mean, the centred draws, d, and the square of the dtype's epsilon."""
    floor = float(np.spacing(np.ones([], dtype_util.as_numpy_dtype(value.dtype)))) ** 2
    value = tf.cast(value, tf.float64)
    # Subtracting the first draw first is exact where the mean is large, so `w` loses no digits.
    w = value - value[:1]
    mean = tf.reduce_mean(w, axis=0)
    loc = mean + tf.reduce_sum(value[:1], axis=0)
    return loc, w - mean, tf.cast(ps.shape(value)[-1], tf.float64), floor


def by_optimization(
    cls: Any,
    value: tf.Tensor,
    observed: tf.Tensor | None,
    shared_loc: bool,
    given: dict[str, tf.Tensor],
) -> dict[str, tf.Tensor]:
    """Returns an estimate that has no closed form, by L-BFGS on the exact log-likelihood.

    The search runs from several starts, in unconstrained parameters, on standardized data. The
    estimate has no gradient with respect to the data.

    Args:
      cls: the class of the family.
      value: floating-point tensor `[n, ..., d]`, independent draws along axis 0.
      observed: boolean tensor that broadcasts to that shape, or `None` if everything is observed.
      shared_loc: whether all coordinates share one mean.
      given: parameters to hold fixed.

    Returns:
      The estimated parameters.
    """
    dtype, x = value.dtype, tf.cast(tf.stop_gradient(value), tf.float64)
    given = {name: tf.cast(parameter, tf.float64) for name, parameter in given.items()}
    properties = cls.parameter_properties(dtype=tf.float64)
    names = [name for name, p in properties.items() if p.is_preferred and name not in given]
    if "correlation" in given:
        names.remove("fisher_z")
    is_complete = observed is None
    observed = tf.ones_like(x, tf.bool) if is_complete else tf.broadcast_to(observed, ps.shape(x))

    # Mean of the observed values, per coordinate or over all.
    def mean(x: tf.Tensor, axis: Any) -> tf.Tensor:
        weights = tf.cast(observed, x.dtype)
        count = tf.reduce_sum(weights, axis, keepdims=True)
        return tf.math.divide_no_nan(tf.reduce_sum(x, axis, keepdims=True), count)[0]

    x = tf.where(observed, x, tf.zeros_like(x))
    center = given.get("loc")
    if center is None:
        seen = tf.reduce_any(observed, axis=0)
        center = mean(x, [0, -1])
        center = center if shared_loc else tf.where(seen, mean(x, 0), center)
    w = tf.where(observed, x - center, tf.zeros_like(x))
    unit = tf.sqrt(mean(tf.square(w), [0, -1]))  # [..., 1]
    is_constant = tf.equal(unit, 0.0)
    w /= tf.where(is_constant, tf.ones_like(unit), unit)
    spread = tf.sqrt(mean(tf.square(w), 0))  # [..., d]
    in_units = {
        name: x / (unit if properties[name].event_ndims else unit[..., 0])
        for name, x in given.items()
        if name in ("marginal_scale", "scale_diag")
    }
    if "scale_diag" in names:
        # A constant coordinate has scale 0 and carries no information about the others.
        observed = tf.logical_and(observed, spread > 0.0)

    # For complete draws, the estimate of `loc` is the mean of each coordinate.
    has_loc = "loc" in names and (shared_loc or not is_complete)
    size = ps.shape(x)[-1]
    sizes = [ps.reduce_prod(properties[n].shape_fn(ps.reshape(size, [1]))) for n in names]
    if "loc" in names:
        sizes[names.index("loc")] = (1 if shared_loc else size) if has_loc else 0
    step = tf.ones([], tf.float64)
    if "times" in given:
        times = given["times"]
        values = tf.get_static_value(times)
        if values is not None and np.any(np.diff(values) == 0):
            raise ValueError(
                "Some `times` are repeated: the likelihood of a path without noise is unbounded. "
                "Give one observation for each time, or add noise by `with_observation_noise` and "
                "maximize its `log_prob`."
            )
        step = (times[..., -1] - times[..., 0]) / tf.cast(ps.maximum(size - 1, 1), tf.float64)
        step = tf.where(step > 0.0, step, tf.ones_like(step))
    largest = -np.log(float(np.spacing(np.ones([], dtype_util.as_numpy_dtype(dtype)))) / 2.0)

    def parameters(position: tf.Tensor) -> dict[str, tf.Tensor]:
        free = dict(zip(names, tf.split(position, sizes, axis=-1), strict=True))
        for name in names:
            if properties[name].event_ndims == 0:
                free[name] = free[name][..., 0]
        if "fisher_z" in free:
            free["fisher_z"] = tf.clip_by_value(free["fisher_z"], -largest, largest)
        if "marginal_scale" in free:
            free["marginal_scale"] = tf.exp(free["marginal_scale"])
        if "scale_diag" in free:
            free["scale_diag"] = tf.exp(free["scale_diag"]) * tf.where(spread > 0.0, spread, 1.0)
        if "length_scale" in free:
            free["length_scale"] = step * tf.exp(free["length_scale"])
        loc = free.get("loc", tf.zeros_like(position[..., :0]))
        free["loc"] = tf.zeros(ps.concat([ps.shape(position)[:-1], [size]], 0), tf.float64)
        if has_loc:
            # Parametrize the mean so that the likelihood is well conditioned.
            chain = cls(**{**given, **in_units, **free}).scale.chain()
            free["loc"] += loc if shared_loc else chain.matvec(loc)
        return free

    count = tf.reduce_sum(tf.cast(observed, tf.float64), axis=[0, -1])

    @tf.function(autograph=False)
    def loss_and_gradient(position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def loss(position: tf.Tensor) -> tf.Tensor:
            distribution = cls(**{**given, **in_units, **parameters(position)})
            seen = distribution.conditional(w[:, tf.newaxis], observed[:, tf.newaxis])
            return -tf.reduce_sum(seen.observed_log_prob(), axis=0) / tf.maximum(count, 1.0)

        return tfp.math.value_and_gradient(loss, position)

    start = [
        tf.ones(ps.concat([[len(_STARTS)], ps.shape(x)[1:-1], [k]], 0), tf.float64)
        * tf.reshape(
            tf.constant(_STARTS if n in ("fisher_z", "length_scale") else [0.0], tf.float64),
            ps.concat([[-1], ps.ones([ps.rank(x) - 1], tf.int32)], 0),
        )
        for n, k in zip(names, sizes, strict=True)
    ]
    found = tfp.optimizer.lbfgs_minimize(
        loss_and_gradient,
        tf.concat(start, axis=-1),
        tolerance=1e-9,
        max_iterations=1000,
        stopping_condition=tfp.optimizer.converged_all,
    )
    losses = found.objective_value
    losses = tf.where(tf.math.is_finite(losses), losses, tf.constant(np.inf, tf.float64))
    is_best = tf.one_hot(tf.argmin(losses), len(_STARTS), axis=0, on_value=True, off_value=False)
    position = tf.where(is_best[..., tf.newaxis], found.position, tf.zeros_like(found.position))
    position = tf.reduce_sum(position, axis=0)
    # With scale 0 nothing else can be estimated; with NaN in the data, nothing at all.
    position = tf.where(is_constant, tf.zeros_like(position), position)
    position = tf.where(tf.math.is_finite(unit), position, unit + position)
    free = parameters(position)
    free["loc"] = center + unit * free["loc"]
    if "marginal_scale" in free:
        free["marginal_scale"] *= unit[..., 0]
    if "scale_diag" in free:
        free["scale_diag"] *= unit * tf.cast(spread > 0.0, tf.float64)
    return {name: tf.cast(free[name], dtype) for name in names}

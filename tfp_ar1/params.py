"""The single mapping from packed parameters, as networks output them, to distributions.

For d coordinates the last axis holds `loc` (d numbers), then, as the member declares them, the
logarithm of the marginal variance, shared or per coordinate, and the Fisher z-transform `atanh ρ`
of the correlation, shared or per step:

* `MultivariateNormalAR1`: `[loc (d), log s, fisher_z]`;
* `MultivariateNormalARH1`: `[loc (d), log s (d), fisher_z]`;
* With a correlation for each step: `[loc (d), log s (d), fisher_z (d - 1)]`.

A vector of zeros is the standard normal. Scales are `exp(½ log s)`, or with `scale_map="softplus"`
`softplus(x + log(e - 1))`, which grows linearly and so learns more slowly far from 1.

`sites` is for networks that output a Gaussian factor for each coordinate of a path, which a prior
connects. `from_time_major` converts outputs for each timestep, `[batch, time, k * channels]`, to
packed parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow_probability.python.internal import dtype_util, tensorshape_util

from tfp_ar1._checks import checked_count, named
from tfp_ar1.distributions.gaussian_markov_chain import GaussianMarkovChain
from tfp_ar1.distributions.noise import MarkovSites
from tfp_ar1.families import PACKED

__all__ = [
    "FISHER_Z_BOUND",
    "LOC_BOUND",
    "LOG_PRECISION_BOUND",
    "LOG_S_BOUND",
    "SCALE_MAPS",
    "SITES",
    "SITE_BOUND",
    "bounded",
    "from_time_major",
    "new",
    "params_size",
    "sites",
    "time_major_size",
]

# Maps from real numbers to positive ones. Both map 0 to 1.
SCALE_MAPS = ("exp", "softplus")
# Not a member of the family, but `params_size` and `from_time_major` know its layout.
SITES = "sites"

# Values beyond these bounds are clipped to them. Any finite float32 vector then gives finite
# samples, KL divergences and gradients, and no useful model reaches the bounds.
LOC_BOUND = 1e15  # |loc|: its square, times d, still fits a float32
LOG_S_BOUND = 40.0  # |log s|: standard deviations from 2e-9 to 5e8
FISHER_Z_BOUND = 20.0  # |fisher_z|: |ρ| up to 1 - 8e-18
# For sites, where the precision times m² must fit too.
SITE_BOUND = 1e10  # |m|
LOG_PRECISION_BOUND = 25.0  # |log λ|: noise of standard deviations from 4e-6
# In float16, whose largest number is 65504: the squares of 30 coordinates fit it.
_FLOAT16_BOUNDS = {LOC_BOUND: 32.0, LOG_S_BOUND: 7.0, FISHER_Z_BOUND: 5.0}
_FLOAT16_BOUNDS |= {SITE_BOUND: 32.0, LOG_PRECISION_BOUND: 7.0}


def layout(family: str) -> tuple[str, ...]:
    """Returns what each packed parameter has one number for, starting with `loc`.

    This is a `"coordinate"`, a `"step"` to the next one, or a `"member"` of the batch.

    Args:
      family: the name of a member in `tfp_ar1.families.PACKED`, or `"sites"`.

    Raises:
      ValueError: if the family is unknown.
    """
    if family == SITES:
        return "coordinate", "coordinate"
    if family not in PACKED:
        named("family", family, dict.fromkeys([*PACKED, SITES]))
    declared = (p.per for p in PACKED[family].declaration if p.packed is not None)
    return ("coordinate", *declared)


def params_size(event_size: int, family: str = "ar1") -> int:
    """Returns the number of packed parameters of a distribution over vectors of size `event_size`.

    Args:
      event_size: number of coordinates d, at least 1.
      family: the name of a member in `tfp_ar1.families.PACKED`, or `"sites"`.

    Returns:
      d + 2 for AR(1), 2d + 1 for ARH(1), 3d - 1 with a correlation for each step, 2d for sites.

    Raises:
      ValueError: if `event_size` is not a positive integer, or the family is unknown.
    """
    return size_of(layout(family), event_size)


def size_of(parameters: Sequence[str], event_size: int) -> int:
    """Returns how many numbers the parameters have, given what `layout` returns."""
    d = checked_event_size(event_size)
    size = {"member": 1, "coordinate": d, "step": d - 1}
    return sum(size[per] for per in parameters)


def new(
    params: Any,
    event_size: int,
    validate_args: bool = False,
    family: str = "ar1",
    scale_map: str = "exp",
) -> GaussianMarkovChain:
    """Makes the distribution from packed parameters.

    Args:
      params: floating-point tensor `[..., params_size(event_size, family)]`; any finite values,
        which are clipped to ±`LOC_BOUND`, ±`LOG_S_BOUND` and ±`FISHER_Z_BOUND`; in float16 to
        ±32, ±7 and ±5.
      event_size: number of coordinates d, at least 1.
      validate_args: passed on to the distribution.
      family: the name of a member in `tfp_ar1.families.PACKED`.
      scale_map: `"exp"`, where parameters are log variances; or `"softplus"`, where they are real
        numbers x and standard deviations are `softplus(x + log(e - 1))`, with the same bounds.

    Returns:
      Distribution of the member's class, with batch shape `[...]` and event shape `[event_size]`.

    Raises:
      ValueError: as for `params_size`; if the last dimension of `params` has another size, or the
        scale map is unknown.
    """
    d, member = event_size, named("family", family, PACKED)
    make: Any = member
    params = checked_params(params, params_size(d, family), d)
    unpacked, start = {"loc": bounded(params[..., :d], LOC_BOUND)}, d
    for parameter in member.declaration:
        if parameter.packed is None:
            continue
        stop = start + size_of((parameter.per,), d)
        x = params[..., start] if parameter.per == "member" else params[..., start:stop]
        is_scale, start = parameter.packed == "log_variance", stop
        value = scale_of(x, scale_map) if is_scale else bounded(x, FISHER_Z_BOUND)
        unpacked[parameter.name] = value
    return make(**unpacked, validate_args=validate_args)


def sites(params: Any, prior: Any, observed: Any = None, scale_map: str = "exp") -> MarkovSites:
    """Multiplies a prior by a Gaussian factor (a site) at each coordinate, from packed parameters.

    `params` holds `[m (d), log λ (d)]`: the site at coordinate t has precision λ_t and information
    `η_t = (1 + λ_t) m_t`, so under a standard normal prior without correlation m_t is the posterior
    mean, whatever the precision. Where nothing is observed there is no site: λ_t = η_t = 0.

    ```python
    posterior = tfp_ar1.params.sites(packed, prior, observed).posterior()
    kl = tfd.kl_divergence(posterior, prior)  # exact
    ```

    Args:
      params: floating-point tensor `[..., 2 d]`; any finite values, clipped to ±`SITE_BOUND` and
        ±`LOG_PRECISION_BOUND`, in float16 to ±32 and ±7.
      prior: the `GaussianMarkovChain` of event shape `[d]` that connects the sites, with a batch
        shape that broadcasts to `[...]`, such as `[channels]` for `[batch, channels, 2 d]`.
      observed: boolean tensor that broadcasts to `[..., d]`, `True` where there is a site. Default:
        everywhere. Parameters elsewhere are ignored and may be NaN.
      scale_map: `"exp"`; or `"softplus"`, where λ is `softplus(x + log(e - 1))`.

    Returns:
      `prior.with_sites(...)`, whose method `posterior` returns the most general member.

    Raises:
      TypeError: if the prior is not a chain of this package, or `observed` is not boolean.
      ValueError: if the last dimension of `params` has another size, or the scale map is unknown.
    """
    check_connects(prior)
    d = tf.compat.dimension_value(prior.event_shape[-1])
    if d is None:
        raise ValueError(f"The number of coordinates of the prior must be known; got {prior!r}.")
    params = checked_params(params, params_size(d, SITES), d)
    loc, raw = params[..., :d], params[..., d:]
    if observed is not None:
        observed = tf.convert_to_tensor(observed, name="observed")
        if observed.dtype != tf.bool:
            raise TypeError(
                f"`observed` must be boolean; got dtype {dtype_util.name(observed.dtype)}."
            )
        # Before any computation: values may be NaN, and gradients would be NaN too.
        loc, raw = (tf.where(observed, x, tf.zeros_like(x)) for x in (loc, raw))
    precision = _positive(raw, scale_map, _bound(raw.dtype, LOG_PRECISION_BOUND))
    information = (1.0 + precision) * bounded(loc, SITE_BOUND)
    if observed is not None:
        precision = tf.where(observed, precision, tf.zeros_like(precision))
    return prior.with_sites(information, precision)


def check_connects(prior: Any) -> None:
    """Raises `TypeError` if the prior cannot connect sites."""
    if not isinstance(prior, GaussianMarkovChain):
        raise TypeError(
            f"The prior of sites must be a chain of this package, which connects them; got "
            f"{prior!r}. N(0, I) is `MultivariateNormalAR1(tf.zeros(d), correlation=0.0)`."
        )


def time_major_size(channels: int, family: str) -> int:
    """Returns how many numbers a network must output per timestep, for `from_time_major`.

    Args:
      channels: number of paths, at least 1.
      family: the name of a member in `tfp_ar1.families.PACKED`, or `"sites"`.

    Returns:
      `k * channels`, with k = 2 for `"sites"` and 3 for the members.

    Raises:
      ValueError: if `channels` is not a positive integer, or the family is unknown.
    """
    return len(layout(family)) * checked_count("channels", channels, 1, "a positive integer")


def from_time_major(outputs: Any, family: str, mask: Any = None) -> tf.Tensor:
    """Converts a network's outputs for each timestep to packed parameters of paths.

    For convolutions, recurrent networks and transformers over time. A parameter of a step is taken
    from the later of its two timesteps (the first timestep's is ignored); a parameter of a whole
    path, such as the correlation of `"ar1"` and `"arh1"`, is the mean over the timesteps.

    ```python
    outputs = keras.layers.Dense(tfp_ar1.params.time_major_size(channels, "arh1"))(features)
    packed = tfp_ar1.params.from_time_major(outputs, "arh1")
    paths = tfp_ar1.params.new(packed, num_timesteps, family="arh1")  # batch [batch, channels]
    ```

    Args:
      outputs: floating-point tensor `[..., time, k * channels]`, parameter by parameter: loc of
        each channel, then log s of each, then fisher_z of each; for `"sites"` m, then log λ.
      family: the name of a member in `tfp_ar1.families.PACKED`, or `"sites"`.
      mask: boolean tensor `[..., time]`, `True` at valid timesteps, as in Keras. It only affects
        the means. Default: all.

    Returns:
      Tensor `[..., channels, params_size(time, family)]`.

    Raises:
      ValueError: if the family is unknown, or the last dimension is not a multiple of its k.
    """
    outputs, parameters = tf.convert_to_tensor(outputs, name="outputs"), layout(family)
    time_major_channels(outputs.shape, family)

    def over_time(x: tf.Tensor) -> tf.Tensor:
        if mask is None:
            return tf.reduce_mean(x, axis=-2, keepdims=True)
        counted = tf.convert_to_tensor(mask)[..., tf.newaxis]
        total = tf.reduce_sum(tf.where(counted, x, tf.zeros_like(x)), axis=-2, keepdims=True)
        number = tf.reduce_sum(tf.cast(counted, x.dtype), axis=-2, keepdims=True)
        return total / tf.maximum(number, 1)

    given = zip(parameters, tf.split(outputs, len(parameters), axis=-1), strict=True)
    parts = [over_time(x) if per == "member" else x for per, x in given]
    return joined([tf.linalg.matrix_transpose(x) for x in parts], parameters)


def joined(parts: Sequence[tf.Tensor], parameters: Sequence[str]) -> tf.Tensor:
    """Packs parts `[..., d]`, or `[..., 1]` for a `"member"`, in the order of `layout`."""
    # A step from one timestep to the next takes its number from the later one.
    own = zip(parameters, parts, strict=True)
    return tf.concat([x[..., 1:] if per == "step" else x for per, x in own], axis=-1)


def time_major_channels(shape: Any, family: str, num_timesteps: int | None = None) -> int:
    """Returns the number of channels of a time-major shape, or raises `ValueError`."""
    shape, k = tf.TensorShape(shape), len(layout(family))
    last: Any = None if shape.rank is None or shape.rank < 2 else shape[-1]
    fits = last is not None and last % k == 0 and last > 0
    if not fits or not shape[-2:-1].is_compatible_with([num_timesteps]):
        steps = "time" if num_timesteps is None else num_timesteps
        raise ValueError(
            f"Outputs for each timestep must be of shape [..., {steps}, {k} * channels] for "
            f"{family!r}; got {shape}."
        )
    return last // k


def checked_scale_map(scale_map: str) -> str:
    """Returns the scale map, or raises `ValueError` with the known names."""
    named("scale map", scale_map, dict.fromkeys(SCALE_MAPS))
    return scale_map


def bounded(x: tf.Tensor, bound: float) -> tf.Tensor:
    """Clips to ±`bound`, one of the bounds above, or to its float16 counterpart."""
    bound = _bound(x.dtype, bound)
    return tf.clip_by_value(x, -bound, bound)


def _bound(dtype: tf.DType, bound: float) -> float:
    return _FLOAT16_BOUNDS[bound] if dtype == tf.float16 else bound


def scale_of(x: tf.Tensor, scale_map: str = "exp") -> tf.Tensor:
    """Returns the standard deviation; with `"exp"`, x is the log variance."""
    x = 0.5 * x if scale_map == "exp" else x
    return _positive(x, scale_map, 0.5 * _bound(x.dtype, LOG_S_BOUND))


def _positive(x: tf.Tensor, scale_map: str, bound: float) -> tf.Tensor:
    """Maps x to a positive number, 1 for x = 0, from about `exp(-bound)` to about `exp(bound)`."""
    checked_scale_map(scale_map)
    if scale_map == "exp":
        return tf.math.exp(tf.clip_by_value(x, -bound, bound))
    return tf.math.softplus(tf.clip_by_value(x, -bound, math.exp(bound)) + math.log(math.e - 1.0))


def checked_event_size(event_size: int) -> int:
    """Returns `event_size`, or raises `ValueError` if it is not a positive integer."""
    return checked_count("event_size", event_size, 1, "a positive integer")


def checked_params(params: Any, size: int, event_size: int) -> tf.Tensor:
    """Returns `params` as a tensor, or raises `ValueError` if its last dimension is not `size`."""
    params = tf.convert_to_tensor(params, name="params")
    check_params_shape(params.shape, size, event_size)
    if tensorshape_util.rank(params.shape) is not None and params.shape[-1] is None:
        # A TFP mixture layer reshapes to [..., components, -1]; layers after it need a static size.
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

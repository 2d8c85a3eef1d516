"""Message passing for a Gaussian Markov chain with noisy observations, in O(d).

In standardized coordinates w = (x - loc) / σ, a Gaussian site at coordinate t has precision
τ_t ≥ 0; for an observation with noise of standard deviation ν_t it is σ_t² / ν_t². With
q_t = 1 - ρ_t², the sites before t carry information about w_t that adds the precision l_t to the
chain's own precision 1:

    l_0 = 0,    l_t = (1 - q_t) m_t / (1 + q_t m_t)    with m_t = l_(t-1) + τ_(t-1).

The sites after t add r_t, the same from the other end. The posterior precision of w_t is
1 + l_t + τ_t + r_t, and with s_t = r_t + τ_t the posterior correlations follow from

    sinh(fisher_z of the posterior) = sinh(fisher_z) / √(1 + m_t + s_t + q_t m_t s_t).

All these numbers are non-negative and nothing is subtracted, so no digits are lost for any noise or
correlation. The maps l_(t-1) → l_t compose associatively (Redheffer's star product), so they are
evaluated by recursive doubling or in blocks, like the recurrences in `_scan_schemes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow_probability.python.internal import dtype_util, tensorshape_util
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1 import recurrence
from tfp_ar1._backend import custom_gradient, elementwise_gradient, while_loop
from tfp_ar1._scan_schemes import Coefficients, shifts_below, step_scheme
from tfp_ar1.correlation import LagOneCorrelation, with_derivatives_of
from tfp_ar1.linear_operators.chain import Chain

__all__ = ["Messages", "compose_linear_fractional", "largest_precision"]

# Same as for recurrences with a coefficient for each step.
_LARGEST_SIZE_FOR_DOUBLING = 128
_BLOCK_SIZE = 16  # a power of 2
_BIT_REVERSED = [int(f"{i:04b}"[::-1], 2) for i in range(_BLOCK_SIZE)]


def largest_precision(dtype: tf.DType) -> float:
    """Returns the largest relative precision of a site; sums and some products do not overflow."""
    return float(dtype_util.max(dtype)) ** 0.8


@elementwise_gradient
def _share(a: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """`a / (a + b)` of positive numbers, with a gradient free of cancellation."""
    n = 1.0 / (a + b)
    return a * n, lambda dy: (dy * (b * n) * n, -dy * (a * n) * n)


class _Maps(NamedTuple):
    """The maps `l → b + a² l / (1 + c l)`, with a in [0, 1] and b, c ≥ 0, along the last axis."""

    a: tf.Tensor
    one_minus_a: tf.Tensor
    b: tf.Tensor
    c: tf.Tensor

    def then(self, later: _Maps) -> _Maps:
        """Composes these maps, applied first, with later ones."""
        cb = later.c * self.b
        n = 1.0 / (1.0 + cb)
        one_minus_a = (later.one_minus_a + later.a * self.one_minus_a + cb) * n
        return _Maps(
            tf.where(one_minus_a < 0.5, 1.0 - one_minus_a, self.a * later.a * n),
            one_minus_a,
            later.b + tf.square(later.a) * self.b * n,
            self.c + tf.square(self.a) * later.c * n,
        )

    def part(self, *index: Any) -> _Maps:
        return _Maps(*(x[index] for x in self))


_IDENTITY = _Maps(a=1.0, one_minus_a=0.0, b=0.0, c=0.0)


def _prefixes(maps: _Maps) -> tf.Tensor:
    """Composes the first 1, 2, 3, … of the maps and applies the results to 0."""
    num = tf.compat.dimension_value(maps.b.shape[-1])
    if num is None:
        return _prefixes_of_unknown_number(maps, lambda x, y: _Maps(*x).then(_Maps(*y)))[2]
    if num > _LARGEST_SIZE_FOR_DOUBLING:
        return _prefixes_in_blocks(maps, num)
    for shift in shifts_below(num):
        later = maps.part(..., slice(-shift)).then(maps.part(..., slice(shift, None)))
        first = maps.part(..., slice(shift))
        maps = _Maps(*(tf.concat(parts, axis=-1) for parts in zip(first, later, strict=True)))
    return maps.b


def _prefixes_of_unknown_number(
    maps: tuple[tf.Tensor, ...], compose: Callable[..., tuple[tf.Tensor, ...]]
) -> tuple[tf.Tensor, ...]:
    """Composes the first 1, 2, 3, … of the maps along the last axis."""
    size = ps.shape(maps[0])[-1]
    positions = tf.range(size)

    def step(shift: tf.Tensor, *state: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # A gather, because XLA needs every shape in the loop to stay the same.
        source = tf.maximum(positions - shift, 0)
        later = compose(tuple(tf.gather(x, source, axis=-1) for x in state), state)
        inside = positions >= shift
        return 2 * shift, *(tf.where(inside, x, y) for x, y in zip(later, state, strict=True))

    state = (tf.constant(1), *maps)
    return while_loop(lambda shift, *_: shift < size, step, state, maximum_iterations=31)[1:]


def _prefixes_in_blocks(maps: _Maps, num: int) -> tf.Tensor:
    """Composes maps within blocks, scans over the blocks, then applies maps one by one in each."""
    num_blocks = math.ceil(num / _BLOCK_SIZE)
    padding = num_blocks * _BLOCK_SIZE - num
    rank = tensorshape_util.rank(maps.b.shape)
    blocks = ps.concat([ps.shape(maps.b)[:-1], [num_blocks, _BLOCK_SIZE]], axis=0)

    def to_blocks(x: tf.Tensor, end: float) -> tf.Tensor:
        x = recurrence.pad(x, 0, padding, value=end) if padding else x
        return tf.transpose(tf.reshape(x, blocks), [rank, *range(rank)])

    parts = _Maps(*(to_blocks(x, end) for x, end in zip(maps, _IDENTITY, strict=True)))
    # Composition is not commutative: in bit-reversed order, neighbours lie half the axis apart.
    product = _Maps(*(tf.gather(x, _BIT_REVERSED) for x in parts))
    for half in reversed(shifts_below(_BLOCK_SIZE)):
        product = product.part(slice(half)).then(product.part(slice(half, None)))
    y = recurrence.pad(_prefixes(product.part(0, ..., slice(-1))), 1, 0)
    ys = []
    square, b, c = (tf.unstack(x) for x in (tf.square(parts.a), parts.b, parts.c))
    for j in range(_BLOCK_SIZE):
        y = b[j] + square[j] * y / (1.0 + c[j] * y)
        ys.append(y)
    result = tf.transpose(tf.stack(ys), [*range(1, rank + 1), 0])
    shape = ps.concat([blocks[:-2], [num_blocks * _BLOCK_SIZE]], axis=0)
    return tf.reshape(result, shape)[..., :num]


def compose_linear_fractional(
    earlier: tuple[tf.Tensor, ...], later: tuple[tf.Tensor, ...]
) -> tuple[tf.Tensor, ...]:
    """Composes maps `z → (a z + b) / (c z + e)`, for `scan_associative`.

    Computed as the product of 2 × 2 matrices, given row by row, up to a factor.
    """
    (a, b, c, e), (a2, b2, c2, e2) = earlier, later
    product = (a2 * a + b2 * c, a2 * b + b2 * e, c2 * a + e2 * c, c2 * b + e2 * e)
    # The factor does not change the map, so it needs no derivative.
    factor = tf.stop_gradient(1.0 / tf.reduce_max(tf.abs(tf.stack(product)), axis=0))
    return tuple(x * factor for x in product)


def _left_of_signed(tau: tf.Tensor, q: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns l_t, `[..., d]`, where some precisions τ are negative.

    The sites between two coordinates may then not define a distribution, although all sites
    together do: their map has a pole, but its matrix is finite. Digits are lost near the pole, so
    this is computed in float64.
    """
    dtype = tau.dtype
    tau, q, size = (tf.cast(x, tf.float64) for x in (tau, q, size))
    one = tf.ones_like(tau[..., :1])
    identity = (one, tf.zeros_like(one), tf.zeros_like(one), one)
    square, before = tf.square(size), tau[..., :-1]
    maps = (square, square * before, q, 1.0 + q * before)
    maps = tuple(tf.concat(x, axis=-1) for x in zip(identity, maps, strict=True))
    # As a loop for any size: few models run this branch, but all graphs contain it.
    _, b, _, e = _prefixes_of_unknown_number(maps, compose_linear_fractional)
    return tf.cast(b / e, dtype)


def _left_where_definite(
    tau: tf.Tensor, q: tf.Tensor, size: tf.Tensor, one_minus_size: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the messages of τ, or of max(τ, 0) where the precision matrix is not definite.

    Returns:
      The messages, without derivatives, and where the matrix is positive definite, `[...]`.
    """
    # Otherwise TensorFlow spends a long time building the derivatives of the conditional.
    tau, q, size, one_minus_size = map(tf.stop_gradient, (tau, q, size, one_minus_size))
    of_positive = _left_of_positive(tf.maximum(tau, 0.0), q, size, one_minus_size)

    def with_signs() -> tuple[tf.Tensor, tf.Tensor]:
        left = _left_of_signed(tau, q, size)
        # Positive definite if all pivots are positive by more than rounding.
        bound = 8.0 * float(dtype_util.eps(tau.dtype)) * (1.0 + tf.abs(left) + tf.abs(tau))
        is_definite = tf.reduce_all(1.0 + left + tau > bound, axis=-1)
        return tf.where(is_definite[..., tf.newaxis], left, of_positive), is_definite

    def without() -> tuple[tf.Tensor, tf.Tensor]:
        return of_positive, tf.ones(ps.shape(of_positive)[:-1], tf.bool)

    return tf.cond(tf.reduce_any(tau < 0.0), with_signs, without)


def _left_of_positive(
    tau: tf.Tensor, q: tf.Tensor, size: tf.Tensor, one_minus_size: tf.Tensor
) -> tf.Tensor:
    x = q * tau[..., :-1]
    n = 1.0 / (1.0 + x)
    maps = _Maps(size * n, (one_minus_size + x) * n, (1.0 - q) * tau[..., :-1] * n, q * n)
    return recurrence.pad(_prefixes(maps), 1, 0)


def _with_two_derivatives(
    left: tf.Tensor, tau: tf.Tensor, q: tf.Tensor, size: tf.Tensor, one_minus_size: tf.Tensor
) -> tf.Tensor:
    """Returns given messages with first and second derivatives.

    The derivatives are those of two Newton steps, with the same slopes, on the equations that the
    messages solve.
    """
    m, y = (left + tau)[..., :-1], left
    n = 1.0 / (1.0 + q * m)
    slope, one_minus_root = (1.0 - q) * tf.square(n), (one_minus_size + q * m) * n
    steps = Coefficients(*map(tf.stop_gradient, (slope, one_minus_root * (1.0 + size * n))))
    for _ in range(2):
        m = (y + tau)[..., :-1]
        residual = recurrence.pad((1.0 - q) * (m / (1.0 + q * m)), 1, 0) - y
        y += recurrence.step_recurrence(residual, steps)
    return with_derivatives_of(y, left)


def _from_left(
    tau: tf.Tensor,
    log_q: tf.Tensor,
    size: tf.Tensor,
    one_minus_size: tf.Tensor,
    signed: bool = False,
    with_derivatives: bool = True,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Computes l_t, `[..., d]`, differentiable in τ and log q to any order, or twice if signed.

    Args:
      tau: `[..., d]`, the precisions of the sites.
      log_q: `[..., d - 1]`, log(1 - ρ²); all arguments have the same batch shape.
      size: |ρ|.
      one_minus_size: 1 - |ρ|.
      signed: whether some τ may be negative.
      with_derivatives: whether derivatives are needed if signed.

    Returns:
      The messages; whether the precision matrix is positive definite, `[...]`; and the τ used,
      max(τ, 0) where it is not.
    """
    q = tf.exp(log_q)
    if signed:
        left, is_definite = _left_where_definite(tau, q, size, one_minus_size)
        tau = tf.where(is_definite[..., tf.newaxis], tau, tf.maximum(tau, 0.0))
        if with_derivatives:
            left = _with_two_derivatives(left, tau, q, size, one_minus_size)
        return left, is_definite, tau
    left = _left_of_positive(tau, q, size, one_minus_size)
    is_definite = tf.ones(ps.shape(left)[:-1], tf.bool)

    # As in `recurrence`, first derivatives do not pass through the scan; derivatives of the
    # gradient do. With respect to log q: the derivative by q has a factor m (1 + m), which
    # overflows.
    @custom_gradient
    def with_gradient(left: tf.Tensor, tau: tf.Tensor, log_q: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradient(dleft: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
            q = tf.exp(log_q)
            m = left[..., :-1] + tau[..., :-1]
            n = 1.0 / (1.0 + q * m)
            slope, one_minus_root = (1.0 - q) * tf.square(n), (one_minus_size + q * m) * n
            steps = Coefficients(slope, one_minus_root * (1.0 + size * n))
            scheme = step_scheme(steps, tf.compat.dimension_value(tau.shape[-1]))
            adjoint = scheme.solve(dleft, reverse=True)[..., 1:]
            dtau = recurrence.pad(slope * adjoint, 0, 1)
            return None, dtau, -(q * m * n) * ((1.0 + m) * n) * adjoint

        return tf.identity(left), gradient

    return with_gradient(left, tau, log_q), is_definite, tau


class Messages:
    """A chain with a Gaussian site at each coordinate: `chain(w) Π_t exp(h_t w_t - ½ τ_t w_t²)`.

    The precisions τ and the chain's parameters may have fewer batch axes than `h` or w; anything
    that depends only on them is computed once.

    Args:
      chain: the chain; w is in its standardized coordinates.
      tau: `[..., 1 or d]`, at most `largest_precision`; non-negative, unless `signed`.
      signed: whether some τ may be negative. If the product then has no finite integral,
        `positive_definite`, `[...]`, is `False`, and negative τ are replaced by 0. There are first
        and second derivatives, but no third ones.
      with_derivatives: pass `False` to save time if `signed` and no derivatives are needed.
    """

    def __init__(
        self, chain: Chain, tau: tf.Tensor, signed: bool = False, with_derivatives: bool = True
    ):
        self.chain, rho = chain, chain.rho
        self._options = signed, with_derivatives
        batch = ps.broadcast_shape(ps.shape(tau)[:-1], rho.batch_shape())
        steps = ps.concat([batch, [chain.num_steps]], axis=0)
        self.tau = tf.broadcast_to(tau, ps.concat([batch, [chain.size]], axis=0))

        def along(x: tf.Tensor) -> tf.Tensor:
            return tf.broadcast_to(rho.along_steps(x), steps)

        self.value, self.sign, self.log_q = along(rho.value), along(rho.sign), along(rho.log1m_rho2)
        self.signed_one_minus_abs = along(rho.signed_one_minus_abs)
        self.size, self.one_minus_size = (tf.broadcast_to(x, steps) for x in chain.abs_steps())
        self.q = tf.exp(self.log_q)
        self.left, self.positive_definite, self.tau = _from_left(
            self.tau, self.log_q, self.size, self.one_minus_size, *self._options
        )
        # The share of a site in the information about its coordinate from it and earlier sites.
        self.gain = _share(self.tau, 1.0 + self.left)
        self.one_minus_gain = _share(1.0 + self.left, self.tau)

    def right(self) -> tf.Tensor:
        """Returns r_t, `[..., d]`: like `left`, from the other end."""
        parts = (self.tau, self.log_q, self.size, self.one_minus_size)
        tau, log_q, size, one_minus_size = (x[..., ::-1] for x in parts)
        return _from_left(tau, log_q, size, one_minus_size, *self._options)[0][..., ::-1]

    def log_det(self) -> tf.Tensor:
        """`log det(I + C diag(τ))`, with the correlation matrix C of the chain: `[...]`."""
        return tf.reduce_sum(tf.math.log1p(self.tau / (1.0 + self.left)), axis=-1)

    def innovations(self, w: tf.Tensor) -> tf.Tensor:
        """`w_t - E[w_t | the sites before t]`, for sites that observe w, `[..., d]`."""
        # Computed as (w_t - ρ w_(t-1)) + ρ (1 - gain) e_(t-1), where the difference of nearly equal
        # neighbours is exact.
        before = w[..., :-1]
        steps = (w[..., 1:] - self.sign * before) + self.signed_one_minus_abs * before
        first = tf.broadcast_to(w[..., :1], ps.concat([ps.shape(steps)[:-1], [1]], axis=0))
        gain, one_minus_gain = self.gain[..., :-1], self.one_minus_gain[..., :-1]
        coefficients = Coefficients(
            self.value * one_minus_gain, self.one_minus_size + self.size * gain
        )
        return recurrence.step_recurrence(tf.concat([first, steps], axis=-1), coefficients)

    def predicted(self, h: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
        """E[w_t | the sites before t], `[..., d]`, for sites that observe w, where h = τ w."""
        known = 1.0 + self.left + self.tau
        filtered = self._precision_times_mean(self.left + self.tau, h) / known
        # Where w is known almost exactly, this keeps its last digit.
        sharp = w - self.one_minus_gain * self.innovations(w)
        filtered = tf.where(self.tau > 1.0 + self.left, sharp, filtered)
        return recurrence.pad(self.value * filtered[..., :-1], 1, 0)

    def relative_precision(self) -> tf.Tensor:
        """Inverse variance of an observation of w_t given earlier observations, `[..., d]`."""
        return self.gain * (1.0 + self.left)

    def log_normalizer(self, h: tf.Tensor) -> tf.Tensor:
        """`log ∫ chain(w) Π_t exp(h_t w_t - ½ τ_t w_t²) dw`, `[...]`."""
        m = (self.left + self.tau)[..., :-1]
        known = self._precision_times_mean(self.left + self.tau, h)
        squares = tf.square(known[..., :-1]) * self.q / (1.0 + self.q * m)
        last = tf.square(known[..., -1:]) / (1.0 + (self.left + self.tau)[..., -1:])
        quadratic = tf.reduce_sum(tf.concat([squares, last], axis=-1), axis=-1)
        return 0.5 * (quadratic - self.log_det())

    def _precision_times_mean(
        self, precision: tf.Tensor, h: tf.Tensor, reverse: bool = False
    ) -> tf.Tensor:
        """Precision times mean of each coordinate, from its own site and all on one side."""
        m = precision[..., 1:] if reverse else precision[..., :-1]
        n = 1.0 / (1.0 + self.q * m)
        steps = Coefficients(self.value * n, (self.one_minus_size + self.q * m) * n)
        return recurrence.step_recurrence(h, steps, reverse)

    def _moments(
        self, h: tf.Tensor, w: tf.Tensor | None, right: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns `right`, `_precision_times_mean` from the right, and the posterior mean."""
        right = self.right() if right is None else right
        left, tau, q = self.left, self.tau, self.q
        m, s = (left + tau)[..., :-1], (right + tau)[..., 1:]
        from_left = self._precision_times_mean(left + tau, h)
        from_right = self._precision_times_mean(right + tau, h, reverse=True)
        of_others = recurrence.pad(from_left[..., :-1] * self.value / (1.0 + q * m), 1, 0)
        of_others += recurrence.pad(from_right[..., 1:] * self.value / (1.0 + q * s), 0, 1)
        rest = 1.0 + left + right
        mean = (of_others + h) / (rest + tau)
        if w is not None:
            # Where w is known almost exactly, this keeps its last digit.
            mean = tf.where(tau > rest, w + (of_others - rest * w) / (rest + tau), mean)
        return right, from_right, mean

    def posterior(
        self, h: tf.Tensor, w: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns mean and standard deviation of w_t, `[..., d]`, and `fisher_z`, `[..., d - 1]`.

        Args:
          h: `[..., d]`, the linear coefficients of the sites: τ w for observations w.
          w: the observations, if the sites are observations.
        """
        right, _, mean = self._moments(h, w)
        m, s = (self.left + self.tau)[..., :-1], (right + self.tau)[..., 1:]
        half_log = 0.5 * (tf.math.log1p(m) + tf.math.log1p(s * ((1.0 + self.q * m) / (1.0 + m))))
        stddev = tf.math.rsqrt(1.0 + self.left + self.tau + right)
        return mean, stddev, _shrunk_fisher_z(self.chain.rho, half_log)

    def kl_terms(self, h: tf.Tensor, w: tf.Tensor | None = None) -> tf.Tensor:
        """Returns the terms of KL(posterior ‖ chain), `[..., d]`, accurate where ρ rounds to ±1.

        There, a KL computed from the rounded parameters of the two distributions would be wrong.
        """
        right, from_right, mean = self._moments(h, w)
        s, q = right + self.tau, recurrence.pad(self.q, 1, 0, value=1.0)
        x, n = q * s, 1.0 / (1.0 + q * s)
        variance = 1.0 / (1.0 + self.left + s)
        value = recurrence.pad(self.value, 1, 0)
        before = recurrence.pad(tf.sqrt(self.q * variance[..., :-1]), 1, 0)
        shift = self._whitened(mean, s, from_right)
        excess = tf.math.log1p(x) - x * n
        return 0.5 * (excess + tf.square(value * s * before * n) + tf.square(shift))

    def whitened_mean(
        self, h: tf.Tensor, right: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the posterior mean and its innovations (whitened by the chain), `[..., d]`.

        The innovations are accurate even where those of the rounded mean are not.

        Args:
          h: as for `posterior`.
          right: the result of `right`, if already computed.
        """
        right, from_right, mean = self._moments(h, None, right)
        return mean, self._whitened(mean, right + self.tau, from_right)

    def _whitened(self, mean: tf.Tensor, s: tf.Tensor, from_right: tf.Tensor) -> tf.Tensor:
        root = recurrence.pad(tf.exp(0.5 * self.log_q), 1, 0, value=1.0)
        predicted = recurrence.pad(self.value * mean[..., :-1], 1, 0)
        return root * (from_right - s * predicted) / (1.0 + tf.square(root) * s)


def _shrunk_fisher_z(rho: LagOneCorrelation, half_log: tf.Tensor) -> tf.Tensor:
    """Computes `asinh(sinh(fisher_z) e^(-half_log))`, even where sinh overflows."""
    log_sinh = rho.log_abs - 0.5 * rho.log1m_rho2  # of |u|: |ρ| / √(1-ρ²)
    x = rho.along_steps(log_sinh) - half_log
    is_large = x > 0.0
    large = tf.maximum(x, 0.0)
    large += tf.math.log1p(tf.sqrt(1.0 + tf.exp(-2.0 * large)))
    sinh = rho.value * tf.exp(tf.minimum(-0.5 * rho.log1m_rho2, 40.0))
    small = rho.along_steps(sinh) * tf.exp(-half_log)
    small = tf.math.asinh(tf.where(is_large, tf.zeros_like(small), small))
    return tf.where(is_large, rho.along_steps(rho.sign) * large, small)

"""KL divergences and log-densities of the family, in total and per coordinate."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd
from tensorflow_probability.python.distributions.independent import _Independent
from tensorflow_probability.python.distributions.sample import _Sample
from tensorflow_probability.python.internal import dtype_util, tensorshape_util
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1 import recurrence
from tfp_ar1._backend import elementwise_gradient, expm1
from tfp_ar1.correlation import LagOneCorrelation, compare
from tfp_ar1.distributions.gaussian_markov_chain import GaussianMarkovChain
from tfp_ar1.linear_operators.chain import Chain, log_abs, total, widened
from tfp_ar1.linear_operators.markov_cholesky import LinearOperatorMarkovCholesky, with_tensors

__all__ = ["kl_terms", "log_prob_terms"]

# For normals p and q with means m and r, KL(p ‖ q) = ½ [tr(C_q⁻¹ C_p) - d + log|C_q| - log|C_p|]
# + ½ |L_q⁻¹ (m - r)|². Between two chains the bracket follows from the chain rule of the KL: one
# term for the first coordinate, and for each later one the KL between its distributions under p and
# q given the previous coordinate. Their variances are v_t = σ_t² (1 - ρ_t²), and with
# r_t = σ_t(p) / σ_t(q) their means differ by
#
#     [ρ_t(p) r_t - ρ_t(q) r_(t-1)] σ_t(q)
#
# times a standard normal variable, plus the contribution of `loc`. Hence the terms
#
#     t = 0:  ½ excess(log r_0²)
#     t ≥ 1:  ½ excess(log v_t(p) / v_t(q)) + ½ [ρ_t(p) r_t - ρ_t(q) r_(t-1)]² / (1 - ρ_t(q)²)
#
# with excess(v) = exp(v) - 1 - v ≥ 0. No term is negative, so their sum loses nothing to
# cancellation when p and q are close. Independent normals are the chain with ρ = 0.


@elementwise_gradient
def _excess(v: tf.Tensor) -> tf.Tensor:
    """`exp(v) - 1 - v`, and its derivatives, to full relative accuracy."""
    exp_minus_1 = expm1(v)
    # The series of 1 - v / expm1(v), cut after two terms, has relative error v³ / 360; the
    # difference has eps / v. They are equal at the bound, where both are 2e-6 in float32.
    bound = (360.0 * float(np.spacing(dtype_util.as_numpy_dtype(v.dtype)(1)))) ** 0.25
    near_zero = exp_minus_1 * v * (0.5 - v / 12.0)
    value = tf.where(tf.math.abs(v) < bound, near_zero, exp_minus_1 - v)
    return value, lambda dy: dy * expm1(v)


def _log_ratio(scale: tf.Tensor | None, other: tf.Tensor | None, dtype: tf.DType) -> tf.Tensor:
    """`log |scale / other|`, to full relative accuracy where the two are close; `None` means 1."""
    if other is None:
        return tf.zeros([1], dtype) if scale is None else log_abs(scale)
    if scale is None:
        return -log_abs(other)
    scale, other = tf.math.abs(scale), tf.math.abs(other)
    # The difference of numbers within a factor of 2 is exact. For ratios far below 1, use logs.
    is_near = scale > 0.5 * other
    relative = tf.where(is_near, (scale - other) / other, tf.zeros([], dtype))
    return tf.where(is_near, tf.math.log1p(relative), tf.math.log(scale) - tf.math.log(other))


class _Operand(NamedTuple):
    """A chain, or independent normals; `[..., d]`, or `[..., 1]` if coordinates are equal."""

    loc: tf.Tensor
    scale: tf.Tensor | None  # the standard deviations, of either sign; `None` if all are 1
    chain: Chain | None

    def rho(self) -> LagOneCorrelation | None:
        """The correlations, or `None` for independent normals."""
        return None if self.chain is None else self.chain.rho

    def log1m_rho2(self) -> tf.Tensor | float:
        """`log(1 - ρ_t²)`, `[..., 1 or d - 1]`."""
        rho = self.rho()
        return 0.0 if rho is None else rho.along_steps(rho.log1m_rho2)

    def whiten(self, x: tf.Tensor) -> tf.Tensor:
        """`L⁻¹ x`."""
        if self.chain is None:
            return x if self.scale is None else x / self.scale
        return self.chain.solvevec(x)

    def squared_norm_of_whitened(self, x: tf.Tensor) -> tf.Tensor:
        """`|L⁻¹ x|²`."""
        if self.chain is None:
            return recurrence.sum_of_squares(self.whiten(x))
        return self.chain.squared_norm_of_solvevec(x)


_DIAGONAL_OPERATORS = (
    tf.linalg.LinearOperatorDiag,
    tf.linalg.LinearOperatorIdentity,
    tf.linalg.LinearOperatorScaledIdentity,
)


def _is_operand(distribution: tfd.Distribution) -> bool:
    """Whether `_operand` accepts the distribution; reads no variables."""
    if isinstance(distribution, _Independent | _Sample):
        is_vector = tensorshape_util.rank(distribution.event_shape) in (1, None)
        return is_vector and isinstance(distribution.distribution, tfd.Normal)
    if isinstance(distribution, GaussianMarkovChain):
        return True
    is_normal = isinstance(distribution, tfd.MultivariateNormalLinearOperator)
    return is_normal and isinstance(distribution.scale, _DIAGONAL_OPERATORS)


def _operand(distribution: tfd.Distribution) -> _Operand:
    """Converts a distribution for which `_is_operand` is true."""
    chain = None
    if isinstance(distribution, GaussianMarkovChain):
        chain = distribution.scale.chain().widened()
        loc, scale = _loc(distribution), chain.scale
    elif isinstance(distribution, _Independent | _Sample):
        loc, scale = _loc_and_scale_of_iid_or_independent(distribution)
    else:
        operator = distribution.scale
        if isinstance(operator, tf.linalg.LinearOperatorDiag):
            scale = tf.convert_to_tensor(operator.diag)
        elif isinstance(operator, tf.linalg.LinearOperatorScaledIdentity):
            scale = tf.convert_to_tensor(operator.multiplier)[..., tf.newaxis]
        else:
            scale = None
        loc = _loc(distribution)
    return _Operand(widened(loc), None if scale is None else widened(scale), chain)


def _loc_and_scale_of_iid_or_independent(
    distribution: tfd.Distribution,
) -> tuple[tf.Tensor, tf.Tensor]:
    normal = distribution.distribution
    loc, scale = tf.convert_to_tensor(normal.loc), tf.convert_to_tensor(normal.scale)
    if isinstance(distribution, _Sample):
        return loc[..., tf.newaxis], scale[..., tf.newaxis]
    if tensorshape_util.rank(scale.shape) is None:
        scale = tf.broadcast_to(scale, normal.batch_shape_tensor())
    return loc, scale[tf.newaxis] if tensorshape_util.rank(scale.shape) == 0 else scale


def _loc(distribution: tfd.MultivariateNormalLinearOperator) -> tf.Tensor:
    if isinstance(distribution, GaussianMarkovChain):
        return distribution._loc_along_event()
    if distribution.loc is None:
        return tf.zeros([], distribution.dtype)
    return tf.convert_to_tensor(distribution.loc)


def _check_event_sizes(p: tfd.Distribution, q: tfd.Distribution) -> list[Any]:
    """Rejects events of different shapes; returns assertions for sizes not known statically."""
    message = "KL divergence needs two distributions over vectors of the same size"
    if not tensorshape_util.is_compatible_with(p.event_shape, q.event_shape):
        raise ValueError(
            f"{message}; got event shape {p.event_shape} of `{p.name}` and {q.event_shape} of "
            f"`{q.name}`."
        )
    if tensorshape_util.is_fully_defined(p.event_shape) and tensorshape_util.is_fully_defined(
        q.event_shape
    ):
        return []
    return [
        tf.debugging.assert_equal(p.event_shape_tensor(), q.event_shape_tensor(), f"{message}.")
    ]


def _difference_of_locs(p: _Operand, q: _Operand, size: Any) -> tf.Tensor:
    """Returns the difference `[..., d]`, even if neither has an entry for each coordinate."""
    difference = p.loc - q.loc
    if difference.shape[-1:] == [size]:
        return difference
    return tf.broadcast_to(difference, ps.concat([ps.shape(difference)[:-1], [size]], axis=0))


class _CovarianceTerms(NamedTuple):
    """The terms of twice the KL, except those of `loc`; a last axis of size 1 if all are equal."""

    of_first: tf.Tensor | None  # [..., 1]
    of_steps: tf.Tensor | None  # [..., 1 or d - 1]
    of_coordinates: tf.Tensor | None  # [..., 1 or d]

    def total(self, size: Any) -> tf.Tensor:
        """Returns their sum over the path, `[...]`."""
        counts = (ps.minimum(size, 1), ps.maximum(size - 1, 0), size)
        return sum(total(x, n) for x, n in zip(self, counts, strict=True) if x is not None)

    def along_operand(self, size: Any) -> tf.Tensor:
        """Returns the terms by coordinate, `[..., d]`."""
        result = self.of_coordinates
        if self.of_first is not None:
            is_first = tf.equal(tf.range(size), 0)
            result = tf.where(is_first, self.of_first, tf.zeros([], self.of_first.dtype))
        if self.of_steps is not None:
            shape = ps.concat([ps.shape(self.of_steps)[:-1], [ps.maximum(size - 1, 0)]], axis=0)
            result += recurrence.pad(tf.broadcast_to(self.of_steps, shape), 1, 0)
        return result


def _covariance_terms(p: _Operand, q: _Operand, size: Any) -> _CovarianceTerms:
    log_ratio = 2.0 * _log_ratio(p.scale, q.scale, p.loc.dtype)
    if p.chain is None and q.chain is None:
        return _CovarianceTerms(None, None, _excess(log_ratio))
    if q.chain is None:
        # The term of a step has two parts: r_t² ρ_t² and the excess of r_t² (1 - ρ_t²).
        return _CovarianceTerms(None, -p.log1m_rho2(), _excess(log_ratio))
    shared = log_ratio.shape[-1] == 1
    if shared:
        later = earlier = log_ratio
    else:
        # An unknown size may be 1, shared by all coordinates.
        shape = ps.concat([ps.shape(log_ratio)[:-1], [size]], axis=0)
        log_ratio = tf.broadcast_to(log_ratio, shape)
        later, earlier = log_ratio[..., 1:], log_ratio[..., :-1]
    rho_p, rho_q = p.rho(), q.chain.rho
    # The effect of the previous coordinate through ρ_t(q), in units of the innovation under q.
    before = rho_q.along_steps(rho_q.value * rho_q.inverse_unit_innovation_scale)
    before *= tf.math.exp(0.5 * earlier)
    if rho_p is None:
        step, drift = later - q.log1m_rho2(), -before
    else:
        log_ratio_of_steps, difference = compare(rho_p, rho_q)
        step, drift = later + log_ratio_of_steps, difference * tf.math.exp(0.5 * later)
        if not shared:
            drift += before * expm1(0.5 * (later - earlier))
    return _CovarianceTerms(
        _excess(log_ratio[..., :1]), _excess(step) + tf.math.square(drift), None
    )


def _terms_from_observations(p: tfd.Distribution, q: tfd.Distribution) -> tf.Tensor | None:
    """Returns the KL terms of a posterior p to its prior q; `None` if q is not its prior."""
    terms = p._kl_terms_to(q) if isinstance(p, GaussianMarkovChain) else None
    return None if terms is None else tf.cast(terms, p.dtype)


def kl_terms(p: tfd.Distribution, q: tfd.Distribution) -> tf.Tensor:
    """Returns the terms of the chain rule of the KL divergence along the path, in nats.

    Entry t is the KL divergence of coordinate t given the coordinate before it, averaged over that
    coordinate under p. The sum of the first n entries is the KL divergence of the first n
    coordinates.

    Args:
      p: a `GaussianMarkovChain`, or a vector of independent normals: `MultivariateNormalDiag`,
        `Independent` or `Sample` of `tfd.Normal`.
      q: another such distribution over the same events.

    Returns:
      Tensor `[..., d]`, non-negative; its sum along the last axis is `tfd.kl_divergence(p, q)`.

    Raises:
      TypeError: if `p` or `q` is not such a distribution.
      ValueError: if their events differ in shape.
    """
    with tf.name_scope("kl_terms"), tf.control_dependencies(_check_event_sizes(p, q)):
        p_side, q_side = _checked_operand(p), _checked_operand(q)
        from_observations = _terms_from_observations(p, q)
        if from_observations is not None:
            return from_observations
        size = _event_size(p, q)
        squares = tf.square(q_side.whiten(_difference_of_locs(p_side, q_side, size)))
        terms = 0.5 * (_covariance_terms(p_side, q_side, size).along_operand(size) + squares)
        return tf.cast(terms, p.dtype)


def log_prob_terms(distribution: tfd.Distribution, x: Any) -> tf.Tensor:
    """Returns the log-density of each coordinate given the one before it, in nats.

    The sum of the first n entries is the log-density of the first n coordinates.

    Args:
      distribution: a `GaussianMarkovChain` or a vector of independent normals, as for `kl_terms`.
      x: floating-point tensor `[..., d]`.

    Returns:
      Tensor `[..., d]`; its sum along the last axis is `distribution.log_prob(x)`.

    Raises:
      TypeError: if the distribution is not one of these.
    """
    with tf.name_scope("log_prob_terms"):
        path = _checked_operand(distribution)
        x = tf.convert_to_tensor(x, distribution.dtype)
        whitened = path.whiten(widened(x) - path.loc)
        scale = path.scale if path.chain is None else path.chain.diag_part()
        log_scale = 0.0 if scale is None else log_abs(scale)
        terms = -0.5 * (tf.square(whitened) + math.log(2.0 * math.pi)) - log_scale
        return tf.cast(terms, distribution.dtype)


def _checked_operand(distribution: tfd.Distribution) -> _Operand:
    if not _is_operand(distribution):
        raise TypeError(
            f"Expected a `GaussianMarkovChain` or a vector of independent normals; got "
            f"{distribution!r}."
        )
    return _operand(distribution)


def _event_size(*distributions: tfd.Distribution) -> Any:
    """Returns the common event size, as a Python integer if it is known statically."""
    for distribution in distributions:
        size = tf.compat.dimension_value(distribution.event_shape[-1])
        if size is not None:
            return size
    return distributions[0].event_shape_tensor()[-1]


@tfd.RegisterKL(GaussianMarkovChain, GaussianMarkovChain)
@tfd.RegisterKL(GaussianMarkovChain, _Independent)
@tfd.RegisterKL(GaussianMarkovChain, _Sample)
@tfd.RegisterKL(GaussianMarkovChain, tfd.MultivariateNormalLinearOperator)
@tfd.RegisterKL(_Independent, GaussianMarkovChain)
@tfd.RegisterKL(_Sample, GaussianMarkovChain)
@tfd.RegisterKL(tfd.MultivariateNormalLinearOperator, GaussianMarkovChain)
def _kl_divergence(p: tfd.Distribution, q: tfd.Distribution, name: str | None = None) -> tf.Tensor:
    """Returns the KL of two normals, one of them a chain; O(d) if the other is a chain or diagonal.

    Equation 6 of the ρ-VAE paper is the case of AR(1) and N(0, I).
    """
    name = name or "kl_gaussian_markov_chain"
    with tf.name_scope(name), tf.control_dependencies(_check_event_sizes(p, q)):
        if not (_is_operand(p) and _is_operand(q)):
            _check_normal(p, q)
            return _kl_through_factors(p, q)
        from_observations = _terms_from_observations(p, q)
        if from_observations is not None:
            return tf.reduce_sum(from_observations, axis=-1)
        p_side, q_side = _operand(p), _operand(q)
        size = _event_size(p, q)
        of_covariance = _covariance_terms(p_side, q_side, size).total(size)
        of_loc = q_side.squared_norm_of_whitened(_difference_of_locs(p_side, q_side, size))
        return tf.cast(0.5 * (of_covariance + of_loc), p.dtype)


def _check_normal(*distributions: tfd.Distribution) -> None:
    """Raises `NotImplementedError`, like TFP, unless all are normals over vectors."""
    for distribution in distributions:
        if isinstance(distribution, _Independent | _Sample) and not _is_operand(distribution):
            raise NotImplementedError(
                f"No KL divergence is known between a Gaussian Markov chain and "
                f"`{type(distribution).__name__}` of `{type(distribution.distribution).__name__}` "
                f"with event shape {distribution.event_shape}; only vectors of `tfd.Normal`s have "
                f"one."
            )


def _kl_through_factors(
    p: tfd.MultivariateNormalLinearOperator, q: tfd.MultivariateNormalLinearOperator
) -> tf.Tensor:
    """Returns the KL of two normals, one of them a chain, by tr(C_q⁻¹ C_p) = |L_q⁻¹ L_p|².

    Neither covariance is formed. O(d r²) if the other scale is diagonal plus an update of rank r;
    otherwise one solve with q's scale for each of the d columns of p's: O(d²) if q is the chain.
    """
    p_scale, q_scale = (with_tensors(d.scale) for d in (p, q))
    if _is_diagonal_plus_low_rank(p_scale):
        trace = _trace_low_rank_chain(p_scale, q_scale)
    elif _is_diagonal_plus_low_rank(q_scale):
        trace = _trace_chain_low_rank(p_scale, q_scale)
    else:
        trace = _squared_norm(q_scale.solve(p_scale.to_dense()))
    size = tf.cast(p_scale.domain_dimension_tensor(), p.dtype)
    log_dets = q_scale.log_abs_determinant() - p_scale.log_abs_determinant()
    of_loc = recurrence.sum_of_squares(q_scale.solvevec(_loc(p) - _loc(q)))
    return 0.5 * (trace - size + of_loc) + log_dets


def _squared_norm(matrix: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.square(matrix), axis=[-2, -1])


def _is_diagonal_plus_low_rank(scale: tf.linalg.LinearOperator) -> bool:
    return isinstance(scale, tf.linalg.LinearOperatorLowRankUpdate) and isinstance(
        scale.base_operator, _DIAGONAL_OPERATORS
    )


def _trace_low_rank_chain(
    p_scale: tf.linalg.LinearOperatorLowRankUpdate, q_scale: LinearOperatorMarkovCholesky
) -> tf.Tensor:
    """|L⁻¹ (D + U M Vᵀ)|² with L of a chain, D diagonal, and U, V with r columns: O(d r²)."""
    chain = q_scale.chain()
    diagonal, update = p_scale.base_operator.diag_part(), p_scale.diag_operator.matmul
    # Row t of L⁻¹ D has the entries D_t / σ_t and -ρ_t D_(t-1) / σ_(t-1), over √(1 - ρ_t²).
    relative = tf.square(diagonal / chain.scale)
    value, inverse_scale = (
        tf.square(chain.rho.along_steps(x))
        for x in (chain.rho.value, chain.rho.inverse_unit_innovation_scale)
    )
    later = (relative[..., 1:] + value * relative[..., :-1]) * inverse_scale
    of_diagonal = relative[..., 0] + tf.reduce_sum(later, axis=-1)
    solved = q_scale.solve(p_scale.u)
    mixed = q_scale.solve(solved, adjoint=True) * diagonal[..., tf.newaxis]
    v = tf.linalg.matrix_transpose(update(p_scale.v, adjoint_arg=True))
    cross = tf.reduce_sum(mixed * v, axis=[-2, -1])
    of_update = _sum_of_product_of_grams(solved, v)
    return of_diagonal + 2.0 * cross + of_update


def _trace_chain_low_rank(
    p_scale: LinearOperatorMarkovCholesky, q_scale: tf.linalg.LinearOperatorLowRankUpdate
) -> tf.Tensor:
    """|(D + U M Vᵀ)⁻¹ L|² by the Woodbury identity, with L of a chain: O(d r²).

    With Y = D⁻¹ V and K = M⁻¹ + Yᵀ U, the inverse is D⁻¹ - D⁻¹ U K⁻¹ Yᵀ.
    """
    diagonal = q_scale.base_operator.diag_part()[..., tf.newaxis]
    ratio = p_scale.chain().scale / diagonal[..., 0]
    of_diagonal = tf.reduce_sum(tf.square(ratio), axis=-1)
    y = q_scale.v / diagonal
    capacitance = recurrence.matmul(y, q_scale.u, transpose_a=True)
    capacitance += q_scale.diag_operator.inverse().to_dense()
    # D⁻¹ U K⁻¹, from its transpose.
    correction = tf.linalg.matrix_transpose(
        tf.linalg.solve(capacitance, tf.linalg.matrix_transpose(q_scale.u / diagonal), adjoint=True)
    )
    projected = p_scale.matmul(y, adjoint=True)
    cross = tf.reduce_sum(p_scale.matmul(correction / diagonal, adjoint=True) * projected, [-2, -1])
    return of_diagonal - 2.0 * cross + _sum_of_product_of_grams(correction, projected)


def _sum_of_product_of_grams(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """|x yᵀ|² for x and y `[..., d, r]`, in O(d r²)."""
    gram = (recurrence.matmul(z, z, transpose_a=True) for z in (x, y))
    return tf.reduce_sum(tf.math.multiply(*gram), axis=[-2, -1])

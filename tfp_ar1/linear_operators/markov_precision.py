"""`LinearOperator`s acting like the precision of a Gaussian Markov chain, and its factor."""

from __future__ import annotations

import tensorflow as tf
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1._backend import LinearOperatorTridiag, composite_tensor, is_adjoint_pair
from tfp_ar1.linear_operators.chain import Chain
from tfp_ar1.linear_operators.markov_cholesky import (
    POSITIVE_DEFINITE,
    LinearOperatorMarkovCholesky,
    LinearOperatorMarkovCovariance,
    with_tensors,
)

__all__ = ["LinearOperatorMarkovPrecision", "LinearOperatorMarkovPrecisionCholesky"]


class _FromCholesky(LinearOperatorTridiag):
    """Base class of tridiagonal operators defined by the Cholesky factor L of a covariance.

    The diagonals are for callers that ask for them. `LinearOperatorTridiag` computes from them,
    often through a dense matrix; the subclasses here compute from L instead.
    """

    def __init__(
        self, scale: LinearOperatorMarkovCholesky, diagonals: tf.Tensor, hints: dict, name: str
    ):
        self._scale = scale
        super().__init__(diagonals=diagonals, diagonals_format="compact", name=name, **hints)
        # The base class recorded its own arguments.
        self._parameters = {"scale": scale, **hints, "name": name}

    @property
    def scale(self) -> LinearOperatorMarkovCholesky:
        """The Cholesky factor of the covariance."""
        return self._scale

    def _shape(self) -> tf.TensorShape:
        # More complete than the diagonals' shape if the size is unknown.
        return self._scale.shape

    def _determinant(self) -> tf.Tensor:
        return tf.math.exp(self._log_abs_determinant())

    @property
    def _composite_tensor_fields(self) -> tuple[str, ...]:
        return ("scale",)

    @property
    def _experimental_parameter_ndims_to_matrix_ndims(self) -> dict[str, int]:
        return {"scale": 0}


@composite_tensor
class LinearOperatorMarkovPrecision(_FromCholesky):
    """`LinearOperatorTridiag` acting like the precision matrix C⁻¹ of a Gaussian Markov chain.

    With standard deviations σ_t and lag-one correlations ρ_t of a `Chain`,

    ```none
    C⁻¹[t, t]     = (1 / (1 - ρ_t²) + ρ_(t+1)² / (1 - ρ_(t+1)²)) / σ_t²,    where ρ_0 = ρ_d = 0
    C⁻¹[t, t - 1] = -ρ_t / ((1 - ρ_t²) σ_t σ_(t-1))
    ```

    For AR(1) this is 1 / (σ² (1 - ρ²)) times a matrix with 1 + ρ² on the diagonal, except for 1 at
    its two ends, and -ρ next to the diagonal.

    Where `LinearOperatorTridiag` forms a dense matrix, O(d³), this operator has a closed form:
    `determinant` and `log_abs_determinant` are O(d) or less; `matmul` and `solve` are O(d) per
    column, through the Cholesky factor L of the covariance, `C = L Lᵀ`, and broadcast against their
    arguments; `cholesky` is a `LinearOperatorMarkovPrecisionCholesky` and `inverse` a
    `LinearOperatorMarkovCovariance`.

    Args:
      scale: the `LinearOperatorMarkovCholesky` L. The constructor computes the diagonals, so
        variables are read then.
      name: a name for this operator.
      **hints: as for every `tf.linalg.LinearOperator`; default to `True`.
    """

    def __init__(
        self,
        scale: LinearOperatorMarkovCholesky,
        name: str = "LinearOperatorMarkovPrecision",
        **hints: bool | None,
    ):
        hints = {**POSITIVE_DEFINITE, **hints}
        with tf.name_scope(name):
            scale = with_tensors(scale)
            super().__init__(scale, _diagonals(scale), hints, name)

    def _matmul(self, x: tf.Tensor, adjoint: bool = False, adjoint_arg: bool = False) -> tf.Tensor:
        # As L⁻ᵀ L⁻¹ x, because tf.linalg.tridiagonal_matmul does not broadcast.
        whitened = self._scale.solve(x, adjoint_arg=adjoint_arg)
        return self._scale.solve(whitened, adjoint=True)

    def _log_abs_determinant(self) -> tf.Tensor:
        return -2.0 * self._scale.log_abs_determinant()

    def _solve(self, rhs: tf.Tensor, adjoint: bool = False, adjoint_arg: bool = False) -> tf.Tensor:
        solution = self._scale.matmul(rhs, adjoint=True, adjoint_arg=adjoint_arg)
        return self._scale.matmul(solution)

    def _linop_cholesky(self) -> LinearOperatorMarkovPrecisionCholesky:
        return LinearOperatorMarkovPrecisionCholesky(self._scale)

    def _linop_inverse(self) -> LinearOperatorMarkovCovariance:
        return LinearOperatorMarkovCovariance(self._scale)


@composite_tensor
class LinearOperatorMarkovPrecisionCholesky(_FromCholesky):
    """`LinearOperatorTridiag` acting like the Cholesky factor K of the precision, `C⁻¹ = K Kᵀ`.

    Run backwards, from the last coordinate to the first, a Gaussian Markov chain has the same
    correlations; Kᵀ, upper bidiagonal, whitens it. `matmul`, `solve` and their adjoints cost O(d)
    per column, `log_abs_determinant` and `determinant` O(d) or less, and `K @ K.adjoint()` is the
    `LinearOperatorMarkovPrecision`. The operator is a `precision_factor` for
    `tfp.experimental.distributions.MultivariateNormalPrecisionFactorLinearOperator`.

    Args:
      scale: the `LinearOperatorMarkovCholesky` L of the covariance, `C = L Lᵀ`. The constructor
        computes the diagonals, so variables are read then.
      name: a name for this operator.
      **hints: as for every `tf.linalg.LinearOperator`; `is_non_singular` and `is_square` default to
        `True`.
    """

    def __init__(
        self,
        scale: LinearOperatorMarkovCholesky,
        name: str = "LinearOperatorMarkovPrecisionCholesky",
        **hints: bool | None,
    ):
        hints = {"is_non_singular": True, "is_square": True, **hints}
        with tf.name_scope(name):
            scale = with_tensors(scale)
            inverse_scale, below, sigma = _steps(scale)
            last = tf.ones_like(sigma[..., :1])
            diagonal = tf.concat([inverse_scale, last], axis=-1) / sigma
            below = tf.concat([tf.zeros_like(last), -below / sigma[..., 1:]], axis=-1)
            diagonals = tf.stack([tf.zeros_like(diagonal), diagonal, below], axis=-2)
            super().__init__(scale, diagonals, hints, name)

    def _matmul(self, x: tf.Tensor, adjoint: bool = False, adjoint_arg: bool = False) -> tf.Tensor:
        return self._scale._by_columns(_solve_backwards, x, not adjoint, adjoint_arg)

    def _solve(self, rhs: tf.Tensor, adjoint: bool = False, adjoint_arg: bool = False) -> tf.Tensor:
        return self._scale._by_columns(_multiply_backwards, rhs, not adjoint, adjoint_arg)

    def _log_abs_determinant(self) -> tf.Tensor:
        return -self._scale.log_abs_determinant()

    def _linop_matmul(
        self, left_operator: tf.linalg.LinearOperator, right_operator: tf.linalg.LinearOperator
    ) -> tf.linalg.LinearOperator:
        if is_adjoint_pair(left_operator, right_operator):
            return LinearOperatorMarkovPrecision(self._scale)
        return super()._linop_matmul(left_operator, right_operator)


def _multiply_backwards(chain: Chain, x: tf.Tensor, adjoint: bool) -> tf.Tensor:
    """`matvec` of the chain run from its last coordinate to its first."""
    return chain.reversed().matvec(x[..., ::-1], adjoint)[..., ::-1]


def _solve_backwards(chain: Chain, x: tf.Tensor, adjoint: bool) -> tf.Tensor:
    """`solvevec` of the chain run from its last coordinate to its first."""
    return chain.reversed().solvevec(x[..., ::-1], adjoint)[..., ::-1]


def _steps(scale: LinearOperatorMarkovCholesky) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`1/√(1 - ρ_t²)` and `ρ_t/√(1 - ρ_t²)`, `[..., d - 1]`, and σ_t, `[..., d]`, broadcast."""
    chain = scale.chain()
    batch_shape = scale._shape_tensor()[:-2]
    inverse_scale = chain.rho.along_steps(chain.rho.inverse_unit_innovation_scale)
    of_previous = chain.rho.along_steps(chain.rho.value) * inverse_scale
    steps = ps.concat([batch_shape, [chain.num_steps]], axis=0)
    coordinates = ps.concat([batch_shape, [chain.size]], axis=0)
    return (
        tf.broadcast_to(inverse_scale, steps),
        tf.broadcast_to(of_previous, steps),
        tf.broadcast_to(chain.scale, coordinates),
    )


def _diagonals(scale: LinearOperatorMarkovCholesky) -> tf.Tensor:
    """Returns super-, main and subdiagonal of C⁻¹, `[..., 3, d]`, for `LinearOperatorTridiag`."""
    inverse_scale, of_previous, scale = _steps(scale)
    none = tf.zeros_like(scale[..., :1])
    to_previous = tf.concat([none + 1.0, tf.square(inverse_scale)], axis=-1)
    to_next = tf.concat([tf.square(of_previous), none], axis=-1)
    beside = -of_previous * inverse_scale / (scale[..., 1:] * scale[..., :-1])
    return tf.stack(
        [
            tf.concat([beside, none], axis=-1),
            (to_previous + to_next) / tf.square(scale),
            tf.concat([none, beside], axis=-1),
        ],
        axis=-2,
    )

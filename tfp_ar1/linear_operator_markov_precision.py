"""`LinearOperator` acting like the inverse of the covariance of a Gaussian Markov chain."""

from __future__ import annotations

import tensorflow as tf
from tensorflow.python.ops.linalg.linear_operator import make_composite_tensor
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1.linear_operator_markov_cholesky import LinearOperatorMarkovCholesky, with_tensors

__all__ = ["LinearOperatorMarkovPrecision"]


class LinearOperatorMarkovPrecision(tf.linalg.LinearOperatorTridiag):
    """`LinearOperatorTridiag` acting like the precision matrix C⁻¹ of a Gaussian Markov chain.

    With the standard deviations σ_t and the lag-one correlations ρ_t of a `Chain`,

    ```none
    C⁻¹[t, t]     = (1 / (1 - ρ_t²) + ρ_(t+1)² / (1 - ρ_(t+1)²)) / σ_t²,    where ρ_0 = ρ_d = 0
    C⁻¹[t, t - 1] = -ρ_t / ((1 - ρ_t²) σ_t σ_(t-1))
    ```

    and for AR(1) therefore 1 / (σ² (1 - ρ²)) times a matrix with 1 + ρ² on the diagonal, 1 at its
    two ends, and -ρ beside it.

    What `LinearOperatorTridiag` leaves to a dense matrix, O(d³), has a closed form here:
    `determinant` and `log_abs_determinant` are O(d) or less, `matmul` and `solve` are O(d) per
    column, through the Cholesky factor L of the covariance, `C = L Lᵀ`, and broadcast against their
    arguments; `cholesky` is a bidiagonal operator.

    Args:
      scale: the `LinearOperatorMarkovCholesky` L. The diagonals are computed when this operator is
        made, so variables are read then.
      is_non_singular: hint; true for every valid parameter, like the three below.
      is_self_adjoint: hint.
      is_positive_definite: hint.
      is_square: hint.
      name: a name for this operator.
    """

    def __init__(
        self,
        scale: LinearOperatorMarkovCholesky,
        is_non_singular: bool | None = True,
        is_self_adjoint: bool | None = True,
        is_positive_definite: bool | None = True,
        is_square: bool | None = True,
        name: str = "LinearOperatorMarkovPrecision",
    ):
        hints = {
            "is_non_singular": is_non_singular,
            "is_self_adjoint": is_self_adjoint,
            "is_positive_definite": is_positive_definite,
            "is_square": is_square,
        }
        with tf.name_scope(name):
            self._scale = with_tensors(scale)
            super().__init__(
                diagonals=_diagonals(self._scale), diagonals_format="compact", name=name, **hints
            )
            # The base class has recorded its own arguments.
            self._parameters = {"scale": scale, **hints, "name": name}

    @property
    def scale(self) -> LinearOperatorMarkovCholesky:
        """The Cholesky factor of the covariance."""
        return self._scale

    def _shape(self) -> tf.TensorShape:
        # More than the diagonals tell, where the size is unknown.
        return self._scale.shape

    def _matmul(self, x: tf.Tensor, adjoint: bool = False, adjoint_arg: bool = False) -> tf.Tensor:
        # As L⁻ᵀ L⁻¹ x: tf.linalg.tridiagonal_matmul does not broadcast.
        whitened = self._scale.solve(x, adjoint_arg=adjoint_arg)
        return self._scale.solve(whitened, adjoint=True)

    def _log_abs_determinant(self) -> tf.Tensor:
        return -2.0 * self._scale.log_abs_determinant()

    def _determinant(self) -> tf.Tensor:
        return tf.math.exp(self._log_abs_determinant())

    def _solve(self, rhs: tf.Tensor, adjoint: bool = False, adjoint_arg: bool = False) -> tf.Tensor:
        solution = self._scale.matmul(rhs, adjoint=True, adjoint_arg=adjoint_arg)
        return self._scale.matmul(solution)

    def _linop_cholesky(self) -> tf.linalg.LinearOperatorTridiag:
        # Run backwards, from the last coordinate to the first, the chain has the same correlations;
        # its whitening is an upper bidiagonal matrix U, and C⁻¹ = Uᵀ U.
        precision_scale, below, scale = _steps(self._scale)
        last = tf.ones_like(scale[..., :1])
        diagonal = tf.concat([precision_scale, last], axis=-1) / scale
        below = tf.concat([tf.zeros_like(last), -below / scale[..., 1:]], axis=-1)
        return tf.linalg.LinearOperatorTridiag(
            tf.stack([tf.zeros_like(diagonal), diagonal, below], axis=-2),
            is_non_singular=True,
            is_square=True,
        )

    @property
    def _composite_tensor_fields(self) -> tuple[str, ...]:
        return ("scale",)

    @property
    def _experimental_parameter_ndims_to_matrix_ndims(self) -> dict[str, int]:
        return {"scale": 0}


LinearOperatorMarkovPrecision = make_composite_tensor(
    LinearOperatorMarkovPrecision, module_name="tfp_ar1"
)


def _steps(scale: LinearOperatorMarkovCholesky) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`1/√(1 - ρ_t²)` and `ρ_t/√(1 - ρ_t²)`, `[..., d - 1]`, and σ_t, `[..., d]`, of one batch."""
    chain = scale.chain()
    batch_shape = scale.batch_shape if scale.shape.is_fully_defined() else None
    batch_shape = scale.batch_shape_tensor() if batch_shape is None else batch_shape.as_list()
    precision_scale = chain.rho.along_steps(chain.rho.innovation_precision_scale)
    of_previous = chain.rho.along_steps(chain.rho.value) * precision_scale
    steps = ps.concat([batch_shape, [chain.num_steps]], axis=0)
    coordinates = ps.concat([batch_shape, [chain.size]], axis=0)
    return (
        tf.broadcast_to(precision_scale, steps),
        tf.broadcast_to(of_previous, steps),
        tf.broadcast_to(chain.scale, coordinates),
    )


def _diagonals(scale: LinearOperatorMarkovCholesky) -> tf.Tensor:
    """Super-, main and subdiagonal of C⁻¹, `[..., 3, d]`, as `LinearOperatorTridiag` takes them."""
    precision_scale, of_previous, scale = _steps(scale)
    none = tf.zeros_like(scale[..., :1])
    to_previous = tf.concat([none + 1.0, tf.square(precision_scale)], axis=-1)
    to_next = tf.concat([tf.square(of_previous), none], axis=-1)
    beside = -of_previous * precision_scale / (scale[..., 1:] * scale[..., :-1])
    return tf.stack(
        [
            tf.concat([beside, none], axis=-1),
            (to_previous + to_next) / tf.square(scale),
            tf.concat([none, beside], axis=-1),
        ],
        axis=-2,
    )

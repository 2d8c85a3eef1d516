"""`LinearOperator` acting like the inverse of a first-order autoregressive covariance."""

from __future__ import annotations

import tensorflow as tf
from tensorflow.python.ops.linalg.linear_operator import make_composite_tensor
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1.linear_operator_ar1_cholesky import LinearOperatorAR1Cholesky, with_tensors

__all__ = ["LinearOperatorAR1Precision"]


class LinearOperatorAR1Precision(tf.linalg.LinearOperatorTridiag):
    """`LinearOperatorTridiag` acting like the precision matrix C⁻¹ of an AR(1) process.

    ```none
    C⁻¹ = 1 / (σ² (1 - ρ²)) * tridiagonal, with
          1 + ρ² on the diagonal, but 1 at its two ends, and -ρ beside it    (d = 1: 1 / σ²)
    ```

    What `LinearOperatorTridiag` leaves to a dense matrix, O(d³), has a closed form here:
    `determinant` and `log_abs_determinant` are O(1), `matmul` and `solve` are O(d) per column,
    through the Cholesky factor L of the covariance, `C = L Lᵀ`, and broadcast against their
    arguments; `cholesky` is a bidiagonal operator.

    Args:
      scale: the `LinearOperatorAR1Cholesky` L. The diagonals are computed when this operator is
        made, so variables are read then.
      is_non_singular: hint; true for every valid parameter, like the three below.
      is_self_adjoint: hint.
      is_positive_definite: hint.
      is_square: hint.
      name: a name for this operator.
    """

    def __init__(
        self,
        scale: LinearOperatorAR1Cholesky,
        is_non_singular: bool | None = True,
        is_self_adjoint: bool | None = True,
        is_positive_definite: bool | None = True,
        is_square: bool | None = True,
        name: str = "LinearOperatorAR1Precision",
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
    def scale(self) -> LinearOperatorAR1Cholesky:
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
        # Reversing the order of the coordinates leaves C⁻¹ = L⁻ᵀ L⁻¹ as it is, and turns the upper
        # factor L⁻ᵀ into a lower one.
        rho, scale = self._scale.read_parameters()
        step = (rho.innovation_precision_scale / scale)[..., tf.newaxis]
        ones = tf.ones(self.shape_tensor()[:-1], self.dtype)
        last = tf.equal(tf.range(ps.shape(ones)[-1]), ps.shape(ones)[-1] - 1)
        diagonal = tf.where(last, 1.0 / scale[..., tf.newaxis], step) * ones
        below = -rho.value[..., tf.newaxis] * step * ones
        return tf.linalg.LinearOperatorTridiag(
            tf.stack([tf.zeros_like(ones), diagonal, below], axis=-2),
            is_non_singular=True,
            is_square=True,
        )

    @property
    def _composite_tensor_fields(self) -> tuple[str, ...]:
        return ("scale",)

    @property
    def _experimental_parameter_ndims_to_matrix_ndims(self) -> dict[str, int]:
        return {"scale": 0}


LinearOperatorAR1Precision = make_composite_tensor(
    LinearOperatorAR1Precision, module_name="tfp_ar1"
)


def _diagonals(scale: LinearOperatorAR1Cholesky) -> tf.Tensor:
    """Super-, main and subdiagonal of C⁻¹, `[..., 3, d]`, as `LinearOperatorTridiag` takes them."""
    rho, marginal_scale = scale.read_parameters()
    step_precision = tf.square(rho.innovation_precision_scale / marginal_scale)[..., tf.newaxis]
    shape = scale.shape if scale.shape.is_fully_defined() else scale.shape_tensor()
    ones = tf.ones(shape[:-1], scale.dtype)
    size = ps.shape(ones)[-1]
    position = tf.range(size)
    # A coordinate has one such neighbour less at each end; with no neighbour at all its precision
    # is 1/σ² = (1 - ρ²) of that of a step.
    neighbours = tf.cast(position > 0, scale.dtype) + tf.cast(position < size - 1, scale.dtype)
    rho_squared = tf.square(rho.value)[..., tf.newaxis]
    diagonal = (1.0 + (neighbours - 1.0) * rho_squared) * step_precision * ones
    beside = -rho.value[..., tf.newaxis] * step_precision * ones
    return tf.stack([beside, diagonal, beside], axis=-2)

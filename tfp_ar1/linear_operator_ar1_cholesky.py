"""`LinearOperator` acting like the Cholesky factor of a first-order autoregressive covariance."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.ops.linalg.linear_operator import make_composite_tensor
from tensorflow_probability.python.internal import dtype_util, tensor_util
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1 import recurrence
from tfp_ar1.correlation import LagOneCorrelation, check_one_given

__all__ = ["LinearOperatorAR1Cholesky"]


class LinearOperatorAR1Cholesky(tf.linalg.LinearOperator):
    r"""`LinearOperator` acting like the Cholesky factor of an AR(1) covariance.

    A stationary first-order autoregressive process with marginal standard deviation σ and lag-one
    correlation ρ has the covariance `C[i, j] = σ² ρ^|i-j|` (equation 4 of the ρ-VAE paper,
    arXiv:1909.06236, with s = σ²). This operator is its lower-triangular Cholesky factor L, so that
    `C = L Lᵀ`:

    ```none
    L[i, 0] = σ ρ^i
    L[i, j] = σ √(1 - ρ²) ρ^(i-j)    for 1 ≤ j ≤ i, else 0
    ```

    (Equation 7 of the paper prints 1/√s for √s, and drops powers of ρ.)

    ```python
    operator = LinearOperatorAR1Cholesky(num_rows=3, correlation=0.5, marginal_scale=2.0)
    operator.to_dense()
    # ==> [[2.0, 0.000, 0.000],
    #      [1.0, 1.732, 0.000],
    #      [0.5, 0.866, 1.732]]
    operator.solvevec(operator.matvec([1.0, 2.0, 3.0]))
    # ==> [1.0, 2.0, 3.0]
    ```

    #### Shape compatibility

    The parameters are scalars or batches of scalars: with `correlation` and `marginal_scale` of
    shapes that broadcast to `[B1, ..., Bb]`, the operator has shape `[B1, ..., Bb, d, d]`,
    `d = num_rows`. Arguments `x` of shape `[C1, ..., Cc, d, k]` broadcast against the batch.

    #### Performance

    For an operator of size d and an argument with k columns, for each batch member:

    * `matmul`, `solve` and their adjoints: O(d k) time and memory; `matvec`, `solvevec`: O(d).
    * `log_abs_determinant`, `determinant`, `trace`: O(1); `diag_part`: O(d).
    * `to_dense` and what needs a dense matrix by definition (`cond`, `add_to_tensor`): O(d²) or
      more. Nothing else forms a d × d matrix.

    #### Matrix property hints

    The operator is non-singular for every valid parameter, and `is_non_singular` is therefore
    `True` unless said otherwise; it is not self-adjoint (except for d = 1).

    Args:
      num_rows: non-negative integer scalar tensor; d, the number of rows and columns.
      correlation: floating-point tensor `[B1, ..., Bb]`, ρ in (-1, 1). Exactly one of
        `correlation` and `fisher_z` must be given.
      marginal_scale: positive floating-point tensor `[B1, ..., Bb]`; σ, the standard deviation of
        every coordinate (√s in the paper). Default: 1.
      fisher_z: floating-point tensor `[B1, ..., Bb]`, `atanh ρ`, any finite value. Keeps full
        accuracy where ρ rounds to ±1.
      is_non_singular: expect that this operator is non-singular.
      is_self_adjoint: expect that this operator equals its transpose.
      is_positive_definite: expect that `xᵀ L x > 0` for every non-zero x.
      is_square: the operator is square; `False` is refused.
      name: a name for this operator.

    Raises:
      ValueError: if both or neither of `correlation` and `fisher_z` are given; if `num_rows` is
        statically known not to be a non-negative scalar; if `is_square` is `False`.
      TypeError: if the parameters are not real floating-point numbers or differ in dtype, or if
        `num_rows` is not an integer.
    """

    def __init__(
        self,
        num_rows: Any,
        correlation: Any = None,
        marginal_scale: Any = 1.0,
        fisher_z: Any = None,
        is_non_singular: bool | None = True,
        is_self_adjoint: bool | None = None,
        is_positive_definite: bool | None = None,
        is_square: bool | None = True,
        name: str = "LinearOperatorAR1Cholesky",
    ):
        parameters = {
            "num_rows": num_rows,
            "correlation": correlation,
            "marginal_scale": marginal_scale,
            "fisher_z": fisher_z,
            "is_non_singular": is_non_singular,
            "is_self_adjoint": is_self_adjoint,
            "is_positive_definite": is_positive_definite,
            "is_square": is_square,
            "name": name,
        }
        check_one_given(correlation, fisher_z)
        if is_square is False:
            raise ValueError("An AR(1) Cholesky factor is square; got `is_square=False`.")
        with tf.name_scope(name):
            dtype = dtype_util.common_dtype(
                [correlation, marginal_scale, fisher_z], dtype_hint=tf.float32
            )
            if not dtype_util.is_floating(dtype):
                raise TypeError(
                    f"`correlation`, `fisher_z` and `marginal_scale` must be real floating-point "
                    f"tensors; got dtype {dtype_util.name(dtype)}."
                )
            convert = tensor_util.convert_nonref_to_tensor
            self._correlation = convert(correlation, dtype=dtype, name="correlation")
            self._fisher_z = convert(fisher_z, dtype=dtype, name="fisher_z")
            self._marginal_scale = convert(marginal_scale, dtype=dtype, name="marginal_scale")
            self._num_rows = _checked_num_rows(num_rows)
            self._num_rows_static = _static_int(self._num_rows)
            super().__init__(
                dtype=dtype_util.base_dtype(dtype),
                is_non_singular=is_non_singular,
                is_self_adjoint=is_self_adjoint,
                is_positive_definite=is_positive_definite,
                is_square=True,
                parameters=parameters,
                name=name,
            )

    @property
    def correlation(self) -> Any:
        """ρ as given, or `None`."""
        return self._correlation

    @property
    def fisher_z(self) -> Any:
        """`atanh ρ` as given, or `None`."""
        return self._fisher_z

    @property
    def marginal_scale(self) -> Any:
        """σ, the standard deviation of every coordinate, as given."""
        return self._marginal_scale

    def read_parameters(self, for_columns: bool = False) -> tuple[LagOneCorrelation, tf.Tensor]:
        """`(ρ, σ)` as tensors, each variable read once: for computations that use them repeatedly.

        Args:
          for_columns: if `True`, with one more dimension of size 1 at the end, so that they
            broadcast against the columns of a matrix argument.

        Returns:
          The correlation and the marginal scale, of shape `[B1, ..., Bb]` (or `[B1, ..., Bb, 1]`).
        """

        def read(parameter: Any) -> tf.Tensor | None:
            if parameter is None:
                return None
            parameter = tf.convert_to_tensor(parameter)
            return parameter[..., tf.newaxis] if for_columns else parameter

        rho = LagOneCorrelation(read(self._correlation), read(self._fisher_z))
        return rho, read(self._marginal_scale)

    def _size(self) -> Any:
        """The number of rows, as a Python integer where it is known."""
        return self._num_rows if self._num_rows_static is None else self._num_rows_static

    def _given_correlation(self) -> Any:
        return self._fisher_z if self._correlation is None else self._correlation

    def _shape(self) -> tf.TensorShape:
        batch_shape = tf.broadcast_static_shape(
            self._given_correlation().shape, self._marginal_scale.shape
        )
        return batch_shape.concatenate([self._num_rows_static, self._num_rows_static])

    def _shape_tensor(self) -> tf.Tensor:
        batch_shape = ps.broadcast_shape(
            ps.shape(self._given_correlation()), ps.shape(self._marginal_scale)
        )
        return tf.concat([batch_shape, [self._num_rows, self._num_rows]], axis=0)

    def _assert_non_singular(self) -> tf.Operation | None:
        # Of the parameters, and not of √(1 - ρ²), which underflows for a large `fisher_z`.
        distance = tf.math.abs(self._marginal_scale)
        if self._correlation is not None:
            distance = tf.minimum(distance, 1.0 - tf.math.abs(self._correlation))
        return tf.debugging.assert_positive(
            distance,
            message="Singular operator: `marginal_scale` is 0 or `correlation` not in (-1, 1).",
        )

    def _matvec(self, x: tf.Tensor, adjoint: bool = False) -> tf.Tensor:
        rho, scale = self.read_parameters()
        return matvec(x, rho, scale, adjoint)

    def _matmul(self, x: tf.Tensor, adjoint: bool = False, adjoint_arg: bool = False) -> tf.Tensor:
        return self._by_columns(matvec, x, adjoint, adjoint_arg)

    def _solvevec(self, rhs: tf.Tensor, adjoint: bool = False) -> tf.Tensor:
        rho, scale = self.read_parameters()
        return solvevec(rhs, rho, scale, adjoint)

    def _solve(self, rhs: tf.Tensor, adjoint: bool = False, adjoint_arg: bool = False) -> tf.Tensor:
        return self._by_columns(solvevec, rhs, adjoint, adjoint_arg)

    def _by_columns(self, fn: Any, x: tf.Tensor, adjoint: bool, adjoint_arg: bool) -> tf.Tensor:
        # The recurrence runs along the last axis, so columns become rows.
        rows = x if adjoint_arg else tf.linalg.matrix_transpose(x)
        rho, scale = self.read_parameters(for_columns=True)
        return tf.linalg.matrix_transpose(fn(rows, rho, scale, adjoint))

    def _log_abs_determinant(self) -> tf.Tensor:
        rho, scale = self.read_parameters()
        return log_abs_determinant(self._size(), rho, scale)

    def _determinant(self) -> tf.Tensor:
        return tf.math.exp(self._log_abs_determinant())

    def _diag_part(self) -> tf.Tensor:
        rho, scale = self.read_parameters()
        shape = tf.concat([self.batch_shape_tensor(), [self._num_rows]], axis=0)
        first = tf.equal(tf.range(self._num_rows), 0)
        scale, later = scale[..., tf.newaxis], (scale * rho.innovation_scale)[..., tf.newaxis]
        return tf.broadcast_to(tf.where(first, scale, later), shape)

    def _trace(self) -> tf.Tensor:
        rho, scale = self.read_parameters()
        first = tf.cast(ps.minimum(self._size(), 1), self.dtype)
        return scale * (first + num_later(self._size(), self.dtype) * rho.innovation_scale)

    def _to_dense(self) -> tf.Tensor:
        return self._matmul(tf.eye(self._num_rows, dtype=self.dtype))

    @property
    def _composite_tensor_fields(self) -> tuple[str, ...]:
        return ("num_rows", "correlation", "marginal_scale", "fisher_z")

    @property
    def _composite_tensor_prefer_static_fields(self) -> tuple[str, ...]:
        return ("num_rows",)

    @property
    def _experimental_parameter_ndims_to_matrix_ndims(self) -> dict[str, int]:
        given = "fisher_z" if self._correlation is None else "correlation"
        return {given: 0, "marginal_scale": 0}


LinearOperatorAR1Cholesky = make_composite_tensor(LinearOperatorAR1Cholesky, module_name="tfp_ar1")


def with_tensors(operator: tf.linalg.LinearOperator) -> tf.linalg.LinearOperator:
    """The operator with every variable read once; deferred tensors too, which TensorFlow leaves."""
    read = {
        name: tf.convert_to_tensor(value)
        for name, value in operator.parameters.items()
        if tensor_util.is_ref(value) and not isinstance(value, tf.linalg.LinearOperator)
    }
    if read:
        operator = type(operator)(**{**operator.parameters, **read})
    return operator._convert_variables_to_tensors()


# The same products for parameters that have been read already; the distribution and its KLs use
# them too. `rho` and `scale` have shapes that broadcast to the batch shape of `x`, `[..., d]`.


def matvec(
    x: tf.Tensor, rho: LagOneCorrelation, scale: tf.Tensor, adjoint: bool = False
) -> tf.Tensor:
    """`L x`, or `Lᵀ x`, for x of shape `[..., d]`: `L = (I - ρ S)⁻¹ σ diag(1, √(1-ρ²), …)`."""
    if adjoint:
        y = recurrence.recurrence(x, rho, reverse=True)
        return recurrence.scaled(y, scale, scale * rho.innovation_scale)
    return recurrence.color(x, rho, scale)


def solvevec(
    x: tf.Tensor, rho: LagOneCorrelation, scale: tf.Tensor, adjoint: bool = False
) -> tf.Tensor:
    """`L⁻¹ x`, or `L⁻ᵀ x`, for x of shape `[..., d]`."""
    return recurrence.whiten(x, rho, scale, reverse=adjoint)


def log_abs_determinant(num_rows: Any, rho: LagOneCorrelation, scale: tf.Tensor) -> tf.Tensor:
    """`log |det L| = d log σ + ½ (d - 1) log(1 - ρ²)` (equation 5 of the paper)."""
    steps = num_later(num_rows, scale.dtype)
    log_scale = tf.cast(num_rows, scale.dtype) * tf.math.log(scale)
    return log_scale + 0.5 * steps * rho.log_innovation_variance


def num_later(num_rows: Any, dtype: tf.DType) -> tf.Tensor:
    """The number of coordinates after the first, `d - 1` (0 for d = 0), as a float tensor."""
    return tf.cast(ps.maximum(num_rows - 1, 0), dtype)


def _static_int(num_rows: Any) -> int | None:
    value = tf.get_static_value(num_rows)
    return None if value is None else int(value)


def _checked_num_rows(num_rows: Any) -> tf.Tensor:
    if isinstance(num_rows, tf.Variable):
        raise TypeError(
            "`num_rows` must not be a tf.Variable: the size of an operator cannot change."
        )
    num_rows = tf.convert_to_tensor(num_rows, name="num_rows")
    if not num_rows.dtype.is_integer:
        raise TypeError(f"`num_rows` must be an integer; got dtype {num_rows.dtype.name}.")
    if num_rows.shape.rank not in (0, None):
        raise ValueError(f"`num_rows` must be a scalar; got shape {num_rows.shape}.")
    static = tf.get_static_value(num_rows)
    if static is not None and np.any(static < 0):
        raise ValueError(f"`num_rows` must not be negative; got {static}.")
    return tf.cast(num_rows, tf.int32)

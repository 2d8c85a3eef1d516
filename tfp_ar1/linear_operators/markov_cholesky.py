"""`LinearOperator` acting like the Cholesky factor of the covariance of a Gaussian Markov chain."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.ops.linalg import linear_operator_util
from tensorflow.python.ops.linalg.linear_operator import make_composite_tensor
from tensorflow_probability.python.internal import dtype_util, tensor_util
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1.correlation import LagOneCorrelation
from tfp_ar1.linear_operators.chain import Chain

__all__ = ["LinearOperatorMarkovCholesky", "LinearOperatorMarkovCovariance"]


class LinearOperatorMarkovCholesky(tf.linalg.LinearOperator):
    """Base class of the operators L that turn white noise into the path of a Markov chain.

    Subclasses say how their parameters make a `Chain`, whose products the methods are:

    * `matmul`, `solve` and their adjoints: O(d k) time and memory for an argument with k columns;
    * `log_abs_determinant`, `determinant`, `diag_part`, `trace`: O(d), or less;
    * `to_dense` and what needs a dense matrix by definition (`cond`, `add_to_tensor`): O(d²) or
      more. Nothing else forms a d × d matrix.

    Args:
      num_rows: integer scalar tensor, d.
      parameters: the arguments of the subclass.
      dtype: of the parameters.
      is_non_singular: expect that this operator is non-singular.
      is_self_adjoint: expect that this operator equals its transpose.
      is_positive_definite: expect that `xᵀ L x > 0` for every non-zero x.
      is_square: the operator is square; `False` is refused.
      name: a name for this operator.

    Raises:
      ValueError: if `is_square` is `False`.
      TypeError: if the parameters are not real floating-point numbers.
    """

    def __init__(
        self,
        num_rows: tf.Tensor,
        parameters: dict[str, Any],
        dtype: tf.DType,
        is_non_singular: bool | None,
        is_self_adjoint: bool | None,
        is_positive_definite: bool | None,
        is_square: bool | None,
        name: str,
    ):
        if is_square is False:
            raise ValueError("A Cholesky factor is square; got `is_square=False`.")
        self._num_rows = num_rows
        static = tf.get_static_value(num_rows)
        self._num_rows_static = None if static is None else int(static)
        super().__init__(
            dtype=dtype_util.base_dtype(dtype),
            is_non_singular=is_non_singular,
            is_self_adjoint=is_self_adjoint,
            is_positive_definite=is_positive_definite,
            is_square=True,
            parameters=parameters,
            name=name,
        )

    def chain(self, for_columns: bool = False) -> Chain:
        """The parameters as tensors, each variable read once: to be used repeatedly.

        Args:
          for_columns: if `True`, with one more dimension of size 1 in the batch, at its end, so
            that they broadcast against the columns of a matrix argument, turned into rows.
        """
        raise NotImplementedError(f"`{type(self).__name__}` must define `chain`.")

    def _size(self) -> Any:
        """The number of rows, as a Python integer where it is known."""
        return self._num_rows if self._num_rows_static is None else self._num_rows_static

    def _given(self) -> list[tuple[Any, int]]:
        """The parameters that decide the batch shape, and how many axes of each are not batch."""
        ndims = self._experimental_parameter_ndims_to_matrix_ndims
        return [(getattr(self, name), n) for name, n in ndims.items()]

    def _shape(self) -> tf.TensorShape:
        shapes = (p.shape[:-n] if n else p.shape for p, n in self._given())
        batch_shape = functools.reduce(tf.broadcast_static_shape, shapes)
        return batch_shape.concatenate([self._num_rows_static, self._num_rows_static])

    def _shape_tensor(self) -> tf.Tensor:
        shapes = (ps.shape(p)[:-n] if n else ps.shape(p) for p, n in self._given())
        batch_shape = functools.reduce(ps.broadcast_shape, shapes)
        return tf.concat([batch_shape, [self._num_rows, self._num_rows]], axis=0)

    def _matvec(self, x: tf.Tensor, adjoint: bool = False) -> tf.Tensor:
        return self.chain().matvec(x, adjoint)

    def _matmul(self, x: tf.Tensor, adjoint: bool = False, adjoint_arg: bool = False) -> tf.Tensor:
        return self._by_columns(Chain.matvec, x, adjoint, adjoint_arg)

    def _solvevec(self, rhs: tf.Tensor, adjoint: bool = False) -> tf.Tensor:
        return self.chain().solvevec(rhs, adjoint)

    def _solve(self, rhs: tf.Tensor, adjoint: bool = False, adjoint_arg: bool = False) -> tf.Tensor:
        return self._by_columns(Chain.solvevec, rhs, adjoint, adjoint_arg)

    def _by_columns(self, fn: Any, x: tf.Tensor, adjoint: bool, adjoint_arg: bool) -> tf.Tensor:
        # The recurrence runs along the last axis, so columns become rows.
        rows = x if adjoint_arg else tf.linalg.matrix_transpose(x)
        return tf.linalg.matrix_transpose(fn(self.chain(for_columns=True), rows, adjoint))

    def _log_abs_determinant(self) -> tf.Tensor:
        return tf.cast(self.chain().widened().log_abs_determinant(), self.dtype)

    def _determinant(self) -> tf.Tensor:
        return tf.math.exp(self._log_abs_determinant())

    def _diag_part(self) -> tf.Tensor:
        shape = tf.concat([self.batch_shape_tensor(), [self._num_rows]], axis=0)
        return tf.broadcast_to(self.chain().diag_part(), shape)

    def _to_dense(self) -> tf.Tensor:
        return self._matmul(tf.eye(self._num_rows, dtype=self.dtype))

    def _linop_matmul(
        self, left_operator: tf.linalg.LinearOperator, right_operator: tf.linalg.LinearOperator
    ) -> tf.linalg.LinearOperator:
        if linear_operator_util.is_adjoint_pair(left_operator, right_operator):
            return LinearOperatorMarkovCovariance(self)
        return super()._linop_matmul(left_operator, right_operator)


class LinearOperatorMarkovCovariance(tf.linalg.LinearOperatorComposition):
    """The composition `C = L Lᵀ` of the Cholesky factor L of a Gaussian Markov chain, and Lᵀ.

    It is what `L @ L.adjoint()` and the `inverse` of the precision give. Products, solves and
    determinants go through L, at O(d) per column; `diag_part`, `trace` and `cholesky`, which the
    composition of any two operators leaves to a dense matrix, are O(d) here.

    Args:
      scale: L.
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
        name: str = "LinearOperatorMarkovCovariance",
    ):
        hints = {
            "is_non_singular": is_non_singular,
            "is_self_adjoint": is_self_adjoint,
            "is_positive_definite": is_positive_definite,
            "is_square": is_square,
        }
        self._scale = scale
        super().__init__([scale, scale.adjoint()], name=name, **hints)
        # The base class has recorded its own arguments.
        self._parameters = {"scale": scale, **hints, "name": name}

    @property
    def scale(self) -> LinearOperatorMarkovCholesky:
        """The Cholesky factor."""
        return self._scale

    def _diag_part(self) -> tf.Tensor:
        variances = tf.math.square(self._scale.chain().scale)
        return tf.broadcast_to(variances, self.shape_tensor()[:-1])

    def _trace(self) -> tf.Tensor:
        return tf.reduce_sum(self._diag_part(), axis=-1)

    def _linop_cholesky(self) -> LinearOperatorMarkovCholesky:
        return self._scale

    @property
    def _composite_tensor_fields(self) -> tuple[str, ...]:
        return ("scale",)

    @property
    def _experimental_parameter_ndims_to_matrix_ndims(self) -> dict[str, int]:
        return {"scale": 0}


LinearOperatorMarkovCovariance = make_composite_tensor(
    LinearOperatorMarkovCovariance, module_name="tfp_ar1"
)


def common_float_dtype(parameters: dict[str, Any]) -> tf.DType:
    """The dtype that the parameters share.

    Raises:
      TypeError: if they differ in dtype, or are not real floating-point numbers.
    """
    try:
        dtype = dtype_util.common_dtype(list(parameters.values()), dtype_hint=tf.float32)
    except TypeError as error:
        found = {name: getattr(x, "dtype", None) for name, x in parameters.items()}
        found = ", ".join(
            f"`{n}` {getattr(t, 'name', t)}" for n, t in found.items() if t is not None
        )
        raise TypeError(
            f"All parameters must share a floating-point dtype; got {found}."
        ) from error
    if not dtype_util.is_floating(dtype):
        names = ", ".join(f"`{name}`" for name in parameters)
        raise TypeError(
            f"{names} must be real floating-point tensors; got dtype {dtype_util.name(dtype)}."
        )
    return dtype


def size_of_last_axis(name: str, x: Any) -> tf.Tensor:
    """The size of the last axis of a parameter.

    Raises:
      ValueError: if it is a scalar.
    """
    if x.shape.rank == 0:
        raise ValueError(
            f"`{name}` must have at least one dimension, the coordinates; got a scalar."
        )
    size = tf.compat.dimension_value(x.shape[-1]) if x.shape.rank else None
    return tf.convert_to_tensor(ps.shape(x)[-1] if size is None else size, tf.int32)


def check_steps(name: str, x: Any, num_rows: tf.Tensor) -> None:
    """Raises `ValueError` unless the last axis of a correlation has an entry for each step."""
    size = tf.get_static_value(num_rows)
    num_steps = None if size is None else max(size - 1, 0)
    if x.shape.rank == 0 or (x.shape.rank and not x.shape[-1:].is_compatible_with([num_steps])):
        of_scale = "the" if size is None else f"the {size}"
        raise ValueError(
            f"`{name}` must have one entry for each step between {of_scale} coordinates of "
            f"`scale_diag` along its last axis, {'d - 1' if size is None else num_steps}; got "
            f"shape {x.shape}."
        )


def read_correlation(
    correlation: Any, fisher_z: Any, per_step: bool, for_columns: bool
) -> LagOneCorrelation:
    """The correlation, read from one of the two parameters."""
    return LagOneCorrelation(
        read(correlation, per_step, for_columns), read(fisher_z, per_step, for_columns), per_step
    )


def read(parameter: Any, has_last_axis: bool, for_columns: bool) -> tf.Tensor | None:
    """A parameter as a tensor, with an axis of size 1 for columns at the end of its batch."""
    if parameter is None:
        return None
    parameter = tf.convert_to_tensor(parameter)
    if not for_columns:
        return parameter
    return parameter[..., tf.newaxis, :] if has_last_axis else parameter[..., tf.newaxis]


def assert_non_singular(name: str, scale: Any, correlation: Any) -> tf.Operation:
    """An assertion that no scale, the parameter `name`, is 0 and every |correlation| below 1."""
    # Of the parameters, and not of √(1 - ρ²), which underflows for a large `fisher_z`.
    distances = {f"`{name}` must not be 0": tf.math.abs(scale)}
    if correlation is not None:
        distances["`correlation` must lie in (-1, 1)"] = 1.0 - tf.math.abs(correlation)
    return tf.group(
        *(
            tf.debugging.assert_positive(distance, message=f"Singular operator: {message}")
            for message, distance in distances.items()
        )
    )


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


def checked_num_rows(num_rows: Any) -> tf.Tensor:
    """`num_rows` as an int32 scalar.

    Raises:
      TypeError: if it is a variable, or not an integer.
      ValueError: if it is statically known not to be a non-negative scalar.
    """
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

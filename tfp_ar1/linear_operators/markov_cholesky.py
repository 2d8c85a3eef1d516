"""Operators for the covariance of a Gaussian Markov chain and its Cholesky factor."""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf
from tensorflow_probability.python.internal import dtype_util, tensor_util, tensorshape_util
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1._backend import composite_tensor, convert_variables_to_tensors, is_adjoint_pair
from tfp_ar1.correlation import LagOneCorrelation, check_one_given, correlation_of_times
from tfp_ar1.linear_operators.chain import Chain

__all__ = ["LinearOperatorMarkovCholesky", "LinearOperatorMarkovCovariance"]


# Hints of operators that are symmetric and positive definite for all valid parameters.
POSITIVE_DEFINITE: dict[str, bool | None] = {
    "is_non_singular": True,
    "is_self_adjoint": True,
    "is_positive_definite": True,
    "is_square": True,
}


@composite_tensor
class LinearOperatorMarkovCholesky(tf.linalg.LinearOperator):
    r"""`LinearOperator` acting like the Cholesky factor of the covariance of a Markov chain.

    A path of d coordinates with standard deviations σ_t and correlations ρ_t between coordinates
    t - 1 and t has the covariance `C[i, j] = σ_i σ_j ρ_(j+1) … ρ_i` for i ≥ j, as every Gaussian
    Markov chain with scalar states does. This operator is the lower-triangular L with `C = L Lᵀ`,
    which turns white noise into such a path:

    ```none
    L[i, j] = σ_i √(1 - ρ_j²) ρ_(j+1) … ρ_i    for j ≤ i, else 0,    with ρ_0 = 0
    ```

    The scale is shared (`marginal_scale`) or has an entry per coordinate (`scale_diag`). The
    correlation is shared, or has an entry per step if `per_step`, and is given as `correlation` or
    `fisher_z`; or it is that of an Ornstein–Uhlenbeck process with a `length_scale` at given
    `times`, `ρ_t = exp(-(τ_t - τ_(t-1)) / ℓ)`.

    #### Shape compatibility

    With parameters whose batches broadcast to `[B1, ..., Bb]` the operator has shape
    `[B1, ..., Bb, d, d]`. Arguments `x` of shape `[C1, ..., Cc, d, k]` broadcast against the batch.

    #### Performance

    * `matmul`, `solve` and their adjoints: O(d k) time and memory for an argument with k columns;
    * `log_abs_determinant`, `determinant`, `diag_part`, `trace`: O(d), or less;
    * `to_dense` and methods that need a dense matrix by definition (`cond`, `add_to_tensor`): O(d²)
      or more. Nothing else forms a d × d matrix.

    Args:
      scale_diag: positive floating-point tensor `[B1, ..., Bb, d]`; σ_t, the standard deviation of
        each coordinate. Exactly one of `scale_diag` and `marginal_scale` must be given.
      correlation: floating-point tensor `[B1, ..., Bb]`, or `[B1, ..., Bb, d - 1]` if `per_step`,
        in (-1, 1). Without `times`, exactly one of `correlation` and `fisher_z` must be given.
      fisher_z: floating-point tensor shaped like `correlation`, `atanh ρ`, any finite value. Keeps
        full accuracy where ρ rounds to ±1.
      marginal_scale: positive floating-point tensor `[B1, ..., Bb]`; σ, shared by all coordinates.
      length_scale: positive floating-point tensor `[B1, ..., Bb]`; ℓ, in the unit of `times`.
      times: floating-point tensor `[B1, ..., Bb, d]`, non-decreasing along the last axis.
      per_step: whether `correlation` or `fisher_z` has an entry for each step.
      num_rows: integer scalar tensor, d; required, and used, only if neither `scale_diag` nor
        `times` determines the size.
      name: a name for this operator.
      **hints: `is_non_singular` (default `True`), `is_self_adjoint`, `is_positive_definite` and
        `is_square`, as for every `tf.linalg.LinearOperator`.

    Raises:
      ValueError: if both or neither of two alternative parameters are given; if `scale_diag` or
        `times` is a scalar; if the correlation lacks an entry for each step; if `num_rows` is
        statically known not to be a non-negative scalar; if `is_square` is `False`.
      TypeError: if the parameters are not real floating-point numbers or differ in dtype, or if
        `num_rows` is not an integer.
    """

    def __init__(
        self,
        scale_diag: Any = None,
        correlation: Any = None,
        fisher_z: Any = None,
        marginal_scale: Any = None,
        length_scale: Any = None,
        times: Any = None,
        per_step: bool = False,
        num_rows: Any = None,
        name: str = "LinearOperatorMarkovCholesky",
        **hints: bool | None,
    ):
        given = {
            "marginal_scale": marginal_scale,
            "scale_diag": scale_diag,
            "correlation": correlation,
            "fisher_z": fisher_z,
            "length_scale": length_scale,
            "times": times,
        }
        settings = {"per_step": per_step, "num_rows": num_rows, "name": name}
        hints = {
            "is_non_singular": True,
            "is_self_adjoint": None,
            "is_positive_definite": None,
            "is_square": True,
            **hints,
        }
        if (marginal_scale is None) == (scale_diag is None):
            raise ValueError("Pass exactly one of `marginal_scale` and `scale_diag`.")
        if (length_scale is None) != (times is None):
            raise ValueError("Pass `length_scale` and `times` together.")
        if times is None:
            check_one_given(correlation, fisher_z)
        if hints["is_square"] is False:
            raise ValueError("A Cholesky factor is square; got `is_square=False`.")
        self._per_step = per_step
        with tf.name_scope(name):
            dtype = common_float_dtype({n: x for n, x in given.items() if x is not None})
            for name_, x in given.items():
                x = tensor_util.convert_nonref_to_tensor(x, dtype=dtype, name=name_)
                setattr(self, f"_{name_}", x)
            sized = next((n for n in ("scale_diag", "times") if given[n] is not None), None)
            if sized is None:
                self._num_rows = checked_num_rows(num_rows)
            else:
                self._num_rows = size_of_last_axis(sized, getattr(self, f"_{sized}"))
            if per_step:
                for name_, x in self._given().items():
                    if name_ in ("correlation", "fisher_z"):
                        check_steps(name_, x, self._static_size(), sized)
            super().__init__(
                dtype=dtype_util.base_dtype(dtype),
                parameters={**given, **settings, **hints},
                name=name,
                **hints,
            )

    @property
    def marginal_scale(self) -> Any:
        """The `marginal_scale` argument σ, the standard deviation of all coordinates, or `None`."""
        return self._marginal_scale

    @property
    def scale_diag(self) -> Any:
        """The `scale_diag` argument σ_t, the standard deviation of each coordinate, or `None`."""
        return self._scale_diag

    @property
    def correlation(self) -> Any:
        """The `correlation` argument ρ, or `None`."""
        return self._correlation

    @property
    def fisher_z(self) -> Any:
        """The `fisher_z` argument, `atanh ρ`, or `None`."""
        return self._fisher_z

    @property
    def length_scale(self) -> Any:
        """The `length_scale` argument, the time ℓ in which correlation falls e-fold, or `None`."""
        return self._length_scale

    @property
    def times(self) -> Any:
        """The `times` argument τ_t, the time of each coordinate, or `None`."""
        return self._times

    def chain(self, for_columns: bool = False) -> Chain:
        """Returns the parameters as tensors for repeated use, with each variable read once.

        Args:
          for_columns: if `True`, appends a dimension of size 1 to the batch, so that the parameters
            broadcast against the columns of a matrix argument, transposed into rows.
        """

        def read(parameter: Any, has_last_axis: bool) -> tf.Tensor | None:
            if parameter is None:
                return None
            parameter = tf.convert_to_tensor(parameter)
            if not for_columns:
                return parameter
            return parameter[..., tf.newaxis, :] if has_last_axis else parameter[..., tf.newaxis]

        if self._times is None:
            correlation = read(self._correlation, self._per_step)
            fisher_z = read(self._fisher_z, self._per_step)
            rho = LagOneCorrelation(correlation, fisher_z, self._per_step)
        else:
            length_scale, times = read(self._length_scale, False), read(self._times, True)
            rho = correlation_of_times(times, length_scale)
        per_coordinate = self._scale_diag is not None
        scale = self._scale_diag if per_coordinate else self._marginal_scale
        return Chain(rho, read(scale, per_coordinate), per_coordinate, self._size())

    def _size(self) -> Any:
        """Returns the number of rows, as a Python integer if it is known statically."""
        return self._num_rows

    def _static_size(self) -> int | None:
        return self._num_rows if isinstance(self._num_rows, int) else None

    def _given(self) -> dict[str, Any]:
        """Returns the parameters that the user gave, by name."""
        names = ("marginal_scale", "scale_diag", "correlation", "fisher_z", "length_scale", "times")
        parameters = {name: getattr(self, name) for name in names}
        return {name: x for name, x in parameters.items() if x is not None}

    @property
    def _experimental_parameter_ndims_to_matrix_ndims(self) -> dict[str, int]:
        ndims = {
            "marginal_scale": 0,
            "scale_diag": 1,
            "correlation": int(self._per_step),
            "fisher_z": int(self._per_step),
            "length_scale": 0,
            "times": 1,
        }
        return {name: ndims[name] for name in self._given()}

    @property
    def _composite_tensor_fields(self) -> tuple[str, ...]:
        sized = {"scale_diag", "times"} & self._given().keys()
        return (*self._given(), "per_step", *(() if sized else ("num_rows",)))

    @property
    def _composite_tensor_prefer_static_fields(self) -> tuple[str, ...]:
        return ("num_rows",)

    def _shape(self) -> tf.TensorShape:
        ndims = self._experimental_parameter_ndims_to_matrix_ndims
        shapes = (p.shape[:-n] if (n := ndims[k]) else p.shape for k, p in self._given().items())
        batch_shape = functools.reduce(tf.broadcast_static_shape, shapes)
        size = self._static_size()
        return tensorshape_util.concatenate(batch_shape, [size, size])

    def _shape_tensor(self) -> tf.Tensor:
        ndims = self._experimental_parameter_ndims_to_matrix_ndims
        shapes = ((ps.shape(p), ndims[name]) for name, p in self._given().items())
        shapes = (shape[:-n] if n else shape for shape, n in shapes)
        batch_shape = functools.reduce(ps.broadcast_shape, shapes)
        return ps.concat([batch_shape, [self._size(), self._size()]], axis=0)

    def _assert_non_singular(self) -> tf.Operation:
        # Checks the parameters, not √(1 - ρ²), which underflows for large `fisher_z`.
        name = "marginal_scale" if self._scale_diag is None else "scale_diag"
        distances = {f"`{name}` must not be 0": tf.math.abs(getattr(self, name))}
        if self._correlation is not None:
            within = 1.0 - tf.math.abs(self._correlation)
            distances["`correlation` must lie in (-1, 1)"] = within
        if self._times is not None:
            times = tf.convert_to_tensor(self._times)
            steps = (times[..., 1:] - times[..., :-1]) / self._length_scale[..., tf.newaxis]
            distances["`times` do not increase, or `length_scale` is not positive"] = steps
        return tf.group(
            *(
                tf.debugging.assert_positive(distance, message=f"Singular operator: {message}")
                for message, distance in distances.items()
            )
        )

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
        return tf.broadcast_to(self.chain().diag_part(), self._shape_tensor()[:-1])

    def _to_dense(self) -> tf.Tensor:
        return self._matmul(tf.eye(self._num_rows, dtype=self.dtype))

    def _linop_matmul(
        self, left_operator: tf.linalg.LinearOperator, right_operator: tf.linalg.LinearOperator
    ) -> tf.linalg.LinearOperator:
        if is_adjoint_pair(left_operator, right_operator):
            return LinearOperatorMarkovCovariance(self)
        return super()._linop_matmul(left_operator, right_operator)


@composite_tensor
class LinearOperatorMarkovCovariance(tf.linalg.LinearOperatorComposition):
    """The composition `C = L Lᵀ` of the Cholesky factor L of a Gaussian Markov chain, and Lᵀ.

    `L @ L.adjoint()` and the `inverse` of the precision return it. Products, solves and
    determinants go through L, at O(d) per column. `diag_part`, `trace` and `cholesky` are O(d);
    a general composition forms a dense matrix for them.

    Args:
      scale: L.
      name: a name for this operator.
      **hints: as for every `tf.linalg.LinearOperator`; default to `True`.
    """

    def __init__(
        self,
        scale: LinearOperatorMarkovCholesky,
        name: str = "LinearOperatorMarkovCovariance",
        **hints: bool | None,
    ):
        hints = {**POSITIVE_DEFINITE, **hints}
        self._scale = scale
        super().__init__([scale, scale.adjoint()], name=name, **hints)
        # The base class recorded its own arguments.
        self._parameters = {"scale": scale, **hints, "name": name}

    @property
    def scale(self) -> LinearOperatorMarkovCholesky:
        """The Cholesky factor."""
        return self._scale

    def _diag_part(self) -> tf.Tensor:
        variances = tf.math.square(self._scale.chain().scale)
        return tf.broadcast_to(variances, self._scale._shape_tensor()[:-1])

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


def common_float_dtype(parameters: dict[str, Any]) -> tf.DType:
    """Returns the dtype that the parameters share.

    Raises:
      TypeError: if they differ in dtype, or are not real floating-point numbers.
    """
    try:
        dtype = dtype_util.common_dtype(list(parameters.values()), dtype_hint=tf.float32)
    except TypeError as error:
        dtypes = {name: getattr(x, "dtype", None) for name, x in parameters.items()}
        found = ", ".join(
            f"`{n}` {getattr(t, 'name', t)}" for n, t in dtypes.items() if t is not None
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


def size_of_last_axis(name: str, x: Any) -> Any:
    """Returns the size of a parameter's last axis, as a Python integer if it is known statically.

    Raises:
      ValueError: if the parameter is a scalar.
    """
    if tensorshape_util.rank(x.shape) == 0:
        raise ValueError(
            f"`{name}` must have at least one dimension, the coordinates; got a scalar."
        )
    size = tf.compat.dimension_value(x.shape[-1]) if tensorshape_util.rank(x.shape) else None
    return ps.shape(x)[-1] if size is None else size


def check_steps(name: str, x: Any, size: int | None, sized: str | None) -> None:
    """Raises `ValueError` unless the last axis of a correlation has an entry for each step."""
    num_steps = None if size is None else max(size - 1, 0)
    rank = tensorshape_util.rank(x.shape)
    if rank == 0 or (rank and not tensorshape_util.is_compatible_with(x.shape[-1:], [num_steps])):
        coordinates = "the coordinates" if size is None else f"the {size} coordinates"
        raise ValueError(
            f"`{name}` must have one entry for each step between {coordinates}"
            f"{f' of `{sized}`' if sized else ''} along its last axis, "
            f"{'d - 1' if size is None else num_steps}; got shape {x.shape}."
        )


def with_tensors(operator: tf.linalg.LinearOperator) -> tf.linalg.LinearOperator:
    """Reads every variable of an operator once, and deferred tensors, which TensorFlow skips."""
    read = {
        name: tf.convert_to_tensor(value)
        for name, value in operator.parameters.items()
        if tensor_util.is_ref(value) and not isinstance(value, tf.linalg.LinearOperator)
    }
    if read:
        operator = type(operator)(**{**operator.parameters, **read})
    return convert_variables_to_tensors(operator)


def checked_num_rows(num_rows: Any) -> Any:
    """Returns `num_rows` as a Python integer if known statically, otherwise as an int32 scalar.

    Raises:
      TypeError: if `num_rows` is a variable, or not an integer.
      ValueError: if it is statically known not to be a non-negative scalar.
    """
    if isinstance(num_rows, tf.Variable):
        raise TypeError(
            "`num_rows` must not be a tf.Variable: the size of an operator cannot change."
        )
    given, num_rows = num_rows, tf.convert_to_tensor(num_rows, name="num_rows")
    if not dtype_util.is_integer(num_rows.dtype):
        raise TypeError(
            f"`num_rows` must be an integer; got dtype {dtype_util.name(num_rows.dtype)}."
        )
    if tensorshape_util.rank(num_rows.shape) not in (0, None):
        raise ValueError(f"`num_rows` must be a scalar; got shape {num_rows.shape}.")
    # Under `jax.jit`, only a Python integer has a static value.
    static = given if isinstance(given, int) else tf.get_static_value(num_rows)
    if static is None:
        return tf.cast(num_rows, tf.int32)
    if static < 0:
        raise ValueError(f"`num_rows` must not be negative; got {static}.")
    return int(static)

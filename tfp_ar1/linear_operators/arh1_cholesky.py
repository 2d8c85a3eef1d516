"""`LinearOperator` acting like the Cholesky factor of a heterogeneous AR(1) covariance."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow.python.ops.linalg.linear_operator import make_composite_tensor
from tensorflow_probability.python.internal import tensor_util

from tfp_ar1.correlation import check_one_given
from tfp_ar1.linear_operators import markov_cholesky as markov_cholesky
from tfp_ar1.linear_operators.chain import Chain
from tfp_ar1.linear_operators.markov_cholesky import LinearOperatorMarkovCholesky

__all__ = ["LinearOperatorARH1Cholesky"]


class LinearOperatorARH1Cholesky(LinearOperatorMarkovCholesky):
    r"""`LinearOperator` acting like the Cholesky factor of an ARH(1) covariance.

    First-order autoregressive with heterogeneous variances: `C[i, j] = σ_i σ_j ρ^|i-j|`. This
    operator is the lower-triangular L with `C = L Lᵀ`: the rows of that of AR(1), times σ.

    ```none
    L[i, 0] = σ_i ρ^i
    L[i, j] = σ_i √(1 - ρ²) ρ^(i-j)    for 1 ≤ j ≤ i, else 0
    ```

    #### Shape compatibility

    With `scale_diag` `[..., d]` and `correlation` `[...]` whose batches broadcast to
    `[B1, ..., Bb]`, the operator has shape `[B1, ..., Bb, d, d]`. Arguments `x` of shape
    `[C1, ..., Cc, d, k]` broadcast against the batch.

    #### Performance

    `matmul`, `solve` and their adjoints cost O(d k) for k columns; `log_abs_determinant`,
    `determinant`, `diag_part` and `trace` O(d). See `LinearOperatorMarkovCholesky`.

    Args:
      scale_diag: positive floating-point tensor `[B1, ..., Bb, d]`; σ_t, the standard deviation of
        each coordinate.
      correlation: floating-point tensor `[B1, ..., Bb]`, ρ in (-1, 1). Exactly one of
        `correlation` and `fisher_z` must be given.
      fisher_z: floating-point tensor `[B1, ..., Bb]`, `atanh ρ`, any finite value. Keeps full
        accuracy where ρ rounds to ±1.
      is_non_singular: expect that this operator is non-singular.
      is_self_adjoint: expect that this operator equals its transpose.
      is_positive_definite: expect that `xᵀ L x > 0` for every non-zero x.
      is_square: the operator is square; `False` is refused.
      name: a name for this operator.

    Raises:
      ValueError: if both or neither of `correlation` and `fisher_z` are given; if `scale_diag` is a
        scalar; if `is_square` is `False`.
      TypeError: if the parameters are not real floating-point numbers or differ in dtype.
    """

    def __init__(
        self,
        scale_diag: Any,
        correlation: Any = None,
        fisher_z: Any = None,
        is_non_singular: bool | None = True,
        is_self_adjoint: bool | None = None,
        is_positive_definite: bool | None = None,
        is_square: bool | None = True,
        name: str = "LinearOperatorARH1Cholesky",
    ):
        given = {"scale_diag": scale_diag, "correlation": correlation, "fisher_z": fisher_z}
        hints = {
            "is_non_singular": is_non_singular,
            "is_self_adjoint": is_self_adjoint,
            "is_positive_definite": is_positive_definite,
            "is_square": is_square,
        }
        check_one_given(correlation, fisher_z)
        with tf.name_scope(name):
            dtype = markov_cholesky.common_float_dtype(given)
            convert = tensor_util.convert_nonref_to_tensor
            self._scale_diag = convert(scale_diag, dtype=dtype, name="scale_diag")
            self._correlation = convert(correlation, dtype=dtype, name="correlation")
            self._fisher_z = convert(fisher_z, dtype=dtype, name="fisher_z")
            num_rows = markov_cholesky.size_of_last_axis("scale_diag", self._scale_diag)
            super().__init__(num_rows, {**given, **hints, "name": name}, dtype, **hints, name=name)

    @property
    def scale_diag(self) -> Any:
        """σ_t, the standard deviation of each coordinate, as given."""
        return self._scale_diag

    @property
    def correlation(self) -> Any:
        """ρ as given, or `None`."""
        return self._correlation

    @property
    def fisher_z(self) -> Any:
        """`atanh ρ` as given, or `None`."""
        return self._fisher_z

    def chain(self, for_columns: bool = False) -> Chain:
        """The parameters as tensors, each variable read once; see the base class."""
        rho = markov_cholesky.read_correlation(
            self._correlation, self._fisher_z, per_step=False, for_columns=for_columns
        )
        scale = markov_cholesky.read(self._scale_diag, True, for_columns)
        return Chain(rho, scale, per_coordinate=True, size=self._size())

    def _assert_non_singular(self) -> tf.Operation:
        return markov_cholesky.assert_non_singular(
            "scale_diag", self._scale_diag, self._correlation
        )

    @property
    def _composite_tensor_fields(self) -> tuple[str, ...]:
        return ("scale_diag", "correlation", "fisher_z")

    @property
    def _experimental_parameter_ndims_to_matrix_ndims(self) -> dict[str, int]:
        given = "fisher_z" if self._correlation is None else "correlation"
        return {"scale_diag": 1, given: 0}


LinearOperatorARH1Cholesky = make_composite_tensor(
    LinearOperatorARH1Cholesky, module_name="tfp_ar1"
)

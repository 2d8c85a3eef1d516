"""`LinearOperator` acting like the Cholesky factor of a first-order autoregressive covariance."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1._backend import composite_tensor
from tfp_ar1.linear_operators.markov_cholesky import LinearOperatorMarkovCholesky

__all__ = ["LinearOperatorAR1Cholesky"]


@composite_tensor
class LinearOperatorAR1Cholesky(LinearOperatorMarkovCholesky):
    r"""`LinearOperator` acting like the Cholesky factor of an AR(1) covariance.

    A stationary first-order autoregressive process with marginal standard deviation σ and lag-one
    correlation ρ has the covariance `C[i, j] = σ² ρ^|i-j|` (equation 4 of the ρ-VAE paper,
    arXiv:1909.06236, with s = σ²). This operator is its lower-triangular Cholesky factor L, with
    `C = L Lᵀ`:

    ```none
    L[i, 0] = σ ρ^i
    L[i, j] = σ √(1 - ρ²) ρ^(i-j)    for 1 ≤ j ≤ i, else 0
    ```

    (Equation 7 of the paper has 1/√s instead of √s, and lacks powers of ρ.)

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
    * `to_dense` and methods that need a dense matrix by definition (`cond`, `add_to_tensor`): O(d²)
      or more. Nothing else forms a d × d matrix.

    #### Matrix property hints

    The operator is non-singular for all valid parameters, so `is_non_singular` defaults to `True`.
    It is not self-adjoint (except for d = 1).

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
      is_square: the operator is square; `False` is an error.
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
        given = {
            "correlation": correlation,
            "marginal_scale": marginal_scale,
            "fisher_z": fisher_z,
            "num_rows": num_rows,
            "is_non_singular": is_non_singular,
            "is_self_adjoint": is_self_adjoint,
            "is_positive_definite": is_positive_definite,
            "is_square": is_square,
            "name": name,
        }
        super().__init__(**given)
        # The base class recorded its own arguments.
        self._parameters = self._no_dependency(given)

    def _trace(self) -> tf.Tensor:
        chain = self.chain().widened()
        first = tf.cast(ps.minimum(self._size(), 1), chain.dtype)
        later = tf.cast(chain.num_steps, chain.dtype) * chain.rho.unit_innovation_scale
        return tf.cast(chain.scale[..., 0] * (first + later), self.dtype)

    @property
    def _composite_tensor_fields(self) -> tuple[str, ...]:
        return ("num_rows", "correlation", "marginal_scale", "fisher_z")

"""`LinearOperator` acting like the Cholesky factor of an Ornstein–Uhlenbeck covariance."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow.python.ops.linalg.linear_operator import make_composite_tensor
from tensorflow_probability.python.internal import prefer_static as ps
from tensorflow_probability.python.internal import tensor_util

from tfp_ar1.correlation import LagOneCorrelation
from tfp_ar1.linear_operators import markov_cholesky as markov_cholesky
from tfp_ar1.linear_operators.chain import Chain
from tfp_ar1.linear_operators.markov_cholesky import LinearOperatorMarkovCholesky

__all__ = ["LinearOperatorOUCholesky"]

# Steps of so many length scales have the correlation 0 in every floating-point type.
_FAR = 1e4


@tf.custom_gradient
def _fisher_z(steps: tf.Tensor, length_scale: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """`atanh(e^-x)`, for x the quotient of two tensors of one shape."""
    # Where ρ = e^-x rounds to 0 anyway, the quotient, or its derivative, may overflow.
    far = steps > _FAR * tf.math.abs(length_scale)
    length_scale = tf.where(far, tf.ones_like(length_scale), length_scale)
    x = tf.where(far, tf.constant(_FAR, steps.dtype), steps / length_scale)
    rho, complement = tf.math.exp(-x), -tf.math.expm1(-x)

    # By the derivative with respect to log x, at most 1/2; that with respect to x may overflow.
    def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        slope = dy * (x / complement) * (rho / (1.0 + rho))
        return -slope / steps, slope / length_scale

    return 0.5 * tf.math.log1p(2.0 * rho / complement), gradient


class LinearOperatorOUCholesky(LinearOperatorMarkovCholesky):
    r"""`LinearOperator` acting like the Cholesky factor of an Ornstein–Uhlenbeck covariance.

    The process with marginal standard deviation σ and length scale ℓ at the times τ_0 < τ_1 < …
    has the covariance `C[i, j] = σ² exp(-|τ_i - τ_j| / ℓ)`, the exponential or Matérn-1/2 kernel.
    It is a Markov chain with the correlations `ρ_t = exp(-(τ_t - τ_(t-1)) / ℓ)`. This operator is
    the lower-triangular L with `C = L Lᵀ`.

    #### Shape compatibility

    With `times` `[..., d]` and the other parameters `[...]`, whose batches broadcast to
    `[B1, ..., Bb]`, the operator has shape `[B1, ..., Bb, d, d]`. Arguments `x` of shape
    `[C1, ..., Cc, d, k]` broadcast against the batch.

    #### Performance

    `matmul`, `solve` and their adjoints cost O(d k) for k columns; `log_abs_determinant`,
    `determinant`, `diag_part` and `trace` O(d). See `LinearOperatorMarkovCholesky`.

    Args:
      marginal_scale: positive floating-point tensor `[B1, ..., Bb]`; σ, the standard deviation of
        every coordinate.
      length_scale: positive floating-point tensor `[B1, ..., Bb]`; ℓ, in the unit of `times`.
      times: floating-point tensor `[B1, ..., Bb, d]`, strictly increasing along the last axis.
      is_non_singular: expect that this operator is non-singular.
      is_self_adjoint: expect that this operator equals its transpose.
      is_positive_definite: expect that `xᵀ L x > 0` for every non-zero x.
      is_square: the operator is square; `False` is refused.
      name: a name for this operator.

    Raises:
      ValueError: if `times` is a scalar; if `is_square` is `False`.
      TypeError: if the parameters are not real floating-point numbers or differ in dtype.
    """

    def __init__(
        self,
        marginal_scale: Any,
        length_scale: Any,
        times: Any,
        is_non_singular: bool | None = True,
        is_self_adjoint: bool | None = None,
        is_positive_definite: bool | None = None,
        is_square: bool | None = True,
        name: str = "LinearOperatorOUCholesky",
    ):
        given = {"marginal_scale": marginal_scale, "length_scale": length_scale, "times": times}
        hints = {
            "is_non_singular": is_non_singular,
            "is_self_adjoint": is_self_adjoint,
            "is_positive_definite": is_positive_definite,
            "is_square": is_square,
        }
        with tf.name_scope(name):
            dtype = markov_cholesky.common_float_dtype(given)
            convert = tensor_util.convert_nonref_to_tensor
            self._marginal_scale = convert(marginal_scale, dtype=dtype, name="marginal_scale")
            self._length_scale = convert(length_scale, dtype=dtype, name="length_scale")
            self._times = convert(times, dtype=dtype, name="times")
            num_rows = markov_cholesky.size_of_last_axis("times", self._times)
            super().__init__(num_rows, {**given, **hints, "name": name}, dtype, **hints, name=name)

    @property
    def marginal_scale(self) -> Any:
        """σ, the standard deviation of every coordinate, as given."""
        return self._marginal_scale

    @property
    def length_scale(self) -> Any:
        """ℓ, the time over which correlation falls by a factor e, as given."""
        return self._length_scale

    @property
    def times(self) -> Any:
        """τ_t, the time of each coordinate, as given."""
        return self._times

    def chain(self, for_columns: bool = False) -> Chain:
        """The parameters as tensors, each variable read once; see the base class."""
        length_scale = markov_cholesky.read(self._length_scale, False, for_columns)
        times = markov_cholesky.read(self._times, True, for_columns)
        steps = times[..., 1:] - times[..., :-1]
        length_scale = length_scale[..., tf.newaxis]
        shape = ps.broadcast_shape(ps.shape(steps), ps.shape(length_scale))
        fisher_z = _fisher_z(tf.broadcast_to(steps, shape), tf.broadcast_to(length_scale, shape))
        rho = LagOneCorrelation(fisher_z=fisher_z, per_step=True)
        scale = markov_cholesky.read(self._marginal_scale, False, for_columns)
        return Chain(rho, scale, per_coordinate=False, size=self._size())

    def _assert_non_singular(self) -> tf.Operation:
        times = tf.convert_to_tensor(self._times)
        steps = times[..., 1:] - times[..., :-1]
        return tf.group(
            markov_cholesky.assert_non_singular("marginal_scale", self._marginal_scale, None),
            tf.debugging.assert_positive(
                steps / self._length_scale[..., tf.newaxis],
                message="Singular operator: `times` do not increase, or `length_scale` is not "
                "positive",
            ),
        )

    @property
    def _composite_tensor_fields(self) -> tuple[str, ...]:
        return ("marginal_scale", "length_scale", "times")

    @property
    def _experimental_parameter_ndims_to_matrix_ndims(self) -> dict[str, int]:
        return {"marginal_scale": 0, "length_scale": 0, "times": 1}


LinearOperatorOUCholesky = make_composite_tensor(LinearOperatorOUCholesky, module_name="tfp_ar1")

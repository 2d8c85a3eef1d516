"""A Gaussian Markov chain with its parameters as tensors, and its products in O(d)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow_probability.python.internal import dtype_util
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1 import recurrence
from tfp_ar1._backend import elementwise_gradient
from tfp_ar1.correlation import LagOneCorrelation

__all__ = ["Chain"]


class Chain:
    """Standard deviations and lag-one correlations of a path of d coordinates, all as tensors.

    ```none
    w_0 = ε_0
    w_t = ρ_t w_{t-1} + √(1 - ρ_t²) ε_t,    x_t = σ_t w_t,    ε_t ~ N(0, 1)
    ```

    Hence x = L ε with the Cholesky factor L = diag(σ) (I - A)⁻¹ K of the covariance, where A has
    ρ_1, …, ρ_(d-1) below its diagonal and K = diag(1, √(1 - ρ_1²), …). The methods take x of shape
    `[..., d]`, cost O(d), and broadcast over batches.

    Args:
      rho: the correlations, `[...]` if all steps share one, or `[..., d - 1]` (per step).
      scale: σ, `[...]` if all coordinates share it, or `[..., d]`.
      per_coordinate: whether the last axis of `scale` runs over the coordinates.
      size: d, as a Python integer if it is known statically.
    """

    def __init__(self, rho: LagOneCorrelation, scale: tf.Tensor, per_coordinate: bool, size: Any):
        self.rho = rho
        self.size = size
        self.dtype = scale.dtype
        # Scales per coordinate are applied separately, and the shared scale is then 1.
        self.coordinate_scale: Any = scale if per_coordinate else None
        self.shared_scale = tf.ones([], scale.dtype) if per_coordinate else scale

    @property
    def scale(self) -> tf.Tensor:
        """σ with a last axis for the coordinates, of size 1 if they share it."""
        if self.coordinate_scale is None:
            return tf.expand_dims(self.shared_scale, -1)
        return self.coordinate_scale

    def widened(self) -> Chain:
        """Returns the chain for sums over all coordinates: half precision is cast to float32.

        The largest float16 is 65504. The number of coordinates alone may exceed it, and so may the
        terms of a sum, or of its gradient, long before their total does.
        """
        dtype = widened(self.shared_scale).dtype
        return self if dtype == self.dtype else self.cast(dtype)

    def cast(self, dtype: tf.DType) -> Chain:
        """Returns the chain with its parameters cast to another dtype."""
        return self._map(lambda x: tf.cast(x, dtype))

    def stop_gradient(self) -> Chain:
        """Returns the chain without gradients with respect to its parameters."""
        return self._map(tf.stop_gradient)

    def _map(self, function: Callable[[tf.Tensor], tf.Tensor]) -> Chain:
        scale = self.shared_scale if self.coordinate_scale is None else self.coordinate_scale
        per_coordinate = self.coordinate_scale is not None
        return Chain(self.rho.map(function), function(scale), per_coordinate, self.size)

    @property
    def num_steps(self) -> Any:
        """The number of steps: d - 1, but 0 for d = 0."""
        return ps.maximum(self.size - 1, 0)

    def matvec(self, x: tf.Tensor, adjoint: bool = False) -> tf.Tensor:
        """Returns `L x`, or `Lᵀ x`."""
        if adjoint:
            y = recurrence.recurrence(self.times_coordinate_scale(x), self.rho, reverse=True)
            return recurrence.scaled(y, self.rho, self.shared_scale)
        return self.times_coordinate_scale(recurrence.unwhiten(x, self.rho, self.shared_scale))

    def solvevec(self, x: tf.Tensor, adjoint: bool = False) -> tf.Tensor:
        """Returns `L⁻¹ x`, or `L⁻ᵀ x`."""
        if adjoint:
            y = recurrence.whiten(x, self.rho, self.shared_scale, reverse=True)
            return self.over_coordinate_scale(y)
        return recurrence.whiten(self.over_coordinate_scale(x), self.rho, self.shared_scale)

    def squared_norm_of_solvevec(self, x: tf.Tensor) -> tf.Tensor:
        """Returns `|L⁻¹ x|²`, of shape `[...]`."""
        x = self.over_coordinate_scale(x)
        return recurrence.squared_norm_of_whitened(x, self.rho, self.shared_scale)

    def over_coordinate_scale(self, x: tf.Tensor) -> tf.Tensor:
        """Returns `x_t / σ_t` if σ differs between coordinates; x itself if they share it."""
        return x if self.coordinate_scale is None else x / self.coordinate_scale

    def times_coordinate_scale(self, x: tf.Tensor) -> tf.Tensor:
        """The inverse of `over_coordinate_scale`."""
        return x if self.coordinate_scale is None else x * self.coordinate_scale

    def abs_steps(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns |ρ_t| and 1 - |ρ_t| of each step, `[..., d - 1]`."""
        rho, ones = self.rho, tf.ones([self.num_steps], self.dtype)
        size, one_minus_abs = (
            rho.along_steps(rho.sign * x) * ones for x in (rho.value, rho.signed_one_minus_abs)
        )
        return size, one_minus_abs

    def sign_flips(self) -> tf.Tensor:
        """Returns factors ±1, `[..., d]`, that make all correlations of the path positive."""
        signs = self.rho.along_steps(self.rho.sign) * tf.ones([self.num_steps], self.dtype)
        return recurrence.pad(tf.math.cumprod(signs, axis=-1), 1, 0, value=1.0)

    def reversed(self) -> Chain:
        """Returns the chain that runs from the last coordinate to the first."""
        scale, per_coordinate = self.shared_scale, self.coordinate_scale is not None
        if per_coordinate:
            scale = self.coordinate_scale[..., ::-1]
        return Chain(self.rho.reversed(), scale, per_coordinate, self.size)

    def diag_part(self) -> tf.Tensor:
        """Returns the diagonal of L, `[..., d]`: stddevs given the previous coordinate."""
        ones = tf.ones([self.size], self.dtype)
        return self.scale * recurrence.scaled(ones, self.rho, tf.ones([], self.dtype))

    def log_abs_determinant(self) -> tf.Tensor:
        """`log |det L| = Σ log σ_t + ½ Σ log(1 - ρ_t²)`, `[...]` (equation 5 of the paper)."""
        if self.coordinate_scale is None:
            log_scale = log_abs(self.shared_scale) * tf.cast(self.size, self.dtype)
        else:
            log_scale = total(log_abs(self.coordinate_scale), self.size)
        steps = self.rho.along_steps(self.rho.log1m_rho2)
        return log_scale + 0.5 * total(steps, self.num_steps)

    def correlation_matrix(self) -> tf.Tensor:
        """Returns all correlations `[..., d, d]`, for a chain `for_columns`, in O(d²)."""
        # As responses of the recurrence to unit vectors, so the gradient is the recurrence's too.
        identity = tf.eye(self.size, dtype=self.dtype)
        products = recurrence.recurrence(identity, self.rho)
        return products + tf.linalg.matrix_transpose(products) - identity


def widened(x: tf.Tensor) -> tf.Tensor:
    """Returns `x`, cast to float32 if it is in half precision; see `Chain.widened`."""
    return tf.cast(x, tf.float32) if dtype_util.size(x.dtype) < dtype_util.size(tf.float32) else x


@elementwise_gradient
def log_abs(x: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """`log |x|`, with its derivative 1/x in one operation."""
    return tf.math.log(tf.math.abs(x)), lambda dy: dy / x


def total(x: tf.Tensor, count: Any) -> tf.Tensor:
    """Sums `count` entries along the last axis of `x`, which has size 1 if they are equal."""
    size = tf.compat.dimension_value(x.shape[-1])
    if size == 1:
        x = tf.squeeze(x, axis=-1)
        # An empty sum is 0, even if the entry is infinite.
        is_none = not tf.is_tensor(count) and count == 0
        return tf.zeros_like(x) if is_none else x * tf.cast(count, x.dtype)
    if size is None:
        x = tf.broadcast_to(x, ps.concat([ps.shape(x)[:-1], [count]], axis=0))
    return tf.reduce_sum(x, axis=-1)

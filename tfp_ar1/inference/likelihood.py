"""A likelihood that factorizes over the coordinates of a path, and its derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow_probability.python.internal import dtype_util, tensorshape_util
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1._backend import gradients_of_first

__all__ = ["Likelihood"]


class Likelihood:
    """`log p(y_t | x_t)` at each coordinate of a path; 0 where nothing is observed.

    Args:
      path: the `GaussianMarkovChain` of event shape `[d]`.
      log_likelihood_fn: maps x, `[..., d]`, in the dtype of `path`, to the log-likelihoods.
      observed: boolean tensor `[..., d]`, or `None` for everywhere.

    Raises:
      ValueError: if the last dimension of the function's result, or of `observed`, is not d.
      TypeError: if the function's result does not have the dtype of `path`, or `observed` is not
        boolean.
    """

    def __init__(
        self, path: Any, log_likelihood_fn: Callable[[tf.Tensor], tf.Tensor], observed: Any
    ):
        self._function, self._observed = log_likelihood_fn, None
        # Any point where the function is defined.
        self._inside = tf.stop_gradient(path.mean())
        value = tf.convert_to_tensor(log_likelihood_fn(self._inside))
        if value.dtype != path.dtype:
            raise TypeError(
                f"`log_likelihood_fn` must return the dtype of the path, "
                f"{dtype_util.name(path.dtype)}; got {dtype_util.name(value.dtype)}."
            )
        _check_last_dimension(path, "the result of `log_likelihood_fn`", value)
        shape = ps.broadcast_shape(ps.shape(self._inside), ps.shape(value))
        if observed is not None:
            self._observed = tf.convert_to_tensor(observed, name="observed")
            if self._observed.dtype != tf.bool:
                raise TypeError(
                    f"`observed` must be boolean; got {dtype_util.name(self._observed.dtype)}."
                )
            if tensorshape_util.rank(self._observed.shape) != 0:
                _check_last_dimension(path, "`observed`", self._observed)
            shape = ps.broadcast_shape(shape, ps.shape(self._observed))
        self.shape = shape

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the log-likelihoods at x, `[..., d]`, in the dtype of x."""
        inside, dtype = self._inside, x.dtype
        x = tf.cast(x, inside.dtype)
        if self._observed is None:
            return tf.cast(self._function(x), dtype)
        # Two masks, so that NaN in unobserved y reaches neither the value nor the gradient.
        value = self._function(tf.where(self._observed, x, inside))
        return tf.cast(tf.where(self._observed, value, tf.zeros_like(value)), dtype)

    def derivatives(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns the log-likelihoods at x, their first derivatives, and minus the second ones."""

        def slope_and_value(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            (value,), (slope,) = gradients_of_first(lambda x: (self(x),), x)
            return slope, value

        (slope, value), (second,) = gradients_of_first(slope_and_value, x)
        return value, slope, -second

    def expectations(
        self, mean: tf.Tensor, stddev: tf.Tensor, nodes: Any, weights: Any
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns expectations under `N(mean, stddev²)`, and their derivatives in mean and stddev.

        Args:
          mean: `[..., d]`.
          stddev: of the same shape.
          nodes: quadrature nodes for the standard normal distribution, `[n]`.
          weights: quadrature weights, `[n]`, which sum to 1.
        """
        shape = ps.concat([[-1], ps.ones([ps.rank(mean)], tf.int32)], axis=0)
        nodes, weights = (tf.reshape(tf.constant(x, mean.dtype), shape) for x in (nodes, weights))

        def expectation(mean: tf.Tensor, stddev: tf.Tensor) -> tuple[tf.Tensor]:
            return (tf.reduce_sum(weights * self(mean + stddev * nodes), axis=0),)

        (value,), gradients = gradients_of_first(expectation, mean, stddev)
        return value, *gradients


def _check_last_dimension(path: Any, name: str, x: tf.Tensor) -> None:
    size = tf.compat.dimension_value(path.event_shape[-1])
    rank = tensorshape_util.rank(x.shape)
    last = 0 if rank == 0 else tf.compat.dimension_value(x.shape[-1]) if rank else None
    if None not in (size, last) and last != size:
        raise ValueError(
            f"The last dimension of {name} must be the event size {size}, with one entry for each "
            f"coordinate, not their sum; got shape {x.shape}."
        )

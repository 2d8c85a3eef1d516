"""The maximum mean discrepancy of two samples, and its witness function."""

from __future__ import annotations

import math

import tensorflow as tf
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1.recurrence import matmul


def maximum_mean_discrepancy(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """The squared maximum mean discrepancy (MMD) of two samples, with a Gaussian kernel.

    The kernel is `k(a, b) = exp(-‖a - b‖² / d²)`, as in the code that the authors of InfoVAE
    published for MNIST. The estimator is the biased one, a mean over all pairs, including each
    vector with itself. It is never negative, and for n and m draws from the same distribution its
    mean is `(1/n + 1/m) (1 - E[k(a, b)])` (Gretton et al., JMLR 13, 2012).

    Args:
      x: sample `[n, d]`, or `[n, ...]` with d numbers per draw.
      y: sample `[m, d]`, or `[m, ...]`.

    Returns:
      A scalar. Time and memory are O((n + m)²).
    """
    # A replica's share of the last batch can be empty; its mean is 0 here.
    return _mean(witness(x, x, y)) - _mean(witness(y, x, y))


def witness(points: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """The MMD's witness function: at each point, the mean kernel to x minus the mean kernel to y.

    The squared MMD of x and y is its mean over x minus its mean over y.

    Args:
      points: `[p, d]`, or `[p, ...]` with d numbers per point.
      x: sample `[n, d]`, or `[n, ...]`.
      y: sample `[m, d]`, or `[m, ...]`.

    Returns:
      Tensor `[p]`. Time and memory are O(p (n + m)).
    """
    return _mean(_kernel(points, x)) - _mean(_kernel(points, y))


def _mean(x: tf.Tensor) -> tf.Tensor:
    """Returns the mean over the last axis, 0 if it is empty."""
    return tf.math.divide_no_nan(tf.reduce_sum(x, axis=-1), tf.cast(ps.shape(x)[-1], x.dtype))


def _kernel(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """The Gram matrix `[n, m]` of the Gaussian kernel."""
    size = math.prod(x.shape[1:])
    x, y = (tf.reshape(a, [-1, size]) for a in (x, y))
    squares = [tf.reduce_sum(tf.square(a), axis=-1) for a in (x, y)]
    distances = squares[0][:, None] + squares[1] - 2 * matmul(x, y, transpose_b=True)
    # Rounding can make the distance of equal vectors negative.
    return tf.exp(-tf.maximum(distances, 0) / size**2)

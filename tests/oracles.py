"""Dense float64 references for the tests, by textbook formulas.

There are two, which share no code with the package: `Dense`, Gaussians as mean vectors and
covariance matrices in NumPy alone, and the functions `tf_*`, the same in TensorFlow operations, for
gradients. For correlations that float64 rounds to ±1, `exact.py` has decimals.
"""

import dataclasses
import functools
import math

import derivatives
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

tfd = tfp.distributions

# The tolerances of the whole suite, by kind of comparison and dtype. Relative to the largest entry
# of a vector or matrix; for scalars, relative to their size or one, whichever is larger, because a
# KL or a log density may be zero by cancellation.
TOLERANCE = {
    "value": {"float64": 1e-9, "float32": 3e-4},
    "gradient": {"float64": 1e-8, "float32": 3e-4},
    "second derivative": {"float64": 1e-7, "float32": 3e-3},
    "same computation": {"float64": 1e-12, "float32": 1e-5},  # eager, graph, XLA
    "finite difference": {"float64": 1e-6},
}

DTYPES = ("float32", "float64")
CORRELATIONS = (-0.95, -0.3, 0.0, 0.6, 0.99)
FLOAT32_MAX = float(np.finfo(np.float32).max)


def assert_close(
    actual, desired, what="value", event_ndims=0, dtype=None, err_msg="", at_least=0.0
):
    """Asserts equal shapes and, within `TOLERANCE[what]`, equal values.

    The last `event_ndims` dimensions hold one vector or matrix; the tolerance is relative to its
    largest entry or `at_least`, whichever is larger. `dtype` defaults to the dtype of `actual`.
    """
    actual = np.asarray(actual)
    desired = np.asarray(desired, np.float64)
    assert actual.shape == desired.shape, f"{err_msg}: shape {actual.shape}, not {desired.shape}"
    tolerance = TOLERANCE[what][dtype or actual.dtype.name]
    if event_ndims:
        axes = tuple(range(-event_ndims, 0))
        largest = np.max(np.abs(desired), axis=axes, keepdims=True, initial=0.0)
        scale = np.maximum(largest, at_least)
    else:
        scale = np.maximum(np.abs(desired), 1.0)
    bound = tolerance * scale + 1e-30  # For vectors of zeros.
    with np.errstate(invalid="ignore"):
        wrong = ~((np.abs(actual - desired) <= bound) | (actual == desired))
    if np.any(wrong):
        where = tuple(np.argwhere(wrong)[0])
        raise AssertionError(
            f"{err_msg or what}: {np.count_nonzero(wrong)} of {wrong.size} entries differ, "
            f"the first at {where}: {actual[where]} instead of {desired[where]}"
        )


# --- NumPy -------------------------------------------------------


def ar1_covariance(scale, correlation, size):
    """`scale² correlation^|i−j|`, batched over the shapes of scale and correlation."""
    lag = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    scale, correlation = (np.asarray(a, np.float64)[..., None, None] for a in (scale, correlation))
    return scale**2 * correlation**lag


def ar1_cholesky(scale, correlation, size):
    """The closed form of the Cholesky factor."""
    i, j = np.indices((size, size))
    scale, correlation = (np.asarray(a, np.float64)[..., None, None] for a in (scale, correlation))
    factor = scale * correlation ** np.maximum(i - j, 0)
    factor = np.where(j == 0, factor, np.sqrt(1 - correlation**2) * factor)
    return np.where(j <= i, factor, 0.0)


@dataclasses.dataclass(frozen=True)
class Dense:
    """A batch of Gaussians; mean `[..., d]` and covariance `[..., d, d]` broadcast."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def ar1(cls, loc, scale, correlation):
        """From the parameters that the package gets, at the precision in which it gets them."""
        loc = np.asarray(loc, np.float64)
        return cls(loc, ar1_covariance(scale, correlation, loc.shape[-1]))

    @property
    def size(self):
        return self.covariance.shape[-1]

    @property
    def batch_shape(self):
        return np.broadcast_shapes(self.mean.shape[:-1], self.covariance.shape[:-2])

    @functools.cached_property
    def factor(self):
        return np.linalg.cholesky(self.covariance)

    @functools.cached_property
    def log_det(self):
        return 2 * np.sum(np.log(np.diagonal(self.factor, axis1=-2, axis2=-1)), axis=-1)

    def log_prob(self, value):
        centred = np.asarray(value, np.float64) - self.mean
        batch = np.broadcast_shapes(self.batch_shape, centred.shape[:-1])
        factor = np.broadcast_to(self.factor, (*batch, self.size, self.size))
        centred = np.broadcast_to(centred, (*batch, self.size))
        whitened = np.linalg.solve(factor, centred[..., None])[..., 0]
        quadratic = np.sum(whitened**2, axis=-1)
        return -0.5 * (self.size * math.log(2 * math.pi) + self.log_det + quadratic)

    def entropy(self):
        entropy = 0.5 * (self.size * (1 + math.log(2 * math.pi)) + self.log_det)
        return np.broadcast_to(entropy, self.batch_shape)

    def kl(self, other):
        """KL(self ‖ other)."""
        batch = np.broadcast_shapes(self.batch_shape, other.batch_shape)
        precision = np.linalg.inv(other.covariance)
        trace = np.sum(precision * self.covariance, axis=(-2, -1))
        difference = self.mean - other.mean
        quadratic = np.einsum("...i,...ij,...j->...", difference, precision, difference)
        kl = 0.5 * (trace - self.size + quadratic + other.log_det - self.log_det)
        return np.broadcast_to(kl, batch)


# --- Dense TensorFlow, for gradients -----------------------------


def tf_covariance(scale, correlation, size):
    """`scale² correlation^|i−j|`; powers by multiplication, which has derivatives at zero too."""
    # The factor 0 keeps the correlation connected at size one.
    powers = [1.0 + 0.0 * correlation]
    for _ in range(size - 1):
        powers.append(powers[-1] * correlation)
    lag = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    toeplitz = tf.gather(tf.stack(powers, axis=-1), lag, axis=-1)
    return scale[..., tf.newaxis, tf.newaxis] ** 2 * toeplitz


def tf_antedependent_correlations(correlation):
    """The products `ρ_(j+1) … ρ_i`, `[..., d, d]`, of neighbours' correlations `[..., d - 1]`."""
    size = correlation.shape[-1] + 1
    # The factor 0 keeps the correlation connected at size one.
    row = tf.one_hot(0, size, dtype=correlation.dtype)
    row += 0 * tf.reduce_sum(correlation, axis=-1, keepdims=True)
    rows = [row]
    for t in range(1, size):
        row = correlation[..., t - 1, tf.newaxis] * row
        row += tf.one_hot(t, size, dtype=correlation.dtype)
        rows.append(row)
    lower = tf.stack(rows, axis=-2)
    return lower + tf.linalg.matrix_transpose(lower) - tf.eye(size, dtype=correlation.dtype)


def tf_ar1(loc, scale, correlation):
    """The AR(1) distribution by a dense Cholesky factorization."""
    covariance = tf_covariance(scale, correlation, loc.shape[-1])
    return tfd.MultivariateNormalTriL(loc, tf.linalg.cholesky(covariance))


def tf_kl(p, q):
    """KL(p ‖ q) for pairs `(mean, covariance)`."""
    (p_mean, p_covariance), (q_mean, q_covariance) = p, q
    p_factor, q_factor = tf.linalg.cholesky(p_covariance), tf.linalg.cholesky(q_covariance)
    trace = tf.linalg.trace(tf.linalg.cholesky_solve(q_factor, p_covariance))
    difference = (p_mean - q_mean)[..., tf.newaxis]
    whitened = tf.linalg.triangular_solve(q_factor, difference)
    quadratic = tf.reduce_sum(whitened**2, axis=[-2, -1])
    log_dets = [
        2 * tf.reduce_sum(tf.math.log(tf.linalg.diag_part(f)), -1) for f in (p_factor, q_factor)
    ]
    return 0.5 * (trace - p_mean.shape[-1] + quadratic + log_dets[1] - log_dets[0])


def tf_gradients(function, arguments, weights=None):
    """Gradients of `sum(function(*arguments) * weights)`; arguments and results are arrays."""
    arguments = [tf.convert_to_tensor(a) for a in arguments]

    def weighted(*arguments):
        result = function(*arguments)
        return result if weights is None else result * tf.cast(weights, result.dtype)

    return [np.asarray(g) for g in derivatives.gradients(weighted, arguments)]


def second_derivatives(function, x):
    """Second derivatives of a function of one vector in three directions, by two tapes."""
    x, found = np.asarray(x), []
    for direction in np.random.default_rng(0).normal(size=(3, x.size)):

        def slope(t, direction=direction):
            return derivatives.gradients(lambda t: function(x + t * direction), [t])[0]

        found.append(derivatives.gradients(slope, [tf.zeros([], x.dtype)])[0])
    return tf.stack(found)


def as_float64(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]

"""What the tests compare with: dense, in float64 or finer, written as the textbook has it.

Three of them, which share no code with the package:

* `Dense`: Gaussians as mean vectors and covariance matrices, NumPy only.
* `tf_*`: the same with TensorFlow operations on dense float64 matrices, for gradients.
* `Exact`: one dense Gaussian in 200-digit decimals, for correlations that float64 rounds to ±1.
"""

import dataclasses
import decimal
import functools
import itertools
import math

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

tfd = tfp.distributions

# The tolerances of the whole suite, by what is compared and by dtype. Relative to the largest entry
# of the vector or matrix; for scalars to their size or to one, whichever is larger, because a KL or
# a log density may be zero by cancellation.
TOLERANCE = {
    "value": {"float64": 1e-9, "float32": 3e-4},
    "gradient": {"float64": 1e-8, "float32": 3e-4},
    "second derivative": {"float64": 1e-7, "float32": 3e-3},
    "same computation": {"float64": 1e-12, "float32": 1e-5},  # eager, graph, XLA
    "without cancellation": {"float32": 1e-5},
    "finite difference": {"float64": 1e-6},
}

DTYPES = ("float32", "float64")
SIZES = (1, 2, 3, 5, 17, 64, 700)
CORRELATIONS = (-0.95, -0.3, 0.0, 0.6, 0.99)
FLOAT32_MAX = float(np.finfo(np.float32).max)


def assert_close(
    actual, desired, what="value", event_ndims=0, dtype=None, err_msg="", at_least=0.0
):
    """Asserts equality of shape and, within `TOLERANCE[what]`, of value.

    The last `event_ndims` dimensions hold one vector or matrix, whose largest entry counts as
    `at_least` so large; `dtype` defaults to `actual`'s.
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
    bound = tolerance * scale + 1e-30  # a vector of zeros
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
    """The closed form of the Cholesky factor; `test_oracles` compares it with LAPACK's."""
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
        """From the parameters as the package gets them, at the precision in which it gets them."""
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
    """`scale² correlation^|i−j|`; powers by multiplication, whose derivatives exist at zero too."""
    # Connected at size one too.
    powers = [1.0 + 0.0 * correlation]
    for _ in range(size - 1):
        powers.append(powers[-1] * correlation)
    lag = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    toeplitz = tf.gather(tf.stack(powers, axis=-1), lag, axis=-1)
    return scale[..., tf.newaxis, tf.newaxis] ** 2 * toeplitz


def tf_antedependent_correlations(correlation):
    """The products `ρ_(j+1) … ρ_i`, `[..., d, d]`, of correlations `[..., d - 1]` of neighbours."""
    size = correlation.shape[-1] + 1
    # Connected at size one too.
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
    """KL(p ‖ q) of pairs `(mean, covariance)`."""
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
    """Gradients of `sum(function(*arguments) * weights)`; arguments are arrays, results too."""
    arguments = [tf.convert_to_tensor(a) for a in arguments]
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        result = function(*arguments)
    if weights is not None:
        weights = tf.cast(weights, result.dtype)
    gradients = tape.gradient(result, arguments, output_gradients=weights)
    assert all(g is not None for g in gradients), "a gradient is missing"
    return [g.numpy() for g in gradients]


def hessian(function, x):
    """Of a function of one vector, by two tapes."""
    with tf.GradientTape() as outer:
        x = tf.constant(x)
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            value = function(x)
        gradient = inner.gradient(value, x)
    return outer.jacobian(gradient, x)


def as_float64(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


# --- Exact: 200 digits -------------------------------------------

_CONTEXT = decimal.Context(prec=200, Emin=-(10**6), Emax=10**6)


def _exactly(method):
    """Runs a method with 200 digits and returns a float."""

    @functools.wraps(method)
    def run(*args):
        with decimal.localcontext(_CONTEXT):
            return float(method(*args))

    return run


def _decimal(x):
    return x if isinstance(x, decimal.Decimal) else decimal.Decimal(float(x))


@dataclasses.dataclass(frozen=True)
class Exact:
    """One AR(1) Gaussian from its mean (a sequence), its marginal scale, and atanh of ρ.

    Everything is computed from the dense covariance and without care: the digits do it. The
    arguments are taken as they are; float32 inputs must be rounded to float32 before.
    """

    mean: tuple
    scale: object
    fisher_z: object

    def correlation(self):
        e = (2 * _decimal(self.fisher_z)).exp()
        return (e - 1) / (e + 1)

    def covariance(self):
        size = len(self.mean)
        s, rho = _decimal(self.scale) ** 2, self.correlation()
        # Decimal refuses 0 ** 0.
        return [
            [s * (rho ** abs(i - j) if i != j else 1) for j in range(size)] for i in range(size)
        ]

    def factor(self):
        """Cholesky–Banachiewicz on the covariance."""
        size, c = len(self.mean), self.covariance()
        low = [[decimal.Decimal(0)] * size for _ in range(size)]
        for i in range(size):
            for j in range(i + 1):
                rest = c[i][j] - sum(low[i][k] * low[j][k] for k in range(j))
                low[i][j] = rest.sqrt() if i == j else rest / low[j][j]
        return low

    @staticmethod
    def _solve(low, column):
        solution = []
        for i, row in enumerate(low):
            rest = column[i] - sum(row[k] * solution[k] for k in range(i))
            solution.append(rest / row[i])
        return solution

    @staticmethod
    def _log_det(low):
        return 2 * sum(low[i][i].ln() for i in range(len(low)))

    def _log_prob(self, value):
        low = self.factor()
        centred = [_decimal(x) - _decimal(m) for x, m in zip(value, self.mean, strict=True)]
        quadratic = sum(e * e for e in self._solve(low, centred))
        return -(len(low) * _log_two_pi() + self._log_det(low) + quadratic) / 2

    def _kl(self, other):
        low, other_low = self.factor(), other.factor()
        size = len(low)
        trace = sum(
            e * e
            for j in range(size)
            for e in self._solve(other_low, [low[i][j] for i in range(size)])
        )
        difference = [_decimal(m) - _decimal(n) for m, n in zip(self.mean, other.mean, strict=True)]
        quadratic = sum(e * e for e in self._solve(other_low, difference))
        return (trace - size + quadratic + self._log_det(other_low) - self._log_det(low)) / 2

    def _entropy(self):
        low = self.factor()
        return (len(low) * (1 + _log_two_pi()) + self._log_det(low)) / 2

    log_prob = _exactly(_log_prob)
    kl = _exactly(_kl)
    entropy = _exactly(_entropy)

    def _derivative(self, function, field, index=None):
        """Central difference with a step of 1e-60: with 200 digits, exact for every purpose.

        In a field that is a number, or in one entry of a field that is a sequence.
        """
        step = decimal.Decimal("1e-60")

        def moved(h):
            x = getattr(self, field)
            if index is None:
                return dataclasses.replace(self, **{field: _decimal(x) + h})
            entries = [_decimal(e) + (h if i == index else 0) for i, e in enumerate(x)]
            return dataclasses.replace(self, **{field: tuple(entries)})

        return (function(moved(step)) - function(moved(-step))) / (2 * step)

    @_exactly
    def log_prob_derivative(self, value, field, index=None):
        return self._derivative(lambda p: p._log_prob(value), field, index)

    def log_prob_gradient(self, value):
        """In the value; the density is one of the value less the mean."""

        @_exactly
        def partial(i):
            step = decimal.Decimal("1e-60")
            up, down = ([_decimal(x) for x in value] for _ in range(2))
            up[i] += step
            down[i] -= step
            return (self._log_prob(up) - self._log_prob(down)) / (2 * step)

        return [partial(i) for i in range(len(self.mean))]

    @_exactly
    def kl_derivative(self, other, field, index=None):
        return self._derivative(lambda p: p._kl(other), field, index)

    @_exactly
    def kl_derivative_other(self, other, field, index=None):
        return other._derivative(lambda q: self._kl(q), field, index)

    @_exactly
    def entropy_derivative(self, field):
        return self._derivative(lambda p: p._entropy(), field)


class ExactChain(Exact):
    """One Gaussian Markov chain: an entry of `scale` per coordinate, of `fisher_z` per step."""

    def covariance(self):
        scales = [_decimal(s) for s in self.scale]
        rho = [dataclasses.replace(self, fisher_z=u).correlation() for u in self.fisher_z]
        rows = [[scales[i] * scales[j] for j in range(len(scales))] for i in range(len(scales))]
        for i, row in enumerate(rows):
            for j in range(len(row)):
                for t in range(min(i, j), max(i, j)):
                    row[j] *= rho[t]
        return rows

    @classmethod
    def ou(cls, mean, scale, length_scale, times):
        """The Ornstein–Uhlenbeck process, whose correlations are `exp(-Δτ / ℓ)`."""
        with decimal.localcontext(_CONTEXT):
            times = [_decimal(t) for t in times]
            fisher_z = []
            for before, after in itertools.pairwise(times):
                rho = ((before - after) / _decimal(length_scale)).exp()
                fisher_z.append(((1 + rho) / (1 - rho)).ln() / 2)
        return cls(mean, (scale,) * len(mean), tuple(fisher_z))


@functools.cache
def _log_two_pi():
    """log 2π with π by Machin's formula."""

    def arctan_of_inverse(n):
        power, total, k = decimal.Decimal(1) / n, decimal.Decimal(0), 0
        while abs(power) > decimal.Decimal("1e-198"):
            total += power / (2 * k + 1) * (-1) ** k
            power /= n * n
            k += 1
        return total

    with decimal.localcontext(_CONTEXT):
        pi = 4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239))
        return (2 * pi).ln()


def check_inverses(operator, x, whitened, whitened_adjoint):
    """Checks what `operator` gives by its inverses and adjoints: C⁻¹ x and C⁻ᵀ x are known."""
    for name, actual, expected in (
        ("inverse", operator.inverse().matvec(x), whitened),
        ("inverse of adjoint", operator.adjoint().inverse().matvec(x), whitened_adjoint),
        ("adjoint of inverse", operator.inverse().adjoint().matvec(x), whitened_adjoint),
        ("inverse of inverse", operator.inverse().inverse().matvec(whitened), x),
        ("adjoint", operator.adjoint().matvec(whitened_adjoint), x),
        ("adjoint of adjoint", operator.adjoint().adjoint().matvec(whitened), x),
        ("adjoint's solve", operator.adjoint().solvevec(x), whitened_adjoint),
    ):
        assert_close(actual, expected, event_ndims=1, err_msg=name)

"""Second derivatives and JVPs of compiled functions, against dense matrices in float64.

Around a `tf.function`, in control flow, after loading: there, gradient functions are differentiated
in other graphs than that in which they were made. Eager second derivatives are in the other files.
"""

import decimal
import pathlib
import subprocess
import sys

import numpy as np
import oracles
import pytest
import tensorflow as tf
from family import AR1S, RELATIVES
from oracles import tfd
from tensorflow_probability.python.internal import samplers

from tfp_ar1 import MultivariateNormalAR1, recurrence
from tfp_ar1.correlation import LagOneCorrelation
from tfp_ar1.distributions.kl import kl_terms, log_prob_terms

MEMBERS = AR1S | RELATIVES


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def parameters_along(case, size):
    """Random parameters, as a function of the place on a line."""
    rng = np.random.default_rng(3)
    start = case.parameters(rng, (), size)
    steps = [0.1 * rng.uniform(0.1, 1, np.shape(p)) for p in start]
    if "correlation" in case.names:
        steps[-1] *= 1 - np.square(start[-1])
    if "times" in case.names:
        steps[-1] = np.cumsum(steps[-1])
    return lambda t: [p + t * s for p, s in zip(start, steps, strict=True)]


# --- Results, of the package and dense ---------------------------------------------------------


def observed(size):
    return np.arange(size) % 3 == 1


OTHER = {"marginal_scale": 1.2, "fisher_z": 0.7}


def results(case, parameters, size):
    """Scalars, each of another public result."""
    x, noise, weights = draw(3, size)
    p = case.distribution(*parameters)
    q = MultivariateNormalAR1(noise, **OTHER)
    diag = tfd.MultivariateNormalDiag(noise, np.abs(weights) + 0.5)
    conditional = p.conditional(x, observed(size))
    sample, log_prob = p.experimental_sample_and_log_prob(seed=[1, 2])
    return {
        "sample": p.sample(seed=[1, 2]),
        "sample_and_log_prob": tf.concat([sample, [log_prob]], axis=0),
        "log_prob": p.log_prob(x),
        "log_prob_terms": log_prob_terms(p, x),
        "entropy": p.entropy(),
        "kl to a chain": p.kl_divergence(q),
        "kl from a chain": q.kl_divergence(p),
        "kl to independent normals": p.kl_divergence(diag),
        "kl from independent normals": diag.kl_divergence(p),
        "kl_terms": kl_terms(p, q),
        "conditional mean": conditional.mean(),
        "conditional variance": conditional.variance(),
        "conditional sample": conditional.sample(seed=[1, 2]),
        "log-likelihood": conditional.observed_log_prob(),
        "marginal": p.marginal(0, None, 3).log_prob(x[::3]),
        "covariance": p.covariance(),
        "variance": p.variance(),
        "precision": p.precision().matvec(x),
        "matvec": p.scale.matvec(x),
        "matvec of adjoint": p.scale.matvec(x, adjoint=True),
        "solvevec": p.scale.solvevec(x),
        "solvevec of adjoint": p.scale.solvevec(x, adjoint=True),
        "log_abs_determinant": p.scale.log_abs_determinant(),
    }


def dense_results(case, parameters, size):
    """The same by textbook formulas."""
    x, noise, weights = draw(3, size)
    mean, covariance = case.moments(*parameters, size=size)
    factor = tf.linalg.cholesky(covariance)
    p = tfd.MultivariateNormalTriL(mean, factor)
    q = (
        tf.constant(noise),
        oracles.tf_covariance(tf.constant(1.2, "float64"), tf.constant(np.tanh(0.7)), size),
    )
    diag = (tf.constant(noise), tf.linalg.diag(tf.square(np.abs(weights) + 0.5)))
    given = np.flatnonzero(observed(size))
    across = tf.gather(covariance, given, axis=1)
    of_given = tf.gather(across, given)
    by_value = tf.transpose(tf.linalg.solve(of_given, tf.transpose(across)))
    given_mean = tf.gather(mean, given)
    conditional_mean = mean + tf.linalg.matvec(by_value, x[given] - given_mean)
    conditional_covariance = covariance - tf.linalg.matmul(by_value, across, transpose_b=True)
    given_law = tfd.MultivariateNormalTriL(given_mean, tf.linalg.cholesky(of_given))
    kept = np.arange(0, size, 3)
    kept_covariance = tf.gather(tf.gather(covariance, kept), kept, axis=1)
    kept_law = tfd.MultivariateNormalTriL(
        tf.gather(mean, kept), tf.linalg.cholesky(kept_covariance)
    )

    def solve(x, adjoint=False):
        x = tf.convert_to_tensor(x)[:, tf.newaxis]
        return tf.linalg.triangular_solve(factor, x, adjoint=adjoint)[:, 0]

    # The noise of the draws, which does not depend on the parameters.
    law = case.distribution(*parameters)
    draws = (law.sample(seed=[1, 2]), law.experimental_sample_and_log_prob(seed=[1, 2])[0])
    noises = [tf.stop_gradient(solve(draw - mean)) for draw in draws]
    noises.append(samplers.normal([size], dtype=mean.dtype, seed=[1, 2]))
    draws = [mean + tf.linalg.matvec(factor, n) for n in noises]
    off_value = x[given] - tf.gather(draws[2], given)
    log_normal = tf.reduce_sum(np.log(2 * np.pi) + tf.square(noises[1])) / 2
    log_determinant = tf.reduce_sum(tf.math.log(tf.linalg.diag_part(factor)))
    kl_of_first = [
        oracles.tf_kl((mean[:n], covariance[:n, :n]), (q[0][:n], q[1][:n, :n]))
        for n in range(1, size + 1)
    ]
    return {
        "sample": draws[0],
        "sample_and_log_prob": tf.concat([draws[1], [-log_normal - log_determinant]], axis=0),
        "log_prob": p.log_prob(x),
        "log_prob_terms": -0.5 * (tf.square(solve(x - mean)) + np.log(2 * np.pi))
        - tf.math.log(tf.linalg.diag_part(factor)),
        "entropy": p.entropy(),
        "kl to a chain": oracles.tf_kl((mean, covariance), q),
        "kl from a chain": oracles.tf_kl(q, (mean, covariance)),
        "kl to independent normals": oracles.tf_kl((mean, covariance), diag),
        "kl from independent normals": oracles.tf_kl(diag, (mean, covariance)),
        "kl_terms": tf.stack(kl_of_first) - tf.stack([0.0 * kl_of_first[0], *kl_of_first[:-1]]),
        "conditional mean": conditional_mean,
        "conditional variance": tf.linalg.diag_part(conditional_covariance),
        "conditional sample": draws[2] + tf.linalg.matvec(by_value, off_value),
        "log-likelihood": given_law.log_prob(x[given]),
        "marginal": kept_law.log_prob(x[::3]),
        "covariance": covariance,
        "variance": tf.linalg.diag_part(covariance),
        "precision": tf.linalg.cholesky_solve(factor, x[:, np.newaxis])[:, 0],
        "matvec": tf.linalg.matvec(factor, x),
        "matvec of adjoint": tf.linalg.matvec(factor, x, transpose_a=True),
        "solvevec": solve(x),
        "solvevec of adjoint": solve(x, adjoint=True),
        "log_abs_determinant": log_determinant,
    }


def total(results):
    """A nonlinear function of all of them."""
    entries = tf.concat([tf.reshape(r, [-1]) for r in results.values()], axis=0)
    weights = np.cos(np.arange(1.0, entries.shape[0] + 1.0))
    return tf.reduce_sum(weights * entries + 0.01 * tf.square(entries))


# --- Derivatives --------------------------------------------------------------------------------


def differences(function, step=0.1):
    """The first and second derivative at 0, by central differences of the eighth order."""
    first = np.array([3, -32, 168, -672, 0, 672, -168, 32, -3]) / (840 * step)
    second = np.array([-9, 128, -1008, 8064, -14350, 8064, -1008, 128, -9]) / (5040 * step**2)
    values = [function(tf.constant(step * k, "float64")) for k in range(-4, 5)]
    return first @ values, second @ values


def reverse_over_reverse(function, t):
    with tf.GradientTape() as outer:
        outer.watch(t)
        with tf.GradientTape() as inner:
            inner.watch(t)
            y = function(t)
        first = inner.gradient(y, t)
    return first, outer.gradient(first, t)


def forward_over_reverse(function, t):
    with tf.autodiff.ForwardAccumulator(t, tf.ones_like(t)) as accumulator:
        with tf.GradientTape() as tape:
            tape.watch(t)
            y = function(t)
        first = tape.gradient(y, t)
    return accumulator.jvp(y), accumulator.jvp(first)


def compiled(function, **options):
    return tf.function(function, autograph=False, **options)


def check(derivatives, expected):
    oracles.assert_close(derivatives[0], expected[0], "gradient")
    oracles.assert_close(derivatives[1], expected[1], "second derivative")


AT = tf.zeros([], "float64")


@pytest.mark.slow
@pytest.mark.parametrize("member", ["AR1 by fisher_z", "ANTE1 by fisher_z", "OU"])
def test_every_result(member):
    case, size = MEMBERS[member], 4
    parameters = parameters_along(case, size)
    expected = differences(lambda t: total(dense_results(case, parameters(t), size)))
    function = compiled(lambda t: total(results(case, parameters(t), size)))
    check(reverse_over_reverse(function, AT), expected)


def few(member, size=3):
    """Of the package and dense, as functions of a number."""
    case, x = MEMBERS[member], draw(size)
    parameters = parameters_along(case, size)

    def ours(t):
        p = case.distribution(*parameters(t))
        return total({"log_prob": p.log_prob(x), "matvec": p.scale.matvec(x)})

    def dense(t):
        mean, covariance = case.moments(*parameters(t), size=size)
        p = tfd.MultivariateNormalTriL(mean, tf.linalg.cholesky(covariance))
        return total({"log_prob": p.log_prob(x), "matvec": p.scale.matvec(x)})

    return ours, dense


def in_while_loop(function):
    def loop(t):
        return tf.while_loop(
            lambda i, _: i < 2,
            lambda i, total: (i + 1, total + 0.5 * function(t)),
            (0, tf.zeros_like(t)),
            maximum_iterations=2,
        )[1]

    return loop


def in_cond(function):
    return lambda t: tf.cond(t < 1.0, lambda: function(t), lambda: t)


# What is around a function of a number.
PLACES = {
    "function": (reverse_over_reverse, compiled),
    "function, forward": (forward_over_reverse, compiled),
    "function in a function": (
        lambda f, t: compiled(lambda t: reverse_over_reverse(compiled(f), t))(t),
        lambda f: f,
    ),
    "cond": (lambda f, t: compiled(lambda t: reverse_over_reverse(f, t))(t), in_cond),
    "function with cond": (reverse_over_reverse, lambda f: compiled(in_cond(f))),
    "while_loop": (lambda f, t: compiled(lambda t: reverse_over_reverse(f, t))(t), in_while_loop),
    "map_fn": (
        reverse_over_reverse,
        lambda f: compiled(lambda t: tf.reduce_mean(tf.map_fn(f, tf.stack([t, t])))),
    ),
    "XLA": (
        lambda f, t: compiled(lambda t: reverse_over_reverse(f, t), jit_compile=True)(t),
        in_cond,
    ),
    "vectorized_map": (
        reverse_over_reverse,
        lambda f: compiled(lambda t: tf.reduce_mean(tf.vectorized_map(f, tf.stack([t, t])))),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_in_every_place(place):
    ours, dense = few("AR1 by fisher_z")
    derivatives, around = PLACES[place]
    check(derivatives(around(ours), AT), differences(dense))


@pytest.mark.slow
@pytest.mark.parametrize(("member", "size"), [("OU", 3), ("ARH1", 260), ("ANTE1 by fisher_z", 130)])
def test_of_a_function(member, size):
    """Long enough for blocks, two of them."""
    ours, dense = few(member, size)
    check(forward_over_reverse(compiled(ours), AT), differences(dense))


LOAD = """
import sys
import tensorflow as tf
from test_derivatives import AT, forward_over_reverse, reverse_over_reverse

loaded = tf.saved_model.load(sys.argv[1])
for derivatives in reverse_over_reverse, forward_over_reverse:
    print("derivatives", *(float(x) for x in derivatives(loaded.f, AT)))
"""


@pytest.mark.slow
def test_after_loading(tmp_path):
    """In another process, and without a warning of custom gradients."""
    ours, dense = few("AR1 by fisher_z")
    module = tf.Module()
    module.f = tf.function(ours, [tf.TensorSpec([], "float64")], autograph=False)
    tf.saved_model.save(module, str(tmp_path))
    run = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=pathlib.Path(__file__).parents[1],
    )
    assert "gradient" not in run.stderr
    lines = [line for line in run.stdout.splitlines() if line.startswith("derivatives")]
    for line in lines:
        check([np.float64(x) for x in line.split()[1:]], differences(dense))
    assert len(lines) == 2


# --- Accuracy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("u", [11.0, -20.0, 1e-4, 0.7])
def test_second_derivatives_in_fisher_z_keep_their_accuracy(u):
    """In float32, where ρ rounds to ±1 and next to 0; against decimals of 200 digits."""
    x = np.float32([0.5, -1.0, 0.3])
    step = decimal.Decimal("1e-40")

    def exact(function):
        with decimal.localcontext(decimal.Context(prec=200, Emin=-(10**6), Emax=10**6)):
            at = decimal.Decimal(float(np.float32(u)))
            laws = [oracles.Exact((0, 0, 0), 1, at + k * step) for k in (-1, 0, 1)]
            before, here, after = (function(law) for law in laws)
            return float((after - 2 * here + before) / step**2)

    @compiled
    def second(u):
        def derivative(result):
            def function(u):
                p = MultivariateNormalAR1(tf.zeros(3), 1.0, fisher_z=u)
                return p.log_prob(x) if result == "log_prob" else p.entropy()

            return reverse_over_reverse(function, u)[1]

        return derivative("log_prob"), derivative("entropy")

    log_prob, entropy = second(tf.constant(u, "float32"))
    np.testing.assert_allclose(log_prob, exact(lambda p: p._log_prob(x)), rtol=2e-5)
    np.testing.assert_allclose(entropy, exact(lambda p: p._entropy()), rtol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "rho"), [(6, 0.0), (6, 1e-30), (40, -0.3), (300, 0.0)])
def test_to_any_order_next_to_no_correlation(rho, size):
    """Of a polynomial in ρ; a function that drops custom gradients gives the same."""
    x, weights = draw(2, size)

    def function(rho):
        y = recurrence.recurrence(tf.constant(x), LagOneCorrelation(rho))
        return tf.reduce_sum(weights * y)

    def mapped(rho):
        return tf.vectorized_map(function, rho[tf.newaxis])[0]

    def derivatives(function, rho):
        first, second = reverse_over_reverse(function, rho)
        with tf.GradientTape() as tape:
            tape.watch(rho)
            below = reverse_over_reverse(function, rho)[1]
        return first, second, tape.gradient(below, rho)

    coefficients = [weights[k:] @ x[: size - k] for k in range(size)]
    polynomial = np.polynomial.Polynomial(coefficients)
    expected = [polynomial.deriv(k)(rho) for k in (1, 2, 3)]
    for f in (function, mapped):
        actual = compiled(lambda rho, f=f: derivatives(f, rho))(tf.constant(rho, "float64"))
        oracles.assert_close(tf.stack(actual), expected, "second derivative")

"""Second derivatives and JVPs of compiled functions, against differences of their values.

Around a `tf.function`, in control flow, after loading: there, gradient functions are differentiated
in other graphs than that in which they were made. Eager second derivatives are in the other files.
"""

import decimal
import os
import subprocess
import sys

import derivatives
import family
import numpy as np
import oracles
import pytest
import tensorflow as tf
from exact import Exact
from family import MEMBERS, OTHERS, SIZE, STATISTICS, Statistic, compute, constant, kl, kl_terms

from tfp_ar1 import MultivariateNormalAR1, recurrence
from tfp_ar1.correlation import LagOneCorrelation


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


def total(results):
    """A nonlinear function of all of them."""
    entries = tf.concat([tf.reshape(r, [-1]) for r in results.values()], axis=0)
    weights = np.cos(np.arange(1.0, entries.shape[0] + 1.0))
    return tf.reduce_sum(weights * entries + 0.01 * tf.square(entries))


def along(member, table, size=SIZE):
    """What is in the table, of a distribution on a line, as a function of the place on it."""
    case, x = MEMBERS[member], draw(size)
    parameters = parameters_along(case, size)
    return lambda t: total(compute(case.distribution(*parameters(t)), x, table))


def differences(function, step=0.1):
    """The first and second derivative at 0, by central differences of the eighth order."""
    first = np.array([3, -32, 168, -672, 0, 672, -168, 32, -3]) / (840 * step)
    second = np.array([-9, 128, -1008, 8064, -14350, 8064, -1008, 128, -9]) / (5040 * step**2)
    values = [function(tf.constant(step * k, "float64")) for k in range(-4, 5)]
    return first @ values, second @ values


def reverse_over_reverse(function, t):
    def slope(t):
        return derivatives.gradients(function, [t])[0]

    first, second = derivatives.values_and_gradients(lambda t: {"slope": slope(t)}, [t])
    return first["slope"], second["slope"][0]


def compiled(function, **options):
    return tf.function(function, autograph=False, **options)


def check(derivatives, expected):
    oracles.assert_close(derivatives[0], expected[0], "gradient")
    oracles.assert_close(derivatives[1], expected[1], "second derivative")


AT = tf.zeros([], "float64")


KLS = {
    f"{name}, reverse={reverse}": Statistic(
        lambda p, x, make=make, reverse=reverse: kl(p, make(constant), reverse), 0, "lsc"
    )
    for name, make in OTHERS.items()
    for reverse in (False, True)
}
TERMS = {
    "log_prob_terms": Statistic(lambda p, x: family.log_prob_terms(p, x), 1, "lsc"),
    "kl_terms": Statistic(lambda p, x: kl_terms(p, OTHERS["AR1"](constant)), 1, "lsc"),
}
# Some results are enough where it is the place that matters.
SOME = {name: STATISTICS[name] for name in ("log_prob", "scale.matvec")}


@pytest.mark.slow
@pytest.mark.parametrize("member", ["AR1 by fisher_z", "ANTE1 by fisher_z", "OU"])
def test_every_result(member):
    function = along(member, STATISTICS | KLS | TERMS)
    check(reverse_over_reverse(compiled(function), AT), differences(function))


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
    "function, forward": (derivatives.forward_over_reverse, compiled),
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
    function = along("AR1 by fisher_z", SOME)
    differentiate, around = PLACES[place]
    check(differentiate(around(function), AT), differences(function))


@pytest.mark.slow
@pytest.mark.parametrize(("member", "size"), [("OU", 3), ("ARH1", 260), ("ANTE1 by fisher_z", 130)])
def test_of_a_function(member, size):
    """Long enough for blocks, two of them."""
    function = along(member, SOME, size)
    check(derivatives.forward_over_reverse(compiled(function), AT), differences(function))


LOAD = """
import sys
import tensorflow as tf
from derivatives import forward_over_reverse
from test_derivatives import AT, reverse_over_reverse

loaded = tf.saved_model.load(sys.argv[1])
for differentiate in reverse_over_reverse, forward_over_reverse:
    print("derivatives", *(float(x) for x in differentiate(loaded.f, AT)))
"""


@pytest.mark.slow
def test_after_loading(tmp_path):
    """In another process, and without a warning of custom gradients."""
    function = along("AR1 by fisher_z", SOME)
    module = tf.Module()
    module.f = tf.function(function, [tf.TensorSpec([], "float64")], autograph=False)
    tf.saved_model.save(module, str(tmp_path))
    run = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "gradient" not in run.stderr
    lines = [line for line in run.stdout.splitlines() if line.startswith("derivatives")]
    for line in lines:
        check([np.float64(x) for x in line.split()[1:]], differences(function))
    assert len(lines) == 2


@pytest.mark.parametrize("u", [11.0, -20.0, 1e-4, 0.7])
def test_second_derivatives_in_fisher_z_keep_their_accuracy(u):
    """In float32, where ρ rounds to ±1 and next to 0; against decimals of 200 digits."""
    x = np.float32([0.5, -1.0, 0.3])
    step = decimal.Decimal("1e-40")

    def exact(function):
        with decimal.localcontext(decimal.Context(prec=200, Emin=-(10**6), Emax=10**6)):
            at = decimal.Decimal(float(np.float32(u)))
            chains = [Exact((0, 0, 0), 1, at + k * step) for k in (-1, 0, 1)]
            before, here, after = (function(p) for p in chains)
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
    np.testing.assert_allclose(log_prob, exact(lambda p: p.log_prob(x)), rtol=2e-5)
    np.testing.assert_allclose(entropy, exact(lambda p: p.entropy()), rtol=2e-6)


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

    def three(function, rho):
        first, second = reverse_over_reverse(function, rho)
        (third,) = derivatives.gradients(lambda rho: reverse_over_reverse(function, rho)[1], [rho])
        return first, second, third

    coefficients = [weights[k:] @ x[: size - k] for k in range(size)]
    polynomial = np.polynomial.Polynomial(coefficients)
    expected = [polynomial.deriv(k)(rho) for k in (1, 2, 3)]
    for f in (function, mapped):
        actual = compiled(lambda rho, f=f: three(f, rho))(tf.constant(rho, "float64"))
        oracles.assert_close(tf.stack(actual), expected, "second derivative")

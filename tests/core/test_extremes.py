"""Correlations next to ±1 and next to 0, length scales of any size, and a million coordinates."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from exact import Exact
from family import (
    CONDITIONAL,
    DISTRIBUTION,
    MEMBERS,
    SEED,
    assert_all_close,
    cast,
    compute,
    draw,
    random_parameters,
)

import tfp_ar1
from tfp_ar1 import MultivariateNormalAR1, MultivariateNormalOU

tfd = tfp.distributions

# --- AR(1), from independence to correlations that float32, and at last float64, rounds to one ----

FISHER_Z = np.float32([0, 1e-4, -1e-4, 3, -3, 9, -9, 20, -20, 40, -40, 60, -60])
UP_TO_40 = np.abs(FISHER_Z) <= 40


def exact_ar1(size=5):
    return [Exact((0.0,) * size, np.float32(1.3), u) for u in FISHER_Z]


def ar1(u=FISHER_Z, scale=1.3, size=5, loc=0.0):
    return MultivariateNormalAR1(tf.fill([size], np.float32(loc)), scale, fisher_z=u)


def assert_close_where_representable(actual, exact, what="value", event_ndims=0, err_msg=""):
    """Right wherever float32 has a number for the true value; a value is never NaN."""
    actual, exact = np.asarray(actual), np.asarray(exact, np.float64)
    assert actual.dtype == np.float32
    assert what != "value" or not np.any(np.isnan(actual)), err_msg
    fits = np.abs(exact) < 0.99 * oracles.FLOAT32_MAX
    fits = np.all(fits, axis=-1, keepdims=True) if event_ndims else fits
    oracles.assert_close(
        np.where(fits, actual, 0), np.where(fits, exact, 0), what, event_ndims, err_msg=err_msg
    )
    assert np.all(fits[UP_TO_40]), err_msg


@pytest.mark.parametrize("size", [1, 5])
def test_entropy(size):
    exact = exact_ar1(size)
    assert_close_where_representable(ar1(size=size).entropy(), [p.entropy() for p in exact])
    (gradient,) = oracles.tf_gradients(lambda u: ar1(u, size=size).entropy() + 0 * u, (FISHER_Z,))
    expected = [p.derivative(lambda p: p.entropy(), "fisher_z") for p in exact]
    assert_close_where_representable(gradient, expected, "gradient")


@pytest.mark.parametrize(
    "value",
    [[1.0] * 5, [1.0, -1, 1, -1, 1], [0.3, -1.2, 0.5, 2.0, 2.0]],
    ids=["constant", "alternating", "ragged"],
)
def test_log_prob(value):
    """The ragged value is 1e34 standard deviations off at u = 40, which float32 still can say."""
    value, exact = np.float32(value), exact_ar1()

    def log_prob(scale, u, value):
        return ar1(u, scale).log_prob(value)

    arguments = np.full(13, 1.3, np.float32), FISHER_Z, np.tile(value, (13, 1))
    actual, expected = log_prob(*arguments), [p.log_prob(value) for p in exact]
    assert_close_where_representable(actual, expected)
    *by_parameters, by_value = oracles.tf_gradients(log_prob, arguments)
    for field, gradient in zip(("scale", "fisher_z"), by_parameters, strict=True):
        expected = [p.derivative(lambda p: p.log_prob(value), field) for p in exact]
        assert_close_where_representable(gradient, expected, "gradient", err_msg=field)
    by_mean = [p.gradient(lambda p: p.log_prob(value), "mean") for p in exact]
    expected = -np.array(by_mean, np.float64)
    assert_close_where_representable(by_value, expected, "gradient", 1, "value")


@pytest.mark.parametrize("size", [5, 600])
def test_samples(size):
    samples = ar1(size=size).sample(2000, seed=(6, 7)).numpy()
    assert np.all(np.isfinite(samples))
    # One variance for every coordinate at every u: 2000 draws tell it to 3.2 %, one sigma.
    np.testing.assert_allclose(np.mean(samples**2, axis=0), 1.3**2, rtol=6.5 * 0.032)
    alternating = np.where(np.arange(size) % 2, -1, 1)
    for u, path in zip(FISHER_Z, np.moveaxis(samples, 1, 0), strict=True):
        if abs(u) >= 20:
            unfolded = path if u > 0 else path * alternating
            np.testing.assert_allclose(unfolded, unfolded[:, :1].repeat(size, 1), 1e-5, 1e-6)


def test_log_prob_of_own_samples():
    """float32 rounds a sample to where it is many innovations off the path: still a number."""
    samples = ar1().sample(seed=(8, 9)).numpy()
    exact = [p.log_prob(x) for p, x in zip(exact_ar1(), samples, strict=True)]
    assert_close_where_representable(ar1().log_prob(samples), exact)
    # With a mean, the sample less the mean is rounded; what is left may not be NaN.
    for loc, scale in ((3.0, 1.0), (1e6, 1e-3), (-1e-6, 1e3)):
        p = ar1(scale=scale, size=700, loc=loc)
        log_prob = p.log_prob(p.sample(20, seed=(10, 11))).numpy()
        assert not np.any(np.isnan(log_prob))
        assert np.all(log_prob < np.inf)


def test_gradients_of_samples():
    """Of `z_t = ρ z_{t−1} + √(1−ρ²) ε_t`; at u = 0 and unit scale the sample is the noise."""
    size = 5

    def sample(u):
        return ar1(u, 1.0).sample(seed=(1, 2))

    noise = sample(np.zeros_like(FISHER_Z)).numpy().astype("float64")
    weights = draw(13, size, seed=3)
    (actual,) = oracles.tf_gradients(sample, (FISHER_Z,), weights)
    u = FISHER_Z.astype("float64")
    rho, sech = np.tanh(u), 1 / np.cosh(u)
    z, slope, expected = noise[:, 0], 0, 0
    for t in range(1, size):
        slope = rho * slope + sech**2 * z - sech * rho * noise[:, t]
        z = rho * z + sech * noise[:, t]
        expected = expected + weights[:, t] * slope
    # Relative to each: at u = 60 the gradient is 1e-26 and not yet zero.
    np.testing.assert_allclose(actual, expected, rtol=1e-3)


@pytest.mark.parametrize("sign", [-1, 1])
def test_correlation_next_to_one_in_float32(sign):
    """`1 − ρ` is exact in floating point; nothing may square ρ first."""
    rho = sign * np.float32(1 - np.append(np.logspace(-2, -7, 20), 2.0**-24))
    p = MultivariateNormalAR1(tf.zeros(5), 1.3, correlation=rho)
    exact = [Exact((0.0,) * 5, np.float32(1.3), np.arctanh(r.astype("float64"))) for r in rho]
    oracles.assert_close(p.entropy(), [p.entropy() for p in exact], "without cancellation")
    samples = p.sample(seed=(1, 2)).numpy()
    expected = [p.log_prob(x) for p, x in zip(exact, samples, strict=True)]
    oracles.assert_close(p.log_prob(samples), expected)


# --- Every member, in decimals --------------------------------------------------------------------

SIZE = 4
# The parameters of correlation at their extremes; for OU, the times make it that of u = 8, that of
# ρ = 0.9999, and one of e⁻⁵.
EXTREME = {
    "AR1, -0.9999": ("AR1", -0.9999),
    "AR1, u = 10": ("AR1 by fisher_z", 10.0),
    "ARH1, 0.9999": ("ARH1", 0.9999),
    "ARH1, u = -8": ("ARH1 by fisher_z", -8.0),
    "ANTE1, 0.9999": ("ANTE1", [0.9999, 0.0, -0.9999]),
    "ANTE1, u = 10": ("ANTE1 by fisher_z", [10.0, 0.0, -10.0]),
    "OU": ("OU", 1.0),
}
SCALES = np.float32([1.3, 0.7, 2.0, 0.1])
TIMES = np.float32([0.0, 2.25e-7, 1e-4, 5.0])


def exact_and_parameters(member, correlation):
    """A chain of mean 0 in decimals, our parameters but `loc`, and the chain rule between them.

    The last makes the derivatives in our parameters of those in each scale and each fisher_z.
    """
    correlation, mean = np.float32(correlation), (0.0,) * SIZE
    if member == "OU":
        parameters = [SCALES[0], correlation, TIMES]
        length_scale, times = np.float64(correlation), np.float64(TIMES)
        x = np.diff(times) / length_scale

        def chain_rule(d_scale, d_u):
            d_x = d_u / (-2.0 * np.sinh(x))  # u = atanh e^-x
            d_steps = d_x / length_scale
            d_times = np.append(0.0, d_steps) - np.append(d_steps, 0.0)
            return np.sum(d_scale), np.sum(-d_steps * x), d_times

        exact = Exact.ou(mean, (SCALES[0],) * SIZE, *parameters[1:])
        return exact, parameters, chain_rule

    rho = u = np.float64(correlation)
    by_correlation = MEMBERS[member].by == "correlation"
    if by_correlation:
        u = np.arctanh(rho)
    scale = SCALES[0] if "AR1" in member else SCALES

    def chain_rule(d_scale, d_u):
        if by_correlation:
            d_u = d_u / ((1 - rho) * (1 + rho))
        return d_scale if scale.ndim else np.sum(d_scale), d_u if rho.ndim else np.sum(d_u)

    scales, us = np.broadcast_to(scale, [SIZE]), np.broadcast_to(u, [SIZE - 1])
    return Exact(mean, tuple(scales), tuple(us)), [scale, correlation], chain_rule


@pytest.mark.parametrize("name", EXTREME)
def test_values_and_gradients_next_to_one(name):
    """Values are right to 3e-5 in float32 and to 1e-12 in float64, relative to themselves;
    gradients to the tolerances of the suite.
    """
    member, correlation = EXTREME[name]
    exact, parameters, chain_rule = exact_and_parameters(member, correlation)
    # A path that is likely where correlations are positive, and one that is not.
    smooth = parameters[0] * np.float32([1.0, 1.0001, 1.01, 0.5])
    ragged, loc = draw(SIZE, dtype="float32"), np.float32([0.5, -1.0, 0.25, 2.0])
    standard, other = Exact(exact.mean, 1.0, 0.0), Exact(tuple(loc), 1.25, -8.0)
    functions = {
        "smooth": lambda p: p.log_prob(smooth),
        "ragged": lambda p: p.log_prob(ragged),
        "entropy": lambda p: p.entropy(),
        "KL to N(0, I)": lambda p: p.kl(standard),
        "KL from N(0, I)": lambda p: standard.kl(p),
        "KL to AR1": lambda p: p.kl(other),
        "KL from AR1": lambda p: other.kl(p),
    }
    derivatives = {
        key: chain_rule(*(np.float64(exact.gradient(f, field)) for field in ("scale", "fisher_z")))
        for key, f in functions.items()
    }
    for dtype, tolerance in (("float32", 3e-5), ("float64", 1e-12)):
        given = [tf.constant(a) for a in cast(parameters, dtype)]
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(given)
            p = MEMBERS[member].distribution(tf.zeros(SIZE, dtype), *given)
            normal = tfd.MultivariateNormalDiag(tf.zeros(SIZE, dtype))
            q = MultivariateNormalAR1(tf.constant(loc, dtype), 1.25, fisher_z=-8.0)
            results = {
                "smooth": p.log_prob(tf.constant(smooth, dtype)),
                "ragged": p.log_prob(tf.constant(ragged, dtype)),
                "entropy": p.entropy(),
                "KL to N(0, I)": p.kl_divergence(normal),
                "KL from N(0, I)": normal.kl_divergence(p),
                "KL to AR1": p.kl_divergence(q),
                "KL from AR1": q.kl_divergence(p),
            }
        for key, result in results.items():
            assert result.dtype == dtype
            expected = float(functions[key](exact))
            np.testing.assert_allclose(result, expected, rtol=tolerance, err_msg=key)
            gradients = tape.gradient(result, given, unconnected_gradients="zero")
            names = MEMBERS[member].names[1:]
            for k, a, e in zip(names, gradients, derivatives[key], strict=True):
                message = f"{key}, {k}, {dtype}"
                oracles.assert_close(a, e, "gradient", np.ndim(e), err_msg=message)


# --- OU -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "length_scale"), [("float32", 1e-2), ("float32", 1e-38), ("float64", 1e-200)]
)
def test_ou_of_times_far_apart_does_not_depend_on_their_distance(dtype, length_scale):
    """The correlation underflows to 0, and the square of the length scale to 0 as well."""
    times = tf.constant([0.0, 1.0, 3.0, 4.5], dtype)
    length_scale = tf.constant(length_scale, dtype)
    x, loc = draw(SIZE, dtype=dtype, seed=1), draw(SIZE, dtype=dtype)
    other = MultivariateNormalAR1(tf.zeros(SIZE, dtype), fisher_z=0.5)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([length_scale, times])
        p = MultivariateNormalOU(loc, 1.3, length_scale, times)
        results = compute(p, x, DISTRIBUTION | CONDITIONAL) | {
            "KL to": p.kl_divergence(other),
            "KL from": other.kl_divergence(p),
        }
    independent = MultivariateNormalAR1(loc, 1.3, correlation=0.0)
    expected = compute(independent, x, DISTRIBUTION | CONDITIONAL)
    assert_all_close({key: results[key] for key in expected}, expected)
    for key, result in results.items():
        for gradient in tape.gradient(result, [length_scale, times], unconnected_gradients="zero"):
            np.testing.assert_array_equal(gradient, np.zeros(gradient.shape), err_msg=key)


@pytest.mark.parametrize("length_scale", [0.008, 0.03, 30.0, 1e7, 1e19, 1e30])
def test_ou_of_any_length_scale_has_gradients(length_scale):
    """In float32, as in float64, where the squares of such numbers are finite."""
    values = {"length_scale": length_scale, "times": [0.0, 1.0, 3.0, 4.5]}
    gradients = {}
    for dtype in ("float32", "float64"):
        given = {key: tf.constant(value, dtype) for key, value in values.items()}
        x = draw(SIZE, dtype="float32", seed=1).astype(dtype)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(given)
            p = MultivariateNormalOU(tf.zeros(SIZE, dtype), 1.3, **given)
            mean = p.conditional(x, [True, False, False, True]).mean()
            results = {"log_prob": p.log_prob(x), "entropy": p.entropy(), "mean": mean}
        gradients[dtype] = {key: tape.gradient(result, given) for key, result in results.items()}
    for key, expected in gradients["float64"].items():
        for name in values:
            actual = gradients["float32"][key][name]
            assert np.all(np.isfinite(actual))
            if key == "mean":
                continue
            atol = 1e-5 * np.max(np.abs(expected[name])) + 1e-38
            np.testing.assert_allclose(
                actual, expected[name], rtol=1e-4, atol=atol, err_msg=f"{key}, {name}"
            )


# --- Nothing of shape d × d -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ARH1", "ANTE1 by fisher_z", "OU"])
def test_a_hundred_thousand_coordinates(name):
    """A dense factor takes 40 GB."""
    case, size = MEMBERS[name], 100_000
    p = case.distribution(*cast(random_parameters(case, (), size), "float32"))
    x = p.sample(seed=SEED)
    standard = tfd.MultivariateNormalDiag(tf.zeros(size))
    for result in (p.log_prob(x), p.entropy(), p.kl_divergence(standard), p.stddev()):
        assert np.all(np.isfinite(result))
    # The mean square of the whitened path is 1 to its standard error, √(2 / d) = 0.0045.
    assert abs(np.mean(p.scale.solvevec(x - p.loc) ** 2) - 1) < 0.03


MILLION = """
    import json, resource, sys
    import numpy as np
    import tensorflow as tf
    import tensorflow_probability as tfp
    from tfp_ar1 import MultivariateNormalAR1
    tfd = tfp.distributions

    def standard_normals(size):
        zeros, ones = tf.zeros(size), tf.ones(size)
        return {
            "diag": tfd.MultivariateNormalDiag(zeros, ones),
            "identity": tfd.MultivariateNormalDiag(zeros),
            "independent": tfd.Independent(tfd.Normal(zeros, 1.0), 1),
            "sample": tfd.Sample(tfd.Normal(0.0, 1.0), size),
        }

    def run(size):
        loc = tf.constant(np.sin(np.arange(size)), tf.float32)
        value = tf.constant(np.cos(np.arange(size)), tf.float32)
        other_loc = tf.zeros(size)
        scale, rho, other_rho = tf.constant(1.3), tf.constant(0.7), tf.constant(-0.2)
        watched = [loc, scale, rho, value, other_loc, other_rho]
        results = {}
        def record(name, function):
            with tf.GradientTape() as tape:
                tape.watch(watched)
                p = MultivariateNormalAR1(loc, scale, correlation=rho)
                q = MultivariateNormalAR1(other_loc, 1.1, correlation=other_rho)
                result = function(p, q)
            gradients = [g for g in tape.gradient(result, watched) if g is not None]
            assert gradients
            assert all(np.all(np.isfinite(g)) for g in (result, *gradients)), name
            results[name] = float(tf.reduce_mean(result))
        record("sample", lambda p, q: p.sample(seed=(1, 2)))
        record("log_prob", lambda p, q: p.log_prob(value))
        record("entropy", lambda p, q: p.entropy())
        record("kl to AR1", lambda p, q: p.kl_divergence(q))
        factor = tf.ones([size, 2]) / size
        low_rank = tf.linalg.LinearOperatorLowRankUpdate(
            tf.linalg.LinearOperatorIdentity(size), factor, is_positive_definite=True
        )
        normals = standard_normals(size)
        # The update is one of 2e-6 in norm, which no comparison below will see.
        normals["low rank"] = tfd.MultivariateNormalLinearOperator(tf.zeros(size), low_rank)
        for name, normal in normals.items():
            record("kl to " + name, lambda p, q: p.kl_divergence(normal))
            record("kl from " + name, lambda p, q: normal.kl_divergence(p))
        return results

    def peak():
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    run(1000)
    before = peak()
    results = run(1_000_000)
    print(json.dumps({"growth": peak() - before, **results}))
"""


@pytest.mark.slow
def test_a_million_coordinates_in_little_memory():
    """With gradients, in less than 2 GiB more than a small one; a dense factor takes 4 TB."""
    package_root = str(Path(tfp_ar1.__file__).parents[1])
    path = os.pathsep.join([package_root, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    completed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MILLION)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    results = json.loads(completed.stdout.splitlines()[-1])
    assert results.pop("growth") < 2 * 2**30
    for way in ("to", "from"):
        others = ("diag", "identity", "independent", "sample", "low rank")
        found = [results[f"kl {way} {name}"] for name in others]
        np.testing.assert_allclose(found, found[0], rtol=3e-4)
    assert abs(results["sample"]) < 0.05  # the mean of sin, and of a million draws

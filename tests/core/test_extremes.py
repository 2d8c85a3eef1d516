"""Correlations next to ±1, length scales of any size, and a hundred thousand coordinates."""

import derivatives
import family
import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from exact import Exact
from family import CONDITIONAL, DISTRIBUTION, MEMBERS, ONE_OF_EACH, SEED, cast, compute, draw

from tfp_ar1 import MultivariateNormalAR1, MultivariateNormalOU

tfd = tfp.distributions

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
        "KL to TriL": lambda p: p.kl(standard),
        "KL from TriL": lambda p: standard.kl(p),
    }
    exact_gradients = {
        key: chain_rule(*(np.float64(exact.gradient(f, field)) for field in ("scale", "fisher_z")))
        for key, f in functions.items()
    }
    for dtype, tolerance in (("float32", 3e-5), ("float64", 1e-12)):
        given = [tf.constant(a) for a in cast(parameters, dtype)]

        def results_of(*given, dtype=dtype):
            p = MEMBERS[member].distribution(tf.zeros(SIZE, dtype), *given)
            normal = tfd.MultivariateNormalDiag(tf.zeros(SIZE, dtype))
            q = MultivariateNormalAR1(tf.constant(loc, dtype), 1.25, fisher_z=-8.0)
            tril = tfd.MultivariateNormalTriL(tf.zeros(SIZE, dtype), tf.eye(SIZE, dtype=dtype))
            return {
                "smooth": p.log_prob(tf.constant(smooth, dtype)),
                "ragged": p.log_prob(tf.constant(ragged, dtype)),
                "entropy": p.entropy(),
                "KL to N(0, I)": p.kl_divergence(normal),
                "KL from N(0, I)": normal.kl_divergence(p),
                "KL to AR1": p.kl_divergence(q),
                "KL from AR1": q.kl_divergence(p),
                "KL to TriL": p.kl_divergence(tril),
                "KL from TriL": tril.kl_divergence(p),
            }

        results, gradients = derivatives.values_and_gradients(results_of, given)
        for key, result in results.items():
            assert result.dtype == dtype
            expected = float(functions[key](exact))
            np.testing.assert_allclose(result, expected, rtol=tolerance, err_msg=key)
            names = MEMBERS[member].names[1:]
            for k, a, e in zip(names, gradients[key], exact_gradients[key], strict=True):
                message = f"{key}, {k}, {dtype}"
                oracles.assert_close(a, e, "gradient", np.ndim(e), err_msg=message)


@pytest.mark.parametrize(
    ("dtype", "length_scale"), [("float32", 1e-2), ("float32", 1e-38), ("float64", 1e-200)]
)
def test_ou_of_times_far_apart_does_not_depend_on_their_distance(dtype, length_scale):
    """The correlation underflows to 0, and the square of the length scale to 0 as well."""
    times = tf.constant([0.0, 1.0, 3.0, 4.5], dtype)
    length_scale = tf.constant(length_scale, dtype)
    x, loc = draw(SIZE, dtype=dtype, seed=1), draw(SIZE, dtype=dtype)
    other = MultivariateNormalAR1(tf.zeros(SIZE, dtype), fisher_z=0.5)

    def results_of(length_scale, times):
        p = MultivariateNormalOU(loc, 1.3, length_scale, times)
        return compute(p, x, DISTRIBUTION | CONDITIONAL) | {
            "KL to": p.kl_divergence(other),
            "KL from": other.kl_divergence(p),
        }

    results, gradients = derivatives.values_and_gradients(results_of, [length_scale, times])
    independent = MultivariateNormalAR1(loc, 1.3, correlation=0.0)
    expected = compute(independent, x, DISTRIBUTION | CONDITIONAL)
    family.assert_all_close({key: results[key] for key in expected}, expected)
    for key in results:
        for gradient in gradients[key]:
            np.testing.assert_array_equal(gradient, np.zeros(gradient.shape), err_msg=key)


@pytest.mark.parametrize("length_scale", [0.008, 0.03, 30.0, 1e7, 1e19, 1e30])
def test_ou_of_any_length_scale_has_gradients(length_scale):
    """In float32, as in float64, where the squares of such numbers are finite."""
    values = {"length_scale": length_scale, "times": [0.0, 1.0, 3.0, 4.5]}
    gradients = {}
    for dtype in ("float32", "float64"):
        given = {key: tf.constant(value, dtype) for key, value in values.items()}
        x = draw(SIZE, dtype="float32", seed=1).astype(dtype)

        def results_of(*given, x=x):
            p = MultivariateNormalOU(tf.zeros(SIZE, x.dtype), 1.3, *given)
            mean = p.conditional(x, [True, False, False, True]).mean()
            return {"log_prob": p.log_prob(x), "entropy": p.entropy(), "mean": mean}

        _, of_results = derivatives.values_and_gradients(results_of, [*given.values()])
        gradients[dtype] = {k: dict(zip(values, g, strict=True)) for k, g in of_results.items()}
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_hundred_thousand_coordinates(name):
    """With gradients; a dense factor takes 40 GB."""
    case, size = MEMBERS[name], 100_000
    p = case.distribution(*cast(family.random_parameters(case, (), size), "float32"))
    x, zeros = p.sample(seed=SEED), tf.zeros(size)
    # The update is one of 2e-5 in norm, which the comparison does not see.
    low_rank = tf.linalg.LinearOperatorLowRankUpdate(
        tf.linalg.LinearOperatorIdentity(size), tf.ones([size, 2]) / size, is_positive_definite=True
    )
    others = (
        tfd.MultivariateNormalDiag(zeros, tf.ones(size)),
        tfd.MultivariateNormalDiag(zeros),
        tfd.Independent(tfd.Normal(zeros, 1.0), 1),
        tfd.Sample(tfd.Normal(0.0, 1.0), size),
        tfd.MultivariateNormalLinearOperator(zeros, low_rank),
    )

    def results(*parameters):
        p = case.distribution(*parameters)
        kls = [tfd.kl_divergence(*pair) for q in others for pair in ((p, q), (q, p))]
        sample = tf.reduce_mean(p.sample(seed=SEED))
        return tf.stack([p.log_prob(x), p.entropy(), tf.reduce_mean(p.stddev()), sample, *kls])

    given = [tf.convert_to_tensor(p.parameters[key]) for key in case.names]
    values, gradients = tfp.math.value_and_gradient(results, given)
    assert all(np.all(np.isfinite(result)) for result in (values, *gradients))
    for kls in (values[4::2], values[5::2]):
        np.testing.assert_allclose(kls, np.full(len(others), kls[0]), rtol=3e-4)
    # The mean square of the whitened path is 1 to its standard error, √(2 / d) = 0.0045.
    assert abs(np.mean(p.scale.solvevec(x - p.loc) ** 2) - 1) < 0.03

"""The oracles of the tests agree with SciPy, LAPACK and each other."""

import numpy as np
import oracles
import pytest
import scipy.stats
from exact import Exact
from test_accuracy import CONDITIONAL, WEIGHTED, accuracy

SCALE = np.array([0.7, 1.0, 1.3, 2.0, 0.5])
RHO = np.array(oracles.CORRELATIONS)


@pytest.mark.parametrize("size", [1, 2, 17])
def test_closed_form_of_the_factor_is_lapacks(size):
    covariance = oracles.ar1_covariance(SCALE, RHO, size)
    factor = oracles.ar1_cholesky(SCALE, RHO, size)
    oracles.assert_close(factor, np.linalg.cholesky(covariance), event_ndims=2)


def test_dense_agrees_with_scipy():
    loc, value = np.random.default_rng(0).normal(size=(2, 5, 17))
    dense = oracles.Dense.ar1(loc, SCALE, RHO)
    scipys = [
        scipy.stats.multivariate_normal(m, c)
        for m, c in zip(dense.mean, dense.covariance, strict=True)
    ]
    oracles.assert_close(dense.entropy(), [p.entropy() for p in scipys])
    expected = [p.logpdf(x) for p, x in zip(scipys, value, strict=True)]
    oracles.assert_close(dense.log_prob(value), expected)


def test_decimals_agree_with_dense():
    """One for all coordinates and steps, and one for each."""
    mean, value = (0.0, 0.5, 1.0, 0.2), (1.0, -0.3, 0.1, 2.0)
    scales, us = np.array([1.3, 0.5, 2.0, 1.0]), np.array([-1.2, 0.0, 2.5])
    correlations = np.array(
        [[np.prod(np.tanh(us)[min(i, j) : max(i, j)]) for j in range(4)] for i in range(4)]
    )
    dense_chain = oracles.Dense(np.array(mean), np.outer(scales, scales) * correlations)
    q, dense_q = Exact(value, 0.7, 0.4), oracles.Dense.ar1(value, 0.7, np.tanh(0.4))
    for p, dense_p in (
        (Exact(mean, scales, us), dense_chain),
        *(
            (Exact(mean, 1.3, u), oracles.Dense.ar1(mean, 1.3, np.tanh(u)))
            for u in (-1.2, 0.0, 2.5)
        ),
    ):
        for actual, expected in (
            (dense_p.log_prob(value), p.log_prob(value)),
            (dense_p.entropy(), p.entropy()),
            (dense_p.kl(dense_q), p.kl(q)),
            (dense_q.kl(dense_p), q.kl(p)),
        ):
            oracles.assert_close(actual, expected)
    times = np.array([0.0, 0.5, 3.0, 3.1])
    ou = oracles.Dense(np.array(mean), 4 * np.exp(-abs(np.subtract.outer(times, times)) / 1.5))
    oracles.assert_close(ou.log_prob(value), Exact.ou(mean, 2.0, 1.5, times).log_prob(value))


@pytest.mark.parametrize("u", [0.3, -2.0, 40.0])
def test_references_are_those_of_dense_decimals(u):
    """What runs along the path in O(d), against `Exact`, which knows nothing of paths."""
    loc, other_loc, x = np.random.default_rng(0).normal(size=(3, 4))
    p = Exact(tuple(loc), 1.3, u)
    q, normal = Exact(tuple(other_loc), 0.7, -1.5), Exact(tuple(other_loc), 0.7, 0.0)
    inputs = {"loc": loc, "scale": 1.3, "corr": u}
    others = {"other_loc": other_loc, "other_scale": 0.7}
    diag = others | {"other_scale": np.full(4, 0.7)}
    ours = {"loc": "mean", "scale": "scale", "corr": "fisher_z"}

    def check(name, inputs, value, functions):
        """`functions`: for each side, the chain and the result as a function of it."""
        results = accuracy.reference(name, "fisher_z", inputs)
        expected = {"value": value}
        for prefix, (chain, function) in functions.items():
            for key, field in ours.items():
                if prefix + key in results:
                    entries = chain.gradient if field == "mean" else chain.derivative
                    expected[prefix + key] = entries(function, field)
        for key, desired in expected.items():
            actual, desired = results[key], np.asarray(desired, np.float64)
            if np.ndim(actual.value) > np.ndim(desired):
                # One scale for all has the derivative of all scales together.
                np.testing.assert_allclose(np.sum(actual.value), desired, rtol=1e-12)
            else:
                np.testing.assert_allclose(actual.value, desired, rtol=1e-14, atol=1e-300)
            # Terms are what is added up, so they are never less.
            assert np.all(actual.terms * (1 + 1e-14) >= np.abs(actual.value))
        return results

    log_prob = check(
        "log_prob", inputs | {"x": x}, p.log_prob(x), {"": (p, lambda p: p.log_prob(x))}
    )
    np.testing.assert_array_equal(log_prob["x"].value, -log_prob["loc"].value)
    check(
        "entropy",
        {"scale": 1.3, "corr": u, "size": 4},
        p.entropy(),
        {"": (p, lambda p: p.entropy())},
    )
    for name, given, value, right in (
        ("kl_ar1_ar1", others | {"other_corr": -1.5}, p.kl(q), q),
        ("kl_ar1_diag", diag, p.kl(normal), normal),
    ):
        sides = {"": (p, lambda p, q=right: p.kl(q)), "other_": (right, lambda q: p.kl(q))}
        check(name, inputs | given, value, sides)
    sides = {"": (p, lambda p: normal.kl(p)), "other_": (normal, lambda n: n.kl(p))}
    check("kl_diag_ar1", inputs | diag, normal.kl(p), sides)


@pytest.mark.parametrize("by", ["correlation", "fisher_z"])
@pytest.mark.parametrize("corr", [0.0, -0.9])
@pytest.mark.parametrize("observed", ["010011010", "000000000", "111111111"])
def test_references_are_those_of_dense_matrices(by, corr, observed):
    """Products and conditionals, whose derivatives are finite differences of the same."""
    observed = np.array([o == "1" for o in observed])
    size, scale = len(observed), 1.3
    rng = np.random.default_rng(0)
    loc, x, weights = rng.normal(size=(3, size))

    def dense(corr):
        rho = corr if by == "correlation" else np.tanh(corr)
        factor = oracles.ar1_cholesky(scale, rho, size)
        covariance = factor @ factor.T
        across = covariance[:, observed] @ np.linalg.inv(covariance[np.ix_(observed, observed)])
        left = covariance - across @ covariance[observed]
        whole = oracles.Dense(loc[observed], covariance[np.ix_(observed, observed)])
        return {
            "matvec": factor @ x,
            "matvec_adjoint": factor.T @ x,
            "solvevec": np.linalg.solve(factor, x),
            "solvevec_adjoint": np.linalg.solve(factor.T, x),
            "conditional_mean": loc + across @ (x - loc)[observed],
            "conditional_variance": np.diag(left),
            "observed_log_prob": whole.log_prob(x[observed]) if observed.any() else np.zeros(()),
        }

    step = 1e-6
    values, up, down = dense(corr), dense(corr + step), dense(corr - step)
    for name, desired in values.items():
        inputs = {"scale": scale, "corr": corr, "x": x}
        inputs |= {"loc": loc, "observed": observed} if name in CONDITIONAL else {}
        inputs |= {"weights": weights} if name in WEIGHTED else {}
        result = accuracy.reference(name, by, inputs)
        np.testing.assert_allclose(result["value"].value, desired, rtol=1e-12, atol=1e-12)
        slope = np.sum((up[name] - down[name]) / (2 * step) * (weights if desired.ndim else 1.0))
        np.testing.assert_allclose(result["corr"].value, slope, rtol=1e-7, atol=1e-7)

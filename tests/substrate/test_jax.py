"""The package on JAX: the same numbers as on TensorFlow, and what JAX expects of it.

Run by `make test-jax`, in an environment without TensorFlow.
"""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

# Programs that run once need no optimization, and are compiled twice as fast without.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import both

try:
    b = both.jax()
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

import jax
import jax.numpy as jnp
from scipy import stats

import tfp_ar1_jax

jax.config.update("jax_enable_x64", True)
tfd = b.tfp.distributions
STORED = np.load(both.REFERENCE)
CLASSES = [name for name in both.MEMBERS if name != "AR1 by correlation"]
POINT = jnp.asarray(both.POINT)


def largest_difference(actual, expected):
    return np.max(np.abs(actual - expected)) / max(1.0, np.max(np.abs(expected)))


def stored_total(case):
    """A weighted sum of all that a case computes, in which each counts alike: its derivatives."""
    first, second = STORED[f"{case}//1"], STORED[f"{case}//2"]
    weights = np.cos(np.arange(len(first))) / np.maximum(1.0, np.abs(second).max(axis=(1, 2)))
    return weights, weights @ first, np.einsum("i,ijk", weights, second)


@pytest.mark.parametrize("case", both.CASES)
def test_values_are_those_of_tensorflow(case):
    both.configs(b)
    for name, value in jax.jit(lambda p: both.CASES[case](b, p))(POINT).items():
        assert largest_difference(value, STORED[f"{case}/{name}"]) < 1e-12, name


def test_estimates_are_those_of_tensorflow():
    for name, value in both.of_fits(b, POINT).items():
        assert largest_difference(value, STORED[f"fits/{name}"]) < 1e-6, name


@pytest.mark.parametrize("case", ["priors", "selected"])
def test_derivatives_are_those_of_tensorflow(case):
    weights, first, second = stored_total(case)

    def total(p):
        values = both.CASES[case](b, p).values()
        return sum(w * jnp.sum(x) for w, x in zip(weights, values, strict=True))

    direction = np.array([0.6, -0.8])
    gradient, product = jax.jvp(jax.grad(total), (POINT,), (jnp.asarray(direction),))
    assert largest_difference(gradient, first) < 1e-12
    assert largest_difference(product, second @ direction) < 1e-11


@pytest.mark.parametrize("name", CLASSES)
def test_transformations(name):
    """`jit`, `vmap`, forward and reverse mode, `linearize` and `scan` agree."""

    def log_prob(p):
        d = both.member(b, name, p)
        return d.log_prob(both.X[0]) + d.scale.matvec(both.Y) @ both.Y

    value, gradient = jax.value_and_grad(log_prob)(POINT)
    np.testing.assert_allclose(jax.jit(log_prob)(POINT), value, rtol=1e-12)
    np.testing.assert_allclose(jax.jacfwd(log_prob)(POINT), gradient, rtol=1e-12)
    _, tangent = jax.linearize(log_prob, POINT)
    np.testing.assert_allclose(tangent(gradient), gradient @ gradient, rtol=1e-12)
    batch = jnp.stack([POINT, 2.0 * POINT])
    in_batch = jax.jit(jax.vmap(log_prob))(batch)
    one_by_one = jax.lax.scan(lambda _, p: (None, log_prob(p)), None, batch)[1]
    np.testing.assert_allclose(in_batch, one_by_one, rtol=1e-12)
    np.testing.assert_allclose(in_batch[0], value, rtol=1e-12)


@pytest.mark.parametrize("name", CLASSES)
def test_distributions_are_pytrees(name):
    d, x = both.member(b, name, POINT), both.X[0]
    np.testing.assert_allclose(jax.jit(lambda d: d.log_prob(x))(d), d.log_prob(x))
    np.testing.assert_allclose(jax.jit(lambda p: both.member(b, name, p))(POINT).mean(), d.mean())
    made = jax.vmap(lambda p: both.member(b, name, p))(jnp.stack([POINT, POINT]))
    alike = jax.vmap(lambda d, x: d.log_prob(x), in_axes=(0, None))(made, x)
    np.testing.assert_allclose(alike, [d.log_prob(x)] * 2)
    # A gradient is a tree of that structure, but its times decrease.
    gradient = jax.grad(lambda d: d.log_prob(x))(d)
    leaves = zip(*map(jax.tree_util.tree_leaves, (d, gradient)), strict=True)
    assert all(leaf.shape == slope.shape for leaf, slope in leaves)
    shapes = jax.eval_shape(lambda d: d, d)
    structure = jax.tree_util.tree_structure(d)
    for tree in (gradient, shapes, jax.tree_util.tree_map(lambda _: object(), d)):
        assert jax.tree_util.tree_structure(tree) == structure
    with pytest.raises(AttributeError, match="made from a tree with other leaves"):
        _ = shapes.loc
    for derived in (d.conditional(x, both.OBSERVED), d.with_observation_noise(0.5)):
        again = jax.jit(lambda d: d)(derived)
        np.testing.assert_allclose(again.mean(), derived.mean())
        assert jax.vmap(lambda d, x: d.mean() + x, in_axes=(None, 0))(derived, both.X).shape


@pytest.mark.parametrize("name", ["AR1", "ANTE1"])
def test_operators_are_pytrees(name):
    d = both.member(b, name, POINT)
    precision = d.precision()
    for operator in (d.scale, precision, precision.cholesky(), precision.inverse()):
        expected = operator.matvec(both.Y)
        np.testing.assert_allclose(jax.jit(lambda o: o.matvec(both.Y))(operator), expected)
        again = jax.jit(lambda o: o)(operator)
        assert type(again) is type(operator)
        batch = jax.vmap(lambda o, y: o.matvec(y), in_axes=(None, 0))(operator, both.X)
        np.testing.assert_allclose(batch[0], operator.matvec(both.X[0]))
    sites = d.with_sites(both.Y, both.NOISE)
    again = jax.jit(lambda sites: sites)(sites)
    np.testing.assert_allclose(again.log_normalizer(), sites.log_normalizer())


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_draws(make_key):
    d, key = both.member(b, "ANTE1", POINT), make_key(0)
    draws = jax.jit(lambda key: d.sample([20000], seed=key))(key)
    np.testing.assert_allclose(np.cov(draws.T), d.covariance(), atol=0.1)
    np.testing.assert_allclose(draws, d.sample([20000], seed=key), atol=1e-9)
    conditional = d.conditional(both.X, both.OBSERVED)
    assert conditional.sample(2, seed=key).shape == (2, 3, both.D)
    assert d.with_observation_noise(0.5).sample(seed=key).shape == (both.D,)
    sample, log_prob = d.experimental_sample_and_log_prob(2, seed=key)
    np.testing.assert_allclose(log_prob, d.log_prob(sample))


def test_dtypes():
    for dtype in (jnp.float16, jnp.float32, jnp.float64):
        d = tfp_ar1_jax.MultivariateNormalAR1(jnp.zeros(5, dtype), fisher_z=0.5)
        for value in (d.log_prob(jnp.ones(5, dtype)), d.entropy(), d.stddev(), d.covariance()):
            assert isinstance(value, jax.Array)
            assert value.dtype == dtype
            assert not value.weak_type


def test_float32_where_correlations_round_to_one():
    """Long products of correlations, and their derivatives."""

    def lag(fisher_z, dtype):
        steps = jnp.full([4095], fisher_z, dtype)
        path = tfp_ar1_jax.MultivariateNormalANTE1(None, jnp.ones(4096, dtype), fisher_z=steps)
        return path.conditional(jnp.ones(4096, dtype), jnp.arange(4096) == 0).mean()[-1]

    def of(dtype):
        points = jnp.asarray([4.0, 7.0, 8.5, 12.0], dtype)
        return jax.jit(jax.vmap(jax.value_and_grad(lambda z: lag(z, dtype))))(points)

    (value, slope), (exact, exact_slope) = of(jnp.float32), of(jnp.float64)
    np.testing.assert_allclose(value, exact, rtol=3e-5)
    np.testing.assert_allclose(slope, exact_slope, rtol=3e-4)


def test_float32_gradients_of_log_prob():
    """Of draws, whose neighbours are nearly equal where the correlation is nearly 1."""
    points = jnp.asarray([-12.0, -4.0, -0.5, 0.0, 0.1, 2.0, 9.0])
    noise = jnp.asarray(np.random.default_rng(1).normal(size=50))

    def log_prob(z, log_scale, x):
        path = tfp_ar1_jax.MultivariateNormalAR1(jnp.zeros_like(x), jnp.exp(log_scale), fisher_z=z)
        return path.log_prob(x)

    def slopes(z, dtype):
        path = tfp_ar1_jax.MultivariateNormalAR1(jnp.zeros(50), fisher_z=z)
        # Both from the same numbers, which float32 can hold.
        x = path.scale.matvec(noise).astype(jnp.float32)
        return jax.grad(log_prob, (0, 1, 2))(z.astype(dtype), dtype(0.3), x.astype(dtype))

    of = [
        jax.jit(jax.vmap(lambda z, t=t: slopes(z, t)))(points) for t in (jnp.float32, jnp.float64)
    ]
    for actual, expected in zip(*of, strict=True):
        error = np.abs(actual - expected).reshape(len(points), -1).max(axis=-1)
        assert np.all(error < 3e-6 * np.abs(expected).reshape(len(points), -1).max(axis=-1))


def test_float32_where_noise_is_small():
    """The gradient by the noise, where products of derivatives of the messages would lose it."""

    def log_prob(p, dtype):
        path = tfp_ar1_jax.MultivariateNormalAR1(jnp.zeros(both.D, dtype), fisher_z=p[1])
        noisy = path.with_observation_noise(jnp.exp(p[0]), both.OBSERVED)
        return noisy.log_prob(jnp.asarray(both.Y, dtype))

    points = [(np.log(1e-6), z) for z in (-4.0, -1.0, 4.0, 9.0)]
    of = [
        jax.jit(jax.vmap(jax.grad(lambda p, t=t: log_prob(p, t))))(jnp.asarray(points, t))
        for t in (jnp.float32, jnp.float64)
    ]
    np.testing.assert_allclose(*of, rtol=1e-4)


def test_contenders_of_the_benchmarks_have_the_same_law(monkeypatch):
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[2])
    from benchmarks import of_jax

    lags = np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    covariance = of_jax._SIGMA**2 * of_jax._RHO**lags
    for name, contender in of_jax.CONTENDERS.items():
        if name == "Diag" or of_jax.skipped(name, 4):
            continue
        law = contender.make(contender.parameters(1, 4))
        loc = contender.parameters(1, 4)["loc"][0]
        expected = stats.multivariate_normal(loc, covariance).logpdf(both.X[0, :4])
        np.testing.assert_allclose(law.log_prob(both.X[:1, :4]), [expected], err_msg=name)
        if "sample" in contender.operations:
            parameters = contender.parameters(5000, 4)
            draws = contender.make(parameters).sample(seed=jax.random.key(0)) - parameters["loc"]
            # The standard error of an entry is at most √2 σ² / √5000 = 0.034.
            np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.14, err_msg=name)


def test_messages_of_errors():
    with pytest.raises(ValueError, match=r"`num_rows` must not be negative; got -1\."):
        tfp_ar1_jax.LinearOperatorAR1Cholesky(-1, 0.5)
    with pytest.raises(ValueError, match=r"`loc` must have 3 coordinates"):
        tfp_ar1_jax.MultivariateNormalARH1(jnp.zeros(2), jnp.ones(3), fisher_z=0.5)
    with pytest.raises(ValueError, match="one entry for each step"):
        tfp_ar1_jax.MultivariateNormalANTE1(None, jnp.ones(3), fisher_z=jnp.ones(3))


def test_tensorflow_is_not_imported():
    program = "import sys, tfp_ar1_jax; assert not {'tensorflow', 'keras'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_tracebacks_show_the_lines_of_tfp_ar1():
    with pytest.raises(ValueError, match="exactly one of") as caught:
        tfp_ar1_jax.MultivariateNormalAR1(jnp.zeros(2))
    last = caught.traceback[-1]
    assert last.path.parts[-2:] == ("tfp_ar1", "correlation.py")
    assert "raise ValueError" in str(last.statement)

"""What JAX's users expect: dtypes, keys, arrays, trees, and several devices."""

import os
import subprocess
import sys
import warnings

import both
import numpy as np
import pytest

try:
    b = both.jax()
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

import jax
import jax.numpy as jnp

import tfp_ar1_jax
from tfp_ar1_jax import inference, params

jax.config.update("jax_enable_x64", True)
tfd = b.tfp.distributions
CLASSES = [name for name in both.MEMBERS if name != "AR1 by correlation"]
POINT = jnp.asarray(both.POINT)
X, D = jnp.asarray(both.X), both.D
KEY = jax.random.key(0)


def ar1(**dtype):
    return tfp_ar1_jax.MultivariateNormalAR1(jnp.zeros(D, **dtype), 2.0, fisher_z=0.5)


def everything(path, x):
    """Whatever has a floating-point result, by name."""
    noisy, sites = path.with_observation_noise(0.5), path.with_sites(x, jnp.ones_like(x))
    conditional = path.conditional(x, both.OBSERVED)
    found = inference.laplace_approximation(path, lambda x: tfd.Poisson(log_rate=x).log_prob(1.0))
    parts = {
        "path": path,
        "conditional": conditional,
        "noisy": noisy,
        "posterior": noisy.posterior(x),
        "sites": sites.posterior(),
        "marginal": path.marginal(step=2),
        "forecast": path.forecast(noisy.posterior(x), 2),
    }
    results = {
        "log_prob": path.log_prob(x),
        "entropy": path.entropy(),
        "covariance": path.covariance(),
        "precision": path.precision().to_dense(),
        "scale": path.scale.matvec(x),
        "correlation": path.correlation_parameter(),
        "innovation scale": path.innovation_scale,
        "noisy log_prob": noisy.log_prob(x),
        "observed": conditional.observed_log_prob(),
        "normalizer": sites.log_normalizer(),
        "KL": noisy.posterior(x).kl_divergence(path),
        "evidence": found.log_evidence,
    }
    for name, d in parts.items():
        results |= {f"{name} mean": d.mean(), f"{name} stddev": d.stddev()}
        results |= {f"{name} sample": d.sample(2, seed=KEY)}
    return results


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_results_are_arrays_of_the_dtype_of_the_parameters(dtype):
    for name, value in everything(ar1(dtype=dtype), X[0].astype(dtype)).items():
        assert isinstance(value, jax.Array), name
        assert value.dtype == dtype, name
        assert not value.weak_type, name


def test_numbers_of_python_are_float32():
    """Also where float64 is switched on, as in TFP; and they take the dtype of what is beside."""
    path = tfp_ar1_jax.MultivariateNormalAR1([0.0, 1.0, 2.0], 2.0, fisher_z=0.5)
    assert path.sample(seed=KEY).dtype == jnp.float32
    assert path.log_prob([0.0, 0.5, 1.0]).dtype == jnp.float32

    def log_prob(fisher_z, dtype):
        path = tfp_ar1_jax.MultivariateNormalAR1(jnp.zeros(D, dtype), 2.0, fisher_z=fisher_z)
        return path.log_prob(jnp.zeros(D, dtype))

    # Under `jit` and `grad` they are arrays, of the type that JAX gives numbers.
    assert jax.grad(log_prob)(0.5, np.float64).dtype == jnp.float64
    assert jax.grad(log_prob)(jnp.float32(0.5), np.float32).dtype == jnp.float32
    with pytest.raises(TypeError, match="`loc` float32, `fisher_z` float64"):
        jax.grad(log_prob)(0.5, np.float32)


WITHOUT_FLAG = """
import jax
import numpy as np
import jax.numpy as jnp
import tfp_ar1_jax

for loc in (np.zeros(4), jnp.zeros(4), [0.0] * 4):
    path = tfp_ar1_jax.MultivariateNormalAR1(loc, 2.0, fisher_z=0.5)
    noisy = path.with_observation_noise(0.5)
    x = path.sample(seed=jax.random.PRNGKey(0))
    for value in (x, path.log_prob(np.zeros(4)), path.covariance(), noisy.log_prob(x),
                  noisy.posterior(x).mean(), path.precision().to_dense()):
        assert value.dtype == jnp.float32, value.dtype
assert not jax.config.jax_enable_x64
"""


def run(program, **environment):
    """In a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_without_the_flag_all_is_float32():
    run(WITHOUT_FLAG)


SEVERAL_DEVICES = """
import inspect
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import tfp_ar1_jax

shard_map = getattr(jax, "shard_map", None)
if shard_map is None:
    from jax.experimental.shard_map import shard_map
# JAX itself asks for that, where a derivative has a `linear_transpose` in it.
names = {"check_vma", "check_rep"} & inspect.signature(shard_map).parameters.keys()
unchecked = dict.fromkeys(names, False)
jax.config.update("jax_enable_x64", True)
assert jax.device_count() == 2
rng = np.random.default_rng(0)
loc, z, x = rng.normal(size=(4, 6)), rng.normal(size=(4, 5)), rng.normal(size=(4, 6))

def path(loc, z):
    return tfp_ar1_jax.MultivariateNormalANTE1(loc, jnp.ones(6), fisher_z=z)

def log_prob(loc, z, x):
    return path(loc, z).log_prob(x)

def noisy(loc, z, x):
    return path(loc, z).with_observation_noise(0.3).log_prob(x)

def slope(*args):
    return jax.grad(lambda *args: jnp.sum(noisy(*args) + log_prob(*args)), (0, 1))(*args)

mesh = Mesh(np.array(jax.devices()), ("batch",))
rows = P("batch")
specs = {"mesh": mesh, "in_specs": (rows,) * 3}
for function, out, options in (
    (log_prob, rows, {}), (noisy, rows, unchecked), (slope, (rows, rows), unchecked)
):
    expected = jax.tree_util.tree_leaves(function(loc, z, x))
    in_shards = jax.jit(shard_map(function, out_specs=out, **specs, **options))
    placed = [jax.device_put(a, NamedSharding(mesh, rows)) for a in (loc, z, x)]
    halves = jax.pmap(function)(*(a.reshape(2, 2, *a.shape[1:]) for a in (loc, z, x)))
    mapped = [a.reshape(4, *a.shape[2:]) for a in jax.tree_util.tree_leaves(halves)]
    for actual in (in_shards(*placed), jax.jit(function)(*placed), mapped):
        for a, e in zip(jax.tree_util.tree_leaves(actual), expected, strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-12)
"""


def test_shard_map_and_pmap_over_two_devices():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    run(SEVERAL_DEVICES, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_keys_of_both_kinds_draw_the_same(make_key):
    path, key = both.member(b, "ANTE1", POINT), make_key(3)
    for d in (path, path.conditional(X[0], both.OBSERVED), path.with_observation_noise(0.5)):
        expected = d.sample(3, seed=jax.random.PRNGKey(3))
        np.testing.assert_array_equal(d.sample(3, seed=key), expected)
        in_batch = jax.vmap(lambda k, d=d: d.sample(seed=k))(jax.random.split(key, 4))
        assert len(np.unique(in_batch, axis=0)) == 4


def test_without_a_key():
    with pytest.raises(ValueError, match="Must provide JAX PRNGKey"):
        ar1(dtype=jnp.float32).sample()


@pytest.mark.parametrize("name", CLASSES)
def test_vmap_makes_and_takes_what_is_derived(name):
    """Noisy chains, conditionals, posteriors and sites as what `vmap` returns, and takes."""
    points = jnp.stack([POINT, 0.5 * POINT])
    make = {
        "noisy": lambda d: d.with_observation_noise(jnp.asarray(both.NOISE), both.OBSERVED),
        "conditional": lambda d: d.conditional(X[1], jnp.asarray(both.OBSERVED)),
        "posterior": lambda d: d.posterior(X[1], 0.5),
        "marginal": lambda d: d.marginal(1, None, 2),
    }
    for what, derive in make.items():
        made = jax.jit(jax.vmap(lambda p, f=derive: f(both.member(b, name, p))))(points)
        means = jax.vmap(lambda d: d.mean() + d.stddev())(made)
        one_by_one = [derive(both.member(b, name, p)) for p in points]
        expected = np.stack([d.mean() + d.stddev() for d in one_by_one])
        np.testing.assert_allclose(means, expected, rtol=1e-10, err_msg=what)
    sites = jax.vmap(lambda p: both.member(b, name, p).with_sites(X[0], jnp.ones(D)))(points)
    normalizers = jax.vmap(lambda s: s.log_normalizer())(sites)
    expected = [both.member(b, name, p).with_sites(X[0], jnp.ones(D)) for p in points]
    np.testing.assert_allclose(normalizers, [s.log_normalizer() for s in expected], rtol=1e-10)


def test_a_posterior_that_went_through_a_transformation_says_so():
    path = tfp_ar1_jax.MultivariateNormalAR1(jnp.zeros(5, jnp.float32), fisher_z=15.0)
    y = jnp.asarray([0.3, -0.2, 0.1, 0.4, 0.0], jnp.float32)

    def with_kl(y):
        posterior = path.posterior(y, 0.5)
        return posterior, posterior.kl_divergence(path)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = path.posterior(y, 0.5).kl_divergence(path)
        posterior, kl = jax.jit(with_kl)(y)
        plain = jax.jit(lambda: both.member(b, "ANTE1", POINT))()
        plain.kl_divergence(plain)
    np.testing.assert_allclose(kl, expected, rtol=1e-5)
    with pytest.warns(UserWarning, match="lost the prior that it was made from"):
        posterior.kl_divergence(path)
    with pytest.warns(UserWarning, match="Compute it where the posterior is made"):
        jax.jit(lambda q: q.kl_divergence(path))(path.posterior(y, 0.5))
    # It is a tree like any other of its class.
    like = tfp_ar1_jax.MultivariateNormalANTE1(y, jnp.ones_like(y), fisher_z=y[1:])
    structures = map(jax.tree_util.tree_structure, (posterior, like))
    assert len(set(structures)) == 1


def second_derivatives(function, point):
    """By `hessian`, forward over reverse and reverse over reverse."""
    ways = (jax.hessian(function), jax.jacrev(jax.grad(function)), jax.jacfwd(jax.jacfwd(function)))
    return [jax.jit(way)(point) for way in ways]


def differences(gradient, point, step=1e-5):
    columns = [gradient(point + e) - gradient(point - e) for e in step * np.eye(len(point))]
    return np.stack(columns, axis=-1) / (2.0 * step)


@pytest.mark.parametrize("name", ["AR1", "OU"])
def test_second_derivatives_with_noise(name):
    """Of the likelihood, and of an ELBO with sites, also by what the sites say."""

    def likelihood(p):
        path = both.member(b, name, p[:2])
        return path.with_observation_noise(jnp.exp(p[2]), both.OBSERVED).log_prob(X[0])

    def elbo(p):
        path = both.member(b, name, p[:2])
        q = params.sites(jnp.outer(p[2:4], jnp.cos(jnp.arange(D))).ravel(), path).posterior()
        expected = -0.5 * jnp.sum((X[1] - q.mean()) ** 2 + q.variance())
        return expected - q.kl_divergence(path)

    for function, point in (
        (likelihood, jnp.asarray([0.3, 0.6, -0.4])),
        (elbo, jnp.asarray([0.3, 0.6, 0.5, -0.7])),
    ):
        expected = differences(jax.jit(jax.grad(function)), point)
        for actual in second_derivatives(function, point):
            np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


def test_sites_and_time_major_helpers():
    """Packed parameters, as networks give them, against what is made by hand."""
    path, packed = both.member(b, "AR1", POINT), jnp.asarray(X[:2].ravel())
    mean, precision = X[0], jnp.exp(X[1])
    expected = path.with_sites((1.0 + precision) * mean, precision)
    kl, q = jax.jit(
        lambda p: (params.sites(p, path).kl_divergence(), params.sites(p, path).posterior())
    )(packed)
    np.testing.assert_allclose(kl, expected.kl_divergence(), rtol=1e-12)
    np.testing.assert_allclose(q.mean(), expected.posterior().mean(), rtol=1e-10)
    outputs = jnp.asarray(np.random.default_rng(1).normal(size=(2, 9, 3)))

    def moments(outputs):
        packed = params.from_time_major(outputs, "ante1")
        d = params.new(packed, 9, family="ante1")
        return d.mean(), d.variance()

    mean, variance = jax.jit(moments)(outputs)
    assert mean.shape == (2, 1, 9)
    np.testing.assert_allclose(mean[:, 0], outputs[..., 0])
    np.testing.assert_allclose(variance[:, 0], np.exp(outputs[..., 1]))


def test_structural_time_series():
    """`sts.AR1` in a model of the substrate's `sts`, and its forecast."""
    sts, key = b.tfp.sts, jax.random.key(1)
    y = jnp.asarray(both.LONG[:40])
    component = tfp_ar1_jax.sts.AR1(observed_time_series=y)
    model = sts.Sum([component, sts.LocalLevel(observed_time_series=y)], observed_time_series=y)
    values = {p.name: p.prior.sample(seed=key) for p in model.parameters}
    log_prob = jax.jit(lambda v: model.joint_distribution(y).log_prob(v))
    assert np.isfinite(log_prob(values))
    slopes = jax.grad(lambda v: model.joint_distribution(y).log_prob(v))(values)
    assert all(np.isfinite(leaf) for leaf in jax.tree_util.tree_leaves(slopes))


@pytest.mark.parametrize("name", CLASSES)
def test_inference_under_transformations(name):
    """Laplace's approximation and variational inference: `jit`, `vmap`, `grad`."""

    def evidence(p):
        path = both.member(b, name, p)
        return inference.laplace_approximation(
            path, lambda x: tfd.Poisson(log_rate=x).log_prob(jnp.asarray(both.COUNTS))
        ).log_evidence

    points = jnp.stack([POINT, 0.5 * POINT])
    in_batch = jax.jit(jax.vmap(evidence))(points)
    np.testing.assert_allclose(in_batch, [evidence(p) for p in points], rtol=1e-8)
    actual = jax.jit(jax.grad(evidence))(POINT)
    steps = 1e-5 * np.eye(2)
    expected = [(evidence(POINT + e) - evidence(POINT - e)) / 2e-5 for e in steps]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)

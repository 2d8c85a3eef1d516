"""The families of posteriors against dense Gaussians; extreme parameters; XLA."""

import numpy as np
import oracles
import packed
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ar1 import params as ar1_params
from tfp_ar1 import priors
from tfp_ar1.vae import posteriors

tfd = tfp.distributions

D = 3
# How many parameters for D coordinates, and how many numbers of a covariance for 1, 2 and 50.
FAMILIES = {
    "ar1": (5, [2, 2, 2]),
    "arh1": (7, [2, 3, 51]),
    "ante1": (8, [1, 3, 99]),
    "diag": (6, [1, 2, 50]),
    "isotropic": (4, [1, 1, 1]),
    "full": (9, [1, 3, 1275]),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def random_params(family, *batch, dtype="float64"):
    return np.random.default_rng(2).normal(size=(*batch, FAMILIES[family][0])).astype(dtype)


def test_names():
    assert list(posteriors.POSTERIORS) == [*FAMILIES, "sites"]  # that one: test_sites
    for function in (posteriors.get, lambda name: posteriors.num_covariance_parameters(name, 3)):
        with pytest.raises(ValueError, match=r"Unknown posterior 'ar2'; .*\['ar1', 'arh1', "):
            function("ar2")


@every_family
def test_sizes(family):
    posterior, (size, numbers) = posteriors.get(family), FAMILIES[family]
    assert posterior.params_size(D) == size
    assert [posteriors.num_covariance_parameters(family, d) for d in (1, 2, 50)] == numbers
    for function in (
        posterior.params_size,
        lambda d: posteriors.num_covariance_parameters(family, d),
    ):
        with pytest.raises(ValueError, match="`event_size` must be a positive integer; got 0"):
            function(0)
    message = rf"`params` must have {size} entries .*`event_size=3`; got shape \(2, {size + 1}\)"
    with pytest.raises(ValueError, match=message):
        posterior.new(np.zeros([2, size + 1]), D)


@pytest.mark.parametrize(("batch", "dtype"), [((5,), "float32"), ((2, 1), "float64")])
@every_family
def test_new(family, batch, dtype):
    posterior, params = posteriors.get(family), random_params(family, *batch, dtype=dtype)
    distribution, expected = posterior.new(params, D), packed.dense(params, family, D)
    assert distribution.dtype == dtype
    assert (distribution.batch_shape, distribution.event_shape) == (batch, [D])
    oracles.assert_close(distribution.mean(), expected.mean)
    oracles.assert_close(distribution.covariance(), expected.covariance, event_ndims=2)
    prior = priors.standard_normal(D, dtype)
    kl = expected.kl(oracles.Dense(np.zeros(D), np.eye(D)))
    oracles.assert_close(tfd.kl_divergence(distribution, prior), kl)
    oracles.assert_close(posterior.correlation(distribution), packed.correlation(expected))


@every_family
def test_special_parameters(family):
    posterior = posteriors.get(family)
    standard = posterior.new(np.zeros([posterior.params_size(D)]), D)
    np.testing.assert_array_equal(standard.mean(), np.zeros(D))
    np.testing.assert_array_equal(standard.covariance(), np.eye(D))
    # A single coordinate has no neighbour.
    single = posterior.new(np.ones([4, posterior.params_size(1)], np.float32), 1)
    np.testing.assert_array_equal(posterior.correlation(single), np.zeros(4))
    # Beyond the documented bounds.
    size = posterior.params_size(2)
    largest = posterior.new(np.full([size], 1e30, np.float32), 2)
    np.testing.assert_allclose(largest.mean(), np.full(2, ar1_params.LOC_BOUND))
    smallest = posterior.new(np.full([size], -1e30, np.float32), 2)
    first = smallest.stddev()[0]  # the first row of a full factor is its diagonal alone
    np.testing.assert_allclose(first, np.exp(-ar1_params.LOG_S_BOUND / 2), rtol=1e-5)
    if family in packed.FAMILIES:
        np.testing.assert_allclose(largest.fisher_z, ar1_params.FISHER_Z_BOUND)
        np.testing.assert_allclose(smallest.fisher_z, -ar1_params.FISHER_Z_BOUND)


def extreme_params(size):
    """All the largest, all the smallest, and a mixture of large, small and plain numbers."""
    values = np.float32([3.4e38, -3.4e38, 1e15, -60, 60, -1, 1, 0, 1e-38, -1e-45])
    mixed = np.random.default_rng(3).choice(values, size=(300, size))
    return np.concatenate([np.full([1, size], 3.4e38), np.full([1, size], -3.4e38), mixed])


def everything(family, params, event_size):
    """Samples, KL to N(0, I), correlations, and the gradients of the first two."""
    posterior = posteriors.get(family)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(params)
        distribution = posterior.new(params, event_size)
        z = distribution.sample(seed=[1, 2])
        kl = tfd.kl_divergence(distribution, priors.standard_normal(event_size))
    return {
        "sample": z,
        "kl": kl,
        "correlation": posterior.correlation(distribution),
        "gradient of sample": tape.gradient(z, params),
        "gradient of kl": tape.gradient(kl, params),
    }


@pytest.mark.parametrize("event_size", [1, 64])
@pytest.mark.parametrize("family", ["ar1", "diag", "isotropic", "full"])
def test_extreme_parameters(family, event_size):
    """Every finite float32 vector is a valid distribution; test_params has the other chains."""
    params = tf.constant(extreme_params(posteriors.get(family).params_size(event_size)), tf.float32)
    results = everything(family, params, event_size)
    for name, value in results.items():
        assert np.all(np.isfinite(value)), name
    assert np.all(results["kl"] >= 0)
    assert np.all(np.abs(results["correlation"]) <= 1)


@pytest.mark.parametrize(
    "family", ["full", *(pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES if f != "full")]
)
def test_xla_with_an_unknown_batch_size(family):
    params = random_params(family, 4, dtype="float32")
    signature = [tf.TensorSpec([None, params.shape[-1]])]
    compiled = tf.function(
        lambda params: everything(family, params, D), signature, jit_compile=True
    )
    results, expected = compiled(params), everything(family, tf.constant(params), D)
    for name in results:
        if "sample" not in name:  # the generator under XLA draws other numbers
            oracles.assert_close(results[name], expected[name], err_msg=name)
    # dz / d loc = 1, whatever the noise.
    np.testing.assert_allclose(results["gradient of sample"][:, :D], 1.0)

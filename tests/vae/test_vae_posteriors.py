"""The families of posteriors against dense Gaussians; extreme parameters; XLA."""

import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ar1 import params as ar1_params
from tfp_ar1 import priors
from tfp_ar1.vae import posteriors

tfd = tfp.distributions

FAMILIES = ("ar1", "arh1", "ante1", "diag", "isotropic", "full")
D = 3


def random_params(family, *batch, dtype="float64"):
    size = posteriors.get(family).params_size(D)
    return np.random.default_rng(2).normal(size=(*batch, size)).astype(dtype)


def moments(family, params):
    """What the packed parameters mean."""
    loc, rest = np.float64(params[..., :D]), np.float64(params[..., D:])
    if family == "ar1":
        covariance = oracles.ar1_covariance(np.exp(rest[..., 0] / 2), np.tanh(rest[..., 1]), D)
    elif family in ("arh1", "ante1"):
        scale, rho = np.exp(rest[..., :D] / 2), np.tanh(rest[..., D:])
        if family == "arh1":
            rho = np.repeat(rho, D - 1, axis=-1)
        correlations = oracles.tf_antedependent_correlations(tf.constant(rho)).numpy()
        covariance = scale[..., :, None] * scale[..., None, :] * correlations
    elif family == "full":
        a, b, c, d, e, f = (rest[..., i] for i in range(6))
        zero = np.zeros_like(a)
        # The order of `tfp.math.fill_triangular`: from the lower right corner, in a spiral.
        rows = [[np.exp(d / 2), zero, zero], [f, np.exp(e / 2), zero], [c, b, np.exp(a / 2)]]
        factor = np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
        covariance = factor @ np.swapaxes(factor, -1, -2)
    else:
        covariance = np.exp(rest)[..., None] * np.eye(D)
    return oracles.Dense(loc, covariance)


def test_names():
    assert tuple(posteriors.POSTERIORS) == FAMILIES
    with pytest.raises(ValueError, match=r"Unknown posterior 'ar2'; expected one of \['ar1', 'arh"):
        posteriors.get("ar2")


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("ar1", {1: 3, 3: 5, 10: 12}),
        ("arh1", {1: 3, 3: 7, 10: 21}),
        ("ante1", {1: 2, 3: 8, 10: 29}),
        ("diag", {1: 2, 3: 6, 10: 20}),
        ("isotropic", {1: 2, 3: 4, 10: 11}),
        ("full", {1: 2, 3: 9, 10: 65}),
    ],
)
def test_params_size(family, sizes):
    posterior = posteriors.get(family)
    assert {d: posterior.params_size(d) for d in sizes} == sizes
    with pytest.raises(ValueError, match="`event_size` must be a positive integer; got 0"):
        posterior.params_size(0)


@pytest.mark.parametrize(
    ("family", "numbers"),
    [
        ("ar1", {1: 2, 2: 2, 50: 2}),
        ("arh1", {1: 2, 2: 3, 50: 51}),
        ("ante1", {1: 1, 2: 3, 50: 99}),
        ("diag", {1: 1, 2: 2, 50: 50}),
        ("isotropic", {1: 1, 2: 1, 50: 1}),
        ("full", {1: 1, 2: 3, 50: 1275}),
    ],
)
def test_num_covariance_parameters(family, numbers):
    assert {d: posteriors.num_covariance_parameters(family, d) for d in numbers} == numbers
    with pytest.raises(ValueError, match="`event_size` must be a positive integer; got 0"):
        posteriors.num_covariance_parameters(family, 0)


def test_num_covariance_parameters_of_an_unknown_family():
    with pytest.raises(ValueError, match="Unknown posterior 'ar2'"):
        posteriors.num_covariance_parameters("ar2", 3)


@pytest.mark.parametrize("dtype", oracles.DTYPES)
@pytest.mark.parametrize("batch", [(), (5,), (2, 1)])
@pytest.mark.parametrize("family", FAMILIES)
def test_new(family, batch, dtype):
    posterior, params = posteriors.get(family), random_params(family, *batch, dtype=dtype)
    distribution, expected = posterior.new(params, D), moments(family, params)
    assert distribution.dtype == dtype
    assert distribution.batch_shape == batch
    assert distribution.event_shape == [D]
    oracles.assert_close(distribution.mean(), expected.mean)
    oracles.assert_close(distribution.covariance(), expected.covariance, event_ndims=2)
    prior = priors.standard_normal(D, dtype)
    kl = expected.kl(oracles.Dense(np.zeros(D), np.eye(D)))
    oracles.assert_close(tfd.kl_divergence(distribution, prior), kl)
    deviations = np.sqrt(np.diagonal(expected.covariance, axis1=-2, axis2=-1))
    neighbours = np.diagonal(expected.covariance, offset=1, axis1=-2, axis2=-1)
    correlation = np.mean(neighbours / (deviations[..., 1:] * deviations[..., :-1]), axis=-1)
    oracles.assert_close(posterior.correlation(distribution), correlation)


@pytest.mark.parametrize("family", FAMILIES)
def test_correlation_of_one_coordinate_is_zero(family):
    posterior = posteriors.get(family)
    distribution = posterior.new(np.ones([4, posterior.params_size(1)], np.float32), 1)
    np.testing.assert_array_equal(posterior.correlation(distribution), np.zeros(4))


@pytest.mark.parametrize("family", FAMILIES)
def test_zeros_are_the_standard_normal(family):
    posterior = posteriors.get(family)
    distribution = posterior.new(np.zeros([posterior.params_size(D)]), D)
    np.testing.assert_array_equal(distribution.mean(), np.zeros(D))
    np.testing.assert_array_equal(distribution.covariance(), np.eye(D))


@pytest.mark.parametrize("family", FAMILIES)
def test_params_of_the_wrong_size(family):
    size = posteriors.get(family).params_size(D)
    message = rf"`params` must have {size} entries .*`event_size=3`; got shape \(2, {size + 1}\)"
    with pytest.raises(ValueError, match=message):
        posteriors.get(family).new(np.zeros([2, size + 1]), D)


# --- Every finite float32 vector is a valid distribution ------------------------------------------


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


@pytest.mark.parametrize("event_size", [1, 2, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_extreme_parameters(family, event_size):
    params = tf.constant(extreme_params(posteriors.get(family).params_size(event_size)), tf.float32)
    results = everything(family, params, event_size)
    for name, value in results.items():
        assert np.all(np.isfinite(value)), name
    assert np.all(results["kl"] >= 0)
    assert np.all(np.abs(results["correlation"]) <= 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_clipped_at_the_documented_bounds(family):
    posterior, size = posteriors.get(family), posteriors.get(family).params_size(2)
    largest = posterior.new(np.full([size], 1e30, np.float32), 2)
    np.testing.assert_allclose(largest.mean(), np.full(2, ar1_params.LOC_BOUND))
    smallest = posterior.new(np.full([size], -1e30, np.float32), 2)
    first = smallest.stddev()[0]  # the first row of a full factor is its diagonal alone
    np.testing.assert_allclose(first, np.exp(-ar1_params.LOG_S_BOUND / 2), rtol=1e-5)
    if family in ("ar1", "arh1", "ante1"):
        np.testing.assert_allclose(largest.fisher_z, ar1_params.FISHER_Z_BOUND)
        np.testing.assert_allclose(smallest.fisher_z, -ar1_params.FISHER_Z_BOUND)


@pytest.mark.parametrize("family", FAMILIES)
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

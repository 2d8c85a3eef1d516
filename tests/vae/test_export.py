"""SavedModels for processes that have TensorFlow, and not this package."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_ar1
from tfp_ar1.vae import architectures

D = 3
X = np.random.default_rng(0).uniform(size=(5, 4, 4)).astype("float32")

LOAD = """
import sys
import numpy as np
import tensorflow as tf
given, expected = np.load("given.npz"), np.load("expected.npz")
model = tf.saved_model.load("exported")
x, seed = given["x"], given["seed"]
actual = {
    "serve": model.serve(x),
    "reconstruct": model.reconstruct(x),
    "two": model.reconstruct(x[:2]),
    "decode": model.decode(given["z"]),
    "generate": model.generate(7, seed),
    "signature": next(iter(model.signatures["reconstruct"](x=tf.constant(x)).values())),
    **model.encode(x),
}
for name in expected.files:
    np.testing.assert_allclose(actual[name], expected[name], rtol=2e-5, atol=1e-6, err_msg=name)
other = model.generate(7, seed + 1)
assert np.abs(other - actual["generate"]).max() > 1e-3
assert not {"tfp_ar1", "tensorflow_probability"} & set(sys.modules)
"""


@pytest.mark.parametrize("posterior", ["ar1", pytest.param("full", marks=pytest.mark.slow)])
def test_endpoints_in_a_process_without_the_package(posterior, tmp_path):
    encoder, decoder = architectures.mlp((4, 4), D, (8,))
    prior = tfp_ar1.layers.MultivariateNormalAR1Prior(D, correlation=0.5)
    model = tfp_ar1.RhoVAE(encoder, decoder, D, posterior=posterior, prior=prior, seed=0)
    model.compile(keras.optimizers.Adam(0.01))
    model.fit(X, verbose=0)
    model.export(tmp_path / "exported", verbose=False)
    z, seed = np.float32([[0.1, -0.2, 0.3]]), np.int32([3, 4])
    np.savez(tmp_path / "given.npz", x=X, z=z, seed=seed)
    q = model.encode(X)
    reconstruction = model.reconstruct(X)
    np.savez(
        tmp_path / "expected.npz",
        serve=reconstruction,
        reconstruct=reconstruction,
        two=reconstruction[:2],
        signature=reconstruction,
        decode=model.decode(z).mean(),
        generate=model.decode(model.prior.sample(7, seed=seed)).mean(),
        mean=q.mean(),
        stddev=q.stddev(),
        correlation=model.correlation(X),
    )
    run = subprocess.run([sys.executable, "-c", LOAD], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
def test_log_likelihood(tmp_path):
    """The endpoint: what can be known of the estimate without its draws."""
    keras.utils.set_random_seed(0)
    encoder, decoder = architectures.mlp((4, 4), D, (8,))
    model = tfp_ar1.RhoVAE(encoder, decoder, D, posterior="full", seed=0)
    model.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "exported")
    estimate = loaded.log_likelihood
    seed = np.int32([3, 4])

    # With one draw it is log p(x | z) p(z) / q(z | x), whose mean over draws is the ELBO.
    one = np.stack([estimate(X, 1, [0, i]) for i in range(400)])
    q = model.encode(X)
    z = q.sample(4000, seed=1)
    log_p = model.decode(tf.reshape(z, [-1, D])).log_prob(np.tile(X, [4000, 1, 1]))
    elbo = np.mean(np.reshape(log_p, z.shape[:2]), axis=0) - q.kl_divergence(model.prior)
    assert np.all(np.abs(one.mean(axis=0) - elbo) < 5 * one.std(axis=0) / np.sqrt(300))
    # With many it is near the log-likelihood, which the package estimates from other draws.
    many = estimate(X, 4000, seed)
    np.testing.assert_allclose(many, model.log_likelihood(X, num_samples=4000), atol=0.25)
    assert many.dtype == tf.float32

    np.testing.assert_array_equal(estimate(X, 5, seed), estimate(X, 5, seed))
    assert np.all(estimate(X, 5, seed) != estimate(X, 5, seed + 1))
    for number in (0, -3):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"num_samples.*at least 1"):
            estimate(X, number, seed)


def test_a_model_with_the_layer(tmp_path):
    keras.utils.set_random_seed(1)
    sampler = tfp_ar1.layers.MultivariateNormalAR1(D, seed=0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(D + 2), sampler])
    x = np.ones([4, 6], np.float32)
    params = model.layers[0](x)
    model.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "exported")
    draws = np.stack([loaded.serve(x) for _ in range(300)])
    # Each call has noise of its own, of the distribution that the parameters describe.
    exact = sampler.distribution(params)
    error = draws.reshape(-1, D).mean(0) - exact.mean()[0]
    assert np.all(np.abs(error) < 5 * exact.stddev()[0] / np.sqrt(1200))
    covariance = exact.covariance()[0].numpy()
    variance = np.diag(covariance)
    bound = 5 * np.sqrt((np.outer(variance, variance) + covariance**2) / 1200)
    assert np.all(np.abs(np.cov(draws.reshape(-1, D).T) - covariance) < bound)


def test_a_model_that_is_not_built(tmp_path):
    encoder = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4)])
    _, decoder = architectures.mlp((4, 4), D, (8,))
    model = tfp_ar1.RhoVAE(encoder, decoder, D)
    with pytest.raises(ValueError, match="not built yet; call it on data before it is exported"):
        model.export(tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("format", ["onnx", "openvino", "torch", "pickle"])
def test_formats_that_are_refused(tmp_path, format):
    model = tfp_ar1.RhoVAE(*architectures.mlp((4, 4), D, (8,)), D)
    model.build((None, 4, 4))
    with pytest.raises(ValueError, match=f"Cannot export to format='{format}': Keras would report"):
        model.export(tmp_path / "exported", format=format)
    assert not (tmp_path / "exported").exists()

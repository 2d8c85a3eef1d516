"""Networks over time, layers after them, posteriors by sites as a layer, and the scale maps."""

import derivatives
import keras
import ml_dtypes
import numpy as np
import oracles
import packed as packed_params
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_ar1
from tfp_ar1 import params
from tfp_ar1.layers import MarkovSites, MultivariateNormalANTE1, MultivariateNormalAR1Prior

B, T, C = 3, 5, 2
LENGTHS = np.array([5, 2, 0])
MASK = np.arange(T) < LENGTHS[:, None]
RHO, SCALE, LOC = np.array([0.8, -0.5]), 1.5, 0.3


def outputs(k, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=(B, T, k * C)).astype(dtype)


def prior():
    loc = tf.fill([C, T], LOC)
    return tfp_ar1.MultivariateNormalAR1(loc, SCALE, correlation=tf.constant(RHO, tf.float32))


def dense_prior(c, size=T):
    return oracles.Dense(np.full(size, LOC), oracles.ar1_covariance(SCALE, RHO[c], size))


def product(m, precision, observed, c):
    """The prior of a channel times the sites that are observed."""
    own = dense_prior(c)
    inverse = np.linalg.inv(own.covariance)
    covariance = np.linalg.inv(inverse + np.diag(observed * precision))
    information = observed * (1 + precision) * m
    return oracles.Dense(covariance @ (inverse @ own.mean + information), covariance)


# --- Packed parameters ---------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("family", ["ar1", "arh1", "ante1", "sites"])
def test_packed_parameters_of_time_major(family, mask):
    k = 2 if family == "sites" else 3
    assert params.time_major_size(C, family) == k * C
    x = outputs(k)
    if mask is not None:
        x[~mask, (k - 1) * C :] = np.nan if family in ("ar1", "arh1") else 7.0
    packed = params.from_time_major(x, family, mask)
    assert packed.shape == (B, C, params.params_size(T, family))
    for b in range(B):
        for c in range(C):
            loc, log_s, *fisher_z = (x[b, :, i * C + c] for i in range(k))
            kept = np.arange(T) if mask is None else np.flatnonzero(mask[b])

            def mean(values, kept=kept):
                return [np.mean(values[kept]) if len(kept) else 0.0]

            of_path = {
                "ar1": lambda: [mean(log_s), mean(*fisher_z)],  # noqa: B023
                "arh1": lambda: [log_s, mean(*fisher_z)],  # noqa: B023
                "ante1": lambda: [log_s, fisher_z[0][1:]],  # noqa: B023
                "sites": lambda: [log_s],  # noqa: B023
            }
            expected = np.concatenate([loc, *of_path[family]()])
            np.testing.assert_allclose(packed[b, c], expected, rtol=1e-5, atol=1e-6)


def test_shapes_that_are_not_time_major():
    for shape in ((T, 4), (3,), (0,)):
        with pytest.raises(ValueError, match=r"shape \[..., time, 3 \* channels\] for 'ante1'"):
            params.from_time_major(tf.zeros(shape), "ante1")
    with pytest.raises(ValueError, match=r"Unknown family 'diag'; expected one of .*'sites'\]"):
        params.from_time_major(tf.zeros((T, 3)), "diag")
    with pytest.raises(ValueError, match="`channels` must be a positive integer; got 0"):
        params.time_major_size(0, "sites")
    layer = MultivariateNormalANTE1(T, time_major=True)
    for wrong in (tf.zeros((B, T + 1, 3)), keras.Input((T, 4))):
        with pytest.raises(ValueError, match=r"shape \[..., 5, 3 \* channels\]"):
            layer(wrong)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_softplus(dtype):
    """`softplus(x + log(e - 1))`, also of the largest numbers."""
    x = np.array([-1e4, -3.0, -1.0, 0.0, 0.5, 3.0, 30.0, 1e4], dtype)
    packed = tf.constant(np.stack([0 * x, x, x], axis=-1))

    def kl(packed):
        p = params.new(packed, 1, validate_args=True, scale_map="softplus")
        return tfd.kl_divergence(p, tfd.MultivariateNormalDiag(tf.zeros(1, dtype)))

    p = params.new(packed, 1, validate_args=True, scale_map="softplus")
    assert np.all(np.isfinite(derivatives.gradients(kl, [packed])[0]))
    scale = np.float64(p.marginal_scale)
    inside = slice(1, 6)
    expected = np.log1p(np.exp(np.float64(x)[inside]) * (np.e - 1))
    np.testing.assert_allclose(scale[inside], expected, rtol=20 * np.finfo(dtype).eps)
    assert np.all(np.diff(scale) >= 0)
    site = params.sites(tf.zeros(2), tfp_ar1.MultivariateNormalAR1([0.0], correlation=0.0))
    assert float(site.posterior().variance()[0]) == pytest.approx(0.5)  # of precision 1 + 1
    with pytest.raises(ValueError, match=r"Unknown scale map 'log'; expected one of \['exp', 'sof"):
        params.new(packed, 1, scale_map="log")


def test_softplus_in_layers():
    packed = packed_params.random("ante1", T, B)
    layer = MultivariateNormalANTE1(T, scale_map="softplus")
    expected = np.log1p(np.exp(np.float64(packed[:, T : 2 * T])) * (np.e - 1))
    oracles.assert_close(layer.distribution(packed).stddev(), expected, dtype="float32")
    assert type(layer).from_config(layer.get_config()).scale_map == "softplus"
    # Files of earlier versions do not say.
    config = layer.get_config()
    del config["scale_map"], config["time_major"]
    assert type(layer).from_config(config).get_config()["scale_map"] == "exp"
    with pytest.raises(ValueError, match="Unknown scale map 'log'"):
        MultivariateNormalANTE1(T, scale_map="log")


def test_softplus_in_layers_of_tf_keras():
    packed = packed_params.random("ante1", T, B)
    layer = tfp_ar1.tfpl.MultivariateNormalANTE1(T, scale_map="softplus")
    again = type(layer).from_config(layer.get_config())
    expected = np.log1p(np.exp(np.float64(packed[:, T : 2 * T])) * (np.e - 1))
    oracles.assert_close(again(packed).stddev(), expected, dtype="float32")
    with pytest.raises(ValueError, match="Unknown scale map 'log'"):
        tfp_ar1.tfpl.MultivariateNormalANTE1(T, scale_map="log")


# --- Layers --------------------------------------------------------------------------------------


def test_layer_after_a_network_over_time():
    x = outputs(3)
    layer = MultivariateNormalANTE1(T, prior=prior(), seed=0, time_major=True)
    of_packed = MultivariateNormalANTE1(T, prior=prior(), seed=0)
    z = layer(x)
    packed = params.from_time_major(x, "ante1")
    assert (z.shape, layer.compute_output_shape((None, T, 3 * C))) == ((B, T, C), (None, T, C))
    np.testing.assert_array_equal(z, np.swapaxes(of_packed(packed), 1, 2))
    oracles.assert_close(layer.losses, of_packed.losses)
    assert layer.distribution(x).batch_shape == (B, C)

    # A mask, as a layer before gives it: the KL is that of the timesteps that there are.
    inputs = keras.Input((None, 3 * C))
    model = keras.Model(inputs, layer(keras.layers.Masking()(inputs)))
    model(np.where(MASK[..., None], x, 0.0))
    q, kl = packed_params.dense(packed, "ante1", T), 0.0
    for b, n in enumerate(LENGTHS):
        for c in range(C if n else 0):
            own = oracles.Dense(q.mean[b, c, :n], q.covariance[b, c, :n, :n])
            kl += own.kl(dense_prior(c, n)) / B
    oracles.assert_close(model.losses, [kl], dtype="float32")


def test_sites_against_the_dense_product():
    x, observed = outputs(2), np.array([[1, 0, 0, 1, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
    layer = MarkovSites(T, prior(), kl_weight=0.5, time_major=True)
    of_packed = MarkovSites(T, prior(), kl_weight=0.5)
    packed = params.from_time_major(x, "sites")
    unknown = np.where(observed[..., None], x, np.nan)
    q, kl = layer.distribution(unknown, observed), 0.0
    for b in range(B):
        for c in range(C):
            m, precision = np.float64(x[b, :, c]), np.exp(np.float64(x[b, :, C + c]))
            expected = product(m, precision, observed[b], c)
            oracles.assert_close(q.mean()[b, c], expected.mean, dtype="float32")
            oracles.assert_close(
                q.covariance()[b, c], expected.covariance, dtype="float32", event_ndims=2
            )
            kl += 0.5 * expected.kl(dense_prior(c)) / B
    z = layer(unknown, mask=observed)
    assert z.shape == (B, T, C)
    assert np.all(np.isfinite(z))
    oracles.assert_close(layer.losses, [kl], dtype="float32")
    assert of_packed(packed, mask=observed[:, None]).shape == (B, C, T)
    oracles.assert_close(of_packed.losses, [kl], dtype="float32")
    # A path of which nothing was observed has no KL; a mask may name whole paths.
    of_packed(packed, mask=np.zeros((B, C), bool))
    np.testing.assert_array_equal(of_packed.losses, [0.0])


def test_sites_train_their_prior(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((T, 1))
    size = params.time_major_size(C, "sites")
    features = keras.layers.Dense(size)(keras.layers.Masking()(inputs))
    learned = MultivariateNormalAR1Prior(T, correlation=0.3, channels=C)
    z = MarkovSites(T, learned, seed=0, scale_map="softplus", time_major=True)(features)
    model = keras.Model(inputs, z)
    x = np.where(MASK[..., None], outputs(1)[..., :1], 0.0).astype("float32")
    model.compile(keras.optimizers.SGD(0.1), loss="mse", run_eagerly=True)
    before = np.asarray(learned.distribution().correlation_parameter())
    model.fit(x, np.ones((B, T, C)), verbose=0)
    assert np.all(np.abs(learned.distribution().correlation_parameter() - before) > 1e-4)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded(x), model(x))
    assert loaded.layers[-1].get_config() == model.layers[-1].get_config()
    assert len(loaded.trainable_variables) == len(model.trainable_variables)


@pytest.mark.parametrize("other", [None, tfd.MultivariateNormalDiag(tf.zeros(T))])
def test_a_prior_that_connects_nothing(other):
    with pytest.raises(TypeError, match=r"chain of this package.*correlation=0\.0"):
        MarkovSites(T, other)


@pytest.mark.parametrize(("dtype", "scale_map"), [("float32", "exp"), ("float16", "softplus")])
def test_sites_of_extreme_parameters(dtype, scale_map):
    """Anything finite makes finite samples, KLs and gradients."""
    largest = float(ml_dtypes.finfo(dtype).max)
    rng = np.random.default_rng(0)
    entries = [largest, -largest, 0.0, 1e-38, 1e38, -1e19, 1e4, -90.0, 90.0, 1.0, -1.0]
    given = tf.cast(np.clip(rng.choice(entries, (200, 2 * T)), -largest, largest), dtype)
    fisher_z = tf.constant(0.5, dtype)

    def results_of(given, fisher_z):
        own = tfp_ar1.MultivariateNormalAR1(tf.zeros(T, dtype), fisher_z=fisher_z)
        q = params.sites(given, own, scale_map=scale_map).posterior()
        z, kl = q.sample(seed=(1, 2)), tfd.kl_divergence(q, own)
        return {"z": z, "kl": kl, "total": tf.reduce_sum(tf.cast(kl, tf.float64))}

    results, gradients = derivatives.values_and_gradients(results_of, [given, fisher_z])
    for part in (results["z"], results["kl"], gradients["z"][0], gradients["kl"][0]):
        assert np.all(np.isfinite(part))
    assert dtype == "float16" or np.isfinite(gradients["total"][1])

"""The Keras layers: samples, KL, seeds, saving, precision, errors."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1

tfd = tfp.distributions
Layer = tfp_ar1.layers.MultivariateNormalAR1
LAYERS = {
    "ar1": tfp_ar1.layers.MultivariateNormalAR1,
    "arh1": tfp_ar1.layers.MultivariateNormalARH1,
    "ante1": tfp_ar1.layers.MultivariateNormalANTE1,
}
every_family = pytest.mark.parametrize("family", LAYERS)

D = 3
# How many numbers each layer needs for D coordinates.
SIZES = {"ar1": D + 2, "arh1": D + D + 1, "ante1": D + D + (D - 1)}
LOC = np.float32([0.5, -1.0, 2.0])
SCALE = np.float32([0.5, 1.0, 2.0])
FACTOR = np.float32([[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [-0.3, 0.4, 0.7]])

# The prior, and its mean and covariance.
PRIORS = {
    "diag": (lambda: tfd.MultivariateNormalDiag(LOC, SCALE), LOC, np.diag(SCALE**2)),
    "independent": (
        lambda: tfd.Independent(tfd.Normal(LOC, SCALE), 1),
        LOC,
        np.diag(SCALE**2),
    ),
    "sample": (lambda: tfd.Sample(tfd.Normal(1.0, 2.0), D), np.ones(D), 4 * np.eye(D)),
    "tril": (lambda: tfd.MultivariateNormalTriL(LOC, FACTOR), LOC, FACTOR @ FACTOR.T),
    "ar1": (
        lambda: tfp_ar1.MultivariateNormalAR1(LOC, 2.0, 0.75),
        LOC,
        oracles.ar1_covariance(2.0, 0.75, D),
    ),
}


def packed(*shape, family="ar1", seed=5, dtype="float32"):
    """Parameters of random distributions, `[*shape, SIZES[family]]`."""
    return np.random.default_rng(seed).normal(size=(*shape, SIZES[family])).astype(dtype)


def dense(params, family="ar1", size=D):
    """What the packed parameters mean."""
    params = np.asarray(params, np.float64)
    num_scales = 1 if family == "ar1" else size
    loc, log_s, fisher_z = np.split(params, [size, size + num_scales], axis=-1)
    scale = np.broadcast_to(np.exp(log_s / 2), loc.shape)
    rho = np.broadcast_to(np.tanh(fisher_z), (*loc.shape[:-1], size - 1))
    correlations = oracles.tf_antedependent_correlations(tf.constant(rho)).numpy()
    return oracles.Dense(loc, scale[..., :, None] * correlations * scale[..., None, :])


def dense_prior(name):
    _, mean, covariance = PRIORS[name]
    return oracles.Dense(np.float64(mean), np.float64(covariance))


@pytest.fixture
def set_policy():
    """Sets the global dtype policy for one test."""
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


# --- What the layer computes ------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(4,), (2, 7)], ids=["vectors", "paths"])
@pytest.mark.parametrize("prior", PRIORS)
@every_family
def test_sample_and_weighted_kl_of_an_example(family, prior, batch):
    layer = LAYERS[family](D, prior=PRIORS[prior][0](), kl_weight=0.25, seed=0)
    params = packed(*batch, family=family)
    z = layer(params)
    assert z.shape == (*batch, D)
    assert z.dtype == tf.float32
    assert layer.compute_output_shape((None, *params.shape[1:])) == (None, *batch[1:], D)
    (kl,) = layer.losses
    expected = 0.25 * np.sum(dense(params, family).kl(dense_prior(prior))) / batch[0]
    oracles.assert_close(kl, expected)


# How many of the axes [batch, channels, steps] are parts of an example, and how many are examples.
NDIMS = {None: 4, 2: 4, 1: 4 * 2, 0: 4 * 2 * 3}


@pytest.mark.parametrize(
    ("family", "ndims"),
    [("ar1", 2), ("ar1", 1), ("ar1", 0), *((family, None) for family in LAYERS)],
)
def test_kl_is_summed_over_the_parts_of_an_example(family, ndims, tmp_path):
    params = packed(4, 2, 3, family=family)
    layer = LAYERS[family](D, PRIORS["ar1"][0](), reinterpreted_batch_ndims=ndims)
    expected = np.sum(dense(params, family).kl(dense_prior("ar1"))) / NDIMS[ndims]
    inputs = keras.Input(params.shape[1:])
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "model.keras")
    for each in (model, keras.saving.load_model(tmp_path / "model.keras")):
        each(params)
        oracles.assert_close(each.losses, [expected])
        each.compile(loss=None)
        oracles.assert_close(each.evaluate(params, verbose=0), expected, dtype="float32")


@pytest.mark.parametrize("learned", [False, True])
def test_prior_of_channels(learned, tmp_path):
    """Parameters `[batch, channels, size]`, and a correlation for each channel."""
    fisher_z = np.float32([0.0, 0.5, -1.0])
    if learned:
        prior = tfp_ar1.layers.MultivariateNormalAR1Prior(D, channels=3)
        prior.fisher_z.assign(fisher_z[:, np.newaxis])
    else:
        prior = tfp_ar1.MultivariateNormalAR1(tf.zeros([3, D]), fisher_z=fisher_z)
    params = packed(5, 3)
    covariance = oracles.ar1_covariance(1.0, np.tanh(np.float64(fisher_z)), D)
    expected = np.sum(dense(params).kl(oracles.Dense(np.zeros(D), covariance))) / 5
    model = keras.Sequential([keras.Input(params.shape[1:]), Layer(D, prior=prior)])
    model.save(tmp_path / "model.keras")
    for each in (model, keras.saving.load_model(tmp_path / "model.keras")):
        each(params)
        oracles.assert_close(each.losses, [expected])
        assert len(each.trainable_variables) == learned


@pytest.mark.parametrize("shape", [(5,), (3,), (5, 2), (5, 1), (5, 3, 4), (3, 5)])
def test_prior_whose_axes_are_not_those_of_an_example(shape):
    """Nor are three examples three channels."""
    prior = tfd.MultivariateNormalDiag(tf.zeros([3, D]))
    with pytest.raises(ValueError, match=r"The prior has batch shape \(3,\) where the distribu"):
        Layer(D, prior=prior)(packed(*shape))


def test_more_parts_than_axes():
    layer = Layer(D, prior=PRIORS["diag"][0](), reinterpreted_batch_ndims=2)
    with pytest.raises(ValueError, match=r"`reinterpreted_batch_ndims=2` needs .*shape \(4,\)"):
        layer(packed(4))


@pytest.mark.parametrize("wrapped", [False, True])
def test_numbers_of_steps_that_differ(wrapped):
    """`TimeDistributed` would count the first step alone."""
    layer = Layer(D, prior=PRIORS["diag"][0]())
    inputs = keras.Input((None, D + 2))
    model = keras.Model(inputs, (keras.layers.TimeDistributed(layer) if wrapped else layer)(inputs))
    model.compile(loss=None)
    batches = [packed(2, steps) for steps in (4, 3)]
    spec = tf.TensorSpec((2, None, D + 2))
    data = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=spec)
    if wrapped:
        with pytest.raises(ValueError, match="Call the layer on all steps at once"):
            model.evaluate(data, verbose=0)
        return
    expected = np.mean([np.sum(dense(x).kl(dense_prior("diag"))) / 2 for x in batches])
    oracles.assert_close(model.evaluate(data, verbose=0), expected, dtype="float32")


@pytest.mark.parametrize("channels", [(), (2,)])
def test_masked_steps_have_no_kl(channels):
    params = packed(4, 5, *channels)
    mask = np.arange(5) < np.array([[5], [2], [0], [3]])
    expected = np.sum(dense(params[mask]).kl(dense_prior("diag"))) / 4
    layer = Layer(D, prior=PRIORS["diag"][0]())
    layer(params, mask=mask)
    oracles.assert_close(layer.losses, [expected])
    if not channels:  # and as it comes from a layer before
        inputs = keras.Input(params.shape[1:])
        model = keras.Model(inputs, layer(keras.layers.Masking()(inputs)))
        model(np.where(mask[..., np.newaxis], params, 0.0))
        oracles.assert_close(model.losses, [expected])


def test_no_examples_have_no_kl():
    layer = Layer(D, prior=PRIORS["diag"][0]())
    assert layer(packed(0)).shape == (0, D)
    np.testing.assert_array_equal(layer.losses, [0.0])


def test_config_of_a_version_that_averaged():
    config = Layer(D, prior=PRIORS["diag"][0]()).get_config()
    del config["reinterpreted_batch_ndims"]
    layer, params = Layer.from_config(config), packed(4, 2)
    layer(params)
    oracles.assert_close(layer.losses, [np.mean(dense(params).kl(dense_prior("diag")))])


def test_losses_are_those_of_the_last_call():
    layer = Layer(D, prior=PRIORS["diag"][0]())
    layer(packed(4))
    layer(packed(4, seed=6))
    expected = np.mean(dense(packed(4, seed=6)).kl(dense_prior("diag")))
    oracles.assert_close(layer.losses, [expected])


def test_without_prior_no_loss():
    layer = Layer(D)
    layer(packed(4))
    assert layer.losses == []


@pytest.mark.parametrize(
    ("family", "covariance"),
    [
        ("ar1", [np.log(4.0), np.arctanh(-0.6)]),
        ("arh1", [*np.log([4.0, 1.0, 0.25]), np.arctanh(-0.6)]),
        ("ante1", [*np.log([4.0, 1.0, 0.25]), *np.arctanh([-0.6, 0.9])]),
    ],
)
def test_samples_have_the_moments_of_the_distribution(family, covariance):
    params = np.float32([1.0, -2.0, 0.5, *covariance])
    z = LAYERS[family](D, seed=1)(np.tile(params, [40_000, 1])).numpy()
    expected = dense(params, family)
    # The largest standard error is that of a variance, 4 √(2 / 40000) = 0.03.
    np.testing.assert_allclose(np.mean(z, axis=0), expected.mean, atol=0.05)
    np.testing.assert_allclose(np.cov(z.T), expected.covariance, atol=0.12)


@every_family
def test_distribution(family):
    params = packed(2, 4, family=family)
    distribution = LAYERS[family](D).distribution(params)
    assert isinstance(distribution, getattr(tfp_ar1, LAYERS[family].__name__))
    expected = dense(params, family)
    oracles.assert_close(distribution.mean(), expected.mean)
    oracles.assert_close(distribution.covariance(), expected.covariance, event_ndims=2)


@every_family
def test_params_size(family):
    assert LAYERS[family].params_size(D) == SIZES[family]


@every_family
def test_a_single_coordinate(family):
    """No neighbours: ANTE(1) has no correlation, that of the others plays no part."""
    layer = LAYERS[family](1, prior=tfd.MultivariateNormalDiag(tf.zeros(1)))
    params = np.float32([[0.5, np.log(4.0), 0.7]])[:, : layer.params_size(1)]
    assert layer(params).shape == (1, 1)
    # KL of N(½, 4) to N(0, 1)
    oracles.assert_close(layer.losses, [0.5 * (4.0 + 0.25 - 1.0 - np.log(4.0))])


@pytest.mark.parametrize("training", [True, False])
def test_the_seed_decides_the_noise(training):
    params = packed(4)
    layers = [Layer(D, seed=seed) for seed in (1, 1, 2, None, None)]
    first, same, other, random, random_too = (layer(params, training=training) for layer in layers)
    np.testing.assert_array_equal(first, same)
    for different in (other, random, random_too, layers[0](params, training=training)):
        assert np.all(first != different)
    assert np.all(random != random_too)


@every_family
def test_gradients_reach_every_parameter(family):
    params = tf.constant(packed(4, family=family))
    layer = LAYERS[family](D, seed=0)
    with tf.GradientTape() as tape:
        tape.watch(params)
        z = layer(params)
    gradient = tape.gradient(z, params).numpy()
    np.testing.assert_allclose(gradient[:, :D], 1.0)
    # dz / d log s = (z - loc) / 2, summed over the coordinates that share s.
    by_log_s = (np.float64(z) - params[:, :D]) / 2
    if family == "ar1":
        by_log_s = np.sum(by_log_s, axis=-1, keepdims=True)
    num_scales = by_log_s.shape[-1]
    oracles.assert_close(gradient[:, D : D + num_scales], by_log_s, dtype="float32")
    assert np.all(gradient[:, D + num_scales :] != 0)


# --- In models ---------------------------------------------------------------------------------


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(D + 2)
        self.sampling = Layer(D, prior=PRIORS["diag"][0](), seed=3)

    def call(self, x):
        return self.sampling(self.dense(x))


def sequential(prior="diag", seed=3, family="ar1", **kwargs):
    sampling = LAYERS[family](D, prior=prior and PRIORS[prior][0](), seed=seed, **kwargs)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(SIZES[family]), sampling])


def functional():
    inputs = keras.Input((4,))
    params = keras.layers.Dense(D + 2)(inputs)
    return keras.Model(inputs, Layer(D, prior=PRIORS["diag"][0](), seed=3)(params))


def no_loss(y, z):
    return 0.0 * z[:, 0]


class Annealing(keras.callbacks.Callback):
    """The weight of the KL, 0.1 in the first epoch, 0.2 in the second, and so on."""

    def on_epoch_begin(self, epoch, logs=None):
        self.model.layers[-1].kl_weight = 0.1 * (epoch + 1)


def test_kl_weight_that_is_set_while_training(tmp_path):
    model = sequential()
    model(INPUTS)
    (kl,) = model.losses
    model.compile(keras.optimizers.SGD(0.0), loss=no_loss)
    losses = model.fit(INPUTS, INPUTS, epochs=3, verbose=0, callbacks=[Annealing()]).history["loss"]
    oracles.assert_close(losses, np.float64([0.1, 0.2, 0.3]) * kl, dtype="float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert loaded.layers[-1].kl_weight == model.layers[-1].kl_weight == 0.1 * 3
    assert len(loaded.get_weights()) == 2
    with pytest.raises(ValueError, match="`kl_weight` must not be negative; got -1"):
        loaded.layers[-1].kl_weight = -1.0


@pytest.mark.parametrize("variable", [tf.Variable, keras.Variable])
def test_kl_weight_that_is_a_variable(variable):
    """It is read at every step; training does not lower the loss by it."""
    weight = variable(0.5)
    model = sequential(kl_weight=weight)
    model(INPUTS)
    (kl,) = model.losses
    assert len(model.trainable_variables) == 2
    model.compile(keras.optimizers.SGD(0.0), loss=no_loss)
    weight.assign(2.0)
    oracles.assert_close(model.evaluate(INPUTS, INPUTS, verbose=0), 4 * kl, dtype="float32")
    assert model.layers[-1].get_config()["kl_weight"] == 2.0


INPUTS = np.random.default_rng(8).normal(size=(6, 4)).astype("float32")


@pytest.mark.parametrize("make", [sequential, functional, Subclassed])
def test_every_kind_of_model(make):
    model = make()
    z = model(INPUTS)
    assert z.shape == (6, D)
    params = next(layer for layer in model.layers if hasattr(layer, "kernel"))(INPUTS)
    kl = np.mean(dense(params).kl(dense_prior("diag")))
    oracles.assert_close(model.losses, [kl])
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss=no_loss)
    history = model.fit(INPUTS, INPUTS, verbose=0).history
    oracles.assert_close(history["loss"], [kl], dtype="float32")
    assert model.predict(INPUTS, verbose=0).shape == (6, D)


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "jit"])
def test_fit_finds_the_optimum(jit_compile):
    """Squared error to a target plus KL to N(0, I) has an optimum that can be computed by hand."""
    target, weight = 2.0, 0.5
    keras.utils.set_random_seed(0)
    prior = tfd.Sample(tfd.Normal(0.0, 1.0), D)
    model = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(D + 2, use_bias=False),
            Layer(D, prior=prior, kl_weight=weight, seed=0),
        ]
    )
    model.compile(keras.optimizers.Adam(0.1), loss="mse", jit_compile=jit_compile)
    n = 128 * 120
    model.fit(np.ones([n, 1]), np.full([n, D], target), batch_size=128, verbose=0)
    fitted = dense(model.layers[0].kernel.numpy()[0])
    # Derivatives of mean_i [(loc_i - target)² + s] + weight KL, by loc_i and s; ρ only costs.
    loc = 2 * target / (2 + weight * D)
    variance = weight * D / (weight * D + 2)
    np.testing.assert_allclose(fitted.mean, np.full(D, loc), atol=0.06)
    np.testing.assert_allclose(fitted.covariance, variance * np.eye(D), atol=0.06)


@pytest.mark.parametrize(
    ("jit_compile", "loss"),
    # XLA draws other noise from the same seed, so only the KL can be the same.
    [(False, "mse"), (True, no_loss)],
    ids=["graph", "jit"],
)
@every_family
def test_eager_training_equals_compiled_training(family, jit_compile, loss):
    models = []
    for how in ({"run_eagerly": True}, {"jit_compile": jit_compile}):
        keras.utils.set_random_seed(0)
        model = sequential(family=family)
        model.compile(keras.optimizers.SGD(0.1), loss=loss, **how)
        model.fit(INPUTS, INPUTS[:, :D], batch_size=2, shuffle=False, verbose=0)
        models.append(model)
    for eager, compiled in zip(*(model.get_weights() for model in models), strict=True):
        oracles.assert_close(eager, compiled, "same computation", event_ndims=eager.ndim)


# --- Saving ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [None, *PRIORS])
@every_family
def test_config_round_trip(family, prior):
    cls, params = LAYERS[family], packed(4, family=family)
    layer = cls(D, prior=prior and PRIORS[prior][0](), kl_weight=0.5, seed=4, name="mine")
    config = json.loads(json.dumps(layer.get_config()))
    copy = cls.from_config(config)
    assert copy.get_config() == layer.get_config()
    assert (copy.name, copy.event_size, copy.kl_weight, copy.seed) == ("mine", D, 0.5, 4)
    np.testing.assert_array_equal(copy(params), layer(params))
    np.testing.assert_array_equal(copy.losses, layer.losses)


@pytest.mark.parametrize("prior", [None, *PRIORS])
@every_family
def test_save_and_load(family, prior, tmp_path):
    model = sequential(prior, seed=None, kl_weight=0.5, family=family)
    model(INPUTS)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[-1]) is LAYERS[family]
    # Not the first sample of its seed: the state of the seed is saved.
    np.testing.assert_array_equal(loaded(INPUTS), model(INPUTS))
    np.testing.assert_array_equal(loaded.losses, model.losses)


def test_save_and_load_weights(tmp_path):
    model, other = sequential(seed=1), sequential(seed=2)
    model(INPUTS)
    model.save_weights(tmp_path / "w.weights.h5")
    other.load_weights(tmp_path / "w.weights.h5")
    np.testing.assert_array_equal(other(INPUTS), model(INPUTS))


@every_family
def test_the_learned_prior(family, tmp_path):
    """Of one law for every family: its weights are the layer's, saved and loaded with it."""
    prior = tfp_ar1.layers.MultivariateNormalAR1Prior(D, correlation=0.75)
    model = keras.Sequential([keras.Input((SIZES[family],)), LAYERS[family](D, prior=prior)])
    assert [v.name for v in model.trainable_variables] == ["fisher_z"]
    params = packed(6, family=family)
    model(params)
    expected = oracles.Dense(np.zeros(D), oracles.ar1_covariance(1.0, 0.75, D))
    oracles.assert_close(model.losses, [np.mean(dense(params, family).kl(expected))])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded(params)
    np.testing.assert_array_equal(loaded.losses, model.losses)


def test_load_weights_that_hold_no_seed():
    layer, store = Layer(D, seed=1), {}
    layer.load_own_variables(store)
    np.testing.assert_array_equal(layer(packed(4)), Layer(D, seed=1)(packed(4)))


LOAD = """
import sys
import tfp_ar1, keras
import numpy as np
x, wanted = np.load(sys.argv[2]), np.load(sys.argv[3])
model = keras.saving.load_model(sys.argv[1])
np.testing.assert_array_equal(model(x), wanted)
"""


@pytest.mark.slow
def test_load_in_a_fresh_process(tmp_path):
    model = sequential("ar1")
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", INPUTS)
    np.save(tmp_path / "z.npy", model(INPUTS))
    command = [sys.executable, "-c", LOAD, "model.keras", "x.npy", "z.npy"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


# --- Precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "output"),
    [("mixed_float16", "float16"), ("mixed_bfloat16", "bfloat16"), ("float64", "float64")],
)
@every_family
def test_dtype_policies(family, policy, output, set_policy):
    set_policy(policy)
    inner = np.float64 if policy == "float64" else np.float32
    prior = tfd.MultivariateNormalDiag(LOC.astype(inner))
    layer = LAYERS[family](D, prior=prior, seed=0)
    params = packed(6, family=family, dtype=inner)
    params[:, -1] += 4  # a correlation that half precision rounds to 1
    z = layer(params)
    assert z.dtype == output
    (kl,) = layer.losses
    assert kl.dtype == inner
    expected = dense(params, family).kl(oracles.Dense(np.float64(LOC), np.eye(D)))
    oracles.assert_close(kl, np.mean(expected))
    # The sample is rounded once, at the end.
    exact = LAYERS[family](D, seed=0, dtype=inner)(params)
    np.testing.assert_array_equal(z, tf.cast(exact, output))


def test_half_precision_from_the_layer_before(set_policy):
    set_policy("mixed_float16")
    model = sequential()
    assert model(INPUTS).dtype == "float16"
    params = model.layers[0](INPUTS)
    assert params.dtype == "float16"
    expected = np.mean(dense(params).kl(dense_prior("diag")))
    oracles.assert_close(model.losses, [expected])


# --- Replicas ----------------------------------------------------------------------------------


class Replica:
    """As much of a `tf.distribute.ReplicaContext` as decides the noise."""

    def __init__(self, index, number):
        self.replica_id_in_sync_group, self.num_replicas_in_sync = index, number


def test_every_replica_has_noise_of_its_own(monkeypatch):
    samples = []
    for replica in (Replica(0, 1), Replica(0, 2), Replica(1, 2)):
        monkeypatch.setattr(tf.distribute, "get_replica_context", lambda r=replica: r)
        samples.append(Layer(D, seed=1)(packed(4)).numpy())
    assert np.all(samples[1] != samples[2])
    monkeypatch.undo()
    np.testing.assert_array_equal(samples[0], Layer(D, seed=1)(packed(4)))


# --- Errors ------------------------------------------------------------------------------------


def float64_prior():
    return tfd.MultivariateNormalDiag(np.zeros(D))


def variable_prior():
    return tfd.MultivariateNormalDiag(tf.Variable(tf.zeros(D), name="my_loc"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"event_size": 0}, "`event_size` must be a positive integer; got 0"),
        ({"event_size": 2.5}, "`event_size` must be a positive integer; got 2.5"),
        ({"kl_weight": -1.0}, "`kl_weight` must not be negative; got -1.0"),
        ({"event_size": 4, "prior": PRIORS["diag"][0]}, r"size 4; .* event shape \(3,\)"),
        ({"reinterpreted_batch_ndims": -1}, "a non-negative integer or `None`; got -1"),
        ({"reinterpreted_batch_ndims": 0.5}, "a non-negative integer or `None`; got 0.5"),
        ({"reinterpreted_batch_ndims": "1"}, "a non-negative integer or `None`; got '1'"),
        ({"prior": lambda: tfd.Normal(0.0, 1.0)}, r"event shape \(\)"),
        ({"prior": float64_prior}, "must be of dtype float32; got float64.*NumPy arrays"),
        ({"prior": variable_prior}, "holds variables .*my_loc.*Give it constants"),
    ],
)
def test_bad_arguments(arguments, message):
    if "prior" in arguments:
        arguments = {**arguments, "prior": arguments["prior"]()}
    for cls in LAYERS.values():
        with pytest.raises(ValueError, match=message):
            cls(**{"event_size": D, **arguments})


def test_distribution_of_a_placeholder():
    with pytest.raises(TypeError, match="`distribution` takes values, not a placeholder"):
        Layer(D).distribution(keras.Input((D + 2,)))


def test_kl_weight_nan():
    with pytest.raises(ValueError, match="`kl_weight` must not be negative; got nan"):
        Layer(D, kl_weight=float("nan"))


@every_family
def test_parameters_of_the_wrong_size(family):
    message = rf"`params` must have {SIZES[family]} entries.*got shape \(2, 6\)"
    with pytest.raises(ValueError, match=message):
        LAYERS[family](D)(np.zeros([2, 6], np.float32))


@every_family
def test_parameters_of_the_wrong_size_in_a_functional_model(family):
    with pytest.raises(ValueError, match=rf"`params` must have {SIZES[family]} entries"):
        LAYERS[family](D)(keras.Input((6,)))


@pytest.mark.parametrize(
    "prior",
    [
        lambda: tfd.Independent(tfd.Laplace(LOC, SCALE), 1),
        lambda: tfd.GaussianProcess(tfp.math.psd_kernels.MaternOneHalf(), tf.range(3.0)[:, None]),
        lambda: tfd.MultivariateNormalLinearOperator(scale=tf.linalg.LinearOperatorIdentity(D)),
    ],
)
def test_prior_that_cannot_be_saved(prior):
    """Found before the training, not after it."""
    with pytest.raises(ValueError, match=r"class `\w+` cannot be saved; use one of"):
        Layer(D, prior=prior())

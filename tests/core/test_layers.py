"""The Keras layers: samples, KL, seeds, saving, precision, errors."""

import types

import keras
import numpy as np
import oracles
import packed
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1

tfd = tfp.distributions
Layer = tfp_ar1.layers.MultivariateNormalAR1
LAYERS = {
    "ar1": Layer,
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
INPUTS = np.random.default_rng(8).normal(size=(6, 4)).astype("float32")

# The prior, and its mean and covariance.
PRIORS = {
    "diag": (lambda: tfd.MultivariateNormalDiag(LOC, SCALE), LOC, np.diag(SCALE**2)),
    "independent": (lambda: tfd.Independent(tfd.Normal(LOC, SCALE), 1), LOC, np.diag(SCALE**2)),
    "sample": (lambda: tfd.Sample(tfd.Normal(1.0, 2.0), D), np.ones(D), 4 * np.eye(D)),
    "tril": (lambda: tfd.MultivariateNormalTriL(LOC, FACTOR), LOC, FACTOR @ FACTOR.T),
    "ar1": (
        lambda: tfp_ar1.MultivariateNormalAR1(LOC, 2.0, 0.75),
        LOC,
        oracles.ar1_covariance(2.0, 0.75, D),
    ),
}


def random(*shape, family="ar1", **kwargs):
    return packed.random(family, D, *shape, **kwargs)


def make_prior(name):
    return PRIORS[name][0]()


def kl(params, prior="diag", family="ar1"):
    """The KL divergence of each distribution to the prior."""
    _, mean, covariance = PRIORS[prior]
    dense = packed.dense(params, family, D)
    return dense.kl(oracles.Dense(np.float64(mean), np.float64(covariance)))


def saved_and_loaded(model, tmp_path):
    model.save(tmp_path / "model.keras")
    return keras.saving.load_model(tmp_path / "model.keras")


@pytest.mark.parametrize(
    ("family", "prior"), [*(("ar1", prior) for prior in PRIORS), ("arh1", "ar1"), ("ante1", "tril")]
)
def test_sample_and_weighted_kl_of_an_example(family, prior):
    layer = LAYERS[family](D, prior=make_prior(prior), kl_weight=0.25, seed=0)
    assert layer.params_size(D) == SIZES[family]
    for batch in ((4,), (2, 7)):
        params = random(*batch, family=family)
        z = layer(params)
        assert (z.shape, z.dtype) == ((*batch, D), tf.float32)
        assert layer.compute_output_shape((None, *params.shape[1:])) == (None, *batch[1:], D)
        # Of the last call alone.
        oracles.assert_close(layer.losses, [0.25 * np.sum(kl(params, prior, family)) / batch[0]])


@every_family
def test_distribution(family):
    params = random(2, 4, family=family)
    distribution = LAYERS[family](D).distribution(params)
    assert isinstance(distribution, getattr(tfp_ar1, LAYERS[family].__name__))
    expected = packed.dense(params, family, D)
    oracles.assert_close(distribution.mean(), expected.mean)
    oracles.assert_close(distribution.covariance(), expected.covariance, event_ndims=2)
    # A single coordinate has no neighbour, and no correlation or one that plays no part.
    layer = LAYERS[family](1, prior=tfd.MultivariateNormalDiag(tf.zeros(1)))
    layer(np.float32([[0.5, np.log(4.0), 0.7]])[:, : layer.params_size(1)])
    # KL of N(½, 4) to N(0, 1)
    oracles.assert_close(layer.losses, [0.5 * (4.0 + 0.25 - 1.0 - np.log(4.0))])


# How many of the axes [batch, channels, steps] are parts of an example, and how many are examples.
@pytest.mark.parametrize(("ndims", "examples"), [(None, 4), (2, 4), (1, 4 * 2), (0, 4 * 2 * 3)])
def test_kl_is_summed_over_the_parts_of_an_example(ndims, examples, tmp_path):
    params = random(4, 2, 3, family="arh1")
    layer = LAYERS["arh1"](D, make_prior("ar1"), reinterpreted_batch_ndims=ndims)
    expected = np.sum(kl(params, "ar1", "arh1")) / examples
    layer(params)
    oracles.assert_close(layer.losses, [expected])
    if ndims == 1:
        inputs = keras.Input(params.shape[1:])
        model = saved_and_loaded(keras.Model(inputs, layer(inputs)), tmp_path)
        model.compile(loss=None)
        oracles.assert_close(model.evaluate(params, verbose=0), expected, dtype="float32")


def test_config_of_a_version_that_averaged():
    config = Layer(D, prior=make_prior("diag")).get_config()
    del config["reinterpreted_batch_ndims"]
    layer, params = Layer.from_config(config), random(4, 2)
    layer(params)
    oracles.assert_close(layer.losses, [np.mean(kl(params))])


def test_axes_that_do_not_fit_the_prior():
    """Nor are three examples three channels."""
    layer = Layer(D, prior=tfd.MultivariateNormalDiag(tf.zeros([3, D])))
    for shape in ((5,), (3,), (5, 2), (5, 1), (5, 3, 4), (3, 5)):
        with pytest.raises(ValueError, match=r"The prior has batch shape \(3,\) where the distr"):
            layer(random(*shape))
    layer = Layer(D, prior=make_prior("diag"), reinterpreted_batch_ndims=2)
    with pytest.raises(ValueError, match=r"`reinterpreted_batch_ndims=2` needs .*shape \(4,\)"):
        layer(random(4))


@pytest.mark.parametrize("wrapped", [False, True])
def test_numbers_of_steps_that_differ(wrapped):
    """`TimeDistributed` would count the first step alone."""
    layer = Layer(D, prior=make_prior("diag"))
    inputs = keras.Input((None, D + 2))
    model = keras.Model(inputs, (keras.layers.TimeDistributed(layer) if wrapped else layer)(inputs))
    model.compile(loss=None)
    batches = [random(2, steps) for steps in (4, 3)]
    spec = tf.TensorSpec((2, None, D + 2))
    data = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=spec)
    if wrapped:
        with pytest.raises(ValueError, match="Call the layer on all steps at once"):
            model.evaluate(data, verbose=0)
    else:
        expected = np.mean([np.sum(kl(x)) / 2 for x in batches])
        oracles.assert_close(model.evaluate(data, verbose=0), expected, dtype="float32")


@pytest.mark.parametrize("channels", [(), (2,)])
def test_masked_steps_have_no_kl(channels):
    params = random(4, 5, *channels)
    mask = np.arange(5) < np.array([[5], [2], [0], [3]])
    expected = np.sum(kl(params[mask])) / 4
    layer = Layer(D, prior=make_prior("diag"))
    layer(params, mask=mask)
    oracles.assert_close(layer.losses, [expected])
    if not channels:  # and as it comes from a layer before
        inputs = keras.Input(params.shape[1:])
        model = keras.Model(inputs, layer(keras.layers.Masking()(inputs)))
        model(np.where(mask[..., np.newaxis], params, 0.0))
        oracles.assert_close(model.losses, [expected])


def test_no_loss_without_examples_or_prior():
    layer = Layer(D, prior=make_prior("diag"))
    assert layer(random(0)).shape == (0, D)
    np.testing.assert_array_equal(layer.losses, [0.0])
    layer = Layer(D)
    layer(random(4))
    assert layer.losses == []


@pytest.mark.parametrize("training", [True, False])
def test_the_seed_decides_the_noise(training):
    params = random(4)
    layers = [Layer(D, seed=seed) for seed in (1, 1, 2, None, None)]
    first, same, other, *at_random = (layer(params, training=training) for layer in layers)
    np.testing.assert_array_equal(first, same)
    for different in (other, *at_random, layers[0](params, training=training)):
        assert np.all(first != different)
    assert np.all(at_random[0] != at_random[1])


def test_every_replica_has_noise_of_its_own(monkeypatch):
    samples = []
    for index, number in ((0, 1), (0, 2), (1, 2)):
        # As much of a `tf.distribute.ReplicaContext` as decides the noise.
        replica = types.SimpleNamespace(replica_id_in_sync_group=index, num_replicas_in_sync=number)
        monkeypatch.setattr(tf.distribute, "get_replica_context", lambda r=replica: r)
        samples.append(Layer(D, seed=1)(random(4)).numpy())
    assert np.all(samples[1] != samples[2])
    monkeypatch.undo()
    np.testing.assert_array_equal(samples[0], Layer(D, seed=1)(random(4)))


def test_gradients_reach_every_parameter():
    params = tf.constant(random(4))
    with tf.GradientTape() as tape:
        tape.watch(params)
        z = Layer(D, seed=0)(params)
    gradient = tape.gradient(z, params).numpy()
    np.testing.assert_allclose(gradient[:, :D], 1.0)
    # dz / d log s = (z - loc) / 2, summed over the coordinates.
    oracles.assert_close(gradient[:, D], np.sum(np.float64(z) - params[:, :D], axis=-1) / 2)
    assert np.all(gradient[:, D + 1] != 0)


def sequential(prior="diag", seed=3, family="ar1", **kwargs):
    sampling = LAYERS[family](D, prior=prior and make_prior(prior), seed=seed, **kwargs)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(SIZES[family]), sampling])


def no_loss(y, z):
    return 0.0 * z[:, 0]


def test_kl_weight_that_is_set_while_training(tmp_path):
    model = sequential()
    model(INPUTS)
    (unweighted,) = model.losses

    class Annealing(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.layers[-1].kl_weight = 0.1 * (epoch + 1)

    model.compile(keras.optimizers.SGD(0.0), loss=no_loss)
    losses = model.fit(INPUTS, INPUTS, epochs=3, verbose=0, callbacks=[Annealing()]).history["loss"]
    oracles.assert_close(losses, np.float64([0.1, 0.2, 0.3]) * unweighted, dtype="float32")
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
    (half,) = model.losses
    assert len(model.trainable_variables) == 2
    model.compile(keras.optimizers.SGD(0.0), loss=no_loss)
    weight.assign(2.0)
    oracles.assert_close(model.evaluate(INPUTS, INPUTS, verbose=0), 4 * half, dtype="float32")
    assert model.layers[-1].get_config()["kl_weight"] == 2.0


@pytest.mark.parametrize(
    ("family", "jit_compile", "loss"),
    [
        ("ante1", False, "mse"),
        # XLA draws other noise from the same seed, so only the KL can be the same.
        *(pytest.param(f, True, no_loss, marks=pytest.mark.slow) for f in LAYERS),
    ],
)
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


@pytest.mark.parametrize(
    ("family", "prior"), [("ar1", None), ("ar1", "sample"), ("arh1", "ar1"), ("ante1", "tril")]
)
def test_save_and_load(family, prior, tmp_path):
    model = sequential(prior, seed=None, kl_weight=0.5, family=family, name="mine")
    model(INPUTS)
    loaded = saved_and_loaded(model, tmp_path)
    assert type(loaded.layers[-1]) is LAYERS[family]
    assert loaded.layers[-1].get_config() == model.layers[-1].get_config()
    # Not the first sample of its seed: the state of the seed is saved.
    np.testing.assert_array_equal(loaded(INPUTS), model(INPUTS))
    np.testing.assert_array_equal(loaded.losses, model.losses)


def test_save_and_load_weights(tmp_path):
    model, other = sequential(seed=1), sequential(seed=2)
    model(INPUTS)
    model.save_weights(tmp_path / "w.weights.h5")
    other.load_weights(tmp_path / "w.weights.h5")
    np.testing.assert_array_equal(other(INPUTS), model(INPUTS))
    # Weights that hold no seed.
    layer = Layer(D, seed=1)
    layer.load_own_variables({})
    np.testing.assert_array_equal(layer(random(4)), Layer(D, seed=1)(random(4)))


@pytest.mark.parametrize(
    ("family", "policy", "output"),
    [
        ("ar1", "mixed_bfloat16", "bfloat16"),
        ("ante1", "mixed_float16", "float16"),
        ("ante1", "float64", "float64"),
    ],
)
def test_dtype_policies(family, policy, output, set_policy):
    set_policy(policy)
    inner = np.float64 if policy == "float64" else np.float32
    layer = LAYERS[family](D, prior=tfd.MultivariateNormalDiag(LOC.astype(inner)), seed=0)
    params = random(6, family=family, dtype=inner)
    params[:, -1] += 4  # a correlation that half precision rounds to 1
    prior = oracles.Dense(np.float64(LOC), np.eye(D))
    # In half precision, too, as the layer before returns them.
    for given in (params, tf.cast(params, output)):
        z = layer(given)
        assert z.dtype == output
        (loss,) = layer.losses
        assert loss.dtype == inner
        oracles.assert_close(loss, np.mean(packed.dense(given, family, D).kl(prior)))
    # The sample is rounded once, at the end.
    z = LAYERS[family](D, seed=0)(params)
    exact = LAYERS[family](D, seed=0, dtype=inner)(params)
    np.testing.assert_array_equal(z, tf.cast(exact, output))


def variable_prior():
    return tfd.MultivariateNormalDiag(tf.Variable(tf.zeros(D), name="my_loc"))


def without_features():
    kernel = tfp.math.psd_kernels.MaternOneHalf()
    return tfd.GaussianProcess(kernel, tf.range(3.0)[:, None])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"event_size": 0}, "`event_size` must be a positive integer; got 0"),
        ({"event_size": 2.5}, "`event_size` must be a positive integer; got 2.5"),
        ({"kl_weight": -1.0}, "`kl_weight` must not be negative; got -1.0"),
        ({"kl_weight": float("nan")}, "`kl_weight` must not be negative; got nan"),
        ({"event_size": 4, "prior": PRIORS["diag"][0]}, r"size 4; .* event shape \(3,\)"),
        ({"reinterpreted_batch_ndims": -1}, "a non-negative integer or `None`; got -1"),
        ({"reinterpreted_batch_ndims": 0.5}, "a non-negative integer or `None`; got 0.5"),
        ({"reinterpreted_batch_ndims": "1"}, "a non-negative integer or `None`; got '1'"),
        ({"prior": lambda: tfd.Normal(0.0, 1.0)}, r"event shape \(\)"),
        (
            {"prior": lambda: tfd.MultivariateNormalDiag(np.zeros(D))},
            "must be of dtype float32; got float64.*NumPy arrays",
        ),
        pytest.param(
            {"prior": variable_prior}, "holds variables .*my_loc.*Give it constants", id="variables"
        ),
        # What cannot be saved is found before the training, not after it.
        (
            {"prior": lambda: tfd.Independent(tfd.Laplace(LOC, SCALE), 1)},
            "class `Laplace` cannot be saved; use one of",
        ),
        ({"prior": without_features}, "class `GaussianProcess` cannot be saved; use one of"),
    ],
)
def test_bad_arguments(arguments, message):
    if "prior" in arguments:
        arguments = {**arguments, "prior": arguments["prior"]()}
    with pytest.raises(ValueError, match=message):
        Layer(**{"event_size": D, **arguments})


@every_family
def test_bad_parameters(family):
    message = rf"`params` must have {SIZES[family]} entries"
    with pytest.raises(ValueError, match=message + r".*got shape \(2, 6\)"):
        LAYERS[family](D)(np.zeros([2, 6], np.float32))
    with pytest.raises(ValueError, match=message):
        LAYERS[family](D)(keras.Input((6,)))
    with pytest.raises(TypeError, match="`distribution` takes values, not a placeholder"):
        LAYERS[family](D).distribution(keras.Input((SIZES[family],)))

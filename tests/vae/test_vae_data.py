"""What models take as data: lists, masks, streams, values; and what they say to all else."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_ar1
from tfp_ar1.vae import (
    architectures,
    evaluation,
    likelihoods,
    objectives,
    sequence_evaluation,
    sequence_networks,
)

RNG = np.random.default_rng(0)
X = RNG.uniform(size=(12, 3, 2)).astype("float32")
SERIES = RNG.normal(size=(6, 4, 2)).astype("float32")


def images(**arguments):
    """A small model of images."""
    parts = architectures.mlp((3, 2), 2, (4,))
    return tfp_ar1.RhoVAE(*parts, 2, seed=0, **arguments)


def sequences(**arguments):
    """A small model of series."""
    parts = sequence_networks.convolutional((4, 2), 1, filters=(2,), hidden_units=(2,))
    return tfp_ar1.SequenceVAE(*parts, 1, 4, seed=0, **arguments)


def compiled(model, optimizer=None, **options):
    model.compile(optimizer or keras.optimizers.Adam(0.01), **{"run_eagerly": True, **options})
    return model


each_kind = pytest.mark.parametrize(("make", "x"), [(images, X), (sequences, SERIES)])
METHODS = {
    "fit": {"verbose": 0},
    "evaluate": {"verbose": 0},
    "predict": {"verbose": 0},
    "train_on_batch": {},
    "test_on_batch": {},
    "predict_on_batch": {},
    "__call__": {},
    "encode": {},
    "reconstruct": {},
    "correlation": {},
    "log_likelihood": {"num_samples": 1},
}
OF_SERIES = {**METHODS, "impute": {"num_samples": 1}, "forecast": {"steps": 1, "num_samples": 1}}


@pytest.fixture(scope="module")
def of_images():
    return compiled(images())


@pytest.fixture(scope="module")
def of_series():
    return compiled(sequences())


def assert_refused(model, methods, x, message, error=ValueError):
    for method, arguments in methods.items():
        with pytest.raises(error, match=message) as caught:
            getattr(model, method)(x, **arguments)
        # What Keras adds where a layer is called says what the arguments were.
        assert len(str(caught.value)) < 500 or method == "__call__"


class Duck:
    """An array of another library, as far as Keras can tell."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


def with_value(x, value, dtype=None):
    x = np.array(x, dtype)
    x.flat[5] = value
    return x


def test_lists_of_several_arrays(of_images, of_series):
    message = r"must be one array, .*; got a (list|tuple) of .*write np.stack\(x\)"
    assert_refused(of_images, METHODS, list(X), message)
    assert_refused(of_series, OF_SERIES, tuple(SERIES), message)
    assert_refused(of_series, {"fit": {}, "impute": {}}, {"x": list(SERIES)}, message)
    for estimate, arguments in (
        (evaluation.evaluate, ()),
        (evaluation.log_likelihood, (1,)),
        (evaluation.correlation, ()),
    ):
        with pytest.raises(ValueError, match=message):
            estimate(of_images, list(X), *arguments)
    with pytest.raises(ValueError, match=r"`validation_data` must be .*; got a .* of 12"):
        of_images.fit(X, validation_data=tuple(X), verbose=0)


@pytest.mark.slow
def test_a_list_of_one_array_and_lists_of_numbers(of_images, of_series):
    expected = of_images.reconstruct(X)
    for given in ([X], (X,), X.tolist(), X.astype("longdouble"), Duck(X), keras.Variable(X)):
        np.testing.assert_allclose(of_images.reconstruct(given), expected, rtol=1e-6)
        np.testing.assert_allclose(of_images.predict(given, verbose=0), expected, rtol=1e-5)
        np.testing.assert_allclose(of_images(given), expected, rtol=1e-6)
    length = np.array([1, 2, 3, 4, 4, 4])
    parts = {"x": SERIES, "length": length}
    expected = of_series.impute(parts, num_samples=1, seed=0)
    given = {"x": [SERIES], "length": length.tolist()}
    for same in ([parts], given):
        np.testing.assert_array_equal(of_series.impute(same, num_samples=1, seed=0), expected)
    of_series.fit(given, verbose=0)
    assert_refused(of_images, METHODS, [[1.0, 2.0], [1.0]], "lists of unequal lengths")


@pytest.mark.slow
def test_masked_arrays_of_series(of_series):
    """Masked is missing, as NaN is; what stands beneath a mask changes nothing."""
    hidden = RNG.uniform(size=SERIES.shape) < 0.3
    masked = np.ma.masked_array(np.where(hidden, 1e30, SERIES), hidden)
    missing = np.where(hidden, np.nan, SERIES)
    expected = of_series.log_likelihood(missing, num_samples=2)
    for given in (masked, [masked], {"x": masked}):
        np.testing.assert_array_equal(of_series.log_likelihood(given, num_samples=2), expected)
    mean = of_series.encode(missing).mean()
    np.testing.assert_array_equal(of_series.encode(masked).mean(), mean)
    np.testing.assert_array_equal(of_series(masked), of_series(missing))
    draws = of_series.impute(masked, num_samples=1, seed=0)
    np.testing.assert_array_equal(draws[0][~hidden], SERIES[~hidden])
    np.testing.assert_array_equal(draws, of_series.impute(missing, num_samples=1, seed=0))
    weights = []
    for given in (masked, missing):
        keras.utils.set_random_seed(1)
        model = compiled(sequences())
        model.fit(given, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)
    of_masks = np.ma.masked_array(np.ones(SERIES.shape[:2], bool), hidden[..., 0])
    assert_refused(of_series, OF_SERIES, {"x": SERIES, "mask": of_masks}, "of `mask` are masked")

    def predict(x, length):
        return sequence_evaluation.Prediction(np.zeros_like(x))

    figures = [sequence_evaluation.evaluate(predict, x, horizons=[1]) for x in (masked, missing)]
    assert figures[0] == figures[1]


def test_masked_arrays_of_images(of_images):
    masked = np.ma.masked_array(X, X < 0.3)
    message = rf"{np.sum(X < 0.3)} of 72 values of `x` are masked"
    for given in (masked, [masked]):
        assert_refused(of_images, METHODS, given, message)
    np.testing.assert_array_equal(of_images(np.ma.masked_array(X)), of_images(X))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (255 * X, r"data in \[0, 1\]; .* by 1/255"),
        (Duck(255 * X), r"data in \[0, 1\]; .* by 1/255"),
        ((255 * X).astype("uint8"), r"data in \[0, 1\]; .* by 1/255"),
        (with_value(X, np.nan), "1 values that are not finite"),
        (X.astype("complex64"), "must be numbers; got dtype complex64"),
        (X.astype(str), "must be numbers; got dtype str"),
        (X.astype("object"), "must be numbers; got dtype"),
        (tf.RaggedTensor.from_tensor(X), "RaggedTensor; give x.to_tensor"),
        (tf.sparse.from_dense(X), "SparseTensor; give tf.sparse.to_dense"),
        ({"x": X}, r"one array, not a dictionary; got one with the keys \['x'\]"),
        (X.reshape(12, 6), r"for data of shape \(batch, 3, 2\); got \(\w+, 6\)"),
        (X - 0.5, r"data in \[0, 1\]; \d+ values lie outside"),
    ],
)
def test_images_that_are_refused(of_images, x, message):
    assert_refused(of_images, METHODS, x, message)


def test_images_of_zeros_and_ones(of_images):
    for dtype in ("bool", "uint8", "int64", "float16"):
        x = (X > 0.5).astype(dtype)
        np.testing.assert_allclose(of_images(x), of_images(x.astype("float32")), rtol=1e-6)
    of_images.fit(X > 0.5, verbose=0)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (with_value(SERIES, np.inf), "1 values that are not finite"),
        (
            with_value(SERIES, 1e300, "float64"),
            r"up to 1e\+300, beyond 3.40\w+\+38, .* float32",
        ),
        ({"x": with_value(SERIES, -np.inf), "length": [4] * 6}, "1 values that are not finite"),
        (SERIES.astype("datetime64[s]"), "must be numbers; got"),
        (SERIES[:, [0, 1, 2, 3, 0]], r"shape \[N, 4, features\].*; got \(6, 5, 2\)"),
        (SERIES[..., 0], r"shape \[N, 4, features\].*; got \(6, 4\)"),
        (SERIES[..., [0, 1, 1]], r"for data of shape \(batch, 4, 2\); got"),
        ({"x": SERIES, "lengths": [4] * 6}, "must have the key 'x'.*; got .*'lengths'"),
        ({"x": SERIES, "length": [0] * 6}, "`length` must be from 1 to 4.* from 0 to 0"),
        ({"x": SERIES, "length": tf.fill([6], 99)}, "`length` must be from 1 to 4.* from 99 to 99"),
        ({"x": SERIES, "length": [2.0] * 6}, "an integer for each of 6 series; .*float64"),
        ({"x": SERIES, "length": [2] * 5}, r"for each of 6 series; .*\(5,\)"),
    ],
)
def test_series_that_are_refused(of_series, x, message):
    assert_refused(of_series, OF_SERIES, x, message)


def test_no_series(of_series):
    for method in ("fit", "evaluate", "log_likelihood", "impute", "forecast"):
        methods = {method: OF_SERIES[method]}
        assert_refused(of_series, methods, SERIES[:0], r"N at least 1; got \(0, 4, 2\)")


def test_what_half_precision_can_hold():
    model = compiled(images(likelihood="gaussian", dtype="mixed_float16"))
    with pytest.raises(ValueError, match="beyond 65504, the largest float16"):
        model.fit(1e5 * X, verbose=0)


class Batches(keras.utils.PyDataset):
    def __init__(self, *batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return (self.batches[index],)


def dataset(*parts):
    return tf.data.Dataset.from_tensor_slices(parts if len(parts) > 1 else parts[0]).batch(6)


STREAMS = {
    "dataset with labels": lambda: dataset(np.concatenate([X, 255 * X]), np.arange(24)),
    "missing": lambda: dataset(with_value(X, np.nan)),
    "generator": lambda: ((x,) for x in (X, X, X, 255 * X)),
    "PyDataset": lambda: Batches(X, 255 * X),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_streams_of_images(stream):
    model = compiled(images(), keras.optimizers.SGD(0.0), run_eagerly=False, jit_compile=False)
    methods = (model.fit, model.evaluate, model.predict)
    for method in methods if stream == "missing" else methods[:1]:
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"Bernoulli .* data in \[0, 1\]"):
            method(STREAMS[stream](), verbose=0)
    if stream == "PyDataset":
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"data in \[0, 1\]"):
            model.fit(X, validation_data=STREAMS[stream](), verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("x", "jit_compile"),
    [
        ({"x": SERIES, "length": np.full(6, 99)}, False),
        pytest.param(with_value(SERIES, np.inf), False, marks=pytest.mark.slow),
        pytest.param({"x": SERIES, "length": np.full(6, 99)}, True, marks=pytest.mark.slow),
    ],
)
def test_datasets_of_series(x, jit_compile):
    model = compiled(sequences(), run_eagerly=False, jit_compile=jit_compile)
    before = model.get_weights()
    message = "`length` must be from 1 to 4|data must be finite"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        model.fit(dataset(x), verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_masks_that_keras_would_drop(of_series):
    with pytest.raises(ValueError, match="1 of 48 values of `the first batch` are masked"):
        of_series.fit(Batches(np.ma.masked_equal(SERIES, SERIES[0, 0, 0])), verbose=0)


def test_no_batch_of_a_generator_is_lost():
    seen = []

    class Counting(tfp_ar1.RhoVAE):
        def train_step(self, data):
            seen.append(float(tf.reduce_mean(data[0])))
            return super().train_step(data)

    model = compiled(Counting(*architectures.mlp((3, 2), 2, (4,)), 2))
    model.fit(((x[None],) for x in X), verbose=0)
    np.testing.assert_allclose(seen, X.mean(axis=(1, 2)), rtol=1e-6)


def test_a_dataset_without_batches(of_images):
    with pytest.raises(ValueError, match=r"data of shape \(batch, 3, 2\); got \(3, 2\)"):
        of_images.fit(tf.data.Dataset.from_tensor_slices(X), verbose=0)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.full(12, np.nan), "must be finite and not negative"),
        (np.full(12, -1.0), "must be finite and not negative; got values from -1 to -1"),
        (np.ones((12, 3)), r"one number for each of 12 examples; got shape \(12, 3\)"),
        (np.ma.masked_equal(np.arange(12.0), 3), "1 of 12 values of `sample_weight` are masked"),
    ],
)
def test_weights_that_are_refused(of_images, weight, message):
    with pytest.raises(ValueError, match=message):
        of_images.fit(X, sample_weight=weight, verbose=0)
    with pytest.raises(ValueError, match=message):
        of_images.train_on_batch(X, sample_weight=weight)
    with pytest.raises(ValueError, match=message):
        of_images.fit(X, validation_data=(X, None, weight), verbose=0)


def test_what_weights_do(monkeypatch):
    """The figures are weighted means; what is minimized is divided by the number of examples."""
    weight = np.arange(12, dtype="float32")
    model = compiled(images(), keras.optimizers.SGD(0.01))
    monkeypatch.setattr(model, "next_seed", lambda: tf.constant([1, 2]))
    with tf.GradientTape() as tape:
        losses = model.objective(model, tf.constant(X), training=True).loss
        minimized = tf.reduce_sum(weight * losses) / 12
    kernel = model.encoder.layers[-1].kernel
    gradient = tape.gradient(minimized, kernel.value)
    before = kernel.numpy()
    # Without targets too, where Keras itself would drop them.
    for weights in (weight, weight[:, None]):
        figures = model.evaluate(X, sample_weight=weights, verbose=0, return_dict=True)
        np.testing.assert_allclose(figures["loss"], np.average(losses, weights=weight), rtol=1e-5)
    figures = model.fit(X, sample_weight=weights, batch_size=12, shuffle=False, verbose=0).history
    np.testing.assert_allclose(figures["loss"], [np.average(losses, weights=weight)], rtol=1e-5)
    np.testing.assert_allclose(kernel.numpy(), before - 0.01 * gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@each_kind
def test_warmup_with_accumulated_gradients(make, x):
    optimizer = keras.optimizers.SGD(0.0, gradient_accumulation_steps=2)
    model = compiled(make(objective=objectives.ELBO(warmup_steps=4)), optimizer)
    for steps_of_optimizer in (0, 0, 1, 1, 2):
        figures = model.train_on_batch(x, return_dict=True)
        factor = (steps_of_optimizer + 1) / 4
        expected = figures["reconstruction"] + factor * figures["kl"]
        np.testing.assert_allclose(figures["loss"], expected, rtol=1e-5)


@each_kind
def test_nothing_to_train(make, x):
    model = make()
    model.trainable = False
    before = compiled(model).get_weights()
    with pytest.warns(UserWarning, match="does not have any trainable weights"):
        history = model.fit(x, verbose=0).history
    assert np.isfinite(history["loss"][0])
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_model_without_an_optimizer():
    model = images()
    model.compile(optimizer=None, metrics=[], weighted_metrics=[], run_eagerly=True)
    assert len(model.evaluate(X, verbose=0)) == 4
    with pytest.raises(ValueError, match="compiled without an optimizer"):
        model.fit(X, verbose=0)


@each_kind
def test_a_subclass_with_parts_of_its_own(make, x):
    whole = make()

    class Mine(type(whole)):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.head = keras.layers.Dense(2)
            self.seen = keras.metrics.Sum(name="seen")

        def train_step(self, data):
            self.seen.update_state(tf.ones([tf.shape(data)[0]]))
            return super().train_step(data)

    model = compiled(Mine(whole.encoder, whole.decoder, *whole.latent_shape))
    history = model.fit(x, epochs=2, verbose=0).history
    assert history["seen"] == [len(x), len(x)]  # counted anew in each epoch
    assert "head" in {name for name, value in vars(model).items() if value in model.layers}


@pytest.mark.slow
@each_kind
def test_litert_after_fit(make, x, tmp_path):
    model = compiled(make())
    model.fit(x, verbose=0)
    model.export(tmp_path / "model.tflite", format="litert", verbose=False)
    if make is sequences:  # needs operations that the interpreter here has not
        assert (tmp_path / "model.tflite").stat().st_size > 1000
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = tf.lite.Interpreter(str(tmp_path / "model.tflite")).get_signature_runner()
    (name,) = run.get_input_details()
    (output,) = run(**{name: x[:1]}).values()
    np.testing.assert_allclose(output, model.predict(x[:1], verbose=0), rtol=1e-4, atol=1e-5)


@each_kind
def test_functional_models(make, x):
    """The model itself can be part of one; a distribution cannot."""
    model, inputs = make(), keras.Input(x.shape[1:])
    functional = keras.Model(inputs, model(inputs))
    np.testing.assert_allclose(functional(x), model.reconstruct(x), rtol=1e-5)
    for method in (model.encode, model.reconstruct, model.correlation, model.log_likelihood):
        with pytest.raises(ValueError, match=r"a functional model cannot hold; .*`call` of a"):
            method(inputs)
    with pytest.raises(ValueError, match="a functional model cannot hold"):
        model.decode(keras.Input(model.latent_shape))


def test_encoders_that_do_not_fit():
    x, other = keras.Input((3, 2)), keras.Input((3, 2))
    features = keras.layers.Dense(2)(keras.layers.Flatten()(x))
    decoder = images().decoder
    for outputs, got in (([features, features], "list of 2"), ({"a": features}, "dict of 1")):
        with pytest.raises(ValueError, match=f"encoder must output .*; it outputs a {got}"):
            tfp_ar1.RhoVAE(keras.Model(x, outputs), decoder, 2)
    both = keras.layers.Flatten()(keras.layers.Add()([x, other]))
    for inputs in ([x, other], {"a": x, "b": other}):
        with pytest.raises(ValueError, match="must take one input, the data; it takes 2, of"):
            tfp_ar1.RhoVAE(keras.Model(inputs, both), decoder, 2)
    series = keras.Input((4, 2))
    one = keras.Model(series, keras.layers.Dense(2)(series))
    with pytest.raises(ValueError, match=r"must take two inputs, .*; it takes \[\(None, 4, 2\)\]"):
        tfp_ar1.SequenceVAE(one, sequences().decoder, 1, 4)


def test_objectives_by_name():
    assert type(images(objective="iwae").objective) is objectives.ImportanceWeighted
    assert type(sequences(objective="infovae").objective) is objectives.InfoVAE
    with pytest.raises(ValueError, match=r"Unknown objective 'ELBO'; expected one of .*'elbo'"):
        images(objective="ELBO")
    with pytest.raises(TypeError, match=r"`objective` must be .*ELBO\(\); got <class"):
        images(objective=objectives.ELBO)


@pytest.mark.parametrize("last", ["hard_sigmoid", "layer"])
def test_decoders_of_probabilities(last):
    activation = {} if last == "layer" else {"activation": last}
    layers = [keras.Input((2,)), keras.layers.Dense(6, **activation)]
    layers += [keras.layers.Activation("sigmoid")] if last == "layer" else []
    decoder = keras.Sequential([*layers, keras.layers.Reshape((3, 2))])
    encoder = images().encoder
    with pytest.warns(UserWarning, match="as logits, but .* Leave the activation out"):
        tfp_ar1.RhoVAE(encoder, decoder, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tfp_ar1.RhoVAE(encoder, decoder, 2, likelihood="gaussian")
        images()


def test_what_early_stopping_watches(of_images):
    stop = keras.callbacks.EarlyStopping("val_kl", mode="min")
    with pytest.warns(UserWarning, match="monitors `val_kl`, .*rises as .* Monitor `val_loss`"):
        of_images.fit(X, validation_data=(X,), callbacks=[stop], verbose=0)


def test_errors_do_not_print_arrays(of_series):
    for arguments in ({"seed": list(range(9999))}, {"num_samples": list(range(9999))}):
        with pytest.raises(ValueError, match="got") as caught:
            of_series.impute(SERIES, **arguments)
        assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match="`class_weight` needs the classes"):
        of_series.fit(SERIES, class_weight={0: 1.0}, verbose=0)


def test_a_likelihood_with_a_check_alone():
    """One of an older version: in a graph its values need only be finite."""

    class Counts(likelihoods.Gaussian):
        def check(self, x):
            if np.any(x < 0):
                raise ValueError("Counts are not negative.")

    with pytest.raises(ValueError, match="Counts are not negative"):
        images(likelihood=Counts()).encode(-X)

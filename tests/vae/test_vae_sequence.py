"""`SequenceVAE`: values against dense Gaussians, masks, calibration, training, saving, errors."""

import functools

import keras
import numpy as np
import oracles
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp
import training
from training import assert_same_weights, compiled

import tfp_ar1
from tfp_ar1.vae import (
    batching,
    evaluation,
    likelihoods,
    objectives,
    sequence_evaluation,
    sequence_networks,
)

tfd = tfp.distributions

N, T, F, C = 6, 7, 2, 2
POSTERIORS = ("ar1", "arh1", "ante1", "diag", "isotropic")
SMALL = {
    "convolutional": {"filters": (4, 4), "kernel_size": 3, "hidden_units": (5,)},
    "recurrent": {"units": 4, "hidden_units": (5,)},
}
LENGTHS = np.array([7, 3, 1, 5, 7, 2])
fitted = functools.partial(training.fitted, batch_size=3)


def series(n=N, steps=T, features=F, missing=0.0, seed=0):
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.normal(size=(n, steps, features)), axis=1).astype("float32")
    x[rng.uniform(size=x.shape) < missing] = np.nan
    return x


def data(kind):
    """Arrays and dictionaries, with values missing and series of unequal lengths."""
    x = series(missing=0.4 if "missing" in kind else 0.0)
    if "lengths" not in kind:
        return x
    x[np.arange(T) >= LENGTHS[:, None]] = 1e30  # what is there must not matter
    return {"x": x, "length": LENGTHS}


KINDS = ("complete", "missing", "lengths", "missing, lengths")


def make(network="convolutional", steps=T, features=F, randomized=True, seed=0, **kwargs):
    """A small model; the same weights each time, by default far from where they start."""
    keras.utils.set_random_seed(7)
    parts = sequence_networks.NETWORKS[network]((steps, features), C, **SMALL[network])
    model = tfp_ar1.SequenceVAE(*parts, C, steps, seed=seed, **kwargs)
    rng = np.random.default_rng(1)
    if randomized:
        for v in model.trainable_variables:
            v.assign(0.4 * rng.normal(size=v.shape))
    return model


# --- Values ------------------------------------------------------------------------------------


def dense(distribution, index, channel, length):
    """The first `length` coordinates of one path's distribution; of the prior for `index=None`."""
    which = (channel,) if index is None else (index, channel)
    scale = np.float64(distribution.stddev())[which][:length]
    if hasattr(distribution, "correlation_parameter"):
        rho = np.float64(distribution.correlation_parameter())
        rho = rho[which] if rho.ndim else rho
    else:
        rho = 0.0
    rho = tf.constant(np.broadcast_to(rho, T - 1)[: length - 1])
    correlation = oracles.tf_antedependent_correlations(rho).numpy()
    mean = np.float64(distribution.mean())[which][:length]
    return oracles.Dense(mean, scale[:, None] * correlation * scale)


def decoded(model, z):
    """The decoder in NumPy: one step `[channels]` at a time."""
    (hidden, bias, out, out_bias) = (np.float64(w) for w in model.decoder.get_weights())
    return np.maximum(np.float64(z) @ hidden + bias, 0) @ out + out_bias


def expected_terms(model, x, posterior, z):
    """log p(x | z), log weight and KL of each series, by dense Gaussians over its own steps."""
    x, length = (x["x"], x["length"]) if isinstance(x, dict) else (x, np.full(len(x), T))
    scale = float(model.likelihood.scale())
    log_p, log_weight, kl = np.zeros((3, len(x)))
    for i, n in enumerate(length):
        outputs = decoded(model, z[i, :, :n].T)
        terms = scipy.stats.norm.logpdf(x[i, :n], outputs, scale)
        log_p[i] = log_weight[i] = np.nansum(terms)
        for c in range(C):
            q, p = dense(posterior, i, c, n), dense(model.prior, None, c, n)
            kl[i] += q.kl(p)
            log_weight[i] += p.log_prob(z[i, c, :n]) - q.log_prob(z[i, c, :n])
    return log_p, log_weight, kl


@pytest.mark.parametrize(
    ("posterior", "prior", "kind"),
    [(posterior, "ar1", KINDS[-1]) for posterior in (*POSTERIORS, "sites")]
    + [("ar1", None, kind) for kind in KINDS[:-1]],
)
def test_terms_against_dense(posterior, prior, kind):
    model, x = make(posterior=posterior, prior=prior), data(kind)
    q = model.encode(x)
    assert (q.batch_shape, q.event_shape) == ((N, C), (T,))
    draws = model.draw(x, q, num_samples=3, seed=tf.constant([1, 2]))
    assert draws.z.shape == (3, N, C, T)
    for k in range(3):
        log_p, log_weight, kl = expected_terms(model, x, q, draws.z[k].numpy())
        oracles.assert_close(draws.log_p[k], log_p)
        oracles.assert_close(draws.log_weight[k], log_weight)
    oracles.assert_close(model.kl_to_prior(q, x), kl)

    compiled(model, run_eagerly=True)
    metrics = model.evaluate(x, batch_size=N, verbose=0, return_dict=True)
    assert metrics["kl"] == pytest.approx(np.mean(kl), rel=1e-4)
    assert metrics["loss"] == pytest.approx(metrics["reconstruction"] + metrics["kl"], rel=1e-5)
    if prior == "ar1":
        rho = model.prior.correlation_parameter()
        assert rho.shape == [C]
        assert metrics["prior_correlation"] == pytest.approx(np.mean(rho), rel=1e-5)
    else:
        assert "prior_correlation" not in metrics


def interpolated(x, observed, length):
    """Straight lines between observed values of each series, by NumPy."""
    lines = np.zeros_like(x)
    for i, n in enumerate(length):
        for feature in range(x.shape[-1]):
            known = np.flatnonzero(observed[i, :, feature])
            if len(known):
                lines[i, :n, feature] = np.interp(np.arange(n), known, x[i, known, feature])
    return lines


# Each family with one network, the other with one family.
NETWORKS = [("convolutional", posterior) for posterior in POSTERIORS] + [("recurrent", "ar1")]


@pytest.mark.slow
@pytest.mark.parametrize(("network", "posterior"), NETWORKS)
def test_encoder_sees_what_was_observed(network, posterior):
    """Features, pooled features and packed parameters, from the encoder's own outputs."""
    model, x = make(network, posterior=posterior), data("missing, lengths")
    valid = np.arange(T) < LENGTHS[:, None]
    observed = valid[..., None] & ~np.isnan(x["x"])
    inputs = np.concatenate([interpolated(x["x"], observed, LENGTHS), observed], axis=-1)
    features = np.float64(model.encoder([inputs.astype("float32"), valid]))
    weights = [np.float64(w) for w in model.posterior_head.get_weights()]
    q = model.encode(x)
    loc = features @ weights[0] + weights[1]
    np.testing.assert_allclose(q.mean(), np.moveaxis(loc, 1, 2), rtol=1e-4, atol=1e-5)
    if posterior in ("arh1", "ante1", "diag"):
        of_steps = np.moveaxis(features @ weights[2] + weights[3], 1, 2)
        log_s, of_pairs = of_steps[:, :C], of_steps[:, C:, 1:]
    if posterior in ("ar1", "arh1", "isotropic"):
        mean = np.stack([features[i, :n].mean(axis=0) for i, n in enumerate(LENGTHS)])
        scalars = mean @ weights[-2] + weights[-1]
        of_series = scalars[:, -C:]
    if posterior in ("ar1", "isotropic"):
        log_s = np.broadcast_to(scalars[:, :C, None], (N, C, T))
    np.testing.assert_allclose(q.stddev(), np.exp(log_s / 2), rtol=1e-4)
    if posterior in ("ar1", "arh1"):
        rho = np.tanh(of_series)
        np.testing.assert_allclose(q.correlation_parameter(), rho, rtol=1e-4)
        np.testing.assert_allclose(model.correlation(x), rho.mean(axis=-1), rtol=1e-4, atol=1e-6)
    elif posterior == "ante1":
        rho = np.tanh(of_pairs)
        np.testing.assert_allclose(q.correlation_parameter(), rho, rtol=1e-4, atol=1e-6)
        means = [np.mean(rho[i, :, : n - 1]) if n > 1 else 0.0 for i, n in enumerate(LENGTHS)]
        np.testing.assert_allclose(model.correlation(x), means, rtol=1e-4, atol=1e-6)
    else:
        np.testing.assert_array_equal(model.correlation(x), np.zeros(N))


def test_how_far_convolutions_see():
    encoder, _ = sequence_networks.convolutional((41, 1), C, filters=(4, 4, 4), kernel_size=3)
    rng = np.random.default_rng(0)
    for v in encoder.trainable_variables:
        v.assign(np.abs(rng.normal(size=v.shape)))  # no unit is dead
    x, valid = tf.constant(np.abs(rng.normal(size=(1, 41, 2))), tf.float32), tf.ones((1, 41), bool)
    with tf.GradientTape() as tape:
        tape.watch(x)
        feature = tf.reduce_sum(encoder([x, valid])[:, 20])
    touched = np.flatnonzero(np.any(tape.gradient(feature, x)[0] != 0, axis=-1))
    assert (touched[0], touched[-1]) == (20 - 7, 20 + 7)


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_starts_at_the_prior(posterior):
    model = make(randomized=False, posterior=posterior)
    q = model.encode(series())
    np.testing.assert_allclose(q.mean(), np.zeros((N, C, T)), atol=0.5)
    np.testing.assert_array_equal(q.stddev(), np.ones((N, C, T)))
    np.testing.assert_array_equal(model.kl_to_prior(model.encode(np.full((N, T, F), np.nan))), 0.0)
    # And where there is a single timestep.
    model, x = make(steps=1, posterior=posterior), series(steps=1)
    assert np.all(np.isfinite(model.draw(x, model.encode(x), 2, tf.constant([0, 1])).log_weight))
    if posterior == "ante1":
        assert model.forecast(x, steps=2, num_samples=3).shape == (3, N, 2, F)


def test_bernoulli():
    x = (series(missing=0.3) > 0).astype("float32")
    x[0, 1] = np.nan
    model = make(likelihood="bernoulli")
    draws = model.draw(x, model.encode(x), 1, seed=tf.constant([0, 0]))
    p = scipy.special.expit(decoded(model, np.swapaxes(draws.z[0], 1, 2)))
    expected = np.nansum(x * np.log(p) + (1 - x) * np.log1p(-p), axis=(1, 2))
    oracles.assert_close(draws.log_p[0], expected)
    draws = model.impute(x, num_samples=5, seed=0)
    assert set(np.unique(draws)) == {0.0, 1.0}


def test_a_decoder_of_whole_paths():
    keras.utils.set_random_seed(0)
    encoder, _ = sequence_networks.convolutional((T, F), C, **SMALL["convolutional"])
    decoder = keras.Sequential(
        [keras.Input((T, C)), keras.layers.Conv1D(F, 3, padding="same", name="whole")]
    )
    model = tfp_ar1.SequenceVAE(encoder, decoder, C, T, seed=0)
    z = np.random.default_rng(0).normal(size=(4, C, T)).astype("float32")
    np.testing.assert_allclose(model.decode(z).mean(), decoder(np.swapaxes(z, 1, 2)), rtol=1e-6)
    assert model.impute(data("missing, lengths"), num_samples=2).shape == (2, N, T, F)
    with pytest.raises(ValueError, match=r"whole paths of 7 steps.*from \[batch, 2\]"):
        model.forecast(series(), steps=1)


# --- Masks -------------------------------------------------------------------------------------


def test_a_scale_for_each_value(tmp_path):
    encoder, usual = sequence_networks.convolutional((T, F), C, **SMALL["convolutional"])
    decoder = keras.Sequential([keras.Input((C,)), keras.layers.Dense(2 * F)])
    likelihood = likelihoods.HeteroscedasticGaussian()
    model = tfp_ar1.SequenceVAE(encoder, decoder, C, T, likelihood=likelihood, seed=0)
    loc, raw = np.linspace(-1, 1, F), np.linspace(-2, 2, F)
    decoder.set_weights([np.zeros((C, 2 * F)), np.concatenate([loc, raw])])
    x = data("missing, lengths")
    draws = model.forecast(x, 2, num_samples=5000, seed=0)
    scale = np.broadcast_to(1e-3 + np.log1p(np.exp(raw)), draws.shape[1:])
    np.testing.assert_allclose(draws.mean(axis=0), np.broadcast_to(loc, scale.shape), atol=0.15)
    np.testing.assert_allclose(draws.std(axis=0), scale, rtol=0.06)

    fitted(compiled(model, run_eagerly=True), x)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded.forecast(x, 3, 4, seed=0), model.forecast(x, 3, 4, seed=0))
    with pytest.raises(ValueError, match="HeteroscedasticGaussian takes 2 numbers for each value"):
        tfp_ar1.SequenceVAE(encoder, usual, C, T, likelihood=likelihood)


def shortened(model, network, steps, **kwargs):
    """The same model for series of fewer steps."""
    short = make(network, steps=steps, **kwargs)
    for a, b in zip(short.variables, model.variables, strict=True):
        value = np.array(b)
        a.assign(value[:, :steps] if a.path.endswith("prior/loc") else value)
    return short


@pytest.mark.parametrize(("network", "posterior"), [*NETWORKS, ("convolutional", "sites")])
def test_padding_changes_nothing(network, posterior):
    """Against a model that never sees padding; the values past the end are the wildest."""
    model = make(network, posterior=posterior)
    short = shortened(model, network, 4, posterior=posterior)
    x = series(steps=4, missing=0.3)
    rest = np.resize([np.nan, 3.0, np.inf, -1e30], (N, T - 4, F)).astype("float32")
    padded = {"x": np.concatenate([x, rest], axis=1), "length": np.full(N, 4)}
    q, expected = model.encode(padded), short.encode(x)
    np.testing.assert_allclose(q.mean()[..., :4], expected.mean(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(q.stddev()[..., :4], expected.stddev(), rtol=1e-5)
    oracles.assert_close(model.kl_to_prior(q, padded), short.kl_to_prior(expected, x))
    oracles.assert_close(
        model.posterior_correlation(q, padded), short.posterior_correlation(expected, x)
    )
    np.testing.assert_allclose(
        model.reconstruct(padded)[:, :4], short.reconstruct(x), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("network", "objective"), [("convolutional", "iwae"), ("recurrent", "elbo")]
)
def test_what_is_past_the_end_changes_no_loss_and_no_gradient(network, objective):
    results = []
    for rest in (0.0, np.nan, np.inf):
        model = make(network, objective=objectives.get(objective))
        x = series(missing=0.2)
        x[np.arange(T) >= LENGTHS[:, None]] = rest
        with tf.GradientTape() as tape:
            terms = model.objective(model, {"x": x, "length": LENGTHS}, training=True)
            loss = tf.reduce_mean(terms.loss)
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        assert all(np.all(np.isfinite(g)) for g in gradients)
        results.append([np.array(part) for part in (*terms, *gradients)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_mask_is_what_nan_is():
    rng = np.random.default_rng(3)
    model, x = make(), series()
    for rank in (2, 3):
        mask = rng.uniform(size=x.shape[:rank]) < 0.6
        observed = np.broadcast_to(mask if rank == 3 else mask[..., None], x.shape)
        with_nan = np.where(observed, x, np.nan)
        # What stands where nothing was observed must not matter, whatever it is.
        garbage = np.where(observed, x, rng.choice([np.nan, np.inf, 1e30, 0.0], size=x.shape))
        masked = {"x": garbage, "mask": mask}
        expected = model.impute(with_nan, num_samples=2, seed=0)
        for given in ((garbage, mask), (masked,)):
            np.testing.assert_array_equal(model.impute(*given, num_samples=2, seed=0), expected)
    np.testing.assert_array_equal(
        model.log_likelihood(masked, num_samples=3), model.log_likelihood(with_nan, num_samples=3)
    )
    lengths = model.impute({"x": with_nan, "length": LENGTHS}, num_samples=2, seed=0)
    given = {"x": garbage, "length": LENGTHS}
    np.testing.assert_array_equal(model.impute(given, mask, num_samples=2, seed=0), lengths)

    eager = {"run_eagerly": True}
    first, second = (fitted(compiled(make(), **eager), given) for given in (masked, with_nan))
    assert_same_weights(first, second)
    batches = tf.data.Dataset.from_tensor_slices(masked).batch(3)
    assert_same_weights(fitted(compiled(make(), **eager), batches, batch_size=None), first, 1e-6)


@pytest.mark.slow
def test_batches_that_end_with_their_longest_series():
    """As `padded_batch` gives them, with lengths, with a mask, or with neither."""
    x, lengths = series(), np.array([3, 4, 2, 5, 1, 5])
    of_series = [{"x": a[:n], "length": n} for a, n in zip(x, lengths, strict=True)]
    signature = {
        "x": tf.TensorSpec([None, F]),
        "length": tf.TensorSpec([], tf.int64),
    }
    each = tf.data.Dataset.from_generator(lambda: iter(of_series), output_signature=signature)
    full = {"x": x, "length": lengths}
    expected = fitted(compiled(make(), run_eagerly=True), full)
    padded = each.padded_batch(3)
    assert {int(batch["x"].shape[1]) for batch in padded} == {4, 5}
    assert_same_weights(fitted(compiled(make()), padded, batch_size=None), expected, atol=1e-4)

    def with_mask(part):
        return {"x": part["x"], "mask": tf.ones(tf.shape(part["x"])[:1], tf.bool)}

    masked = {"x": x, "mask": np.arange(T) < lengths[:, None]}
    assert_same_weights(
        fitted(compiled(make()), each.map(with_mask).padded_batch(3), batch_size=None),
        fitted(compiled(make(), run_eagerly=True), masked),
        atol=1e-4,
    )
    too_long = tf.data.Dataset.from_generator(
        lambda: iter([np.zeros([T + 1, F])]), output_signature=tf.TensorSpec([None, F])
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="series of more than 7 steps"):
        compiled(make()).evaluate(too_long.batch(1), verbose=0)


@pytest.mark.slow
def test_batches_that_end_with_their_longest_series_under_xla():
    """XLA draws other noise, so that it is compared with itself."""
    x, lengths = series(), np.array([4, 4, 4, 5, 5, 5])
    batches = [{"x": x[i : i + 3, :n], "length": lengths[i : i + 3]} for i, n in ((0, 4), (3, 5))]
    signature = {"x": tf.TensorSpec([None, None, F]), "length": tf.TensorSpec([None], tf.int64)}
    padded = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=signature)
    of_xla = [
        fitted(compiled(make(), jit_compile=True), x, batch_size=size)
        for x, size in ((padded, None), ({"x": x, "length": lengths}, 3))
    ]
    assert_same_weights(*of_xla, atol=1e-4)


@pytest.mark.slow
def test_wrong_data_after_right_ones():
    """The functions that were traced for right data take others, and must not get them."""
    model, x, of = compiled(make()), series(), tf.constant
    fitted(model, x)
    model.impute(x, num_samples=1)
    for wrong, message in (
        (x[..., :1], r"data of shape \(batch, 7, 2\); got \(6, 7, 1\)"),
        (x[:, :5], r"Expected data of shape \[N, 7, features\]"),
        (np.where(x > 1, np.inf, x), "values that are not finite"),
    ):
        for use in (
            lambda wrong: fitted(model, of(wrong)),
            lambda wrong: model.evaluate(of(wrong), verbose=0),
            lambda wrong: model.impute(of(wrong), num_samples=1),
            lambda wrong: model.log_likelihood(of(wrong), num_samples=1),
        ):
            with pytest.raises(ValueError, match=message):
                use(wrong)


def test_mistakes_in_the_arguments_of_draws():
    model, x, mask = make(), series(), np.ones((N, T), bool)
    for arguments, message in (
        ({"x": {"x": x, "mask": mask}, "mask": mask}, "Pass `mask` either as an argument or in"),
        ({"x": {"x": x, "masks": mask}}, "may have 'length' and 'mask'; got"),
        ({"x": x.astype(object)}, "The data must be numbers; got dtype object"),
        ({"mask": 4}, r"`mask` must hold booleans, .*\(6, 7\) or \(6, 7, 2\); got dtype int64"),
        ({"mask": np.ones((N, T))}, "`mask` must hold booleans, .*got dtype float64"),
        ({"mask": np.ones((N, T + 1), bool)}, r"`mask` .*got dtype bool and shape \(6, 8\)"),
        ({"num_samples": 0}, "`num_samples` must be an integer of at least 1"),
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1"),
        ({"seed": 2**31}, "`seed` must be a 32-bit integer, or None; got 2147483648"),
        ({"seed": 1.5}, "`seed` must be a 32-bit integer, or None; got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            model.impute(**{"x": x, **arguments})
    # In a pipeline, where arrays are not checked.
    for part, message in (
        ({"mask": mask.astype("int32")}, r"`mask` must hold booleans, .*got dtype int32"),
        ({"length": LENGTHS[:, None]}, r"`length` must be of shape \[N\]"),
    ):
        batches = tf.data.Dataset.from_tensor_slices({"x": x, **part}).batch(3)
        with pytest.raises(ValueError, match=message):
            compiled(model).evaluate(batches, verbose=0)


def test_nothing_observed():
    """The loss is the KL; it is 0, and no weight wants to move, iff posterior = prior."""
    rho = 0.6
    prior = tfp_ar1.MultivariateNormalAR1(tf.zeros([C, T]), correlation=rho)
    model = make(prior=prior, randomized=False)
    nothing = np.full((N, T, F), np.nan, "float32")

    def loss_and_gradients():
        with tf.GradientTape() as tape:
            terms = model.objective(model, nothing, training=True)
        np.testing.assert_array_equal(terms.reconstruction, np.zeros(N))
        np.testing.assert_array_equal(terms.loss, terms.kl)
        # All that leads to the posterior; the decoder and the scale have nothing to say.
        variables = [*model.encoder.trainable_variables, *model.posterior_head.trainable_variables]
        gradients = tape.gradient(terms.loss, [v.value for v in model.trainable_variables])
        named = zip(model.trainable_variables, gradients, strict=True)
        wrong = [v.path for v, g in named if not any(v is w for w in variables) and np.any(g != 0)]
        assert not wrong
        return terms.loss, max(np.max(np.abs(g)) for g in gradients)

    bias = model.posterior_head.series.bias
    best = np.float32([0.0] * C + [np.arctanh(rho)] * C)
    bias.assign(best)
    loss, gradient = loss_and_gradients()
    np.testing.assert_allclose(loss, np.zeros(N), atol=1e-5)
    assert gradient < 1e-4
    for other in (best + np.float32([0.1, 0, 0, 0]), best - np.float32([0, 0, 0, 0.1])):
        bias.assign(other)
        loss, gradient = loss_and_gradients()
        assert np.all(loss.numpy() > 1e-3)
        assert gradient > 1e-2


# --- What the model says about data ------------------------------------------------------------


class LinearGaussian(tfp_ar1.SequenceVAE):
    """x_t = w z_t + noise for one AR(1) path z: the posterior is known, a Gaussian Markov chain."""

    RHO, WEIGHT, NOISE = 0.9, 1.5, 0.6

    @classmethod
    def make(cls, steps, **kwargs):
        encoder, _ = sequence_networks.convolutional((steps, 1), 1, filters=(1,))
        decoder = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        prior = tfp_ar1.MultivariateNormalAR1(tf.zeros([1, steps]), correlation=cls.RHO)
        scale = likelihoods.Gaussian(cls.NOISE)
        model = cls(encoder, decoder, 1, steps, "ante1", prior, likelihood=scale, seed=0, **kwargs)
        decoder.set_weights([np.full((1, 1), cls.WEIGHT), np.zeros(1)])
        return model

    def covariance(self, steps):
        """Of z and of x, for this number of timesteps."""
        z = oracles.ar1_covariance(1.0, self.RHO, steps)
        return z, self.WEIGHT**2 * z + self.NOISE**2 * np.eye(steps)

    def draw_data(self, n, steps, seed):
        noise = np.random.default_rng(seed).normal(size=(n, steps))
        return (noise @ np.linalg.cholesky(self.covariance(steps)[1]).T)[..., None]

    def encode(self, x, training=False):
        series = self._series(x)
        precision = np.linalg.inv(self.covariance(self.steps)[0])
        evidence = tf.cast(series.observed[..., 0], tf.float64) * self.WEIGHT / self.NOISE**2
        covariance = tf.linalg.inv(precision + tf.linalg.diag(self.WEIGHT * evidence))
        mean = tf.linalg.matvec(covariance, evidence * tf.cast(series.values[..., 0], tf.float64))
        scale = tf.sqrt(tf.linalg.diag_part(covariance))
        neighbours = tf.linalg.diag_part(covariance, k=1) / (scale[:, 1:] * scale[:, :-1])
        mean, scale, neighbours = (
            tf.cast(a, tf.float32)[:, None] for a in (mean, scale, neighbours)
        )
        return tfp_ar1.MultivariateNormalANTE1(mean, scale, correlation=neighbours)


@pytest.fixture(scope="module")
def windows():
    """A linear Gaussian model, data of its own, and these with gaps and unequal lengths."""
    model = LinearGaussian.make(steps=30)
    x = model.draw_data(1000, 45, seed=0).astype("float32")
    rng = np.random.default_rng(1)
    gaps = np.where(rng.uniform(size=(1000, 30, 1)) < 0.4, np.nan, x[:, :30])
    return model, x, {"x": gaps, "length": rng.integers(5, 31, size=1000)}


def coverage(draws, x):
    """The share of x in the central 90% interval of the draws."""
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    return np.mean((low <= x) & (x <= high))


@pytest.mark.slow
def test_intervals_cover(windows):
    """Acceptance: intervals hold 90% of what the model itself has drawn, in gaps and ahead."""
    model, x, gaps = windows
    draws = model.impute(gaps, num_samples=200, seed=0)
    inside = np.arange(30) < gaps["length"][:, None]
    missing = np.isnan(gaps["x"][..., 0])
    np.testing.assert_array_equal(draws[3][~missing & inside], gaps["x"][~missing & inside])
    for where, tolerance in ((missing & inside, 0.015), (~inside, 0.03)):
        assert coverage(draws[:, where], x[:, :30][where]) == pytest.approx(0.9, abs=tolerance)

    ahead = model.forecast(gaps, steps=15, num_samples=200, seed=1)
    rows = np.arange(1000)
    for steps in (1, 10):
        # A thousand independent series: a standard error of 0.0095.
        # The prior's own intervals would cover too, but theirs are wider.
        width = np.mean(np.std(ahead[:, :, steps - 1], axis=0)) / np.std(x)
        assert width < {1: 0.8, 10: 1.0}[steps]
        truth = x[rows, gaps["length"] + steps - 1]
        assert coverage(ahead[:, :, steps - 1], truth) == pytest.approx(0.9, abs=0.03)


@pytest.mark.slow
def test_bounds_are_tight_at_the_exact_posterior(windows):
    """Every weight is p(x): of what was observed, within the length of the series."""
    model, _, gaps = windows
    gaps = {name: part[:20] for name, part in gaps.items()}
    covariance = model.covariance(30)[1]
    log_p = []
    for x, n in zip(gaps["x"][..., 0], gaps["length"], strict=True):
        seen = np.flatnonzero(~np.isnan(x) & (np.arange(30) < n))
        exact = oracles.Dense(np.zeros(len(seen)), covariance[np.ix_(seen, seen)])
        log_p.append(exact.log_prob(x[seen]))
    draws = model.draw(gaps, model.encode(gaps), 5, tf.constant([0, 1]))
    np.testing.assert_allclose(draws.log_weight, np.tile(log_p, (5, 1)), rtol=1e-4, atol=2e-3)
    estimates = model.log_likelihood(gaps, num_samples=3, batch_size=8)
    np.testing.assert_allclose(estimates, log_p, rtol=1e-4, atol=2e-3)

    table = evaluation.evaluate(model, gaps, num_importance_samples=2000)
    assert table["nll_iw"] == pytest.approx(-np.mean(log_p), abs=1e-3)
    assert table["neg_elbo"] == pytest.approx(-np.mean(log_p), abs=0.1)
    assert table["num_examples"] == 20


@pytest.mark.slow
def test_forecasts_follow_the_prior():
    """Mean and covariance, over the steps ahead, against a dense conditional Gaussian."""
    learned = tfp_ar1.layers.MultivariateNormalAR1Prior(
        4, learn=["loc", "marginal_scale", "correlation"], channels=C
    )
    keras.utils.set_random_seed(0)
    encoder, _ = sequence_networks.convolutional((4, C), C, **SMALL["convolutional"])
    decoder = keras.Sequential([keras.Input((C,)), keras.layers.Dense(C, use_bias=False)])
    model = tfp_ar1.SequenceVAE(
        encoder, decoder, C, 4, prior=learned, likelihood=likelihoods.Gaussian(1e-4), seed=0
    )
    decoder.set_weights([np.eye(C)])
    # So that the steps of a posterior differ.
    model.posterior_head.loc.kernel.assign(np.random.default_rng(2).normal(size=(4, C)))
    learned.fisher_z.assign([[0.9], [-0.7]])
    learned.log_s.assign([[0.5], [-0.5]])
    learned.loc.assign(np.tile([[1.0], [-2.0]], (1, 4)))
    x = {"x": series(2, 4), "length": np.array([4, 2])}
    draws = model.forecast(x, steps=3, num_samples=40_000, seed=0)
    q = model.encode(x)
    for i, last in enumerate((3, 1)):
        for c, (rho, scale, loc) in enumerate(
            zip(np.tanh([0.9, -0.7]), np.exp([0.25, -0.25]), [1.0, -2.0], strict=True)
        ):
            joint = oracles.ar1_covariance(scale, rho, 4)
            gain = joint[1:, 0] / scale**2
            mean = loc + gain * (q.mean()[i, c, last] - loc)
            covariance = joint[1:, 1:] - np.outer(gain, joint[0, 1:])
            covariance += np.outer(gain, gain) * q.variance()[i, c, last]
            paths = draws[:, i, :, c]
            np.testing.assert_allclose(paths.mean(axis=0), mean, atol=0.03)
            np.testing.assert_allclose(np.cov(paths.T), covariance, atol=0.06)


@pytest.mark.slow
def test_draws(monkeypatch):
    model, x = make(), data("missing, lengths")
    draws = model.impute(x, num_samples=4, seed=3)
    assert draws.shape == (4, N, T, F)
    observed = ~np.isnan(x["x"]) & (np.arange(T) < LENGTHS[:, None])[..., None]
    np.testing.assert_array_equal(draws[:, observed], np.tile(x["x"][observed], (4, 1)))
    assert np.all(np.std(draws, axis=0)[~observed] > 0)
    np.testing.assert_array_equal(model.impute(x, num_samples=4, seed=3), draws)
    assert np.any(model.impute(x, num_samples=4) != model.impute(x, num_samples=4))
    # The same series beside others, and in portions.
    monkeypatch.setattr(batching, "MAX_OUTPUTS", 2 * T * F)
    many = model.impute(x, num_samples=5, seed=3, batch_size=1)
    assert many.shape == (5, N, T, F)
    assert len({many[k, 1, 0, 0].item() for k in range(5)}) in (1, 5)
    # What is made of the draws of each batch, in place of these.
    halves = model.impute(
        x, num_samples=5, seed=3, batch_size=1, summarize=lambda x: np.quantile(x, [0.5], axis=0)
    )
    np.testing.assert_array_equal(halves, np.median(many, axis=0)[None])
    # Every batch and every portion has noise of its own.
    twice = {"x": x["x"][[0, 0]], "length": LENGTHS[[0, 0]]}
    ahead = model.forecast(twice, steps=2, num_samples=5, seed=3, batch_size=1)
    assert np.unique(ahead).size == ahead.size
    assert model.forecast(x, steps=20, num_samples=3, batch_size=4).shape == (3, N, 20, F)


def test_generate():
    model = make()
    new = model.generate(500, seed=0)
    assert new.shape == (500, T, F)
    np.testing.assert_array_equal(model.generate(500, seed=0), new)
    z = model.prior.sample(500, seed=[0, 0])
    assert z.shape == (500, C, T)
    np.testing.assert_allclose(new, decoded(model, np.swapaxes(z, 1, 2)), rtol=1e-3, atol=1e-4)


def test_evaluate():
    model, x = make(), data("missing, lengths")
    table = evaluation.evaluate(model, x, num_importance_samples=200, batch_size=4)
    assert table == evaluation.evaluate(model, x, num_importance_samples=200, batch_size=4)
    q = model.encode(x)
    kl = [
        sum(dense(q, i, c, n).kl(dense(model.prior, None, c, n)) for c in range(C))
        for i, n in enumerate(LENGTHS)
    ]
    assert table["kl"] == pytest.approx(np.mean(kl), rel=1e-4)
    assert table["nll_iw"] < table["neg_elbo"]
    by_step = sequence_evaluation.neg_elbo_by_step(model, x, num_samples=200, batch_size=4)
    assert by_step.shape == (N, T)
    assert by_step.sum() / N == pytest.approx(table["neg_elbo"], rel=1e-5)
    np.testing.assert_array_equal(by_step[np.arange(T) >= LENGTHS[:, None]], 0)
    variance = [np.mean(np.float64(q.variance())[i, :, :n]) for i, n in enumerate(LENGTHS)]
    assert table["scale_mean"] == pytest.approx(np.mean(np.sqrt(variance)), rel=1e-4)


# --- Training, saving --------------------------------------------------------------------------


def ar1_series(n, steps, rho=0.9):
    """Two channels, seen through a linear map, with noise."""
    rng = np.random.default_rng(5)
    factor = oracles.ar1_cholesky(1.0, rho, steps)
    paths = np.einsum("ts,nsc->ntc", factor, rng.normal(size=(n, steps, 2)))
    mixed = paths @ np.array([[1.0, 0.5, -0.3], [0.2, -1.0, 0.7]])
    return (mixed + 0.2 * rng.normal(size=mixed.shape)).astype("float32")


@pytest.mark.slow
def test_training_learns_the_correlation():
    x = ar1_series(512, 30)
    keras.utils.set_random_seed(0)
    parts = sequence_networks.convolutional((30, 3), 2, filters=(16, 16), kernel_size=5)
    model = compiled(tfp_ar1.SequenceVAE(*parts, 2, 30, seed=0), jit_compile=False)
    history = model.fit(
        x[:448], epochs=12, batch_size=32, validation_data=(x[448:],), verbose=0
    ).history
    assert history["val_loss"][-1] < history["val_loss"][0] - 20
    rho = history["prior_correlation"]
    assert rho[0] < 0.3
    assert 0.5 < rho[-1] < 0.99
    assert history["val_prior_correlation"][-1] == pytest.approx(
        np.mean(model.prior.correlation_parameter()), rel=1e-5
    )
    last = model.prior.correlation_parameter()
    assert np.all(last.numpy() > 0.5)


@pytest.mark.slow
def test_arrays_dictionaries_and_datasets_train_alike():
    x = series(missing=0.2)
    given = {"x": x, "length": np.full(N, T)}
    first = fitted(compiled(make(), run_eagerly=True), x)
    batches = tf.data.Dataset.from_tensor_slices(given).batch(3)
    for data, options in (
        (given, {"run_eagerly": True}),
        (batches, {}),
        (batches.map(lambda part: part["x"]), {"run_eagerly": True}),
    ):
        size = None if isinstance(data, tf.data.Dataset) else 3
        other = fitted(compiled(make(), **options), data, batch_size=size)
        assert_same_weights(first, other, atol=1e-5)
    shorter = fitted(compiled(make(), run_eagerly=True), {"x": x, "length": LENGTHS})
    weights = zip(first.get_weights(), shorter.get_weights(), strict=True)
    assert any(np.any(np.abs(a - b) > 1e-3) for a, b in weights)
    assert all(np.all(np.isfinite(weight)) for weight in shorter.get_weights())


@pytest.mark.parametrize("objective", ["iwae", "infovae"])
def test_objectives(objective):
    model = compiled(make(objective=objectives.get(objective)), run_eagerly=True)
    x = data("missing, lengths")
    history = model.fit(x, epochs=2, verbose=0).history
    assert all(np.all(np.isfinite(values)) for values in history.values())


@pytest.mark.parametrize(
    ("network", "prior", "posterior"),
    [
        pytest.param("recurrent", "ar1", "diag", marks=pytest.mark.slow),
        pytest.param("convolutional", None, "ar1", marks=pytest.mark.slow),
        pytest.param("convolutional", "fixed", "arh1", marks=pytest.mark.slow),
        ("convolutional", "layer", "ante1"),
    ],
)
def test_save_and_load(network, prior, posterior, tmp_path):
    prior = {
        "fixed": lambda: tfp_ar1.MultivariateNormalAR1(tf.zeros([C, T]), correlation=[0.3, 0.8]),
        "layer": lambda: tfp_ar1.layers.MultivariateNormalAR1Prior(T, correlation=0.4, channels=C),
    }.get(prior, lambda: prior)()
    model = make(network, prior=prior, posterior=posterior)
    fitted(compiled(model, run_eagerly=True), series())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert (loaded.channels, loaded.steps, loaded.posterior_name) == (C, T, posterior)
    assert_same_weights(model, loaded)
    x = data("missing, lengths")
    np.testing.assert_array_equal(
        loaded.prior.correlation_parameter(), model.prior.correlation_parameter()
    )
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    np.testing.assert_array_equal(loaded.forecast(x, 3, 4), model.forecast(x, 3, 4))
    # Training continues exactly.
    for each in (model, loaded):
        fitted(each, x)
    assert_same_weights(model, loaded)


@pytest.mark.slow
def test_export(tmp_path):
    model, x = make(), series(missing=0.2)
    model.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(served.reconstruct(x), model.reconstruct(x), rtol=1e-4, atol=1e-5)
    assert served.encode(x)["mean"].shape == (N, C, T)
    assert served.generate(3, [0, 0]).shape == (3, T, F)


@pytest.mark.slow
@pytest.mark.parametrize("network", sequence_networks.NETWORKS)
def test_xla_computes_the_same(network):
    """Where nothing is drawn: XLA's noise is another."""
    model, x = make(network), data("missing, lengths")

    def terms(x):
        q = model.encode(x)
        return model.kl_to_prior(q, x), model(x), model.draw(x, q, 2, tf.constant([1, 2])).log_p

    tensors = {name: tf.constant(part) for name, part in x.items()}
    kl, mean, log_p = tf.function(terms, jit_compile=True)(tensors)
    oracles.assert_close(kl, terms(x)[0])
    np.testing.assert_allclose(mean, terms(x)[1], rtol=1e-4, atol=1e-4)
    assert np.all(np.isfinite(log_p))


def test_full_precision_under_a_half_precision_policy(set_policy):
    set_policy("mixed_bfloat16")
    x = data("missing, lengths")
    model = fitted(compiled(make(), run_eagerly=True), x)
    q = model.encode(x)
    assert q.dtype == model.prior.dtype == tf.float32
    assert model.forecast(x, 2, 3).dtype == np.float32
    assert all(np.all(np.isfinite(w)) for w in model.get_weights())


# --- Errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "`channels` must be an integer of at least 1; got 0"),
        ({"steps": 1.5}, "`steps` must be an integer of at least 1; got 1.5"),
        ({"posterior": "full"}, "posterior over sequences must be one of .*; got 'full'"),
        ({"posterior": "none"}, "Unknown posterior 'none'"),
        ({"prior": "normal"}, "Unknown prior 'normal'; expected 'ar1', `None`"),
        (
            {"prior": tfd.MultivariateNormalDiag(tf.zeros([C, T]))},
            "must be a `MultivariateNormalAR1`",
        ),
        (
            {"prior": tfp_ar1.MultivariateNormalAR1(tf.zeros(T), correlation=0.5)},
            r"of batch shape \(2,\) over vectors of size 7; got batch shape \(\)",
        ),
        (
            {"prior": tfp_ar1.layers.MultivariateNormalAR1Prior(T + 1, channels=C)},
            r"over vectors of size 7; .* event shape \(8,\)",
        ),
        ({"channels": 3}, r"The decoder must take the latents of a step, \(batch, 3\)"),
        ({"steps": 8}, r"must be of shape \(batch, 8, features\); got \(None, 7, 2\)"),
        ({"likelihood": "poisson"}, "Unknown likelihood 'poisson'"),
    ],
)
def test_bad_arguments(arguments, message):
    parts = sequence_networks.convolutional((T, F), C, **SMALL["convolutional"])
    with pytest.raises(ValueError, match=message):
        tfp_ar1.SequenceVAE(*parts, **{"channels": C, "steps": T, **arguments})


def test_bad_networks():
    for name, arguments, message in (
        ("convolutional", {"data_shape": (T,)}, "`data_shape` must be .*; got"),
        ("convolutional", {"filters": ()}, "at least one"),
        ("convolutional", {"kernel_size": 0}, "`kernel_size` must"),
        ("recurrent", {"channels": 0}, "`channels` must be positive"),
        ("recurrent", {"units": 0}, "`units` must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            sequence_networks.NETWORKS[name](**{"data_shape": (T, F), "channels": C, **arguments})
    # And those that do not fit the model.
    encoder, decoder = sequence_networks.convolutional((T, F), C)
    inputs = encoder.inputs
    pooled = keras.layers.GlobalAveragePooling1D()(encoder.outputs[0])
    with pytest.raises(ValueError, match=r"\(batch, 7, units\); it outputs"):
        tfp_ar1.SequenceVAE(keras.Model(inputs, pooled), decoder, C, T)
    wrong = keras.Sequential([keras.Input((C,)), keras.layers.Dense(F + 1)])
    with pytest.raises(ValueError, match=r"decoder must output one tensor of shape \(batch, 2\)"):
        tfp_ar1.SequenceVAE(encoder, wrong, C, T)


def test_a_likelihood_without_terms():
    class Joint(likelihoods.Likelihood):
        def distribution(self, outputs):
            return tfd.Blockwise([tfd.Independent(tfd.Normal(outputs, 1.0), 2)])

    model = make(likelihood=Joint())
    with pytest.raises(TypeError, match=r"`Joint` must return a `tfd.Independent`"):
        model.log_likelihood(series(), num_samples=1)

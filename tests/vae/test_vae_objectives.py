"""The terms of the loss, for fixed noise, against NumPy in float64."""

import json
import re

import keras
import numpy as np
import oracles
import packed
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf
from training import DIGITS, compiled, fitted

import tfp_ar1
from tfp_ar1.vae import architectures, objectives

D = 3
X = DIGITS[:20]
SEED = tf.constant([3, 4])
AR1_PRIOR = (0.5, 2.0, -0.6)  # loc, marginal scale, correlation


def make(posterior, monkeypatch, prior=None, **kwargs):
    """A model whose noise is fixed, and whose posterior depends on the data enough to matter."""
    keras.utils.set_random_seed(11)
    if prior is not None:
        loc, scale, correlation = prior
        prior = tfp_ar1.MultivariateNormalAR1(tf.fill([D], loc), scale, correlation)
    model = tfp_ar1.RhoVAE(
        *architectures.mlp((8, 8), D, (16,)), D, posterior=posterior, prior=prior, **kwargs
    )
    model.build((None, 8, 8))
    for weight in model.posterior_head.weights:
        weight.assign(keras.random.normal(weight.shape, stddev=0.4, seed=5))
    monkeypatch.setattr(model, "next_seed", lambda: SEED)
    return model


def dense(layer, x):
    kernel, bias = oracles.as_float64(*layer.get_weights())
    y = x @ kernel + bias
    return np.maximum(y, 0) if layer.activation is keras.activations.relu else y


def posterior_by_hand(model, x):
    """From the weights of the network."""
    params = dense(model.posterior_head, dense(model.encoder.layers[1], x.reshape(len(x), -1)))
    return packed.dense(params, model.posterior_name, D)


def decoder_by_hand(model, z):
    hidden, linear, _ = model.decoder.layers
    return dense(linear, dense(hidden, np.float64(z))).reshape(-1, 8, 8)


# Each posterior, and each prior; the KL of every pair of them is the core's.
PAIRS = [("ar1", None), ("ar1", AR1_PRIOR), ("diag", AR1_PRIOR), ("isotropic", None)]
PAIRS += [("full", AR1_PRIOR)]


@pytest.mark.parametrize(("posterior", "prior"), PAIRS)
def test_terms(posterior, prior, monkeypatch):
    model = make(posterior, monkeypatch, prior)
    terms = objectives.ELBO(4.0)(model, tf.constant(X), training=True)
    q = posterior_by_hand(model, X)
    loc, scale, rho = prior or (0.0, 1.0, 0.0)
    kl = q.kl(oracles.Dense.ar1(np.full(D, loc), scale, rho))
    z = model.encode(X).sample(seed=SEED)
    p = scipy.special.expit(decoder_by_hand(model, z))
    cross_entropy = -np.sum(X * np.log(p) + (1 - X) * np.log1p(-p), axis=(1, 2))
    oracles.assert_close(terms.kl, kl)
    oracles.assert_close(terms.reconstruction, cross_entropy)
    oracles.assert_close(terms.loss, cross_entropy + 4.0 * kl)
    oracles.assert_close(terms.correlation, packed.correlation(q))


@pytest.mark.parametrize(
    "options",
    [{"run_eagerly": True}, pytest.param({"jit_compile": True}, marks=pytest.mark.slow)],
)
def test_warmup(options):
    """One step an epoch: the factors are 2/3, 4/3, 2, 2; in the evaluation 2 all the time."""
    keras.utils.set_random_seed(11)
    objective = objectives.ELBO(beta=2.0, warmup_steps=3)
    model = tfp_ar1.RhoVAE(*architectures.mlp((8, 8), D, (16,)), D, objective=objective, seed=0)
    model.compile("adam", **options)
    history = model.fit(
        X, epochs=4, batch_size=len(X), validation_data=(X,), verbose=0, shuffle=False
    ).history
    for prefix, factors in (("", [2 / 3, 4 / 3, 2, 2]), ("val_", [2, 2, 2, 2])):
        loss, reconstruction, kl = (
            np.array(history[prefix + name]) for name in ("loss", "reconstruction", "kl")
        )
        np.testing.assert_allclose(loss, reconstruction + factors * kl, rtol=1e-5)
        assert np.all(kl > 0.01)


def test_warmup_without_an_optimizer(monkeypatch):
    model, objective = make("ar1", monkeypatch), objectives.ELBO(1.5, warmup_steps=5)
    terms = objective(model, tf.constant(X), training=False)
    oracles.assert_close(terms.loss - terms.reconstruction, 1.5 * np.float64(terms.kl))
    with pytest.raises(ValueError, match=r"`warmup_steps=5` counts .*; compile the model"):
        objective(model, tf.constant(X), training=True)


def mmd_by_hand(x, y):
    """The biased estimate, one pair at a time."""

    def mean_kernel(a, b):
        total = 0.0
        for first in a:
            for second in b:
                total += np.exp(-np.sum((first - second) ** 2) / len(first) ** 2)
        return total / (len(a) * len(b))

    return mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)


@pytest.mark.parametrize("dtype", oracles.DTYPES)
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (5, 9, 10)])
def test_maximum_mean_discrepancy(n, m, d, dtype):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, d)), 0.5 + 2 * rng.normal(size=(m, d))
    actual = objectives.maximum_mean_discrepancy(tf.constant(x, dtype), tf.constant(y, dtype))
    assert actual.shape == ()
    # Arrays are flat vectors.
    arrays = (a.reshape(len(a), -1, 1) for a in (x, y))
    np.testing.assert_allclose(objectives.maximum_mean_discrepancy(*arrays), actual, rtol=1e-5)
    np.testing.assert_allclose(
        actual, mmd_by_hand(x, y), atol=1e-12 if dtype == "float64" else 1e-6
    )


def test_maximum_mean_discrepancy_of_extreme_vectors():
    """Rounding makes some squared distances negative; the kernel must not be above 1 for that."""
    x, y = np.random.default_rng(0).normal(size=(2, 50, D)).astype("float32") * np.float32(1e15)
    assert 0 <= objectives.maximum_mean_discrepancy(x, y) <= 2
    # The kernel is 1 within each pair of equal vectors and 0 elsewhere.
    x = np.float32([[2e15, -1e15], [2e15, -1e15], [4096, 0.5], [4096, 0.5]])
    np.testing.assert_allclose(objectives.maximum_mean_discrepancy(x, x + 1e15), 1, rtol=1e-6)


@pytest.mark.parametrize(("posterior", "prior"), PAIRS[:2])
def test_infovae(posterior, prior, monkeypatch):
    model = make(posterior, monkeypatch, prior)
    seeds = iter([SEED, tf.constant([5, 6])])
    monkeypatch.setattr(model, "next_seed", lambda: next(seeds))
    terms = objectives.InfoVAE(alpha=0.3, lambda_=50.0)(model, tf.constant(X), training=True)
    monkeypatch.setattr(model, "next_seed", lambda: SEED)
    elbo = objectives.ELBO()(model, tf.constant(X), training=True)
    for name in ("reconstruction", "kl", "correlation"):
        np.testing.assert_array_equal(getattr(terms, name), getattr(elbo, name))
    z = np.float64(model.encode(X).sample(seed=SEED))
    from_prior = np.float64(model.prior.sample(len(X), seed=[5, 6]))
    reconstruction, kl = np.float64(elbo.reconstruction), np.float64(elbo.kl)
    expected = reconstruction + 0.7 * kl + 49.3 * mmd_by_hand(z, from_prior)
    oracles.assert_close(terms.loss, expected)


def log_weights_by_hand(model, prior, num_samples):
    """log p(x | z) + log p(z) - log q(z | x), `[K, batch]`, and the first of the three."""
    posterior = posterior_by_hand(model, X)
    loc, scale, rho = prior or (0.0, 1.0, 0.0)
    z = np.float64(model.encode(X).sample(num_samples, seed=SEED))
    log_p = np.zeros([num_samples, len(X)])
    for k in range(num_samples):
        p = scipy.special.expit(decoder_by_hand(model, z[k]))
        log_p[k] = np.sum(X * np.log(p) + (1 - X) * np.log1p(-p), axis=(1, 2))
    log_prior = oracles.Dense.ar1(np.full(D, loc), scale, rho).log_prob(z)
    return log_p + log_prior - posterior.log_prob(z), log_p


@pytest.mark.parametrize(
    ("posterior", "prior", "num_samples"), [(*pair, 7) for pair in PAIRS] + [("ar1", None, 1)]
)
def test_importance_weighted(posterior, prior, num_samples, monkeypatch):
    model = make(posterior, monkeypatch, prior)
    objective = objectives.ImportanceWeighted(num_samples)
    terms = objective(model, tf.constant(X), training=True)
    log_weights, log_p = log_weights_by_hand(model, prior, num_samples)
    if num_samples == 1:
        oracles.assert_close(terms.loss, -log_weights[0])
    largest = np.max(log_weights, axis=0)
    mean_weight = sum(np.exp(log_weight - largest) for log_weight in log_weights) / num_samples
    oracles.assert_close(terms.loss, -(largest + np.log(mean_weight)))
    oracles.assert_close(terms.reconstruction, -np.sum(log_p, axis=0) / num_samples)
    elbo = objectives.ELBO()(model, tf.constant(X), training=True)
    np.testing.assert_array_equal(terms.kl, elbo.kl)
    np.testing.assert_array_equal(terms.correlation, elbo.correlation)


def test_gradient_of_the_importance_weighted_bound(monkeypatch):
    """It follows z = μ + L ε through log q too: central differences in the posterior's bias."""
    model = make("ar1", monkeypatch)
    objective = objectives.ImportanceWeighted(3)
    bias = model.posterior_head.bias
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(objective(model, tf.constant(X), training=True).loss)
    gradient = tape.gradient(loss, bias.value)
    before = bias.numpy()
    for index, unit in enumerate(np.eye(len(before))):
        values = []
        for step in (1e-2, -1e-2):
            bias.assign(before + step * unit)
            log_weights, _ = log_weights_by_hand(model, None, 3)
            values.append(-np.mean(scipy.special.logsumexp(log_weights, axis=0)))
        difference = (values[0] - values[1]) / 2e-2
        np.testing.assert_allclose(gradient[index], difference, rtol=1e-2, atol=1e-3)
        bias.assign(before)


CASES = {
    "elbo": {"beta": 2.0, "warmup_steps": 4},
    "infovae": {"alpha": 0.5, "lambda_": 20.0},
    "iwae": {"num_samples": 3},
}


def small(name, posterior="ar1", **kwargs):
    keras.utils.set_random_seed(11)
    return tfp_ar1.RhoVAE(
        *architectures.mlp((8, 8), D, (16,)),
        D,
        posterior=posterior,
        objective=objectives.get(name, **CASES[name]),
        seed=0,
        **kwargs,
    )


@pytest.mark.parametrize(
    ("name", "posterior", "jit_compile"),
    [
        ("elbo", "ar1", False),
        *(
            pytest.param(name, posterior, True, marks=pytest.mark.slow)
            # Each objective and each posterior; neither asks for the other.
            for name, posterior in zip(
                [*CASES, "elbo"], ("isotropic", "diag", "ar1", "full"), strict=True
            )
        ),
    ],
)
def test_fit_compiled(name, posterior, jit_compile):
    model = small(name, posterior)
    model.compile(keras.optimizers.Adam(3e-3), jit_compile=jit_compile)
    history = model.fit(
        DIGITS[:512], epochs=5, batch_size=64, validation_data=(X,), verbose=0
    ).history
    assert history["reconstruction"][-1] < history["reconstruction"][0] - 3
    assert history["val_reconstruction"][-1] < history["val_reconstruction"][0] - 3
    assert all(np.all(np.isfinite(values)) for values in history.values())


@pytest.mark.parametrize("name", CASES)
def test_save_and_load(name, tmp_path):
    model = small(name)
    model.compile("adam", run_eagerly=True)
    model.fit(X, batch_size=10, verbose=0)
    model.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    assert type(loaded.objective) is objectives.OBJECTIVES[name]
    assert loaded.objective.get_config() == model.objective.get_config() == CASES[name]
    json.dumps(keras.saving.serialize_keras_object(loaded.objective))
    # Training continues where it was, in the middle of the warm-up.
    losses = [m.fit(X, batch_size=10, verbose=0, shuffle=False).history for m in (loaded, model)]
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "policy", ["mixed_float16", "float64", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
def test_precision(name, policy, set_policy):
    losses = []
    for policy_name in ("float32", policy):
        set_policy(policy_name)
        model = compiled(small(name), run_eagerly=True)
        losses.append(model.objective(model, tf.constant(X), training=False).loss)
        fitted(model, X, epochs=2)
        assert all(np.all(np.isfinite(weight)) for weight in model.get_weights())
    if policy == "float64":  # which draws other numbers
        assert losses[1].dtype == tf.float64
    else:
        np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)


@pytest.mark.parametrize(
    ("name", "argument", "values", "message"),
    [
        ("elbo", "beta", (-1.0, np.nan, np.inf), "must be finite and not negative; got"),
        ("elbo", "warmup_steps", (-1, 2.5, np.nan, None), "must be an integer of at least 0; got"),
        ("infovae", "alpha", (1.5, np.nan, -np.inf), "must be finite and at most 1; got"),
        ("infovae", "lambda_", (0.9, np.nan, np.inf), "must .* at least 1 - alpha = 1.0; got"),
        ("iwae", "num_samples", (0, 1.5, np.inf, "5"), "must be an integer of at least 1; got"),
    ],
)
def test_bad_arguments(name, argument, values, message):
    for value in values:
        with pytest.raises(ValueError, match=f"`{argument}` {message} {re.escape(repr(value))}"):
            objectives.get(name, **{argument: value})


def test_defaults():
    assert {name: objectives.get(name).get_config() for name in objectives.OBJECTIVES} == {
        "elbo": {"beta": 1.0, "warmup_steps": 0},
        "infovae": {"alpha": 0.0, "lambda_": 1000.0},
        "iwae": {"num_samples": 5},
    }


def test_names():
    with pytest.raises(ValueError, match=r"Unknown objective 'vae'; expected one of \['elbo', 'in"):
        objectives.get("vae")
    with pytest.raises(ValueError, match=r"at least 1 - alpha = 2.0; got 1.5"):
        objectives.InfoVAE(alpha=-1.0, lambda_=1.5)
    with pytest.raises(TypeError, match=r"`objective` must be .*ELBO\(\); got <class"):
        objectives.get(objectives.ELBO)


def test_an_objective_of_ones_own(monkeypatch):
    class Squared(objectives.Objective):
        def loss(self, model, draws, reconstruction, kl, training):
            return reconstruction + kl**2

    model = make("ar1", monkeypatch)
    terms = Squared()(model, tf.constant(X), training=True)
    elbo = objectives.ELBO()(model, tf.constant(X), training=True)
    oracles.assert_close(terms.loss, np.float64(elbo.reconstruction) + np.float64(elbo.kl) ** 2)
    with pytest.raises(NotImplementedError, match="`Objective` must define `loss`"):
        objectives.Objective()(model, tf.constant(X), training=True)

"""The samplers and the losses of `experiments/published_curves.py`, and what its notebook shows."""

import json
import pathlib

import keras
import numpy as np
import oracles
import pytest
import scipy.special
import tensorflow as tf
import tensorflow_probability as tfp
from click.testing import CliRunner

from experiments import published_curves

tfd = tfp.distributions

D = 6
ROOT = pathlib.Path(__file__).parents[2]
# Mean, log s and atanh ρ of three examples.
PARAMS = np.random.default_rng(0).normal(size=[3, D + 2]).astype(np.float32)
S, RHO = np.exp(np.float64(PARAMS[:, D])), np.tanh(np.float64(PARAMS[:, D + 1]))


def covariance_by_hand(sampler, s=S, rho=RHO, d=D):
    """Entry by entry, from sums over the noise that two coordinates share."""
    covariance = np.zeros([len(s), d, d])
    for n, i, j in np.ndindex(covariance.shape):
        a = {"random_walk": 1.0, "whole_innovations": rho[n]}[sampler]
        shared = range(min(i, j) + 1)
        covariance[n, i, j] = s[n] * sum(a ** (i - k) * a ** (j - k) for k in shared)
    return covariance


@pytest.fixture(params=["random_walk", "whole_innovations"])
def sampler(request):
    return request.param


def test_draws_and_kl(sampler):
    """The covariance by hand, that of the recurrence run step by step, and the exact KL."""
    q, exact = published_curves.SAMPLERS[sampler].new(PARAMS, D), covariance_by_hand(sampler)
    oracles.assert_close(q.covariance(), exact, event_ndims=2)
    oracles.assert_close(q.mean(), PARAMS[:, :D], event_ndims=1)
    n = 40_000
    noise, u = np.random.default_rng(1).normal(size=[n, D]), np.zeros([n, D])
    for t in range(D):
        coefficient = {"random_walk": 1.0, "whole_innovations": RHO[0]}[sampler]
        u[:, t] = coefficient * (u[:, t - 1] if t else 0.0) + noise[:, t]
    variances = np.diagonal(exact[0])
    error = np.sqrt((np.outer(variances, variances) + exact[0] ** 2) / n)
    for draws in (np.sqrt(S[0]) * u, q.sample(n, seed=[0, 1]).numpy()[:, 0]):
        assert np.max(np.abs(np.cov(draws.T) - exact[0]) / error) < 4.5
    kl = tfd.kl_divergence(q, tfd.MultivariateNormalDiag(tf.zeros(D)))
    dense = oracles.Dense(np.float64(PARAMS[:, :D]), exact)
    oracles.assert_close(kl, dense.kl(oracles.Dense(np.zeros(D), np.eye(D))))


def test_gradients_are_finite_at_zero(sampler):
    """ρ is 0 in a model that is not trained yet."""
    params = tf.zeros([2, D + 2])
    with tf.GradientTape() as tape:
        tape.watch(params)
        q = published_curves.SAMPLERS[sampler].new(params, D)
        z, log_q = q.experimental_sample_and_log_prob(3, seed=[0, 1])
        total = tf.reduce_sum(z**2) + tf.reduce_sum(log_q)
    gradient = tape.gradient(total, params).numpy()
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient[:, D + 1]) == (sampler == "whole_innovations")


X = np.random.default_rng(2).uniform(size=[5, 4, 4]).astype(np.float32)


def small_model(monkeypatch, sampler, loss):
    model = published_curves.make_model(sampler, loss, X.shape[1:])
    for weight in model.posterior_head.weights:
        weight.assign(keras.random.normal(weight.shape, stddev=0.2, seed=5))
    monkeypatch.setattr(model, "next_seed", lambda: tf.constant([3, 4]))
    return model


@pytest.mark.parametrize(("sampler", "loss"), published_curves.VARIANTS)
def test_losses(sampler, loss, monkeypatch):
    """By hand: sums over the batch, as the reference is described to add them up, over its size."""
    model = small_model(monkeypatch, sampler, loss)
    d = published_curves.SETTINGS["latent_dim"]
    params = np.float64(model.posterior_head(model.encoder(X)))
    mean_squared = np.sum(params[:, :d] ** 2, axis=1)
    if sampler == "diag":
        log_s = params[:, d:]
        covariance_terms = np.sum(np.exp(log_s) - 1 - log_s, axis=1)
        covariance = np.exp(log_s)[..., None] * np.eye(d)
    else:
        log_s, rho = params[:, d], np.tanh(params[:, d + 1])
        covariance_terms = d * (np.exp(log_s) - 1 - log_s) - (d - 1) * np.log(1 - rho**2)
        if sampler == "ar1":
            covariance = oracles.ar1_covariance(np.exp(log_s / 2), rho, d)
        else:
            covariance = covariance_by_hand(sampler, np.exp(log_s), rho, d)
    q = oracles.Dense(params[:, :d], covariance)
    z = model.encode(X).sample(seed=tf.constant([3, 4]))
    p = scipy.special.expit(np.float64(model.decoder(z)))
    cross_entropy = -np.sum(X * np.log(p) + (1 - X) * np.log1p(-p), axis=(1, 2))

    paper = np.mean(cross_entropy + (mean_squared + covariance_terms) / 2)
    reference = np.sum(cross_entropy) + np.mean((np.sum(mean_squared) + covariance_terms) / 2)
    expected = {"paper": paper, "reference": reference / len(X)}
    if sampler == "diag":
        expected["reference"] = paper  # its loss is taken to be right

    terms = model.objective(model, tf.constant(X), training=True)
    oracles.assert_close(np.mean(terms.loss), expected[loss])
    oracles.assert_close(np.mean(terms.reference_loss), expected["reference"])
    oracles.assert_close(terms.kl, q.kl(oracles.Dense(np.zeros(d), np.eye(d))))
    oracles.assert_close(terms.mean_term, mean_squared / 2)
    oracles.assert_close(terms.covariance_terms, covariance_terms / 2)
    assert abs(expected["paper"] - reference / len(X)) > 0.1  # the two can be told apart


@pytest.mark.slow
def test_every_variant_is_trained_once(tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    data = tmp_path / "data" / "mnist"
    data.mkdir(parents=True)
    for part, n in (("train", 20), ("t10k", 10)):
        images, labels = rng.integers(0, 256, [n, 5, 5], np.uint8), np.zeros(n, np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = np.array([0x0800 + array.ndim, *array.shape], ">u4").tobytes()
            (data / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())
    small = {"epochs": 2, "batch_size": 8, "latent_dim": 3, "num_importance_samples": 3}
    monkeypatch.setattr(published_curves, "SETTINGS", published_curves.SETTINGS | small)
    variants = [("ar1", "paper"), ("ar1", "reference"), ("random_walk", "reference")]
    monkeypatch.setattr(published_curves, "VARIANTS", variants)
    out = tmp_path / "results.json"
    evaluated = []

    def evaluate(model, x):
        evaluated.append([layer.get_weights() for layer in (model.decoder, model.encoder)])
        return evaluate_model(model, x)

    evaluate_model = published_curves._evaluate
    monkeypatch.setattr(published_curves, "_evaluate", evaluate)

    def run():
        arguments = ["--data-dir", str(data.parent), "--dataset", "mnist", "--out", str(out)]
        CliRunner().invoke(published_curves.main, arguments, catch_exceptions=False)
        return json.loads(out.read_text())

    first = run()
    results = first["results"]
    assert [(entry["sampler"], entry["loss"]) for entry in results] == variants
    tests = [{name for name in entry if name.startswith("test")} for entry in results]
    assert tests == [
        {"test"},
        {"test", "test_refitted"},
        {"test", "test_refitted", "test_as_stated"},
    ]
    for entry in results:
        assert {len(curve) for curve in entry["curves"].values()} == {2}

    # Of the random walk: as it was trained, the same weights, and the encoder trained again.
    trained, as_stated, refitted = evaluated[-3:]
    for decoder, encoder in (as_stated, refitted):
        assert all(map(np.array_equal, decoder, trained[0]))
        assert all(map(np.array_equal, encoder, trained[1])) == (encoder is as_stated[1])

    # Interrupted after the first two: they stay, and the third is trained again, to the same end.
    kept = [results[0] | {"mark": 1}, results[1]]
    out.write_text(json.dumps(first | {"results": kept}))
    again = run()["results"]
    assert again[:2] == kept
    assert len(again) == 3
    for name, curve in results[2]["curves"].items():
        np.testing.assert_allclose(again[2]["curves"][name], curve, rtol=1e-4, err_msg=name)


@pytest.mark.slow
def test_notebook_shows_the_results(monkeypatch):
    """The tables that the notebook makes against the JSON, cell by cell."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import building

    notebook = building.executed(ROOT / "notebooks" / "published_curves.py")
    tables = [
        [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines()]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if (text := output.get("data", {}).get("text/markdown", "")).startswith("| dataset |")
    ]
    results = json.loads(published_curves.RESULTS.read_text(encoding="utf-8"))["results"]
    assert len(results) == 2 * len(published_curves.VARIANTS)

    def curve_ends(entry, *names):
        return [entry["curves"][f"val_{name}"][-1] for name in names]

    expected = [
        [
            [*curve_ends(r, "loss", "reference_loss"), r["test"]["neg_elbo"], r["test"]["nll_iw"]]
            for r in results
        ],
        [
            [r[q]["neg_elbo"] for q in ("test", "test_as_stated", "test_refitted") if q in r]
            for r in results
            if "test_refitted" in r
        ],
    ]
    names = {
        "fashion_mnist": "Fashion-MNIST",
        "mnist": "MNIST",
        "diag": "diagonal",
        "ar1": "AR(1)",
        "random_walk": "random walk (slip 1)",
        "whole_innovations": "innovations √s (slip 2)",
        "paper": "equation 6",
        "reference": "the reference's (slip 3)",
    }
    labels = [[names[r[key]] for key in ("dataset", "sampler", "loss")] for r in results]
    assert len(tables) == 2
    assert [row[:3] for row in tables[0][2:]] == labels
    for (_, _, *rows), numbers in zip(tables, expected, strict=True):
        shown = [[float(x) for x in row[3:] if x != "the same"] for row in rows]
        for row, exact in zip(shown, numbers, strict=True):
            np.testing.assert_allclose(row, exact, rtol=0, atol=0.0501)

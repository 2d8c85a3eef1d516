"""Healing MNIST: GP-VAE's posterior against ours where they coincide, its data, its page."""

import gzip
import json
import pathlib
import struct

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1
from experiments.healing import data, latents, page

LIBRARY = latents.Library(tf, tfp.distributions, tfp_ar1)
FRAMES, CHANNELS = 10, 3

ROOT = pathlib.Path(__file__).parents[2]


def outputs(number, seed=0):
    shape = (4, FRAMES, number * CHANNELS)
    return tf.constant(np.random.default_rng(seed).normal(size=shape))


def value_and_gradients(function, *args):
    with tf.GradientTape() as tape:
        tape.watch(args)
        value = function(*args)
        total = tf.reduce_sum(value * np.linspace(1, 2, value.shape[-1]))
    return value, tape.gradient(total, args)


@pytest.mark.parametrize("is_negative", [True, False])
def test_posterior_of_gp_vae_is_ante1(is_negative):
    """Its KL to the Matérn-1/2 prior by dense matrices is ours to AR(1), and so are gradients."""
    loc, diagonal, above = tf.split(tf.transpose(outputs(3), [0, 2, 1]), 3, axis=1)
    above = above[..., :-1]
    if is_negative:
        diagonal, above = 1.0 + tf.math.softplus(diagonal), tf.math.softplus(above)
    else:
        diagonal = tf.exp(diagonal)
    prior = tfp_ar1.MultivariateNormalAR1(
        tf.zeros(FRAMES, tf.float64), correlation=np.exp(-1 / latents.LENGTH_SCALE)
    )

    def theirs(loc, diagonal, above):
        posterior = latents.banded(LIBRARY, loc, diagonal, above)
        return latents.dense_kl(LIBRARY, posterior, latents.kernel("matern", FRAMES))

    def ours(loc, diagonal, above):
        posterior = tfp_ar1.MultivariateNormalANTE1.from_precision_cholesky(
            loc, diagonal, above, lower=False
        )
        return tfp.distributions.kl_divergence(posterior, prior)

    value, gradients = value_and_gradients(theirs, loc, diagonal, above)
    expected, expected_gradients = value_and_gradients(ours, loc, diagonal, above)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-9, atol=1e-11)
    dense = latents.banded(LIBRARY, loc, diagonal, above)
    chain = tfp_ar1.MultivariateNormalANTE1.from_precision_cholesky(
        loc, diagonal, above, lower=False
    )
    np.testing.assert_allclose(dense.covariance(), chain.covariance(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    "method",
    [*latents.METHODS.values(), latents.Method("ar1", "ar1"), latents.Method("ar1", "normal")],
    ids=lambda method: f"{method.posterior}-{method.prior}",
)
def test_kl_divergence_of_each_method(method):
    """Against the formula for two normals, by NumPy; samples have the shape of the paths."""
    fisher_z = tf.constant([-0.5, 0.2, 1.5], tf.float64)
    x = outputs(latents.POSTERIORS[method.posterior])
    posterior, kl = latents.posterior_and_kl(LIBRARY, method, x, fisher_z)
    loc, covariance = posterior.mean().numpy(), posterior.covariance().numpy()
    lags = np.abs(np.subtract.outer(np.arange(FRAMES), np.arange(FRAMES)))
    of_prior = {
        "normal": np.eye(FRAMES),
        "cauchy": 1 / (1 + lags**2 / 4) + 0.001 * np.eye(FRAMES),
        "matern": np.exp(-lags / 2),
        "ar1_fixed": np.exp(-lags / 2),
        "ar1": np.tanh(fisher_z.numpy())[:, None, None] ** lags,
    }[method.prior]
    precision = np.linalg.inv(of_prior)
    expected = 0.5 * (
        np.einsum("...ij,...ji->...", precision, covariance)
        + np.einsum("...i,...ij,...j->...", loc, precision, loc)
        - FRAMES
        + np.linalg.slogdet(of_prior)[1]
        - np.linalg.slogdet(covariance)[1]
    )
    np.testing.assert_allclose(kl, expected.sum(axis=-1), rtol=1e-9)
    assert posterior.sample(seed=1).shape == (4, CHANNELS, FRAMES)


def test_posteriors_without_correlation_learn_scales_alike():
    """At zero outputs ours is N(0, I), and the negative correlations of GP-VAE are there."""
    ours, _ = latents.posterior_and_kl(
        LIBRARY, latents.METHODS["ante1_cauchy_linear"], 0 * outputs(3), None
    )
    np.testing.assert_allclose(ours.covariance()[0, 0], np.eye(FRAMES), atol=1e-12)
    theirs, _ = latents.posterior_and_kl(
        LIBRARY, latents.METHODS["gp_vae_cauchy"], 0 * outputs(3), None
    )
    assert np.all(np.diagonal(theirs.covariance()[0, 0], offset=1) < 0)


@pytest.mark.parametrize("name", ["cauchy", "matern"])
def test_least_kl_of_the_posterior_of_gp_vae(name):
    """That of an optimizer, which may choose any parameters that softplus gives."""
    covariance = latents.kernel(name, FRAMES)

    def kl(x):
        posterior = latents.banded(
            LIBRARY, tf.zeros(FRAMES, tf.float64), 1.0 + x[:FRAMES], x[FRAMES:]
        )
        return latents.dense_kl(LIBRARY, posterior, covariance)

    def value_and_gradient(x):
        return tfp.math.value_and_gradient(kl, tf.constant(x))

    bounds = [(0, None)] * (2 * FRAMES - 1)
    start = np.full(2 * FRAMES - 1, 0.5)
    best = scipy.optimize.minimize(value_and_gradient, start, jac=True, bounds=bounds)
    np.testing.assert_allclose(best.fun, latents.least_kl(name, FRAMES), rtol=1e-5)


@pytest.fixture
def digits(tmp_path):
    """MNIST's files, of a bar to the right of the centre."""
    image = np.zeros((28, 28), np.uint8)
    image[12:16, 14:26] = 255
    for part, number in (("train", 6), ("t10k", 4)):
        header = struct.pack(">4i", 2051, number, 28, 28)
        file = tmp_path / f"{part}-images-idx3-ubyte.gz"
        file.write_bytes(gzip.compress(header + image.tobytes() * number))
        labels = struct.pack(">2i", 2049, number) + bytes(range(number))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return tmp_path


def test_turned_about_the_centre():
    image = np.zeros((28, 28), np.uint8)
    image[12:16, 14:26] = 255
    frames = data._turn(image, np.array([0.0, 90.0, 180.0, -90.0]))
    np.testing.assert_array_equal(frames[0], image > 127)
    np.testing.assert_array_equal(frames[2], np.rot90(image, 2) > 127)
    np.testing.assert_array_equal(frames[1], np.rot90(frames[0]))
    np.testing.assert_array_equal(frames[3], np.rot90(frames[0], 3))


def test_data_are_the_same_for_each_seed(digits):
    """And fewer sequences are the first ones; training and test data differ."""
    train, test = data.load(digits, 6, 4)
    assert train.pixels.shape == (6, 10, 784)
    np.testing.assert_array_equal(train.labels, range(6))
    fewer, _ = data.load(digits, 2, 4)
    np.testing.assert_array_equal(fewer.pixels, train.pixels[:2])
    assert (test.pixels[:2] != fewer.pixels).any()
    assert abs(np.mean(train.pixels >= data.HIDDEN) - 0.6) < 0.02
    pixels = data.load(digits, 6, 4, missing="mnar")[0].pixels
    white, hidden = pixels & data.WHITE == 1, pixels >= data.HIDDEN
    assert abs(np.mean(hidden[white]) - 0.8) < 0.03
    assert abs(np.mean(hidden[~white]) - 0.4) < 0.02


@pytest.fixture
def lines(tmp_path):
    """Results of three seeds of two methods, of which one has no AUROC."""
    rng = np.random.default_rng(0)
    settings = {"epochs": 20, "num_train": 64, "num_test": 8, "beta": 0.8, "degrees": 30.0}
    records = [
        {"method": method, "seed": seed, "missing": "random", **settings}
        | {field: float(rng.normal()) for field in page.MEASURES}
        | {"device": "H", "code": "abc", "versions": {"jax": "1.0"}}
        for method in ("gp_vae_cauchy", "ante1_ar1")
        for seed in range(3)
    ]
    records[0]["auroc"] = None
    records[0]["nll_mixed"] = records[0]["nll"]
    file = tmp_path / "healing.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file, records


def test_page(lines, tmp_path):
    """A paired difference and its interval by SciPy; what is missing is left out of the pairs."""
    file, records = lines
    template = tmp_path / "x.template.md"
    template.write_text(
        "{{ difference('auroc', 'ante1_ar1', 'gp_vae_cauchy') }}\n{{ mean('nll', 'ante1_ar1') }}\n"
        "{{ runs() }}\n{{ table() }}\n{{ differences('gp_vae_cauchy') }}\n{{ published() }}"
        "\n{{ collapsed() }}; {{ runs(collapsed=False) }}\n{{ long_paths() }}"
    )
    path = {"method": "ante1", "steps": 1000, "seconds": 0.002, "bytes": 3e6}
    dense = {"method": "gp_vae_matern", "steps": 1000, "seconds": None, "bytes": 4e9}
    (tmp_path / "long_paths.jsonl").write_text(f"{json.dumps(path)}\n{json.dumps(dense)}\n")
    page.write(file, template, tmp_path / "x.md")
    text = (tmp_path / "x.md").read_text().replace("−", "-")
    theirs, ours = ([record["auroc"] for record in part] for part in (records[1:3], records[4:]))
    low, high = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    difference = f"{np.mean(np.subtract(ours, theirs)):+.4f} [{low:+.4f}, {high:+.4f}]"
    nll = [record["nll"] for record in records[3:]]
    mean = f"{np.mean(nll):.4f} ± {scipy.stats.sem(nll):.4f}"
    _, _, *filled = text.split("\n")
    assert filled[:3] == [difference, mean, "6"]
    assert any(difference in line for line in filled[3:])
    assert "0.350 ± 0.007" in text
    assert "`gp_vae_cauchy` (seed 0); 5" in text
    assert filled[-1] == "| 1,000 | 2.00 ms, 3.0 MB | not run, 4.0 GB |"


def test_the_page_shows_the_results(tmp_path):
    pages, results = ROOT / "docs" / "healing", ROOT / "experiments" / "results" / "healing.jsonl"
    page.write(results, pages / "healing.template.md", tmp_path / "healing.md")
    assert (tmp_path / "healing.md").read_text() == (pages / "healing.md").read_text()


def test_runs_that_are_there_twice_are_refused(lines, tmp_path):
    file, _ = lines
    file.write_text(file.read_text() * 2)
    with pytest.raises(ValueError, match="twice"):
        page.write(file, tmp_path / "x.template.md", tmp_path / "x.md")

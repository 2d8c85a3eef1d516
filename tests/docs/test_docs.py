"""The guides do what they say: every block runs, before the change and after it."""

import pathlib
import re
import shlex
import typing

import click
import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1
from tfp_ar1_cli import app

ROOT = pathlib.Path(__file__).parents[2]
tfd = tfp.distributions


class Block(typing.NamedTuple):
    language: str
    code: str


def fenced_blocks(markdown):
    return [Block(*match) for match in re.findall(r"```(\w+)\n(.*?)```", markdown, flags=re.DOTALL)]


def run(code, path, namespace=None):
    """Runs code from a file, so that AutoGraph and tracebacks find its lines; returns its names."""
    path.write_text(code, encoding="utf-8")
    namespace = {"__name__": path.stem} if namespace is None else namespace
    exec(compile(code, str(path), "exec"), namespace)
    return namespace


def side(diff, sign):
    """One side of a diff: `-` for the lines before, `+` for those after."""
    assert {line[:1] for line in diff.splitlines()} <= {"", " ", "-", "+"}
    lines = [line[1:] for line in diff.splitlines() if line[:1] in ("", " ", sign)]
    return "\n".join(lines) + "\n"


GUIDES = [
    (ROOT / "docs" / name).read_text(encoding="utf-8")
    for name in ("drop_in_guide.md", "chains_guide.md")
]
SECTIONS = {
    section.splitlines()[0]: fenced_blocks(section)
    for guide in GUIDES
    for section in re.split(r"^## ", guide, flags=re.MULTILINE)[1:]
}


@pytest.fixture
def run_section(tmp_path, monkeypatch):
    """The names that a section leaves: before, after, and after its further blocks too."""
    monkeypatch.chdir(tmp_path)

    def run_blocks(title):
        (language, diff), *rest = SECTIONS[title]
        assert language == "diff"
        assert {block.language for block in rest} <= {"python"}
        before = run(side(diff, "-"), tmp_path / "before.py")
        after = run(side(diff, "+"), tmp_path / "after.py")
        end = dict(after)
        for i, block in enumerate(rest):
            run(block.code, tmp_path / f"block_{i}.py", end)
        return before, after, end

    return run_blocks


def test_the_sections_are_those_that_are_tested_and_linked():
    assert list(SECTIONS) == [
        "A VAE of TFP Probabilistic Layers",
        "A VAE in Keras 3",
        "An AR(1) random effect with NUTS",
        "A variational posterior",
        "A scale or a correlation per step",
        "A Markov chain",
        "A random walk",
        "A state-space model",
        "A Gaussian process",
        "A GP-VAE posterior",
        "Gaps and forecasts",
        "Counts",
    ]
    for title in SECTIONS:
        anchor = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        assert any(f"](#{anchor})" in guide for guide in GUIDES)


def exact_mean_kl(distribution, size):
    distribution = getattr(distribution, "tensor_distribution", distribution)
    standard_normal = tfd.MultivariateNormalDiag(tf.zeros(size))
    return np.mean(tfd.kl_divergence(distribution, standard_normal))


@pytest.mark.slow
def test_vae_of_probabilistic_layers(run_section):
    before, after, end = run_section("A VAE of TFP Probabilistic Layers")
    x, size = after["x"][:100], after["encoded_size"]

    # The numbers of parameters.
    assert before["encoder"].layers[-2].units == 44
    assert after["encoder"].layers[-2].units == size + 2 == 10

    # TFP's regularizer counts twice an estimate of the KL, this one once the KL.
    posterior = before["encoder"](x)
    twice = [float(loss) for loss in before["encoder"].losses]
    assert twice[0] == twice[1] > 0
    np.testing.assert_allclose(twice[0], exact_mean_kl(posterior, size), rtol=1)
    posterior = after["encoder"](x)
    losses = [float(loss) for loss in after["encoder"].losses]
    np.testing.assert_allclose(sum(losses), exact_mean_kl(posterior, size), rtol=1e-6)
    assert isinstance(posterior, tfd.Distribution)

    # The prior was learned, and has come back with the rest of the encoder.
    assert end["prior"].fisher_z.numpy() != 0
    encoder, loaded = end["encoder"], end["loaded"]
    encoder(x), loaded(x)
    np.testing.assert_allclose(sum(map(float, loaded.losses)), sum(map(float, encoder.losses)))
    assert len(loaded.trainable_variables) == len(encoder.trainable_variables)

    # What the page says of the decoder.
    load_model = end["tfk"].models.load_model
    end["decoder"].save("decoder.keras")
    with pytest.raises(ValueError, match="safe_mode"):
        load_model("decoder.keras")
    with pytest.raises(ValueError, match="logits"):
        load_model("decoder.keras", safe_mode=False)


@pytest.mark.slow
def test_vae_in_keras_3(run_section):
    before, after, end = run_section("A VAE in Keras 3")
    images, size = after["images"], after["latent_dim"]
    assert before["z_mean"].shape[-1] + before["z_log_var"].shape[-1] == 2 * size
    assert after["params"].shape[-1] == size + 2
    for names in (before, after):
        assert names["vae"](images).shape == images.shape
    (kl,) = after["vae"].losses
    encoder = end["keras"].Model(after["inputs"], after["params"])
    posterior = after["sampling"].distribution(encoder(images))
    np.testing.assert_allclose(kl, exact_mean_kl(posterior, size), rtol=1e-5)
    assert end["posterior"].batch_shape == [5]
    assert len(end["sampling"].trainable_variables) == 1  # of the prior that is learned


@pytest.mark.slow
def test_random_effect_with_nuts(run_section):
    before, after, end = run_section("An AR(1) random effect with NUTS")
    shape = [40, before["num_chains"], before["num_steps"]]
    for names in (before, after):
        assert names["path"].shape == shape
        assert np.all(np.isfinite(names["path"]))
        assert np.mean(names["diverged"]) < 0.1
        log_rate = np.mean(names["level"][..., np.newaxis] + names["path"], axis=(0, 1))
        assert np.corrcoef(log_rate, names["wave"])[0, 1] > 0.8

    # Both are one model, but for the jitter.
    scale, fisher_z = tf.constant([-0.5, 0.3]), tf.constant([0.4, 1.2])
    path = after["effect"](scale, fisher_z).sample(seed=[0, 1])
    log_probs = [n["target_log_prob"](tf.ones(2), scale, fisher_z, path) for n in (before, after)]
    np.testing.assert_allclose(*log_probs, atol=0.05)

    # So is the other form of it: its density differs by that of the path given the noise.
    effect = end["effect"](scale, fisher_z)
    other = end["non_centred"].log_prob(
        level=tf.ones(2),
        log_scale=scale,
        fisher_z=fisher_z,
        noise=effect.scale.solvevec(path),
        y=end["y"],
    )
    volume = effect.scale.log_abs_determinant()
    np.testing.assert_allclose(other - volume, log_probs[1], rtol=1e-5)

    # And so is the Gaussian process.
    process = tfd.GaussianProcess(
        tfp.math.psd_kernels.MaternOneHalf(np.float64(0.7), np.float64(3.0)),
        np.arange(5.0)[:, np.newaxis],
        jitter=0.0,
    )
    normal = tfp_ar1.MultivariateNormalAR1(
        np.zeros(5), np.float64(0.7), correlation=tf.exp(-1 / np.float64(3.0))
    )
    np.testing.assert_allclose(process.covariance(), normal.covariance(), rtol=1e-12)


@pytest.mark.slow
def test_variational_posterior(run_section):
    before, after, _ = run_section("A variational posterior")
    number = {
        name: sum(int(np.prod(v.shape)) for v in names["surrogate"].trainable_variables)
        for name, names in (("before", before), ("after", after))
    }
    assert number == {"before": 400, "after": 202}
    # The page says -360 and -313 nats.
    elbo = {"before": np.mean(before["elbo"]), "after": np.mean(after["elbo"])}
    assert abs(elbo["before"] + 360) < 3
    assert abs(elbo["after"] + 313) < 3


def test_the_family(run_section):
    before, after, end = run_section("A scale or a correlation per step")
    # The numbers of parameters.
    layers, size = after["tfp_ar1"].layers, after["latent_dim"]
    classes = [getattr(layers, f"MultivariateNormal{name}") for name in ("AR1", "ARH1", "ANTE1")]
    assert [cls.params_size(size) for cls in classes] == [10, 17, 23]
    for names, units in ((before, 10), (after, 23)):
        assert names["encoder"].layers[-2].units == units
        assert names["z"].shape == (5, size)
        assert len(names["encoder"].losses) == 1

    # The covariances of the table, and the KL between them.
    times = end["times"].numpy()
    distances = np.abs(times[:, :, np.newaxis] - times[:, np.newaxis, :])
    ou = 4.0 * np.exp(-distances / 1.5)
    oracles.assert_close(end["path"].covariance(), ou, event_ndims=2)
    lower = [[1, 0, 0, 0], [1.8, 4, 0, 0], [0, 0, 4, 0], [0, 0, -1, 1]]
    ante1 = np.add(lower, np.tril(lower, -1).T)
    oracles.assert_close(end["approximation"].covariance(), ante1, event_ndims=2)
    mean = np.zeros(4)
    oracles.assert_close(end["kl"], oracles.Dense(mean, ante1).kl(oracles.Dense(mean, ou)))
    # What was observed, as it was; the rest is uncertain.
    deviations = end["conditional"].stddev().numpy()
    assert np.all((deviations > 1e-3) == [False, True, False, False])

    # Both are N(0, I), whose KL is 0, whatever is summed.
    assert end["posterior"].batch_shape == (7, 3)
    assert end["layer"].losses[0] == 0

    # Over time.
    assert end["paths"].shape == (7, 50, 3)
    assert end["outputs"].shape == (7, 50, 9)
    assert end["q"].batch_shape == (7, 3)


def test_markov_chain(run_section):
    before, after, _ = run_section("A Markov chain")
    x = before["x"]
    np.testing.assert_allclose(after["walk"].log_prob(x), before["log_prob"], rtol=1e-5)


@pytest.mark.slow
def test_state_space_model(run_section):
    before, after, end = run_section("A state-space model")
    np.testing.assert_allclose(after["likelihood"], before["likelihood"], rtol=1e-5)
    np.testing.assert_allclose(after["mean"], before["mean"][..., 0], atol=1e-5)
    variance = np.broadcast_to(before["covariance"][..., 0, 0], (3, 100))
    np.testing.assert_allclose(after["variance"], variance, rtol=1e-4)
    np.testing.assert_allclose(end["kl"], end["sites"].kl_divergence(), rtol=1e-5)


def test_random_walk(run_section):
    before, after, _ = run_section("A random walk")
    np.testing.assert_allclose(after["log_prob"], before["log_prob"], rtol=1e-5)


def test_gaussian_process(run_section):
    before, after, _ = run_section("A Gaussian process")
    for name in ("log_prob", "mean", "stddev"):
        np.testing.assert_allclose(after[name], before[name], rtol=1e-4)


def test_gp_vae(run_section):
    before, after, _ = run_section("A GP-VAE posterior")
    for a, b in zip(before["posterior"].covariance(), after["posterior"].covariance(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    np.testing.assert_allclose(after["kl"], before["kl"], rtol=1e-10)
    assert np.all(after["posterior"].correlation_parameter() < 0)


def test_gaps_and_forecasts(run_section):
    before, after, end = run_section("Gaps and forecasts")
    for name in ("mean", "stddev", "later_mean", "later_stddev"):
        np.testing.assert_allclose(after[name], before[name], atol=2e-3)
    assert end["later"].event_shape == [3]


@pytest.mark.slow
def test_counts(run_section):
    before, after, end = run_section("Counts")
    for name in ("mean", "stddev"):
        np.testing.assert_allclose(after[name], before[name], atol=1e-4)
    assert after["laplace"].converged
    assert end["later"].event_shape == [12]
    step = 1e-2 * np.eye(3, dtype="float32")
    around = [
        [end["negative_evidence"](tf.constant([1.0, -1.0, 0.5]) + s * h) for h in step]
        for s in (1, -1)
    ]
    np.testing.assert_allclose(end["gradient"], np.subtract(*around) / 2e-2, rtol=0.02)


SCALING = fenced_blocks((ROOT / "docs" / "scaling.md").read_text(encoding="utf-8"))


def test_scaling_in_python(tmp_path):
    (block,) = (block for block in SCALING if block.language == "python")
    model = run(block.code, tmp_path / "scaling.py")["vae"]
    assert model.optimizer.iterations == 2


def test_commands_of_the_pages():
    """What the command line is called with in the README and the pages, it knows."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    called = set()
    for page in pages:
        blocks = fenced_blocks(page.read_text(encoding="utf-8"))
        lines = "".join(block.code for block in blocks if block.language == "sh").splitlines()
        for line in lines:
            if line.startswith("tfp-ar1"):
                name, *arguments = shlex.split(line, comments=True)[1:]
                command = app.cli.commands[name]
                _, left, _ = command.make_parser(click.Context(command)).parse_args(arguments)
                assert not left, line
                called.add(name)
    assert called >= {"train", "evaluate", "sample", "impute", "forecast", "score", "export"}

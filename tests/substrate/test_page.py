"""The page docs/jax.md: every block runs, in the order of the page, and gives what it says."""

import importlib.util
import pathlib
import re

import both
import numpy as np
import pytest

try:
    both.jax()
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "jax.md"
SECTIONS = {
    section.splitlines()[0]: re.findall(r"```(python|diff)\n(.*?)```", section, flags=re.DOTALL)
    for section in re.split(r"^##+ ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
}


@pytest.fixture(autouse=True)
def default_precision():
    """float32 as a reader has it, whatever tests in the same process have set."""
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", before)


def run(blocks, names=None):
    names = {} if names is None else names
    for _, code in blocks:
        exec(compile(code, str(PAGE), "exec"), names)
    return names


def side(diff, sign):
    return "\n".join(line[1:] for line in diff.splitlines() if line[:1] in ("", " ", sign))


def both_sides(title):
    ((language, diff),) = SECTIONS[title]
    assert language == "diff"
    return [run([("python", side(diff, sign))]) for sign in "-+"]


def test_layers_and_models():
    """On the backend that KERAS_BACKEND names, which `make test-jax` sets."""
    keras = pytest.importorskip("keras")
    if keras.config.backend() != "jax":
        pytest.skip("KERAS_BACKEND is not jax")
    found = run(SECTIONS["Layers and models"], run([SECTIONS["Use"][0]]))
    assert np.all(np.isfinite(found["history"].history["val_loss"]))


def needs(name):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is missing")


def test_use_and_what_differs():
    names = run(SECTIONS["Use"])
    assert names["log_probs"].shape == (100,)
    names = run(SECTIONS["What is the same, and what differs"], names)
    expected = names["noisy"].posterior(names["x"]).kl_divergence(names["path"])
    np.testing.assert_allclose(names["kl"], expected, rtol=1e-4)


def test_random_effect():
    before, after = both_sides("An AR(1) random effect with NUTS")
    for names in (before, after):
        assert names["path"].shape == (40, 2, 40)
        assert not np.all(names["diverged"])
    # But for the jitter of the one, the two densities are the same.
    point = [np.float32(v) for v in (1.0, 0.1, 1.2)]
    path = np.sin(np.arange(40)).astype("float32")
    of = [names["target_log_prob"](*point, path) for names in (before, after)]
    np.testing.assert_allclose(*of, rtol=2e-3)


@needs("optax")
def test_variational_posterior():
    before, after = both_sides("A variational posterior")
    elbos = [np.mean(names["elbo"]) for names in (before, after)]
    assert elbos[1] > elbos[0] + 20.0, elbos


def test_scale_or_correlation_per_step():
    names = run(SECTIONS["A scale or a correlation per step"])
    assert names["x"].shape == names["conditional"].mean().shape == (2, 4)
    assert names["kl"].shape == (2,)


def exact_moments(likelihood):
    """Means and standard deviations of (log_scale, fisher_z), on a grid."""
    import jax
    import jax.numpy as jnp

    grids = jnp.linspace(-3.0, 4.0, 200), jnp.linspace(-3.0, 5.0, 200)
    log_lik = jax.jit(jax.vmap(jax.vmap(likelihood, (None, 0)), (0, None)))(*grids)
    a, z = (np.float64(x) for x in np.meshgrid(*grids, indexing="ij"))
    log_weight = np.float64(log_lik) - a**2 / 2 - (z - 1.0) ** 2 / 2
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    means = {"log_scale": np.sum(weight * a), "fisher_z": np.sum(weight * z)}
    squares = {"log_scale": np.sum(weight * a**2), "fisher_z": np.sum(weight * z**2)}
    return {k: (m, np.sqrt(squares[k] - m**2)) for k, m in means.items()}


@needs("numpyro")
@needs("blackjax")
@pytest.mark.parametrize("library", [1, 2])
def test_samplers(library):
    setup, *samplers = SECTIONS["In NumPyro and BlackJAX"]
    names = run([setup, samplers[library - 1]])
    for key, (mean, stddev) in exact_moments(names["likelihood"]).items():
        draws = np.float64(names["draws"][key])
        assert abs(draws.mean() - mean) < 0.15 * stddev, (key, draws.mean(), mean)
        assert abs(draws.std() / stddev - 1.0) < 0.15, (key, draws.std(), stddev)

"""The models of paths along lines on JAX: what their decoders see, and their bounds."""

import os

import numpy as np
import pytest

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
pytest.importorskip("optax")
try:
    from experiments.scan_lines import model
except (AttributeError, ImportError) as error:
    pytest.skip(str(error), allow_module_level=True)

import jax
import jax.numpy as jnp

from experiments.healing.latents import Method
from experiments.scan_lines.results import DECODERS


def made(decoder, method):
    posterior, prior = method.split("/")
    return model.Model(decoder, Method(posterior, prior), 10)


@pytest.mark.parametrize("decoder", DECODERS)
def test_which_lines_a_latent_changes(decoder):
    parameters = model.initial(made(decoder, "diag/normal"), 0).parameters
    paths = jax.random.normal(jax.random.key(0), (model.CHANNELS, model.LINES), "float32")
    logits = model.decode(parameters, decoder, paths)
    changed = model.decode(parameters, decoder, paths.at[2, 10].add(1.0))
    reach = DECODERS[decoder]
    expected = np.abs(np.arange(model.LINES) - 10) <= reach
    np.testing.assert_array_equal(np.any(logits != changed, axis=-1), expected)


def test_without_a_chain_the_order_of_lines_is_nothing():
    """To the loss of `diag/normal` whose decoder sees one line; to that of `diag/ar1` it is."""
    images = jax.random.bernoulli(jax.random.key(0), 0.2, (8, model.LINES, model.LINES))
    order = np.random.default_rng(0).permutation(model.LINES)

    def kl_and_decoded(method, order):
        one = made("line", method)
        parameters = model.initial(one, 0).parameters
        if "prior" in parameters:
            parameters["prior"] = jnp.ones(model.CHANNELS, jnp.float32)
        weight, bias = parameters["encoder_1"]
        weight = weight.reshape(model.LINES, model.LINES, -1)[order].reshape(weight.shape)
        parameters["encoder_1"] = weight, bias
        weight, bias = parameters["encoder_3"]
        weight, bias = (
            x.reshape(*x.shape[:-1], model.LINES, -1)[..., order, :].reshape(x.shape)
            for x in (weight, bias)
        )
        parameters["encoder_3"] = weight, bias
        posterior, kl = model.encode(parameters, one, images[:, order])
        logits = model.decode(parameters, "line", posterior.mean())
        return kl, logits[:, np.argsort(order)]

    real = np.arange(model.LINES)
    kl, logits = kl_and_decoded("diag/normal", real)
    shuffled_kl, shuffled_logits = kl_and_decoded("diag/normal", order)
    np.testing.assert_allclose(kl, shuffled_kl, rtol=1e-4)
    np.testing.assert_allclose(logits, shuffled_logits, atol=1e-5)
    assert np.all(kl_and_decoded("diag/ar1", real)[0] != kl_and_decoded("diag/ar1", order)[0])


def test_importance_weights():
    """Of a decoder that does not look at the latents the NLL is known, whatever the posterior."""
    one = made("line", "ante1/ar1")
    parameters = model.initial(one, 0).parameters
    parameters["encoder_3"] = jax.tree.map(lambda x: 0.3 * x, parameters["encoder_3"])
    parameters["decoder_1"] = jax.tree.map(jnp.zeros_like, parameters["decoder_1"])
    images = jax.random.bernoulli(jax.random.key(0), 0.2, (200, model.LINES, model.LINES))
    key, exact = jax.random.key(1), model.LINES**2 * np.log(2)
    measures = model.evaluate(parameters, images, key, one)
    np.testing.assert_allclose(measures["neg_elbo"], exact + measures["kl"], rtol=1e-6)
    nll = model.importance_weighted_nll(parameters, images, key, one)
    assert abs(nll - exact) < 0.2 * measures["kl"]
    assert measures["kl"] > 0.5

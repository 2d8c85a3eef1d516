"""The networks of GP-VAE for Healing MNIST, their loss, training and evaluation, on JAX.

Sizes as published for `hmnist` in the repository of arXiv:1907.04155: a convolution of 3 × 3 to 256
channels and one back, over each frame; the encoder, a convolution of width 3 over time to 256 (or a
dense layer over each frame alone), a dense layer of 256, and one to the parameters of 256 latents;
the decoder, three dense layers of 256 over each frame. Batches of 64, Adam at 0.001, gradients
clipped at a norm of 10,000, the KL divergence times 0.8, 20 epochs.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tensorflow_probability.substrates.jax as tfp
from tensorflow_probability.substrates.jax import tf2jax

import tfp_ar1_jax
from experiments.healing.data import FRAMES, HIDDEN, PIXELS, SIDE, WHITE
from experiments.healing.latents import (
    LATENTS,
    LENGTH_SCALE,
    POSTERIORS,
    Library,
    Method,
    posterior_and_kl,
)
from experiments.seeds_at_once import Parameters, State, dense, epoch, weights

LIBRARY = Library(tf2jax, tfp.distributions, tfp_ar1_jax)
UNITS, BATCH = 256, 64
# Draws of a path over which predictions of pixels are averaged.
DRAWS = 20
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1e4), optax.adam(1e-3))


def initial(method: Method, seed: Any) -> State:
    """The initial state of a method's training."""
    over_time = (3,) if method.over_time else ()
    shapes = {
        "pixels_in": (3, 3, 1, UNITS),
        "pixels_out": (3, 3, UNITS, 1),
        "encoder_1": (*over_time, PIXELS, UNITS),
        "encoder_2": (UNITS, UNITS),
        "encoder_3": (UNITS, POSTERIORS[method.posterior] * LATENTS),
        "decoder_1": (LATENTS, UNITS),
        "decoder_2": (UNITS, UNITS),
        "decoder_3": (UNITS, UNITS),
        "decoder_4": (UNITS, PIXELS),
    }
    parameters, key = weights(shapes, seed)
    if method.prior == "ar1":
        fisher_z = jnp.arctanh(jnp.exp(jnp.float32(-1 / LENGTH_SCALE)))
        parameters["prior"] = jnp.full(LATENTS, fisher_z)
    return State(parameters, OPTIMIZER.init(parameters), key)


def preprocess(parameters: Parameters, white: jax.Array, rectified: bool = True) -> jax.Array:
    """Applies both convolutions to frames `[..., PIXELS]` of 0 and 1, each followed by a ReLU.

    The second, with a single channel, is linear unless `rectified`.

    The first layer's output at a pixel depends only on its 3 × 3 neighbourhood, and there are just
    512 of these in black and white. So both layers are computed for these and looked up, which is
    the same function as the convolutions.
    """
    (w_in, b_in), (w_out, b_out) = parameters["pixels_in"], parameters["pixels_out"]
    bits = (jnp.arange(512)[:, None] >> jnp.arange(9)) & 1
    hidden = jax.nn.relu(bits.astype(w_in.dtype) @ w_in.reshape(9, UNITS) + b_in)
    table = hidden @ w_out.reshape(9, UNITS).T  # A pixel's contributions to its neighbours.
    image = jnp.pad(white.reshape(-1, SIDE, SIDE).astype(jnp.int32), ((0, 0), (1, 1), (1, 1)))
    shifts = [(i, j) for i in range(3) for j in range(3)]
    number = sum(
        image[:, i : i + SIDE, j : j + SIDE] << place for place, (i, j) in enumerate(shifts)
    )
    # Most neighbourhoods are all black. The other rows are relative to theirs, so it needs no
    # look-up, and its gradient no scatter.
    added = (
        jnp.take(
            table[1:] - table[0],
            number - 1 + 512 * (number == 0),
            axis=0,
            mode="fill",
            fill_value=0,
        )
        + table[0]
    )
    added = jnp.pad(added, ((0, 0), (1, 1), (1, 1), (0, 0)))
    # The second layer sums the contributions of the neighbours (i, j).
    sums = sum(added[:, i : i + SIDE, j : j + SIDE, place] for place, (i, j) in enumerate(shifts))
    out = (sums + b_out).reshape(white.shape)
    return jax.nn.relu(out) if rectified else out


def encode(parameters: Parameters, method: Method, pixels: jax.Array) -> tuple[Any, jax.Array]:
    """The posterior over latent paths `[batch, LATENTS, FRAMES]`, and its KL divergence `[batch]`.

    Args:
      parameters: the weights.
      method: the method.
      pixels: `[batch, FRAMES, PIXELS]` as in `data.Sequences`; missing pixels are seen as black.
    """
    x = preprocess(parameters, pixels == WHITE, method.rectified)
    weight, bias = parameters["encoder_1"]
    if method.over_time:
        # A convolution over time as the sum of three dense layers.
        padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
        x = sum(padded[:, i : i + FRAMES] @ weight[i] for i in range(3)) + bias
    else:
        x = jax.nn.relu(x @ weight + bias)
    x = jax.nn.relu(dense(parameters["encoder_2"], x))
    x = dense(parameters["encoder_3"], x)
    with jax.default_matmul_precision("highest"):
        return posterior_and_kl(LIBRARY, method, x, parameters.get("prior"))


def decode(parameters: Parameters, paths: jax.Array) -> jax.Array:
    """The logits of pixels `[..., FRAMES, PIXELS]` for latent paths `[..., LATENTS, FRAMES]`."""
    x = jnp.swapaxes(paths, -1, -2)
    for layer in ("decoder_1", "decoder_2", "decoder_3"):
        x = jax.nn.relu(dense(parameters[layer], x))
    return dense(parameters["decoder_4"], x)


def _draw(posterior: Any, key: jax.Array, *shape: int) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return posterior.sample(shape, seed=key)


def _nll(logits: jax.Array, white: jax.Array) -> jax.Array:
    """−log p of each pixel."""
    return jax.nn.softplus(logits) - white * logits


def loss(
    parameters: Parameters, method: Method, beta: float, pixels: jax.Array, key: jax.Array
) -> jax.Array:
    """The mean of −log p + beta KL over sequences, with one draw each."""
    posterior, kl = encode(parameters, method, pixels)
    nll = _nll(decode(parameters, _draw(posterior, key)), pixels == WHITE)
    if method.masked:
        nll = jnp.where(pixels < HIDDEN, nll, 0)
    return jnp.mean(jnp.sum(nll, axis=(1, 2)) + beta * kl)


@functools.partial(jax.jit, static_argnames=("method", "beta", "steps"), donate_argnums=0)
def train(
    states: State, pixels: jax.Array, method: Method, beta: float, steps: int
) -> tuple[State, jax.Array]:
    """Trains several seeds at once for up to an epoch, each with its own data order and noise.

    Args:
      states: the states of the seeds, stacked.
      pixels: the training data, `[N, FRAMES, PIXELS]`.
      method: the method.
      beta: the weight of the KL divergence.
      steps: number of batches; at most `N // BATCH`.

    Returns:
      The new states, and the mean loss of each seed.
    """

    def of_batch(parameters: Parameters, batch: jax.Array, key: jax.Array) -> jax.Array:
        return loss(parameters, method, beta, batch, key)

    return epoch(states, pixels, steps, BATCH, of_batch, OPTIMIZER)


@functools.partial(jax.jit, static_argnames=("method",))
def evaluate(
    parameters: Parameters, pixels: jax.Array, key: jax.Array, method: Method
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Measures of one seed, and its test images with the missing pixels imputed.

    Args:
      parameters: the weights.
      pixels: the test data, `[N, FRAMES, PIXELS]`.
      key: the key for draws.
      method: the method.

    Returns:
      For each batch, sums over missing pixels (`nll`, `nll_mixed`, `mse`) or over sequences
      (`neg_elbo`, `kl`), and means (`posterior_correlation`, `posterior_scale`; `seen`, the share
      of pixels whose value makes a difference to what the encoder sees); and the images as packed
      bits `[N, FRAMES * PIXELS / 8]`.
    """

    def of_batch(batch: Any) -> Any:
        pixels, key = batch
        white, hidden = (pixels & WHITE).astype(jnp.float32), pixels >= HIDDEN
        posterior, kl = encode(parameters, method, pixels)
        draws = _draw(posterior, key, DRAWS)
        logits = jax.lax.map(functools.partial(decode, parameters), draws)
        each = _nll(logits, white)
        nll, mixed = each[0], jnp.log(DRAWS) - jax.nn.logsumexp(-each, axis=0)
        best = decode(parameters, posterior.mean()) > 0
        seen = preprocess(parameters, pixels == WHITE, method.rectified)
        covariance = posterior.covariance()
        variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
        neighbours = jnp.diagonal(covariance, offset=1, axis1=-2, axis2=-1)
        correlation = neighbours / jnp.sqrt(variance[..., 1:] * variance[..., :-1])
        measures = {
            "nll": jnp.sum(jnp.where(hidden, nll, 0)),
            "nll_mixed": jnp.sum(jnp.where(hidden, mixed, 0)),
            "mse": jnp.sum(hidden & (best != (white > 0))),
            "neg_elbo": jnp.sum(jnp.where(hidden, 0, nll)) + jnp.sum(kl),
            "kl": jnp.sum(kl),
            "posterior_correlation": jnp.mean(correlation),
            "posterior_scale": jnp.mean(jnp.sqrt(variance)),
            "seen": jnp.mean(jnp.ptp(seen, axis=0) > 0),
        }
        imputed = jnp.where(hidden, best, white > 0)
        return measures, jnp.packbits(imputed.reshape(len(pixels), -1), axis=-1)

    batch = next(size for size in (100, 50, 10, 1) if len(pixels) % size == 0)
    batches = pixels.reshape(-1, batch, FRAMES, PIXELS)
    measures, imputed = jax.lax.map(of_batch, (batches, jax.random.split(key, len(batches))))
    return measures, imputed.reshape(len(pixels), -1)

"""A VAE with latent paths along the lines of an image; its training and evaluation, on JAX.

The encoder is a dense network on all pixels that outputs parameters for each line. The decoder
sees either the latents of one line at a time (`line`) or, by a convolution, also those of three
lines on either side (`window`). Posteriors, priors, draws and KL divergences are this library's.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.healing.latents import POSTERIORS, Method, posterior_and_kl, prior_of
from experiments.healing.model import LIBRARY
from experiments.scan_lines.results import DECODERS
from experiments.seeds_at_once import Parameters, State, dense, epoch, weights

LINES = 28
CHANNELS, BATCH = 4, 64
ENCODER_UNITS, DECODER_UNITS = 128, 64
DRAWS = 50  # for the importance-weighted NLL
LEARNING_RATE = 2e-3  # initially; decays to 0 along half a cosine


class Model(NamedTuple):
    """A decoder, a posterior and a prior, and the number of training steps."""

    decoder: str
    method: Method
    steps: int

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam with cosine decay."""
        return optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, self.steps))


def initial(model: Model, seed: Any) -> State:
    """The initial state of training; a learned prior starts as N(0, I)."""
    seen = 2 * DECODERS[model.decoder] + 1
    shapes = {
        "encoder_1": (LINES * LINES, ENCODER_UNITS),
        "encoder_2": (ENCODER_UNITS, ENCODER_UNITS),
        "encoder_3": (ENCODER_UNITS, LINES * POSTERIORS[model.method.posterior] * CHANNELS),
        "decoder_1": (seen * CHANNELS, DECODER_UNITS),
        "decoder_2": (DECODER_UNITS, LINES),
    }
    parameters, key = weights(shapes, seed)
    if model.method.prior == "ar1":
        parameters["prior"] = jnp.zeros(CHANNELS, jnp.float32)
    return State(parameters, model.optimizer.init(parameters), key)


def encode(parameters: Parameters, model: Model, images: jax.Array) -> tuple[Any, jax.Array]:
    """The posterior over latent paths `[batch, CHANNELS, LINES]`, and its KL `[batch]`."""
    x = images.reshape(len(images), -1).astype(jnp.float32)
    x = jax.nn.relu(dense(parameters["encoder_1"], x))
    x = jax.nn.relu(dense(parameters["encoder_2"], x))
    x = dense(parameters["encoder_3"], x).reshape(len(images), LINES, -1)
    return posterior_and_kl(LIBRARY, model.method, x, parameters.get("prior"))


def decode(parameters: Parameters, decoder: str, paths: jax.Array) -> jax.Array:
    """The logits of pixels `[..., LINES, LINES]` for latent paths `[..., CHANNELS, LINES]`."""
    x, reach = jnp.swapaxes(paths, -1, -2), DECODERS[decoder]
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(reach, reach), (0, 0)])
    # A convolution along the lines, as a dense layer.
    x = jnp.concatenate([padded[..., i : i + LINES, :] for i in range(2 * reach + 1)], axis=-1)
    return dense(parameters["decoder_2"], jax.nn.relu(dense(parameters["decoder_1"], x)))


def _nll(logits: jax.Array, white: jax.Array) -> jax.Array:
    """−log p of each image."""
    return jnp.sum(jax.nn.softplus(logits) - white * logits, axis=(-1, -2))


def loss(parameters: Parameters, model: Model, images: jax.Array, key: jax.Array) -> jax.Array:
    """The mean of −ELBO over images, with one draw each."""
    posterior, kl = encode(parameters, model, images)
    logits = decode(parameters, model.decoder, posterior.sample(seed=key))
    return jnp.mean(_nll(logits, images) + kl)


@functools.partial(jax.jit, static_argnames=("model",), donate_argnums=0)
def train(states: State, images: jax.Array, model: Model) -> tuple[State, jax.Array]:
    """Trains several seeds at once for an epoch, each with its own data order and noise.

    Args:
      states: the states of the seeds, stacked.
      images: the training data, bool `[N, LINES, LINES]`.
      model: the model.

    Returns:
      The new states, and the mean loss of each seed.
    """

    def of_batch(parameters: Parameters, batch: jax.Array, key: jax.Array) -> jax.Array:
        return loss(parameters, model, batch, key)

    return epoch(states, images, len(images) // BATCH, BATCH, of_batch, model.optimizer)


@functools.partial(jax.jit, static_argnames=("model",))
def evaluate(
    parameters: Parameters, images: jax.Array, key: jax.Array, model: Model
) -> dict[str, jax.Array]:
    """Means over images of −ELBO, KL divergence and the posterior's correlation, for one seed."""

    def of_batch(batch: Any) -> Any:
        posterior, kl = encode(parameters, model, batch[0])
        logits = decode(parameters, model.decoder, posterior.sample(seed=batch[1]))
        correlation = 0.0
        if model.method.posterior != "diag":
            correlation = jnp.mean(posterior.correlation_parameter())
        nll = _nll(logits, batch[0])
        return {
            "neg_elbo": jnp.mean(nll + kl),
            "kl": jnp.mean(kl),
            "posterior_correlation": correlation,
        }

    return jax.tree.map(jnp.mean, jax.lax.map(of_batch, _batches(images, key)))


@functools.partial(jax.jit, static_argnames=("model",))
def importance_weighted_nll(
    parameters: Parameters, images: jax.Array, key: jax.Array, model: Model
) -> jax.Array:
    """−log p by importance weighting of `DRAWS` draws, averaged over images."""

    def of_batch(batch: Any) -> Any:
        posterior, _ = encode(parameters, model, batch[0])
        prior = prior_of(LIBRARY, model.method, LINES, jnp.float32, parameters.get("prior"))
        paths = posterior.sample(DRAWS, seed=batch[1])
        log_weights = jnp.sum(prior.log_prob(paths) - posterior.log_prob(paths), axis=-1)
        log_weights -= _nll(decode(parameters, model.decoder, paths), batch[0])
        return jnp.mean(jnp.log(DRAWS) - jax.nn.logsumexp(log_weights, axis=0))

    return jnp.mean(jax.lax.map(of_batch, _batches(images, key)))


def _batches(images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    batch = min(100, len(images))
    batches = images.reshape(-1, batch, LINES, LINES)
    return batches, jax.random.split(key, len(batches))

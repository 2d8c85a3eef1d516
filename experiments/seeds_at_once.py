"""Training networks of several seeds at once on JAX, shared by experiments."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Parameters = dict[str, Any]


class State(NamedTuple):
    """The state of training."""

    parameters: Parameters
    optimizer: Any
    key: jax.Array


def weights(shapes: Mapping[str, tuple[int, ...]], seed: Any) -> tuple[Parameters, jax.Array]:
    """Initial weights as in Keras (Glorot uniform, zero biases), and a key.

    The weights are float32 even if JAX's default is float64.
    """
    key, *keys = jax.random.split(jax.random.key(seed), len(shapes) + 1)
    glorot = jax.nn.initializers.glorot_uniform()
    parameters: Parameters = {
        name: (glorot(key, shape, jnp.float32), jnp.zeros(shape[-1], jnp.float32))
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    return parameters, key


def dense(layer: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
    """A dense layer without an activation."""
    return x @ layer[0] + layer[1]


def epoch(
    states: State,
    data: jax.Array,
    steps: int,
    batch: int,
    loss: Callable[[Parameters, jax.Array, jax.Array], jax.Array],
    optimizer: optax.GradientTransformation,
) -> tuple[State, jax.Array]:
    """Trains several seeds at once for up to an epoch, each with its own data order and noise.

    Args:
      states: the states of the seeds, stacked.
      data: the examples, `[N, ...]`.
      steps: number of batches; at most `N // batch`.
      batch: examples in a batch.
      loss: a function of parameters, a batch and a key.
      optimizer: the optimizer.

    Returns:
      The new states, and the mean loss of each seed.
    """

    def of_seed(state: State) -> tuple[State, jax.Array]:
        key, order, noise = jax.random.split(state.key, 3)
        rows = jax.random.permutation(order, len(data))[: steps * batch].reshape(steps, batch)

        def step(carry: Any, rows_and_key: Any) -> Any:
            parameters, memory = carry
            rows, key = rows_and_key
            value, gradient = jax.value_and_grad(loss)(parameters, data[rows], key)
            updates, memory = optimizer.update(gradient, memory, parameters)
            return (optax.apply_updates(parameters, updates), memory), value

        keys = jax.random.split(noise, steps)
        carry, losses = jax.lax.scan(step, (state.parameters, state.optimizer), (rows, keys))
        return State(*carry, key), jnp.mean(losses)

    return jax.vmap(of_seed)(states)

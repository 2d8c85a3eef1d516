"""Networks of several seeds that are trained at once, on JAX; what experiments share."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Parameters = dict[str, Any]


class State(NamedTuple):
    """What training changes."""

    parameters: Parameters
    optimizer: Any
    key: jax.Array


def weights(shapes: Mapping[str, tuple[int, ...]], seed: Any) -> tuple[Parameters, jax.Array]:
    """Weights as Keras makes them, and a key: Glorot's uniform distribution, and biases of 0.

    They are float32, also where JAX's default is float64.
    """
    key, *keys = jax.random.split(jax.random.key(seed), len(shapes) + 1)
    glorot = jax.nn.initializers.glorot_uniform()
    parameters: Parameters = {
        name: (glorot(key, shape, jnp.float32), jnp.zeros(shape[-1], jnp.float32))
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    return parameters, key


def dense(layer: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
    """A layer without an activation."""
    return x @ layer[0] + layer[1]


def epoch(
    states: State,
    data: jax.Array,
    steps: int,
    batch: int,
    loss: Callable[[Parameters, jax.Array, jax.Array], jax.Array],
    optimizer: optax.GradientTransformation,
) -> tuple[State, jax.Array]:
    """Some steps of an epoch of several seeds at once, each with an order and noise of its own.

    Args:
      states: those of the seeds, stacked.
      data: the examples, `[N, ...]`.
      steps: how many batches; at most `N // batch`.
      batch: examples in a batch.
      loss: of parameters, a batch and a key.
      optimizer: what makes updates of gradients.

    Returns:
      The states, and the mean loss of each seed.
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

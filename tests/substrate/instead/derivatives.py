"""Derivatives on JAX; `tests/derivatives.py` has the same names for TensorFlow.

Compiled as a whole: operation by operation, which are compiled one by one, they take three times as
long.
"""

import jax
import jax.numpy as jnp


def values_and_gradients(function, arguments):
    """What a function of a list returns, `{name: array}`, and the gradients of each one's sum."""

    @jax.jit
    def compiled(*arguments):
        results, pull = jax.vjp(function, *arguments)
        zero = jax.tree_util.tree_map(jnp.zeros_like, results)
        return results, {key: [*pull(zero | {key: jnp.ones_like(zero[key])})] for key in results}

    return compiled(*arguments)


def gradients(function, arguments):
    """Of the sum of what a function of a list returns."""
    positions = tuple(range(len(arguments)))
    return [*jax.jit(jax.grad(lambda *a: jnp.sum(function(*a)), positions))(*arguments)]


def forward_over_reverse(function, t):
    """The first and the second derivative of a function of one number."""
    return jax.jit(lambda t: jax.jvp(jax.grad(function), (t,), (jnp.ones_like(t),)))(t)

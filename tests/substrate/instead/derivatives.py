"""Derivatives on JAX; `tests/derivatives.py` has the same names for TensorFlow.

Each is compiled as a whole: operation by operation they take three times as long. But not inside
another: up to version 0.6, JAX cannot transpose a `custom_linear_solve` whose result the compiled
function around it does not use, as in the gradient by x of what is linear in x.
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
    gradient = jax.grad(lambda *a: jnp.sum(function(*a)), positions)
    is_inside = any(isinstance(x, jax.core.Tracer) for x in arguments)
    return [*(gradient if is_inside else jax.jit(gradient))(*arguments)]


def forward_over_reverse(function, t):
    """The first and the second derivative of a function of one number."""
    return jax.jit(lambda t: jax.jvp(jax.grad(function), (t,), (jnp.ones_like(t),)))(t)

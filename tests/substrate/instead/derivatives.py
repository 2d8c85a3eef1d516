"""Derivatives on JAX; `tests/derivatives.py` has the TensorFlow versions.

Each is compiled as a whole, as it takes three times as long operation by operation. Nested ones are
not compiled: up to version 0.6, JAX cannot transpose a `custom_linear_solve` whose result the
surrounding compiled function does not use, as in the gradient by x of a function linear in x.
"""

import jax
import jax.numpy as jnp


def values_and_gradients(function, arguments):
    """The results `{name: array}` of a function, and the gradients of the sum of each."""

    @jax.jit
    def compiled(*arguments):
        results, pull = jax.vjp(function, *arguments)
        zero = jax.tree_util.tree_map(jnp.zeros_like, results)
        return results, {key: [*pull(zero | {key: jnp.ones_like(zero[key])})] for key in results}

    return compiled(*arguments)


def gradients(function, arguments):
    """The gradients of the sum of a function's result by its arguments."""
    positions = tuple(range(len(arguments)))
    gradient = jax.grad(lambda *a: jnp.sum(function(*a)), positions)
    is_inside = any(isinstance(x, jax.core.Tracer) for x in arguments)
    return [*(gradient if is_inside else jax.jit(gradient))(*arguments)]


def forward_over_reverse(function, t):
    """The first and second derivative of a function of one number."""
    return jax.jit(lambda t: jax.jvp(jax.grad(function), (t,), (jnp.ones_like(t),)))(t)

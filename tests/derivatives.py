"""Derivatives on TensorFlow; `tests/substrate/instead/derivatives.py` has the JAX versions."""

import tensorflow as tf


def values_and_gradients(function, arguments):
    """The results `{name: tensor}` of `function(*arguments)`, and the gradients of their sums."""
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(arguments)
        results = function(*arguments)
    zero = {"unconnected_gradients": "zero"}
    return results, {key: tape.gradient(y, arguments, **zero) for key, y in results.items()}


def gradients(function, arguments):
    """The gradients of the sum of `function(*arguments)`."""
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        result = function(*arguments)
    return tape.gradient(result, arguments, unconnected_gradients="zero")


def forward_over_reverse(function, t):
    """The first and second derivative of a function of one number."""
    with tf.autodiff.ForwardAccumulator(t, tf.ones_like(t)) as accumulator:
        with tf.GradientTape() as tape:
            tape.watch(t)
            y = function(t)
        first = tape.gradient(y, t)
    return accumulator.jvp(y), accumulator.jvp(first)

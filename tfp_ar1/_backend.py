"""Backend-specific code for TensorFlow; `tfp_ar1_jax/_backend.py` is its counterpart."""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import type_spec_registry
from tensorflow.python.ops.linalg import linear_operator_util
from tensorflow.python.ops.linalg.linear_operator import (
    _LinearOperatorSpec,
    make_composite_tensor,
)

# For gradients that are more accurate than those of the operations.
custom_gradient = tf.custom_gradient
# The same, for elementwise functions of arguments that share one shape.
elementwise_gradient = tf.custom_gradient
# For gradients that are only cheaper than those of the operations: fewer passes over memory.
cheaper_gradient = tf.custom_gradient
do_not_convert = tf.autograph.experimental.do_not_convert
while_loop = tf.while_loop
expm1 = tf.math.expm1
LinearOperatorTridiag = tf.linalg.LinearOperatorTridiag
convert_variables_to_tensors = tf.linalg.LinearOperator._convert_variables_to_tensors
is_adjoint_pair = linear_operator_util.is_adjoint_pair


def matmul(a: tf.Tensor, b: tf.Tensor, **transposed: bool) -> tf.Tensor:
    """`tf.linalg.matmul` as accurate as the rest of the package, on GPUs too.

    On GPUs TensorFlow rounds the factors of float32 products to TensorFloat-32, which has 10 bits,
    unless the user has switched that off. Single operations cannot be exempted, so such products
    are computed in float64; they are small here. This is decided at trace time: a graph traced
    without a GPU does round if it runs on one.
    """
    rounds = tf.config.experimental.tensor_float_32_execution_enabled()
    if a.dtype == tf.float32 and rounds and tf.config.list_physical_devices("GPU"):
        a, b = (tf.cast(x, tf.float64) for x in (a, b))
        return tf.cast(tf.linalg.matmul(a, b, **transposed), tf.float32)
    return tf.linalg.matmul(a, b, **transposed)


def gradients_of_first(function: Any, *args: tf.Tensor) -> tuple[tuple[Any, ...], Any]:
    """Returns a function's outputs, a tuple, and the gradients of the sum of the first one."""
    with tf.GradientTape() as tape:
        tape.watch(args)
        results = function(*args)
    return results, tape.gradient(results[0], args, unconnected_gradients="zero")


def composite_tensor(cls: Any) -> Any:
    """Class decorator: makes operators `CompositeTensor`s whose types are named in saved files."""
    return make_composite_tensor(cls, module_name="tfp_ar1")


def register_earlier_name(name: str, cls: Any, **arguments: Any) -> None:
    """Registers the name that an operator had in earlier versions, for files saved by them.

    Reading makes `cls(..., **arguments)`.
    """
    value_type = functools.partial(cls, **arguments)
    spec = type(f"{name}Spec", (_LinearOperatorSpec,), {"value_type": value_type})
    type_spec_registry.register(f"tfp_ar1.{name}Spec")(spec)

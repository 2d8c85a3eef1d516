"""What differs between backends, for JAX; `tfp_ar1/_backend.py` is its counterpart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from tensorflow_probability.python.internal.backend.jax.gen import (
    linear_operator,
    linear_operator_util,
)

is_adjoint_pair = linear_operator_util.is_adjoint_pair


class LinearOperatorTridiag(linear_operator.LinearOperator):
    """What this package needs of `tf.linalg.LinearOperatorTridiag`, which TFP's substrate lacks."""

    def __init__(self, diagonals: jax.Array, diagonals_format: str, name: str, **hints: Any):
        assert diagonals_format == "compact"
        self._diagonals = diagonals
        super().__init__(dtype=diagonals.dtype, parameters={}, name=name, **hints)

    @property
    def diagonals(self) -> jax.Array:
        """Superdiagonal, diagonal and subdiagonal, `[..., 3, d]`."""
        return self._diagonals

    def _diag_part(self) -> jax.Array:
        return self._diagonals[..., 1, :]

    def _to_dense(self) -> jax.Array:
        above, diagonal, below = jnp.moveaxis(self._diagonals, -2, 0)
        size = diagonal.shape[-1]
        return (
            diagonal[..., None] * jnp.eye(size, dtype=self.dtype)
            + above[..., None] * jnp.eye(size, k=1, dtype=self.dtype)
            + below[..., None] * jnp.eye(size, k=-1, dtype=self.dtype)
        )


def convert_variables_to_tensors(operator: linear_operator.LinearOperator) -> Any:
    """The operator: on JAX there are no variables inside."""
    return operator


def elementwise_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `tf.custom_gradient`, for functions that work element by element.

    The factor of a gradient is then that of a tangent, which serves both modes, to any order.
    """

    @jax.custom_jvp
    def value(*args: Any) -> Any:
        return function(*args)[0]

    @value.defjvp
    def _(primals: Any, tangents: Any) -> tuple[Any, Any]:
        y = value(*primals)
        slopes = function(*primals)[1](jnp.ones_like(y))
        slopes = slopes if isinstance(slopes, tuple) else (slopes,)
        return y, sum(slope * dx for slope, dx in zip(slopes, tangents, strict=True))

    return value


def cheaper_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """The value alone: XLA fuses the passes that other gradients would save."""
    return lambda *args: function(*args)[0]


def gradients_of_first(function: Callable[..., Any], *args: jax.Array) -> tuple[Any, Any]:
    """What a function returns, a tuple, and the derivatives of the sum of its first entry."""

    def first_and_rest(*args: jax.Array) -> tuple[Any, Any]:
        first, *rest = function(*args)
        return first, rest

    first, gradients, rest = jax.vjp(first_and_rest, *args, has_aux=True)
    return (first, *rest), gradients(jnp.ones_like(first))


def composite_tensor(cls: Any) -> Any:
    """Class decorator: operators as pytrees, whose children are their tensors."""

    def flatten(operator: Any) -> tuple[Any, Any]:
        names = tuple(operator._composite_tensor_fields)
        values = {name: operator.parameters[name] for name in names}
        tensors = {k: v for k, v in values.items() if isinstance(v, jax.Array)}
        rest = {k: v for k, v in operator.parameters.items() if k not in tensors}
        return tuple(tensors.values()), (tuple(tensors), tuple(rest.items()))

    def unflatten(static: Any, children: Any) -> Any:
        names, rest = static
        return cls(**dict(zip(names, children, strict=True)), **dict(rest))

    jax.tree_util.register_pytree_node(cls, flatten, unflatten)
    return cls


def register_earlier_name(name: str, cls: Any, **arguments: Any) -> None:
    """Files that name types are TensorFlow's."""

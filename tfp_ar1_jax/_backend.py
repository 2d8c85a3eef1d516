"""Backend-specific code for JAX; `tfp_ar1/_backend.py` is its counterpart."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tensorflow_probability.python.internal.backend.jax.gen import (
    linear_operator,
    linear_operator_util,
)
from tensorflow_probability.substrates.jax import distributions as tfd

is_adjoint_pair = linear_operator_util.is_adjoint_pair


class LinearOperatorTridiag(linear_operator.LinearOperator):
    """The parts of `tf.linalg.LinearOperatorTridiag` needed here; TFP's substrate lacks it."""

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
    """Returns the operator: on JAX it holds no variables."""
    return operator


def elementwise_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """Like `tf.custom_gradient`, for elementwise functions.

    The factors of gradients are also those of tangents, so both modes work, to any order.
    """

    @jax.custom_jvp
    def value(*args: Any) -> Any:
        return function(*map(jnp.asarray, args))[0]

    @value.defjvp
    def _(primals: Any, tangents: Any) -> tuple[Any, Any]:
        primals = tuple(map(jnp.asarray, primals))  # Python numbers, as in `jax.grad(f)(1.5)`.
        y = value(*primals)
        slopes = function(*primals)[1](jnp.ones_like(y))
        slopes = slopes if isinstance(slopes, tuple) else (slopes,)
        return y, sum(slope * dx for slope, dx in zip(slopes, tangents, strict=True))

    return value


@elementwise_gradient
def expm1(x: jax.Array) -> tuple[jax.Array, Callable[..., Any]]:
    """`exp(x) - 1`; JAX's own derivative adds the 1 back, so it rounds to 0 far below 0."""
    return jnp.expm1(x), lambda dy: dy * jnp.exp(x)


def custom_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """Like `tf.custom_gradient`, in both modes, to any order.

    Tangents come from the transpose of the gradient function, which is linear. As on TensorFlow,
    values that the function closes over have no derivative.
    """

    def with_gradient(*args: jax.Array) -> jax.Array:
        result = jax.eval_shape(lambda: function(*args)[0])
        zero = jnp.zeros(result.shape, result.dtype)
        gradients = jax.eval_shape(lambda: function(*args)[1](zero))
        used = [i for i, x in enumerate(gradients) if x is not None]

        def pull(dy: jax.Array, *args: jax.Array) -> list[jax.Array]:
            gradients = function(*args)[1](dy)
            return [gradients[i] for i in used]

        # JAX needs differentiable values as arguments, not closed over.
        value, of_value = jax.closure_convert(lambda *args: function(*args)[0], *args)
        pull, of_pull = jax.closure_convert(pull, zero, *args)

        @jax.custom_jvp
        def call(args: Any, of_value: Any, of_pull: Any) -> jax.Array:
            return value(*args, *of_value)

        @call.defjvp
        def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
            args, _, of_pull = primals
            push = jax.linear_transpose(lambda dy: pull(dy, *args, *of_pull), zero)
            return call(*primals), *push([tangents[0][i] for i in used])

        return call(args, tuple(of_value), tuple(of_pull))

    return with_gradient


def cheaper_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """Drops the custom gradient: XLA fuses the passes that it would save."""
    return lambda *args: function(*args)[0]


def matmul(
    a: jax.Array, b: jax.Array, transpose_a: bool = False, transpose_b: bool = False
) -> jax.Array:
    """Matrix product, as accurate as the rest of the package, on GPUs and TPUs too."""
    a, b = (x.mT if transposed else x for x, transposed in ((a, transpose_a), (b, transpose_b)))
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def do_not_convert(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function: JAX has no autograph."""
    return function


def while_loop(
    condition: Callable[..., Any], body: Callable[..., Any], state: Any, maximum_iterations: int
) -> Any:
    """Like `tf.while_loop`; the substrate's would run to the limit under `jax.vmap`.

    Has no reverse-mode derivatives; the states of loops here need none.
    """

    def goes_on(counted: Any) -> Any:
        count, state = counted
        return jnp.logical_and(count < maximum_iterations, condition(*state))

    return jax.lax.while_loop(goes_on, lambda c: (c[0] + 1, tuple(body(*c[1]))), (0, state))[1]


def gradients_of_first(function: Callable[..., Any], *args: jax.Array) -> tuple[Any, Any]:
    """Returns a function's outputs, a tuple, and the gradients of the sum of the first one."""

    def first_and_rest(*args: jax.Array) -> tuple[Any, Any]:
        first, *rest = function(*args)
        return first, rest

    first, gradients, rest = jax.vjp(first_and_rest, *args, has_aux=True)
    return (first, *rest), gradients(jnp.ones_like(first))


# Pytrees. JAX fills trees with leaves of any kind: axes, shapes, gradients, placeholders. If the
# leaves do not make a valid operator or distribution, the object only carries them.


def composite_tensor(cls: Any) -> Any:
    """Class decorator: makes operators pytrees whose children are their tensors."""

    def parts(operator: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        fields = {name: getattr(operator, f"_{name}") for name in operator._composite_tensor_fields}
        children = {name: x for name, x in fields.items() if not isinstance(x, int | None)}
        rest = {name: x for name, x in operator.parameters.items() if name not in children}
        return children, rest

    _register(cls, parts)
    return cls


def register_pytree(cls: Any, *names: str) -> None:
    """Registers a class whose arguments are tensors or distributions, kept as `_name`."""
    _register(cls, lambda x: ({name: getattr(x, f"_{name}") for name in names}, {}))


def _register(cls: Any, parts: Callable[[Any], tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Registers a pytree; `parts` returns the children and the other arguments, by name."""

    def flatten(x: Any) -> tuple[Any, Any]:
        children, rest = vars(x).get("_carried") or parts(x)
        return tuple(children.values()), (tuple(children), tuple(rest.items()))

    def unflatten(static: Any, children: Any) -> Any:
        names, rest = static
        x = object.__new__(cls)
        _fill(x, cls.__init__, dict(zip(names, children, strict=True)), dict(rest))
        return x

    jax.tree_util.register_pytree_node(cls, flatten, unflatten)
    cls.__getattr__ = _refuse


def _fill(x: Any, make: Any, children: dict[str, Any], rest: dict[str, Any]) -> None:
    """Calls the constructor, or lets the object carry leaves that the constructor rejects."""
    try:
        if wrong := [name for name, child in children.items() if not _is_known(child)]:
            raise TypeError(f"no tensors as {wrong}")
        make(x, **children, **rest)
    except Exception as error:
        vars(x).clear()
        vars(x).update(_carried=(children, rest), _error=error)


def _is_known(x: Any) -> bool:
    if isinstance(x, linear_operator.LinearOperator | tfd.Distribution):
        return "_carried" not in vars(x)
    return isinstance(x, np.ndarray | jax.Array)


def _refuse(x: Any, name: str) -> Any:
    """Raises `AttributeError`, for an object that only carries the leaves of a tree."""
    error = vars(x).get("_error")
    reason = f", because it was made from a tree with other leaves: {error!r}" if error else ""
    raise AttributeError(f"{type(x).__name__!r} object has no attribute {name!r}{reason}")


def register_distribution(cls: Any) -> None:
    """Lets a distribution, which TFP registers as a pytree, carry arbitrary leaves."""
    make, type_spec = cls.__init__, cls._type_spec.fget

    @functools.wraps(make)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if names := kwargs.pop("_children", None):
            lost_prior = kwargs.pop("_lost_prior").value
            children = {name: kwargs.pop(name) for name in names}
            _fill(self, make, children, kwargs)
            if lost_prior and "_carried" not in vars(self):
                self._kl_terms_to = _warn_of_lost_prior
        else:
            make(self, *args, **kwargs)

    cls.__init__ = __init__
    cls._type_spec = property(lambda self: _Parts(self, type_spec))
    cls.__getattr__ = _refuse


class _Mark:
    """A value in the static structure of a tree that does not affect comparisons."""

    def __init__(self, value: bool):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Mark)

    def __hash__(self) -> int:
        return 0


def _warn_of_lost_prior(other: Any) -> None:
    """Replaces `_kl_terms_to` of a posterior that lost its prior; warns about it."""
    warnings.warn(
        "This posterior went through a transformation of JAX, where it lost the prior that it was "
        "made from. Its KL divergence is computed from its rounded parameters, which may be wrong "
        "in float32 beyond |fisher_z| of about 12. Compute it where the posterior is made.",
        stacklevel=2,
    )


class _Parts:
    """The parts of a distribution's type spec that TFP's flattening uses.

    TFP recreates the distribution by calling the class with them; `_children` marks such a call.
    """

    def __init__(self, distribution: Any, type_spec: Any):
        if "_carried" in vars(distribution):
            self._children, rest = distribution._carried
        else:
            spec = type_spec(distribution)
            self._children, rest = spec._to_components(distribution), spec._non_tensor_params
        # A posterior knows its prior by identity, which transformations do not preserve.
        lost_prior = _Mark("_kl_terms_to" in vars(distribution))
        self._non_tensor_params = {
            **rest,
            "_children": tuple(self._children),
            "_lost_prior": lost_prior,
        }
        self._callable_params: dict[str, Any] = {}

    def _to_components(self, distribution: Any) -> dict[str, Any]:
        return self._children


def register_earlier_name(name: str, cls: Any, **arguments: Any) -> None:
    """Does nothing: only TensorFlow's files name types."""

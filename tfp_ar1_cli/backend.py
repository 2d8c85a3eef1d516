"""The Keras backend of this process, TensorFlow or JAX: KERAS_BACKEND says which.

Both are imported only when they are needed.
"""

import contextlib
import importlib
import importlib.util
import os
from typing import Any

from tfp_ar1_cli.errors import UserError

_LIBRARIES = {"tensorflow": "tfp_ar1", "jax": "tfp_ar1_jax"}


def name() -> str:
    """Returns the name of the backend, such as `"tensorflow"` or `"jax"`."""
    return os.environ.get("KERAS_BACKEND", "tensorflow")


def check() -> None:
    """Raises a `UserError` if the user has chosen a backend that the models cannot use."""
    if name() not in _LIBRARIES:
        raise UserError(
            f"the environment variable KERAS_BACKEND is {name()!r}, but the models, which use "
            "TensorFlow Probability, need 'tensorflow' or 'jax'; set it to one of them or unset it."
        )


def check_strategy(strategy: str) -> None:
    """Raises a `UserError` if the backend lacks this strategy."""
    if strategy != "none" and name() == "jax":
        raise UserError(
            f"--strategy {strategy} needs the TensorFlow backend; leave it out, or unset "
            "KERAS_BACKEND."
        )


def library(module: str = "") -> Any:
    """Imports `tfp_ar1` for the backend, or one of its modules, such as `"vae.batching"`."""
    return importlib.import_module(".".join(filter(None, (_LIBRARIES[name()], module))))


def start() -> Any:
    """Starts the devices of this process, and returns them."""
    if name() == "jax":
        import jax

        return jax.devices()
    import tensorflow as tf

    return tf.config.list_logical_devices()


def has_tensorflow() -> bool:
    """Whether TensorFlow can be imported."""
    return importlib.util.find_spec("tensorflow") is not None


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device ran out of memory."""
    if isinstance(error, MemoryError):
        return True
    if name() == "jax":
        return "RESOURCE_EXHAUSTED" in str(error)
    from tensorflow import errors

    return isinstance(error, errors.ResourceExhaustedError)


class OneDevice:
    """Stands in for the default strategy of `tf.distribute` on JAX."""

    num_replicas_in_sync = 1
    scope = staticmethod(contextlib.nullcontext)

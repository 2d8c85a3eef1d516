"""Saves distributions as plain configurations (JSON), for models that have a prior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability import distributions as tfd
from tensorflow_probability.python.distributions.independent import _Independent
from tensorflow_probability.python.distributions.sample import _Sample
from tensorflow_probability.python.internal import dtype_util, tensorshape_util

from tfp_ar1._checks import named
from tfp_ar1.families import members

__all__ = ["check_can_be_saved", "from_config", "kl_divergence", "standard_normal", "to_config"]

_OF_TFP = (
    tfd.Independent,
    tfd.MultivariateNormalDiag,
    tfd.MultivariateNormalDiagPlusLowRank,
    tfd.MultivariateNormalFullCovariance,
    tfd.MultivariateNormalTriL,
    tfd.Normal,
    tfd.Sample,
)


def _classes() -> dict[str, type[tfd.Distribution]]:
    """Returns the classes that can be saved, by name."""
    return {c.__name__: c for c in sorted((*members(), *_OF_TFP), key=lambda c: c.__name__)}


def standard_normal(event_size: int, dtype: Any = tf.float32) -> tfd.MultivariateNormalDiag:
    """Returns N(0, I) over vectors of size `event_size`, the default prior of a VAE."""
    return tfd.MultivariateNormalDiag(loc=tf.zeros([event_size], dtype))


def kl_divergence(posterior: tfd.Distribution, prior: tfd.Distribution) -> tf.Tensor:
    """Returns the exact KL(posterior ‖ prior) in nats, for every pair of normals over vectors.

    TFP has KL divergences between multivariate normals, but none between these and an `Independent`
    or a `Sample`, both common ways to write a prior.

    Args:
      posterior: distribution of batch shape `[...]`.
      prior: distribution over the same events.

    Returns:
      Tensor `[...]`.

    Raises:
      NotImplementedError: if no KL divergence is registered for the two.
    """
    return tfd.kl_divergence(_as_multivariate_normal(posterior), _as_multivariate_normal(prior))


def _as_multivariate_normal(distribution: tfd.Distribution) -> tfd.Distribution:
    """Converts a vector of independent `tfd.Normal`s to a `MultivariateNormalDiag`."""
    independent = isinstance(distribution, _Independent | _Sample)
    vector = independent and tensorshape_util.rank(distribution.event_shape) == 1
    if vector and isinstance(distribution.distribution, tfd.Normal):
        return tfd.MultivariateNormalDiag(distribution.mean(), distribution.stddev())
    return distribution


def to_config(distribution: tfd.Distribution) -> dict[str, Any]:
    """Converts a distribution to a configuration of dictionaries, lists, numbers and strings.

    Args:
      distribution: a distribution of this package, or one of `tfd.MultivariateNormalDiag`,
        `MultivariateNormalDiagPlusLowRank`, `MultivariateNormalFullCovariance`,
        `MultivariateNormalTriL`, `Normal`, `Independent` and `Sample`, nested or not.

    Returns:
      A configuration for `from_config`. A `tf.Variable` is stored with its current value and marked
      as a variable.

    Raises:
      ValueError: as for `check_can_be_saved`.
    """
    check_can_be_saved(distribution)
    return {
        "distribution": type(distribution).__name__,
        "parameters": {k: _value_to_config(v) for k, v in distribution.parameters.items()},
    }


def check_can_be_saved(distribution: tfd.Distribution) -> None:
    """Checks, before training, that `to_config` can save a distribution; reads no parameters.

    Raises:
      ValueError: if `to_config` does not know the class of the distribution, or of one inside it,
        or a parameter is a transformed variable.
    """
    name, classes = type(distribution).__name__, _classes()
    if type(distribution) is not classes.get(name):
        raise ValueError(f"A prior of class `{name}` cannot be saved; use one of {list(classes)}.")
    for value in distribution.parameters.values():
        if isinstance(value, tfd.Distribution):
            check_can_be_saved(value)
        if isinstance(value, tfp.util.DeferredTensor):
            raise ValueError(
                f"A prior with a transformed variable cannot be saved; got {value!r}. Use a "
                f"parameter that needs no constraint, such as `fisher_z` as a `tf.Variable`."
            )


def from_config(config: Mapping[str, Any]) -> tfd.Distribution:
    """Recreates a distribution from the result of `to_config`.

    Raises:
      ValueError: if the configuration names an unknown class.
    """
    cls = named("prior", config.get("distribution"), _classes())
    return cls(**{k: _value_from_config(v) for k, v in config["parameters"].items()})


def _value_to_config(value: Any) -> Any:
    if isinstance(value, tfd.Distribution):
        return to_config(value)
    # Python numbers, also in lists, take the dtype of the other parameters. (NumPy's float64 is an
    # instance of Python's float, but its dtype must be kept.)
    if all(
        v is None or (isinstance(v, bool | int | float | str) and not isinstance(v, np.generic))
        for v in tf.nest.flatten(value)
    ):
        return value
    array = np.asarray(tf.convert_to_tensor(value))
    config = {"dtype": dtype_util.name(array.dtype), "values": array.tolist()}
    if isinstance(value, tf.Variable):
        config |= {"trainable": value.trainable, "name": value.name.split(":")[0]}
    return config


def _value_from_config(value: Any) -> Any:
    if isinstance(value, Mapping):
        if "distribution" in value:
            return from_config(value)
        array = np.asarray(value["values"], value["dtype"])
        if "trainable" in value:
            return tf.Variable(array, trainable=value["trainable"], name=value["name"])
        return tf.constant(array)
    return value

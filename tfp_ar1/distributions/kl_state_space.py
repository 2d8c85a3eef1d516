"""KL divergences between the family and TFP's sequences of scalar normals."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_ar1.distributions.gaussian_markov_chain import GaussianMarkovChain
from tfp_ar1.distributions.state_space import of_markov_chain, of_state_space_model

__all__: list[str] = []


@tfd.RegisterKL(GaussianMarkovChain, tfd.MarkovChain)
@tfd.RegisterKL(GaussianMarkovChain, tfd.LinearGaussianStateSpaceModel)
@tfd.RegisterKL(tfd.MarkovChain, GaussianMarkovChain)
@tfd.RegisterKL(tfd.LinearGaussianStateSpaceModel, GaussianMarkovChain)
def _kl_divergence(p: tfd.Distribution, q: tfd.Distribution, name: str | None = None) -> tf.Tensor:
    """Returns the KL of two chains, one a TFP class of event shape `[d]` or `[d, 1]`, in O(d).

    Raises:
      ValueError: if the TFP distribution is not a chain of scalar normals.
      NotImplementedError: if the TFP distribution has observation noise.
    """
    name = name or "kl_state_space"
    with tf.name_scope(name):
        checks: list[Any] = []
        p, q = (_as_chain(distribution, checks) for distribution in (p, q))
        with tf.control_dependencies(checks):
            return tf.identity(tfd.kl_divergence(p, q))


def _as_chain(distribution: tfd.Distribution, checks: list[Any]) -> GaussianMarkovChain:
    if isinstance(distribution, GaussianMarkovChain):
        return distribution
    if isinstance(distribution, tfd.MarkovChain):
        parameters = of_markov_chain(distribution, distribution.validate_args)
    else:
        parameters, noise = of_state_space_model(distribution)
        checks += _check_no_noise(noise)
    make: Any = GaussianMarkovChain.posterior_class
    return make(**parameters, validate_args=distribution.validate_args)


def _check_no_noise(noise: tf.Tensor) -> list[Any]:
    message = (
        "The observations of a state space model with observation noise are not a Markov chain, so "
        "there is no KL divergence. Use the path without noise, "
        "`tfp_ar1.sts.noisy_chain(model).path`, or `tfp_ar1.sts.noisy_chain(model).posterior(y)`"
    )
    static = tf.get_static_value(noise)
    if static is None:
        return [tf.debugging.assert_equal(noise, tf.zeros_like(noise), f"{message}.")]
    if np.any(static != 0):
        raise NotImplementedError(f"{message}; got noise of standard deviation {np.max(static)}.")
    return []

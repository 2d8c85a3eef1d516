"""What `RhoVAE` minimizes. A new objective is a class with `__call__` and `get_config`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import tensorflow as tf

if TYPE_CHECKING:
    from tfp_ar1.vae.model import RhoVAE

__all__ = ["ELBO", "Terms"]


class Terms(NamedTuple):
    """What an objective computes for a batch; each entry of shape `[batch]`, in nats."""

    loss: tf.Tensor
    reconstruction: tf.Tensor
    kl: tf.Tensor
    correlation: tf.Tensor


@keras.saving.register_keras_serializable(package="tfp_ar1")
class ELBO:
    """The negative evidence lower bound, `-E_q[log p(x | z)] + β KL(q(z | x) ‖ p(z))`.

    The expectation is estimated with one sample, the KL is exact. (Inequalities 1 and 2 of the
    paper are printed the wrong way round: the bound is from below.)

    Args:
      beta: factor of the KL; 1 for the VAE, other values for the β-VAE. At least 0.

    Raises:
      ValueError: if `beta` is negative.
    """

    def __init__(self, beta: float = 1.0):
        if not beta >= 0:
            raise ValueError(f"`beta` must not be negative; got {beta}.")
        self.beta = beta

    def __call__(self, model: RhoVAE, x: tf.Tensor, training: bool) -> Terms:
        """The terms for a batch of data `[batch, *data_shape]`."""
        posterior = model.encode(x, training=training)
        z = posterior.sample(seed=model.next_seed())
        outputs = model.decoder_outputs(z, training=training)
        reconstruction = -model.likelihood.log_prob(tf.cast(x, outputs.dtype), outputs)
        kl = model.kl_to_prior(posterior)
        return Terms(
            loss=reconstruction + self.beta * kl,
            reconstruction=reconstruction,
            kl=kl,
            correlation=model.posterior.correlation(posterior),
        )

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {"beta": self.beta}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ELBO:
        """Makes the objective again from `get_config`."""
        return cls(**config)

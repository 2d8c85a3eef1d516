"""Training objectives of VAEs. To add one, subclass `Objective` and define `loss`."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import keras
import tensorflow as tf
from tensorflow_probability import distributions as tfd
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1._checks import checked_count, named
from tfp_ar1.vae.mmd import maximum_mean_discrepancy, witness

__all__ = [
    "ELBO",
    "OBJECTIVES",
    "Draws",
    "ImportanceWeighted",
    "InfoVAE",
    "Model",
    "Objective",
    "Terms",
    "get",
    "maximum_mean_discrepancy",
    "witness",
]


class Terms(NamedTuple):
    """The values of an objective for a batch; each entry has shape `[batch]`, in nats."""

    loss: tf.Tensor
    reconstruction: tf.Tensor
    kl: tf.Tensor
    correlation: tf.Tensor


class Draws(NamedTuple):
    """K draws z from the posterior q(z | x) of each example of a batch; see `RhoVAE.draw`."""

    z: tf.Tensor  # [K, batch, *latent_shape]
    log_p: tf.Tensor  # log p(x | z), [K, batch]
    log_weight: tf.Tensor  # log p(x | z) p(z) / q(z | x), [K, batch]


class Model(Protocol):
    """The model interface that objectives use; `RhoVAE` and `SequenceVAE` implement it."""

    prior: Any
    next_seed: Callable[[], tf.Tensor]
    encode: Callable[..., tfd.Distribution]
    draw: Callable[..., Draws]
    kl_to_prior: Callable[..., tf.Tensor]
    posterior_correlation: Callable[..., tf.Tensor]


@dataclasses.dataclass(eq=False)
class Objective:
    """Base class: draws from the posterior and computes the terms that every objective reports.

    The reconstruction is estimated with `num_samples` draws, the KL is exact. Subclasses define
    `loss`, and `get_config` if they have arguments and are not dataclasses.
    """

    num_samples = 1

    def __call__(self, model: Model, x: Any, training: bool) -> Terms:
        """Returns the terms for a batch of data `[batch, *data_shape]`."""
        posterior = model.encode(x, training=training)
        draws = model.draw(x, posterior, self.num_samples, model.next_seed(), training=training)
        reconstruction = -tf.reduce_mean(draws.log_p, axis=0)
        kl = model.kl_to_prior(posterior, x)
        return Terms(
            loss=self.loss(model, draws, reconstruction, kl, training),
            reconstruction=reconstruction,
            kl=kl,
            correlation=model.posterior_correlation(posterior, x),
        )

    def loss(
        self, model: Model, draws: Draws, reconstruction: tf.Tensor, kl: tf.Tensor, training: bool
    ) -> tf.Tensor:
        """Returns the loss to minimize, `[batch]`.

        Args:
          model: the model.
          draws: draws from the posteriors.
          reconstruction: the mean of -log p(x | z) over the draws, `[batch]`.
          kl: KL(q ‖ prior), `[batch]`.
          training: whether the loss is for a training step.
        """
        raise NotImplementedError(f"`{type(self).__name__}` must define `loss`.")

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Objective:
        """Recreates the objective from `get_config`."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="tfp_ar1")
@dataclasses.dataclass(eq=False)
class ELBO(Objective):
    """The negative evidence lower bound, `-E_q[log p(x | z)] + β KL(q(z | x) ‖ p(z))`.

    (Inequalities 1 and 2 of the paper are reversed in print: the ELBO is a lower bound.)

    Args:
      beta: factor of the KL; 1 for the VAE, other values for the β-VAE. Finite, at least 0.
      warmup_steps: in training, the factor grows linearly to `beta` over this number of optimizer
        steps; 0 for no warm-up. In evaluation the factor is always `beta`.

    Raises:
      ValueError: if an argument is invalid.
    """

    beta: float = 1.0
    warmup_steps: int = 0

    def __post_init__(self):
        """Checks the arguments."""
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"`beta` must be finite and not negative; got {self.beta}.")
        self.warmup_steps = checked_count("warmup_steps", self.warmup_steps, at_least=0)

    def loss(
        self, model: Model, draws: Draws, reconstruction: tf.Tensor, kl: tf.Tensor, training: bool
    ) -> tf.Tensor:
        """Returns the reconstruction plus β times the KL."""
        if not (training and self.warmup_steps):
            return reconstruction + self.beta * kl
        optimizer = getattr(model, "optimizer", None)
        if optimizer is None:
            raise ValueError(
                f"`warmup_steps={self.warmup_steps}` counts the steps of the model's optimizer, "
                f"but it has none; compile the model before it is trained."
            )
        # `iterations` is a variable or, with gradient accumulation, a tensor computed from one.
        step = tf.cast(keras.ops.convert_to_tensor(optimizer.iterations), kl.dtype)
        factor = self.beta * tf.minimum((step + 1) / self.warmup_steps, 1)
        return reconstruction + factor * kl


@keras.saving.register_keras_serializable(package="tfp_ar1")
@dataclasses.dataclass(eq=False)
class InfoVAE(Objective):
    """InfoVAE with the maximum mean discrepancy (Zhao, Song and Ermon, arXiv:1706.02262).

    `-E_q[log p(x | z)] + (1 - α) KL(q(z | x) ‖ p(z)) + (α + λ - 1) MMD(q(z), p(z))`, where q(z) is
    the mean of q(z | x) over the data. The squared MMD is estimated between one draw per example of
    the batch and as many draws from the prior (see `maximum_mean_discrepancy`); its value is the
    same in the loss of every example. The defaults are those of a public implementation for MNIST.
    `alpha=1` leaves out the KL (MMD-VAE), `alpha + lambda_ = 1` the MMD (β-VAE with β = λ).

    Args:
      alpha: α, the weight on the mutual information of x and z; at most 1.
      lambda_: λ, the weight on the divergence of q(z) from the prior; at least 1 - α.

    Raises:
      ValueError: if a factor of the loss, 1 - α or α + λ - 1, is negative or not finite.
    """

    alpha: float = 0.0
    lambda_: float = 1000.0

    def __post_init__(self):
        """Checks the arguments."""
        if not -math.inf < self.alpha <= 1:
            raise ValueError(f"`alpha` must be finite and at most 1; got {self.alpha}.")
        least = 1 - self.alpha
        if not least <= self.lambda_ < math.inf:
            raise ValueError(
                f"`lambda_` must be finite and at least 1 - alpha = {least}; got {self.lambda_}."
            )

    def loss(
        self, model: Model, draws: Draws, reconstruction: tf.Tensor, kl: tf.Tensor, training: bool
    ) -> tf.Tensor:
        """Returns the weighted sum of the reconstruction, the KL and the MMD."""
        z = draws.z[0]
        from_prior = model.prior.sample(ps.shape(z)[0], seed=model.next_seed())
        mmd = maximum_mean_discrepancy(z, from_prior)
        return reconstruction + (1 - self.alpha) * kl + (self.alpha + self.lambda_ - 1) * mmd


@keras.saving.register_keras_serializable(package="tfp_ar1")
@dataclasses.dataclass(eq=False)
class ImportanceWeighted(Objective):
    """The importance-weighted bound, `-log 1/K Σ_k p(x | z_k) p(z_k) / q(z_k | x)`.

    It uses K draws from the posterior (IWAE; Burda, Grosse and Salakhutdinov, arXiv:1509.00519). On
    average it falls towards -log p(x) as K grows; for K = 1 it is the negative ELBO, with the KL
    estimated from the draw.

    Args:
      num_samples: K, an integer of at least 1. Time and memory grow with it.

    Raises:
      ValueError: if `num_samples` is invalid.
    """

    num_samples: int = 5

    def __post_init__(self):
        """Checks the arguments."""
        self.num_samples = checked_count("num_samples", self.num_samples, at_least=1)

    def loss(
        self, model: Model, draws: Draws, reconstruction: tf.Tensor, kl: tf.Tensor, training: bool
    ) -> tf.Tensor:
        """Returns minus the logarithm of the mean weight."""
        return math.log(self.num_samples) - tf.reduce_logsumexp(draws.log_weight, axis=0)


OBJECTIVES: dict[str, Any] = {"elbo": ELBO, "infovae": InfoVAE, "iwae": ImportanceWeighted}


def get(objective: str | Objective, **kwargs) -> Objective:
    """Returns the objective of that name; an objective is returned unchanged.

    Args:
      objective: a key of `OBJECTIVES`, or an objective.
      **kwargs: constructor arguments for a named objective.

    Raises:
      ValueError: if the name is unknown; the message lists the names.
      TypeError: if `objective` is neither a name nor an objective.
    """
    if isinstance(objective, Objective):
        return objective
    if not isinstance(objective, str):
        raise TypeError(
            f"`objective` must be one of {list(OBJECTIVES)}, or an `Objective` such as ELBO(); got "
            f"{reprlib.repr(objective)}."
        )
    return named("objective", objective, OBJECTIVES)(**kwargs)

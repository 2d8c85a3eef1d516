"""What `RhoVAE` minimizes. A new objective is an `Objective` with a `loss` of its own."""

from __future__ import annotations

import math
import numbers
import reprlib
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import tensorflow as tf

from tfp_ar1.recurrence import matmul

if TYPE_CHECKING:
    from tfp_ar1.vae.rho_vae import RhoVAE

__all__ = [
    "ELBO",
    "OBJECTIVES",
    "Draws",
    "ImportanceWeighted",
    "InfoVAE",
    "Objective",
    "Terms",
    "get",
    "maximum_mean_discrepancy",
    "witness",
]


class Terms(NamedTuple):
    """What an objective computes for a batch; each entry of shape `[batch]`, in nats."""

    loss: tf.Tensor
    reconstruction: tf.Tensor
    kl: tf.Tensor
    correlation: tf.Tensor


class Draws(NamedTuple):
    """K draws z of the posterior q(z | x) for each example of a batch; see `RhoVAE.draw`."""

    z: tf.Tensor  # [K, batch, *latent_shape]
    log_p: tf.Tensor  # log p(x | z), [K, batch]
    log_weight: tf.Tensor  # log p(x | z) p(z) / q(z | x), [K, batch]


class Objective:
    """Base class: draws from the posterior, and the terms that every objective reports.

    The reconstruction is estimated with `num_samples` draws, the KL is exact. Subclasses define
    `loss`, and `get_config` where they have arguments.
    """

    num_samples = 1

    def __call__(self, model: RhoVAE, x: tf.Tensor, training: bool) -> Terms:
        """The terms for a batch of data `[batch, *data_shape]`."""
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
        self,
        model: RhoVAE,
        draws: Draws,
        reconstruction: tf.Tensor,
        kl: tf.Tensor,
        training: bool,
    ) -> tf.Tensor:
        """What is minimized, `[batch]`.

        Args:
          model: the model.
          draws: draws of the posteriors.
          reconstruction: the mean of -log p(x | z) over the draws, `[batch]`.
          kl: KL(q ‖ prior), `[batch]`.
          training: whether it is for a step of the optimizer.
        """
        raise NotImplementedError(f"`{type(self).__name__}` must define `loss`.")

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Objective:
        """Makes the objective again from `get_config`."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="tfp_ar1")
class ELBO(Objective):
    """The negative evidence lower bound, `-E_q[log p(x | z)] + β KL(q(z | x) ‖ p(z))`.

    The expectation is estimated with one sample, the KL is exact. (Inequalities 1 and 2 of the
    paper are printed the wrong way round: the bound is from below.)

    Args:
      beta: factor of the KL; 1 for the VAE, other values for the β-VAE. At least 0.
      warmup_steps: in training, the factor grows to `beta` linearly over so many steps of the
        optimizer; 0 for none. In evaluation the factor is always `beta`.

    Raises:
      ValueError: if `beta` is negative or not finite, or `warmup_steps` is not an integer of at
        least 0.
    """

    def __init__(self, beta: float = 1.0, warmup_steps: int = 0):
        if not 0 <= beta < math.inf:
            raise ValueError(f"`beta` must be finite and not negative; got {beta}.")
        self.beta = beta
        self.warmup_steps = checked_count("warmup_steps", warmup_steps, at_least=0)

    def loss(
        self,
        model: RhoVAE,
        draws: Draws,
        reconstruction: tf.Tensor,
        kl: tf.Tensor,
        training: bool,
    ) -> tf.Tensor:
        """The reconstruction and β times the KL."""
        factor = self.beta
        if training and self.warmup_steps:
            factor *= self._warmup(model, kl.dtype)
        return reconstruction + factor * kl

    def _warmup(self, model: RhoVAE, dtype: tf.DType) -> tf.Tensor:
        """The share of β at the present step of the optimizer, in (0, 1]."""
        optimizer = getattr(model, "optimizer", None)
        if optimizer is None:
            raise ValueError(
                f"`warmup_steps={self.warmup_steps}` counts the steps of the model's optimizer, "
                f"but it has none; compile the model before it is trained."
            )
        # A variable, or with accumulated gradients what is computed from one.
        step = tf.cast(tf.convert_to_tensor(optimizer.iterations), dtype)
        return tf.minimum((step + 1) / self.warmup_steps, 1)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {"beta": self.beta, "warmup_steps": self.warmup_steps}


@keras.saving.register_keras_serializable(package="tfp_ar1")
class InfoVAE(Objective):
    """InfoVAE with the maximum mean discrepancy (Zhao, Song and Ermon, arXiv:1706.02262).

    `-E_q[log p(x | z)] + (1 - α) KL(q(z | x) ‖ p(z)) + (α + λ - 1) MMD(q(z), p(z))`, where q(z) is
    the mean of q(z | x) over the data. The squared MMD is estimated between the batch's draws, one
    for each example, and as many of the prior; see `maximum_mean_discrepancy` for the kernel. It
    belongs to the batch, and is the same in the loss of each example.

    The defaults, α = 0 and λ = 1000, are those of a public implementation for MNIST. `alpha=1`
    leaves the KL out (MMD-VAE), and `alpha + lambda_ = 1` the MMD (β-VAE with β = λ).

    Args:
      alpha: α, the weight on the mutual information of x and z; at most 1.
      lambda_: λ, the weight on the divergence of q(z) from the prior; at least 1 - α.

    Raises:
      ValueError: if a factor of the loss, 1 - α or α + λ - 1, is negative or not finite.
    """

    def __init__(self, alpha: float = 0.0, lambda_: float = 1000.0):
        if not -math.inf < alpha <= 1:
            raise ValueError(f"`alpha` must be finite and at most 1; got {alpha}.")
        if not 1 - alpha <= lambda_ < math.inf:
            raise ValueError(
                f"`lambda_` must be finite and at least 1 - alpha = {1 - alpha}; got {lambda_}."
            )
        self.alpha = alpha
        self.lambda_ = lambda_

    def loss(
        self,
        model: RhoVAE,
        draws: Draws,
        reconstruction: tf.Tensor,
        kl: tf.Tensor,
        training: bool,
    ) -> tf.Tensor:
        """The reconstruction, the KL and the MMD, with their factors."""
        z = draws.z[0]
        from_prior = model.prior.sample(tf.shape(z)[0], seed=model.next_seed())
        mmd = maximum_mean_discrepancy(z, from_prior)
        return reconstruction + (1 - self.alpha) * kl + (self.alpha + self.lambda_ - 1) * mmd

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {"alpha": self.alpha, "lambda_": self.lambda_}


@keras.saving.register_keras_serializable(package="tfp_ar1")
class ImportanceWeighted(Objective):
    """The importance-weighted bound, `-log 1/K Σ_k p(x | z_k) p(z_k) / q(z_k | x)`.

    With K draws of the posterior (IWAE; Burda, Grosse and Salakhutdinov, arXiv:1509.00519). On
    average it falls towards -log p(x) as K grows; for K = 1 it is the negative ELBO, with the KL
    estimated from the draw.

    Args:
      num_samples: K, at least 1. Time and memory grow with it.

    Raises:
      ValueError: if `num_samples` is not an integer of at least 1.
    """

    def __init__(self, num_samples: int = 5):
        self.num_samples = checked_count("num_samples", num_samples, at_least=1)

    def loss(
        self,
        model: RhoVAE,
        draws: Draws,
        reconstruction: tf.Tensor,
        kl: tf.Tensor,
        training: bool,
    ) -> tf.Tensor:
        """Minus the logarithm of the mean weight."""
        return math.log(self.num_samples) - tf.reduce_logsumexp(draws.log_weight, axis=0)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {"num_samples": self.num_samples}


OBJECTIVES: dict[str, type[Objective]] = {
    "elbo": ELBO,
    "infovae": InfoVAE,
    "iwae": ImportanceWeighted,
}


def get(objective: str | Objective, **kwargs) -> Objective:
    """The objective of that name, or the one that is given.

    Args:
      objective: a key of `OBJECTIVES`, or an objective.
      **kwargs: the arguments of the one that is named.

    Raises:
      ValueError: if there is none of that name; the message lists the names.
      TypeError: if it is neither a name nor an objective.
    """
    if isinstance(objective, Objective):
        return objective
    if not isinstance(objective, str):
        raise TypeError(
            f"`objective` must be one of {list(OBJECTIVES)}, or an `Objective` such as ELBO(); got "
            f"{reprlib.repr(objective)}."
        )
    if objective not in OBJECTIVES:
        raise ValueError(f"Unknown objective {objective!r}; expected one of {list(OBJECTIVES)}.")
    return OBJECTIVES[objective](**kwargs)


def maximum_mean_discrepancy(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """The squared maximum mean discrepancy (MMD) of two samples, with a Gaussian kernel.

    The kernel is `k(a, b) = exp(-‖a - b‖² / d²)`, as in the code that the authors of InfoVAE
    published for MNIST. The estimator is the biased one, a mean over all pairs, those of a vector
    with itself included: it is never negative, and for n and m draws of one distribution it is
    `(1/n + 1/m) (1 - E[k(a, b)])` on average (Gretton et al., JMLR 13, 2012).

    Args:
      x: sample `[n, d]`, or of arrays of d numbers `[n, ...]`.
      y: sample `[m, d]`, or `[m, ...]`.

    Returns:
      A scalar. Time and memory are O((n + m)²).
    """
    # A replica's share of the last batch can be empty; the mean of nothing is 0 here.
    return _mean(witness(x, x, y)) - _mean(witness(y, x, y))


def witness(points: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """How much nearer points are to one sample than to another: mean kernel to x less that to y.

    The squared MMD of x and y is the mean of this over x, less that over y.

    Args:
      points: `[p, d]`, or arrays of d numbers `[p, ...]`.
      x: sample `[n, d]`, or `[n, ...]`.
      y: sample `[m, d]`, or `[m, ...]`.

    Returns:
      Tensor `[p]`. Time and memory are O(p (n + m)).
    """
    return _mean(_kernel(points, x)) - _mean(_kernel(points, y))


def _mean(x: tf.Tensor) -> tf.Tensor:
    """The mean over the last axis, 0 where it is empty."""
    return tf.math.divide_no_nan(tf.reduce_sum(x, axis=-1), tf.cast(tf.shape(x)[-1], x.dtype))


def _kernel(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """The Gram matrix `[n, m]` of the Gaussian kernel."""
    size = math.prod(x.shape[1:])
    x, y = (tf.reshape(a, [-1, size]) for a in (x, y))
    squares = [tf.reduce_sum(tf.square(a), axis=-1) for a in (x, y)]
    distances = squares[0][:, None] + squares[1] - 2 * matmul(x, y, transpose_b=True)
    # Rounding can make the distance of equal vectors negative.
    return tf.exp(-tf.maximum(distances, 0) / size**2)


def checked_count(name: str, value: int, at_least: int) -> int:
    """Returns the argument of that name, or raises `ValueError` if it is not such an integer."""
    if not isinstance(value, numbers.Real) or value % 1 != 0 or value < at_least:
        raise ValueError(
            f"`{name}` must be an integer of at least {at_least}; got {reprlib.repr(value)}."
        )
    return int(value)


def checked_seed(seed: int) -> tf.Tensor:
    """The seed that TFP takes, int32 `[2]`, or `ValueError` if it is not an int32 integer."""
    if not isinstance(seed, numbers.Integral) or not tf.int32.min <= seed <= tf.int32.max:
        raise ValueError(
            f"`seed` must be an integer of 32 bits, or None; got {reprlib.repr(seed)}."
        )
    return tf.constant([seed, 0], tf.int32)

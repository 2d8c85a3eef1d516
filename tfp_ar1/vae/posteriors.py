"""The families of approximate posteriors, by name."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability import distributions as tfd
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1 import params as ar1_params
from tfp_ar1._checks import named
from tfp_ar1.families import PACKED

__all__ = ["POSTERIORS", "Posterior", "get", "num_covariance_parameters"]


class Posterior:
    """A family of normal distributions over vectors, and its mapping from a network's outputs.

    `parameters` says for the mean, and then for each packed parameter, whether it has one number
    per "coordinate", per "step" to the next, or per "member" of the batch; `None` if the family has
    no order. `has_correlations` says whether there is a correlation for each step, `needs_prior`
    whether the posterior depends on the prior, which is for paths in time only.
    """

    parameters: tuple[str, ...] | None
    has_correlations = False
    needs_prior = False

    def params_size(self, event_size: int) -> int:
        """Returns the number of outputs that the network needs."""
        return ar1_params.size_of(self.parameters or (), event_size)

    def new(
        self, params: tf.Tensor, event_size: int, prior: Any = None, observed: Any = None
    ) -> tfd.Distribution:
        """Returns the distribution for outputs `[..., params_size(event_size)]`.

        If `needs_prior`, it also depends on the prior and on `observed`, `[..., event_size]`: where
        something was observed.
        """
        params = ar1_params.checked_params(params, self.params_size(event_size), event_size)
        loc = ar1_params.bounded(params[..., :event_size], ar1_params.LOC_BOUND)
        return self._around(loc, params[..., event_size:], event_size)

    def _around(self, loc: tf.Tensor, rest: tf.Tensor, d: int) -> tfd.Distribution:
        raise NotImplementedError

    def correlation(self, distribution: tfd.Distribution) -> tf.Tensor:
        """Returns the mean correlation `[...]` of neighbouring coordinates."""
        raise NotImplementedError


class _MarkovChain(Posterior):
    """A member of the family; `"ar1"` is the posterior of the ρ-VAE (equation 4 of the paper)."""

    def __init__(self, family: str):
        self.family = family
        self.parameters = ar1_params.layout(family)
        self.has_correlations = "step" in self.parameters

    def new(
        self, params: tf.Tensor, event_size: int, prior: Any = None, observed: Any = None
    ) -> tfd.Distribution:
        return ar1_params.new(params, event_size, family=self.family)

    def correlation(self, distribution: tfd.Distribution) -> tf.Tensor:
        rho = distribution.correlation_parameter()
        if len(rho.shape) > len(distribution.batch_shape):
            return _mean_over_steps(rho)
        return tf.zeros_like(rho) if distribution.event_shape == [1] else rho


def _mean_over_steps(rho: tf.Tensor) -> tf.Tensor:
    """Returns the mean over the last axis; 0 for a single coordinate, which has no neighbour."""
    return tf.reduce_sum(rho, axis=-1) / tf.cast(ps.maximum(ps.shape(rho)[-1], 1), rho.dtype)


class _Sites(_MarkovChain):
    """The prior of a path times a Gaussian factor at each coordinate; see `tfp_ar1.params.sites`.

    The coordinates are connected by the prior, not by the network's outputs. Where nothing was
    observed, the posterior follows from the prior and the other factors.
    """

    needs_prior = True

    def __init__(self):
        super().__init__(ar1_params.SITES)
        self.has_correlations = True

    def new(
        self, params: tf.Tensor, event_size: int, prior: Any = None, observed: Any = None
    ) -> tfd.Distribution:
        ar1_params.checked_params(params, self.params_size(event_size), event_size)
        return ar1_params.sites(params, prior, observed).posterior()


class _Diagonal(Posterior):
    """A variance for each coordinate: the standard VAE (equation 3). Packed `[loc, log s]`."""

    parameters = ("coordinate", "coordinate")

    def _around(self, loc: tf.Tensor, rest: tf.Tensor, d: int) -> tfd.Distribution:
        scale = tf.broadcast_to(ar1_params.scale_of(rest), ps.shape(loc))
        return tfd.MultivariateNormalDiag(loc, scale)

    def correlation(self, distribution: tfd.Distribution) -> tf.Tensor:
        return tf.zeros(distribution.batch_shape_tensor(), distribution.dtype)


class _Isotropic(_Diagonal):
    """One variance for all coordinates: AR(1) with ρ = 0. Packed `[loc, log s]`."""

    parameters = ("coordinate", "member")


class _Full(Posterior):
    """Any covariance, by its Cholesky factor: O(d²) parameters.

    Packed `[loc (d), factor (d (d+1)/2)]`, the factor in the order of `tfp.math.fill_triangular`,
    with `log s` on its diagonal.
    """

    parameters = None

    def params_size(self, event_size: int) -> int:
        d = ar1_params.checked_event_size(event_size)
        return d + d * (d + 1) // 2

    def _around(self, loc: tf.Tensor, rest: tf.Tensor, d: int) -> tfd.Distribution:
        factor = tfp.math.fill_triangular(rest)
        # Not tf.linalg.set_diag: XLA cannot compile its gradient for an unknown batch size.
        scale_tril = tf.where(
            tf.eye(d, dtype=tf.bool),
            ar1_params.scale_of(factor),
            ar1_params.bounded(factor, ar1_params.LOC_BOUND),
        )
        return tfd.MultivariateNormalTriL(loc, scale_tril)

    def correlation(self, distribution: tfd.Distribution) -> tf.Tensor:
        factor = distribution.scale.to_dense()
        rows = factor / tf.norm(factor, axis=-1, keepdims=True)
        return _mean_over_steps(tf.reduce_sum(rows[..., 1:, :] * rows[..., :-1, :], axis=-1))


POSTERIORS: dict[str, Posterior] = {
    **{family: _MarkovChain(family) for family in PACKED},
    "diag": _Diagonal(),
    "isotropic": _Isotropic(),
    "full": _Full(),
    ar1_params.SITES: _Sites(),
}


def get(name: str) -> Posterior:
    """Returns the family of that name.

    Raises:
      ValueError: if the name is unknown; the message lists the names.
    """
    if name in PACKED:  # Also a member added after `POSTERIORS` was made.
        return _MarkovChain(name)
    return named("posterior", name, POSTERIORS)


def num_covariance_parameters(name: str, latent_dim: int) -> int:
    """Returns the number of parameters of a family's covariance.

    Args:
      name: a key of `POSTERIORS`.
      latent_dim: size d of the latent vectors, at least 1.

    Returns:
      2 for `"ar1"`, d for `"diag"`, 1 for `"isotropic"`, d (d + 1) / 2 for `"full"`, and so on.

    Raises:
      ValueError: if the name is unknown, or `latent_dim` is not a positive integer.
    """
    return get(name).params_size(latent_dim) - latent_dim

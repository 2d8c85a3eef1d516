"""A layer that samples from a prior times a Gaussian factor (a site) at each coordinate."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_ar1 import params as ar1_params
from tfp_ar1.layers.markov_chain import MarkovChainLayer
from tfp_ar1.layers.prior import Prior


@keras.saving.register_keras_serializable(package="tfp_ar1")
class MarkovSites(MarkovChainLayer):
    """Layer for a posterior over paths: the prior times a Gaussian factor at each coordinate.

    For each coordinate a network outputs a pseudo-observation and its precision; the prior, which
    may be learned, connects the coordinates (see `tfp_ar1.params.sites`). Masked coordinates have
    no factor: the posterior there follows from the prior and the other factors. The layer returns a
    sample and adds the exact KL divergence to the prior to the losses; gradients of both reach the
    prior's weights. Everything costs O(d).

    ```python
    channels, num_timesteps = 2, 100
    encoder = keras.Sequential([
        keras.layers.Conv1D(32, 5, padding="same", activation="relu"),
        keras.layers.Dense(tfp_ar1.params.time_major_size(channels, "sites")),
        tfp_ar1.layers.MarkovSites(
            num_timesteps,
            tfp_ar1.layers.MultivariateNormalAR1Prior(num_timesteps, channels=channels),
            time_major=True,
        ),
    ])                                          # samples [batch, num_timesteps, channels]
    ```

    Input shape: `[batch, ..., 2 * event_size]`, packed as for `tfp_ar1.params.sites`, with a mask
    `[batch, ..., event_size]`, or `[batch, ...]` for whole paths; with `time_major`
    `[batch, ..., event_size, 2 * channels]`, with a mask `[batch, ..., event_size]`. Output shape:
    `[batch, ..., event_size]`; with `time_major` `[batch, ..., event_size, channels]`.

    Args:
      event_size: number of coordinates d, at least 1.
      prior: a chain of this package with constant parameters, such as a `MultivariateNormalAR1`, or
        a layer that learns one (`MultivariateNormalAR1Prior`), as for the other layers.
      kl_weight: as for the other layers.
      seed: integer seed of the noise, or `None` for a random one.
      reinterpreted_batch_ndims: as for the other layers.
      scale_map: how real numbers become precisions; see `tfp_ar1.params.sites`.
      time_major: whether the coordinates are the second-to-last axis of inputs and samples.
      **kwargs: arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Raises:
      ValueError: as for the other layers.
      TypeError: if the prior is not a chain of this package.
    """

    family = ar1_params.SITES

    def __init__(self, event_size: int, prior: Prior, *args, **kwargs):
        super().__init__(event_size, prior, *args, **kwargs)
        ar1_params.check_connects(self._current_prior())

    def _distribution(
        self, packed: tf.Tensor, prior: tfd.Distribution | None, mask: Any
    ) -> tfd.Distribution:
        if mask is not None:
            mask = tf.convert_to_tensor(mask)
            if self.time_major:
                mask = mask[..., tf.newaxis, :]
            for _ in range(len(packed.shape) - len(mask.shape)):
                mask = mask[..., tf.newaxis]
        return ar1_params.sites(packed, prior, mask, self.scale_map).posterior()

    def _kl(self, distribution: tfd.Distribution, prior: tfd.Distribution, mask: Any) -> tf.Tensor:
        # The KL of the whole path: its terms after the last site are 0.
        return tfd.kl_divergence(distribution, prior)

"""The compared models: each differs from `base` in what its name says."""

from typing import Any, NamedTuple

import keras

from tfp_ar1_cli import backend


class Variant(NamedTuple):
    """The settings of a model."""

    posterior: str = "ante1"
    channels: int = 2
    reach: int = 1
    likelihood: str = "gaussian"
    noise: float | None = None
    hide: float = 0.5
    prior: Any = "ar1"


_LIKELIHOODS = {"gaussian": "Gaussian", "hetero": "HeteroscedasticGaussian"}

# Correlations for time scales of about 1, 10, 100 and 1000 steps.
_SCALES = (0.4, 0.9, 0.99, 0.999)

RATE = 5e-3

VARIANTS = {
    "base": Variant(),
    "sites": Variant(posterior="sites"),
    "scales_4": Variant(channels=4, prior=_SCALES),
    "hetero": Variant(likelihood="hetero"),
    # As large as the typical error of a straight line, not learned.
    "noise_0.03": Variant(noise=0.03),
    "channels_4": Variant(channels=4),
    # A decoder that also sees the 14 steps before.
    "reach_15": Variant(reach=15),
    "scales_4_reach_15": Variant(channels=4, prior=_SCALES, reach=15),
    # As scales_4, without the fastest path, which is nearly white noise.
    "slow_3": Variant(channels=3, prior=_SCALES[1:]),
    "slow_3_reach_15": Variant(channels=3, prior=_SCALES[1:], reach=15),
    "slow_3_sites": Variant(posterior="sites", channels=3, prior=_SCALES[1:]),
}


def build(variant: Variant, data_shape: tuple[int, int], seed: int) -> Any:
    """Builds and compiles the model."""
    steps, features = data_shape
    library = backend.library
    make = getattr(library("vae.likelihoods"), _LIKELIHOODS[variant.likelihood])
    likelihood = make() if variant.noise is None else make(variant.noise)
    encoder, decoder = library("vae.sequence_networks").convolutional(data_shape, variant.channels)
    outputs = features * likelihood.outputs_per_value
    if variant.reach > 1:
        decoder = keras.Sequential(
            [
                keras.Input((None, variant.channels)),
                keras.layers.Conv1D(32, variant.reach, padding="causal", activation="relu"),
                keras.layers.Dense(outputs),
            ]
        )
    elif outputs != features:
        decoder = keras.Sequential(
            [
                keras.Input((variant.channels,)),
                keras.layers.Dense(32, activation="relu"),
                keras.layers.Dense(outputs),
            ]
        )
    prior = variant.prior
    if isinstance(prior, tuple):
        prior = library("layers").MultivariateNormalAR1Prior(
            steps, correlation=prior, channels=variant.channels, name="prior"
        )
    model = library().SequenceVAE(
        encoder,
        decoder,
        variant.channels,
        steps,
        variant.posterior,
        prior,
        likelihood=likelihood,
        seed=seed,
    )
    model.compile(optimizer=keras.optimizers.Adam(RATE))
    return model

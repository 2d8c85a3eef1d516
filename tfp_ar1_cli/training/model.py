"""Builds models from the options of a run."""

from typing import Any

import keras
import numpy as np

from tfp_ar1_cli import backend
from tfp_ar1_cli.names import SIZES
from tfp_ar1_cli.options import RunOptions


def rho_vae(options: RunOptions, image_shape: tuple[int, ...]) -> keras.Model:
    """The autoencoder of images, built and compiled."""
    dim = options.latent_dim or 1
    make = backend.library("vae.architectures").NETWORKS[options.network]
    networks = make(image_shape, dim, **_sizes(options))
    model = backend.library().RhoVAE(*networks, dim, **_arguments(options))
    return _compiled(model, options, image_shape)


def sequence_vae(options: RunOptions, data_shape: tuple[int, ...]) -> keras.Model:
    """The autoencoder of series, built and compiled."""
    channels = options.channels or 1
    make = backend.library("vae.sequence_networks").NETWORKS[options.network]
    prior = None if options.prior == "normal" else options.prior
    if options.prior_correlations:
        prior = backend.library("layers").MultivariateNormalAR1Prior(
            data_shape[0], correlation=options.prior_correlations, channels=channels, name="prior"
        )
    networks = make(data_shape, channels, **_sizes(options))
    arguments = {"prior": prior, **_arguments(options)}
    model = backend.library().SequenceVAE(*networks, channels, data_shape[0], **arguments)
    return _compiled(model, options, data_shape)


def _sizes(options: RunOptions) -> dict[str, Any]:
    """The network sizes given in the options."""
    given = {name: getattr(options, name) for name in SIZES[options.network]}
    return {name: value for name, value in given.items() if value is not None}


def _arguments(options: RunOptions) -> dict[str, Any]:
    names = ("beta", "warmup_steps") if options.objective == "elbo" else ()
    weight = {name: getattr(options, name) for name in names}
    return {
        "posterior": options.posterior,
        "likelihood": options.likelihood,
        "objective": backend.library("vae.objectives").get(options.objective, **weight),
        "seed": options.seed,
    }


def _compiled(model: keras.Model, options: RunOptions, data_shape: tuple[int, ...]) -> keras.Model:
    model.build((None, *data_shape))
    model.compile(optimizer=keras.optimizers.Adam(options.learning_rate))
    model.optimizer.build(model.trainable_variables)
    return model


def prior_correlation(model: Any) -> np.ndarray:
    """The prior's lag-one correlation of each latent path, `[channels]`; 0 for N(0, I)."""
    learned = getattr(model.prior, "correlation_parameter", lambda: 0.0)()
    return np.broadcast_to(np.asarray(learned, np.float64), [model.channels])


def replicate(model: Any, inputs: dict[str, np.ndarray], num: int, seed: int) -> np.ndarray:
    """Draws new observations of the same latent paths, `[num, N, steps, channels]`."""
    seed_of = backend.library("_keras_backend").seed_of
    z = np.asarray(model.encode(inputs).sample(num, seed=seed_of(seed, 0)))
    x = model.decode(z.reshape(-1, *z.shape[2:])).sample(seed=seed_of(seed, 1))
    return np.asarray(x).reshape(num, *inputs["x"].shape)

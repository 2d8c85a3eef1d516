"""Models that are saved on one backend and loaded on the other, and what they compute.

    KERAS_BACKEND=tensorflow python tests/substrate/models.py    # and with jax

stores both for the tests.
"""

import pathlib

import keras
import numpy as np

DATA = pathlib.Path(__file__).parents[1] / "data" / "models"
KINDS = ("image", "series")


def library():
    """The package for the backend of this process."""
    if keras.config.backend() == "jax":
        import tfp_ar1_jax as package
    else:
        import tfp_ar1 as package
    return package


def data(kind):
    """Some images, or some series with gaps."""
    rng = np.random.default_rng(3)
    if kind == "image":
        return (rng.random((6, 4, 4)) < 0.4).astype("float32")
    x = np.cumsum(rng.normal(size=(5, 7, 2)), axis=1).astype("float32")
    x[1, 2:4] = np.nan
    return x


def trained(kind, posterior):
    """A model with a learned prior after a few steps."""
    package = library()
    keras.utils.set_random_seed(2)
    if kind == "image":
        parts = package.vae.architectures.mlp((4, 4), 3, (5,))
        prior = package.layers.MultivariateNormalAR1Prior(3)
        model = package.RhoVAE(*parts, 3, posterior=posterior, prior=prior, seed=0)
    else:
        parts = package.vae.sequence_networks.convolutional((7, 2), 2, filters=(4,))
        model = package.SequenceVAE(*parts, 2, 7, posterior=posterior, seed=0)
    model.compile(keras.optimizers.Adam(0.01))
    model.fit(data(kind), epochs=3, verbose=0)
    return model


def computed(model, kind):
    """What a model says of the data, without draws."""
    x = data(kind)
    posterior = model.encode(x)
    loc, stddev = (np.asarray(part) for part in (posterior.mean(), posterior.stddev()))
    return {
        "mean": loc,
        "stddev": stddev,
        "kl": np.asarray(model.kl_to_prior(posterior, x)),
        "correlation": np.asarray(model.correlation(x)),
        "reconstruction": np.asarray(model.reconstruct(x)),
        "prior_log_prob": np.asarray(model.prior.log_prob(loc)),
        "iterations": np.asarray(keras.ops.convert_to_numpy(model.optimizer.iterations)),
        "seed": np.asarray(keras.ops.convert_to_numpy(model.seed_generator.state)),
    }


def check_files_of(backend):
    """Files of a backend load on this one, compute the same, and train on."""
    assert library().vae  # Whose classes Keras then finds.
    for kind in KINDS:
        model = keras.saving.load_model(DATA / f"{kind}_{backend}.keras")
        with np.load(DATA / f"{kind}_{backend}.npz") as stored:
            for name, value in computed(model, kind).items():
                np.testing.assert_allclose(value, stored[name], rtol=3e-5, atol=1e-6, err_msg=name)
        history = model.fit(data(kind), epochs=1, verbose=0).history
        assert np.isfinite(history["loss"][0])


def main():
    """Stores the models of this backend."""
    DATA.mkdir(exist_ok=True)
    for kind, posterior in zip(KINDS, ("full", "sites"), strict=True):
        model = trained(kind, posterior)
        model.save(DATA / f"{kind}_{keras.config.backend()}.keras")
        np.savez(DATA / f"{kind}_{keras.config.backend()}.npz", **computed(model, kind))


if __name__ == "__main__":
    main()

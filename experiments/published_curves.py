"""Trains the ρ-VAE as the paper describes it and as its public code computes it.

    python -m experiments.published_curves --data-dir FOLDER

The code differs from the paper in its sampler (in two ways, by the place) and in its loss. Here
each sampler is trained with each loss, and the diagonal VAE beside them, all with the paper's
network; notebooks/published_curves.ipynb shows what comes of it. Both differences are written anew
from their description, and live here alone: nothing in `tfp_ar1` knows of them. A run that is
started again goes on with the first variant that has no result yet.
"""

from __future__ import annotations

import json
import os
import pathlib
import time
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click
import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1
from benchmarks.__main__ import environment
from tfp_ar1 import params as ar1_params
from tfp_ar1.vae import architectures, evaluation, objectives, posteriors
from tfp_ar1_cli import runs
from tfp_ar1_cli.data import images

tfd = tfp.distributions

RESULTS = pathlib.Path(__file__).parent / "results" / "published_curves.json"
DATASETS = ("fashion_mnist", "mnist")
SETTINGS = {
    "network": "784-400-10-400-784",
    "latent_dim": 10,
    "likelihood": "bernoulli",
    "optimizer": "Adam",
    "learning_rate": 1e-3,
    "batch_size": 128,
    "epochs": 15,
    "seed": 0,
    "num_importance_samples": 100,
}

# --- The samplers -------------------------------------------------------------


def factor(coefficient: tf.Tensor, size: int) -> tf.Tensor:
    """The matrix of the recurrence `u_t = a u_{t-1} + ε_t`: `A[i, j] = a^(i-j)` for j ≤ i, else 0.

    Args:
      coefficient: a, `[...]`.
      size: number of coordinates d.

    Returns:
      Tensor `[..., d, d]`.
    """
    coefficient = coefficient[..., tf.newaxis]
    row = tf.zeros_like(coefficient)
    rows = []
    for unit in tf.unstack(tf.eye(size, dtype=coefficient.dtype)):
        row = coefficient * row + unit
        rows.append(row)
    return tf.stack(rows, axis=-2)


def sampled(
    stated: tfp_ar1.MultivariateNormalAR1, coefficient: tf.Tensor
) -> tfd.MultivariateNormalTriL:
    """What `z = μ + √s u` with `u_t = a u_{t-1} + ε_t` samples, which is not AR(1).

    Its covariance is s A Aᵀ (see `factor`), its KL to N(0, I) is exact.

    Args:
      stated: the AR(1) normal that is meant, with μ and s; the result has it as an attribute.
      coefficient: a, of its batch shape.
    """
    scale = stated.marginal_scale[..., tf.newaxis, tf.newaxis]
    distribution = tfd.MultivariateNormalTriL(
        stated.loc, scale * factor(coefficient, stated.event_shape[0])
    )
    distribution.stated = stated
    return distribution


class _Recurrence:
    """A family for `RhoVAE`: the parameters of `"ar1"`, another sampler."""

    def params_size(self, event_size: int) -> int:
        return ar1_params.params_size(event_size)

    def new(self, params: tf.Tensor, event_size: int) -> tfd.MultivariateNormalTriL:
        stated = ar1_params.new(params, event_size)
        return sampled(stated, self.coefficient(stated.correlation_parameter()))

    def correlation(self, distribution: tfd.Distribution) -> tf.Tensor:
        return posteriors.get("full").correlation(distribution)

    def coefficient(self, rho: tf.Tensor) -> tf.Tensor:
        raise NotImplementedError


class RandomWalk(_Recurrence):
    """The model code's sampler: √s times the cumulative sum of the noise, without ρ."""

    def coefficient(self, rho: tf.Tensor) -> tf.Tensor:
        """Always 1."""
        return tf.ones_like(rho)


class WholeInnovations(_Recurrence):
    """The sampler of README and notebook: innovations √s where AR(1) has √(s (1 - ρ²))."""

    def coefficient(self, rho: tf.Tensor) -> tf.Tensor:
        """ρ."""
        return rho


SAMPLERS = {
    "diag": posteriors.get("diag"),
    "ar1": posteriors.get("ar1"),
    "random_walk": RandomWalk(),
    "whole_innovations": WholeInnovations(),
}

# --- The losses ---------------------------------------------------------------


class Terms(NamedTuple):
    """What `Loss` computes for a batch; each entry of shape `[batch]`.

    `stated` is the distribution that the encoder's outputs stand for, whatever is sampled.
    """

    loss: tf.Tensor
    reconstruction: tf.Tensor
    kl: tf.Tensor  # of what is sampled, exact
    correlation: tf.Tensor  # of the stated distribution
    log_variance: tf.Tensor  # log s of the stated distribution
    mean_term: tf.Tensor  # ½ ‖μ‖²
    covariance_terms: tf.Tensor  # what else the stated distribution's KL consists of
    reference_loss: tf.Tensor


class Loss(objectives.Objective):
    """One draw's reconstruction and the stated KL, by equation 6 or as the reference adds it up.

    The reference adds the sum of ‖μ‖² over the batch to the s and ρ terms of each example, takes
    the mean of that, and adds the reconstructions' sum. Divided by the batch size B, that is
    equation 6 with its s and ρ terms divided by B. The description names no such slip for the
    diagonal VAE; there the reference's loss is taken to be right.

    Args:
      reference: whether the reference's loss is minimized.
    """

    def __init__(self, reference: bool):
        self.reference = reference

    def __call__(self, model: tfp_ar1.RhoVAE, x: tf.Tensor, training: bool) -> Terms:
        """The terms for a batch of data `[batch, *data_shape]`."""
        posterior = model.encode(x, training=training)
        draws = model.draw(x, posterior, self.num_samples, model.next_seed(), training=training)
        reconstruction = -draws.log_p[0]
        stated = getattr(posterior, "stated", posterior)
        stated_kl = model.kl_to_prior(stated)
        mean_term = 0.5 * tf.reduce_sum(stated.mean() ** 2, axis=-1)
        covariance_terms = stated_kl - mean_term
        diagonal = model.posterior_name == "diag"
        divisor = 1.0 if diagonal else tf.cast(tf.shape(x)[0], stated_kl.dtype)
        reference_loss = reconstruction + mean_term + covariance_terms / divisor
        return Terms(
            loss=reference_loss if self.reference else reconstruction + stated_kl,
            reconstruction=reconstruction,
            kl=model.kl_to_prior(posterior),
            correlation=posteriors.get(model.posterior_name).correlation(stated),
            log_variance=tf.reduce_mean(2 * tf.math.log(stated.stddev()), axis=-1),
            mean_term=mean_term,
            covariance_terms=covariance_terms,
            reference_loss=reference_loss,
        )


LOSSES = {"paper": Loss(reference=False), "reference": Loss(reference=True)}

VARIANTS = [("diag", "paper")] + [
    (sampler, loss)
    for sampler in ("ar1", "random_walk", "whole_innovations")
    for loss in ("paper", "reference")
]

# --- Training -----------------------------------------------------------------


def make_model(sampler: str, loss: str, image_shape: tuple[int, ...]) -> tfp_ar1.RhoVAE:
    """The paper's network with one of `SAMPLERS` and one of `LOSSES`, compiled."""
    keras.utils.set_random_seed(SETTINGS["seed"])
    model = tfp_ar1.RhoVAE(
        *architectures.mlp(image_shape, SETTINGS["latent_dim"], hidden_units=(400,)),
        SETTINGS["latent_dim"],
        posterior="diag" if sampler == "diag" else "ar1",
        likelihood=SETTINGS["likelihood"],
        objective=LOSSES[loss],
        seed=SETTINGS["seed"],
    )
    # The families have the parameters of the one that was named, so that the network fits.
    model.posterior = SAMPLERS[sampler]
    for name in Terms._fields:
        model.term_metrics.setdefault(name, keras.metrics.Mean(name=name))
    model.compile(keras.optimizers.Adam(SETTINGS["learning_rate"]))
    return model


def train(sampler: str, loss: str, x_train: np.ndarray, x_test: np.ndarray, epochs: int) -> dict:
    """Trains and evaluates one variant.

    Args:
      sampler: key of `SAMPLERS`.
      loss: key of `LOSSES`.
      x_train: training images.
      x_test: test images.
      epochs: how often the training images are gone through.

    Returns:
      * `curves`: the means over an epoch of each of `Terms`, of the training images while the model
        learns, and of the test images (`val_...`) after the epoch; all with one draw an image, in
        batches.
      * `test`: what `tfp_ar1.vae.evaluation.evaluate` says of the trained model, with what is
        sampled as q.
      * `test_as_stated`, for a sampler that is not AR(1): the same for the same weights, with the
        stated distribution as q.
      * `test_refitted`, unless sampler and loss are the paper's: the same for the same decoder,
        with an encoder that has been trained again as the paper says, for as many epochs.
    """
    model = make_model(sampler, loss, x_train.shape[1:])
    result = {"curves": _fit(model, x_train, x_test, epochs), "test": _evaluate(model, x_test)}
    if isinstance(model.posterior, _Recurrence):
        as_stated = make_model("ar1", "paper", x_train.shape[1:])
        as_stated.set_weights(model.get_weights())
        result["test_as_stated"] = _evaluate(as_stated, x_test)
    if loss != "paper" or "test_as_stated" in result:
        refitted = make_model("ar1", "paper", x_train.shape[1:])
        refitted.set_weights(model.get_weights())
        refitted.decoder.trainable = False
        _fit(refitted, x_train, x_test, epochs)
        result["test_refitted"] = _evaluate(refitted, x_test)
    return result


def _fit(
    model: tfp_ar1.RhoVAE, x_train: np.ndarray, x_test: np.ndarray, epochs: int
) -> dict[str, list[float]]:
    order = tf.data.Dataset.range(len(x_train)).shuffle(len(x_train), SETTINGS["seed"])
    test = _batches(x_test, tf.data.Dataset.range(len(x_test)))
    batches = _batches(x_train, order)
    history = model.fit(
        batches, epochs=epochs, shuffle=False, validation_data=test, verbose=2
    ).history
    return {name: [float(value) for value in values] for name, values in history.items()}


def _batches(x: np.ndarray, order: tf.data.Dataset) -> tf.data.Dataset:
    images = tf.constant(x)
    return order.batch(SETTINGS["batch_size"]).map(lambda indices: tf.gather(images, indices))


def _evaluate(model: tfp_ar1.RhoVAE, x: np.ndarray) -> dict:
    return evaluation.evaluate(
        model, x, SETTINGS["num_importance_samples"], SETTINGS["batch_size"], SETTINGS["seed"]
    )


@click.command()
@click.option(
    "--data-dir",
    required=True,
    type=click.Path(exists=True, file_okay=False),
    help="Folder of the folders fashion_mnist and mnist, each with its four IDX files.",
)
@click.option("--dataset", "names", multiple=True, type=click.Choice(DATASETS), default=DATASETS)
@click.option("--out", type=click.Path(path_type=pathlib.Path), default=RESULTS, show_default=True)
def main(data_dir: str, names: tuple[str, ...], out: pathlib.Path) -> None:
    """Train every variant that OUT has no result of."""
    entries = json.loads(out.read_text(encoding="utf-8"))["results"] if out.exists() else []
    done = {(entry["dataset"], entry["sampler"], entry["loss"]) for entry in entries}
    for name in names:
        data = images.load(name, data_dir)
        for sampler, loss in VARIANTS:
            if (name, sampler, loss) in done:
                continue
            click.echo(f"{name}: sampler {sampler}, loss {loss}")
            start = time.perf_counter()
            result = train(sampler, loss, data.x_train, data.x_test, SETTINGS["epochs"])
            entry = {
                "dataset": name,
                "sampler": sampler,
                "loss": loss,
                **result,
                "seconds": round(time.perf_counter() - start, 1),
                "data_sha256": data.fingerprint()["sha256"],
                "environment": environment(),
            }
            entries.append(entry)
            runs.write_json(
                out,
                {
                    "command": "python -m experiments.published_curves --data-dir FOLDER",
                    "settings": SETTINGS,
                    "results": entries,
                },
            )
            click.echo(_line(entry))
            keras.backend.clear_session()


def _line(entry: dict[str, Any]) -> str:
    test, loss = entry["test"], entry["curves"]["val_reference_loss"][-1]
    return (
        f"  loss as the reference computes it {loss:.1f}, "
        f"-ELBO {test['neg_elbo']:.1f}, NLL {test['nll_iw']:.1f}"
    )


if __name__ == "__main__":
    main()

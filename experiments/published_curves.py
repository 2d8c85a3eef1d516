"""Trains the ρ-VAE as the paper describes it and as its public code computes it.

    python -m experiments.published_curves --data-dir FOLDER

The code differs from the paper in its sampler (in two ways, in different places) and in its loss.
Here each sampler is trained with each loss, along with the diagonal VAE, all with the paper's
network; notebooks/published_curves.py shows the results. Both differences are reimplemented from
their description, only in this file: `tfp_ar1` does not contain them. When started again, the
script resumes with the first variant that has no result yet.
"""

from __future__ import annotations

import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

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
from tfp_ar1_cli.atomic import write_json
from tfp_ar1_cli.data import images

tfd = tfp.distributions

RESULTS = pathlib.Path(__file__).parent / "results" / "published_curves.json"
DATASETS = ("fashion_mnist", "mnist")
SETTINGS = {
    **{"network": "784-400-10-400-784", "latent_dim": 10, "likelihood": "bernoulli"},
    **{"optimizer": "Adam", "learning_rate": 1e-3, "batch_size": 128, "epochs": 15, "seed": 0},
    "num_importance_samples": 100,
}


class Recurrence:
    """A family for `RhoVAE` with the parameters of `"ar1"`, but samples that are not AR(1).

    Samples are `z = μ + √s u` with `u_t = a u_{t-1} + ε_t`. Their covariance is s A Aᵀ with
    `A[i, j] = a^(i-j)` for j ≤ i, else 0; the KL to N(0, I) is exact. The distribution's attribute
    `stated` is the AR(1) normal that was intended.

    Args:
      coefficient: a as a function of ρ.
    """

    def __init__(self, coefficient: Callable[[tf.Tensor], tf.Tensor]):
        self.coefficient = coefficient

    def params_size(self, event_size: int) -> int:
        """The number of parameters, as for `"ar1"`."""
        return ar1_params.params_size(event_size)

    def new(self, params: tf.Tensor, event_size: int) -> tfd.MultivariateNormalTriL:
        """The distribution of the samples."""
        stated = ar1_params.new(params, event_size)
        a = self.coefficient(stated.correlation_parameter())[..., tf.newaxis]
        rows = [tf.zeros_like(a)]
        for unit in tf.unstack(tf.eye(event_size, dtype=a.dtype)):
            rows.append(a * rows[-1] + unit)
        scale = stated.marginal_scale[..., tf.newaxis, tf.newaxis]
        sampled = tfd.MultivariateNormalTriL(stated.loc, scale * tf.stack(rows[1:], axis=-2))
        sampled.stated = stated
        return sampled

    def correlation(self, distribution: tfd.Distribution) -> tf.Tensor:
        """The correlation of the samples."""
        return posteriors.get("full").correlation(distribution)


SAMPLERS = {
    "diag": posteriors.get("diag"),
    "ar1": posteriors.get("ar1"),
    # The model code: √s times the cumulative sum of the noise, without ρ.
    "random_walk": Recurrence(tf.ones_like),
    # README and notebook: innovations √s where AR(1) has √(s (1 - ρ²)).
    "whole_innovations": Recurrence(tf.identity),
}


class Terms(NamedTuple):
    """What `Loss` computes for a batch; each entry has shape `[batch]`.

    The stated distribution is the one that the encoder's outputs describe, whatever the sampler.
    """

    loss: tf.Tensor
    reconstruction: tf.Tensor
    kl: tf.Tensor  # of the samples' distribution, exact
    correlation: tf.Tensor  # of the stated distribution
    log_variance: tf.Tensor  # log s of the stated distribution
    mean_term: tf.Tensor  # ½ ‖μ‖²
    covariance_terms: tf.Tensor  # the other terms of the stated distribution's KL
    reference_loss: tf.Tensor


class Loss(objectives.Objective):
    """The reconstruction from one draw plus the stated KL, by equation 6 or as in the reference.

    The reference adds the sum of ‖μ‖² over the batch to the s and ρ terms of each example, takes
    the mean, and adds the sum of the reconstructions. Divided by the batch size B, this is
    equation 6 with its s and ρ terms divided by B. The description reports no such error for the
    diagonal VAE, so there the reference's loss is taken to be correct.

    Args:
      reference: whether to minimize the reference's loss.
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
    # The sampler's family takes the same parameters as the named posterior, so the network fits.
    model.posterior = SAMPLERS[sampler]
    for name in Terms._fields:
        model.term_metrics.setdefault(name, keras.metrics.Mean(name=name))
    model.compile(keras.optimizers.Adam(SETTINGS["learning_rate"]))
    return model


def train(sampler: str, loss: str, x_train: np.ndarray, x_test: np.ndarray, epochs: int) -> dict:
    """Trains and evaluates one variant.

    Returns:
      * `curves`: the mean `Terms` of each epoch, on the training images during the epoch and on
        the test images (`val_...`) after it; all with one draw per image.
      * `test`: the result of `evaluation.evaluate`, with the samples' distribution as q.
      * `test_as_stated`, for a sampler that is not AR(1): the same with the stated distribution.
      * `test_refitted`, unless sampler and loss are the paper's: the same for the same decoder,
        with its encoder trained further as the paper describes, for as many epochs.
    """
    model = make_model(sampler, loss, x_train.shape[1:])
    result = {"curves": _fit(model, x_train, x_test, epochs), "test": _evaluate(model, x_test)}
    if isinstance(model.posterior, Recurrence):
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
    def batches(x: np.ndarray, order: tf.data.Dataset) -> tf.data.Dataset:
        return order.batch(SETTINGS["batch_size"]).map(lambda chosen: tf.gather(x, chosen))

    x_train, x_test = tf.constant(x_train), tf.constant(x_test)
    order = tf.data.Dataset.range(len(x_train)).shuffle(len(x_train), SETTINGS["seed"])
    test = batches(x_test, tf.data.Dataset.range(len(x_test)))
    data = {"x": batches(x_train, order), "validation_data": test}
    history = model.fit(**data, epochs=epochs, shuffle=False, verbose=2).history
    return {name: [float(value) for value in values] for name, values in history.items()}


def _evaluate(model: tfp_ar1.RhoVAE, x: np.ndarray) -> dict:
    return evaluation.evaluate(
        model, x, SETTINGS["num_importance_samples"], SETTINGS["batch_size"], SETTINGS["seed"]
    )


@click.command()
@click.option(
    "--data-dir",
    required=True,
    type=click.Path(exists=True, file_okay=False),
    help="Folder with the folders fashion_mnist and mnist, each with its four IDX files.",
)
@click.option("--dataset", "names", multiple=True, type=click.Choice(DATASETS), default=DATASETS)
@click.option("--out", type=click.Path(path_type=pathlib.Path), default=RESULTS, show_default=True)
def main(data_dir: str, names: tuple[str, ...], out: pathlib.Path) -> None:
    """Train every variant that has no result in OUT yet."""
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
            entries.append(
                {"dataset": name, "sampler": sampler, "loss": loss, **result}
                | {"seconds": round(time.perf_counter() - start, 1)}
                | {"data_sha256": data.fingerprint()["sha256"], "environment": environment()}
            )
            command = "python -m experiments.published_curves --data-dir FOLDER"
            write_json(out, {"command": command, "settings": SETTINGS, "results": entries})
            loss_as_published = result["curves"]["val_reference_loss"][-1]
            click.echo(
                f"  loss as the reference computes it {loss_as_published:.1f}, "
                f"-ELBO {result['test']['neg_elbo']:.1f}, NLL {result['test']['nll_iw']:.1f}"
            )
            keras.backend.clear_session()


if __name__ == "__main__":
    main()

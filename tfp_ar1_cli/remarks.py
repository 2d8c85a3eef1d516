"""Remarks printed when a training run is over: how it ended, and whether it improved the model."""

import numpy as np

from tfp_ar1_cli import run_folder
from tfp_ar1_cli.progress import counted
from tfp_ar1_cli.run_folder import Run

# A fall of the -ELBO below this share of where it began; correlations, and a KL, below this number.
_HARDLY = 0.01
_ABOUT_ZERO = 0.05


def run_remarks(run: Run) -> list[str]:
    """Returns the remarks on a run that has its history and its results, one line for each."""
    options, history = run.options, run.history()
    remarks: list[str] = []
    if "loss" not in history:  # Lost, for example because only part of the run was copied.
        return remarks
    epochs = len(history["loss"])
    if options.patience is not None:
        best = run_folder.best_epoch(history["val_loss"])
        ended = ""
        if epochs < options.epochs:
            ended = f"Stopped after {epochs} of {counted(options.epochs, 'epoch')}, "
            ended += f"{options.patience} without a lower validation loss. "
        remarks.append(f"{ended}The weights are those after epoch {best}, the best one.")
    longer = f"train longer (tfp-ar1 train --extend {run.folder} --epochs {max(epochs, 10)})"
    curve = np.add(history["reconstruction"], history["kl"])
    if epochs > 1 and history["kl"][-1] < _ABOUT_ZERO and options.objective == "elbo":
        remarks.append(
            f"The posteriors ended at the prior, with a KL of {history['kl'][-1]:.2f} nats, so the "
            f"latents say nothing about the data: {longer}, or anew with --warmup-steps, for "
            "example half of all optimizer steps; if the data are white noise, this is right."
        )
    elif epochs > 1 and curve[0] - curve.min() < _HARDLY * max(abs(curve[0]), 1):
        remarks.append(
            f"The run ended about where it began, with a -ELBO of {curve[-1]:.2f} (at first "
            f"{curve[0]:.2f}): {longer}, or anew with a higher --learning-rate or more data."
        )
    correlations = run.metrics().get("prior_correlation", [])
    if options.prior == "ar1" and max(map(abs, correlations), default=1) < _ABOUT_ZERO:
        remarks.append(
            "The prior correlations are still about 0, where they started, so the model has "
            f"learned nothing about how steps follow each other: {longer}, or with more or longer "
            "windows; if the series are white noise, this is right."
        )
    return remarks

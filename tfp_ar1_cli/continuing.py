"""Runs that begin where another run ended (`--extend`), or with its weights alone (`--from`)."""

import pathlib
from typing import Any

from tfp_ar1_cli import run_folder
from tfp_ar1_cli.errors import UserError
from tfp_ar1_cli.evaluate import load_model
from tfp_ar1_cli.options import RunOptions
from tfp_ar1_cli.run_folder import Run

# Options that must be the same for the weights to fit; and for the same training to continue.
_NETWORK = (
    *("model", "network", "hidden_units", "filters", "units", "posterior", "prior", "likelihood"),
    *("prior_correlations", "latent_dim", "channels"),
)
_TRAINING = ("objective", "beta", "warmup_steps", "hide", "seed", "batch_size", "validation")


def source(options: RunOptions) -> Run | None:
    """Returns the finished run whose weights a run begins with; None if there is none."""
    folder = options.extend or options.warm_start
    return run_folder.read_finished(pathlib.Path(folder)) if folder else None


def num_epochs(run: Run) -> int:
    """Returns how many epochs a run was trained, including those after the best one."""
    return len(run.history().get("loss", []))


def check(options: RunOptions, data: dict[str, Any]) -> None:
    """Raises a `UserError` if a run with these options and data cannot begin with those weights."""
    before = source(options)
    if before is None:
        return
    for name in _NETWORK + _TRAINING * bool(options.extend):
        was, now = getattr(before.options, name), getattr(options, name)
        if was != now:
            raise UserError(
                f"--{name.replace('_', '-')} {_text(now)} does not match {before.folder}, which "
                f"was trained with {_text(was)}; leave it out, or train a new run."
            )
    shape = tuple(data.get("image_shape") or data["data_shape"])
    if shape != before.data_shape:
        raise UserError(
            f"{options.dataset}: has examples of shape {shape}, but {before.folder} was trained on "
            f"{before.data_shape}; give data of that shape, or train a new run."
        )
    if options.extend:
        if any(before.data.get(key, value) != value for key, value in data.items()):
            raise UserError(
                f"{options.dataset}: differs from the data that {before.folder} was trained on, "
                "but --extend continues on the same data; begin a new run with --from instead."
            )
        patience = before.options.patience
        if options.patience and not patience:
            raise UserError(
                f"--patience does not match {before.folder}, which was trained without early "
                "stopping; leave it out, or train a new run."
            )
        if before.waited(num_epochs(before)) and (options.patience or 0) <= (patience or 0):
            raise UserError(
                f"{before.folder}: was ended by --patience {patience}, and would be again; give a "
                "larger --patience."
            )


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def begin(run: Run) -> tuple[Any, dict[str, list[float]]]:
    """Returns the model that a new run begins with, or None, and its history so far.

    With `--extend` a run takes over every variable, including the optimizer's, so it cannot be told
    from a run that was longer from the start, except for what depends on the length: the learning
    rate of series. With early stopping it takes over the state after the best epoch, and repeats
    the epochs that came after it.
    """
    before = source(run.options)
    if before is None:
        return None, {}
    history = before.history() if run.options.extend else {}
    done = num_epochs(before)
    if before.options.patience is not None:
        done = run_folder.best_epoch(history.get("val_loss", []))
    return load_model(before), {name: values[:done] for name, values in history.items()}

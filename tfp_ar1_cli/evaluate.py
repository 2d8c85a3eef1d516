"""`tfp-ar1 evaluate`, and what every command does with the model of a finished run."""

import dataclasses
import json
import math
import os
import pathlib
import zipfile
import zlib
from typing import Any

import click
import rich.console
import rich.table

from tfp_ar1_cli import backend, kinds, run_folder, startup
from tfp_ar1_cli.data import loading
from tfp_ar1_cli.data.protocol import Data
from tfp_ar1_cli.errors import NotFinite, UserError, describe
from tfp_ar1_cli.option_fields import takes
from tfp_ar1_cli.options import EvaluateOptions
from tfp_ar1_cli.progress import Progress, counted, doing
from tfp_ar1_cli.run_folder import Run


def evaluate(options: EvaluateOptions) -> tuple[dict[str, Any], Data]:
    """Evaluates the model of a finished run.

    Returns:
      The results by name, and the data that were scored.

    Raises:
      UserError: If the run, its model or the data cannot be used.
      NotFinite: If a result is not finite.
    """
    run = run_folder.read_finished(options.run)
    data = _load_data(run, options)
    number = options.num_importance_samples or run.options.num_importance_samples
    return evaluate_model(load_model(run), data, run, number), data


def _load_data(run: Run, options: EvaluateOptions) -> Data:
    """Reads the data of the run, or the data that the options name."""
    if options.data_dir is not None and run.options.model != "image":
        raise UserError(f"--data-dir is for models of images, not for {run.folder}; leave it out.")
    own, dataset, data_dir = options.dataset is None, run.options.dataset, options.data_dir
    if options.dataset is None:
        data_dir = data_dir or run.options.data_dir
    else:
        dataset = loading.resolve(options.dataset, run.options.model)
    wanted = dataclasses.replace(run.options.data, dataset=dataset, data_dir=data_dir)
    try:
        with doing(f"Reading {dataset}"):
            data = loading.load(wanted, run.data, whole=not own)
    except FileNotFoundError as error:
        if not own:
            raise
        raise UserError(
            f"{describe(error)} {run.folder} was trained on it; if it has moved, give its new "
            "path with --dataset."
        ) from error
    if data.data_shape != run.data_shape:
        raise UserError(
            f"the {data.noun}s of {dataset} have shape {data.data_shape}, but {run.folder} was "
            f"trained on {run.data_shape}; give a --dataset of that shape."
        )
    if own:
        run_folder.check_data(run, data.fingerprint())
    elif _place(dataset) == _place(run.options.dataset) and not data.is_that_of(run.data):
        click.echo(
            f"{dataset} has changed since {run.folder} was trained on it, or was read in another "
            "way: the scored data may include training data.",
            err=True,
        )
    return data


def _place(dataset: str) -> str:
    """Returns the path in a `--dataset` value, without its kind, or the name of the data set."""
    return os.path.realpath(dataset.partition(":")[2] or dataset)


def load_model(run: Run) -> Any:
    """Loads the model of a finished run; if it is damaged, a `UserError` says what to do."""
    startup.import_backend()
    import keras

    backend.library("vae")  # Registers the classes that the model file names.
    try:
        with doing("Loading the model"):
            return keras.saving.load_model(run.model_file)
    except Exception as error:  # A damaged archive fails in many ways.
        raise UserError(f"{run.model_file}: cannot be loaded{_why_not(run, error)}") from error


def _why_not(run: Run, error: Exception) -> str:
    """Says what is wrong with a model that cannot be loaded, and what to do about it."""
    if not _is_whole(run.model_file):
        return ": it is damaged; restore it from a copy or train again."
    first_line = str(error).strip().partition("\n")[0]
    now, wrote = run_folder.versions(), run.versions
    other = [name for name in {**wrote, **now} if wrote.get(name) != now.get(name)]
    if not other:
        return f", though the same packages wrote it: {first_line}"
    before = ", ".join(f"{name} {wrote.get(name, 'unknown')}" for name in other)
    after = ", ".join(f"{name} {now.get(name, 'missing')}" for name in other)
    return (
        f". It was written with {before}, but this environment has {after}; install the former. "
        f"({first_line})"
    )


def _is_whole(archive: pathlib.Path) -> bool:
    """Whether a zip archive has all its files, undamaged."""
    try:
        with zipfile.ZipFile(archive) as file:
            return file.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error):
        return False


def evaluate_model(model: Any, data: Data, run: Run, num_importance_samples: int) -> dict[str, Any]:
    """Evaluates a model on test data; `NotFinite` if a result is not finite."""
    evaluation = backend.library("vae.evaluation")
    with Progress("evaluating", len(data.x_test)) as progress:
        metrics = evaluation.evaluate(
            model, data.test, num_importance_samples, progress=lambda done, _: progress.update(done)
        )
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise NotFinite(
                f"the evaluation gave {name} = {value}; start a new run with a lower "
                "--learning-rate."
            )
    return metrics | kinds.of(run.options).measures(model)


def print_table(metrics: dict[str, Any], noun: str) -> None:
    """Prints a table of the main results."""
    title = counted(metrics["num_examples"], f"test {noun}")
    table = rich.table.Table("", f"nats per {noun}", title=title)
    table.columns[1].justify = "right"
    samples = counted(metrics["num_importance_samples"], "sample")
    names = {"neg_elbo": "-ELBO", "reconstruction": "reconstruction", "kl": "KL"}
    for key, name in (names | {"nll_iw": f"importance-weighted NLL, {samples}"}).items():
        table.add_row(name, f"{metrics[key]:.2f}")
    table.add_section()
    table.add_row("mean posterior correlation rho (no unit)", f"{metrics['rho_mean']:+.3f}")
    for channel, rho in enumerate(metrics.get("prior_correlation", []), start=1):
        table.add_row(f"prior correlation of latent path {channel} (no unit)", f"{rho:+.4f}")
    rich.console.Console().print(table)


def print_skipped(skipped: dict[str, str], where: str = "") -> None:
    """Prints how many images were left out, and the first of them."""
    if skipped:
        click.echo(f"Left out as corrupt: {len(skipped)}{where}. The first:")
        for position, problem in list(skipped.items())[:3]:
            click.echo(f"  {position}: {problem}")


@click.command("evaluate")
@takes(EvaluateOptions)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout.")
def command(options: EvaluateOptions, as_json: bool) -> None:
    """Evaluate the model of RUN on its own test data or on other data.

    Its own test data are those of the training. Other data are scored as a whole, unless they come
    with a test set, such as x_test in an .npz file; then only the test set is scored.

    \b
    Examples:
      tfp-ar1 evaluate runs/digits-ar1-001 --num-importance-samples 500
      tfp-ar1 evaluate runs/digits-ar1-001 --json > results.json
    """  # noqa: D301
    metrics, data = evaluate(options)
    for note in data.notes:
        click.echo(note, err=as_json)
    if as_json:
        click.echo(json.dumps(metrics, indent=2))
    else:
        print_table(metrics, data.noun)
        print_skipped(data.skipped)

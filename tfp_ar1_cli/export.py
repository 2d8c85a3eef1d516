"""`tfp-ar1 export`: a SavedModel and its model card."""

import pathlib
from typing import Any

import click

from tfp_ar1_cli import backend, model_card, run_folder
from tfp_ar1_cli.atomic import atomic_folder, check_new_folder, check_writable, write_json
from tfp_ar1_cli.errors import UserError, dispensable
from tfp_ar1_cli.evaluate import load_model
from tfp_ar1_cli.option_fields import takes
from tfp_ar1_cli.options import ExportOptions

# The part of a SavedModel that is for other files, which no program that loads it reads.
_EXTRA = "assets.extra"


def export(options: ExportOptions) -> tuple[pathlib.Path, dict[str, Any] | None]:
    """Writes the model of a run that is finished for TensorFlow alone, with a model card.

    Returns:
      The folder, and the card; or None if the card failed, without which the folder is whole.

    Raises:
      UserError: If the run or its model cannot be used, or the folder is taken.
    """
    run = run_folder.read_finished(options.run)
    if backend.name() != "tensorflow":
        raise UserError(
            "a SavedModel is TensorFlow's: export the run, whichever backend trained it, with "
            "KERAS_BACKEND=tensorflow, where TensorFlow is installed."
        )
    if options.serving:
        out = _next_version(options.out or run.folder / "serving")
    else:
        out = options.out or run.folder / "export"
    check_new_folder(out)
    check_writable(out)
    metrics = run.metrics()
    model = load_model(run)
    dtype = model.distribution_dtype.name
    card = None
    with atomic_folder(out) as folder:
        _write_saved_model(model, folder, out)
        with dispensable(f"the model card of {out}"):
            made = model_card.make(run, metrics, dtype, num_skipped=len(run.skipped()))
            beside = folder / _EXTRA if options.serving else folder
            beside.mkdir(exist_ok=True)
            write_json(beside / "model_card.json", made)
            text = model_card.text(made, ".." if options.serving else ".")
            (beside / "README.md").write_text(text, encoding="utf-8", errors="backslashreplace")
            card = made
    return out, card


def _next_version(base: pathlib.Path) -> pathlib.Path:
    """The folder of the next version among those that are there; a `UserError` if none can be."""
    if base.exists() and not base.is_dir():
        raise UserError(f"{base}: is a file; choose another --out.")
    if (base / "saved_model.pb").exists():
        raise UserError(f"{base}: is a SavedModel, not a folder of versions; choose another --out.")
    there = [int(path.name) for path in base.glob("[0-9]*") if path.name.isdecimal()]
    return base / str(max(there, default=0) + 1)


def _write_saved_model(model: Any, folder: pathlib.Path, out: pathlib.Path) -> None:
    import tensorflow as tf

    try:
        model.export(folder, verbose=False)
    except tf.errors.OpError as error:  # TensorFlow's own, where the disk is full.
        reason = error.message.rpartition("; ")[2]  # Before it stands a temporary file.
        raise click.ClickException(f"{out}: cannot be written: {reason}") from error


@click.command("export")
@takes(ExportOptions)
def command(options: ExportOptions) -> None:
    """Write the model of RUN for processes that have TensorFlow only, with a model card.

    The folder is a SavedModel, with README.md, what the model is and how to call it, and the same
    for programs, model_card.json. With --serving it is a version for TensorFlow Serving, with these
    two in its folder assets.extra.

    \b
    Examples:
      tfp-ar1 export runs/digits-ar1-001
      tfp-ar1 export runs/digits-ar1-001 --out models/digits
      tfp-ar1 export runs/digits-ar1-001 --serving --out serving/digits
    """  # noqa: D301
    out, card = export(options)
    if card is None:
        click.echo(f"Wrote {out}: a SavedModel.")
        return
    where = f", in its {_EXTRA}" * options.serving
    click.echo(f"Wrote {out}: a SavedModel, README.md (model card) and model_card.json{where}.")
    more = " (S draws, H steps)" * ("forecast" in card["signatures"])
    click.echo(f"Endpoints, for any number N of examples{more}:")
    for name in card["signatures"]:
        click.echo(f"  {model_card.signature(card, name)}")

"""`tfp-ar1 export`: a SavedModel and its model card."""

import pathlib
from typing import Any

import click

from tfp_ar1_cli import backend, model_card, run_folder
from tfp_ar1_cli.atomic import atomic_folder, check_new_folder, write_json
from tfp_ar1_cli.errors import UserError, dispensable
from tfp_ar1_cli.evaluate import load_model
from tfp_ar1_cli.option_fields import takes
from tfp_ar1_cli.options import ExportOptions

# The folder of a SavedModel for other files; programs that load the model do not read it.
_EXTRA = "assets.extra"


def export(options: ExportOptions) -> tuple[pathlib.Path, dict[str, Any] | None]:
    """Exports the model of a finished run as a SavedModel, with a model card.

    Returns:
      The folder, and the card, or None if the card failed; the SavedModel is complete without it.

    Raises:
      UserError: If the run or its model cannot be used, or the folder is taken.
    """
    run = run_folder.read_finished(options.run)
    if backend.name() != "tensorflow":
        raise UserError(
            "a SavedModel needs TensorFlow: export the run, whichever backend trained it, with "
            "KERAS_BACKEND=tensorflow, where TensorFlow is installed."
        )
    if options.serving:
        out = _next_version(options.out or run.folder / "serving")
    else:
        out = options.out or run.folder / "export"
    check_new_folder(out)
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
    """Returns the folder for the next version; a `UserError` if `base` cannot hold versions."""
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
    except tf.errors.OpError as error:  # TensorFlow raises this if the disk is full.
        reason = error.message.rpartition("; ")[2]  # The part before names a temporary file.
        raise click.ClickException(f"{out}: cannot be written: {reason}") from error


@click.command("export")
@takes(ExportOptions)
def command(options: ExportOptions) -> None:
    """Export the model of RUN for processes that have only TensorFlow, with a model card.

    The folder is a SavedModel. Its README.md says what the model is and how to call it;
    model_card.json has the same for programs. With --serving the folder is a version for TensorFlow
    Serving, with these two files in its folder assets.extra.

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

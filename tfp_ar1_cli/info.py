"""`tfp-ar1 info`: what a run is, and how far it is."""

import pathlib
import shlex

import click

from tfp_ar1_cli import kinds, run_folder
from tfp_ar1_cli.evaluate import print_table
from tfp_ar1_cli.names import NETWORKS
from tfp_ar1_cli.progress import counted
from tfp_ar1_cli.remarks import run_remarks
from tfp_ar1_cli.run_folder import Run


def state(run: Run) -> str:
    """How far a run is: finished, or after how many epochs it stands."""
    return "finished" if run.finished else f"unfinished, {num_epochs(run)} done"


def num_epochs(run: Run) -> str:
    """How many epochs were trained, of how many that were asked for."""
    done = len(run.history().get("loss", [])) if run.finished else run.position().epoch
    total = run.options.epochs
    return f"{counted(done, 'epoch')}" if done == total else f"{done} of {counted(total, 'epoch')}"


@click.command("info")
@click.argument("folder", metavar="RUN", type=click.Path(path_type=pathlib.Path))
def command(folder: pathlib.Path) -> None:
    """Say what RUN is: its data, model, options, results and files; and how to resume it.

    \b
    Examples:
      tfp-ar1 info runs/digits-ar1-001
    """  # noqa: D301
    run = run_folder.read(folder)
    chosen, data = run.options, run.data
    noun = "window" if chosen.model == "sequence" else "image"
    parts = f"{data['num_train']} training and {counted(data['num_test'], f'test {noun}')}"
    network = NETWORKS[chosen.model][chosen.network]
    flags = [f"--{name.replace('_', '-')} {_text(x)}" for name, x in chosen.changed().items()]
    for line in (
        f"{run.folder}: {state(run)}.",
        f"Data: {chosen.dataset}, {parts} of shape {_text(list(run.data_shape))}.",
        f"Model: {chosen.network} ({network}); {chosen.posterior} posterior "
        f"{kinds.of(chosen).describe_latents(chosen)}.",
        f"Options that are not the default: {' '.join(flags) or 'none'}",
    ):
        click.echo(line)
    if run.finished:
        click.echo(f"Trained for {num_epochs(run)}, with tfp_ar1 {_version(run)}.")
        print_table(run.metrics(), noun)
        for remark in run_remarks(run):
            click.echo(remark)
    else:
        click.echo(f"Resume it with: {run.resume_command}")
    click.echo(f"Files: {', '.join(sorted(path.name for path in run.folder.iterdir()))}")


def _text(value: object) -> str:
    return shlex.quote(",".join(map(str, value)) if isinstance(value, list) else str(value))


def _version(run: Run) -> str:
    return run.versions.get("tfp_ar1", "of unknown version")

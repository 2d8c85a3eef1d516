"""`tfp-ar1 info`: what a run is, and how far it has got."""

import pathlib
import shlex

import click

from tfp_ar1_cli import continuing, kinds, run_folder
from tfp_ar1_cli.evaluate import print_table
from tfp_ar1_cli.names import NETWORKS
from tfp_ar1_cli.progress import counted
from tfp_ar1_cli.remarks import run_remarks
from tfp_ar1_cli.run_folder import Run


def epochs(run: Run) -> str:
    """Returns how many epochs are done, and, if that is not all of them, of how many."""
    done = continuing.num_epochs(run) if run.finished else run.position().epoch
    total = run.options.epochs
    return str(done) if done == total else f"{done} of {total}"


@click.command("info")
@click.argument("folder", metavar="RUN", type=click.Path(path_type=pathlib.Path))
def command(folder: pathlib.Path) -> None:
    """Describe RUN: its data, model, options, results and files, and how to resume it.

    \b
    Examples:
      tfp-ar1 info runs/digits-ar1-001
    """  # noqa: D301
    run = run_folder.read(folder)
    chosen, data = run.options, run.data
    noun = "window" if chosen.model == "sequence" else "image"
    parts = f"{data['num_train']} training and {counted(data['num_test'], f'test {noun}')}"
    trained = f"{epochs(run)} epoch{'s' * (chosen.epochs != 1)}"
    network = NETWORKS[chosen.model][chosen.network]
    flags = [f"--{name.replace('_', '-')} {_text(x)}" for name, x in chosen.changed().items()]
    for line in (
        f"{run.folder}: {'finished' if run.finished else f'unfinished, {trained} done'}.",
        f"Data: {chosen.dataset}, {parts} of shape {_text(list(run.data_shape))}.",
        f"Model: {chosen.network} ({network}); {chosen.posterior} posterior "
        f"{kinds.of(chosen).describe_latents(chosen)}.",
        f"Options other than the defaults: {' '.join(flags) or 'none'}",
    ):
        click.echo(line)
    if run.finished:
        click.echo(f"Trained for {trained}, with tfp_ar1 {_version(run)}.")
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

"""`tfp-ar1 train`: trains a model, evaluates it, and draws pictures, in a run folder."""

import contextlib
import dataclasses
import functools
import pathlib
import shlex
import shutil
import sys
from collections.abc import Iterator

import click

from tfp_ar1_cli import kinds, run_folder, startup
from tfp_ar1_cli.atomic import atomic, check_writable, write_json
from tfp_ar1_cli.data import loading, sources
from tfp_ar1_cli.data.protocol import Data
from tfp_ar1_cli.errors import Interrupted, NotFinite, UserError, describe
from tfp_ar1_cli.evaluate import evaluate_model, print_skipped, print_table
from tfp_ar1_cli.options import RunOptions, takes
from tfp_ar1_cli.progress import counted, doing
from tfp_ar1_cli.run_folder import Run
from tfp_ar1_cli.training import strategies


def prepare(options: RunOptions) -> tuple[RunOptions, Data]:
    """Reads the data, and gives the options what follows from them and from the machine.

    A `UserError` if the data cannot be read, or there are not so many devices.
    """
    replicas = strategies.num_replicas(options.strategy, options.replicas)
    if options.batch_size < replicas:
        raise UserError(
            f"--batch-size {options.batch_size} is too small for {replicas} replicas; it is that "
            "of all of them together."
        )
    with doing(f"Reading {options.dataset}"):
        data = loading.load(options.data)
    kinds.of(options).check(options, data)
    window = data.data_shape[0] if options.model == "sequence" else None
    return dataclasses.replace(options, replicas=replicas, window=window), data


def train(
    options: RunOptions,
    out: pathlib.Path | None = None,
    backup_steps: int = 500,
    resume_with: tuple[str, ...] = ("tfp-ar1", "train", "..."),
) -> Run:
    """Trains a model, evaluates it, and draws pictures; an unfinished run is resumed.

    Args:
      options: What makes the run.
      out: The folder of the run, or None for the next one in `runs`.
      backup_steps: A backup to resume from after so many steps of an epoch; 0 for none.
      resume_with: The command to name, besides `--out`, where the run is interrupted.

    Returns:
      The run. It is finished, but where this is another worker than 0.

    Raises:
      click.ClickException: If something is wrong, or the loss is no longer finite (`NotFinite`).
    """
    worker = strategies.task().index if options.strategy == "multiworker" else 0
    if options.strategy == "multiworker" and out is None:
        raise click.UsageError(
            "--strategy multiworker needs --out, a folder that all workers share."
        )
    if worker == 0:
        if out is not None:
            run_folder.check_out(out)
        check_writable((out or pathlib.Path("runs")) / "config.json")
    options, data = prepare(options)
    fingerprint = data.fingerprint()
    claimed: contextlib.AbstractContextManager[Run]
    if worker and out is not None:
        claimed = contextlib.nullcontext(run_folder.visit(out, options, fingerprint, worker))
    else:
        name = f"{loading.short_name(options.dataset)}-{options.posterior}"
        claimed = run_folder.claim(out, name, options, fingerprint)
    with claimed as run:
        resume_with += () if out else ("--out", str(run.folder))
        with _told_how_to_resume(run, shlex.join(resume_with)):
            _train(run, data, backup_steps)
    return run


@contextlib.contextmanager
def _told_how_to_resume(run: Run, command: str) -> Iterator[None]:
    """Adds to whatever stops a run where it stands and how to resume it."""
    try:
        yield
    except KeyboardInterrupt as error:
        if run.finished:
            raise
        done, epochs = run.position().epoch, run.options.epochs
        raise Interrupted(
            f"interrupted after {done} of {counted(epochs, 'epoch')}; resume with: {command}"
        ) from error
    except (OSError, sources.Corrupt) as error:
        if run.finished or isinstance(error, BrokenPipeError):
            raise
        what = describe(error, run.folder) if isinstance(error, OSError) else error.message
        raise click.ClickException(
            f"{what} The run is unfinished; resume with: {command}"
        ) from error


def _train(run: Run, data: Data, backup_steps: int) -> None:
    options, kind = run.options, kinds.of(run.options)
    epoch, step = run.position()
    steps = f" and {counted(step, 'step')}" * bool(step)
    already = f", {epoch}{steps} of them done" * bool(epoch or step)
    click.echo(
        f"Training on {loading.short_name(options.dataset)}: {data.describe()}; "
        f"{options.posterior} posterior {kind.describe_latents(options)}; "
        f"{counted(options.epochs, 'epoch')}{already}."
    )
    for note in data.notes:
        click.echo(note)
    name = options.strategy
    if name == "multiworker" and run.trained:
        # The other workers may have left, and none is needed for what is left to do.
        name = "none"
    if name == "multiworker":
        click.echo(strategies.task().describe())
    elif run.worker:
        _leave(data)
        return
    start = functools.partial(strategies.start, name, options.replicas or 1)
    with strategies.restarting(run):
        strategy = startup.import_tensorflow(start)
    from tfp_ar1_cli.training import fit

    try:
        with strategies.restarting(run):
            model = fit.train(run, data, strategy=strategy, backup_steps=backup_steps)
            if run.worker:
                strategies.wait_for_last_backup(run)
                _leave(data)
                return
        with atomic(run.model_file) as path:
            model.save(path)
        metrics = evaluate_model(model, data, run, options.num_importance_samples)
    except NotFinite as error:
        raise NotFinite(f"{error.message} {run.folder} stays unfinished.") from error
    run.add_skipped(data.skipped)
    skipped = run.collect_skipped()
    # Before anything that the run can do without.
    write_json(run.metrics_file, metrics)
    pictures = kind.draw(run, model, data)
    run.finish()

    print_table(metrics, data.noun)
    print_skipped(skipped, f", all in {run.skipped_file}")
    click.echo("Pictures:" if pictures else "Pictures: none could be drawn.")
    for picture in pictures:
        click.echo(f"  {picture}")
    folder, logs, program = (shlex.quote(str(x)) for x in (run.folder, run.logs, _program()))
    tensorboard = program.removesuffix("tfp-ar1") + "tensorboard"
    click.echo(
        f"Continue with:\n  {program} sample {folder} --seed {options.seed + 1}\n"
        f"  {program} evaluate {folder} --num-importance-samples 500\n  {program} export {folder}\n"
        f"  {tensorboard} --logdir {logs}"
    )


def _leave(data: Data) -> None:
    """What another worker than 0 says at its end."""
    click.echo("This worker is done; worker 0 evaluates the model and writes the run.")
    print_skipped(data.skipped, " by this worker")


def _program() -> str:
    """The program as it can be called again: with its path if it is not on the user's PATH."""
    called = pathlib.Path(sys.argv[0])
    on_path = shutil.which("tfp-ar1")
    return str(called) if called.name == "tfp-ar1" and on_path is None else "tfp-ar1"


@click.command("train")
@takes(RunOptions)
@click.option(
    "--backup-steps",
    metavar="N",
    type=click.IntRange(min=0),
    default=500,
    help="A backup to resume from after so many steps of an epoch, besides that at its end; 0 for "
    "none.",
)
@click.option(
    "--out",
    metavar="FOLDER",
    type=click.Path(path_type=pathlib.Path),
    show_default="runs/<dataset>-<posterior>-001, -002, ...",
    help="Folder of the run: a new one, or that of an unfinished run with the same options, which "
    "is then resumed.",
)
@click.pass_obj
def command(
    argv: list[str], options: RunOptions, backup_steps: int, out: pathlib.Path | None
) -> None:
    """Train a model, evaluate it, and draw pictures.

    \b
    Examples:
      tfp-ar1 train
      tfp-ar1 train --dataset mnist --data-dir mnist --posterior diag
      tfp-ar1 train --dataset npz:photos.npz --likelihood gaussian --out photos
      tfp-ar1 train --dataset images:photos --resize 64 --corrupt skip
      tfp-ar1 train --dataset 'tfrecord:shards/*.tfrecord' --network dcgan
      tfp-ar1 train --model sequence --posterior diag --prior normal
      tfp-ar1 train --model sequence --dataset csv:rivers.csv --window 365
    """  # noqa: D301
    train(options, out, backup_steps, (_program(), *argv))

"""`tfp-ar1 train`: trains a model, evaluates it, and draws pictures, in a run folder."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from tfp_ar1_cli import backend, continuing, kinds, progress, run_folder, startup
from tfp_ar1_cli.atomic import atomic, check_writable, write_json
from tfp_ar1_cli.data import loading, sources
from tfp_ar1_cli.data.protocol import Data
from tfp_ar1_cli.errors import Interrupted, NotFinite, UserError, describe
from tfp_ar1_cli.evaluate import evaluate_model, print_skipped, print_table
from tfp_ar1_cli.option_fields import takes
from tfp_ar1_cli.options import RunOptions, default_split
from tfp_ar1_cli.progress import counted, doing
from tfp_ar1_cli.remarks import run_remarks
from tfp_ar1_cli.run_folder import Run
from tfp_ar1_cli.training import strategies


def prepare(options: RunOptions, before: RunOptions | None = None) -> tuple[RunOptions, Data]:
    """Reads the data, and fills in the options that depend on them and on the machine.

    Options that were left open are as in `before`, the options of the run that is resumed, if any.
    Raises a `UserError` if the data cannot be read, or there are fewer devices than asked for.
    """
    replicas = strategies.num_replicas(options.strategy, options.replicas)
    if options.batch_size < replicas:
        raise UserError(
            f"--batch-size {options.batch_size} is too small for {replicas} replicas, "
            "which share it; give at least one example for each."
        )
    split = options.split or (before.split if before else default_split(options.dataset))
    options = dataclasses.replace(options, split=split)
    with doing(f"Reading {options.dataset}"):
        data = loading.load(options.data)
    kinds.of(options).check(options, data)
    window = data.data_shape[0] if options.model == "sequence" else None
    num_train = len(data.x_train)
    if options.validation and num_train < 2:
        shorter = ", or choose a shorter --window" * (options.model == "sequence")
        raise UserError(
            f"{options.dataset}: has 1 training {data.noun}, which leaves none for validation; "
            f"leave --validation and --patience out{shorter}."
        )
    apart = max(1, round(options.validation * num_train)) if options.validation else 0
    epochs = options.epochs or (
        before.epochs if before else options.default_epochs(num_train - apart)
    )
    return dataclasses.replace(options, replicas=replicas, window=window, epochs=epochs), data


def held_out(options: RunOptions, data: Data) -> Data:
    """Returns the data, with a part set apart for validation if the options ask for it."""
    return data.hold_out(options.validation) if options.validation else data


def train(
    options: RunOptions,
    out: pathlib.Path | None = None,
    backup_steps: int = 500,
    resume_with: tuple[str, ...] = ("tfp-ar1", "train", "..."),
    report: Callable[[dict[str, Any]], None] | None = None,
) -> Run:
    """Trains a model, evaluates it, and draws pictures; an unfinished run is resumed.

    Args:
      options: What defines the run.
      out: The folder of the run, or None for the next one in `runs`.
      backup_steps: Number of steps between backups within an epoch; 0 for none.
      resume_with: The command to print, with `--out` added, if the run is interrupted.
      report: Called with the losses of each epoch when it is done, and at the end with the results.

    Returns:
      The run. It is finished, except on workers other than 0.

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
    resumed = out is not None and (out / "config.json").is_file()
    before = run_folder.read(out).options if out is not None and resumed else None
    options, data = prepare(options, before)
    fingerprint = data.fingerprint()  # The training data here still include the validation data.
    if before is None:
        continuing.check(options, fingerprint)
    data = held_out(options, data)
    claimed: contextlib.AbstractContextManager[Run]
    if worker and out is not None:
        claimed = contextlib.nullcontext(run_folder.visit(out, options, fingerprint, worker))
    else:
        name = f"{loading.short_name(options.dataset)}-{options.posterior}"
        claimed = run_folder.claim(out, name, options, fingerprint)
    with claimed as run:
        resume_with += () if out else ("--out", str(run.folder))
        with _told_how_to_resume(run, shlex.join(resume_with)):
            _train(run, data, backup_steps, report)
    return run


@contextlib.contextmanager
def _told_how_to_resume(run: Run, command: str) -> Iterator[None]:
    """Adds to any error that stops a run how far it got and how to resume it."""
    try:
        yield
    except KeyboardInterrupt as error:
        if run.finished:
            raise
        done, epochs = run.position().epoch, run.options.epochs
        raise Interrupted(
            f"interrupted after {done} of {counted(epochs, 'epoch')}; resume with: {command}", error
        ) from error
    except (OSError, sources.Corrupt) as error:
        if run.finished or isinstance(error, BrokenPipeError):
            raise
        what = describe(error, run.folder) if isinstance(error, OSError) else error.message
        raise click.ClickException(
            f"{what} The run is unfinished; resume with: {command}"
        ) from error


def _train(
    run: Run, data: Data, backup_steps: int, report: Callable[[dict[str, Any]], None] | None
) -> None:
    options, kind = run.options, kinds.of(run.options)
    epoch, step = run.position()
    steps = f" and {counted(step, 'step')}" * bool(step)
    _announce("Training on", options, data, f", {epoch}{steps} of them done" * bool(epoch or step))
    name = options.strategy
    if name == "multiworker" and run.trained:
        # The other workers may have exited, and the remaining work needs none of them.
        name = "none"
    if name == "multiworker":
        click.echo(strategies.task().describe())
    elif run.worker:
        _leave(data)
        return
    start = functools.partial(strategies.start, name, options.replicas or 1)
    with strategies.restarting(run):
        strategy = startup.import_backend(start)
    click.echo(f"Running on {strategies.describe_devices(name, options.replicas or 1)}.")
    from tfp_ar1_cli.training import fit

    try:
        with strategies.restarting(run):
            model = fit.train(
                run, data, strategy=strategy, backup_steps=backup_steps, on_epoch=report
            )
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
    # Written before the optional parts of the run.
    write_json(run.metrics_file, metrics)
    pictures = kind.draw(run, model, data)
    run.finish()

    print_table(metrics, data.noun)
    remarks = run_remarks(run)
    if report is not None:
        report({"run": str(run.folder), **metrics, "remarks": remarks})
    for remark in remarks:
        click.echo(remark)
    print_skipped(skipped, f", all in {run.skipped_file}")
    click.echo("Pictures:" if pictures else "Pictures: none could be drawn.")
    for picture in pictures:
        click.echo(f"  {picture}")
    folder, logs, program = (shlex.quote(str(x)) for x in (run.folder, run.logs, _program()))
    tensorboard = program.removesuffix("tfp-ar1") + "tensorboard"
    of_tensorflow = f"\n  {program} export {folder}\n  {tensorboard} --logdir {logs}"
    file = shlex.quote(options.dataset.partition(":")[2])
    own = f"  {program} impute {folder} {file}\n  {program} forecast {folder} {file} --steps 10\n"
    click.echo(
        f"Continue with:\n{own * (options.model == 'sequence' and ':' in options.dataset)}"
        f"  {program} sample {folder} --seed {options.seed + 1}\n"
        f"  {program} evaluate {folder} --num-importance-samples 500"
        f"{of_tensorflow * (backend.name() == 'tensorflow')}"
    )


def _announce(what: str, options: RunOptions, data: Data, already: str = "") -> None:
    """Prints what will be done, and how the data were read."""
    steps_per_epoch = -(-len(data.x_train) // options.batch_size)
    default = ":" in options.dataset and options.epochs == options.default_epochs(len(data.x_train))
    length = counted(options.epochs, "epoch")
    length += f" ({options.epochs * steps_per_epoch} steps, the default)" * default
    click.echo(
        f"{what} {loading.short_name(options.dataset)}: {data.describe()}; {options.posterior} "
        f"posterior {kinds.of(options).describe_latents(options)}; {length}{already}."
    )
    if options.extend or options.warm_start:
        begins = "Continues from the end of" if options.extend else "Begins with the weights of"
        click.echo(f"{begins} {options.extend or options.warm_start}.")
    for note in data.notes:
        click.echo(note)


def _leave(data: Data) -> None:
    """Prints the last message of a worker other than 0."""
    click.echo("This worker is done; worker 0 evaluates the model and writes the run.")
    print_skipped(data.skipped, " by this worker")


def _program() -> str:
    """Returns the command that calls this program: with its path if it is not on the PATH."""
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
    help="Number of steps between backups to resume from, besides the one at the end of each "
    "epoch; 0 for none.",
)
@click.option(
    "--out",
    metavar="FOLDER",
    type=click.Path(path_type=pathlib.Path),
    show_default="runs/<dataset>-<posterior>-001, -002, ...",
    help="Folder of the run: a new one, or that of an unfinished run with the same options, to "
    "resume it.",
)
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path),
    help="A run's config.json: repeat the run with its options, unless others are given.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Read the data, print how they were read and what would be trained, and stop.",
)
@click.option("--quiet", is_flag=True, help="Print nothing but errors, and the folder of the run.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print a line of JSON for each epoch, and one with the results, and nothing else, on "
    "stdout.",
)
@click.pass_context
def command(
    ctx: click.Context,
    options: RunOptions,
    backup_steps: int,
    out: pathlib.Path | None,
    config: pathlib.Path | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
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
      tfp-ar1 train --dataset npz:photos.npz --patience 20
      tfp-ar1 train --extend runs/photos-ar1-001 --epochs 50
    """  # noqa: D301
    if _is_given(ctx, "extend"):
        if not _is_given(ctx, "epochs"):
            raise click.UsageError("--extend needs --epochs N, the number of additional epochs.")
        done = continuing.num_epochs(run_folder.read_finished(pathlib.Path(str(options.extend))))
        options = dataclasses.replace(options, epochs=done + options.epochs)
    if dry_run:
        options, data = prepare(options)
        _announce("Would train on", options, held_out(options, data))
        return
    results, said = sys.stdout, sys.stderr if as_json else sys.stdout
    with contextlib.ExitStack() as stack:
        if quiet:
            said = stack.enter_context(open(os.devnull, "w", errors="replace"))
            stack.enter_context(progress.silence())
        stack.enter_context(contextlib.redirect_stdout(said))
        report = (lambda values: click.echo(json.dumps(values), results)) if as_json else None
        run = train(options, out, backup_steps, (_program(), *ctx.obj), report)
    if quiet and not as_json:
        click.echo(run.folder)


def _is_given(ctx: click.Context, name: str) -> bool:
    """Whether an option was given on the command line."""
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _take_options(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Makes the options of another run the defaults of this one."""
    if value is not None:
        of_run = parameter.name != "config"
        run = run_folder.read(pathlib.Path(value)) if of_run else run_folder.read_config(value)
        taken = run.options.changed()
        if of_run:  # What that run began with does not determine what this one begins with.
            taken = {k: v for k, v in taken.items() if k not in ("extend", "warm_start")}
        values = {k: ",".join(map(str, v)) if type(v) is list else v for k, v in taken.items()}
        ctx.default_map = {**values, **(ctx.default_map or {})}
    return value


for _parameter in command.params:
    if _parameter.name in ("config", "extend", "warm_start"):
        _parameter.is_eager, _parameter.callback = True, _take_options

"""The commands `train`, `evaluate`, `sample` and `export`.

Everything a user can get wrong is checked before TensorFlow is imported, which takes seconds.
Whatever is wrong is a `click.ClickException`, which `run` turns into one line on stderr and an
exit code.
"""

import contextlib
import functools
import itertools
import json
import math
import os
import pathlib
import shlex
import shutil
import sys
import traceback
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import click
import numpy as np
import rich.console
import rich.table

from tfp_ar1_cli import model_card, runs, startup, strategies
from tfp_ar1_cli.data import images, loading, series, streams
from tfp_ar1_cli.data.protocol import Data
from tfp_ar1_cli.errors import Interrupted, UserError, dispensable, reason
from tfp_ar1_cli.progress import Progress, counted, doing

# Named here too, so that a wrong one is refused before TensorFlow is imported; a test compares.
POSTERIORS = ("ar1", "diag", "isotropic", "full", "arh1", "ante1")
LIKELIHOODS = ("bernoulli", "gaussian")
NETWORKS = ("mlp", "cnn", "dcgan")
OBJECTIVES = ("elbo", "infovae", "iwae")
MODELS = ("image", "sequence")
# Of the model `sequence`.
SEQUENCE_POSTERIORS = ("ar1", "diag", "isotropic", "arh1", "ante1")
SEQUENCE_NETWORKS = ("convolutional", "recurrent")
PRIORS = ("ar1", "normal")
_SEQUENCE_DEFAULTS = {
    "dataset": "pig_cvp",
    "network": "convolutional",
    "likelihood": "gaussian",
    "batch_size": 32,
    "learning_rate": 5e-3,
}
# Options of `train` that only one of the models has.
_ONLY = {
    "image": ("data_dir", "corrupt", "hidden_units", "latent_dim"),
    "sequence": ("prior", "channels", "window", "hide"),
}
_EPOCHS = {
    "digits": 200,
    "mnist": 15,
    "fashion_mnist": 15,
    "pig_cvp": 40,
    "basic_motions": 300,
    "gunpoint": 300,
}
_EPOCHS_OWN_DATA = 50
_MAX_SEED = 2**31 - 1


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; see `tfp_ar1_cli.main`."""
    startup.set_environment()
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        # Not every terminal knows the letter ρ, and names of files need not be text at all.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return cli.main(argv, prog_name="tfp-ar1", standalone_mode=False, obj=argv) or 0
    except click.Abort:
        return _fail("interrupted.", Interrupted.exit_code)
    except click.ClickException as error:
        message = error.format_message()
        if isinstance(error, click.UsageError) and error.ctx is not None:
            message += f" (See '{error.ctx.command_path} --help'.)"
        return _fail(message, error.exit_code)
    except BrokenPipeError:
        # The reader of a pipe went away.
        _discard_stdout()
        return 1
    except OSError as error:
        return _fail(_describe(error), 2)
    except UnicodeEncodeError as error:
        return _fail(
            f"{error.object[:300]}: has letters that {error.encoding} cannot write ({error.reason})"
            "; rename the file or folder, or set LC_ALL=C.UTF-8.",
            2,
        )
    finally:
        if _stdout_is_broken():
            _discard_stdout()


def _stdout_is_broken() -> bool:
    """Whether what was printed cannot be written, as on a full disk."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        return True
    except AttributeError:  # There is none.
        pass
    return False


def _discard_stdout() -> None:
    """Keeps Python from complaining again when it flushes at its exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    kind = "" if code == Interrupted.exit_code else "error: "
    click.echo(f"tfp-ar1: {kind}{' '.join(message.split())}", err=True)
    return code


def _program() -> str:
    """The program as it can be called again: with its path if it is not on the user's PATH."""
    called = pathlib.Path(sys.argv[0])
    on_path = shutil.which("tfp-ar1")
    return str(called) if called.name == "tfp-ar1" and on_path is None else "tfp-ar1"


def _describe(error: OSError, where: pathlib.Path | None = None) -> str:
    """What went wrong and where, which errors of writing to an open file do not know."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if frame.f_globals.get("__name__", "").partition(".")[0] in ("click", "rich"):
        where = "standard output"
    where = error.filename or where
    return f"{where}: {error.strerror or error}." if where else f"{error}."


class _DatasetType(click.ParamType):
    name = "NAME"

    def convert(self, value: str, param: Any, ctx: Any) -> str:
        of_sequences = ctx.params.get("model") == "sequence"
        if value in series.SHIPPED and not of_sequences and "model" in ctx.params:
            raise click.BadParameter(f"{value} holds series; give --model sequence too.")
        if value.startswith("csv:") and not of_sequences and "model" in ctx.params:
            raise click.BadParameter(f"{value} is a file of series; give --model sequence too.")
        return _source(of_sequences).resolve(value)


def _finite(ctx: Any, param: Any, value: Any) -> Any:
    # click's ranges let NaN through, and infinity where there is no upper end.
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.")
    return value


def _parse_hidden_units(ctx: Any, param: Any, value: str) -> list[int]:
    try:
        units = [int(part) for part in value.split(",")]
    except ValueError:
        units = [0]
    if min(units) < 1:
        raise click.BadParameter(
            f"{value!r} is not a list of positive whole numbers like 400 or 400,200."
        )
    return units


def _source(of_sequences: bool) -> Any:
    """The module that a model's data come from."""
    return series if of_sequences else images


def _take_defaults(ctx: Any, param: Any, value: str) -> str:
    """For `--model`, which is processed before the other options: gives these their defaults."""
    if value == "sequence":
        ctx.default_map = _SEQUENCE_DEFAULTS
    return value


def _for_sequences(option: str, default: Any) -> str:
    """How `--help` shows the defaults of an option."""
    return f"{default}; for sequences {_SEQUENCE_DEFAULTS[option]}"


_dataset_help = (
    f"Images: {images.CHOICES}. Those of the last three stay on disk, whatever their size; of "
    f"their test set at most {streams.MAX_TEST_IMAGES} images and "
    f"{streams.MAX_TEST_BYTES // 2**20} MiB are used, which are read into memory."
)
_evaluate_help = f"{_dataset_help} For a model of series: {series.CHOICES}."
_network_help = "Encoder and decoder: a multilayer perceptron, or convolutions."
_objective_help = (
    "What is minimized: the negative ELBO, InfoVAE's objective, or the importance-weighted bound."
)
_latent_dim_help = "Number of latent coordinates."
_posterior_help = (
    "Covariance of the posterior q(z | x): with correlations of neighbouring latents (ar1, arh1, "
    "ante1), of all latents (full), or none (diag, isotropic)."
)
_prior_help = (
    "Sequences: prior of each latent path, N(0, I) or an AR(1) process with learned correlation."
)
_channels_help = "Sequences: number of latent paths."
_ALL_POSTERIORS = tuple(dict.fromkeys((*POSTERIORS, *SEQUENCE_POSTERIORS)))
_model = click.option(
    "--model",
    type=click.Choice(MODELS),
    default="image",
    is_eager=True,
    callback=_take_defaults,
    help="What is trained: an autoencoder of images, or one of series, whose latents are paths.",
)
_window = click.option(
    "--window",
    metavar="N",
    type=click.IntRange(min=2),
    show_default="100 for pig_cvp, else whole series",
    help="Sequences: each series is cut into windows of N steps.",
)
_hide = click.option(
    "--hide",
    metavar="X",
    type=click.FloatRange(0, 1),
    default=0.5,
    callback=_finite,
    help="Sequences: in training, up to this share of the steps of every other window is hidden, "
    "so that the encoder learns to impute.",
)
_beta_help = "Weight of the KL, for the objective elbo."
_data_dir = click.option(
    "--data-dir",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False, resolve_path=True),
    help="Folder of the four IDX files of mnist or fashion_mnist, gzipped or not, or of folders "
    "mnist and fashion_mnist that hold them.",
    show_default="download",
)
_hidden_units = click.option(
    "--hidden-units",
    metavar="INTEGERS",
    default="400",
    callback=_parse_hidden_units,
    help="Widths of the encoder's hidden layers, with commas between, for the network mlp; the "
    "decoder mirrors them.",
)
_epochs = click.option(
    "--epochs",
    metavar="N",
    type=click.IntRange(min=1),
    show_default=f"{', '.join(f'{n} for {name}' for name, n in _EPOCHS.items())}, else "
    f"{_EPOCHS_OWN_DATA}",
    help="Passes over the training data.",
)
_batch_size = click.option(
    "--batch-size",
    metavar="N",
    type=click.IntRange(min=1),
    default=128,
    show_default=_for_sequences("batch_size", 128),
    help="Images, or windows of series, per gradient step.",
)
_learning_rate = click.option(
    "--learning-rate",
    metavar="X",
    type=click.FloatRange(min=0, min_open=True),
    default=1e-3,
    show_default=_for_sequences("learning_rate", 1e-3),
    callback=_finite,
    help="Step size of Adam; for sequences it falls to 0 over the epochs.",
)


def _num_importance_samples(**default: Any) -> Any:
    return click.option(
        "--num-importance-samples",
        metavar="N",
        type=click.IntRange(min=1),
        help="Samples per image, or window, for the importance-weighted likelihood.",
        **default,
    )


_run = click.argument("run", metavar="RUN", type=click.Path(path_type=pathlib.Path))


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="tfp_ar1", prog_name="tfp-ar1")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Variational autoencoders whose posterior is an AR(1) Gaussian (rho-VAE).

    'tfp-ar1 train' alone trains one on handwritten digits in about a minute, and says where its
    pictures, its model and its results are.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@cli.command(context_settings={"show_default": True})
@_model
@click.option(
    "--dataset",
    type=_DatasetType(),
    default="digits",
    show_default=_for_sequences("dataset", "digits"),
    help=f"{_dataset_help} Series: {series.CHOICES}.",
)
@_data_dir
@click.option(
    "--corrupt",
    type=click.Choice(("stop", "skip")),
    default="stop",
    help="Images on disk: what is done at one that cannot be read. 'skip' leaves it out, counts it "
    "and lists it in skipped.json.",
)
@_window
@click.option(
    "--network",
    type=click.Choice((*NETWORKS, *SEQUENCE_NETWORKS)),
    default="mlp",
    show_default=_for_sequences("network", "mlp"),
    help=f"{_network_help} Sequences: {' or '.join(SEQUENCE_NETWORKS)} encoder.",
)
@_hidden_units
@click.option("--objective", type=click.Choice(OBJECTIVES), default="elbo", help=_objective_help)
@click.option(
    "--beta",
    metavar="X",
    type=click.FloatRange(min=0),
    default=1.0,
    callback=_finite,
    help=_beta_help,
)
@click.option(
    "--posterior",
    type=click.Choice(_ALL_POSTERIORS),
    default="ar1",
    help=_posterior_help,
)
@click.option(
    "--prior",
    type=click.Choice(PRIORS),
    default="ar1",
    help=_prior_help,
)
@click.option(
    "--likelihood",
    type=click.Choice(LIKELIHOODS),
    default="bernoulli",
    show_default=_for_sequences("likelihood", "bernoulli"),
    help="Distribution of the data given the latents, p(x | z): bernoulli for values from 0 to 1, "
    "gaussian for any.",
)
@click.option(
    "--latent-dim",
    metavar="N",
    type=click.IntRange(min=1),
    default=10,
    help=_latent_dim_help,
)
@click.option(
    "--channels",
    metavar="N",
    type=click.IntRange(min=1),
    default=2,
    help=_channels_help,
)
@_hide
@_epochs
@_batch_size
@_learning_rate
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(0, _MAX_SEED),
    default=0,
    help="Seed of every random number.",
)
@_num_importance_samples(default=50)
@click.option(
    "--strategy",
    type=click.Choice(strategies.CHOICES),
    default="none",
    help="How the training is distributed: over the devices of this machine, or over the workers "
    "of TF_CONFIG, with the same command on each.",
)
@click.option(
    "--replicas",
    metavar="N",
    type=click.IntRange(min=1),
    show_default="every GPU; without any, 2 parts of the CPU",
    help="For mirrored: on how many devices.",
)
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
@click.pass_context
def train(ctx: click.Context, out: pathlib.Path | None, backup_steps: int, **options: Any) -> None:
    r"""Train a model, evaluate it, and draw pictures.

    
    Examples:
      tfp-ar1 train
      tfp-ar1 train --dataset mnist --data-dir mnist --posterior diag
      tfp-ar1 train --dataset npz:photos.npz --likelihood gaussian --out photos
      tfp-ar1 train --dataset images:photos --network cnn --corrupt skip
      tfp-ar1 train --dataset 'tfrecord:shards/*.tfrecord' --network dcgan
      tfp-ar1 train --model sequence --posterior diag --prior normal
      tfp-ar1 train --model sequence --dataset csv:rivers.csv --window 365
    """
    startup.check_backend()
    worker = _check_strategy(ctx, out)
    if out is not None and worker == 0:
        runs.check_out(out)
    if worker == 0:
        runs.check_writable((out or pathlib.Path("runs")) / "config.json")
    _check_of_model(ctx)
    _check_used(ctx)
    options["replicas"] = strategies.num_replicas(options["strategy"], options["replicas"])
    if options["batch_size"] < options["replicas"]:
        raise UserError(
            f"--batch-size {options['batch_size']} is too small for {options['replicas']} "
            "replicas; it is that of all of them together."
        )
    dataset = options["dataset"]
    options["epochs"] = options["epochs"] or _default_epochs(dataset)
    if options["model"] == "sequence":
        options = {key: value for key, value in options.items() if key not in _ONLY["image"]}
        with doing(f"Reading {dataset}"):
            data = series.load(dataset, options["window"], options["likelihood"])
        options["window"] = data.data_shape[0]
    else:
        options = {key: value for key, value in options.items() if key not in _ONLY["sequence"]}
        if options["network"] != "mlp":
            options["hidden_units"] = None
        if _given(ctx, "corrupt") and not loading.is_stream(dataset):
            raise click.UsageError(
                f"--corrupt is for {streams.CHOICES}, not for {dataset}; leave it out.", ctx
            )
        with doing(f"Reading {dataset}"):
            data = images.load(
                dataset, options["data_dir"], options["likelihood"], options["corrupt"]
            )
        images.check_network(options["network"], dataset, data.data_shape)
    config = runs.new_config(options, data.fingerprint())
    name = f"{loading.short_name(dataset)}-{options['posterior']}"
    visited = worker and contextlib.nullcontext(runs.visit(out, config, worker))
    with visited or runs.claim(out, name, config) as run:
        argv = [_program(), *ctx.obj, *(() if out else ("--out", str(run.folder)))]
        with _told_how_to_resume(run, shlex.join(argv)):
            _train(run, data, backup_steps)


def _check_strategy(ctx: click.Context, out: pathlib.Path | None) -> int:
    """Checks the options of the strategy; returns the number of this worker, or 0."""
    strategy = ctx.params["strategy"]
    if strategy != "mirrored" and _given(ctx, "replicas"):
        raise click.UsageError(
            f"--replicas is for --strategy mirrored, not for {strategy}; leave it out.", ctx
        )
    if strategy != "multiworker":
        return 0
    task = strategies.task()
    if out is None:
        raise click.UsageError(
            "--strategy multiworker needs --out, a folder that all workers share.", ctx
        )
    return task.index


def _already(position: runs.Position) -> str:
    """What is done of a run that is resumed."""
    if position == (0, 0):
        return ""
    steps = f" and {counted(position.step, 'step')}" * bool(position.step)
    return f", {position.epoch}{steps} of them done"


def _default_epochs(dataset: str) -> int:
    return _EPOCHS.get(dataset, _EPOCHS_OWN_DATA)


def _given(ctx: click.Context, option: str) -> bool:
    return ctx.get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE


def _check_of_model(ctx: click.Context) -> None:
    """Checks that the options are for the model that is to be trained."""
    model = ctx.params["model"]
    other = MODELS[model == "image"]
    for option in _ONLY[other]:
        if _given(ctx, option):
            raise click.UsageError(
                f"--{option.replace('_', '-')} is for --model {other}, not for {model}; leave it "
                "out.",
                ctx,
            )
    allowed = {
        "image": {"network": NETWORKS, "posterior": POSTERIORS},
        "sequence": {"network": SEQUENCE_NETWORKS, "posterior": SEQUENCE_POSTERIORS},
    }
    for option, choices in allowed[model].items():
        value = ctx.params[option]
        if value not in choices:
            raise click.UsageError(
                f"--{option} {value} is not for --model {model}; choose {', '.join(choices)}.", ctx
            )


def _check_used(ctx: click.Context) -> None:
    """Checks that there is a network, or an objective, for the options that are for one alone."""
    network, objective = ctx.params["network"], ctx.params["objective"]
    if _given(ctx, "hidden_units") and network != "mlp":
        raise click.UsageError(
            f"--hidden-units is for --network mlp, not for {network}; leave it out.", ctx
        )
    if ctx.params["beta"] != 1 and objective != "elbo":
        raise click.UsageError(
            f"--beta is for --objective elbo, not for {objective}; leave it out.", ctx
        )


@contextlib.contextmanager
def _told_how_to_resume(run: runs.Run, command: str) -> Iterator[None]:
    """Adds to whatever stops a run where it stands and how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        if run.finished:
            raise
        done, epochs = run.position().epoch, run.options["epochs"]
        raise Interrupted(
            f"interrupted after {done} of {counted(epochs, 'epoch')}; resume with: {command}"
        ) from error
    except OSError as error:
        if run.finished or isinstance(error, BrokenPipeError):
            raise
        raise click.ClickException(
            f"{_describe(error, run.folder)} The run is unfinished; resume with: {command}"
        ) from error
    except streams.Corrupt as error:
        raise click.ClickException(
            f"{error.message} The run is unfinished; resume with: {command}"
        ) from error


def _train(run: runs.Run, data: Data, backup_steps: int) -> None:
    options = run.options
    position = run.position()
    if run.of_sequences:
        latents = f"and {options['prior']} prior over {counted(options['channels'], 'latent path')}"
    else:
        latents = f"over {counted(options['latent_dim'], 'latent')}"
    click.echo(
        f"Training on {loading.short_name(options['dataset'])}: {data.describe()}; "
        f"{options['posterior']} posterior {latents}; "
        f"{counted(options['epochs'], 'epoch')}{_already(position)}."
    )
    for note in data.notes:
        click.echo(note)
    strategy = options["strategy"]
    if strategy == "multiworker" and run.trained:
        # The other workers may have left, and none is needed for what is left to do.
        strategy = "none"
    if strategy == "multiworker":
        click.echo(strategies.task().describe())
    elif run.worker:
        _leave(run, data)
        return
    start = functools.partial(strategies.start, strategy, options["replicas"])
    with strategies.restarting(run):
        strategy = startup.import_tensorflow(start)
    from tfp_ar1_cli import training
    from tfp_ar1_cli.pictures.run import draw_run

    try:
        with strategies.restarting(run):
            model = training.train(run, data, strategy=strategy, backup_steps=backup_steps)
            if run.worker:
                strategies.wait_for_last_backup(run)
                _leave(run, data)
                return
        with runs.atomic(run.model_file) as path:
            model.save(path)
        metrics = _evaluate(model, data, options["num_importance_samples"])
    except training.NotFinite as error:
        raise click.ClickException(f"{error.message} {run.folder} stays unfinished.") from error
    run.add_skipped(data.skipped)
    skipped = run.collect_skipped()
    # Before anything that the run can do without.
    run.write_metrics(metrics)
    pictures = draw_run(run, model, data)
    run.finish()

    _print_table(metrics)
    _print_skipped(skipped, f", all in {run.skipped_file}")
    click.echo("Pictures:" if pictures else "Pictures: none could be drawn.")
    for picture in pictures:
        click.echo(f"  {picture}")
    folder, logs = shlex.quote(str(run.folder)), shlex.quote(str(run.logs))
    program = shlex.quote(_program())
    tensorboard = program.removesuffix("tfp-ar1") + "tensorboard"
    click.echo(
        f"Go on with:\n  {program} sample {folder} --seed {options['seed'] + 1}\n"
        f"  {program} evaluate {folder} --num-importance-samples 500\n  {program} export {folder}\n"
        f"  {tensorboard} --logdir {logs}"
    )


def _leave(run: runs.Run, data: Data) -> None:
    """What another worker than 0 says at its end."""
    click.echo("This worker is done; worker 0 evaluates the model and writes the run.")
    _print_skipped(data.skipped, " by this worker")


def _print_skipped(skipped: dict[str, str], where: str) -> None:
    if skipped:
        click.echo(f"Left out as corrupt: {len(skipped)}{where}. The first:")
        for position, problem in itertools.islice(skipped.items(), 3):
            click.echo(f"  {position}: {problem}")


@cli.command(context_settings={"show_default": True})
@_run
@click.option("--dataset", metavar="NAME", show_default="that of the run", help=_evaluate_help)
@_data_dir
@_num_importance_samples(show_default="as in the training")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout.")
def evaluate(
    run: pathlib.Path,
    dataset: str | None,
    data_dir: str | None,
    num_importance_samples: int | None,
    as_json: bool,
) -> None:
    r"""Evaluate the model of RUN on test data: its own or others.

    Its own are the test data of the training. Of others all are scored, unless they come with a
    test set, as x_test in an .npz file: then this alone.

    
    Examples:
      tfp-ar1 evaluate runs/digits-ar1-001 --num-importance-samples 500
      tfp-ar1 evaluate runs/digits-ar1-001 --json > results.json
    """
    startup.check_backend()
    run = runs.read_finished(run)
    options = run.options
    trained = None
    if dataset is None:
        dataset, data_dir = options["dataset"], data_dir or options.get("data_dir")
    else:
        dataset, trained = _source(run.of_sequences).resolve(dataset), run.config["data"]
    try:
        read = _test_series if run.of_sequences else _test_images
        with doing(f"Reading {dataset}"):
            data = read(run, dataset, data_dir, trained)
    except FileNotFoundError as error:
        if trained is not None:
            raise
        raise UserError(
            f"{_describe(error)} {run.folder} was trained on it; if it was moved, give its place "
            "with --dataset."
        ) from error
    if trained is None:
        runs.check_data(run, data.fingerprint())
    elif _place(dataset) == _place(options["dataset"]) and not data.is_that_of(trained):
        click.echo(
            f"{dataset} has changed since {run.folder} was trained on it, or was read in another "
            "way: what is scored may hold data of the training.",
            err=True,
        )
    model = _load_model(run)
    for note in data.notes:
        click.echo(note, err=as_json)
    metrics = _evaluate(
        model,
        data,
        num_importance_samples or options["num_importance_samples"],
    )
    if as_json:
        click.echo(json.dumps(metrics, indent=2))
    else:
        _print_table(metrics)
        _print_skipped(data.skipped, "")


def _place(dataset: str) -> str:
    """Where the data of a `--dataset` value lie, whatever they are read as; or their name."""
    return os.path.realpath(dataset.partition(":")[2] or dataset)


def _test_images(
    run: runs.Run, dataset: str, data_dir: str | None, trained: dict | None
) -> images.ImageData:
    data = images.load(
        dataset, data_dir, run.options["likelihood"], run.options.get("corrupt", "stop"), trained
    )
    trained_shape = tuple(run.config["data"]["image_shape"])
    if data.data_shape != trained_shape:
        raise UserError(
            f"the images of {dataset} have shape {data.data_shape}, but {run.folder} was trained "
            f"on {trained_shape}; give a --dataset of that shape."
        )
    return data


def _test_series(
    run: runs.Run, dataset: str, data_dir: str | None, trained: dict | None
) -> series.SeriesData:
    if data_dir is not None:
        raise UserError(f"--data-dir is for models of images, not for {run.folder}; leave it out.")
    return series.load(
        dataset,
        likelihood=run.options["likelihood"],
        trained=run.config["data"],
        whole=trained is not None,
    )


@cli.command(context_settings={"show_default": True})
@_run
@click.option(
    "-n",
    "--num-samples",
    metavar="N",
    type=click.IntRange(min=1),
    default=64,
    help="How many images, or windows of series.",
)
@click.option(
    "--seed", metavar="N", type=click.IntRange(0, _MAX_SEED), default=0, help="Seed of the samples."
)
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=pathlib.Path),
    show_default="RUN/samples-seed<seed>.png",
    help="A new file: .png draws the images, or the first windows; .npy stores an array.",
)
def sample(run: pathlib.Path, num_samples: int, seed: int, out: pathlib.Path | None) -> None:
    r"""Draw new images, or new windows of series, from the model of RUN.

    
    Examples:
      tfp-ar1 sample runs/digits-ar1-001
      tfp-ar1 sample runs/digits-ar1-001 -n 1000 --seed 3 --out images.npy
    """
    startup.check_backend()
    run = runs.read_finished(run)
    out = out or run.folder / f"samples-seed{seed}.png"
    if out.suffix not in (".png", ".npy"):
        raise UserError(f"{out}: --out must end in .png (a picture) or .npy (an array).")
    if out.exists():
        raise UserError(f"{out}: exists already; choose another --out.")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder; make it or choose another --out.")
    runs.check_writable(out)
    new = np.asarray(_load_model(run).generate(num_samples, seed=seed))
    if out.suffix == ".npy":
        with runs.atomic(out) as path:
            np.save(path, _units(run).restore(new) if run.of_sequences else new)
    else:
        try:
            from tfp_ar1_cli.pictures.run import draw_samples

            draw_samples(run, out, new)
        except (ArithmeticError, MemoryError, RuntimeError, ValueError) as error:
            raise click.ClickException(
                f"{out}: cannot be drawn: {reason(error)}; try fewer --num-samples, or --out "
                "FILE.npy."
            ) from error
    click.echo(out)


def _units(run: runs.Run) -> series.Units:
    return series.Units(**run.config["data"]["units"])


@cli.command()
@_run
@click.option(
    "--out",
    metavar="FOLDER",
    type=click.Path(path_type=pathlib.Path),
    show_default="RUN/export",
    help="A new folder, or an empty one.",
)
def export(run: pathlib.Path, out: pathlib.Path | None) -> None:
    r"""Write the model of RUN for processes that have TensorFlow only, with a model card.

    The folder is a SavedModel, with README.md, what the model is and how to call it, and the same
    for programs, model_card.json.

    
    Examples:
      tfp-ar1 export runs/digits-ar1-001
      tfp-ar1 export runs/digits-ar1-001 --out models/digits
    """
    startup.check_backend()
    run = runs.read_finished(run)
    out = out or run.folder / "export"
    runs.check_new_folder(out)
    runs.check_writable(out)
    metrics = run.metrics()
    model = _load_model(run)
    dtype = model.distribution_dtype.name
    card = None
    with runs.atomic_folder(out) as folder:
        _export(model, folder, out)
        with dispensable(f"the model card of {out}"):
            made = model_card.make(run.config, metrics, dtype, num_skipped=len(run.skipped()))
            runs.write_json(folder / "model_card.json", made)
            text = model_card.text(made)
            (folder / "README.md").write_text(text, encoding="utf-8", errors="backslashreplace")
            card = made
    if card is None:
        click.echo(f"Wrote {out}: a SavedModel.")
        return
    click.echo(f"Wrote {out}: a SavedModel, README.md (model card) and model_card.json.")
    click.echo("Endpoints, for any number N of examples:")
    for name in card["signatures"]:
        click.echo(f"  {model_card.signature(card, name)}")


def _export(model: Any, folder: pathlib.Path, out: pathlib.Path) -> None:
    import tensorflow as tf

    try:
        model.export(folder, verbose=False)
    except tf.errors.OpError as error:  # TensorFlow's own, where the disk is full.
        reason = error.message.rpartition("; ")[2]  # Before it stands a temporary file.
        raise click.ClickException(f"{out}: cannot be written: {reason}") from error


def _load_model(run: runs.Run) -> Any:
    startup.import_tensorflow()
    import keras

    import tfp_ar1.vae  # noqa: F401  registers the classes that the file names

    try:
        with doing("Loading the model"):
            return keras.saving.load_model(run.model_file)
    except Exception as error:  # A damaged archive fails in many ways.
        raise UserError(f"{run.model_file}: cannot be loaded{_why_not(run, error)}") from error


def _why_not(run: runs.Run, error: Exception) -> str:
    """What is wrong with a model that cannot be loaded, and what to do about it."""
    if not _is_whole(run.model_file):
        return ": it is damaged; restore it from a copy or train again."
    first_line = str(error).strip().partition("\n")[0]
    now, wrote = runs.versions(), runs.written_with(run.config)
    other = [name for name in {**wrote, **now} if wrote.get(name) != now.get(name)]
    if not other:
        return f", though the same packages wrote it: {first_line}"
    before = ", ".join(f"{name} {wrote.get(name, 'unknown')}" for name in other)
    after = ", ".join(f"{name} {now.get(name, 'missing')}" for name in other)
    return f". It was written with {before}; here are {after}. Install the former. ({first_line})"


def _is_whole(archive: pathlib.Path) -> bool:
    """Whether a zip archive has all its files, as they were written."""
    try:
        with zipfile.ZipFile(archive) as file:
            return file.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error):
        return False


def _evaluate(model: Any, data: Data, num_importance_samples: int) -> dict:
    from tfp_ar1.vae import evaluation
    from tfp_ar1_cli import training

    total, first = len(data.x_test), "compiling the first step, which takes some seconds"
    with Progress("evaluating", total, first=first) as progress:
        metrics = evaluation.evaluate(
            model,
            data.test,
            num_importance_samples=num_importance_samples,
            progress=lambda done, total: progress.update(done),
        )
    training.check_finite(metrics)
    if isinstance(data, series.SeriesData):
        metrics["prior_correlation"] = training.prior_correlation(model).tolist()
    return metrics


def _print_table(metrics: dict) -> None:
    one = "window" if "prior_correlation" in metrics else "image"
    title = counted(metrics["num_examples"], f"test {one}")
    table = rich.table.Table("", f"nats per {one}", title=title)
    table.columns[1].justify = "right"
    for name, key in (
        ("-ELBO", "neg_elbo"),
        ("reconstruction", "reconstruction"),
        ("KL", "kl"),
        (
            f"importance-weighted NLL, {counted(metrics['num_importance_samples'], 'sample')}",
            "nll_iw",
        ),
    ):
        table.add_row(name, f"{metrics[key]:.2f}")
    table.add_section()
    table.add_row("mean posterior correlation rho (no unit)", f"{metrics['rho_mean']:+.3f}")
    for channel, rho in enumerate(metrics.get("prior_correlation", []), start=1):
        table.add_row(f"prior correlation of latent path {channel} (no unit)", f"{rho:+.4f}")
    rich.console.Console().print(table)

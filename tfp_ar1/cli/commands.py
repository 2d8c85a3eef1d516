"""The commands `train`, `evaluate` and `sample`.

Everything a user can get wrong is checked before TensorFlow is imported, which takes seconds.
Whatever is wrong is a `click.ClickException`, which `run` turns into one line on stderr and an
exit code.
"""

import contextlib
import json
import math
import os
import pathlib
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click
import numpy as np
import rich.console
import rich.table

from tfp_ar1.cli import datasets, runs, startup
from tfp_ar1.cli.errors import Interrupted, UserError
from tfp_ar1.cli.progress import Progress
from tfp_ar1.version import __version__

# Named here too, so that a wrong one is refused before TensorFlow is imported; a test compares.
POSTERIORS = ("ar1", "diag", "isotropic", "full")
LIKELIHOODS = ("bernoulli", "gaussian")
_EPOCHS = {"digits": 200, "mnist": 15, "fashion_mnist": 15}
_EPOCHS_OWN_IMAGES = 50
_MAX_SEED = 2**31 - 1


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; see `tfp_ar1.cli.main`."""
    startup.set_environment()
    argv = list(sys.argv[1:] if argv is None else argv)
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
        # The reader of a pipe went away; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(_describe(error), 2)


def _fail(message: str, code: int) -> int:
    kind = "" if code == Interrupted.exit_code else "error: "
    click.echo(f"tfp-ar1: {kind}{' '.join(message.split())}", err=True)
    return code


def _program() -> str:
    """The program as it can be called again: with its path if it is not on the user's PATH."""
    called = pathlib.Path(sys.argv[0])
    on_path = shutil.which("tfp-ar1")
    return str(called) if called.name == "tfp-ar1" and on_path is None else "tfp-ar1"


def _describe(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}." if error.filename else str(error)


class _DatasetType(click.ParamType):
    name = "NAME"

    def convert(self, value: str, param: Any, ctx: Any) -> str:
        return datasets.resolve(value)


def _finite(ctx: Any, param: Any, value: float) -> float:
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


_dataset_help = f"Images: {datasets.CHOICES}."
_data_dir = click.option(
    "--data-dir",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False, resolve_path=True),
    help="Folder of the four IDX files of mnist or fashion_mnist, gzipped or not.",
    show_default="download",
)
_run = click.argument("run", metavar="RUN", type=click.Path(path_type=pathlib.Path))


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="tfp-ar1")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Variational autoencoders whose posterior is an AR(1) Gaussian (rho-VAE).

    'tfp-ar1 train' alone trains one on handwritten digits in about a minute, and says where its
    pictures, its model and its results are.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@cli.command(context_settings={"show_default": True})
@click.option("--dataset", type=_DatasetType(), default="digits", help=_dataset_help)
@_data_dir
@click.option(
    "--posterior", type=click.Choice(POSTERIORS), default="ar1", help="Covariance of q(z | x)."
)
@click.option(
    "--likelihood", type=click.Choice(LIKELIHOODS), default="bernoulli", help="Model of p(x | z)."
)
@click.option(
    "--latent-dim",
    metavar="N",
    type=click.IntRange(min=1),
    default=10,
    help="Number of latent coordinates.",
)
@click.option(
    "--hidden-units",
    metavar="INTEGERS",
    default="400",
    callback=_parse_hidden_units,
    help="Widths of the encoder's hidden layers, with commas between; the decoder mirrors them.",
)
@click.option(
    "--beta",
    metavar="X",
    type=click.FloatRange(min=0),
    default=1.0,
    callback=_finite,
    help="Weight of the KL.",
)
@click.option(
    "--epochs",
    metavar="N",
    type=click.IntRange(min=1),
    show_default=f"{', '.join(f'{n} for {name}' for name, n in _EPOCHS.items())}, else "
    f"{_EPOCHS_OWN_IMAGES}",
    help="Passes over the training images.",
)
@click.option(
    "--batch-size",
    metavar="N",
    type=click.IntRange(min=1),
    default=128,
    help="Images per gradient step.",
)
@click.option(
    "--learning-rate",
    metavar="X",
    type=click.FloatRange(min=0, min_open=True),
    default=1e-3,
    callback=_finite,
    help="Step size of Adam.",
)
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(0, _MAX_SEED),
    default=0,
    help="Seed of every random number.",
)
@click.option(
    "--num-importance-samples",
    metavar="N",
    type=click.IntRange(min=1),
    default=50,
    help="Samples per image for the importance-weighted likelihood.",
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
def train(ctx: click.Context, out: pathlib.Path | None, **options: Any) -> None:
    r"""Train a model, evaluate it, and draw pictures.

    \b
    Examples:
      tfp-ar1 train
      tfp-ar1 train --dataset fashion_mnist --data-dir fashion-mnist --posterior diag
      tfp-ar1 train --dataset npz:photos.npz --likelihood gaussian --out runs/photos
    """
    startup.check_backend()
    if out is not None:
        runs.check_out(out)
    dataset = options["dataset"]
    if options["epochs"] is None:
        options["epochs"] = _EPOCHS.get(dataset, _EPOCHS_OWN_IMAGES)
    data = datasets.load(dataset, options["data_dir"], options["likelihood"])
    config = runs.new_config(options, data.fingerprint())
    name = f"{datasets.short_name(dataset)}-{options['posterior']}"
    with runs.claim(out, name, config) as run:
        argv = [_program(), *ctx.obj, *(() if out else ("--out", str(run.folder)))]
        with _told_how_to_resume(run, shlex.join(argv)):
            _train(run, data)


@contextlib.contextmanager
def _told_how_to_resume(run: runs.Run, command: str) -> Iterator[None]:
    """Adds to whatever stops a run where it stands and how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        done, epochs = run.epochs_done(), run.options["epochs"]
        raise Interrupted(
            f"interrupted after {done} of {epochs} epochs; resume with: {command}"
        ) from error
    except OSError as error:
        raise click.ClickException(
            f"{_describe(error)} The run is unfinished; resume with: {command}"
        ) from error


def _train(run: runs.Run, data: datasets.Dataset) -> None:
    options = run.options
    done = run.epochs_done()
    click.echo(
        f"Training on {datasets.short_name(options['dataset'])}: {len(data.x_train)} training and "
        f"{len(data.x_test)} test images of {'x'.join(map(str, data.image_shape))}; "
        f"{options['posterior']} posterior over {options['latent_dim']} latents; "
        f"{options['epochs']} epochs{f', {done} of them done' * bool(done)}."
    )
    startup.import_tensorflow()
    from tfp_ar1.cli import plots, training

    model = training.train(run, data)
    with runs.atomic(run.model_file) as path:
        model.save(path)
    metrics = _evaluate(run, model, data.x_test, options["num_importance_samples"])
    pictures = plots.draw_run(run, model, data)
    run.finish(metrics)

    _print_table(metrics)
    click.echo("Pictures:")
    for picture in pictures:
        click.echo(f"  {picture}")
    folder, logs = shlex.quote(str(run.folder)), shlex.quote(str(run.logs))
    program = shlex.quote(_program())
    tensorboard = program.removesuffix("tfp-ar1") + "tensorboard"
    click.echo(
        f"Go on with:\n  {program} sample {folder}\n  {program} evaluate {folder}\n"
        f"  {tensorboard} --logdir {logs}"
    )


@cli.command(context_settings={"show_default": True})
@_run
@click.option("--dataset", type=_DatasetType(), show_default="that of the run", help=_dataset_help)
@_data_dir
@click.option(
    "--num-importance-samples",
    metavar="N",
    type=click.IntRange(min=1),
    show_default="as in the training",
    help="Samples per image for the importance-weighted likelihood.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout.")
def evaluate(
    run: pathlib.Path,
    dataset: str | None,
    data_dir: str | None,
    num_importance_samples: int | None,
    as_json: bool,
) -> None:
    r"""Evaluate the model of RUN on test images: its own or others.

    \b
    Examples:
      tfp-ar1 evaluate runs/digits-ar1-001 --num-importance-samples 500
      tfp-ar1 evaluate runs/digits-ar1-001 --json > results.json
    """
    startup.check_backend()
    run = runs.read_finished(run)
    options = run.options
    if dataset is None:
        dataset, data_dir = options["dataset"], data_dir or options["data_dir"]
    data = datasets.load(dataset, data_dir, options["likelihood"])
    trained_shape = tuple(run.config["data"]["image_shape"])
    if data.image_shape != trained_shape:
        raise UserError(
            f"the images of {dataset} have shape {data.image_shape}, but {run.folder} was trained "
            f"on {trained_shape}; give a --dataset of that shape."
        )
    metrics = _evaluate(
        run,
        _load_model(run),
        data.x_test,
        num_importance_samples or options["num_importance_samples"],
    )
    if as_json:
        click.echo(json.dumps(metrics, indent=2))
    else:
        _print_table(metrics)


@cli.command(context_settings={"show_default": True})
@_run
@click.option(
    "-n",
    "--num-samples",
    metavar="N",
    type=click.IntRange(min=1),
    default=64,
    help="How many images.",
)
@click.option(
    "--seed", metavar="N", type=click.IntRange(0, _MAX_SEED), default=0, help="Seed of the samples."
)
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=pathlib.Path),
    show_default="RUN/samples-seed<seed>.png",
    help="A new file: .png draws the images, .npy stores them as an array.",
)
def sample(run: pathlib.Path, num_samples: int, seed: int, out: pathlib.Path | None) -> None:
    r"""Draw new images from the model of RUN.

    \b
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
    images = _load_model(run).generate(num_samples, seed=seed)
    if out.suffix == ".npy":
        with runs.atomic(out) as path:
            np.save(path, images)
    else:
        from tfp_ar1.cli import plots

        plots.samples(out, images, run.value_range)
    click.echo(out)


def _load_model(run: runs.Run) -> Any:
    startup.import_tensorflow()
    import keras

    import tfp_ar1.vae  # noqa: F401  registers the classes that the file names

    try:
        return keras.saving.load_model(run.model_file)
    except Exception as error:  # A damaged archive fails in many ways.
        raise UserError(f"{run.model_file}: cannot be loaded: {error}") from error


def _evaluate(run: runs.Run, model: Any, x: np.ndarray, num_importance_samples: int) -> dict:
    from tfp_ar1.vae import evaluation

    with Progress("evaluating", total=len(x)) as progress:
        metrics = evaluation.evaluate(
            model,
            x,
            num_importance_samples=num_importance_samples,
            progress=lambda done, total: progress.update(done),
        )
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise click.ClickException(
                f"the evaluation of {run.folder} gave {name} = {value}; train a new run with a "
                "lower --learning-rate."
            )
    return metrics


def _print_table(metrics: dict) -> None:
    table = rich.table.Table("", "nats per image", title=f"{metrics['num_examples']} test images")
    table.columns[1].justify = "right"
    for name, key in (
        ("-ELBO", "neg_elbo"),
        ("reconstruction", "reconstruction"),
        ("KL", "kl"),
        (f"importance-weighted NLL, {metrics['num_importance_samples']} samples", "nll_iw"),
    ):
        table.add_row(name, f"{metrics[key]:.2f}")
    table.add_section()
    table.add_row("mean posterior correlation rho (no unit)", f"{metrics['rho_mean']:+.3f}")
    rich.console.Console().print(table)

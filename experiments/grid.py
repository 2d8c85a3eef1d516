"""A grid of experiments, each a run of `tfp-ar1 train` in its own run folder.

Run folders are written atomically, claimed by one process and resumed exactly; a `result.json` or a
`failed.txt` marks a run as over. Processes of one or several commands can therefore share the work,
and a killed process leaves at most run folders, which the same command resumes.
"""

import contextlib
import itertools
import json
import os
import pathlib
import signal
import statistics
import subprocess
from dataclasses import fields
from typing import Any, NamedTuple

import click
import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from experiments import results
from tfp_ar1_cli import kinds, run_folder, startup
from tfp_ar1_cli import train as training
from tfp_ar1_cli.atomic import atomic
from tfp_ar1_cli.data import images, loading
from tfp_ar1_cli.data.protocol import Data
from tfp_ar1_cli.errors import NotFinite, UserError
from tfp_ar1_cli.evaluate import load_model
from tfp_ar1_cli.options import RunOptions
from tfp_ar1_cli.progress import counted, doing

# The options of `train` that may have several values in a grid, the outermost loop first.
AXES = (
    *("seed", "dataset", "network", "objective", "beta", "latent_dim", "channels", "prior"),
    "posterior",
)
_DEFAULTS = {"posterior": "ar1,diag", "seed": "0,1,2", "num_importance_samples": "100"}


def options_of(argv: list[str]) -> RunOptions:
    """Parses arguments of `train`; raises a `click.UsageError` if they are invalid."""
    params = training.command.make_context("train", list(argv)).params
    return RunOptions(**{field.name: params[field.name] for field in fields(RunOptions)})


def train(options: RunOptions, folder: pathlib.Path) -> None:
    """Starts or resumes a run like `tfp-ar1 train`, with its output in a log next to `folder`."""
    with (
        folder.with_name(f"{folder.name}.log").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        training.train(options, folder)


class Experiment(NamedTuple):
    """One point of a grid: the options of `train`, and the settings in its result."""

    options: RunOptions
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """See `results.name`."""
        return results.name(self.settings)

    def state(self, out: pathlib.Path) -> str:
        """`done`, `failed` or `to do`, according to its folder in `out`."""
        folder = out / self.name
        if (folder / "result.json").exists():
            return "done"
        return "failed" if (folder / "failed.txt").exists() else "to do"


def make(given: dict[str, str]) -> list[Experiment]:
    """Makes every combination of the option values, the first seed first.

    Options that do not apply to a combination are left out: `beta` for objectives other than
    `elbo`, `hidden_units` for networks other than `mlp`, `data_dir` for data not stored there.

    Args:
      given: Options of `train`, as text; those in `AXES` may hold comma-separated values.
    """
    others = {"likelihood", "warmup_steps", "corrupt", "strategy", "replicas"}
    if no_settings := others & given.keys():
        raise click.UsageError(f"a grid has no --{min(no_settings)}; leave it out.")
    prior = {"prior": "ar1,normal"} if given.get("model") == "sequence" else {}
    given = _DEFAULTS | prior | given
    values = {axis: dict.fromkeys(given[axis].split(",")) for axis in AXES if axis in given}
    known: dict[str, tuple[Data, dict[str, Any]]] = {}
    experiments = {}
    for point in itertools.product(*values.values()):
        chosen = given | {axis: text.strip() for axis, text in zip(values, point, strict=True)}
        if chosen.get("objective", "elbo") != "elbo" and "elbo" in values["objective"]:
            chosen.pop("beta", None)
        if chosen.get("network", "mlp") != "mlp" and "mlp" in values["network"]:
            chosen.pop("hidden_units", None)
        in_data_dir = [x for x in values.get("dataset", ()) if x in images.IDX_DATASETS]
        if in_data_dir and chosen["dataset"] not in in_data_dir:
            chosen.pop("data_dir", None)
        argv = [f"--{key.replace('_', '-')}={text}" for key, text in chosen.items()]
        options = options_of(argv)
        spec = options.dataset
        if spec not in known:
            known[spec] = _read(options, known)
        data, fingerprint = known[spec]
        kinds.of(options).check(options, data)
        dataset = {"dataset": loading.short_name(spec), "data_sha256": fingerprint["sha256"]}
        settings = {**options.as_json(), "window": data.data_shape[0], **dataset}
        settings = {key: settings[key] for key in results.settings_of(settings)}
        experiments.setdefault(results.name(settings), Experiment(options, settings))
    return list(experiments.values())


def _read(options: RunOptions, known: dict[str, Any]) -> tuple[Data, dict[str, Any]]:
    """Reads the data and their fingerprint; an error if they equal a known data set."""
    spec = options.dataset
    with doing(f"Reading {spec}"):
        data = loading.load(options.data)
    fingerprint = data.fingerprint()
    for other, (_, before) in known.items():
        if before["sha256"] == fingerprint["sha256"]:
            raise UserError(f"{other} and {spec} are the same data; leave one out.")
    for note in data.notes:
        click.echo(f"{loading.short_name(spec)}: {note}", err=True)
    return data, fingerprint


def dry_run(experiments: list[Experiment], out: pathlib.Path) -> None:
    """Prints a line for each experiment without writing any file."""
    states = [experiment.state(out) for experiment in experiments]
    for experiment, state in zip(experiments, states, strict=True):
        epochs = run_folder.Run(out / experiment.name, experiment.options, {}).position().epoch
        if state == "to do" and epochs:
            state = f"{epochs}/{counted(experiment.settings['epochs'], 'epoch')}"
        click.echo(f"{state:12}  {experiment.name}")
    numbers = (f"{states.count(state)} {state}" for state in ("done", "failed", "to do"))
    click.echo(f"{counted(len(states), 'run')}: {', '.join(numbers)}.")


def run(experiments: list[Experiment], out: pathlib.Path, jobs: int) -> None:
    """Runs all unfinished experiments in `jobs` processes, and prints a line as each one ends."""
    out.mkdir(parents=True, exist_ok=True)
    todo = [experiment for experiment in experiments if experiment.state(out) == "to do"]
    total = counted(len(experiments), "run")
    click.echo(f"{len(todo)} of {total} to do; results go to {out}.")
    # Fresh interpreters, as TensorFlow does not survive a fork; a single job runs in this process.
    jobs = max(1, min(jobs, len(todo)))
    parallel = joblib.Parallel(jobs, return_as="generator_unordered", pre_dispatch="n_jobs")
    task = joblib.delayed(run_one)
    ends = parallel(task(x, out, code_version(), jobs, os.getpid()) for x in todo)
    try:
        for number, line in enumerate(ends, 1):
            click.echo(f"{number}/{len(todo)}  {line}", err=True)
    except TerminatedWorkerError as error:
        message = "a process was killed, perhaps for lack of memory; resume with the same command."
        raise click.ClickException(message) from error
    states = [experiment.state(out) for experiment in experiments]
    click.echo(f"{states.count('done')} of {total} done.")
    if failed := states.count("failed"):
        hint = f"to try them again, remove their folders from {out}."
        raise click.ClickException(f"{failed} of {total} failed; {hint}")


def run_one(experiment: Experiment, out: pathlib.Path, code: str, jobs: int, command: int) -> str:
    """Runs an experiment unless another process has claimed it; returns a line on the outcome.

    `jobs` processes share the cores; `command` is the process that started them, perhaps this one.
    """
    folder = out / experiment.name
    if experiment.state(out) != "to do":
        return f"{folder.name}: another process has done it"
    if os.getpid() != command:
        # Ctrl-C reaches the command, which ends this process.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if os.getppid() != command:  # The command was killed: start nothing new.
            return f"{folder.name}: not started"
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
        for threads in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
            os.environ.setdefault(threads, str(max(1, joblib.cpu_count() // jobs)))
    startup.set_environment()
    startup.import_backend(announce=False)
    import keras

    # One process builds many models, and Keras would keep some state of each.
    keras.utils.clear_session()
    try:
        if not run_folder.Run(folder, experiment.options, {}).finished:
            train(experiment.options, folder)
        record = result_of(experiment, folder, code)
    except run_folder.Claimed:
        return f"{folder.name}: another process is working on it"
    except NotFinite as error:
        with atomic(folder / "failed.txt") as file:
            file.write_text(error.format_message(), encoding="utf-8")
        return f"{folder.name} failed: {error.format_message()}"
    with atomic(folder / "result.json") as file:
        # One line, so that files of many runs can be concatenated.
        line = json.dumps(record, allow_nan=False, ensure_ascii=False)
        file.write_text(f"{line}\n", encoding="utf-8", errors="backslashreplace")
    return f"{folder.name}: -ELBO {record['neg_elbo']:.2f}, NLL {record['nll_iw']:.2f}"


def result_of(experiment: Experiment, folder: pathlib.Path, code: str) -> dict[str, Any]:
    """The result of a finished run, from its folder."""
    from tfp_ar1.vae import posteriors

    run = run_folder.read_finished(folder)
    options, metrics, history = run.options, run.metrics(), run.history()
    number = posteriors.num_covariance_parameters(
        options.posterior, options.latent_dim or options.window
    )
    metrics["num_covariance_parameters"] = number * (options.channels or 1)
    if options.model == "sequence":
        metrics["prior_correlation"] = statistics.fmean(metrics["prior_correlation"])
        metrics |= _predictions(run)
    terms = zip(history["val_reconstruction"], history["val_kl"], strict=True)
    curves = {
        "loss": history["loss"],
        "val_neg_elbo": [sum(pair) for pair in terms],
        "val_reconstruction": history["val_reconstruction"],
        "val_kl": history["val_kl"],
    }
    return {
        **experiment.settings,
        **metrics,
        "seconds_per_epoch": statistics.median(history["seconds"]),
        # Rounded to the seven digits of a float32.
        "history": {key: [float(f"{x:.7g}") for x in xs] for key, xs in curves.items()},
        "versions": run.versions,
        "code": code,
    }


def _predictions(run: run_folder.Run) -> dict[str, float]:
    """How well the model of a run and the baselines impute and forecast."""
    from experiments import series_baselines
    from tfp_ar1.vae import sequence_evaluation

    data = loading.load(run.options.data)
    run_folder.check_data(run, data.fingerprint())
    predict = sequence_evaluation.of_model(load_model(run))
    # The baselines do not depend on the run, so they are computed once per data set.
    memory = joblib.Memory(run.folder.parent / "cache", verbose=0)
    return {
        **sequence_evaluation.evaluate(predict, data.x_test, data.length_test),
        **memory.cache(series_baselines.evaluate)(data.x_test, data.length_test),
    }


def code_version() -> str:
    """The commit of this checkout, with `-dirty` if the package has changed since."""
    git = ["git", "-C", str(pathlib.Path(__file__).parents[1])]
    try:
        commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
        changed = subprocess.check_output([*git, "status", "--porcelain", "tfp_ar1"])
    except (OSError, subprocess.CalledProcessError):
        return run_folder.versions().get("tfp_ar1", "unknown")
    return commit + "-dirty" * bool(changed)

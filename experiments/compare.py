"""The runner of `compare`: a grid of experiments, worked off by processes that may die at any time.

What is done is in the file of results alone; what is under way is in run folders beside it, which
`runs.claim` keeps for one process. A claim, and the new line with the end of its folder, happen
while the file of results is locked. So the processes of one or of several calls share the work,
and whatever is killed leaves at most a run folder, which is resumed.
"""

import contextlib
import dataclasses
import datetime
import itertools
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import click
import rich.console
import rich.progress

import tfp_ar1.version
from experiments import results
from tfp_ar1_cli import runs, startup
from tfp_ar1_cli.data import images as image_data
from tfp_ar1_cli.data import loading, series
from tfp_ar1_cli.data.protocol import Data
from tfp_ar1_cli.errors import Interrupted, UserError, dispensable
from tfp_ar1_cli.progress import counted, doing

_SECONDS_BETWEEN_LOOKS = 1.0
_NUM_SAMPLES, _SAMPLES_SEED = 32, 0
# What each process knows already of the baselines for series, which no run changes.
_baselines: dict[tuple[str, int], dict[str, float]] = {}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One point of the grid: options as `train` has them, and the fingerprint of the data.

    `draws_samples` says whether the run leaves a picture of samples.
    """

    options: dict
    data: dict
    draws_samples: bool

    @property
    def settings(self) -> dict[str, Any]:
        """The part of the result that is known before the run."""
        known = {
            **self.options,
            "dataset": loading.short_name(self.options["dataset"]),
            "data_sha256": self.data["sha256"],
        }
        return {key: known[key] for key in results.settings_of(known)}

    @property
    def name(self) -> str:
        """See `results.name`."""
        return results.name(self.settings)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be done, and where its results go."""

    out: pathlib.Path
    experiments: list[Experiment]
    code: str

    @property
    def failures(self) -> pathlib.Path:
        """The file of failed runs."""
        return results.failures_file(self.out)

    def folder(self, name: str) -> pathlib.Path:
        """The folder of a run that is under way."""
        return self.out.with_suffix(".work") / name

    def epochs_done(self, experiment: Experiment) -> int:
        """How many epochs an experiment has in its folder."""
        return runs.Run(self.folder(experiment.name), {}).position().epoch

    def pending(self) -> list[Experiment]:
        """The experiments without a result, and without a failure."""
        over = {results.name(record) for record in self._records()}
        return [experiment for experiment in self.experiments if experiment.name not in over]

    def finished(self) -> list[dict]:
        """The results of the plan's experiments."""
        return self._of_plan(self.out)

    def failed(self) -> list[dict]:
        """The failures of the plan's experiments."""
        return self._of_plan(self.failures)

    def clean(self) -> None:
        """Removes the folders of runs that are over; their processes died while they did so."""
        for record in self._records():
            shutil.rmtree(self.folder(results.name(record)), ignore_errors=True)

    def _records(self) -> list[dict]:
        return results.read(self.out) + results.read(self.failures)

    def _of_plan(self, path: pathlib.Path) -> list[dict]:
        names = {experiment.name for experiment in self.experiments}
        return [record for record in results.read(path) if results.name(record) in names]


def make_plan(out: pathlib.Path, grid: dict[str, Sequence], options: dict) -> Plan:
    """The experiments of a grid, those of the first seed first.

    Args:
      out: The file of results.
      grid: The values of `dataset`, `network`, `objective`, `beta`, `posterior` and `seed`, and of
        `latent_dim` for images, or `channels` and `prior` for series.
      options: The other options of `train`, for all of them; `epochs` a number for each dataset.

    Returns:
      The plan. `beta` is 1 where the objective is not `elbo`, and `hidden_units` None where the
      network is not `mlp`.

    Raises:
      UserError: If something is wrong with the data.
    """
    of_sequences = options.get("model") == "sequence"
    data, notes = {}, {}
    for spec in grid["dataset"]:
        with doing(f"Reading {spec}"):
            loaded = _load(spec, options)
        data[spec], notes[spec] = loaded.fingerprint(), loaded.notes
        twins = [other for other in data if data[other]["sha256"] == data[spec]["sha256"]]
        if len(twins) > 1:
            what = (
                "series; leave one out."
                if of_sequences
                else ("images; leave one out, or give each its folder below --data-dir.")
            )
            raise UserError(f"{twins[0]} and {spec} are the same {what}")
    complete = _complete_for_series if of_sequences else _complete_for_images
    if not of_sequences:
        _check_images(grid, options, data)
    experiments = {}
    order = [key for key in _ORDER if key in grid]
    for values in itertools.product(*(grid[key] for key in order)):
        point = dict(zip(order, values, strict=True))
        spec = point["dataset"]
        point["epochs"] = options["epochs"][spec]
        if point["objective"] != "elbo":
            point["beta"] = 1.0
        complete(point, options, data[spec])
        shape = data[spec].get("image_shape", ())
        experiment = Experiment(
            {**options, **point},
            data[spec],
            draws_samples=point["seed"] == grid["seed"][0] and len(shape) > 1,
        )
        experiments.setdefault(experiment.name, experiment)
    for spec in data:
        for note in notes[spec]:
            click.echo(f"{loading.short_name(spec)}: {note}", err=True)
    return Plan(out, list(experiments.values()), _code_version())


_ORDER = (
    "seed",
    "dataset",
    "network",
    "objective",
    "beta",
    "latent_dim",
    "channels",
    "prior",
    "posterior",
)


def _check_images(grid: dict[str, Sequence], options: dict, data: dict[str, dict]) -> None:
    idx = [spec for spec in data if spec in image_data.IDX_DATASETS]
    if options["data_dir"] is not None and not idx:
        raise UserError(
            f"--data-dir is for {' and '.join(image_data.IDX_DATASETS)}, not for "
            f"{', '.join(data)}; leave it out."
        )
    for spec, network in itertools.product(data, grid["network"]):
        image_data.check_network(network, spec, data[spec]["image_shape"])


def _complete_for_images(point: dict, options: dict, data: dict) -> None:
    spec = point["dataset"]
    point["data_dir"] = options["data_dir"] if spec in image_data.IDX_DATASETS else None
    if point["network"] != "mlp":
        point["hidden_units"] = None


def _complete_for_series(point: dict, options: dict, data: dict) -> None:
    point["window"] = data["data_shape"][0]


def _load(spec: str, options: dict) -> Data:
    if options.get("model") == "sequence":
        return series.load(spec, options["window"], options["likelihood"])
    data_dir = options["data_dir"] if spec in image_data.IDX_DATASETS else None
    return image_data.load(spec, data_dir, options["likelihood"])


def _code_version() -> str:
    """The commit of the package's source if that is in a git checkout, else its version."""
    package = pathlib.Path(tfp_ar1.version.__file__).parent

    def git(*arguments: str) -> str:
        argv = ["git", "-C", str(package), *arguments]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "version.py")
        return git("rev-parse", "HEAD") + "-dirty" * bool(git("status", "--porcelain", "."))
    except (OSError, subprocess.CalledProcessError):
        return tfp_ar1.version.__version__


def dry_run(plan: Plan) -> None:
    """Prints a line for each experiment, and writes nothing."""
    finished = {results.name(record) for record in plan.finished()}
    failed = {results.name(record) for record in plan.failed()}
    for experiment in plan.experiments:
        state = "to do"
        if experiment.name in finished:
            state = "done"
        elif experiment.name in failed:
            state = "failed"
        elif done := plan.epochs_done(experiment):
            state = f"{done}/{counted(experiment.options['epochs'], 'epoch')}"
        click.echo(f"{state:12}  {experiment.name}")
    todo = len(plan.experiments) - len(finished) - len(failed)
    click.echo(
        f"{counted(len(plan.experiments), 'run')}: {len(finished)} done, {len(failed)} failed, "
        f"{todo} to do."
    )


def run(plan: Plan, jobs: int) -> None:
    """Runs what is not done yet, in `jobs` processes, and shows the progress.

    Raises:
      click.ClickException: If a process stopped with an error, or a run has failed.
      Interrupted: After Ctrl-C.
    """
    plan.out.parent.mkdir(parents=True, exist_ok=True)
    with results.locked(plan.out):
        results.mend(plan.out)
        results.mend(plan.failures)
        plan.clean()
    total, todo = len(plan.experiments), len(plan.pending())
    are = "is" if total == 1 else "are"
    click.echo(
        f"{total - todo} of {counted(total, 'run')} {are} over already; results go to {plan.out}."
    )
    errors = _work_in_processes(plan, min(jobs, todo)) if todo else []
    with results.locked(plan.out), contextlib.suppress(OSError):
        plan.out.with_suffix(".work").rmdir()

    finished, failed = len(plan.finished()), plan.failed()
    click.echo(f"{finished} of {counted(total, 'run')} {are} in {plan.out}.")
    for record in failed:
        click.echo(f"{results.name(record)} failed: {record['error']}", err=True)
    if errors:
        raise click.ClickException(f"{errors[0]} Go on with the same command.")
    if failed:
        raise click.ClickException(
            f"{len(failed)} of {counted(total, 'run')} failed; to try them again, remove their "
            f"lines from "
            f"{plan.failures}."
        )
    if finished < total:
        click.echo(f"Other processes are at work on the other {total - finished}.")


def _work_in_processes(plan: Plan, jobs: int) -> list[str]:
    """Starts the workers, waits for them, and returns their errors."""
    # A fresh interpreter each: TensorFlow does not survive a fork.
    context = multiprocessing.get_context("spawn")
    workers, receivers = [], []
    with _as_workers_need_it():
        for _ in range(jobs):
            receiver, sender = context.Pipe(duplex=False)
            worker = context.Process(target=_worker, args=(plan, jobs, sender), daemon=True)
            worker.start()
            sender.close()
            workers.append(worker)
            receivers.append(receiver)
    try:
        with _Progress(plan) as progress:
            while any(worker.is_alive() for worker in workers):
                multiprocessing.connection.wait(
                    [worker.sentinel for worker in workers if worker.is_alive()],
                    timeout=_SECONDS_BETWEEN_LOOKS,
                )
                progress.look()
    except KeyboardInterrupt as error:
        total = len(plan.experiments)
        raise Interrupted(
            f"interrupted; {len(plan.finished())} of {counted(total, 'run')} "
            f"{'is' if total == 1 else 'are'} in {plan.out}; go on with the same command."
        ) from error
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    return [message for args in zip(workers, receivers, strict=True) if (message := _error(*args))]


@contextlib.contextmanager
def _as_workers_need_it() -> Iterator[None]:
    """Sets what processes inherit that are started in this context."""
    # Ctrl-C reaches them too; this process ends them.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Under another name of the program, TensorFlow is imported at once, with all its notices.
    name, sys.argv[0] = sys.argv[0], "tfp-ar1"
    try:
        yield
    finally:
        sys.argv[0] = name
        signal.signal(signal.SIGINT, handler)


def _error(worker: Any, receiver: Any) -> str | None:
    """The error with which a worker ended, if it did."""
    with contextlib.suppress(EOFError):
        return receiver.recv()
    if worker.exitcode:
        how = "was killed, perhaps for its memory" if worker.exitcode < 0 else "failed, see above"
        return f"a process of this command {how}."
    return None


def _worker(plan: Plan, jobs: int, sender: Any) -> None:
    """The main function of a worker process."""
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    if jobs > 1:
        threads = str(max(1, _num_cores() // jobs))
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", threads)
        os.environ.setdefault("TF_NUM_INTEROP_THREADS", threads)
    try:
        work(plan)
    except click.ClickException as error:
        sender.send(error.format_message())
    except OSError as error:
        sender.send(f"{error}.")


def _num_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def work(plan: Plan) -> None:
    """Runs one experiment after the other, until none is left that nobody is at work on."""
    startup.import_tensorflow(announce=False)
    data = {}
    parent = multiprocessing.parent_process()
    # If the process that shows the progress was killed, nobody wants more than is under way.
    while parent is None or parent.is_alive():
        with _claim(plan) as claimed:
            if claimed is None:
                return
            experiment, run = claimed
            spec = experiment.options["dataset"]
            if spec not in data:
                data[spec] = _load(spec, experiment.options)
                runs.check_data(run, data[spec].fingerprint())
            path, record = _result(plan, experiment, run, data[spec])
            with results.locked(plan.out):
                results.append(path, record)
                shutil.rmtree(run.folder)


@contextlib.contextmanager
def _claim(plan: Plan) -> Iterator[tuple[Experiment, runs.Run] | None]:
    """Keeps the first experiment that is not done, and that nobody has, for this process."""
    with contextlib.ExitStack() as stack:
        with results.locked(plan.out):
            claimed = None
            for experiment in plan.pending():
                config = runs.new_config(experiment.options, experiment.data)
                claim = runs.claim(plan.folder(experiment.name), "", config)
                with contextlib.suppress(runs.Claimed):
                    claimed = experiment, stack.enter_context(claim)
                    break
        yield claimed


def _result(
    plan: Plan, experiment: Experiment, run: runs.Run, data: Data
) -> tuple[pathlib.Path, dict]:
    """Trains and evaluates; returns the record, and the file where it belongs."""
    import keras

    from tfp_ar1.vae import evaluation
    from tfp_ar1_cli import training

    # A process makes many models: without this, Keras keeps something of each.
    keras.utils.clear_session()
    options = experiment.options
    origin = {"versions": runs.new_config({}, {})["versions"], "code": plan.code}
    measure = _measures_of_series if run.of_sequences else _measures_of_images
    try:
        model = training.train(run, data, report=False)
        metrics = evaluation.evaluate(
            model, data.test, num_importance_samples=options["num_importance_samples"]
        )
        metrics |= measure(options, model, data)
        training.check_finite(metrics)
    except training.NotFinite as error:
        return plan.failures, {**experiment.settings, "error": error.format_message(), **origin}
    if experiment.draws_samples:
        from tfp_ar1_cli.pictures.images import sample_grid

        picture = results.samples_file(plan.out, experiment.settings)
        with dispensable(picture):
            picture.parent.mkdir(exist_ok=True)
            images = model.generate(_NUM_SAMPLES, seed=_SAMPLES_SEED)
            sample_grid(picture, images, run.value_range)
    history = run.history()
    return plan.out, {
        **experiment.settings,
        **metrics,
        "seconds_per_epoch": statistics.median(history["seconds"]),
        "history": _curves(history),
        **origin,
    }


def _measures_of_images(options: dict, model: Any, data: image_data.ImageData) -> dict[str, Any]:
    from tfp_ar1.vae import posteriors

    number = posteriors.num_covariance_parameters(options["posterior"], options["latent_dim"])
    return {"num_covariance_parameters": number}


def _measures_of_series(options: dict, model: Any, data: series.SeriesData) -> dict[str, Any]:
    from experiments import series_baselines
    from tfp_ar1.vae import posteriors, sequence_evaluation
    from tfp_ar1_cli import training

    of_path = posteriors.num_covariance_parameters(options["posterior"], options["window"])
    prior_correlation = training.prior_correlation(model)
    predict = sequence_evaluation.of_model(model)
    key = options["dataset"], options["window"]
    if key not in _baselines:
        _baselines[key] = {
            f"{name}_{measure}": value
            for name, baseline in series_baselines.BASELINES.items()
            for measure, value in sequence_evaluation.evaluate(
                baseline, data.x_test, data.length_test
            ).items()
        }
    return {
        "num_covariance_parameters": options["channels"] * of_path,
        "prior_correlation": float(prior_correlation.mean()),
        **sequence_evaluation.evaluate(predict, data.x_test, data.length_test),
        **_baselines[key],
    }


def _curves(history: dict[str, list[float]]) -> dict[str, list[float]]:
    """The learning curves, to the seven digits that a float32 has."""
    terms = zip(history["val_reconstruction"], history["val_kl"], strict=True)
    curves = {
        "loss": history["loss"],
        "val_neg_elbo": [sum(pair) for pair in terms],
        "val_reconstruction": history["val_reconstruction"],
        "val_kl": history["val_kl"],
    }
    return {key: [float(f"{x:.7g}") for x in values] for key, values in curves.items()}


class _Progress:
    """Shows on stderr what the files say: a live line on a terminal, and a line for each end."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._console = rich.console.Console(stderr=True)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            disable=not self._console.is_interactive,
        )
        self._task = self._bar.add_task("comparing", total=len(plan.experiments), note="")
        self._pending = {experiment.name: experiment for experiment in plan.pending()}
        self._start, self._work_at_start = time.monotonic(), self._work()

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def look(self) -> None:
        """Shows what has changed."""
        pending = {experiment.name for experiment in self._plan.pending()}
        ended = self._pending.keys() - pending
        records = self._plan.finished() + self._plan.failed() if ended else []
        for name in ended:
            del self._pending[name]
        total = len(self._plan.experiments)
        work = self._work()
        note = f"{total - len(self._pending)}/{counted(total, 'run')}" + self._time_left(work)
        for record in records:
            if (name := results.name(record)) in ended:
                figures = record.get("error") or (
                    f"-ELBO {record['neg_elbo']:.2f}, NLL {record['nll_iw']:.2f}"
                )
                self._console.print(
                    f"{note}  {name}: {figures}", markup=False, highlight=False, soft_wrap=True
                )
        self._bar.update(self._task, completed=work, note=note)

    def _work(self) -> float:
        """How much is done, in runs; the evaluation counts as an epoch."""
        parts = (
            self._plan.epochs_done(experiment) / (experiment.options["epochs"] + 1)
            for experiment in self._pending.values()
        )
        return len(self._plan.experiments) - len(self._pending) + sum(parts)

    def _time_left(self, work: float) -> str:
        done = work - self._work_at_start
        if done <= 0 or not self._pending:
            return ""
        seconds = (time.monotonic() - self._start) * (len(self._plan.experiments) - work) / done
        return f", {datetime.timedelta(seconds=round(seconds))} left"

"""`tfp-ar1 compare`: the grid, the file of results, and runs that die at any moment."""

import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest

from experiments import compare, results
from tfp_ar1_cli import runs, startup
from tfp_ar1_cli.data import images as datasets

OPTIONS = {
    "data_dir": None,
    "hidden_units": [3],
    "batch_size": 16,
    "learning_rate": 0.01,
    "num_importance_samples": 3,
    "likelihood": "bernoulli",
}
# The same for the command.
ARGV = (
    "--hidden-units=3 --batch-size=16 --learning-rate=0.01 --num-importance-samples=3 --epochs=2 "
    "--latent-dim=2 --posterior=ar1,diag --seed=0,1"
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An .npz file of 40 training and 12 test images of 6 x 6."""
    x = np.random.default_rng(0).random((52, 6, 6)) > 0.5
    path = tmp_path_factory.mktemp("images") / "tiny.npz"
    np.savez(path, x_train=x[:40], x_test=x[40:])
    return f"npz:{path}"


def grid(images, **axes):
    return {
        "dataset": (images,),
        "network": ("mlp",),
        "objective": ("elbo",),
        "beta": (1.0,),
        "latent_dim": (2,),
        "posterior": ("ar1", "diag"),
        "seed": (0, 1),
    } | axes


def make_plan(out, images, options=(), **axes):
    options = OPTIONS | {"epochs": {images: 2}} | dict(options)
    return compare.make_plan(out, grid(images, **axes), options)


def record(plan, index=0, **fields):
    """A line for an experiment that was not run."""
    return {**plan.experiments[index].settings, "neg_elbo": 1.0, "nll_iw": 1.0} | fields


def outcomes(lines):
    """All that lines of the same grid must have in common, by the names of the runs."""
    # Somebody may commit between two calls.
    left_out = {"seconds_per_epoch", "code"}
    return {results.name(r): {key: r[key] for key in r.keys() - left_out} for r in lines}


# The grid


def test_every_combination_once_and_the_first_seed_first(tmp_path, images):
    plan = make_plan(tmp_path / "x.jsonl", images, latent_dim=(2, 5), seed=(4, 1))
    points = [
        tuple(experiment.options[key] for key in ("seed", "latent_dim", "posterior"))
        for experiment in plan.experiments
    ]
    assert points == list(itertools.product((4, 1), (2, 5), ("ar1", "diag")))
    assert [experiment.draws_samples for experiment in plan.experiments] == [True] * 4 + [False] * 4
    assert len({experiment.name for experiment in plan.experiments}) == 8
    assert not list(tmp_path.iterdir())


def test_options_that_are_for_one_objective_or_network(tmp_path, images):
    plan = make_plan(
        tmp_path / "x.jsonl",
        images,
        network=("mlp", "cnn"),
        objective=("elbo", "iwae"),
        beta=(1.0, 4.0),
        posterior=("ar1",),
        seed=(0,),
    )
    keys = ("network", "hidden_units", "objective", "beta")
    points = [tuple(experiment.settings[key] for key in keys) for experiment in plan.experiments]
    assert points == [
        ("mlp", [3], "elbo", 1.0),
        ("mlp", [3], "elbo", 4.0),
        ("mlp", [3], "iwae", 1.0),
        ("cnn", None, "elbo", 1.0),
        ("cnn", None, "elbo", 4.0),
        ("cnn", None, "iwae", 1.0),
    ]


def test_names_tell_every_setting_apart(tmp_path, images):
    settings = make_plan(tmp_path / "x.jsonl", images).experiments[0].settings
    names = {results.name(settings)}
    for key in results.SETTINGS:
        names.add(results.name(settings | {key: 7}))
    assert len(names) == 1 + len(results.SETTINGS)
    assert all(name.replace("-", "").replace("_", "").isalnum() for name in names)


def test_code_version_is_that_of_the_checkout(tmp_path, monkeypatch):
    def git(*argv):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        done = subprocess.run(
            ["git", "-C", tmp_path, *identity, *argv], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    package = tmp_path / "package"
    package.mkdir()
    (package / "version.py").write_text("")
    monkeypatch.setattr(compare.tfp_ar1.version, "__file__", str(package / "version.py"))
    version = compare.tfp_ar1.version.__version__
    assert compare._code_version() == version
    git("init")
    assert compare._code_version() == version  # In somebody else's checkout.
    git("add", ".")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "results.jsonl").write_text("not part of the package")
    assert compare._code_version() == commit
    (package / "version.py").write_text("changed")
    assert compare._code_version() == f"{commit}-dirty"
    monkeypatch.setenv("PATH", "")
    assert compare._code_version() == version


# The file of results


def test_lines_are_read_as_they_were_written(tmp_path, images):
    path = tmp_path / "x.jsonl"
    assert results.read(path) == []
    plan = make_plan(path, images)
    lines = [record(plan, i, neg_elbo=0.1 + i, note="π\n") for i in range(3)]
    for line in lines:
        results.append(path, line)
    assert results.read(path) == lines
    assert path.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("kept", [1, 40, -2])
def test_a_torn_last_line_is_set_aside(tmp_path, images, capsys, kept):
    path = tmp_path / "x.jsonl"
    plan = make_plan(path, images)
    for i in range(2):
        results.append(path, record(plan, i))
    content = path.read_bytes()
    whole, torn = content.splitlines(keepends=True)
    path.write_bytes(whole + torn[:kept])
    # Whoever only reads passes over it.
    assert results.read(path) == [record(plan, 0)]
    assert capsys.readouterr().err == ""
    results.append(path, record(plan, 1))
    assert path.read_bytes() == content
    assert (tmp_path / "x.torn").read_bytes() == torn[:kept] + b"\n"
    assert "x.jsonl: its last line was torn" in capsys.readouterr().err


def test_a_last_line_that_only_lacks_its_end_is_kept(tmp_path, images, capsys):
    path = tmp_path / "x.jsonl"
    plan = make_plan(path, images)
    results.append(path, record(plan, 0))
    path.write_bytes(path.read_bytes()[:-1])
    assert results.read(path) == [record(plan, 0)]
    results.append(path, record(plan, 1))
    assert results.read(path) == [record(plan, 0), record(plan, 1)]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("line", ["{}", '{"dataset": ', "[1]", "", "\0\0"])
def test_other_lines_that_are_no_results_are_refused(tmp_path, images, line):
    path = tmp_path / "x.jsonl"
    plan = make_plan(path, images)
    results.append(path, record(plan, 0))
    path.write_text(f"{line}\n{path.read_text()}")
    with pytest.raises(results.UserError, match=r"x\.jsonl: line 1 is not a result"):
        results.read(path)


def test_a_full_disk_leaves_no_half_line(tmp_path, images, monkeypatch):
    path = tmp_path / "x.jsonl"
    plan = make_plan(path, images)
    results.append(path, record(plan, 0))
    content, write = path.read_bytes(), os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, line: write(file, line[:10]))
        with pytest.raises(OSError, match="disk full"):
            results.append(path, record(plan, 1))
    assert path.read_bytes() == content


def append_many(path, first):
    for i in range(first, first + 100):
        with results.locked(path):
            results.append(path, {"number": i, "padding": "x" * 5000})


@pytest.mark.skipif(runs.fcntl is None, reason="no file locks on this system")
def test_two_processes_write_whole_lines(tmp_path):
    path = tmp_path / "x.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=append_many, args=(path, n)) for n in (0, 100)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(line["number"] for line in lines) == list(range(200))


# The work, in this process


def test_a_line_holds_what_its_run_gave(tmp_path, images):
    from tfp_ar1.vae import evaluation
    from tfp_ar1_cli import training

    path = tmp_path / "x.jsonl"
    plan = make_plan(path, images, seed=(3,), posterior=("diag",), objective=("infovae",))
    plan = dataclasses.replace(plan, code="abc")
    compare.work(plan)
    (line,) = results.read(path)

    # The same by hand.
    (experiment,) = plan.experiments
    data = datasets.load(images)
    with runs.claim(tmp_path / "run", "", runs.new_config(experiment.options, {})) as run:
        model = training.train(run, data)
        history = run.history()
    metrics = evaluation.evaluate(model, data.x_test, num_importance_samples=3)
    expected = {
        "dataset": "tiny",
        "network": "mlp",
        "objective": "infovae",
        "beta": 1.0,
        "posterior": "diag",
        "latent_dim": 2,
        "seed": 3,
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 0.01,
        "data_sha256": data.fingerprint()["sha256"],
        "num_covariance_parameters": 2,
        "code": "abc",
        **metrics,
    }
    assert {key: line[key] for key in expected} == expected
    needed = "neg_elbo reconstruction kl nll_iw active_units mmd rho_mean rho_std scale_mean"
    assert {*needed.split(), "scale_std", "num_importance_samples"} <= metrics.keys()
    curves = {
        "loss": history["loss"],
        "val_neg_elbo": np.add(history["val_reconstruction"], history["val_kl"]),
        "val_reconstruction": history["val_reconstruction"],
        "val_kl": history["val_kl"],
    }
    assert line["history"].keys() == curves.keys()
    for key, curve in curves.items():
        np.testing.assert_allclose(line["history"][key], curve, rtol=1e-6)
    assert {"tfp_ar1", "tensorflow", "keras"} <= line["versions"].keys()
    assert 0 < line["seconds_per_epoch"] < 60

    # Samples of 6 x 6 in 4 rows of 8, with gaps of one pixel.
    with PIL.Image.open(results.samples_file(path, line)) as picture:
        assert picture.mode == "L"
        pixels = np.asarray(picture)
    assert pixels.shape == (28, 56)
    samples = np.asarray(model.generate(32, seed=0))
    np.testing.assert_allclose(pixels[7:13, 14:20], 255 * samples[10], atol=0.51)


def test_seconds_per_epoch_are_those_of_the_training(tmp_path, monkeypatch):
    import keras

    from tfp_ar1_cli import checkpoints

    # Begin, end of the training, and the backup; what the validation takes is not asked.
    clock = iter([10.0, 13.0, 50.0, 100.0, 101.0, 150.0, 200.0, 204.0, 250.0])
    monkeypatch.setattr(checkpoints.time, "perf_counter", lambda: next(clock))
    run = runs.Run(tmp_path, {})
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd")
    checkpoint = checkpoints.Checkpoint(run, model, steps_per_epoch=3)
    for epoch in range(3):
        checkpoint.on_epoch_begin(epoch)
        checkpoint.on_test_begin()
        checkpoint.on_epoch_end(epoch, {"loss": 1.0})
    assert run.history() == {"loss": [1.0] * 3, "seconds": [3.0, 1.0, 4.0]}


def test_only_the_first_seed_leaves_samples(tmp_path, images):
    plan = make_plan(tmp_path / "x.jsonl", images, posterior=("ar1",))
    compare.work(plan)
    assert len(results.read(plan.out)) == 2
    (picture,) = (tmp_path / "x.samples").iterdir()
    assert picture.stem == plan.experiments[0].name
    assert sorted(os.listdir(tmp_path)) == ["x.jsonl", "x.samples", "x.work"]
    assert not os.listdir(tmp_path / "x.work")


@pytest.fixture
def no_work(monkeypatch):
    """Makes it an error to import TensorFlow, or to start a process."""

    def fail(*args, **kwargs):
        pytest.fail("there is nothing to be done")

    monkeypatch.setattr(startup, "import_tensorflow", fail)
    monkeypatch.setattr(compare, "_work_in_processes", fail)


def test_killed_between_line_and_folder(tmp_path, images, no_work, capsys):
    plan = make_plan(tmp_path / "x.jsonl", images)
    for i in range(4):
        results.append(plan.out, record(plan, i))
    folder = plan.folder(plan.experiments[2].name)
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    before = plan.out.read_bytes()
    compare.run(plan, jobs=2)
    assert plan.out.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.jsonl"]
    assert "4 of 4 runs are in" in capsys.readouterr().out


@pytest.mark.skipif(runs.fcntl is None, reason="no file locks on this system")
def test_runs_of_other_processes_are_left_alone(tmp_path, images):
    plan = make_plan(tmp_path / "x.jsonl", images, seed=(0,))
    taken = plan.experiments[0]
    config = runs.new_config(taken.options, taken.data)
    with runs.claim(plan.folder(taken.name), "", config):
        compare.work(plan)
    assert [results.name(line) for line in results.read(plan.out)] == [plan.experiments[1].name]


def test_runs_that_fail_are_recorded_once(tmp_path, images, monkeypatch, capsys):
    plan = make_plan(
        tmp_path / "x.jsonl", images, {"learning_rate": 1e30}, posterior=("ar1",), seed=(0,)
    )
    compare.work(plan)
    (failure,) = results.read(tmp_path / "x.failed.jsonl")
    assert results.name(failure) == plan.experiments[0].name
    assert "lower --learning-rate than 1e+30" in failure["error"]
    assert results.read(plan.out) == []
    assert not os.listdir(tmp_path / "x.work")

    monkeypatch.setattr(startup, "import_tensorflow", lambda: pytest.fail("tried again"))
    with pytest.raises(compare.click.ClickException, match="1 of 1 run failed") as raised:
        compare.run(plan, jobs=1)
    assert raised.value.exit_code == 1
    assert f"{plan.experiments[0].name} failed: the loss became" in capsys.readouterr().err
    (tmp_path / "x.failed.jsonl").unlink()
    assert plan.pending() == plan.experiments


def test_dry_run_says_how_things_stand_and_writes_nothing(tmp_path, images, no_work, capsys):
    plan = make_plan(tmp_path / "x.jsonl", images)
    results.append(plan.out, record(plan, 0))
    results.append(plan.failures, record(plan, 1, error="bad luck"))
    checkpoints = plan.folder(plan.experiments[2].name) / "checkpoint"
    checkpoints.mkdir(parents=True)
    (checkpoints / "1-0.npz").write_text("")
    with plan.out.open("a") as file:
        file.write('{"torn')
    before = sorted(path for path in tmp_path.rglob("*"))
    content = plan.out.read_bytes()
    compare.dry_run(plan)
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert plan.out.read_bytes() == content
    names = [experiment.name for experiment in plan.experiments]
    assert capsys.readouterr().out.splitlines() == [
        f"done          {names[0]}",
        f"failed        {names[1]}",
        f"1/2 epochs    {names[2]}",
        f"to do         {names[3]}",
        "4 runs: 1 done, 1 failed, 2 to do.",
    ]


def test_an_error_in_a_worker_is_told_in_one_line(tmp_path, images, monkeypatch):
    plan = make_plan(tmp_path / "x.jsonl", images)

    def work(plan):
        raise OSError("No space left on device")

    monkeypatch.setattr(compare, "work", work)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    compare._worker(plan, 1, sender)
    assert compare._error(None, receiver) == "No space left on device."


# The work, in processes of its own


def command(images, out, *argv):
    program = (sys.executable, "-m", "tfp_ar1", "compare")
    return [*program, "--dataset", images, *ARGV.split(), "--out", str(out), *argv]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, images):
    """The results of the grid, each in a process of its own, and what the command printed."""
    path = tmp_path_factory.mktemp("uninterrupted") / "x.jsonl"
    done = subprocess.run(
        command(images, path, "--jobs", "2"), check=True, capture_output=True, text=True
    )
    return path, done.stdout, done.stderr


@pytest.mark.slow
def test_compare_says_what_it_did(uninterrupted):
    path, out, err = uninterrupted
    assert out.splitlines() == [
        f"0 of 4 runs are over already; results go to {path}.",
        f"4 of 4 runs are in {path}.",
    ]
    lines = err.splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("4/4 runs  tiny-mlp-elbo-")
    for line in results.read(path):
        figures = f"{results.name(line)}: -ELBO {line['neg_elbo']:.2f}, NLL {line['nll_iw']:.2f}"
        assert sum(text.endswith(figures) for text in lines) == 1
    assert sorted(os.listdir(path.parent)) == ["x.jsonl", "x.samples"]


@pytest.mark.slow
@pytest.mark.skipif(runs.fcntl is None, reason="no file locks on this system")
def test_two_commands_share_the_work(tmp_path, images, uninterrupted):
    path = tmp_path / "x.jsonl"
    processes = [subprocess.Popen(command(images, path)) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    lines = results.read(path)
    assert len(lines) == 4
    assert outcomes(lines) == outcomes(results.read(uninterrupted[0]))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="looks into /proc")
def test_ctrl_c_stops_all_processes(tmp_path, images):
    path = tmp_path / "x.jsonl"
    argv = command(images, path, "--jobs", "2", "--epochs", "100000")
    process = subprocess.Popen(
        argv,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs, of which these tests may be one, ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert is_at_work(process, path)
        os.killpg(process.pid, signal.SIGINT)
        # The workers have the pipe too: it ends with the last of them.
        _, err = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert err == (
        f"tfp-ar1: interrupted; 0 of 4 runs are in {path}; go on with the same command.\n"
    )


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="looks into /proc")
def test_ten_kills_lose_and_repeat_nothing(tmp_path, images, uninterrupted):
    rng = random.Random(0)
    kills = 0
    while kills < 10:
        # On a fast machine the grid is finished before all kills are done; then it starts anew.
        path = tmp_path / f"{kills}" / "x.jsonl"
        before = b""
        finished = False
        while not finished:
            process = subprocess.Popen(
                command(images, path, "--jobs", "2"),
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            finished = kills == 10 or not is_at_work(process, path)
            if not finished:
                time.sleep(rng.uniform(0, 2.5))
                kills += process.poll() is None
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            content = path.read_bytes()
            assert content.startswith(before)
            before = content
        lines = results.read(path)
        assert len(lines) == 4
        assert outcomes(lines) == outcomes(results.read(uninterrupted[0]))
        assert contents(path.with_suffix(".samples")) == contents(
            uninterrupted[0].with_suffix(".samples")
        )
        assert sorted(os.listdir(path.parent)) == ["x.jsonl", "x.samples"]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def is_at_work(process, path):
    """Waits until a process holds a run; False if it has ended before that."""
    work = str(path.with_suffix(".work"))
    while process.poll() is None:
        for file in pathlib.Path("/proc").glob("[0-9]*/fd/*"):
            with contextlib.suppress(OSError):
                if os.readlink(file).startswith(work):
                    return True
        time.sleep(0.05)
    return False


# Series


SERIES_OPTIONS = {
    "model": "sequence",
    "window": None,
    "hide": 0.5,
    "batch_size": 8,
    "learning_rate": 0.01,
    "num_importance_samples": 3,
    "likelihood": "gaussian",
}


@pytest.fixture(scope="module")
def series_file(tmp_path_factory):
    """An .npz file of 10 training and 6 test series of 12 steps: noisy waves."""
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 6, (16, 1, 1))
    x = np.sin(phase + np.arange(12)[:, None] / 2) + 0.1 * rng.normal(size=(16, 12, 1))
    path = tmp_path_factory.mktemp("series") / "waves.npz"
    np.savez(path, x=x[:10], x_test=x[10:])
    return f"npz:{path}"


def make_series_plan(out, series_file, **axes):
    grid = {
        "dataset": (series_file,),
        "network": ("convolutional",),
        "objective": ("elbo",),
        "beta": (1.0,),
        "channels": (2,),
        "prior": ("ar1", "normal"),
        "posterior": ("ante1", "diag"),
        "seed": (0,),
    } | axes
    return compare.make_plan(out, grid, SERIES_OPTIONS | {"epochs": {series_file: 1}})


def test_names_of_runs_on_series_tell_every_setting_apart(tmp_path, series_file):
    settings = make_series_plan(tmp_path / "x.jsonl", series_file).experiments[0].settings
    assert settings["window"] == 12
    names = {results.name(settings)}
    for key in results.SEQUENCE_SETTINGS[1:]:
        names.add(results.name(settings | {key: 7}))
    assert len(names) == len(results.SEQUENCE_SETTINGS)


def test_results_of_series(tmp_path, series_file):
    """Every combination has its line, which says how well it imputes and forecasts."""
    from experiments import series_baselines
    from tfp_ar1.vae import sequence_evaluation
    from tfp_ar1_cli.data import series

    plan = make_series_plan(tmp_path / "x.jsonl", series_file)
    compare.work(plan)
    lines = results.read(plan.out)
    variants = [(line["posterior"], line["prior"]) for line in lines]
    assert variants == [
        ("ante1", "ar1"), ("diag", "ar1"), ("ante1", "normal"), ("diag", "normal")
    ]  # fmt: skip
    data = series.load(series_file, None, "gaussian")
    baseline = sequence_evaluation.evaluate(series_baselines.last_value, data.x_test)
    for line in lines:
        assert line["num_covariance_parameters"] == 2 * (23 if line["posterior"] == "ante1" else 12)
        assert np.isclose(line["neg_elbo"], line["reconstruction"] + line["kl"])
        assert 0 <= line["imputation_coverage_50"] <= 1
        assert line["forecast_rmse_1"] > 0
        assert (line["prior_correlation"] == 0) == (line["prior"] == "normal")
        assert line["last_value_imputation_rmse_20"] == baseline["imputation_rmse_20"]
    assert not plan.pending()

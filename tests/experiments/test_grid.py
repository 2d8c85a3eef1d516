"""`python -m experiments run`: the grid, its results, and runs that die at any moment."""

import contextlib
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import click
import numpy as np
import pytest

from experiments import __main__, grid, results
from tfp_ar1_cli import run_folder
from tfp_ar1_cli.data import loading

ROOT = pathlib.Path(__file__).parents[2]
GIVEN = dict.fromkeys(("epochs", "latent_dim"), "2") | {"posterior": "ar1,diag", "seed": "0,1"}
GIVEN |= dict.fromkeys(("hidden_units", "num_importance_samples"), "3")
GIVEN |= {"batch_size": "16", "learning_rate": "0.01"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An .npz file of 40 training and 12 test images of 6 x 6."""
    x = np.random.default_rng(0).random((52, 6, 6)) > 0.5
    path = tmp_path_factory.mktemp("images") / "tiny.npz"
    np.savez(path, x_train=x[:40], x_test=x[40:])
    return f"npz:{path}"


def make(images, **given):
    return grid.make(GIVEN | {"dataset": images} | given)


def read(out):
    return {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/result.json")}


# The grid


def test_every_combination_once_and_the_first_seed_first(images):
    experiments = make(images, latent_dim="2,5", seed="4, 1,4")
    keys = ("seed", "latent_dim", "posterior")
    points = [tuple(experiment.settings[key] for key in keys) for experiment in experiments]
    assert points == list(itertools.product((4, 1), (2, 5), ("ar1", "diag")))
    assert len({experiment.name for experiment in experiments}) == 8


def test_options_that_are_for_one_objective_or_network(images):
    given = {"network": "mlp,cnn", "objective": "elbo,iwae", "beta": "1,4", "seed": "0"}
    experiments = make(images, posterior="ar1", **given)
    keys = ("network", "hidden_units", "objective", "beta")
    assert [tuple(experiment.settings[key] for key in keys) for experiment in experiments] == [
        (network, hidden_units, *objective)
        for network, hidden_units in (("mlp", [3]), ("cnn", None))
        for objective in (("elbo", 1.0), ("elbo", 4.0), ("iwae", 1.0))
    ]


@pytest.mark.parametrize("model", ["image", "sequence"])
def test_names_tell_every_setting_apart(model):
    keys = results.settings_of({"model": model})
    settings = dict.fromkeys(keys, 1) | ({"model": model} if model == "sequence" else {})
    names = {results.name(settings)}
    for key in keys[model == "sequence" :]:
        names.add(results.name(settings | {key: 7}))
    assert len(names) == 1 + len(keys) - (model == "sequence")
    # Names of the committed results are those that they had.
    first = (ROOT / "experiments/results/experiments.jsonl").read_text().split("\n")[0]
    assert results.name(json.loads(first)) == "fashion_mnist-mlp-elbo-ar1-d10-seed0-ef932a5e"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--dataset digits,x", "there is no dataset 'x'"),
        ("--posterior diag,x", "'x' is not one of 'ar1'"),
        ("--beta 1,nan", "nan is not a finite number"),
        ("--latent-dim 5,0", "0 is not in the range x>=1"),
        ("--objective infovae,iwae --beta 2", "--beta is for --objective elbo"),
        ("--network cnn,dcgan --hidden-units 9", "--hidden-units is for --network mlp"),
        ("--prior ar1", "--prior is for --model sequence"),
        ("--network convolutional", "is not for --model image"),
        ("--dataset npz:nowhere.npz", "nowhere.npz: No such file"),
        ("--jobs 0", "0 is not in the range x>=1"),
        ("--foo 3", "No such option '--foo'"),
        ("--seed", "expected options, each with a value"),
        ("--likelihood gaussian", "a grid has no --likelihood"),
        ("--data-dir . --dataset digits", "--data-dir is for"),
    ],
)
def test_mistakes(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert __main__.main(["run", *argv.split()]) == 2
    assert message in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_the_same_data_under_two_names(images, tmp_path):
    other = tmp_path / "other.npz"
    other.write_bytes(pathlib.Path(images.removeprefix("npz:")).read_bytes())
    with pytest.raises(click.ClickException, match="are the same data; leave one out"):
        make(f"{images},npz:{other}")


# The work


@pytest.mark.slow
def test_a_result_is_what_train_and_evaluate_give(tmp_path, images, capsys):
    """Dry runs write nothing; a run that is over is not run again; others are resumed."""
    experiments = make(images, objective="infovae", posterior="diag", seed="3")
    (experiment,) = experiments
    grid.dry_run(experiments, tmp_path / "out")
    assert capsys.readouterr().out.endswith("1 run: 0 done, 0 failed, 1 to do.\n")
    assert not os.listdir(tmp_path)
    grid.run(experiments, tmp_path / "out", jobs=1)
    folder = tmp_path / "out" / experiment.name
    result = json.loads((folder / "result.json").read_text())
    run = run_folder.read_finished(folder)
    assert {key: result[key] for key in run.metrics()} == run.metrics()
    assert {key: result[key] for key in experiment.settings} == experiment.settings
    expected = {"dataset": "tiny", "posterior": "diag", "seed": 3, "num_covariance_parameters": 2}
    assert expected.items() <= result.items()
    history = run.history()
    np.testing.assert_allclose(result["history"]["loss"], history["loss"], rtol=1e-6)
    bounds = np.add(history["val_reconstruction"], history["val_kl"])
    np.testing.assert_allclose(result["history"]["val_neg_elbo"], bounds, rtol=1e-6)
    assert result["seconds_per_epoch"] == np.median(history["seconds"])
    assert result["code"].removesuffix("-dirty") == grid.code_version().removesuffix("-dirty")
    assert results.samples_file(tmp_path / "out", result).is_file()
    capsys.readouterr()
    before = (folder / "result.json").stat().st_mtime_ns
    grid.run(experiments, tmp_path / "out", jobs=2)
    assert (folder / "result.json").stat().st_mtime_ns == before
    assert "0 of 1 run to do" in capsys.readouterr().out
    # As if it had been killed after the training: the same result again.
    (folder / "result.json").unlink()
    grid.run(experiments, tmp_path / "out", jobs=1)
    assert json.loads((folder / "result.json").read_text()) == result


def test_a_run_of_another_process_is_left_alone_and_one_that_fails_is_told_once(
    tmp_path, images, capsys
):
    taken, *_ = make(images, posterior="ar1", seed="0")
    with (
        run_folder.claim(tmp_path / taken.name, "", taken.options, {}),
        pytest.raises(click.ClickException),
    ):
        grid.run([taken], tmp_path, jobs=1)
    failing, *_ = experiments = make(images, posterior="ar1", seed="0", learning_rate="1e30")
    for _ in range(2):
        with pytest.raises(click.ClickException, match="1 of 1 run failed"):
            grid.run(experiments, tmp_path, jobs=1)
    assert capsys.readouterr().err.count("lower --learning-rate than 1e+30") == 1
    assert failing.state(tmp_path) == "failed"


def start(images, out, *argv, **kwargs):
    given = [f"--{key.replace('_', '-')}={value}" for key, value in GIVEN.items()]
    command = [sys.executable, "-m", "experiments", "run", f"--dataset={images}", *given]
    return subprocess.Popen(
        [*command, f"--out={out}", *argv],
        start_new_session=True,
        # A shell's background jobs, of which these tests may be one, ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        **kwargs,
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, images):
    """The results of the grid in processes of its own, which two commands share."""
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    processes = [start(images, out, "--jobs=2"), start(images, out)]
    assert [process.wait() for process in processes] == [0, 0]
    return read(out)


def outcomes(found):
    """All that results of the same grid must have in common."""
    left_out = ("seconds_per_epoch", "code")
    return {name: {k: v for k, v in r.items() if k not in left_out} for name, r in found.items()}


def is_at_work(process, out):
    """Waits until a run has begun; False if all has ended before that."""
    while process.poll() is None:
        if any(not path.with_name("result.json").exists() for path in out.glob("*/config.json")):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_ctrl_c_stops_all_processes(tmp_path, images):
    out = tmp_path / "out"
    process = start(images, out, "--jobs=2", "--epochs=100000", stderr=subprocess.PIPE)
    try:
        assert is_at_work(process, out)
        time.sleep(3)
        os.killpg(process.pid, signal.SIGINT)
        # The workers have the pipe too: it ends with the last of them.
        _, err = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "experiments: interrupted; resume with the same command."


@pytest.mark.slow
def test_kills_lose_and_repeat_nothing(tmp_path, images, uninterrupted):
    rng, out, before, kills = random.Random(0), tmp_path / "out", {}, 0
    while True:
        process = start(images, out, "--jobs=2", stdout=subprocess.DEVNULL)
        if kills < 5 and is_at_work(process, out):
            time.sleep(rng.uniform(0, 4))
            kills += process.poll() is None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        ended = process.wait() == 0
        found = read(out)
        assert before.items() <= found.items()
        before = found
        if ended:
            break
    assert kills > 1
    assert len(found) == 4
    assert outcomes(found) == outcomes(uninterrupted)


# Series


@pytest.mark.slow
def test_results_of_series(tmp_path):
    """Every result says how well the model, and what needs none, imputes and forecasts."""
    from experiments import series_baselines
    from tfp_ar1.vae import sequence_evaluation

    rng = np.random.default_rng(0)
    x = np.sin(rng.uniform(0, 6, (16, 1, 1)) + np.arange(12)[:, None] / 2)
    np.savez(tmp_path / "waves.npz", x=x[:10], x_test=x[10:])
    given = {"model": "sequence", "dataset": f"npz:{tmp_path / 'waves.npz'}", "posterior": "ante1"}
    given |= {"prior": "normal", "seed": "0", "epochs": "1", "batch_size": "8", "channels": "2"}
    experiments = grid.make(given | {"num_importance_samples": "3"})
    grid.run(experiments, tmp_path / "out", jobs=1)
    (result,) = read(tmp_path / "out").values()
    assert result["window"] == 12
    assert result["num_covariance_parameters"] == 2 * 23
    assert result["prior_correlation"] == 0
    np.testing.assert_allclose(result["neg_elbo"], result["reconstruction"] + result["kl"])
    data = loading.load(experiments[0].options.data)
    baseline = sequence_evaluation.evaluate(series_baselines.last_value, data.x_test)
    assert result["last_value_imputation_rmse_20"] == baseline["imputation_rmse_20"]
    # Horizons of 10 and of 50 steps are not inside a window of 12, of which 6 are shown.
    missing = results.MEASURES.keys() - result.keys()
    assert missing == {f"forecast_{what}_{n}" for what in ("rmse", "coverage") for n in (10, 50)}

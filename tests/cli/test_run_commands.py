"""What is told of runs: `info`, `list`, `train --json`, `--quiet`, and `--config`; and SIGTERM."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from program import RUNS, TINY, TINY_SERIES

from tfp_ar1_cli import kinds, list_runs, run_folder, startup, train
from tfp_ar1_cli.errors import Terminated


def test_info_of_a_finished_run(cli):
    code, out, err = cli("info", RUNS["sequence"])
    assert (code, err) == (0, "")
    for expected in (
        f"{RUNS['sequence']}: finished.\n",
        "Data: gunpoint, 150 training and 450 test windows of shape 50,1.\n",
        "Model: recurrent (a recurrent encoder, a decoder of single steps); ar1 posterior and ar1 "
        "prior over 1 latent path.\n",
        "Options other than the defaults: --model sequence --dataset gunpoint --window 50 "
        "--network recurrent --channels 1 --epochs 1 --num-importance-samples 5\n",
        "Trained for 1 epoch, with tfp_ar1 0.1.0.\n",
        "importance-weighted NLL, 5 samples",
        "Files: config.json, history.json, metrics.json, model.keras\n",
    ):
        assert expected in out


def test_info_of_an_unfinished_run_says_how_to_resume_it(cli, monkeypatch, unfinished, tiny):
    (unfinished / "checkpoint").mkdir()
    (unfinished / "checkpoint/2-1.npz").touch()
    code, out, _ = cli("info", unfinished)
    assert code == 0
    assert f"{unfinished}: unfinished, 2 of 3 epochs done.\n" in out
    command = f"tfp-ar1 train --config {unfinished}/config.json --out {unfinished}"
    assert f"Resume it with: {command}\n" in out
    assert command in cli("export", unfinished)[2]
    # And that is the same run.
    found = []
    monkeypatch.setattr(train, "_train", lambda run, *_: found.append(run))
    assert cli(*command.split()[1:])[0] == 0
    assert (found[0].folder, found[0].options) == (unfinished, tiny[0])


def test_list(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli("list")[0] == 2
    pathlib.Path("runs/empty").mkdir(parents=True)
    assert "runs: holds no runs" in cli("list")[2]
    for name, folder in RUNS.items():
        shutil.copytree(folder, f"runs/{name}")
    pathlib.Path("runs/image/metrics.json").unlink()
    shutil.copytree(RUNS["image"], "runs/broken")
    pathlib.Path("runs/broken/config.json").write_text("{")
    code, out, err = cli("list")
    assert (code, err) == (0, "")
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    rows = {row[0]: row[1:] for row in cells if row}
    elbo = run_folder.read(RUNS["sequence"]).metrics()["neg_elbo"]
    assert rows["image"] == ["digits", "ar1", "0 of 1", "", "unfinished"]
    assert rows["sequence"] == ["gunpoint", "ar1", "1", f"{elbo:.2f}", "finished"]
    assert "JSON" in rows["broken"][-1] or "valid" in out
    assert list_runs.command.name == "list"


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(kinds.ImageKind, "draw", lambda *_: [])


def test_json_and_quiet_of_a_repeated_run(cli, no_pictures, finished):
    """A run is repeated from its config; nothing but JSON is on stdout, and nothing on stderr."""
    folder, _, _ = finished
    config = ("--config", folder / "config.json", "--out", "again", "--epochs", 2)
    code, out, err = cli("train", *config, "--json", "--quiet")
    assert (code, err) == (0, "")
    *epochs, results = map(json.loads, out.splitlines())
    history = run_folder.read(pathlib.Path("again")).history()
    before = run_folder.read(folder)
    assert [line.pop("epoch") for line in epochs] == [1, 2]
    for number, line in enumerate(epochs):
        assert line == {name: history[name][number] for name in line}
        # The same run as before, as far as it goes.
        assert line["loss"] == before.history()["loss"][number]
    assert results.pop("run") == "again"
    (remark,) = results.pop("remarks")
    assert "The run ended about where it began" in remark
    assert results == run_folder.read(pathlib.Path("again")).metrics()


@pytest.mark.parametrize("kind", ["image", "sequence"])
def test_a_config_gives_what_the_command_line_does_not(cli, monkeypatch, tmp_path, kind, request):
    name = {"image": "images", "sequence": "own_series"}[kind]
    tiny = TINY if kind == "image" else TINY_SERIES
    more = ["--filters", "9,8", "--hidden-units", "7"] if kind == "sequence" else ["--beta", "3"]
    argv = ["train", "--dataset", f"npz:{request.getfixturevalue(name)}", *tiny, *more]
    found = []
    monkeypatch.setattr(train, "_train", lambda run, *_: found.append(run.options))
    assert cli(*argv, "--split", "shuffled", "--out", "first")[0] == 0
    assert cli("train", "--config", "first/config.json")[0] == 0
    assert cli("train", "--config", "first/config.json", "--seed", 5, "--epochs", 9)[0] == 0
    first, again, other = found
    assert again == first
    assert (other.seed, other.epochs, other.split) == (5, 9, "shuffled")
    assert other.changed() == first.changed() | {"seed": 5, "epochs": 9}


def test_mistakes_in_a_config(refused):
    pathlib.Path("other.json").write_text('{"model": "another program\'s"}')
    for argv, expected in (
        ("--config other.json", "other.json: was not written by 'tfp-ar1 train'"),
        ("--config no.json", "File 'no.json' does not exist"),
        (f"--config {RUNS['image']}/config.json --channels 2", "--channels is for --model seq"),
    ):
        assert expected in refused("train", *argv.split())


# SIGTERM


def test_sigterm_is_handled_as_ctrl_c(cli, monkeypatch, images):
    def stop(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        sum(range(10**6))

    before = signal.getsignal(signal.SIGTERM)
    argv = ("train", "--dataset", f"npz:{images}", *TINY, "--out", "run")
    for during in ("prepare", "_train"):
        with monkeypatch.context() as patch:
            patch.setattr(train, during, stop)
            code, _, err = cli(*argv)
        resume = f" after 0 of 3 epochs; resume with: tfp-ar1 {' '.join(argv)}"
        assert (code, err.strip()) == (
            143,
            f"tfp-ar1: interrupted{resume if during == '_train' else '.'}",
        )
    assert signal.getsignal(signal.SIGTERM) == before == signal.SIG_DFL


def test_sigterm_while_packages_are_imported_is_not_lost():
    def swallow():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            sum(range(10**6))
        except KeyboardInterrupt:
            raise ImportError("no runtime") from None

    with startup.terminated_as_interrupted(), pytest.raises(Terminated):
        startup.import_backend(swallow)


@pytest.mark.slow
def test_a_training_that_is_terminated(tmp_path):
    program = [sys.executable, "-m", "tfp_ar1_cli", "train", "--epochs", "5000"]
    program += ["--hidden-units", "8", "--out", "run"]
    process = subprocess.Popen(program, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("run/checkpoint/[1-9]*")):
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.splitlines()[-1].endswith(f"resume with: tfp-ar1 {shlex.join(program[3:])}")


# Versions for TensorFlow Serving


@pytest.mark.slow
def test_exports_for_serving_are_versions(cli):
    for number in (1, 2):
        code, out, err = cli("export", RUNS["image"], "--serving", "--out", "models/digits")
        assert (code, err) == (0, "")
        version = pathlib.Path("models/digits", str(number))
        assert (
            f"Wrote {version}: a SavedModel, README.md (model card) and model_card.json, in" in out
        )
        extra = {path.name for path in (version / "assets.extra").iterdir()}
        assert extra == {"README.md", "model_card.json"}
        assert '.load("..")  # the folder above' in (version / "assets.extra/README.md").read_text()
    assert sorted(os.listdir("models/digits")) == ["1", "2"]
    assert "saved_model.pb" in os.listdir("models/digits/2")
    served = tf.saved_model.load("models/digits/2").signatures["serving_default"]
    assert served(x=np.zeros((3, 8, 8), np.float32))["output_0"].shape == (3, 8, 8)


def test_where_no_version_can_be(refused):
    pathlib.Path("plain").mkdir()
    pathlib.Path("plain/saved_model.pb").touch()
    export = ("export", RUNS["image"], "--serving", "--out")
    assert "plain: is a SavedModel, not a folder of versions" in refused(*export, "plain")
    assert "saved_model.pb: is a file; choose another" in refused(*export, "plain/saved_model.pb")

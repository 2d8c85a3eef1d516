"""What `--strategy` is told: `TF_CONFIG`, the number of replicas, and what is wrong with either."""

import json
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest
import workers
from program import TINY, options_of

from tfp_ar1_cli import kinds, run_folder
from tfp_ar1_cli.errors import UserError
from tfp_ar1_cli.run_folder import Position
from tfp_ar1_cli.training import strategies

WORKERS = ["a:1", "b:2"]


def tf_config(kind="worker", index=0, **cluster):
    task = {"type": kind, "index": index}
    return json.dumps({"cluster": cluster or {"worker": WORKERS}, "task": task})


@pytest.mark.parametrize(
    ("config", "index", "number"),
    [
        (tf_config(), 0, 2),
        (tf_config(index=1), 1, 2),
        (tf_config("chief", 0, chief=["c:3"], worker=WORKERS), 0, 3),
        (tf_config("worker", 1, chief=["c:3"], worker=WORKERS), 2, 3),
    ],
)
def test_who_is_who(monkeypatch, config, index, number):
    monkeypatch.setenv("TF_CONFIG", config)
    task = strategies.task()
    assert (task.index, len(task.addresses)) == (index, number)
    assert strategies.num_replicas("multiworker", None) == number
    assert task.describe().startswith(f"Worker {index} of {number}; waits for ")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "needs the environment variable TF_CONFIG"),
        ("{", "TF_CONFIG cannot be read (JSONDecodeError"),
        ("[]", "TF_CONFIG cannot be read (TypeError"),
        ('{"cluster": {}}', "TF_CONFIG cannot be read (KeyError: 'task')"),
        (tf_config("ps"), "TF_CONFIG cannot be read (KeyError: 'ps')"),
        (tf_config(index=2), "has 2 of type worker, so there is no index 2"),
        (tf_config(index=-1), "there is no index -1"),
        (tf_config("chief"), "has 0 of type chief"),
    ],
)
def test_bad_tf_config(monkeypatch, config, message):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(UserError) as raised:
        strategies.task()
    assert message in str(raised.value)


def test_bad_options(monkeypatch, refused):
    monkeypatch.setenv("TF_CONFIG", tf_config())
    train = ("train", "--strategy", "multiworker")
    assert "needs --out, a folder that all workers share" in refused(*train)
    message = refused(*train, "--out", "new", "--batch-size", "1")
    assert "--batch-size 1 is too small for 2 replicas" in message


def test_a_worker_that_gets_nowhere_gives_up(monkeypatch):
    started = []
    monkeypatch.setattr(strategies.os, "execv", lambda *arguments: started.append(arguments))
    monkeypatch.setattr(strategies.time, "sleep", lambda seconds: None)
    monkeypatch.setenv(strategies._RESTARTS, "")
    for _ in range(strategies._MAX_RESTARTS):
        strategies._start_again(Position(1, 2), RuntimeError("x"))
    with pytest.raises(strategies.WorkerLost, match=r"10 times without a backup in between.*: x"):
        strategies._start_again(Position(1, 2), RuntimeError("x"))
    # With a backup in between the count begins anew.
    strategies._start_again(Position(1, 4), RuntimeError("x"))
    assert len(started) == strategies._MAX_RESTARTS + 1


@pytest.mark.slow
def test_what_is_left_after_the_last_epoch_needs_no_other_worker(
    cli, monkeypatch, images, tmp_path
):
    """Worker 0 was killed while it drew pictures, and the others had left."""
    folder = tmp_path / "run"
    argv = ["train", "--dataset", f"npz:{images}", *TINY, "--out", folder]

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kinds.ImageKind, "draw", interrupt)
        assert cli(*argv)[0] == 130
    config = json.loads((folder / "config.json").read_text())
    config["options"] |= {"strategy": "multiworker", "replicas": 2}
    (folder / "config.json").write_text(json.dumps(config))
    argv += ["--strategy", "multiworker"]

    def restart(index, *more):
        monkeypatch.setenv("TF_CONFIG", tf_config(index=index))
        return cli(*argv, *more)

    code, out, err = restart(1)
    assert (code, err) == (0, "")
    assert "This worker is done; worker 0 evaluates the model and writes the run." in out
    assert not run_folder.read(folder).finished
    code, out, err = restart(0)
    assert code == 0, err
    assert run_folder.read(folder).finished
    # It may be started again once more, by what starts all that ended; but not for something else.
    assert restart(1)[0] == 0
    code, _, err = restart(1, "--epochs", "4")
    assert code == 2
    assert "holds a finished run with --epochs 3, not 4" in err
    code, _, err = restart(0)
    assert code == 2
    assert "already holds a finished run" in err


def test_a_worker_that_is_done_waits_for_the_last_backup(monkeypatch):
    import tensorflow as tf

    class Run:
        trained = False

    monkeypatch.setattr(strategies, "_SECONDS_FOR_BACKUP", 0.3)
    with pytest.raises(tf.errors.UnavailableError, match="did not write the last backup"):
        strategies.wait_for_last_backup(Run)
    Run.trained = True
    strategies.wait_for_last_backup(Run)


def test_options_that_may_change_need_not_be_alike():
    """Worker 0 has those that the run began with, the others those of a resumed one."""

    def of(*argv):
        run = run_folder.Run(pathlib.Path(), options_of(*argv), {"sha256": "a"})
        return strategies.what_is_alike(run)

    assert of("--dataset", "stream:a.npy") == of("--dataset", "stream:b.npy", "--corrupt", "skip")
    assert of() != of("--epochs", 4)


def test_images_left_out_by_each_worker_are_collected(tmp_path):
    first, second = (run_folder.Run(tmp_path, options_of(), {}, {}, n) for n in (0, 1))
    first.add_skipped({"row 3": "NaN"})
    second.add_skipped({"row 5": "NaN"})
    second.add_skipped({"row 3": "NaN", "row 7": "NaN"})
    assert first.skipped() == {"row 3": "NaN"}
    assert sorted(first.collect_skipped()) == ["row 3", "row 5", "row 7"]
    assert sorted(first.skipped()) == ["row 3", "row 5", "row 7"]
    assert [path.name for path in tmp_path.iterdir()] == ["skipped.json"]


COMMAND = [sys.executable, "-m", "tfp_ar1", "train", "--strategy", "multiworker", "--out"]


@pytest.mark.slow
def test_a_port_that_is_taken(tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = tf_config(worker=[address, "127.0.0.1:1"])
        process = workers.start([*COMMAND, str(tmp_path / "run")], config)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert f"error: worker 0 cannot listen on {address}, its address in TF_CONFIG" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_ctrl_c_stops_a_worker_that_waits(tmp_path):
    with (tmp_path / "log").open("w") as log:
        process = workers.start(
            [*COMMAND, str(tmp_path / "run")], workers.tf_configs(2)[0], stdout=log
        )
    try:
        begin = time.monotonic()
        while "waits for" not in (tmp_path / "log").read_text():
            assert process.poll() is None
            assert time.monotonic() - begin < 120
            time.sleep(0.1)
        time.sleep(10)  # TensorFlow has been imported, and waits.
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        pytest.fail("The worker still waits.")
    finally:
        process.kill()
        process.wait()

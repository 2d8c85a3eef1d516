"""What `--strategy` is told: `TF_CONFIG`, the number of replicas, and what is wrong with either."""

import json

import pytest
from test_cli import cli, refused  # noqa: F401  fixtures

from tfp_ar1.cli import strategies
from tfp_ar1.cli.errors import UserError

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
    assert (task.index, task.is_chief, len(task.addresses)) == (index, index == 0, number)
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
        (tf_config(index=2), "has 2 of type worker, so that there is no index 2"),
        (tf_config(index=-1), "there is no index -1"),
        (tf_config("chief"), "has 0 of type chief"),
    ],
)
def test_bad_tf_config(monkeypatch, config, message):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(UserError) as raised:
        strategies.task()
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--replicas", "2"), "--replicas is for --strategy mirrored, not for none"),
        (("--strategy", "multiworker"), "needs --out, a folder that all workers share"),
        (("--strategy", "mirrored", "--replicas", "0"), "0 is not in the range"),
        (
            ("--strategy", "multiworker", "--out", "new", "--batch-size", "1"),
            "--batch-size 1 is too small for 2 replicas",
        ),
        (("--strategy", "tpu"), "is not one of"),
    ],
)
def test_bad_options(monkeypatch, refused, arguments, message):  # noqa: F811
    monkeypatch.setenv("TF_CONFIG", tf_config())
    assert message in refused("train", *arguments)


def test_a_worker_that_gets_nowhere_gives_up(monkeypatch):
    from tfp_ar1.cli.runs import Position

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

"""Trainings whose processes are killed at random moments end as if they had not been.

How often they are killed is set by the environment variables TFP_AR1_KILLS (one process) and
TFP_AR1_WORKER_KILLS (one of two workers); with many the tests take many minutes.
"""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import workers

from tfp_ar1_cli import evaluate, run_folder

KILLS = int(os.environ.get("TFP_AR1_KILLS", "3"))
WORKER_KILLS = int(os.environ.get("TFP_AR1_WORKER_KILLS", "1"))
EPOCHS = 8 * max(KILLS, WORKER_KILLS)  # enough that the last kill comes before the end
COMMAND = [sys.executable, "-m", "tfp_ar1", "train", "--hidden-units", "8", "--latent-dim", "3"]
COMMAND += ["--epochs", str(EPOCHS), "--num-importance-samples", "2", "--batch-size", "64"]
# With early stopping, which ends none of them: the best weights have to survive too.
COMMAND += ["--backup-steps", "4", "--patience", str(EPOCHS), "--learning-rate", "0.1"]
SECONDS = 300


def kill(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for_change(folder, processes, seconds):
    """Until there is another checkpoint than now, or a process has ended."""

    def files():
        return sorted(path.name for path in (folder / "checkpoint").glob("[0-9]*"))

    before, begin = files(), time.monotonic()
    while files() == before and time.monotonic() - begin < seconds:
        if any(process.poll() is not None for process in processes):
            return
        time.sleep(0.05)


def assert_same_run(folder, reference, rtol=0.0):
    """The same weights and metrics to the last bit, the same history; nothing left over."""
    run, uninterrupted = run_folder.read(folder), run_folder.read(reference)
    weights, expected = (evaluate.load_model(r).get_weights() for r in (run, uninterrupted))
    for a, b in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    history, expected = run.history(), uninterrupted.history()
    assert len(history.pop("seconds")) == len(expected.pop("seconds")) == EPOCHS
    assert history.keys() == expected.keys()
    for name, values in history.items():
        np.testing.assert_allclose(values, expected[name], rtol=rtol, atol=rtol, err_msg=name)
    metrics, expected = (json.loads(r.metrics_file.read_text()) for r in (run, uninterrupted))
    assert metrics == expected
    left = {path.name for path in folder.iterdir()} - {path.name for path in reference.iterdir()}
    assert not left


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    command = [*COMMAND, "--out"]
    reference = workers.start([*command, str(tmp_path / "uninterrupted")])
    output, _ = reference.communicate(timeout=SECONDS)
    assert reference.returncode == 0, output
    assert not re.search(r"^[WEF]\d{4} ", output, re.MULTILINE)  # Notices of TensorFlow.
    rng = random.Random(0)
    folder, kills = tmp_path / "killed", 0
    while True:
        with (tmp_path / "log").open("a") as file:
            process = workers.start([*command, str(folder)], stdout=file)
        if kills < KILLS:
            # Every third kill comes while the process starts; the others after a new checkpoint.
            if kills % 3:
                wait_for_change(folder, [process], SECONDS)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=rng.uniform(0, 1 if kills % 3 else 8))
            if process.poll() is None:
                kill(process)
                kills += 1
                if (folder / "config.json").exists() and run_folder.read(folder).finished:
                    break  # all that it had left was to exit
                continue
        assert process.wait(timeout=SECONDS) == 0, (tmp_path / "log").read_text()[-4000:]
        break
    assert kills
    print(f"{kills} kills")
    assert_same_run(folder, tmp_path / "uninterrupted")


@pytest.mark.slow
def test_one_of_two_workers_killed(tmp_path):
    """The one that is left starts again by itself; the other is started again, as it was."""

    def start(index):
        with (tmp_path / f"log{index}").open("a") as file:
            return workers.start([*command, str(folder)], tf_configs[index], stdout=file)

    command = [*COMMAND, "--strategy", "multiworker", "--out"]
    for folder, kills in ((tmp_path / "uninterrupted", 0), (tmp_path / "killed", WORKER_KILLS)):
        rng, tf_configs = random.Random(1), workers.tf_configs(2)
        both = [start(0), start(1)]
        try:
            for number in range(kills):
                wait_for_change(folder, both, SECONDS)
                time.sleep(rng.uniform(0, 2))
                index = number % 2
                kill(both[index])
                time.sleep(rng.uniform(0, 2))
                both[index] = start(index)
            for index, process in enumerate(both):
                code = process.wait(timeout=SECONDS)
                assert code == 0, (tmp_path / f"log{index}").read_text()[-4000:]
        finally:
            for process in both:
                kill(process)
    # The sums of a metric are shared out anew among the workers, which rounds them.
    assert_same_run(tmp_path / "killed", tmp_path / "uninterrupted", rtol=1e-6)
    survivor = (tmp_path / "log1").read_text()
    assert "Another worker was lost" in survivor
    assert "; restarting from the last backup." in survivor


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_good_state(tmp_path):
    """Here the files are not allowed to grow, which is the error that a test can make."""
    limit = (
        "import os, resource, sys; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000)); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    folder = tmp_path / "run"
    command = [*COMMAND, "--out", str(folder)]
    process = workers.start(command)
    wait_for_change(folder, [process], SECONDS)
    kill(process)
    before = run_folder.read(folder).checkpoint_files()
    assert before
    assert all(path.stat().st_size > 8000 for path in before.values())

    process = workers.start([sys.executable, "-c", limit, *command])
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, output
    (error,) = (line for line in output.splitlines() if "error:" in line)
    assert "File too large" in error
    assert "The run is unfinished; resume with: " in error
    assert run_folder.read(folder).checkpoint_files() == before
    assert not list(folder.rglob(".tmp-*"))

    output, _ = workers.start(command).communicate(timeout=SECONDS)
    assert run_folder.read(folder).finished, output

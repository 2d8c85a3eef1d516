"""Runs the tests in groups of files, each group in its own process.

    python tests/run.py -m "not slow" [folder ...]

TensorFlow keeps every traced or compiled function until the process ends, which adds up over a
whole suite. All arguments but folders are passed to pytest.
"""

import concurrent.futures
import os
import pathlib
import subprocess
import sys
import tempfile

FILES_PER_GROUP = 8
SLOWEST = "test_derivatives.py"
NO_TESTS_COLLECTED = 5
FOLDERS = [argument for argument in sys.argv[1:] if pathlib.Path(argument).is_dir()]
OPTIONS = [argument for argument in sys.argv[1:] if argument not in FOLDERS]


def run(files: list[pathlib.Path]) -> int:
    """Runs a group and prints pytest's output at once."""
    command = [sys.executable, "-m", "pytest", "--no-header", *OPTIONS, *map(str, files)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode == NO_TESTS_COLLECTED:
        return 0
    print(*files, done.stdout, sep="\n", flush=True)
    return done.returncode


def main() -> int:
    """Returns 1 if a group failed, else 0."""
    folders = map(pathlib.Path, FOLDERS or ["tests"])
    files = [file for folder in folders for file in folder.rglob("test_*.py")]
    # Mix long and short files, so no group takes much longer than others.
    files.sort(key=lambda file: (-file.stat().st_size, file))
    number = -(-len(files) // FILES_PER_GROUP)
    groups = [files[i::number] for i in range(number)]
    # If started last, the slowest file would run alone.
    groups.sort(key=lambda group: SLOWEST not in [file.name for file in group])
    # One thread per library: groups that run in parallel would compete for the cores.
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(name, "1")
    # Runs that several tests read and none changes are trained once.
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TFP_AR1_TEST_RUNS"] = folder
        return _run_groups(groups)


def _run_groups(groups: list[list[pathlib.Path]]) -> int:
    workers = min(4, len(os.sched_getaffinity(0)))
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return int(any(list(pool.map(run, groups))))


if __name__ == "__main__":
    sys.exit(main())

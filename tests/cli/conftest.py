"""The program in a folder of its own, small data, and one finished run of each kind of model."""

import contextlib
import io
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from program import TINY, TINY_SERIES, contents, options_of

from tfp_ar1_cli import main, run_folder, startup, train
from tfp_ar1_cli.atomic import fcntl
from tfp_ar1_cli.pictures import style


@pytest.fixture(scope="session", autouse=True)
def small_pictures():
    """Of fewer pixels than the user's: most of the time goes to writing these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 80)
        yield


@pytest.fixture
def cli(capfd, monkeypatch, tmp_path):
    """Runs `tfp-ar1` in an empty folder; gives exit code, stdout and stderr."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*argv):
        capfd.readouterr()
        code = main([str(arg) for arg in argv])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def refused(cli, monkeypatch):
    """Runs `tfp-ar1` with a mistake, and gives the one line that it answers."""

    def no_tensorflow():
        pytest.fail("TensorFlow was imported before the mistake was found")

    monkeypatch.setattr(startup, "import_backend", no_tensorflow)

    def run(*argv):
        before = contents(".")
        code, out, err = cli(*argv)
        assert (code, out) == (2, "")
        assert err.startswith("tfp-ar1: error: ")
        assert len(err.splitlines()) == 1
        assert contents(".") == before
        return err

    return run


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder that all processes of `tests/run.py` share, and a lock on it."""
    folder = os.environ.get("TFP_AR1_TEST_RUNS") or tmp_path_factory.mktemp("shared")

    @contextlib.contextmanager
    def locked():
        with open(os.path.join(folder, "lock"), "a") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            yield pathlib.Path(folder)

    return locked


@pytest.fixture(scope="session")
def images(shared):
    """An .npz file of 40 training and 12 test images with labels."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 52)
    x = (np.arange(36).reshape(6, 6) % (2 + y[:, None, None]) == 0) * rng.random((52, 1, 1))
    with shared() as folder:
        path = folder / "tiny.npz"
        if not path.exists():
            np.savez(path, x_train=x[:40], x_test=x[40:], y_train=y[:40], y_test=y[40:])
    return path


@pytest.fixture(scope="session")
def own_series(shared):
    """An .npz file of 20 training and 6 test series of 2 channels, unequal lengths and gaps."""
    rng = np.random.default_rng(0)
    x = 40 + 10 * np.cumsum(rng.normal(size=(26, 12, 2)), axis=1)
    x[rng.random(x.shape) < 0.1] = np.nan
    length = rng.integers(6, 13, 26)
    length[[0, 22]] = 12
    with shared() as folder:
        path = folder / "series" / "tiny.npz"
        if not path.exists():
            path.parent.mkdir()
            np.savez(path, x=x[:20], x_test=x[20:], length=length[:20], length_test=length[20:])
    return path


@pytest.fixture
def tiny(images):
    """The options of a run on the images, and the fingerprint of these."""
    chosen, data = train.prepare(options_of("--dataset", f"npz:{images}", *TINY))
    return chosen, data.fingerprint()


@pytest.fixture
def unfinished(tmp_path, tiny):
    """The folder of a run of the options TINY that has only begun."""
    folder = tmp_path / "unfinished"
    with run_folder.claim(folder, "", *tiny):
        pass
    return folder


def _finished(shared, own, name, *argv):
    """A copy of a finished run, which is trained once for all processes, and what it printed."""
    with shared() as folder:
        run, printed = folder / name / "run 1", folder / name / "printed.json"
        if not printed.exists():
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                assert main(["train", *map(str, argv), "--out", str(run)]) == 0, err.getvalue()
            printed.write_text(json.dumps([out.getvalue(), err.getvalue()]))
    copy = shutil.copytree(run, own / "run 1")
    texts = (text.replace(str(run), str(copy)) for text in json.loads(printed.read_text()))
    return copy, *texts


@pytest.fixture(scope="session")
def finished(shared, tmp_path_factory, images):
    """A finished run on the images, with what its training printed on stdout and stderr."""
    own = tmp_path_factory.mktemp("finished")
    return _finished(shared, own, "finished", "--dataset", f"npz:{images}", *TINY)


@pytest.fixture(scope="session")
def finished_series(shared, tmp_path_factory, own_series):
    """A finished run on the series, with what its training printed."""
    own = tmp_path_factory.mktemp("finished series")
    argv = ("--dataset", f"npz:{own_series}", *TINY_SERIES)
    return _finished(shared, own, "finished series", *argv)

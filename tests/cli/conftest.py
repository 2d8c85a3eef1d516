"""The program in a folder of its own, small data, and one finished run of each kind of model."""

import contextlib
import io

import numpy as np
import pytest
from program import TINY, TINY_SERIES, contents, options_of

from tfp_ar1_cli import main, run_folder, startup, train


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

    monkeypatch.setattr(startup, "import_tensorflow", no_tensorflow)

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
def images(tmp_path_factory):
    """An .npz file of 40 training and 12 test images with labels."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("images") / "tiny.npz"
    y = rng.integers(0, 3, 52)
    x = (np.arange(36).reshape(6, 6) % (2 + y[:, None, None]) == 0) * rng.random((52, 1, 1))
    np.savez(path, x_train=x[:40], x_test=x[40:], y_train=y[:40], y_test=y[40:])
    return path


@pytest.fixture(scope="session")
def own_series(tmp_path_factory):
    """An .npz file of 20 training and 6 test series of 2 channels, unequal lengths and gaps."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("series") / "tiny.npz"
    x = 40 + 10 * np.cumsum(rng.normal(size=(26, 12, 2)), axis=1)
    x[rng.random(x.shape) < 0.1] = np.nan
    length = rng.integers(6, 13, 26)
    length[[0, 22]] = 12
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


def _finish(folder, *argv):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(["train", *map(str, argv), "--out", str(folder)]) == 0, err.getvalue()
    return folder, out.getvalue(), err.getvalue()


@pytest.fixture(scope="session")
def finished(tmp_path_factory, images):
    """A finished run on the images, with what its training printed on stdout and stderr."""
    folder = tmp_path_factory.mktemp("finished") / "run 1"
    return _finish(folder, "--dataset", f"npz:{images}", *TINY)


@pytest.fixture(scope="session")
def finished_series(tmp_path_factory, own_series):
    """A finished run on the series, with what its training printed."""
    folder = tmp_path_factory.mktemp("finished series") / "run 1"
    return _finish(folder, "--dataset", f"npz:{own_series}", *TINY_SERIES)

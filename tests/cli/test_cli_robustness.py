"""What goes wrong around the work of the command line: it costs no run, and has one line."""

import collections
import contextlib
import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import PIL.Image
import pytest
from program import RUNS, TINY, options_of

from tfp_ar1_cli import app, atomic, export, kinds, model_card, progress, run_folder, startup, train
from tfp_ar1_cli.data import loading, series
from tfp_ar1_cli.pictures import images as plots
from tfp_ar1_cli.pictures import series as series_plots
from tfp_ar1_cli.pictures import style
from tfp_ar1_cli.training import fit

NAMES = (
    *("$", "$x_1", r"\frac{1}{2}$\bad$", "a_b^c {}", "_hidden", "two\nlines", "", "é 温度 😀"),
    *("\x00\udce9", "long " * 2000),
)


# A picture must not cost a run


@pytest.mark.parametrize("channels", [1, len(NAMES)])
def test_any_text_can_be_the_name_of_a_channel(tmp_path, channels):
    x = np.random.default_rng(0).normal(size=(2, 9, channels)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for start in range(0, len(NAMES), 5) if channels > 1 else range(3):
            names = [*NAMES[start:], *NAMES[:start]][:channels]
            units = series.Units(names, "step ($s_1$)", [0.0] * channels, [1.0] * channels)
            series_plots.samples(tmp_path / "x.png", units, x)
            with PIL.Image.open(tmp_path / "x.png") as picture:
                assert max(picture.size) < 10000


def test_any_text_can_be_a_label(tmp_path):
    means = np.random.default_rng(0).normal(size=(30, 2))
    labels = np.resize(np.array(NAMES), 30)
    drawn = []
    save = style.save
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(style, "save", lambda fig, path: (drawn.append(fig), save(fig, path)))
        plots.latent_scatter(tmp_path / "x.png", means, np.exp(means), labels)
        texts = [text.get_text() for text in drawn[0].legends[0].get_texts()]
        assert {"$", "_hidden", "a_b^c {}"} <= set(texts)
        assert len(texts) == len(NAMES)


def fail(*_, **__):
    raise ValueError("no such\nfont")


@pytest.fixture
def quick(monkeypatch):
    """Lets `train` neither train nor evaluate."""

    def fast(run, data, **_):
        names = ("loss", "reconstruction", "kl", "val_reconstruction", "val_kl")
        atomic.write_json(run.history_file, {name: [1.0] for name in names})
        return kinds.of(run.options).build(run.options, data.data_shape)

    names = ("neg_elbo", "reconstruction", "kl", "nll_iw", "rho_mean")
    metrics = dict.fromkeys(names, 1.0) | {"num_examples": 12, "num_importance_samples": 4}
    monkeypatch.setattr(fit, "train", fast)
    monkeypatch.setattr(train, "evaluate_model", lambda *_: metrics)
    return metrics


def test_a_picture_that_fails_costs_neither_the_run_nor_the_others(
    cli, monkeypatch, quick, images, tmp_path
):
    folder = tmp_path / "run"

    def fail_late(*_):  # Metrics are written before the pictures.
        assert (folder / "model.keras").exists()
        assert json.loads((folder / "metrics.json").read_text()) == quick
        fail()

    monkeypatch.setattr(plots, "samples", fail_late)
    code, out, err = cli("train", "--dataset", f"npz:{images}", *TINY, "--out", folder)
    assert code == 0
    assert [line for line in err.splitlines() if "warning" in line] == [
        f"tfp-ar1: warning: {folder}/samples.png: left out because it failed: no such. "
        "Everything else is written."
    ]
    assert run_folder.read_finished(folder).metrics() == quick
    written = {path.name for path in folder.iterdir()}
    assert written >= {"model.keras", "history.json", "reconstructions.png", "correlations.png"}
    assert "reconstructions.png" in out
    assert "samples.png" not in out


def test_a_log_of_tensorboard_that_fails_stops_no_training(cli, tmp_path, tiny, capfd):
    chosen = dataclasses.replace(tiny[0], epochs=2)
    folder = tmp_path / "run"
    folder.mkdir()
    run = run_folder.Run(folder, chosen, tiny[1])
    run.logs.write_text("a file where a folder should be")
    fit.train(run, loading.load(chosen.data))
    err = capfd.readouterr().err
    assert err.count("tfp-ar1: warning: TensorBoard's log in") == 1
    assert len(run.history()["loss"]) == 2


def test_a_model_card_that_fails_costs_no_export(cli, monkeypatch, tmp_path):
    monkeypatch.setattr(model_card, "make", fail)
    monkeypatch.setattr(export, "_write_saved_model", lambda _, folder, __: (folder / "x").touch())
    code, out, err = cli("export", RUNS["image"], "--out", tmp_path / "export")
    assert (code, out) == (0, f"Wrote {tmp_path / 'export'}: a SavedModel.\n")
    assert "the model card" in err
    assert "no such" in err


def test_a_picture_of_samples_that_fails_has_one_line(cli, monkeypatch, tmp_path):
    monkeypatch.setattr(style, "save", fail)
    code, out, err = cli("sample", RUNS["image"], "--out", tmp_path / "x.png")
    assert (code, out) == (1, "")
    assert err == (
        f"tfp-ar1: error: {tmp_path}/x.png: cannot be drawn: no such; try fewer --num-samples, or "
        "--out FILE.npy.\n"
    )


# Names that are no text, and streams that cannot take text


def test_names_of_files_that_are_no_text(tmp_path):
    name = "npz:/caf\udce9/ρ.npz"
    atomic.write_json(tmp_path / "x.json", {"dataset": name})
    assert atomic.read_json(tmp_path / "x.json") == {"dataset": name}


def start(program, *argv, **kwargs):
    """Runs the program in a process of its own; `program` comes before its import."""
    program = f"import sys\n{program}\nfrom tfp_ar1_cli import main\nsys.exit(main())\n"
    command = [sys.executable, "-c", program, *map(os.fsencode, argv)]
    kwargs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | kwargs
    # A shell's background jobs, of which these tests may be one, ignore the signal.
    heeded = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.run(command, **heeded, **kwargs)


def test_a_terminal_that_knows_few_letters(tmp_path):
    run = tmp_path / "caf\udce9-ρ"
    run.mkdir()
    env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = start("", "sample", run, env=env)
    assert (done.returncode, done.stdout) == (2, b"")
    assert len(done.stderr.splitlines()) == 1
    assert b"is not a run folder" in done.stderr


def test_an_output_that_is_full():
    with open("/dev/full", "wb") as full:
        done = start("", "--help", stdout=full)
    assert done.returncode == 2
    assert done.stderr == b"tfp-ar1: error: standard output: No space left on device.\n"


def test_an_output_that_is_full_does_not_undo_a_run(cli, monkeypatch, quick, images, tmp_path):
    def full(*_):
        raise BrokenPipeError

    monkeypatch.setattr(train, "print_table", full)
    monkeypatch.setattr(app, "_discard_stdout", lambda: None)
    monkeypatch.setattr(kinds.ImageKind, "draw", lambda *_: [])
    code, _, err = cli("train", "--dataset", f"npz:{images}", *TINY, "--out", tmp_path / "run")
    assert (code, "unfinished" in err) == (1, False)
    assert run_folder.read(tmp_path / "run").finished


# Ctrl-C


INTERRUPT = """
import os, signal
class Finder:
    def find_spec(self, name, *_):
        if name == {name!r}:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                sum(range(1000))
            except KeyboardInterrupt:
                {then}
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("name", ["click", "numpy", "rich"])
def test_ctrl_c_while_packages_are_imported(name):
    then = "raise ImportError('out of C++ code')"
    done = start(INTERRUPT.format(name=name, then=then), "train")
    assert (done.returncode, done.stdout) == (130, b"")
    assert done.stderr == b"tfp-ar1: interrupted.\n"


def test_ctrl_c_while_tensorflow_is_imported_is_not_lost():
    def swallow():
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    def other():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        except KeyboardInterrupt:
            raise ImportError("no runtime") from None

    signal.signal(signal.SIGINT, signal.default_int_handler)
    for start in (swallow, other):
        with pytest.raises(KeyboardInterrupt):
            startup.import_backend(start)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# Where nothing can be written


@pytest.fixture
def in_the_way(tmp_path):
    """A file where a folder should be."""
    path = tmp_path / "in the way"
    path.write_text("precious")
    return path


@pytest.mark.parametrize("command", ["train", "sample", "export"])
def test_targets_that_cannot_be_written_are_found_before_the_work(
    refused, monkeypatch, in_the_way, images, command
):
    def work(*_):
        pytest.fail("there was work before the mistake was found")

    monkeypatch.setattr(loading, "load", work)
    out = in_the_way / "x"
    argv = {
        "train": ["train", "--dataset", f"npz:{images}", "--out", out],
        "sample": ["sample", RUNS["image"], "--out", f"{out}.png"],
        "export": ["export", RUNS["image"], "--out", out],
    }[command]
    assert str(in_the_way) in refused(*argv)
    assert in_the_way.read_text() == "precious"
    length = 248 if command in ("sample", "export") else 256
    long = "y" * length + {"sample": ".png"}.get(command, "")
    assert "File name too long" in refused(*argv[:-1], long)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_full_and_read_only_disks_are_found_before_the_work(
    refused, monkeypatch, number, images, tmp_path
):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("data were read"))
    monkeypatch.setattr(os, "fsync", fail)
    folder = tmp_path / "run"
    message = refused("train", "--dataset", f"npz:{images}", "--out", folder)
    assert f"{folder}: cannot be written: {os.strerror(number)}; choose another --out." in message
    assert f"runs: cannot be written: {os.strerror(number)}; choose" in refused("train")
    assert not list(tmp_path.glob(".tmp-*"))


def test_an_error_of_writing_names_the_file(tmp_path):
    path = tmp_path / "x.npy"

    def write(temporary):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_an_array(temporary):  # As NumPy does where the disk is full.
        raise OSError("10 requested and 5 written")

    for write_it in (write, write_an_array, lambda temporary: None):
        expected = pytest.raises(OSError, match=r"device|requested|directory")
        with expected as raised, atomic.atomic(path) as temporary:
            write_it(temporary)
        assert raised.value.filename == str(path)


def test_too_little_space_is_found_before_the_training(cli, monkeypatch, images, tmp_path):
    usage = collections.namedtuple("Usage", "total used free")
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: usage(1, 1, 5000))
    code, _, err = cli("train", "--dataset", f"npz:{images}", *TINY, "--out", tmp_path / "run")
    assert code == 1
    assert f"error: {tmp_path / 'run'}: No space left on device: the model and its" in err
    assert "resume with: tfp-ar1 train" in err


# Words


def test_one_of_a_thing_is_no_plural(cli, monkeypatch, quick):
    x = np.eye(4)[None].repeat(5, 0)
    np.savez("x.npz", x_train=x[:3], x_test=x[3:])
    options = "--epochs 1 --latent-dim 1 --hidden-units 2 --batch-size 2 --out r"
    quick["num_importance_samples"] = 1
    monkeypatch.setattr(kinds.ImageKind, "draw", lambda *_: [])
    code, out, err = cli("train", "--dataset", "npz:x.npz", *options.split())
    assert code == 0, err
    assert "3 training and 2 test images of 4x4; ar1 posterior over 1 latent; 1 epoch.\n" in out
    assert "NLL, 1 sample " in out
    assert "Pictures: none could be drawn." in out
    # What comes next is not what is there already.
    assert "  tfp-ar1 sample r --seed 1\n" in out
    assert "  tfp-ar1 evaluate r --num-importance-samples 500\n" in out


def test_long_silences_say_what_is_going_on(monkeypatch, capfd, images):
    def slowly(*_):
        time.sleep(0.3)
        return data

    monkeypatch.setattr(progress, "_SECONDS_OF_SILENCE", 0.1)
    chosen = options_of("--dataset", f"npz:{images}")
    data = loading.load(chosen.data)
    monkeypatch.setattr(loading, "load", slowly)
    train.prepare(chosen)
    style.draw_all(run_folder.read(RUNS["image"]), samples=slowly)
    for wait in (0.3, 0):  # The first step is announced once.
        with progress.Progress("training", 10, first="compiling") as shown:
            time.sleep(wait)
            shown.update(1)
            time.sleep(0.2)
    assert capfd.readouterr().err.splitlines() == [
        *(f"Reading npz:{images} ...", "Drawing the pictures ...", "training   0%  compiling")
    ]


def test_notices_of_tensorflow_are_not_shown(monkeypatch, capfd):
    lines = [
        b"E0000 00:00:1.2 3 util.cc:131] oneDNN supports DT_INT32 only on",
        b"E0000 00:00:1.2 3 x.cc:1] Unable to register cuFFT factory",
        b"W0000 00:00:1.2 3 x.cc:1] A warning",
        b"E0000 00:00:1.2 3 x.cc:1] An error",
    ]
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    startup.set_environment()
    startup.import_backend(lambda: os.write(2, b"\n".join([*lines, b""])))
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3"
    assert capfd.readouterr().err == f"{lines[-1].decode()}\n"

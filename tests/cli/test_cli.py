"""The command line as a user meets it: what it writes, what it prints, and what it refuses."""

import contextlib
import errno
import gzip
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from test_datasets import IDX_NAMES, idx_bytes, write_idx_folder

from tfp_ar1_cli import commands, main, runs, startup
from tfp_ar1_cli.pictures import run as pictures

PICTURES = (
    "samples.png",
    "reconstructions.png",
    "latent_traversal.png",
    "latent_scatter.png",
    "correlations.png",
    "learning_curves.png",
)


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


def contents(folder):
    """Every file below a folder with its bytes, and every folder."""
    paths = sorted(pathlib.Path(folder).rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


OPTIONS = "--latent-dim 3 --hidden-units 8,5 --batch-size 16 --epochs 3 --num-importance-samples 4"
TINY = tuple(OPTIONS.split())


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An .npz file of 40 training and 12 test images with labels."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("images") / "tiny.npz"
    y = rng.integers(0, 3, 52)
    x = (np.arange(36).reshape(6, 6) % (2 + y[:, None, None]) == 0) * rng.random((52, 1, 1))
    np.savez(path, x_train=x[:40], x_test=x[40:], y_train=y[:40], y_test=y[40:])
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, images):
    """A finished run, with what its training printed on stdout."""
    folder = tmp_path_factory.mktemp("finished") / "run 1"
    argv = [sys.executable, "-m", "tfp_ar1_cli", "train", "--dataset", f"npz:{images}", *TINY]
    done = subprocess.run([*argv, "--out", str(folder)], capture_output=True, text=True, check=True)
    return folder, done.stdout, done.stderr


@pytest.fixture
def unfinished(tmp_path, images):
    """The folder of a run of the options TINY that has only begun."""
    folder = tmp_path / "unfinished"
    config = runs.new_config(*tiny_options(images))
    with runs.claim(folder, "", config):
        pass
    return folder


def tiny_options(images):
    """What `train` makes of the options TINY: the options and the fingerprint of the data."""
    argv = ["--dataset", f"npz:{images}", *TINY]
    with commands.train.make_context("train", argv) as context:
        other = ("out", "backup_steps")
        options = {key: value for key, value in context.params.items() if key not in other}
        options["replicas"] = 1
    return options, commands.images.load(options["dataset"]).fingerprint()


# Help, and how the program starts


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "train"),
        (["--help"], "evaluate"),
        (["-h"], "sample"),
        (["train", "--help"], "--learning-rate"),
        (["evaluate", "-h"], "--json"),
        (["sample", "--help"], "--num-samples"),
        (["--version"], "tfp-ar1, version"),
    ],
)
def test_help_and_version(cli, argv, expected):
    code, out, err = cli(*argv)
    assert (code, err) == (0, "")
    assert expected in out


def test_help_and_mistakes_do_not_wait_for_tensorflow():
    program = (
        "import sys; sys.argv[0] = 'tfp-ar1'\n"
        "from tfp_ar1_cli import main\n"
        "assert main(['--help']) == 0\n"
        "assert main(['train', '--posterior', 'x']) == 2\n"
        "assert main(['evaluate', 'no-such-run']) == 2\n"
        "assert not {'tensorflow', 'keras', 'matplotlib', 'sklearn'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


@pytest.mark.parametrize("package", ["tfp_ar1", "tfp_ar1_cli"])
def test_python_dash_m(tmp_path, package):
    argv = [sys.executable, "-m", package, "train", "--dataset", "cifar"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    # The library imports TensorFlow, which has its own notices, before the program is found.
    *notices, message = done.stderr.splitlines()
    assert "there is no dataset 'cifar'; choose digits, mnist, fashion_mnist" in message
    assert package == "tfp_ar1" or not notices


def test_packages_that_are_not_installed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "click", None)
    monkeypatch.delattr("tfp_ar1_cli.commands")
    monkeypatch.delitem(sys.modules, "tfp_ar1_cli.commands")
    assert main(["--help"]) == 2
    assert capsys.readouterr().err == (
        "tfp-ar1: error: click is not installed; run, in the project's folder: pip install "
        "'.[cli]'\n"
    )


def test_names_are_those_of_the_library():
    from tfp_ar1.vae import architectures, likelihoods, objectives, posteriors

    assert set(commands.POSTERIORS) == set(posteriors.POSTERIORS)
    assert set(commands.LIKELIHOODS) == set(likelihoods.LIKELIHOODS)
    assert set(commands.NETWORKS) == set(architectures.NETWORKS)
    assert set(commands.OBJECTIVES) == set(objectives.OBJECTIVES)


# Mistakes in the options


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("nonsense", "No such command 'nonsense'"),
        ("--nonsense", "No such option '--nonsense'"),
        ("train extra", "unexpected extra argument (extra)"),
        ("train --ecpohs 3", "No such option '--ecpohs'. Did you mean '--epochs'?"),
        ("train --epochs", "'--epochs' requires an argument"),
        ("train --posterior x", "'x' is not one of 'ar1', 'diag', 'isotropic', 'full'"),
        ("train --likelihood x", "'x' is not one of 'bernoulli', 'gaussian'"),
        ("train --dataset x", "there is no dataset 'x'; choose digits, mnist, fashion_mnist"),
        ("train --epochs 0", "0 is not in the range x>=1"),
        ("train --epochs many", "'many' is not a valid integer"),
        ("train --batch-size 0", "0 is not in the range x>=1"),
        ("train --latent-dim -1", "-1 is not in the range x>=1"),
        ("train --hidden-units 400,x", "'400,x' is not a list of positive whole numbers"),
        ("train --hidden-units 0", "'0' is not a list of positive whole numbers"),
        ("train --learning-rate 0", "0.0 is not in the range x>0"),
        ("train --learning-rate inf", "inf is not a finite number"),
        ("train --beta -1", "-1.0 is not in the range x>=0"),
        ("train --beta nan", "nan is not a finite number"),
        ("train --seed -1", "-1 is not in the range 0<=x<=2147483647"),
        ("train --seed 2147483648", "2147483648 is not in the range"),
        ("train --num-importance-samples 0", "0 is not in the range x>=1"),
        ("train --data-dir nowhere", "Directory 'nowhere' does not exist"),
        ("train --data-dir .", "--data-dir is for mnist and fashion_mnist, not for digits"),
        ("train --network x", "'x' is not one of 'mlp', 'cnn', 'dcgan'"),
        ("train --objective x", "'x' is not one of 'elbo', 'infovae', 'iwae'"),
        ("train --objective iwae --beta 4", "--beta is for --objective elbo, not for iwae"),
        (
            "train --network cnn --hidden-units 9",
            "--hidden-units is for --network mlp, not for cnn",
        ),
        ("evaluate", "Missing argument 'RUN'"),
        ("evaluate nowhere", "nowhere: is not a run folder (it has no config.json)"),
        ("evaluate . --num-importance-samples 0", "0 is not in the range x>=1"),
        ("sample nowhere", "nowhere: is not a run folder (it has no config.json)"),
        ("sample . -n 0", "0 is not in the range x>=1"),
    ],
)
def test_mistakes_in_options(refused, argv, expected):
    assert expected in refused(*argv.split())


def test_other_keras_backend(refused, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    for argv in (["train"], ["evaluate", "x"], ["sample", "x"]):
        assert "KERAS_BACKEND is 'jax', but the models need 'tensorflow'" in refused(*argv)


# Mistakes in the images


def test_images_that_convolutions_cannot_take(refused):
    for shape in ((4, 12), (4, 3, 9), (4, 9, 3, 3)):
        np.save("x.npy", np.zeros(shape))
        message = refused("train", "--dataset", "npy:x.npy", "--network", "dcgan")
        assert "--network dcgan needs images of at least 4x4 pixels; those of" in message
        assert f"have shape {'x'.join(map(str, shape[1:]))}; use --network mlp" in message


def x_and(**arrays):
    return {"x": np.zeros((4, 2, 2), np.uint8)} | arrays


def nan_in(x, count):
    x.flat[:count] = np.nan
    return x


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"x": nan_in(np.zeros((4, 2, 2)), 3)}, "x: 3 of 16 values are NaN or infinite"),
        ({"x": np.full((4, 2, 2), 1e300)}, "16 of 16 values are NaN or infinite (in float32)"),
        (
            {"x": np.linspace(-0.5, 1.5, 16).reshape(4, 4)},
            "8 of 16 values lie outside [0, 1] (they range from -0.5 to 1.5); rescale them, store "
            "0 to 255 as uint8, or use --likelihood gaussian",
        ),
        ({"x": np.full((4, 4), 255)}, "16 of 16 values lie outside [0, 1]"),
        ({"x": np.zeros(4)}, "shape (4,); expected [N, H, W], [N, H, W, C] or [N, D]"),
        ({"x": np.zeros(())}, "shape (); expected"),
        ({"x": np.zeros((4, 2, 2, 3, 1))}, "shape (4, 2, 2, 3, 1); expected"),
        ({"x": np.zeros((1, 2, 2))}, "shape (1, 2, 2); at least 2 images are needed"),
        ({"x": np.zeros((4, 0, 2))}, "shape (4, 0, 2); images must have at least 1 pixel"),
        ({"x": np.zeros((4, 2), complex)}, "dtype complex128; images must be uint8"),
        ({"x": np.full((4, 2), "a")}, "dtype <U1; images must be uint8"),
        ({"x": np.full((4, 2), None)}, "cannot be read as .npz: Object arrays cannot be loaded"),
        (x_and(y=np.zeros(3)), "y has shape (3,); expected one label for each of the 4 images"),
        ({"a": np.zeros((4, 2)), "b": np.zeros(1)}, "holds the arrays a, b; expected x_train and"),
        ({}, "holds the arrays (none); expected x_train and x_test"),
        (
            {"x_train": np.zeros((4, 2, 2)), "x_test": np.zeros((3, 2, 3))},
            "training images have shape 2x2 but test images 2x3",
        ),
        (
            {"x_train": np.zeros((4, 2)), "x_test": np.ones((3, 2)) * 2},
            "x_test: 6 of 6 values lie outside [0, 1]",
        ),
    ],
)
def test_mistakes_in_arrays(refused, arrays, expected):
    np.savez("images.npz", **arrays)
    message = refused("train", "--dataset", "npz:images.npz")
    assert expected in message
    assert "images.npz" in message


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        ("npz", b"", "is not an .npz file; write one with numpy.savez"),
        ("npy", b"\x80\x04K\x01.", "is not an .npy file; write one with numpy.save."),
        ("npz", b"PK\x03\x04 and no more", "cannot be read as .npz"),
        ("npy", b"\x93NUMPY\x01\x00 and no more", "cannot be read as .npy"),
    ],
)
def test_files_that_are_something_else(refused, kind, content, expected):
    pathlib.Path("images").write_bytes(content)
    assert expected in refused("train", "--dataset", f"{kind}:images")


def test_truncated_numpy_files(refused):
    np.save("x.npy", np.zeros((4, 2, 2)))
    np.savez("x.npz", x=np.zeros((4, 2, 2)))
    for kind in ("npy", "npz"):
        path = pathlib.Path(f"x.{kind}")
        path.write_bytes(path.read_bytes()[:-30])
        assert f"cannot be read as .{kind}" in refused("train", "--dataset", f"{kind}:{path}")


def test_pickled_images_are_not_unpickled(refused):
    class Payload:
        def __reduce__(self):
            return (pathlib.Path.touch, (pathlib.Path("unpickled"),))

    np.save("x.npy", np.array([Payload()] * 4), allow_pickle=True)
    assert "Object arrays cannot be loaded" in refused("train", "--dataset", "npy:x.npy")


def test_missing_and_unreadable_files(refused):
    pathlib.Path("folder").mkdir()
    assert "nowhere.npz: No such file or directory" in refused(
        "train", "--dataset", "npz:nowhere.npz"
    )
    assert "folder: Is a directory" in refused("train", "--dataset", "npy:folder")


def break_idx(name, change, compress=True):
    """Rewrites one of the IDX files with `change` applied to its bytes."""
    path = pathlib.Path("data") / (name + ".gz" if compress else name)
    content = path.read_bytes()
    path.write_bytes(
        gzip.compress(change(gzip.decompress(content))) if compress else change(content)
    )


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        (0, lambda b: b[:-5], "truncated: expected 36 bytes for 6x3x2 values, found 31"),
        (1, lambda b: b[:-1], "truncated: expected 6 bytes for 6 values, found 5"),
        (2, lambda b: b + b"12", "too long: expected 24 bytes for 4x3x2 values, found 26"),
        (2, lambda b: b[:7], "truncated: expected a header of 16 bytes, found 7 bytes"),
        (3, lambda b: b"", "truncated: expected a header of 8 bytes, found 0 bytes"),
        (
            0,
            lambda b: idx_bytes(np.zeros(36)),
            "wrong magic number: expected 2051 (IDX images), found 2049",
        ),
        (3, lambda b: b"GIF89a" + b, "wrong magic number: expected 2049 (IDX labels), found 1195"),
        (3, lambda b: idx_bytes(np.zeros(3)), "holds 3 labels for 4 images"),
    ],
)
def test_damaged_idx_files(refused, name, change, expected, compress):
    pathlib.Path("data").mkdir()
    write_idx_folder(pathlib.Path("data"), compress=compress)
    break_idx(IDX_NAMES[name], change, compress)
    message = refused("train", "--dataset", "mnist", "--data-dir", "data")
    assert expected in message
    assert IDX_NAMES[name] in message


def test_idx_files_of_other_sizes_or_damaged_gzip_or_missing(refused):
    train = ("train", "--dataset", "fashion_mnist", "--data-dir", "data")
    folder = pathlib.Path("data")
    folder.mkdir()
    assert f"{IDX_NAMES[0]}.gz: no such file (nor {IDX_NAMES[0]} without .gz)" in refused(*train)

    write_idx_folder(folder)
    break_idx(IDX_NAMES[2], lambda b: idx_bytes(np.zeros((4, 2, 3))))
    assert "training images have shape 3x2 but test images 2x3" in refused(*train)

    break_idx(IDX_NAMES[0], lambda b: idx_bytes(np.zeros((0, 3, 2))))
    break_idx(IDX_NAMES[1], lambda b: idx_bytes(np.zeros(0)))
    assert "shape (0, 3, 2); at least 2 images are needed" in refused(*train)

    path = folder / f"{IDX_NAMES[0]}.gz"
    path.write_bytes(path.read_bytes()[:-9])
    assert f"{path.name}: truncated or damaged gzip file" in refused(*train)
    path.write_bytes(b"no gzip")
    assert f"{path.name}: truncated or damaged gzip file" in refused(*train)
    path.unlink()
    assert f"{path.name}: no such file" in refused(*train)


def test_failed_download(cli, monkeypatch):
    import keras

    def load_data():
        raise Exception("URL fetch failure on https://example.org:\nno route to host")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", load_data)
    code, out, err = cli("train", "--dataset", "mnist")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "the download of mnist failed (URL fetch failure" in err
    assert "--data-dir" in err
    assert not os.listdir(".")


# The folder of a run


def test_numbered_folders(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("runs/x-ar1-002").mkdir(parents=True)
    folders = []
    for _ in range(3):
        with runs.claim(None, "x-ar1", {}) as run:
            folders.append(str(run.folder))
    assert folders == ["runs/x-ar1-001", "runs/x-ar1-003", "runs/x-ar1-004"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".tmp-1-config.json").write_text("half a fi")
    with runs.claim(tmp_path, "", {}):
        assert os.listdir(tmp_path) == ["config.json"]


def test_out_that_holds_something_else(refused):
    pathlib.Path("thesis").mkdir()
    pathlib.Path("thesis/chapter.txt").write_text("precious")
    pathlib.Path("file").write_text("precious")
    pathlib.Path("other").mkdir()
    pathlib.Path("other/config.json").write_text('{"model": "another program\'s"}')
    pathlib.Path("newer").mkdir()
    newer = {"format_version": 99, "options": {}, "data": {}}
    pathlib.Path("newer/config.json").write_text(json.dumps(newer))
    for out, expected in (
        ("thesis", "thesis: holds other files; choose another --out"),
        ("file", "file: is a file; choose another --out"),
        ("other", "config.json: was not written by 'tfp-ar1 train'"),
        ("newer", "config.json: has format 99, but this version of tfp_ar1"),
    ):
        assert expected in refused("train", "--out", out)


def test_out_that_cannot_be_written(refused):
    pathlib.Path("runs").write_text("a file where the folder of the runs should be")
    assert "runs" in refused("train")
    assert "runs/x: Not a directory" in refused("train", "--out", "runs/x")


@pytest.mark.slow
def test_out_with_a_finished_run(refused, finished, images):
    folder, _, _ = finished
    before = contents(folder)
    message = refused("train", "--dataset", f"npz:{images}", *TINY, "--out", folder)
    assert f"{folder}: already holds a finished run; choose another --out" in message
    assert contents(folder) == before


def test_runs_of_earlier_versions(unfinished, images):
    config = json.loads((unfinished / "config.json").read_text())
    for option, default in (("network", "mlp"), ("objective", "elbo")):
        assert config["options"].pop(option) == default
    (unfinished / "config.json").write_text(json.dumps(config))
    options, data = tiny_options(images)
    assert runs.read(unfinished).options == options
    with runs.claim(unfinished, "", runs.new_config(options, data)) as run:
        assert run.options == options
    other = runs.new_config(options | {"objective": "iwae"}, data)
    with (
        pytest.raises(runs.UserError, match="with --objective elbo, not iwae"),
        runs.claim(unfinished, "", other),
    ):
        pass


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--objective", "iwae", "--objective elbo, not iwae"),
        ("--beta", "2", "--beta 1.0, not 2.0"),
        ("--hidden-units", "9", "--hidden-units [8, 5], not [9]"),
        ("--posterior", "diag", "--posterior ar1, not diag"),
        ("--seed", "1", "--seed 0, not 1"),
        ("--dataset", "digits", "on other images ("),
    ],
)
def test_out_with_an_unfinished_run_of_another_kind(
    refused, unfinished, images, option, value, expected
):
    before = contents(unfinished)
    argv = ["train", "--dataset", f"npz:{images}", *TINY, "--out", unfinished, option, value]
    assert f"{unfinished}: holds an unfinished run " in refused(*argv)
    assert expected in refused(*argv)
    assert contents(unfinished) == before


@pytest.mark.skipif(runs.fcntl is None, reason="no file locks on this system")
def test_out_at_which_another_process_is_at_work(refused, tmp_path, images):
    options, data = tiny_options(images)
    with runs.claim(tmp_path / "run", "", runs.new_config(options, data)):
        argv = ["train", "--dataset", f"npz:{images}", *TINY, "--out", tmp_path / "run"]
        assert "another process is at work on this run" in refused(*argv)


def test_files_appear_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    runs.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        runs.write_json(path, {"a": float("nan")})
    with contextlib.suppress(KeyboardInterrupt), runs.atomic(path) as temporary:
        temporary.write_text("half a fi")
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]


# Training, and what can be done with a run


@pytest.mark.slow
def test_train_leaves_a_complete_folder(finished, images):
    folder, _, _ = finished
    files = {"config.json", "history.json", "logs", "metrics.json", "model.keras", *PICTURES}
    assert set(os.listdir(folder)) == files
    assert any("tfevents" in path.name for path in (folder / "logs").rglob("*"))
    for picture in PICTURES:
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")

    config = json.loads((folder / "config.json").read_text())
    assert config["format_version"] == 1
    assert config["options"]["latent_dim"] == 3
    assert config["options"]["hidden_units"] == [8, 5]
    assert config["options"]["dataset"] == f"npz:{images}"
    assert config["data"]["num_train"] == 40
    assert {"python", "tensorflow", "keras", "numpy"} <= config["versions"].keys()

    history = json.loads((folder / "history.json").read_text())
    assert {len(values) for values in history.values()} == {3}
    np.testing.assert_allclose(
        history["loss"], np.add(history["reconstruction"], history["kl"]), rtol=1e-4
    )

    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["num_examples"] == 12
    assert metrics["num_importance_samples"] == 4
    np.testing.assert_allclose(metrics["neg_elbo"], metrics["reconstruction"] + metrics["kl"])
    assert metrics["nll_iw"] <= metrics["neg_elbo"]


@pytest.mark.slow
def test_train_says_what_it_did(finished):
    folder, out, err = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    for expected in (
        "Training on tiny: 40 training and 12 test images of 6x6; ar1 posterior over 3 latents",
        "nats per image",
        f"{metrics['neg_elbo']:.2f}",
        f"{metrics['nll_iw']:.2f}",
        "importance-weighted NLL, 4 samples",
        *(f"  {folder / picture}\n" for picture in PICTURES),
        f"  tfp-ar1 sample '{folder}' --seed 1\n",
        f"  tensorboard --logdir '{folder}/logs'\n",
    ):
        assert expected in out
    # Plain lines where there is no terminal, and nothing of TensorFlow's own.
    assert not [c for c in out + err if ord(c) < 32 and c != "\n"]
    # What takes more than a moment is said too, depending on the machine.
    stages = {"Starting", "Building", "Drawing"}
    words = {line.split()[0] for line in err.splitlines()}
    assert words - stages == {"training", "evaluating"}
    assert "\ntraining 100%  epoch 3/3  loss " in f"\n{err}"


@pytest.mark.slow
def test_evaluate_gives_what_train_gave(cli, finished):
    folder, _, _ = finished
    before = contents(folder)
    code, out, _ = cli("evaluate", folder, "--json")
    assert code == 0
    metrics, trained = json.loads(out), json.loads((folder / "metrics.json").read_text())
    assert metrics.keys() == trained.keys()
    np.testing.assert_allclose(list(metrics.values()), list(trained.values()), rtol=1e-5)

    code, out, _ = cli("evaluate", folder, "--num-importance-samples", 9)
    assert code == 0
    assert "importance-weighted NLL, 9 samples" in out
    assert contents(folder) == before


@pytest.mark.slow
def test_evaluate_on_other_images(cli, finished):
    folder, _, _ = finished
    np.save("x.npy", np.ones((10, 6, 6)))
    code, out, _ = cli("evaluate", folder, "--dataset", "npy:x.npy", "--json")
    assert code == 0
    metrics = json.loads(out)
    assert metrics["num_examples"] == 10
    assert metrics["neg_elbo"] != json.loads((folder / "metrics.json").read_text())["neg_elbo"]


@pytest.mark.slow
def test_evaluate_on_images_of_another_shape(refused, finished):
    folder, _, _ = finished
    message = refused("evaluate", folder, "--dataset", "digits")
    assert f"digits have shape (8, 8), but {folder} was trained on (6, 6)" in message


@pytest.mark.slow
def test_sample(cli, finished):
    folder, _, _ = finished
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        code, out, err = cli("sample", folder, "-n", 5, "--seed", seed, "--out", f"{name}.npy")
        assert (code, out, err) == (0, f"{name}.npy\n", "")
    a, b, c = (np.load(f"{name}.npy") for name in "abc")
    assert a.shape == (5, 6, 6)
    assert 0 <= a.min() <= a.max() <= 1
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)

    code, out, _ = cli("sample", folder, "-n", 3, "--seed", 7)
    assert (code, out) == (0, f"{folder / 'samples-seed7.png'}\n")
    assert (folder / "samples-seed7.png").read_bytes().startswith(b"\x89PNG")
    (folder / "samples-seed7.png").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ("there.png", "there.png: exists already; choose another --out"),
        ("nowhere/x.png", "nowhere: no such folder; make it or choose another --out"),
        ("x.jpg", "x.jpg: --out must end in .png (a picture) or .npy (an array)"),
    ],
)
def test_sample_never_overwrites(refused, finished, out, expected):
    pathlib.Path("there.png").write_text("precious")
    assert expected in refused("sample", finished[0], "--out", out)


@pytest.mark.parametrize("command", ["evaluate", "sample"])
def test_runs_that_cannot_be_used(refused, cli, monkeypatch, unfinished, images, command):
    assert f"{unfinished}: the run is unfinished; finish it with" in refused(command, unfinished)
    (unfinished / "config.json").write_text('{"format_version": 1,')
    assert "config.json: is not valid JSON" in refused(command, unfinished)

    # Finished by its files, but the model is damaged.
    runs.write_json(unfinished / "config.json", runs.new_config(*tiny_options(images)))
    (unfinished / "metrics.json").write_text("{}")
    (unfinished / "model.keras").write_text("damaged")
    monkeypatch.undo()
    code, _, err = cli(command, unfinished)
    assert code == 2
    assert "model.keras: cannot be loaded" in err
    assert len(err.splitlines()) == 1


# Trainings that stop half-way


def train_tiny(cli, images, *argv):
    return cli("train", "--dataset", f"npz:{images}", *TINY, *argv)


@pytest.mark.slow
@pytest.mark.parametrize(("where", "done"), [("before the second checkpoint", 1), ("pictures", 3)])
def test_an_interrupted_run_goes_on_where_it_stood(
    cli, monkeypatch, tmp_path, images, finished, where, done
):
    from tfp_ar1_cli import checkpoints, training

    folder = tmp_path / "run"

    def interrupt(path, *_):
        if where == "pictures" or path.name == "2-0.npz":
            raise KeyboardInterrupt
        return runs.atomic(path)

    with monkeypatch.context() as patch:
        patch.setattr(
            *{"pictures": (pictures, "draw_run")}.get(where, (checkpoints, "atomic")), interrupt
        )
        code, _, err = train_tiny(cli, images, "--out", folder)
    assert code == 130
    assert err.splitlines()[-1] == (
        f"tfp-ar1: interrupted after {done} of 3 epochs; resume with: tfp-ar1 train "
        f"--dataset npz:{images} {OPTIONS} --out {folder}"
    )
    run = runs.read(folder)
    assert not run.finished
    assert run.position() == (done, 0)
    first = run.history()
    leftover = run.checkpoints / ".tmp-1-2-0.npz"
    leftover.touch()

    # The state is that after the last whole epoch: neither more nor fewer steps.
    model = training.build(run.options, (6, 6))
    assert checkpoints.Checkpoint(run, model, steps_per_epoch=3).restore() == (done, 0)
    assert model.optimizer.iterations == done * 3

    # A checkpoint that was damaged is no state to begin with.
    file = run.checkpoint_files()[done, 0]
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    code, _, err = train_tiny(cli, images, "--out", folder)
    assert code == 2
    assert f"{file}: cannot be read (" in err
    assert "); delete it to begin anew." in err
    assert not leftover.exists()
    file.write_bytes(whole)

    code, out, _ = train_tiny(cli, images, "--out", folder)
    assert code == 0
    assert f"3 epochs, {done} of them done" in out
    assert run.finished
    history = run.history()
    assert {len(values) for values in history.values()} == {3}
    for name, values in first.items():
        assert history[name][:done] == values[:done]
    # Nor can it be told from a run that was never interrupted.
    uninterrupted = runs.read(finished[0]).history()
    assert history.pop("seconds") != uninterrupted.pop("seconds")
    assert history == uninterrupted
    assert set(os.listdir(folder)) >= {"model.keras", *PICTURES}
    assert not run.checkpoints.exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_training(cli, tmp_path, images):
    code, _, err = train_tiny(cli, images, "--learning-rate", "1e30", "--out", tmp_path / "run")
    assert code == 1
    errors = [line for line in err.splitlines() if line.startswith("tfp-ar1: error:")]
    assert errors == err.splitlines()[-1:]
    assert "start a new run with a lower --learning-rate than 1e+30" in errors[0]
    assert f"{tmp_path / 'run'} stays unfinished" in errors[0]
    assert not runs.read(tmp_path / "run").finished


def test_a_full_disk_stops_the_training(cli, monkeypatch, images):
    def no_space(start):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "history.json")

    monkeypatch.setattr(startup, "import_tensorflow", no_space)
    code, _, err = train_tiny(cli, images)
    assert code == 1
    assert err == (
        "tfp-ar1: error: history.json: No space left on device. The run is unfinished; resume "
        f"with: tfp-ar1 train --dataset npz:{images} {OPTIONS} --out runs/tiny-ar1-001\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("posterior", "likelihood", "latent_dim", "shape"),
    [
        ("full", "gaussian", 3, (5,)),
        ("isotropic", "bernoulli", 1, (4, 3, 3)),
    ],
)
def test_other_posteriors_and_shapes(cli, posterior, likelihood, latent_dim, shape):
    scale = 10 if likelihood == "gaussian" else 1
    np.save("x.npy", scale * np.random.default_rng(0).random((30, *shape)))
    code, _, err = cli(
        *f"train --dataset npy:x.npy --posterior {posterior} --likelihood {likelihood} --epochs 1 "
        f"--latent-dim {latent_dim} --hidden-units 8 --num-importance-samples 2".split()
    )
    assert code == 0, err
    folder = pathlib.Path(f"runs/x-{posterior}-001")
    assert set(PICTURES) <= set(os.listdir(folder))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["num_examples"] == 6
    assert (metrics["rho_mean"] == 0) == (posterior == "isotropic")
    code, _, _ = cli("sample", folder, "-n", 3, "--out", "new.npy")
    assert np.load("new.npy").shape == (3, *shape)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "objective"), [("cnn", "infovae"), ("dcgan", "iwae"), ("mlp", "infovae")]
)
def test_other_networks_and_objectives(cli, images, network, objective):
    from tfp_ar1.vae import objectives

    code, _, err = cli(
        *f"train --dataset npz:{images} --network {network} --objective {objective} --epochs 1 "
        "--latent-dim 2 --num-importance-samples 2 --out run".split()
    )
    assert code == 0, err
    run = runs.read(pathlib.Path("run"))
    assert run.options["hidden_units"] == ([400] if network == "mlp" else None)
    model = commands._load_model(run)
    assert type(model.objective) is objectives.OBJECTIVES[objective]
    assert any("conv" in layer.name for layer in model.encoder.layers) == (network != "mlp")
    code, out, _ = cli("evaluate", "run", "--json")
    assert code == 0
    assert json.loads(out)["num_examples"] == 12


def test_the_next_commands_can_be_called_where_the_program_is_not_on_the_path(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/venv/bin/tfp-ar1", "train"])
    monkeypatch.setenv("PATH", "")
    assert commands._program() == "/venv/bin/tfp-ar1"
    monkeypatch.setattr("sys.argv", ["/package/__main__.py", "train"])
    assert commands._program() == "tfp-ar1"

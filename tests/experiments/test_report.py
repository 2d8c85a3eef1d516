"""`python -m experiments report`: its numbers by direct computation, its pages, its mistakes."""

import json
import math
import pathlib
import re
import subprocess
import sys

import matplotlib.image
import numpy as np
import PIL.Image
import pytest
import scipy.stats

from experiments import __main__, report, results
from tfp_ar1_cli.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
COVARIANCE_PARAMETERS = {"ar1": 2, "diag": 10, "isotropic": 1, "full": 55}


def make_record(rng, posterior="ar1", seed=0, **fields):
    record = {
        **{"dataset": "mnist", "network": "mlp", "hidden_units": [400], "objective": "elbo"},
        **{"beta": 1.0, "latent_dim": 10, "epochs": 15, "batch_size": 128, "data_sha256": "a" * 64},
        **{"learning_rate": 0.001, "num_importance_samples": 100},
        **{key: float(rng.normal(100, 3)) for key in results.MEASURES},
        **{"posterior": posterior, "seed": seed, "active_units": 10},
        "num_covariance_parameters": COVARIANCE_PARAMETERS[posterior],
        "history": {"val_neg_elbo": [100 + 100 / (1 + epoch) for epoch in range(15)]},
        "versions": {"tensorflow": "2.21.0", "keras": "3.15.1"},
        "code": "abc123",
    }
    if "prior" in fields:
        of_series = {"model": "sequence", "window": 100, "channels": 2, "hide": 0.5}
        record |= of_series | {f"last_value_{key}": 0.25 for key in results.PREDICTIONS}
    else:
        for key in ("prior_correlation", *results.PREDICTIONS):
            del record[key]
    return record | fields


@pytest.fixture
def records():
    """Five seeds of three posteriors, but for a run of ar1 and another of diag; other settings."""
    rng = np.random.default_rng(0)
    lines = [
        make_record(rng, posterior, seed)
        for posterior in ("isotropic", "diag", "ar1")
        for seed in range(5)
        if (posterior, seed) not in (("ar1", 1), ("diag", 3))
    ]
    for fields in (
        {"dataset": "fashion_mnist", "data_sha256": "b" * 64},
        {"network": "cnn", "hidden_units": None, "epochs": 5},
        {"beta": 4.0},
    ):
        lines += [make_record(rng, posterior, 0, **fields) for posterior in ("ar1", "diag")]
    return lines


@pytest.fixture
def series_records():
    rng = np.random.default_rng(0)
    return [
        make_record(rng, posterior, seed, prior=prior, dataset="pig_cvp", epochs=3)
        for posterior in ("diag", "ar1")
        for prior in ("normal", "ar1")
        for seed in range(3)
    ]


@pytest.fixture
def file(tmp_path, records):
    """The records as a file, with pictures for the runs of seed 0."""
    path = tmp_path / "x.jsonl"
    write_lines(path, records)
    for number, record in enumerate(records):
        if record["seed"] == 0:
            draw_samples(path, record, 20 * number)
    return path


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def draw_samples(path, record, grey):
    picture = results.samples_file(path, record)
    picture.parent.mkdir(exist_ok=True)
    PIL.Image.fromarray(np.full((20, 40), grey % 256, np.uint8)).save(picture)


def fill(file, tmp_path, text):
    """The page for a template, without its first line. No pictures are drawn."""
    template = tmp_path / "page.template.md"
    template.write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report.pictures, "draw", lambda *args: [])
        report.write(file, tmp_path / "out", template)
    mark, _, page = (tmp_path / "out/page.md").read_text(encoding="utf-8").partition("\n\n")
    assert mark.endswith("experiments report' from page.template.md; change that. -->")
    return page


def rows_of(table):
    """A Markdown table as dictionaries."""
    header, _, *lines = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in table.strip().split("\n")
    ]
    return [dict(zip(header, line, strict=True)) for line in lines]


def values(records, field, posterior, **settings):
    """A measure by seed."""
    settings = {"dataset": "mnist", "network": "mlp", "beta": 1.0} | settings
    return {
        r["seed"]: r[field]
        for r in records
        if r["posterior"] == posterior and all(r[key] == value for key, value in settings.items())
    }


def text(number, digits=2, plus="+"):
    return f"{number:{plus}.{digits}f}".replace("-", "−")


def interval(x, y):
    """The difference of values by seed, with Student's t by hand."""
    d = np.array([x[seed] - y[seed] for seed in sorted(x.keys() & y.keys())])
    mean = d.mean()
    if len(d) == 1:
        return text(mean)
    half = scipy.stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d))
    return f"{text(mean)} [{text(mean - half)}, {text(mean + half)}]"


# Tables


def test_table_of_results(file, tmp_path, records):
    rows = rows_of(fill(file, tmp_path, '{{ table("results") }}'))
    keys = ("dataset", "network", "objective", "d", "epochs", "posterior", "runs")
    assert ["|".join(row[key] for key in keys) for row in rows] == [
        *(f"fashion_mnist|mlp 400|elbo|10|15|{posterior}|1" for posterior in ("ar1", "diag")),
        *(f"mnist|cnn|elbo|10|5|{posterior}|1" for posterior in ("ar1", "diag")),
        *(f"mnist|mlp 400|elbo|10|15|{x}" for x in ("isotropic|5", "ar1|4", "diag|4")),
        *(f"mnist|mlp 400|elbo β=4|10|15|{posterior}|1" for posterior in ("ar1", "diag")),
    ]
    for row in rows[4:7]:
        assert row["covariance parameters"] == str(COVARIANCE_PARAMETERS[row["posterior"]])
        for field, column in (("neg_elbo", "−ELBO"), ("nll_iw", "NLL"), ("kl", "KL")):
            x = np.array(list(values(records, field, row["posterior"]).values()))
            error = x.std(ddof=1) / math.sqrt(len(x))
            assert row[column] == f"{x.mean():.2f} ± {error:.2f}"
    (x,) = values(records, "neg_elbo", "ar1", dataset="fashion_mnist").values()
    assert rows[0]["−ELBO"] == f"{x:.2f}"


def test_table_of_differences(file, tmp_path, records):
    rows = rows_of(fill(file, tmp_path, '{{ table("differences") }}'))
    assert [" ".join(row[key] for key in ("objective", "posterior", "pairs")) for row in rows] == [
        *("elbo ar1 1", "elbo ar1 1", "elbo isotropic 4", "elbo ar1 3", "elbo β=4 ar1 1")
    ]
    columns = {"−ELBO": "neg_elbo", "NLL": "nll_iw", "reconstruction": "reconstruction", "KL": "kl"}
    for row in rows[2:4]:
        for column, field in columns.items():
            x, y = (values(records, field, posterior) for posterior in (row["posterior"], "diag"))
            assert row[column] == interval(x, y)
    assert "[" not in rows[0]["−ELBO"]


def test_a_folder_of_run_folders(tmp_path, records):
    """What failed is listed; where no seeds are shared there are no differences."""
    out, folder = tmp_path / "out", tmp_path / "runs"
    for record in (records[0], records[1] | {"seed": 7, "posterior": "diag"}):
        run = folder / results.name(record)
        run.mkdir(parents=True)
        (run / "result.json").write_text(json.dumps(record) + "\n")
        draw_samples(folder, record, 100)
    (folder / "other").mkdir()
    (folder / "other" / "failed.txt").write_text("the loss became nan.")
    files = report.write(folder, out)
    page = (out / "tables.md").read_text(encoding="utf-8")
    assert "2 runs. Code: abc123. Packages: keras 3.15.1, tensorflow 2.21.0." in page
    assert "## Failed runs\n\n- other: the loss became nan.\n" in page
    assert "No run shares its seed with one of diag." in page
    assert {f.stem.partition("-")[0] for f in files} == {"tables", "curves", "samples"}


# Pages


def test_what_a_page_calls(file, tmp_path, records):
    x, y = (values(records, "neg_elbo", posterior) for posterior in ("ar1", "diag"))
    page = fill(
        file,
        tmp_path,
        '{% set chosen = {"dataset": "mnist", "network": "mlp", "beta": 1, "posterior": "ar1"} %}\n'
        'ρ-VAE: {{ mean("neg_elbo", **chosen) }} nats, {{ difference("neg_elbo", **chosen) }}.\n'
        '{{ mean("num_covariance_parameters", **chosen) }} {{ mean("neg_elbo", seed=2, **chosen) }}'
        ' {{ runs(posterior="diag") }} {{ runs() }} {{ runs(hidden_units=[400]) }} '
        "{{ runs(hidden_units=None) }}\n{{ versions() }} {no placeholder}\n"
        '{{ difference("kl", **dict(chosen, posterior="diag", to="ar1")) }}\n',
    )
    mean, error = np.mean(list(x.values())), scipy.stats.sem(list(x.values()))
    kl = [values(records, "kl", posterior) for posterior in ("diag", "ar1")]
    assert page == (
        f"ρ-VAE: {mean:.2f} ± {error:.2f} nats, {interval(x, y)}.\n"
        f"2 {x[2]:.2f} 7 {len(records)} {len(records) - 2} 2\n"
        "Code: abc123. Packages: keras 3.15.1, tensorflow 2.21.0. {no placeholder}\n"
        f"{interval(*kl)}\n"
    )


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("nonsense", "'nonsense' is undefined"),
        ("runs(", "unexpected"),
        ("mean()", "Page.mean() missing 1 required positional argument"),
        ("table('nonsense')", "there is no 'nonsense'; choose from results, measures"),
        ("mean('nonsense', seed=0, network='cnn', posterior='ar1')", "there is no 'nonsense'"),
        ("mean('neg_elbo')", "9 configurations fit (fashion_mnist, mlp 400, elbo, d = 10, 15 epo"),
        ("mean('neg_elbo', d=10)", "there is no 'd'; choose from dataset, network"),
        ("mean('neg_elbo', dataset='cifar')", "there is no such run"),
        ("difference('neg_elbo', posterior='ar1')", "4 configurations fit"),
        ("difference('neg_elbo', posterior='diag')", "no such run shares its seed with one of dia"),
        ("table('differences', posterior='full')", "no such run shares its seed"),
    ],
)
def test_calls_that_cannot_be_answered(file, tmp_path, call, expected):
    with pytest.raises(UserError) as raised:
        fill(file, tmp_path, f"One line.\nAnd {{{{ runs() }}}} in\nthis one: {{{{ {call} }}}}.\n")
    where, message = raised.value.message.split(": line 3: ")
    assert where == str(tmp_path / "page.template.md")
    assert message.startswith(expected)
    assert not (tmp_path / "out").exists()


# Files


def test_the_same_results_give_the_same_bytes(file, tmp_path, records):
    records = [record for record in records if record["seed"] == 0 and record["beta"] == 1]
    write_lines(file, records)
    settings = ("mlp-400-elbo-d10-15", "cnn-elbo-d10-5")
    pictures = {f"{kind}-{name}epochs.png" for kind in ("curves", "samples") for name in settings}
    template = tmp_path / "page.template.md"
    template.write_text("{{ table('results') }}")
    written = report.write(file, tmp_path / "a", template)
    write_lines(file, records[::-1])
    report.write(file, tmp_path / "b", template)
    assert {path.name for path in written} == {"tables.md", "page.md", "differences.png", *pictures}
    assert sorted(written) == sorted((tmp_path / "a").iterdir())
    for path in written:
        content = path.read_bytes()
        assert content == (tmp_path / "b" / path.name).read_bytes()
        assert b"Software" not in content
        if path.suffix == ".png":
            assert np.ptp(matplotlib.image.imread(path)) > 0.5, "the picture is blank"


def test_pictures_of_samples_stand_side_by_side(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "x.jsonl"
    lines = [make_record(rng, posterior) for posterior in ("isotropic", "ar1", "full", "diag")]
    write_lines(path, lines)
    # None for ar1; the columns are in the order of the tables.
    for line, grey in zip(lines, (50, None, 100, 150), strict=True):
        if grey is not None:
            draw_samples(path, line, grey)
    report.write(path, tmp_path / "out")
    pixels = matplotlib.image.imread(tmp_path / "out/samples-mlp-400-elbo-d10-15epochs.png")
    middle = pixels[int(pixels.shape[0] * 0.7), :, 0] * 255
    shown = [grey for grey, before in zip(middle, [0, *middle], strict=False) if grey != before]
    assert [round(grey) for grey in shown if round(grey) in (50, 100, 150)] == [50, 150, 100]


def test_other_files_are_left_alone_and_a_picture_that_fails_is_told(
    file, tmp_path, monkeypatch, capsys
):
    def fail(*args):
        raise ValueError("no such\nfont")

    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    for name in ("_curves", "_samples", "_differences"):
        monkeypatch.setattr(report.pictures, name, fail)
    assert report.write(file, out) == report.write(file, out) == [out / "tables.md"]
    assert "differences.png: left out because it failed: no such" in capsys.readouterr().err
    assert (out / "mine.txt").read_text() == "precious"
    (out / "tables.md").write_text("precious")
    with pytest.raises(UserError, match=r"tables\.md: was not written by this command"):
        report.write(file, out)
    assert (out / "tables.md").read_text() == "precious"


def test_mistakes(file, tmp_path, records, series_records, capsys):
    def refused(path, *template):
        assert __main__.main(["report", str(path), "--out", str(tmp_path / "out"), *template]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    empty, page, latin = (tmp_path / x for x in ("empty.jsonl", "page.md", "latin.template.md"))
    empty.touch()
    page.write_text("{{ runs() }}")
    latin.write_bytes("ρ".encode("utf-16"))
    assert "nowhere: does not exist" in refused(tmp_path / "nowhere")
    assert "holds no results yet" in refused(empty)
    assert "page.md: --page must end in .template.md" in refused(file, "--page", str(page))
    assert "latin.template.md: is not UTF-8 text" in refused(file, "--page", str(latin))
    for wrong, message in (
        (records[2], f"line {len(records) + 1} repeats the run mnist-mlp-elbo-"),
        (series_records[0], "holds results of images and of series; split it in two"),
        (records[2] | {"batch_size": 64}, "of one data set with different batch_size"),
        (records[2] | {"data_sha256": "c" * 64}, "of one data set with different data_sha256"),
        ([1], f"line {len(records) + 1} is not a result"),
        ({key: records[2][key] for key in records[2] if key != "mmd"}, "has no valid 'mmd'"),
        *((records[2] | {key: value}, f"has no valid '{key}'") for key, value in (
            *(("beta", [1]), ("beta", "x"), ("dataset", 3), ("kl", None), ("kl", math.inf)),
            *(("seed", "x"), ("history", {}), ("versions", "x"), ("code", 3)),
        )),
    ):  # fmt: skip
        write_lines(file, [*records, wrong])
        assert message in refused(file)
    file.write_text(file.read_text()[:-9])
    assert "is not a result" in refused(file)


def test_any_text_can_be_the_name_of_data_and_tensorflow_is_not_imported(tmp_path, records):
    write_lines(tmp_path / "x.jsonl", [r | {"dataset": "$_{" + r["dataset"]} for r in records[:9]])
    program = (
        "import sys\nfrom experiments.__main__ import main\n"
        "assert main(['report', 'x.jsonl', '--out', 'out']) == 0\n"
        "assert not {'tensorflow', 'keras'} & sys.modules.keys()\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    kwargs = {"check": True, "capture_output": True, "text": True, "cwd": tmp_path}
    done = subprocess.run([sys.executable, "-c", program], env=environment, **kwargs)
    assert set(done.stdout.split()) == {f"out/{path.name}" for path in (tmp_path / "out").iterdir()}
    assert "out/differences.png" in done.stdout


COMMITTED = [("results", "experiments.jsonl"), ("series", "series.jsonl")]


@pytest.mark.parametrize(("folder", "results_file"), COMMITTED)
def test_committed_pages_are_what_the_committed_results_give(
    tmp_path, folder, results_file, monkeypatch
):
    committed, template = ROOT / "docs" / folder, f"{folder}.template.md"
    monkeypatch.setattr(report.pictures, "draw", lambda *args: [])
    source = ROOT / "experiments" / "results" / results_file
    written = report.write(source, tmp_path, committed / template)
    assert {path.name for path in written} == {"tables.md", f"{folder}.md"}
    for path in written:
        assert path.read_text("utf-8") == (committed / path.name).read_text("utf-8")


# Series


def test_series(tmp_path, series_records):
    """Differences to any posterior and prior; what needs no model, on each data set."""
    path = tmp_path / "x.jsonl"
    other = {"dataset": "basic_motions", "data_sha256": "d" * 64, "prior": "ar1"}
    record = make_record(np.random.default_rng(1), "diag", 0, **other)
    write_lines(path, [*series_records, record | {"last_value_imputation_rmse_20": 0.5}])

    def of(posterior, prior):
        chosen = (r for r in series_records if (r["posterior"], r["prior"]) == (posterior, prior))
        return {r["seed"]: r["neg_elbo"] for r in chosen}

    page = fill(
        path,
        tmp_path,
        "{{ difference('neg_elbo', posterior='ar1', prior='ar1') }}\n"
        "{{ difference('neg_elbo', posterior='ar1', prior='ar1', to='diag/ar1') }}\n"
        "{{ baseline('last_value', 'imputation_rmse_20', dataset='pig_cvp') }}\n"
        "{{ table('baselines') }}\n",
    )
    first, second, third, *table = page.split("\n")
    assert first == interval(of("ar1", "ar1"), of("diag", "normal"))
    assert second == interval(of("ar1", "ar1"), of("diag", "ar1"))
    assert third == "0.250"
    rows = rows_of("\n".join(table))
    assert [row["baseline"] for row in rows[3:]] == [
        "last value", "linear interpolation", "matern half"
    ]  # fmt: skip
    column = [row["imputation RMSE, 20% missing"] for row in rows]
    assert column == ["0.500", "–", "–", "0.250", "–", "–"]
    for call, message in (
        ("baseline('last_value', 'imputation_rmse_20')", "2 data sets fit (basic_motions, pig_cvp"),
        ("baseline('mean', 'imputation_rmse_20')", "there is no 'mean'"),
        ("baseline('last_value', 'x', dataset='pig_cvp')", "there is no 'x'"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            fill(path, tmp_path, "{{ " + call + " }}")
    tables = (tmp_path / "out/tables.md").read_text(encoding="utf-8")
    assert "nats per window" in tables
    assert re.findall("^## (.*)$", tables, flags=re.MULTILINE) == [
        "Results", "Differences to diag/normal", "Imputation", "Forecasts", "Baselines"
    ]  # fmt: skip
    assert set(table) <= set(tables.split("\n"))

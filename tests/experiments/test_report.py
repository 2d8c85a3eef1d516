"""`tfp-ar1 report`: its numbers against direct computation, its pages, and what it refuses."""

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

from experiments import report, results
from tfp_ar1_cli.errors import UserError

MEASURES = (
    "neg_elbo",
    "nll_iw",
    "reconstruction",
    "kl",
    "mmd",
    "rho_mean",
    "rho_std",
    "scale_mean",
    "scale_std",
    "seconds_per_epoch",
)
COVARIANCE_PARAMETERS = {"ar1": 2, "diag": 10, "isotropic": 1, "full": 55}


def make_record(rng, posterior="ar1", seed=0, **fields):
    return {
        "dataset": "mnist",
        "network": "mlp",
        "hidden_units": [400],
        "objective": "elbo",
        "beta": 1.0,
        "posterior": posterior,
        "latent_dim": 10,
        "seed": seed,
        "epochs": 15,
        "batch_size": 128,
        "learning_rate": 0.001,
        "num_importance_samples": 100,
        "data_sha256": "a" * 64,
        **{key: float(rng.normal(100, 3)) for key in MEASURES},
        "active_units": 10,
        "num_covariance_parameters": COVARIANCE_PARAMETERS[posterior],
        "history": {"val_neg_elbo": [100 + 100 / (1 + epoch) for epoch in range(15)]},
        "versions": {"tensorflow": "2.21.0", "keras": "3.15.1"},
        "code": "abc123",
    } | fields


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
    for dataset, fields in (
        ("fashion_mnist", {"data_sha256": "b" * 64}),
        ("mnist", {"network": "cnn", "hidden_units": None, "epochs": 5}),
        ("mnist", {"beta": 4.0}),
    ):
        lines += [
            make_record(rng, posterior, 0, dataset=dataset, **fields)
            for posterior in ("ar1", "diag")
        ]
    return lines


@pytest.fixture
def file(tmp_path, records):
    """The records as a file, with pictures for the runs of seed 0."""
    path = tmp_path / "x.jsonl"
    write_lines(path, records)
    rng = np.random.default_rng(1)
    for record in records:
        if record["seed"] == 0:
            picture = results.samples_file(path, record)
            picture.parent.mkdir(exist_ok=True)
            PIL.Image.fromarray(rng.integers(0, 256, (20, 40), np.uint8)).save(picture)
    return path


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def fill(file, tmp_path, text):
    """The page for a template, without its first line. No pictures are drawn."""
    template = tmp_path / "page.template.md"
    template.write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_draw", lambda *args: [])
        report.write(file, tmp_path / "out", template)
    mark, _, page = (tmp_path / "out/page.md").read_text(encoding="utf-8").partition("\n\n")
    assert mark == "<!-- Written by 'tfp-ar1 report' from page.template.md; change that. -->"
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


def text(number, digits, plus=""):
    return f"{number:{plus}.{digits}f}".replace("-", "−")


# Numbers


def test_mean_and_standard_error():
    x = np.random.default_rng(0).normal(size=7)
    mean, error = report.mean_and_standard_error(x)
    assert mean == pytest.approx(sum(x) / 7)
    assert error == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in x) / 6 / 7))
    assert report.mean_and_standard_error([3.0])[0] == 3
    assert math.isnan(report.mean_and_standard_error([3.0])[1])


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_paired_difference(n):
    rng = np.random.default_rng(n)
    x = rng.normal(200, 30, n)
    y = x + rng.normal(0.5, 0.2, n)
    interval = report.paired_difference(x, y)
    expected = scipy.stats.ttest_rel(x, y).confidence_interval(0.95)
    np.testing.assert_allclose(interval.mean, np.mean(x - y))
    np.testing.assert_allclose(interval.mean - interval.half_width, expected.low, rtol=1e-9)
    np.testing.assert_allclose(interval.mean + interval.half_width, expected.high, rtol=1e-9)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    trials = 4000
    x, y = rng.normal(1, 1, (trials, 3)), rng.normal(0, 2, (trials, 3))
    intervals = [report.paired_difference(*pair) for pair in zip(x, y, strict=True)]
    covered = np.mean([abs(mean - 1) <= half_width for mean, half_width in intervals])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)


def test_one_pair_has_no_interval():
    mean, half_width = report.paired_difference([3.0], [1.0])
    assert mean == 2
    assert math.isnan(half_width)


# Tables


def test_table_of_results(file, tmp_path, records):
    rows = rows_of(fill(file, tmp_path, "{{table results}}"))
    keys = ("dataset", "network", "objective", "d", "epochs", "posterior", "runs")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("fashion_mnist", "mlp 400", "elbo", "10", "15", "ar1", "1"),
        ("fashion_mnist", "mlp 400", "elbo", "10", "15", "diag", "1"),
        ("mnist", "cnn", "elbo", "10", "5", "ar1", "1"),
        ("mnist", "cnn", "elbo", "10", "5", "diag", "1"),
        ("mnist", "mlp 400", "elbo", "10", "15", "isotropic", "5"),
        ("mnist", "mlp 400", "elbo", "10", "15", "ar1", "4"),
        ("mnist", "mlp 400", "elbo", "10", "15", "diag", "4"),
        ("mnist", "mlp 400", "elbo β=4", "10", "15", "ar1", "1"),
        ("mnist", "mlp 400", "elbo β=4", "10", "15", "diag", "1"),
    ]
    for row in rows[4:7]:
        assert row["covariance parameters"] == str(COVARIANCE_PARAMETERS[row["posterior"]])
        for field, column in (("neg_elbo", "−ELBO"), ("nll_iw", "NLL"), ("kl", "KL")):
            x = list(values(records, field, row["posterior"]).values())
            assert row[column] == f"{np.mean(x):.2f} ± {scipy.stats.sem(x):.2f}"
    (x,) = values(records, "neg_elbo", "ar1", dataset="fashion_mnist").values()
    assert rows[0]["−ELBO"] == f"{x:.2f}"


def test_table_of_differences(file, tmp_path, records):
    rows = rows_of(fill(file, tmp_path, "{{table differences}}"))
    assert [(row["objective"], row["posterior"], row["pairs"]) for row in rows] == [
        ("elbo", "ar1", "1"),
        ("elbo", "ar1", "1"),
        ("elbo", "isotropic", "4"),
        ("elbo", "ar1", "3"),
        ("elbo β=4", "ar1", "1"),
    ]
    columns = {"−ELBO": "neg_elbo", "NLL": "nll_iw", "reconstruction": "reconstruction", "KL": "kl"}
    for row in rows[2:4]:
        for column, field in columns.items():
            x, y = (values(records, field, posterior) for posterior in (row["posterior"], "diag"))
            seeds = sorted(x.keys() & y.keys())
            pairs = [x[seed] for seed in seeds], [y[seed] for seed in seeds]
            low, high = scipy.stats.ttest_rel(*pairs).confidence_interval(0.95)
            mean = np.mean(np.subtract(*pairs))
            assert row[column] == (
                f"{text(mean, 2, '+')} [{text(low, 2, '+')}, {text(high, 2, '+')}]"
            )
    assert "[" not in rows[0]["−ELBO"]


def test_table_of_other_measures(file, tmp_path, records):
    rows = rows_of(fill(file, tmp_path, "{{table measures dataset=mnist epochs=15 beta=1}}"))
    assert [row["posterior"] for row in rows] == ["isotropic", "ar1", "diag"]
    x = list(values(records, "mmd", "ar1").values())
    assert rows[1]["MMD²"] == f"{np.mean(x):.4f} ± {scipy.stats.sem(x):.4f}"
    assert rows[1]["active units"] == "10"
    assert {"ρ, mean", "ρ, spread", "√s, mean", "√s, spread", "s per epoch"} <= rows[1].keys()


def test_settings_that_differ_have_columns(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "x.jsonl"
    write_lines(
        path,
        [
            make_record(rng, "ar1"),
            make_record(rng, "ar1", batch_size=64),
            make_record(rng, "diag", data_sha256="c" * 64),
        ],
    )
    rows = rows_of(fill(path, tmp_path, "{{table results}}"))
    assert [(row["dataset"], row["batch size"]) for row in rows] == [
        ("mnist aaaaaaaa", "64"),
        ("mnist aaaaaaaa", "128"),
        ("mnist cccccccc", "128"),
    ]
    assert "learning rate" not in rows[0]
    # Neither of ar1 shares all settings with the run of diag.
    report.write(path, tmp_path / "out", None)
    assert "No run shares its seed with one of diag" in (tmp_path / "out/tables.md").read_text()
    assert not (tmp_path / "out/differences.png").exists()


def test_tables_page(file, tmp_path, records):
    failed = make_record(np.random.default_rng(0), "full", error="the loss became nan.")
    write_lines(results.failures_file(file), [failed])
    tables = fill(
        file, tmp_path, "{{table results}}\n\n{{table differences}}\n\n{{table measures}}"
    )
    page = (tmp_path / "out/tables.md").read_text(encoding="utf-8")
    assert f"{len(records)} runs. Code: abc123. Packages: keras 3.15.1, tensorflow 2.21.0." in page
    assert f"## Failed runs\n\n- {results.name(failed)}: the loss became nan.\n" in page
    for table in tables.split("\n\n"):
        assert table in page


# Pages


def test_placeholders(file, tmp_path, records):
    x, y = (values(records, "neg_elbo", posterior) for posterior in ("ar1", "diag"))
    seeds = sorted(x.keys() & y.keys())
    pairs = [x[seed] for seed in seeds], [y[seed] for seed in seeds]
    low, high = scipy.stats.ttest_rel(*pairs).confidence_interval(0.95)
    chosen = "dataset=mnist network=mlp beta=1 posterior=ar1"
    page = fill(
        file,
        tmp_path,
        f"ρ-VAE: {{{{mean neg_elbo {chosen}}}}} nats, {{{{ difference neg_elbo {chosen}\ndigits=1 "
        "}} to diag.\n"
        f"{{{{mean num_covariance_parameters {chosen}}}}} {{{{mean neg_elbo {chosen} seed=2}}}} "
        "{{runs posterior=diag}} {{runs}} {{runs hidden_units=400}} {{runs hidden_units=None}} "
        "{{runs learning_rate=0.001}}\n"
        "{{versions}} {no placeholder} {{mean rho_std dataset=fashion_mnist posterior=diag}}\n",
    )
    (spread,) = values(records, "rho_std", "diag", dataset="fashion_mnist").values()
    mean, error = np.mean(list(x.values())), scipy.stats.sem(list(x.values()))
    assert page == (
        f"ρ-VAE: {mean:.2f} ± {error:.2f} nats, {text(np.mean(np.subtract(*pairs)), 1, '+')} "
        f"[{text(low, 1, '+')}, {text(high, 1, '+')}] to diag.\n"
        f"2 {x[2]:.2f} 7 {len(records)} {len(records) - 2} 2 {len(records)}\n"
        f"Code: abc123. Packages: keras 3.15.1, tensorflow 2.21.0. {{no placeholder}} "
        f"{spread:.3f}\n"
    )


def test_a_difference_may_be_to_another_posterior(file, tmp_path, records):
    y, x = (values(records, "kl", posterior) for posterior in ("ar1", "diag"))
    difference = np.mean([x[seed] - y[seed] for seed in x.keys() & y.keys()])
    chosen = "dataset=mnist network=mlp beta=1 posterior=diag to=ar1 digits=3"
    page = fill(file, tmp_path, f"{{{{difference kl {chosen}}}}}")
    assert page.startswith(f"{text(difference, 3, '+')} [")


@pytest.mark.parametrize(
    ("placeholder", "expected"),
    [
        ("{{mean kl to=ar1}}", "to=ar1 is for differences"),
        ("{{nonsense}}", "there is no such placeholder"),
        ("{{}}", "there is no such placeholder"),
        ("{{table nonsense}}", "there is no such placeholder"),
        ("{{mean}}", "there is no such placeholder"),
        ("{{mean nonsense seed=0 network=cnn posterior=ar1}}", "there is no measure 'nonsense'"),
        ("{{mean neg_elbo}}", "9 configurations fit (fashion_mnist, mlp 400, elbo, d = 10"),
        ("{{mean neg_elbo d=10}}", "there is no setting d; choose from dataset, network"),
        ("{{mean neg_elbo dataset=cifar}}", "there is no such run"),
        ("{{difference neg_elbo posterior=ar1}}", "4 configurations fit"),
        ("{{difference neg_elbo posterior=diag}}", "no such run shares its seed with one of diag"),
        ("{{difference kl posterior=ar1 seed=3}}", "no such run shares its seed with one of diag"),
        ("{{table differences posterior=full}}", "no such run shares its seed"),
        ("{{runs digits=x}}", "digits=x is not a number from 0 to 9"),
    ],
)
def test_placeholders_that_cannot_be_filled(file, tmp_path, placeholder, expected):
    with pytest.raises(UserError) as raised:
        fill(file, tmp_path, f"One line.\nAnd {{{{runs}}}} in\nthis one: {placeholder}.\n")
    assert raised.value.message.startswith(
        f"{tmp_path / 'page.template.md'}: line 3: {placeholder}: {expected}"
    )
    assert not (tmp_path / "out").exists()


# Files


def test_the_same_results_give_the_same_bytes(file, tmp_path, records):
    template = tmp_path / "page.template.md"
    template.write_text("{{table results}}")
    written = report.write(file, tmp_path / "a", template)
    write_lines(file, records[::-1])
    report.write(file, tmp_path / "b", template)
    assert {path.name for path in written} == {
        "tables.md",
        "page.md",
        "differences.png",
        *(
            f"{kind}-{setting}.png"
            for kind in ("curves", "samples")
            for setting in (
                "mlp-400-elbo-d10-15epochs",
                "mlp-400-elbo-beta4-d10-15epochs",
                "cnn-elbo-d10-5epochs",
            )
        ),
    }
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
    (tmp_path / "x.samples").mkdir()
    # None for ar1; the columns are in the order of the tables.
    for line, grey in zip(lines, (50, None, 100, 150), strict=True):
        if grey is not None:
            picture = PIL.Image.fromarray(np.full((20, 40), grey, np.uint8))
            picture.save(results.samples_file(path, line))
    report.write(path, tmp_path / "out", None)
    pixels = matplotlib.image.imread(tmp_path / "out/samples-mlp-400-elbo-d10-15epochs.png")
    middle = pixels[int(pixels.shape[0] * 0.7), :, 0] * 255
    shown = [grey for grey, before in zip(middle, [0, *middle], strict=False) if grey != before]
    assert [round(grey) for grey in shown if round(grey) in (50, 100, 150)] == [50, 150, 100]


def test_other_files_are_left_alone(file, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    report.write(file, out, None)
    report.write(file, out, None)
    assert (out / "mine.txt").read_text() == "precious"
    (out / "tables.md").write_text("precious")
    with pytest.raises(UserError, match=r"tables\.md: was not written by 'tfp-ar1 report'"):
        report.write(file, out, None)
    assert (out / "tables.md").read_text() == "precious"


def test_mistakes(file, tmp_path, records):
    out = tmp_path / "out"

    def refused(path, template=None):
        with pytest.raises(UserError) as raised:
            report.write(path, out, template)
        assert not out.exists()
        return raised.value.message

    assert "nowhere: no such file" in refused(tmp_path / "nowhere")
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert "holds no results yet" in refused(empty)
    page = tmp_path / "page.md"
    page.write_text("{{runs}}")
    assert "page.md: --page must end in .template.md" in refused(file, page)
    latin = tmp_path / "latin.template.md"
    latin.write_bytes("ρ".encode("utf-16"))
    assert "latin.template.md: is not UTF-8 text" in refused(file, latin)
    write_lines(file, [*records, records[2]])
    assert f"line {len(records) + 1} repeats the run mnist-mlp-elbo-" in refused(file)
    del records[1]["mmd"]
    write_lines(file, records)
    assert "line 2 has no mmd; remove the line" in refused(file)


def test_tensorflow_is_not_imported(file, tmp_path):
    program = (
        "import sys; sys.argv[0] = 'tfp-ar1'\n"
        "from tfp_ar1_cli import main\n"
        f"assert main(['report', {str(file)!r}, '--out', 'out']) == 0\n"
        "assert not {'tensorflow', 'keras'} & sys.modules.keys()\n"
    )
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, cwd=tmp_path)
    listed = [pathlib.Path(line) for line in done.stdout.splitlines()]
    assert {tmp_path / path for path in listed} == set((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("folder", "results_file"), [("results", "experiments.jsonl"), ("series", "series.jsonl")]
)
def test_results_page_is_what_the_committed_results_give(tmp_path, folder, results_file):
    root = pathlib.Path(__file__).parents[2]
    committed, template = root / "docs" / folder, f"{folder}.template.md"
    written = report.write(
        root / "benchmarks" / "results" / results_file, tmp_path, committed / template
    )
    names = {path.name for path in written}
    assert names == {path.name for path in committed.iterdir()} - {template}
    for name in names:
        if name.endswith(".md"):
            assert (tmp_path / name).read_text() == (committed / name).read_text()
        else:
            # Other versions of Matplotlib may draw letters in another way.
            new, old = (matplotlib.image.imread(folder / name) for folder in (tmp_path, committed))
            assert new.shape == old.shape
            assert np.abs(new - old).mean() < 0.005


@pytest.mark.parametrize(
    ("heading", "page", "count"),
    [
        ("## What to expect", "results/results.md", 8),
        ("## Sequences: where AR(1) pays", "series/series.md", 6),
    ],
)
def test_readme_quotes_the_results_pages(heading, page, count):
    root = pathlib.Path(__file__).parents[2]
    readme = (root / "README.md").read_text(encoding="utf-8")
    section = readme.split(heading)[1].split("\n## ")[0]
    quoted = re.findall(r"[+−\d.]+ \[\S+, \S+\]|[\d.]+ ± [\d.]+", section)
    assert len(quoted) == count
    text = (root / "docs" / page).read_text(encoding="utf-8")
    assert all(number in text for number in quoted)


# Series


def make_series_record(rng, posterior, prior, seed, **fields):
    kind = report._SERIES
    return {
        "model": "sequence",
        "dataset": "pig_cvp",
        "window": 100,
        "network": "convolutional",
        "objective": "elbo",
        "beta": 1.0,
        "posterior": posterior,
        "prior": prior,
        "channels": 2,
        "hide": 0.5,
        "seed": seed,
        "epochs": 3,
        "batch_size": 32,
        "learning_rate": 0.005,
        "num_importance_samples": 100,
        "data_sha256": "c" * 64,
        **{key: float(rng.normal(10, 3)) for key in kind.measures},
        **{f"last_value_{key}": 0.25 for key in report._IMPUTATION if "rmse" in key},
        "num_covariance_parameters": {"diag": 200, "ar1": 4}[posterior],
        "history": {"val_neg_elbo": [100 + 100 / (1 + epoch) for epoch in range(3)]},
        "versions": {"tensorflow": "2.21.0"},
        "code": "abc123",
    } | fields


@pytest.fixture
def series_records():
    rng = np.random.default_rng(0)
    return [
        make_series_record(rng, posterior, prior, seed)
        for posterior in ("diag", "ar1")
        for prior in ("normal", "ar1")
        for seed in range(3)
    ]


def test_differences_of_series_are_to_any_posterior_and_prior(tmp_path, series_records):
    path = tmp_path / "x.jsonl"
    write_lines(path, series_records)

    def differences(field, variant, baseline):
        by = {
            name: [r[field] for r in series_records if (r["posterior"], r["prior"]) == name]
            for name in (variant, baseline)
        }
        d = np.subtract(by[variant], by[baseline])
        half = scipy.stats.t.ppf(0.975, 2) * np.std(d, ddof=1) / np.sqrt(3)
        low, high = d.mean() - half, d.mean() + half
        return f"{text(d.mean(), 2, '+')} [{text(low, 2, '+')}, {text(high, 2, '+')}]"

    page = fill(
        path,
        tmp_path,
        "{{difference neg_elbo posterior=ar1 prior=ar1}}\n"
        "{{difference neg_elbo posterior=ar1 prior=ar1 to=diag/ar1}}\n"
        "{{table baselines}}\n",
    )
    first, second, *table = page.split("\n")
    assert first == differences("neg_elbo", ("ar1", "ar1"), ("diag", "normal"))
    assert second == differences("neg_elbo", ("ar1", "ar1"), ("diag", "ar1"))
    rows = rows_of("\n".join(table))
    assert [row["baseline"] for row in rows] == [
        "last value",
        "linear interpolation",
        "matern half",
    ]
    assert rows[0]["imputation RMSE, 20% missing"] == "0.250"
    assert rows[1]["imputation RMSE, 20% missing"] == "–"


def test_baselines_of_series_in_a_page(tmp_path, series_records):
    path = tmp_path / "x.jsonl"
    rng = np.random.default_rng(1)
    other = {f"last_value_{key}": 0.5 for key in report._IMPUTATION if "rmse" in key}
    other |= {"dataset": "basic_motions", "data_sha256": "d" * 64}
    write_lines(path, [*series_records, make_series_record(rng, "diag", "ar1", 0, **other)])
    page = fill(
        path,
        tmp_path,
        "{{baseline last_value imputation_rmse_20 dataset=pig_cvp}} "
        "{{baseline last_value imputation_rmse_20 dataset=basic_motions digits=1}} "
        "{{baseline matern_half forecast_rmse_1 dataset=pig_cvp}}\n",
    )
    assert page == "0.250 0.5 –\n"
    for placeholder, message in (
        ("{{baseline last_value imputation_rmse_20}}", "2 data sets fit (basic_motions, pig_cvp)"),
        ("{{baseline mean imputation_rmse_20 dataset=pig_cvp}}", "there is no baseline 'mean'"),
        ("{{baseline last_value x dataset=pig_cvp}}", "there is no measure 'x'"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            fill(path, tmp_path, placeholder)


def test_report_of_series(tmp_path, series_records):
    path = tmp_path / "x.jsonl"
    write_lines(path, series_records)
    files = report.write(path, tmp_path / "out", None)
    assert {file.name for file in files} == {
        "tables.md",
        "curves-convolutional-elbo-c2-3epochs.png",
        "differences.png",
    }
    tables = (tmp_path / "out/tables.md").read_text(encoding="utf-8")
    assert "nats per window" in tables
    headings = re.findall("^## (.*)$", tables, flags=re.MULTILINE)
    assert headings == [
        "Results",
        "Differences to diag/normal",
        "Imputation",
        "Forecasts",
        "Baselines",
    ]


def test_images_and_series_are_two_files(tmp_path, records, series_records):
    path = tmp_path / "x.jsonl"
    write_lines(path, records + series_records)
    with pytest.raises(UserError, match="holds results of images and of series; make it two files"):
        report.load(path)

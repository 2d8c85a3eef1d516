"""Paths along the lines of images: the data, and the page; the models are JAX's."""

import gzip
import pathlib
import struct

import numpy as np
import pytest

from experiments.healing.results import read
from experiments.scan_lines import data, page, results

ROOT = pathlib.Path(__file__).parents[2]


def test_images_are_white_or_not(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 28, 28), np.uint8)
    for part in ("train", "t10k"):
        file = tmp_path / f"{part}-images-idx3-ubyte.gz"
        file.write_bytes(gzip.compress(struct.pack(">4i", 2051, 4, 28, 28) + pixels.tobytes()))
    train, test = data.load(tmp_path, 3, 2)
    np.testing.assert_array_equal(train, pixels[:3] >= 128)
    np.testing.assert_array_equal(test, pixels[:2] >= 128)


def test_a_shuffled_order_has_all_lines_and_few_of_their_neighbours():
    order = data.order_of("shuffled")
    np.testing.assert_array_equal(np.sort(order), data.order_of("real"))
    assert np.mean(np.abs(np.diff(order)) == 1) < 0.1


def test_differences_to_other_settings():
    """Paired by seed, by NumPy; where several runs of a method and a seed fit, none is chosen."""
    x, y = np.random.default_rng(0).normal(size=(2, 3))
    sizes = {"order": "real", "epochs": 1, "num_train": 8, "num_test": 8}
    tables = page.Tables(
        [
            {"method": "diag/ar1", "seed": seed, "decoder": decoder, "neg_elbo": value, **sizes}
            for decoder, values in (("line", x), ("window", y))
            for seed, value in enumerate(values)
        ]
    )
    found = tables.difference(
        "neg_elbo", "diag/ar1", "diag/ar1", to_settings={"decoder": "window"}, decoder="line"
    )
    assert found.replace("−", "-").startswith(f"{np.mean(x - y):+.2f} [")
    assert tables.runs() == 6
    with pytest.raises(ValueError, match="several settings"):
        tables.mean("neg_elbo", "diag/ar1")


def test_the_page_shows_the_results(tmp_path):
    pages, file = ROOT / "docs" / "scan_lines", ROOT / "experiments/results/scan_lines.jsonl"
    page.write(file, pages / "scan_lines.template.md", tmp_path / "scan_lines.md")
    assert (tmp_path / "scan_lines.md").read_text() == (pages / "scan_lines.md").read_text()


def test_no_run_is_missing():
    """Five seeds of whatever is there."""
    keys = [
        tuple(record[key] for key in results.SETTINGS)
        for record in read(ROOT / "experiments/results/scan_lines.jsonl")
    ]
    cells = {(method, *rest) for method, _, *rest in keys}
    assert {(method, seed, *rest) for method, *rest in cells for seed in range(5)} == set(keys)

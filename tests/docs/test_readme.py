"""The README's Python examples run as they are printed; its picture is that of the notebook."""

import base64
import json

import pytest
from test_docs import ROOT, fenced_blocks, run

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = [block.code for block in fenced_blocks(README) if block.language == "python"]


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(i, marks=[pytest.mark.slow] if ".fit(" in code else [])
        for i, code in enumerate(EXAMPLES)
    ],
)
def test_example_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(EXAMPLES[number], tmp_path / f"readme_{number}.py")


def test_there_are_examples_for_tfp_and_for_keras():
    assert len(EXAMPLES) == 4
    assert "tfd.kl_divergence" in EXAMPLES[0]
    assert "tfp_ar1.layers" in EXAMPLES[1]
    assert "RhoVAE" in EXAMPLES[2]
    assert "SequenceVAE" in EXAMPLES[3]


def test_picture_of_a_gap_is_the_notebooks():
    """And the −ELBOs below it are those of the notebook's table."""
    notebook = json.loads((ROOT / "notebooks" / "sequences.ipynb").read_text(encoding="utf-8"))
    data = [
        output["data"]
        for cell in notebook["cells"]
        for output in cell.get("outputs", [])
        if "data" in output
    ]
    images = [base64.b64decode(one["image/png"]) for one in data if "image/png" in one]
    assert "docs/imputed_gap.png" in README
    assert (ROOT / "docs" / "imputed_gap.png").read_bytes() in images
    (table,) = ("".join(one["text/markdown"]) for one in data if "text/markdown" in one)
    rows = [line.split("|")[2] for line in table.splitlines()[2:]]
    first, second, third = (f"{float(cell):.0f}".replace("-", "−") for cell in rows)
    assert f"is {first}, {second} and {third} nats per window" in " ".join(README.split())

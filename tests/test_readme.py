"""The README's Python examples run as they are printed."""

import pytest
from test_docs import ROOT, fenced_blocks, run

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = [block.code for block in fenced_blocks(README) if block.language == "python"]


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(EXAMPLES[number], tmp_path / f"readme_{number}.py")


def test_there_are_examples_for_tfp_and_for_keras():
    assert len(EXAMPLES) == 3
    assert "tfd.kl_divergence" in EXAMPLES[0]
    assert "tfp_ar1.layers" in EXAMPLES[1]
    assert "RhoVAE" in EXAMPLES[2]

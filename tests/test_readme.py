"""The README's Python examples run as they are printed."""

import pathlib
import re

import pytest

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[number], f"README.md, example {number}", "exec"), {"__name__": "readme"})


def test_there_are_examples_for_tfp_and_for_keras():
    assert len(EXAMPLES) == 3
    assert "tfd.kl_divergence" in EXAMPLES[0]
    assert "tfp_ar1.layers" in EXAMPLES[1]
    assert "RhoVAE" in EXAMPLES[2]

"""Every notebook runs from top to bottom in a fresh folder, and draws something; what pages say of
notebooks is what they find; pictures that are committed are those that are drawn.

A notebook that was run since it, or the library, changed is not run again.
"""

import ast
import re
import sys

import numpy as np
import PIL.Image
import pytest
from test_docs import ROOT

sys.path.insert(0, str(ROOT / "docs"))

import building

LISTS = [
    (ROOT / "notebooks/README.md").read_text("utf-8"),
    (ROOT / "mkdocs.yml").read_text("utf-8"),
]
STORIES = ("images", "your_series", "tfp_pipeline")


def code_of(name):
    cells = building.notebook(ROOT / "notebooks" / f"{name}.py").cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", building.NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_text_that_says_what_it_is_and_is_listed(path):
    notebook = building.notebook(path)
    head, *_ = notebook.cells
    assert head.cell_type == "markdown"
    assert head.source.startswith("# ")
    assert f"`jupytext --to ipynb notebooks/{path.name}`" in head.source
    assert f"({path.name})" in LISTS[0]
    assert f"notebooks/{path.stem}.md" in LISTS[1]
    for source in code_of(path.stem):
        ast.parse(source)


def test_what_is_meant_to_be_short_is():
    first, *examples = code_of("gallery")
    assert "import" in first
    assert all(len(source.splitlines()) <= 20 for source in examples)
    assert 6 <= sum("plt.show()" in source for source in examples) <= 10
    for name in STORIES:
        lines = [line for source in code_of(name) for line in source.splitlines() if line.strip()]
        assert len(lines) < 100, name


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def drawn(notebook):
    return [building.picture_of(o) for o in outputs(notebook) if "image/png" in o.get("data", {})]


@pytest.mark.slow
@pytest.mark.parametrize("path", building.NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_draws(path):
    notebook = building.executed(path)
    assert not [o for o in outputs(notebook) if o.output_type == "error"]
    assert drawn(notebook)


def test_what_was_run_is_kept_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "CACHE", tmp_path / "built")
    monkeypatch.setattr(building, "ROOT", tmp_path)
    source, made = tmp_path / "a.py", []

    def make(folder):
        made.append(source.read_text())
        (folder / "out").write_text(made[-1])

    for text, times in (("1", 1), ("1", 1), ("2", 2), ("1", 3)):
        source.write_text(text)
        folder = building._kept("a", [source], make)
        assert (folder / "out").read_text() == text
        assert len(made) == times
    assert [path.name for path in (tmp_path / "built").iterdir()] == [folder.name]


def test_committed_pictures_are_small():
    """`python docs/building.py` makes them so."""
    sizes = {name: (ROOT / "docs" / name).stat().st_size for name in building.SMALL}
    assert max(sizes.values()) <= 60_000, sizes


@pytest.mark.slow
@pytest.mark.parametrize("name", building.SMALL)
def test_committed_picture_is_what_is_drawn(name):
    """Another version of Matplotlib draws letters in another way, another machine other draws."""
    committed = PIL.Image.open(ROOT / "docs" / name).convert("L")
    new = building.small(building.SMALL[name]()).convert("L")
    assert new.size == committed.size
    assert np.abs(np.asarray(new, float) - np.asarray(committed, float)).mean() < 5  # of 255


@pytest.mark.slow
def test_elbos_below_the_picture_are_the_notebooks():
    notebook = building.executed(ROOT / "notebooks" / "sequences.py")
    (table,) = (
        o.data["text/markdown"] for o in outputs(notebook) if "text/markdown" in o.get("data", {})
    )
    found = [float(line.split("|")[2]) for line in table.splitlines()[2:]]
    page = " ".join((ROOT / "docs" / "time_series.md").read_text("utf-8").split())
    (stated,) = re.findall(r"one seed, is (\S+), (\S+) and (\S+) nats per window", page)
    # Sums in another order, on another machine, and a training ends elsewhere.
    np.testing.assert_allclose([float(x.replace("−", "-")) for x in stated], found, atol=3)

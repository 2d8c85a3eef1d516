"""Every notebook runs from top to bottom in a fresh directory, and draws something.

Those that train at length have a cell tagged "parameters"; it is followed here by smaller ones.
"""

import os
import pathlib
import sys

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

import tfp_ar1

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
SMALLER = {"sequences": "num_epochs, num_windows = 2, 64"}


class OnlyThisInterpreter(KernelSpecManager):
    """Answers any kernel name with the interpreter of the tests, whatever is registered."""

    def get_kernel_spec(self, kernel_name):
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name=kernel_name, language="python")


class KernelOfThisInterpreter(AsyncKernelManager):
    def __init__(self, **kwargs):
        super().__init__(kernel_spec_manager=OnlyThisInterpreter(), **kwargs)


def execute(notebook, directory):
    package = str(pathlib.Path(tfp_ar1.__file__).parents[1])
    environment = os.environ | {
        # The package under test, also where it is not installed; pictures go into the notebook.
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "IPYTHONDIR": str(directory / "ipython"),
    }
    # A class, not a manager made here: the client shuts down only what it has made itself.
    client = NotebookClient(notebook, kernel_manager_class=KernelOfThisInterpreter, timeout=600)
    client.execute(cwd=str(directory), env=environment)


def shorten(notebook, path):
    """Makes a notebook that trains at length do so with the parameters of the tests."""
    if path.stem in SMALLER:
        tagged = ["parameters" in cell.metadata.get("tags", []) for cell in notebook.cells]
        assert sum(tagged) == 1
        smaller = nbformat.v4.new_code_cell(SMALLER[path.stem])
        notebook.cells.insert(tagged.index(True) + 1, smaller)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} >= {"distribution", *SMALLER}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_draws(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []  # so that no stored picture passes for a new one
    shorten(notebook, path)
    execute(notebook, tmp_path)
    assert not [o for o in outputs(notebook) if o.output_type == "error"]
    assert [o for o in outputs(notebook) if "image/png" in o.get("data", {})]

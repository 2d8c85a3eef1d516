"""Builds the parts of the site that are not committed: executed notebooks, pictures of results.

They are cached until their sources change; the sources include the library.
"""

import base64
import concurrent.futures
import functools
import hashlib
import io
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable

import jupytext
import nbformat
import PIL.Image
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[1]
CACHE = ROOT / ".built"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
PICTURES_OF_RESULTS = {"results": "experiments.jsonl", "series": "series.jsonl"}
_CELL_SECONDS = 1800
_SMALL_WIDTH, _SMALL_COLOURS = 1040, 256


def notebook(path: pathlib.Path) -> nbformat.NotebookNode:
    """A notebook without outputs."""
    cells = jupytext.reads(path.read_text("utf-8"), fmt="py:percent")
    cells.metadata.language_info = {"name": "python"}
    return cells


def executed(path: pathlib.Path) -> nbformat.NotebookNode:
    """A notebook with its outputs, run in a fresh folder.

    Raises:
      CellExecutionError: If a cell raises an exception.
    """
    sources = [path, path.with_name("matplotlibrc"), *_python("tfp_ar1", "tfp_ar1_cli/data")]
    sources += (ROOT / "experiments").rglob("published_curves.*")
    folder = _kept(path.stem, sources, functools.partial(_execute, path))
    return nbformat.read(folder / "notebook.ipynb", as_version=4)


def all_executed() -> dict[pathlib.Path, nbformat.NotebookNode]:
    """All notebooks, run in parallel."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(NOTEBOOKS, pool.map(executed, NOTEBOOKS), strict=True))


def pictures() -> dict[str, pathlib.Path]:
    """The pictures of the committed results, by their path in the docs."""
    sources = [*_python("experiments", "tfp_ar1_cli"), *(ROOT / "experiments").rglob("*.md")]
    sources += [ROOT / "benchmarks" / "report.py", *ROOT.glob("benchmarks/results/*.json")]
    sources += [file for file in (ROOT / "experiments/results").rglob("*") if file.is_file()]
    folder = _kept("pictures", sources, _draw)
    return {str(file.relative_to(folder)): file for file in folder.rglob("*.png")}


def picture_of(output: nbformat.NotebookNode) -> PIL.Image.Image:
    """The picture in a cell's output."""
    return PIL.Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))


def _drawn(name: str, title: str) -> PIL.Image.Image:
    """The picture drawn by the first cell of a notebook that contains `title`."""
    cells = executed(ROOT / "notebooks" / f"{name}.py").cells
    cell = next(cell for cell in cells if title in cell.source)
    return picture_of(next(o for o in cell.outputs if "image/png" in o.get("data", {})))


def small(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The small version of a picture that is committed, for readers of the repository's pages."""
    picture = picture.convert("RGB")
    picture.thumbnail((_SMALL_WIDTH, _SMALL_WIDTH))
    # The default method drops rare colours, such as those of lines and points.
    method = PIL.Image.Quantize.MAXCOVERAGE
    return picture.quantize(_SMALL_COLOURS, method, dither=PIL.Image.Dither.NONE)


# The committed pictures and how to draw them; `python docs/building.py` redraws them.
SMALL = {
    "nile_gaps.png": lambda: _drawn("smoothing_with_nuts", "measured, but hidden"),
    "imputed_gap.png": lambda: _drawn("sequences", "A gap of 20 steps, imputed"),
    **{
        f"{folder}/differences.png": lambda folder=folder: PIL.Image.open(
            pictures()[f"{folder}/differences.png"]
        )
        for folder in PICTURES_OF_RESULTS
    },
}


def _python(*packages: str) -> list[pathlib.Path]:
    return [file for package in packages for file in (ROOT / package).rglob("*.py")]


def _kept(
    name: str, sources: Iterable[pathlib.Path], make: Callable[[pathlib.Path], None]
) -> pathlib.Path:
    """The cached folder that `make` fills; it is rebuilt when `sources` change."""
    digest = hashlib.sha256()
    for source in sorted(sources):
        digest.update(f"{source.relative_to(ROOT)}\n".encode() + source.read_bytes())
    folder = CACHE / f"{name}-{digest.hexdigest()[:16]}"
    if not folder.is_dir():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
            made = pathlib.Path(temporary) / "made"
            made.mkdir()
            make(made)
            for old in CACHE.glob(f"{name}-*"):
                shutil.rmtree(old, ignore_errors=True)
            made.rename(folder)
    return folder


class _OnlyThisInterpreter(KernelSpecManager):
    """Answers any kernel name with this interpreter, whatever is registered."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        # Two pixels for one of the page, for high-resolution screens.
        options = ["--InlineBackend.figure_formats=retina"]
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", *options]
        return KernelSpec(argv=command, display_name=kernel_name, language="python")


class _KernelOfThisInterpreter(AsyncKernelManager):
    def __init__(self, **kwargs: object) -> None:
        super().__init__(kernel_spec_manager=_OnlyThisInterpreter(), **kwargs)


def _execute(path: pathlib.Path, out: pathlib.Path) -> None:
    cells = notebook(path)
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            # Use the library of this checkout, even if it is not installed.
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "MATPLOTLIBRC": str(path.with_name("matplotlibrc")),
            "IPYTHONDIR": str(pathlib.Path(folder) / "ipython"),
        }
        # Pass a class, not an instance: the client shuts down only managers that it created.
        client = NotebookClient(
            cells,
            kernel_manager_class=_KernelOfThisInterpreter,
            timeout=_CELL_SECONDS,
            coalesce_streams=True,
        )
        client.execute(cwd=folder, env=environment)
    for cell in cells.cells:  # Drop the logs of libraries.
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    nbformat.write(cells, out / "notebook.ipynb")


def _draw(out: pathlib.Path) -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks import report as of_speed
    from experiments import pictures, results

    for folder, file in PICTURES_OF_RESULTS.items():
        path = ROOT / "experiments" / "results" / file
        (out / folder).mkdir()
        pictures.draw(path, results.load(path), out / folder)
    (out / "benchmarks").mkdir()
    speed = json.loads((ROOT / "benchmarks" / "results" / "speed.json").read_text("utf-8"))
    of_speed.picture(speed["sweep"]["results"], out / "benchmarks" / "speed.png")


if __name__ == "__main__":
    for name, draw in SMALL.items():
        small(draw()).save(ROOT / "docs" / name, optimize=True)

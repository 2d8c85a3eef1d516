"""Loads the modules of `tfp_ar1` a second time, on TFP's JAX substrate.

The source is the same except for imports, which are rewritten line by line as files are read; TFP
does the same at build time. Tracebacks, debuggers and coverage show the files and lines of
`tfp_ar1`, and there are no generated files that could be out of date, or be found twice by
searches, type checkers or test runners. A file in this package takes precedence over the file
x/y.py of the same name in `tfp_ar1`, which it can import as `_shared.x.y`.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import pathlib
import re
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType

_SUBSTRATE = "tensorflow_probability.substrates.jax"
_GENERATED = "tensorflow_probability.python.internal.backend.jax.gen"
_RULES = [
    (re.compile(pattern, re.MULTILINE), replacement)
    for pattern, replacement in (
        (r"^(\s*)import tensorflow as tf$", rf"\1from {_SUBSTRATE} import tf2jax as tf"),
        (
            r"^(\s*)import tensorflow_probability as tfp$",
            r"\1from tensorflow_probability.substrates import jax as tfp",
        ),
        (r"^(\s*)from tensorflow_probability import", rf"\1from {_SUBSTRATE} import"),
        (r"^(\s*)from tensorflow_probability\.python\.", rf"\1from {_SUBSTRATE}."),
        (r"^(\s*)(from|import) tfp_ar1\b", r"\1\2 tfp_ar1_jax"),
    )
]


class _Loader(importlib.machinery.SourceFileLoader):
    """Reads a file of `tfp_ar1` with rewritten imports; writes no bytecode."""

    def get_data(self, path: str) -> bytes:
        source = super().get_data(path).decode()
        for pattern, replacement in _RULES:
            source = pattern.sub(replacement, source)
        return source.encode()

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds `tfp_ar1_jax.x.y` in `tfp_ar1/x/y.py` if this package has no such file."""

    def __init__(self, package: str, folder: pathlib.Path, own: pathlib.Path) -> None:
        self._package, self._folder, self._own = package, folder, own

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(f"{self._package}."):
            return None
        parts = fullname.split(".")[1:]
        own = self._own.joinpath(*parts)
        if own.is_dir() or own.with_suffix(".py").exists():
            return None
        place = self._folder.joinpath(*(part for part in parts if part != "_shared"))
        is_package = place.is_dir()
        file = place / "__init__.py" if is_package else place.with_suffix(".py")
        if not file.is_file():
            return None
        return importlib.util.spec_from_file_location(
            fullname,
            file,
            loader=_Loader(fullname, str(file)),
            submodule_search_locations=[str(place)] if is_package else None,
        )


def install(package: str, own: pathlib.Path) -> None:
    """Makes the modules of `tfp_ar1` importable as modules of `package`."""
    found = importlib.util.find_spec("tfp_ar1")  # This does not import it.
    assert found is not None
    assert found.origin is not None
    sys.meta_path.insert(0, _Finder(package, pathlib.Path(found.origin).parent, own))

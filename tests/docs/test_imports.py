"""Which file imports which: no circles, and the arrows between packages point one way."""

import ast
import graphlib
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("tfp_ar1", "tfp_ar1_cli", "experiments")
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
CORE_FOLDERS = (".", "linear_operators", "distributions", "inference")
# What layers and models need of the backend lies beside what the core needs.
NO_CORE = ("_keras_backend",)
CORE = [ROOT / "tfp_ar1" / folder for folder in CORE_FOLDERS]


def imported(name):
    """The full names of what a file imports: at its top, in functions, and for type checkers."""
    path = FILES[name]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
            prefix = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*prefix, *filter(None, [node.module])])
            for alias in node.names:
                submodule = f"{module}.{alias.name}"
                yield submodule if submodule in FILES else module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            (argument,) = node.args
            yield getattr(argument, "value", ast.unparse(argument))


TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
IMPORTS = {name: set(imported(name)) for name in FILES}


def test_no_circles():
    graph = {name: imports & FILES.keys() for name, imports in IMPORTS.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" → ".join(reversed(error.args[1])))


def test_arrows_between_packages_point_one_way():
    """The experiments use the command line, which uses the library."""
    later = {"tfp_ar1": {"tfp_ar1_cli", "experiments"}, "tfp_ar1_cli": {"experiments"}}
    for name, imports in IMPORTS.items():
        if name != "tfp_ar1.__main__":
            packages = {module.split(".")[0] for module in imports}
            assert not packages & later.get(name.split(".")[0], set()), name


def test_the_core_does_not_need_keras():
    for name, imports in IMPORTS.items():
        if FILES[name].parent in CORE and FILES[name].stem not in (
            *NO_CORE,
            "__init__",
            "__main__",
        ):
            assert not {module.split(".")[0] for module in imports} & {"keras", "tf_keras"}, name


def outside_functions(node):
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.Lambda):
            yield child
            yield from outside_functions(child)


def test_what_is_imported_does_not_depend_on_the_command():
    for name, tree in TREES.items():
        nodes = ast.walk(tree) if name.startswith("tfp_ar1.") else outside_functions(tree)
        assert "sys.argv" not in map(ast.unparse, nodes), name


def test_no_file_is_long():
    lengths = {name: len(path.read_text("utf-8").splitlines()) for name, path in FILES.items()}
    assert {name: n for name, n in lengths.items() if n > 500} == {}


def test_members_are_listed_in_one_place():
    """What depends on the member asks `families`."""
    files = [
        path
        for package in ("tfp_ar1", "tfp_ar1_cli")
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".jinja") and "ante1" in path.read_text("utf-8").lower()
    ]
    assert len(files) <= 4, files


def test_models_load_in_a_package_that_is_run(tmp_path):
    """`python -m mypkg`: its `__init__` is imported while Python still looks for the program."""
    package = tmp_path / "mypkg"
    package.mkdir()
    (package / "__init__.py").write_text("import keras\nimport tfp_ar1\n")
    model = ROOT / "tests" / "data" / "run_v1" / "model.keras"
    (package / "__main__.py").write_text(
        f"""
import sys
from mypkg import keras, tfp_ar1
print(type(keras.models.load_model({str(model)!r})).__name__)
print(keras.saving.get_registered_object("tfp_ar1>MultivariateNormalARH1").__name__)
print("tfp_ar1.tfpl" in sys.modules, tfp_ar1.tfpl.__name__)
"""
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypkg"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # The layers for tf_keras are imported on first use.
    expected = ["RhoVAE", "MultivariateNormalARH1", "False", "tfp_ar1.tfpl"]
    assert done.stdout.split() == expected

"""Every public name of the core exists on both backends."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
OF_TENSORFLOW = {"tfpl"}  # tf_keras


def names(package):
    tree = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    return set(names)


def test_public_names():
    assert names("tfp_ar1_jax") == names("tfp_ar1") - OF_TENSORFLOW


def test_names_for_type_checkers():
    tree = ast.parse((ROOT / "tfp_ar1_jax" / "__init__.pyi").read_text(encoding="utf-8"))
    stubs = {alias.name for node in ast.walk(tree) for alias in getattr(node, "names", ())}
    assert stubs == names("tfp_ar1_jax")

"""What is built is what is needed: a wheel and an sdist, each complete."""

import pathlib
import subprocess
import sys
import tarfile
import zipfile

import pytest

import tfp_ar1

ROOT = pathlib.Path(__file__).parents[2]
# Modules, markers of type hints and templates.
FILES = {
    str(path.relative_to(ROOT))
    for package in ("tfp_ar1", "tfp_ar1_cli", "tfp_ar1_jax")
    for path in (ROOT / package).rglob("*")
    if path.suffix in (".py", ".pyi", ".typed", ".jinja")
}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    # From a copy, so that building leaves nothing in the checkout.
    import shutil

    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "runs")
    shutil.copytree(ROOT, source, ignore=ignored)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "out"), source],
        check=True,
        capture_output=True,
    )
    return folder / "out"


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(distributions):
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
    assert {n for n in names if ".dist-info/" not in n} == FILES
    assert any(n.endswith("LICENSE") for n in names)
    for line in (
        "Requires-Python: >=3.10",
        "License-Expression: Apache-2.0",
        "Provides-Extra: cli",
    ):
        assert line in metadata
    core = [x for x in metadata.splitlines() if x.startswith("Requires-Dist") and "extra" not in x]
    assert sorted(x.split()[1].split(">")[0] for x in core) == [
        "keras",
        "numpy",
        "tensorflow",
        "tensorflow-probability[tf]",
    ]


@pytest.mark.slow
def test_sdist_holds_the_package(distributions):
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert FILES | {"setup.py", "pyproject.toml", "README.md", "LICENSE"} <= names


@pytest.mark.slow
def test_wheel_imports_without_the_checkout(distributions, tmp_path):
    (wheel,) = distributions.glob("*.whl")
    # A wheel can be imported where it lies.
    code = f"""
import sys
sys.path = ["{wheel}", *(p for p in sys.path if p != "{ROOT}")]
sys.meta_path = [f for f in sys.meta_path if "__editable__" not in str(f)]
import tfp_ar1
assert "{wheel}" in tfp_ar1.__file__, tfp_ar1.__file__
d = tfp_ar1.MultivariateNormalAR1([0.0, 0.0], correlation=0.5)
print(tfp_ar1.__version__, d.sample(seed=1).shape)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"{tfp_ar1.__version__} (2,)"

"""The Python examples of the README and of the pages run as they are printed, and its numbers are
those of the pages."""

import re

import pytest
from test_docs import ROOT, fenced_blocks, run

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("start", "time_series", "noisy_observations", "learned_priors", "your_data")
}
EXAMPLES = {
    f"{name}_{i}": block.code
    for name, page in {"readme": README, **PAGES}.items()
    for i, block in enumerate(fenced_blocks(page))
    if block.language == "python"
}


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Runs an example where it may write files; returns its names."""
    monkeypatch.chdir(tmp_path)
    return lambda name: run(EXAMPLES[name], tmp_path / f"{name}.py")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (".fit(" in code and "readme" not in name))
        for name, code in EXAMPLES.items()
        if not name.startswith("noisy_observations")
    ],
)
def test_example_runs(name, example):
    example(name)


def test_noisy_observations(example):
    """The optimum is the one that statsmodels' SARIMAX has, which the page states."""
    (name,) = (name for name in EXAMPLES if name.startswith("noisy_observations"))
    names = example(name)
    path, noise = names["noisy"].path, names["noisy"].noise_scale
    log_likelihood = f"{names['noisy'].log_prob(names['flow']):.4f}".replace("-", "−")
    found = (
        f"The mean is {path.loc[0]:.2f}, the standard deviation {path.marginal_scale:.2f}, "
        f"ρ {path.correlation_parameter():.4f} and the noise {noise:.2f}, "
        f"with the log-likelihood {log_likelihood}"
    )
    assert found in " ".join(PAGES["noisy_observations"].split())


def test_there_are_examples_for_tfp_and_for_keras():
    in_readme = [code for name, code in EXAMPLES.items() if name.startswith("readme")]
    assert len(in_readme) == 2
    assert ".kl_divergence" in in_readme[0]
    assert "RhoVAE" in in_readme[1]
    assert len(README.splitlines()) <= 120


def test_intervals_are_those_of_the_results():
    pages = (
        "results/results.md",
        "series/series.md",
        "scan_lines/scan_lines.md",
        "healing/healing.md",
    )
    results = [ROOT / "docs" / name for name in pages]
    measured = "".join(path.read_text(encoding="utf-8") for path in results)
    for page in (README, PAGES["time_series"]):
        intervals = re.findall(r"[+−][\d.]+ \[[+−][\d.]+, [+−][\d.]+\]", page)
        assert len(intervals) >= 6
        for interval in intervals:
            assert interval in measured, interval

"""The page on correlated channels: its recipes against dense covariance matrices."""

import numpy as np
import pytest
import scipy.stats
from test_docs import ROOT, fenced_blocks, run


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names that the blocks of the page leave."""
    text = (ROOT / "docs" / "channels.md").read_text(encoding="utf-8")
    code = "\n".join(block.code for block in fenced_blocks(text))
    names = run(code, tmp_path_factory.mktemp("channels") / "channels.py")
    steps = np.arange(50)
    over_steps = 0.9 ** np.abs(np.subtract.outer(steps, steps))
    names["covariance"] = np.kron(np.float64(names["between"]), over_steps)
    return names


def as_rows(x):
    return np.reshape(np.float64(x), (4, 150))


def test_density(page):
    expected = scipy.stats.multivariate_normal(cov=page["covariance"]).logpdf(as_rows(page["x"]))
    np.testing.assert_allclose(page["together"].log_prob(page["x"]), expected, rtol=1e-4)
    flat = page["vector"].log_prob(as_rows(page["x"]).astype(np.float32))
    np.testing.assert_allclose(flat, expected, rtol=1e-4)


def test_missing_steps(page):
    known = np.tile(np.array(page["observed"]), 3)
    x, covariance = as_rows(page["x"]), page["covariance"]
    weights = np.linalg.solve(covariance[known][:, known], x[:, known].T)
    expected = (covariance[:, known] @ weights).T
    filled = page["mixing"].forward(page["given"].mean())
    np.testing.assert_allclose(as_rows(filled), expected, atol=2e-5)
    assert page["mixing"].forward(page["given"].sample(2, seed=1)).shape == (2, 4, 3, 50)


def test_noise(page):
    with_noise = page["covariance"] + np.kron(np.float64(page["noise"]), np.eye(50))
    y = as_rows(page["y"])
    expected = scipy.stats.multivariate_normal(cov=with_noise).logpdf(y)
    np.testing.assert_allclose(page["log_prob"], expected, rtol=1e-4, atol=2e-3)
    mean = (page["covariance"] @ np.linalg.solve(with_noise, y.T)).T
    found = page["back"] @ np.array(page["posterior"].mean())
    np.testing.assert_allclose(as_rows(found), mean, atol=1e-4)

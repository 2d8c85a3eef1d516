"""With TensorFlow's NumPy behaviour switched on, which is for good, all is as without it."""

import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1
from tfp_ar1.distributions.kl import kl_terms, log_prob_terms

SEED = [1, 2]


def distributions():
    loc, scale, u, times = np.float32(
        [[0.1, -1.0, 2.0], [0.5, 1.0, 2.0], [0.3, -9.0, 0], [0, 1, 5]]
    )
    return {
        "AR1": tfp_ar1.MultivariateNormalAR1(loc, 2.0, 0.5),
        "AR1 by fisher_z": tfp_ar1.MultivariateNormalAR1(loc, 2.0, fisher_z=-9.0),
        "ARH1 by fisher_z": tfp_ar1.MultivariateNormalARH1(loc, scale, fisher_z=0.5),
        "ANTE1": tfp_ar1.MultivariateNormalANTE1(loc, scale, np.tanh(u[:2] / 8)),
        "OU": tfp_ar1.MultivariateNormalOU(loc, 2.0, 1.5, times),
        "params": tfp_ar1.params.new(np.zeros(8, np.float32), 3, family="ante1"),
    }


def results(p):
    """Of every method."""
    x = np.float32([-1.0, 0.5, 2.0])
    given = p.conditional(x, np.arange(len(x)) == 1)
    scale, precision = p.scale, p.precision()
    diag = tfp.distributions.MultivariateNormalDiag(x, np.ones_like(x))
    tril = tfp.distributions.MultivariateNormalTriL(x, np.eye(3, dtype=np.float32))
    methods = ("mean", "variance", "stddev", "mode", "covariance", "entropy")
    return {
        **{name: getattr(p, name)() for name in methods},
        **{f"given {n}": getattr(given, n)() for n in (*methods[:3], "observed_log_prob")},
        "log_prob": p.log_prob(x),
        "prob": p.prob(x),
        "sample": p.sample(2, seed=SEED),
        "sample and log_prob": p.experimental_sample_and_log_prob(2, seed=SEED),
        "given sample": given.sample(2, seed=SEED),
        "correlation": p.correlation_parameter(),
        "marginal": [p.marginal(step=step).log_prob(x[::step]) for step in (1, 2)],
        "kl": [p.kl_divergence(q) for q in (p, diag, tril)],
        "kl from": [q.kl_divergence(p) for q in (diag, tril)],
        "terms": (kl_terms(p, diag), log_prob_terms(p, x)),
        "scale": (scale.to_dense(), scale.log_abs_determinant(), scale.solvevec(x), scale.trace()),
        "precision": (precision.to_dense(), precision.matvec(x), precision.log_abs_determinant()),
        "checked": p.copy(validate_args=True).log_prob(x),
        "compiled": tf.function(lambda x: tfp.math.value_and_gradient(p.log_prob, x))(x),
    }


def arrays():
    return {
        (name, method, i): np.asarray(value)
        for name, p in distributions().items()
        for method, values in results(p).items()
        for i, value in enumerate(tf.nest.flatten(values))
    }


@pytest.fixture(scope="module")
def without():
    return arrays()


@pytest.mark.parametrize(
    "options", ["", pytest.param("prefer_float32=True", marks=pytest.mark.slow)]
)
def test_results_and_dtypes_are_the_same(options, without, tmp_path):
    path = tmp_path / "arrays.pickle"
    code = (
        "import pathlib, pickle, sys, tensorflow as tf\n"
        f"tf.experimental.numpy.experimental_enable_numpy_behavior({options})\n"
        f"sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})\n"
        "import test_numpy_behaviour\n"
        f"pathlib.Path({str(path)!r}).write_bytes(pickle.dumps(test_numpy_behaviour.arrays()))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    found = pickle.loads(path.read_bytes())
    assert found.keys() == without.keys()
    for key, value in without.items():
        assert found[key].dtype == value.dtype == np.float32, key
        np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-5, err_msg=str(key))

"""With TensorFlow's NumPy behaviour switched on, which is for good, all is as without it."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from family import ONE_OF_EACH, OTHERS, VALUE, compute, distribution, kl, kl_terms, log_prob_terms

from tfp_ar1 import params


def float32(_, value):
    return np.float32(value)


def results(p):
    x = np.float32(VALUE)
    others = {name: OTHERS[name](float32) for name in ("AR1", "Diag", "TriL")}
    return {
        **compute(p, x),
        **{f"KL, {n}, {r}": kl(p, q, r) for n, q in others.items() for r in (False, True)},
        "kl_terms": kl_terms(p, others["AR1"]),
        "log_prob_terms": log_prob_terms(p, x),
        "scale": p.scale.to_dense(),
        "checked": p.copy(validate_args=True).log_prob(x),
        "compiled": tf.function(lambda x: tfp.math.value_and_gradient(p.log_prob, x))(x),
    }


def arrays():
    distributions = {name: distribution(name, float32) for name in ONE_OF_EACH}
    distributions["params"] = params.new(np.zeros((3, 11), np.float32), 4, family="ante1")
    return {
        (name, method, i): np.asarray(value)
        for name, p in distributions.items()
        for method, values in results(p).items()
        for i, value in enumerate(tf.nest.flatten(values))
    }


@pytest.fixture(scope="module")
def without():
    return arrays()


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", "prefer_float32=True"])
def test_results_and_dtypes_are_the_same(options, without, tmp_path):
    path, folder = tmp_path / "arrays.pickle", __file__.rsplit("/", 1)[0]
    code = (
        "import pathlib, pickle, sys, tensorflow as tf\n"
        f"tf.experimental.numpy.experimental_enable_numpy_behavior({options})\n"
        f"sys.path[:0] = {[folder, folder.rsplit('/', 1)[0]]!r}\n"
        "import test_numpy_behaviour\n"
        f"pathlib.Path({str(path)!r}).write_bytes(pickle.dumps(test_numpy_behaviour.arrays()))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    found = pickle.loads(path.read_bytes())
    assert found.keys() == without.keys()
    for key, value in without.items():
        assert found[key].dtype == value.dtype == np.float32, key
        np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-5, err_msg=str(key))

"""Setup for every test: quiet TensorFlow, parsed flags, a fixed seed, reproducible hypothesis."""

import os

# Set before TensorFlow and NumPy are imported anywhere. NumPy's linear algebra gets one thread:
# its threads spin while they wait, so workers of pytest-xdist would compete for the cores.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import pytest
import tensorflow as tf
from absl import flags

# TensorFlow's own test classes read absl flags, which pytest does not parse.
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()

# The same examples on every run; no deadline, because an example may trace a TensorFlow graph.
hypothesis.settings.register_profile("reproducible", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("reproducible")


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Keeps the command line from announcing slow steps, however busy the machine."""
    monkeypatch.setattr("tfp_ar1_cli.progress._SECONDS_OF_SILENCE", 3600.0)


@pytest.fixture(autouse=True)
def fixed_seed():
    """Sets the seed for draws without a seed of their own."""
    tf.random.set_seed(20190618)


@pytest.fixture
def set_policy():
    """A function that sets Keras's global dtype policy for one test."""
    import keras

    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)

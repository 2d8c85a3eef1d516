"""A pytest plugin that runs the tests of the core on JAX, from the same files as on TensorFlow.

    PYTHONPATH=tests/substrate python -m pytest --noconftest -p core_on_jax tests/core

The test files and the modules of `tests` that they import are loaded like the library's files,
with rewritten imports. Tests that only apply to TensorFlow are listed below, with the reason.
"""

import ast
import importlib.util
import os
import pathlib
import re
import sys

# Programs that run once need no optimization, and compile twice as fast without it.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import hypothesis
import jax
import jax.numpy as jnp
import pytest
from _pytest.assertion.rewrite import rewrite_asserts
from tensorflow_probability.substrates.jax import tf2jax
from tensorflow_probability.substrates.jax.internal import samplers

from tfp_ar1_jax import _backend, _rewrite

HERE = pathlib.Path(__file__).parent
TESTS = HERE.parent
# The files whose tests run here, except those in `NOT_ON_JAX`. The other files only apply to
# TensorFlow: tf_keras (`test_tfpl`), its rounding on GPUs (`test_tensor_float_32`), counts of its
# operations (`test_cost`), its test suite of operators (`test_operators`), its NumPy
# (`test_numpy_behaviour`), what imports it (`test_families`), and the accuracy of its kernels
# (`test_accuracy`).
FILES = {
    "test_conditional.py",
    "test_construction.py",
    "test_contract.py",
    "test_correlation.py",
    "test_derivatives.py",
    "test_distribution.py",
    "test_extremes.py",
    "test_fit.py",
    "test_forecast.py",
    "test_half_precision.py",
    "test_inference.py",
    "test_kl.py",
    "test_layers.py",
    "test_marginal.py",
    "test_mcmc.py",
    "test_noise.py",
    "test_params.py",
    "test_pickling.py",
    "test_ported_examples.py",
    "test_precision.py",
    "test_priors.py",
    "test_recurrence.py",
    "test_state_space.py",
    "test_sts.py",
    "test_time_major.py",
    "test_transformations.py",
    "test_transitions.py",
}
# By reason. A parametrized test is skipped as a whole, or one case of it as `test[parameters]`.
NOT_ON_JAX = {
    "variables, and the tape, which finds them": {
        "test_a_graph_reads_each_variable_at_most_twice",
        "test_a_statistic_reads_each_variable_at_most_twice",
        "test_bad_arguments[variables]",
        "test_bad_noise_of_a_variable",
        "test_gradients_of_slices",
        "test_gradients_of_statistics_and_kls",
        "test_gradients_reach_every_parameter",
        "test_kl_weight_that_is_a_variable",
        "test_make_trainable",
        "test_make_trainable_asks_for_the_times",
        "test_slices_of_slices_and_copies_lead_back_to_the_variables",
        "test_the_arguments_are_the_attributes",
        "test_variables_of_a_copy",
        "test_variables_stay_variables",
    },
    "what a graph does not know, or knows only when it runs": {
        "test_a_conditional_of_unknown_rank",
        "test_in_a_graph_of_unknown_size",
        "test_kls_with_noise_that_a_graph_finds",
        "test_marginal_of_long_steps_in_few_operations",
        "test_numbers_of_steps_that_differ",
        "test_of_a_size_known_when_the_graph_runs",
        "test_static_shapes_are_known_where_they_can_be",
        "test_unknown_last_dimension",
    },
    "tf_keras": {"test_softplus_in_layers_of_tf_keras"},
    "a SavedModel": {"test_after_loading"},
    "`tf.distribute`": {"test_every_replica_has_noise_of_its_own"},
    "what `tf.function` counts as a tensor": {"test_function_argument_and_result"},
    "where TensorFlow drops custom gradients": {"test_in_every_place"},
    "its message; that of JAX is a TypeError of shapes": {"test_value_of_the_wrong_size"},
    "the derivative of a quotient, of which JAX squares the denominator: at 1e-19 it overflows": {
        "test_ou_of_any_length_scale_has_gradients[1e+30]",
    },
}

NAME_OF_PACKAGE = re.compile(rb"^import tfp_ar1_jax$", re.MULTILINE)


class _Loader(_rewrite._Loader):
    """Loads a test file, with its assertions rewritten too, as by pytest."""

    config = None

    def source_to_code(self, data, path, *, _optimize=-1):
        data = NAME_OF_PACKAGE.sub(b"import tfp_ar1_jax as tfp_ar1", data)
        tree = ast.parse(data)
        rewrite_asserts(tree, data, str(path), self.config)
        return compile(tree, path, "exec", dont_inherit=True)


class _Finder:
    def find_spec(self, name, path=None, target=None):
        instead = HERE / "instead" / f"{name}.py"
        if instead.is_file():
            return importlib.util.spec_from_file_location(name, instead)
        for folder in (TESTS / "core", TESTS):
            file = folder / f"{name}.py"
            if file.is_file():
                loader = _Loader(name, str(file))
                return importlib.util.spec_from_file_location(name, file, loader=loader)
        return None


def pytest_configure(config):
    jax.config.update("jax_enable_x64", True)
    hypothesis.settings.register_profile(
        "reproducible", derandomize=True, database=None, deadline=None
    )
    hypothesis.settings.load_profile("reproducible")
    _Loader.config = config
    sys.meta_path.insert(0, _Finder())
    _take_seeds_of_tensorflow()
    _add_what_the_substrate_lacks()
    # On JAX, TFP raises a ValueError if a value is known.
    tf2jax.errors.InvalidArgumentError = ValueError


@pytest.fixture
def set_policy():
    """As in `tests/conftest.py`, which needs TensorFlow."""
    import keras

    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


def pytest_ignore_collect(collection_path):
    is_of_core = collection_path.parent == TESTS / "core"
    return True if is_of_core and collection_path.name not in FILES else None


def pytest_collection_modifyitems(items):
    reasons = {name: reason for reason, names in NOT_ON_JAX.items() for name in names}
    for item in items:
        names = (item.name, getattr(item, "originalname", None))
        reason = next((reasons[name] for name in names if name in reasons), None)
        if reason or "bfloat16" in item.name:
            reason = reason or "bfloat16"
            item.add_marker(pytest.mark.skip(reason=f"TensorFlow's alone: {reason}"))


def _add_what_the_substrate_lacks():
    """Adds to TFP's `tf` what only the tests need."""
    diag = tf2jax.linalg.diag

    def diag_off_the_diagonal(diagonal, k=0, **kwargs):
        if k == 0:
            return diag(diagonal, **kwargs)
        return jnp.vectorize(lambda row: jnp.diag(row, k), signature="(n)->(m,m)")(diagonal)

    tf2jax.linalg.diag = diag_off_the_diagonal
    vectorized_map = tf2jax.vectorized_map
    tf2jax.vectorized_map = lambda f, x, fallback_to_while_loop=False: vectorized_map(f, x)
    tf2jax.linalg.LinearOperatorTridiag = _backend.LinearOperatorTridiag


def pytest_runtest_teardown(item, nextitem):
    # Programs compiled for one file are of no use to others, and add up to gigabytes.
    if nextitem is None or nextitem.path != item.path:
        jax.clear_caches()


def _take_seeds_of_tensorflow():
    """Accepts pairs of numbers and single numbers as keys: the tests have no other seeds."""
    sanitize_seed = samplers.sanitize_seed

    def with_key(seed, *args, **kwargs):
        if isinstance(seed, int):
            seed = (0, seed)
        if isinstance(seed, tuple | list) or seed.dtype == jnp.int32:
            seed = jnp.asarray(seed).astype(jnp.uint32)
        return sanitize_seed(seed, *args, **kwargs)

    samplers.sanitize_seed = with_key
    samplers.is_stateful_seed = lambda seed: seed is None

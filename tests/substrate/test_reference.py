"""What is stored of TensorFlow's numbers, for comparison with JAX, is what it gives."""

import both
import numpy as np
import pytest

pytest.importorskip("tensorflow")

import models


@pytest.mark.parametrize("case", ["ANTE1", "constructors", "forecasts", "priors"])
def test_stored_values(case):
    b, stored = both.tensorflow(), np.load(both.REFERENCE)
    for name, value in both.CASES[case](b, b.constant(both.POINT)).items():
        np.testing.assert_allclose(value, stored[f"{case}/{name}"], rtol=1e-10, err_msg=name)


def test_models_that_were_saved_on_jax():
    models.check_files_of("jax")

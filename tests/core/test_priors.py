"""Distributions as plain configurations."""

import json

import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1
from tfp_ar1 import priors

tfd = tfp.distributions

LOC = np.array([0.5, -1.0, 2.0])
SCALE = np.array([0.5, 1.0, 2.0])
FACTOR = np.array([[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [-0.3, 0.4, 0.7]])

DISTRIBUTIONS = {
    "ar1 by correlation": lambda t: tfp_ar1.MultivariateNormalAR1(LOC.astype(t), 2.0, 0.7),
    "ar1 by fisher_z": lambda t: tfp_ar1.MultivariateNormalAR1(LOC.astype(t), fisher_z=-12.0),
    "arh1": lambda t: tfp_ar1.MultivariateNormalARH1(LOC.astype(t), SCALE.astype(t), 0.7),
    "ante1 by fisher_z": lambda t: tfp_ar1.MultivariateNormalANTE1(
        LOC.astype(t), SCALE.astype(t), fisher_z=np.array([0.3, -12.0], t)
    ),
    "ou": lambda t: tfp_ar1.MultivariateNormalOU(LOC.astype(t), 2.0, 0.7, np.array([0, 1, 5], t)),
    "diag": lambda t: tfd.MultivariateNormalDiag(LOC.astype(t), SCALE.astype(t)),
    "diag without scale": lambda t: tfd.MultivariateNormalDiag(LOC.astype(t)),
    "tril": lambda t: tfd.MultivariateNormalTriL(LOC.astype(t), FACTOR.astype(t)),
    "full covariance": lambda t: tfd.MultivariateNormalFullCovariance(
        LOC.astype(t), (FACTOR @ FACTOR.T).astype(t)
    ),
    "diag plus low rank": lambda t: tfd.MultivariateNormalDiagPlusLowRank(
        LOC.astype(t), SCALE.astype(t), scale_perturb_factor=FACTOR[:, :1].astype(t)
    ),
    "independent": lambda t: tfd.Independent(tfd.Normal(LOC.astype(t), SCALE.astype(t)), 1),
    "sample": lambda t: tfd.Sample(tfd.Normal(np.ones([], t), 2.0), 3),
    "nested": lambda t: tfd.Sample(tfd.Independent(tfd.Normal(LOC.astype(t), 1.0), 1), [1]),
    "validated": lambda t: tfd.Normal(np.zeros([], t), 1.0, validate_args=True, name="mine"),
}


def through_json(distribution):
    return priors.from_config(json.loads(json.dumps(priors.to_config(distribution))))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_survives_json(name, dtype):
    distribution = DISTRIBUTIONS[name](dtype)
    copy = through_json(distribution)
    assert type(copy) is type(distribution)
    assert copy.dtype == distribution.dtype
    assert copy.event_shape == distribution.event_shape
    assert copy.validate_args == distribution.validate_args
    value = distribution.sample(5, seed=[1, 2])
    np.testing.assert_array_equal(copy.sample(5, seed=[1, 2]), value)
    oracles.assert_close(copy.log_prob(value), distribution.log_prob(value), "same computation")


def test_numpy_scalars_keep_their_dtype():
    distribution = tfd.Normal(np.float64(0.1), np.float64(1.0))
    assert through_json(distribution).dtype == tf.float64


ZEROS = np.zeros(3)
# Numbers without a dtype, beside parameters of float64 that decide it, or alone.
PYTHON_NUMBERS = {
    "integer": (lambda: tfp_ar1.MultivariateNormalAR1(ZEROS, 1, 0), tf.float64),
    "list": (lambda: tfp_ar1.MultivariateNormalARH1(ZEROS, [0.1, 2, 3], 0.5), tf.float64),
    "integers": (lambda: tfp_ar1.MultivariateNormalANTE1(ZEROS, [1, 2, 3], [0, 0]), tf.float64),
    "tuple": (lambda: tfp_ar1.MultivariateNormalOU(ZEROS, 1, 2, (0, 0.1, 2)), tf.float64),
    "loc": (
        lambda: tfp_ar1.MultivariateNormalAR1([0, 0.1, 0], correlation=np.float64(0.5)),
        tf.float64,
    ),
    "integer loc": (lambda: tfp_ar1.MultivariateNormalAR1([0, 0, 0], 1, 0.5), tf.float32),
    "array in a list": (
        lambda: tfp_ar1.MultivariateNormalARH1([0, 0, 0], [np.float64(0.1), 2, 3], 0),
        tf.float64,
    ),
    "rows": (lambda: tfd.MultivariateNormalTriL(ZEROS, FACTOR.tolist()), tf.float64),
    "no loc": (lambda: tfd.MultivariateNormalDiag(None, SCALE), tf.float64),
    "inside": (lambda: tfd.Independent(tfd.Normal([0, 0, 0], 1), 1), tf.float32),
    "size": (lambda: tfd.Sample(tfd.Normal(0, np.float64(1)), np.int64(3)), tf.float64),
    "shape": (lambda: tfd.Sample(tfd.Normal(0, 1), tf.TensorShape([3])), tf.float32),
    "empty shape": (lambda: tfd.Sample(tfd.MultivariateNormalDiag(ZEROS), ()), tf.float64),
}


@pytest.mark.parametrize("name", PYTHON_NUMBERS)
def test_numbers_of_python_take_the_dtype_of_the_others_again(name):
    make, dtype = PYTHON_NUMBERS[name]
    distribution = make()
    copy = through_json(distribution)
    assert copy.dtype == distribution.dtype == tf.as_dtype(dtype)
    value = np.array([0.3, -1.0, 2.0])
    np.testing.assert_array_equal(copy.log_prob(value), distribution.log_prob(value))


def test_variables_stay_variables():
    loc = tf.Variable([0.0, 0.0], name="centre")
    scale = tf.Variable([1.0, 2.0], trainable=False)
    distribution = tfd.MultivariateNormalDiag(loc, scale)
    loc.assign([3.0, 4.0])
    copy = through_json(distribution)
    np.testing.assert_array_equal(copy.mean(), [3.0, 4.0])
    assert len(copy.variables) == 2
    assert [v.name for v in copy.trainable_variables] == [loc.name]


def test_transformed_variables_are_refused():
    scale = tfp.util.TransformedVariable(1.0, tfp.bijectors.Softplus())
    with pytest.raises(ValueError, match="transformed variable cannot be saved"):
        priors.to_config(tfd.Sample(tfd.Normal(0.0, scale), 3))


def test_kl_divergence_between_spellings():
    diag, tril = DISTRIBUTIONS["diag"](np.float64), DISTRIBUTIONS["tril"](np.float64)
    independent = DISTRIBUTIONS["independent"](np.float64)
    for posterior in (diag, tril, independent, DISTRIBUTIONS["ar1 by correlation"](np.float64)):
        np.testing.assert_allclose(
            priors.kl_divergence(posterior, independent),
            priors.kl_divergence(posterior, diag),
            rtol=1e-12,
        )
    image = tfd.Independent(tfd.Normal(tf.zeros([2, 3]), 1.0), 2)
    assert priors.kl_divergence(image, image).shape == ()


class MultivariateNormalDiag(tfd.MultivariateNormalDiag):
    """Of a name that is known, but something else."""


@pytest.mark.parametrize(
    ("distribution", "name"),
    [
        (lambda: tfd.Laplace(0.0, 1.0), "Laplace"),
        (lambda: tfd.Independent(tfd.Laplace([0.0], 1.0), 1), "Laplace"),
        (lambda: MultivariateNormalDiag([0.0]), "MultivariateNormalDiag"),
    ],
)
def test_other_classes_are_refused(distribution, name):
    with pytest.raises(ValueError, match=f"class `{name}` cannot be saved; use one of .*Sample"):
        priors.to_config(distribution())


def test_unknown_configurations_are_refused():
    with pytest.raises(ValueError, match=r"Unknown prior 'Variable'; expected one of .*Sample"):
        priors.from_config({"distribution": "Variable", "parameters": {}})


def test_standard_normal():
    prior = priors.standard_normal(4, tf.float64)
    assert prior.dtype == tf.float64
    np.testing.assert_array_equal(prior.mean(), np.zeros(4))
    np.testing.assert_array_equal(prior.covariance(), np.eye(4))

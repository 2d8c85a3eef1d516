"""A new member of the family is one class and one entry: everything else follows from these."""

import pickle

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow.python.framework import type_spec_registry
from tensorflow_probability import distributions as tfd

import tfp_ar1
from tfp_ar1 import families, params
from tfp_ar1.distributions import declaration as declare
from tfp_ar1.distributions.gaussian_markov_chain import GaussianMarkovChain

D = 4


class MultivariateNormalToy(GaussianMarkovChain):
    """One standard deviation, and a correlation for each step."""

    declaration = (declare.MARGINAL_SCALE, *declare.correlation(per="step"))

    def __init__(
        self,
        loc,
        marginal_scale=1.0,
        correlation=None,
        fisher_z=None,
        validate_args=False,
        allow_nan_stats=True,
        name="MultivariateNormalToy",
    ):
        super().__init__(dict(locals()))


@pytest.fixture(autouse=True)
def entry(monkeypatch):
    monkeypatch.setitem(families.PACKED, "toy", MultivariateNormalToy)


@pytest.fixture
def packed():
    return np.random.default_rng(0).normal(size=(3, 2 * D)).astype(np.float32)


def twin(p):
    """The same distribution as a member that has a scale for each coordinate."""
    scale = tf.convert_to_tensor(p.marginal_scale)[..., tf.newaxis] * tf.ones([D])
    return families.PACKED["ante1"](p.loc, scale, fisher_z=p.fisher_z)


def test_packed_parameters(packed):
    assert params.params_size(D, "toy") == D + 1 + D - 1
    p = params.new(packed, D, family="toy")
    assert isinstance(p, MultivariateNormalToy)
    np.testing.assert_array_equal(p.loc, packed[:, :D])
    np.testing.assert_allclose(p.marginal_scale, np.exp(packed[:, D] / 2), rtol=1e-6)
    np.testing.assert_array_equal(p.fisher_z, packed[:, D + 1 :])


def test_distribution(packed):
    p = params.new(packed, D, family="toy")
    q, x = twin(p), packed[:, ::2]
    observed = [True, False, False, True]
    for method in (
        lambda p: p.log_prob(x),
        lambda p: p.entropy(),
        lambda p: p.covariance(),
        lambda p: p.precision().to_dense(),
        lambda p: p.sample(2, seed=[1, 2]),
        lambda p: p.marginal(step=2).log_prob(x[:, ::2]),
        lambda p: p.marginal(1, 3).covariance(),
        lambda p: p.conditional(x, observed).mean(),
        lambda p: tfd.kl_divergence(p, tfp_ar1.MultivariateNormalAR1(tf.zeros(D), 1.0, 0.5)),
    ):
        np.testing.assert_allclose(method(p), method(q), rtol=2e-5, atol=2e-6)
    assert (p.batch_shape, p[1:].batch_shape, p.event_shape) == ([3], [2], [D])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(p)).log_prob(x), p.log_prob(x))
    returned = tf.function(lambda p: p)(tfp.experimental.as_composite(p))
    np.testing.assert_array_equal(returned.log_prob(x), p.log_prob(x))


def test_properties_and_checks():
    properties = MultivariateNormalToy.parameter_properties()
    assert list(properties) == ["loc", "marginal_scale", "correlation", "fisher_z"]
    assert [properties[name].event_ndims for name in properties] == [1, 0, 1, 1]
    loc = tf.zeros(D)
    with pytest.raises(ValueError, match=r"`correlation` must have one entry for each step .* 3;"):
        MultivariateNormalToy(loc, 1.0, [0.5, 0.5])
    with pytest.raises(ValueError, match="exactly one of `correlation` and `fisher_z`"):
        MultivariateNormalToy(loc)
    with pytest.raises(ValueError, match="Missing required `marginal_scale`"):
        MultivariateNormalToy(loc, None, fisher_z=[0.0] * 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`marginal_scale` must be positive"):
        MultivariateNormalToy(loc, -1.0, [0.5, 0.5, 0.5], validate_args=True)
    made = tfp.experimental.util.make_trainable(MultivariateNormalToy, batch_and_event_shape=[2, D])
    assert [v.shape for v in made.trainable_variables] == [[2, D], [2], [2, D - 1]]


def test_layers(packed):
    prior = tfd.MultivariateNormalDiag(tf.zeros(D))
    expected = params.new(packed, D, family="toy")
    layer = tfp_ar1.layers.MultivariateNormalToy(D, prior=prior)
    assert layer(packed).shape == [3, D]
    assert layer.params_size(D) == params.params_size(D, "toy")
    kl = tf.reduce_mean(tfd.kl_divergence(expected, prior))
    np.testing.assert_allclose(layer.losses[0], kl, rtol=1e-5)
    made = tfp_ar1.tfpl.MultivariateNormalToy(D)(packed)
    np.testing.assert_array_equal(made.mean(), expected.mean())


def test_posterior(packed):
    posterior = tfp_ar1.vae.posteriors.get("toy")
    assert posterior.params_size(D) == params.params_size(D, "toy")
    rho = posterior.correlation(posterior.new(packed, D))
    np.testing.assert_allclose(rho, np.tanh(packed[:, D + 1 :]).mean(axis=-1), rtol=1e-5)


def test_operators_of_earlier_files():
    """Saved models name an operator of one member, as they had it; they give the one for all."""
    spec = type_spec_registry.lookup("tfp_ar1.LinearOperatorANTE1CholeskySpec")
    parameters = {"scale_diag": tf.constant([1.0, 2.0, 3.0]), "fisher_z": tf.constant([0.1, 0.2])}
    specs = {name: tf.TensorSpec.from_tensor(x) for name, x in parameters.items()}
    read = spec(specs, {"correlation": None, "is_square": True}, ())._from_components(parameters)
    p = families.PACKED["ante1"](None, **parameters)
    np.testing.assert_array_equal(read.to_dense(), p.scale.to_dense())


def test_estimate():
    """By optimization; the other tests of that are slow."""
    draws = MultivariateNormalToy(tf.zeros(D), 2.0, [0.9, 0.0, -0.9]).sample(4000, seed=[1, 2])
    fitted = MultivariateNormalToy.experimental_fit(draws)
    np.testing.assert_allclose(fitted.marginal_scale, 2.0, rtol=0.05)
    np.testing.assert_allclose(fitted.correlation_parameter(), [0.9, 0.0, -0.9], atol=0.05)

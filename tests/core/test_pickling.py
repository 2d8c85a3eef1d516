"""Distributions are pickled and copied: by their arguments, with variables of their own."""

import copy
import multiprocessing
import pickle

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1

VALUE = np.array([0.3, -1.0, 2.0])
MAKE = {
    "AR1": lambda: tfp_ar1.MultivariateNormalAR1(VALUE, 2, fisher_z=[0.3, 12.0], name="mine"),
    "ARH1": lambda: tfp_ar1.MultivariateNormalARH1(None, [1.0, 2.0, 3.0], 0.5, validate_args=True),
    "ANTE1": lambda: tfp_ar1.MultivariateNormalANTE1(0.1, [1.0, 2.0, 3.0], [0.5, -0.5]),
    "OU": lambda: tfp_ar1.MultivariateNormalOU(tf.zeros([2, 1]), 2.0, 1.5, (0.0, 1.0, 5.0)),
    "slice": lambda: MAKE["AR1"]()[1],
    "marginal": lambda: tfp_ar1.MultivariateNormalAR1(tf.zeros(6), 1.0, 0.5).marginal(step=2),
    "composite": lambda: tf.function(lambda p: p)(MAKE["ANTE1"]()),
}
COPIES = {
    "pickle": lambda p: pickle.loads(pickle.dumps(p)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}
each_copy = pytest.mark.parametrize("way", COPIES)


@each_copy
@pytest.mark.parametrize("name", MAKE)
def test_copies_are_the_same_law(name, way):
    p = MAKE[name]()
    other = COPIES[way](p)
    assert type(other) is type(p)
    assert (other.name, other.dtype, other.batch_shape) == (p.name, p.dtype, p.batch_shape)
    assert other.validate_args == p.validate_args
    np.testing.assert_array_equal(other.log_prob(VALUE), p.log_prob(VALUE))
    np.testing.assert_array_equal(other.sample(4, seed=[1, 2]), p.sample(4, seed=[1, 2]))
    given = p.conditional(VALUE, [True, False, True])
    np.testing.assert_array_equal(COPIES[way](given).mean(), given.mean())
    np.testing.assert_array_equal(COPIES[way](p.precision()).to_dense(), p.precision().to_dense())
    # And can be copied with other arguments.
    assert other.copy(name="changed").name == "changed"


@each_copy
def test_variables_of_a_copy(way):
    """Its own, but for `copy.copy`; what shares a variable still does."""
    u = tf.Variable(0.3)
    scale = tfp.util.TransformedVariable(2.0, tfp.bijectors.Softplus())
    p = tfp_ar1.MultivariateNormalAR1(tf.zeros(3), scale, fisher_z=u)
    tf.function(p.log_prob)(tf.ones(3))
    pair = COPIES[way]([p, p.copy(marginal_scale=1.0)])
    other = pair[0]
    assert len(other.trainable_variables) == 2
    assert other.fisher_z is pair[1].fisher_z
    with tf.GradientTape() as tape:
        before = other.log_prob(tf.ones(3))
    assert None not in tape.gradient(before, other.trainable_variables)
    u.assign(-1.0)
    assert (other.log_prob(tf.ones(3)) == before) == (way != "copy")


def log_prob_of_pickled(pickled):
    return pickle.loads(pickled).log_prob(VALUE).numpy()


@pytest.mark.slow
def test_another_process_reads_them():
    p = MAKE["AR1"]()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(log_prob_of_pickled, [pickle.dumps(p)])
    np.testing.assert_array_equal(found, p.log_prob(VALUE))

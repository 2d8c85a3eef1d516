"""Products of matrices on GPUs, where TensorFlow rounds factors in float32 to TensorFloat-32."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1
from tfp_ar1.vae import objectives

tfd = tfp.distributions


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """The CPU passes for a GPU, and rounds as one: to 10 bits after the point."""
    matmul = tf.linalg.matmul

    def rounded(x):
        if x.dtype != tf.float32:
            return x
        bits = tf.bitcast(x, tf.int32) + 0x1000
        return tf.bitcast(tf.bitwise.bitwise_and(bits, ~0x1FFF), tf.float32)

    def rounding_matmul(a, b, **transposed):
        return matmul(rounded(a), rounded(b), **transposed)

    monkeypatch.setattr(tf.linalg, "matmul", rounding_matmul)
    monkeypatch.setattr(tf, "matmul", rounding_matmul)
    gpus = [tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: gpus)
    a = tf.constant([[1.0 + 2.0**-11 - 2.0**-20]])
    assert tf.linalg.matmul(a, tf.ones([1, 1])) == 1.0


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("size", [257, 2000])
def test_draws(size, batch):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(5, *batch, size)).astype("float32")
    rho = np.resize([0.7, -0.95, 0.999], batch).astype("float32")
    law = tfp_ar1.MultivariateNormalAR1(tf.zeros([size]), 1.3, correlation=rho)
    actual = tf.function(law.scale.matvec)(noise)
    rho = rho.astype("float64")
    expected = noise.astype("float64")
    for t in range(1, size):
        innovation = np.sqrt(1 - rho**2) * expected[..., t]
        expected[..., t] = rho * expected[..., t - 1] + innovation
    np.testing.assert_allclose(actual, 1.3 * expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("reverse", [False, True])
def test_kl_to_a_diagonal_plus_low_rank(reverse):
    rng = np.random.default_rng(0)
    size = 40
    u = rng.normal(size=(size, 2)).astype("float32") / 4
    operator = tf.linalg.LinearOperatorLowRankUpdate(
        tf.linalg.LinearOperatorDiag(tf.fill([size], 1.5), is_positive_definite=True),
        u,
        is_positive_definite=True,
    )
    laws = [
        tfp_ar1.MultivariateNormalAR1(tf.zeros([size]), correlation=0.5),
        tfd.MultivariateNormalLinearOperator(tf.zeros([size]), operator),
    ]
    lags = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    factor = 1.5 * np.eye(size) + u.astype("float64") @ u.T.astype("float64")
    covariances = [0.5**lags, factor @ factor.T]
    if reverse:
        laws, covariances = laws[::-1], covariances[::-1]
    ratio = np.linalg.solve(covariances[1], covariances[0])
    expected = 0.5 * (np.trace(ratio) - size - np.linalg.slogdet(ratio)[1])
    np.testing.assert_allclose(tfd.kl_divergence(*laws), expected, rtol=1e-5)


def test_maximum_mean_discrepancy():
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(30, 3)).astype("float32") for _ in range(2))

    def kernel(a, b):
        squares = np.sum((a[:, None].astype("float64") - b) ** 2, axis=-1)
        return np.exp(-squares / 9)

    actual = objectives.witness(tf.constant(x), tf.constant(x), tf.constant(y))
    expected = kernel(x, x).mean(axis=1) - kernel(x, y).mean(axis=1)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_the_switch_of_the_user_is_left_alone_and_heeded():
    x = tf.constant([[1.0 + 2.0**-11 - 2.0**-20]])
    enabled = tf.config.experimental.tensor_float_32_execution_enabled()
    assert tfp_ar1.recurrence.matmul(x, tf.ones([1, 1])) == x
    assert tf.config.experimental.tensor_float_32_execution_enabled() == enabled
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        graph = tf.function(tfp_ar1.recurrence.matmul).get_concrete_function(x, x).graph
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(enabled)
    assert not any(op.type == "Cast" for op in graph.get_operations())

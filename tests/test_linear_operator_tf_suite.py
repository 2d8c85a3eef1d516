"""TensorFlow's own test suite for operators, run on `LinearOperatorAR1Cholesky`."""

import numpy as np
import oracles
import tensorflow as tf
from tensorflow.python.ops.linalg import linear_operator_test_util

import tfp_ar1


class LinearOperatorAR1CholeskyTest(linear_operator_test_util.SquareLinearOperatorDerivedClassTest):
    @staticmethod
    def skip_these_tests():
        # Both are for self-adjoint operators, which a Cholesky factor is not.
        return ["cholesky", "eigvalsh"]

    @staticmethod
    def dtypes_to_test():
        return [tf.float32, tf.float64]

    def operator_and_matrix(
        self, build_info, dtype, use_placeholder, ensure_self_adjoint_and_pd=False
    ):
        *batch_shape, size, _ = build_info.shape
        rng = np.random.default_rng(0)
        scale = rng.uniform(1.0, 2.0, batch_shape).astype(dtype.as_numpy_dtype)
        correlation = rng.uniform(-0.8, 0.8, batch_shape).astype(dtype.as_numpy_dtype)
        matrix = tf.constant(oracles.ar1_cholesky(scale, correlation, size), dtype)
        if use_placeholder:
            scale, correlation = (
                tf.compat.v1.placeholder_with_default(x, shape=None) for x in (scale, correlation)
            )
        return tfp_ar1.LinearOperatorAR1Cholesky(size, correlation, scale), matrix

    def test_tape_safe(self):
        scale, rho, z = tf.Variable(1.3), tf.Variable([0.3, 0.5]), tf.Variable([0.1])
        self.check_tape_safe(tfp_ar1.LinearOperatorAR1Cholesky(4, rho, scale))
        self.check_tape_safe(tfp_ar1.LinearOperatorAR1Cholesky(4, marginal_scale=scale, fisher_z=z))

    def test_convert_variables_to_tensors(self):
        scale, rho = tf.Variable(1.3), tf.Variable([0.3, 0.5])
        self.check_convert_variables_to_tensors(tfp_ar1.LinearOperatorAR1Cholesky(4, rho, scale))


linear_operator_test_util.add_tests(LinearOperatorAR1CholeskyTest)

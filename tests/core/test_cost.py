"""A guard against a lost O(d): counts of operations and of numbers in graphs, nothing timed."""

import math
import re

import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1

tfd = tfp.distributions

BATCH = 4
SMALL, LARGE = 2**12, 2**16

OPERATIONS = {
    "sample": lambda law, x: law.sample(seed=[1, 2]),
    "log_prob": lambda law, x: law.log_prob(x),
    "kl": lambda law, x: tfd.kl_divergence(law, tfd.MultivariateNormalDiag(tf.zeros_like(x[0]))),
    "kl_from_prior": lambda law, x: tfd.kl_divergence(
        tfd.MultivariateNormalDiag(tf.zeros_like(x[0])), law
    ),
    "entropy": lambda law, x: law.entropy(),
}


def ar1(loc, scale, fisher_z):
    return tfp_ar1.MultivariateNormalAR1(loc, scale, fisher_z=fisher_z)


def diag(loc, scale, fisher_z):
    return tfd.MultivariateNormalDiag(loc, scale[..., tf.newaxis] * tf.ones_like(loc))


def tril(loc, scale, fisher_z):
    identity = tf.eye(loc.shape[-1], batch_shape=[1])
    return tfd.MultivariateNormalTriL(loc, scale[..., tf.newaxis, tf.newaxis] * identity)


def traced(make, operation, gradients, size, batch_of_rho=BATCH, jit_compile=None):
    """The function that does the operation, and the shapes of what it takes."""
    shapes = [[BATCH, size], [batch_of_rho], [batch_of_rho], [BATCH, size]]

    @tf.function(autograph=False, jit_compile=jit_compile)
    def f(loc, scale, fisher_z, x):
        with tf.GradientTape() as tape:
            tape.watch([loc, scale, fisher_z, x])
            value = tf.reduce_sum(tf.square(OPERATIONS[operation](make(loc, scale, fisher_z), x)))
        if not gradients:
            return value
        found = tape.gradient(value, [loc, scale, fisher_z, x])
        return [gradient for gradient in found if gradient is not None]

    return f, shapes


def cost(make, operation, gradients, size, **kwargs):
    """Number of operations, sum and maximum of the sizes of their results, and multiplications."""
    f, shapes = traced(make, operation, gradients, size, **kwargs)
    graph = f.get_concrete_function(*(tf.TensorSpec(shape) for shape in shapes)).graph
    assert not any(op.type in ("While", "StatelessWhile") for op in graph.get_operations())
    sizes, multiplications = [], 0
    for op in graph.get_operations():
        # What only gives another shape to the same numbers costs nothing.
        if op.type in ("Const", "Placeholder", "Reshape", "Identity", "IdentityN"):
            continue
        for output in (output for output in op.outputs if output.dtype.is_floating):
            elements = output.shape.num_elements()
            assert elements is not None, op
            sizes.append(elements)
            if "MatMul" in op.type:
                transposed = op.get_attr("adj_x" if "Batch" in op.type else "transpose_a")
                multiplications += elements * op.inputs[0].shape[-2 if transposed else -1]
    return len(sizes), sum(sizes), max(sizes), multiplications


CASES = [
    pytest.param(operation, gradients, id=f"{operation}{'-gradients' * gradients}")
    for operation in OPERATIONS
    for gradients in (False, True)
]


@pytest.mark.parametrize("batch_of_rho", [1, BATCH])
@pytest.mark.parametrize(("operation", "gradients"), CASES)
def test_cost_is_linear_in_size(operation, gradients, batch_of_rho):
    few, small, _, small_products = cost(
        ar1, operation, gradients, SMALL, batch_of_rho=batch_of_rho
    )
    many, large, _, large_products = cost(
        ar1, operation, gradients, LARGE, batch_of_rho=batch_of_rho
    )
    growth = LARGE / SMALL
    assert large <= 1.01 * growth * small
    assert large_products <= 1.1 * growth * small_products
    # One more level of blocks for each factor of 32.
    assert many <= few + 100


@pytest.mark.parametrize("batch_of_rho", [1, BATCH])
@pytest.mark.parametrize("size", [16, 256, 257, LARGE])
@pytest.mark.parametrize(("operation", "gradients"), CASES)
def test_cost_is_bounded_by_that_of_the_diagonal_normal(operation, gradients, size, batch_of_rho):
    numbers = BATCH * size
    _, total, largest, products = cost(ar1, operation, gradients, size, batch_of_rho=batch_of_rho)
    _, floor, _, _ = cost(diag, operation, gradients, size)
    if operation != "sample":
        assert total <= floor
        assert largest <= numbers
        assert products == 0
        return
    # Doubling writes the path log2(d) times; blocks, once, but they need a Toeplitz matrix for
    # each ρ, made from 32 × 64 numbers.
    assert total <= (1.7 if size >= SMALL else 5.5) * floor
    assert largest <= max(numbers, 32 * 64 * batch_of_rho) + 32 * BATCH
    assert products <= (1 + gradients) * 35 * (numbers + 32 * BATCH) * (size > 256)


@pytest.mark.parametrize("size", [257, 1024, 1025])
def test_the_matrix_of_a_correlation_does_not_outweigh_its_path(size):
    # With what it is made of: twice its numbers.
    _, _, largest, _ = cost(ar1, "sample", True, size)
    assert largest <= 2 * BATCH * size + 32 * BATCH


@pytest.mark.parametrize("batch_of_rho", [1, BATCH])
@pytest.mark.parametrize("operation", ["sample", "log_prob"])
def test_xla_holds_no_array_much_larger_than_the_result(operation, batch_of_rho):
    f, shapes = traced(ar1, operation, True, LARGE, batch_of_rho, jit_compile=True)
    hlo = f.experimental_get_compiler_ir(*(tf.TensorSpec(shape) for shape in shapes))(
        stage="optimized_hlo"
    )
    arrays = [
        math.prod(int(size) for size in shape.split(",") if size)
        for shape in re.findall(r"f32\[([\d,]*)\]", hlo)
    ]
    assert BATCH * LARGE <= max(arrays) <= 2 * BATCH * LARGE


def test_the_guard_notices_a_dense_factor():
    _, small, _, small_products = cost(tril, "sample", True, 64)
    _, large, largest, large_products = cost(tril, "sample", True, 256)
    assert largest >= 256**2
    assert large > 8 * small
    assert large_products > 8 * small_products

"""ARH(1), ANTE(1) and OU: the values, gradients and shapes that AR(1) passes in its own tests.

KLs are in test_kl, conditionals in test_conditional, marginals and fits in test_marginal_and_fit,
the operators in test_linear_operator_markov_cholesky, and TFP's contract in test_family_contract.
"""

import copy
import functools
import itertools

import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from family import (
    ONE_OF_EACH,
    RELATIVES,
    as_dense,
    as_float32,
    cast,
    parameters_of_shapes,
    random_parameters,
)

import tfp_ar1
from tfp_ar1 import (
    MultivariateNormalANTE1,
    MultivariateNormalAR1,
    MultivariateNormalARH1,
    MultivariateNormalOU,
)
from tfp_ar1.distributions.gaussian_markov_chain import GaussianMarkovChain
from tfp_ar1.distributions.kl import log_prob_terms

tfd = tfp.distributions

# From 129 coordinates on, steps that differ are taken in blocks.
SIZES = (1, 2, 3, 64, 150)
SEED = (1, 2)
each_member = pytest.mark.parametrize("name", RELATIVES)
one_of_each = pytest.mark.parametrize("name", ONE_OF_EACH)


def draw(*shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def noise_like(x, seed=SEED):
    """The normal noise beneath a sample with that seed."""
    return MultivariateNormalAR1(tf.zeros_like(x), correlation=0.0).sample(seed=seed)


def log_prob_through_precision(p, x):
    """Up to normalization."""
    w = x - p.loc
    return -0.5 * tf.reduce_sum(w * p.precision().matvec(w), axis=-1)


# --- Values and gradients against dense Gaussians -------------------------------------------


@each_member
@pytest.mark.parametrize("dtype", oracles.DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_values(size, dtype, name):
    case = RELATIVES[name]
    parameters = random_parameters(case, (5,), size)
    p, dense = case.distribution(*cast(parameters, dtype)), as_dense(case, parameters, size)
    value = draw(5, size, dtype=dtype, seed=1)
    variance = np.diagonal(dense.covariance, axis1=-2, axis2=-1)
    quadratic = dense.log_prob(value) - dense.log_prob(dense.mean)
    noise = noise_like(tf.constant(value))
    for method, actual, expected, event_ndims in (
        ("log_prob", p.log_prob(value), dense.log_prob(value), 0),
        ("prob", p.prob(value), np.exp(dense.log_prob(value)), 0),
        ("log_prob_terms", tf.reduce_sum(log_prob_terms(p, value), -1), dense.log_prob(value), 0),
        ("entropy", p.entropy(), dense.entropy(), 0),
        ("mean", p.mean(), dense.mean, 1),
        ("mode", p.mode(), dense.mean, 1),
        ("variance", p.variance(), variance, 1),
        ("stddev", p.stddev(), np.sqrt(variance), 1),
        ("covariance", p.covariance(), dense.covariance, 2),
        ("precision", log_prob_through_precision(p, value), quadratic, 0),
        (
            "sample",
            p.sample(seed=SEED) - p.loc,
            (dense.factor @ np.float64(noise)[..., None])[..., 0],
            1,
        ),
    ):
        assert actual.dtype == dtype
        oracles.assert_close(actual, expected, event_ndims=event_ndims, err_msg=method)


@each_member
def test_log_prob_terms(name):
    """The first n of them sum to the log-density of the first n coordinates."""
    case, size = RELATIVES[name], 6
    parameters = random_parameters(case, (3,), size)
    dense, value = as_dense(case, parameters, size), draw(2, 1, size, seed=1)
    terms = log_prob_terms(case.distribution(*parameters), value)
    assert terms.shape == (2, 3, size)
    sums = np.cumsum(terms, axis=-1)
    for n in range(1, size + 1):
        first = oracles.Dense(dense.mean[..., :n], dense.covariance[..., :n, :n])
        oracles.assert_close(sums[..., n - 1], first.log_prob(value[..., :n]), err_msg=f"{n}")


def test_log_prob_terms_of_independent_normals():
    loc, scale, value = draw(3), np.array([0.5, 1.0, 2.0]), draw(4, 3, seed=1)
    expected = tfd.Normal(loc, scale).log_prob(value)
    for p in (
        tfd.MultivariateNormalDiag(loc, scale),
        tfd.Independent(tfd.Normal(loc, scale), 1),
    ):
        oracles.assert_close(log_prob_terms(p, value), expected, event_ndims=1)
    iid = tfd.Sample(tfd.Normal(np.float64(0.3), 2.0), 3)
    expected = tfd.Normal(np.float64(0.3), 2.0).log_prob(value)
    oracles.assert_close(log_prob_terms(iid, value), expected, event_ndims=1)
    with pytest.raises(TypeError, match="`GaussianMarkovChain` or a vector of independent"):
        log_prob_terms(tfd.MultivariateNormalTriL(loc, np.eye(3)), value)


def weighted_sample(p, noise, weights):
    if isinstance(p, GaussianMarkovChain):
        sample = p.sample(seed=SEED)
    else:
        sample = p.loc + p.scale.matvec(tf.cast(noise, p.dtype))
    return tf.reduce_sum(tf.cast(weights, p.dtype) * sample, axis=-1)


def dense_distribution(case, *parameters):
    mean, covariance = case.moments(*parameters, size=parameters[0].shape[-1])
    return tfd.MultivariateNormalTriL(mean, tf.linalg.cholesky(covariance))


@each_member
@pytest.mark.parametrize("method", ["log_prob", "entropy", "sample"])
@pytest.mark.parametrize("size", SIZES)
def test_gradients(size, method, name):
    """Against automatic differentiation through the dense covariance and its factorization."""
    case = RELATIVES[name]
    parameters = random_parameters(case, (5,), size)
    value, weights = as_float32(draw(5, size, seed=1)), draw(5, size, seed=3)

    def compute(make, *arguments, noise=None):
        *parameters, x = arguments
        p = make(*parameters)
        if method == "sample":
            result = weighted_sample(p, noise, weights)
        else:
            result = p.entropy() if method == "entropy" else p.log_prob(x)
        # Connected to all, also where they have no influence.
        return result + 0 * sum(map(tf.reduce_sum, arguments))

    dense = functools.partial(dense_distribution, case)
    for dtype in oracles.DTYPES:
        given = cast((*parameters, value), dtype)
        actual = oracles.tf_gradients(functools.partial(compute, case.distribution), given)
        # Noise depends on the dtype.
        dense_compute = functools.partial(compute, dense, noise=noise_like(tf.constant(given[-1])))
        expected = oracles.tf_gradients(dense_compute, oracles.as_float64(*given))
        for key, a, e in zip((*case.names, "value"), actual, expected, strict=True):
            assert a.dtype == dtype
            message = f"{key}, {dtype}"
            oracles.assert_close(a, e, "gradient", a.ndim - 1, err_msg=message, at_least=0.1)


@each_member
def test_gradients_by_finite_differences(name):
    """A third witness, which shares no automatic differentiation with the other two."""
    case = RELATIVES[name]
    arguments = [*random_parameters(case, (), 5), draw(5, seed=1)]

    def function(*arguments):
        *parameters, x = map(tf.convert_to_tensor, arguments)
        p = case.distribution(*parameters)
        return p.log_prob(x) + p.entropy() + tf.reduce_sum(tf.sin(p.sample(seed=SEED)))

    gradients = oracles.tf_gradients(function, arguments)
    for i, gradient in enumerate(gradients):
        step = draw(*gradient.shape, seed=i)
        up, down = (
            [a + h * step if i == j else a for j, a in enumerate(arguments)] for h in (1e-5, -1e-5)
        )
        expected = (function(*up) - function(*down)) / 2e-5
        oracles.assert_close(np.sum(gradient * step), expected, "finite difference")


@each_member
@pytest.mark.parametrize("quantity", ["log_prob", "kl to AR1", "kl from AR1"])
def test_second_derivatives(name, quantity):
    case, size = RELATIVES[name], 3
    parameters = random_parameters(case, (), size, seed=2)
    value, loc = draw(size, seed=1), draw(size, seed=2)
    other = oracles.tf_ar1(loc, tf.constant(1.3, "float64"), tf.constant(0.4, "float64"))
    shapes = [np.shape(a) for a in parameters]

    def unpacked(packed):
        parts = tf.split(packed, [int(np.prod(s)) for s in shapes])
        return [tf.reshape(part, s) for part, s in zip(parts, shapes, strict=True)]

    def ours(packed):
        p = case.distribution(*unpacked(packed))
        q = MultivariateNormalAR1(loc, 1.3, correlation=0.4)
        if quantity == "log_prob":
            return p.log_prob(value)
        return tfd.kl_divergence(*((p, q) if quantity == "kl to AR1" else (q, p)))

    def dense(packed):
        p = dense_distribution(case, *unpacked(packed))
        if quantity == "log_prob":
            return p.log_prob(value)
        moments = [(d.loc, d.covariance()) for d in (p, other)]
        return oracles.tf_kl(*(moments if quantity == "kl to AR1" else moments[::-1]))

    def hessian(function):
        with tf.GradientTape() as outer:
            packed = tf.constant(np.concatenate([np.ravel(a) for a in parameters]))
            outer.watch(packed)
            with tf.GradientTape() as inner:
                inner.watch(packed)
                result = function(packed)
            gradient = inner.gradient(result, packed)
        return outer.jacobian(gradient, packed)

    oracles.assert_close(hessian(ours), hessian(dense), "second derivative", event_ndims=2)


# --- Shapes ---------------------------------------------------------------------------------

# Batch shapes of the parameters (of length_scale and times, for OU, the last two) and of a value.
BROADCASTS = [
    ((), (), (), (), ()),
    ((3,), (), (), (), ()),
    ((), (3,), (), (), ()),
    ((), (), (3,), (), ()),
    ((), (), (), (3,), (3,)),
    ((2, 1), (4,), (), (2, 1), ()),
    ((4,), (), (2, 1), (1,), (6, 2, 4)),
    ((1,), (2, 1), (4,), (), (2, 4)),
]


def everything(p, value):
    names = ("entropy", "mean", "mode", "variance", "stddev", "covariance")
    return {name: getattr(p, name)() for name in names} | {
        "log_prob": p.log_prob(value),
        "sample": p.sample([2, 3], seed=SEED),
        "one sample": p.sample(seed=SEED),
        "log_prob_terms": log_prob_terms(p, value),
        "precision": p.precision().matvec(value),
        "marginal": p.marginal(0, None, 2).covariance(),
        "conditional": p.conditional(value, value > 0).mean(),
        "batch_shape": p.batch_shape_tensor(),
        "event_shape": p.event_shape_tensor(),
    }


@one_of_each
def test_broadcasting(name):
    """With shapes that are known, and in one graph that knows none of them."""
    case = RELATIVES[name]
    count = len(case.names)

    @tf.function(input_signature=[tf.TensorSpec(None, "float64")] * (count + 1), autograph=False)
    def everything_unknown(*arguments):
        return everything(case.distribution(*arguments[:-1]), arguments[-1])

    for (*batches, value_shape), size in itertools.product(BROADCASTS, (1, 4)):
        parameters = parameters_of_shapes(case, batches[:count], size)
        value = draw(*value_shape, size, seed=5)
        dense = as_dense(case, parameters, size)
        p = case.distribution(*parameters)
        batch_shape = dense.batch_shape
        assert p.batch_shape == batch_shape
        assert p.event_shape == (size,)
        mean = np.broadcast_to(dense.mean, (*batch_shape, size))
        covariance = np.broadcast_to(dense.covariance, (*batch_shape, size, size))
        variance = np.diagonal(covariance, axis1=-2, axis2=-1)
        known = everything(p, tf.constant(value))
        for kind, actual in (
            ("known", known),
            ("unknown", everything_unknown(*parameters, value)),
        ):
            message = f"{batches}, {value_shape}, {size}, {kind}"
            for key, expected, event_ndims in (
                ("log_prob", dense.log_prob(value), 0),
                ("entropy", dense.entropy(), 0),
                ("mean", mean, 1),
                ("mode", mean, 1),
                ("variance", variance, 1),
                ("stddev", np.sqrt(variance), 1),
                ("covariance", covariance, 2),
                ("marginal", covariance[..., ::2, ::2], 2),
                ("sample", known["sample"], 1),
                ("log_prob_terms", known["log_prob_terms"], 1),
                ("precision", known["precision"], 1),
                ("conditional", known["conditional"], 1),
            ):
                oracles.assert_close(
                    actual[key], expected, event_ndims=event_ndims, err_msg=f"{message}: {key}"
                )
            assert actual["sample"].shape == (2, 3, *batch_shape, size)
            assert actual["one sample"].shape == (*batch_shape, size)
            assert tuple(actual["batch_shape"]) == batch_shape
            assert tuple(actual["event_shape"]) == (size,)


@each_member
def test_gradients_where_one_parameter_alone_has_a_batch(name):
    """Each gradient has the shape of its parameter, summed over the batch of the others."""
    case, size = RELATIVES[name], 5
    value = tf.constant(draw(3, size, seed=6))
    count = len(case.names)
    for batched in range(count):
        batches = [(3,) if i == batched else () for i in range(count)]
        parameters = [tf.constant(a) for a in parameters_of_shapes(case, batches, size)]

        def dense_log_prob(parameters):
            mean, covariance = case.moments(*parameters, size=size)
            return tfd.MultivariateNormalTriL(mean, tf.linalg.cholesky(covariance)).log_prob(value)

        def log_prob(parameters):
            return case.distribution(*parameters).log_prob(value)

        actual, expected = (
            tfp.math.value_and_gradient(lambda *a, f=f: tf.reduce_sum(f(a)), parameters)[1]
            for f in (log_prob, dense_log_prob)
        )
        for parameter, one, other in zip(case.names, actual, expected, strict=True):
            message = f"{parameter}, batch of {case.names[batched]}"
            oracles.assert_close(one, other, "gradient", err_msg=message)


@one_of_each
def test_eager_function_and_xla_agree(name):
    """test_recurrence has the same for a size in blocks."""
    case, size = RELATIVES[name], 5
    arguments = [tf.constant(a) for a in (*random_parameters(case, (3,), size), draw(3, size))]

    def values_and_gradients(*arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            *parameters, value = arguments
            p = case.distribution(*parameters)
            # XLA has another generator, so noise takes the place of a sample.
            results = (p.log_prob(value), p.entropy(), p.scale.matvec(value))
            total = tf.add_n([tf.reduce_sum(tf.sin(r)) for r in results])
        # XLA's samples are what its own noise makes.
        sample = p.sample(seed=SEED) - p.loc - p.scale.matvec(noise_like(p.loc))
        return (*results, 1 + sample), tape.gradient(total, arguments)

    eager = values_and_gradients(*arguments)
    for options in ({}, {"jit_compile": True}):
        graph = tf.function(values_and_gradients, autograph=False, **options)(*arguments)
        for what, ours, theirs in zip(("same computation", "gradient"), eager, graph, strict=True):
            for e, g in zip(ours, theirs, strict=True):
                oracles.assert_close(g, e, what, e.shape.rank - 1)


# --- Samples --------------------------------------------------------------------------------


@each_member
@pytest.mark.parametrize(("size", "num_samples"), [(2, 20_000), (150, 4000)])
def test_moments_of_samples(size, num_samples, name):
    """The mean and every covariance within 6.5 standard errors of a normal sample's."""
    case = RELATIVES[name]
    parameters = random_parameters(case, (2,), size)
    p, dense = case.distribution(*cast(parameters, "float32")), as_dense(case, parameters, size)
    samples = p.sample(num_samples, seed=(4, 5)).numpy().astype("float64")
    variance = np.diagonal(dense.covariance, axis1=-2, axis2=-1)
    error = np.abs(samples.mean(axis=0) - dense.mean) / np.sqrt(variance / num_samples)
    assert np.max(error) < 6.5
    centred = np.moveaxis(samples - dense.mean, 0, 1)
    covariance = centred.swapaxes(-1, -2) @ centred / num_samples
    standard_error = np.sqrt(
        (variance[:, :, None] * variance[:, None, :] + dense.covariance**2) / num_samples
    )
    assert np.max(np.abs(covariance - dense.covariance) / standard_error) < 6.5


# --- The same as AR1, and as a Gaussian process ---------------------------------------------


def as_ar1(kind, loc, scale, u):
    """The member that equals AR1 with these parameters, `[...]` but for `loc`."""
    d = loc.shape[-1]
    if kind == "ARH1":
        return MultivariateNormalARH1(loc, along(scale, d), fisher_z=u)
    return MultivariateNormalANTE1(loc, along(scale, d), fisher_z=along(u, d - 1))


def along(x, size):
    return np.repeat(np.asarray(x)[..., np.newaxis], size, axis=-1)


@pytest.mark.parametrize("kind", ["ARH1", "ANTE1"])
@pytest.mark.parametrize("dtype", oracles.DTYPES)
@pytest.mark.parametrize("size", [1, 2, 100, 3000])
def test_with_equal_parameters_is_ar1(size, dtype, kind):
    """To rounding, relative to the largest entry of a path; at correlations next to ±1 too."""
    u = np.array([8.0, -8.0, 0.5, 0.0, -2.0], dtype)
    loc, scale = draw(5, size, dtype=dtype), np.array([0.7, 1.0, 1.3, 2.0, 0.5], dtype)
    p, q = as_ar1(kind, loc, scale, u), MultivariateNormalAR1(loc, scale, fisher_z=u)
    observed = np.random.default_rng(7).random(size) < 0.3
    # A path of its own, of which the log-density is no large number.
    x = q.sample(seed=SEED).numpy() if dtype == "float64" else loc + np.float32(scale)[:, None]
    standard = tfd.MultivariateNormalDiag(tf.zeros(size, dtype))
    tolerance = {"float32": 2e-5, "float64": 1e-11}[dtype]

    def statistics(p):
        conditional = p.conditional(x, observed)
        return {
            "sample": (p.sample(3, seed=SEED), 1),
            "log_prob": (p.log_prob(x), 0),
            "entropy": (p.entropy(), 0),
            "stddev": (p.stddev(), 1),
            "precision": (p.precision().diag_part(), 1),
            "kl to": (p.kl_divergence(standard), 0),
            "kl from": (standard.kl_divergence(p), 0),
            "conditional mean": (conditional.mean(), 1),
            "conditional stddev": (conditional.stddev(), 1),
            "observed_log_prob": (conditional.observed_log_prob(), 0),
        }

    expected = statistics(q)
    for key, (actual, event_ndims) in statistics(p).items():
        desired = np.float64(expected[key][0])
        largest = np.abs(desired)
        if event_ndims:
            largest = np.max(largest, axis=-1, keepdims=True)
        else:
            largest += np.sqrt(size)  # sums of terms of order one, which may cancel
        assert actual.shape == desired.shape
        assert np.max(np.abs(actual - desired) / (largest + 1e-30)) < tolerance, key
    assert np.all(np.abs(tfd.kl_divergence(p, q)) < 1e-5 * (size if dtype == "float32" else 1e-6))
    assert np.all(np.abs(tfd.kl_divergence(q, p)) < 1e-5 * (size if dtype == "float32" else 1e-6))


def test_ante1_with_equal_correlations_is_arh1():
    loc, scale, rho = draw(3, 9), np.exp(draw(3, 9, seed=1)), np.array([0.9, 0.0, -0.5])
    x = draw(3, 9, seed=2)
    p = MultivariateNormalANTE1(loc, scale, correlation=along(rho, 8))
    q = MultivariateNormalARH1(loc, scale, correlation=rho)
    oracles.assert_close(p.log_prob(x), q.log_prob(x), "same computation")
    oracles.assert_close(p.sample(2, seed=SEED), q.sample(2, seed=SEED), "same computation", 1)
    oracles.assert_close(p.covariance(), q.covariance(), "same computation", 2)


def test_arh1_without_correlation_is_diag():
    loc, scale, x = draw(3, 9), np.exp(draw(3, 9, seed=1)), draw(3, 9, seed=2)
    p, q = MultivariateNormalARH1(loc, scale, fisher_z=0.0), tfd.MultivariateNormalDiag(loc, scale)
    oracles.assert_close(p.log_prob(x), q.log_prob(x), "same computation")
    oracles.assert_close(p.entropy(), q.entropy(), "same computation")
    sample = p.sample(2, seed=SEED)
    oracles.assert_close(sample, loc + scale * noise_like([loc] * 2), "same computation", 1)


@pytest.mark.parametrize("size", [1, 2, 60, 200])
def test_ou_at_equal_steps_is_ar1(size):
    scale, length_scale = np.array([0.7, 2.0]), np.array([0.4, 30.0])
    loc, x, step = draw(2, size), draw(2, size, seed=1), 0.25  # whose multiples are exact
    p = MultivariateNormalOU(loc, scale, length_scale, 3.0 + step * np.arange(size))
    q = MultivariateNormalAR1(loc, scale, correlation=np.exp(-step / length_scale))
    oracles.assert_close(p.log_prob(x), q.log_prob(x), dtype="float64")
    oracles.assert_close(p.entropy(), q.entropy())
    oracles.assert_close(p.sample(3, seed=SEED), q.sample(3, seed=SEED), event_ndims=1)
    assert np.all(np.abs(tfd.kl_divergence(p, q)) < 1e-12 * size)


class TestGaussianProcess:
    """TFP's, with a Matérn-1/2 kernel, at irregular times that differ between members."""

    amplitude, length_scale = np.array([1.7, 0.6, 1.0]), np.array([0.3, 2.0, 20.0])

    def times(self, size, seed=0):
        return np.sort(np.random.default_rng(seed).uniform(0.0, 10.0, (3, size)), axis=-1)

    def process(self, times, cls=tfd.GaussianProcess, **options):
        kernel = tfp.math.psd_kernels.MaternOneHalf(self.amplitude, self.length_scale)
        return cls(
            kernel,
            index_points=times[..., np.newaxis],
            mean_fn=lambda x: tf.sin(x[..., 0]),
            jitter=0.0,
            **options,
        )

    def ou(self, times):
        return MultivariateNormalOU(np.sin(times), self.amplitude, self.length_scale, times)

    @pytest.mark.parametrize("size", [1, 2, 40])
    def test_moments_and_log_prob(self, size):
        times, value = self.times(size), draw(3, size)
        p, process = self.ou(times), self.process(times)
        oracles.assert_close(p.mean(), process.mean(), event_ndims=1)
        oracles.assert_close(p.stddev(), process.stddev(), event_ndims=1)
        oracles.assert_close(p.covariance(), process.covariance(), event_ndims=2)
        oracles.assert_close(p.log_prob(value), np.reshape(process.log_prob(value), [3]))
        oracles.assert_close(p.entropy(), process.get_marginal_distribution().entropy())

    def test_conditional_is_regression(self):
        """Observations and predictions at times that no two members share."""
        times, value = self.times(20), draw(3, 20)
        observed = np.arange(20) % 3 == 1
        conditional = self.ou(times).conditional(np.where(observed, value, np.nan), observed)
        regression = self.process(
            times[:, ~observed],
            tfd.GaussianProcessRegressionModel,
            observation_index_points=times[:, observed, np.newaxis],
            observations=value[:, observed],
        )
        mean, stddev = conditional.mean().numpy(), conditional.stddev().numpy()
        oracles.assert_close(mean[:, ~observed], regression.mean(), event_ndims=1)
        oracles.assert_close(stddev[:, ~observed], regression.stddev(), event_ndims=1)
        marginal = self.process(times[:, observed]).log_prob(value[:, observed])
        oracles.assert_close(conditional.observed_log_prob(), marginal)


# --- Correlations next to one, in decimals --------------------------------------------------

U = np.float32([10.0, -10.0, 0.0, 9.5, 1e-3])
SCALES = np.float32([1.3, 0.7, 2.0, 1.0, 0.1, 1.1])
OU_TIMES = np.float32([0.0, 1e-4, 2e-4, 1.0, 3.0, 500.0])
# `value` is a path that these correlations make likely, and one that they do not.
VALUES = {"smooth": np.float32([1.3, 0.7, -2.0, 0.5, 0.05, 1.0]), "ragged": draw(6, dtype="f4")}


def exact_and_arguments(kind):
    """A chain in decimals, and for ours the names of the parameters and their values."""
    mean = (0.0,) * 6
    if kind == "ANTE1":
        return oracles.ExactChain(mean, SCALES, U), {"scale_diag": SCALES, "fisher_z": U}
    if kind == "ARH1":
        exact = oracles.ExactChain(mean, SCALES, (U[1],) * 5)
        return exact, {"scale_diag": SCALES, "fisher_z": U[1]}
    scale, length_scale = np.float32(1.3), np.float32(5.0)
    exact = oracles.ExactChain.ou(mean, scale, length_scale, OU_TIMES)
    given = {"marginal_scale": scale, "length_scale": length_scale, "times": OU_TIMES}
    return exact, given


@pytest.mark.parametrize("dtype", oracles.DTYPES)
@pytest.mark.parametrize("kind", ["ANTE1", "ARH1", "OU"])
def test_values_next_to_one(kind, dtype):
    exact, given = exact_and_arguments(kind)
    cls = getattr(tfp_ar1, f"MultivariateNormal{kind}")
    p = cls(tf.zeros(6, dtype), **{k: tf.constant(v, dtype) for k, v in given.items()})
    standard = tfd.MultivariateNormalDiag(tf.zeros(6, dtype))
    exact_standard = oracles.Exact((0.0,) * 6, 1.0, 0.0)
    tolerance = {"float32": 3e-5, "float64": 1e-12}[dtype]
    close = functools.partial(np.testing.assert_allclose, rtol=tolerance)
    close(p.entropy(), exact.entropy())
    close(p.kl_divergence(standard), exact.kl(exact_standard))
    close(standard.kl_divergence(p), exact_standard.kl(exact))
    for key, value in VALUES.items():
        close(p.log_prob(value.astype(dtype)), exact.log_prob(value), err_msg=key)


@pytest.mark.parametrize("dtype", oracles.DTYPES)
def test_gradients_next_to_one(dtype):
    """Of each entry of ANTE1's parameters, the correlation of exactly 0 among them."""
    exact, given = exact_and_arguments("ANTE1")
    exact_other = oracles.ExactChain(tuple(draw(6)), SCALES[::-1], U[::-1])
    arguments = [tf.constant(given[k], dtype) for k in ("scale_diag", "fisher_z")]
    other = MultivariateNormalANTE1(
        tf.constant(draw(6), dtype),
        tf.constant(SCALES[::-1], dtype),
        fisher_z=tf.constant(U[::-1], dtype),
    )
    value = VALUES["smooth"]

    def p(scale, u):
        return MultivariateNormalANTE1(tf.zeros(6, dtype), scale, fisher_z=u)

    for key, ours, theirs in (
        (
            "log_prob",
            lambda *a: p(*a).log_prob(value.astype(dtype)),
            lambda *at: exact.log_prob_derivative(value, *at),
        ),
        (
            "kl to",
            lambda *a: p(*a).kl_divergence(other),
            lambda *at: exact.kl_derivative(exact_other, *at),
        ),
        (
            "kl from",
            lambda *a: other.kl_divergence(p(*a)),
            lambda *at: exact_other.kl_derivative_other(exact, *at),
        ),
    ):
        actual = oracles.tf_gradients(ours, arguments)
        for field, gradient in zip(("scale", "fisher_z"), actual, strict=True):
            expected = [theirs(field, i) for i in range(gradient.size)]
            message = f"{key}, {field}"
            oracles.assert_close(gradient, expected, "gradient", 1, err_msg=message)


@pytest.mark.parametrize("gap", [1e-7, 1.0, 50.0, 500.0])
def test_ou_has_finite_gradients_at_any_distance(gap):
    """At the last, the correlation underflows to 0."""
    times = tf.constant([0.0, 1.0 * gap, 2.0 * gap, 4.0 * gap])
    ones = tf.ones(4)

    def log_prob(length_scale, times):
        p = MultivariateNormalOU(tf.zeros(4), 1.0, length_scale, times)
        observed = [True, False, False, True]
        return p.log_prob(ones) + tf.reduce_sum(p.conditional(ones, observed).mean())

    for gradient in oracles.tf_gradients(log_prob, [tf.constant(1.0), times]):
        assert np.all(np.isfinite(gradient))


# --- Construction ---------------------------------------------------------------------------

# What is valid, by class: for three coordinates.
VALID = {
    MultivariateNormalARH1: {"loc": [0.0, 1.0, 2.0], "scale_diag": [1.0, 2.0, 3.0]},
    MultivariateNormalANTE1: {"loc": [0.0, 1.0, 2.0], "scale_diag": [1.0, 2.0, 3.0]},
    MultivariateNormalOU: {
        "loc": [0.0, 1.0, 2.0],
        "marginal_scale": 2.0,
        "length_scale": 0.5,
        "times": [0.0, 1.0, 5.0],
    },
}
CORRELATION = {MultivariateNormalARH1: 0.5, MultivariateNormalANTE1: [0.5, -0.5]}
each_class = pytest.mark.parametrize("cls", VALID)
each_correlated = pytest.mark.parametrize("cls", CORRELATION)


def valid(cls):
    return VALID[cls] | ({"correlation": CORRELATION[cls]} if cls in CORRELATION else {})


class TestConstruction:
    @each_class
    def test_properties_are_what_was_passed(self, cls):
        given = valid(cls)
        p = cls(**given)
        assert p.dtype == tf.float32
        assert p.event_shape == [3]
        assert p.batch_shape == []
        assert isinstance(p, tfd.MultivariateNormalLinearOperator)
        for name, value in given.items():
            np.testing.assert_array_equal(getattr(p, name), np.float32(value))
        if cls in CORRELATION:
            assert p.fisher_z is None
            np.testing.assert_array_equal(p.correlation_parameter(), CORRELATION[cls])
            respelled = cls(**VALID[cls], fisher_z=np.arctanh(CORRELATION[cls]).astype("f4"))
            assert respelled.correlation is None
            oracles.assert_close(respelled.covariance(), p.covariance(), event_ndims=2)

    @pytest.mark.parametrize(
        ("cls", "expected"),
        [
            (MultivariateNormalARH1, [[1, 1, 0.75], [1, 4, 3], [0.75, 3, 9]]),
            (MultivariateNormalANTE1, [[1, 1, -0.75], [1, 4, -3], [-0.75, -3, 9]]),
            (
                MultivariateNormalOU,
                4 * np.exp(-2.0 * np.array([[0, 1, 5], [1, 0, 4], [5, 4, 0]])),
            ),
        ],
    )
    def test_covariance_by_hand(self, cls, expected):
        oracles.assert_close(cls(**valid(cls)).covariance(), expected, event_ndims=2)

    @each_correlated
    def test_neither_or_both_correlations(self, cls):
        with pytest.raises(ValueError, match=r"correlation.*fisher_z.*got neither"):
            cls(**VALID[cls])
        with pytest.raises(ValueError, match=r"correlation.*fisher_z.*got both"):
            cls(**valid(cls), fisher_z=CORRELATION[cls])

    @each_class
    def test_dtypes(self, cls):
        with pytest.raises(TypeError, match=r"dtype|float"):
            cls(**{k: tf.cast(v, tf.int32) for k, v in valid(cls).items()})
        for name in valid(cls):
            mixed = {
                k: tf.constant(v, "float32" if k == name else "float64")
                for k, v in valid(cls).items()
            }
            with pytest.raises(TypeError, match=rf"dtype.*`{name}` float32"):
                cls(**mixed)

    @pytest.mark.parametrize(
        ("cls", "name", "value", "message"),
        [
            *((cls, "loc", [0.0, 1.0], "`loc` must have 3 coordinates") for cls in VALID),
            *((cls, "scale_diag", None, "Missing required `scale_diag`") for cls in CORRELATION),
            *((cls, "scale_diag", 1.0, "`scale_diag` must have at least") for cls in CORRELATION),
            *(
                (cls, "scale_diag", [1.0], r"must have (1 coord|one ent).*`scale_diag`")
                for cls in CORRELATION
            ),
            (MultivariateNormalANTE1, "correlation", 0.5, r"`correlation` .* 2; got shape \(\)"),
            (MultivariateNormalANTE1, "correlation", [0.5], r"`correlation` .* 2; got shape \(1,"),
            (MultivariateNormalANTE1, "correlation", [0.5] * 3, r" 2; got shape \(3,\)"),
            (MultivariateNormalOU, "times", 1.0, "`times` must have at least one dimension"),
            (MultivariateNormalOU, "times", [0.0, 1.0], "`loc` must have 2 coord.*as `times` has"),
            (MultivariateNormalOU, "times", [[0.0], [1.0], [5.0]], r"by `times\[\.\.\., 0\]`"),
            *(
                (MultivariateNormalOU, name, None, f"Missing required `{name}`")
                for name in ("marginal_scale", "length_scale", "times")
            ),
            *(
                (MultivariateNormalOU, "times", times, "`times` must be strictly increasing.*Sort")
                for times in (
                    [0.0, 2.0, 1.0],
                    np.float32([[0.0, 1.0, 2.0], [0.0, 1.0, 1.0]]),
                    tf.constant([0.0, np.nan, 1.0]),
                    np.float32([1.7e9, 1.7e9 + 1, 1.7e9 + 2]),
                )
            ),
        ],
    )
    def test_shapes_that_do_not_fit(self, cls, name, value, message):
        with pytest.raises(ValueError, match=message):
            cls(**(valid(cls) | {name: value}))

    def test_ante1_by_fisher_z_of_the_wrong_size(self):
        with pytest.raises(ValueError, match=r"`fisher_z` .* 2; got shape \(3,\)"):
            MultivariateNormalANTE1(tf.zeros(3), tf.ones(3), fisher_z=tf.zeros(3))

    @each_class
    def test_no_coordinates(self, cls):
        empty = {k: np.zeros([0], np.float32) if np.ndim(v) else v for k, v in valid(cls).items()}
        p, x = cls(**empty), np.zeros([2, 0], np.float32)
        standard = tfd.MultivariateNormalDiag(tf.zeros([0]))
        assert p.event_shape == [0]
        assert p.sample(2, seed=SEED).shape == p.conditional(x, x == 0).sample().shape == [2, 0]
        for result in (p.log_prob(x), p.marginal(step=2).log_prob(x)):
            np.testing.assert_array_equal(result, [0, 0])
        shifted = MultivariateNormalAR1(tf.zeros([0]), 3.0, 0.5)
        for q in (standard, shifted):
            assert tfd.kl_divergence(p, q) == tfd.kl_divergence(q, p) == 0
        assert p.entropy() == p.precision().log_abs_determinant() == 0
        assert p.covariance().shape == p.precision().to_dense().shape == [0, 0]

        def results(*values):
            p = cls(**dict(zip(empty, values, strict=True)))
            return p.log_prob(x[0]) + p.entropy() + p.kl_divergence(shifted)

        for gradient in oracles.tf_gradients(results, [tf.constant(v) for v in empty.values()]):
            np.testing.assert_array_equal(gradient, np.zeros_like(gradient))

    @each_class
    def test_one_coordinate(self, cls):
        keep = {"correlation": 0 if cls is MultivariateNormalANTE1 else None}
        given = {
            k: np.float32(v)[: keep.get(k, 1)] if np.ndim(v) else v for k, v in valid(cls).items()
        }
        p = cls(**given)
        assert p.sample(seed=SEED).shape == [1]
        expected = tfd.Normal(0.0, 2.0 if cls is MultivariateNormalOU else 1.0)
        oracles.assert_close(p.log_prob([0.3]), expected.log_prob(0.3))
        oracles.assert_close(p.entropy(), expected.entropy())

    @each_class
    @pytest.mark.parametrize("validate_args", [True, False])
    def test_value_of_the_wrong_size(self, cls, validate_args):
        p = cls(**valid(cls), validate_args=validate_args)
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
            p.log_prob(tf.zeros(4))

    @pytest.mark.parametrize(
        ("cls", "name", "bad"),
        [
            (MultivariateNormalARH1, "scale_diag", [1.0, 0.0, 1.0]),
            (MultivariateNormalARH1, "correlation", 1.0),
            (MultivariateNormalARH1, "correlation", np.nan),
            (MultivariateNormalANTE1, "scale_diag", [1.0, 2.0, -1.0]),
            (MultivariateNormalANTE1, "correlation", [0.5, -1.0]),
            (MultivariateNormalANTE1, "correlation", [1.5, 0.0]),
            (MultivariateNormalOU, "marginal_scale", 0.0),
            (MultivariateNormalOU, "length_scale", -1.0),
            (MultivariateNormalOU, "times", [0.0, 1.0, 1.0]),
            (MultivariateNormalOU, "times", [0.0, 2.0, 1.0]),
            (MultivariateNormalOU, "times", [0.0, np.nan, 1.0]),
        ],
    )
    def test_validate_args(self, cls, name, bad):
        given, error = valid(cls), (ValueError, tf.errors.InvalidArgumentError)
        good, bad = np.float32(given[name]), np.float32(bad)
        with pytest.raises(error, match=name):
            cls(**(given | {name: bad}), validate_args=True)
        # Inside a graph whose inputs it does not know, the same when it runs.
        function = tf.function(
            lambda x: cls(**(given | {name: x}), validate_args=True).entropy(), autograph=False
        )
        with pytest.raises(error, match=name):
            function(tf.constant(bad))
        function(tf.constant(good))
        # A variable is checked again whenever it is used.
        variable = tf.Variable(good)
        p = cls(**(given | {name: variable}), validate_args=True)
        p.sample(seed=SEED)
        variable.assign(bad)
        for use in (lambda: p.sample(seed=SEED), lambda: p.log_prob(tf.zeros(3)), p.entropy):
            with pytest.raises(error, match=name):
                use()
        if name != "times":
            cls(**(given | {name: bad}))  # is not checked unless asked

    @each_correlated
    def test_validate_args_of_fisher_z(self, cls):
        bad = np.full_like(np.float32(CORRELATION[cls]), np.inf)
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="fisher_z"):
            cls(**VALID[cls], fisher_z=bad, validate_args=True)


class TestLoc:
    """It broadcasts against the coordinates, and may be missing, as in TFP."""

    @each_class
    @pytest.mark.parametrize("loc", [None, 0.5, "variable"])
    def test_all_coordinates_share_it(self, cls, loc):
        loc = tf.Variable([[1.0], [2.0]]) if loc == "variable" else loc
        p = cls(**(valid(cls) | {"loc": loc}))
        assert (p.loc is None) == (loc is None)
        batch = () if loc is None else np.shape(loc)[:-1]
        full = np.broadcast_to(0.0 if loc is None else loc, (*batch, 3))
        dense = tfd.MultivariateNormalFullCovariance(np.float32(full), p.covariance())
        x, observed = np.float32([0.3, -1.0, 2.0]), [True, False, True]
        assert p.batch_shape == batch
        assert p.event_shape == [3]
        for method in ("mean", "mode", "stddev", "entropy"):
            oracles.assert_close(getattr(p, method)(), getattr(dense, method)())
        oracles.assert_close(p.log_prob(x), dense.log_prob(x))
        y, log_prob = p.experimental_sample_and_log_prob(4, seed=SEED)
        oracles.assert_close(y - full, p.sample(4, seed=SEED) - full)
        oracles.assert_close(log_prob, dense.log_prob(y))
        # As with all coordinates written down: the pairs of equal ones, and those without any.
        written = cls(**(valid(cls) | {"loc": np.float32(full)}))
        others = (written, p, dense, tfd.MultivariateNormalDiag(None, tf.ones(3)))
        for q in (*others, tfd.Sample(tfd.Normal(0.5, 1.0), 3)):
            for pair, expected in (((p, q), (written, q)), ((q, p), (q, written))):
                oracles.assert_close(tfd.kl_divergence(*pair), tfd.kl_divergence(*expected))
        for part in (lambda p: p[..., tf.newaxis], lambda p: p[0] if batch else p, copy.copy):
            oracles.assert_close(part(p).log_prob(x), part(written).log_prob(x))
            assert part(p).batch_shape == part(written).batch_shape
        for law in (lambda p: p.marginal(1), lambda p: p.marginal(step=2)):
            oracles.assert_close(law(p).log_prob(x[:2]), law(written).log_prob(x[:2]))
        oracles.assert_close(
            p.conditional(x, observed).mean(), written.conditional(x, observed).mean()
        )
        oracles.assert_close(tf.function(lambda p: p.kl_divergence(written))(p), np.zeros(batch))

    def test_of_a_size_known_when_the_graph_runs(self):
        @tf.function(input_signature=[tf.TensorSpec([None]), tf.TensorSpec([None])])
        def kl(loc, scale):
            p = MultivariateNormalARH1(loc, scale, 0.5)
            return p.kl_divergence(MultivariateNormalARH1(None, scale, 0.5))

        full = MultivariateNormalARH1(tf.fill([3], 2.0), [1.0, 2.0, 3.0], 0.5)
        expected = full.kl_divergence(full.copy(loc=tf.zeros(3)))
        for loc in ([2.0], [2.0, 2.0, 2.0]):
            oracles.assert_close(kl(tf.constant(loc), tf.constant([1.0, 2.0, 3.0])), expected)

    @pytest.mark.parametrize("loc", [None, 0.5])
    def test_ar1_takes_its_size_from_it(self, loc):
        with pytest.raises(ValueError, match=r"`loc` must have .* write `loc=tf.fill\(\[d\], val"):
            MultivariateNormalAR1(loc, 1.0, 0.5)


@pytest.mark.parametrize(
    "method", ["cdf", "log_cdf", "log_survival_function", "quantile", "survival_function"]
)
def test_what_no_member_has(method):
    p = MultivariateNormalOU(tf.zeros([2, 3]), 1.0, 2.0, [0.0, 1.0, 5.0])
    with pytest.raises(NotImplementedError, match=f"^{method} is not .*: MultivariateNormalOU$"):
        getattr(p, method)(tf.fill([3], 0.5))
    mixture = tfd.MixtureSameFamily(tfd.Categorical([0.0, 0.0]), p)
    with pytest.raises(NotImplementedError):
        getattr(mixture, method)(tf.fill([3], 0.5))


@pytest.mark.slow
@one_of_each
def test_a_hundred_thousand_coordinates(name):
    """A dense factor takes 40 GB."""
    case, size = RELATIVES[name], 100_000
    p = case.distribution(*cast(random_parameters(case, (), size), "float32"))
    x = p.sample(seed=SEED)
    standard = tfd.MultivariateNormalDiag(tf.zeros(size))
    for result in (p.log_prob(x), p.entropy(), p.kl_divergence(standard), p.stddev()):
        assert np.all(np.isfinite(result))
    # The mean square of the whitened path is 1 to its standard error, √(2 / d) = 0.0045.
    assert abs(np.mean(p.scale.solvevec(x - p.loc) ** 2) - 1) < 0.03

"""Likelihoods that are not Gaussian: against dense matrices by Newton's method, and quadrature."""

import derivatives
import family
import numpy as np
import pytest
import scipy.special
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1
from tfp_ar1.inference import laplace_approximation, natural_gradient_vi

tfd = tfp.distributions


def covariance(scale, u, size):
    i = np.arange(size)
    return scale**2 * np.tanh(u) ** np.abs(i[:, None] - i)


def chain(level, scale, u, size, dtype=tf.float64):
    ones = tf.ones([size], dtype)
    level, scale, u = (tf.convert_to_tensor(x, dtype) for x in (level, scale, u))
    return tfp_ar1.MultivariateNormalAR1(level[..., None] * ones, scale, fisher_z=u)


# By name: ours, of x, y and a parameter θ that is about 1; and its value, slope and curvature by
# hand. Noise of standard deviation 0.4 θ, 3 θ negative trials.
def poisson(x, y, theta):
    with np.errstate(over="ignore"):
        rate = theta * np.exp(x)
    return y * np.log(rate) - rate - scipy.special.gammaln(y + 1), y - rate, rate


def bernoulli(x, y, theta):
    p = scipy.special.expit(theta * x)
    return y * theta * x - np.logaddexp(0, theta * x), theta * (y - p), theta**2 * p * (1 - p)


def negative_binomial(x, y, theta):
    n, p = 3 * theta, scipy.special.expit(x)
    value = y * x - (n + y) * np.logaddexp(0, x)
    value += scipy.special.gammaln(n + y) - scipy.special.gammaln(n) - scipy.special.gammaln(y + 1)
    return value, y - (n + y) * p, (n + y) * p * (1 - p)


def student_t(x, y, theta):
    nu, scale, e = 4.0, 0.4 * theta, y - x
    constant = scipy.special.gammaln(2.5) - scipy.special.gammaln(2) - 0.5 * np.log(nu * np.pi)
    d = nu * scale**2 + e**2
    value = constant - np.log(scale) - 2.5 * np.log1p(e**2 / (nu * scale**2))
    return value, 5 * e / d, 5 * (nu * scale**2 - e**2) / d**2


def normal(x, y, theta):
    precision = (0.4 * theta) ** -2
    value = 0.5 * np.log(precision / (2 * np.pi)) - 0.5 * precision * (y - x) ** 2
    return value, precision * (y - x), precision * np.ones_like(x)


LIKELIHOODS = {
    poisson: lambda x, t: tfd.Poisson(log_rate=x + tf.math.log(t)),
    bernoulli: lambda x, t: tfd.Bernoulli(logits=t * x),
    negative_binomial: lambda x, t: tfd.NegativeBinomial(3 * t, logits=x),
    student_t: lambda x, t: tfd.StudentT(np.float64(4.0), x, 0.4 * t),
    normal: lambda x, t: tfd.Normal(x, 0.4 * t),
}
SIZE = 10
OBSERVED = np.arange(SIZE) != 3


def data():
    """A path seen through each of the likelihoods, `[5, d]`; the Student t has outliers."""
    rng = np.random.default_rng(0)
    x = np.linalg.cholesky(covariance(1.3, 0.9, SIZE)) @ rng.normal(size=SIZE)
    counts = rng.poisson(np.exp(x)).astype(float)
    y = x + 0.4 * rng.standard_t(4, size=SIZE)
    outliers = y + np.array([0, 0, 0, 0, 6.0, 0, 0, -4.0, 5.0, 0])
    return np.stack([counts, rng.integers(0, 2, SIZE).astype(float), counts, outliers, y])


Y = data()


def log_likelihood(y, theta):
    """All of them, each at its own member of the batch."""

    def function(x):
        x = tf.unstack(x, axis=-2)
        rows = zip(LIKELIHOODS.values(), x, y, tf.unstack(theta), strict=True)
        return tf.stack([make(x, t).log_prob(y) for make, x, y, t in rows], axis=-2)

    return function


def newton(likelihood, prior_mean, prior_covariance, y, theta, observed=None):
    """The mode, Laplace's log-evidence and the covariance, by dense matrices."""
    observed = np.ones(y.shape, bool) if observed is None else observed
    precision, x = np.linalg.inv(prior_covariance), prior_mean.astype(float)

    def joint(x):
        terms = [np.where(observed, z, 0.0) for z in likelihood(x, y, theta)]
        return terms[0].sum() - 0.5 * (x - prior_mean) @ precision @ (x - prior_mean), *terms[1:]

    for _ in range(300):
        value, slope, curvature = joint(x)
        gradient = slope - precision @ (x - prior_mean)
        step = np.linalg.solve(precision + np.diag(np.maximum(curvature, 0)), gradient)
        while np.max(np.abs(step)) > 1e-3 and not joint(x + step)[0] > value:
            step = step / 2
        x = x + step
        if np.max(np.abs(step)) < 1e-13:
            break
    value, _, curvature = joint(x)
    log_det = np.linalg.slogdet(np.eye(len(x)) + prior_covariance * curvature)[1]
    return x, value - 0.5 * log_det, np.linalg.inv(precision + np.diag(curvature))


def close(actual, desired, rtol=1e-9):
    desired = np.asarray(desired)
    atol = rtol * np.max(np.abs(desired))
    np.testing.assert_allclose(actual, desired, rtol=rtol, atol=atol)


def evidence(level, scale, u, theta):
    path = chain(level, scale, u, SIZE)
    y = np.where(OBSERVED, Y, 1.0)
    return laplace_approximation(path, log_likelihood(y, theta), OBSERVED).log_evidence


PARAMETERS = np.array([0.2, 1.3, 0.9, 1.1])


def dense_evidence(likelihood, y, level, scale, u, theta):
    mean = np.full(SIZE, level)
    return newton(likelihood, mean, covariance(scale, u, SIZE), y, theta, OBSERVED)[1]


def difference(function, x, h):
    """The derivative of the fourth order."""
    steps = [function(x + k * h) for k in (-2, -1, 1, 2)]
    return (steps[0] - 8 * steps[1] + 8 * steps[2] - steps[3]) / (12 * h)


def partial(likelihood, y, i, h=1e-3):
    def along(x):
        return dense_evidence(likelihood, y, *np.where(np.arange(4) == i, x, PARAMETERS))

    return difference(along, PARAMETERS[i], h)


@pytest.mark.parametrize("kind", ["ANTE1", pytest.param("OU", marks=pytest.mark.slow)])
def test_laplace_against_dense_newton(kind):
    member = family.MEMBERS[kind]
    parameters = member.parameters(np.random.default_rng(1), (5,), SIZE)
    path = member.distribution(*parameters, size=SIZE)
    means, covariances = member.moments(*parameters, size=SIZE)
    theta = np.full(5, 1.1)
    y = np.where(OBSERVED, Y, np.nan)
    result = laplace_approximation(path, log_likelihood(y, tf.constant(theta)), OBSERVED)
    assert np.all(result.converged)
    assert np.all(result.positive_definite)
    assert isinstance(result.posterior, tfp_ar1.MultivariateNormalANTE1)
    for i, likelihood in enumerate(LIKELIHOODS):
        mode, log_evidence, expected = newton(
            likelihood, np.array(means)[i], np.array(covariances)[i], Y[i], 1.1, OBSERVED
        )
        close(result.posterior.mean()[i], mode)
        close(result.posterior.covariance()[i], expected)
        close(result.log_evidence[i], log_evidence)
    noisy = path.with_observation_noise(np.float64(0.44), OBSERVED)
    close(result.log_evidence[4], noisy.log_prob(Y)[4])
    kl = tfd.kl_divergence(result.posterior, path)
    close(kl, tfd.kl_divergence(result.posterior, path.copy()))


def test_gradients_of_the_evidence():
    variables = [tf.constant(np.full(5, x)) for x in PARAMETERS]
    gradients = tfp.math.value_and_gradient(evidence, variables)[1]
    expected = [[partial(f, Y[j], i) for j, f in enumerate(LIKELIHOODS)] for i in range(4)]
    close(gradients, expected, 1e-7)


@pytest.mark.slow
def test_second_derivatives_of_the_evidence():
    variables = [tf.constant(np.full(5, x)) for x in PARAMETERS]

    def chosen(*variables):
        first = derivatives.gradients(evidence, variables)
        return {i: first[i] for i in (1, 3)}

    _, actual = derivatives.values_and_gradients(chosen, variables)
    for i, rows in actual.items():
        for k, row in enumerate(rows):
            for j, likelihood in enumerate(LIKELIHOODS):

                def along(x, k=k, j=j, i=i, likelihood=likelihood):
                    at = np.where(np.arange(4) == k, x, PARAMETERS)
                    step = 2e-3 * np.eye(4)[i]
                    return (
                        difference(
                            lambda s: dense_evidence(likelihood, Y[j], *(at + s * step)), 0.0, 1.0
                        )
                        / 2e-3
                    )

                np.testing.assert_allclose(
                    row[j], difference(along, PARAMETERS[k], 2e-3), rtol=1e-4, atol=1e-4
                )


@pytest.mark.parametrize("u", [10.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_hard_counts_in_float32(u):
    """Far from the start, of which Newton's steps without line search go to infinity."""
    size, scale = 20, 10.0
    rng = np.random.default_rng(1)
    y = np.stack([np.zeros(size), rng.poisson(1e4, size), np.arange(size) % 2 * 50.0])
    path = chain(0.0, scale, u, size, tf.float32)
    result = laplace_approximation(
        path, lambda x: tfd.Poisson(log_rate=x).log_prob(y.astype(np.float32))
    )
    assert result.log_evidence.shape == result.posterior.batch_shape == (3,)
    assert np.all(result.converged)
    assert np.all(result.num_iterations < 20)
    for i in range(3):
        prior = covariance(scale, u, size)
        mode, log_evidence, expected = newton(poisson, np.zeros(size), prior, y[i], 1.0)
        stddev = np.sqrt(np.diag(expected))
        assert np.max(np.abs(result.posterior.mean()[i] - mode) / stddev) < 3e-3
        close(result.posterior.stddev()[i], stddev, 1e-3)
        # Of counts of 1e4, float32 has the log-probabilities to 0.01.
        np.testing.assert_allclose(result.log_evidence[i], log_evidence, rtol=1e-3, atol=1e-3)


def test_no_maximum_is_reported():
    """Between the modes of a mixture, the gradient is 0."""
    components = tfd.Normal(np.array([-3.0, 3.0]), np.float64(1.0))

    def log_likelihood_fn(x):
        return tf.reduce_logsumexp(components.log_prob(x[..., None]), axis=-1)

    path = chain(0.0, 10.0, 0.3, 3)
    start = np.array([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]])
    result = laplace_approximation(path, log_likelihood_fn, initial=start)
    np.testing.assert_array_equal(result.converged, [False, True])
    np.testing.assert_array_equal(result.positive_definite, [False, True])
    assert np.all(np.isfinite(result.log_evidence))
    few = laplace_approximation(path, log_likelihood_fn, initial=start[1], max_iterations=1)
    assert not few.converged
    # It stays where it is, rather than go on without a line search.
    assert np.isfinite(few.log_evidence)


def expectations(likelihood, mean, stddev, y):
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    terms = likelihood(mean + stddev * nodes[:, None], y, 1.0)
    return [weights @ x / weights.sum() for x in terms]


def test_two_coordinates_against_quadrature():
    y, prior = np.array([3.0, 0.0]), covariance(1.0, 0.8, 2)
    grid = np.linspace(-6.0, 6.0, 601)
    x = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1)
    joint = poisson(x, y, 1.0)[0].sum(-1)
    joint += tfd.MultivariateNormalFullCovariance(np.zeros(2), prior).log_prob(x)
    weights = np.exp(joint) * (grid[1] - grid[0]) ** 2
    exact = np.log(weights.sum())
    mean = (weights[..., None] * x).sum((0, 1)) / weights.sum()

    def fn(x):
        return tfd.Poisson(log_rate=x).log_prob(y)

    path = chain(0.0, 1.0, 0.8, 2)
    laplace, vi = laplace_approximation(path, fn), natural_gradient_vi(path, fn)
    assert abs(laplace.log_evidence - exact) < 0.03
    assert vi.converged
    assert exact - 0.03 < vi.elbo < exact
    np.testing.assert_allclose(laplace.posterior.mean(), mean, atol=0.2)
    np.testing.assert_allclose(vi.posterior.mean(), mean, atol=0.01)
    # The conditions of a maximum, and the bound itself, by dense matrices.
    mean, of_posterior = np.asarray(vi.posterior.mean()), np.asarray(vi.posterior.covariance())
    value, slope, curvature = expectations(poisson, mean, np.sqrt(np.diag(of_posterior)), y)
    close(slope, np.linalg.solve(prior, mean), 1e-6)
    close(np.linalg.inv(of_posterior), np.linalg.inv(prior) + np.diag(curvature), 1e-6)
    kl = tfd.kl_divergence(
        tfd.MultivariateNormalFullCovariance(mean, of_posterior),
        tfd.MultivariateNormalFullCovariance(np.zeros(2), prior),
    )
    close(vi.elbo, value.sum() - kl)
    # A run that continues has nothing to do.
    again = natural_gradient_vi(path, fn, initial_sites=(vi.information, vi.precision))
    assert again.num_iterations == 1
    close(again.elbo, vi.elbo)


def test_variational_inference_of_a_normal_likelihood_is_exact():
    y = np.where(OBSERVED, Y[4], np.nan)
    variables = [tf.constant(x) for x in PARAMETERS]

    def elbo(level, scale, u, theta):
        # NaN only where x is differentiated, and nothing captured.
        y_ = tf.where(OBSERVED, y, 0.0)
        return natural_gradient_vi(
            chain(level, scale, u, SIZE),
            lambda x: tfd.Normal(x, 0.4 * theta).log_prob(y_),
            OBSERVED,
            initial_sites=(0.0, 0.0),
            num_steps=1,
        ).elbo

    def exact(level, scale, u, theta):
        path = chain(level, scale, u, SIZE)
        return path.with_observation_noise(0.4 * theta, OBSERVED).log_prob(y)

    (actual, gradients), (expected, of_exact) = (
        tfp.math.value_and_gradient(f, variables) for f in (elbo, exact)
    )
    close(actual, expected)
    close(gradients, of_exact)


@pytest.mark.slow
def test_gradients_of_the_optimized_elbo():
    y = np.where(OBSERVED, Y[3], 1.0)

    @family.function
    def elbo_and_gradients(parameters):
        def elbo_and_converged(parameters):
            level, scale, u, theta = tf.unstack(parameters)
            fn = LIKELIHOODS[student_t]  # with sites of negative precision
            result = natural_gradient_vi(
                chain(level, scale, u, SIZE), lambda x: fn(x, theta).log_prob(y), OBSERVED
            )
            return result.elbo, result.converged

        (elbo, converged), gradient = tfp.math.value_and_gradient(
            elbo_and_converged, parameters, has_aux=True
        )
        return elbo, gradient, converged

    _, gradients, converged = elbo_and_gradients(PARAMETERS)
    assert converged
    for gradient, direction in zip(gradients, np.eye(4), strict=True):
        expected = difference(
            lambda h, e=direction: np.asarray(elbo_and_gradients(PARAMETERS + h * e)[0]), 0.0, 1e-3
        )
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_in_a_graph_of_unknown_size():
    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None], tf.float64)] * 2)
    def compute(y, seen):
        path = chain(0.0, 1.3, 0.9, tf.shape(y)[0])
        # A site without precision, too: linear where x is seen.
        result = laplace_approximation(path, lambda x: y * x, seen > 0.5)
        return result.posterior.mean(), result.log_evidence, result.converged

    for size in (1, 7):
        y, seen = np.random.default_rng(0).normal(size=(2, size))
        mean, log_evidence, converged = compute(y, seen)
        prior, y = covariance(1.3, 0.9, size), np.where(seen > 0.5, y, 0.0)
        close(mean, prior @ y)
        close(log_evidence, 0.5 * y @ prior @ y)
        assert converged


@pytest.mark.slow
def test_compiled():
    y = np.array([0.5, 6.0, 0.2, -1.0])

    def compute(scale, theta):
        path = chain(0.2, scale, 0.9, 4)

        def fn(x):
            return LIKELIHOODS[student_t](x, theta).log_prob(y)

        laplace = laplace_approximation(path, fn)
        return laplace.log_evidence, laplace.posterior.mean()

    variables = tf.constant(1.3, tf.float64), tf.constant(1.1, tf.float64)
    compiled = tf.function(compute, jit_compile=True, autograph=False)(*variables)
    for actual, expected in zip(compiled, compute(*variables), strict=True):
        close(actual, expected)
    mode, log_evidence, _ = newton(student_t, np.full(4, 0.2), covariance(1.3, 0.9, 4), y, 1.1)
    close(compiled[0], log_evidence)
    close(compiled[1], mode)


def test_bad_arguments():
    path = chain(0.0, 1.0, 0.5, 4)

    def fn(x):
        return -tf.square(x)

    for call, error, message in (
        (
            lambda: laplace_approximation(path, lambda x: tf.reduce_sum(x, -1)),
            ValueError,
            "not the",
        ),
        (
            lambda: laplace_approximation(path, lambda x: tf.cast(x, tf.float32)),
            TypeError,
            "float64",
        ),
        (lambda: laplace_approximation(path, fn, [1, 0, 1, 1]), TypeError, "must be boolean"),
        (lambda: laplace_approximation(path, fn, [True, False]), ValueError, "`observed`"),
        (lambda: laplace_approximation(path, fn, max_iterations=0), ValueError, "max_iterations"),
        (lambda: laplace_approximation(path, fn, tolerance=0.0), ValueError, "`tolerance`"),
        (lambda: natural_gradient_vi(path, fn, learning_rate=2.0), ValueError, "got 2.0"),
        (lambda: natural_gradient_vi(path, fn, num_steps=-1), ValueError, "num_steps"),
    ):
        with pytest.raises(error, match=message):
            call()

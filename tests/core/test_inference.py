"""Approximate posteriors under likelihoods that are not Gaussian, against dense matrices."""

import family
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from test_noise import close

import tfp_ar1
from tfp_ar1.inference import laplace_approximation, natural_gradient_vi

tfd = tfp.distributions
SIZE = 12

# Of x, and of a parameter θ that the likelihood has; with data in which each is at home.
LIKELIHOODS = {
    "Poisson": (lambda x, t: tfd.Poisson(log_rate=x + t), [0.0, 3.0, 1.0]),
    "Bernoulli": (lambda x, t: tfd.Bernoulli(logits=x + t), [0.0, 1.0, 1.0]),
    "NegativeBinomial": (
        lambda x, t: tfd.NegativeBinomial(tf.exp(t), logits=x - t),
        [2.0, 0.0, 7.0],
    ),
    "StudentT": (lambda x, t: tfd.StudentT(np.float64(4.0), x, tf.exp(t)), [0.3, -1.0, 6.0]),
    "Normal": (lambda x, t: tfd.Normal(x, tf.exp(t)), [0.3, -1.0, 2.0]),
}


def log_likelihood(name, theta):
    likelihood, y = LIKELIHOODS[name]
    y = np.resize(np.float64(y), SIZE)
    return lambda x: likelihood(x, theta).log_prob(y)


def derivatives(function, x):
    """Values, first and second derivatives of a function of each entry by itself."""
    x = tf.constant(x)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            value = function(x)
        first = inner.gradient(value, x)
    second = outer.gradient(first, x, unconnected_gradients="zero")
    return value.numpy(), first.numpy(), second.numpy()


def dense_laplace(mean, covariance, function):
    """Mode, covariance there, and evidence: damped Newton steps with matrices."""
    mean, covariance = np.asarray(mean), np.asarray(covariance)
    precision = np.linalg.inv(covariance)

    def log_joint(x):
        return np.sum(function(tf.constant(x))) - 0.5 * (x - mean) @ precision @ (x - mean)

    x = mean.copy()
    for _ in range(100):
        _, first, second = derivatives(function, x)
        slope = first - precision @ (x - mean)
        step = np.linalg.solve(precision - np.diag(np.minimum(second, 0.0)), slope)
        while log_joint(x + step) < log_joint(x) - 1e-12:
            step *= 0.5
        x = x + step
    _, _, second = derivatives(function, x)
    hessian = precision - np.diag(second)
    _, log_det = np.linalg.slogdet(hessian @ covariance)
    return x, np.linalg.inv(hessian), log_joint(x) - 0.5 * log_det


def dense_case(kind, name, values):
    """By the parameters of a member and θ, the last of `values`."""
    *parameters, theta = values
    member = family.MEMBERS[kind]
    mean, covariance = member.moments(*parameters, size=SIZE)
    mean = np.broadcast_to(mean, [SIZE])
    return dense_laplace(mean, covariance, log_likelihood(name, tf.constant(theta, tf.float64)))


def parameters_of(kind):
    parameters = family.MEMBERS[kind].parameters(np.random.default_rng(0), (), SIZE)
    return [np.asarray(x, np.float64) for x in (*parameters, 0.2)]


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("kind", ["AR1", pytest.param("ANTE1", marks=pytest.mark.slow)])
def test_laplace_against_matrices(kind, name):
    *parameters, theta = parameters_of(kind)
    mode, covariance, evidence = dense_case(kind, name, [*parameters, theta])
    path = family.MEMBERS[kind].distribution(*parameters, size=SIZE)
    laplace = laplace_approximation(path, log_likelihood(name, tf.constant(theta)))
    assert laplace.converged
    assert laplace.positive_definite
    assert isinstance(laplace.posterior, tfp_ar1.MultivariateNormalANTE1)
    close(laplace.posterior.mean(), mode)
    close(laplace.posterior.covariance(), covariance)
    close(laplace.log_evidence, evidence)
    # Its KL to the path, and to a copy of it, from the two sets of parameters.
    kl = tfd.kl_divergence(laplace.posterior, path)
    close(kl, tfd.kl_divergence(laplace.posterior, path.copy()), rtol=1e-7)


def evidence(name, *values):
    *parameters, theta = values
    path = family.MEMBERS["AR1 by fisher_z"].distribution(*parameters, size=SIZE)
    return laplace_approximation(path, log_likelihood(name, theta)).log_evidence


def differences(function, values):
    """Of the level, all coordinates at once, and of each number; with the directions."""
    for i in range(len(values)):
        direction = [np.ones_like(v) * (i == j) for j, v in enumerate(values)]
        ends = [
            float(function([v + s * 1e-4 * x for v, x in zip(values, direction, strict=True)]))
            for s in (1, -1)
        ]
        yield direction, (ends[0] - ends[1]) / 2e-4


def along(gradients, direction):
    return sum(np.sum(g * x) for g, x in zip(gradients, direction, strict=True))


@pytest.mark.parametrize("name", ["Poisson", pytest.param("StudentT", marks=pytest.mark.slow)])
def test_evidence_has_derivatives_in_all_parameters(name):
    """Not those at a mode that stays where it is."""
    values = parameters_of("AR1 by fisher_z")
    gradients = tfp.math.value_and_gradient(
        lambda *v: evidence(name, *v), [tf.constant(x) for x in values]
    )[1]
    for direction, slope in differences(
        lambda v: dense_case("AR1 by fisher_z", name, v)[2], values
    ):
        np.testing.assert_allclose(along(gradients, direction), slope, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_second_derivatives_of_a_compiled_function():
    values = parameters_of("AR1 by fisher_z")
    compiled = tf.function(lambda *v: evidence("Poisson", *v), autograph=False)

    def gradients_of(values):
        variables = [tf.constant(v) for v in values]
        with tf.GradientTape() as outer:
            outer.watch(variables)
            first = tfp.math.value_and_gradient(compiled, variables)[1]
            squares = sum(tf.reduce_sum(tf.square(g)) for g in first)
        return squares, lambda: outer.gradient(squares, variables)

    gradients = gradients_of(values)[1]()
    for direction, slope in differences(lambda v: gradients_of(v)[0], values):
        np.testing.assert_allclose(along(gradients, direction), slope, rtol=1e-4, atol=1e-5)


def test_a_normal_likelihood_is_exact():
    path = tfp_ar1.MultivariateNormalAR1(np.full(SIZE, 0.4), 1.5, 0.8)
    y = np.resize(LIKELIHOODS["Normal"][1], SIZE)
    observed = np.arange(SIZE) % 3 != 0
    noisy = path.with_observation_noise(np.exp(0.2), observed)

    def function(x):  # NaN where nothing was seen
        return tfd.Normal(x, np.exp(0.2)).log_prob(np.where(observed, y, np.nan))

    laplace = laplace_approximation(path, function, observed)
    variational = natural_gradient_vi(path, function, observed)
    for found, evidence in ((laplace, laplace.log_evidence), (variational, variational.elbo)):
        close(evidence, noisy.log_prob(y))
        close(found.posterior.mean(), noisy.posterior(y).mean(), 1e-7)
        close(found.posterior.covariance(), noisy.posterior(y).covariance(), 1e-7)


def test_one_coordinate_against_quadrature():
    """Of a Poisson count: evidence, and the posterior with the smallest KL from the exact one."""
    path = tfp_ar1.MultivariateNormalAR1(np.float64([0.5]), 1.2, 0.0)
    grid = np.linspace(-8, 8, 20001)
    log_joint = tfd.Normal(np.float64(0.5), 1.2).log_prob(grid) + tfd.Poisson(
        log_rate=grid
    ).log_prob(np.float64(2.0))
    exact = np.log(np.trapezoid(np.exp(log_joint), grid))

    def function(x):
        return tfd.Poisson(log_rate=x).log_prob(np.float64(2.0))

    laplace = laplace_approximation(path, function)
    variational = natural_gradient_vi(path, function)
    assert abs(laplace.log_evidence - exact) < 0.03
    assert 0 < exact - variational.elbo < 0.03
    # No other normal has a larger bound.
    mean, stddev = (
        x()[0].numpy() for x in (variational.posterior.mean, variational.posterior.stddev)
    )

    def elbo(mean, stddev):
        q = tfd.Normal(mean, stddev)
        return np.trapezoid(q.prob(grid) * (log_joint - q.log_prob(grid)), grid)

    close(variational.elbo, elbo(mean, stddev), 1e-7)
    for other in (
        (mean + 0.03, stddev),
        (mean - 0.03, stddev),
        (mean, 1.05 * stddev),
        (mean, 0.95 * stddev),
    ):
        assert elbo(*other) < variational.elbo


@pytest.mark.slow
def test_bound_is_differentiable_where_it_has_converged():
    values = [tf.constant(x, tf.float64) for x in (0.3, 1.2, 0.9, 0.1)]

    @tf.function(autograph=False)
    def elbo(level, scale, fisher_z, theta):
        path = tfp_ar1.MultivariateNormalAR1(tf.fill([SIZE], level), scale, fisher_z=fisher_z)
        return natural_gradient_vi(path, log_likelihood("Poisson", theta)).elbo

    gradients = tfp.math.value_and_gradient(elbo, values)[1]
    for i, gradient in enumerate(gradients):
        by = [elbo(*(v + s * 1e-4 * (i == j) for j, v in enumerate(values))) for s in (1, -1)]
        np.testing.assert_allclose(gradient, (by[0] - by[1]) / 2e-4, rtol=1e-5)


@pytest.mark.slow
def test_batches_graphs_and_runs_that_continue():
    counts = np.float32([[0, 0, 0, 0, 0], [10_000, 9_000, 11_000, 10_000, 12_000], [1, 0, 7, 2, 3]])

    def function(x):
        return tfd.Poisson(log_rate=x).log_prob(counts)

    path = tfp_ar1.MultivariateNormalAR1(np.zeros(5, np.float32), 10.0, fisher_z=10.0)
    laplace = laplace_approximation(path, function)
    assert laplace.posterior.batch_shape == [3]
    assert np.all(laplace.converged)
    assert laplace.num_iterations.numpy().max() < 30
    for i in range(3):
        one = laplace_approximation(
            path, lambda x, i=i: tfd.Poisson(log_rate=x).log_prob(counts[i])
        )
        close(one.log_evidence, laplace.log_evidence[i], 1e-4)
        np.testing.assert_allclose(
            one.posterior.mean(), laplace.posterior.mean()[i], rtol=1e-3, atol=1e-3
        )
    compiled = tf.function(
        lambda: laplace_approximation(path, function).log_evidence, jit_compile=True
    )
    close(compiled(), laplace.log_evidence, 1e-4)

    path = tfp_ar1.MultivariateNormalAR1(np.zeros(5, np.float32), 2.0, fisher_z=2.0)
    first = natural_gradient_vi(path, function, num_steps=2, learning_rate=0.3)
    more = natural_gradient_vi(path, function, initial_sites=(first.information, first.precision))
    assert np.all(more.converged)
    assert np.all(more.elbo >= first.elbo - 1e-3)
    close(more.elbo, natural_gradient_vi(path, function).elbo, 1e-4)


def test_a_mode_that_was_not_reached_is_reported():
    path = tfp_ar1.MultivariateNormalAR1(np.zeros(3), 5.0, 0.5)

    def function(x):
        return tfd.Poisson(log_rate=x).log_prob(np.float64([0.0, 500.0, 3.0]))

    early = laplace_approximation(path, function, max_iterations=1)
    assert not early.converged
    assert early.num_iterations == 1
    assert np.isfinite(early.log_evidence)
    for call, message in (
        (lambda: laplace_approximation(path, function, max_iterations=0), "max_iterations"),
        (lambda: laplace_approximation(path, function, tolerance=-1.0), "tolerance.*-1"),
        (lambda: laplace_approximation(path, lambda x: function(x)[..., :2]), "3"),
        (lambda: natural_gradient_vi(path, function, learning_rate=2.0), "learning_rate.*2"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="boolean"):
        laplace_approximation(path, function, observed=np.ones(3))

"""Chains from `tfd.MarkovChain` and `tfd.LinearGaussianStateSpaceModel`, and KLs with them."""

import family
import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1
from tfp_ar1 import MultivariateNormalANTE1

tfd = tfp.distributions
SEED = (1, 2)


class Transitions:
    """x_0 ~ N(mean, start²), x_t = a_t x_(t-1) + b_t + q_t ε_t: two chains, of different starts."""

    def __init__(self, size, seed=0, dtype=np.float64):
        rng = np.random.default_rng(seed)
        self.size = size
        self.a = rng.uniform(-1.3, 1.3, size - 1).astype(dtype)
        self.b = rng.normal(size=size - 1).astype(dtype)
        self.q = rng.uniform(0.3, 2.0, size - 1).astype(dtype)
        self.mean = rng.normal(size=2).astype(dtype)
        self.start = rng.uniform(0.5, 2.0, 2).astype(dtype)

    def dense(self):
        """By the recurrences, written out."""
        mean, covariance = np.zeros((2, self.size)), np.zeros((2, self.size, self.size))
        mean[:, 0], covariance[:, 0, 0] = self.mean, self.start**2
        for t, (a, b, q) in enumerate(zip(self.a, self.b, self.q, strict=True), 1):
            mean[:, t] = a * mean[:, t - 1] + b
            covariance[:, t, :t] = a * covariance[:, t - 1, :t]
            covariance[:, :t, t] = covariance[:, t, :t]
            covariance[:, t, t] = a**2 * covariance[:, t - 1, t - 1] + q**2
        return oracles.Dense(mean, covariance)

    def chain(self, as_vectors=False, **options):
        """Whose transitions depend on the step, as TFP's documentation writes them."""

        def make(loc, scale):
            if as_vectors:
                return tfd.MultivariateNormalDiag(loc, scale * tf.ones_like(loc))
            return tfd.Normal(loc, scale)

        def transition(step, x):
            a, b, q = (
                tf.reshape(tf.gather(y, step), [-1] + (len(x.shape) - 1) * [1])
                for y in (self.a, self.b, self.q)
            )
            return make(a * x + b, q)

        mean, start = (x[:, None] if as_vectors else x for x in (self.mean, self.start))
        return tfd.MarkovChain(make(mean, start), transition, self.size, **options)

    def model(self, factor=None, offset=None, noise=0.0, **options):
        """As a state space model that observes factor · x + offset."""
        factor = np.ones(self.size) if factor is None else factor
        offset = np.zeros(self.size) if offset is None else offset
        noise = noise * np.ones(self.size)

        first = options.setdefault("initial_step", 0)

        def at(x, t):
            # TFP asks for the transition from the last step too.
            return tf.gather(tf.pad(x, [[0, 1]]), t - first)[..., tf.newaxis]

        def matrix(x, t):
            return tf.linalg.LinearOperatorFullMatrix(at(x, t)[..., tf.newaxis])

        return tfd.LinearGaussianStateSpaceModel(
            self.size,
            lambda t: matrix(self.a, t),
            lambda t: tfd.MultivariateNormalDiag(at(self.b, t), at(self.q, t)),
            lambda t: matrix(factor, t),
            lambda t: tfd.MultivariateNormalDiag(at(offset, t), at(noise, t)),
            tfd.MultivariateNormalDiag(self.mean[:, None], self.start[:, None]),
            **options,
        )


def assert_is(path, dense):
    assert path.batch_shape == dense.mean.shape[:-1]
    oracles.assert_close(path.mean(), dense.mean, event_ndims=1)
    oracles.assert_close(path.covariance(), dense.covariance, event_ndims=2)


@pytest.mark.parametrize("size", [1, 9])
def test_markov_chains(size):
    given = Transitions(size)
    for as_vectors in (False, True):
        chain = given.chain(as_vectors)
        path = MultivariateNormalANTE1.from_markov_chain(chain, validate_args=True)
        assert_is(path, given.dense())
    x = path.sample(5, seed=SEED)
    oracles.assert_close(path.log_prob(x), given.chain().log_prob(x))


def test_state_space_models():
    size, rng = 9, np.random.default_rng(1)
    given = Transitions(size)
    factor, offset, noise = rng.normal(size=size), rng.normal(size=size), rng.uniform(1, 2, size)
    mask = rng.random((2, size)) < 0.3
    model = given.model(factor, offset, noise, initial_step=3, mask=mask)
    states = given.dense()
    observed = oracles.Dense(
        factor * states.mean + offset, factor[:, None] * factor * states.covariance
    )
    path = MultivariateNormalANTE1.from_state_space_model(model, validate_args=True)
    assert_is(path, observed)
    noisy = tfp_ar1.sts.noisy_chain(model)
    y = np.where(mask, np.nan, noisy.sample(seed=SEED))
    oracles.assert_close(noisy.covariance(), observed.covariance + np.diag(noise**2), event_ndims=2)
    for y_, seen, mean, covariance, actual in zip(
        y, ~mask, observed.mean, np.asarray(noisy.covariance()), noisy.log_prob(y), strict=True
    ):
        whole = oracles.Dense(mean[seen], covariance[np.ix_(seen, seen)])
        oracles.assert_close(actual, whole.log_prob(y_[seen]))


def test_parameters_that_are_constant():
    """Of a component of TFP's, and as sums of such, whose parameters are functions of the time."""
    prior = tfd.MultivariateNormalDiag(np.float64([3.0]), np.float64([2.0]))
    level = tfp.sts.LocalLevelStateSpaceModel(6, np.float64([0.5, 0.7]), prior, 1.5)
    total = tfp.sts.AdditiveStateSpaceModel([level], np.float64(10.0), np.float64(1.5))
    time = np.arange(6)
    walk = 4.0 + np.minimum(time[:, None], time) * np.array([0.5, 0.7])[:, None, None] ** 2
    for model, mean in ((level, 3.0), (total, 13.0)):
        assert_is(
            MultivariateNormalANTE1.from_state_space_model(model),
            oracles.Dense(np.full((2, 6), mean), walk),
        )
        np.testing.assert_allclose(tfp_ar1.sts.noisy_chain(model).noise_scale, 1.5)
    single = tfp.sts.LocalLevelStateSpaceModel(1, np.float64(0.5), prior)
    assert_is(
        MultivariateNormalANTE1.from_state_space_model(single),
        oracles.Dense(np.array([3.0]), np.array([[4.0]])),
    )


def test_kls():
    given = Transitions(5)
    rng = np.random.default_rng(3)
    loc, scale, rho = (
        rng.normal(size=(3, 1, 5)),
        rng.uniform(0.5, 2.0, 5),
        np.linspace(-0.9, 0.9, 4),
    )
    path = MultivariateNormalANTE1(loc, scale, rho)
    of_path = oracles.Dense(
        loc, scale[:, None] * scale * np.asarray(oracles.tf_antedependent_correlations(rho))
    )
    of_chain = given.dense()
    expected = of_path.kl(of_chain), of_chain.kl(of_path)
    assert expected[0].shape == (3, 2)
    for q in (given.chain(), given.model()):
        oracles.assert_close(tfd.kl_divergence(path, q), expected[0])
        oracles.assert_close(tfd.kl_divergence(q, path), expected[1])

    @family.function
    def in_graph(noise):
        model = given.model(noise=noise)
        return tfd.kl_divergence(given.chain(True), path), tfd.kl_divergence(path, model)

    for kl, right in zip(in_graph(tf.constant(0.0, tf.float64)), expected[::-1], strict=True):
        oracles.assert_close(kl, right)


def test_kls_with_noise():
    """Of which a state space model is no chain."""
    given, path = Transitions(5), MultivariateNormalANTE1(np.zeros(5), np.ones(5), np.full(4, 0.5))
    with pytest.raises(NotImplementedError, match=r"noisy_chain.*got noise .* 0\.5"):
        tfd.kl_divergence(path, given.model(noise=0.5))


def test_kls_with_noise_that_a_graph_finds():
    given, path = Transitions(5), MultivariateNormalANTE1(np.zeros(5), np.ones(5), np.full(4, 0.5))

    @family.function
    def kl(noise):
        return tfd.kl_divergence(path, given.model(noise=noise))

    with pytest.raises(tf.errors.InvalidArgumentError, match="with observation noise"):
        kl(tf.constant(0.5, tf.float64))


def test_derivatives():
    """Those of the chain's own density, in its parameters, through the transition function."""
    x = family.draw(6)

    def chain(a, b, q):
        return tfd.MarkovChain(
            tfd.Normal(b, 2.0 * q), lambda _, x: tfd.Normal(b + a * (x - b), q), 6
        )

    parameters = [np.float64(v) for v in (0.7, 0.3, 1.2)]

    def ours(*p):
        return MultivariateNormalANTE1.from_markov_chain(chain(*p)).log_prob(x)

    expected = oracles.tf_gradients(lambda *p: chain(*p).log_prob(x), parameters)
    for actual, right in zip(oracles.tf_gradients(ours, parameters), expected, strict=True):
        oracles.assert_close(actual, right, "gradient")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_stationary_mean_is_kept_to_its_last_digit(dtype):
    mean, rho, scale = (tf.constant(x, dtype) for x in (1234.0, 0.999, 0.5))
    chain = tfd.MarkovChain(
        tfd.Normal(mean, scale / tf.sqrt(1.0 - tf.square(rho))),
        lambda _, x: tfd.Normal(mean + rho * (x - mean), scale),
        300,
    )
    path = MultivariateNormalANTE1.from_markov_chain(chain)
    assert path.dtype == tf.as_dtype(dtype)
    np.testing.assert_array_equal(path.mean(), np.full(300, mean))
    np.testing.assert_allclose(path.coefficients[0], rho, rtol=2e-3)


NORMAL = tfd.Normal(0.0, 1.0)
NO_GAUSSIAN_CHAINS = {
    "prior": (tfd.LogNormal(0.0, 1.0), lambda _, x: tfd.Normal(x, 1.0), "initial_state_prior"),
    "family": (NORMAL, lambda _, x: tfd.StudentT(3.0, x, 1.0), "must be a `tfd.Normal`"),
    "tanh": (NORMAL, lambda _, x: tfd.Normal(tf.tanh(x), 1.0), "affine"),
    "periodic": (NORMAL, lambda _, x: tfd.Normal(x + 0.1 * tf.sin(6.3 * x), 1.0), "affine"),
    "far": (NORMAL, lambda _, x: tfd.Normal(tf.clip_by_value(x, -100.0, 100.0), 1.0), "affine"),
    "one step": (
        NORMAL,
        lambda t, x: tfd.Normal(tf.where(t == 3, tf.nn.relu(x), x), 1.0),
        "affine.*at step 3",
    ),
    "scale": (NORMAL, lambda _, x: tfd.Normal(x, 1.0 + 0.01 * tf.square(x)), "scale .*depend"),
    "members": (
        tfd.Normal([0.0, 1.0], 1.0),
        lambda _, x: tfd.Normal(x + tf.reduce_mean(x, axis=-1, keepdims=True), 1.0),
        "affine",
    ),
    "no noise": (NORMAL, lambda _, x: tfd.Normal(x, 0.0), "transition must not be 0"),
    "vectors": (
        tfd.MultivariateNormalDiag([0.0, 0.0]),
        lambda _, x: tfd.MultivariateNormalDiag(x),
        "size 1",
    ),
    "joint": (
        tfd.JointDistributionSequential([NORMAL]),
        lambda _, x: tfd.JointDistributionSequential([NORMAL]),
        "initial_state_prior",
    ),
}


@pytest.mark.parametrize("name", NO_GAUSSIAN_CHAINS)
def test_what_is_no_gaussian_chain_is_refused(name):
    prior, transition, message = NO_GAUSSIAN_CHAINS[name]
    with pytest.raises(ValueError, match=message):
        MultivariateNormalANTE1.from_markov_chain(tfd.MarkovChain(prior, transition, 6))


def test_what_is_no_gaussian_chain_is_asserted_in_graphs():
    @family.function
    def loc(bend):
        chain = tfd.MarkovChain(
            NORMAL, lambda _, x: tfd.Normal(x + bend * tf.square(x), 1.0 + bend), 6
        )
        path = MultivariateNormalANTE1.from_markov_chain(chain, validate_args=True)
        return path.loc

    assert np.all(loc(tf.constant(0.0)) == 0.0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="affine"):
        loc(tf.constant(0.5))


def test_state_space_models_that_are_no_chain():
    trend = tfp.sts.LocalLinearTrendStateSpaceModel(
        5, 1.0, 1.0, tfd.MultivariateNormalDiag([0.0, 0.0])
    )
    given = Transitions(4)
    for model, error, message in (
        (trend, ValueError, "sizes 2 and 1"),
        (given.model(factor=np.array([1.0, 0.0, 1.0, 1.0])), ValueError, "0 at step 1"),
        (given.chain(), TypeError, "LinearGaussianStateSpaceModel"),
    ):
        with pytest.raises(error, match=message):
            MultivariateNormalANTE1.from_state_space_model(model)
    with pytest.raises(TypeError, match="MarkovChain"):
        MultivariateNormalANTE1.from_markov_chain(trend)

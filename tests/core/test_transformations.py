"""What TFP and TensorFlow make of a member of the family: vectorized, compiled, inside others."""

import derivatives
import family
import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from family import BATCH_SHAPE, DENSE, MEMBERS, SEED, SIZE, STATISTICS, arguments, draw, function

tfb = tfp.bijectors
tfd = tfp.distributions

each_member = pytest.mark.parametrize("member", family.ONE_OF_EACH)
each_spelling = pytest.mark.parametrize("member", MEMBERS)


def members_of_map(member):
    """Three values of each parameter but `loc`."""
    given = family.ARGUMENTS[member]
    if member == "OU":
        return given["marginal_scale"], np.array([0.6, 1.3, 1.0]), given["times"]
    rho = draw(3, SIZE - 1, seed=9) if "ANTE1" in member else np.array([0.6, -0.3, 2.0])
    rho = np.tanh(rho) if "correlation" in given else rho
    return given.get("marginal_scale", family.SCALE_DIAG), rho


@pytest.mark.slow
@each_member
def test_vectorized_map(member):
    """Over parameters, values and seeds at once; each as if by itself."""
    q = family.OTHERS["AR1"](family.constant)[0, 0]
    given = [family.VALUE[0], *members_of_map(member), family.VALUE[1]]
    given = [*map(tf.constant, given), tf.constant([[1, 2], [3, 4], [5, 6]])]

    def one(arguments):
        *parameters, x, seed = arguments
        p = MEMBERS[member].distribution(*parameters)
        more = {"KL to": p.kl_divergence(q), "KL from": q.kl_divergence(p)}
        more["draws"] = p.sample(3, seed=seed)
        return family.compute(p, x, family.DISTRIBUTION | family.CONDITIONAL) | more

    each = [one([m[i] for m in given]) for i in range(3)]
    for name, actual in tf.vectorized_map(one, given).items():
        event_ndims = STATISTICS[name].event_ndims if name in STATISTICS else 0
        expected = np.stack([result[name] for result in each])
        oracles.assert_close(actual, expected, "same computation", event_ndims, err_msg=name)


@each_member
def test_vectorized_map_over_values(member):
    """As chains of MCMC do it, and without falling back to a loop."""
    values = tf.constant(draw(5, *BATCH_SHAPE, SIZE))
    log_prob = family.distribution(member).log_prob
    log_probs = tf.vectorized_map(log_prob, values, fallback_to_while_loop=False)
    oracles.assert_close(log_probs, DENSE[member].log_prob(values))


def gradients_of_map(function, parameters, mapped):
    """Of the sum of `function` over the leading axis, taken of the map, not within it."""

    def of_map(*parameters):
        return tf.vectorized_map(lambda p: function(*p), parameters)

    if mapped:
        return derivatives.gradients(of_map, parameters)
    members = zip(*map(tf.unstack, parameters), strict=True)
    gradients = [derivatives.gradients(function, member) for member in members]
    return [tf.stack(each) for each in zip(*gradients, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("member", "size"), [*((member, 5) for member in MEMBERS), ("AR1", 600), ("OU", 150)]
)
def test_gradients_of_vectorized_map(member, size):
    """`tf.vectorized_map` drops custom gradients, so auto-batched NUTS goes without them."""
    case, x, weights = MEMBERS[member], draw(size), draw(size, seed=1)
    given = [tf.constant(a) for a in family.random_parameters(case, (2,), size)]
    mask, diag = np.arange(size) % 3 == 0, tfd.MultivariateNormalDiag(x)
    q = family.OTHERS["AR1"](family.constant)[0, 0].copy(loc=x)

    def total(*parameters):
        p = case.distribution(*parameters)
        conditional = p.conditional(x, mask)
        vectors = (
            p.scale.matvec(weights),
            p.scale.matvec(weights, adjoint=True),
            p.scale.solvevec(weights),
            p.scale.solvevec(weights, adjoint=True),
            p.covariance()[1],
            p.precision().matvec(weights),
            conditional.mean(),
            conditional.stddev(),
        )
        scalars = (
            p.log_prob(x),
            p.entropy(),
            p.marginal(0, None, 2).log_prob(x[::2]),
            conditional.observed_log_prob(),
            *(tfd.kl_divergence(*pair) for pair in ((p, q), (q, p), (p, diag), (diag, p))),
        )
        results = [*(tf.reduce_sum(weights * v) for v in vectors), *scalars]
        return tf.reduce_sum(draw(len(results), seed=2) * tf.stack(results))

    for name, a, b in zip(
        case.names,
        gradients_of_map(total, given, mapped=True),
        gradients_of_map(total, given, mapped=False),
        strict=True,
    ):
        oracles.assert_close(a, b, "gradient", len(a.shape) - 1, err_msg=name)


ALTERNATING = np.float32([1.0, -0.5, 0.1])
# The parameter of correlation, from a number of which tanh is about the correlation of neighbours.
DRAWN = {
    "AR1": tf.tanh,
    "AR1 by fisher_z": tf.identity,
    "ARH1": tf.tanh,
    "ARH1 by fisher_z": tf.identity,
    "ANTE1": lambda u: tf.tanh(u * ALTERNATING),
    "ANTE1 by fisher_z": lambda u: u * ALTERNATING,
    "OU": tf.exp,
}


@each_spelling
def test_auto_batched_joint_distribution_has_the_right_gradient(member):
    """Against one path after the other."""
    loc, scale = (
        tf.zeros(SIZE),
        tf.ones(MEMBERS[member].event_ndims().get("scale_diag", 0) * [SIZE]),
    )
    times = (np.float32([0.0, 1.0, 1.5, 4.0]),) if member == "OU" else ()

    def path(u):
        return MEMBERS[member].distribution(loc, scale, DRAWN[member](u), *times)

    prior = tfd.Normal(0.0, 1.0)
    model = tfd.JointDistributionSequentialAutoBatched([prior, path])
    # A correlation next to 1 is for those that can say it in float32.
    u = tf.constant([0.0, 1.0, 3.0, -3.0 if "correlation" in family.ARGUMENTS[member] else 12.0])
    x = 1.0 + 0.01 * tf.range(4.0)[:, tf.newaxis] * draw(4, SIZE, dtype="float32")[::-1]
    actual = tfp.math.value_and_gradient(lambda u, x: model.log_prob([u, x]), [u, x])[1]
    expected = gradients_of_map(
        lambda u, x: prior.log_prob(u) + path(u).log_prob(x), [u, x], mapped=False
    )
    for name, a, e in zip(("u", "x"), actual, expected, strict=True):
        oracles.assert_close(a, e, "gradient", len(a.shape) - 1, err_msg=name)


@pytest.mark.parametrize(
    "member",
    [
        pytest.param(member, marks=[] if member == "AR1" else pytest.mark.slow)
        for member in (*family.ONE_OF_EACH, "AR1 by fisher_z")
    ],
)
def test_xla_agrees_with_eager(member):
    """Every statistic, and a gradient in which all of them take part; test_kl has the KLs."""
    table = {name: s for name, s in STATISTICS.items() if "sample" not in name}

    def results_and_gradients(*parameters):
        def results(*parameters):
            p = MEMBERS[member].distribution(*parameters)
            return family.compute(p, tf.constant(family.VALUE), table)

        def total(*parameters):
            return tf.add_n([tf.reduce_sum(tf.sin(r)) for r in results(*parameters).values()])

        return results(*parameters), derivatives.gradients(total, parameters)

    given = [*arguments(member).values()]
    expected, expected_gradients = results_and_gradients(*given)
    actual, gradients = function(results_and_gradients, jit_compile=True)(*given)
    family.assert_all_close(actual, expected)
    for a, e in zip(gradients, expected_gradients, strict=True):
        oracles.assert_close(a, e, "same computation", 1)


def to_train(member):
    """The options of `make_trainable`, what it is to fit, and the shapes of what it trains."""
    cls, shape = MEMBERS[member].cls, [2, SIZE]
    options = {"batch_and_event_shape": shape, "validate_args": True}
    if member == "OU":
        options["times"] = tf.range(1.0, SIZE + 1.0)
    properties = cls.parameter_properties()
    preferred = [n for n, q in properties.items() if q.is_preferred and n not in options]
    shapes = sorted(tuple(properties[name].shape_fn(shape)) for name in preferred)
    return options, 3.0 + draw(20, *shape, dtype="float32"), shapes


@each_member
def test_make_trainable(member):
    options, x, shapes = to_train(member)
    p = tfp.experimental.util.make_trainable(MEMBERS[member].cls, seed=SEED, **options)
    assert p.batch_shape == [2]
    assert sorted(tuple(v.shape) for v in p.trainable_variables) == shapes

    def loss():
        return -tf.reduce_mean(p.log_prob(x))

    before = loss()
    for _ in range(10):
        with tf.GradientTape() as tape:
            current = loss()
        gradients = tape.gradient(current, p.trainable_variables)
        for variable, gradient in zip(p.trainable_variables, gradients, strict=True):
            variable.assign_sub(0.1 * tf.sign(gradient))
    assert loss() < before - 0.5


@each_member
def test_make_trainable_stateless(member):
    options, x, shapes = to_train(member)
    make = tfp.experimental.util.make_trainable_stateless
    init, apply = make(MEMBERS[member].cls, **options)
    values = [*init(seed=SEED)]
    assert apply(values).batch_shape == [2]
    assert sorted(tuple(v.shape) for v in values) == shapes

    def loss(*values):
        return -tf.reduce_mean(apply(values).log_prob(x))

    before = loss(*values)
    for _ in range(10):
        gradients = derivatives.gradients(loss, values)
        assert all(np.any(gradient != 0) for gradient in gradients)
        values = [v - 0.1 * tf.sign(g) for v, g in zip(values, gradients, strict=True)]
    assert loss(*values) < before - 0.5


def test_make_trainable_asks_for_the_times():
    make = tfp.experimental.util.make_trainable
    with pytest.raises(ValueError, match="Missing required `times`"):
        make(MEMBERS["OU"].cls, batch_and_event_shape=[2, SIZE])


def log_mean_exp(x):
    return np.log(np.mean(np.exp(x), axis=-1))


# The distribution around ours; the shape of its values; what their log-density should be.
AROUND = {
    "BatchReshape": (
        lambda p: tfd.BatchReshape(p, [6]),
        (6, SIZE),
        lambda dense, x: dense.log_prob(x.reshape(*BATCH_SHAPE, SIZE)).reshape(6),
    ),
    "BatchConcat": (
        lambda p: tfd.BatchConcat([p, p], axis=1),
        (2, 6, SIZE),
        lambda dense, x: np.concatenate(
            [dense.log_prob(x[:, :3]), dense.log_prob(x[:, 3:])], axis=1
        ),
    ),
    "Independent": (
        lambda p: tfd.Independent(p, 2),
        (*BATCH_SHAPE, SIZE),
        lambda dense, x: dense.log_prob(x).sum(),
    ),
    "MixtureSameFamily": (
        lambda p: tfd.MixtureSameFamily(tfd.Categorical(logits=np.zeros(3)), p),
        (2, SIZE),
        lambda dense, x: log_mean_exp(dense.log_prob(x[:, np.newaxis])),
    ),
    "Sample": (
        lambda p: tfd.Sample(p, 5),
        (*BATCH_SHAPE, 5, SIZE),
        lambda dense, x: dense.log_prob(np.moveaxis(x, -2, 0)).sum(axis=0),
    ),
    "TransformedDistribution": (
        lambda p: tfd.TransformedDistribution(p, tfb.Sinh()),
        (*BATCH_SHAPE, SIZE),
        lambda dense, x: dense.log_prob(np.arcsinh(x)) - 0.5 * np.log1p(x**2).sum(axis=-1),
    ),
}


@each_member
@pytest.mark.parametrize("name", AROUND)
def test_other_distributions_around_it(member, name):
    make, shape, log_prob = AROUND[name]
    given, x = [*arguments(member).values()], draw(*shape, seed=4)

    def log_prob_of(*parameters):
        return make(MEMBERS[member].distribution(*parameters)).log_prob(x)

    oracles.assert_close(log_prob_of(*given), log_prob(DENSE[member], x))
    assert all(np.any(g != 0) for g in derivatives.gradients(log_prob_of, given))
    around = make(family.distribution(member))
    assert around.sample(7, seed=SEED).shape == (7, *shape)


@each_member
def test_inside_a_joint_distribution(member):
    given = family.first(member)
    joint = tfd.JointDistributionNamedAutoBatched(
        {
            "level": tfd.Normal(np.float64(0.0), 1.0),
            "path": lambda level: MEMBERS[member].cls(**(given | {"loc": level + given["loc"]})),
            "data": lambda path: tfd.Independent(tfd.Normal(path, 0.1), 1),
        }
    )
    assert joint.event_shape == {"level": [], "path": [SIZE], "data": [SIZE]}
    x = joint.sample(5, seed=SEED)
    assert x["path"].shape == x["data"].shape == (5, SIZE)
    level, path, data = (np.asarray(x[k]) for k in ("level", "path", "data"))
    paths = oracles.Dense(level[:, None] + family.LOC[0, 0], DENSE[member].covariance[0, 0])
    expected = paths.log_prob(path) - 0.5 * (level**2 + np.log(2 * np.pi))
    error = (data - path) / 0.1
    expected -= 0.5 * np.sum(error**2 + np.log(2 * np.pi * 0.1**2), axis=-1)
    oracles.assert_close(joint.log_prob(x), expected)
    pinned = joint.experimental_pin(data=data[0])
    oracles.assert_close(pinned.log_prob(level=level[0], path=path[0]), expected[0])
    bijected = pinned.experimental_default_event_space_bijector()
    assert bijected.inverse_event_shape(pinned.event_shape) == pinned.event_shape

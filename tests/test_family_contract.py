"""TFP's contract for ARH(1), ANTE(1) and OU: what test_contract asks of AR(1), a test a point."""

import inspect

import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from test_contract import (
    CONDITIONAL,
    DISTRIBUTION,
    FEW,
    INDICES,
    KINDS,
    OBSERVED,
    OTHERS,
    SEED,
    SIZE,
    STATISTICS,
    VALUE,
    Reads,
    assert_all_close,
    assert_gradients_are_finite_differences,
    compute,
    constant,
    draw,
    function,
    gradients_of_map,
    kl,
    log_mean_exp,
    source,
)

from tfp_ar1 import MultivariateNormalANTE1, MultivariateNormalARH1, MultivariateNormalOU

tfb = tfp.bijectors
tfd = tfp.distributions

BATCH_SHAPE = (2, 3)
CLASSES = {
    "ARH1": MultivariateNormalARH1,
    "ANTE1": MultivariateNormalANTE1,
    "OU": MultivariateNormalOU,
}
LOC, SCALE_DIAG = draw(2, 1, SIZE), np.exp(0.3 * draw(3, SIZE, seed=8))
# Each parameter misses a part of the batch shape.
ARGUMENTS = {
    "ARH1": {"loc": LOC, "scale_diag": SCALE_DIAG, "correlation": np.array([[0.6], [-0.3]])},
    "ANTE1": {"loc": LOC, "scale_diag": SCALE_DIAG, "fisher_z": draw(2, 1, SIZE - 1, seed=9)},
    "OU": {
        "loc": LOC,
        "marginal_scale": np.array([0.7, 1.0, 2.0]),
        "length_scale": np.array([[0.6], [1.3]]),
        "times": np.cumsum(np.exp(0.3 * draw(3, SIZE, seed=10)), axis=-1),
    },
}
# What (l)oc, (s)cale and (c)orrelation, on which a statistic depends, are to each.
LETTERS = {
    "ARH1": {"l": ("loc",), "s": ("scale_diag",), "c": ("correlation",)},
    "ANTE1": {"l": ("loc",), "s": ("scale_diag",), "c": ("fisher_z",)},
    "OU": {"l": ("loc",), "s": ("marginal_scale",), "c": ("length_scale", "times")},
}
each_member = pytest.mark.parametrize("member", CLASSES)
each_kind = pytest.mark.parametrize("kind", ["Variable", "TransformedVariable", "DeferredTensor"])


def distribution(member, make=constant, **others):
    given = {name: make(name, value) for name, value in ARGUMENTS[member].items()}
    return CLASSES[member](**given, **others)


def dense_covariance(member):
    """By the formula of the class."""
    given = {name: value[..., np.newaxis] for name, value in ARGUMENTS[member].items()}
    if member == "OU":
        times, length_scale = ARGUMENTS[member]["times"], given["length_scale"][..., np.newaxis]
        distances = np.abs(times[..., :, None] - times[..., None, :])
        return given["marginal_scale"][..., None] ** 2 * np.exp(-distances / length_scale)
    if member == "ARH1":
        rho = np.repeat(given["correlation"], SIZE - 1, axis=-1)
    else:
        rho = np.tanh(ARGUMENTS[member]["fisher_z"])
    correlations = oracles.tf_antedependent_correlations(tf.constant(rho)).numpy()
    return SCALE_DIAG[..., :, None] * SCALE_DIAG[..., None, :] * correlations


DENSE = {member: oracles.Dense(LOC, dense_covariance(member)) for member in CLASSES}


def names_of(letters, member):
    return [name for letter in letters for name in LETTERS[member][letter]]


def all_kls(p):
    return [kl(p, other(constant), r) for other in OTHERS.values() for r in (False, True)]


# --- Variables ------------------------------------------------------------------------------------


@each_member
@pytest.mark.parametrize("validate_args", [False, True])
def test_a_statistic_reads_each_variable_at_most_twice(member, validate_args):
    for name, statistic in STATISTICS.items():
        reads = Reads()
        p = distribution(member, reads.make, validate_args=validate_args)
        assert not reads, "read by the constructor"
        statistic.compute(p, VALUE)
        assert reads.keys() >= set(names_of(statistic.depends_on, member)), name
        # A marginal is a distribution of its own, which checks its parameters again.
        assert max(reads.values()) <= (4 if "marginal" in name else 2), (name, reads)


@each_member
def test_a_kl_reads_each_variable_once(member):
    for name, other in OTHERS.items():
        for reverse in (False, True):
            reads = Reads()
            p, q = distribution(member, reads.make), other(reads.make)
            reads.clear()
            kl(p, q, reverse)
            assert set(reads.values()) == {1}, (name, reads)
            assert reads.keys() >= set(ARGUMENTS[member])


@each_member
def test_gradients_of_statistics(member):
    for statistic in STATISTICS.values():
        p = distribution(member, KINDS["Variable"])
        needed = [getattr(p, k) for k in names_of(statistic.depends_on, member)]
        assert_gradients_are_finite_differences(
            lambda p=p, s=statistic: s.compute(p, VALUE), p.trainable_variables, needed
        )


@each_member
@pytest.mark.parametrize("other", OTHERS)
def test_gradients_of_kls(member, other):
    for reverse in (False, True):
        p, q = distribution(member, KINDS["Variable"]), OTHERS[other](KINDS["Variable"])
        variables = p.trainable_variables + q.trainable_variables
        assert_gradients_are_finite_differences(
            lambda p=p, q=q, r=reverse: kl(p, q, r), variables, variables
        )


@each_member
@each_kind
def test_new_values_of_variables_take_effect(member, kind):
    p = distribution(member, KINDS[kind])
    in_graph = function(lambda: compute(p, VALUE, FEW))
    in_graph()
    parameters = {name: getattr(p, name) for name in ARGUMENTS[member]}
    for parameter in parameters.values():
        source(parameter).assign(0.5 * source(parameter))
    fresh = CLASSES[member](**{k: tf.convert_to_tensor(v) for k, v in parameters.items()})
    assert_all_close(in_graph(), compute(fresh, VALUE, FEW))
    assert_all_close(compute(p, VALUE, FEW), compute(fresh, VALUE, FEW))


@each_member
@pytest.mark.parametrize("kind", ["Variable", "constant"])
def test_the_arguments_are_the_attributes(member, kind):
    given = {name: KINDS[kind](name, value) for name, value in ARGUMENTS[member].items()}
    p = CLASSES[member](**given, validate_args=True, allow_nan_stats=False, name="mine")
    assert set(p.parameters) == set(inspect.signature(CLASSES[member]).parameters)
    for same in (p, p.copy(), p.copy().copy(validate_args=False)):
        for name, argument in given.items():
            assert getattr(same, name) is argument, name
            assert same.parameters[name] is argument, name
            if name != "loc":
                assert getattr(same.scale, name) is argument, name
        assert not same.allow_nan_stats
        assert same.parameters["name"] == "mine"
    assert p.copy(validate_args=False).validate_args is False
    if kind == "Variable":
        assert {id(v) for v in p.trainable_variables} == {id(v) for v in given.values()}


@each_member
def test_use_leaves_no_trace(member):
    p = distribution(member, KINDS["Variable"])
    assert p.parameters  # which TFP completes when they are first asked for

    def attributes():
        return {
            (part, k): v
            for part, x in (("distribution", p), ("scale", p.scale))
            for k, v in vars(x).items()
            if not isinstance(v, tf.TensorShape)  # TFP keeps the static batch shape
        }

    before = attributes()
    function(lambda: (compute(p, VALUE, FEW | CONDITIONAL), all_kls(p)))()
    after = attributes()
    assert after.keys() == before.keys()
    assert [k for k in after if after[k] is not before[k]] == []


# --- Shapes and slices ----------------------------------------------------------------------------


# From the shape of an argument, what a graph knows of it.
KNOWN = {
    "known": lambda shape: shape,
    "sizes unknown": lambda shape: [None] * len(shape),
}


@each_member
@pytest.mark.parametrize("known", KNOWN)
def test_static_shapes_are_known_where_they_can_be(member, known):
    given = ARGUMENTS[member]
    shapes = [KNOWN[known](np.shape(v)) for v in (*given.values(), VALUE)]
    table = DISTRIBUTION | CONDITIONAL

    @function(input_signature=[tf.TensorSpec(shape, "float64") for shape in shapes])
    def in_graph(*arguments):
        *parameters, x = arguments
        p = CLASSES[member](**dict(zip(given, parameters, strict=True)))
        results = compute(p, x, table)
        if known == "known":
            assert p.batch_shape == BATCH_SHAPE
            assert p.scale.shape[-2:] == p.precision().shape[-2:] == [SIZE, SIZE]
            for name, result in results.items():
                expected = BATCH_SHAPE + STATISTICS[name].event_ndims * (SIZE,)
                assert result.shape == expected, name
        else:
            assert p.batch_shape.rank == 2
            assert p.sample([5, 2], seed=SEED).shape[:2] == [5, 2]
            for name, result in results.items():
                assert result.shape.rank == 2 + STATISTICS[name].event_ndims, name
        return results

    actual = in_graph(*given.values(), VALUE)
    assert_all_close(actual, compute(distribution(member), VALUE, table))


@each_member
def test_every_statistic_has_the_batch_shape_of_all_parameters(member):
    """Each parameter in turn is the only one that has a batch."""
    event_ndims = {
        name: p.event_ndims for name, p in CLASSES[member].parameter_properties().items()
    }
    first = {
        name: value[(0,) * (value.ndim - event_ndims[name])]
        for name, value in ARGUMENTS[member].items()
    }
    for changed in first:
        given = first | {changed: np.stack([first[changed], 0.9 * first[changed]])}
        p = CLASSES[member](**given)
        assert p.batch_shape == (2,)
        assert tuple(p.batch_shape_tensor()) == (2,)
        for name, s in (DISTRIBUTION | CONDITIONAL).items():
            if not name.startswith("precision"):  # which knows nothing of loc
                shape = (2,) + s.event_ndims * (SIZE,)
                assert s.compute(p, draw(SIZE)).shape == shape, (changed, name)


@each_member
@pytest.mark.parametrize("index", INDICES, ids=str)
def test_slices(member, index):
    value, p = VALUE[0, 0], distribution(member, KINDS["Variable"])
    with tf.GradientTape(persistent=True) as tape:
        sliced = p[index]
        actual = sliced.log_prob(value)
        whole = p.log_prob(value)[index]
    expected = DENSE[member].log_prob(value)[index]
    oracles.assert_close(actual, expected)
    assert type(sliced) is CLASSES[member]
    assert sliced.batch_shape == expected.shape
    assert sliced.sample(seed=SEED).shape == (*expected.shape, SIZE)
    for a, e in zip(
        tape.gradient(actual, p.trainable_variables),
        tape.gradient(whole, p.trainable_variables),
        strict=True,
    ):
        oracles.assert_close(a, e, "same computation")


# --- Round trips: nests, functions, loops, saved models -------------------------------------------


@each_member
@pytest.mark.parametrize("kind", ["Variable", "TransformedVariable", "constant"])
@pytest.mark.parametrize("part", ["distribution", "scale", "precision"])
def test_nest_round_trip(member, kind, part):
    p = tfp.experimental.as_composite(distribution(member, KINDS[kind]))
    whole = {"distribution": p, "scale": p.scale, "precision": p.precision()}[part]
    flat = tf.nest.flatten(whole, expand_composites=True)
    assert len(flat) == len(ARGUMENTS[member]) - (part != "distribution")
    packed = tf.nest.pack_sequence_as(whole, flat, expand_composites=True)
    mapped = tf.nest.map_structure(tf.identity, whole, expand_composites=True)
    for copy in (packed, mapped, whole._convert_variables_to_tensors()):
        assert type(copy) is type(whole)
        if part == "distribution":
            assert_all_close(compute(copy, VALUE, FEW), compute(p, VALUE, FEW))
        else:
            assert copy.shape == whole.shape
            assert copy.is_non_singular
            oracles.assert_close(copy.matvec(VALUE), whole.matvec(VALUE), "same computation", 1)
    assert not mapped.trainable_variables


@each_member
def test_function_argument_and_result(member):
    traces = []

    @function
    def in_graph(p, operator):
        traces.append(None)
        assert p.batch_shape == BATCH_SHAPE
        assert operator.shape[-2:] == (SIZE, SIZE)
        return p, operator, p.log_prob(VALUE)

    for _ in range(2):
        p = distribution(member)
        returned, operator, log_prob = in_graph(p, p.scale)
        oracles.assert_close(log_prob, DENSE[member].log_prob(VALUE))
        assert_all_close(compute(returned, VALUE, FEW), compute(p, VALUE, FEW))
        oracles.assert_close(operator.to_dense(), p.scale.to_dense(), "same computation", 2)
    assert len(traces) == 1


@each_member
@pytest.mark.parametrize("jit_compile", [False, True])
def test_while_loop(member, jit_compile):
    @function(jit_compile=jit_compile)
    def loop(p, x):
        def step(i, p, operator, x):
            return i + 1, p.copy(loc=p.loc + 1.0), operator, operator.matvec(x)

        _, p, _, x = tf.while_loop(lambda i, *_: i < 3, step, (tf.constant(0), p, p.scale, x))
        return p.log_prob(VALUE), x

    log_prob, x = loop(distribution(member), tf.constant(VALUE))
    dense = oracles.Dense(LOC + 3.0, DENSE[member].covariance)
    oracles.assert_close(log_prob, dense.log_prob(VALUE))
    cubed = np.linalg.matrix_power(dense.factor, 3)
    oracles.assert_close(x, (cubed @ VALUE[..., None])[..., 0], event_ndims=1)


class Model(tf.Module):
    def __init__(self, member):
        super().__init__()
        self.distribution = distribution(member, KINDS["Variable"])

    @function(input_signature=[tf.TensorSpec([*BATCH_SHAPE, SIZE], "float64")])
    def statistics(self, x):
        return compute(self.distribution, x, FEW)


@each_member
def test_saved_model(member, tmp_path):
    model = Model(member)
    assert len(model.trainable_variables) == len(ARGUMENTS[member])
    expected = model.statistics(VALUE)
    oracles.assert_close(expected["log_prob"], DENSE[member].log_prob(VALUE))
    tf.saved_model.save(model, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for name, actual in loaded.statistics(VALUE).items():
        np.testing.assert_array_equal(actual, expected[name], err_msg=name)
    checkpoint = tf.train.Checkpoint(model).save(str(tmp_path / "checkpoint"))
    for variable in model.trainable_variables:
        variable.assign(0.5 * variable)
    assert not np.any(model.statistics(VALUE)["log_prob"] == expected["log_prob"])
    tf.train.Checkpoint(model).restore(checkpoint).assert_consumed()
    for name, actual in model.statistics(VALUE).items():
        np.testing.assert_array_equal(actual, expected[name], err_msg=name)


# --- Samples --------------------------------------------------------------------------------------


@each_member
def test_seeds_reproduce(member):
    p = distribution(member)
    draws = (
        lambda seed: p.sample([5], seed=seed),
        lambda seed: p.experimental_sample_and_log_prob([5], seed=seed)[0],
        lambda seed: p.conditional(VALUE, ~OBSERVED).sample([5], seed=seed)[..., ::3],
    )
    for samples in draws:
        first = samples(SEED).numpy()
        np.testing.assert_array_equal(samples(SEED), first)
        assert not np.any(samples((1, 3)) == first)
        assert np.unique(first).size == first.size


@each_member
@pytest.mark.parametrize("shape", [(), 3, [2, 0], [4, 1, 2]], ids=str)
def test_sample_and_log_prob(member, shape):
    prefix = (shape,) if isinstance(shape, int) else tuple(shape)
    p = distribution(member)
    x, log_prob = p.experimental_sample_and_log_prob(shape, seed=SEED)
    assert x.shape == (*prefix, *BATCH_SHAPE, SIZE)
    oracles.assert_close(x, p.sample(shape, seed=SEED), "same computation")
    oracles.assert_close(log_prob, DENSE[member].log_prob(x))


# --- Transformations ------------------------------------------------------------------------------


def members_of_map(member):
    """Three values of each parameter."""
    if member == "OU":
        return (0.7, 1.0, 2.0), (0.6, 1.3, 1.0), ARGUMENTS[member]["times"]
    rho = [0.6, -0.3, 0.9] if member == "ARH1" else draw(3, SIZE - 1, seed=9)
    return SCALE_DIAG, rho


@pytest.mark.slow
@each_member
def test_vectorized_map(member):
    """Over parameters, values and seeds at once; each as if by itself."""
    q = OTHERS["AR1"](constant)[0, 0]
    given = (VALUE[0], *members_of_map(member), VALUE[1], np.int32([[1, 2], [3, 4], [5, 6]]))
    given = [tf.constant(m, None if np.asarray(m).dtype == "int32" else "float64") for m in given]

    def one(arguments):
        *parameters, x, seed = arguments
        p = CLASSES[member](**dict(zip(ARGUMENTS[member], parameters, strict=True)))
        more = {"KL to": p.kl_divergence(q), "KL from": q.kl_divergence(p)}
        more["draws"] = p.sample(3, seed=seed)
        return compute(p, x, DISTRIBUTION | CONDITIONAL) | more

    each = [one([m[i] for m in given]) for i in range(3)]
    for name, actual in tf.vectorized_map(one, given).items():
        event_ndims = STATISTICS[name].event_ndims if name in STATISTICS else 0
        expected = np.stack([result[name] for result in each])
        oracles.assert_close(actual, expected, "same computation", event_ndims, err_msg=name)


@pytest.mark.slow
@each_member
def test_gradients_of_vectorized_map(member):
    """`tf.vectorized_map` drops custom gradients."""
    given = [tf.constant(m, "float64") for m in members_of_map(member)]
    weights, mask = draw(SIZE, seed=1), np.arange(SIZE) % 3 == 0
    diag = tfd.MultivariateNormalDiag(VALUE[0, 0])

    def total(*parameters):
        p = CLASSES[member](**dict(zip(ARGUMENTS[member], (LOC[0, 0], *parameters), strict=True)))
        conditional = p.conditional(VALUE[0, 0], mask)
        vectors = (
            p.scale.matvec(weights),
            p.scale.matvec(weights, adjoint=True),
            p.scale.solvevec(weights, adjoint=True),
            p.covariance()[1],
            p.precision().matvec(weights),
            conditional.mean(),
            conditional.stddev(),
        )
        scalars = (
            p.log_prob(VALUE[0, 0]),
            p.entropy(),
            p.marginal(0, None, 2).log_prob(VALUE[0, 0, ::2]),
            conditional.observed_log_prob(),
            p.kl_divergence(diag),
            diag.kl_divergence(p),
        )
        return tf.reduce_sum(weights * tf.add_n(vectors)) + tf.add_n(scalars)

    for a, b in zip(
        gradients_of_map(total, given, mapped=True),
        gradients_of_map(total, given, mapped=False),
        strict=True,
    ):
        oracles.assert_close(a, b, "gradient", event_ndims=1)


@pytest.mark.slow
@pytest.mark.parametrize("member", ["ANTE1", "OU"])
def test_xla_agrees_with_eager(member):
    """Every statistic, and a gradient in which all of them take part; test_kl has the KLs."""
    table = {name: s for name, s in STATISTICS.items() if "sample" not in name}

    def results_and_gradients(*parameters):
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            p = CLASSES[member](**dict(zip(ARGUMENTS[member], parameters, strict=True)))
            results = compute(p, tf.constant(VALUE), table)
            total = tf.add_n([tf.reduce_sum(tf.sin(r)) for r in results.values()])
        return results, tape.gradient(total, parameters)

    given = [tf.constant(v) for v in ARGUMENTS[member].values()]
    expected, expected_gradients = results_and_gradients(*given)
    actual, gradients = function(results_and_gradients, jit_compile=True)(*given)
    assert_all_close(actual, expected)
    for a, e in zip(gradients, expected_gradients, strict=True):
        oracles.assert_close(a, e, "same computation", 1)


# --- Parameter properties, and other distributions around it --------------------------------------


@each_member
def test_parameter_properties(member):
    event_ndims, shapes = {
        "ARH1": (
            {"loc": 1, "scale_diag": 1, "correlation": 0, "fisher_z": 0},
            {"loc": [2, SIZE], "scale_diag": [2, SIZE], "correlation": [2], "fisher_z": [2]},
        ),
        "ANTE1": (
            {"loc": 1, "scale_diag": 1, "correlation": 1, "fisher_z": 1},
            {"loc": [2, SIZE], "scale_diag": [2, SIZE]}
            | {key: [2, SIZE - 1] for key in ("correlation", "fisher_z")},
        ),
        "OU": (
            {"loc": 1, "marginal_scale": 0, "length_scale": 0, "times": 1},
            {"loc": [2, SIZE], "marginal_scale": [2], "length_scale": [2], "times": [2, SIZE]},
        ),
    }[member]
    properties = CLASSES[member].parameter_properties(dtype=tf.float64)
    assert {name: p.event_ndims for name, p in properties.items()} == event_ndims
    actual = {name: list(p.shape_fn([2, SIZE])) for name, p in properties.items()}
    assert actual == shapes
    if member != "OU":
        assert not properties["correlation"].is_preferred
        assert properties["fisher_z"].is_preferred


@each_member
@pytest.mark.parametrize("dtype", oracles.DTYPES)
@pytest.mark.parametrize("spread", [1, 10, 50])
def test_constraining_bijectors_map_to_valid_parameters(member, dtype, spread):
    """At a spread of 50, tanh and softplus saturate in float32."""
    spellings = [("fisher_z",), ("correlation",)] if member != "OU" else [()]
    properties = CLASSES[member].parameter_properties(dtype=tf.as_dtype(dtype))
    for spelling in spellings:
        names = [n for n in properties if n not in ("fisher_z", "correlation") or n in spelling]
        parameters = {}
        for name in names:
            shape = list(properties[name].shape_fn([100, 3]))
            # Ascending numbers are right for times of a range that float32 can tell apart.
            size = 1 if name == "times" else spread
            unconstrained = tf.constant(size * draw(*shape, dtype=dtype, seed=len(name)))
            bijector = properties[name].default_constraining_bijector_fn()
            parameters[name] = bijector(unconstrained)
        p = CLASSES[member](**parameters, validate_args=True)
        assert p.dtype == dtype
        assert p.batch_shape == [100]
        assert np.all(np.isfinite(p.sample(seed=SEED)))
        assert np.all(np.isfinite(p.entropy()))


@each_member
def test_event_space_bijector(member):
    bijector = distribution(member).experimental_default_event_space_bijector()
    shape = tf.TensorShape(VALUE.shape)
    assert bijector.inverse_event_shape(shape) == bijector.forward_event_shape(shape) == shape
    np.testing.assert_array_equal(bijector.inverse(bijector.forward(VALUE)), VALUE)
    np.testing.assert_array_equal(bijector.forward_log_det_jacobian(VALUE, event_ndims=1), 0.0)


@each_member
@pytest.mark.parametrize("stateless", [False, True])
def test_make_trainable(member, stateless):
    shape, x = [2, SIZE], 3.0 + draw(20, 2, SIZE, dtype="float32")
    options = {"batch_and_event_shape": shape, "validate_args": True}
    if stateless:
        init, apply = tfp.experimental.util.make_trainable_stateless(CLASSES[member], **options)
        variables = [tf.Variable(v) for v in init(seed=SEED)]
        make = lambda: apply(variables)  # noqa: E731
    else:
        p = tfp.experimental.util.make_trainable(CLASSES[member], seed=SEED, **options)
        variables, make = p.trainable_variables, lambda: p
    assert make().batch_shape == [2]
    expected = {
        "ARH1": [[2], [2, SIZE], [2, SIZE]],
        "ANTE1": [[2, SIZE - 1], [2, SIZE], [2, SIZE]],
        "OU": [[2], [2], [2, SIZE], [2, SIZE]],
    }[member]
    assert sorted(v.shape.as_list() for v in variables) == expected

    def loss():
        return -tf.reduce_mean(make().log_prob(x))

    before = loss()
    for _ in range(10):
        with tf.GradientTape() as tape:
            current = loss()
        for variable, gradient in zip(variables, tape.gradient(current, variables), strict=True):
            variable.assign_sub(0.1 * tf.sign(gradient))
    assert loss() < before - 0.5


# The distribution around ours; the shape of its values; what their log-density should be.
AROUND = {
    "BatchReshape": (
        lambda p: tfd.BatchReshape(p, [6]),
        (6, SIZE),
        lambda dense, x: dense.log_prob(x.reshape(*BATCH_SHAPE, SIZE)).reshape(6),
    ),
    "BatchBroadcast": (
        lambda p: tfd.BatchBroadcast(p, to_shape=[5, *BATCH_SHAPE]),
        (5, *BATCH_SHAPE, SIZE),
        lambda dense, x: dense.log_prob(x),
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
    p = distribution(member, KINDS["Variable"])
    x = draw(*shape, seed=4)
    with tf.GradientTape() as tape:
        around = make(p)
        actual = around.log_prob(x)
    oracles.assert_close(actual, log_prob(DENSE[member], x))
    assert all(g is not None for g in tape.gradient(actual, p.trainable_variables))
    assert around.sample(7, seed=SEED).shape == (7, *shape)


@each_member
def test_inside_a_joint_distribution(member):
    given = {
        name: value[(0,) * (value.ndim - CLASSES[member].parameter_properties()[name].event_ndims)]
        for name, value in ARGUMENTS[member].items()
    }
    joint = tfd.JointDistributionNamedAutoBatched(
        {
            "level": tfd.Normal(np.float64(0.0), 1.0),
            "path": lambda level: CLASSES[member](**(given | {"loc": level + given["loc"]})),
        }
    )
    x = joint.sample(5, seed=SEED)
    assert x["path"].shape == (5, SIZE)
    level = x["level"].numpy()
    dense = oracles.Dense(level[:, None] + given["loc"], DENSE[member].covariance[0, 0])
    expected = dense.log_prob(x["path"]) - 0.5 * (level**2 + np.log(2 * np.pi))
    oracles.assert_close(joint.log_prob(x), expected)


@each_member
@pytest.mark.parametrize("dtype", oracles.DTYPES)
def test_every_result_has_the_dtype_of_the_parameters(member, dtype):
    p = distribution(member, lambda _, value: value.astype(dtype))
    results = compute(p, VALUE.astype(dtype), DISTRIBUTION | CONDITIONAL)
    results["KL"] = p.kl_divergence(tfd.MultivariateNormalDiag(tf.zeros(SIZE, dtype)))
    assert {k for k, v in results.items() if v.dtype != dtype} == set()
    assert p.dtype == p.scale.dtype == p.precision().dtype == dtype

"""TFP's contract for ARH(1), ANTE(1) and OU: what test_contract asks of AR(1), a test a point."""

import functools
import inspect

import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from family import RELATIVES, as_dense, cast, random_parameters
from test_contract import (
    COMBINATIONS,
    CONDITIONAL,
    DISTRIBUTION,
    FEW,
    INDICES,
    KINDS,
    MASK,
    OBSERVED,
    OTHERS,
    SEED,
    SIZE,
    STATISTICS,
    VALUE,
    Reads,
    assert_all_close,
    assert_gradients_are_finite_differences,
    check_stateless_seed,
    compute,
    constant,
    draw,
    function,
    gradients_of_map,
    kl,
    log_mean_exp,
    reads_in_graph,
    refuse,
    source,
)

from tfp_ar1 import MultivariateNormalAR1, MultivariateNormalOU
from tfp_ar1.linear_operators.markov_cholesky import LinearOperatorMarkovCholesky

tfb = tfp.bijectors
tfd = tfp.distributions

BATCH_SHAPE = (2, 3)
# The other spelling of a correlation is named.
CASES = {
    "ARH1": RELATIVES["ARH1"],
    "ANTE1": RELATIVES["ANTE1 by fisher_z"],
    "OU": RELATIVES["OU"],
    "ARH1 by fisher_z": RELATIVES["ARH1 by fisher_z"],
    "ANTE1 by correlation": RELATIVES["ANTE1"],
}
CLASSES = {member: case.cls for member, case in CASES.items()}
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
    "ARH1 by fisher_z": {
        "loc": LOC,
        "scale_diag": SCALE_DIAG,
        "fisher_z": np.arctanh([[0.6], [-0.3]]),
    },
    "ANTE1 by correlation": {
        "loc": LOC,
        "scale_diag": SCALE_DIAG,
        "correlation": np.tanh(draw(2, 1, SIZE - 1, seed=9)),
    },
}
# What (l)oc, (s)cale and (c)orrelation, on which a statistic depends, are among the parameters.
LETTERS = {"l": slice(0, 1), "s": slice(1, 2), "c": slice(2, None)}
each_member = pytest.mark.parametrize("member", ["ARH1", "ANTE1", "OU"])
each_spelling = pytest.mark.parametrize("member", CASES)
each_kind = pytest.mark.parametrize("kind", ["Variable", "TransformedVariable", "DeferredTensor"])


def make_distribution(member, parameters):
    """From the values of its parameters, in their order."""
    return CASES[member].distribution(*parameters)


def distribution(member, make=constant, **others):
    given = {name: make(name, value) for name, value in ARGUMENTS[member].items()}
    return CLASSES[member](**given, **others)


def make_operator(member, parameters):
    """The scale of `make_distribution`, by itself."""
    names = CASES[member].names[1:]
    return type(distribution(member).scale)(**dict(zip(names, parameters, strict=True)))


def dense(member, **changed):
    return as_dense(CASES[member], (ARGUMENTS[member] | changed).values(), SIZE)


DENSE = {member: dense(member) for member in CASES}


def event_ndims_of(member):
    properties = CLASSES[member].parameter_properties()
    return {name: properties[name].event_ndims for name in CASES[member].names}


def first(member):
    """The parameters of the first member of the batch."""
    event_ndims = event_ndims_of(member)
    return {
        name: value[(0,) * (value.ndim - event_ndims[name])]
        for name, value in ARGUMENTS[member].items()
    }


def names_of(letters, member):
    return [name for letter in letters for name in CASES[member].names[LETTERS[letter]]]


def all_kls(p):
    return [kl(p, other(constant), r) for other in OTHERS.values() for r in (False, True)]


# --- Variables ------------------------------------------------------------------------------------


@each_spelling
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


@each_spelling
def test_a_graph_reads_each_variable_at_most_twice(member):
    """Counts operations, for plain variables: some reads make no tensor that Python sees."""
    p = distribution(member, KINDS["Variable"])
    for name, statistic in STATISTICS.items():
        reads = reads_in_graph(p, ARGUMENTS[member], lambda s=statistic: s.compute(p, VALUE))
        assert reads.keys() >= set(names_of(statistic.depends_on, member)), name
        assert max(reads.values()) <= 2, (name, reads)


@each_spelling
def test_a_kl_reads_each_variable_once(member):
    for name, other in OTHERS.items():
        for reverse in (False, True):
            reads = Reads()
            p, q = distribution(member, reads.make), other(reads.make)
            reads.clear()
            kl(p, q, reverse)
            assert set(reads.values()) == {1}, (name, reads)
            assert reads.keys() >= set(ARGUMENTS[member])


@each_spelling
def test_gradients_of_statistics(member):
    for statistic in STATISTICS.values():
        p = distribution(member, KINDS["Variable"])
        needed = [getattr(p, k) for k in names_of(statistic.depends_on, member)]
        assert_gradients_are_finite_differences(
            lambda p=p, s=statistic: s.compute(p, VALUE), p.trainable_variables, needed
        )


@each_spelling
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


@each_spelling
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


# From the shapes of batch and event of an argument, what a graph knows of its shape.
KNOWN = {
    "known": lambda batch, event: [*batch, *event],
    "batch unknown": lambda batch, event: [*(None if n == 2 else n for n in batch), *event],
    "event unknown": lambda batch, event: [*batch, *(None for _ in event)],
    "sizes unknown": lambda batch, event: [None] * len([*batch, *event]),
    "rank unknown": lambda batch, event: None,
}


@functools.cache
def eager_results(member):
    return compute(distribution(member), VALUE, DISTRIBUTION | CONDITIONAL)


@each_member
@pytest.mark.parametrize("known", KNOWN)
def test_static_shapes_are_known_where_they_can_be(member, known):
    def shape(value, event_ndims):
        split = np.ndim(value) - event_ndims
        return tf.TensorShape(KNOWN[known](np.shape(value)[:split], np.shape(value)[split:]))

    def assert_shape(result, *expected, err_msg=""):
        expected = functools.reduce(tf.TensorShape.concatenate, expected, tf.TensorShape([]))
        assert result.shape.is_subtype_of(expected), f"{err_msg}: {result.shape}, not {expected}"

    given, event_ndims = ARGUMENTS[member], event_ndims_of(member)
    batch_shape = shape(np.zeros(BATCH_SHAPE), 0)
    event_shape = tf.TensorShape(KNOWN[known]([], [SIZE]) or [None])
    shapes = [*(shape(given[k], event_ndims[k]) for k in given), shape(VALUE, 1)]

    @function(input_signature=[tf.TensorSpec(shape, "float64") for shape in shapes])
    def in_graph(*arguments):
        *parameters, x = arguments
        p = make_distribution(member, parameters)
        assert p.batch_shape.is_subtype_of(batch_shape)
        assert p.event_shape.is_subtype_of(event_shape)
        for operator in (p.scale, p.precision()):
            assert_shape(operator, batch_shape, event_shape, event_shape)
        assert_shape(p.sample([5, 2], seed=SEED), [5, 2], batch_shape, event_shape)
        results = compute(p, x, DISTRIBUTION | CONDITIONAL)
        for name, result in results.items():
            event = [event_shape] * STATISTICS[name].event_ndims
            assert_shape(result, batch_shape, *event, err_msg=name)
        return results

    assert_all_close(in_graph(*given.values(), VALUE), eager_results(member))


@each_member
def test_a_conditional_of_unknown_rank(member):
    """The rank of the mask too, on which the search for neighbours depends."""

    def results(*arguments):
        *parameters, x, observed = arguments
        conditional = make_distribution(member, parameters).conditional(x, observed)
        return (
            conditional.mean(),
            conditional.stddev(),
            conditional.sample(seed=SEED),
            conditional.observed_log_prob(),
        )

    given = tuple(ARGUMENTS[member].values())
    signature = [tf.TensorSpec(None, "float64")] * (len(given) + 1) + [tf.TensorSpec(None, "bool")]
    in_graph = function(results, input_signature=signature)
    for x, observed in ((VALUE, OBSERVED), (VALUE, VALUE > 0), (VALUE[0, 0], VALUE > 0)):
        for a, e in zip(in_graph(*given, x, observed), results(*given, x, observed), strict=True):
            oracles.assert_close(a, e, "same computation", e.shape.rank - 2)


@each_member
def test_every_statistic_has_the_batch_shape_of_all_parameters(member):
    """Each parameter in turn is the only one that has a batch."""
    one = first(member)
    for changed in one:
        given = one | {changed: np.stack([one[changed], 0.9 * one[changed]])}
        p = CLASSES[member](**given)
        assert p.batch_shape == (2,)
        assert tuple(p.batch_shape_tensor()) == (2,)
        for name, s in (DISTRIBUTION | CONDITIONAL).items():
            if not name.startswith("precision"):  # which knows nothing of loc
                shape = (2,) + s.event_ndims * (SIZE,)
                assert s.compute(p, draw(SIZE)).shape == shape, (changed, name)


@each_spelling
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


@each_spelling
def test_slices_of_slices_and_copies_lead_back_to_the_variables(member):
    p = distribution(member, KINDS["Variable"])
    name, scale = CASES[member].names[1], np.array([1.5, 1.0, 0.8])
    if name == "scale_diag":
        scale = scale[:, np.newaxis] * SCALE_DIAG[0]
    part = p[:, ::2].copy(**{name: tf.Variable(scale[::2])})
    p.loc.assign_add(tf.ones_like(p.loc))
    x = VALUE[0, 0]
    expected = dense(member, **{"loc": LOC + 1.0, name: scale}).log_prob(x)[:, ::2]
    variables = [getattr(part if k == name else p, k) for k in ARGUMENTS[member]]
    for slices in ((...,), (1,), (1, 0), (slice(None), 0), ((slice(None), slice(1, None)), 1)):
        with tf.GradientTape() as tape:
            sliced, log_prob = part, expected
            for index in slices:
                sliced, log_prob = sliced[index], log_prob[index]
            actual = sliced.log_prob(x)
        assert sliced.batch_shape == log_prob.shape
        oracles.assert_close(actual, log_prob, err_msg=f"{slices}")
        assert all(g is not None for g in tape.gradient(actual, variables)), slices


@each_member
def test_is_not_iterable(member):
    with pytest.raises(TypeError, match="not iterable"):
        iter(distribution(member))


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
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_stateless_seed_gives_the_same_in_graphs(member, jit_compile):
    check_stateless_seed(distribution(member), jit_compile)


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


@each_member
def test_vectorized_map_over_values(member):
    """As chains of MCMC do it, and without falling back to a loop."""
    values = tf.constant(draw(5, *BATCH_SHAPE, SIZE))
    log_prob = distribution(member).log_prob
    log_probs = tf.vectorized_map(log_prob, values, fallback_to_while_loop=False)
    oracles.assert_close(log_probs, DENSE[member].log_prob(values))


@pytest.mark.slow
@pytest.mark.parametrize(("member", "size"), [*((member, 5) for member in CASES), ("OU", 150)])
def test_gradients_of_vectorized_map(member, size):
    """`tf.vectorized_map` drops custom gradients. Of 150 steps that differ, paths are in blocks."""
    case, x, weights = CASES[member], draw(size), draw(size, seed=1)
    given = [tf.constant(a) for a in random_parameters(case, (2,), size)]
    mask, diag = np.arange(size) % 3 == 0, tfd.MultivariateNormalDiag(x)

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
            p.kl_divergence(diag),
            diag.kl_divergence(p),
        )
        results = [*(tf.reduce_sum(weights * v) for v in vectors), *scalars]
        return tf.reduce_sum(draw(len(results), seed=2) * tf.stack(results))

    for name, a, b in zip(
        case.names,
        gradients_of_map(total, given, mapped=True),
        gradients_of_map(total, given, mapped=False),
        strict=True,
    ):
        oracles.assert_close(a, b, "gradient", a.shape.rank - 1, err_msg=name)


# The parameter of correlation, from a number of which tanh is about the correlation of neighbours.
DRAWN = {
    "ARH1": tf.tanh,
    "ANTE1": lambda u: u * [1.0, -0.5, 0.1],
    "OU": tf.exp,
    "ARH1 by fisher_z": tf.identity,
    "ANTE1 by correlation": lambda u: tf.tanh(u * [1.0, -0.5, 0.1]),
}


@each_spelling
def test_auto_batched_joint_distribution_has_the_right_gradient(member):
    """Against one path after the other."""
    loc, scale = tf.zeros(SIZE), tf.ones([] if member == "OU" else SIZE)
    times = (np.float32([0.0, 1.0, 1.5, 4.0]),) if member == "OU" else ()

    def path(u):
        return make_distribution(member, (loc, scale, DRAWN[member](u), *times))

    prior = tfd.Normal(0.0, 1.0)
    model = tfd.JointDistributionSequentialAutoBatched([prior, path])
    # A correlation next to 1 is for those that can say it in float32.
    u = tf.constant([0.0, 1.0, 3.0, -3.0 if "correlation" in CASES[member].names else 12.0])
    x = 1.0 + 0.01 * tf.range(4.0)[:, tf.newaxis] * draw(4, SIZE, dtype="float32")[::-1]
    actual = tfp.math.value_and_gradient(lambda u, x: model.log_prob([u, x]), [u, x])[1]
    expected = gradients_of_map(
        lambda u, x: prior.log_prob(u) + path(u).log_prob(x), [u, x], mapped=False
    )
    for name, a, e in zip(("u", "x"), actual, expected, strict=True):
        oracles.assert_close(a, e, "gradient", a.shape.rank - 1, err_msg=name)


@pytest.mark.slow
@each_spelling
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
    # Times are data, of which `make_trainable` makes no variable.
    other = "times" if member == "OU" else "correlation"
    assert {name for name, p in properties.items() if not p.is_preferred} == {other}


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
    if member == "OU":
        make_trainable = tfp.experimental.util.make_trainable
        with pytest.raises(ValueError, match="Missing required `times`"):
            make_trainable(CLASSES[member], **options)
        options["times"] = tf.range(1.0, SIZE + 1.0)
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
        "OU": [[2], [2], [2, SIZE]],
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
    "Mixture": (
        lambda p: tfd.Mixture(tfd.Categorical(logits=np.zeros((2, 2))), [p[:, 0], p[:, 1]]),
        (2, SIZE),
        lambda dense, x: log_mean_exp(dense.log_prob(x[:, np.newaxis])[:, :2]),
    ),
    "Sample": (
        lambda p: tfd.Sample(p, 5),
        (*BATCH_SHAPE, 5, SIZE),
        lambda dense, x: dense.log_prob(np.moveaxis(x, -2, 0)).sum(axis=0),
    ),
    "Masked": (
        lambda p: tfd.Masked(p, MASK),
        (*BATCH_SHAPE, SIZE),
        lambda dense, x: np.where(MASK, dense.log_prob(x), 0.0),
    ),
    "TransformedDistribution": (
        lambda p: tfd.TransformedDistribution(p, tfb.Sinh()),
        (*BATCH_SHAPE, SIZE),
        lambda dense, x: dense.log_prob(np.arcsinh(x)) - 0.5 * np.log1p(x**2).sum(axis=-1),
    ),
    "Blockwise": (
        lambda p: tfd.Blockwise([p, p]),
        (*BATCH_SHAPE, 2 * SIZE),
        lambda dense, x: dense.log_prob(x[..., :SIZE]) + dense.log_prob(x[..., SIZE:]),
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


@each_spelling
def test_inside_a_joint_distribution(member):
    given = first(member)
    joint = tfd.JointDistributionNamedAutoBatched(
        {
            "level": tfd.Normal(np.float64(0.0), 1.0),
            "path": lambda level: CLASSES[member](**(given | {"loc": level + given["loc"]})),
            "data": lambda path: tfd.Independent(tfd.Normal(path, 0.1), 1),
        }
    )
    assert joint.event_shape == {"level": [], "path": [SIZE], "data": [SIZE]}
    x = joint.sample(5, seed=SEED)
    assert x["path"].shape == x["data"].shape == (5, SIZE)
    level, path, data = (x[k].numpy() for k in ("level", "path", "data"))
    paths = oracles.Dense(level[:, None] + given["loc"], DENSE[member].covariance[0, 0])
    expected = paths.log_prob(path) - 0.5 * (level**2 + np.log(2 * np.pi))
    error = (data - path) / 0.1
    expected -= 0.5 * np.sum(error**2 + np.log(2 * np.pi * 0.1**2), axis=-1)
    oracles.assert_close(joint.log_prob(x), expected)
    pinned = joint.experimental_pin(data=data[0])
    oracles.assert_close(pinned.log_prob(level=level[0], path=path[0]), expected[0])
    bijected = pinned.experimental_default_event_space_bijector()
    assert bijected.inverse_event_shape(pinned.event_shape) == pinned.event_shape


# --- The operator among operators -----------------------------------------------------------------


@each_spelling
def test_operators_made_of_it(member, monkeypatch):
    case = CASES[member]
    (a, a_matrix), (b, b_matrix) = (
        (
            make_operator(member, random_parameters(case, (2,), size)[1:]),
            as_dense(case, random_parameters(case, (2,), size), size).factor,
        )
        for size in (3, 2)
    )
    for name, (combine, combine_matrices) in COMBINATIONS.items():
        matrix = combine_matrices(a_matrix, b_matrix)
        x = draw(2, matrix.shape[-1], 3)
        with monkeypatch.context() as patch:
            patch.setattr(LinearOperatorMarkovCholesky, "_to_dense", refuse)
            combined = combine(a, b)
            log_det = combined.log_abs_determinant()
            results = {
                "matmul": (combined.matmul(x), matrix @ x),
                "adjoint matmul": (combined.matmul(x, adjoint=True), matrix.swapaxes(-1, -2) @ x),
                "solve": (combined.solve(x), np.linalg.solve(matrix, x)),
                "matvec": (combined.matvec(x[..., 0]), (matrix @ x)[..., 0]),
            }
        oracles.assert_close(log_det, np.linalg.slogdet(matrix)[1], err_msg=name)
        oracles.assert_close(combined.to_dense(), matrix, event_ndims=2, err_msg=name)
        for key, (actual, expected) in results.items():
            ndims = expected.ndim - 1
            oracles.assert_close(actual, expected, event_ndims=ndims, err_msg=f"{name}, {key}")


@each_member
def test_adjoint_and_inverse_of_a_hundred_thousand_rows(member, monkeypatch):
    monkeypatch.setattr(LinearOperatorMarkovCholesky, "_to_dense", refuse)
    size, rng = 100_000, np.random.default_rng(0)
    if member == "OU":
        steps = rng.uniform(0.1, 2.0, size - 1)
        scale, rho = 2.0, np.exp(-steps / 1.3)
        parameters = np.float64(scale), 1.3, np.append(0.0, np.cumsum(steps))
    else:
        scale = rng.uniform(0.5, 2.0, size)
        rho = np.full(size - 1, 0.9) if member == "ARH1" else rng.uniform(-0.9, 0.9, size - 1)
        parameters = scale, 0.9 if member == "ARH1" else np.arctanh(rho)
    operator = make_operator(member, parameters)
    x, root = draw(size), np.sqrt(1 - rho**2)
    w = x / scale
    whitened = np.append(w[0], (w[1:] - rho * w[:-1]) / root)
    y = np.append(x[0], x[1:] / root)
    whitened_adjoint = (y - np.append(rho * y[1:], 0.0)) / scale
    oracles.check_inverses(operator, x, whitened, whitened_adjoint)
    log_det = np.sum(np.log(scale * np.ones(size))) + np.sum(np.log(root))
    oracles.assert_close(operator.adjoint().log_abs_determinant(), log_det)
    oracles.assert_close(operator.inverse().log_abs_determinant(), -log_det)


# --- Dtypes ---------------------------------------------------------------------------------------


@each_spelling
@pytest.mark.parametrize("dtype", oracles.DTYPES)
def test_every_result_has_the_dtype_of_the_parameters(member, dtype):
    p = distribution(member, lambda _, value: value.astype(dtype))
    results = compute(p, VALUE.astype(dtype), DISTRIBUTION | CONDITIONAL)
    results["KL"] = p.kl_divergence(tfd.MultivariateNormalDiag(tf.zeros(SIZE, dtype)))
    assert {k for k, v in results.items() if v.dtype != dtype} == set()
    assert p.dtype == p.scale.dtype == p.precision().dtype == dtype


@each_spelling
@pytest.mark.parametrize("as_variable", [False, True])
def test_mixed_dtypes_are_a_type_error(member, as_variable):
    convert = tf.Variable if as_variable else tf.constant
    for name in ARGUMENTS[member]:
        given = {
            k: convert(v.astype("float32" if k == name else "float64"))
            for k, v in ARGUMENTS[member].items()
        }
        with pytest.raises(TypeError, match=r"dtype|float32"):
            CLASSES[member](**given)
        if name != "loc":
            with pytest.raises(TypeError, match=r"dtype|float32"):
                make_operator(member, [v for k, v in given.items() if k != "loc"])


@each_spelling
def test_python_numbers_take_the_dtype_of_the_others(member):
    """All but one parameter are Python's numbers, or lists of them."""
    numbers = {name: value.tolist() for name, value in first(member).items()}
    for name in numbers:
        for dtype in oracles.DTYPES:
            given = {k: np.asarray(v, dtype) for k, v in numbers.items()}
            p = CLASSES[member](**(numbers | {name: given[name]}))
            for key, value in given.items():
                assert getattr(p, key).dtype == dtype, (name, key)
                # The number itself, and not the float32 that is nearest to it.
                np.testing.assert_array_equal(getattr(p, key), value)
            expected = as_dense(CASES[member], oracles.as_float64(*given.values()), SIZE)
            x = VALUE[0, 0].astype(dtype)
            oracles.assert_close(p.log_prob(x), expected.log_prob(x), err_msg=name)
            if name != "loc":
                operator = make_operator(
                    member, [given[k] if k == name else v for k, v in numbers.items() if k != "loc"]
                )
                assert operator.dtype == dtype
    assert CLASSES[member](**numbers).dtype == tf.float32


# --- Correlations next to 1, and next to 0 --------------------------------------------------------

# The parameters of correlation at their extremes; for OU, the times make it that of u = 8, that of
# ρ = 0.9999, and one of e⁻⁵.
EXTREME = {
    "ARH1, 0.9999": ("ARH1", 0.9999),
    "ARH1, -0.9999": ("ARH1", -0.9999),
    "ARH1, u = 8": ("ARH1 by fisher_z", 8.0),
    "ARH1, u = -8": ("ARH1 by fisher_z", -8.0),
    "ANTE1, 0.9999": ("ANTE1 by correlation", [0.9999, 0.0, -0.9999]),
    "ANTE1, u = 8": ("ANTE1", [8.0, 0.0, -8.0]),
    "OU": ("OU", 1.0),
}
SCALES = np.float32([1.3, 0.7, 2.0, 0.1])
TIMES = np.float32([0.0, 2.25e-7, 1e-4, 5.0])


def exact_and_parameters(member, correlation):
    """A chain of mean 0 in decimals, our parameters but `loc`, and the chain rule between them.

    The last makes the derivatives in our parameters of those in each scale and each fisher_z.
    """
    correlation, mean = np.float32(correlation), (0.0,) * SIZE
    if member == "OU":
        parameters = [SCALES[0], correlation, TIMES]
        length_scale, times = np.float64(correlation), np.float64(TIMES)
        x = np.diff(times) / length_scale

        def chain_rule(d_scale, d_u):
            d_x = d_u / (-2.0 * np.sinh(x))  # u = atanh e^-x
            d_steps = d_x / length_scale
            d_times = np.append(0.0, d_steps) - np.append(d_steps, 0.0)
            return np.sum(d_scale), np.sum(-d_steps * x), d_times

        return oracles.ExactChain.ou(mean, *parameters), parameters, chain_rule

    rho = u = np.float64(correlation)
    by_correlation = CASES[member].names[-1] == "correlation"
    if by_correlation:
        u = np.arctanh(rho)

    def chain_rule(d_scale, d_u):
        if by_correlation:
            d_u = d_u / ((1 - rho) * (1 + rho))
        return d_scale, d_u if rho.ndim else np.sum(d_u)

    exact = oracles.ExactChain(mean, SCALES, tuple(np.broadcast_to(u, [SIZE - 1])))
    return exact, [SCALES, correlation], chain_rule


@pytest.mark.parametrize("name", EXTREME)
def test_values_and_gradients_next_to_one(name):
    """Against 200 digits. Values are right to 3e-5 in float32 and to 1e-12 in float64, relative to
    themselves; gradients to the tolerances of the suite.
    """
    member, correlation = EXTREME[name]
    exact, parameters, chain_rule = exact_and_parameters(member, correlation)
    # A path that is likely where correlations are positive, and one that is not.
    smooth = parameters[0] * np.float32([1.0, 1.0001, 1.01, 0.5])
    ragged, loc = draw(SIZE, dtype="float32"), np.float32([0.5, -1.0, 0.25, 2.0])
    standard, other = oracles.Exact(exact.mean, 1.0, 0.0), oracles.Exact(tuple(loc), 1.25, -8.0)
    # The value, and the derivative in a field at an index.
    expected = {
        "smooth": (exact.log_prob(smooth), lambda *at: exact.log_prob_derivative(smooth, *at)),
        "ragged": (exact.log_prob(ragged), lambda *at: exact.log_prob_derivative(ragged, *at)),
        # Up to a constant, the log-density at the mean with its sign changed.
        "entropy": (exact.entropy(), lambda *at: -exact.log_prob_derivative(exact.mean, *at)),
        "KL to N(0, I)": (exact.kl(standard), lambda *at: exact.kl_derivative(standard, *at)),
        "KL from N(0, I)": (
            standard.kl(exact),
            lambda *at: standard.kl_derivative_other(exact, *at),
        ),
        "KL to AR1": (exact.kl(other), lambda *at: exact.kl_derivative(other, *at)),
        "KL from AR1": (other.kl(exact), lambda *at: other.kl_derivative_other(exact, *at)),
    }
    derivatives = {
        key: chain_rule(
            np.array([derivative("scale", i) for i in range(SIZE)]),
            np.array([derivative("fisher_z", i) for i in range(SIZE - 1)]),
        )
        for key, (_, derivative) in expected.items()
    }
    for dtype, tolerance in (("float32", 3e-5), ("float64", 1e-12)):
        given = [tf.constant(a) for a in cast(parameters, dtype)]
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(given)
            p = make_distribution(member, (tf.zeros(SIZE, dtype), *given))
            normal = tfd.MultivariateNormalDiag(tf.zeros(SIZE, dtype))
            ar1 = MultivariateNormalAR1(tf.constant(loc, dtype), 1.25, fisher_z=-8.0)
            results = {
                "smooth": p.log_prob(tf.constant(smooth, dtype)),
                "ragged": p.log_prob(tf.constant(ragged, dtype)),
                "entropy": p.entropy(),
                "KL to N(0, I)": p.kl_divergence(normal),
                "KL from N(0, I)": normal.kl_divergence(p),
                "KL to AR1": p.kl_divergence(ar1),
                "KL from AR1": ar1.kl_divergence(p),
            }
        for key, result in results.items():
            assert result.dtype == dtype
            np.testing.assert_allclose(result, expected[key][0], rtol=tolerance, err_msg=key)
            gradients = tape.gradient(result, given, unconnected_gradients="zero")
            names = CASES[member].names[1:]
            for k, a, e in zip(names, gradients, derivatives[key], strict=True):
                message = f"{key}, {k}, {dtype}"
                oracles.assert_close(a, e, "gradient", np.ndim(e), err_msg=message)


@pytest.mark.parametrize(
    ("dtype", "length_scale"),
    [("float32", 1e-2), ("float32", 1e-21), ("float32", 1e-38), ("float64", 1e-200)],
)
def test_ou_of_times_far_apart_does_not_depend_on_their_distance(dtype, length_scale):
    """The correlation underflows to 0, and the square of the length scale to 0 as well."""
    times = tf.constant([0.0, 1.0, 3.0, 4.5], dtype)
    length_scale = tf.constant(length_scale, dtype)
    x, loc = draw(SIZE, dtype=dtype, seed=1), draw(SIZE, dtype=dtype)
    other = MultivariateNormalAR1(tf.zeros(SIZE, dtype), fisher_z=0.5)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([length_scale, times])
        p = MultivariateNormalOU(loc, 1.3, length_scale, times)
        results = compute(p, x, DISTRIBUTION | CONDITIONAL) | {
            "KL to": p.kl_divergence(other),
            "KL from": other.kl_divergence(p),
        }
    independent = MultivariateNormalAR1(loc, 1.3, correlation=0.0)
    expected = compute(independent, x, DISTRIBUTION | CONDITIONAL)
    assert_all_close({key: results[key] for key in expected}, expected)
    for key, result in results.items():
        for gradient in tape.gradient(result, [length_scale, times], unconnected_gradients="zero"):
            np.testing.assert_array_equal(gradient, np.zeros(gradient.shape), err_msg=key)


@pytest.mark.parametrize("length_scale", [0.03, 0.1, 30.0, 1e19, 1e20, 1e30])
def test_ou_of_any_length_scale_has_gradients(length_scale):
    """In float32, as in float64, where the squares of such numbers are finite."""
    values = {"length_scale": length_scale, "times": [0.0, 1.0, 3.0, 4.5]}
    gradients = {}
    for dtype in ("float32", "float64"):
        given = {key: tf.constant(value, dtype) for key, value in values.items()}
        x = draw(SIZE, dtype="float32", seed=1).astype(dtype)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(given)
            p = MultivariateNormalOU(tf.zeros(SIZE, dtype), 1.3, **given)
            results = {"log_prob": p.log_prob(x), "entropy": p.entropy()}
        gradients[dtype] = {key: tape.gradient(result, given) for key, result in results.items()}
    for key, expected in gradients["float64"].items():
        for name in values:
            actual = gradients["float32"][key][name]
            scale = np.max(np.abs(expected[name]))
            np.testing.assert_allclose(
                actual, expected[name], rtol=1e-4, atol=1e-5 * scale, err_msg=f"{key}, {name}"
            )

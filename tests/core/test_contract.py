"""TFP's contract for a distribution and TensorFlow's for an operator, one section a point."""

import collections
import functools
import inspect
from typing import Any, NamedTuple

import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ar1 import LinearOperatorAR1Cholesky, MultivariateNormalAR1

tfb = tfp.bijectors
tfd = tfp.distributions

SIZE, BATCH_SHAPE, SEED = 4, (2, 3), (1, 2)
SPELLINGS = ("correlation", "fisher_z")
OBSERVED = np.array([True, False, False, True])


def draw(*shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


# Each parameter misses a part of the batch shape.
ARGUMENTS = {
    "loc": draw(2, 1, SIZE),
    "marginal_scale": np.array([0.7, 1.0, 2.0]),
    "correlation": np.array([[0.6], [-0.3]]),
}
ARGUMENTS["fisher_z"] = np.arctanh(ARGUMENTS["correlation"])
DENSE = oracles.Dense.ar1(*(ARGUMENTS[k] for k in ("loc", "marginal_scale", "correlation")))
VALUE = draw(*BATCH_SHAPE, SIZE, seed=1)

# How a parameter may be given: from its name and its value.
BIJECTORS = {
    "loc": tfb.Sinh(),
    "marginal_scale": tfb.Exp(),
    "correlation": tfb.Tanh(),
    "fisher_z": tfb.Sinh(),
}


def constant(_, value):
    return tf.constant(value)


def deferred(name, value):
    bijector = BIJECTORS.get(name, tfb.Identity())
    return tfp.util.DeferredTensor(tf.Variable(bijector.inverse(value)), bijector.forward)


KINDS = {
    "Variable": lambda _, value: tf.Variable(value),
    "TransformedVariable": lambda name, value: tfp.util.TransformedVariable(
        value, BIJECTORS.get(name, tfb.Identity())
    ),
    "DeferredTensor": deferred,
    "constant": constant,
}
each_spelling = pytest.mark.parametrize("by", SPELLINGS)
each_kind = pytest.mark.parametrize(
    ("kind", "by"),
    [
        ("Variable", "correlation"),
        ("TransformedVariable", "fisher_z"),
        ("DeferredTensor", "correlation"),
    ],
)
each_kind_or_constant = pytest.mark.parametrize(
    ("kind", "by"), [*each_kind.args[1], ("constant", "fisher_z")]
)
# Nothing here needs autograph, which takes its time.
function = functools.partial(tf.function, autograph=False)


def arguments(by, make=constant):
    return {name: make(name, ARGUMENTS[name]) for name in ("loc", "marginal_scale", by)}


def distribution(by="correlation", make=constant, **others):
    return MultivariateNormalAR1(**arguments(by, make), **others)


def source(parameter):
    """The variable beneath a parameter."""
    return parameter if isinstance(parameter, tf.Variable) else parameter.trainable_variables[0]


# --- The statistics --------------------------------------------------------------------------


class Statistic(NamedTuple):
    compute: Any  # of a distribution and a value
    event_ndims: int
    depends_on: str  # on (l)oc, (s)cale and (c)orrelation


DISTRIBUTION = {
    "mean": Statistic(lambda p, _: p.mean(), 1, "l"),
    "mode": Statistic(lambda p, _: p.mode(), 1, "l"),
    "stddev": Statistic(lambda p, _: p.stddev(), 1, "s"),
    "variance": Statistic(lambda p, _: p.variance(), 1, "s"),
    "covariance": Statistic(lambda p, _: p.covariance(), 2, "sc"),
    "entropy": Statistic(lambda p, _: p.entropy(), 0, "sc"),
    "log_prob": Statistic(lambda p, x: p.log_prob(x), 0, "lsc"),
    "unnormalized_log_prob": Statistic(lambda p, x: p.unnormalized_log_prob(x), 0, "lsc"),
    "prob": Statistic(lambda p, x: p.prob(x), 0, "lsc"),
    "sample": Statistic(lambda p, _: p.sample(seed=SEED), 1, "lsc"),
    "sample with its log_prob": Statistic(
        lambda p, _: p.experimental_sample_and_log_prob(seed=SEED)[0], 1, "lsc"
    ),
    "log_prob of its sample": Statistic(
        lambda p, _: p.experimental_sample_and_log_prob(seed=SEED)[1], 0, "sc"
    ),
    "marginal": Statistic(lambda p, x: p.marginal(1, None, 2).log_prob(x[..., 1::2]), 0, "lsc"),
    "contiguous marginal": Statistic(lambda p, x: p.marginal(1).log_prob(x[..., 1:]), 0, "lsc"),
    "precision.matvec": Statistic(lambda p, x: p.precision().matvec(x), 1, "sc"),
    "precision.solvevec": Statistic(lambda p, x: p.precision().solvevec(x), 1, "sc"),
}
# These have the batch shape of the scale or of the correlation, not of the distribution.
OTHER = {
    "correlation_parameter": Statistic(lambda p, _: p.correlation_parameter(), 0, "c"),
    "precision.to_dense": Statistic(lambda p, _: p.precision().to_dense(), 2, "sc"),
    "precision.determinant": Statistic(lambda p, _: p.precision().determinant(), 0, "sc"),
    "scale.matvec": Statistic(lambda p, x: p.scale.matvec(x), 1, "sc"),
    "scale.solvevec": Statistic(lambda p, x: p.scale.solvevec(x, adjoint=True), 1, "sc"),
    "scale.solve": Statistic(lambda p, _: p.scale.solve(np.eye(SIZE)), 2, "sc"),
    "scale.to_dense": Statistic(lambda p, _: p.scale.to_dense(), 2, "sc"),
    "scale.diag_part": Statistic(lambda p, _: p.scale.diag_part(), 1, "sc"),
    "scale.trace": Statistic(lambda p, _: p.scale.trace(), 0, "sc"),
    "scale.log_abs_determinant": Statistic(lambda p, _: p.scale.log_abs_determinant(), 0, "sc"),
}


def conditional(method):
    return lambda p, x: getattr(p.conditional(x, OBSERVED), method)()


CONDITIONAL = {
    "conditional.mean": Statistic(conditional("mean"), 1, "lc"),
    "conditional.variance": Statistic(conditional("variance"), 1, "sc"),
    "conditional.stddev": Statistic(conditional("stddev"), 1, "sc"),
    "conditional.observed_log_prob": Statistic(conditional("observed_log_prob"), 0, "lsc"),
    "conditional.sample": Statistic(
        lambda p, x: p.conditional(x, OBSERVED).sample(seed=SEED), 1, "lsc"
    ),
}
STATISTICS = DISTRIBUTION | OTHER | CONDITIONAL
# Where it is enough that the parameters arrive.
FEW = {name: STATISTICS[name] for name in ("log_prob", "sample", "covariance", "scale.matvec")}
each_statistic = pytest.mark.parametrize("name", STATISTICS)


def names_of(letters, by):
    names = {"l": "loc", "s": "marginal_scale", "c": by}
    return [names[letter] for letter in letters]


def compute(p, x, table=STATISTICS):
    return {name: s.compute(p, x) for name, s in table.items()}


# What a KL is taken with, from `make(name, value)`.
OTHERS = {
    "AR1": lambda make: MultivariateNormalAR1(
        make("other loc", draw(3, SIZE, seed=2)),
        make("other scale", np.array([[1.1], [0.4]])),
        fisher_z=make("other fisher_z", np.array([0.1, -2.0, 0.4])),
    ),
    "Diag": lambda make: tfd.MultivariateNormalDiag(
        make("other loc", draw(SIZE, seed=2)),
        make("other scale", np.array([0.5, 1.0, 2.0, 1.5])),
    ),
    "Independent": lambda make: tfd.Independent(
        tfd.Normal(make("other loc", draw(SIZE, seed=2)), make("other scale", np.float64(0.6))), 1
    ),
    "Sample": lambda make: tfd.Sample(
        tfd.Normal(make("other loc", np.float64(0.3)), make("other scale", np.float64(0.6))), SIZE
    ),
    "TriL": lambda make: tfd.MultivariateNormalTriL(
        make("other loc", draw(SIZE, seed=2)),
        make("other scale", np.tril(draw(SIZE, SIZE, seed=3), -1) + 2.0 * np.eye(SIZE)),
    ),
}
each_kl = pytest.mark.parametrize("reverse", [False, True], ids=["to", "from"])
each_other = pytest.mark.parametrize("other", OTHERS)


def kl(p, q, reverse):
    return tfd.kl_divergence(q, p) if reverse else tfd.kl_divergence(p, q)


def assert_all_close(actual, expected, what="same computation"):
    """For two results of `compute`."""
    assert actual.keys() == expected.keys()
    for name in expected:
        oracles.assert_close(
            actual[name], expected[name], what, STATISTICS[name].event_ndims, err_msg=name
        )


# --- 1. Variables are read when a result needs them, and not more often than allowed -----------


class Reads(collections.Counter):
    """Makes parameters that count how often each is turned into a tensor."""

    def make(self, name, value):
        def read(x):
            self[name] += 1
            return tf.identity(x)

        return tfp.util.DeferredTensor(tf.Variable(value), read)


@each_statistic
@each_spelling
@pytest.mark.parametrize("validate_args", [False, True])
def test_a_statistic_reads_each_variable_at_most_twice(name, by, validate_args):
    reads = Reads()
    p = distribution(by, reads.make, validate_args=validate_args)
    assert not reads, "read by the constructor"
    STATISTICS[name].compute(p, VALUE)
    assert reads.keys() >= set(names_of(STATISTICS[name].depends_on, by))
    # A marginal is a distribution of its own, which checks its parameters again.
    assert max(reads.values()) <= (4 if "marginal" in name else 2), reads


@each_other
@each_kl
@each_spelling
def test_a_kl_reads_each_variable_once(other, reverse, by):
    reads = Reads()
    p, q = distribution(by, reads.make), OTHERS[other](reads.make)
    reads.clear()
    kl(p, q, reverse)
    expected = {"loc", "marginal_scale", by, "other loc", "other scale"}
    if other == "AR1":
        expected.add("other fisher_z")
    assert reads == dict.fromkeys(expected, 1)


def reads_in_graph(p, parameters, compute):
    """How often a graph that computes something of `p` reads each of its variables."""
    graph = function(compute).get_concrete_function().graph
    variables = {id(getattr(p, k).handle): k for k in parameters}
    captured = {id(inner): variables[id(v)] for v, inner in graph.captures if id(v) in variables}
    return collections.Counter(
        captured[id(i)]
        for operation in graph.get_operations()
        for i in operation.inputs
        if id(i) in captured
    )


@each_statistic
def test_a_graph_reads_each_variable_at_most_twice(name):
    """Counts operations, for plain variables: some reads make no tensor that Python sees."""
    p = distribution(make=KINDS["Variable"])
    parameters = ("loc", "marginal_scale", "correlation")
    reads = reads_in_graph(p, parameters, lambda: STATISTICS[name].compute(p, VALUE))
    assert reads.keys() >= set(names_of(STATISTICS[name].depends_on, "correlation"))
    assert max(reads.values()) <= 2, reads


# --- 2. Gradients reach every variable, whose new values take effect ---------------------------


def assert_gradients_are_finite_differences(compute, variables, needed):
    """`needed`: the variables without whose gradient the result cannot be differentiated."""
    variables = list(variables)
    with tf.GradientTape() as tape:
        result = compute()
        result = tf.reduce_sum(result * draw(*result.shape, seed=5))
    gradients = tape.gradient(result, variables)
    values = [v.numpy() for v in variables]
    steps = [draw(*v.shape, seed=6 + i) for i, v in enumerate(variables)]
    for variable, gradient in zip(variables, gradients, strict=True):
        if any(variable is v for v in needed):
            assert gradient is not None, f"no gradient for {variable}"
            assert np.all(np.isfinite(gradient))

    def moved(size):
        for variable, value, step in zip(variables, values, steps, strict=True):
            variable.assign(value + size * step)
        result = compute()
        return np.sum(result * draw(*result.shape, seed=5))

    # All of them move at once: a gradient that is None although it should not be is missed.
    actual = sum(np.sum(g * s) for g, s in zip(gradients, steps, strict=True) if g is not None)
    expected = (moved(1e-5) - moved(-1e-5)) / 2e-5
    assert expected != 0, "the result does not change with the variables"
    oracles.assert_close(actual, expected, "finite difference")


@each_statistic
@each_kind
def test_gradients_of_statistics(name, by, kind):
    given = arguments(by, KINDS[kind])
    p = MultivariateNormalAR1(**given)
    needed = [source(given[k]) for k in names_of(STATISTICS[name].depends_on, by)]
    assert_gradients_are_finite_differences(
        lambda: STATISTICS[name].compute(p, VALUE), p.trainable_variables, needed
    )


@each_other
@each_kl
@each_kind
def test_gradients_of_kls(other, reverse, kind, by):
    p, q = distribution(by, KINDS[kind]), OTHERS[other](KINDS[kind])
    variables = p.trainable_variables + q.trainable_variables
    assert_gradients_are_finite_differences(lambda: kl(p, q, reverse), variables, variables)


@each_kind
def test_new_values_of_variables_take_effect(by, kind):
    given = arguments(by, KINDS[kind])
    p = MultivariateNormalAR1(**given)
    in_graph = function(lambda: compute(p, VALUE, FEW))
    in_graph()
    for parameter in given.values():
        source(parameter).assign(0.5 * source(parameter))
    fresh = MultivariateNormalAR1(**{k: tf.convert_to_tensor(v) for k, v in given.items()})
    assert_all_close(compute(p, VALUE), compute(fresh, VALUE))
    assert_all_close(in_graph(), compute(fresh, VALUE, FEW))


# --- 3. The arguments themselves are kept, and nothing else ------------------------------------


@each_kind_or_constant
def test_the_arguments_are_the_attributes(by, kind):
    given = arguments(by, KINDS[kind])
    p = MultivariateNormalAR1(**given, validate_args=True, allow_nan_stats=False, name="mine")
    assert set(p.parameters) == set(inspect.signature(MultivariateNormalAR1).parameters)
    for same in (p, p.copy(), p.copy().copy(validate_args=False)):
        for name, argument in given.items():
            assert getattr(same, name) is argument, name
            assert same.parameters[name] is argument, name
            if name != "loc":
                assert getattr(same.scale, name) is argument, name
        assert not same.allow_nan_stats
        assert same.parameters["name"] == "mine"
    new_loc = tf.Variable(draw(SIZE))
    other = p.copy(loc=new_loc)
    assert other.loc is new_loc
    assert other.marginal_scale is given["marginal_scale"]
    assert p.loc is given["loc"]
    if kind != "constant":
        sources = {name: id(source(argument)) for name, argument in given.items()}
        assert {id(v) for v in p.trainable_variables} == set(sources.values())
        del sources["loc"]
        assert {id(v) for v in p.scale.trainable_variables} == set(sources.values())


def test_use_leaves_no_trace():
    p = distribution("fisher_z", KINDS["Variable"])

    def attributes():
        parts = {"distribution": p, "scale": p.scale, "bijector": p.bijector}
        return {
            (part, k): v
            for part, x in parts.items()
            for k, v in vars(x).items()
            if not isinstance(v, tf.TensorShape)  # TFP keeps the static batch shape
        }

    assert p.parameters  # which TFP completes when they are first asked for
    before = attributes()
    derived = [k for k, v in before.items() if tf.is_tensor(v) and v.dtype.is_floating]
    assert all(before[k] is getattr(p, k[1].lstrip("_")) for k in derived), derived

    def use():
        for other in OTHERS.values():
            for reverse in (False, True):
                kl(p, other(constant), reverse)
        return compute(p, VALUE)

    expected = use()
    function(use)()
    after = attributes()
    assert after.keys() == before.keys()
    assert [k for k in after if after[k] is not before[k]] == []
    # Nor a tensor of the graph, with which nothing can be computed here.
    assert_all_close(compute(p, VALUE), expected)


# --- 4. Static shapes, as far as the arguments' are known ---------------------------------------

# Shapes of loc, marginal_scale and correlation as a graph knows them; the batch shape that follows.
SPECIFICATIONS = {
    "known": ([2, 1, SIZE], [3], [2, 1], [2, 3]),
    "batch unknown": ([None, 1, SIZE], [3], [None, 1], [None, 3]),
    "event unknown": ([2, 1, None], [3], [2, 1], [2, 3]),
    "sizes unknown": ([None] * 3, [None], [None, None], [None, None]),
    "rank unknown": (None, None, None, None),
}


@pytest.mark.parametrize("specification", SPECIFICATIONS)
@pytest.mark.parametrize("table", [DISTRIBUTION, CONDITIONAL], ids=["statistics", "conditional"])
def test_static_shapes_are_known_where_they_can_be(specification, table):
    *shapes, batch_shape = (tf.TensorShape(s) for s in SPECIFICATIONS[specification])
    event_shape = tf.TensorShape([None]) if shapes[0].rank is None else shapes[0][-1:]
    whole_shape = batch_shape + event_shape
    signature = [tf.TensorSpec(s, "float64") for s in (*shapes, whole_shape)]

    @function(input_signature=signature)
    def in_graph(loc, scale, rho, x):
        p = MultivariateNormalAR1(loc, scale, correlation=rho)
        assert p.batch_shape.is_subtype_of(batch_shape)
        assert p.event_shape.is_subtype_of(event_shape)
        operator_shape = tf.broadcast_static_shape(*shapes[1:]) + event_shape + event_shape
        for operator in (p.scale, p.precision()):
            assert operator.shape.is_subtype_of(operator_shape)
        samples = p.sample([5, 2], seed=SEED)
        assert samples.shape.is_subtype_of(tf.TensorShape([5, 2]) + whole_shape)
        results = compute(p, x, table)
        wrong = {}
        for name, result in results.items():
            expected = batch_shape
            for _ in range(STATISTICS[name].event_ndims):
                expected += event_shape
            if not result.shape.is_subtype_of(expected):
                wrong[name] = f"{result.shape}, not {expected}"
        assert not wrong
        return results

    actual = in_graph(*arguments("correlation").values(), VALUE)
    assert_all_close(actual, compute(distribution(), VALUE, table))


def test_a_conditional_of_unknown_rank():
    """The mask's too, on which the search for neighbours depends."""

    @function(input_signature=[tf.TensorSpec(None, "float64"), tf.TensorSpec(None, "bool")])
    def in_graph(x, observed):
        return distribution().conditional(x, observed).mean()

    for observed in (OBSERVED, VALUE > 0):
        expected = distribution().conditional(VALUE, observed).mean()
        oracles.assert_close(in_graph(VALUE, observed), expected, "same computation", 1)


@pytest.mark.parametrize("changed", ["loc", "marginal_scale", "correlation"])
def test_every_statistic_has_the_batch_shape_of_all_parameters(changed):
    """Each parameter in turn is the only one that has a batch."""
    given = {"loc": draw(SIZE), "marginal_scale": np.float64(1.3), "correlation": np.float64(0.4)}
    given[changed] = np.stack([given[changed], 0.9 * given[changed]])
    p = MultivariateNormalAR1(**given)
    assert p.batch_shape == (2,)
    assert tuple(p.batch_shape_tensor()) == (2,)
    for name, s in (DISTRIBUTION | CONDITIONAL).items():
        if not name.startswith("precision"):  # which knows nothing of loc
            assert s.compute(p, draw(SIZE)).shape == (2,) + s.event_ndims * (SIZE,), name


# --- 5. Slices ----------------------------------------------------------------------------------

INDICES = [
    0,
    -1,
    (1, 2),
    (slice(None), 1),
    (Ellipsis, slice(0, None, 2)),
    (0, Ellipsis, tf.newaxis),
    (tf.newaxis, slice(1, 2), Ellipsis),
    (slice(None, None, -1), slice(-2, None)),
    (Ellipsis, tf.newaxis, 2),
    Ellipsis,
]


@pytest.mark.parametrize("index", INDICES, ids=str)
@each_kind
def test_slices(index, by, kind):
    value = VALUE[0, 0]
    p = distribution(by, KINDS[kind])
    expected = DENSE.log_prob(value)[index]
    with tf.GradientTape() as tape:
        sliced = p[index]
        actual = sliced.log_prob(value)
    oracles.assert_close(actual, expected)
    assert isinstance(sliced, MultivariateNormalAR1)
    assert sliced.batch_shape == expected.shape
    assert sliced.sample(seed=SEED).shape == (*expected.shape, SIZE)
    variance = np.diagonal(DENSE.covariance, axis1=-2, axis2=-1)
    entries = index if isinstance(index, tuple) else (index,)
    of_vector = entries if Ellipsis in entries else (*entries, Ellipsis)
    oracles.assert_close(sliced.variance(), variance[(*of_vector, slice(None))], event_ndims=1)

    with tf.GradientTape() as whole_tape:
        whole = p.log_prob(value)[index]
    gradients = tape.gradient(actual, p.trainable_variables)
    whole_gradients = whole_tape.gradient(whole, p.trainable_variables)
    for a, e in zip(gradients, whole_gradients, strict=True):
        oracles.assert_close(a, e, "same computation")


@each_spelling
def test_slices_of_slices_and_copies_lead_back_to_the_variables(by):
    p = distribution(by, KINDS["Variable"])
    part = p[:, ::2].copy(marginal_scale=tf.Variable([1.5], dtype="float64"))
    p.loc.assign_add(tf.ones_like(p.loc))
    with tf.GradientTape() as tape:
        log_prob = part[1].log_prob(VALUE[0, 0])
    dense = oracles.Dense.ar1(ARGUMENTS["loc"] + 1, [1.5], ARGUMENTS["correlation"])
    oracles.assert_close(log_prob, dense.log_prob(VALUE[0, 0])[1])
    variables = [p.loc, p.parameters[by], part.marginal_scale]
    assert all(g is not None for g in tape.gradient(log_prob, variables))


def test_is_not_iterable():
    with pytest.raises(TypeError, match="not iterable"):
        iter(distribution())


# --- 6. Round trips: nests, functions, loops ----------------------------------------------------


@each_kind_or_constant
@pytest.mark.parametrize("part", ["distribution", "scale", "precision"])
def test_nest_round_trip(by, kind, part):
    p = tfp.experimental.as_composite(distribution(by, KINDS[kind]))
    whole = {"distribution": p, "scale": p.scale, "precision": p.precision()}[part]
    flat = tf.nest.flatten(whole, expand_composites=True)
    assert len(flat) == (3 if part == "distribution" else 2)
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


@each_kind_or_constant
def test_function_argument_and_result(by, kind):
    traces = []

    @function
    def in_graph(p, operator):
        traces.append(None)
        assert p.batch_shape == BATCH_SHAPE
        assert operator.shape == (*BATCH_SHAPE, SIZE, SIZE)
        return p, operator, p.log_prob(VALUE), operator.matvec(VALUE)

    for _ in range(2):
        p = distribution(by, KINDS[kind])
        returned, operator, log_prob, product = in_graph(p, p.scale)
        oracles.assert_close(log_prob, DENSE.log_prob(VALUE))
        oracles.assert_close(product, p.scale.matvec(VALUE), "same computation", 1)
        assert_all_close(compute(returned, VALUE, FEW), compute(p, VALUE, FEW))
        oracles.assert_close(operator.to_dense(), p.scale.to_dense(), "same computation", 2)
    assert len(traces) == 1 or kind != "constant"


def half(x):
    return None if x is None else 0.5 * x


@each_spelling
@pytest.mark.parametrize("jit_compile", [False, True])
def test_while_loop(by, jit_compile):
    """Carries the distribution, its operator, and a vector that the operator multiplies."""

    def step(i, p, operator, x):
        assert operator.shape == (*BATCH_SHAPE, SIZE, SIZE)
        next_p = p.copy(loc=p.mean()[:, :1] + 1.0, **{by: half(p.parameters[by])})
        next_operator = LinearOperatorAR1Cholesky(
            SIZE, half(operator.correlation), operator.marginal_scale, half(operator.fisher_z)
        )
        return i + 1, next_p, next_operator, operator.matvec(x) + p.sample(seed=SEED)

    p = distribution(by)

    @function(jit_compile=jit_compile)
    def loop(p, x):
        start = (tf.constant(0), p, p.scale, x)
        _, p, operator, x = tf.while_loop(lambda i, *_: i < 3, step, start)
        return p.log_prob(VALUE), operator.log_abs_determinant(), p.stddev()

    rho = ARGUMENTS["correlation"] / 8 if by == "correlation" else np.tanh(ARGUMENTS[by] / 8)
    dense = oracles.Dense.ar1(ARGUMENTS["loc"] + 3.0, ARGUMENTS["marginal_scale"], rho)
    log_prob, log_det, _ = loop(p, tf.constant(VALUE))
    oracles.assert_close(log_prob, dense.log_prob(VALUE))
    oracles.assert_close(log_det, 0.5 * dense.log_det)


# --- 7. Seeds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [7, SEED, tf.constant(SEED)], ids=["int", "pair", "tensor"])
@pytest.mark.parametrize("method", ["sample", "experimental_sample_and_log_prob", "conditional"])
def test_seeds_reproduce(seed, method):
    p = distribution("fisher_z")

    def samples(seed):
        tf.random.set_seed(3)
        if method == "sample":
            return p.sample([5], seed=seed)
        if method == "conditional":
            return p.conditional(VALUE, ~OBSERVED).sample([5], seed=seed)[..., ::3]
        return p.experimental_sample_and_log_prob([5], seed=seed)[0]

    first = samples(seed).numpy()
    np.testing.assert_array_equal(samples(seed), first)
    assert not np.any(samples(seed + 1 if isinstance(seed, int) else (1, 3)) == first)
    assert np.unique(first).size == first.size


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_stateless_seed_gives_the_same_in_graphs(jit_compile):
    check_stateless_seed(distribution("fisher_z"), jit_compile)


def check_stateless_seed(p, jit_compile):
    unit = MultivariateNormalAR1(tf.zeros_like(VALUE), correlation=0.0)

    @function(jit_compile=jit_compile)
    def sample(seed):
        return p.sample([5], seed=seed), unit.sample([5], seed=seed)

    seed = tf.constant(SEED)
    actual, noise = sample(seed)
    np.testing.assert_array_equal(sample(seed)[0], actual)
    assert not np.any(sample(seed + 1)[0] == actual)
    # XLA has noise of its own, also for tf.random.stateless_normal.
    expected = p.loc + p.scale.matvec(noise) if jit_compile else p.sample([5], seed=SEED)
    oracles.assert_close(actual, expected, "same computation", 1)


@pytest.mark.parametrize("shape", [(), 3, [3], [2, 0], [4, 1, 2]], ids=str)
def test_the_shape_of_samples_starts_with_the_shape_asked_for(shape):
    prefix = (shape,) if isinstance(shape, int) else tuple(shape)
    p = distribution()
    x, log_prob = p.experimental_sample_and_log_prob(shape, seed=SEED)
    assert p.sample(shape, seed=SEED).shape == x.shape == (*prefix, *BATCH_SHAPE, SIZE)
    assert log_prob.shape == (*prefix, *BATCH_SHAPE)
    # The first draw of several is not the only one, and does not repeat the others.
    assert np.unique(x).size == np.size(x)


# --- 8. Sample with log-density, bijector, vectorized_map, XLA -----------------------------------


@each_spelling
def test_sample_and_log_prob(by):
    p = distribution(by)
    x, log_prob = p.experimental_sample_and_log_prob([5], seed=SEED)
    oracles.assert_close(x, p.sample([5], seed=SEED), "same computation", 1)
    oracles.assert_close(log_prob, DENSE.log_prob(x))


def test_event_space_bijector():
    p = distribution()
    bijector = p.experimental_default_event_space_bijector()
    shape = tf.TensorShape([*BATCH_SHAPE, SIZE])
    assert bijector.inverse_event_shape(shape) == bijector.forward_event_shape(shape) == shape
    np.testing.assert_array_equal(bijector.inverse(bijector.forward(VALUE)), VALUE)
    np.testing.assert_array_equal(bijector.forward_log_det_jacobian(VALUE, event_ndims=1), 0.0)
    assert np.all(np.isfinite(p.log_prob(bijector(100.0 * VALUE))))


@pytest.mark.slow
def test_vectorized_map():
    """Over parameters, values and seeds at once; each member as if by itself."""
    q = OTHERS["AR1"](constant)[0, 0]
    given = {"loc": VALUE[0], "marginal_scale": ARGUMENTS["marginal_scale"]}
    given["fisher_z"] = np.array([0.6, -0.3, 3.0])
    members = [*given.values(), VALUE[1], np.int32([[1, 2], [3, 4], [5, 6]])]
    members = [tf.constant(m) for m in members]

    def member(arguments):
        *parameters, x, seed = arguments
        p = MultivariateNormalAR1(**dict(zip(given, parameters, strict=True)))
        more = {"KL to": p.kl_divergence(q), "KL from": q.kl_divergence(p)}
        more["draws"] = p.sample(3, seed=seed)
        return compute(p, x, DISTRIBUTION | CONDITIONAL) | more

    vectorized = tf.vectorized_map(member, members)
    each = [member([m[i] for m in members]) for i in range(3)]
    for name, actual in vectorized.items():
        event_ndims = STATISTICS[name].event_ndims if name in STATISTICS else 0
        expected = np.stack([result[name] for result in each])
        oracles.assert_close(actual, expected, "same computation", event_ndims, err_msg=name)


def gradients_of_map(function, parameters, mapped):
    """Of the sum of `function` over the leading axis, taken of the map, not within it."""
    members = list(zip(*map(tf.unstack, parameters), strict=True))
    with tf.GradientTape() as tape:
        tape.watch([*parameters, *(p for member in members for p in member)])
        if mapped:
            value = tf.reduce_sum(tf.vectorized_map(lambda p: function(*p), tuple(parameters)))
        else:
            value = tf.add_n([function(*member) for member in members])
    if mapped:
        return tape.gradient(value, parameters, unconnected_gradients="zero")
    gradients = tape.gradient(value, members, unconnected_gradients="zero")
    return [tf.stack(each) for each in zip(*gradients, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("size", [5, 600])
@each_spelling
def test_gradients_of_vectorized_map(by, size):
    """`tf.vectorized_map` drops custom gradients, so auto-batched NUTS goes without them."""
    x, weights = draw(size), draw(size, seed=1)
    mask = np.arange(size) % 3 == 0
    corr = tf.constant([0.0, 0.4, -0.97, 1.9 if by == "fisher_z" else 0.9], tf.float64)
    scale = tf.constant([1.0, 2.0, 0.5, 1.3], tf.float64)

    def everything(corr, scale):
        p = MultivariateNormalAR1(0.1 * x, scale, **{by: corr})
        q = MultivariateNormalAR1(x, 0.9, **{by: tf.constant(0.3, tf.float64)})
        diag = tfd.MultivariateNormalDiag(x)
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
        return tf.stack([*(tf.reduce_sum(weights * v) for v in vectors), *scalars])

    factors = draw(16, seed=2)
    actual, expected = (
        gradients_of_map(lambda *p: tf.reduce_sum(factors * everything(*p)), [corr, scale], mapped)
        for mapped in (True, False)
    )
    for a, b in zip(actual, expected, strict=True):
        oracles.assert_close(a, b, "gradient", event_ndims=1)


def test_auto_batched_joint_distribution_has_the_right_gradient():
    model = tfd.JointDistributionSequentialAutoBatched(
        [tfd.Normal(0.0, 1.0), lambda u: MultivariateNormalAR1(tf.zeros(5), fisher_z=u)]
    )
    u, x = tf.constant([0.0, 1.0, 3.0, 12.0]), tf.ones([4, 5])
    _, gradient = tfp.math.value_and_gradient(lambda u: model.log_prob([u, x]), u)
    # The first coordinate is 1, all innovations are (1 - ρ) / √(1 - ρ²) = e^-u.
    expected = -u + 4 * tf.exp(-2 * u) + 4 * tf.tanh(u)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_vectorized_map_over_values():
    """As chains of MCMC do it, and without falling back to a loop."""
    values = tf.constant(draw(5, *BATCH_SHAPE, SIZE))
    log_probs = tf.vectorized_map(distribution().log_prob, values, fallback_to_while_loop=False)
    oracles.assert_close(log_probs, DENSE.log_prob(values))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "by"),
    [
        (DISTRIBUTION, "correlation"),
        (DISTRIBUTION, "fisher_z"),
        (OTHER, "fisher_z"),
        (CONDITIONAL, "correlation"),
    ],
    ids=["statistics, correlation", "statistics, fisher_z", "operators", "conditional"],
)
def test_xla_agrees_with_eager(table, by):
    """Every statistic, and a gradient in which all of them take part; test_kl has the KLs."""
    table = {name: s for name, s in table.items() if "sample" not in name}

    def results_and_gradients(*parameters):
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            p = MultivariateNormalAR1(**dict(zip(arguments(by), parameters, strict=True)))
            results = compute(p, tf.constant(VALUE), table)
            total = tf.add_n([tf.reduce_sum(tf.sin(r)) for r in results.values()])
        return results, tape.gradient(total, parameters, unconnected_gradients="zero")

    given = arguments(by).values()
    expected, expected_gradients = results_and_gradients(*given)
    actual, gradients = function(results_and_gradients, jit_compile=True)(*given)
    assert_all_close(actual, expected)
    for a, e in zip(gradients, expected_gradients, strict=True):
        oracles.assert_close(a, e, "same computation", 1)


# --- 9. Parameter properties, fitting, other distributions around it -----------------------------


def test_fisher_z_is_to_correlation_what_logits_are_to_probs():
    ours = MultivariateNormalAR1.parameter_properties(dtype=tf.float64)
    theirs = tfd.Bernoulli.parameter_properties()
    assert list(ours) == ["loc", "marginal_scale", "correlation", "fisher_z"]
    assert ours["correlation"].is_preferred is theirs["probs"].is_preferred is False
    assert ours["fisher_z"].is_preferred is theirs["logits"].is_preferred is True


def test_parameter_shapes_follow_from_the_shape_of_a_sample():
    for name, properties in MultivariateNormalAR1.parameter_properties().items():
        expected = [2, 3, SIZE] if name == "loc" else [2, 3]
        assert list(properties.shape_fn([2, 3, SIZE])) == expected, name


@pytest.mark.parametrize("stateless", [False, True])
def test_make_trainable(stateless):
    shape, x = [2, SIZE], 3.0 + draw(20, 2, SIZE, dtype="float32")
    if stateless:
        init, apply = tfp.experimental.util.make_trainable_stateless(
            MultivariateNormalAR1, batch_and_event_shape=shape, validate_args=True
        )
        variables = [tf.Variable(v) for v in init(seed=SEED)]
        make = lambda: apply(variables)  # noqa: E731
    else:
        p = tfp.experimental.util.make_trainable(
            MultivariateNormalAR1, batch_and_event_shape=shape, validate_args=True, seed=SEED
        )
        variables, make = p.trainable_variables, lambda: p
    assert make().batch_shape == [2]
    assert make().correlation is None
    assert sorted(v.shape.as_list() for v in variables) == [[2], [2], [2, SIZE]]

    def loss():
        return -tf.reduce_mean(make().log_prob(x))

    before = loss()
    for _ in range(20):
        with tf.GradientTape() as tape:
            current = loss()
        for variable, gradient in zip(variables, tape.gradient(current, variables), strict=True):
            variable.assign_sub(0.1 * tf.sign(gradient))
    assert loss() < before - 1


@each_spelling
def test_experimental_fit(by):
    x = distribution(by).sample(12, seed=SEED)
    fit = MultivariateNormalAR1.experimental_fit
    fitted = fit(x, validate_args=True)
    assert type(fitted) is MultivariateNormalAR1
    assert fitted.validate_args
    assert fitted.batch_shape == BATCH_SHAPE
    oracles.assert_close(fitted.mean(), np.mean(x, axis=0), event_ndims=1)
    for same in (
        fit(tf.reshape(x, [3, 4, *x.shape[1:]]), sample_ndims=2),
        function(fit)(x),
        function(fit, jit_compile=True)(x),
    ):
        assert_all_close(compute(same, VALUE, FEW), compute(fitted, VALUE, FEW), "value")
    # More likely than what was drawn from, and than its neighbours.
    best = tf.reduce_sum(fitted.log_prob(x), axis=0)
    z, scale = fitted.fisher_z, fitted.marginal_scale
    neighbours = [distribution(by)]
    for step in (-1e-3, 1e-3):
        neighbours += [
            fitted.copy(loc=fitted.loc + step),
            fitted.copy(marginal_scale=scale * (1 + step)),
            fitted.copy(fisher_z=z + step),
        ]
    for other in neighbours:
        assert np.all(best > tf.reduce_sum(other.log_prob(x), axis=0))


def log_mean_exp(x):
    return np.log(np.mean(np.exp(x), axis=-1))


MASK = np.array([[True, False, True], [False, True, True]])
# The distribution around ours; the shape of its values; what their log-density should be.
AROUND = {
    "BatchBroadcast": (
        lambda p: tfd.BatchBroadcast(p, to_shape=[5, *BATCH_SHAPE]),
        (5, *BATCH_SHAPE, SIZE),
        DENSE.log_prob,
    ),
    "BatchReshape": (
        lambda p: tfd.BatchReshape(p, [6]),
        (6, SIZE),
        lambda x: DENSE.log_prob(x.reshape(*BATCH_SHAPE, SIZE)).reshape(6),
    ),
    "BatchConcat": (
        lambda p: tfd.BatchConcat([p, p], axis=1),
        (2, 6, SIZE),
        lambda x: np.concatenate([DENSE.log_prob(x[:, :3]), DENSE.log_prob(x[:, 3:])], axis=1),
    ),
    "Independent": (
        lambda p: tfd.Independent(p, 2),
        (*BATCH_SHAPE, SIZE),
        lambda x: DENSE.log_prob(x).sum(),
    ),
    "MixtureSameFamily": (
        lambda p: tfd.MixtureSameFamily(tfd.Categorical(logits=np.zeros(3)), p),
        (2, SIZE),
        lambda x: log_mean_exp(DENSE.log_prob(x[:, np.newaxis])),
    ),
    "Mixture": (
        lambda p: tfd.Mixture(tfd.Categorical(logits=np.zeros((2, 2))), [p[:, 0], p[:, 1]]),
        (2, SIZE),
        lambda x: log_mean_exp(DENSE.log_prob(x[:, np.newaxis])[:, :2]),
    ),
    "Sample": (
        lambda p: tfd.Sample(p, 5),
        (*BATCH_SHAPE, 5, SIZE),
        lambda x: DENSE.log_prob(np.moveaxis(x, -2, 0)).sum(axis=0),
    ),
    "Masked": (
        lambda p: tfd.Masked(p, MASK),
        (*BATCH_SHAPE, SIZE),
        lambda x: np.where(MASK, DENSE.log_prob(x), 0.0),
    ),
    "TransformedDistribution": (
        lambda p: tfd.TransformedDistribution(p, tfb.Sinh()),
        (*BATCH_SHAPE, SIZE),
        lambda x: DENSE.log_prob(np.arcsinh(x)) - 0.5 * np.log1p(x**2).sum(axis=-1),
    ),
    "Blockwise": (
        lambda p: tfd.Blockwise([p, p]),
        (*BATCH_SHAPE, 2 * SIZE),
        lambda x: DENSE.log_prob(x[..., :SIZE]) + DENSE.log_prob(x[..., SIZE:]),
    ),
}


@pytest.mark.parametrize("name", AROUND)
@each_spelling
def test_other_distributions_around_it(name, by):
    make, shape, log_prob = AROUND[name]
    p = distribution(by, KINDS["Variable"])
    with tf.GradientTape() as tape:
        around = make(p)
        x = draw(*shape, seed=4)
        actual = around.log_prob(x)
    oracles.assert_close(actual, log_prob(x))
    assert all(g is not None for g in tape.gradient(actual, p.trainable_variables))
    assert around.sample(7, seed=SEED).shape == (7, *shape)


@each_spelling
def test_inside_a_joint_distribution(by):
    joint = tfd.JointDistributionNamedAutoBatched(
        {
            "level": tfd.Normal(np.float64(0.0), 1.0),
            "path": lambda level: MultivariateNormalAR1(
                level + ARGUMENTS["loc"][0, 0], 1.3, **{by: ARGUMENTS[by][0, 0]}
            ),
            "data": lambda path: tfd.Independent(tfd.Normal(path, 0.1), 1),
        }
    )
    assert joint.event_shape == {"level": [], "path": [SIZE], "data": [SIZE]}
    x = joint.sample(5, seed=SEED)
    assert x["path"].shape == (5, SIZE)
    level, path, data = (x[k].numpy() for k in ("level", "path", "data"))
    dense = oracles.Dense.ar1(
        level[:, None] + ARGUMENTS["loc"][0, 0], 1.3, ARGUMENTS["correlation"][0, 0]
    )
    expected = dense.log_prob(path) - 0.5 * (level**2 + np.log(2 * np.pi))
    error = (data - path) / 0.1
    expected -= 0.5 * np.sum(error**2 + np.log(2 * np.pi * 0.1**2), axis=-1)
    oracles.assert_close(joint.log_prob(x), expected)
    pinned = joint.experimental_pin(data=data[0])
    bijected = pinned.experimental_default_event_space_bijector()
    assert bijected.inverse_event_shape(pinned.event_shape) == pinned.event_shape


# --- 10. Modules with variables: saved models and checkpoints ------------------------------------


class Model(tf.Module):
    """A distribution, an operator of its own, and functions that use them."""

    def __init__(self, by, kind):
        super().__init__()
        self.distribution = distribution(by, KINDS[kind])
        given = arguments(by, KINDS[kind])
        del given["loc"]
        self.operator = LinearOperatorAR1Cholesky(SIZE, **given)

    @function(input_signature=[tf.TensorSpec([*BATCH_SHAPE, SIZE], "float64")])
    def statistics(self, x):
        results = compute(self.distribution, x, FEW)
        results["KL"] = self.distribution.kl_divergence(OTHERS["Diag"](constant))
        results["product"] = self.operator.matvec(x)
        results["solution"] = self.operator.solvevec(x)
        return results


@each_kind
def test_saved_model(by, kind, tmp_path):
    model = Model(by, kind)
    assert len(model.trainable_variables) == 5
    expected = model.statistics(VALUE)
    oracles.assert_close(expected["log_prob"], DENSE.log_prob(VALUE))
    matrix = oracles.ar1_cholesky(ARGUMENTS["marginal_scale"], ARGUMENTS["correlation"], SIZE)
    product = (matrix @ VALUE[..., np.newaxis])[..., 0]
    oracles.assert_close(expected["product"], product, event_ndims=1)
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


# --- 11. The operator among operators ------------------------------------------------------------


def operators():
    """Two operators of different size, with one batch shape, and their matrices."""
    rho, scale, z = np.array([0.6, -0.3]), np.array([1.3, 0.7]), np.array([0.2, 2.0])
    return (
        LinearOperatorAR1Cholesky(3, rho, scale),
        LinearOperatorAR1Cholesky(2, fisher_z=z),
        oracles.ar1_cholesky(scale, rho, 3),
        oracles.ar1_cholesky(1.0, np.tanh(z), 2),
    )


def block_diagonal(a, b):
    result = np.zeros((2, 5, 5))
    result[:, :3, :3], result[:, 3:, 3:] = a, b
    return result


DIAGONAL = np.array([0.5, -1.0, 2.0])
COMBINATIONS = {
    "block diagonal": (
        lambda a, b: tf.linalg.LinearOperatorBlockDiag([a, b]),
        block_diagonal,
    ),
    "Kronecker": (
        lambda a, b: tf.linalg.LinearOperatorKronecker([a, b]),
        lambda a, b: np.stack([np.kron(x, y) for x, y in zip(a, b, strict=True)]),
    ),
    "composition": (
        lambda a, _: tf.linalg.LinearOperatorComposition([a, a.adjoint()]),
        lambda a, _: a @ a.swapaxes(-1, -2),
    ),
    "matmul with diagonal": (
        lambda a, _: a @ tf.linalg.LinearOperatorDiag(DIAGONAL, is_non_singular=True),
        lambda a, _: a * DIAGONAL,
    ),
    "diagonal matmul": (
        lambda a, _: tf.linalg.LinearOperatorDiag(DIAGONAL, is_non_singular=True) @ a,
        lambda a, _: DIAGONAL[:, None] * a,
    ),
    "solve of diagonal": (
        lambda a, _: a.solve(tf.linalg.LinearOperatorDiag(DIAGONAL, is_non_singular=True)),
        lambda a, _: np.linalg.inv(a) * DIAGONAL,
    ),
    "adjoint": (lambda a, _: a.adjoint(), lambda a, _: a.swapaxes(-1, -2)),
    "inverse": (lambda a, _: a.inverse(), lambda a, _: np.linalg.inv(a)),
    "inverse of adjoint": (
        lambda a, _: a.adjoint().inverse(),
        lambda a, _: np.linalg.inv(a).swapaxes(-1, -2),
    ),
    "adjoint of inverse": (
        lambda a, _: a.inverse().adjoint(),
        lambda a, _: np.linalg.inv(a).swapaxes(-1, -2),
    ),
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_operators_made_of_it(name, monkeypatch):
    combine, combine_matrices = COMBINATIONS[name]
    a, b, a_matrix, b_matrix = operators()
    matrix = combine_matrices(a_matrix, b_matrix)
    x = draw(2, matrix.shape[-1], 3)
    with monkeypatch.context() as patch:
        patch.setattr(LinearOperatorAR1Cholesky, "_to_dense", refuse)
        combined = combine(a, b)
        results = {
            "matmul": (combined.matmul(x), matrix @ x),
            "adjoint matmul": (combined.matmul(x, adjoint=True), matrix.swapaxes(-1, -2) @ x),
            "solve": (combined.solve(x), np.linalg.solve(matrix, x)),
            "matvec": (combined.matvec(x[..., 0]), (matrix @ x)[..., 0]),
        }
        log_det = combined.log_abs_determinant()
        in_function = function(lambda operator: operator.matmul(x))(combined)
    assert isinstance(combined, tf.linalg.LinearOperator)
    oracles.assert_close(log_det, np.linalg.slogdet(matrix)[1])
    oracles.assert_close(in_function, matrix @ x, event_ndims=2)
    for key, (actual, expected) in results.items():
        oracles.assert_close(actual, expected, event_ndims=expected.ndim - 1, err_msg=key)
    oracles.assert_close(combined.to_dense(), matrix, event_ndims=2)


def refuse(*_args, **_kwargs):
    raise AssertionError("to_dense was called")


def test_adjoint_and_inverse_of_a_hundred_thousand_rows():
    size, rho, scale = 100_000, 0.9, 2.0
    operator = LinearOperatorAR1Cholesky(size, np.float64(rho), scale)
    x, root = draw(size), np.sqrt(1 - rho**2)
    whitened = np.append(x[0], (x[1:] - rho * x[:-1]) / root) / scale
    y = np.append(x[0], x[1:] / root) / scale
    whitened_adjoint = y - np.append(rho * y[1:], 0.0)
    oracles.check_inverses(operator, x, whitened, whitened_adjoint)
    log_det = size * np.log(scale) + 0.5 * (size - 1) * np.log1p(-(rho**2))
    oracles.assert_close(operator.adjoint().log_abs_determinant(), log_det)
    oracles.assert_close(operator.inverse().log_abs_determinant(), -log_det)


# --- 12. Dtypes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", oracles.DTYPES)
@each_spelling
def test_every_result_has_the_dtype_of_the_parameters(dtype, by):
    p = distribution(by, lambda _, value: value.astype(dtype))
    results = compute(p, VALUE.astype(dtype), DISTRIBUTION | CONDITIONAL)
    results["KL"] = p.kl_divergence(tfd.MultivariateNormalDiag(tf.zeros(SIZE, dtype)))
    assert {k for k, v in results.items() if v.dtype != dtype} == set()
    assert p.dtype == p.scale.dtype == p.precision().dtype == dtype


@pytest.mark.parametrize("name", ["loc", "marginal_scale", *SPELLINGS])
@pytest.mark.parametrize("as_variable", [False, True])
def test_mixed_dtypes_are_a_type_error(name, as_variable):
    convert = tf.Variable if as_variable else tf.constant
    given = arguments(
        "fisher_z" if name == "fisher_z" else "correlation",
        lambda k, value: convert(value.astype("float32" if k == name else "float64")),
    )
    with pytest.raises(TypeError, match=r"dtype|float32"):
        MultivariateNormalAR1(**given)
    if name != "loc":
        del given["loc"]
        with pytest.raises(TypeError, match=r"dtype|float32"):
            LinearOperatorAR1Cholesky(SIZE, **given)


@each_spelling
def test_python_numbers_take_the_dtype_of_the_others(by):
    for loc, dtype in ((ARGUMENTS["loc"], "float64"), (ARGUMENTS["loc"].astype("f4"), "float32")):
        p = MultivariateNormalAR1(loc, 1.3, **{by: 0.1})
        assert p.dtype == p.marginal_scale.dtype == getattr(p, by).dtype == dtype
        # 0.1 itself, and not the float32 that is nearest to it.
        assert getattr(p, by).numpy() == np.asarray(0.1, dtype)
        dense = oracles.Dense.ar1(loc, 1.3, 0.1 if by == "correlation" else np.tanh(0.1))
        value = VALUE[:, :1].astype(dtype)
        oracles.assert_close(p.log_prob(value), dense.log_prob(value))
    assert MultivariateNormalAR1([0.0, 1.0], 2, **{by: 0.5}).dtype == tf.float32
    assert (
        LinearOperatorAR1Cholesky(3, marginal_scale=np.float64(2), **{by: 0.1}).dtype == "float64"
    )

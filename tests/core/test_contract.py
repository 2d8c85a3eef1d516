"""TFP's contract for a distribution and TensorFlow's for an operator: variables, shapes, copies.

Of every member of the family; test_transformations has what TFP makes of them.
"""

import collections
import functools
import inspect

import family
import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from family import ARGUMENTS, KINDS, MEMBERS, SEED, SIZE, VALUE, compute, distribution, function, kl

from tfp_ar1 import LinearOperatorAR1Cholesky, MultivariateNormalAR1

tfd = tfp.distributions

each_member = pytest.mark.parametrize("member", family.ONE_OF_EACH)
each_spelling = pytest.mark.parametrize("member", MEMBERS)
# Every class of parameters, for one of the members.
each_kind = pytest.mark.parametrize(
    ("member", "kind"),
    [
        *((member, "Variable") for member in family.ONE_OF_EACH),
        ("AR1 by fisher_z", "TransformedVariable"),
        ("AR1", "DeferredTensor"),
        ("ANTE1", "TransformedVariable"),
    ],
)
# XLA compiles no member otherwise than the others.
each_compiled = pytest.mark.parametrize(
    ("member", "jit_compile"),
    [*((member, False) for member in family.ONE_OF_EACH), ("AR1", True), ("OU", True)],
)
each_kind_or_constant = pytest.mark.parametrize(
    ("member", "kind"), [*each_kind.args[1], ("AR1", "constant"), ("OU", "constant")]
)


def source(parameter):
    """The variable beneath a parameter."""
    return parameter if isinstance(parameter, tf.Variable) else parameter.trainable_variables[0]


def all_kls(p, make=family.constant):
    return [kl(p, other(make), r) for other in family.OTHERS.values() for r in (False, True)]


# --- Variables are read when a result needs them, and not more often than allowed -----------------


class Reads(collections.Counter):
    """Makes parameters that count how often each is turned into a tensor."""

    def make(self, name, value):
        def read(x):
            self[name] += 1
            return tf.identity(x)

        return tfp.util.DeferredTensor(tf.Variable(value), read)


@each_spelling
def test_a_statistic_reads_each_variable_at_most_twice(member):
    """Also where it is checked."""
    for name, statistic in family.STATISTICS.items():
        reads = Reads()
        p = distribution(member, reads.make, validate_args=True)
        assert not reads, "read by the constructor"
        statistic.compute(p, VALUE)
        assert reads.keys() >= set(family.names_of(statistic.depends_on, member)), name
        # A marginal is a distribution of its own, which checks its parameters again.
        assert max(reads.values()) <= (4 if "marginal" in name else 2), (name, reads)


@each_spelling
def test_a_kl_reads_each_variable_once(member):
    for name, other in family.OTHERS.items():
        for reverse in (False, True):
            reads = Reads()
            p, q = distribution(member, reads.make), other(reads.make)
            reads.clear()
            kl(p, q, reverse)
            expected = {*ARGUMENTS[member], "other loc", "other scale"}
            expected |= {"other fisher_z"} if name == "AR1" else set()
            assert reads == dict.fromkeys(expected, 1), (name, reverse)


@each_member
def test_a_graph_reads_each_variable_at_most_twice(member):
    """Counts operations, for plain variables: some reads make no tensor that Python sees."""
    p = distribution(member, KINDS["Variable"])
    variables = {id(getattr(p, k).handle): k for k in ARGUMENTS[member]}
    for name, statistic in family.STATISTICS.items():
        graph = function(lambda s=statistic: s.compute(p, VALUE)).get_concrete_function().graph
        captured = {id(i): variables[id(v)] for v, i in graph.captures if id(v) in variables}
        inputs = (i for operation in graph.get_operations() for i in operation.inputs)
        reads = collections.Counter(captured[id(i)] for i in inputs if id(i) in captured)
        assert reads.keys() >= set(family.names_of(statistic.depends_on, member)), name
        assert max(reads.values()) <= 2, (name, reads)


# --- Gradients reach every variable, whose new values take effect ---------------------------------


def assert_gradients_are_finite_differences(compute, variables, needed, message):
    """`needed`: the variables without whose gradient the result cannot be differentiated."""
    variables = list(variables)
    with tf.GradientTape() as tape:
        result = compute()
        result = tf.reduce_sum(result * family.draw(*result.shape, seed=5))
    gradients = tape.gradient(result, variables)
    values = [np.asarray(v) for v in variables]
    steps = [family.draw(*v.shape, seed=6 + i) for i, v in enumerate(variables)]
    for variable, gradient in zip(variables, gradients, strict=True):
        if any(variable is v for v in needed):
            assert gradient is not None, f"{message}: no gradient for {variable}"
            assert np.all(np.isfinite(gradient)), message

    def moved(size):
        for variable, value, step in zip(variables, values, steps, strict=True):
            variable.assign(value + size * step)
        result = compute()
        return np.sum(result * family.draw(*result.shape, seed=5))

    # All of them move at once: a gradient that is None although it should not be is missed.
    actual = sum(np.sum(g * s) for g, s in zip(gradients, steps, strict=True) if g is not None)
    expected = (moved(1e-5) - moved(-1e-5)) / 2e-5
    assert expected != 0, f"{message} does not change with the variables"
    oracles.assert_close(actual, expected, "finite difference", err_msg=message)
    moved(0.0)


@pytest.mark.parametrize(
    ("member", "kind"),
    [
        ("ANTE1", "Variable"),
        *(
            pytest.param(member, "Variable", marks=pytest.mark.slow)
            for member in ("ARH1 by fisher_z", "OU")
        ),
        pytest.param("AR1 by fisher_z", "TransformedVariable", marks=pytest.mark.slow),
        ("AR1", "DeferredTensor"),
    ],
)
def test_gradients_of_statistics_and_kls(member, kind):
    p = distribution(member, KINDS[kind])
    for name, statistic in family.STATISTICS.items():
        needed = [source(getattr(p, k)) for k in family.names_of(statistic.depends_on, member)]
        assert_gradients_are_finite_differences(
            lambda s=statistic: s.compute(p, VALUE), p.trainable_variables, needed, name
        )
    for name, other in family.OTHERS.items():
        q = other(KINDS[kind])
        variables = p.trainable_variables + q.trainable_variables
        for reverse in (False, True):
            assert_gradients_are_finite_differences(
                lambda q=q, r=reverse: kl(p, q, r), variables, variables, f"KL, {name}, {reverse}"
            )


# --- The arguments themselves are kept, and nothing else ------------------------------------------


@each_kind_or_constant
def test_the_arguments_are_the_attributes(member, kind):
    given, cls = family.arguments(member, KINDS[kind]), MEMBERS[member].cls
    p = cls(**given, validate_args=True, allow_nan_stats=False, name="mine")
    assert set(p.parameters) == set(inspect.signature(cls).parameters)
    for same in (p, p.copy(), p.copy().copy(validate_args=False)):
        for name, argument in given.items():
            assert getattr(same, name) is argument, name
            assert same.parameters[name] is argument, name
            if name != "loc":
                assert getattr(same.scale, name) is argument, name
        assert not same.allow_nan_stats
        assert same.parameters["name"] == "mine"
    assert p.copy(validate_args=False).validate_args is False
    other = p.copy(loc=tf.Variable(family.draw(SIZE)))
    assert other.loc is not given["loc"]
    assert getattr(other, cls_scale(member)) is given[cls_scale(member)]
    assert p.loc is given["loc"]
    if kind != "constant":
        sources = {name: id(source(argument)) for name, argument in given.items()}
        assert {id(v) for v in p.trainable_variables} == set(sources.values())
        del sources["loc"]
        assert {id(v) for v in p.scale.trainable_variables} == set(sources.values())


def cls_scale(member):
    return MEMBERS[member].names[1]


def test_use_leaves_no_trace():
    p = distribution("AR1 by fisher_z", KINDS["Variable"])

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

    expected = compute(p, VALUE)
    all_kls(p)
    function(lambda: (compute(p, VALUE, family.FEW | family.CONDITIONAL), all_kls(p)))()
    after = attributes()
    assert after.keys() == before.keys()
    assert [k for k in after if after[k] is not before[k]] == []
    # Nor a tensor of the graph, with which nothing can be computed here.
    family.assert_all_close(compute(p, VALUE), expected)


# --- Static shapes, as far as the arguments' are known --------------------------------------------

# From the shapes of batch and event of an argument, what a graph knows of its shape.
KNOWN = {
    "batch unknown": lambda batch, event: [*(None if n == 2 else n for n in batch), *event],
    "event unknown": lambda batch, event: [*batch, *(None for _ in event)],
    "rank unknown": lambda batch, event: None,
}


@functools.cache
def eager_results(member):
    return compute(distribution(member), VALUE, family.DISTRIBUTION | family.CONDITIONAL)


@pytest.mark.parametrize(
    ("member", "known"),
    [
        ("AR1", "batch unknown"),
        pytest.param("ARH1 by fisher_z", "event unknown", marks=pytest.mark.slow),
        pytest.param("ANTE1", "rank unknown", marks=pytest.mark.slow),
        pytest.param("OU", "event unknown", marks=pytest.mark.slow),
    ],
)
def test_static_shapes_are_known_where_they_can_be(member, known):
    def shape(value, event_ndims):
        split = np.ndim(value) - event_ndims
        return tf.TensorShape(KNOWN[known](np.shape(value)[:split], np.shape(value)[split:]))

    def assert_shape(result, *expected, err_msg=""):
        expected = functools.reduce(tf.TensorShape.concatenate, expected, tf.TensorShape([]))
        assert result.shape.is_subtype_of(expected), f"{err_msg}: {result.shape}, not {expected}"

    given, event_ndims = ARGUMENTS[member], MEMBERS[member].event_ndims()
    batch_shape = shape(np.zeros(family.BATCH_SHAPE), 0)
    event_shape = tf.TensorShape(KNOWN[known]([], [SIZE]) or [None])
    shapes = [*(shape(given[k], event_ndims[k]) for k in given), shape(VALUE, 1)]

    @function(input_signature=[tf.TensorSpec(shape, "float64") for shape in shapes])
    def in_graph(*arguments):
        *parameters, x = arguments
        p = MEMBERS[member].distribution(*parameters)
        assert p.batch_shape.is_subtype_of(batch_shape)
        assert p.event_shape.is_subtype_of(event_shape)
        for operator in (p.scale, p.precision()):
            assert_shape(operator, batch_shape, event_shape, event_shape)
        assert_shape(p.sample([5, 2], seed=SEED), [5, 2], batch_shape, event_shape)
        results = compute(p, x, family.DISTRIBUTION | family.CONDITIONAL)
        for name, result in results.items():
            event = [event_shape] * family.STATISTICS[name].event_ndims
            assert_shape(result, batch_shape, *event, err_msg=name)
        return results

    family.assert_all_close(in_graph(*given.values(), VALUE), eager_results(member))


@pytest.mark.parametrize("member", ["AR1", "ANTE1"])
def test_a_conditional_of_unknown_rank(member):
    """The rank of the mask too, on which the search for neighbours depends."""

    def results(*arguments):
        *parameters, x, observed = arguments
        conditional = MEMBERS[member].distribution(*parameters).conditional(x, observed)
        return (
            conditional.mean(),
            conditional.stddev(),
            conditional.sample(seed=SEED),
            conditional.observed_log_prob(),
        )

    given = tuple(ARGUMENTS[member].values())
    signature = [tf.TensorSpec(None, "float64")] * (len(given) + 1) + [tf.TensorSpec(None, "bool")]
    in_graph = function(results, input_signature=signature)
    for x, observed in ((VALUE, family.OBSERVED), (VALUE, VALUE > 0), (VALUE[0, 0], VALUE > 0)):
        for a, e in zip(in_graph(*given, x, observed), results(*given, x, observed), strict=True):
            oracles.assert_close(a, e, "same computation", len(e.shape) - 2)


@each_member
def test_every_statistic_has_the_batch_shape_of_all_parameters(member):
    """Each parameter in turn is the only one that has a batch."""
    one = family.first(member)
    for changed in one:
        p = MEMBERS[member].cls(**(one | {changed: np.stack([one[changed], 0.9 * one[changed]])}))
        assert p.batch_shape == (2,)
        assert tuple(p.batch_shape_tensor()) == (2,)
        for name, s in (family.DISTRIBUTION | family.CONDITIONAL).items():
            if not name.startswith("precision"):  # which does not depend on loc
                shape = (2,) + s.event_ndims * (SIZE,)
                assert s.compute(p, family.draw(SIZE)).shape == shape, (changed, name)


# --- Slices ---------------------------------------------------------------------------------------

INDICES = [
    0,
    (1, 2),
    (slice(None), 1),
    (Ellipsis, slice(0, None, 2)),
    (tf.newaxis, slice(1, 2), Ellipsis),
    (slice(None, None, -1), slice(-2, None)),
    (Ellipsis, tf.newaxis, 2),
    Ellipsis,
]


each_slice = pytest.mark.parametrize(
    ("member", "kind", "index"),
    [
        *((member, "Variable", index) for member in family.ONE_OF_EACH for index in INDICES),
        *((*member_and_kind, INDICES[3]) for member_and_kind in each_kind.args[1][-3:]),
    ],
    ids=str,
)


@each_slice
def test_slices(member, kind, index):
    """Parameters of unequal rank: each must be sliced along its own batch dimensions."""
    value, p, dense = VALUE[0, 0], distribution(member, KINDS[kind]), family.DENSE[member]
    sliced, expected = p[index], dense.log_prob(value)[index]
    oracles.assert_close(sliced.log_prob(value), expected)
    assert type(sliced) is MEMBERS[member].cls
    assert sliced.batch_shape == expected.shape
    assert sliced.sample(seed=SEED).shape == (*expected.shape, SIZE)
    variance = np.diagonal(dense.covariance, axis1=-2, axis2=-1)
    variance = np.broadcast_to(variance, (*family.BATCH_SHAPE, SIZE))
    entries = index if isinstance(index, tuple) else (index,)
    of_vector = entries if Ellipsis in entries else (*entries, Ellipsis)
    oracles.assert_close(sliced.variance(), variance[(*of_vector, slice(None))], event_ndims=1)


@each_slice
def test_gradients_of_slices(member, kind, index):
    value, p = VALUE[0, 0], distribution(member, KINDS[kind])
    with tf.GradientTape(persistent=True) as tape:
        actual, whole = p[index].log_prob(value), p.log_prob(value)[index]
    for a, e in zip(
        tape.gradient(actual, p.trainable_variables),
        tape.gradient(whole, p.trainable_variables),
        strict=True,
    ):
        oracles.assert_close(a, e, "same computation")


@each_member
def test_slices_of_slices_and_copies_lead_back_to_the_variables(member):
    p = distribution(member, KINDS["Variable"])
    name, scale = cls_scale(member), np.array([1.5, 1.0, 0.8])
    if name == "scale_diag":
        scale = scale[:, np.newaxis] * family.SCALE_DIAG[0]
    part = p[:, ::2].copy(**{name: tf.Variable(scale[::2])})
    p.loc.assign_add(tf.ones_like(p.loc))
    x, changed = VALUE[0, 0], ARGUMENTS[member] | {"loc": family.LOC + 1.0, name: scale}
    expected = family.as_dense(MEMBERS[member], changed.values(), SIZE).log_prob(x)[:, ::2]
    variables = [getattr(part if k == name else p, k) for k in ARGUMENTS[member]]
    for slices in ((...,), (1, 0), (slice(None), 0), ((slice(None), slice(1, None)), 1)):
        with tf.GradientTape() as tape:
            sliced, log_prob = part, expected
            for index in slices:
                sliced, log_prob = sliced[index], log_prob[index]
            actual = sliced.log_prob(x)
        assert sliced.batch_shape == log_prob.shape
        oracles.assert_close(actual, log_prob, err_msg=f"{slices}")
        assert all(g is not None for g in tape.gradient(actual, variables)), slices
    with pytest.raises(TypeError, match="not iterable"):
        iter(p)


# --- Round trips: nests, functions, loops, saved models -------------------------------------------


@each_kind_or_constant
def test_function_argument_and_result(member, kind):
    traces = []

    @function
    def in_graph(p, operator):
        traces.append(None)
        assert p.batch_shape == family.BATCH_SHAPE
        assert operator.shape == (*family.BATCH_SHAPE, SIZE, SIZE)
        return p, operator, p.log_prob(VALUE), operator.matvec(VALUE)

    for _ in range(2):
        p = distribution(member, KINDS[kind])
        returned, operator, log_prob, product = in_graph(p, p.scale)
        oracles.assert_close(log_prob, family.DENSE[member].log_prob(VALUE))
        oracles.assert_close(product, p.scale.matvec(VALUE), "same computation", 1)
        family.assert_all_close(compute(returned, VALUE, family.FEW), compute(p, VALUE, family.FEW))
        oracles.assert_close(operator.to_dense(), p.scale.to_dense(), "same computation", 2)
    assert len(traces) == 1 or kind != "constant"


@each_compiled
def test_while_loop(member, jit_compile):
    """Carries the distribution, its operator, and a vector that the operator multiplies."""
    last = MEMBERS[member].names[-1]

    def step(i, p, operator, x):
        assert operator.shape == (*family.BATCH_SHAPE, SIZE, SIZE)
        p = p.copy(loc=p.mean()[:, :1] + 1.0, **{last: 0.5 * p.parameters[last]})
        return i + 1, p, operator, operator.matvec(x)

    @function(jit_compile=jit_compile)
    def loop(p, x):
        _, p, _, x = tf.while_loop(lambda i, *_: i < 3, step, (tf.constant(0), p, p.scale, x))
        return p.log_prob(VALUE), x

    log_prob, x = loop(distribution(member), tf.constant(VALUE))
    changed = {"loc": family.LOC + 3.0, last: ARGUMENTS[member][last] / 8}
    dense = family.as_dense(MEMBERS[member], (ARGUMENTS[member] | changed).values(), SIZE)
    oracles.assert_close(log_prob, dense.log_prob(VALUE))
    cubed = np.linalg.matrix_power(family.DENSE[member].factor, 3)
    oracles.assert_close(x, (cubed @ VALUE[..., None])[..., 0], event_ndims=1)


class Model(tf.Module):
    """A distribution, an operator of its own, and functions that use them."""

    def __init__(self, member, kind):
        super().__init__()
        self.distribution = distribution(member, KINDS[kind])
        self.operator = distribution(member, KINDS[kind]).scale

    @function(input_signature=[tf.TensorSpec([*family.BATCH_SHAPE, SIZE], "float64")])
    def statistics(self, x):
        results = compute(self.distribution, x, family.FEW)
        results["KL"] = self.distribution.kl_divergence(family.OTHERS["Diag"](family.constant))
        results["product"] = self.operator.matvec(x)
        results["solution"] = self.operator.solvevec(x)
        return results


@pytest.mark.slow
@pytest.mark.parametrize(
    ("member", "kind"),
    [("AR1 by fisher_z", "TransformedVariable"), ("ANTE1", "Variable"), ("OU", "Variable")],
)
def test_saved_model(member, kind, tmp_path):
    model = Model(member, kind)
    assert len(model.trainable_variables) == 2 * len(ARGUMENTS[member]) - 1
    expected = model.statistics(VALUE)
    oracles.assert_close(expected["log_prob"], family.DENSE[member].log_prob(VALUE))
    product = (family.DENSE[member].factor @ VALUE[..., np.newaxis])[..., 0]
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


# --- Seeds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("member", "seed"),
    [*((member, SEED) for member in family.ONE_OF_EACH), ("AR1", 7), ("AR1", tf.constant(SEED))],
    ids=str,
)
def test_seeds_reproduce(member, seed):
    p = distribution(member)
    for draws in (
        lambda seed: p.sample([5], seed=seed),
        lambda seed: p.experimental_sample_and_log_prob([5], seed=seed)[0],
        lambda seed: p.conditional(VALUE, ~family.OBSERVED).sample([5], seed=seed)[..., ::3],
    ):

        def samples(seed, draws=draws):
            tf.random.set_seed(3)
            return np.asarray(draws(seed))

        once = samples(seed)
        np.testing.assert_array_equal(samples(seed), once)
        assert not np.any(samples(seed + 1 if isinstance(seed, int) else (1, 3)) == once)
        # Every draw and every member of the batch has noise of its own.
        assert np.unique(once).size == once.size


@each_member
@pytest.mark.parametrize("shape", [(), 3, [2, 0], [4, 1, 2]], ids=str)
def test_sample_and_log_prob(member, shape):
    prefix = (shape,) if isinstance(shape, int) else tuple(shape)
    p = distribution(member)
    x, log_prob = p.experimental_sample_and_log_prob(shape, seed=SEED)
    assert x.shape == (*prefix, *family.BATCH_SHAPE, SIZE)
    oracles.assert_close(x, p.sample(shape, seed=SEED), "same computation")
    oracles.assert_close(log_prob, family.DENSE[member].log_prob(x))
    assert np.unique(x).size == np.size(x)


# --- Dtypes ---------------------------------------------------------------------------------------


@each_spelling
@pytest.mark.parametrize("dtype", oracles.DTYPES)
def test_every_result_has_the_dtype_of_the_parameters(member, dtype):
    p = distribution(member, lambda _, value: value.astype(dtype))
    results = compute(p, VALUE.astype(dtype))
    results["KL"] = p.kl_divergence(tfd.MultivariateNormalDiag(tf.zeros(SIZE, dtype)))
    assert {k for k, v in results.items() if v.dtype != dtype} == set()
    assert p.dtype == p.scale.dtype == p.precision().dtype == tf.as_dtype(dtype)


@each_spelling
@pytest.mark.parametrize("as_variable", [False, True])
def test_mixed_dtypes_are_a_type_error(member, as_variable):
    convert = tf.Variable if as_variable else tf.constant
    for odd in ARGUMENTS[member]:
        given = {
            k: convert(v.astype("float32" if k == odd else "float64"))
            for k, v in ARGUMENTS[member].items()
        }
        with pytest.raises(TypeError, match=rf"dtype.*`{odd}` float32"):
            MEMBERS[member].cls(**given)
        if member.startswith("AR1") and odd != "loc":
            del given["loc"]
            with pytest.raises(TypeError, match=r"dtype|float32"):
                LinearOperatorAR1Cholesky(SIZE, **given)


@each_spelling
def test_python_numbers_take_the_dtype_of_the_others(member):
    """All but one parameter are Python's numbers, or lists of them."""
    numbers = {name: value.tolist() for name, value in family.first(member).items()}
    for odd in numbers:
        for dtype in oracles.DTYPES:
            given = {k: np.asarray(v, dtype) for k, v in numbers.items()}
            p = MEMBERS[member].cls(**(numbers | {odd: given[odd]}))
            assert p.scale.dtype == tf.as_dtype(dtype)
            for key, value in given.items():
                assert getattr(p, key).dtype == dtype, (odd, key)
                # The number itself, and not the float32 that is nearest to it.
                np.testing.assert_array_equal(getattr(p, key), value)
            expected = family.as_dense(
                MEMBERS[member], family.cast(given.values(), "float64"), SIZE
            )
            x = VALUE[0, 0].astype(dtype)
            oracles.assert_close(p.log_prob(x), expected.log_prob(x), err_msg=odd)
    assert MEMBERS[member].cls(**numbers).dtype == tf.float32
    # Integers too.
    assert MultivariateNormalAR1([0.0, 1.0], 2, 0.5).dtype == tf.float32
    assert LinearOperatorAR1Cholesky(3, 0.1, np.float64(2)).dtype == tf.float64

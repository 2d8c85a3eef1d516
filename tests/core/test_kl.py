"""Every registered KL against dense Gaussians, in both directions, values and gradients."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import derivatives
import family
import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from exact import Exact
from family import MEMBERS, as_dense, function, kl, kl_terms, normal, positive, random_parameters

from tfp_ar1 import MultivariateNormalANTE1, MultivariateNormalAR1
from tfp_ar1.linear_operators.markov_cholesky import LinearOperatorMarkovCholesky

tfd = tfp.distributions
tfl = tf.linalg

# --- The other side -------------------------------------------------------------------------------


class Normal(NamedTuple):
    """A normal of TFP as a case, like those of `family.py`."""

    parameters: Callable  # (rng, batch, size)
    distribution: Callable  # (*parameters, size)
    moments: Callable  # (*parameters, size)


def squared(operator):
    """Scale times its transpose."""
    return tf.linalg.matmul(operator, operator, transpose_b=True)


def eye(size):
    return tf.eye(size, dtype=tf.float64)


def by_operator(make):
    """A normal whose scale is an operator."""
    return lambda loc, *scale, size: tfd.MultivariateNormalLinearOperator(loc, make(*scale))


def vector_and_number(rng, batch, size):
    return normal(rng, *batch, size), positive(rng, *batch)


def two_vectors(rng, batch, size):
    return normal(rng, *batch, size), positive(rng, *batch, size)


def signed_diagonal(rng, batch, size):
    # The sign of an entry of a diagonal scale makes no difference.
    signs = np.where(rng.uniform(size=size) < 0.3, -1, 1)
    return normal(rng, *batch, size), signs * positive(rng, *batch, size)


def lower_triangle(rng, batch, size):
    lower = np.tril(normal(rng, *batch, size, size), -1) / np.sqrt(size)
    diagonal = positive(rng, *batch, size)[..., None] * np.eye(size)
    return normal(rng, *batch, size), lower + diagonal


def low_rank(rng, batch, size):
    return *two_vectors(rng, batch, size), normal(rng, *batch, size, 2) / np.sqrt(size)


def unsymmetric_low_rank(rng, batch, size):
    u, v = (0.4 * normal(rng, *batch, size, 2) / np.sqrt(size) for _ in range(2))
    return *two_vectors(rng, batch, size), u, normal(rng, *batch, 2), v


def diagonal_moments(loc, scale, size):
    return loc * tf.ones([size], tf.float64), tfl.diag(scale**2 * tf.ones([size], tf.float64))


NORMALS = {
    "Diag": Normal(
        signed_diagonal,
        lambda loc, scale, size: tfd.MultivariateNormalDiag(loc, scale),
        diagonal_moments,
    ),
    "Diag of identity": Normal(
        lambda rng, batch, size: (normal(rng, *batch, size),),
        lambda loc, size: tfd.MultivariateNormalDiag(loc),
        lambda loc, size: (loc, eye(size) * tf.ones_like(loc)[..., None]),
    ),
    "ScaledIdentity": Normal(
        vector_and_number,
        lambda loc, scale, size: tfd.MultivariateNormalLinearOperator(
            loc, tfl.LinearOperatorScaledIdentity(size, scale)
        ),
        lambda loc, scale, size: diagonal_moments(loc, scale[..., None], size),
    ),
    "loc is None": Normal(
        lambda rng, batch, size: (positive(rng, *batch),),
        lambda scale, size: tfd.MultivariateNormalLinearOperator(
            None, tfl.LinearOperatorScaledIdentity(size, scale)
        ),
        lambda scale, size: diagonal_moments(0 * scale[..., None], scale[..., None], size),
    ),
    "Independent": Normal(
        two_vectors,
        lambda loc, scale, size: tfd.Independent(tfd.Normal(loc, scale), 1),
        diagonal_moments,
    ),
    # Normals whose scale, or mean, broadcasts along the event.
    "Independent, shared scale": Normal(
        vector_and_number,
        lambda loc, scale, size: tfd.Independent(tfd.Normal(loc, scale[..., None]), 1),
        lambda loc, scale, size: diagonal_moments(loc, scale[..., None], size),
    ),
    "Independent, shared loc": Normal(
        lambda rng, batch, size: (normal(rng, *batch), positive(rng, *batch, size)),
        lambda loc, scale, size: tfd.Independent(tfd.Normal(loc[..., None], scale), 1),
        lambda loc, scale, size: diagonal_moments(loc[..., None], scale, size),
    ),
    "Sample": Normal(
        lambda rng, batch, size: (normal(rng, *batch), positive(rng, *batch)),
        lambda loc, scale, size: tfd.Sample(tfd.Normal(loc, scale), [size]),
        lambda loc, scale, size: diagonal_moments(loc[..., None], scale[..., None], size),
    ),
    "TriL": Normal(
        lower_triangle,
        lambda loc, scale, size: tfd.MultivariateNormalTriL(loc, scale),
        lambda loc, scale, size: (loc, squared(tfl.band_part(scale, -1, 0))),
    ),
    # A scale that is no Cholesky factor: neither triangular nor symmetric.
    "FullMatrix": Normal(
        lambda rng, batch, size: (
            normal(rng, *batch, size),
            np.eye(size) + 0.3 * normal(rng, *batch, size, size) / np.sqrt(size),
        ),
        by_operator(lambda scale: tfl.LinearOperatorFullMatrix(scale, is_non_singular=True)),
        lambda loc, scale, size: (loc, squared(scale)),
    ),
    "LowRankUpdate": Normal(
        low_rank,
        by_operator(
            lambda diag, u: tfl.LinearOperatorLowRankUpdate(
                tfl.LinearOperatorDiag(diag, is_positive_definite=True),
                u,
                is_positive_definite=True,
            )
        ),
        lambda loc, diag, u, size: (loc, squared(tfl.diag(diag) + squared(u))),
    ),
    "LowRankUpdate, unsymmetric": Normal(
        unsymmetric_low_rank,
        by_operator(
            lambda diag, *update: tfl.LinearOperatorLowRankUpdate(
                tfl.LinearOperatorDiag(diag, is_non_singular=True), *update, is_non_singular=True
            )
        ),
        lambda loc, diag, u, d, v, size: (
            loc,
            squared(tfl.diag(diag) + tf.linalg.matmul(u * d[..., None, :], v, transpose_b=True)),
        ),
    ),
}
CASES = MEMBERS | NORMALS
DENSE_CASES = ("TriL", "FullMatrix")
FEW_CASES = ("AR1", "ANTE1", "OU", "Diag", "TriL", "LowRankUpdate")

# What AR(1) meets, by the spelling of the correlation that the other has not, and the others.
PAIRS = [
    *(
        ("AR1" if name == "AR1 by fisher_z" else "AR1 by fisher_z", name)
        for name in CASES
        if name not in ("ARH1", "ANTE1")
    ),
    *itertools.product(
        family.ONE_OF_EACH[1:],
        (
            *("AR1", "ARH1", "ANTE1 by fisher_z", "OU", "Diag", "Independent"),
            *("Independent, shared loc", "Sample", "TriL", "LowRankUpdate"),
        ),
    ),
]


@pytest.mark.parametrize(
    ("size", "ours", "other"),
    [
        *((4, *pair) for pair in PAIRS),
        *((1, *pair) for pair in PAIRS if pair[0].startswith("AR1")),
        *((1, ours, name) for ours in family.ONE_OF_EACH[1:] for name in ("AR1", "ANTE1", "Diag")),
        *(
            pytest.param(150, *pair, marks=pytest.mark.slow)
            for pair in itertools.product(family.ONE_OF_EACH, ("ANTE1", "Diag", "LowRankUpdate"))
        ),
    ],
)
def test_values_and_gradients(size, ours, other):
    """Values under broadcasting, and gradients with respect to every parameter of both sides."""
    ours, other = CASES[ours], CASES[other]
    parameters = random_parameters(ours, (5,), size, seed=1)
    other_parameters = random_parameters(other, (2, 1), size)
    count, arguments = len(parameters), [*parameters, *other_parameters]
    dense_p, dense_q = as_dense(ours, parameters, size), as_dense(other, other_parameters, size)

    def our_kl(reverse, *arguments):
        p = ours.distribution(*arguments[:count], size=size)
        return kl(p, other.distribution(*arguments[count:], size=size), reverse)

    def dense_kl(reverse, *arguments):
        p = ours.moments(*arguments[:count], size=size)
        q = other.moments(*arguments[count:], size=size)
        return oracles.tf_kl(q, p) if reverse else oracles.tf_kl(p, q)

    def gradients(function, reverse, dtype):
        # The sum connects what has no influence: at size one, times and correlations.
        return oracles.tf_gradients(
            lambda *a: function(reverse, *a) + 0 * sum(map(tf.reduce_sum, a)),
            family.cast(arguments, dtype),
        )

    for reverse in (False, True):
        expected = dense_q.kl(dense_p) if reverse else dense_p.kl(dense_q)
        for dtype in oracles.DTYPES:
            actual = our_kl(reverse, *family.cast(arguments, dtype))
            assert actual.dtype == dtype
            oracles.assert_close(actual, expected, err_msg=f"{dtype}, reverse={reverse}")
        expected = gradients(dense_kl, reverse, "float64")
        for dtype in oracles.DTYPES if ours is MEMBERS["AR1 by fisher_z"] else ("float64",):
            actual = gradients(our_kl, reverse, dtype)
            for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
                message = f"argument {i}, {dtype}, reverse={reverse}"
                # The trace and the log-determinants have gradients of order one, which may cancel.
                oracles.assert_close(a, e, "gradient", a.ndim - 1, err_msg=message, at_least=0.1)


@pytest.mark.parametrize("name", ["Diag", "Sample", "TriL"])
@pytest.mark.parametrize("reverse", [False, True])
def test_second_derivatives(name, reverse):
    """In the correlation and the scale; of two chains in test_distribution."""
    size, other = 3, CASES[name]
    other_parameters = random_parameters(other, (), size)
    loc = random_parameters(CASES["AR1"], (), size, seed=1)[0]
    dense_q = other.moments(*map(tf.constant, other_parameters), size=size)

    def ours(x):
        p = MultivariateNormalAR1(loc, x[0], fisher_z=x[1])
        return kl(p, other.distribution(*other_parameters, size=size), reverse)

    def dense(x):
        p = CASES["AR1 by fisher_z"].moments(tf.constant(loc), x[0], x[1], size=size)
        return oracles.tf_kl(dense_q, p) if reverse else oracles.tf_kl(p, dense_q)

    at = np.array([1.3, -0.7])
    actual, expected = (oracles.second_derivatives(f, at) for f in (ours, dense))
    oracles.assert_close(actual, expected, "second derivative", event_ndims=1)


# --- Along the path -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "ours", "name"),
    [
        *itertools.product(
            (6,),
            family.ONE_OF_EACH,
            ("AR1", "ANTE1", "OU", "Diag", "Independent, shared loc", "Sample"),
        ),
        # Where no parameter has an entry for each coordinate, the terms have one all the same.
        *itertools.product((1, 6), ("Sample",), ("Sample", "Diag")),
    ],
)
def test_kl_terms(size, name, ours):
    """The first n of them sum to the KL of the marginals of the first n coordinates."""
    ours, other = CASES[ours], CASES[name]
    parameters = random_parameters(ours, (3,), size, seed=1)
    other_parameters = random_parameters(other, (2, 1), size)
    p, q = (
        case.distribution(*given, size=size)
        for case, given in ((ours, parameters), (other, other_parameters))
    )
    dense_p, dense_q = as_dense(ours, parameters, size), as_dense(other, other_parameters, size)
    for (left, right), (dense_left, dense_right) in (
        ((p, q), (dense_p, dense_q)),
        ((q, p), (dense_q, dense_p)),
    ):
        terms = kl_terms(left, right)
        assert terms.shape == (2, 3, size)
        assert np.all(terms >= 0)
        sums = np.cumsum(terms, axis=-1)
        for n in range(1, size + 1):
            firsts = (
                oracles.Dense(d.mean[..., :n], d.covariance[..., :n, :n])
                for d in (dense_left, dense_right)
            )
            oracles.assert_close(sums[..., n - 1], next(firsts).kl(next(firsts)), err_msg=f"{n}")


@pytest.mark.parametrize("name", ["AR1", "OU", "Diag", "Sample"])
def test_kl_terms_of_an_unknown_shape(name):
    case, ours = CASES[name], CASES["ANTE1"]
    count = len(random_parameters(case, (), 2))

    @function(input_signature=[tf.TensorSpec(None, tf.float64)] * (3 + count))
    def terms(loc, scale, rho, *parameters):
        p = ours.distribution(loc, scale, rho)
        q = case.distribution(*parameters, size=tf.shape(loc)[-1])
        return kl_terms(p, q), kl_terms(q, p)

    for size in (1, 4):
        given = random_parameters(ours, (3,), size, seed=1)
        other = random_parameters(case, (2, 1), size)
        p = ours.distribution(*given)
        q = case.distribution(*other, size=size)
        for actual, expected in zip(
            terms(*given, *other), (kl_terms(p, q), kl_terms(q, p)), strict=True
        ):
            oracles.assert_close(actual, expected, "same computation", 1)


def test_kl_terms_refuse_what_is_no_path():
    p = MultivariateNormalAR1(tf.zeros(3), correlation=0.5)
    for q in (tfd.MultivariateNormalTriL(tf.zeros(3), tf.eye(3)), tfd.Dirichlet(tf.ones(3))):
        for pair in ((p, q), (q, p)):
            with pytest.raises(TypeError, match="`GaussianMarkovChain` or a vector of independent"):
                kl_terms(*pair)
    with pytest.raises(ValueError, match=r"same size; got event shape \(3,\)"):
        kl_terms(p, tfd.MultivariateNormalDiag(tf.zeros(4)))


# --- Shapes and graphs ----------------------------------------------------------------------------

# Batch shapes: those of our loc, marginal_scale and correlation, then that of the other side.
BROADCASTS = [
    ((3,), (), (), ()),
    ((), (3,), (), ()),
    ((), (), (3,), ()),
    ((), (), (), (3,)),
    ((2, 1), (), (4,), (2, 1)),
    ((4,), (1,), (), (2, 1)),
]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in FEW_CASES else pytest.mark.slow)
        for name in CASES
        if "by fisher_z" not in name
    ],
)
def test_broadcasting(name):
    """With shapes that are known, and in graphs that know neither batch nor event shape."""
    case = CASES[name]
    count = len(random_parameters(case, (), 2))

    def kls(loc, scale, rho, *parameters):
        p = MultivariateNormalAR1(loc, scale, correlation=rho)
        q = case.distribution(*parameters, size=tf.shape(loc)[-1])
        return tfd.kl_divergence(p, q), tfd.kl_divergence(q, p)

    unknown = function(kls, input_signature=[tf.TensorSpec(None, tf.float64)] * (3 + count))
    for (loc_shape, scale_shape, rho_shape, other_shape), size in [
        *((shapes, 4) for shapes in BROADCASTS),
        (BROADCASTS[-1], 1),
    ]:
        rng = np.random.default_rng(2)
        given = [
            normal(rng, *loc_shape, size),
            positive(rng, *scale_shape),
            rng.uniform(-0.9, 0.9, rho_shape),
        ]
        parameters = random_parameters(case, other_shape, size)
        dense_p, dense_q = oracles.Dense.ar1(*given), as_dense(case, parameters, size)
        p = MultivariateNormalAR1(*given)
        q = case.distribution(*parameters, size=size)
        expected = dense_p.kl(dense_q), dense_q.kl(dense_p)
        message = f"{loc_shape}, {scale_shape}, {rho_shape}, {other_shape}, size {size}"
        for actual in ((kl(p, q, False), kl(p, q, True)), unknown(*given, *parameters)):
            for a, e in zip(actual, expected, strict=True):
                oracles.assert_close(a, e, err_msg=message)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "name"),
    [
        *(("AR1 by fisher_z", name) for name in ("ARH1", "Diag", "TriL")),
        *(("ANTE1", name) for name in ("ANTE1 by fisher_z", "OU", "Sample")),
    ],
)
def test_xla_agrees_with_eager(ours, name):
    size, ours, other = 5, CASES[ours], CASES[name]
    arguments = [*random_parameters(ours, (3,), size, 1), *random_parameters(other, (3,), size)]

    def kls(*arguments):
        p = ours.distribution(*arguments[:3], size=size)
        q = other.distribution(*arguments[3:], size=size)
        return tf.stack([tfd.kl_divergence(p, q), tfd.kl_divergence(q, p)])

    arguments = [tf.constant(a) for a in arguments]
    compiled = function(kls, jit_compile=True)(*arguments)
    oracles.assert_close(compiled, kls(*arguments), "same computation")


@pytest.mark.parametrize(
    "name", [name for name in CASES if name not in DENSE_CASES and "Low" not in name]
)
def test_nothing_is_made_dense(name, monkeypatch):
    p = MEMBERS["AR1"].distribution(*random_parameters(MEMBERS["AR1"], (5,), 5), size=5)
    q = CASES[name].distribution(*random_parameters(CASES[name], (5,), 5), size=5)
    for operator in (
        LinearOperatorMarkovCholesky,
        type(p.scale),
        tfl.LinearOperatorDiag,
        tfl.LinearOperatorScaledIdentity,
        tfl.LinearOperatorIdentity,
    ):
        monkeypatch.setattr(operator, "_to_dense", family.refuse)
    for reverse in (False, True):
        kl(p, q, reverse)


# --- Divergences next to zero ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", oracles.DTYPES)
@pytest.mark.parametrize(
    ("sigma", "u"), [(1.0, 0.0), (1.0, 0.5), (1e6, -3.0), (1e-6, 11.0), (100.0, 18.0)]
)
@pytest.mark.parametrize("step", [1e-2, 1e-4, 1e-6])
def test_parameters_near_each_other(u, sigma, step, dtype):
    """Right to a few eps of the KL, whatever the unit, where the textbook's terms cancel."""
    kind = np.dtype(dtype).type
    zeros, fisher_z = np.zeros(3, dtype), np.asarray([u, u + 0.125], dtype)
    scale = np.asarray([0.7, 1.3, 0.9], dtype) * kind(sigma)
    other = scale * np.asarray([1 + step, 1 - step, 1 + step], dtype)

    def ante1(scale, fisher_z=fisher_z):
        exact = Exact(tuple(zeros), tuple(scale), tuple(fisher_z))
        return MultivariateNormalANTE1(zeros, scale, fisher_z=fisher_z), exact

    def ar1(scale, rho):
        rho = kind(rho)
        exact = Exact(tuple(zeros), scale, np.arctanh(np.float64(rho)))
        return MultivariateNormalAR1(zeros, scale, rho), exact

    def diag(scale):
        return tfd.MultivariateNormalDiag(zeros, scale), ante1(scale, (0.0, 0.0))[1]

    nearly_diag = np.asarray([1e-3, 1e-4], dtype)
    pairs = [
        (ante1(scale), ante1(other)),
        (ante1(scale), ante1(scale, fisher_z + kind(step))),
        (ante1(scale, nearly_diag), diag(other)),
        (diag(scale), ante1(other, nearly_diag)),
    ]
    if abs(u) < 5:  # beyond, the decimals of a correlation are not those of its Fisher z
        pairs += [(ar1(scale[0], np.tanh(u)), ar1(other[0], np.tanh(u - step)))]
    for (p, exact_p), (q, exact_q) in pairs:
        expected = float(exact_p.kl(exact_q))
        rtol = 5e-6 if dtype == "float32" else 1e-10
        np.testing.assert_allclose(tfd.kl_divergence(p, q), expected, rtol=rtol)


def test_one_coordinate_has_no_steps():
    """Whose terms are infinite here, in float32."""
    p = MultivariateNormalAR1(np.zeros(1, np.float32), 1e11, 0.0)
    q = MultivariateNormalAR1(np.zeros(1, np.float32), 1.6e-5, 1 - 1e-7)
    expected = tfd.kl_divergence(tfd.Normal(0.0, 1e11), tfd.Normal(0.0, 1.6e-5))
    np.testing.assert_allclose(tfd.kl_divergence(p, q), expected, rtol=1e-5)
    one = MultivariateNormalAR1(np.zeros(1, np.float32), 2.0, 1.0)
    np.testing.assert_allclose(one.entropy(), tfd.Normal(0.0, 2.0).entropy(), rtol=1e-6)


def test_from_itself():
    p = MultivariateNormalAR1([1.0, 2, 3, 4, 5], 1.3, fisher_z=[0.0, 1e-4, -3.0, 9.0, 20.0, -60.0])
    assert np.all(np.abs(tfd.kl_divergence(p, p)) < 1e-6)


def test_fisher_information_in_float32():
    """The Hessian of KL(p ‖ q) at q = p, in the parameters of q."""
    u = tf.constant([0.0, 0.5, -3.0, 11.0])

    def slope(u):
        p = MultivariateNormalAR1(tf.zeros(4), 2.0, fisher_z=tf.stop_gradient(u))

        def kl(u):
            return tfd.kl_divergence(p, MultivariateNormalAR1(tf.zeros(4), 2.0, fisher_z=u))

        return derivatives.gradients(kl, [u])[0]

    gradient, curvature = slope(u), derivatives.gradients(slope, [u])[0]
    np.testing.assert_allclose(gradient, np.zeros(4), atol=1e-6)
    # For each of the 3 steps ½ (d log v / du)² + (d ρ / du)² / (1 - ρ²) = 1 + ρ².
    expected = 3.0 * (1.0 + np.tanh(np.asarray(u).astype("float64")) ** 2)
    np.testing.assert_allclose(curvature, expected, rtol=1e-5)


# --- Refusals -------------------------------------------------------------------------------------

# The other side of a KL with vectors of size 3, and what the message must say.
REFUSED = {
    "TriL of another size": (
        lambda: tfd.MultivariateNormalTriL(tf.zeros(4), tf.eye(4)),
        "3.*4|4.*3",
    ),
    # Would broadcast.
    "AR1 of size one": (lambda: MultivariateNormalAR1([0.0], correlation=0.1), "3.*1|1.*3"),
    "Diag of size one": (lambda: tfd.MultivariateNormalDiag([0.0]), "3.*1|1.*3"),
    "Independent of size one": (lambda: tfd.Independent(tfd.Normal([0.0], 1.0), 1), "3.*1|1.*3"),
    "Sample of size one": (lambda: tfd.Sample(tfd.Normal(0.0, 1.0), 1), "3.*1|1.*3"),
    "Independent Laplace": (lambda: tfd.Independent(tfd.Laplace(tf.zeros(3), 1.0), 1), "Laplace"),
    "Independent matrix": (
        lambda: tfd.Independent(tfd.Normal(tf.zeros([3, 4]), 1.0), 2),
        "event|Independent",
    ),
    "Independent scalar": (
        lambda: tfd.Independent(tfd.Normal(tf.zeros(3), 1.0), 0),
        "event|Independent",
    ),
    "Independent of a vector": (
        lambda: tfd.Independent(tfd.MultivariateNormalDiag(tf.zeros([3, 4])), 1),
        "event|Independent",
    ),
    "Sample Laplace": (lambda: tfd.Sample(tfd.Laplace(0.0, 1.0), 3), "Laplace"),
    "Sample matrix": (lambda: tfd.Sample(tfd.Normal(0.0, 1.0), [1, 3]), "event|Sample"),
    "Sample scalar": (lambda: tfd.Sample(tfd.Normal(0.0, 1.0), []), "event|Sample"),
    "Sample of a vector": (
        lambda: tfd.Sample(tfd.MultivariateNormalDiag(tf.zeros(3)), 1),
        "event|Sample",
    ),
    "Sample of vectors, as long": (
        lambda: tfd.Sample(tfd.MultivariateNormalDiag(tf.zeros(3)), []),
        "MultivariateNormalDiag",
    ),
    "Dirichlet": (lambda: tfd.Dirichlet(tf.ones(3)), "No KL"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    p = MultivariateNormalAR1(tf.zeros(3), correlation=0.5)
    make, message = REFUSED[name]
    q = make()
    # As TFP has it: events of different shape are an error; other distributions have no KL.
    error = ValueError if q.event_shape != p.event_shape else NotImplementedError
    for reverse in (False, True):
        with pytest.raises(error, match=message):
            kl(p, q, reverse)


@pytest.mark.parametrize("name", ["AR1", "Diag", "Independent", "Sample", "TriL"])
def test_refuses_another_size_when_it_becomes_known(name):
    case = CASES[name]
    for reverse in (False, True):

        @function(input_signature=[tf.TensorSpec([None], tf.float64)])
        def unknown(loc, reverse=reverse):
            p = MultivariateNormalAR1(loc, correlation=tf.constant(0.5, tf.float64))
            q = case.distribution(*random_parameters(case, (), 4), size=4)
            return kl(p, q, reverse)

        unknown(tf.zeros(4, tf.float64))
        for size in (1, 3):
            with pytest.raises(tf.errors.InvalidArgumentError):
                unknown(tf.zeros(size, tf.float64))

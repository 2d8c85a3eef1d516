"""What constructors take, refuse and check; `loc`; and what TFP asks of the parameters."""

import copy

import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from family import ONE_OF_EACH, SEED, VALUE, distribution, draw

import tfp_ar1
from tfp_ar1 import (
    MultivariateNormalANTE1,
    MultivariateNormalAR1,
    MultivariateNormalARH1,
    MultivariateNormalOU,
)

tfd = tfp.distributions
ERRORS = (ValueError, tf.errors.InvalidArgumentError)

# What is valid, by class: for three coordinates.
VALID = {
    MultivariateNormalAR1: {"loc": [0.0, 1.0, 2.0], "marginal_scale": 2.0},
    MultivariateNormalARH1: {"loc": [0.0, 1.0, 2.0], "scale_diag": [1.0, 2.0, 3.0]},
    MultivariateNormalANTE1: {"loc": [0.0, 1.0, 2.0], "scale_diag": [1.0, 2.0, 3.0]},
    MultivariateNormalOU: {
        "loc": [0.0, 1.0, 2.0],
        "marginal_scale": 2.0,
        "length_scale": 0.5,
        "times": [0.0, 1.0, 5.0],
    },
}
CORRELATION = {
    MultivariateNormalAR1: 0.5,
    MultivariateNormalARH1: 0.5,
    MultivariateNormalANTE1: [0.5, -0.5],
}
BY_COORDINATE = (MultivariateNormalARH1, MultivariateNormalANTE1)
each_class = pytest.mark.parametrize("cls", VALID)
each_correlated = pytest.mark.parametrize("cls", CORRELATION)
each_relative = pytest.mark.parametrize("cls", [*VALID][1:])


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
            fisher_z = np.arctanh(CORRELATION[cls]).astype("f4")
            for respelled in (
                cls(**VALID[cls], fisher_z=fisher_z),
                p.copy(correlation=None, fisher_z=fisher_z),
            ):
                assert respelled.correlation is None
                oracles.assert_close(respelled.covariance(), p.covariance(), event_ndims=2)
        if cls is MultivariateNormalAR1:
            assert isinstance(p.scale, tfp_ar1.LinearOperatorAR1Cholesky)

    @each_correlated
    @pytest.mark.parametrize("validate_args", [True, False])
    def test_neither_or_both_correlations(self, cls, validate_args):
        options = VALID[cls] | {"validate_args": validate_args}
        with pytest.raises(ValueError, match=r"correlation.*fisher_z.*got neither"):
            cls(**options)
        with pytest.raises(ValueError, match=r"correlation.*fisher_z.*got both"):
            cls(**options, correlation=CORRELATION[cls], fisher_z=CORRELATION[cls])

    @each_class
    @pytest.mark.parametrize("dtype", [tf.int32, tf.complex64])
    def test_dtype_that_is_not_a_float(self, cls, dtype):
        """Mixed dtypes are in test_contract."""
        with pytest.raises(TypeError, match=r"dtype|float"):
            cls(**{k: tf.cast(v, dtype) for k, v in valid(cls).items()})

    @pytest.mark.parametrize(
        ("cls", "name", "value", "message"),
        [
            (MultivariateNormalAR1, "loc", 0.0, "`loc`"),
            *((cls, "loc", [0.0, 1.0], "`loc` must have 3 coordinates") for cls in [*VALID][1:]),
            *((cls, "scale_diag", None, "Missing required `scale_diag`") for cls in BY_COORDINATE),
            *((cls, "scale_diag", 1.0, "`scale_diag` must have at least") for cls in BY_COORDINATE),
            *(
                (cls, "scale_diag", [1.0], r"must have (1 coord|one ent).*`scale_diag`")
                for cls in BY_COORDINATE
            ),
            (MultivariateNormalANTE1, "correlation", 0.5, r"`correlation` .* 2; got shape \(\)"),
            (MultivariateNormalANTE1, "correlation", [0.5], r"`correlation` .* 2; got shape \(1,"),
            (MultivariateNormalANTE1, "correlation", [0.5] * 3, r" 2; got shape \(3,\)"),
            (MultivariateNormalOU, "times", 1.0, "`times` must have at least one dimension"),
            (MultivariateNormalOU, "times", [0.0, 1.0], "`loc` must have 2 coord.*like `times`"),
            (MultivariateNormalOU, "times", [[0.0], [1.0], [5.0]], r"with `times\[\.\.\., 0\]`"),
            *(
                (MultivariateNormalOU, name, None, f"Missing required `{name}`")
                for name in ("marginal_scale", "length_scale", "times")
            ),
            *(
                (MultivariateNormalOU, "times", times, f"`times` {message}")
                for times, message in (
                    ([0.0, 2.0, 1.0], "must not decrease.*got 1.0 after 2.0 at position 2.*Sort"),
                    (np.float32([[0.0, 1.0, 2.0], [0.0, 1.0, 0.0]]), "must not decrease"),
                    (tf.constant([0.0, np.nan, 1.0]), "must not decrease"),
                    (np.float32([1.7e9, 1.7e9 + 1, 1.7e9 + 2]), "are equal after rounding"),
                    (np.float32([1.7e9, 1.7e9, 1.7e9 + 1000]), "are equal after rounding"),
                )
            ),
        ],
    )
    def test_shapes_that_do_not_fit(self, cls, name, value, message):
        with pytest.raises(ValueError, match=message):
            cls(**(valid(cls) | {name: value}))

    def test_other_shapes_that_do_not_fit(self):
        with pytest.raises(ValueError, match=r"`fisher_z` .* 2; got shape \(3,\)"):
            MultivariateNormalANTE1(tf.zeros(3), tf.ones(3), fisher_z=tf.zeros(3))
        with pytest.raises(ERRORS):
            MultivariateNormalAR1(tf.zeros([3, 4]), tf.ones(2), correlation=0.1)

    @each_class
    @pytest.mark.parametrize("validate_args", [True, False])
    def test_value_of_the_wrong_size(self, cls, validate_args):
        p = cls(**valid(cls), validate_args=validate_args)
        with pytest.raises(ERRORS):
            p.log_prob(tf.zeros(4))

    @each_relative
    def test_no_coordinates(self, cls):
        empty = {k: np.zeros([0], np.float32) if np.ndim(v) else v for k, v in valid(cls).items()}
        p, x = cls(**empty), np.zeros([2, 0], np.float32)
        standard = tfd.MultivariateNormalDiag(tf.zeros([0]))
        given = p.conditional(x, x == 0)
        assert p.event_shape == [0]
        assert p.sample(2, seed=SEED).shape == given.sample(seed=SEED).shape == (2, 0)
        for result in (p.log_prob(x), p.marginal(step=2).log_prob(x)):
            np.testing.assert_array_equal(result, [0, 0])
        shifted = MultivariateNormalAR1(tf.zeros([0]), 3.0, 0.5)
        for q in (standard, shifted):
            assert tfd.kl_divergence(p, q) == tfd.kl_divergence(q, p) == 0
        assert p.entropy() == p.precision().log_abs_determinant() == 0
        assert p.covariance().shape == p.precision().to_dense().shape == (0, 0)

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
        assert p.sample(seed=SEED).shape == (1,)
        expected = tfd.Normal(0.0, 1.0 if cls in BY_COORDINATE else 2.0)
        oracles.assert_close(p.log_prob([0.3]), expected.log_prob(0.3))
        oracles.assert_close(p.entropy(), expected.entropy())

    @pytest.mark.parametrize(
        ("cls", "name", "bad"),
        [
            (MultivariateNormalAR1, "marginal_scale", [1.0, 0.0]),
            (MultivariateNormalAR1, "marginal_scale", -1.0),
            (MultivariateNormalAR1, "correlation", [0.5, 1.0]),
            (MultivariateNormalAR1, "correlation", -1.0),
            (MultivariateNormalAR1, "correlation", np.nan),
            (MultivariateNormalARH1, "scale_diag", [1.0, 0.0, 1.0]),
            (MultivariateNormalARH1, "correlation", 1.5),
            (MultivariateNormalANTE1, "scale_diag", [1.0, 2.0, -1.0]),
            (MultivariateNormalANTE1, "correlation", [0.5, -1.0]),
            (MultivariateNormalOU, "marginal_scale", 0.0),
            (MultivariateNormalOU, "length_scale", -1.0),
            (MultivariateNormalOU, "times", [0.0, 2.0, 1.0]),
            (MultivariateNormalOU, "times", [0.0, np.nan, 1.0]),
        ],
    )
    def test_validate_args(self, cls, name, bad):
        given, bad = valid(cls), np.float32(bad)
        good = np.broadcast_to(np.float32(given[name]), bad.shape)
        with pytest.raises(ERRORS, match=name):
            cls(**(given | {name: bad}), validate_args=True)
        # Inside a graph whose inputs it does not know, the same when it runs.
        in_graph = tf.function(
            lambda x: cls(**(given | {name: x}), validate_args=True).entropy(), autograph=False
        )
        with pytest.raises(ERRORS, match=name):
            in_graph(tf.constant(bad))
        in_graph(tf.constant(good))
        # A variable is checked again whenever it is used.
        variable = tf.Variable(good)
        p = cls(**(given | {name: variable}), validate_args=True)
        p.sample(seed=SEED)
        variable.assign(bad)
        for use in (lambda: p.sample(seed=SEED), lambda: p.log_prob(tf.zeros(3)), p.entropy):
            with pytest.raises(ERRORS, match=name):
                use()
        if name != "times":
            cls(**(given | {name: bad}))  # is not checked unless asked

    @each_class
    def test_the_sign_of_all_scales_makes_no_difference(self, cls):
        p, (_, scale, *_) = cls(**valid(cls)), valid(cls)
        q = p.copy(**{scale: -getattr(p, scale)})
        assert tfd.kl_divergence(p, q) == tfd.kl_divergence(q, p) == 0
        for method in ("stddev", "variance", "covariance", "entropy"):
            np.testing.assert_array_equal(getattr(p, method)(), getattr(q, method)())
        np.testing.assert_array_equal(p.log_prob([0.3, 2.0, 1.0]), q.log_prob([0.3, 2.0, 1.0]))

    @each_correlated
    def test_validate_args_of_fisher_z(self, cls):
        bad = np.full_like(np.float32(CORRELATION[cls]), np.inf)
        with pytest.raises(ERRORS, match="fisher_z"):
            cls(**VALID[cls], fisher_z=bad, validate_args=True)


class TestLoc:
    """It broadcasts against the coordinates, and may be missing, as in TFP."""

    @each_relative
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
        for marginal in (lambda p: p.marginal(1), lambda p: p.marginal(step=2)):
            oracles.assert_close(marginal(p).log_prob(x[:2]), marginal(written).log_prob(x[:2]))
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


# The event dimensions of each, and its shape for a sample of shape [2, 4].
MEMBER, COORDINATE, STEP = (0, [2]), (1, [2, 4]), (1, [2, 3])
PROPERTIES = {
    MultivariateNormalAR1: [COORDINATE, MEMBER, MEMBER, MEMBER],
    MultivariateNormalARH1: [COORDINATE, COORDINATE, MEMBER, MEMBER],
    MultivariateNormalANTE1: [COORDINATE, COORDINATE, STEP, STEP],
    MultivariateNormalOU: [COORDINATE, MEMBER, MEMBER, COORDINATE],
}


@each_class
def test_parameter_properties(cls):
    properties = cls.parameter_properties(dtype=tf.float64)
    others = ["correlation", "fisher_z"] if cls in CORRELATION else []
    assert list(properties) == [*VALID[cls], *others]
    found = [(p.event_ndims, list(p.shape_fn([2, 4]))) for p in properties.values()]
    assert found == PROPERTIES[cls]
    # Fisher's z is to a correlation what logits are to probabilities; times are data, of which
    # `make_trainable` makes no variable.
    other = "correlation" if others else "times"
    assert {name for name, p in properties.items() if not p.is_preferred} == {other}


@each_class
@pytest.mark.parametrize("dtype", oracles.DTYPES)
@pytest.mark.parametrize("spread", [1, 50])
def test_constraining_bijectors_map_to_valid_parameters(cls, dtype, spread):
    """At a spread of 50, tanh and softplus saturate in float32."""
    properties = cls.parameter_properties(dtype=tf.as_dtype(dtype))
    for spelling in ("fisher_z", "correlation") if cls in CORRELATION else ("times",):
        parameters = {}
        for name in (*VALID[cls], *({spelling} - VALID[cls].keys())):
            shape = list(properties[name].shape_fn([200, 3]))
            # Ascending numbers are right for times of a range that float32 can tell apart.
            size = 1 if name == "times" else spread
            unconstrained = tf.constant(size * draw(*shape, dtype=dtype, seed=len(name)))
            bijector = properties[name].default_constraining_bijector_fn()
            parameters[name] = bijector(unconstrained)
        p = cls(**parameters, validate_args=True)
        assert p.dtype == tf.as_dtype(dtype)
        assert p.batch_shape == [200]
        assert np.all(p.stddev() > 0)
        assert np.all(np.isfinite(p.sample(seed=SEED)))
        assert np.all(np.isfinite(p.entropy()))


@pytest.mark.parametrize("member", ONE_OF_EACH)
def test_event_space_bijector_is_the_identity(member):
    p = distribution(member)
    bijector = p.experimental_default_event_space_bijector()
    shape = tf.TensorShape(VALUE.shape)
    assert bijector.inverse_event_shape(shape) == bijector.forward_event_shape(shape) == shape
    np.testing.assert_array_equal(bijector(VALUE), VALUE)
    np.testing.assert_array_equal(bijector.inverse(VALUE), VALUE)
    np.testing.assert_array_equal(bijector.forward_log_det_jacobian(VALUE, event_ndims=1), 0.0)


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

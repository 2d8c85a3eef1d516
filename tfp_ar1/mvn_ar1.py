"""The multivariate normal with first-order autoregressive covariance, and its registered KLs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability.python.distributions.independent import _Independent
from tensorflow_probability.python.distributions.sample import _Sample
from tensorflow_probability.python.internal import (
    dtype_util,
    samplers,
    tensor_util,
    tensorshape_util,
)
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1 import linear_operator_ar1_cholesky as ar1_cholesky
from tfp_ar1 import recurrence
from tfp_ar1.conditional import ConditionalAR1
from tfp_ar1.correlation import check_one_given
from tfp_ar1.linear_operator_ar1_cholesky import LinearOperatorAR1Cholesky
from tfp_ar1.linear_operator_ar1_precision import LinearOperatorAR1Precision

tfb = tfp.bijectors
tfd = tfp.distributions

__all__ = ["MultivariateNormalAR1"]


class MultivariateNormalAR1(tfd.MultivariateNormalLinearOperator):
    r"""Multivariate normal whose covariance is that of a stationary AR(1) process.

    The distribution on R^d is parameterized by a location vector `loc`, one standard deviation
    `marginal_scale` (σ) shared by all coordinates and one lag-one `correlation` (ρ); each of them
    may have batch dimensions.

    #### Mathematical details

    ```none
    X ~ N(loc, C),    C[i, j] = σ² ρ^|i-j|
    X_0 = loc_0 + σ ε_0
    X_t = loc_t + ρ (X_{t-1} - loc_{t-1}) + σ √(1 - ρ²) ε_t,    ε_t ~ N(0, 1)
    ```

    This is the approximate posterior of the ρ-VAE (equation 4 of arXiv:1909.06236, where s = σ²).
    Sampling, `log_prob`, `entropy`, the means and variances and the KL divergences below cost O(d)
    time and memory; only `covariance` forms a d × d matrix. `scale` is the Cholesky factor of C as
    a `LinearOperatorAR1Cholesky`.

    `fisher_z = atanh ρ` is to `correlation` what `logits` is to `probs`: every real number is
    valid, and log-determinants, samples, and KL divergences keep full accuracy where ρ itself
    rounds to ±1 (in float32 from `fisher_z` = 8 on).

    #### KL divergences

    `tfd.kl_divergence` is analytic, under batch broadcasting, between this distribution and, on
    either side: itself; `tfd.MultivariateNormalDiag` and any `MultivariateNormalLinearOperator`
    with a diagonal scale; `tfd.Independent(tfd.Normal(...), 1)`; `tfd.Sample(tfd.Normal(...), d)`:
    all O(d). With a scale that is diagonal plus an update of rank r, such as that of
    `tfd.MultivariateNormalDiagPlusLowRank`, it costs O(d r²). With any other
    `tfd.MultivariateNormalLinearOperator`, such as `MultivariateNormalTriL`, it costs O(d²) when
    that is the left side, and d solves with its scale when it is the right side.

    #### Examples

    ```python
    import tensorflow_probability as tfp
    import tfp_ar1

    tfd = tfp.distributions

    # A random path of 100 steps, smooth because neighbours have correlation 0.95.
    path = tfp_ar1.MultivariateNormalAR1(loc=tf.zeros(100), marginal_scale=2.0, correlation=0.95)
    x = path.sample(3)                      # shape [3, 100]
    path.log_prob(x)                        # shape [3]

    # A batch of two posteriors on R^10 against a standard normal prior.
    q = tfp_ar1.MultivariateNormalAR1(
        loc=tf.zeros([2, 10]), marginal_scale=[0.5, 1.0], fisher_z=[0.1, -2.0])
    prior = tfd.MultivariateNormalDiag(loc=tf.zeros(10))
    tfd.kl_divergence(q, prior)             # shape [2]
    ```

    Args:
      loc: floating-point tensor `[B1, ..., Bb, d]`, the mean.
      marginal_scale: positive floating-point tensor `[B1, ..., Bb]`, the standard deviation σ of
        every coordinate (√s in the paper). Default: 1.
      correlation: floating-point tensor `[B1, ..., Bb]`, ρ in (-1, 1). Exactly one of
        `correlation` and `fisher_z` must be given.
      fisher_z: floating-point tensor `[B1, ..., Bb]`, `atanh ρ`, any finite value.
      validate_args: if `True`, parameters are checked when the graph runs, at some cost. If
        `False`, invalid parameters may give NaN.
      allow_nan_stats: if `False`, raises where a statistic is undefined. (All are defined here.)
      name: name prefixed to operations created by this class.

    Raises:
      ValueError: if both or neither of `correlation` and `fisher_z` are given, or if `loc` is a
        scalar.
      TypeError: if the parameters differ in dtype or are not floating-point.
    """

    def __init__(
        self,
        loc: Any,
        marginal_scale: Any = 1.0,
        correlation: Any = None,
        fisher_z: Any = None,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "MultivariateNormalAR1",
    ):
        parameters = dict(locals())
        check_one_given(correlation, fisher_z)
        with tf.name_scope(name) as name:
            dtype = dtype_util.common_dtype(
                [loc, marginal_scale, correlation, fisher_z], dtype_hint=tf.float32
            )
            if not dtype_util.is_floating(dtype):
                raise TypeError(
                    f"The parameters of `MultivariateNormalAR1` must be floating-point; got dtype "
                    f"{dtype_util.name(dtype)}."
                )
            convert = tensor_util.convert_nonref_to_tensor
            loc = convert(loc, dtype=dtype, name="loc")
            if loc.shape.rank == 0:
                raise ValueError(
                    "`loc` must have at least one dimension, the coordinates; got a scalar."
                )
            num_rows = tf.compat.dimension_value(loc.shape[-1]) if loc.shape.rank else None
            scale = LinearOperatorAR1Cholesky(
                num_rows=ps.shape(loc)[-1] if num_rows is None else num_rows,
                correlation=convert(correlation, dtype=dtype, name="correlation"),
                marginal_scale=convert(marginal_scale, dtype=dtype, name="marginal_scale"),
                fisher_z=convert(fisher_z, dtype=dtype, name="fisher_z"),
            )
            super().__init__(loc=loc, scale=scale, validate_args=validate_args, name=name)
            self._allow_nan_stats = allow_nan_stats
            self._parameters = parameters

    @property
    def marginal_scale(self) -> Any:
        """σ, the standard deviation of every coordinate, as given."""
        return self.scale.marginal_scale

    @property
    def correlation(self) -> Any:
        """ρ as given, or `None`; see `correlation_parameter`."""
        return self.scale.correlation

    @property
    def fisher_z(self) -> Any:
        """`atanh ρ` as given, or `None`."""
        return self.scale.fisher_z

    def correlation_parameter(self, name: str = "correlation_parameter") -> tf.Tensor:
        """The correlation, of shape `[B1, ..., Bb]`, computed from `correlation` or `fisher_z`."""
        with self._name_and_control_scope(name):
            rho, _ = self.scale.read_parameters()
            return tf.identity(rho.value)

    def precision(self, name: str = "precision") -> LinearOperatorAR1Precision:
        """The inverse of the covariance, as a tridiagonal operator of shape `[..., d, d]`.

        A `tf.linalg.LinearOperatorTridiag` whose `matmul` and `solve` cost O(d) per column and
        whose `determinant` costs O(1).
        """
        with self._name_and_control_scope(name):
            return LinearOperatorAR1Precision(self.scale)

    def marginal(
        self, start: int = 0, stop: int | None = None, step: int = 1, name: str = "marginal"
    ) -> MultivariateNormalAR1:
        """The distribution of every `step`-th coordinate of a range: AR(1) again, with ρ^step.

        Args:
          start: first coordinate of the range; negative counts from the end, as in a Python slice.
          stop: end of the range, exclusive; `None` for all that follow.
          step: distance between the coordinates that are kept, at least 1.
          name: name prefixed to operations created by this method.

        Returns:
          `MultivariateNormalAR1` over the coordinates `[start:stop:step]`, of the same batch shape.

        Raises:
          ValueError: if `step` is not a positive integer, or no coordinate is left.
        """
        if int(step) != step or step < 1:
            raise ValueError(f"`step` must be a positive integer; got {step!r}.")
        with self._name_and_control_scope(name):
            loc = tf.convert_to_tensor(self.loc)[..., start:stop:step]
            if tf.compat.dimension_value(loc.shape[-1]) == 0:
                raise ValueError(
                    f"The range start={start}, stop={stop}, step={step} has no coordinate of a "
                    f"distribution of event shape {self.event_shape}."
                )
            parameters = {"correlation": self.correlation, "fisher_z": self.fisher_z}
            if step > 1:
                rho, _ = self.scale.read_parameters()
                size, remainder = rho.decay(tf.constant(step))
                # atanh(r) with 1 - r² given: nothing cancels where r is nearly 1.
                fisher_z = tf.math.log1p(size) - 0.5 * tf.math.log(remainder)
                parameters = {"fisher_z": rho.sign * fisher_z if step % 2 else fisher_z}
            return MultivariateNormalAR1(
                loc,
                marginal_scale=self.marginal_scale,
                validate_args=self.validate_args,
                allow_nan_stats=self.allow_nan_stats,
                **parameters,
            )

    def conditional(self, value: Any, observed: Any) -> ConditionalAR1:
        """What is known of all coordinates once some are observed: missing values, in O(d).

        Args:
          value: floating-point tensor `[..., d]`, broadcast against the batch shape. Entries that
            are not observed are ignored, and may be NaN.
          observed: boolean tensor `[..., d]`, `True` where `value` is known.

        Returns:
          A `ConditionalAR1`, with `mean`, `variance`, `stddev`, `sample` and the log-likelihood of
          what is observed.
        """
        return ConditionalAR1(self, value, observed)

    @classmethod
    def _maximum_likelihood_parameters(cls, value: tf.Tensor) -> dict[str, tf.Tensor]:
        """The exact maximum-likelihood estimate from independent draws along axis 0.

        With w the draws minus their mean, A = Σ w_t², B = Σ w_t w_{t-1} and C the part of A without
        the first and last coordinates, the likelihood with σ at its best for each ρ has its maximum
        at the one root in (-1, 1) of

            (d - 1) C ρ³ - (d - 2) B ρ² - (A + d C) ρ + d B = 0

        (Beach and MacKinnon, 1978, who fit a single series; here the draws' sums take its place).
        """
        loc = tf.reduce_mean(value, axis=0)
        w = value - loc
        size = tf.cast(ps.shape(w)[-1], w.dtype)
        squares = tf.reduce_mean(tf.square(w), axis=0)
        a = tf.reduce_sum(squares, axis=-1)
        b = tf.reduce_sum(tf.reduce_mean(w[..., 1:] * w[..., :-1], axis=0), axis=-1)
        c = tf.reduce_sum(squares[..., 1:-1], axis=-1)

        def derivative(rho: tf.Tensor) -> tf.Tensor:
            cubic = (size - 1.0) * c * rho - (size - 2.0) * b
            return (cubic * rho - (a + size * c)) * rho + size * b

        # Its sign changes between the ends, where it is (x_t ± x_{t-1})² summed up.
        one = tf.ones_like(a)
        rho = tfp.math.find_root_chandrupatla(derivative, low=-one, high=one).estimated_root
        variance = (a - 2.0 * b * rho + c * tf.square(rho)) / (size * (1.0 - rho) * (1.0 + rho))
        return {"loc": loc, "marginal_scale": tf.math.sqrt(variance), "correlation": rho}

    @classmethod
    def _parameter_properties(
        cls, dtype: Any, num_classes: int | None = None
    ) -> dict[str, tfp.util.ParameterProperties]:
        eps = dtype_util.eps(dtype)

        def scalar(**properties) -> tfp.util.ParameterProperties:
            # One for each member of the batch: without the event dimension of a sample.
            return tfp.util.ParameterProperties(shape_fn=lambda shape: shape[:-1], **properties)

        return {
            "loc": tfp.util.ParameterProperties(event_ndims=1),
            "marginal_scale": scalar(
                default_constraining_bijector_fn=lambda: tfb.Softplus(low=eps)
            ),
            "correlation": scalar(
                # Where tanh rounds to 1, the correlation must still be less.
                default_constraining_bijector_fn=lambda: tfb.Chain(
                    [tfb.Scale(np.asarray(1.0 - 2.0 * eps, eps.dtype)), tfb.Tanh()]
                ),
                is_preferred=False,
            ),
            "fisher_z": scalar(),
        }

    def _call_sample_n(self, sample_shape: Any, seed: Any) -> tf.Tensor:
        # TransformedDistribution would go through its bijector; this goes to `_sample_n`.
        return tfd.Distribution._call_sample_n(self, sample_shape, seed)

    def _noise(self, sample_shape: Any, seed: Any) -> tf.Tensor:
        shape = ps.concat(
            [sample_shape, self._static_or_dynamic_batch_shape(), [self._event_size()]], axis=0
        )
        return samplers.normal(shape, dtype=self.dtype, seed=seed)

    def _sample_n(self, n: Any, seed: Any = None) -> tf.Tensor:
        noise = self._noise([n], seed)
        rho, scale = self.scale.read_parameters()
        return self.loc + ar1_cholesky.matvec(noise, rho, scale)

    def _sample_and_log_prob(self, sample_shape: Any, seed: Any) -> tuple[tf.Tensor, tf.Tensor]:
        # From the noise itself, rather than from the sample, whose rounding errors log_prob
        # magnifies by 1/√(1-ρ²).
        noise = self._noise(sample_shape, seed)
        rho, scale = self.scale.read_parameters()
        sample = self.loc + ar1_cholesky.matvec(noise, rho, scale)
        squared_norm = recurrence.sum_of_squares(noise)
        return sample, self._log_prob_of_squared_norm(squared_norm, rho, scale)

    def _log_prob(self, x: tf.Tensor) -> tf.Tensor:
        rho, scale = self.scale.read_parameters()
        squared_norm = recurrence.squared_norm_of_whitened(x - self.loc, rho, scale)
        return self._log_prob_of_squared_norm(squared_norm, rho, scale)

    def _log_prob_of_squared_norm(
        self, squared_norm: tf.Tensor, rho: Any, scale: tf.Tensor
    ) -> tf.Tensor:
        size = self._event_size()
        normalization = 0.5 * np.log(2.0 * np.pi) * tf.cast(size, self.dtype)
        log_det = ar1_cholesky.log_abs_determinant(size, rho, scale)
        return -0.5 * squared_norm - (log_det + normalization)

    def _prob(self, x: tf.Tensor) -> tf.Tensor:
        return tf.math.exp(self._log_prob(x))

    def _entropy(self) -> tf.Tensor:
        size = self._event_size()
        rho, scale = self.scale.read_parameters()
        entropy = 0.5 * (1.0 + np.log(2.0 * np.pi)) * tf.cast(size, self.dtype)
        entropy += ar1_cholesky.log_abs_determinant(size, rho, scale)
        return tf.broadcast_to(entropy, self._static_or_dynamic_batch_shape())

    def _mean(self) -> tf.Tensor:
        shape = ps.concat([self._static_or_dynamic_batch_shape(), [self._event_size()]], axis=0)
        mean = tf.broadcast_to(self.loc, shape)
        return tf.ensure_shape(mean, self.batch_shape.concatenate(self.event_shape))

    def _variance(self) -> tf.Tensor:
        return self._broadcast_to_event(tf.square(self.marginal_scale))

    def _stddev(self) -> tf.Tensor:
        return self._broadcast_to_event(tf.convert_to_tensor(self.marginal_scale))

    def _covariance(self) -> tf.Tensor:
        rho, scale = self.scale.read_parameters(for_columns=True)
        size = self._event_size()
        # ρ^(i-j) for i ≥ j, as the response of the recurrence to each unit vector: O(d²), and
        # with the gradient of the recurrence.
        identity = tf.eye(size, dtype=self.dtype)
        powers = recurrence.recurrence(identity, rho)
        toeplitz = powers + tf.linalg.matrix_transpose(powers) - identity
        covariance = tf.square(scale)[..., tf.newaxis] * toeplitz
        shape = ps.concat([self._static_or_dynamic_batch_shape(), [size, size]], axis=0)
        return tf.broadcast_to(covariance, shape)

    def _broadcast_to_event(self, x: tf.Tensor) -> tf.Tensor:
        shape = ps.concat([self._static_or_dynamic_batch_shape(), [self._event_size()]], axis=0)
        return tf.broadcast_to(x[..., tf.newaxis], shape)

    def _event_size(self) -> Any:
        """The size d, as a Python integer where it is known."""
        size = tf.compat.dimension_value(self.event_shape[-1])
        return self.scale.domain_dimension_tensor() if size is None else size

    def _static_or_dynamic_batch_shape(self) -> Any:
        if tensorshape_util.is_fully_defined(self.batch_shape):
            return np.array(tensorshape_util.as_list(self.batch_shape), np.int32)
        # Not `self.batch_shape_tensor()`, which would check the parameters once more.
        return ps.broadcast_shape(ps.shape(self.loc)[:-1], self.scale.batch_shape_tensor())

    def _parameter_control_dependencies(self, is_init: bool) -> list[Any]:
        if not self.validate_args:
            return []
        assertions = []
        if is_init != tensor_util.is_ref(self.marginal_scale):
            assertions.append(
                tf.debugging.assert_positive(
                    self.marginal_scale, message="`marginal_scale` must be positive."
                )
            )
        if self.correlation is not None and is_init != tensor_util.is_ref(self.correlation):
            assertions.append(
                tf.debugging.assert_less(
                    tf.math.abs(self.correlation),
                    tf.ones([], self.dtype),
                    message="`correlation` must lie strictly between -1 and 1.",
                )
            )
        if self.fisher_z is not None and is_init != tensor_util.is_ref(self.fisher_z):
            assertions.append(
                tf.debugging.assert_all_finite(self.fisher_z, "`fisher_z` must be finite.")
            )
        return assertions


# Kullback-Leibler divergences.
#
# For normals p and q with means m and r, KL(p ‖ q) = ½ [tr(C_q⁻¹ C_p) - d + log|C_q| - log|C_p|]
# + ½ |L_q⁻¹ (m - r)|². Where both covariances have structure, the bracket is written as a sum of
# terms that cannot be negative, each of the form
#
#     excess(v) = exp(v) - 1 - v ≥ 0,    v the logarithm of a ratio of variances,
#
# because their sum loses nothing to cancellation when p and q are close. For AR(1) this is the
# chain rule of the KL along the path: one term for the first coordinate, and for each later one the
# KL between its two laws given the coordinate before.


def _excess(log_ratio: tf.Tensor) -> tf.Tensor:
    return tf.math.expm1(log_ratio) - log_ratio


def _half_square(x: tf.Tensor) -> tf.Tensor:
    return 0.5 * recurrence.sum_of_squares(x)


class _DiagonalNormal(NamedTuple):
    """Independent normals along one event axis; arrays `[..., d]`, or `[..., 1]` where shared."""

    loc: tf.Tensor
    log_scale: tf.Tensor


def _diagonal_normal(distribution: tfd.Distribution) -> _DiagonalNormal | None:
    """`distribution` as independent normals, or `None` for a normal that is correlated.

    Raises:
      ValueError: if it is an `Independent` or a `Sample` that is not a vector of `tfd.Normal`s.
    """
    if isinstance(distribution, _Independent | _Sample):
        loc, scale = _loc_and_scale_of_iid_or_independent(distribution)
    else:
        operator = distribution.scale
        if isinstance(operator, tf.linalg.LinearOperatorDiag):
            scale = tf.convert_to_tensor(operator.diag)
        elif isinstance(operator, tf.linalg.LinearOperatorScaledIdentity):
            scale = tf.convert_to_tensor(operator.multiplier)[..., tf.newaxis]
        elif isinstance(operator, tf.linalg.LinearOperatorIdentity):
            scale = tf.ones([1], operator.dtype)
        else:
            return None
        loc = _loc(distribution)
    # A diagonal scale may have negative entries.
    return _DiagonalNormal(loc, tf.math.log(tf.math.abs(scale)))


def _loc_and_scale_of_iid_or_independent(
    distribution: tfd.Distribution,
) -> tuple[tf.Tensor, tf.Tensor]:
    kind = "Independent" if isinstance(distribution, _Independent) else "Sample"
    normal = distribution.distribution
    rank = distribution.event_shape.rank
    if not isinstance(normal, tfd.Normal) or rank not in (1, None):
        raise ValueError(
            f"KL divergence with `MultivariateNormalAR1` needs a `{kind}` of `tfd.Normal` whose "
            f"event is a vector; got `{kind}` of `{type(normal).__name__}` with event shape "
            f"{distribution.event_shape}."
        )
    loc, scale = tf.convert_to_tensor(normal.loc), tf.convert_to_tensor(normal.scale)
    if kind == "Sample":
        return loc[..., tf.newaxis], scale[..., tf.newaxis]
    if scale.shape.rank is None:
        scale = tf.broadcast_to(scale, normal.batch_shape_tensor())
    return loc, scale[tf.newaxis] if scale.shape.rank == 0 else scale


def _loc(distribution: tfd.MultivariateNormalLinearOperator) -> tf.Tensor:
    if distribution.loc is None:
        return tf.zeros([], distribution.dtype)
    return tf.convert_to_tensor(distribution.loc)


def _check_event_sizes(p: tfd.Distribution, q: tfd.Distribution) -> list[Any]:
    """Refuses events of different shape; returns the assertions for what is not known yet."""
    message = "KL divergence needs two distributions over vectors of the same size"
    if not p.event_shape.is_compatible_with(q.event_shape):
        raise ValueError(
            f"{message}; got event shape {p.event_shape} of `{p.name}` and {q.event_shape} of "
            f"`{q.name}`."
        )
    if p.event_shape.is_fully_defined() and q.event_shape.is_fully_defined():
        return []
    return [
        tf.debugging.assert_equal(p.event_shape_tensor(), q.event_shape_tensor(), f"{message}.")
    ]


def _per_coordinate(x: tf.Tensor, size: Any) -> Any:
    """How often each entry of the last axis of `x` stands for a coordinate: 1, or d if shared."""
    last = tf.compat.dimension_value(x.shape[-1])
    if last is not None and isinstance(size, int):
        return float(size // last)
    return tf.cast(size // ps.shape(x)[-1], x.dtype)


@tfd.RegisterKL(MultivariateNormalAR1, MultivariateNormalAR1)
def _kl_ar1_ar1(
    p: MultivariateNormalAR1, q: MultivariateNormalAR1, name: str | None = None
) -> tf.Tensor:
    """KL(AR1 ‖ AR1) in O(d).

    Given coordinate t - 1, coordinate t has the variances v_p = σ_p² (1 - ρ_p²) and
    v_q = σ_q² (1 - ρ_q²) under p and q, and its conditional means differ by
    (ρ_p - ρ_q) times a value of variance σ_p², besides what `loc` contributes. Hence

        KL = ½ excess(log σ_p²/σ_q²) + ½ (d - 1) [excess(log v_p/v_q) + (ρ_p - ρ_q)² σ_p²/v_q]
             + ½ |L_q⁻¹ (loc_p - loc_q)|².
    """
    with tf.name_scope(name or "kl_ar1_ar1"), tf.control_dependencies(_check_event_sizes(p, q)):
        (rho_p, scale_p), (rho_q, scale_q) = p.scale.read_parameters(), q.scale.read_parameters()
        log_ratio = 2.0 * (tf.math.log(scale_p) - tf.math.log(scale_q))
        log_step_ratio = log_ratio + rho_p.log_innovation_variance - rho_q.log_innovation_variance
        # ρ_p - ρ_q from the distances to the nearer end, which keep their accuracy there.
        rho_difference = (rho_p.sign - rho_q.sign) - (rho_p.complement - rho_q.complement)
        drift = rho_difference * (scale_p / scale_q) * rho_q.innovation_precision_scale
        covariance_terms = 0.5 * _excess(log_ratio) + 0.5 * ar1_cholesky.num_later(
            p._event_size(), p.dtype
        ) * (_excess(log_step_ratio) + tf.square(drift))
        return covariance_terms + 0.5 * recurrence.squared_norm_of_whitened(
            _loc(p) - _loc(q), rho_q, scale_q
        )


def _kl_ar1_diagonal(p: MultivariateNormalAR1, q: _DiagonalNormal) -> tf.Tensor:
    """KL(AR1 ‖ independent normals of scales τ_i) in O(d); equation 6 of the paper for N(0, I).

    KL = ½ Σ_i [excess(log σ²/τ_i²) + (loc_i - m_i)²/τ_i²] - ½ (d - 1) log(1 - ρ²).
    """
    rho, scale = p.scale.read_parameters()
    log_ratio = 2.0 * (tf.math.log(scale)[..., tf.newaxis] - q.log_scale)
    return (
        0.5 * _per_coordinate(log_ratio, p._event_size()) * tf.reduce_sum(_excess(log_ratio), -1)
        - 0.5 * ar1_cholesky.num_later(p._event_size(), p.dtype) * rho.log_innovation_variance
        + _half_square((_loc(p) - q.loc) * tf.math.exp(-q.log_scale))
    )


def _kl_diagonal_ar1(p: _DiagonalNormal, q: MultivariateNormalAR1) -> tf.Tensor:
    """KL(independent normals of scales τ_t ‖ AR1) in O(d).

    As KL(AR1 ‖ AR1), with steps of variance τ_t² under p, whose means do not follow the path:
    the difference of conditional means is ρ_q times a value of variance τ_{t-1}².

    KL = ½ excess(log τ_0²/σ²) + ½ Σ_{t≥1} [excess(log τ_t²/v) + ρ² τ_{t-1}²/v]
         + ½ |L⁻¹ (m - loc)|²,    v = σ² (1 - ρ²).
    """
    rho, scale = q.scale.read_parameters()
    log_ratio = 2.0 * (p.log_scale - tf.math.log(scale)[..., tf.newaxis])
    if log_ratio.shape[-1] != 1:
        # Where the size is unknown it may be 1: then all coordinates share the entry.
        shape = ps.concat([ps.shape(log_ratio)[:-1], [q._event_size()]], axis=0)
        log_ratio = tf.broadcast_to(log_ratio, shape)
        first, later, earlier = log_ratio[..., 0], log_ratio[..., 1:], log_ratio[..., :-1]
        repeats = 1.0
    else:
        first, later, earlier = log_ratio[..., 0], log_ratio, log_ratio
        repeats = ar1_cholesky.num_later(q._event_size(), q.dtype)
    step = _excess(later - rho.log_innovation_variance[..., tf.newaxis])
    drift = (
        tf.math.exp(earlier)
        * tf.square(rho.value * rho.innovation_precision_scale)[..., tf.newaxis]
    )
    return (
        0.5 * _excess(first)
        + 0.5 * repeats * tf.reduce_sum(step + drift, axis=-1)
        + 0.5 * recurrence.squared_norm_of_whitened(p.loc - _loc(q), rho, scale)
    )


def _kl_through_factors(
    p: tfd.MultivariateNormalLinearOperator, q: tfd.MultivariateNormalLinearOperator
) -> tf.Tensor:
    """KL of two normals by tr(C_q⁻¹ C_p) = |L_q⁻¹ L_p|², one of them AR(1).

    Neither covariance is formed. O(d r²) where the other scale is diagonal plus an update of rank
    r; otherwise a solve with q's scale for each of the d columns of p's: O(d²) if q is AR(1).
    """
    p_scale, q_scale = (ar1_cholesky.with_tensors(d.scale) for d in (p, q))
    if _is_diagonal_plus_low_rank(p_scale):
        trace = _trace_low_rank_ar1(p_scale, q_scale)
    elif _is_diagonal_plus_low_rank(q_scale):
        trace = _trace_ar1_low_rank(p_scale, q_scale)
    else:
        trace = _squared_norm(q_scale.solve(p_scale.to_dense()))
    size = tf.cast(p_scale.domain_dimension_tensor(), p.dtype)
    log_dets = q_scale.log_abs_determinant() - p_scale.log_abs_determinant()
    return 0.5 * (trace - size) + log_dets + _half_square(q_scale.solvevec(_loc(p) - _loc(q)))


def _squared_norm(matrix: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.square(matrix), axis=[-2, -1])


def _is_diagonal_plus_low_rank(scale: tf.linalg.LinearOperator) -> bool:
    return isinstance(scale, tf.linalg.LinearOperatorLowRankUpdate) and isinstance(
        scale.base_operator,
        tf.linalg.LinearOperatorDiag
        | tf.linalg.LinearOperatorIdentity
        | tf.linalg.LinearOperatorScaledIdentity,
    )


def _trace_low_rank_ar1(
    p_scale: tf.linalg.LinearOperatorLowRankUpdate, q_scale: LinearOperatorAR1Cholesky
) -> tf.Tensor:
    """|L⁻¹ (D + U M Vᵀ)|² with L of AR(1), D diagonal, and U, V of r columns: O(d r²)."""
    rho, scale = q_scale.read_parameters()
    diagonal, update = p_scale.base_operator.diag_part(), p_scale.diag_operator.matmul
    # Column t of L⁻¹ D has the entries D_t / σ (t = 0) or D_t / √v, and -ρ D_t / √v below.
    relative = tf.square(diagonal / scale[..., tf.newaxis])
    later = tf.reduce_sum(relative[..., 1:], -1) + tf.square(rho.value) * tf.reduce_sum(
        relative[..., :-1], -1
    )
    of_diagonal = relative[..., 0] + later * tf.square(rho.innovation_precision_scale)
    solved = q_scale.solve(p_scale.u)
    mixed = q_scale.solve(solved, adjoint=True) * diagonal[..., tf.newaxis]
    v = tf.linalg.matrix_transpose(update(p_scale.v, adjoint_arg=True))
    cross = tf.reduce_sum(mixed * v, axis=[-2, -1])
    of_update = _sum_of_product_of_grams(solved, v)
    return of_diagonal + 2.0 * cross + of_update


def _trace_ar1_low_rank(
    p_scale: LinearOperatorAR1Cholesky, q_scale: tf.linalg.LinearOperatorLowRankUpdate
) -> tf.Tensor:
    """|(D + U M Vᵀ)⁻¹ L|² by the Woodbury identity, with L of AR(1): O(d r²).

    With Y = D⁻¹ V and K = M⁻¹ + Yᵀ U, the inverse is D⁻¹ - D⁻¹ U K⁻¹ Yᵀ.
    """
    diagonal = q_scale.base_operator.diag_part()[..., tf.newaxis]
    _, scale = p_scale.read_parameters()
    of_diagonal = tf.reduce_sum(tf.square(scale[..., tf.newaxis] / diagonal[..., 0]), axis=-1)
    y = q_scale.v / diagonal
    capacitance = tf.linalg.matmul(y, q_scale.u, transpose_a=True)
    capacitance += q_scale.diag_operator.inverse().to_dense()
    # D⁻¹ U K⁻¹, from its transpose.
    correction = tf.linalg.matrix_transpose(
        tf.linalg.solve(capacitance, tf.linalg.matrix_transpose(q_scale.u / diagonal), adjoint=True)
    )
    projected = p_scale.matmul(y, adjoint=True)
    cross = tf.reduce_sum(p_scale.matmul(correction / diagonal, adjoint=True) * projected, [-2, -1])
    return of_diagonal - 2.0 * cross + _sum_of_product_of_grams(correction, projected)


def _sum_of_product_of_grams(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """|x yᵀ|² for x and y `[..., d, r]`, in O(d r²)."""
    gram = (tf.linalg.matmul(z, z, transpose_a=True) for z in (x, y))
    return tf.reduce_sum(tf.math.multiply(*gram), axis=[-2, -1])


@tfd.RegisterKL(MultivariateNormalAR1, _Independent)
@tfd.RegisterKL(MultivariateNormalAR1, _Sample)
@tfd.RegisterKL(MultivariateNormalAR1, tfd.MultivariateNormalLinearOperator)
def _kl_ar1_normal(
    p: MultivariateNormalAR1, q: tfd.Distribution, name: str | None = None
) -> tf.Tensor:
    """KL(AR1 ‖ another normal): O(d) where q is a vector of independent normals."""
    with tf.name_scope(name or "kl_ar1_normal"), tf.control_dependencies(_check_event_sizes(p, q)):
        diagonal = _diagonal_normal(q)
        if diagonal is None:
            return _kl_through_factors(p, q)
        return _kl_ar1_diagonal(p, diagonal)


@tfd.RegisterKL(_Independent, MultivariateNormalAR1)
@tfd.RegisterKL(_Sample, MultivariateNormalAR1)
@tfd.RegisterKL(tfd.MultivariateNormalLinearOperator, MultivariateNormalAR1)
def _kl_normal_ar1(
    p: tfd.Distribution, q: MultivariateNormalAR1, name: str | None = None
) -> tf.Tensor:
    """KL(another normal ‖ AR1): O(d) where p is a vector of independent normals, else O(d²)."""
    with tf.name_scope(name or "kl_normal_ar1"), tf.control_dependencies(_check_event_sizes(p, q)):
        diagonal = _diagonal_normal(p)
        if diagonal is None:
            return _kl_through_factors(p, q)
        return _kl_diagonal_ar1(diagonal, q)

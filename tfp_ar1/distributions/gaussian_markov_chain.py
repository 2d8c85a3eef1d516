"""Multivariate normals that are Gaussian Markov chains: what the family shares, and its KLs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

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

from tfp_ar1 import recurrence
from tfp_ar1.correlation import LagOneCorrelation, compare
from tfp_ar1.distributions import fit
from tfp_ar1.distributions.conditional import ConditionalMarkov
from tfp_ar1.linear_operators import markov_cholesky as markov_cholesky
from tfp_ar1.linear_operators.chain import Chain, log_abs, total, widened
from tfp_ar1.linear_operators.markov_cholesky import LinearOperatorMarkovCholesky
from tfp_ar1.linear_operators.markov_precision import LinearOperatorMarkovPrecision

tfb = tfp.bijectors
tfd = tfp.distributions

__all__ = ["GaussianMarkovChain", "kl_terms", "log_prob_terms"]


def _remake(cls: type[GaussianMarkovChain], parameters: dict[str, Any]) -> GaussianMarkovChain:
    return cls(**parameters)


def _not_implemented(method: str) -> Callable[..., NoReturn]:
    def refuse(self: tfd.Distribution, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"{method} is not implemented: {type(self).__name__}")

    return refuse


class GaussianMarkovChain(tfd.MultivariateNormalLinearOperator):
    """Base class of the normals in which each coordinate depends on the one before it alone.

    Everything works through `scale`, a `LinearOperatorMarkovCholesky`, at a cost of O(d) for d
    coordinates; only `covariance` forms a d × d matrix. Subclasses have a constructor, the
    properties of their parameters, and `_marginal`.

    Args:
      loc: the mean, `[B1, ..., Bb, d]`, a tensor or a variable. It may have one coordinate for all
        d, or be a scalar, or `None` for 0.
      scale: the Cholesky factor of the covariance.
      parameters: the arguments of the subclass.
      validate_args: whether parameters are checked when the graph runs.
      allow_nan_stats: whether a statistic that is undefined is NaN; all are defined here.
      name: name prefixed to operations.

    Raises:
      ValueError: if the last dimension of `loc` is neither that of `scale` nor 1.
    """

    def __init__(
        self,
        loc: Any,
        scale: LinearOperatorMarkovCholesky,
        parameters: dict[str, Any],
        validate_args: bool,
        allow_nan_stats: bool,
        name: str,
    ):
        loc = tensor_util.convert_nonref_to_tensor(loc, dtype=scale.dtype, name="loc")
        size = [] if loc is None else loc.shape[-1:]
        if size not in ([], [1]) and not size.is_compatible_with(scale.shape[-1:]):
            ndims = scale._experimental_parameter_ndims_to_matrix_ndims
            sized = next(name for name, n in ndims.items() if n)
            shape = getattr(scale, sized).shape
            message = (
                f"`loc` must have {shape[-1]} coordinates along its last axis, as `{sized}` has, "
                f"or 1 for all of them; got shapes {loc.shape} and {shape}."
            )
            if (shape.rank or 0) > 1 and shape[-1] == 1:
                message += (
                    f" The last axis of `{sized}` runs over the coordinates: an axis of features, "
                    f"as index points of a Gaussian process have, is left out by "
                    f"`{sized}[..., 0]`."
                )
            raise ValueError(message)
        super().__init__(loc=loc, scale=scale, validate_args=validate_args, name=name)
        self._allow_nan_stats = allow_nan_stats
        self._parameters = parameters

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, and copied, by its arguments."""
        # TFP's classes inside cannot be made by `__new__` alone, which is what pickle would do.
        return _remake, (type(self), self.parameters)

    def correlation_parameter(self, name: str = "correlation_parameter") -> tf.Tensor:
        """The correlation of neighbours, whatever parameter it was computed from.

        Of shape `[B1, ..., Bb]`, or `[B1, ..., Bb, d - 1]` if it differs from step to step.
        """
        with self._name_and_control_scope(name):
            return tf.identity(self.scale.chain().rho.value)

    def precision(self, name: str = "precision") -> LinearOperatorMarkovPrecision:
        """The inverse of the covariance, as a tridiagonal operator of shape `[..., d, d]`.

        A `tf.linalg.LinearOperatorTridiag` whose `matmul` and `solve` cost O(d) per column and
        whose `determinant` costs O(d) or less.
        """
        with self._name_and_control_scope(name):
            return LinearOperatorMarkovPrecision(self.scale)

    def marginal(
        self, start: int = 0, stop: int | None = None, step: int = 1, name: str = "marginal"
    ) -> GaussianMarkovChain:
        """The distribution of every `step`-th coordinate of a range: of the same class.

        Args:
          start: first coordinate of the range; negative counts from the end, as in a Python slice.
          stop: end of the range, exclusive; `None` for all that follow.
          step: distance between the coordinates that are kept, at least 1.
          name: name prefixed to operations created by this method.

        Returns:
          Distribution of this class over the coordinates `[start:stop:step]`, of the same batch
          shape.

        Raises:
          ValueError: if `step` is not a positive integer, or no coordinate is left.
        """
        try:
            valid = int(step) == step and step >= 1
        except (TypeError, ValueError):
            valid = False
        if not valid:
            raise ValueError(f"`step` must be a positive integer; got {step!r}.")
        with self._name_and_control_scope(name):
            size = self._event_size()
            # A step beyond the end keeps one coordinate, however long it is.
            longest = max(size, 1) if isinstance(size, int) else 2**30
            kept = slice(start, stop, min(int(step), longest))
            if isinstance(size, int) and not any(map(tf.is_tensor, (start, stop))):
                kept = slice(*kept.indices(size))
            loc = self._loc_along_event()[..., kept]
            if tf.compat.dimension_value(loc.shape[-1]) == 0 and size != 0:
                raise ValueError(
                    f"The range start={start}, stop={stop}, step={step} has no coordinate of a "
                    f"distribution of event shape {self.event_shape}."
                )
            return type(self)(
                loc,
                **self._marginal_parameters(kept),
                validate_args=self.validate_args,
                allow_nan_stats=self.allow_nan_stats,
            )

    def _marginal_parameters(self, kept: slice) -> dict[str, Any]:
        """The parameters, other than `loc`, for the coordinates of a slice with a step."""
        raise NotImplementedError(f"`{type(self).__name__}` must define `_marginal_parameters`.")

    def conditional(self, value: Any, observed: Any) -> ConditionalMarkov:
        """What is known of all coordinates once some are observed: missing values, in O(d).

        Args:
          value: floating-point tensor `[..., d]`, broadcast against the batch shape. Entries that
            are not observed are ignored, and may be NaN.
          observed: boolean tensor `[..., d]`, `True` where `value` is known.

        Returns:
          A `ConditionalMarkov`, with `mean`, `variance`, `stddev`, `sample` and the log-likelihood
          of what is observed.
        """
        return ConditionalMarkov(self, value, observed)

    @classmethod
    def experimental_fit(
        cls,
        value: Any,
        sample_ndims: int = 1,
        validate_args: bool = False,
        observed: Any = None,
        shared_loc: bool = False,
        **init_kwargs: Any,
    ) -> GaussianMarkovChain:
        """The distribution under which data are most likely.

        Of AR(1) and ANTE(1) and complete draws in closed form. Otherwise, for ARH(1), OU, missing
        values, a mean that the coordinates share, or parameters that are held fixed, by L-BFGS on
        the exact likelihood from several starts: to about 1e-6 of a parameter's standard error,
        and without gradients with respect to the data.

        ```python
        MultivariateNormalAR1.experimental_fit(draws)  # [n, d]
        # One series with one mean, some of it missing:
        MultivariateNormalAR1.experimental_fit(
            series[tf.newaxis], observed=known[tf.newaxis], shared_loc=True)
        MultivariateNormalOU.experimental_fit(series[tf.newaxis], shared_loc=True, times=times)
        ```

        On the border, as `tfd.Normal`: draws that are all equal, such as a single one without
        `shared_loc`, give the scale 0, which `validate_args` refuses. Perfectly correlated ones
        give a `fisher_z` as large as the rounding of the data lets it be, about 16 in float32.
        Where the data have a NaN, the estimate has.

        Args:
          value: tensor `[n, ..., d]` of real numbers: n independent draws for each member of a
            batch. Integers are taken as float32.
          sample_ndims: the number of axes of draws at the left.
          validate_args: passed on to the distribution.
          observed: boolean tensor that broadcasts to the shape of `value`, `True` where it is
            known. Default: everywhere, or where a `np.ma.MaskedArray` is not masked.
          shared_loc: whether one mean is estimated for all coordinates, rather than one for each.
          **init_kwargs: arguments of the constructor. Parameters among them are held fixed, and
            the others estimated given them. OU needs its `times`.

        Returns:
          Distribution of this class of batch shape `[...]`, parameterized by `fisher_z`.

        Raises:
          TypeError: if `value` is not of real numbers, or `observed` not boolean.
          ValueError: if `value` lacks an axis of draws, or `times` of OU are not given.
        """
        if observed is None and isinstance(value, np.ma.MaskedArray):
            observed = np.logical_not(np.ma.getmaskarray(value))
        value = fit.checked_value(value, sample_ndims)
        given = {
            name: init_kwargs[name]
            for name in cls.parameter_properties()
            if init_kwargs.get(name) is not None
        }
        # TFP's own, which calls `_maximum_likelihood_parameters`, knows of the draws alone.
        is_closed = cls._maximum_likelihood_parameters.__func__ is not (
            tfd.Distribution._maximum_likelihood_parameters.__func__
        )
        if is_closed and observed is None and not shared_loc and not given:
            return super().experimental_fit(value, sample_ndims, validate_args, **init_kwargs)
        shape = ps.concat([[-1], ps.shape(value)[sample_ndims:]], axis=0)
        if observed is not None:
            observed = tf.convert_to_tensor(observed, tf.bool, name="observed")
            observed = tf.reshape(tf.broadcast_to(observed, ps.shape(value)), shape)
        given = {n: tf.convert_to_tensor(x, value.dtype, name=n) for n, x in given.items()}
        estimates = fit.by_optimization(cls, tf.reshape(value, shape), observed, shared_loc, given)
        return cls(**{**estimates, **init_kwargs, **given}, validate_args=validate_args)

    # TransformedDistribution would ask its bijector, and that is what the message would be about.
    _call_cdf = _not_implemented("cdf")
    _call_log_cdf = _not_implemented("log_cdf")
    _call_log_survival_function = _not_implemented("log_survival_function")
    _call_quantile = _not_implemented("quantile")
    _call_survival_function = _not_implemented("survival_function")

    def _call_sample_n(self, sample_shape: Any, seed: Any) -> tf.Tensor:
        # TransformedDistribution would go through its bijector; this goes to `_sample_n`.
        return tfd.Distribution._call_sample_n(self, sample_shape, seed)

    def _noise(self, sample_shape: Any, seed: Any) -> tf.Tensor:
        shape = ps.concat(
            [sample_shape, self._static_or_dynamic_batch_shape(), [self._event_size()]], axis=0
        )
        return samplers.normal(shape, dtype=self.dtype, seed=seed)

    def _sample_n(self, n: Any, seed: Any = None) -> tf.Tensor:
        return self._loc_or_zero() + self.scale.chain().matvec(self._noise([n], seed))

    def _sample_and_log_prob(self, sample_shape: Any, seed: Any) -> tuple[tf.Tensor, tf.Tensor]:
        # From the noise itself, rather than from the sample, whose rounding errors log_prob
        # magnifies by 1/√(1-ρ²).
        noise, chain = self._noise(sample_shape, seed), self.scale.chain()
        sample = self._loc_or_zero() + chain.matvec(noise)
        squared_norm = recurrence.sum_of_squares(widened(noise))
        return sample, self._log_prob_of_squared_norm(squared_norm, chain.widened())

    def _log_prob(self, x: tf.Tensor) -> tf.Tensor:
        chain = self.scale.chain().widened()
        w = widened(x) - widened(self._loc_or_zero())
        return self._log_prob_of_squared_norm(chain.squared_norm_of_solvevec(w), chain)

    def _log_prob_of_squared_norm(self, squared_norm: tf.Tensor, chain: Chain) -> tf.Tensor:
        normalization = 0.5 * math.log(2.0 * math.pi) * tf.cast(self._event_size(), chain.dtype)
        log_prob = -0.5 * squared_norm - (chain.log_abs_determinant() + normalization)
        return tf.cast(log_prob, self.dtype)

    def _prob(self, x: tf.Tensor) -> tf.Tensor:
        return tf.math.exp(self._log_prob(x))

    def _entropy(self) -> tf.Tensor:
        chain = self.scale.chain().widened()
        entropy = 0.5 * (1.0 + math.log(2.0 * math.pi)) * tf.cast(self._event_size(), chain.dtype)
        entropy = tf.cast(entropy + chain.log_abs_determinant(), self.dtype)
        if entropy.shape.is_fully_defined() and entropy.shape == self.batch_shape:
            return entropy
        return tf.broadcast_to(entropy, self._static_or_dynamic_batch_shape())

    def _mean(self) -> tf.Tensor:
        shape = ps.concat([self._static_or_dynamic_batch_shape(), [self._event_size()]], axis=0)
        mean = tf.broadcast_to(self._loc_or_zero(), shape)
        return tf.ensure_shape(mean, self.batch_shape.concatenate(self.event_shape))

    def _variance(self) -> tf.Tensor:
        return tf.square(self._stddev())

    def _stddev(self) -> tf.Tensor:
        shape = ps.concat([self._static_or_dynamic_batch_shape(), [self._event_size()]], axis=0)
        return tf.broadcast_to(tf.math.abs(self.scale.chain().scale), shape)

    def _covariance(self) -> tf.Tensor:
        chain = self.scale.chain(for_columns=True)
        scale = chain.scale[..., 0, :]
        correlations = chain.correlation_matrix()
        covariance = scale[..., :, tf.newaxis] * correlations * scale[..., tf.newaxis, :]
        size = self._event_size()
        shape = ps.concat([self._static_or_dynamic_batch_shape(), [size, size]], axis=0)
        return tf.broadcast_to(covariance, shape)

    def _loc_or_zero(self) -> tf.Tensor:
        """`loc` as a tensor, broadcast against the coordinates."""
        return tf.zeros([], self.dtype) if self.loc is None else tf.convert_to_tensor(self.loc)

    def _loc_along_event(self) -> tf.Tensor:
        """`loc` as a tensor with all coordinates along its last axis."""
        loc = self._loc_or_zero()
        size = loc.shape[-1:]
        if size.is_fully_defined() and size == self.event_shape:
            return loc
        return tf.broadcast_to(loc, ps.concat([ps.shape(loc)[:-1], [self._event_size()]], axis=0))

    def _event_size(self) -> Any:
        """The size d, as a Python integer where it is known."""
        size = tf.compat.dimension_value(self.event_shape[-1])
        return self.scale.domain_dimension_tensor() if size is None else size

    def _static_or_dynamic_batch_shape(self) -> Any:
        if tensorshape_util.is_fully_defined(self.batch_shape):
            return np.array(tensorshape_util.as_list(self.batch_shape), np.int32)
        # Not `self.batch_shape_tensor()`, which would check the parameters once more.
        loc = self._loc_or_zero()
        return ps.broadcast_shape(ps.shape(loc)[:-1], self.scale.batch_shape_tensor())

    def _parameter_control_dependencies(self, is_init: bool) -> list[Any]:
        if not self.validate_args:
            return []
        assertions = []
        for name, check in self._checks().items():
            parameter = getattr(self, name)
            if parameter is not None and is_init != tensor_util.is_ref(parameter):
                assertions.append(check(tf.convert_to_tensor(parameter)))
        return assertions

    def _checks(self) -> Mapping[str, Any]:
        """For the parameters by name, functions that give an assertion that a value is valid."""
        raise NotImplementedError(f"`{type(self).__name__}` must define `_checks`.")


def check_required(**parameters: Any) -> None:
    """Raises `ValueError` if a parameter that follows one with a default is missing."""
    for name, value in parameters.items():
        if value is None:
            raise ValueError(f"Missing required `{name}` parameter.")


def correlation_at_lag(scale: Any, step: int) -> dict[str, Any]:
    """The parameter that gives the correlation ρ^step, of an operator with one ρ for all steps."""
    if step == 1:
        return {"correlation": scale.correlation, "fisher_z": scale.fisher_z}
    rho = scale.chain().widened().rho
    size, remainder = rho.decay(tf.constant(step))
    # atanh(r) with 1 - r² given: nothing cancels where r is nearly 1.
    fisher_z = tf.math.log1p(size) - 0.5 * tf.math.log(remainder)
    return {"fisher_z": tf.cast(rho.sign * fisher_z if step % 2 else fisher_z, scale.dtype)}


def correlation_of_steps(scale: Any, kept: slice) -> dict[str, Any]:
    """The parameter for neighbours in a slice of coordinates; of an operator with a ρ per step."""
    given_as_tensors = any(map(tf.is_tensor, (kept.start, kept.stop)))
    coordinates = (tf if given_as_tensors else ps).range(scale._size())[kept]
    step = kept.step
    count = ps.maximum(ps.size(coordinates) - 1, 0)
    first = ps.reduce_sum(coordinates[:1])

    def taken(x: tf.Tensor) -> tf.Tensor:
        return x[..., first : first + count * step]

    if step == 1:
        name = "fisher_z" if scale.correlation is None else "correlation"
        return {name: taken(tf.convert_to_tensor(getattr(scale, name)))}
    rho = scale.chain().rho
    steps = (taken(x) for x in (rho.value, rho.sign * rho.signed_one_minus_abs))
    steps = (tf.reshape(x, ps.concat([ps.shape(x)[:-1], [count, step]], axis=0)) for x in steps)
    value, one_minus_abs = recurrence.product_of_steps(*steps, count=step)
    size = tf.math.abs(value)
    near_zero = tf.math.atanh(tf.clip_by_value(value, -0.5, 0.5))
    near_one = 0.5 * tf.math.sign(value) * (tf.math.log1p(size) - tf.math.log(one_minus_abs))
    return {"fisher_z": tf.where(size < 0.5, near_zero, near_one)}


def assert_positive(name: str) -> Any:
    """A check that a parameter is positive."""
    message = f"`{name}` must be positive."
    return lambda x: tf.debugging.assert_positive(x, message=message)


CHECKS_OF_CORRELATION = {
    "correlation": lambda rho: tf.debugging.assert_less(
        tf.math.abs(rho),
        tf.ones([], rho.dtype),
        message="`correlation` must lie strictly between -1 and 1.",
    ),
    "fisher_z": lambda u: tf.debugging.assert_all_finite(u, "`fisher_z` must be finite."),
}


def properties_of_correlation(dtype: Any, **shape: Any) -> dict[str, Any]:
    """The `ParameterProperties` of `correlation` and `fisher_z`; `shape` is passed on to them."""
    eps = dtype_util.eps(dtype)
    # Where tanh rounds to 1, the correlation must still be less.
    bound = np.asarray(1.0 - 2.0 * eps, eps.dtype)
    return {
        "correlation": tfp.util.ParameterProperties(
            default_constraining_bijector_fn=lambda: tfb.Chain([tfb.Scale(bound), tfb.Tanh()]),
            is_preferred=False,
            **shape,
        ),
        "fisher_z": tfp.util.ParameterProperties(**shape),
    }


def properties_of_positive(dtype: Any, **shape: Any) -> Any:
    """The `ParameterProperties` of a positive parameter; `shape` is passed on to them."""
    return tfp.util.ParameterProperties(
        default_constraining_bijector_fn=lambda: tfb.Softplus(low=dtype_util.eps(dtype)), **shape
    )


# Shapes of parameters from that of a sample: one number for each member of the batch, or one for
# each step.
PER_MEMBER = {"shape_fn": lambda shape: shape[:-1]}
PER_STEP = {
    "event_ndims": 1,
    "shape_fn": lambda shape: ps.concat([shape[:-1], [ps.maximum(shape[-1] - 1, 0)]], axis=0),
}


# Kullback-Leibler divergences.
#
# For normals p and q with means m and r, KL(p ‖ q) = ½ [tr(C_q⁻¹ C_p) - d + log|C_q| - log|C_p|]
# + ½ |L_q⁻¹ (m - r)|². Between two chains the bracket is written by the chain rule of the KL along
# the path: one term for the first coordinate, and for each later one the KL between its two laws
# given the coordinate before. Given that, coordinate t has the variances v = σ_t² (1 - ρ_t²) under
# p and under q, and with r_t = σ_t(p) / σ_t(q) the conditional means differ by
#
#     [ρ_t(p) r_t - ρ_t(q) r_(t-1)] σ_t(q)
#
# times a standard normal, besides what `loc` contributes. Hence the terms
#
#     t = 0:  ½ excess(log r_0²)
#     t ≥ 1:  ½ excess(log v_t(p) / v_t(q)) + ½ [ρ_t(p) r_t - ρ_t(q) r_(t-1)]² / (1 - ρ_t(q)²)
#
# with excess(v) = exp(v) - 1 - v ≥ 0. None is negative, so that their sum loses nothing to
# cancellation when p and q are close. Independent normals are the chain with ρ = 0.


@tf.custom_gradient
def _excess(v: tf.Tensor) -> tf.Tensor:
    """`exp(v) - 1 - v`, and its derivatives, to full relative accuracy."""
    expm1 = tf.math.expm1(v)
    # The series of 1 - v / expm1(v) ends after two terms, with the relative error v³ / 360; the
    # difference has eps / v. They are alike at the bound, where both are 2e-6 in float32.
    bound = (360.0 * float(np.spacing(v.dtype.as_numpy_dtype(1)))) ** 0.25
    near_zero = expm1 * v * (0.5 - v / 12.0)
    value = tf.where(tf.math.abs(v) < bound, near_zero, expm1 - v)
    return value, lambda dy: dy * tf.math.expm1(v)


def _log_ratio(scale: tf.Tensor | None, other: tf.Tensor | None, dtype: tf.DType) -> tf.Tensor:
    """`log |scale / other|`, to full relative accuracy where the two are close; `None` for 1."""
    if other is None:
        return tf.zeros([1], dtype) if scale is None else log_abs(scale)
    if scale is None:
        return -log_abs(other)
    scale, other = tf.math.abs(scale), tf.math.abs(other)
    # The difference of numbers within a factor of 2 is exact. Far below 1 it rounds the ratio.
    is_near = scale > 0.5 * other
    relative = tf.where(is_near, (scale - other) / other, tf.zeros([], dtype))
    return tf.where(is_near, tf.math.log1p(relative), tf.math.log(scale) - tf.math.log(other))


class _Path(NamedTuple):
    """A chain, or independent normals; `[..., d]`, or `[..., 1]` where coordinates are alike."""

    loc: tf.Tensor
    scale: tf.Tensor | None  # the standard deviations, of either sign; `None` where all are 1
    chain: Chain | None

    def rho(self) -> LagOneCorrelation | None:
        """The correlations, or `None` for independent normals."""
        return None if self.chain is None else self.chain.rho

    def log1m_rho2(self) -> tf.Tensor | float:
        """`log(1 - ρ_t²)`, `[..., 1 or d - 1]`."""
        rho = self.rho()
        return 0.0 if rho is None else rho.along_steps(rho.log1m_rho2)

    def whiten(self, x: tf.Tensor) -> tf.Tensor:
        """`L⁻¹ x`."""
        if self.chain is None:
            return x if self.scale is None else x / self.scale
        return self.chain.solvevec(x)

    def squared_norm_of_whitened(self, x: tf.Tensor) -> tf.Tensor:
        """`|L⁻¹ x|²`."""
        if self.chain is None:
            return recurrence.sum_of_squares(self.whiten(x))
        return self.chain.squared_norm_of_solvevec(x)


_DIAGONAL_OPERATORS = (
    tf.linalg.LinearOperatorDiag,
    tf.linalg.LinearOperatorIdentity,
    tf.linalg.LinearOperatorScaledIdentity,
)


def _is_path(distribution: tfd.Distribution) -> bool:
    """Whether `_path` takes it; without reading a variable."""
    if isinstance(distribution, _Independent | _Sample):
        is_vector = distribution.event_shape.rank in (1, None)
        return is_vector and isinstance(distribution.distribution, tfd.Normal)
    if isinstance(distribution, GaussianMarkovChain):
        return True
    is_normal = isinstance(distribution, tfd.MultivariateNormalLinearOperator)
    return is_normal and isinstance(distribution.scale, _DIAGONAL_OPERATORS)


def _path(distribution: tfd.Distribution) -> _Path:
    """`distribution`, of which `_is_path` is true, as a path."""
    chain = None
    if isinstance(distribution, GaussianMarkovChain):
        chain = distribution.scale.chain().widened()
        loc, scale = _loc(distribution), chain.scale
    elif isinstance(distribution, _Independent | _Sample):
        loc, scale = _loc_and_scale_of_iid_or_independent(distribution)
    else:
        operator = distribution.scale
        if isinstance(operator, tf.linalg.LinearOperatorDiag):
            scale = tf.convert_to_tensor(operator.diag)
        elif isinstance(operator, tf.linalg.LinearOperatorScaledIdentity):
            scale = tf.convert_to_tensor(operator.multiplier)[..., tf.newaxis]
        else:
            scale = None
        loc = _loc(distribution)
    return _Path(widened(loc), None if scale is None else widened(scale), chain)


def _loc_and_scale_of_iid_or_independent(
    distribution: tfd.Distribution,
) -> tuple[tf.Tensor, tf.Tensor]:
    normal = distribution.distribution
    loc, scale = tf.convert_to_tensor(normal.loc), tf.convert_to_tensor(normal.scale)
    if isinstance(distribution, _Sample):
        return loc[..., tf.newaxis], scale[..., tf.newaxis]
    if scale.shape.rank is None:
        scale = tf.broadcast_to(scale, normal.batch_shape_tensor())
    return loc, scale[tf.newaxis] if scale.shape.rank == 0 else scale


def _loc(distribution: tfd.MultivariateNormalLinearOperator) -> tf.Tensor:
    if isinstance(distribution, GaussianMarkovChain):
        return distribution._loc_along_event()
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


def _difference_of_locs(p: _Path, q: _Path, size: Any) -> tf.Tensor:
    """`[..., d]`, also where neither has an entry for each coordinate."""
    difference = p.loc - q.loc
    if difference.shape[-1:] == [size]:
        return difference
    return tf.broadcast_to(difference, ps.concat([ps.shape(difference)[:-1], [size]], axis=0))


class _CovarianceTerms(NamedTuple):
    """The terms of twice the KL without those of `loc`; an axis of size 1 where all are alike."""

    of_first: tf.Tensor | None  # [..., 1]
    of_steps: tf.Tensor | None  # [..., 1 or d - 1]
    of_coordinates: tf.Tensor | None  # [..., 1 or d]

    def total(self, size: Any) -> tf.Tensor:
        """Their sum over the path, `[...]`."""
        counts = (ps.minimum(size, 1), ps.maximum(size - 1, 0), size)
        return sum(total(x, n) for x, n in zip(self, counts, strict=True) if x is not None)

    def along_path(self, size: Any) -> tf.Tensor:
        """Each at its coordinate, `[..., d]`."""
        result = self.of_coordinates
        if self.of_first is not None:
            is_first = tf.equal(tf.range(size), 0)
            result = tf.where(is_first, self.of_first, tf.zeros([], self.of_first.dtype))
        if self.of_steps is not None:
            shape = ps.concat([ps.shape(self.of_steps)[:-1], [ps.maximum(size - 1, 0)]], axis=0)
            result += recurrence.pad(tf.broadcast_to(self.of_steps, shape), 1, 0)
        return result


def _covariance_terms(p: _Path, q: _Path, size: Any) -> _CovarianceTerms:
    log_ratio = 2.0 * _log_ratio(p.scale, q.scale, p.loc.dtype)
    if p.chain is None and q.chain is None:
        return _CovarianceTerms(None, None, _excess(log_ratio))
    if q.chain is None:
        # The two terms that make up that of a step: r_t² ρ_t² and the excess of r_t² (1 - ρ_t²).
        return _CovarianceTerms(None, -p.log1m_rho2(), _excess(log_ratio))
    shared = log_ratio.shape[-1] == 1
    if shared:
        later = earlier = log_ratio
    else:
        # Where the size is unknown it may be 1: then all coordinates share the entry.
        shape = ps.concat([ps.shape(log_ratio)[:-1], [size]], axis=0)
        log_ratio = tf.broadcast_to(log_ratio, shape)
        later, earlier = log_ratio[..., 1:], log_ratio[..., :-1]
    rho_p, rho_q = p.rho(), q.rho()
    # What ρ_t(q) makes of the coordinate before, in units of the innovation under q.
    before = rho_q.along_steps(rho_q.value * rho_q.inverse_unit_innovation_scale)
    before *= tf.math.exp(0.5 * earlier)
    if rho_p is None:
        step, drift = later - q.log1m_rho2(), -before
    else:
        log_ratio_of_steps, difference = compare(rho_p, rho_q)
        step, drift = later + log_ratio_of_steps, difference * tf.math.exp(0.5 * later)
        if not shared:
            drift += before * tf.math.expm1(0.5 * (later - earlier))
    return _CovarianceTerms(
        _excess(log_ratio[..., :1]), _excess(step) + tf.math.square(drift), None
    )


def kl_terms(p: tfd.Distribution, q: tfd.Distribution) -> tf.Tensor:
    """The KL divergence along the path, in nats: the terms of its chain rule.

    Entry t is the KL divergence of coordinate t given the coordinate before it, on average over
    that under p. The sum of the first n entries is the KL divergence of the first n coordinates.

    Args:
      p: a `GaussianMarkovChain`, or a vector of independent normals: `MultivariateNormalDiag`,
        `Independent` or `Sample` of `tfd.Normal`.
      q: another one over the same events.

    Returns:
      Tensor `[..., d]`, non-negative; its sum along the last axis is `tfd.kl_divergence(p, q)`.

    Raises:
      TypeError: if `p` or `q` is neither.
      ValueError: if their events differ in shape.
    """
    with tf.name_scope("kl_terms"), tf.control_dependencies(_check_event_sizes(p, q)):
        p_path, q_path = _checked_path(p), _checked_path(q)
        size = _event_size(p, q)
        squares = tf.square(q_path.whiten(_difference_of_locs(p_path, q_path, size)))
        terms = 0.5 * (_covariance_terms(p_path, q_path, size).along_path(size) + squares)
        return tf.cast(terms, p.dtype)


def log_prob_terms(distribution: tfd.Distribution, x: Any) -> tf.Tensor:
    """The log-density along the path, in nats: of each coordinate, given the one before it.

    The sum of the first n entries is the log-density of the first n coordinates.

    Args:
      distribution: a `GaussianMarkovChain` or a vector of independent normals, as for `kl_terms`.
      x: floating-point tensor `[..., d]`.

    Returns:
      Tensor `[..., d]`; its sum along the last axis is `distribution.log_prob(x)`.

    Raises:
      TypeError: if the distribution is neither.
    """
    with tf.name_scope("log_prob_terms"):
        path = _checked_path(distribution)
        x = tf.convert_to_tensor(x, distribution.dtype)
        whitened = path.whiten(widened(x) - path.loc)
        scale = path.scale if path.chain is None else path.chain.diag_part()
        log_scale = 0.0 if scale is None else log_abs(scale)
        terms = -0.5 * (tf.square(whitened) + math.log(2.0 * math.pi)) - log_scale
        return tf.cast(terms, distribution.dtype)


def _checked_path(distribution: tfd.Distribution) -> _Path:
    if not _is_path(distribution):
        raise TypeError(
            f"Expected a `GaussianMarkovChain` or a vector of independent normals; got "
            f"{distribution!r}."
        )
    return _path(distribution)


def _event_size(*distributions: tfd.Distribution) -> Any:
    """The size that their events share, as a Python integer where it is known."""
    for distribution in distributions:
        size = tf.compat.dimension_value(distribution.event_shape[-1])
        if size is not None:
            return size
    return distributions[0].event_shape_tensor()[-1]


@tfd.RegisterKL(GaussianMarkovChain, GaussianMarkovChain)
@tfd.RegisterKL(GaussianMarkovChain, _Independent)
@tfd.RegisterKL(GaussianMarkovChain, _Sample)
@tfd.RegisterKL(GaussianMarkovChain, tfd.MultivariateNormalLinearOperator)
@tfd.RegisterKL(_Independent, GaussianMarkovChain)
@tfd.RegisterKL(_Sample, GaussianMarkovChain)
@tfd.RegisterKL(tfd.MultivariateNormalLinearOperator, GaussianMarkovChain)
def _kl_divergence(p: tfd.Distribution, q: tfd.Distribution, name: str | None = None) -> tf.Tensor:
    """KL of two normals, one of them a chain: O(d) where the other is one or is diagonal.

    Equation 6 of the paper is the case of AR(1) and N(0, I).
    """
    name = name or "kl_gaussian_markov_chain"
    with tf.name_scope(name), tf.control_dependencies(_check_event_sizes(p, q)):
        if not (_is_path(p) and _is_path(q)):
            _check_normal(p, q)
            return _kl_through_factors(p, q)
        p_path, q_path = _path(p), _path(q)
        size = _event_size(p, q)
        of_covariance = _covariance_terms(p_path, q_path, size).total(size)
        of_loc = q_path.squared_norm_of_whitened(_difference_of_locs(p_path, q_path, size))
        return tf.cast(0.5 * (of_covariance + of_loc), p.dtype)


def _check_normal(*distributions: tfd.Distribution) -> None:
    """Raises `NotImplementedError`, as TFP does, for an `Independent` or `Sample` of what not."""
    for distribution in distributions:
        if isinstance(distribution, _Independent | _Sample) and not _is_path(distribution):
            raise NotImplementedError(
                f"No KL divergence is known between a Gaussian Markov chain and "
                f"`{type(distribution).__name__}` of `{type(distribution.distribution).__name__}` "
                f"with event shape {distribution.event_shape}; only vectors of `tfd.Normal`s have "
                f"one."
            )


def _kl_through_factors(
    p: tfd.MultivariateNormalLinearOperator, q: tfd.MultivariateNormalLinearOperator
) -> tf.Tensor:
    """KL of two normals by tr(C_q⁻¹ C_p) = |L_q⁻¹ L_p|², one of them a chain.

    Neither covariance is formed. O(d r²) where the other scale is diagonal plus an update of rank
    r; otherwise a solve with q's scale for each of the d columns of p's: O(d²) if q is the chain.
    """
    p_scale, q_scale = (markov_cholesky.with_tensors(d.scale) for d in (p, q))
    if _is_diagonal_plus_low_rank(p_scale):
        trace = _trace_low_rank_chain(p_scale, q_scale)
    elif _is_diagonal_plus_low_rank(q_scale):
        trace = _trace_chain_low_rank(p_scale, q_scale)
    else:
        trace = _squared_norm(q_scale.solve(p_scale.to_dense()))
    size = tf.cast(p_scale.domain_dimension_tensor(), p.dtype)
    log_dets = q_scale.log_abs_determinant() - p_scale.log_abs_determinant()
    of_loc = recurrence.sum_of_squares(q_scale.solvevec(_loc(p) - _loc(q)))
    return 0.5 * (trace - size + of_loc) + log_dets


def _squared_norm(matrix: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.square(matrix), axis=[-2, -1])


def _is_diagonal_plus_low_rank(scale: tf.linalg.LinearOperator) -> bool:
    return isinstance(scale, tf.linalg.LinearOperatorLowRankUpdate) and isinstance(
        scale.base_operator, _DIAGONAL_OPERATORS
    )


def _trace_low_rank_chain(
    p_scale: tf.linalg.LinearOperatorLowRankUpdate, q_scale: LinearOperatorMarkovCholesky
) -> tf.Tensor:
    """|L⁻¹ (D + U M Vᵀ)|² with L of a chain, D diagonal, and U, V of r columns: O(d r²)."""
    chain = q_scale.chain()
    diagonal, update = p_scale.base_operator.diag_part(), p_scale.diag_operator.matmul
    # Row t of L⁻¹ D has D_t / σ_t and -ρ_t D_(t-1) / σ_(t-1), over √(1 - ρ_t²).
    relative = tf.square(diagonal / chain.scale)
    value, inverse_scale = (
        tf.square(chain.rho.along_steps(x))
        for x in (chain.rho.value, chain.rho.inverse_unit_innovation_scale)
    )
    later = (relative[..., 1:] + value * relative[..., :-1]) * inverse_scale
    of_diagonal = relative[..., 0] + tf.reduce_sum(later, axis=-1)
    solved = q_scale.solve(p_scale.u)
    mixed = q_scale.solve(solved, adjoint=True) * diagonal[..., tf.newaxis]
    v = tf.linalg.matrix_transpose(update(p_scale.v, adjoint_arg=True))
    cross = tf.reduce_sum(mixed * v, axis=[-2, -1])
    of_update = _sum_of_product_of_grams(solved, v)
    return of_diagonal + 2.0 * cross + of_update


def _trace_chain_low_rank(
    p_scale: LinearOperatorMarkovCholesky, q_scale: tf.linalg.LinearOperatorLowRankUpdate
) -> tf.Tensor:
    """|(D + U M Vᵀ)⁻¹ L|² by the Woodbury identity, with L of a chain: O(d r²).

    With Y = D⁻¹ V and K = M⁻¹ + Yᵀ U, the inverse is D⁻¹ - D⁻¹ U K⁻¹ Yᵀ.
    """
    diagonal = q_scale.base_operator.diag_part()[..., tf.newaxis]
    ratio = p_scale.chain().scale / diagonal[..., 0]
    of_diagonal = tf.reduce_sum(tf.square(ratio), axis=-1)
    y = q_scale.v / diagonal
    capacitance = recurrence.matmul(y, q_scale.u, transpose_a=True)
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
    gram = (recurrence.matmul(z, z, transpose_a=True) for z in (x, y))
    return tf.reduce_sum(tf.math.multiply(*gram), axis=[-2, -1])

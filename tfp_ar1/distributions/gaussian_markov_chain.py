"""Multivariate normals that are Gaussian Markov chains: what the family shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability.python.internal import (
    dtype_util,
    samplers,
    tensor_util,
    tensorshape_util,
)
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1 import recurrence
from tfp_ar1.distributions import fit
from tfp_ar1.distributions.conditional import ConditionalMarkov
from tfp_ar1.linear_operators.chain import Chain, widened
from tfp_ar1.linear_operators.markov_cholesky import LinearOperatorMarkovCholesky
from tfp_ar1.linear_operators.markov_precision import LinearOperatorMarkovPrecision

tfb = tfp.bijectors
tfd = tfp.distributions

__all__ = ["GaussianMarkovChain"]


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
        return ConditionalMarkov(
            value,
            observed,
            loc=self._loc_or_zero(),
            chain=self.scale.chain(),
            batch_shape=self._static_or_dynamic_batch_shape(),
        )

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

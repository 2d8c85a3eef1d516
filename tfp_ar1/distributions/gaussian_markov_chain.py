"""Base class of multivariate normals that are Gaussian Markov chains."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability import distributions as tfd
from tensorflow_probability.python.internal import prefer_static as ps
from tensorflow_probability.python.internal import samplers, tensor_util, tensorshape_util

from tfp_ar1 import recurrence
from tfp_ar1.correlation import check_one_given
from tfp_ar1.distributions import fit
from tfp_ar1.distributions.arguments import check_loc, check_times, num_coordinates
from tfp_ar1.distributions.conditional import ConditionalMarkov
from tfp_ar1.distributions.declaration import Parameter
from tfp_ar1.distributions.forecast import forecast
from tfp_ar1.distributions.marginal import marginal_parameters
from tfp_ar1.distributions.noise import MarkovSites, NoisyGaussianMarkovChain
from tfp_ar1.linear_operators.chain import Chain, widened
from tfp_ar1.linear_operators.markov_cholesky import (
    LinearOperatorMarkovCholesky,
    common_float_dtype,
)
from tfp_ar1.linear_operators.markov_precision import LinearOperatorMarkovPrecision

__all__ = ["GaussianMarkovChain"]


def _remake(cls: type[GaussianMarkovChain], parameters: dict[str, Any]) -> GaussianMarkovChain:
    return cls(**parameters)


def _not_implemented(method: str) -> Callable[..., NoReturn]:
    def refuse(self: tfd.Distribution, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"{method} is not implemented: {type(self).__name__}")

    return refuse


class GaussianMarkovChain(tfd.MultivariateNormalLinearOperator):
    """Base class of the normals in which each coordinate depends only on the one before it.

    Everything works through `scale`, a `LinearOperatorMarkovCholesky`, at a cost of O(d) for d
    coordinates; only `covariance` forms a d × d matrix. A subclass declares its parameters other
    than `loc` in `declaration`; its constructor takes them by name and calls
    `super().__init__(dict(locals()))`. Everything else follows: checks, properties, `marginal`, the
    packed layout. If no parameter has an entry for each coordinate, `loc` sets their number.

    Args:
      arguments: the arguments of the subclass, by name: `loc`, the declared parameters,
        `validate_args`, `allow_nan_stats` and `name`. `loc` may have one entry for all d
        coordinates, or be a scalar, or `None` for 0, unless it sets the number of coordinates.

    Raises:
      ValueError: if a parameter is missing, both or neither of `correlation` and `fisher_z` are
        given, or a shape does not fit.
      TypeError: if the parameters differ in dtype or are not floating-point.
    """

    declaration: ClassVar[tuple[Parameter, ...]] = ()
    # The most general member, the class of every posterior; set in that member's module.
    posterior_class: ClassVar[type[GaussianMarkovChain]]
    # For a posterior: the terms of its KL divergence to its prior; `None` for any other argument.
    _kl_terms_to: Callable[[Any], tf.Tensor | None] = staticmethod(lambda other: None)
    # For a posterior: that prior object. A function, so that its variables are not tracked here.
    _made_from: Callable[[], Any] = staticmethod(lambda: None)

    def __init_subclass__(cls, **kwargs: Any):
        """Adds what TFP expects of each class, from its declaration."""
        super().__init_subclass__(**kwargs)
        # TFP warns about a class that has a constructor and inherits this method.
        cls._parameter_properties = classmethod(_parameter_properties)
        for parameter in cls.declaration:
            if not hasattr(cls, parameter.name):
                setattr(cls, parameter.name, _as_given(parameter))

    def __init__(self, arguments: dict[str, Any]):
        given = {p.name: arguments[p.name] for p in self.declaration}
        for parameter in self.declaration:
            if parameter.is_required and given[parameter.name] is None:
                raise ValueError(f"Missing required `{parameter.name}` parameter.")
        if "fisher_z" in given:
            check_one_given(given["correlation"], given["fisher_z"])
        with tf.name_scope(arguments["name"]) as name:
            dtype = common_float_dtype({"loc": arguments["loc"], **given})

            def convert(name: str, value: Any) -> Any:
                return tensor_util.convert_nonref_to_tensor(value, dtype=dtype, name=name)

            loc = convert("loc", arguments["loc"])
            given = {name: convert(name, x) for name, x in given.items()}
            sized = next((p.name for p in self.declaration if p.per == "coordinate"), None)
            if "times" in given:
                check_times(given["times"])
            scale = self._make_scale(given, num_coordinates(loc) if sized is None else None)
            if sized is not None:
                check_loc(loc, sized, given[sized], scale)
            super().__init__(
                loc=loc, scale=scale, validate_args=arguments["validate_args"], name=name
            )
        self._allow_nan_stats = arguments["allow_nan_stats"]
        self._parameters = arguments

    @classmethod
    def _make_scale(cls, given: dict[str, Any], num_rows: Any) -> LinearOperatorMarkovCholesky:
        """Makes the Cholesky factor; `num_rows` is its size if no parameter determines it."""
        per_step = any(parameter.per == "step" for parameter in cls.declaration)
        return LinearOperatorMarkovCholesky(**given, per_step=per_step, num_rows=num_rows)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and copies the distribution by its arguments."""
        # By default pickle would call `__new__` alone, which TFP's classes do not support.
        return _remake, (type(self), self.parameters)

    def correlation_parameter(self, name: str = "correlation_parameter") -> tf.Tensor:
        """Returns the correlation of neighbours, whichever parameter was given.

        Its shape is `[B1, ..., Bb]`, or `[B1, ..., Bb, d - 1]` if it differs from step to step.
        """
        with self._name_and_control_scope(name):
            return tf.identity(self.scale.chain().rho.value)

    @property
    def coefficients(self) -> tf.Tensor:
        """φ_t of the centred transitions `x_t = φ_t x_(t-1) + innovation_scale_t ε_t`.

        They are `ρ_t σ_t / σ_(t-1)`, `[..., d - 1]`; `[...]` if all steps are equal, as in AR(1).
        """
        chain = self.scale.chain()
        if chain.coordinate_scale is None:
            return tf.identity(chain.rho.value)
        scale = chain.coordinate_scale
        return chain.rho.along_steps(chain.rho.value) * (scale[..., 1:] / scale[..., :-1])

    @property
    def innovation_scale(self) -> tf.Tensor:
        """The standard deviation `σ_t √(1 - ρ_t²)` of a coordinate given the one before it.

        Its shape is `[..., d - 1]`, or `[...]` if all steps are equal, as in AR(1).
        """
        chain = self.scale.chain()
        rho, scale = chain.rho, chain.scale
        if chain.coordinate_scale is None and not rho.per_step:
            return chain.shared_scale * rho.unit_innovation_scale
        scale = scale if chain.coordinate_scale is None else scale[..., 1:]
        return scale * rho.along_steps(rho.unit_innovation_scale)

    @property
    def initial_scale(self) -> tf.Tensor:
        """The standard deviation of the first coordinate, `[...]`."""
        return self.scale.chain().scale[..., 0]

    def precision(self, name: str = "precision") -> LinearOperatorMarkovPrecision:
        """Returns the inverse of the covariance, a tridiagonal operator of shape `[..., d, d]`.

        A `tf.linalg.LinearOperatorTridiag` whose `matmul` and `solve` cost O(d) per column and
        whose `determinant` costs O(d) or less.
        """
        with self._name_and_control_scope(name):
            return LinearOperatorMarkovPrecision(self.scale)

    def marginal(
        self, start: int = 0, stop: int | None = None, step: int = 1, name: str = "marginal"
    ) -> GaussianMarkovChain:
        """Returns the distribution of every `step`-th coordinate of a range, of the same class.

        Args:
          start: first coordinate of the range; negative counts from the end, as in a Python slice.
          stop: end of the range, exclusive; `None` for the end of the path.
          step: distance between the coordinates that are kept, at least 1.
          name: name prefixed to operations created by this method.

        Returns:
          Distribution of this class over the coordinates `[start:stop:step]`, with the same batch
          shape.

        Raises:
          ValueError: if `step` is not a positive integer, or the range is empty.
        """
        try:
            valid = int(step) == step and step >= 1
        except (TypeError, ValueError):
            valid = False
        if not valid:
            raise ValueError(f"`step` must be a positive integer; got {step!r}.")
        with self._name_and_control_scope(name):
            size = self._event_size()
            # Any step beyond the end keeps one coordinate.
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
            cls: Any = type(self)
            return cls(
                loc,
                **marginal_parameters(self, kept),
                validate_args=self.validate_args,
                allow_nan_stats=self.allow_nan_stats,
            )

    def marginals(self, name: str = "marginals") -> tfd.Normal:
        """Returns the marginal distribution of each coordinate, of batch shape `[..., d]`."""
        with self._name_and_control_scope(name):
            return tfd.Normal(self.mean(), self.stddev())

    def conditional(self, value: Any, observed: Any) -> ConditionalMarkov:
        """Returns the distribution of all coordinates given the observed ones, in O(d).

        Args:
          value: floating-point tensor `[..., d]`, broadcast against the batch shape. Entries that
            are not observed are ignored and may be NaN.
          observed: boolean tensor `[..., d]`, `True` where `value` is known.

        Returns:
          A `ConditionalMarkov`: a `tfd.Distribution` with point masses at the observed
          coordinates, and their log-likelihood as `observed_log_prob`.
        """
        return ConditionalMarkov(self, value, observed)

    def with_observation_noise(
        self, noise_scale: Any, observed: Any = None, validate_args: bool = False
    ) -> NoisyGaussianMarkovChain:
        """Returns the distribution of `y = path + noise`: marginal likelihoods in O(d).

        Args:
          noise_scale: the standard deviation of the noise: a scalar, `[..., d]`, or `[..., 1]` for
            one per batch member; infinite where nothing is observed.
          observed: boolean tensor `[..., d]`, `True` where y is known. Default: all.
          validate_args: whether `noise_scale` is checked when the graph runs.

        Returns:
          A `NoisyGaussianMarkovChain`.
        """
        return NoisyGaussianMarkovChain(self, noise_scale, observed, validate_args=validate_args)

    def posterior(self, value: Any, noise_scale: Any, observed: Any = None) -> GaussianMarkovChain:
        """Returns the distribution of the path given noisy observations of it, in O(d).

        Args:
          value: floating-point tensor `[..., d]`, the observations y.
          noise_scale: as in `with_observation_noise`.
          observed: boolean tensor `[..., d]`, `True` where y is known. Default: all.

        Returns:
          A `posterior_class`: the most general member of the family. Its `tfd.kl_divergence` to
          this object is as accurate as the posterior itself.
        """
        return self.with_observation_noise(noise_scale, observed).posterior(value)

    def with_sites(self, information: Any, precision: Any) -> MarkovSites:
        """Multiplies the chain by `exp(η_t x_t - ½ λ_t x_t²)` at each coordinate, in O(d).

        Args:
          information: η, `[..., d]`.
          precision: λ ≥ 0, `[..., d]` or `[..., 1]`; 0 where nothing is observed.

        Returns:
          A `MarkovSites`, with the `posterior`, its normalizer, and its KL to this object.
        """
        return MarkovSites(self, information, precision)

    def forecast(
        self,
        given: tfd.Distribution,
        num_steps: int | None = None,
        times: Any = None,
        loc: Any = None,
        name: str = "forecast",
    ) -> GaussianMarkovChain:
        """Returns the distribution of future coordinates, in O(num_steps).

        To forecast noisy observations, add the noise: `forecast(…).with_observation_noise(…)`.

        Args:
          given: a distribution over this path given the data: a `posterior`, a `conditional`, or an
            approximation of one.
          num_steps: number of future coordinates, at least 1; `None` with `times`.
          times: times of the future coordinates, `[..., num_steps]`; for Ornstein–Uhlenbeck only.
          loc: unconditional mean of the future coordinates, `[..., num_steps]` or `[..., 1]`.
            Default: the mean of the last coordinate.
          name: name prefixed to operations created by this method.

        Returns:
          A `posterior_class`, the most general member of the family.

        Raises:
          ValueError: if the path has parameters for each coordinate or step, as in ARH(1) and
            ANTE(1), which end with it; or if `num_steps` or `times` are invalid.
        """
        with self._name_and_control_scope(name):
            mean, stddev = given.mean()[..., -1], given.stddev()[..., -1]
            return forecast(self, mean, stddev, num_steps, times, loc)

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
        """Returns the maximum-likelihood distribution.

        For complete draws from AR(1) and ANTE(1), the estimate has a closed form. For ARH(1), OU,
        missing values, a mean shared by the coordinates, or fixed parameters, L-BFGS maximizes the
        exact likelihood from several starts: to about 1e-6 of a parameter's standard error, without
        gradients with respect to the data.

        ```python
        MultivariateNormalAR1.experimental_fit(draws)  # [n, d]
        # One series with one mean and missing values:
        MultivariateNormalAR1.experimental_fit(
            series[tf.newaxis], observed=known[tf.newaxis], shared_loc=True)
        MultivariateNormalOU.experimental_fit(series[tf.newaxis], shared_loc=True, times=times)
        ```

        Edge cases are as for `tfd.Normal`: draws that are all equal, such as a single one without
        `shared_loc`, give scale 0, which `validate_args` rejects. Perfectly correlated draws give a
        `fisher_z` as large as the rounding of the data allows, about 16 in float32. NaN in the data
        gives NaN in the estimate.

        Args:
          value: tensor `[n, ..., d]` of real numbers: n independent draws for each member of a
            batch. Integers are converted to float32.
          sample_ndims: the number of leading axes that hold draws.
          validate_args: passed on to the distribution.
          observed: boolean tensor that broadcasts to the shape of `value`, `True` where it is
            known. Default: everywhere, or where a `np.ma.MaskedArray` is not masked.
          shared_loc: whether to estimate one mean for all coordinates instead of one for each.
          **init_kwargs: arguments of the constructor. Parameters among them are held fixed
            while the others are estimated. OU needs its `times`.

        Returns:
          Distribution of this class of batch shape `[...]`, parameterized by `fisher_z`.

        Raises:
          TypeError: if `value` is not real, or `observed` is not boolean.
          ValueError: if `value` lacks an axis of draws, or `times` are missing for OU.
        """
        if observed is None and isinstance(value, np.ma.MaskedArray):
            observed = np.logical_not(np.ma.getmaskarray(value))
        value = fit.checked_value(value, sample_ndims)
        given = {
            name: init_kwargs[name]
            for name in cls.parameter_properties()
            if init_kwargs.get(name) is not None
        }
        # TFP's method calls `_maximum_likelihood_parameters`, which takes only the draws.
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
        make: Any = cls
        return make(**{**estimates, **init_kwargs, **given}, validate_args=validate_args)

    # TransformedDistribution would raise an error about its bijector instead.
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
        # Computed from the noise rather than the sample: log_prob would magnify the rounding errors
        # of the sample by 1/√(1-ρ²).
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
        if tensorshape_util.is_fully_defined(entropy.shape) and entropy.shape == self.batch_shape:
            return entropy
        return tf.broadcast_to(entropy, self._static_or_dynamic_batch_shape())

    def _mean(self) -> tf.Tensor:
        shape = ps.concat([self._static_or_dynamic_batch_shape(), [self._event_size()]], axis=0)
        mean = tf.broadcast_to(self._loc_or_zero(), shape)
        return tf.ensure_shape(
            mean, tensorshape_util.concatenate(self.batch_shape, self.event_shape)
        )

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
        """Returns `loc` as a tensor that broadcasts against the coordinates."""
        return tf.zeros([], self.dtype) if self.loc is None else tf.convert_to_tensor(self.loc)

    def _loc_along_event(self) -> tf.Tensor:
        """Returns `loc` as a tensor with all coordinates along its last axis."""
        loc = self._loc_or_zero()
        size = loc.shape[-1:]
        if tensorshape_util.is_fully_defined(size) and size == self.event_shape:
            return loc
        return tf.broadcast_to(loc, ps.concat([ps.shape(loc)[:-1], [self._event_size()]], axis=0))

    def _event_size(self) -> Any:
        """Returns the size d, as a Python integer if it is known statically."""
        size = tf.compat.dimension_value(self.event_shape[-1])
        return self.scale.domain_dimension_tensor() if size is None else size

    def _static_or_dynamic_batch_shape(self) -> Any:
        if tensorshape_util.is_fully_defined(self.batch_shape):
            return np.array(tensorshape_util.as_list(self.batch_shape), np.int32)
        # `self.batch_shape_tensor()` would check the parameters again.
        loc = self._loc_or_zero()
        return ps.broadcast_shape(ps.shape(loc)[:-1], self.scale._shape_tensor()[:-2])

    def _parameter_control_dependencies(self, is_init: bool) -> list[Any]:
        if not self.validate_args:
            return []
        assertions = []
        for parameter in self.declaration:
            value = getattr(self, parameter.name)
            if value is not None and is_init != tensor_util.is_ref(value):
                assertions.append(parameter.check(parameter.name, tf.convert_to_tensor(value)))
        return assertions


def _parameter_properties(
    cls: type[GaussianMarkovChain], dtype: Any, num_classes: int | None = None
) -> dict[str, tfp.util.ParameterProperties]:
    properties = {parameter.name: parameter.properties(dtype) for parameter in cls.declaration}
    return {"loc": tfp.util.ParameterProperties(event_ndims=1), **properties}


def _as_given(parameter: Parameter) -> property:
    return property(lambda self: getattr(self.scale, parameter.name), doc=parameter.doc)

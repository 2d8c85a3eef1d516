"""A stationary AR(1) component for `tfp.sts`, and state space models as noisy chains."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability import distributions as tfd
from tensorflow_probability.python.internal import dtype_util
from tensorflow_probability.python.internal import prefer_static as ps
from tensorflow_probability.python.sts.internal import util as sts_util
from tensorflow_probability.python.sts.structural_time_series import Parameter

from tfp_ar1.correlation import LagOneCorrelation
from tfp_ar1.distributions.gaussian_markov_chain import GaussianMarkovChain
from tfp_ar1.distributions.mvn_ar1 import MultivariateNormalAR1
from tfp_ar1.distributions.noise import NoisyGaussianMarkovChain
from tfp_ar1.distributions.state_space import of_state_space_model

__all__ = ["AR1", "noisy_chain"]

tfb = tfp.bijectors


class AR1(tfp.sts.StructuralTimeSeries):
    """A stationary AR(1) process with mean 0, as a component of a structural time series.

    ```none
    level[0] = marginal_scale ε_0
    level[t] = correlation level[t - 1] + marginal_scale √(1 - correlation²) ε_t,   ε_t ~ N(0, 1)
    ```

    This is the process of `MultivariateNormalAR1`, for `tfp.sts.Sum` and everything else that takes
    a `tfp.sts` model. `tfp.sts.Autoregressive(order=1)` instead has the innovation scale and the
    initial state as separate parameters; here the marginal scale determines the initial state.

    ```python
    model = tfp.sts.Sum(
        [tfp_ar1.sts.AR1(observed_time_series=y),
         tfp.sts.Seasonal(num_seasons=7, observed_time_series=y)],
        observed_time_series=y)
    samples, _ = tfp.sts.fit_with_hmc(model, y)
    tfp.sts.forecast(model, y, samples, num_steps_forecast=28).mean()
    ```

    Args:
      marginal_scale_prior: `tfd.Distribution` over positive numbers, the standard deviation σ of
        the level. Default: `LogNormal(log(standard deviation of the observed series), 1.5)`.
      correlation_prior: `tfd.Distribution` over (-1, 1), the correlation ρ of neighbours. Default:
        uniform.
      correlation_constraining_bijector: `tfb.Bijector` from real numbers to the support of
        `correlation_prior`; `tfb.Sigmoid()` for positive ρ. Default: to (-1, 1), by tanh.
      observed_time_series: floating-point tensor `[..., T]` or `[..., T, 1]`, where NaN means
        missing, or `tfp.sts.MaskedTimeSeries`; sets the scale of default priors. Default: as for
        a series of standard deviation 1.
      name: name of the component, the prefix of its parameters' names in a `Sum`.
    """

    def __init__(
        self,
        marginal_scale_prior: Any = None,
        correlation_prior: Any = None,
        correlation_constraining_bijector: Any = None,
        observed_time_series: Any = None,
        name: str | None = None,
    ):
        init_parameters = dict(locals())
        with tf.name_scope(name or "AR1") as name:
            if observed_time_series is not None:
                _, observed_stddev, _ = sts_util.empirical_statistics(observed_time_series)
                dtype = observed_stddev.dtype
            else:
                dtype = dtype_util.common_dtype(
                    [marginal_scale_prior, correlation_prior], dtype_hint=tf.float32
                )
                observed_stddev = tf.ones([], dtype)
            if marginal_scale_prior is None:
                marginal_scale_prior = tfd.LogNormal(tf.math.log(observed_stddev), 1.5)
            if correlation_prior is None:
                one = tf.ones(ps.shape(observed_stddev), dtype)
                correlation_prior = tfd.Uniform(-one, one)
            if correlation_constraining_bijector is None:
                # Unlike `tfb.Tanh`, this bijector stays below 1 where tanh rounds to 1.
                properties = MultivariateNormalAR1.parameter_properties(dtype)["correlation"]
                correlation_constraining_bijector = properties.default_constraining_bijector_fn()
            softplus = tfb.Softplus(low=dtype_util.eps(dtype))
            super().__init__(
                parameters=[
                    Parameter(
                        "marginal_scale",
                        marginal_scale_prior,
                        tfb.Chain([tfb.Scale(scale=observed_stddev), softplus]),
                    ),
                    Parameter("correlation", correlation_prior, correlation_constraining_bijector),
                ],
                latent_size=1,
                init_parameters=init_parameters,
                name=name,
            )

    def _make_state_space_model(
        self,
        num_timesteps: Any,
        param_map: Any,
        initial_state_prior: Any = None,
        **linear_gaussian_ssm_kwargs: Any,
    ) -> Any:
        marginal_scale, correlation = (
            tf.convert_to_tensor(param_map[p.name], p.prior.dtype) for p in self.parameters
        )
        rho = LagOneCorrelation(correlation=correlation)
        if initial_state_prior is None:
            initial_state_prior = tfd.MultivariateNormalDiag(
                scale_diag=marginal_scale[..., tf.newaxis]
            )
        return tfp.sts.AutoregressiveStateSpaceModel(
            num_timesteps=num_timesteps,
            coefficients=correlation[..., tf.newaxis],
            level_scale=marginal_scale * rho.unit_innovation_scale,
            initial_state_prior=initial_state_prior,
            name=self.name,
            **linear_gaussian_ssm_kwargs,
        )


def noisy_chain(model: Any, **options: Any) -> NoisyGaussianMarkovChain:
    """Converts a scalar `tfd.LinearGaussianStateSpaceModel` to a noisy chain.

    The result has the model's marginal likelihoods, posteriors and draws in O(T), without a loop
    over time:

    ```python
    model = tfp.sts.LocalLevelStateSpaceModel(
        100, level_scale=0.5, observation_noise_scale=1.0,
        initial_state_prior=tfd.MultivariateNormalDiag(scale_diag=[2.0]))
    y = model.sample()                                # [100, 1]
    noisy = tfp_ar1.sts.noisy_chain(model)
    noisy.log_prob(y[..., 0])                         # == model.log_prob(y)
    noisy.posterior(y[..., 0]).mean()                 # the level, smoothed
    ```

    Args:
      model: a `tfd.LinearGaussianStateSpaceModel` of latent size 1 and event shape `[T, 1]`. Its
        parameters may change from step to step. Its `mask` is the negation of `observed` here.
      **options: `validate_args`, `allow_nan_stats` and `name` of `NoisyGaussianMarkovChain`.

    Returns:
      A `NoisyGaussianMarkovChain` of event shape `[T]`. Its `path`, a Gaussian Markov chain, is the
      model's observation without noise; its `noise_scale` is that of the model.

    Raises:
      ValueError: if states or observations are not scalar, or an `observation_matrix` or the scale
        of a transition is known to be 0.
      TypeError: if `model` is not a `tfd.LinearGaussianStateSpaceModel`.
    """
    parameters, noise_scale = of_state_space_model(model)
    make: Any = GaussianMarkovChain.posterior_class
    path = make(**parameters, validate_args=options.get("validate_args", False))
    observed = None if model.mask is None else tf.logical_not(model.mask)
    return NoisyGaussianMarkovChain(path, noise_scale, observed, **options)

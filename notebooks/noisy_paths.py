# %% [markdown]
# # Paths seen through noise: the Nile, and coal mines
#
# *To open this as a notebook: `jupytext --to ipynb notebooks/noisy_paths.py`, or JupyterLab with jupytext installed.*
#
# What is measured is hardly ever the path itself. Here a path is seen with Gaussian noise, and with years missing: its likelihood, its posterior and its forecast are exact, in O(d), and are compared with the Kalman filter of statsmodels. Then it is seen through counts, where the posterior is not normal: Laplace's approximation and variational inference are compared with the No-U-Turn sampler and with importance sampling.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from statsmodels.tsa.statespace.sarimax import SARIMAX

import tfp_ar1

tfd = tfp.distributions
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.55"  # safe for colour-blind eyes

# %% [markdown]
# ## The Nile
#
# Annual flow at Aswan in $10^8\,\mathrm{m}^3$, 1871 to 1970, from G. W. Cobb, *The problem of the Nile: conditional solution to a changepoint problem*, Biometrika 65 (1978), 243–251. The model is a slow level, an AR(1) path around a mean, with noise of its own in each year:
#
# $$x \sim \mathcal N(\mu, C), \quad C_{ij} = \sigma^2 \rho^{|i-j|}, \qquad y_t = x_t + \tau\,\varepsilon_t.$$
#
# `path.with_observation_noise(τ, observed)` is the distribution of $y$, and its `log_prob` the marginal likelihood of what was observed. It is maximized in four numbers by BFGS, with its exact gradient.

# %%
flow = """
1120 1160  963 1210 1160 1160  813 1230 1370 1140  995  935 1110  994 1020  960 1180  799  958 1140
1100 1210 1150 1250 1260 1220 1030 1100  774  840  874  694  940  833  701  916  692 1020 1050  969
 831  726  456  824  702 1120 1100  832  764  821  768  845  864  862  698  845  744  796 1040  759
 781  865  845  944  984  897  822 1010  771  676  649  846  812  742  801 1040  860  874  848  890
 744  749  838 1050  918  986  797  923  975  815 1020  906  901 1170  912  746  919  718  714  740
"""
flow = np.array(flow.split(), np.float64)
year = np.arange(1871, 1971)
# The blocks that Durbin and Koopman hide in "Time Series Analysis by State Space Methods".
hidden = ((year >= 1891) & (year <= 1910)) | ((year >= 1931) & (year <= 1950))


def model(parameters):
    mean, log_scale, fisher_z, log_noise = tf.unstack(parameters)
    loc = tf.fill([len(year)], 100.0 * mean)
    path = tfp_ar1.MultivariateNormalAR1(loc, 100.0 * tf.exp(log_scale), fisher_z=fisher_z)
    return path, 100.0 * tf.exp(log_noise)


def fit(observed):
    def minus_log_likelihood(parameters):
        path, noise = model(parameters)
        return -path.with_observation_noise(noise, observed).log_prob(flow)

    @tf.function(autograph=False)
    def value_and_gradient(parameters):
        return tfp.math.value_and_gradient(minus_log_likelihood, parameters)

    start = np.float64([9.0, 0.0, 1.0, 0.0])
    found = tfp.optimizer.bfgs_minimize(value_and_gradient, start, tolerance=1e-6)
    assert found.converged
    return found.position, -float(found.objective_value)


for name, observed in (("all years", ~hidden | hidden), ("40 years hidden", ~hidden)):
    position, log_likelihood = fit(observed)
    path, noise = model(position)
    print(
        f"{name:16}mean {path.loc[0]:.2f}, scale {path.marginal_scale:.2f}, "
        f"ρ {np.tanh(position[2]):.4f}, noise {noise:.2f}, log-likelihood {log_likelihood:.6f}"
    )

# %% [markdown]
# ## Against the Kalman filter of statsmodels
#
# The same model there is `SARIMAX(1, 0, 0)` with a measurement error. At the same parameters, likelihood, smoothed path and ten-year forecast must agree to the last digits, with years missing and without. What its own `fit` finds, from the start that it chooses, may be another, lower maximum.

# %%
for observed in (~hidden | hidden, ~hidden):
    position, log_likelihood = fit(observed)
    path, noise = model(position)
    posterior = path.posterior(flow, noise, observed)
    forecast = path.forecast(posterior, 10).with_observation_noise(noise)

    sarimax = SARIMAX(
        np.where(observed, flow, np.nan), order=(1, 0, 0), trend="c", measurement_error=True
    )
    rho, variance = np.tanh(position[2]), float(path.marginal_scale) ** 2
    smoothed = sarimax.smooth(
        [float(path.loc[0]) * (1 - rho), rho, float(noise) ** 2, variance * (1 - rho**2)]
    )
    ahead = smoothed.get_forecast(10)
    differences = {
        "log-likelihood": log_likelihood / smoothed.llf - 1,
        "mean": posterior.mean() / smoothed.smoothed_state[0] - 1,
        "variance": posterior.variance() / smoothed.smoothed_state_cov[0, 0] - 1,
        "forecast": forecast.mean() / ahead.predicted_mean - 1,
        "its sd": forecast.stddev() / ahead.se_mean - 1,
    }
    for name, difference in differences.items():
        print(f"{name} {np.max(np.abs(difference)):.0e}", end=", ")
        assert np.max(np.abs(difference)) < 1e-10
    own = sarimax.fit(disp=False)
    print(f"log-likelihood here {log_likelihood:.2f}, of its own fit {own.llf:.2f}")

# %% [markdown]
# ## The hidden years, and ten more
#
# The posterior of the path is a distribution like any other: here its quantiles, and those of what a measurement would have been. (These are at the likeliest parameters, and leave out that they are uncertain; [smoothing_with_nuts.py](smoothing_with_nuts.py) does not.)

# %%
later = np.arange(1971, 1981)
level = np.float64([0.05, 0.5, 0.95])[:, np.newaxis]
of_path = posterior.marginals().quantile(level)
of_measurements = posterior.with_observation_noise(noise).marginals().quantile(level)
of_future = forecast.marginals().quantile(level)

fig, ax = plt.subplots(figsize=(10, 4))
for i, start in enumerate([1890.5, 1930.5]):
    ax.axvspan(start, start + 20, color="0.94", lw=0, zorder=0, label=None if i else "hidden years")
low, _, high = of_measurements
ax.fill_between(year, low, high, color=BLUE, alpha=0.15, lw=0, label="90 %, a measurement")
ax.fill_between(later, of_future[0], of_future[2], color=BLUE, alpha=0.15, lw=0)
ax.fill_between(year, of_path[0], of_path[2], color=BLUE, alpha=0.35, lw=0, label="90 %, the path")
ax.plot(year, of_path[1], color=BLUE, lw=1.5, label="median")
ax.plot(later, of_future[1], color=BLUE, lw=1.5, ls="--", label="forecast")
ax.plot(year[~hidden], flow[~hidden], ".", color="k", label="measured")
ax.plot(year[hidden], flow[hidden], "D", color=ORANGE, ms=4, label="measured, but hidden")
ax.set(xlabel="year", ylabel="flow  (10⁸ m³ per year)", xlim=(1870, 1981))
ax.legend(ncols=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, columnspacing=1)
plt.show()

inside = (flow >= low) & (flow <= high)
print(f"{np.sum(inside[hidden])} of the {np.sum(hidden)} hidden years lie in their 90 % interval")
assert np.sum(inside[hidden]) >= 32

# %% [markdown]
# ## Counts: accidents in coal mines
#
# The 191 explosions in British coal mines with ten or more deaths, by year from 1851 to 1962 (B. P. Carlin, A. E. Gelfand and A. F. M. Smith, *Hierarchical Bayesian analysis of changepoint problems*, Applied Statistics 41 (1992), 389–405). The log of the rate is an AR(1) path, and a count given its rate is Poisson:
#
# $$x \sim \mathcal N(\mu, C), \qquad y_t \sim \operatorname{Poisson}(e^{x_t}).$$
#
# The posterior of $x$ is no longer normal. `laplace_approximation` has the normal at its mode, and an approximate evidence, which is maximized in the level, the scale and the correlation; its gradient takes into account that the mode moves with them.

# %%
counts = """
4 5 4 1 0 4 3 4 0 6 3 3 4 0 2 6 3 3 5 4 5 3 1 4 4 1 5 5 3 4 2 5 2 2 3 4 2 1 3 2 2 1 1 1 1 3 0 0 1 0 1
1 0 0 3 1 0 3 2 2 0 1 1 1 0 1 0 1 0 0 0 2 1 0 0 0 1 1 0 2 3 3 1 1 2 1 1 1 1 2 4 2 0 0 0 1 4 0 0 0 1 0
0 0 0 0 1 0 0 1 0 1
"""
counts = np.array(counts.split(), np.float64)
mine_year = 1851 + np.arange(len(counts))


def log_rate(parameters):
    level, log_scale, fisher_z = tf.unstack(parameters)
    loc = tf.fill([len(counts)], level)
    return tfp_ar1.MultivariateNormalAR1(loc, tf.exp(log_scale), fisher_z=fisher_z)


def log_likelihood(x):
    return tfd.Poisson(log_rate=x).log_prob(counts)


@tf.function(autograph=False)
def minus_evidence(parameters):
    def value(parameters):
        path = log_rate(parameters)
        return -tfp_ar1.inference.laplace_approximation(path, log_likelihood).log_evidence

    return tfp.math.value_and_gradient(value, parameters)


found = tfp.optimizer.bfgs_minimize(minus_evidence, np.float64([0.0, 0.0, 1.5]), tolerance=1e-6)
assert found.converged
path = log_rate(found.position)
laplace = tfp_ar1.inference.laplace_approximation(path, log_likelihood)
variational = tfp_ar1.inference.natural_gradient_vi(path, log_likelihood)
assert laplace.converged
assert variational.converged
print(
    f"mean of the log-rate {path.loc[0]:.3f}, scale {path.marginal_scale:.3f}, "
    f"ρ {np.tanh(found.position[2]):.4f}; Newton steps {laplace.num_iterations}"
)

# %% [markdown]
# ## Against sampling
#
# The evidence: importance sampling with the Laplace approximation as its proposal estimates $\log p(y)$ itself. The posterior: NUTS on the same path at the same parameters, in the non-centred form.

# %%
x, log_q = laplace.posterior.experimental_sample_and_log_prob(50_000, seed=[1, 2])
log_weight = path.log_prob(x) + tf.reduce_sum(log_likelihood(x), axis=-1) - log_q
evidence = float(tf.reduce_logsumexp(log_weight) - np.log(len(log_weight)))
weight = np.exp(log_weight - np.max(log_weight))
error = np.std(weight) / np.mean(weight) / len(weight) ** 0.5
print(
    f"log p(y) {evidence:.3f} ± {error:.3f}; Laplace {laplace.log_evidence:.3f}, "
    f"variational bound {variational.elbo:.3f}"
)
assert abs(laplace.log_evidence - evidence) < 0.1
assert variational.elbo < evidence + 3 * error


@tf.function(jit_compile=True)
def sample():
    def target(noise):
        x = path.loc + path.scale.matvec(noise)
        prior = tf.reduce_sum(tfd.Normal(np.float64(0), 1.0).log_prob(noise), axis=-1)
        return prior + tf.reduce_sum(log_likelihood(x), axis=-1)

    kernel = tfp.mcmc.NoUTurnSampler(target, step_size=np.float64(0.3))
    kernel = tfp.mcmc.DualAveragingStepSizeAdaptation(kernel, 400, np.float64(0.8))
    start = tf.zeros([4, len(counts)], tf.float64)
    noise = tfp.mcmc.sample_chain(
        1000, start, kernel=kernel, num_burnin_steps=500, seed=[0, 2], trace_fn=None
    )
    return path.loc + path.scale.matvec(noise)


draws = sample().numpy()
mean, stddev = draws.mean((0, 1)), draws.std((0, 1))
for name, q in (("Laplace", laplace.posterior), ("variational", variational.posterior)):
    shift = np.max(np.abs(q.mean() - mean) / stddev)
    ratio = q.stddev() / stddev
    print(
        f"{name:12}mean off by at most {shift:.2f} sd of NUTS, "
        f"sd {np.min(ratio):.2f} to {np.max(ratio):.2f} times that of NUTS"
    )
    assert shift < 0.3

# %%
low, high = np.quantile(np.exp(draws), [0.05, 0.95], axis=(0, 1))
fig, ax = plt.subplots(figsize=(10, 3.5))
ax.fill_between(mine_year, low, high, color=GREY, alpha=0.3, lw=0, label="90 %, NUTS")
for q, color, style, name in (
    (laplace.posterior, BLUE, "-", "90 %, Laplace"),
    (variational.posterior, ORANGE, "--", "90 %, variational"),
):
    for i, p in enumerate((0.05, 0.95)):
        rate = np.exp(q.marginals().quantile(np.float64(p)))
        ax.plot(mine_year, rate, color=color, ls=style, lw=1.2, label=None if i else name)
ax.plot(mine_year, counts, ".", color="k", label="accidents")
ax.set(xlabel="year", ylabel="accidents per year", xlim=(1850, 1963))
ax.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
plt.show()

# %% [markdown]
# The posterior of a log-rate has its longer tail below, because few accidents say little about how small the rate may be. So its mode lies above its mean, and Laplace's curves by up to a sixth of a standard deviation above those of NUTS; the variational ones are closer. Both have its width within a few per cent, at a small part of its cost.

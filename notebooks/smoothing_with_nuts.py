# %% [markdown]
# # Missing years of the Nile: smoothing with NUTS
#
# *To open this as a notebook: `jupytext --to ipynb notebooks/smoothing_with_nuts.py`, or JupyterLab with jupytext installed.*
#
# The flow of the Nile at Aswan was measured every year from 1871 to 1970. We hide 40 of the 100 years, and ask what they may have been, and how sure we can be. The hidden values are known, so that the answer can be checked.
#
# The model is a slow level $x$ with measurements $y$ around it,
#
# $$x \sim \mathcal N(\mu, C), \quad C_{ij} = \sigma^2 \rho^{|i-j|}, \qquad y_t = x_t + \tau\,\varepsilon_t, \quad \varepsilon_t \sim \mathcal N(0, 1),$$
#
# and nothing in it is known beforehand: the mean $\mu$, the scale $\sigma$ and the correlation $\rho$ of the level, and the noise $\tau$ (weather of the year, and gauging) are sampled together with it by the No-U-Turn sampler, NUTS.
# `MultivariateNormalAR1` makes the level from white noise, and its method `conditional` fills in what is missing; both in O(d), for any number of years.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1

tfd = tfp.distributions
tf.get_logger().setLevel("ERROR")  # TFP's diagnostics cast complex numbers, and say so each time
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "0.55"  # safe for colour-blind eyes

# %% [markdown]
# ## The data
#
# Annual flow in $10^8\,\mathrm{m}^3$, from G. W. Cobb, *The problem of the Nile: conditional solution to a changepoint problem*, Biometrika 65 (1978), 243–251. We divide by 10 to have km³.
# The hidden years are those of J. Durbin and S. J. Koopman, *Time Series Analysis by State Space Methods*, who use the series as their example: the third and the seventh block of twenty.

# %%
flow = """
1120 1160  963 1210 1160 1160  813 1230 1370 1140  995  935 1110  994 1020  960 1180  799  958 1140
1100 1210 1150 1250 1260 1220 1030 1100  774  840  874  694  940  833  701  916  692 1020 1050  969
 831  726  456  824  702 1120 1100  832  764  821  768  845  864  862  698  845  744  796 1040  759
 781  865  845  944  984  897  822 1010  771  676  649  846  812  742  801 1040  860  874  848  890
 744  749  838 1050  918  986  797  923  975  815 1020  906  901 1170  912  746  919  718  714  740
"""
flow = np.array(flow.split(), np.float64) / 10  # km³ per year
year = np.arange(1871, 1971)
hidden = ((year >= 1891) & (year <= 1910)) | ((year >= 1931) & (year <= 1950))
observed = ~hidden
num_years = len(year)
y = flow[observed]  # all that the model will see


def shade_hidden_years(ax):
    for i, start in enumerate([1890.5, 1930.5]):
        label = "hidden years" if i == 0 else None
        ax.axvspan(start, start + 20, color="0.94", lw=0, zorder=0, label=label)


def time_axis(ax, ylabel="flow  (km³ per year)"):
    ax.set(xlabel="year", ylabel=ylabel, xlim=(1870, 1971), xticks=range(1870, 1971, 10))


fig, ax = plt.subplots(figsize=(10, 3))
shade_hidden_years(ax)
ax.plot(year, np.where(observed, flow, np.nan), ".-", color="k", lw=0.6, label="measured")
time_axis(ax)
ax.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
plt.show()

# %% [markdown]
# ## The model
#
# | parameter | prior | |
# |---|---|---|
# | $\mu$ | normal, 90 ± 20 km³ | long-run mean; sampled as `level` $= (\mu - 90)/20$ |
# | $\sigma$ | log-normal around 15 km³, within a factor of 2.7 in 95 % | `marginal_scale` |
# | $\operatorname{atanh}\rho$ | normal, 1.5 ± 0.75 | `fisher_z`; ρ is between 0.03 and 0.995 in 95 %: the level is slow |
# | $\tau$ | log-normal around 10 km³, within a factor of 2 in 95 % | noise of a measurement |
#
# Sampled are the four numbers and `innovations`, white noise for each of the 100 years, of which the Cholesky factor of $C$ makes the level: `process.scale.matvec`. This *non-centred* form suits data that say little about a single year.
# Every operation broadcasts over the chains, so that no loop over them is needed. The cell takes about half a minute on two cores, most of it for XLA to compile.

# %%
one = np.float64(1)
PRIORS = {
    "level": tfd.Normal(0 * one, 1),
    "log_scale": tfd.Normal(np.log(15 * one), 0.5),
    "fisher_z": tfd.Normal(1.5 * one, 0.75),
    "log_noise": tfd.Normal(np.log(10 * one), 0.35),
    "innovations": tfd.Sample(tfd.Normal(0 * one, 1), num_years),
}


def process(level, log_scale, fisher_z):
    loc = tf.repeat((90 + 20 * level)[..., tf.newaxis], num_years, axis=-1)
    return tfp_ar1.MultivariateNormalAR1(loc, tf.exp(log_scale), fisher_z=fisher_z)


def path(level, log_scale, fisher_z, innovations):
    p = process(level, log_scale, fisher_z)
    return p.loc + p.scale.matvec(innovations)


def target_log_prob(level, log_scale, fisher_z, log_noise, innovations):
    values = [level, log_scale, fisher_z, log_noise, innovations]
    prior = sum(p.log_prob(v) for p, v in zip(PRIORS.values(), values, strict=True))
    x = path(level, log_scale, fisher_z, innovations)
    x = tf.gather(x, np.flatnonzero(observed), axis=-1)
    noise = tf.exp(log_noise)[..., tf.newaxis]
    return prior + tf.reduce_sum(tfd.Normal(x, noise).log_prob(y), axis=-1)


num_chains, num_warmup, num_draws = 4, 500, 1500


@tf.function(jit_compile=True)
def sample():
    kernel = tfp.mcmc.NoUTurnSampler(target_log_prob, step_size=0.1 * one)
    kernel = tfp.mcmc.DualAveragingStepSizeAdaptation(
        kernel, num_adaptation_steps=400, target_accept_prob=0.95 * one
    )
    start = [p.sample(num_chains, seed=[1, i]) for i, p in enumerate(PRIORS.values())]
    return tfp.mcmc.sample_chain(
        num_draws,
        start,
        kernel=kernel,
        num_burnin_steps=num_warmup,
        seed=[0, 2],
        trace_fn=lambda _, results: results.inner_results.has_divergence,
    )


draws, diverged = sample()
draws = dict(zip(PRIORS, draws, strict=True))  # each [num_draws, num_chains, ...]
quantities = {
    "mean μ  (km³)": 90 + 20 * draws["level"],
    "scale σ  (km³)": tf.exp(draws["log_scale"]),
    "correlation ρ": tf.tanh(draws["fisher_z"]),
    "noise τ  (km³)": tf.exp(draws["log_noise"]),
}
quantities = {name: x.numpy() for name, x in quantities.items()}


def r_hat(x):
    return tfp.mcmc.potential_scale_reduction(x, split_chains=True).numpy()


def effective_sample_size(x):
    return tfp.mcmc.effective_sample_size(
        x, cross_chain_dims=1, filter_beyond_positive_pairs=True
    ).numpy()


print(f"{num_chains} chains of {num_draws} draws, {np.sum(diverged)} of them divergent\n")
print("                 5 %   median    95 %   R-hat   effective draws")
for name, x in quantities.items():
    low, median, high = np.quantile(x, [0.05, 0.5, 0.95])
    diagnostics = f"{r_hat(x):7.3f} {effective_sample_size(x):12.0f}"
    print(f"{name:<14} {low:6.3g} {median:8.3g} {high:7.3g} {diagnostics}")
    assert r_hat(x) < 1.05
assert np.mean(diverged) < 0.02

# %% [markdown]
# The chains should look alike, and like noise around one level: those that start in different places have then forgotten where. From time to time ρ makes an excursion to small values, while τ is small too: the level then takes over from the noise. There the sampler is slow, which is why ρ has the fewest effective draws.

# %%
fig, axes = plt.subplots(2, 2, figsize=(10, 4), sharex=True)
colors = [BLUE, ORANGE, GREEN, GREY]
for ax, (name, x) in zip(axes.flat, quantities.items(), strict=True):
    for chain, color in enumerate(colors):
        ax.plot(x[:, chain], color=color, lw=0.4, alpha=0.8, label=f"chain {chain + 1}")
    ax.set_ylabel(name)
for ax in axes[1]:
    ax.set(xlabel="draw", xlim=(0, num_draws))
lines, names = axes[0, 0].get_legend_handles_labels()
legend = fig.legend(lines, names, ncols=4, loc="outside upper center", frameon=False)
for line in legend.get_lines():
    line.set(linewidth=2, alpha=1)
plt.show()

# %% [markdown]
# ## The correlation
#
# Left: the level has a long memory. With ρ = 0.95, say, half of what is special about a year is still there after $\log 0.5 / \log 0.95 \approx 13.5$ years.
# Right: how the variation is shared out between the level and the noise. The level carries about as much of it as the noise; the correlation is what tells them apart. (Sixty noisy numbers sharpen the prior of ρ; they do not overrule it.)

# %%
rho = quantities["correlation ρ"].ravel()
grid = np.tanh(np.linspace(0.4, 4, 500))
prior_density = PRIORS["fisher_z"].prob(np.arctanh(grid)) / (1 - grid**2)

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), width_ratios=[1.3, 1])
left.hist(rho, bins=np.linspace(0.4, 1, 41), density=True, color=BLUE, alpha=0.7, label="posterior")
left.plot(grid, prior_density, color=ORANGE, lw=1.5, label="prior")
left.set(xlabel="correlation ρ of neighbouring years", ylabel="density", xlim=(0.4, 1))
left.legend(loc="upper left", frameon=False)
scale, noise = quantities["scale σ  (km³)"].ravel(), quantities["noise τ  (km³)"].ravel()
right.plot(scale, noise, ".", color=BLUE, ms=2, alpha=0.3)
right.plot([0, 60], [0, 60], color=GREY, lw=1, ls=":")
right.annotate("σ = τ", (20, 21), color="0.4", ha="right", va="center")
right.set(xlabel="scale of the level σ  (km³)", ylabel="noise τ  (km³)", xlim=(4, 45), ylim=(4, 22))
plt.show()
low, median, high = np.quantile(rho, [0.05, 0.5, 0.95])
print(f"ρ: median {median:.3f}, 90 % interval {low:.3f} to {high:.3f}")

# %% [markdown]
# ## The hidden years
#
# Given the level in the observed years, `conditional` knows the law of the hidden ones, exactly and for all draws at once. A hidden year depends on the nearest observed year on either side alone, because the process is Markov; the mean bends from one to the other, and the variance is largest in the middle.
#
# For each of the 6,000 draws we take one path from that law, and for the interval of a *measurement* add the noise τ. The hidden measurements are orange.

# %%
level_path = path(*(draws[k] for k in ("level", "log_scale", "fisher_z", "innovations")))
prior = process(draws["level"], draws["log_scale"], draws["fisher_z"])
conditional = prior.conditional(level_path, observed)  # batch [num_draws, num_chains]

x = conditional.sample(seed=[0, 3])
measurement = tfd.Normal(x, tf.exp(draws["log_noise"])[..., tf.newaxis]).sample(seed=[0, 4])
x, measurement = (np.reshape(a, [-1, num_years]) for a in (x, measurement))
low, high = np.quantile(x, [0.05, 0.95], axis=0)
lowest, highest = np.quantile(measurement, [0.05, 0.95], axis=0)

fig, ax = plt.subplots(figsize=(10, 4))
shade_hidden_years(ax)
ax.fill_between(year, lowest, highest, color=BLUE, alpha=0.15, lw=0, label="90 %, a measurement")
ax.fill_between(year, low, high, color=BLUE, alpha=0.35, lw=0, label="90 %, the level")
ax.plot(year, np.mean(x, axis=0), color=BLUE, lw=1.5, label="mean of the level")
ax.plot(year[observed], y, ".", color="k", label="measured")
ax.plot(year[hidden], flow[hidden], "D", color=ORANGE, ms=4, label="measured, but hidden")
time_axis(ax)
ax.legend(ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, columnspacing=1)
plt.show()

inside = (flow >= lowest) & (flow <= highest)
num_inside, num_hidden = np.sum(inside[hidden]), np.sum(hidden)
print(f"{num_inside} of the {num_hidden} hidden measurements lie in their 90 % interval")
assert num_inside >= 30

# %% [markdown]
# The first gap holds a surprise: the flow fell from one year to the next, in 1899, and stayed lower on the whole. From outside the gap one sees that it fell, but not when, hence a slope.
#
# How sure is the model of the level, year by year? The variance has two parts: the mean of `conditional.variance()` over the draws, which is 0 for an observed year, whose level is part of the draw; and the variance of `conditional.mean()` from draw to draw. In the gaps the first takes over. It does not grow without end, as it would for a random walk: far from all measurements a stationary level has the standard deviation σ.

# %%
within = np.mean(conditional.variance(), axis=(0, 1))
between = np.var(conditional.mean(), axis=(0, 1))

fig, ax = plt.subplots(figsize=(10, 2.8))
shade_hidden_years(ax)
ax.plot(year, np.sqrt(within + between), color=BLUE, lw=1.8, label="sd of the level")
ax.plot(year, np.sqrt(between), color=ORANGE, lw=1.2, ls="--", label="of this, from draw to draw")
time_axis(ax, "posterior sd  (km³ per year)")
ax.set_ylim(bottom=0)
ax.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
plt.show()

# %% [markdown]
# ## Two checks
#
# One draw against dense linear algebra: mean and variance of the hidden years from the 100 × 100 covariance matrix.
# And `conditional` against NUTS, which has moved the innovations of the hidden years too: its own paths must have the same means, within their Monte Carlo error.

# %%
one_draw = process(*(draws[k][-1, 0] for k in ("level", "log_scale", "fisher_z")))
given = level_path[-1, 0].numpy()
filled = one_draw.conditional(given, observed)

C, mu = one_draw.covariance().numpy(), one_draw.loc.numpy()
gain = C[np.ix_(hidden, observed)] @ np.linalg.inv(C[np.ix_(observed, observed)])
mean = mu[hidden] + gain @ (given - mu)[observed]
variance = np.diag(C[np.ix_(hidden, hidden)] - gain @ C[np.ix_(observed, hidden)])
errors = abs(filled.mean()[hidden] - mean), abs(filled.variance()[hidden] - variance)
print("largest differences from dense linear algebra:", end=" ")
print(f"mean {np.max(errors[0]):.0e} km³, variance {np.max(errors[1]):.0e} km⁶")
np.testing.assert_allclose(filled.mean()[hidden], mean, rtol=1e-8)
np.testing.assert_allclose(filled.variance()[hidden], variance, rtol=1e-8)

difference = (level_path - conditional.mean()).numpy()[..., hidden]
z = difference.mean((0, 1)) / (difference.std((0, 1)) / effective_sample_size(difference) ** 0.5)
print(f"NUTS against conditional: largest |z| of {num_hidden} years {np.max(abs(z)):.1f}")
assert np.max(abs(z)) < 5

# %% [markdown]
# # Your own series: from a CSV file to filled gaps and a forecast
#
# *To open this as a notebook: `jupytext --to ipynb notebooks/your_series.py`, or JupyterLab with jupytext installed.*
#
# A file with a column of times and a column of values, some of them missing: here weekly CO₂ at Mauna Loa, 1958 to 2001, as it comes with statsmodels. We fill its gaps and forecast two years, in two ways:
#
# 1. an AR(1) path with noise, fitted by maximum likelihood. Everything is exact, and it takes a second. For one series, begin here;
# 2. a `SequenceVAE`, a neural model that learns from windows. It is meant for many series, or several columns with a decoder that is not linear. This is what `tfp-ar1 train`, `impute` and `forecast` do without any code ([your own data](../docs/your_data.md)).
#
# To see what either is worth, we hide values that are known, and put a straight line beside both.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import statsmodels.api as sm
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1
from tfp_ar1.vae import sequence_networks
from tfp_ar1_cli.data import series

sm.datasets.co2.load_pandas().data.to_csv("co2.csv")
co2 = pd.read_csv("co2.csv", index_col=0, parse_dates=True)["co2"]
print(
    f"{len(co2)} weeks, {co2.isna().sum()} missing; {co2.index[0]:%Y-%m-%d} to {co2.index[-1]:%Y-%m-%d}"
)

# %% [markdown]
# ## What is to be filled
#
# The models are stationary: they have no trend and no cycle. Both are taken out first, by least squares: a parabola and two harmonics of the year, fitted to what the models may see. Hidden are the last two years, for the forecast, and twenty gaps of ten weeks.

# %%
week = np.arange(len(co2))
last, known = len(co2) - 104, co2.notna().to_numpy()
in_gap = np.isin(week // 10, np.random.default_rng(0).choice(last // 10, 20, replace=False))
seen = known & ~in_gap & (week < last)

angle = 2 * np.pi * week[:, None] * [1, 2] / 52.1775
regressors = np.hstack([np.vander(week / 1000, 3), np.sin(angle), np.cos(angle)])
coefficients, *_ = np.linalg.lstsq(regressors[seen], co2[seen], rcond=None)
usual = regressors @ coefficients
rest = co2.to_numpy() - usual  # what the models are about, in ppm
print(f"standard deviation {co2.std():.1f} ppm, of what is left {rest[seen].std():.2f} ppm")

# %% [markdown]
# ## 1. An AR(1) path with noise
#
# `with_observation_noise` is the distribution of what was observed; its `log_prob` is maximized in three numbers. `posterior` then fills the gaps, and `forecast` goes on from the end.

# %%
observed, y = seen[:last], np.where(seen, rest, 0.0)[:last]


def path_and_noise(parameters):
    log_scale, fisher_z, log_noise = tf.unstack(parameters)
    zeros = tf.zeros(last, tf.float64)
    path = tfp_ar1.MultivariateNormalAR1(zeros, tf.exp(log_scale), fisher_z=fisher_z)
    return path, tf.exp(log_noise)


@tf.function(autograph=False)
def minus_log_likelihood(parameters):
    def value(parameters):
        path, noise = path_and_noise(parameters)
        return -path.with_observation_noise(noise, observed).log_prob(y) / np.sum(observed)

    return tfp.math.value_and_gradient(value, parameters)


found = tfp.optimizer.bfgs_minimize(minus_log_likelihood, np.float64([0, 1, -1]), tolerance=1e-6)
path, noise = path_and_noise(found.position)
posterior = path.posterior(y, noise, observed)
ahead = path.forecast(posterior, 104)
parts = [posterior.with_observation_noise(noise), ahead.with_observation_noise(noise)]
mean, sd = (
    np.concatenate([getattr(part, name)() for part in parts]) for name in ("mean", "stddev")
)
filled = {"AR(1) + noise": (mean, sd)}
print(f"converged: {found.converged}; scale {path.marginal_scale:.2f} ppm, ", end="")
print(f"ρ {np.tanh(found.position[1]):.3f}, noise {noise:.2f} ppm")

# %% [markdown]
# ## 2. A SequenceVAE
#
# It is trained on windows of two years, which overlap, with NaN where nothing was seen. `series.hide` hides more of them at random, so that the encoder learns to do without. The posterior `"ante1"` has a standard deviation for each week, which a gap needs.

# %%
steps, scale = 104, rest[seen].std()
standardised = np.where(seen, rest / scale, np.nan).astype(np.float32)[:, None]
windows = np.stack([standardised[i : i + steps] for i in range(0, last - steps + 1, 13)])


def batches():
    rng = np.random.default_rng(0)
    while True:
        x = windows[rng.choice(len(windows), 32, replace=False)]
        batch = {"x": x, "length": np.full(len(x), steps, np.int32)}
        yield (series.hide(batch, 0.5, seed=rng.integers(2**31, size=2)),)


keras.utils.set_random_seed(0)
encoder, decoder = sequence_networks.convolutional((steps, 1), channels=1)
vae = tfp_ar1.SequenceVAE(encoder, decoder, channels=1, steps=steps, posterior="ante1", seed=0)
vae.compile(optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(5e-3, 1500)))
vae.fit(batches(), epochs=1, steps_per_epoch=1500, shuffle=False, verbose=0)

starts = [*range(0, last - steps, steps), last - steps]
draws = np.zeros([400, len(co2)])
for start in starts:
    imputed = vae.impute(standardised[None, start : start + steps], num_samples=400, seed=start)
    draws[:, start : start + steps] = imputed[:, 0, :, 0]
draws[:, last:] = vae.forecast(standardised[None, last - steps : last], 104, 400, seed=0)[
    :, 0, :, 0
]
filled["SequenceVAE"] = scale * draws.mean(axis=0), scale * draws.std(axis=0)

# %% [markdown]
# ## What they are worth
#
# Root mean square errors at the known values that were hidden, and how many of these lie in the 90% interval. The rivals: a straight line across each gap, and the last value for the forecast, both with trend and cycle added; and trend and cycle alone, which is all that a model without memory could say.

# %%
line = np.interp(week, week[seen], rest[seen])
rivals = {"line, last value": (line, None), "trend and cycle": (0 * line, None)}
gaps = known & in_gap & (week < last)
for part, where in (("gaps", gaps), ("forecast", known & (week >= last))):
    for name, (mean, sd) in {**filled, **rivals}.items():
        error = (rest - mean)[where]
        inside = "" if sd is None else f", {np.mean(np.abs(error) < 1.645 * sd[where]):.0%} inside"
        print(f"{part:9} {name:16} RMSE {np.sqrt(np.mean(error**2)):.2f} ppm{inside}")

# %% [markdown]
# In the gaps, which are short, the path is about as good as a straight line, and it says how sure it is: nine in ten of the hidden values lie in its 90% interval. The neural model does the same in more time; it has one short series to learn from.
#
# Two years ahead the models return to trend and cycle, and the trend itself is wrong: the parabola, fitted until 1999, runs too high after it. The last value, which keeps the distance to the parabola, is closer. The intervals are too narrow, because they take trend and cycle for known. Where the trend is what you want to know, model it: `tfp_ar1.sts` has a component for `tfp.sts`, which has trends.

# %%
fig, axes = plt.subplots(2, 1, figsize=(10, 5.5))
first = week[in_gap & (week > 1200)][0]
for ax, shown in zip(axes, (slice(first - 80, first + 120), slice(last - 104, None)), strict=True):
    for color, (name, (mean, sd)) in zip(("C0", "C1"), filled.items(), strict=True):
        low, high = ((usual + mean + s * 1.645 * sd)[shown] for s in (-1, 1))
        band = np.where(seen[shown], np.nan, 1)
        ax.fill_between(co2.index[shown], low * band, high * band, color=color, alpha=0.2, lw=0)
        ax.plot(co2.index[shown], (usual + mean)[shown] * band, color=color, lw=1.2, label=name)
    ax.plot(co2.index[shown], co2.where(seen)[shown], "k.", ms=3, label="seen")
    ax.plot(co2.index[shown], co2.where(~seen)[shown], ".", color="C4", ms=4, label="hidden")
    ax.set_ylabel("CO₂  (ppm)")
axes[0].legend(ncols=4, loc="lower right")
plt.show()

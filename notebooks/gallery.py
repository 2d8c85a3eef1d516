# %% [markdown]
# # Gallery
#
# Pictures of what the library does, each with the lines that make it.
#
# *To open this as a notebook: `jupytext --to ipynb notebooks/gallery.py`, or JupyterLab with jupytext installed.*
#
# All of them begin so:

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

import keras
import matplotlib.pyplot as plt
import numpy as np
import statsmodels.api as sm
import tensorflow as tf
import tensorflow_probability as tfp
from sklearn.datasets import load_digits

import tfp_ar1
from tfp_ar1.vae import architectures, sequence_networks

tfd = tfp.distributions

# %% [markdown]
# ## Paths
#
# The distribution on which all others rest: neighbours have the correlation ρ, and every coordinate the same variance. The same noise, at five values of ρ.

# %%
rho = np.float32([-0.9, 0.0, 0.7, 0.95, 0.99])
noise = tf.random.stateless_normal([100], seed=[0, 3])
paths = tfp_ar1.MultivariateNormalAR1(tf.zeros(100), correlation=rho).scale.matvec(noise)

fig, axes = plt.subplots(1, 5, figsize=(10, 2), sharey=True)
for ax, r, path in zip(axes, rho, paths, strict=True):
    ax.plot(path, lw=1)
    ax.set(title=f"ρ = {r:g}", xlabel="step", ylim=(-3.2, 3.2))
plt.show()

# %% [markdown]
# ## Covariance and precision
#
# The covariance is full, and its inverse has three diagonals: given its two neighbours, a coordinate is independent of all others. That is why everything costs O(d). The last member, ANTE(1), has a scale for each coordinate and a correlation for each step.

# %%
mean, i = tf.zeros(16), np.arange(16, dtype=np.float32)
times = np.cumsum(np.where(i % 4 == 0, 4, 1).astype(np.float32))
scale, correlation = 0.6 + i / 20, 0.9 * np.cos(i[1:] / 3)
members = {
    "AR(1)": tfp_ar1.MultivariateNormalAR1(mean, correlation=0.8),
    "OU, irregular times": tfp_ar1.MultivariateNormalOU(mean, 1.0, times=times, length_scale=4.0),
    "ANTE(1)": tfp_ar1.MultivariateNormalANTE1(mean, scale, correlation=correlation),
}
fig, axes = plt.subplots(2, 3, figsize=(8, 5.4))
for (above, below), (name, member) in zip(axes.T, members.items(), strict=True):
    covariance = member.covariance().numpy()
    above.imshow(covariance, cmap="RdBu_r", vmin=-1.5, vmax=1.5)
    below.imshow(np.linalg.inv(covariance), cmap="PuOr", vmin=-5, vmax=5)
    above.set(title=name, ylabel="covariance", xticks=[], yticks=[])
    below.set(ylabel="precision", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## What a correlation costs
#
# The KL divergence to N(0, I), which a VAE pays for its posterior: zero at ρ = 0, without bound towards ±1. It is exact, from O(d) numbers.

# %%
rho = np.linspace(-0.999, 0.999, 400, dtype=np.float32)
fig, ax = plt.subplots(figsize=(6.5, 3.2))
for d in (2, 10, 50):
    q = tfp_ar1.MultivariateNormalAR1(tf.zeros(d), correlation=rho)
    ax.plot(rho, tfd.kl_divergence(q, tfd.MultivariateNormalDiag(tf.zeros(d))), label=f"d = {d}")
ax.set(xlabel="correlation ρ", ylabel="KL to N(0, I)  (nats)", yscale="log", ylim=(1e-3, 200))
ax.legend()
plt.show()

# %% [markdown]
# ## A path given some of its values
#
# `conditional` is the distribution of a path of which some values are known: bridges between them, and an interval that widens away from them.

# %%
path = tfp_ar1.MultivariateNormalAR1(tf.zeros(120), correlation=0.98)
observed = np.isin(np.arange(120), [5, 20, 22, 60, 90, 93, 97])
given = path.conditional(path.sample(seed=[0, 7]), observed)

fig, ax = plt.subplots(figsize=(10, 3))
mean, sd = given.mean(), given.stddev()
ax.fill_between(np.arange(120), mean - 1.645 * sd, mean + 1.645 * sd, alpha=0.2, lw=0)
ax.plot(tf.transpose(given.sample(8, seed=[0, 8])), color="C0", lw=0.6)
ax.plot(np.flatnonzero(observed), mean[observed], "ko", ms=4)
ax.set(xlabel="step", ylabel="eight draws, and 90%", xlim=(0, 119))
plt.show()

# %% [markdown]
# ## Noise, a gap, and what comes next
#
# The flow of the Nile, with fifteen years hidden: a slow level under noise, fitted by maximum likelihood, then the level given the flow, and its forecast. [More](smoothing_with_nuts.py).

# %%
flow = sm.datasets.nile.load_pandas().data["volume"].to_numpy()
hidden = (np.arange(100) >= 45) & (np.arange(100) < 60)
start = np.float64([9.0, 0.0, 1.0, 0.0])  # of mean / 100, log-scale / 100, atanh ρ, log-noise / 100


def noisy(p):
    path = tfp_ar1.MultivariateNormalAR1(
        tf.fill([100], 100 * p[0]), 100 * tf.exp(p[1]), fisher_z=p[2]
    )
    return path.with_observation_noise(100 * tf.exp(p[3]), ~hidden)


def loss(p):
    return tfp.math.value_and_gradient(lambda p: -noisy(p).log_prob(flow), p)


fitted = noisy(tfp.optimizer.bfgs_minimize(tf.function(loss, autograph=False), start).position)
posterior = fitted.posterior(flow)
ahead = fitted.path.forecast(posterior, 30)

# %%
fig, ax = plt.subplots(figsize=(10, 3))
for time, level, name in ((1871, posterior, "level"), (1971, ahead, "forecast")):
    year, mean, sd = time + np.arange(level.event_shape[0]), level.mean(), level.stddev()
    ax.plot(year, mean, color="C0", ls="-" if name == "level" else "--", label=name)
    ax.fill_between(year, mean - 1.645 * sd, mean + 1.645 * sd, color="C0", alpha=0.2, lw=0)
ax.plot(1871 + np.flatnonzero(~hidden), flow[~hidden], "k.", label="flow")
ax.plot(1871 + np.flatnonzero(hidden), flow[hidden], "D", color="C1", ms=4, label="hidden")
ax.set(xlabel="year", ylabel="10⁸ m³ per year")
ax.legend(ncols=4, loc="upper right")
plt.show()

# %% [markdown]
# ## Counts
#
# Explosions in British coal mines with ten or more deaths, by year: counts whose log-rate is a path. The posterior is not normal any more, and `laplace_approximation` has the normal at its mode. [More](noisy_paths.py), and how the three numbers are found.

# %%
digits = "45410434063340263354531441553425223421322111130010110031"
digits += "03220111010100021000110233112111124200014000100000100101"
counts, year = np.float64(list(digits)), 1851 + np.arange(112)
prior = tfp_ar1.MultivariateNormalAR1(np.full(112, 0.306), 0.740, correlation=0.979)
laplace = tfp_ar1.inference.laplace_approximation(
    prior, lambda log_rate: tfd.Poisson(log_rate=log_rate).log_prob(counts)
)
log_rate = laplace.posterior.marginals()

fig, ax = plt.subplots(figsize=(10, 2.8))
low, middle, high = (np.exp(log_rate.quantile(np.float64(p))) for p in (0.05, 0.5, 0.95))
ax.fill_between(year, low, high, alpha=0.3, lw=0, label="90% of the rate")
ax.plot(year, middle, lw=1.2, label="median")
ax.plot(year, counts, "k.", ms=4, label="explosions")
ax.set(xlabel="year", ylabel="explosions per year")
ax.legend(ncols=3, loc="upper right")
plt.show()

# %% [markdown]
# ## Irregular times
#
# An Ornstein–Uhlenbeck path is AR(1) at any times. Here noisy measurements at random times, and the path at some 400 times between, all in one call: times at which nothing was measured are not observed.

# %%
rng = np.random.default_rng(4)
times = np.sort(rng.uniform(0, 60, 460))
observed = np.isin(np.arange(460), rng.choice(460, 60, replace=False))
observed &= (times < 25) | (times > 35)  # and a time without measurements
path = tfp_ar1.MultivariateNormalOU(np.zeros(460), 1.0, times=times, length_scale=6.0)
truth = path.sample(seed=[0, 5])
y = truth + 0.3 * rng.normal(size=460)
posterior = path.posterior(y, np.float64(0.3), observed)

fig, ax = plt.subplots(figsize=(10, 3))
mean, sd = posterior.mean(), posterior.stddev()
ax.fill_between(times, mean - 1.645 * sd, mean + 1.645 * sd, alpha=0.2, lw=0, label="90%")
ax.plot(times, mean, label="mean")
ax.plot(times, truth, color="0.5", lw=0.8, label="truth")
ax.plot(times[observed], y[observed], "k.", ms=4, label="measured")
ax.set(xlabel="time", ylabel="x")
ax.legend(ncols=4, loc="lower right")
plt.show()

# %% [markdown]
# ## A ρ-VAE of digits
#
# Twenty epochs on 1,797 images of 8 × 8 pixels. In a VAE of images the AR(1) posterior saves parameters and does not fit better: [images.py](images.py).

# %%
keras.utils.set_random_seed(0)
images = (load_digits().images / 16).astype("float32")
encoder, decoder = architectures.mlp(data_shape=(8, 8), latent_dim=10, hidden_units=(128,))
vae = tfp_ar1.RhoVAE(encoder, decoder, latent_dim=10, posterior="ar1", seed=0)
vae.compile(optimizer=keras.optimizers.Adam(2e-3))
vae.fit(images, epochs=20, batch_size=64, verbose=0)

fig, axes = plt.subplots(1, 2, figsize=(10, 2.5))
for ax, title, x in (
    (axes[0], "digits", images[:40]),
    (axes[1], "new images", vae.generate(40, seed=0).numpy()),
):
    framed = np.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=0.3).reshape(4, 10, 10, 10)
    ax.imshow(framed.transpose(0, 2, 1, 3).reshape(40, 100), vmin=0, vmax=1)
    ax.set_title(title)
    ax.axis("off")
plt.show()

# %% [markdown]
# ## A prior that learns
#
# Series made of a slow path and noise. A `SequenceVAE` learns the correlation of the path with its networks, so that what it generates has the memory of the data. With the prior N(0, I), its steps are independent. [More](sequences.py).

# %%
truth = tfp_ar1.MultivariateNormalAR1(tf.zeros(64), correlation=0.97)
x = 2 * np.tanh(truth.sample(512, seed=[0, 1]).numpy())[..., np.newaxis]
x += 0.1 * np.random.default_rng(0).normal(size=x.shape)
fig, axes = plt.subplots(1, 3, figsize=(10, 2.4), sharey=True)
axes[0].plot(x[:3, :, 0].T, lw=1)
axes[0].set_title("data: ρ = 0.97")
for ax, prior in zip(axes[1:], ("ar1", None), strict=True):
    encoder, decoder = sequence_networks.convolutional((64, 1), channels=1)
    settings = {"channels": 1, "steps": 64, "posterior": "ante1", "seed": 0}
    vae = tfp_ar1.SequenceVAE(encoder, decoder, prior=prior, **settings)
    vae.compile(optimizer=keras.optimizers.Adam(5e-3))
    vae.fit(x.astype("float32"), epochs=40, batch_size=32, verbose=0)
    ax.plot(vae.generate(3, seed=1)[:, :, 0].numpy().T, lw=1)
    rho = float(np.mean(vae.prior.correlation_parameter()))
    ax.set(title=f"generated, prior ρ = {rho:.2f}", xlabel="step")
plt.show()

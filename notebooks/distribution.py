# %% [markdown]
# # The AR(1) normal: covariance, samples, KL
#
# *To open this as a notebook: `jupytext --to ipynb notebooks/distribution.py`, or JupyterLab with jupytext installed.*
#
# `tfp_ar1.MultivariateNormalAR1` is a multivariate normal on $\mathbb{R}^d$ whose whole covariance is described by two numbers,
#
# $$X \sim \mathcal N(\mu, C), \qquad C_{ij} = \sigma^2 \rho^{|i-j|}, \qquad \sigma > 0,\; -1 < \rho < 1,$$
#
# which is to say: a path that starts at $X_0 = \mu_0 + \sigma\varepsilon_0$ and goes on by
#
# $$X_t - \mu_t = \rho\,(X_{t-1} - \mu_{t-1}) + \sigma\sqrt{1-\rho^2}\;\varepsilon_t, \qquad \varepsilon_t \sim \mathcal N(0, 1).$$
#
# | here | in the ρ-VAE paper ([arXiv:1909.06236](https://arxiv.org/abs/1909.06236), equation 4) | meaning |
# |---|---|---|
# | `loc` | $\mu$ | mean vector, of length $d$ |
# | `marginal_scale` | $\sqrt{s}$ | standard deviation $\sigma$ of every coordinate |
# | `correlation` | $\rho$ | correlation of neighbours |
# | `fisher_z` | $\operatorname{atanh} \rho$ | the same, without bounds: pass this one *or* `correlation` |
#
# This notebook draws it, checks it against two distributions that TFP already has, measures its KL divergences, and fits it to data.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

import time

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogLocator, NullFormatter

import tfp_ar1

tfb, tfd = tfp.bijectors, tfp.distributions

# %% [markdown]
# ## Covariance and paths
#
# One batch of four distributions with $\sigma = 1$, $d = 40$. Above, the upper left corner of each covariance matrix; below, two samples of each.
# A negative ρ makes neighbours alternate, ρ = 0 is white noise, and ρ near 1 gives slow paths. All of them have the same variance everywhere.

# %%
rhos = [-0.8, 0.0, 0.5, 0.95]
four = tfp_ar1.MultivariateNormalAR1(loc=tf.zeros(40), marginal_scale=1.0, correlation=rhos)
covariances = four.covariance()  # [4, 40, 40]
paths = four.sample(2, seed=[0, 1])  # [2, 4, 40]

fig, axes = plt.subplots(2, 4, figsize=(10, 4.6), height_ratios=[1.3, 1])
for i, rho in enumerate(rhos):
    image = axes[0, i].imshow(covariances[i, :20, :20], cmap="RdBu_r", vmin=-1, vmax=1)
    axes[0, i].set(
        title=f"ρ = {rho:g}", xlabel="coordinate j", xticks=[0, 10, 19], yticks=[0, 10, 19]
    )
    axes[1, i].plot(tf.transpose(paths[:, i]), lw=1)
    axes[1, i].set(xlabel="coordinate t", ylim=(-3.5, 3.5))
axes[0, 0].set_ylabel("coordinate i")
axes[1, 0].set_ylabel("X_t  (units of σ)")
fig.colorbar(image, ax=axes[0], label="covariance (σ²)", ticks=[-1, 0, 1])
plt.show()

# %% [markdown]
# ## The samples have that covariance
#
# The covariance of $n$ samples is an estimate: with a known mean of 0, entry $(i, j)$ of it has the standard error $\sqrt{(C_{ii} C_{jj} + C_{ij}^2)/n}$.
# If the sampler is right, the differences measured in standard errors look like noise of size 1, without a pattern that follows the matrix.
# (Neighbouring entries share their errors, hence the blotches.)

# %%
n, d = 5_000, 30
ar1 = tfp_ar1.MultivariateNormalAR1(loc=tf.zeros(d), marginal_scale=1.5, correlation=0.9)
x = ar1.sample(n, seed=[0, 2]).numpy()

exact = ar1.covariance().numpy()
empirical = x.T @ x / n
standard_error = np.sqrt((np.outer(exact.diagonal(), exact.diagonal()) + exact**2) / n)
z = (empirical - exact) / standard_error
print(
    f"cov(X_0, X_1): exact {exact[0, 1]:.4f}, "
    f"from {n} samples {empirical[0, 1]:.4f} ± {standard_error[0, 1]:.4f}"
)
print(
    f"all entries: root mean square of z {np.sqrt(np.mean(z**2)):.2f}, largest |z| {abs(z).max():.2f}"
)
assert abs(z).max() < 5  # 465 different entries

fig, axes = plt.subplots(1, 3, figsize=(10, 2.9))
for ax, matrix, title in [(axes[0], exact, "exact"), (axes[1], empirical, f"of {n:,} samples")]:
    image = ax.imshow(matrix, cmap="Reds", vmin=0, vmax=2.25)
    ax.set_title(title)
fig.colorbar(image, ax=axes[:2], label="covariance")
fig.colorbar(
    axes[2].imshow(z, cmap="PuOr", vmin=-4, vmax=4), ax=axes[2], label="z  (standard errors)"
)
axes[2].set_title("z, their difference")
for ax in axes:
    ax.set(xlabel="coordinate j", xticks=[0, 10, 20], yticks=[0, 10, 20])
axes[0].set_ylabel("coordinate i")
plt.show()

# %% [markdown]
# ## The same density as two distributions that TFP has
#
# With the dense covariance it is a `MultivariateNormalTriL`. And for ρ > 0 it is a Gaussian process with Matérn-½ kernel
# $\sigma^2 e^{-|t-t'|/\ell}$ on the integers, of length scale $\ell = -1/\log\rho$. Both know nothing of this package, and both factorize a $d \times d$ matrix.

# %%
d, sigma, rho = 50, np.float64(1.5), np.float64(0.9)
ar1 = tfp_ar1.MultivariateNormalAR1(np.zeros(d), marginal_scale=sigma, correlation=rho)
lags = abs(np.arange(d)[:, None] - np.arange(d))
dense = tfd.MultivariateNormalTriL(np.zeros(d), np.linalg.cholesky(sigma**2 * rho**lags))
matern = tfp.math.psd_kernels.MaternOneHalf(amplitude=sigma, length_scale=-1 / np.log(rho))
process = tfd.GaussianProcess(
    matern, index_points=np.arange(d, dtype=np.float64)[:, None], jitter=0.0
)

x = ar1.sample(5, seed=[0, 3])
for name, other in {"MultivariateNormalTriL": dense, "GaussianProcess": process}.items():
    np.testing.assert_allclose(ar1.log_prob(x), other.log_prob(x), rtol=1e-10)
    difference = np.max(abs(ar1.log_prob(x) - other.log_prob(x)))
    print(f"log_prob against {name:<23} largest difference of 5: {difference:.0e} nats")


# %% [markdown]
# ## KL to the standard normal, and what it costs
#
# This is the term that a VAE with an AR(1) posterior and the usual $\mathcal N(0, I)$ prior pays (equation 6 of the paper):
#
# $$\mathrm{KL} = \tfrac12\left[\lVert\mu\rVert^2 + d\,(s - 1 - \log s) - (d-1)\log(1-\rho^2)\right].$$
#
# `tfd.kl_divergence` computes it without sampling. The first picture compares it with the plain Monte Carlo estimate, the mean of $\log p(x) - \log q(x)$ over 200 samples.
# The second is the time of one evaluation against $d$ on the machine that ran this notebook, for this distribution and for the same normal as a `MultivariateNormalTriL`,
# whose KL goes through the dense matrix. The flat part is the overhead of a call.


# %%
def standard_normal(d):
    return tfd.MultivariateNormalDiag(loc=tf.zeros(d))


fig, ax = plt.subplots(figsize=(6.5, 3.6))
n, rhos, fine = 200, np.linspace(-0.95, 0.95, 20), np.linspace(-0.96, 0.96, 193)
z = []
for d, color in [(2, "C0"), (10, "C1"), (50, "C2")]:
    p = tfp_ar1.MultivariateNormalAR1(tf.zeros(d), correlation=np.float32(rhos))
    x = p.sample(n, seed=[0, d])
    log_ratio = (p.log_prob(x) - standard_normal(d).log_prob(x)).numpy()  # [200, 20]
    estimate, error = log_ratio.mean(axis=0), log_ratio.std(axis=0, ddof=1) / np.sqrt(n)
    analytic = tfd.kl_divergence(p, standard_normal(d)).numpy()
    z.append((estimate - analytic) / error)
    ax.errorbar(rhos, estimate, 2 * error, fmt=".", color=color, ms=4, lw=1)
    needed = n * (error[-2] / analytic[-2] / 0.01) ** 2
    print(
        f"d = {d:>2}: a standard error of 1% at ρ = {rhos[-2]:.2f} takes about {needed:.0e} samples"
    )
    p = tfp_ar1.MultivariateNormalAR1(tf.zeros(d), correlation=np.float32(fine))
    ax.plot(fine, tfd.kl_divergence(p, standard_normal(d)), color=color, lw=1.2, label=f"d = {d}")
z = np.abs(z)
print(f"{np.sum(z < 2)} of {z.size} estimates lie within 2 standard errors (57 expected),", end=" ")
print(f"all within {z.max():.1f}")
assert z.max() < 5
ax.set(xlabel="correlation ρ", ylabel="KL( AR(1) ‖ N(0, I) )  (nats)")
ax.legend(title="line: analytic\ndots: Monte Carlo ± 2 s.e.")
plt.show()


# %%
def milliseconds(function, repeats=30):
    function()  # traces the graph
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function().numpy()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)  # what else the machine does only adds


fig, ax = plt.subplots(figsize=(6.5, 3.2))
for kind, color, largest in [("AR1", "C3", 20), ("TriL", "0.4", 12)]:
    sizes, times = 2 ** np.arange(4, largest + 1, 2), []
    for d in sizes:
        p, q = tfp_ar1.MultivariateNormalAR1(tf.zeros(d), correlation=0.9), standard_normal(d)
        if kind == "TriL":
            p = tfd.MultivariateNormalTriL(tf.zeros(d), p.scale.to_dense())
        times.append(milliseconds(tf.function(lambda p=p, q=q: tfd.kl_divergence(p, q))))
    ax.loglog(sizes, times, "o-", color=color, label=f"MultivariateNormal{kind}")
ax.set(xlabel="event size d", ylabel="time of one KL, best of 30 (ms)")
ax.yaxis.set_major_locator(LogLocator(subs=[1, 2, 5]))
ax.yaxis.set_major_formatter("{x:g}")
ax.yaxis.set_minor_formatter(NullFormatter())
ax.legend()
plt.show()

# %% [markdown]
# ## KL between two AR(1) normals
#
# Also analytic, and batches broadcast: one call fills the map. Here both have mean 0 and σ = 1, at $d = 10$.
# The map is not symmetric: to describe an uncorrelated $p$ by a strongly correlated $q$ costs more than the other way round.

# %%
grid = np.linspace(-0.95, 0.95, 96, dtype=np.float32)
p = tfp_ar1.MultivariateNormalAR1(tf.zeros(10), correlation=grid[:, None])  # batch [96, 1]
q = tfp_ar1.MultivariateNormalAR1(tf.zeros(10), correlation=grid)  # batch [96]
kl = tfd.kl_divergence(p, q).numpy()  # [96, 96]

a, b = (tfp_ar1.MultivariateNormalAR1(tf.zeros(10), correlation=rho) for rho in (0.0, 0.9))
print(f"KL(ρ = 0 ‖ ρ = 0.9) = {tfd.kl_divergence(a, b):.2f} nats")
print(f"KL(ρ = 0.9 ‖ ρ = 0) = {tfd.kl_divergence(b, a):.2f} nats")

fig, ax = plt.subplots(figsize=(4.6, 3.7))
image = ax.pcolormesh(grid, grid, np.maximum(kl, 0.01), norm=LogNorm(0.01, 100), cmap="viridis")
lines = ax.contour(grid, grid, kl, levels=[0.1, 1, 10], colors="w", linewidths=0.8)
ax.clabel(lines, fmt="%g", fontsize=8)
ticks = [-0.9, -0.5, 0, 0.5, 0.9]
ax.set(xlabel="ρ of q", ylabel="ρ of p", aspect="equal", xticks=ticks, yticks=ticks)
fig.colorbar(image, label="KL( p ‖ q )  (nats)", extend="both")
plt.show()


# %% [markdown]
# ## Close to ρ = 1: `fisher_z`
#
# An optimizer works with an unbounded number $u$ and ρ = tanh $u$. In float32 that tanh rounds to exactly 1 at a moderate $u$, and $\log(1-\rho^2)$ with it becomes $-\infty$.
# `fisher_z=u` never forms $1-\rho^2$ from a rounded ρ, as `logits` never forms $1-p$. All of the following is float32, except for the reference.
# (In the picture of relative errors, the KL itself tends to 0 on the far left.)


# %%
def kl_float32(**parametrization):
    p = tfp_ar1.MultivariateNormalAR1(tf.zeros(10), **parametrization)
    return tfd.kl_divergence(p, standard_normal(10)).numpy()


def kl_reference(u):  # float64, with log(1 - ρ²) = 2 (log 2 - |u| - log(1 + exp(-2|u|)))
    u = abs(np.asarray(u, np.float64))
    return -9 * (np.log(2) - u - np.log1p(np.exp(-2 * u)))


print("   u   1 − tanh u   KL by correlation   KL by fisher_z    float64")
for u in np.float32([1, 4, 7, 8, 10, 20, 40]):
    rho = tf.tanh(u)
    print(
        f"{u:4.0f}   {1 - rho:10.1e}   {kl_float32(correlation=rho):17.4f}"
        f"   {kl_float32(fisher_z=u):14.4f}   {kl_reference(u):8.4f}"
    )

u = tf.Variable(40.0)
with tf.GradientTape() as tape:
    p = tfp_ar1.MultivariateNormalAR1(tf.zeros(10), fisher_z=u)
    kl = tfd.kl_divergence(p, standard_normal(10))
x = p.sample(1000, seed=[0, 4])
finite = np.isfinite(x).all() and np.isfinite(p.log_prob(x)).all()
print(
    f"\nat u = 40: d KL / du = {tape.gradient(kl, u):.1f} (float64: {9 * np.tanh(40):.1f});",
    end=" ",
)
print(f"1000 samples and their log_prob all finite: {finite}")
assert finite

# %%
us = np.linspace(0.05, 12, 400, dtype=np.float32)
saturated = us[np.argmax(tf.tanh(us) == 1)]
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2))
for ax in (left, right):
    ax.axvspan(saturated, us[-1], color="0.93", lw=0)
    ax.set_xlabel("u = atanh ρ")
for name, kl, color in [
    ("correlation=tanh(u)", kl_float32(correlation=tf.tanh(us)), "C1"),
    ("fisher_z=u", kl_float32(fisher_z=us), "C0"),
]:
    left.plot(us, kl, color=color, lw=4 if color == "C1" else 1.2, label=name)
    error = np.where(np.isfinite(kl), abs(kl / kl_reference(us) - 1), np.nan)
    right.semilogy(us, error, ".", color=color, ms=3, label=name)
left.set(
    ylabel="KL( AR(1) ‖ N(0, I) )  (nats)",
    title=f"shaded: tanh(u) is 1 in float32 (u > {saturated:.1f})",
)
right.set(
    ylabel="relative error of the KL",
    title="the same values, where finite, against float64",
    ylim=(1e-10, 1),
)
left.legend(loc="upper left")
plt.show()

# %% [markdown]
# ## A fit by gradient descent
#
# From 2,000 sampled vectors we recover `marginal_scale` and `fisher_z`. Variables go straight into the distribution, which reads them anew at each call; `TransformedVariable` keeps the scale positive.
# It ends where the likelihood does not rise any more; the standard errors come from the curvature of the log-likelihood at the optimum, by a second derivative through `log_prob`.

# %%
d, sigma, u = 16, 1.7, 1.1
data = tfp_ar1.MultivariateNormalAR1(tf.zeros(d), sigma, fisher_z=u).sample(2000, seed=[0, 7])

scale = tfp.util.TransformedVariable(0.5, tfb.Exp(), name="scale")
fisher_z = tf.Variable(-0.5, name="fisher_z")
model = tfp_ar1.MultivariateNormalAR1(tf.zeros(d), scale, fisher_z=fisher_z)
# The gradient is much larger at the start than later; beta_2 = 0.99 makes Adam forget that sooner.
optimizer = keras.optimizers.Adam(learning_rate=0.1, beta_2=0.99)
optimizer.build(model.trainable_variables)


@tf.function
def train_step():
    with tf.GradientTape() as tape:
        loss = -tf.reduce_mean(model.log_prob(data))
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))


track = []
for _ in range(300):
    train_step()
    track.append(tf.stack([scale, fisher_z]).numpy())
track = np.array(track)

fitted = tf.stack([scale, fisher_z])
with tf.GradientTape() as outer:
    outer.watch(fitted)
    with tf.GradientTape() as inner:
        inner.watch(fitted)
        at = tfp_ar1.MultivariateNormalAR1(tf.zeros(d), fitted[0], fisher_z=fitted[1])
        total = -tf.reduce_sum(at.log_prob(data))
    gradient = inner.gradient(total, fitted)
inverse_curvature = np.linalg.inv(outer.jacobian(gradient, fitted))
error = np.sqrt(np.diag(inverse_curvature))
newton_step = inverse_curvature @ gradient.numpy()
assert np.all(abs(newton_step) < 0.1 * error)  # it has converged
names = ["marginal_scale", "fisher_z"]
for name, value, se, truth in zip(names, fitted.numpy(), error, [sigma, u], strict=True):
    print(f"{name:<14} fitted {value:.4f} ± {se:.4f}, truth {truth}")
    assert abs(value - truth) < 4 * se

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
scales, zs = np.linspace(0.4, 3, 40, dtype=np.float32), np.linspace(-0.8, 1.8, 40, dtype=np.float32)
surface = tfp_ar1.MultivariateNormalAR1(tf.zeros(d), scales, fisher_z=zs[:, None])
loss_surface = -tf.reduce_mean(surface.log_prob(data[:200, None, None]), axis=0)
lines = left.contour(
    scales, zs, loss_surface, levels=[24, 26, 30, 40, 60, 100, 200], cmap="Greys_r", linewidths=0.8
)
left.clabel(lines, levels=[24, 26, 30], fontsize=7)
left.plot(track[:, 0], track[:, 1], ".-", color="C0", ms=3, lw=1, label="Adam, 300 steps")
left.plot(sigma, u, "x", color="C3", ms=9, mew=2, label="truth")
left.set(
    xlabel="marginal_scale σ",
    ylabel="fisher_z",
    title="−mean log_prob (nats), from 200 of the vectors",
)
left.legend(loc="lower right", framealpha=1)
for column, name, truth, color in [(0, "marginal_scale", sigma, "C0"), (1, "fisher_z", u, "C2")]:
    right.plot(track[:, column], color=color, label=name)
    right.axhline(truth, color=color, ls=":", lw=1)
right.set(xlabel="step", ylabel="parameter", title="fitted to all 2,000 vectors; dotted: truth")
right.legend()
plt.show()

# %% [markdown]
# ## A drop-in prior for smooth signals
#
# A signal of 120 steps, observed in noise. In a joint distribution the AR(1) normal takes the place of any other prior over vectors.
# Both parts are normal, so the posterior mean is known, $C\,(C + \tau^2 I)^{-1} y$ with $\tau$ = `noise`; it is where the gradient of the joint `log_prob` vanishes, which the cell checks.
# The truth is drawn from the prior itself: the comparison shows what the right ρ is worth, not how to find it.

# %%
d, noise = 120, np.float64(0.7)


def model_with(rho):
    prior = tfp_ar1.MultivariateNormalAR1(np.zeros(d), np.float64(1.0), correlation=np.float64(rho))
    return tfd.JointDistributionSequential(
        [prior, lambda signal: tfd.Independent(tfd.Normal(signal, noise), 1)]
    )


def rms(x):
    return np.sqrt(np.mean(x**2))


def posterior(rho, y):
    covariance = model_with(rho).model[0].covariance().numpy()
    gain = covariance @ np.linalg.inv(covariance + noise**2 * np.eye(d))
    return gain @ y, np.sqrt(np.diag(covariance - gain @ covariance))


truth, y = (part.numpy() for part in model_with(0.97).sample(seed=[0, 8]))
fig, ax = plt.subplots(figsize=(10, 3.2))
ax.plot(y, ".", color="0.6", label="observed")
ax.plot(truth, "k", lw=1, label="truth")
print(f"root mean square error of the observations {rms(y - truth):.2f}")
for rho, color in [(0.0, "C1"), (0.97, "C0")]:
    mean, sd = posterior(rho, y)
    joint = model_with(rho)
    _, gradient = tfp.math.value_and_gradient(
        lambda x, joint=joint: joint.log_prob([x, y]), tf.constant(mean)
    )
    assert np.max(abs(gradient)) < 1e-8
    print(f"... of the posterior mean with ρ = {rho:<4g}   {rms(mean - truth):.2f}")
    ax.plot(mean, color=color, lw=1.5, label=f"posterior mean, prior ρ = {rho:g}")
ax.fill_between(
    range(d), mean - 2 * sd, mean + 2 * sd, color=color, alpha=0.2, lw=0, label="± 2 posterior sd"
)
ax.set(xlabel="time step", ylabel="signal  (units of the prior σ)")
ax.legend(ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
plt.show()

# %% [markdown]
# # A ρ-VAE of images, from start to end
#
# *To open this as a notebook: `jupytext --to ipynb notebooks/images.py`, or JupyterLab with jupytext installed.*
#
# A variational autoencoder describes each image by a small latent vector $z$, and by a posterior $q(z \mid x)$ that says how sure it is of it. The usual posterior is diagonal: a mean and a variance for each of the $d$ coordinates.
# The ρ-VAE ([arXiv:1909.06236](https://arxiv.org/abs/1909.06236)) gives all coordinates one variance, and neighbours one correlation ρ: two numbers for the covariance, whatever $d$ is.
#
# We train both on scikit-learn's digits, look at what they make, and ask the question that matters: does it fit better? The answer is no, and [larger experiments](../docs/results/results.md) say the same.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from scipy import stats
from sklearn.datasets import load_digits

import tfp_ar1
from tfp_ar1.vae import architectures, evaluation

tf.get_logger().setLevel("ERROR")  # that functions are traced for each model is as it must be
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.55"
COLORS = {"diag": BLUE, "ar1": ORANGE}

# %% [markdown]
# ## The data
#
# 1,797 images of 8 × 8 pixels between 0 and 1. A pixel is taken for the probability that it is on, as is the custom with such images. The last 297 are for testing.

# %%
digits = load_digits()
images, labels = (digits.images / 16).astype(np.float32), digits.target
x_train, x_test, labels_test = images[:1500], images[1500:], labels[1500:]


def show(ax, x, columns=10):
    """Images as one picture, row by row."""
    framed = np.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=0.3)
    rows = framed.reshape(-1, columns, 10, 10).transpose(0, 2, 1, 3)
    ax.imshow(rows.reshape(-1, 10 * columns), vmin=0, vmax=1)
    ax.axis("off")


fig, ax = plt.subplots(figsize=(5, 1.2))
show(ax, x_train[:20])
plt.show()

# %% [markdown]
# ## Two models, three seeds
#
# Everything but `posterior` is the same: networks, optimizer, seed, number of epochs. Ten latent coordinates: ten variances for `"diag"`, one variance and one ρ for `"ar1"`. Both start with the same weights, and the KL to the prior N(0, I) is exact for both.

# %%
num_epochs, seeds = 100, (0, 1, 2)


def train(posterior, seed):
    keras.utils.set_random_seed(seed)
    encoder, decoder = architectures.mlp((8, 8), latent_dim=10, hidden_units=(128,))
    vae = tfp_ar1.RhoVAE(encoder, decoder, latent_dim=10, posterior=posterior, seed=seed)
    vae.compile(optimizer=keras.optimizers.Adam(2e-3))
    data = {"x": x_train, "validation_data": (x_test,), "batch_size": 128}
    history = vae.fit(**data, epochs=num_epochs, verbose=0).history
    return vae, np.add(history["val_reconstruction"], history["val_kl"])


models = {posterior: [train(posterior, seed) for seed in seeds] for posterior in COLORS}

# %%
fig, ax = plt.subplots(figsize=(6.5, 3.2))
for posterior, runs in models.items():
    for seed, (_, curve) in zip(seeds, runs, strict=True):
        label = posterior if seed == 0 else None
        ax.plot(1 + np.arange(num_epochs), curve, color=COLORS[posterior], lw=0.8, label=label)
limits = min(curve) - 0.2, curve[9]  # the fall of the first epochs would flatten the rest
ax.set(xlabel="epoch", ylabel="test −ELBO  (nats per image)", ylim=limits)
ax.legend(title="posterior")
plt.show()

# %% [markdown]
# ## Which fits better?
#
# The −ELBO is what was minimized; lower is better. `nll_iw` is an estimate of $-\log p(x)$ with 200 draws of each posterior, and does not ask how good the posterior is. The differences are taken seed by seed; three seeds give a wide interval, and that is part of the answer.

# %%
figures = {
    posterior: [evaluation.evaluate(vae, x_test, num_importance_samples=200) for vae, _ in runs]
    for posterior, runs in models.items()
}
for name in ("neg_elbo", "nll_iw", "reconstruction", "kl"):
    diag, ar1 = (np.array([run[name] for run in figures[p]]) for p in ("diag", "ar1"))
    half = stats.t.ppf(0.975, len(seeds) - 1) * stats.sem(ar1 - diag)
    difference = f"{np.mean(ar1 - diag):+.2f} ± {half:.2f} (95%)"
    print(f"{name:15} diag {diag.mean():.2f}   ar1 {ar1.mean():.2f}   ar1 − diag {difference}")

# %% [markdown]
# Here `"diag"` has the lower −ELBO, by two tenths of a nat; by the estimate of $-\log p(x)$ three seeds do not tell the two apart. An image has no axis along which ten abstract numbers would have an order, so a correlation of neighbours has nothing to hold on to. What one variance for all costs is seen on larger data: half a nat at $d = 10$ on MNIST and Fashion-MNIST with five seeds, eight nats at $d = 50$. Take `"ar1"` on images to save parameters, not for the fit. Along *time* it is another matter: see [sequences.py](sequences.py).
#
# ## What the models make
#
# Test images, their reconstructions, and new images from the prior.

# %%
fig, axes = plt.subplots(2, 3, figsize=(10, 2.6))
for row, (posterior, runs) in zip(axes, models.items(), strict=True):
    vae, _ = runs[0]
    parts = {
        "test images": x_test[:20],
        f"{posterior}: reconstructed": vae.reconstruct(x_test[:20]).numpy(),
        f"{posterior}: new": vae.generate(20, seed=1).numpy(),
    }
    for ax, (title, x) in zip(row, parts.items(), strict=True):
        show(ax, x)
        ax.set_title(title)
plt.show()

# %% [markdown]
# ## The ρ that was learned
#
# The encoder gives each image a ρ of its own, and in each training they gather around one value: the decoder has arranged its coordinates so that the posterior can use the one number that it has. Its sign says nothing. Turn the sign of every other coordinate, in encoder and decoder, and ρ turns its own, while the model stays the same.

# %%
fig, axes = plt.subplots(1, len(seeds), figsize=(10, 2.4), sharey=True)
for ax, seed, (vae, _) in zip(axes, seeds, models["ar1"], strict=True):
    rho = vae.correlation(x_test)
    ax.hist(rho, bins=np.linspace(-1, 1, 41), color=ORANGE)
    ax.axvline(0, color=GREY, lw=0.8)
    ax.set(title=f"seed {seed}: mean {rho.mean():+.2f}", xlabel="ρ of a test image")
axes[0].set_ylabel("images")
plt.show()

by_digit = [rho[labels_test == digit].mean() for digit in range(10)]
print(
    "the last seed, mean ρ by digit:", "  ".join(f"{i}: {r:+.2f}" for i, r in enumerate(by_digit))
)

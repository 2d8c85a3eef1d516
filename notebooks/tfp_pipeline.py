# %% [markdown]
# # Our layer in a VAE of TFP's probabilistic layers
#
# *To open this as a notebook: `jupytext --to ipynb notebooks/tfp_pipeline.py`, or JupyterLab with jupytext installed.*
#
# `tfp.layers` builds a VAE of layers that return distributions. These layers are tf_keras, the Keras 2 that TensorFlow Probability works with. `tfp_ar1.tfpl` has layers of the same kind, so that a pipeline that exists changes in two lines: the layer, and the number of units before it.
#
# Here one such VAE, of binarized digits, is trained with five posteriors, two of TFP's and three of ours. What is asked: how many parameters does each need, and what does that cost or buy?

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras
from sklearn.datasets import load_digits

import tfp_ar1.tfpl

tfd, tfpl, layers = tfp.distributions, tfp.layers, tf_keras.layers
x = (load_digits().images[..., np.newaxis] > 8).astype(np.float32)  # [1797, 8, 8, 1]
x_train, x_test = x[:1500], x[1500:]
size = 10
# N(0, I). Written as one of ours, it has an exact KL from all five posteriors.
prior = tfp_ar1.MultivariateNormalAR1(tf.zeros(size), correlation=0.0)

# %% [markdown]
# ## The pipeline
#
# Encoder, posterior, KL, decoder, likelihood. `posterior` is the layer class, TFP's or ours; nothing else depends on it. `KLDivergenceAddLoss` is ours for all five: it adds the exact KL, averaged over the batch. (TFP's sums over the batch, its `KLDivergenceRegularizer` counts the KL twice, by [issue 1215](https://github.com/tensorflow/probability/issues/1215), and both estimate it from one sample.)

# %%
POSTERIORS = {
    "TFP: independent": tfpl.IndependentNormal,
    "TFP: any covariance": tfpl.MultivariateNormalTriL,
    "AR(1)": tfp_ar1.tfpl.MultivariateNormalAR1,
    "ARH(1)": tfp_ar1.tfpl.MultivariateNormalARH1,
    "ANTE(1)": tfp_ar1.tfpl.MultivariateNormalANTE1,
}


def make_vae(posterior):
    encoder = tf_keras.Sequential(
        [
            layers.InputLayer(input_shape=x.shape[1:]),
            layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(posterior.params_size(size)),
            posterior(size),
            tfp_ar1.tfpl.KLDivergenceAddLoss(prior),
        ]
    )
    decoder = tf_keras.Sequential(
        [
            layers.InputLayer(input_shape=(size,)),
            layers.Dense(4 * 4 * 32, activation="relu"),
            layers.Reshape((4, 4, 32)),
            layers.Conv2DTranspose(1, 3, strides=2, padding="same"),
            layers.Flatten(),
            tfpl.IndependentBernoulli(x.shape[1:], tfd.Bernoulli.logits),
        ]
    )
    vae = tf_keras.Model(encoder.inputs, decoder(encoder.outputs[0]))
    vae.compile(tf_keras.optimizers.Adam(2e-3), loss=lambda x, rv_x: -rv_x.log_prob(x))
    return encoder, decoder, vae


curves, encoders, decoders = {}, {}, {}
for name, posterior in POSTERIORS.items():
    tf_keras.utils.set_random_seed(0)
    encoders[name], decoders[name], vae = make_vae(posterior)
    data = {"x": x_train, "y": x_train, "validation_data": (x_test, x_test), "batch_size": 64}
    history = vae.fit(**data, epochs=60, verbose=0).history
    curves[name] = history["val_loss"]  # the KL is a loss of the encoder, and so a part of it

# %% [markdown]
# ## What came of it
#
# The test −ELBO, with 50 draws for the reconstruction and the exact KL, in nats per image. One seed: differences of a few tenths say nothing. (On large image data and with five seeds, AR(1) costs half a nat against independent coordinates: [the numbers](../docs/results/results.md).)

# %%
for name, posterior in POSTERIORS.items():
    q = encoders[name](x_test)
    z = q.sample(50, seed=1)  # [50, 297, 10]
    likelihood = decoders[name](tf.reshape(z, [-1, size]))
    log_prob = likelihood.log_prob(tf.tile(x_test, [50, 1, 1, 1]))
    neg_elbo = np.mean(tfd.kl_divergence(q, prior)) - np.mean(log_prob)
    covariance = posterior.params_size(size) - size
    print(f"{name:20} {covariance:3} numbers for the covariance   test −ELBO {neg_elbo:.2f}")

# %%
fig, ax = plt.subplots(figsize=(6.5, 3.2))
for name, curve in curves.items():
    ax.plot(1 + np.arange(len(curve)), curve, lw=1, label=name)
limits = min(min(curve) for curve in curves.values()) - 0.2, curve[5]
ax.set(xlabel="epoch", ylabel="test −ELBO, one draw  (nats)", ylim=limits)
ax.legend()
plt.show()

# %% [markdown]
# ## It is a distribution, as before
#
# What a layer returns is a `tfd.Distribution` and can be sampled, or asked for its covariance. Here the correlations of the posterior of one test image under each model: AR(1) has one number for all neighbours, ANTE(1) one for each pair of neighbours, and only TriL all pairs.

# %%
fig, axes = plt.subplots(1, len(POSTERIORS), figsize=(10, 2.4), sharey=True)
for ax, (name, encoder) in zip(axes, encoders.items(), strict=True):
    q = encoder(x_test[:1])
    z = q.sample(20_000, seed=2).numpy()[:, 0]  # IndependentNormal has no `covariance`
    drawn = ax.imshow(np.corrcoef(z.T), cmap="RdBu_r", vmin=-1, vmax=1)
    ax.set(title=name, xlabel="coordinate", xticks=[0, 9], yticks=[0, 9])
fig.colorbar(drawn, ax=axes, label="correlation", ticks=[-1, 0, 1])
plt.show()

# %% [markdown]
# The encoder, with its KL in it, is saved and loaded without pickles:

# %%
encoders["AR(1)"].save("encoder.keras")
loaded = tf_keras.models.load_model("encoder.keras")
np.testing.assert_allclose(loaded(x_test).mean(), encoders["AR(1)"](x_test).mean(), rtol=1e-5)
print(type(loaded(x_test).tensor_distribution).__name__, "with the same means as before")

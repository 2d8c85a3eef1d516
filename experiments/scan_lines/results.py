"""What is compared; knows nothing of JAX, for those who only read results."""

# A posterior over the paths, and a prior: N(0, I), or AR(1) with a learned correlation per channel.
METHODS = (
    *("diag/normal", "ar1/normal", "ante1/normal"),
    *("diag/ar1", "ar1/ar1", "ante1/ar1", "sites/ar1"),
)
# The latents of how many lines on either side a decoder sees, besides those of the line itself.
DECODERS = {"line": 0, "window": 3}
# Of the lines of the images: as they are, or in another order, the same for all images.
ORDERS = ("real", "shuffled")
# What tells one run from another; a line of results holds all of them.
SETTINGS = ("method", "seed", "decoder", "order", "epochs", "num_train", "num_test")

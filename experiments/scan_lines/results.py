"""The compared models; imports no JAX, for code that only reads results."""

# Posterior and prior over the paths: N(0, I), or AR(1) with a learned correlation per channel.
METHODS = (
    *("diag/normal", "ar1/normal", "ante1/normal"),
    *("diag/ar1", "ar1/ar1", "ante1/ar1", "sites/ar1"),
)
# The number of neighbouring lines on either side whose latents a decoder sees too.
DECODERS = {"line": 0, "window": 3}
# Orders of the lines: as in the images, or permuted in the same way for all images.
ORDERS = ("real", "shuffled")
# The settings that identify a run; every line of results has all of them.
SETTINGS = ("method", "seed", "decoder", "order", "epochs", "num_train", "num_test")

"""The choices of the options, and what they mean; model cards use the same words."""

LIKELIHOODS = {
    "bernoulli": "Bernoulli, independent for each value; values between 0 and 1 count as "
    "probabilities",
    "gaussian": "Gaussian, independent for each value, with one standard deviation, learned",
}
OBJECTIVES = {
    "elbo": "negative evidence lower bound, the KL multiplied by beta",
    "infovae": "InfoVAE with the maximum mean discrepancy (arXiv:1706.02262)",
    "iwae": "importance-weighted bound (arXiv:1509.00519)",
}
POSTERIORS = {
    "ar1": "AR(1): one scale and one correlation of neighbouring coordinates",
    "diag": "diagonal: a scale for each coordinate, no correlation",
    "isotropic": "isotropic: one scale, no correlation",
    "full": "any covariance, by its Cholesky factor",
    "arh1": "a scale for each coordinate, and one correlation of neighbours",
    "ante1": "a scale for each coordinate, and a correlation for each pair of neighbours",
    "sites": "a Gaussian factor at each step where something was observed, connected by the prior",
}
POSTERIOR_HELP = (
    "Covariance of the posterior q(z | x): with correlations of neighbouring latents (ar1, "
    "arh1, ante1), of all latents (full), or none (diag, isotropic). Sequences: also with the "
    "correlations of the prior (sites)."
)
# The networks of each model.
NETWORKS = {
    "image": {
        "mlp": "multilayer perceptrons; the decoder mirrors the encoder",
        "cnn": "convolutional networks",
        "dcgan": "convolutional networks in the style of DCGAN",
    },
    "sequence": {
        "convolutional": "an encoder of dilated convolutions over time, a decoder of single steps",
        "recurrent": "a recurrent encoder, a decoder of single steps",
    },
}
# The options that say how large a network is.
SIZES = {
    "mlp": ("hidden_units",),
    "cnn": ("filters",),
    "dcgan": ("filters",),
    "convolutional": ("filters", "hidden_units"),
    "recurrent": ("units", "hidden_units"),
}
POSTERIORS_OF = {
    "image": tuple(name for name in POSTERIORS if name != "sites"),
    "sequence": tuple(name for name in POSTERIORS if name != "full"),
}
PRIORS = ("ar1", "normal")
STRATEGIES = ("none", "mirrored", "multiworker")
MODELS = tuple(NETWORKS)
SPLITS = {
    "stable": "one of every five in a row, so appending examples later does not move earlier ones "
    "between the sets",
    "shuffled": "20% of all, drawn anew when their number changes",
}

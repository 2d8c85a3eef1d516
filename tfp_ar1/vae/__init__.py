"""The ρ-VAE and the sequence VAE: models, objectives, posteriors, likelihoods, architectures."""

from tfp_ar1.vae import (
    architectures,
    evaluation,
    likelihoods,
    objectives,
    posteriors,
    sequence_networks,
)
from tfp_ar1.vae.rho_vae import RhoVAE
from tfp_ar1.vae.sequence_vae import SequenceVAE

__all__ = [
    "RhoVAE",
    "SequenceVAE",
    "architectures",
    "evaluation",
    "likelihoods",
    "objectives",
    "posteriors",
    "sequence_networks",
]

"""The ρ-VAE: model, objectives, posteriors, likelihoods, architectures and evaluation."""

from tfp_ar1.vae import architectures, evaluation, likelihoods, objectives, posteriors
from tfp_ar1.vae.model import RhoVAE

__all__ = ["RhoVAE", "architectures", "evaluation", "likelihoods", "objectives", "posteriors"]

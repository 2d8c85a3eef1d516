"""The members of the family by name: everything that offers a choice of them reads it here."""

from __future__ import annotations

from tfp_ar1.distributions.gaussian_markov_chain import GaussianMarkovChain
from tfp_ar1.distributions.mvn_ante1 import MultivariateNormalANTE1
from tfp_ar1.distributions.mvn_ar1 import MultivariateNormalAR1
from tfp_ar1.distributions.mvn_arh1 import MultivariateNormalARH1

__all__ = ["PACKED"]

# The members that a network's output can choose, in the order in which they are offered.
PACKED: dict[str, type[GaussianMarkovChain]] = {
    "ar1": MultivariateNormalAR1,
    "arh1": MultivariateNormalARH1,
    "ante1": MultivariateNormalANTE1,
}

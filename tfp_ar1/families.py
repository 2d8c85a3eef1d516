"""The members of the family by name: everything that offers a choice of them reads it here."""

from __future__ import annotations

from tfp_ar1._backend import register_earlier_name
from tfp_ar1.distributions.gaussian_markov_chain import GaussianMarkovChain
from tfp_ar1.distributions.mvn_ante1 import MultivariateNormalANTE1
from tfp_ar1.distributions.mvn_ar1 import MultivariateNormalAR1
from tfp_ar1.distributions.mvn_arh1 import MultivariateNormalARH1
from tfp_ar1.distributions.mvn_ou import MultivariateNormalOU
from tfp_ar1.linear_operators.markov_cholesky import LinearOperatorMarkovCholesky

__all__ = ["NEEDS_DATA", "PACKED", "members"]

# The members that a network's output can choose, in the order in which they are offered.
PACKED: dict[str, type[GaussianMarkovChain]] = {
    "ar1": MultivariateNormalAR1,
    "arh1": MultivariateNormalARH1,
    "ante1": MultivariateNormalANTE1,
}
# Those with parameters that no network gives, such as times.
NEEDS_DATA: dict[str, type[GaussianMarkovChain]] = {"ou": MultivariateNormalOU}


def members() -> tuple[type[GaussianMarkovChain], ...]:
    """All classes of the family."""
    return (*PACKED.values(), *NEEDS_DATA.values())


for _name in ("ARH1", "ANTE1", "OU"):
    register_earlier_name(
        f"LinearOperator{_name}Cholesky", LinearOperatorMarkovCholesky, per_step=_name == "ANTE1"
    )

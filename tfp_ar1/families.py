"""Registry of the members of the family, by name."""

from __future__ import annotations

from tfp_ar1._backend import register_earlier_name
from tfp_ar1.distributions.gaussian_markov_chain import GaussianMarkovChain
from tfp_ar1.distributions.mvn_ante1 import MultivariateNormalANTE1
from tfp_ar1.distributions.mvn_ar1 import MultivariateNormalAR1
from tfp_ar1.distributions.mvn_arh1 import MultivariateNormalARH1
from tfp_ar1.distributions.mvn_ou import MultivariateNormalOU
from tfp_ar1.linear_operators.markov_cholesky import LinearOperatorMarkovCholesky

__all__ = ["NEEDS_DATA", "PACKED", "members"]

# The members with packed parameters, for networks, in the order in which choices list them.
PACKED: dict[str, type[GaussianMarkovChain]] = {
    "ar1": MultivariateNormalAR1,
    "arh1": MultivariateNormalARH1,
    "ante1": MultivariateNormalANTE1,
}
# The members with parameters that are data, such as times.
NEEDS_DATA: dict[str, type[GaussianMarkovChain]] = {"ou": MultivariateNormalOU}


def members() -> tuple[type[GaussianMarkovChain], ...]:
    """Returns all classes of the family."""
    return (*PACKED.values(), *NEEDS_DATA.values())


for _name in ("ARH1", "ANTE1", "OU"):
    register_earlier_name(
        f"LinearOperator{_name}Cholesky", LinearOperatorMarkovCholesky, per_step=_name == "ANTE1"
    )

"""The reference of the site has every public name; `make docs` checks that each can be found."""

import importlib
import re
import types

import pytest
from test_docs import ROOT

import tfp_ar1

MODULES = {
    "tfp_ar1": "families inference layers params priors sts tfpl vae",
    "tfp_ar1.distributions": "kl",
    "tfp_ar1.vae": "architectures evaluation likelihoods objectives posteriors sequence_evaluation "
    "sequence_networks",
}
NAMES = [f"tfp_ar1.{name}" for name in tfp_ar1.__all__ if name[0].isupper()] + sorted(
    f"{module.__name__}.{name}"
    for package, parts in MODULES.items()
    for module in (importlib.import_module(f"{package}.{part}") for part in parts.split())
    for name in module.__all__
    if not isinstance(getattr(module, name), types.ModuleType)
)
PAGES = "\n".join(
    path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs" / "reference").glob("*.md"))
)
# What a page shows, whole modules among it; and what it names, for layers that are made when run.
SHOWN = set(re.findall(r"^::: (tfp_ar1[\w.]*)$", PAGES, flags=re.MULTILINE))
NAMED = set(re.findall(r"`(tfp_ar1[\w.]*)`", PAGES))


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_on_a_page(name):
    module, _, own = name.rpartition(".")
    is_layer = module in ("tfp_ar1.layers", "tfp_ar1.tfpl")
    elsewhere = f"tfp_ar1.vae.{own}"  # RhoVAE and SequenceVAE, which `tfp_ar1` has too
    assert {name, module, elsewhere} & SHOWN or (is_layer and name in NAMED)

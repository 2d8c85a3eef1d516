"""The modules of `tfp_ar1` that this package has of its own, as they are there: see `_rewrite`."""

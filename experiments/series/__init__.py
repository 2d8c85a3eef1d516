"""Causes of the errors of `SequenceVAE` on series: variants, and measures to compare them."""

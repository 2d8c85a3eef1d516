"""Speed and memory of `tfp_ar1` and its alternatives: `python -m benchmarks`."""

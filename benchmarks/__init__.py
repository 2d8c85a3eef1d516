"""Speed and memory of `tfp_ar1` beside what one would use instead: `python -m benchmarks`."""

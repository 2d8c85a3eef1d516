"""Healing MNIST, the benchmark of GP-VAE (Fortuin et al., 2020, arXiv:1907.04155), on JAX.

Runs without TensorFlow, on NumPy, SciPy, scikit-learn, JAX and Optax. No code is taken from
github.com/ratschlab/GP-VAE: its networks, posterior and kernels are built from their description.
"""

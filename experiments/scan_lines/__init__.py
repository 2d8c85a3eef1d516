"""Latent paths along the lines of MNIST images, on JAX: does AR(1) pay if the order is real?

Needs the same packages as `experiments.healing`, and no TensorFlow.
"""

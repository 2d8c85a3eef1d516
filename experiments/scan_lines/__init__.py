"""Latent paths along the lines of images of MNIST, on JAX: does AR(1) pay where the order is real?

With what `experiments.healing` runs on, without TensorFlow.
"""

"""MNIST images in black and white, and the order of their lines."""

import pathlib

import numpy as np

from experiments.healing.data import SIDE, read


def load(folder: pathlib.Path, num_train: int, num_test: int) -> tuple[np.ndarray, np.ndarray]:
    """The first training and test images, bool `[N, SIDE, SIDE]`, true for white."""
    train, test = (
        read(folder / f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, SIDE, SIDE)[:number] > 127
        for part, number in (("train", num_train), ("t10k", num_test))
    )
    return train, test


def order_of(name: str) -> np.ndarray:
    """The order of the lines: `real`, or `shuffled` in the same way for all images."""
    lines = np.arange(SIDE)
    return lines if name == "real" else np.random.default_rng(0).permutation(lines)

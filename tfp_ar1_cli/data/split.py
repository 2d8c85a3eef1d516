"""Which examples train a model, and which are set apart."""

import numpy as np

SHARE = 0.2
_ROW = 5


def stable(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `count` examples are for training, and which for testing: one of every five.

    Which of the five, is drawn with a fixed seed, for each five by itself. So an example that is
    appended moves no other one from one part to the other.
    """
    fives = -(-count // _ROW)
    place = np.floor(_ROW * np.random.default_rng(0).random(fives)).astype(int)
    place[:1] = 1  # So that two examples are enough for both parts.
    tested = np.arange(fives) * _ROW + place
    is_test = np.zeros(fives * _ROW, bool)
    is_test[tested] = True
    return np.flatnonzero(~is_test[:count]), np.flatnonzero(is_test[:count])


def shuffled(
    count: int, share: float = SHARE, most: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Which of `count` examples are for training, and which share, at most `most`, is apart."""
    # The seed is fixed, so that runs with different --seed are compared on the same test images.
    order = np.random.default_rng(0).permutation(count)
    number = min(max(1, round(share * count)), most or count)
    return order[number:], order[:number]

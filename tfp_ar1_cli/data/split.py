"""Splits examples into training and test or validation sets."""

import numpy as np

SHARE = 0.2
_ROW = 5


def stable(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and test examples among `count`: one test example in every five.

    Its place is drawn for each five separately, with a fixed seed, so appending examples moves
    none between the parts.
    """
    fives = -(-count // _ROW)
    place = np.floor(_ROW * np.random.default_rng(0).random(fives)).astype(int)
    place[:1] = 1  # Two examples suffice for both parts.
    tested = np.arange(fives) * _ROW + place
    is_test = np.zeros(fives * _ROW, bool)
    is_test[tested] = True
    return np.flatnonzero(~is_test[:count]), np.flatnonzero(is_test[:count])


def shuffled(
    count: int, share: float = SHARE, most: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training examples among `count`, and of a share, at most `most`, set apart."""
    # The seed is fixed, so runs with different --seed are compared on the same test images.
    order = np.random.default_rng(0).permutation(count)
    number = min(max(1, round(share * count)), most or count)
    return order[number:], order[:number]

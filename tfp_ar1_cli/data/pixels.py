"""What images must be wherever they come from, what they are scaled to, and how they are split."""

from collections.abc import Sequence

import numpy as np

from tfp_ar1_cli.errors import UserError

# Bytes whose greatest is not above this are darker than a quarter of white.
DARK = 63
_CHANNELS = (1, 3, 4)
_MOST_COMPARED = 10**6


def check_array(shape: tuple[int, ...], dtype: np.dtype, what: str, at_least: int = 2) -> None:
    """Checks that an array can hold images.

    Args:
      shape: Its shape, which must be `[N, H, W]`, `[N, H, W, C]` or `[N, D]`.
      dtype: Its type, which must be one of real numbers.
      what: What the array is, for the errors.
      at_least: How many images are needed.

    Raises:
      UserError: If it cannot.
    """
    if dtype.kind not in "buif":
        raise UserError(
            f"{what} has dtype {dtype}; images must be uint8 (0 to 255) or floating-point."
        )
    if len(shape) not in (2, 3, 4):
        raise UserError(f"{what} has shape {shape}; expected [N, H, W], [N, H, W, C] or [N, D].")
    if shape[0] < at_least:
        number = f"{at_least} image{'s are' if at_least > 1 else ' is'}"
        raise UserError(f"{what} has shape {shape}; at least {number} needed.")
    if 0 in shape:
        raise UserError(f"{what} has shape {shape}; images must have at least 1 pixel.")
    if len(shape) == 4 and shape[1] in _CHANNELS and shape[3] > max(_CHANNELS):
        raise UserError(
            f"{what} has shape {shape}, which looks like [N, C, H, W]; channels come last: store "
            "numpy.moveaxis(x, 1, -1)."
        )


def is_binary(arrays: Sequence[np.ndarray]) -> bool:
    """Whether the bytes among these arrays are 0 and 1: then 1 is white, not 255."""
    return max((x.max(initial=0) for x in arrays if x.dtype == np.uint8), default=0) == 1


def of_bytes(white: int, greatest: int) -> list[str]:
    """What the user should know about how images of bytes are read, if there is something.

    Args:
      white: The byte that became 1: 255, or 1.
      greatest: The greatest byte in them.
    """
    if white == 1:
        return ["The images are bytes of 0 and 1 alone, which are taken as they are."]
    if 0 < greatest <= DARK:
        return [
            f"The images are bytes of at most {greatest}, which are divided by 255; if "
            f"{greatest} is white, scale them to 255 and store them again."
        ]
    return []


def to_float32(array: np.ndarray, white: int = 255) -> np.ndarray:
    """Images as the models take them: bytes divided by `white`, other numbers as they are."""
    if array.dtype == np.uint8:
        return array.astype(np.float32) / white
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def wrong_values(x: np.ndarray, likelihood: str) -> str | None:
    """What is wrong with the values of float32 images, if anything is.

    Args:
      x: An array of any shape.
      likelihood: With `"bernoulli"` every value must lie within [0, 1].

    Returns:
      The end of an error message, or None.
    """
    if bad := np.count_nonzero(~np.isfinite(x)):
        return f"{bad} of {x.size} values are NaN or infinite (in float32); replace them"
    if likelihood == "bernoulli" and (outside := np.count_nonzero((x < 0) | (x > 1))):
        return (
            f"{outside} of {x.size} values lie outside [0, 1] (they range from {x.min():.6g} to "
            f"{x.max():.6g}); rescale them, store 0 to 255 as uint8, or use --likelihood gaussian"
        )
    return None


def split(count: int, max_test: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Which of `count` images are for training and which for testing: 20%, at most `max_test`.

    Returns:
      Two arrays of indices, always the same ones for the same arguments.
    """
    # The seed is fixed, so that runs with different --seed are compared on the same test images.
    order = np.random.default_rng(0).permutation(count)
    num_test = max(1, round(0.2 * count))
    if max_test is not None:
        num_test = min(num_test, max_test)
    return order[num_test:], order[:num_test]


def num_shared(train: np.ndarray, test: np.ndarray) -> int:
    """How many of the test examples are training examples too; 0 if there are too many to tell."""
    if len(train) + len(test) > _MOST_COMPARED:
        return 0
    seen = {hash(x.tobytes()) for x in train}
    return sum(hash(x.tobytes()) in seen for x in test)


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape in words: `28x28`."""
    return "x".join(map(str, shape)) or "()"

"""What images must be wherever they come from, what they are scaled to, and how they are split."""

import numpy as np

from tfp_ar1.cli.errors import UserError


def check_array(shape: tuple[int, ...], dtype: np.dtype, what: str) -> None:
    """Checks that an array can hold images.

    Args:
      shape: Its shape, which must be `[N, H, W]`, `[N, H, W, C]` or `[N, D]`.
      dtype: Its type, which must be one of real numbers.
      what: What the array is, for the errors.

    Raises:
      UserError: If it cannot.
    """
    if dtype.kind not in "buif":
        raise UserError(
            f"{what} has dtype {dtype}; images must be uint8 (0 to 255) or floating-point."
        )
    if len(shape) not in (2, 3, 4):
        raise UserError(f"{what} has shape {shape}; expected [N, H, W], [N, H, W, C] or [N, D].")
    if shape[0] < 2:
        raise UserError(f"{what} has shape {shape}; at least 2 images are needed.")
    if 0 in shape:
        raise UserError(f"{what} has shape {shape}; images must have at least 1 pixel.")


def to_float32(array: np.ndarray) -> np.ndarray:
    """Images as the models take them: bytes divided by 255, other numbers as they are."""
    if array.dtype == np.uint8:
        return array.astype(np.float32) / 255
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


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape in words: `28x28`."""
    return "x".join(map(str, shape)) or "()"

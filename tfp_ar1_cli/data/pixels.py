"""Checks and scaling of images, whatever their source."""

import numpy as np

from tfp_ar1_cli.errors import UserError

# Images with no byte above this are darker than a quarter of white.
DARK = 63
_MOST_COMPARED = 10**6


def check_array(shape: tuple[int, ...], dtype: np.dtype, what: str, at_least: int = 2) -> None:
    """Checks that an array can hold images: `[N, H, W]`, `[N, H, W, C]` or `[N, D]` real numbers.

    Raises:
      UserError: If not, or if there are fewer than `at_least`; the message begins with `what`.
    """
    if dtype.kind not in "buif":
        raise UserError(
            f"{what} has dtype {dtype}; images must be uint8 (0 to 255) or other real numbers."
        )
    what += f" has shape {shape}"
    if len(shape) not in (2, 3, 4):
        raise UserError(f"{what}; expected [N, H, W], [N, H, W, C] or [N, D].")
    check_count(shape[0], what, at_least)
    if 0 in shape:
        raise UserError(f"{what}; images must have at least 1 pixel.")


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether images of this shape can only be `[N, C, H, W]`."""
    return len(shape) == 4 and shape[1] in (1, 3, 4) and shape[3] > 4


def moved(what: str, shape: tuple[int, ...]) -> str:
    """A note that the channels were moved to the end."""
    return f"{what} has shape {shape}, which is read as [N, C, H, W]: the channels are moved last."


def check_count(count: int, what: str, at_least: int) -> None:
    """Raises a `UserError` that begins with `what` if there are too few images."""
    if count < at_least:
        raise UserError(
            f"{what}; at least {at_least} image{'s are' if at_least > 1 else ' is'} needed."
        )


def white_of(greatest: int) -> int:
    """The value of white in images of bytes up to `greatest`: 1 if all are 0 or 1, else 255."""
    return 1 if greatest == 1 else 255


def of_bytes(white: int, greatest: int) -> list[str]:
    """A note on how bytes up to `greatest` are scaled, if the images are binary or dark."""
    if white == 1:
        return ["All bytes of the images are 0 or 1, so they are not scaled."]
    if 0 < greatest <= DARK:
        return [
            f"The images are bytes of at most {greatest}, which are divided by 255; if "
            f"{greatest} is white, scale them to 255 and store them again."
        ]
    return []


def to_float32(array: np.ndarray, white: int = 255) -> np.ndarray:
    """Images as the models take them: bytes divided by `white`, other numbers unscaled."""
    if array.dtype == np.uint8:
        return array.astype(np.float32) / white
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def wrong_values(x: np.ndarray, likelihood: str) -> str | None:
    """The problem with the values of float32 images, as the end of a message; None if valid."""
    if bad := np.count_nonzero(~np.isfinite(x)):
        return f"{bad} of {x.size} values are NaN or infinite (in float32); replace them"
    if likelihood == "bernoulli" and (outside := np.count_nonzero((x < 0) | (x > 1))):
        return (
            f"{outside} of {x.size} values lie outside [0, 1] (they range from {x.min():.6g} to "
            f"{x.max():.6g}); rescale them, store 0 to 255 as uint8, or train with --likelihood "
            "gaussian"
        )
    return None


def num_shared(train: np.ndarray, test: np.ndarray) -> int:
    """The number of test examples that are also training examples; 0 if too many to compare."""
    if len(train) + len(test) > _MOST_COMPARED:
        return 0
    seen = {hash(x.tobytes()) for x in train}
    return sum(hash(x.tobytes()) in seen for x in test)


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape for messages: `28x28`."""
    return "x".join(map(str, shape)) or "()"

"""Decodes image files with pillow into arrays: 8-bit grayscale or RGB, of one size."""

import dataclasses
import io
from typing import Any

import numpy as np

from tfp_ar1_cli.data import pixels
from tfp_ar1_cli.data.sources import Unreadable

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
# The EXIF orientation tag, and its values for images that are not stored upright.
_ORIENTATION, _TURNED = 0x0112, range(2, 9)
_METADATA = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_GRAY = ("1", "L", "LA", "La")


@dataclasses.dataclass(frozen=True)
class Form:
    """The form that images are converted to.

    Attributes:
      resize: Height and width, or None to keep the size.
      grayscale: Whether colours become gray.
      shape: The shape that every image must have, if it is known.
    """

    resize: tuple[int, int] | None = None
    grayscale: bool = False
    shape: tuple[int, ...] | None = None


AS_STORED = Form()


def decode(content: bytes, form: Form) -> tuple[np.ndarray, list[str]]:
    """Decodes an image file: uint8 `[H, W]` or `[H, W, 3]`, and descriptions of the conversions.

    Raises `Unreadable` if it is not an image or does not have the required shape.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            return _convert(image, form)
    except (Unreadable, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise Unreadable(f"is not a {', '.join(_FORMATS)} image ({len(content)} bytes)") from error
    except Exception as error:  # Arbitrary bytes fail in many ways.
        raise Unreadable(f"cannot be decoded ({error})") from error


def _convert(image: Any, form: Form) -> tuple[np.ndarray, list[str]]:
    from PIL import Image, ImageOps

    said, mode, size = [], image.mode, (image.height, image.width)
    if image.format == "TIFF" and image.n_frames > 1:
        raise Unreadable(f"has {image.n_frames} pages; store each as a file")
    # Versions of pillow name 16-bit modes differently; in TIFF, `I` means 32 bits.
    deep = mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM"))
    coloured = form.shape is not None and len(form.shape) == 3
    # An image with a palette of grays is grayscale, unless the other images have colours.
    gray = (
        mode in _GRAY or deep or (mode in ("P", "PA") and not coloured and _is_gray(image.palette))
    )
    channels = () if form.grayscale or (gray and not coloured) else (3,)
    if form.resize:
        # Decoding a JPEG at a fraction of its size takes a fraction of the time.
        image.draft(None, (2 * max(form.resize), 2 * max(form.resize)))
    elif form.shape and sorted(size) != sorted(form.shape[:2]):
        _refuse((*size, *channels), form)  # Fail before decoding the pixels.
    turned = image.format == "TIFF" and image.tag_v2.get(_ORIENTATION) in _TURNED
    image.load()  # Turns TIFF upright, and reads metadata stored after the pixels.
    # `getexif` takes as long as decoding, so it is called only if there are metadata.
    if _METADATA & image.info.keys() and image.getexif().get(_ORIENTATION) in _TURNED:
        image, turned = ImageOps.exif_transpose(image), True
    if turned:
        said.append("turned upright, as their EXIF orientation says")
    if mode in ("P", "PA"):
        said.append("with a palette")
    if deep:
        said.append("with 16 bits per pixel, reduced to 8")
        image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    elif mode in _ALPHA or "transparency" in image.info:
        said.append("with an alpha channel, laid over white")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif mode == "CMYK":
        said.append("in CMYK")
    elif mode not in ("1", "L", "P", "RGB"):
        raise Unreadable(f"has the pixel mode {mode}; store it as grayscale or RGB of 8 bits")
    if form.grayscale and not gray:
        said.append("in colour, converted to gray")
    elif gray and coloured:
        said.append("in gray, among images in colour")
    image = image.convert("RGB" if channels else "L")
    if form.resize and (image.height, image.width) != form.resize:
        said.append(
            f"resized to {pixels.shape_text(form.resize)} (bicubic; cropped on both sides to that "
            "aspect ratio)"
        )
        image = ImageOps.fit(image, form.resize[::-1])
    decoded = np.asarray(image)
    if form.shape is not None and decoded.shape != form.shape:
        _refuse(decoded.shape, form)
    return decoded, said


def _refuse(shape: tuple[int, ...], form: Form) -> None:
    expected = form.shape or shape
    flags = ["--resize"] * (shape[:2] != expected[:2])
    flags += ["--grayscale"] * (len(shape) > len(expected))
    raise Unreadable(
        f"has shape {pixels.shape_text(shape)}, the others {pixels.shape_text(expected)}; give "
        f"{' and '.join(flags)} to convert all to one shape"
    )


def _is_gray(palette: Any) -> bool:
    colours = np.frombuffer(palette.tobytes(), np.uint8).reshape(-1, len(palette.mode))
    return bool((colours[:, :3] == colours[:, :1]).all())

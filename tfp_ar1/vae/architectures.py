"""Encoders and decoders for `RhoVAE`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras

__all__ = ["NETWORKS", "cnn", "dcgan", "mlp"]


def mlp(
    data_shape: Sequence[int], latent_dim: int, hidden_units: Sequence[int] = (400,)
) -> tuple[keras.Model, keras.Model]:
    """The paper's multilayer perceptron, 784-400-d-400-784 for MNIST.

    Args:
      data_shape: shape of one observation, such as `(28, 28)`.
      latent_dim: size d of the latent vectors.
      hidden_units: width of each hidden layer of the encoder; the decoder reverses them.

    Returns:
      The encoder, from `[batch, *data_shape]` to features `[batch, units]`, and the decoder, from
      `[batch, latent_dim]` to `[batch, *data_shape]`, whose last layer is linear.

    Raises:
      ValueError: if a size is not positive, or there is no hidden layer.
    """
    data_shape, hidden_units = tuple(data_shape), tuple(hidden_units)
    if not hidden_units or min(*data_shape, latent_dim, *hidden_units) < 1:
        raise ValueError(
            f"Sizes must be positive, with at least one hidden layer; got data_shape={data_shape}, "
            f"latent_dim={latent_dim}, hidden_units={hidden_units}."
        )
    encoder = keras.Sequential(
        [
            keras.Input(data_shape),
            keras.layers.Flatten(),
            *(keras.layers.Dense(units, activation="relu") for units in hidden_units),
        ],
        name="encoder",
    )
    decoder = keras.Sequential(
        [
            keras.Input((latent_dim,)),
            *(keras.layers.Dense(units, activation="relu") for units in reversed(hidden_units)),
            keras.layers.Dense(math.prod(data_shape)),
            keras.layers.Reshape(data_shape),
        ],
        name="decoder",
    )
    return encoder, decoder


def cnn(
    data_shape: Sequence[int], latent_dim: int, filters: Sequence[int] = (64, 128)
) -> tuple[keras.Model, keras.Model]:
    """The paper's convolutional network, with convolutions of 64 and 128 filters.

    All convolutions are 4x4 with stride 2. The decoder has one dense layer and as many transposed
    convolutions as the encoder has convolutions.

    Args:
      data_shape: shape of one image, `(height, width)` or `(height, width, channels)`, with height
        and width at least 4.
      latent_dim: size d of the latent vectors.
      filters: number of filters of each convolution of the encoder; the decoder reverses them.

    Returns:
      The encoder and the decoder, with inputs and outputs as for `mlp`.

    Raises:
      ValueError: if the shape is not that of an image, or a size is too small.
    """
    return _convolutional(data_shape, latent_dim, filters)


def dcgan(
    data_shape: Sequence[int], latent_dim: int, filters: Sequence[int] | None = None
) -> tuple[keras.Model, keras.Model]:
    """A convolutional network in the style of DCGAN (Radford et al., arXiv:1511.06434).

    4x4 convolutions with stride 2 halve the image as long as at least 4 rows and columns remain,
    but at least once: 28x28 becomes 4x4. The first has 64 filters, and each following one twice as
    many, up to 512. Batch normalization follows all but the first and the decoder's last;
    activations are leaky ReLU in the encoder and ReLU in the decoder. The only dense layer is the
    decoder's projection of z.

    Args:
      data_shape: as for `cnn`.
      latent_dim: size d of the latent vectors.
      filters: number of filters of each convolution of the encoder; `None` for those above.

    Returns:
      The encoder and the decoder, with inputs and outputs as for `mlp`.

    Raises:
      ValueError: if the shape is not that of an image, or a size is too small.
    """
    if filters is None:
        side, filters = min(_image_shape(data_shape)[:2]), [64]
        while _halved(side, len(filters) + 1) >= 4:
            filters.append(min(2 * filters[-1], 512))
    return _convolutional(data_shape, latent_dim, filters, is_dcgan=True)


NETWORKS = {"mlp": mlp, "cnn": cnn, "dcgan": dcgan}


def _convolutional(
    data_shape: Sequence[int], latent_dim: int, filters: Sequence[int], is_dcgan: bool = False
) -> tuple[keras.Model, keras.Model]:
    """Halves the image once for each entry of `filters`; the decoder doubles it as often."""
    data_shape, (*sides, channels) = tuple(data_shape), _image_shape(data_shape)
    if not filters or min(latent_dim, *filters) < 1:
        raise ValueError(
            f"Sizes must be positive, with at least one convolution; got latent_dim={latent_dim}, "
            f"filters={tuple(filters)}."
        )
    maps = [_halved(side, len(filters)) for side in sides]
    smallest = (*maps, filters[-1])
    # Padding "same" rounds up, so the doubled image may be too large.
    excess = [2 ** len(filters) * small - side for small, side in zip(maps, sides, strict=True)]
    conv = {"kernel_size": 4, "strides": 2, "padding": "same"}

    def activation(normalized: bool, slope: float = 0.0) -> list[keras.layers.Layer]:
        relu = keras.layers.ReLU(negative_slope=slope)
        return [keras.layers.BatchNormalization(), relu] if normalized else [relu]

    encoder = [keras.Input(data_shape), keras.layers.Reshape((*sides, channels))]
    for index, number in enumerate(filters):
        encoder.append(keras.layers.Conv2D(number, **conv))
        encoder += activation(is_dcgan and index > 0, slope=0.2 if is_dcgan else 0.0)
    encoder.append(keras.layers.Flatten())

    decoder = [
        keras.Input((latent_dim,)),
        keras.layers.Dense(math.prod(smallest)),
        keras.layers.Reshape(smallest),
        *activation(is_dcgan),
    ]
    for number in reversed(filters[:-1]):
        decoder.append(keras.layers.Conv2DTranspose(number, **conv))
        decoder += activation(is_dcgan)
    decoder += [
        keras.layers.Conv2DTranspose(channels, **conv),
        keras.layers.Cropping2D([(n // 2, n - n // 2) for n in excess]),
        keras.layers.Reshape(data_shape),
    ]
    return keras.Sequential(encoder, name="encoder"), keras.Sequential(decoder, name="decoder")


def _image_shape(data_shape: Sequence[int]) -> tuple[int, int, int]:
    """Returns height, width and channels of an image."""
    shape = tuple(data_shape)
    if len(shape) not in (2, 3) or min(shape[:2]) < 4 or min(shape) < 1:
        raise ValueError(
            f"A convolutional network needs images of shape (height, width) or (height, width, "
            f"channels), of at least 4x4; got data_shape={shape}. Use `mlp` for other data."
        )
    return shape[0], shape[1], shape[2] if len(shape) == 3 else 1


def _halved(side: int, times: int) -> int:
    """Returns an image's side after that many convolutions of stride 2 with padding "same"."""
    return math.ceil(side / 2**times)

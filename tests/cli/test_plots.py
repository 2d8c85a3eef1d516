"""The pictures: drawn for every shape of image, and the right thing in the right place."""

import matplotlib.image
import numpy as np
import PIL.Image
import pytest

from tfp_ar1_cli.pictures import images as plots


def read(path):
    picture = matplotlib.image.imread(path)
    assert np.ptp(picture) > 0.5, "the picture is blank"
    return picture[..., :3]


def images(n, shape):
    return np.random.default_rng(0).random((n, *shape)).astype(np.float32)


SHAPES = [(8, 8), (5, 9, 1), (6, 4, 3), (4, 4, 2), (12,), (1,)]


@pytest.mark.parametrize("shape", SHAPES)
def test_samples_of_every_shape(tmp_path, shape):
    for n in (1, 7):
        plots.samples(tmp_path / "x.png", images(n, shape), (0.0, 1.0))
        read(tmp_path / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_samples_are_in_reading_order_and_scaled(tmp_path):
    levels = np.array([-1.0, 0.0, 0.5, 1.0], np.float32)
    x = np.broadcast_to(levels[:, None, None], (4, 8, 8))
    plots.samples(tmp_path / "x.png", x, (-1.0, 1.0))
    picture = read(tmp_path / "x.png").mean(axis=-1)
    height, width = picture.shape
    quarters = [picture[height * r // 100, width * c // 100] for r in (30, 75) for c in (25, 75)]
    np.testing.assert_allclose(quarters, [0, 0.5, 0.75, 1], atol=0.01)


def test_three_channels_are_colours(tmp_path):
    red = np.zeros((1, 4, 4, 3), np.float32)
    red[..., 0] = 1
    plots.samples(tmp_path / "x.png", red, (0.0, 1.0))
    picture = read(tmp_path / "x.png")
    np.testing.assert_allclose(picture[picture.shape[0] // 2, picture.shape[1] // 2], [1, 0, 0])


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (20, 30, 3)])
def test_sample_grid(tmp_path, shape):
    x = 4 * images(5, shape) - 2
    plots.sample_grid(tmp_path / "x.png", x, (-2.0, 2.0), columns=3)
    with PIL.Image.open(tmp_path / "x.png") as picture:
        assert picture.mode == "L"
        pixels = np.asarray(picture)
    # Gaps of one pixel to the right of each image and below.
    expected = np.full((2 * 21, 3 * 31), 255.0)
    for i in range(5):
        row, column = divmod(i, 3)
        grey = x[i].reshape(20, 30, -1).mean(axis=-1)
        expected[21 * row : 21 * row + 20, 31 * column : 31 * column + 30] = (grey + 2) / 4 * 255
    np.testing.assert_allclose(pixels, expected, atol=0.51)


def test_pictures_do_not_name_what_drew_them(tmp_path):
    plots.samples(tmp_path / "x.png", images(2, (4, 4)), (0.0, 1.0))
    assert b"Software" not in (tmp_path / "x.png").read_bytes()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [1, 13])
def test_reconstructions(tmp_path, shape, n):
    plots.reconstructions(tmp_path / "x.png", images(n, shape), images(n, shape), (0.0, 1.0))
    read(tmp_path / "x.png")


def test_reconstructions_are_below_their_originals(tmp_path):
    originals, reconstructed = np.zeros((2, 6, 6)), np.full((2, 6, 6), 0.5)
    plots.reconstructions(tmp_path / "x.png", originals, reconstructed, (0.0, 1.0))
    picture = read(tmp_path / "x.png").mean(axis=-1)
    column = picture[:, picture.shape[1] * 4 // 5]
    shades = [shade for shade in (0.0, 0.5) if np.isclose(column, shade, atol=0.01).sum() > 20]
    assert shades == [0.0, 0.5]
    assert np.flatnonzero(np.isclose(column, 0, atol=0.01)).max() < np.median(
        np.flatnonzero(np.isclose(column, 0.5, atol=0.01))
    )


class Decoder:
    """The one method of a model that a traversal needs; remembers what it was asked."""

    def __init__(self, shape):
        self.shape = shape

    def decode(self, z):
        self.z = z
        return self

    def mean(self):
        return images(len(self.z), self.shape)


@pytest.mark.parametrize("latent_dim", [1, 3, 12])
@pytest.mark.parametrize("shape", [(8, 8), (12,)])
def test_latent_traversal(tmp_path, shape, latent_dim):
    means = np.random.default_rng(0).normal(size=(20, latent_dim)) * np.arange(1, latent_dim + 1)
    decoder = Decoder(shape)
    plots.latent_traversal(tmp_path / "x.png", decoder, means, (0.0, 1.0))
    read(tmp_path / "x.png")
    assert decoder.z.shape == (11 * min(latent_dim, 10), latent_dim)
    # One coordinate at a time, the one that varies most first.
    assert np.all(np.count_nonzero(decoder.z, axis=-1) <= 1)
    np.testing.assert_allclose(
        decoder.z[:11, np.argmax(means.var(axis=0))], np.linspace(-3, 3, 11), atol=1e-6
    )


@pytest.mark.parametrize(
    "labels",
    [
        None,
        np.arange(30) % 3,
        np.arange(30) % 15,
        np.arange(30) / 7,
        np.array([f"class {i % 4}" for i in range(30)]),
        np.array([f"name {i}" for i in range(30)]),
    ],
    ids=["none", "few", "twenty", "numbers", "strings", "many strings"],
)
@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_latent_scatter(tmp_path, latent_dim, labels):
    means = np.random.default_rng(0).normal(size=(30, latent_dim))
    plots.latent_scatter(tmp_path / "x.png", means, np.exp(means), labels)
    read(tmp_path / "x.png")


def test_latent_scatter_of_a_collapsed_posterior(tmp_path):
    plots.latent_scatter(tmp_path / "x.png", np.zeros((1, 3)), np.ones((1, 3)), None)
    read(tmp_path / "x.png")


@pytest.mark.parametrize("posterior", ["ar1", "diag", "isotropic", "full"])
def test_correlations(tmp_path, posterior):
    rho = np.tanh(images(40, ())) if posterior in ("ar1", "full") else np.zeros(40)
    plots.correlations(tmp_path / "x.png", rho, posterior)
    read(tmp_path / "x.png")


@pytest.mark.parametrize("epochs", [1, 15, 300])
def test_learning_curves(tmp_path, epochs):
    curve = list(100 / np.arange(1, epochs + 1))
    names = ("reconstruction", "kl", "val_reconstruction", "val_kl")
    plots.learning_curves(tmp_path / "x.png", dict.fromkeys(names, curve))
    read(tmp_path / "x.png")

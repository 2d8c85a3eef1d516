"""The pictures: drawn for every shape of image, and the right thing in the right place."""

import contextlib

import matplotlib.image
import numpy as np
import pytest
from PIL import Image
from program import RUNS

from tfp_ar1_cli import kinds, run_folder
from tfp_ar1_cli.pictures import images as plots
from tfp_ar1_cli.pictures import style

UNIT = (0.0, 1.0)


def drawn(folder, draw, *args, **kwargs):
    """The picture that `draw` writes, which must not be blank, `[height, width, 3]`."""
    draw(folder / "x.png", *args, **kwargs)
    assert [path.name for path in folder.iterdir()] == ["x.png"]
    assert b"Software" not in (folder / "x.png").read_bytes()
    picture = matplotlib.image.imread(folder / "x.png")
    assert np.ptp(picture) > 0.5, "the picture is blank"
    return picture[..., :3]


def images(n, shape):
    return np.random.default_rng(0).random((n, *shape)).astype(np.float32)


@pytest.mark.parametrize("shape", [(8, 8), (5, 9, 1), (6, 4, 3), (4, 4, 2), (12,), (1,)])
def test_every_shape(tmp_path, shape):
    for n in (1, 7):
        drawn(tmp_path, plots.samples, images(n, shape), UNIT)
    n = 1 if len(shape) == 1 else 13
    drawn(tmp_path, plots.reconstructions, images(n, shape), images(n, shape), UNIT)


def test_samples_are_in_reading_order_and_scaled(tmp_path):
    levels = np.array([-1.0, 0.0, 0.5, 1.0], np.float32)
    x = np.broadcast_to(levels[:, None, None], (4, 8, 8))
    picture = drawn(tmp_path, plots.samples, x, (-1.0, 1.0)).mean(axis=-1)
    height, width = picture.shape
    quarters = [picture[height * r // 100, width * c // 100] for r in (30, 75) for c in (25, 75)]
    np.testing.assert_allclose(quarters, [0, 0.5, 0.75, 1], atol=0.01)


def test_three_channels_are_colours(tmp_path):
    red = np.zeros((1, 4, 4, 3), np.float32)
    red[..., 0] = 1
    picture = drawn(tmp_path, plots.samples, red, UNIT)
    np.testing.assert_allclose(picture[picture.shape[0] // 2, picture.shape[1] // 2], [1, 0, 0])


def test_reconstructions_are_below_their_originals(tmp_path):
    originals, reconstructed = np.zeros((2, 6, 6)), np.full((2, 6, 6), 0.5)
    picture = drawn(tmp_path, plots.reconstructions, originals, reconstructed, UNIT).mean(axis=-1)
    column = picture[:, picture.shape[1] * 4 // 5]
    black, grey = (np.flatnonzero(np.isclose(column, shade, atol=0.01)) for shade in (0.0, 0.5))
    assert min(len(black), len(grey)) > 20
    assert black.max() < np.median(grey)


class Decoder:
    """The one method of a model that a traversal needs; remembers what it was asked."""

    def __init__(self, shape):
        self.shape = shape

    def decode(self, z):
        self.z = z
        return self

    def mean(self):
        return images(len(self.z), self.shape)


@pytest.mark.parametrize(("latent_dim", "shape"), [(1, (8, 8)), (3, (12,)), (12, (8, 8))])
def test_latent_traversal(tmp_path, shape, latent_dim):
    means = np.random.default_rng(0).normal(size=(20, latent_dim)) * np.arange(1, latent_dim + 1)
    decoder = Decoder(shape)
    drawn(tmp_path, plots.latent_traversal, decoder, means, UNIT)
    assert decoder.z.shape == (11 * min(latent_dim, 10), latent_dim)
    # One coordinate at a time, the one that varies most first.
    assert np.all(np.count_nonzero(decoder.z, axis=-1) <= 1)
    np.testing.assert_allclose(
        decoder.z[:11, np.argmax(means.var(axis=0))], np.linspace(-3, 3, 11), atol=1e-6
    )


LABELS = {
    "none": None,
    "few": np.arange(30) % 3,
    "twenty": np.arange(30) % 15,
    "numbers": np.arange(30) / 7,
    "strings": np.array([f"class {i % 4}" for i in range(30)]),
    "many strings": np.array([f"name {i}" for i in range(30)]),
}


@pytest.mark.parametrize(("labels", "latent_dim"), [*((x, 5) for x in LABELS), ("few", 1)])
def test_latent_scatter(tmp_path, latent_dim, labels):
    means = np.random.default_rng(0).normal(size=(30, latent_dim))
    drawn(tmp_path, plots.latent_scatter, means, np.exp(means), LABELS[labels])
    if labels == "none":  # A collapsed posterior.
        drawn(tmp_path, plots.latent_scatter, np.zeros((1, 3)), np.ones((1, 3)), None)


@pytest.mark.parametrize("posterior", ["ar1", "diag", "full"])
def test_correlations(tmp_path, posterior):
    rho = np.zeros(40) if posterior == "diag" else np.tanh(images(40, ()))
    drawn(tmp_path, plots.correlations, rho, posterior)


@pytest.mark.parametrize("epochs", [1, 300])
def test_learning_curves(tmp_path, epochs):
    curve = list(100 / np.arange(1, epochs + 1))
    names = ("reconstruction", "kl", "val_reconstruction", "val_kl")
    drawn(tmp_path, style.learning_curves, dict.fromkeys(names, curve))


def test_unused_latents_are_named(monkeypatch):
    """Those whose posterior means do not vary, in the title of the picture that shows them."""
    titles, rng = [], np.random.default_rng(0)
    monkeypatch.setattr(style, "save", lambda fig, _: titles.append(fig.axes[0].get_title()))
    for scale in ([1, 1], [0.3, 0.05, 1, 0.01], [0.01] * 20):
        means = rng.normal(size=(50, len(scale))) * scale
        plots.latent_traversal(None, Decoder((8, 8)), means, UNIT)
    title = "One latent coordinate varied, the others 0"
    assert titles[:2] == [title, f"{title}; unused: z₂, z₄"]
    assert titles[2] == f"{title}; unused: z₁, z₂, z₃, z₄, z₅, z₆ and 14 more"


def test_a_picture_says_what_it_is_of(tmp_path):
    run, texts = run_folder.read(RUNS["image"]), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style.Figure, "savefig", lambda fig, *_, **__: texts.append(fig.texts))
        patch.setattr(style, "atomic", contextlib.nullcontext)
        for noise in (False, True):
            kinds.of(run.options).draw_samples(run, tmp_path / "x", images(4, (8, 8)), noise)
        plots.samples(tmp_path / "x", images(4, (8, 8)), UNIT)
    expected = "digits · ar1 posterior · 1 epoch"
    assert [[text.get_text() for text in each] for each in texts] == [[expected]] * 2 + [[]]


@pytest.mark.parametrize(
    ("shape", "value_range"), [((5, 4), UNIT), ((5, 4, 1), UNIT), ((5, 4, 3), (-1.0, 3.0))]
)
def test_one_file_for_each_image(tmp_path, shape, value_range):
    low, high = value_range
    x = images(11, shape)
    plots.write_each(tmp_path, low + (high - low) * x, value_range)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files[::10]] == ["sample-00.png", "sample-10.png"]
    for file, expected in zip(files, x.squeeze(), strict=True):
        with Image.open(file) as image:
            np.testing.assert_allclose(np.asarray(image) / 255, expected, atol=0.51 / 255)

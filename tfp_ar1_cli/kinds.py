"""The kinds of model that a run can have: an autoencoder of images, or of series.

This module has everything that the commands do differently for the two. Keras and Matplotlib are
imported when they are needed.
"""

import pathlib
from typing import Any

import numpy as np

from tfp_ar1_cli.data.images import check_network
from tfp_ar1_cli.data.protocol import Data
from tfp_ar1_cli.data.series import Units
from tfp_ar1_cli.options import RunOptions
from tfp_ar1_cli.progress import counted
from tfp_ar1_cli.run_folder import Run


class ImageKind:
    """An autoencoder of images with a latent vector."""

    def describe_latents(self, options: RunOptions) -> str:
        """Returns the words for the latents, which follow those for the posterior."""
        return f"over {counted(options.latent_dim or 0, 'latent')}"

    def check(self, options: RunOptions, data: Data) -> None:
        """Raises a `UserError` if a model cannot take the data."""
        check_network(options.network, options.dataset, data.data_shape)

    def build(self, options: RunOptions, data_shape: tuple[int, ...]) -> Any:
        """Builds and compiles the model."""
        from tfp_ar1_cli.training import model

        return model.rho_vae(options, data_shape)

    def measures(self, model: Any) -> dict[str, Any]:
        """Returns the results that come from the model itself, not from test data."""
        return {}

    def draw(self, run: Run, model: Any, data: Any) -> list[pathlib.Path]:
        """Draws every picture of a trained run; returns the files in order."""
        from tfp_ar1_cli.pictures import images

        return images.draw_run(run, model, data)

    def draw_progress(self, run: Run, model: Any, data: Any, folder: pathlib.Path) -> None:
        """Draws quick pictures of what the model does during training into a folder."""
        from tfp_ar1_cli.pictures import images

        images.draw_progress(run, model, data, folder)

    def draw_samples(self, run: Run, path: pathlib.Path, new: np.ndarray, noise: bool) -> None:
        """Draws what the model generated."""
        from tfp_ar1_cli.pictures import images, style

        with style.captioned(run):
            images.samples(path, new, run.value_range, noise)

    def draw_each(self, run: Run, folder: pathlib.Path, new: np.ndarray, noise: bool) -> None:
        """Draws each example that the model generated into its own file."""
        from tfp_ar1_cli.pictures import images, style

        if new.ndim == 3 or (new.ndim == 4 and new.shape[-1] in (1, 3, 4)):
            images.write_each(folder, new, run.value_range)
            return
        for i, path in enumerate(style.numbered(folder, len(new))):
            self.draw_samples(run, path, new[i : i + 1], noise)

    def restore(self, run: Run, new: np.ndarray) -> np.ndarray:
        """Converts what the model generated to the unit of the data."""
        return new

    def table(self, run: Run, restored: np.ndarray) -> Any:
        """Returns generated data, in the unit of the data, as a pandas frame for a CSV file."""
        import pandas as pd

        rows = restored.reshape(len(restored), -1)
        names = [f"x{i}" for i in range(rows.shape[1])]
        return pd.DataFrame(rows, columns=names).rename_axis("image")


class SequenceKind:
    """An autoencoder of series with latent paths; it has the same methods as `ImageKind`."""

    def describe_latents(self, options: RunOptions) -> str:  # noqa: D102
        return f"and {options.prior} prior over {counted(options.channels or 0, 'latent path')}"

    def check(self, options: RunOptions, data: Data) -> None:
        """Checks nothing: every model takes every series."""

    def build(self, options: RunOptions, data_shape: tuple[int, ...]) -> Any:  # noqa: D102
        from tfp_ar1_cli.training import model

        return model.sequence_vae(options, data_shape)

    def measures(self, model: Any) -> dict[str, Any]:  # noqa: D102
        from tfp_ar1_cli.training.model import prior_correlation

        return {"prior_correlation": prior_correlation(model).tolist()}

    def draw(self, run: Run, model: Any, data: Any) -> list[pathlib.Path]:  # noqa: D102
        from tfp_ar1_cli.pictures import series

        return series.draw_run(run, model, data)

    def draw_progress(self, run: Run, model: Any, data: Any, folder: pathlib.Path) -> None:  # noqa: D102
        from tfp_ar1_cli.pictures import series

        series.draw_progress(run, model, data, folder)

    def draw_samples(self, run: Run, path: pathlib.Path, new: np.ndarray, noise: bool) -> None:  # noqa: D102
        from tfp_ar1_cli.pictures import series, style

        with style.captioned(run):
            series.samples(path, Units(**run.data["units"]), new, noise)

    def draw_each(self, run: Run, folder: pathlib.Path, new: np.ndarray, noise: bool) -> None:  # noqa: D102
        from tfp_ar1_cli.pictures import style

        for i, path in enumerate(style.numbered(folder, len(new))):
            self.draw_samples(run, path, new[i : i + 1], noise)

    def restore(self, run: Run, new: np.ndarray) -> np.ndarray:  # noqa: D102
        return Units(**run.data["units"]).restore(new)

    def table(self, run: Run, restored: np.ndarray) -> Any:  # noqa: D102
        import pandas as pd

        names = Units(**run.data["units"]).names
        where = pd.MultiIndex.from_product(
            [range(size) for size in restored.shape[:2]], names=["series", "step"]
        )
        return pd.DataFrame(restored.reshape(-1, len(names)), where, names)


_KINDS: dict[str, ImageKind | SequenceKind] = {"image": ImageKind(), "sequence": SequenceKind()}


def of(options: RunOptions) -> ImageKind | SequenceKind:
    """Returns the kind of model that options describe."""
    return _KINDS[options.model]

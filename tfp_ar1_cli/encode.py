"""`tfp-ar1 encode`: the posterior of data."""

import click

from tfp_ar1_cli import answers, apply
from tfp_ar1_cli.answer_options import EncodeOptions
from tfp_ar1_cli.option_fields import takes


@click.command("encode")
@takes(EncodeOptions)
def command(options: EncodeOptions) -> None:
    """Write the codes of the data in FILE: means and standard deviations of q(z | x).

    For series there is one for each latent path at each step; for images, one for each latent
    coordinate.

    \b
    Examples:
      tfp-ar1 encode runs/nile-ar1-001 nile.csv --out codes.csv
      tfp-ar1 encode runs/digits-ar1-001 npz:images.npz --out codes.npz
    """  # noqa: D301
    apply.to_file(
        "encode",
        options,
        "encoded",
        lambda model, x: model.answer(answers.encode, x),
        lambda model, file: model.encode(file),
    )

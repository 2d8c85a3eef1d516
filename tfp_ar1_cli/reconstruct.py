"""`tfp-ar1 reconstruct`: data as a model reconstructs them."""

import click

from tfp_ar1_cli import answers, apply
from tfp_ar1_cli.answer_options import ImputeOptions
from tfp_ar1_cli.option_fields import takes


@click.command("reconstruct")
@takes(ImputeOptions)
def command(options: ImputeOptions) -> None:
    """Write what the model of RUN would observe in place of the data in FILE.

    For series: mean, standard deviation and quantiles of new observations of the same latent paths,
    next to each value. For images: their means; write them to an .npz file.

    \b
    Examples:
      tfp-ar1 reconstruct runs/nile-ar1-001 nile.csv --out smooth.csv
      tfp-ar1 reconstruct runs/digits-ar1-001 npz:images.npz --out new.npz
    """  # noqa: D301
    args = (options.quantiles, options.num_samples, options.seed)
    apply.to_file(
        "reconstruct",
        options,
        "reconstructed",
        lambda model, x: model.answer(answers.reconstruct, x, *args),
        lambda model, file: model.reconstruct(file),
        images_are_arrays=True,
    )

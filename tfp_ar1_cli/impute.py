"""`tfp-ar1 impute`: the gaps of series, filled."""

import click

from tfp_ar1_cli import answers, apply
from tfp_ar1_cli.answer_options import ImputeOptions
from tfp_ar1_cli.option_fields import takes


@click.command("impute")
@takes(ImputeOptions)
def command(options: ImputeOptions) -> None:
    """Fill the gaps of the series in FILE with the model of RUN.

    The new file looks like FILE, with its missing rows added. Missing values are the means of
    draws given all observed values; next to each column are the standard deviation and
    quantiles, including observation noise. Observed values do not change.

    \b
    Examples:
      tfp-ar1 impute runs/nile-ar1-001 nile.csv --out filled.csv
      tfp-ar1 impute runs/nile-ar1-001 nile.csv --quantiles 0.1,0.9
    """  # noqa: D301
    args = (options.quantiles, options.num_samples, options.seed)
    apply.to_file("impute", options, "imputed", lambda m, x: m.answer(answers.impute, x, *args))

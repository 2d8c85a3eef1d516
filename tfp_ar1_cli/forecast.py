"""`tfp-ar1 forecast`: the steps that follow series."""

import click

from tfp_ar1_cli import answers, apply
from tfp_ar1_cli.answer_options import ForecastOptions
from tfp_ar1_cli.option_fields import takes


@click.command("forecast")
@takes(ForecastOptions)
def command(options: ForecastOptions) -> None:
    """Forecast the steps that follow each series in FILE with the model of RUN.

    The new file has only these steps, with their dates: the mean in place of each value, and next
    to it the standard deviation and quantiles, including observation noise.

    \b
    Examples:
      tfp-ar1 forecast runs/nile-ar1-001 nile.csv --steps 10 --out next.csv
    """  # noqa: D301
    args = (options.steps, options.quantiles, options.num_samples, options.seed)
    apply.to_file(
        "forecast", options, "forecast", lambda m, x: m.answer(answers.forecast, x, *args)
    )

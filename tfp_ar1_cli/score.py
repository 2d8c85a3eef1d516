"""`tfp-ar1 score`: how unexpected data are under a model."""

import click

from tfp_ar1_cli import answers, apply
from tfp_ar1_cli.answer_options import ScoreOptions
from tfp_ar1_cli.data.series_table import SeriesTable
from tfp_ar1_cli.option_fields import takes
from tfp_ar1_cli.trained import TrainedSeries


@click.command("score")
@takes(ScoreOptions)
def command(options: ScoreOptions) -> None:
    """Score the data in FILE with the model of RUN: a higher score is less expected.

    For each image, or window of a series: the negative ELBO (neg_elbo), its terms, and the
    importance-weighted negative log-likelihood (nll_iw), in nats. With --per-step: the part of the
    negative ELBO that each step of a series adds.

    \b
    Examples:
      tfp-ar1 score runs/digits-ar1-001 npz:images.npz --out scores.csv
      tfp-ar1 score runs/nile-ar1-001 nile.csv --per-step --out scores.csv
    """  # noqa: D301
    number, per_step = options.num_importance_samples, options.per_step

    def of_series(model: TrainedSeries, table: SeriesTable) -> answers.Answer:
        samples = number or model.run.options.num_importance_samples
        return model.answer(answers.score, table, samples, per_step)

    of_images = None if per_step else lambda model, file: model.score(file, number)
    name = "score --per-step" if per_step else "score"
    apply.to_file(name, options, "scored", of_series, of_images)

"""`tfp-ar1 score`: how unexpected data are."""

import click

from tfp_ar1_cli import answers, apply, run_folder
from tfp_ar1_cli.answer_options import ScoreOptions
from tfp_ar1_cli.errors import UserError
from tfp_ar1_cli.option_fields import takes


@click.command("score")
@takes(ScoreOptions)
def command(options: ScoreOptions) -> None:
    """Score the data in FILE by the model of RUN: the higher, the less it expected them.

    Of each image, or window of a series: the negative ELBO (neg_elbo), its terms, and the
    importance-weighted negative log-likelihood (nll_iw), in nats. With --per-step what each step of
    a series adds to the negative ELBO.

    \b
    Examples:
      tfp-ar1 score runs/digits-ar1-001 npz:images.npz --out scores.csv
      tfp-ar1 score runs/nile-ar1-001 nile.csv --per-step --out scores.csv
    """  # noqa: D301
    run = run_folder.read_finished(options.run)
    number = options.num_importance_samples or run.options.num_importance_samples
    if apply.is_of_series(options.run):
        apply.to_series("score", options, "scored", answers.score, number, options.per_step)
    elif options.per_step:
        raise UserError(f"--per-step is for models of series, not for {options.run}; leave it out.")
    else:
        apply.to_images(options, "scored", lambda model, x: model.score(x, number))

"""Model cards, which `tfp-ar1 export` writes beside the SavedModel.

The sections follow Mitchell et al., *Model Cards for Model Reporting* (arXiv:1810.03993), limited
to what the training recorded. Whoever publishes the model must add its intended users and uses, and
the possible effects on people.
"""

import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from tfp_ar1_cli import run_folder
from tfp_ar1_cli.data import loading
from tfp_ar1_cli.names import LIKELIHOODS, NETWORKS, OBJECTIVES, POSTERIORS
from tfp_ar1_cli.progress import counted
from tfp_ar1_cli.run_folder import Run

# The format of `model_card.json`.
FORMAT_VERSION = 1
_TEMPLATE = pathlib.Path(__file__).with_name("model_card.md.jinja")
# Unit and meaning of each measure in `metrics.json`; measures are means over the test set.
_MEASURES = {
    "neg_elbo": ("nats per {one}", "negative evidence lower bound, reconstruction + KL"),
    "reconstruction": ("nats per {one}", "-E[log p(x | z)] over the posterior, from draws"),
    "kl": ("nats per {one}", "KL of the posterior from the prior, exact"),
    "nll_iw": (
        "nats per {one}",
        "importance-weighted estimate of -log p(x); on average an upper bound",
    ),
    "num_importance_samples": ("draws per {one}", "for nll_iw and reconstruction"),
    "active_units": (
        "coordinates",
        "latent coordinates whose posterior mean has a variance above 0.01 over the data",
    ),
    "mmd": ("no unit", "squared maximum mean discrepancy of the posteriors' draws from the prior"),
    "rho_mean": ("no unit", "lag-one correlation of the posteriors, mean"),
    "rho_std": ("no unit", "lag-one correlation of the posteriors, standard deviation"),
    "scale_mean": ("no unit", "scale of the posteriors, mean"),
    "scale_std": ("no unit", "scale of the posteriors, standard deviation"),
    "num_examples": ("{one}s", "in the test set"),
    "prior_correlation": ("no unit", "lag-one correlation of the prior, for each latent path"),
}


def make(
    run: Run, metrics: dict[str, Any], dtype: str = "float32", num_skipped: int = 0
) -> dict[str, Any]:
    """The model card of a run as a JSON-serialisable dictionary.

    Args:
      run: The run.
      metrics: Its results on the test set, by name.
      dtype: The dtype of the exported model's data, `"float32"` or `"float64"`.
      num_skipped: The number of images of both sets that were left out as corrupt.

    Returns:
      The card. It names no files; the dataset has its short name.
    """
    options, shape = run.options, list(run.data_shape)
    prior = "AR(1) of mean 0 and variance 1, with a learned correlation for each path"
    data = {k: v for k, v in run.data.items() if k not in ("data_shape", "image_shape")}
    if options.model == "sequence":
        one, things, latent_shape = "window", "series", [options.channels or 1, shape[0]]
    else:
        one, things, latent_shape = "image", "images", [options.latent_dim or 1]
    if loading.is_stream(options.dataset):
        data |= {"num_skipped": num_skipped, "sampled": True}
    measures = {}
    for name, value in metrics.items():
        unit, meaning = _MEASURES.get(name, ("", ""))
        measures[name] = {"value": value, "unit": unit.format(one=one), "meaning": meaning}
    beta = f" = {options.beta:g}" if options.objective == "elbo" else ""
    return {
        "format_version": FORMAT_VERSION,
        "model": {
            "type": f"variational autoencoder of {things}",
            "posterior": f"Gaussian. {POSTERIORS[options.posterior]}",
            "prior": prior if options.prior == "ar1" else "N(0, I)",
            "likelihood": LIKELIHOODS[options.likelihood],
            "network": NETWORKS[options.model][options.network],
            "latent_shape": latent_shape,
            "objective": OBJECTIVES[options.objective] + beta,
        },
        "data": {"name": loading.short_name(options.dataset), "shape": shape, **data},
        "training": {k: v for k, v in options.as_json().items() if k not in run_folder.PLACES},
        "metrics": measures,
        "versions": {"trained": run.versions, "exported": run_folder.versions()},
        "signatures": _signatures(shape, latent_shape, dtype, options.model == "sequence"),
    }


def _signatures(
    shape: list[int], latent_shape: list[int], dtype: str, of_series: bool
) -> dict[str, dict]:
    """Inputs and outputs of each endpoint, by their names in its signature.

    None in a shape is the number of examples N, or the size named by `axes`: S draws, H steps.
    """

    def spec(*shape: int | None, dtype: str = dtype, axes: str = "N") -> dict[str, Any]:
        return {"dtype": dtype, "shape": list(shape)} | ({"axes": axes} if axes != "N" else {})

    data, latents, scores = spec(None, *shape), spec(None, *latent_shape), spec(None)
    number, seed = spec(dtype="int32"), spec(2, dtype="int32")

    def endpoint(meaning: str, inputs: dict, **outputs: dict) -> dict[str, Any]:
        return {"inputs": inputs, "outputs": outputs, "meaning": meaning}

    mean = "the mean of p(x | z) at the posterior's mean z"
    follow = spec(None, None, *shape[1:], axes="NH")
    draws = {"num_samples": number, "seed": seed}
    more = {
        "impute": endpoint(
            "draws of whole series; in x, values that were not observed are NaN",
            {"x": data, **draws},
            draws=spec(None, *data["shape"], axes="SN"),
            mean=data,
            stddev=data,
        ),
        "forecast": endpoint(
            "draws of the steps that follow",
            {"x": data, "steps": number, **draws},
            draws=spec(None, *follow["shape"], axes="SNH"),
            mean=follow,
            stddev=follow,
        ),
    }
    return (more if of_series else {}) | {
        "encode": endpoint(
            "the posterior q(z | x): its mean, standard deviations and mean lag-one correlation",
            {"x": data},
            mean=latents,
            stddev=latents,
            correlation=scores,
        ),
        "decode": endpoint("the mean of p(x | z)", {"z": latents}, output_0=data),
        "reconstruct": endpoint(mean, {"x": data}, output_0=data),
        "serve": endpoint(
            f"the same as `reconstruct` and `serving_default`: {mean}", {"x": data}, output_0=data
        ),
        "generate": endpoint(
            "new data: the mean of p(x | z) for n draws z of the prior",
            {"n": number, "seed": seed},
            output_0=data,
        ),
        "log_likelihood": endpoint(
            "importance-weighted estimate of log p(x) with num_samples draws, in nats",
            {"x": data, "num_samples": number, "seed": seed},
            output_0=scores,
        ),
    }


def signature(card: dict[str, Any], name: str) -> str:
    """An endpoint's inputs and outputs in one line, for N examples, S draws, H steps."""
    endpoint = card["signatures"][name]
    inputs = ", ".join(f"{key} {_spec(spec)}" for key, spec in endpoint["inputs"].items())
    outputs = ", ".join(
        _spec(spec) if key == "output_0" else f"{key} {_spec(spec)}"
        for key, spec in endpoint["outputs"].items()
    )
    return f"{name}({inputs}) -> {outputs}"


def _spec(spec: dict[str, Any]) -> str:
    axes = iter(spec.get("axes", "N"))
    shape = ", ".join(next(axes) if size is None else str(size) for size in spec["shape"])
    return f"{spec['dtype']} [{shape}]" if shape else spec["dtype"]


def text(card: dict[str, Any], saved_model: str = ".") -> str:
    """The card as Markdown, its human-readable form; `saved_model` is the SavedModel's path."""
    import jinja2  # Late, so `--help` does not wait for it.

    model, data, training = card["model"], card["data"], card["training"]
    units, channels = data.get("units"), []
    if units:
        names = units["names"] or [str(i + 1) for i in range(len(units["mean"]))]
        scaling = (map(_value, units["mean"]), map(_value, units["scale"]))
        channels = list(zip(names, *scaling, strict=True))
    trained, exported = card["versions"]["trained"], card["versions"]["exported"]
    one = "window" if units else "image"
    environment = jinja2.Environment(
        trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        card=card,
        saved_model=saved_model,
        training=training,
        units=units,
        one=one,
        dtype=card["signatures"]["encode"]["inputs"]["x"]["dtype"],
        details={
            "Type": model["type"],
            "Posterior q(z | x)": model["posterior"],
            "Prior p(z)": model["prior"],
            "Likelihood p(x | z)": model["likelihood"],
            "Networks": model["network"],
            "Latent shape": _shape(model["latent_shape"], "paths × steps" if units else ""),
            "Objective": model["objective"],
        },
        versions=[
            (name, trained.get(name, "unknown"), exported.get(name, "unknown"))
            for name in {**trained, **exported}
        ],
        data_rows=_data_rows(data, one),
        channels=channels,
        options=[(f"`{k}`", _value(v)) for k, v in training.items()],
        measures=[
            (f"`{name}`", _value(entry["value"]), entry["unit"], entry["meaning"])
            for name, entry in card["metrics"].items()
        ],
        signature=signature,
        table=_table,
    )


def _data_rows(data: dict[str, Any], one: str) -> dict[str, str]:
    sampled = data.get("sampled", False)
    rows = {
        "Dataset": data["name"],
        "Training set": counted(data["num_train"], one),
        "Test set": counted(data["num_test"], one),
        f"Shape of one {one}": _shape(data["shape"], "steps × channels" if one == "window" else ""),
    }
    if "num_skipped" in data:
        rows["Left out as corrupt, of both sets"] = counted(data["num_skipped"], one)
    if "range" in data:
        name = "Range of values in the test set" if sampled else "Range of values"
        rows[name] = f"{data['range'][0]:g} to {data['range'][1]:g}"
    if "sha256" in data:
        name = "names, sizes and samples of the files" if sampled else "both sets"
        rows[f"SHA-256 of {name}"] = f"`{data['sha256']}`"
    if "units" in data:
        rows["Unit of time"] = data["units"]["step"]
    return rows


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rows = ([" ".join(cell.replace("|", "\\|").splitlines()) for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def _value(value: Any) -> str:
    """Numbers to six digits; strings unchanged, anything else as JSON."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)


def _shape(sizes: list[int], axes: str) -> str:
    return " × ".join(map(str, sizes)) + (f" ({axes})" if axes else "")

"""The model card of an exported model: what it is, how to call it, what its scores do not say.

Everything in it comes from the config and the metrics of the run. The headings are those of
Mitchell et al. (arXiv:1810.03993), as far as a run has something to say: whom the model is for, and
what its use may do to people, is for whoever publishes it to add.
"""

import json
from typing import Any

from tfp_ar1_cli import runs
from tfp_ar1_cli.data import loading
from tfp_ar1_cli.progress import counted

# Of `model_card.json`.
FORMAT_VERSION = 1

_POSTERIORS = {
    "ar1": "AR(1): one scale and one correlation of neighbouring coordinates",
    "diag": "diagonal: a scale for each coordinate, no correlation",
    "isotropic": "isotropic: one scale, no correlation",
    "full": "any covariance, by its Cholesky factor",
    "arh1": "a scale for each coordinate, and one correlation of neighbours",
    "ante1": "a scale for each coordinate, and a correlation for each pair of neighbours",
}
_LIKELIHOODS = {
    "bernoulli": "Bernoulli, independent for each value; values between 0 and 1 count as "
    "probabilities",
    "gaussian": "Gaussian, independent for each value, with one standard deviation, learned",
}
_NETWORKS = {
    "mlp": "multilayer perceptrons, the decoder the mirror of the encoder",
    "cnn": "convolutional networks",
    "dcgan": "convolutional networks in the manner of DCGAN",
    "convolutional": "an encoder of dilated convolutions over time, a decoder of single steps",
    "recurrent": "a recurrent encoder, a decoder of single steps",
}
_OBJECTIVES = {
    "elbo": "negative evidence lower bound, the KL multiplied by beta",
    "infovae": "InfoVAE with the maximum mean discrepancy (arXiv:1706.02262)",
    "iwae": "importance-weighted bound (arXiv:1509.00519)",
}
# Of each measure in `metrics.json`: its unit, and what it is; means over the test set.
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
    config: dict, metrics: dict[str, Any], dtype: str = "float32", num_skipped: int = 0
) -> dict[str, Any]:
    """The model card of a run as a dictionary, which JSON can hold.

    Args:
      config: The config of the run.
      metrics: Its results on the test set, by name.
      dtype: Of the exported model's data, `"float32"` or `"float64"`.
      num_skipped: How many images of both sets were left out as corrupt.

    Returns:
      The card, with the keys `format_version`, `model`, `data`, `training`, `metrics`, `versions`
      and `signatures`. It names no files: the dataset is called by its short name.
    """
    options, data = config["options"], dict(config["data"])
    of_sequences = options["model"] == "sequence"
    one = "window" if of_sequences else "image"
    shape = data.pop("data_shape" if of_sequences else "image_shape")
    latent_shape = [options["channels"], shape[0]] if of_sequences else [options["latent_dim"]]
    if loading.is_stream(options["dataset"]):
        data |= {"num_skipped": num_skipped, "sampled": True}
    learned_prior = of_sequences and options["prior"] == "ar1"
    return {
        "format_version": FORMAT_VERSION,
        "model": {
            "type": f"variational autoencoder of {'series' if of_sequences else 'images'}",
            "posterior": f"Gaussian. {_describe(_POSTERIORS, options['posterior'])}",
            "prior": "AR(1) of mean 0 and variance 1, with a learned correlation for each path"
            if learned_prior
            else "N(0, I)",
            "likelihood": _describe(_LIKELIHOODS, options["likelihood"]),
            "network": _describe(_NETWORKS, options["network"]),
            "latent_shape": latent_shape,
            "objective": _describe(_OBJECTIVES, options["objective"])
            + (f" = {options['beta']:g}" if options["objective"] == "elbo" else ""),
        },
        "data": {"name": loading.short_name(options["dataset"]), "shape": shape, **data},
        "training": {k: v for k, v in options.items() if k not in runs.MAY_CHANGE},
        "metrics": {name: _measure(name, value, one) for name, value in metrics.items()},
        "versions": {"trained": runs.written_with(config), "exported": runs.versions()},
        "signatures": _signatures(shape, latent_shape, dtype),
    }


def _describe(texts: dict[str, str], name: str) -> str:
    """What a name of the command line means; the name itself if it is newer than this text."""
    return texts.get(name, name)


def _measure(name: str, value: Any, one: str) -> dict[str, Any]:
    unit, meaning = _MEASURES.get(name, ("", ""))
    return {"value": value, "unit": unit.format(one=one), "meaning": meaning}


def _signatures(shape: list[int], latent_shape: list[int], dtype: str) -> dict[str, dict]:
    """Inputs and outputs of each endpoint, by the names that they have in its signature.

    None in a shape stands for the number of examples.
    """

    def spec(*shape: int | None, dtype: str = dtype) -> dict[str, Any]:
        return {"dtype": dtype, "shape": list(shape)}

    data, latents, scores = spec(None, *shape), spec(None, *latent_shape), spec(None)
    number, seed = spec(dtype="int32"), spec(2, dtype="int32")

    def endpoint(meaning: str, inputs: dict, **outputs: dict) -> dict[str, Any]:
        return {"inputs": inputs, "outputs": outputs, "meaning": meaning}

    mean = "the mean of p(x | z) at the posterior's mean z"
    return {
        "encode": endpoint(
            "the posterior q(z | x): its mean, standard deviations and mean lag-one correlation",
            {"x": data},
            mean=latents,
            stddev=latents,
            correlation=scores,
        ),
        "decode": endpoint("the mean of p(x | z)", {"z": latents}, output_0=data),
        "reconstruct": endpoint(mean, {"x": data}, output_0=data),
        "serve": endpoint(f"the same, as `serving_default` is: {mean}", {"x": data}, output_0=data),
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
    """One line that says what an endpoint takes and returns, N being the number of examples."""
    endpoint = card["signatures"][name]
    inputs = ", ".join(f"{key} {_spec(spec)}" for key, spec in endpoint["inputs"].items())
    outputs = ", ".join(
        _spec(spec) if key == "output_0" else f"{key} {_spec(spec)}"
        for key, spec in endpoint["outputs"].items()
    )
    return f"{name}({inputs}) -> {outputs}"


def _spec(spec: dict[str, Any]) -> str:
    shape = ", ".join("N" if size is None else str(size) for size in spec["shape"])
    return f"{spec['dtype']} [{shape}]" if shape else spec["dtype"]


def text(card: dict[str, Any]) -> str:
    """The card as Markdown, for people."""
    model, data, training = card["model"], card["data"], card["training"]
    of_sequences = training["model"] == "sequence"
    one = "window" if of_sequences else "image"
    details = {
        "Type": model["type"],
        "Posterior q(z | x)": model["posterior"],
        "Prior p(z)": model["prior"],
        "Likelihood p(x | z)": model["likelihood"],
        "Networks": model["network"],
        "Latent shape": _shape(model["latent_shape"], "paths × steps" if of_sequences else ""),
        "Objective": model["objective"],
    }
    signatures = "\n".join(
        f"- `{signature(card, name)}`\n  {endpoint['meaning']}"
        for name, endpoint in card["signatures"].items()
    )
    measures = [
        (f"`{name}`", _value(entry["value"]), entry["unit"], entry["meaning"])
        for name, entry in card["metrics"].items()
    ]
    trained, exported = card["versions"]["trained"], card["versions"]["exported"]
    versions = [
        (name, trained.get(name, "unknown"), exported.get(name, "unknown"))
        for name in {**trained, **exported}
    ]
    return f"""# Model card: {data["name"]}, {training["posterior"]} posterior

Written by `tfp-ar1 export` from what the training recorded; `model_card.json` holds the same for
programs.

## Model details

{_table(("", ""), details.items())}

Versions of Python and of the packages:

{_table(("Package", "Trained with", "Exported with"), versions)}

## Intended use

The folder is a SavedModel: TensorFlow alone loads it, without the package that trained it. It may
warn of custom gradients then, which matter only to who would train the model further.

Endpoints, for any number N of examples:

{signatures}

A seed is two whole numbers. The same seed gives the same numbers.

```python
{_example(card)}
```

## Training data

{_training_data(data, one)}

Options of the training (Adam):

{_table(("Option", "Value"), ((f"`{k}`", _value(v)) for k, v in training.items()))}

## Evaluation data

{data["num_test"]} {one}s of the same dataset, held out: no gradient came from them, and the weights
are those after the last epoch, whatever the test set said.

## Metrics and quantitative analyses

On the evaluation data:

{_table(("Measure", "Value", "Unit", "What it is"), measures)}

## Caveats and recommendations

{_caveats(card, one)}
"""


def _training_data(data: dict[str, Any], one: str) -> str:
    rows = {
        "Dataset": data["name"],
        "Training set": counted(data["num_train"], one),
        "Test set": counted(data["num_test"], one),
        f"Shape of one {one}": _shape(data["shape"], "steps × channels" if one == "window" else ""),
    }
    sampled = data.get("sampled", False)
    if "num_skipped" in data:
        rows["Left out as corrupt, of both sets"] = counted(data["num_skipped"], one)
    if "range" in data:
        name = "Range of values in the test set" if sampled else "Range of values"
        rows[name] = f"{data['range'][0]:g} to {data['range'][1]:g}"
    if "sha256" in data:
        name = "names, sizes and samples of the files" if sampled else "both sets"
        rows[f"SHA-256 of {name}"] = f"`{data['sha256']}`"
    units = data.get("units")
    if units:
        rows["Unit of time"] = units["step"]
    parts = [_table(("", ""), rows.items())]
    if units:
        names = units["names"] or [str(i) for i in range(1, len(units["mean"]) + 1)]
        channels = zip(names, map(_value, units["mean"]), map(_value, units["scale"]), strict=True)
        parts.append(
            "The model takes and gives each channel less its mean and divided by its scale:"
        )
        parts.append(_table(("Channel", "Mean", "Scale"), channels))
    return "\n\n".join(parts)


def _example(card: dict[str, Any]) -> str:
    """How to call the model, in about ten lines that run as they stand."""
    data, dtype = card["data"], card["signatures"]["encode"]["inputs"]["x"]["dtype"]
    shape = ", ".join(map(str, [3, *data["shape"]]))
    lines = [
        "import numpy as np",
        "import tensorflow as tf",
        "",
        'model = tf.saved_model.load(".")  # this folder',
    ]
    if "units" in data:
        lines += [
            f"mean, scale = {data['units']['mean']}, {data['units']['scale']}",
            f"series = np.zeros([{shape}])  # three windows; np.nan where nothing was observed",
            f"x = np.{dtype}((series - mean) / scale)",
            "new = model.generate(16, [0, 1]) * scale + mean",
        ]
    else:
        lines += [
            f"x = np.zeros([{shape}], np.{dtype})  # three images",
            "new = model.generate(16, [0, 1])  # sixteen images",
        ]
    lines += [
        'z = model.encode(x)["mean"]',
        "reconstruction = model.decode(z)",
        "nats = model.log_likelihood(x, 100, [0, 1])  # one number for each example",
    ]
    return "\n".join(lines)


def _caveats(card: dict[str, Any], one: str) -> str:
    training, data = card["training"], card["data"]
    caveats = [
        "`log_likelihood` is an estimate from draws, on average below log p(x), and rises towards "
        "it with `num_samples`. Compare scores of the same `num_samples` only. Time grows with it, "
        "memory does not.",
        f"A high score does not say that {'a' if one == 'window' else 'an'} {one} is like the "
        "training data: such models give high likelihood to some data of quite another kind "
        "(arXiv:1810.09136).",
        "The figures above are of one training with one seed; how much they vary from seed to seed "
        "is not known from it.",
        f"The endpoints check the shape of what they are given, not its values: give them {one}s "
        "prepared as the training data were.",
    ]
    if training["likelihood"] == "bernoulli":
        caveats.append(
            "Where values are not 0 or 1, the score is a cross-entropy, no density of the values: "
            "it is not comparable to that of a model with another likelihood."
        )
    else:
        caveats.append(
            "Scores are of a density, and change with the unit of the data"
            + ("; here of the standardised values." if "units" in data else ".")
        )
    if one == "window":
        caveats.append(
            f"Only windows of {data['shape'][0]} steps. A shorter one can be filled up with NaN, "
            "which count as not observed; the package itself takes lengths, with a posterior of "
            "its own for them. Forecasts and draws of missing values need the package too."
        )
    return "\n".join(f"- {caveat}" for caveat in caveats)


def _table(header: tuple[str, ...], rows: Any) -> str:
    rows = ([" ".join(cell.replace("|", "\\|").splitlines()) for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def _value(value: Any) -> str:
    """A number, or several, to six digits; anything else as JSON has it."""
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)


def _shape(sizes: list[int], axes: str) -> str:
    return " × ".join(map(str, sizes)) + (f" ({axes})" if axes else "")

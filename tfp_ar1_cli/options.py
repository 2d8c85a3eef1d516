"""The options of the commands: what they are called, what they may be, what they are by default.

Every option is a field of a frozen dataclass, from which the command line makes its options, and
which can be used from Python as it is. Nothing here needs TensorFlow, which takes seconds to
import: what the library calls its parts is repeated here, and a test compares.
"""

# ruff: noqa: RUF009  `_option` makes a field

import dataclasses
import functools
import math
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

import click

from tfp_ar1_cli import startup
from tfp_ar1_cli.data import images, loading, series, streams
from tfp_ar1_cli.data.protocol import DataOptions

# What each name means; model cards say it.
LIKELIHOODS = {
    "bernoulli": "Bernoulli, independent for each value; values between 0 and 1 count as "
    "probabilities",
    "gaussian": "Gaussian, independent for each value, with one standard deviation, learned",
}
OBJECTIVES = {
    "elbo": "negative evidence lower bound, the KL multiplied by beta",
    "infovae": "InfoVAE with the maximum mean discrepancy (arXiv:1706.02262)",
    "iwae": "importance-weighted bound (arXiv:1509.00519)",
}
POSTERIORS = {
    "ar1": "AR(1): one scale and one correlation of neighbouring coordinates",
    "diag": "diagonal: a scale for each coordinate, no correlation",
    "isotropic": "isotropic: one scale, no correlation",
    "full": "any covariance, by its Cholesky factor",
    "arh1": "a scale for each coordinate, and one correlation of neighbours",
    "ante1": "a scale for each coordinate, and a correlation for each pair of neighbours",
    "sites": "a Gaussian factor at each step where something was observed, connected by the prior",
}
# Of each model.
NETWORKS = {
    "image": {
        "mlp": "multilayer perceptrons, the decoder the mirror of the encoder",
        "cnn": "convolutional networks",
        "dcgan": "convolutional networks in the manner of DCGAN",
    },
    "sequence": {
        "convolutional": "an encoder of dilated convolutions over time, a decoder of single steps",
        "recurrent": "a recurrent encoder, a decoder of single steps",
    },
}
POSTERIORS_OF = {
    "image": tuple(name for name in POSTERIORS if name != "sites"),
    "sequence": tuple(name for name in POSTERIORS if name != "full"),
}
PRIORS = ("ar1", "normal")
STRATEGIES = ("none", "mirrored", "multiworker")
MODELS = tuple(NETWORKS)
_EPOCHS = {"digits": 200, "mnist": 15, "fashion_mnist": 15}
_EPOCHS |= {"pig_cvp": 40, "basic_motions": 300, "gunpoint": 300}
_EPOCHS_OWN_DATA = 50
_COUNT = click.IntRange(min=1)
_SEED = click.IntRange(0, 2**31 - 1)
_PATH = click.Path(path_type=pathlib.Path)
_FOLDER = click.Path(exists=True, file_okay=False, resolve_path=True)
_METAVARS = {click.IntRange: "N", click.FloatRange: "X", click.Path: "FOLDER"}


class _Finite(click.FloatRange):
    """A range without NaN, which click's ranges let through, and without infinity."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


class _Counts(click.ParamType):
    """Positive whole numbers with commas between."""

    name = "integers"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        try:
            numbers = tuple(int(part) for part in value.split(","))
        except ValueError:
            numbers = (0,)
        if min(numbers) < 1:
            self.fail(
                f"{value!r} is not a list of positive whole numbers like 400 or 400,200.",
                param,
                ctx,
            )
        return numbers


class _Size(click.ParamType):
    """Height and width, or one number for both."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([1-9]\d{0,4})(?:[xX×]([1-9]\d{0,4}))?", value)
        if match is None:
            self.fail(
                f"{value!r} is not a size in pixels, HEIGHTxWIDTH like 48x64, or 64 for a square.",
                param,
                ctx,
            )
        return int(match[1]), int(match[2] or match[1])


def _option(
    kind: Any, help_text: str, default: Any = None, *names: str, later: bool = False, **click_args
) -> Any:
    """A field that is an option too.

    Args:
      kind: Its click type.
      help_text: For `--help`.
      default: What it is if it is not given; or a dictionary with that of each model that has it.
      *names: Other names than that of the field.
      later: Whether runs of the first version do not have it; they did what its default says.
      **click_args: Of `click.option`.
    """
    depends = isinstance(default, dict)
    if depends and "show_default" not in click_args:
        values = [",".join(map(str, d)) if type(d) is tuple else d for d in default.values()]
        click_args["show_default"] = "; for sequences ".join(map(str, values))
    click_args = {
        "default": None if depends else default,
        "metavar": next((m for t, m in _METAVARS.items() if isinstance(kind, t)), None),
        "type": kind,
        "help": help_text,
        **click_args,
    }
    if click_args.get("required"):
        del click_args["default"]
    defaults = default if depends else dict.fromkeys(MODELS, default)
    metadata = {"names": names, "click": click_args, "later": later, "defaults": defaults}
    return dataclasses.field(default=click_args.get("default"), metadata=metadata)


def _run() -> Any:
    return dataclasses.field(metadata={"click": {"metavar": "RUN", "type": _PATH}})


def takes(options: type) -> Callable[[Callable], Callable]:
    """Makes a click callback of a function of an options object, and of more options if need be."""

    def decorate(function: Callable) -> Callable:
        fields = dataclasses.fields(options)

        @functools.wraps(function)
        def call(*args: Any, **values: Any) -> Any:
            startup.check_backend()
            mine = {field.name: values.pop(field.name) for field in fields}
            return function(*args, options=options(**mine), **values)

        for field in reversed(fields):
            name, metadata = field.name, field.metadata
            if "names" in metadata:
                flag = f"--{name.replace('_', '-')}"
                decorator = click.option(*metadata["names"], flag, name, **metadata["click"])
            else:
                decorator = click.argument(name, **metadata["click"])
            call = decorator(call)
        return call

    return decorate


_DATASET_HELP = (
    f"Images: {images.CHOICES}. Those of the last three stay on disk, whatever their size; of "
    f"their test set at most {streams.MAX_TEST_IMAGES} images and "
    f"{streams.MAX_TEST_BYTES // 2**20} MiB are used, which are read into memory. "
    f"Series: {series.CHOICES}."
)
_DATA_DIR_HELP = (
    "Folder of the four IDX files of mnist or fashion_mnist, gzipped or not, or of folders mnist "
    "and fashion_mnist (MNIST/raw and FashionMNIST/raw too) that hold them."
)
_IMPORTANCE_HELP = "Samples per image, or window, for the importance-weighted likelihood."


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What makes a run: its data, its model and its training. Its folder records it.

    An option that is None has the default of the model, the data or the network. Those that only
    the other model has stay None.

    Raises:
      click.UsageError: If options contradict each other.
    """

    model: str = _option(
        click.Choice(MODELS),
        "What is trained: an autoencoder of images, or one of series, whose latents are paths.",
        "image",
        later=True,
    )
    dataset: str = _option(
        click.STRING, _DATASET_HELP, {"image": "digits", "sequence": "pig_cvp"}, metavar="NAME"
    )
    data_dir: str | None = _option(
        _FOLDER, _DATA_DIR_HELP, {"image": None}, show_default="download", later=True
    )
    corrupt: str | None = _option(
        click.Choice(("stop", "skip")),
        "Images on disk: what is done at one that cannot be read. 'skip' leaves it out, counts it "
        "and lists it in skipped.json.",
        {"image": "stop"},
        later=True,
    )
    resize: tuple[int, int] | None = _option(
        _Size(),
        f"Images of {streams.ENCODED_CHOICES}: brought to HEIGHTxWIDTH pixels, or NxN. They are "
        "cut about the centre to that aspect ratio, so that nothing is distorted, and resampled "
        "(bicubic).",
        {"image": None},
        metavar="HxW|N",
        show_default="the size that they have",
        later=True,
    )
    grayscale: bool | None = _option(
        click.BOOL,
        f"Images of {streams.ENCODED_CHOICES}: made gray.",
        {"image": False},
        is_flag=True,
        show_default=False,
        later=True,
    )
    window: int | None = _option(
        click.IntRange(min=2),
        "Sequences: each series is cut into windows of N steps.",
        {"sequence": None},
        show_default="100 for pig_cvp, else whole series",
    )
    columns: str = _option(
        click.Choice(("features", "series")),
        "Tables of series with a row for each step: whether their columns of values are the "
        "features of one series, or each a series.",
        {"sequence": "features"},
        show_default="features",
        later=True,
    )
    network: str = _option(
        click.Choice([name for names in NETWORKS.values() for name in names]),
        "Encoder and decoder: a multilayer perceptron, or convolutions. Sequences: "
        f"{' or '.join(NETWORKS['sequence'])} encoder.",
        {"image": "mlp", "sequence": "convolutional"},
        later=True,
    )
    hidden_units: tuple[int, ...] | None = _option(
        _Counts(),
        "Widths of the encoder's hidden layers, with commas between, for the network mlp; the "
        "decoder mirrors them.",
        {"image": (400,)},
    )
    objective: str = _option(
        click.Choice(tuple(OBJECTIVES)),
        "What is minimized: the negative ELBO, InfoVAE's objective, or the importance-weighted "
        "bound.",
        "elbo",
        later=True,
    )
    beta: float = _option(_Finite(min=0), "Weight of the KL, for the objective elbo.", 1.0)
    posterior: str = _option(
        click.Choice(tuple(POSTERIORS)),
        "Covariance of the posterior q(z | x): with correlations of neighbouring latents (ar1, "
        "arh1, ante1), of all latents (full), or none (diag, isotropic). Sequences: or with those "
        "that the prior gives (sites).",
        "ar1",
    )
    prior: str | None = _option(
        click.Choice(PRIORS),
        "Sequences: prior of each latent path, N(0, I) or an AR(1) process with learned "
        "correlation.",
        {"sequence": "ar1"},
    )
    likelihood: str = _option(
        click.Choice(tuple(LIKELIHOODS)),
        "Distribution of the data given the latents, p(x | z): bernoulli for values from 0 to 1, "
        "gaussian for any.",
        {"image": "bernoulli", "sequence": "gaussian"},
    )
    latent_dim: int | None = _option(_COUNT, "Number of latent coordinates.", {"image": 10})
    channels: int | None = _option(_COUNT, "Sequences: number of latent paths.", {"sequence": 2})
    hide: float | None = _option(
        _Finite(0, 1),
        "Sequences: in training, up to this share of the steps of every other window is hidden, "
        "so that the encoder learns to impute.",
        {"sequence": 0.5},
    )
    epochs: int = _option(
        _COUNT,
        "Passes over the training data.",
        show_default=f"{', '.join(f'{n} for {name}' for name, n in _EPOCHS.items())}, else "
        f"{_EPOCHS_OWN_DATA}",
    )
    batch_size: int = _option(
        _COUNT, "Images, or windows of series, per gradient step.", {"image": 128, "sequence": 32}
    )
    learning_rate: float = _option(
        _Finite(min=0, min_open=True),
        "Step size of Adam; for sequences it falls to 0 over the epochs.",
        {"image": 1e-3, "sequence": 5e-3},
    )
    seed: int = _option(_SEED, "Seed of every random number.", 0)
    num_importance_samples: int = _option(_COUNT, _IMPORTANCE_HELP, 50)
    strategy: str = _option(
        click.Choice(STRATEGIES),
        "How the training is distributed: over the devices of this machine, or over the workers "
        "of TF_CONFIG, with the same command on each.",
        "none",
        later=True,
    )
    replicas: int | None = _option(
        _COUNT,
        "For mirrored: on how many devices.",
        show_default="every GPU; without any, 2 parts of the CPU",
        later=True,
    )

    def __post_init__(self) -> None:
        """Fills in the defaults, and checks that the options go together."""
        if self.network not in (None, "mlp"):
            self._refuse("hidden_units", f"--network mlp, not for {self.network}")
        (other,) = (model for model in MODELS if model != self.model)
        for field in dataclasses.fields(self):
            defaults = field.metadata["defaults"]
            if self.model not in defaults:
                self._refuse(field.name, f"--model {other}, not for {self.model}")
            elif getattr(self, field.name) is None:
                self._set(field.name, defaults[self.model])
        if self.network != "mlp":
            self._set("hidden_units", None)
        for name, choices in (("network", NETWORKS), ("posterior", POSTERIORS_OF)):
            if getattr(self, name) not in choices[self.model]:
                raise click.UsageError(
                    f"--{name} {getattr(self, name)} is not for --model {self.model}; choose "
                    f"{', '.join(choices[self.model])}."
                )
        shipped = self.dataset in series.SHIPPED
        of_series = shipped or loading.is_of_series(self.dataset)
        if of_series and self.model == "image":
            kind = "holds" if shipped else "is a file of"
            raise click.UsageError(f"{self.dataset} {kind} series; give --model sequence too.")
        self._set("dataset", loading.resolve(self.dataset, self.model))
        self._set("epochs", self.epochs or _EPOCHS.get(self.dataset, _EPOCHS_OWN_DATA))
        if self.beta != 1 and self.objective != "elbo":
            self._refuse("beta", f"--objective elbo, not for {self.objective}")
        if self.corrupt == "skip" and not loading.is_stream(self.dataset):
            self._refuse("corrupt", f"{streams.CHOICES}, not for {self.dataset}")
        for name in ("resize", "grayscale"):
            if getattr(self, name) and not loading.is_encoded(self.dataset):
                self._refuse(name, f"{streams.ENCODED_CHOICES}, not for {self.dataset}")
        if self.strategy == "none" and self.replicas != 1:
            self._refuse("replicas", "--strategy mirrored, not for none")
            self._set("replicas", 1)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _refuse(self, name: str, what_for: str) -> None:
        """Refuses an option that was given where it has no use."""
        if getattr(self, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{flag} is for {what_for}; leave it out.")

    @property
    def data(self) -> DataOptions:
        """Which data are read, and how."""
        fields = dataclasses.fields(DataOptions)
        return DataOptions(**{field.name: getattr(self, field.name) for field in fields})

    def as_json(self) -> dict[str, Any]:
        """The options that the model has, for the config of a run."""
        values = {field.name: getattr(self, field.name) for field in self._fields(self.model)}
        return {key: list(x) if isinstance(x, tuple) else x for key, x in values.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "RunOptions":
        """The options of a run of this or of an earlier version.

        Raises:
          KeyError: With the name of an option that is missing or not of its type.
          click.UsageError: If options contradict each other.
        """
        model = values.get("model", "image")
        if model not in MODELS:
            raise KeyError("model")
        found: dict[str, Any] = {}
        for field in cls._fields(model):
            if field.name in values:
                if not _is_valid(field, values[field.name]):
                    raise KeyError(field.name)
                value = values[field.name]
                found[field.name] = tuple(value) if isinstance(value, list) else value
            elif not field.metadata["later"]:
                raise KeyError(field.name)
        return cls(**found)

    @classmethod
    def _fields(cls, model: str) -> list[dataclasses.Field]:
        return [f for f in dataclasses.fields(cls) if model in f.metadata["defaults"]]


def is_count(value: Any) -> bool:
    """Whether it is a whole number that TensorFlow can count to, from 1 on."""
    return type(value) is int and 1 <= value < 2**63


def is_number(value: Any) -> bool:
    """Whether it is a number, finite as a float."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_valid(field: dataclasses.Field, value: Any) -> bool:
    """Whether a value from a file is of the type of an option; which names there are may change."""
    kind = field.metadata["click"]["type"]
    if value is None:
        return field.name in ("data_dir", "hidden_units", "resize")
    if kind is click.BOOL:
        return isinstance(value, bool)
    if isinstance(kind, click.IntRange):
        return is_count(value) or (value == 0 and type(value) is int and kind.min == 0)
    if isinstance(kind, click.FloatRange):
        return is_number(value)
    if isinstance(kind, _Counts | _Size):
        right_length = len(value) == 2 if isinstance(kind, _Size) else value
        return isinstance(value, list) and bool(right_length) and all(map(is_count, value))
    return isinstance(value, str)


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Which run is evaluated, and on what; None is what the run was trained with."""

    run: pathlib.Path = _run()
    dataset: str | None = _option(
        click.STRING, _DATASET_HELP, metavar="NAME", show_default="that of the run"
    )
    data_dir: str | None = _option(_FOLDER, _DATA_DIR_HELP, show_default="download")
    num_importance_samples: int | None = _option(
        _COUNT, _IMPORTANCE_HELP, show_default="as in the training"
    )


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Which run draws samples, how many, and where they go."""

    run: pathlib.Path = _run()
    num_samples: int = _option(_COUNT, "How many images, or windows of series.", 64, "-n")
    seed: int = _option(_SEED, "Seed of the samples.", 0)
    noise: bool = _option(
        click.BOOL, "Draw of p(x | z), with its noise, instead of its mean.", False, is_flag=True
    )
    # A string, since a path does not tell how it ends.
    out: str | pathlib.Path | None = _option(
        click.Path(),
        "A new file: .png draws the images, or the first windows; .npy and .npz store an array, "
        ".csv has a row for each image, or step. FOLDER/ has a .png file of each.",
        metavar="FILE",
        show_default="RUN/samples-seed<seed>.png, -2, -3, ...",
    )


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Which run is exported, and where to."""

    run: pathlib.Path = _run()
    out: pathlib.Path | None = _option(
        _PATH, "A new folder, or an empty one.", show_default="RUN/export"
    )

"""The options of the commands: their names, allowed values and defaults.

Every option is a field of a frozen dataclass. The command line makes its options from the
dataclasses, and Python code can use them directly. Nothing here imports TensorFlow, which takes
seconds: the library's names for its parts are repeated here, and a test compares them.
"""

# ruff: noqa: RUF009  `option` makes a field

import dataclasses
import pathlib
import sys
from typing import Any

import click

from tfp_ar1_cli.data import images, loading, series, streams
from tfp_ar1_cli.data.protocol import DataOptions
from tfp_ar1_cli.names import (
    LIKELIHOODS,
    MODELS,
    NETWORKS,
    OBJECTIVES,
    POSTERIOR_HELP,
    POSTERIORS,
    POSTERIORS_OF,
    PRIORS,
    SIZES,
    SPLITS,
    STRATEGIES,
)
from tfp_ar1_cli.option_fields import (
    COUNT,
    FOLDER,
    OTHER_RUN,
    PATH,
    SEED,
    Correlations,
    Counts,
    Finite,
    Size,
    option,
    run_argument,
)

_EPOCHS = {"digits": 200, "mnist": 15, "fashion_mnist": 15}
_EPOCHS |= {"pig_cvp": 40, "basic_motions": 300, "gunpoint": 300}
# The user may have few data, so the default length of training on them is in optimizer steps.
_STEPS_OWN_DATA = {"image": 3000, "sequence": 1500}
_FEWEST_EPOCHS, _MOST_EPOCHS = 10, 1000
# Options that the config of a run may leave open.
_OPTIONAL = (
    "data_dir",
    "hidden_units",
    "filters",
    "units",
    "prior_correlations",
    "patience",
    "extend",
    "warm_start",
    "resize",
)


_DATASET_HELP = (
    f"Images: {images.CHOICES}. The last three keep their images on disk, whatever their size; of "
    f"their test set, at most {streams.MAX_TEST_IMAGES} images and "
    f"{streams.MAX_TEST_BYTES // 2**20} MiB are used and read into memory. "
    f"Series: {series.CHOICES}."
)
_DATA_DIR_HELP = (
    "Folder of the four IDX files of mnist or fashion_mnist, gzipped or not, or of folders mnist "
    "and fashion_mnist (or MNIST/raw and FashionMNIST/raw) that hold them."
)
IMPORTANCE_HELP = "Samples per image, or window, for the importance-weighted likelihood."


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What defines a run: its data, its model and its training. The run's folder records it.

    An option that is None gets the default of the model, the data or the network. Options that only
    the other model has stay None. For the user's own data, `epochs` and `split` also stay None,
    until `train.prepare` sets them.

    Raises:
      click.UsageError: If options contradict each other.
    """

    model: str = option(
        click.Choice(MODELS),
        "The model to train: an autoencoder of images, or one of series, with latent paths.",
        "image",
        later=True,
    )
    dataset: str = option(
        click.STRING, _DATASET_HELP, {"image": "digits", "sequence": "pig_cvp"}, metavar="NAME"
    )
    data_dir: str | None = option(
        FOLDER, _DATA_DIR_HELP, {"image": None}, show_default="download", later=True
    )
    corrupt: str | None = option(
        click.Choice(("stop", "skip")),
        "Images on disk: what to do with an image that cannot be read. 'skip' leaves it out, "
        "counts it and lists it in skipped.json.",
        {"image": "stop"},
        later=True,
    )
    resize: tuple[int, int] | None = option(
        Size(),
        f"Images of {streams.ENCODED_CHOICES}: resize to HEIGHTxWIDTH pixels, or NxN. They are "
        "cropped around the centre to that aspect ratio, so nothing is distorted, and "
        "resampled (bicubic).",
        {"image": None},
        metavar="HxW|N",
        show_default="their own size",
        later=True,
    )
    grayscale: bool | None = option(
        click.BOOL,
        f"Images of {streams.ENCODED_CHOICES}: convert to grayscale.",
        {"image": False},
        is_flag=True,
        show_default=False,
        later=True,
    )
    window: int | None = option(
        click.IntRange(min=2),
        "Sequences: cut each series into windows of N steps.",
        {"sequence": None},
        show_default="100 for pig_cvp; else whole series, but a single one is cut",
    )
    columns: str = option(
        click.Choice(("features", "series")),
        "Tables of series with a row for each step: whether the columns of values are the "
        "features of one series, or one series each.",
        {"sequence": "features"},
        show_default="features",
        later=True,
    )
    network: str = option(
        click.Choice([name for names in NETWORKS.values() for name in names]),
        "Encoder and decoder: a multilayer perceptron, or convolutions. Sequences: "
        f"{' or '.join(NETWORKS['sequence'])} encoder.",
        {"image": "mlp", "sequence": "convolutional"},
        later=True,
    )
    hidden_units: tuple[int, ...] | None = option(
        Counts(),
        "Widths of hidden layers, separated by commas: for the network mlp those of the encoder, "
        "which the decoder mirrors; for sequences those of the decoder.",
        {"image": (400,), "sequence": None},
        show_default="400; for sequences 32",
        later="sequence",
    )
    filters: tuple[int, ...] | None = option(
        Counts(),
        "Filters of each convolution of the encoder, separated by commas, for the networks cnn, "
        "dcgan and convolutional.",
        show_default="64,128 for cnn, doubling from 64 for dcgan, six times 32 for convolutional",
        later=True,
    )
    units: int | None = option(
        COUNT,
        "Width of the recurrent encoder in each direction.",
        {"sequence": None},
        show_default="32",
        later=True,
    )
    objective: str = option(
        click.Choice(tuple(OBJECTIVES)),
        "What is minimized: the negative ELBO, InfoVAE's objective, or the importance-weighted "
        "bound.",
        "elbo",
        later=True,
    )
    beta: float = option(Finite(min=0), "Weight of the KL, for the objective elbo.", 1.0)
    warmup_steps: int = option(
        click.IntRange(min=0),
        "Optimizer steps in which the weight of the KL grows from 0 to --beta, against posteriors "
        "that stay at the prior.",
        0,
        later=True,
    )
    posterior: str = option(
        click.Choice(tuple(POSTERIORS)),
        POSTERIOR_HELP,
        "ar1",
    )
    prior: str | None = option(
        click.Choice(PRIORS),
        "Sequences: prior of each latent path, N(0, I) or an AR(1) process with learned "
        "correlation.",
        {"sequence": "ar1"},
    )
    prior_correlations: tuple[float, ...] | None = option(
        Correlations(),
        "Sequences: at which correlations the AR(1) priors start, one for each latent path, "
        "separated by commas. Forecasts of many steps may need slow paths, such as 0.9,0.99,0.999.",
        {"sequence": None},
        show_default="0 for each",
        later=True,
    )
    likelihood: str = option(
        click.Choice(tuple(LIKELIHOODS)),
        "Distribution of the data given the latents, p(x | z): bernoulli for values from 0 to 1, "
        "gaussian for any.",
        {"image": "bernoulli", "sequence": "gaussian"},
    )
    latent_dim: int | None = option(COUNT, "Number of latent coordinates.", {"image": 10})
    channels: int | None = option(COUNT, "Sequences: number of latent paths.", {"sequence": 2})
    hide: float | None = option(
        Finite(0, 1),
        "Sequences: in training, hide up to this share of the steps of half of the windows, so the "
        "encoder learns to impute.",
        {"sequence": 0.5},
    )
    epochs: int = option(
        COUNT,
        "Passes over the training data; with --extend, additional passes.",
        show_default=f"{', '.join(f'{n} for {name}' for name, n in _EPOCHS.items())}; for your own "
        f"data as many as make {_STEPS_OWN_DATA['image']} optimizer steps, for sequences "
        f"{_STEPS_OWN_DATA['sequence']}, from {_FEWEST_EPOCHS} to {_MOST_EPOCHS}",
    )
    validation: float = option(
        Finite(0, 0.5),
        "Share of the training data to set apart for validation. Learning curves and early "
        "stopping then use it, and the test data are only for the final evaluation. For series, "
        "it is the last windows.",
        show_default="0; 0.1 with --patience",
        later=True,
    )
    patience: int | None = option(
        COUNT,
        "Early stopping: end the training after N epochs without a lower validation loss, and "
        "keep the weights of the best epoch.",
        show_default="no early stopping",
        later=True,
    )
    split: str | None = option(
        click.Choice(tuple(SPLITS)),
        "Which examples are test examples, if the data do not say: "
        + "; ".join(f"{name}: {text}" for name, text in SPLITS.items())
        + ". One long series is always tested at its end.",
        show_default="shuffled for digits, stable for your own data",
        later=True,
    )
    batch_size: int = option(
        COUNT, "Images, or windows of series, per gradient step.", {"image": 128, "sequence": 32}
    )
    learning_rate: float = option(
        Finite(min=0, min_open=True),
        "Step size of Adam; for sequences it falls to 0 over the epochs.",
        {"image": 1e-3, "sequence": 5e-3},
    )
    seed: int = option(SEED, "Seed of every random number.", 0)
    num_importance_samples: int = option(COUNT, IMPORTANCE_HELP, 50)
    strategy: str = option(
        click.Choice(STRATEGIES),
        "How to distribute the training: over the devices of this machine, or over the workers "
        "of TF_CONFIG, with the same command on each.",
        "none",
        later=True,
    )
    replicas: int | None = option(
        COUNT,
        "For mirrored: the number of devices.",
        show_default="every GPU; without any, 2 parts of the CPU",
        later=True,
    )
    extend: str | None = option(
        OTHER_RUN,
        "Continue a finished run for --epochs N more, in a new folder, from its weights, its "
        "optimizer state and its history, with its options unless others are given.",
        metavar="RUN",
        later=True,
    )
    warm_start: str | None = option(
        OTHER_RUN,
        "Begin a new run with the weights of a finished run of the same network and data shape, "
        "and with its options unless others are given.",
        None,
        "--from",
        metavar="RUN",
        later=True,
    )

    def __post_init__(self) -> None:
        """Fills in the defaults, and checks that the options go together."""
        if self.network is None:
            self._set("network", next(iter(NETWORKS[self.model])))
        takers = [n for n in NETWORKS[self.model] if self.network in NETWORKS[self.model]]
        sizes = SIZES[self.network]
        for name in ("hidden_units", "filters", "units"):
            able = [network for network in takers if name in SIZES[network]]
            if able and name not in sizes:
                self._refuse(name, f"--network {' and '.join(able)}, not for {self.network}")
        (other,) = (model for model in MODELS if model != self.model)
        for field in dataclasses.fields(self):
            defaults = field.metadata["defaults"]
            if self.model not in defaults:
                self._refuse(field.name, f"--model {other}, not for {self.model}")
            elif getattr(self, field.name) is None:
                self._set(field.name, defaults[self.model])
        if "hidden_units" not in sizes:
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
        self._set("epochs", self.epochs or _EPOCHS.get(self.dataset))
        if self.validation is None:
            self._set("validation", 0.1 if self.patience else 0.0)
        if self.patience and not self.validation:
            self._refuse("patience", "--validation above 0, not for 0")
        if self.extend and self.warm_start:
            raise click.UsageError(
                "--extend continues a run, --from begins a new one; leave one of them out."
            )
        for name, value in (("beta", self.beta != 1), ("warmup_steps", self.warmup_steps)):
            if value and self.objective != "elbo":
                self._refuse(name, f"--objective elbo, not for {self.objective}")
        if self.prior != "ar1":
            self._refuse("prior_correlations", f"--prior ar1, not for {self.prior}")
        number = len(self.prior_correlations or ())
        if number not in (0, self.channels):
            raise click.UsageError(
                f"--prior-correlations needs a number for each of the {self.channels} latent "
                f"paths, not {number}; give --channels {number} too?"
            )
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
        """Raises an error if an option was given that has no effect here."""
        if getattr(self, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{flag} is for {what_for}; leave it out.")

    def default_epochs(self, num_train: int) -> int:
        """Returns the default number of epochs for this number of training examples."""
        steps_per_epoch = -(-num_train // self.batch_size)
        epochs = -(-_STEPS_OWN_DATA[self.model] // steps_per_epoch)
        return min(max(epochs, _FEWEST_EPOCHS), _MOST_EPOCHS)

    @property
    def monitored(self) -> str:
        """The name of the data of the learning curves."""
        return "validation" if self.validation else "test"

    @property
    def data(self) -> DataOptions:
        """The options that say which data are read, and how."""
        fields = dataclasses.fields(DataOptions)
        return DataOptions(**{field.name: getattr(self, field.name) for field in fields})

    def as_json(self) -> dict[str, Any]:
        """Returns the options that the model has, for the config of a run."""
        values = {field.name: getattr(self, field.name) for field in self._fields(self.model)}
        return {key: list(x) if isinstance(x, tuple) else x for key, x in values.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "RunOptions":
        """Reads the options of a run of this or of an earlier version.

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
            elif field.metadata["later"] not in (True, model):
                raise KeyError(field.name)
        found.setdefault("split", "shuffled")  # Runs without this option shuffled.
        return cls(**found)

    def changed(self) -> dict[str, Any]:
        """Returns the options that differ from the defaults of the model, data and network."""
        base = {name: getattr(self, name) for name in ("model", "dataset", "network")}
        first = RunOptions(model=self.model)
        defaults = RunOptions(**base).as_json() | {"split": default_split(self.dataset)}
        defaults |= {"model": MODELS[0], "dataset": first.dataset, "network": first.network}
        return {name: x for name, x in self.as_json().items() if x != defaults[name]}

    @classmethod
    def _fields(cls, model: str) -> list[dataclasses.Field]:
        return [f for f in dataclasses.fields(cls) if model in f.metadata["defaults"]]


def default_split(dataset: str) -> str:
    """Returns the default of `split`: stable for the user's own data, which may grow."""
    return "stable" if ":" in dataset else "shuffled"


def is_count(value: Any) -> bool:
    """Whether a value is a whole number from 1 on that TensorFlow can count to."""
    return type(value) is int and 1 <= value < 2**63


def is_number(value: Any) -> bool:
    """Whether a value is a number that is finite as a float."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_valid(field: dataclasses.Field, value: Any) -> bool:
    """Whether a value from a file has the type of an option; the allowed names may change."""
    kind = field.metadata["click"]["type"]
    if value is None:
        return field.name in _OPTIONAL
    if kind is click.BOOL:
        return isinstance(value, bool)
    if isinstance(kind, click.IntRange):
        return is_count(value) or (value == 0 and type(value) is int and kind.min == 0)
    if isinstance(kind, click.FloatRange):
        return is_number(value)
    if isinstance(kind, Correlations):
        return isinstance(value, list) and all(is_number(x) and -1 < x < 1 for x in value)
    if isinstance(kind, Counts | Size):
        right_length = len(value) == 2 if isinstance(kind, Size) else value
        return isinstance(value, list) and bool(right_length) and all(map(is_count, value))
    return isinstance(value, str)


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """The run to evaluate, and on what; None means as in its training."""

    run: pathlib.Path = run_argument()
    dataset: str | None = option(
        click.STRING, _DATASET_HELP, metavar="NAME", show_default="that of the run"
    )
    data_dir: str | None = option(FOLDER, _DATA_DIR_HELP, show_default="that of the run")
    num_importance_samples: int | None = option(
        COUNT, IMPORTANCE_HELP, show_default="as in the training"
    )


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """The run that draws samples, how many, and where they are written."""

    run: pathlib.Path = run_argument()
    num_samples: int = option(COUNT, "How many images, or windows of series.", 64, "-n")
    seed: int = option(SEED, "Seed of the samples.", 0)
    noise: bool = option(
        click.BOOL, "Draw from p(x | z), noise included, instead of its mean.", False, is_flag=True
    )
    # A string, because a `Path` drops the slash at the end.
    out: str | pathlib.Path | None = option(
        click.Path(),
        "A new file: .png draws the images, or the first windows; .npy and .npz store an array; "
        ".csv has a row for each image, or step. FOLDER/ gets a .png file for each.",
        metavar="FILE",
        show_default="RUN/samples[-noise]-seed<seed>.png, -2, -3, ...",
    )


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """The run to export, and the folder to write."""

    run: pathlib.Path = run_argument()
    out: pathlib.Path | None = option(
        PATH,
        "A new folder, or an empty one; with --serving one that may hold versions already.",
        show_default="RUN/export, with --serving RUN/serving",
    )
    serving: bool = option(
        click.BOOL,
        "Write what TensorFlow Serving loads: the folder --out/1, or the one with the next "
        "free number, so exporting again adds a version.",
        False,
        is_flag=True,
        metavar=None,
    )

"""The options of the commands: what they are called, what they may be, what they are by default.

Every option is a field of a frozen dataclass, from which the command line makes its options, and
which can be used from Python as it is. Nothing here needs TensorFlow, which takes seconds to
import: what the library calls its parts is repeated here, and a test compares.
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
    Counts,
    Finite,
    Size,
    option,
    run_argument,
)

_EPOCHS = {"digits": 200, "mnist": 15, "fashion_mnist": 15}
_EPOCHS |= {"pig_cvp": 40, "basic_motions": 300, "gunpoint": 300}
# The user's own data may be few: how long to train on them is counted in steps of the optimizer.
_STEPS_OWN_DATA = {"image": 3000, "sequence": 1500}
_FEWEST_EPOCHS, _MOST_EPOCHS = 10, 1000
# What the config of a run may leave open.
_OPTIONAL = (
    "data_dir",
    "hidden_units",
    "filters",
    "units",
    "patience",
    "extend",
    "warm_start",
    "resize",
)


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
IMPORTANCE_HELP = "Samples per image, or window, for the importance-weighted likelihood."


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What makes a run: its data, its model and its training. Its folder records it.

    An option that is None has the default of the model, the data or the network. Those that only
    the other model has stay None, and so do `epochs` and `split` of the user's own data, until
    `train.prepare` has them.

    Raises:
      click.UsageError: If options contradict each other.
    """

    model: str = option(
        click.Choice(MODELS),
        "What is trained: an autoencoder of images, or one of series, whose latents are paths.",
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
        "Images on disk: what is done at one that cannot be read. 'skip' leaves it out, counts it "
        "and lists it in skipped.json.",
        {"image": "stop"},
        later=True,
    )
    resize: tuple[int, int] | None = option(
        Size(),
        f"Images of {streams.ENCODED_CHOICES}: brought to HEIGHTxWIDTH pixels, or NxN. They are "
        "cut about the centre to that aspect ratio, so that nothing is distorted, and resampled "
        "(bicubic).",
        {"image": None},
        metavar="HxW|N",
        show_default="the size that they have",
        later=True,
    )
    grayscale: bool | None = option(
        click.BOOL,
        f"Images of {streams.ENCODED_CHOICES}: made gray.",
        {"image": False},
        is_flag=True,
        show_default=False,
        later=True,
    )
    window: int | None = option(
        click.IntRange(min=2),
        "Sequences: each series is cut into windows of N steps.",
        {"sequence": None},
        show_default="100 for pig_cvp, else whole series",
    )
    columns: str = option(
        click.Choice(("features", "series")),
        "Tables of series with a row for each step: whether their columns of values are the "
        "features of one series, or each a series.",
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
        "Widths of hidden layers, with commas between: of the encoder of the network mlp, which "
        "the decoder mirrors; of the decoder of the networks for sequences.",
        {"image": (400,), "sequence": None},
        show_default="400; for sequences 32",
        later="sequence",
    )
    filters: tuple[int, ...] | None = option(
        Counts(),
        "Filters of each convolution of the encoder, with commas between, for the networks cnn, "
        "dcgan and convolutional.",
        show_default="64,128 for cnn, from 64 on doubled for dcgan, six times 32 for convolutional",
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
        "Sequences: in training, up to this share of the steps of every other window is hidden, "
        "so that the encoder learns to impute.",
        {"sequence": 0.5},
    )
    epochs: int = option(
        COUNT,
        "Passes over the training data; with --extend so many more.",
        show_default=f"{', '.join(f'{n} for {name}' for name, n in _EPOCHS.items())}; for your own "
        f"data as many as make {_STEPS_OWN_DATA['image']} steps of the optimizer, for sequences "
        f"{_STEPS_OWN_DATA['sequence']}, from {_FEWEST_EPOCHS} to {_MOST_EPOCHS}",
    )
    validation: float = option(
        Finite(0, 0.5),
        "Share of the training data that is set apart for validation: learning curves and early "
        "stopping are then on it, and the test data are for the final evaluation alone. Of series "
        "these are the last windows.",
        show_default="0; 0.1 with --patience",
        later=True,
    )
    patience: int | None = option(
        COUNT,
        "Early stopping: the training ends after N epochs without a lower validation loss, and "
        "has the weights of the best epoch.",
        show_default="no early stopping",
        later=True,
    )
    split: str | None = option(
        click.Choice(tuple(SPLITS)),
        "Which examples are test examples, where the data do not say: "
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
        "How the training is distributed: over the devices of this machine, or over the workers "
        "of TF_CONFIG, with the same command on each.",
        "none",
        later=True,
    )
    replicas: int | None = option(
        COUNT,
        "For mirrored: on how many devices.",
        show_default="every GPU; without any, 2 parts of the CPU",
        later=True,
    )
    extend: str | None = option(
        OTHER_RUN,
        "Continues a finished run in a new folder for --epochs N more, from its weights, its "
        "optimizer's state and its history, with its options where none are given.",
        metavar="RUN",
        later=True,
    )
    warm_start: str | None = option(
        OTHER_RUN,
        "Begins a new run with the weights of a finished one of the same network and shape of "
        "data, and with its options where none are given.",
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

    def default_epochs(self, num_train: int) -> int:
        """How many epochs there are where that was left open, for so many training examples."""
        steps_per_epoch = -(-num_train // self.batch_size)
        epochs = -(-_STEPS_OWN_DATA[self.model] // steps_per_epoch)
        return min(max(epochs, _FEWEST_EPOCHS), _MOST_EPOCHS)

    @property
    def monitored(self) -> str:
        """What the data of the learning curves are called."""
        return "validation" if self.validation else "test"

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
            elif field.metadata["later"] not in (True, model):
                raise KeyError(field.name)
        found.setdefault("split", "shuffled")  # Which is what those did that do not say.
        return cls(**found)

    def changed(self) -> dict[str, Any]:
        """The options that are not what they are by default for the model, data and network."""
        base = {name: getattr(self, name) for name in ("model", "dataset", "network")}
        first = RunOptions(model=self.model)
        defaults = RunOptions(**base).as_json() | {"split": default_split(self.dataset)}
        defaults |= {"model": MODELS[0], "dataset": first.dataset, "network": first.network}
        return {name: x for name, x in self.as_json().items() if x != defaults[name]}

    @classmethod
    def _fields(cls, model: str) -> list[dataclasses.Field]:
        return [f for f in dataclasses.fields(cls) if model in f.metadata["defaults"]]


def default_split(dataset: str) -> str:
    """What `split` is where it is not given: the user's own data may get more."""
    return "stable" if ":" in dataset else "shuffled"


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
        return field.name in _OPTIONAL
    if kind is click.BOOL:
        return isinstance(value, bool)
    if isinstance(kind, click.IntRange):
        return is_count(value) or (value == 0 and type(value) is int and kind.min == 0)
    if isinstance(kind, click.FloatRange):
        return is_number(value)
    if isinstance(kind, Counts | Size):
        right_length = len(value) == 2 if isinstance(kind, Size) else value
        return isinstance(value, list) and bool(right_length) and all(map(is_count, value))
    return isinstance(value, str)


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Which run is evaluated, and on what; None is what the run was trained with."""

    run: pathlib.Path = run_argument()
    dataset: str | None = option(
        click.STRING, _DATASET_HELP, metavar="NAME", show_default="that of the run"
    )
    data_dir: str | None = option(FOLDER, _DATA_DIR_HELP, show_default="download")
    num_importance_samples: int | None = option(
        COUNT, IMPORTANCE_HELP, show_default="as in the training"
    )


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Which run draws samples, how many, and where they go."""

    run: pathlib.Path = run_argument()
    num_samples: int = option(COUNT, "How many images, or windows of series.", 64, "-n")
    seed: int = option(SEED, "Seed of the samples.", 0)
    noise: bool = option(
        click.BOOL, "Draw of p(x | z), with its noise, instead of its mean.", False, is_flag=True
    )
    # A string, since a path does not tell how it ends.
    out: str | pathlib.Path | None = option(
        click.Path(),
        "A new file: .png draws the images, or the first windows; .npy and .npz store an array, "
        ".csv has a row for each image, or step. FOLDER/ has a .png file of each.",
        metavar="FILE",
        show_default="RUN/samples-seed<seed>.png, -2, -3, ...",
    )


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Which run is exported, and where to."""

    run: pathlib.Path = run_argument()
    out: pathlib.Path | None = option(
        PATH,
        "A new folder, or an empty one; with --serving one that may hold versions already.",
        show_default="RUN/export, with --serving RUN/serving",
    )
    serving: bool = option(
        click.BOOL,
        "Write the form that TensorFlow Serving takes: the folder --out/1, or that of the next "
        "free number, so that exporting again adds a version.",
        False,
        is_flag=True,
        metavar=None,
    )

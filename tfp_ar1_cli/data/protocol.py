"""What the training, the evaluation and the pictures ask of data, whatever they are."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from tfp_ar1_cli.progress import counted


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Which data are read, and how.

    Attributes:
      model: What they are for: `"image"` or `"sequence"`.
      dataset: A `--dataset` value, as `loading.resolve` returns it.
      data_dir: Images: the folder of the IDX files of `mnist` and `fashion_mnist`.
      likelihood: With `"bernoulli"` every value must lie within [0, 1].
      corrupt: Images on disk: `"stop"` or `"skip"`, what is done with one that cannot be read.
      resize: Images in files: the height and width that they are brought to, or None.
      grayscale: Images in files: whether colours become gray.
      window: Series: each is cut into pieces of so many steps.
      columns: Series in tables with a row for each step: whether columns of values are
        `"features"` of one series, or `"series"`.
      split: `"stable"` or `"shuffled"` (None too): how test examples are chosen, see `split`.
    """

    model: str = "image"
    dataset: str = "digits"
    data_dir: str | None = None
    likelihood: str = "bernoulli"
    corrupt: str = "stop"
    resize: tuple[int, int] | None = None
    grayscale: bool = False
    window: int | None = None
    columns: str = "features"
    split: str | None = None


@dataclasses.dataclass(frozen=True)
class Data:
    """Training and test data, checked and scaled; each kind of data is a subclass.

    Attributes:
      x_train: The training examples, float32 `[N, *data_shape]`: an array, or a `streams.Stream`.
      x_test: The test examples, float32 `[N, *data_shape]`.
      notes: What the user should know about how the data were understood.
      validation: What `hold_out` has set apart of the training data, as the model takes them.
    """

    x_train: Any
    x_test: np.ndarray
    notes: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    validation: Any = dataclasses.field(default=None, kw_only=True)

    noun: ClassVar[str]
    shape_key: ClassVar[str]

    @property
    def data_shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.x_train.shape[1:]

    @property
    def train(self) -> Any:
        """The training data as the model takes them."""
        return self.x_train

    @property
    def test(self) -> Any:
        """The test data as the model takes them."""
        return self.x_test

    @property
    def monitored(self) -> Any:
        """What the learning curves are on: the validation data, without them the test data."""
        return self.test if self.validation is None else self.validation

    def hold_out(self, share: float) -> "Data":
        """The data with a share of the training examples set apart for validation."""
        raise NotImplementedError

    @property
    def skipped(self) -> dict[str, str]:
        """What was wrong with the examples that were left out so far, by their position on disk."""
        return getattr(self.x_train, "skipped", {})

    def shape_text(self) -> str:
        """The shape of one example in words."""
        raise NotImplementedError

    def describe(self) -> str:
        """How many examples of which shape there are, in words."""
        tests = counted(len(self.x_test), f"test {self.noun}")
        apart = self.validation["x"] if isinstance(self.validation, dict) else self.validation
        validation = "" if apart is None else f", {len(apart)} validation"
        return f"{len(self.x_train)} training{validation} and {tests} of {self.shape_text()}"

    def _sha256(self) -> str:
        raise NotImplementedError

    def _described(self) -> dict[str, Any]:
        """What else belongs in the fingerprint."""
        raise NotImplementedError

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the data in a run's config."""
        return {
            self.shape_key: list(self.data_shape),
            "num_train": len(self.x_train),
            "num_test": len(self.x_test),
            **self._described(),
            "sha256": self._sha256(),
        }

    def is_that_of(self, trained: dict[str, Any]) -> bool:
        """Whether these are the data of a fingerprint."""
        return self._sha256() == trained.get("sha256")


def sha256_of(arrays: Sequence[np.ndarray]) -> str:
    """A hash of the shapes and the values of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()

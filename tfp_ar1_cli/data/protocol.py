"""The interface of data to training, evaluation and pictures."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from tfp_ar1_cli.progress import counted


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Which data to read, and how.

    Attributes:
      model: The kind of model: `"image"` or `"sequence"`.
      dataset: A `--dataset` value, as `loading.resolve` returns it.
      data_dir: Images: the folder of the IDX files of `mnist` and `fashion_mnist`.
      likelihood: With `"bernoulli"`, every value must lie within [0, 1].
      corrupt: Images on disk: `"stop"` at an image that cannot be read, or `"skip"` it.
      resize: Images in files: the height and width to resize to, or None.
      grayscale: Images in files: whether colours become gray.
      window: Series: the number of steps of the windows that each is cut into.
      columns: Series in tables with a row for each step: whether columns of values are
        `"features"` of one series, or `"series"`.
      split: How test examples are chosen: `"stable"` or `"shuffled"` (also None), see `split`.
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
      notes: Notes for the user on how the data were interpreted.
      validation: The validation data that `hold_out` has set apart, as the model takes them.
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
        """The data of the learning curves: the validation data, or without any the test data."""
        return self.test if self.validation is None else self.validation

    def hold_out(self, share: float) -> "Data":
        """The data with a share of the training examples set apart for validation."""
        raise NotImplementedError

    @property
    def skipped(self) -> dict[str, str]:
        """The problems of the examples left out so far, by position on disk."""
        return getattr(self.x_train, "skipped", {})

    def shape_text(self) -> str:
        """The shape of one example for messages."""
        raise NotImplementedError

    def describe(self) -> str:
        """The numbers of examples and their shape, for messages."""
        tests = counted(len(self.x_test), f"test {self.noun}")
        apart = self.validation["x"] if isinstance(self.validation, dict) else self.validation
        validation = "" if apart is None else f", {len(apart)} validation"
        return f"{len(self.x_train)} training{validation} and {tests} of {self.shape_text()}"

    def _sha256(self) -> str:
        raise NotImplementedError

    def _described(self) -> dict[str, Any]:
        """Further entries of the fingerprint."""
        raise NotImplementedError

    def fingerprint(self) -> dict[str, Any]:
        """The entries that identify the data in a run's config."""
        return {
            self.shape_key: list(self.data_shape),
            "num_train": len(self.x_train),
            "num_test": len(self.x_test),
            **self._described(),
            "sha256": self._sha256(),
        }

    def is_that_of(self, trained: dict[str, Any]) -> bool:
        """Whether these data have the given fingerprint."""
        return self._sha256() == trained.get("sha256")


def sha256_of(arrays: Sequence[np.ndarray]) -> str:
    """A hash of the shapes and the values of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()

"""What the training, the evaluation and the pictures ask of data, whatever they are."""

import dataclasses
from typing import Any, Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Which data are read, and how.

    Attributes:
      model: What they are for: `"image"` or `"sequence"`.
      dataset: A `--dataset` value, as `loading.resolve` returns it.
      data_dir: Images: the folder of the IDX files of `mnist` and `fashion_mnist`.
      likelihood: With `"bernoulli"` every value must lie within [0, 1].
      corrupt: Images on disk: `"stop"` or `"skip"`, what is done with one that cannot be read.
      window: Series: each is cut into pieces of so many steps.
    """

    model: str = "image"
    dataset: str = "digits"
    data_dir: str | None = None
    likelihood: str = "bernoulli"
    corrupt: str = "stop"
    window: int | None = None


class Data(Protocol):
    """Training and test data, checked and scaled."""

    @property
    def x_train(self) -> Any:
        """The training examples, float32 `[N, *data_shape]`; an array, or a stream from disk."""

    @property
    def x_test(self) -> np.ndarray:
        """The test examples, float32 `[N, *data_shape]`."""

    @property
    def data_shape(self) -> tuple[int, ...]:
        """The shape of one example."""

    @property
    def train(self) -> Any:
        """The training data as the model takes them."""

    @property
    def test(self) -> Any:
        """The test data as the model takes them."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about how the data were understood."""

    @property
    def skipped(self) -> dict[str, str]:
        """What was wrong with the examples that were left out so far, by their position on disk."""

    def describe(self) -> str:
        """How many examples of which shape there are, in words."""

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the data in a run's config."""

    def is_that_of(self, trained: dict[str, Any]) -> bool:
        """Whether these are the data of a fingerprint."""

"""The order of the training data, and the pipeline that feeds batches to the model."""

import collections
import contextlib
import functools
import itertools
import math
import threading
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import keras
import numpy as np

from tfp_ar1_cli import backend
from tfp_ar1_cli.data import series

# Batches read in parallel; as many again wait for the model.
_READERS = 4


class Batches:
    """Training data in an order that depends only on the seed and the epoch.

    Each epoch has its own order, so training resumed at any step sees the same batches, and the
    same hidden steps of series, as uninterrupted training. Replicas divide a batch by indices, and
    each reads only its own examples.

    Args:
      x: The data `[N, ...]`, or a dictionary of such; arrays, or objects indexed like arrays.
      batch_size: Examples in a batch, over all replicas.
      seed: The seed of the run.
      hide: See `series.hide`; 0 hides nothing.
    """

    def __init__(
        self, x: np.ndarray | dict[str, np.ndarray], batch_size: int, seed: int, hide: float = 0
    ) -> None:
        self._x, self._batch_size, self._seed, self._hide = x, batch_size, seed, hide
        self._parts = keras.tree.flatten(x)
        self._num_examples = len(self._parts[0])
        self.steps_per_epoch = math.ceil(self._num_examples / batch_size)
        self._error: Exception | None = None
        self._order = functools.lru_cache(maxsize=2)(self._order_of)
        self._lock = threading.Lock()

    def share(self, step: int, replica: int = 0, num_replicas: int = 1) -> list[np.ndarray]:
        """One replica's share of a batch: the arrays of the data, flattened.

        Args:
          step: The step, counted from the beginning of the training.
          replica: The index of the share.
          num_replicas: The number of shares; their sizes differ by at most 1.
        """
        epoch, index = divmod(step, self.steps_per_epoch)
        with self._lock:  # Otherwise, several threads would shuffle the same epoch.
            order = self._order(epoch)
        chosen = order[index * self._batch_size : (index + 1) * self._batch_size]
        if not self._hide:
            chosen = np.array_split(chosen, num_replicas)[replica]
            return [np.asarray(part[chosen]) for part in self._parts]
        # Hidden steps are drawn for the whole batch, so they do not depend on the replicas.
        batch = keras.tree.map_structure(lambda part: part[chosen], self._x)
        batch = series.hide(batch, self._hide, [self._seed, epoch, index])
        return [np.array_split(part, num_replicas)[replica] for part in keras.tree.flatten(batch)]

    def dataset(self, first_step: int, strategy: Any) -> Any:
        """An endless dataset of batches from a step on: tuples `(x,)`, as `fit` takes them."""
        if backend.name() == "jax":
            return self._generator(first_step)
        num_replicas = strategy.num_replicas_in_sync
        if num_replicas == 1:
            return self._shares(first_step, range(1), 1)

        def of_worker(context: Any) -> Any:
            here = num_replicas // context.num_input_pipelines
            first = here * context.input_pipeline_id
            return self._shares(first_step, range(first, first + here), num_replicas)

        return strategy.distribute_datasets_from_function(of_worker)

    def validation(self, x: Any, strategy: Any) -> dict[str, Any]:
        """The arguments of `fit` for validation on arrays, in their order."""
        if backend.name() == "jax" or strategy.num_replicas_in_sync > 1:
            return {"validation_data": (x,), "validation_batch_size": self._batch_size}
        import tensorflow as tf

        # Keras makes a new iterator for each epoch. From arrays that takes 25 ms, which is as long
        # as an epoch of few data; from this dataset, 2 ms.
        dataset = tf.data.Dataset.from_tensor_slices((x,))
        return {"validation_data": dataset.batch(self._batch_size)}

    @contextlib.contextmanager
    def own_errors(self) -> Iterator[None]:
        """Raises the original error of reading data in place of TensorFlow's `OpError`."""
        try:
            yield
        except Exception as error:
            if self._error is None or backend.name() == "jax":
                raise
            from tensorflow import errors

            if not isinstance(error, errors.OpError):
                raise
            raise self._error from error

    def _shares(self, first_step: int, replicas: range, num_replicas: int) -> Any:
        """The shares of some replicas, interleaved: all of one step, then all of the next."""
        import tensorflow as tf

        def read(number: np.int64) -> list[np.ndarray]:
            step, replica = divmod(int(number), len(replicas))
            try:
                return self.share(first_step + step, replicas[replica], num_replicas)
            except Exception as error:
                self._error = self._error or error
                raise

        def as_batch(number: Any) -> tuple:
            arrays = tf.numpy_function(read, [number], [part.dtype for part in self._parts])
            for array, part in zip(arrays, self._parts, strict=True):
                array.set_shape([None, *part.shape[1:]])
            return (keras.tree.pack_sequence_as(self._x, arrays),)

        numbers = tf.data.Dataset.range(np.iinfo(np.int64).max)
        return numbers.map(as_batch, num_parallel_calls=_READERS).prefetch(_READERS)

    def _generator(self, first_step: int) -> Iterator[tuple]:
        """Like `dataset`, without TensorFlow."""
        steps = itertools.count(first_step)
        with futures.ThreadPoolExecutor(_READERS) as pool:
            waiting: collections.deque[futures.Future] = collections.deque()
            while True:
                while len(waiting) < 2 * _READERS:
                    waiting.append(pool.submit(self.share, next(steps)))
                yield (keras.tree.pack_sequence_as(self._x, waiting.popleft().result()),)

    def _order_of(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(self._num_examples)

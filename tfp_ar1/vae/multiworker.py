"""What Keras 3 needs to train a model under `tf.distribute.MultiWorkerMirroredStrategy`.

Upstream: https://github.com/keras-team/keras/issues/20585. `tests/cli/test_distributed.py` fails
when a version of Keras no longer needs one of the two overrides; then it can go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfp_ar1._typing import MixinBase


class MultiWorkerMixin(MixinBase):
    """The overrides, for a `keras.Model` with a `train_step` of its own."""

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Builds the optimizer in the strategy's scope.

        Keras would compute symbolically what comes of a first batch. For a model that is built it
        need not, and under several workers it cannot.
        """
        if self._distribute_strategy is None or not self.built:
            super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)
        elif self.optimizer is not None and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)

    def _make_function(self, step_function: Callable[[Any], dict[str, tf.Tensor]]) -> Callable:
        """Gives what a step reports a first axis, over which Keras averages the workers."""
        strategy = self.distribute_strategy
        of_workers = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        # Of one replica alone Keras takes what the step reports as it is.
        if not of_workers or strategy.num_replicas_in_sync == 1:
            return super()._make_function(step_function)

        def step(data: Any) -> dict[str, tf.Tensor]:
            logs = step_function(data)
            return {name: tf.reshape(value, [1]) for name, value in logs.items()}

        return super()._make_function(step)

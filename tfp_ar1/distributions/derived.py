"""Base class of distributions derived from a `GaussianMarkovChain`."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability import distributions as tfd
from tensorflow_probability.python.distributions.distribution import AutoCompositeTensorDistribution
from tensorflow_probability.python.internal import (
    dtype_util,
    parameter_properties,
    tensor_util,
    tensorshape_util,
)
from tensorflow_probability.python.internal import prefer_static as ps

__all__ = ["DerivedFromPath"]


class DerivedFromPath(AutoCompositeTensorDistribution):
    """Base class of distributions that combine a `GaussianMarkovChain` with observations.

    Args:
      parameters: the arguments of the subclass, by name, including `path`, `observed` (a boolean
        tensor `[..., d]`, or `None` for everywhere), `validate_args`, `allow_nan_stats`, `name`.

    Raises:
      TypeError: if `observed` is not boolean.
    """

    def __init__(self, parameters: dict[str, Any]):
        self._path = path = parameters["path"]
        self._observed = tensor_util.convert_nonref_to_tensor(
            parameters["observed"], name="observed"
        )
        if self._observed is not None and self._observed.dtype != tf.bool:
            raise TypeError(
                f"`observed` must be boolean; got dtype {dtype_util.name(self._observed.dtype)}."
            )
        with tf.name_scope(parameters["name"]) as name:
            super().__init__(
                dtype=path.dtype,
                reparameterization_type=tfd.FULLY_REPARAMETERIZED,
                validate_args=parameters["validate_args"],
                allow_nan_stats=parameters["allow_nan_stats"],
                parameters=parameters,
                name=name,
            )

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: int | None = None) -> dict[str, Any]:
        return {
            "path": parameter_properties.BatchedComponentProperties(),
            "observed": tfp.util.ParameterProperties(
                event_ndims=1,
                default_constraining_bijector_fn=parameter_properties.BIJECTOR_NOT_IMPLEMENTED,
                is_preferred=False,
            ),
        }

    @property
    def path(self) -> Any:
        """The distribution of the path."""
        return self._path

    @property
    def observed(self) -> Any:
        """The `observed` argument: which coordinates are observed."""
        return self._observed

    def marginals(self, name: str = "marginals") -> tfd.Normal:
        """Returns the marginal distribution of each coordinate, of batch shape `[..., d]`.

        Its `quantile` gives intervals. Known coordinates have scale 0.
        """
        with self._name_and_control_scope(name):
            return tfd.Normal(self.mean(), self.stddev())

    def _whole_shape(self) -> Any:
        """Returns the shape of a draw, static where it is known."""
        if tensorshape_util.is_fully_defined(self.batch_shape):
            batch_shape = np.array(tensorshape_util.as_list(self.batch_shape), np.int32)
        else:
            batch_shape = self.batch_shape_tensor()
        return ps.concat([batch_shape, [self.path._event_size()]], axis=0)

    def _event_shape(self) -> tf.TensorShape:
        return self.path.event_shape

    def _event_shape_tensor(self) -> tf.Tensor:
        return self.path.event_shape_tensor()

    def _mode(self) -> tf.Tensor:
        return self._mean()

    def _default_event_space_bijector(self) -> Any:
        return tfp.bijectors.Identity(validate_args=self.validate_args)

    def _parameter_control_dependencies(self, is_init: bool) -> list[Any]:
        return []

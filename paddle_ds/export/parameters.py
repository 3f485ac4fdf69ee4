"""Parameters of a program that is being built: arrays first, values of the program later.

Layers are made from a checkpoint before there is a program, and called while it is built. In between their arrays wait here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import paddle

from paddle_ds.layers.linear import dtype_name, nbytes

Array = npt.NDArray[Any]


class Parameter:
    """One of them. ``value()`` is the program's, made on first use."""

    def __init__(self, name: str, source: Array | paddle.Tensor) -> None:
        self._name = name
        self._source: Any = source
        self._value: Any = None

    def value(self) -> Any:
        """The value in the program that is being built; the array goes into the current scope and is let go of here."""
        if self._value is None:
            source, self._source = self._source, None
            is_tensor = isinstance(source, paddle.Tensor)
            dtype = dtype_name(source) if is_tensor else str(source.dtype)
            zeros = paddle.nn.initializer.Constant(0)  # asked for, and never run
            self._value = paddle.static.create_parameter(list(source.shape), dtype, name=self._name, default_initializer=zeros)
            variable = paddle.static.global_scope().var(self._name).get_tensor()
            if is_tensor:
                variable._share_data_with(source.get_tensor())  # no copy; Paddle's own jit.save does the same
            else:
                variable.set(np.ascontiguousarray(source), paddle.CPUPlace())
        return self._value


class Parameters:
    """All parameters of one program.

    Attributes:
        bytes_by_dtype: of all of them, as they will be in the file.
    """

    def __init__(self) -> None:
        self.bytes_by_dtype: dict[str, int] = {}
        self._by_tensor: dict[int, tuple[paddle.Tensor, Parameter]] = {}
        self._count = 0

    def array(self, values: Array, what: str) -> Parameter:
        """A parameter from NumPy, of a type that NumPy and Paddle share by name."""
        self._add(str(values.dtype), values.nbytes)
        return Parameter(self._name(what), values)

    def optional(self, values: Array | None, what: str) -> Parameter | None:
        """:meth:`array`, or ``None`` for ``None``."""
        return None if values is None else self.array(values, what)

    def tensor(self, values: paddle.Tensor, what: str) -> Parameter:
        """A parameter from Paddle; the same tensor gives the same parameter, so that a tied head is stored once."""
        known = self._by_tensor.get(id(values))
        if known is not None:
            return known[1]
        self._add(dtype_name(values), nbytes(values))
        parameter = Parameter(self._name(what), values)
        self._by_tensor[id(values)] = (values, parameter)  # with the tensor: an id may come again after its object is gone
        return parameter

    def _add(self, dtype: str, count: int) -> None:
        self.bytes_by_dtype[dtype] = self.bytes_by_dtype.get(dtype, 0) + int(count)

    def _name(self, what: str) -> str:
        self._count += 1
        return f"p{self._count:05d}_{what}"


def value_or_none(parameter: Parameter | None) -> Any:
    """The value of a parameter that a layer may not have."""
    return None if parameter is None else parameter.value()

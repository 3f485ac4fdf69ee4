"""INT8 layers on operators that Paddle has for a device: the weight stays INT8 in the device's memory.

Three ways, by what a device is capable of (``devices/base.py``):

    Int8MatmulLinear      W8A8   matmul of int8 by int8 into int32; the same numbers as the reference, to the bit of the sums
    LlmInt8Linear         W8A8   Paddle's llm_int8_linear, activations in float16
    PaddleWeightOnlyLinear  W8A16  Paddle's weight_only_linear, activations in float16

The last two are written to Paddle's documentation and have run on no GPU of the project's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
import paddle.nn.functional as F

from paddle_ds.devices.base import Device
from paddle_ds.kernels.int8_linear import quantize_activations
from paddle_ds.kernels.reference_layer import Int8Rows, stack

FloatArray = npt.NDArray[np.float32]

#: INT8 products want inputs and outputs in multiples of this on every device that was looked at; zeros add nothing
_ALIGNMENT = 16
#: inputs of ``weight_only_linear`` come in multiples of this; Paddle's packing breaks the heap otherwise
_WEIGHT_ONLY_INPUTS = 64
#: above every activation: no input is treated as an outlier, so all of them are quantised as in the reference
_NO_OUTLIERS = 1e30


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


class _DeviceLayer:
    """Weight [N', K'] padded to what the operator takes, scales and bias [N]."""

    #: what is shown as running
    implementation: str

    def __init__(self, weight: Int8Rows, weight_scale: FloatArray, bias: FloatArray | None, inputs: int, outputs: int) -> None:
        rows = stack(weight)
        self.num_out, self.num_in = rows.shape
        self._rows = np.zeros((_padded(self.num_out, outputs), _padded(self.num_in, inputs)), np.int8)
        self._rows[: self.num_out, : self.num_in] = rows
        self._scale = paddle.to_tensor(weight_scale)
        self._bias = None if bias is None else paddle.to_tensor(bias)

    def _widened(self, x: paddle.Tensor) -> paddle.Tensor:
        """[T, K] -> [T, K'], zeros behind."""
        missing = self._rows.shape[1] - self.num_in
        return F.pad(x, [0, 0, 0, missing]) if missing else x

    def _finished(self, y: paddle.Tensor) -> paddle.Tensor:
        return y if self._bias is None else y + self._bias

    def weight_bytes(self) -> dict[str, int]:
        """Bytes kept in memory, by dtype."""
        small = self._scale.size + (0 if self._bias is None else self._bias.size)
        return {"int8": int(self._rows.size), "float32": 4 * int(small)}


class Int8MatmulLinear(_DeviceLayer):
    """``y = (a @ w.T) * a_scale * w_scale + bias`` with the integers and scales of ``int8_linear``."""

    implementation = "int8_gemm"

    def __init__(self, weight: Int8Rows, weight_scale: FloatArray, bias: FloatArray | None) -> None:
        super().__init__(weight, weight_scale, bias, _ALIGNMENT, _ALIGNMENT)
        self._weight = paddle.to_tensor(self._rows)

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [T, K] -> float32 [T, N]. Rows with NaN or infinity give NaN, as in the reference."""
        quantized, scale = quantize_activations(x)
        product = paddle.matmul(self._widened(quantized).astype("int8"), self._weight, transpose_y=True)
        if product.shape[1] != self.num_out:
            product = product[:, : self.num_out]
        return self._finished(product.astype("float32") * scale * self._scale)


class LlmInt8Linear(_DeviceLayer):
    """The same on ``llm_int8_linear``, which quantises each row of float16 activations by its largest magnitude."""

    implementation = "llm_int8"

    def __init__(self, weight: Int8Rows, weight_scale: FloatArray, bias: FloatArray | None, device: Device) -> None:
        super().__init__(weight, weight_scale, bias, _ALIGNMENT, _ALIGNMENT)
        self._weight = device.quantized_weight(self._rows, "llm.int8")
        padded = np.zeros(self._rows.shape[0], np.float32)
        padded[: self.num_out] = weight_scale
        self._padded_scale = paddle.to_tensor(padded)

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [T, K] -> float32 [T, N], computed in float16."""
        half = self._widened(x).astype("float16")
        y = paddle.nn.quant.llm_int8_linear(half, self._weight, None, self._padded_scale, _NO_OUTLIERS)
        return self._finished(y[:, : self.num_out].astype("float32"))


class PaddleWeightOnlyLinear(_DeviceLayer):
    """``y = x @ (w * w_scale).T + bias`` on ``weight_only_linear``, float16 activations."""

    implementation = "weight_only_int8"

    def __init__(self, weight: Int8Rows, weight_scale: FloatArray, bias: FloatArray | None, device: Device) -> None:
        super().__init__(weight, weight_scale, bias, _WEIGHT_ONLY_INPUTS, _ALIGNMENT)
        if not bool((np.abs(self._rows.astype(np.int16)).max(axis=1) == 127).all()):
            # Paddle packs by quantising anew. An input that is always zero and has the weight 127 keeps the integers as they are.
            more = np.zeros((self._rows.shape[0], _WEIGHT_ONLY_INPUTS), np.int8)
            more[:, 0] = 127
            self._rows = np.concatenate([self._rows, more], axis=1)
        self._weight = device.quantized_weight(self._rows, "weight_only_int8")
        self._units = paddle.ones([self._rows.shape[0]], dtype="float16")

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [T, K] -> float32 [T, N]."""
        half = self._widened(x).astype("float16")
        # the scales are applied here: in float16 they would lose digits
        y = paddle.nn.quant.weight_only_linear(half, self._weight, None, self._units, "int8")
        return self._finished(y[:, : self.num_out].astype("float32") * self._scale)


def maker(kind: Any, device: Device) -> Any:
    """``kind`` as a function of weight, scales and bias alone, for a layer that asks ``device`` for its layout."""

    def make(weight: Int8Rows, weight_scale: FloatArray, bias: FloatArray | None) -> Any:
        return kind(weight, weight_scale, bias, device)

    return make

"""INT8 weights as the compiled operators read them from a program's parameters; the layout of ``csrc/packed_products.h``.

    packed[N' / 64][K' / 4][64][4]        64 outputs, of each 4 neighbouring inputs; zeros behind the last output and input

N' and K' are N and K rounded up to whole groups of 64.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paddle_ds.kernels.reference_layer import Int8Array, Int8Rows

_GROUP = 64
_INPUTS = 4
#: what the operators add to INT8 activations to have them unsigned
_SHIFT = 128


def pack_int8(weight: Int8Rows, num_out: int) -> tuple[Int8Array, npt.NDArray[np.int32]]:
    """``weight`` int8 [N, K], whole or in pieces of rows -> packed, and what the shift adds to each sum, int32 [N']."""
    pieces = iter([weight] if isinstance(weight, np.ndarray) else weight)
    piece = next(pieces, None)
    assert piece is not None
    num_in = piece.shape[1]
    rows = np.zeros((_padded(num_out), _padded(num_in)), np.int8)
    first = 0
    while piece is not None:
        rows[first : first + len(piece), :num_in] = piece
        first += len(piece)
        piece = next(pieces, None)
    assert first == num_out
    groups = rows.reshape(len(rows) // _GROUP, _GROUP, rows.shape[1] // _INPUTS, _INPUTS)
    zero_points = rows.sum(axis=1, dtype=np.int32) * np.int32(_SHIFT)
    return np.ascontiguousarray(groups.transpose(0, 2, 1, 3)), zero_points


def _padded(size: int) -> int:
    return -(-size // _GROUP) * _GROUP

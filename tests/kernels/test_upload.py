"""Arrays become tensors of the same content, and nothing is kept for good."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paddle_ds.kernels.upload import upload


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32"])
@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5), (0, 4), (2, 1, 3)])
def test_content_shape_and_type_arrive(dtype: str, shape: tuple[int, ...]) -> None:
    array = (np.arange(np.prod(shape)) - 3).reshape(shape).astype(dtype)
    tensor = upload(array)
    assert tensor.shape == list(shape)
    assert tensor.numpy().dtype == dtype
    assert np.array_equal(tensor.numpy(), array)


def test_a_copy_is_made_of_any_strides() -> None:
    array = np.arange(12, dtype=np.int64).reshape(3, 4)
    tensor = upload(array.T[::2])
    array[:] = 0
    assert tensor.numpy().tolist() == [[0, 4, 8], [2, 6, 10]]


def test_nothing_is_kept() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    array = np.arange(48)
    for _ in range(2_000):
        upload(array)
    before = resident_bytes()
    for _ in range(30_000):
        upload(array)
    assert resident_bytes() - before < 1 << 20  # paddle.to_tensor keeps 3.3 MB here

"""Linear layers on grouped integers against the formula in double precision. ``test_every_isa.py`` repeats it."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from kernels.grid import Array, assert_close, normal
from paddle_ds.kernels import grouped_linear, native
from paddle_ds.kernels.native_grouped import NativeGroupedLinear
from paddle_ds.kernels.registry import Kernels

#: outputs, inputs, inputs of a group: single, odd, a last group that is not full, one group for all, one for each input
SIZES = [
    (1, 1, 1),
    (3, 7, 5),
    (5, 33, 32),
    (65, 128, 64),
    (33, 96, 96),
    (7, 40, 1),
    (130, 1025, 128),
    (64, 172, 4096),
    (9, 2048, 64),
]
BITS = [4, 8]


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer's arguments, and the weight [N, K] that they stand for as float32."""

    arguments: tuple[Any, ...]
    weight: Array

    @classmethod
    def random(
        cls, num_out: int, num_in: int, group_size: int, bits: int, *, zeros: bool = False, shuffled: bool = False
    ) -> Case:
        random = np.random.default_rng([num_out, num_in, group_size, bits])
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
        num_groups = -(-num_in // group_size)
        values = random.integers(low, high, (num_out, num_in)).astype(np.int8)
        values.reshape(-1)[:2] = [low, high - 1][: values.size]
        scales = random.uniform(1e-4, 1e-2, (num_out, num_groups)).astype(np.float32)
        # importers of unsigned integers also make a zero point one beyond the range
        zero_points = random.integers(low, high + 1, (num_out, num_groups)).astype(np.int16) if zeros else None
        groups = (np.arange(num_in) // group_size).astype(np.int32)
        group_index = random.permutation(groups) if shuffled else None
        columns = groups if group_index is None else group_index
        weight = values.astype(np.float32)
        if zero_points is not None:
            weight -= zero_points.astype(np.float32)[:, columns]
        weight *= scales[:, columns]
        bias = normal(num_out) if num_in % 2 else None
        return cls((values, scales, zero_points, group_index, group_size, bits, bias), weight)

    @property
    def bias(self) -> Array | float:
        return 0.0 if self.arguments[-1] is None else self.arguments[-1]

    def without_bias(self) -> tuple[Any, ...]:
        return (*self.arguments[:-1], None)


@pytest.mark.parametrize(("num_out", "num_in", "group_size"), SIZES)
@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("bits", BITS)
def test_products_are_those_of_the_formula(
    kernels: Kernels, bits: int, zeros: bool, shuffled: bool, num_out: int, num_in: int, group_size: int
) -> None:
    case = Case.random(num_out, num_in, group_size, bits, zeros=zeros, shuffled=shuffled)
    layer = kernels.grouped_linear(*case.arguments)
    for rows in (0, 1, 7):
        x = normal(rows, num_in)
        expected = x.astype(np.float64) @ case.weight.astype(np.float64).T + case.bias
        assert_close(layer(paddle.to_tensor(x)), expected, 1e-5)


@pytest.mark.parametrize(("num_out", "num_in", "group_size"), SIZES)
@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("bits", BITS)
def test_weights_are_dequantised_bit_for_bit(
    kernels: Kernels, bits: int, shuffled: bool, num_out: int, num_in: int, group_size: int
) -> None:
    case = Case.random(num_out, num_in, group_size, bits, zeros=True, shuffled=shuffled)
    layer = kernels.grouped_linear(*case.without_bias())
    assert np.array_equal(layer(paddle.eye(num_in)).numpy(), case.weight.T)


@pytest.mark.parametrize("bits", BITS)
def test_every_integer_and_zero_point_is_itself(kernels: Kernels, bits: int) -> None:
    integers = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=np.int8)
    values = np.stack([integers, integers[::-1]])
    zero_points = np.array([[-(2 ** (bits - 1))], [2 ** (bits - 1)]], np.int16)
    layer = kernels.grouped_linear(values, np.ones((2, 1), np.float32), zero_points, None, integers.size, bits, None)
    assert layer(paddle.eye(integers.size)).numpy().T.tolist() == (values - zero_points).astype(np.float32).tolist()


@pytest.mark.parametrize("bits", BITS)
def test_a_weight_converted_in_pieces_is_put_together(kernels: Kernels, bits: int) -> None:
    # 4 200 x 1 025 is more than the reference dequantises at a time
    case = Case.random(4200, 1025, 128, bits, zeros=True, shuffled=True)
    x = normal(2, 1025)
    y = kernels.grouped_linear(*case.arguments)(paddle.to_tensor(x))
    assert_close(y, x.astype(np.float64) @ case.weight.T.astype(np.float64) + case.bias, 1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_a_group_may_have_no_inputs_and_groups_any_length(kernels: Kernels, bits: int) -> None:
    values = np.arange(-3, 4, dtype=np.int8)[None]
    scales = np.array([[1, 10, 100, 1000]], np.float32)
    group_index = np.array([3, 0, 0, 3, 0, 1, 0], np.int32)  # none in group 2
    layer = kernels.grouped_linear(values, scales, None, group_index, 2, bits, None)
    assert layer(paddle.eye(7)).numpy()[:, 0].tolist() == [-3000, -2, -1, 0, 1, 20, 3]


@pytest.mark.parametrize("bits", BITS)
def test_arrays_may_be_views_of_any_layout(kernels: Kernels, bits: int) -> None:
    case = Case.random(12, 31, 8, bits, zeros=True)
    views = [np.asfortranarray(array) if isinstance(array, np.ndarray) else array for array in case.arguments]
    for array in views:
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    layer = kernels.grouped_linear(*views[:-1], None)
    del views
    assert np.array_equal(layer(paddle.eye(31)).numpy(), case.weight.T)


@pytest.mark.parametrize("bits", BITS)
def test_a_broken_row_stays_alone(kernels: Kernels, bits: int) -> None:
    case = Case.random(6, 50, 16, bits)
    x = normal(3, 50)
    x[1, 20] = np.nan
    y = kernels.grouped_linear(*case.arguments)(paddle.to_tensor(x)).numpy()
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2]]).all()


@contextmanager
def omp_threads(count: int) -> Iterator[None]:
    runtime = ctypes.CDLL(str(Path(paddle.__file__).parent / "libs" / "libiomp5.so"))
    before = runtime.omp_get_max_threads()
    runtime.omp_set_num_threads(count)
    try:
        yield
    finally:
        runtime.omp_set_num_threads(before)


@pytest.mark.skipif(native.why_unavailable() is not None, reason=str(native.why_unavailable()))
@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("bits", BITS)
def test_rows_depend_neither_on_neighbours_nor_on_threads(bits: int, shuffled: bool) -> None:
    case = Case.random(99, 1025, 64, bits, zeros=True, shuffled=shuffled)
    layer = NativeGroupedLinear(*case.arguments)
    x = paddle.to_tensor(normal(150, 1025))
    with omp_threads(1):
        alone = layer(x).numpy()
    with omp_threads(3):
        assert np.array_equal(layer(x).numpy(), alone)
    for start, stop in ((0, 1), (7, 9), (100, 132), (149, 150)):
        assert np.array_equal(layer(x[start:stop]).numpy(), alone[start:stop])


@pytest.mark.skipif(native.why_unavailable() is not None, reason=str(native.why_unavailable()))
def test_a_matrix_of_another_width_is_refused() -> None:
    layer = NativeGroupedLinear(*Case.random(6, 50, 16, 4).arguments)
    with pytest.raises(OSError, match="grouped_linear: x has 49 columns, the weight 50"):
        layer(paddle.zeros([2, 49]))


def test_two_halves_of_a_row_share_its_bytes() -> None:
    packed = grouped_linear.pack(np.array([[0, 1, 2, 3, -8, -1, 7]], np.int8), 4)
    assert [f"{byte:02x}" for byte in packed[0]] == ["08", "79", "fa", "0b"]
    reordered = grouped_linear.pack(np.array([[7, -1, -8, 3, 2, 1, 0]], np.int8), 4, np.arange(7, dtype=np.int32)[::-1])
    assert np.array_equal(packed, reordered)


@pytest.mark.parametrize(
    ("bits", "zeros", "integers"),
    [(4, False, {"int4": 5 * 17}), (4, True, {"int4": 5 * 17, "int16": 2 * 5 * 5}), (8, False, {"int8": 5 * 33})],
    ids=["4 bits", "4 bits, zero points", "8 bits"],
)
def test_layers_say_what_they_keep(kernels: Kernels, bits: int, zeros: bool, integers: dict[str, int]) -> None:
    case = Case.random(5, 33, 8, bits, zeros=zeros)
    kept = kernels.grouped_linear(*case.arguments).weight_bytes()
    index_bytes = kept.pop("int32")
    assert kept == {**integers, "float32": 4 * (5 * 5 + 5)}
    assert index_bytes == 4 * (6 if kernels.chosen["grouped_linear"] == "native" else 33)


def test_the_order_of_inputs_counts_as_memory(kernels: Kernels) -> None:
    kept = kernels.grouped_linear(*Case.random(5, 33, 8, 4, shuffled=True).arguments).weight_bytes()
    assert kept["int32"] == 4 * (6 + 33 if kernels.chosen["grouped_linear"] == "native" else 33)


@pytest.mark.parametrize(
    ("position", "wrong"),
    [
        pytest.param(0, np.full((6, 50), 8, np.int8), id="too large for 4 bits"),
        pytest.param(0, np.full((6, 50), -9, np.int8), id="too small for 4 bits"),
        pytest.param(0, np.zeros((6, 50), np.float32), id="values of another type"),
        pytest.param(1, np.ones((6, 3), np.float32), id="too few scales"),
        pytest.param(1, np.ones((6, 4), np.float64), id="scales of another type"),
        pytest.param(2, np.zeros((6, 3), np.int16), id="too few zero points"),
        pytest.param(2, np.zeros((6, 4), np.int8), id="zero points of another type"),
        pytest.param(3, np.full(50, 4, np.int32), id="group beyond the last"),
        pytest.param(3, np.full(50, -1, np.int32), id="group before the first"),
        pytest.param(3, np.zeros(49, np.int32), id="too few groups"),
        pytest.param(5, 5, id="bits"),
        pytest.param(6, np.zeros(5, np.float32), id="too little bias"),
    ],
)
def test_arguments_that_do_not_fit_are_a_bug(kernels: Kernels, position: int, wrong: Any) -> None:
    arguments = list(Case.random(6, 50, 16, 4).arguments)
    arguments[position] = wrong
    with pytest.raises(AssertionError):
        kernels.grouped_linear(*arguments)

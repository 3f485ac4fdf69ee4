"""One kind of weight as another, and how a change is named."""

from __future__ import annotations

import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import makers
from paddle_ds.checkpoints import DenseTensor, GroupedWeight, Int8Weight, open_checkpoint
from paddle_ds.checkpoints.base import Groups
from paddle_ds.errors import QuantizationError
from paddle_ds_slim.exporters.comparison import compare
from paddle_ds_slim.exporters.paddlenlp_int8 import PaddleNLPInt8Target
from paddle_ds_slim.exporters.pdparams_writer import PdparamsWriter, _bytes_head
from paddle_ds_slim.exporters.view import ConvertedCheckpoint
from paddle_ds_slim.exporters.weights import as_blocks, as_dense, as_per_channel, collapse, fits_blocks


def grouped(values: Any, scales: Any, **changes: Any) -> GroupedWeight:
    fields: dict[str, Any] = {"zero_points": None, "group_index": None, "bits": 8, "group_size": 2, **changes}
    return GroupedWeight(np.array(values, np.int8), np.array(scales, np.float32), **fields)


def test_groups_of_one_scale_collapse_and_groups_of_zeros_have_no_say() -> None:
    weight = grouped([[1, -2, 0, 0, 3], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]], [[0.5, 9, 0.5], [0, 1, 1], [2, 1, 1]])
    collapsed = collapse(weight)
    assert collapsed is not None
    assert collapsed.values is weight.values
    assert collapsed.scales.tolist() == [0.5, 1.0, 2.0]
    np.testing.assert_array_equal(collapsed.to_float32(), weight.to_float32())


def test_groups_that_differ_do_not_collapse() -> None:
    assert collapse(grouped([[1, 2, 3, 4]], [[0.5, 0.25]])) is None
    zero_points = np.zeros((1, 2), np.int16)
    assert collapse(grouped([[1, 2, 3, 4]], [[0.5, 0.5]], zero_points=zero_points)) is None


def test_a_scale_of_zero_under_weights_stays_zero() -> None:
    collapsed = collapse(grouped([[1, 2, 3, 4]], [[0, 0]]))
    assert collapsed is not None
    assert not collapsed.to_float32().any()


@pytest.mark.parametrize(("first", "collapses"), [(0, True), (7, False)])
def test_groups_in_activation_order_are_looked_at_by_their_index(first: int, collapses: bool) -> None:
    index = np.array([1, 0, 1, 0], np.int32)
    weight = grouped([[1, first, 3, 0]], [[4, 0.5]], group_index=index)
    assert (collapse(weight) is not None) is collapses


@pytest.mark.parametrize(
    ("groups", "bits", "fits"),
    [
        (Groups(32, 4), 8, True),
        (Groups(64, 2), 4, True),
        (Groups(128, 1), 8, True),
        (Groups(48, 1), 4, True),
        (Groups(48, 2), 4, False),
        (Groups(16, 4), 4, False),
        (Groups(32, 4, has_index=True), 4, False),
        (Groups(32, 4, has_zero_points=True), 4, True),
        (Groups(32, 4, has_zero_points=True), 8, False),
    ],
)
def test_which_groups_blocks_of_32_can_hold(groups: Groups, bits: int, fits: bool) -> None:
    assert fits_blocks(groups, bits) is fits


def test_blocks_hold_four_bits_with_any_zero_point() -> None:
    values = np.resize(np.arange(-8, 8, dtype=np.int8), (2, 128))
    zero_points = np.array([[-8, 8], [0, 7]], np.int16)
    scales = np.array([[0.5, 0.25], [1, 2]], np.float32)
    weight = GroupedWeight(values, scales, zero_points, None, 4, 64)
    blocks = as_blocks(weight, "weight")
    assert (blocks.values.min(), blocks.values.max()) == (-16, 15)
    assert compare(weight, blocks).outcome == "exact"


def test_requantising_to_a_channel_is_rounding_the_dequantised_weight() -> None:
    random = np.random.default_rng(0)
    weight = grouped(random.integers(-8, 8, (4, 6)), random.uniform(0.1, 1, (4, 3)), bits=4)
    channel = as_per_channel(weight)
    integers, scales = makers.quantized(weight.to_float32())
    np.testing.assert_array_equal(channel.values, integers)
    np.testing.assert_array_equal(channel.scales, scales)
    assert compare(weight, channel).outcome == "requantised"


DENSE = DenseTensor(np.array([[1.0, 2**-12 + 1]], np.float32), "float32")
CHANNEL = Int8Weight(np.array([[3, -4]], np.int8), np.array([0.3], np.float32))


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        (DENSE, DENSE, "exact"),
        (DENSE, as_dense(DENSE, "float16", "weight"), "rounded"),
        (DENSE, as_per_channel(DENSE), "quantised"),
        (CHANNEL, as_dense(CHANNEL, "float32", "weight"), "dequantised"),
        (CHANNEL, Int8Weight(CHANNEL.values.copy(), CHANNEL.scales), "exact"),
        (CHANNEL, Int8Weight(CHANNEL.values, np.array([0.25], np.float32)), "scale rounded"),
        (CHANNEL, Int8Weight(np.array([[3, -3]], np.int8), CHANNEL.scales), "requantised"),
        (CHANNEL, Int8Weight(np.array([[6, -8]], np.int8), CHANNEL.scales / 2), "exact"),
    ],
)
def test_outcomes_are_named_by_what_happened_to_the_values(before: Any, after: Any, outcome: str) -> None:
    comparison = compare(before, after)
    assert comparison.outcome == outcome
    difference = np.linalg.norm(after.to_float32() - before.to_float32()) / np.linalg.norm(before.to_float32())
    assert comparison.error == pytest.approx(float(difference), rel=1e-5)
    assert comparison.num_weights == 2


def test_differences_too_small_to_square_are_differences() -> None:
    before = DenseTensor(np.array([[1e-40, 1.0]], np.float32), "float32")
    after = DenseTensor(np.array([[0.0, 1.0]], np.float32), "float32")
    comparison = compare(before, after)
    assert comparison.outcome == "rounded"
    assert comparison.error > 0


def test_a_scale_beyond_float16_is_an_error() -> None:
    weight = Int8Weight(np.ones((1, 32), np.int8), np.array([1e5], np.float32))
    with pytest.raises(QuantizationError, match="the scales of head: found a value of 1e\\+05"):
        as_blocks(weight, "head")


def test_a_pickle_of_ours_is_what_python_makes_of_the_same_arrays(tmp_path: Path) -> None:
    arrays = {
        "int8": np.arange(-6, 6, dtype=np.int8).reshape(3, 4),
        "transposed": np.arange(12, dtype=np.float16).reshape(3, 4).T,
        "bfloat16": np.array([0x3F80], np.uint16),
        "empty": np.zeros((0, 5), np.float32),
        "n" * 300: np.float32([[1.5]]),
    }
    with PdparamsWriter(tmp_path / "model_state.pdparams") as writer:
        for name, values in arrays.items():
            writer.write(name, values)
    data = (tmp_path / "model_state.pdparams").read_bytes()
    found = pickle.loads(data)
    assert found.pop("StructuredToParameterName@@") == {name: name for name in arrays}
    assert list(found) == list(arrays)
    for name, values in arrays.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)
    operations = list(pickletools.genops(data))
    names = {
        (a[1], b[1]) for a, b, c in zip(operations, operations[1:], operations[2:], strict=False) if c[0].name == "STACK_GLOBAL"
    }
    assert names == {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}


@pytest.mark.parametrize(("nbytes", "opcode"), [((1 << 32) - 1, "BINBYTES"), (1 << 32, "BINBYTES8")])
def test_payloads_above_four_gigabytes_have_a_longer_length(nbytes: int, opcode: str) -> None:
    head = _bytes_head(nbytes)
    code = next(code for code in pickletools.opcodes if code.code.encode("latin1") == head[:1])
    assert code.name == opcode
    assert int.from_bytes(head[1:], "little") == nbytes


def test_paddlenlp_shards_hold_every_tensor_once(tmp_path: Path) -> None:
    config = makers.config_json(makers.LLAMA, tie_word_embeddings=True)
    makers.write_hf(tmp_path / "source", config, makers.random_tensors(config))
    target = PaddleNLPInt8Target(max_shard_bytes=4000)
    (tmp_path / "out").mkdir()
    with open_checkpoint(tmp_path / "source") as source:
        view = ConvertedCheckpoint(source, target)
        target.write(view, tmp_path / "out", None)
        with open_checkpoint(tmp_path / "out") as after:
            assert len({tensor.file for tensor in after.stored().values()}) > 2
            for name, planned in view.planned.items():
                assert after.stored()[name].dtype == planned.dtype
    assert (tmp_path / "out" / "model_state.pdparams.index.json").is_file()
    assert all(file.stat().st_size < 8000 for file in (tmp_path / "out").glob("*.pdparams"))

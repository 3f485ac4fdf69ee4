"""All layers in one operator against the same layers one operator at a time, compiled and as references."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from checkpoints import makers
from kernels.grid import Array, Ragged
from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.config.engine import EngineConfig
from paddle_ds.devices.cpu import CpuDevice
from paddle_ds.engine.assets import recipe_for
from paddle_ds.kernels import native
from paddle_ds.kernels.cache import KvDtype, StaticScales
from paddle_ds.kernels.registry import Kernels, choose
from paddle_ds.models import Decoder
from paddle_ds.runtime.loader import load_decoder

pytestmark = pytest.mark.skipif(native.why_unavailable() is not None, reason=str(native.why_unavailable()))

VOCABULARY = 56


def shape(hidden: int, inner: int, heads: int, kv_heads: int, head_dim: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
    }


#: config.json of decoders: multiples of everything, of nothing, of one; with every bias; as wide as models are
SHAPES: dict[str, dict[str, Any]] = {
    "packed columns": shape(128, 448, 4, 2, 32),
    "nothing a multiple": shape(51, 173, 7, 1, 22),
    "smallest": shape(1, 1, 1, 1, 2),
    "every bias": {**makers.LLAMA, **shape(64, 72, 2, 2, 16), "attention_bias": True, "mlp_bias": True},
    "inner 8960": {**shape(64, 8960, 2, 1, 32), "num_hidden_layers": 1},
}
BATCHES: dict[str, list[tuple[int, int]]] = {
    "one token": [(1, 1)],
    "one prompt": [(37, 37)],
    "decode": [(1, 1), (16, 1), (17, 1), (90, 1), (31, 1)],
    "decode and prefill": [(30, 1), (20, 20), (64, 10), (130, 130), (90, 13)],
}


def make_checkpoint(directory: Path, changes: dict[str, Any]) -> Path:
    config = makers.config_json(vocab_size=VOCABULARY, **changes)
    return makers.write_hf(directory, config, makers.random_tensors(config))


def load(directory: Path, kernels: Kernels) -> Decoder:
    with open_checkpoint(directory) as checkpoint:
        return load_decoder(checkpoint, recipe_for(checkpoint, EngineConfig(quant="w8a8")), kernels)


def fused(directory: Path) -> Decoder:
    decoder = load(directory, choose(CpuDevice(), only="native", strict=True))
    assert decoder.fused is not None
    return decoder


def in_pieces(directory: Path) -> Decoder:
    """Compiled operators, called one by one by the Python decoder."""
    kernels = dataclasses.replace(choose(CpuDevice(), only="native"), fused_decoder=None)
    decoder = load(directory, kernels)
    assert decoder.fused is None
    return decoder


def reference(directory: Path) -> Decoder:
    return load(directory, choose(CpuDevice(), only="reference"))


@dataclasses.dataclass(frozen=True)
class Decoders:
    """The same model three times."""

    fused: Decoder
    in_pieces: Decoder
    reference: Decoder


@pytest.fixture(scope="module", params=SHAPES)
def decoders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoders:
    directory = make_checkpoint(tmp_path_factory.mktemp("model"), SHAPES[request.param])
    return Decoders(fused(directory), in_pieces(directory), reference(directory))


def hidden(
    decoder: Decoder, requests: list[tuple[int, int]], dtype: KvDtype = "float32", static: StaticScales | None = None
) -> Array:
    """What the layers make of the new tokens, float32 [T, H]. The tokens before them go through in a step of their own."""
    whole = Ragged(requests)
    cache = decoder.make_cache(whole.num_blocks, 16, dtype, static)
    ids = [np.random.default_rng(context).integers(0, VOCABULARY, context) for context, _ in requests]

    def step(rows: list[int], part: list[tuple[int, int]]) -> Array:
        batch = Ragged(part, whole.tables[rows])
        tokens = [ids[row][context - new : context] for row, (context, new) in zip(rows, part, strict=True)]
        layout = batch.layout(decoder.config.head_dim // 2)
        out: Array = decoder.hidden(paddle.to_tensor(np.concatenate([np.zeros(0, np.int64), *tokens])), cache, layout).numpy()
        return out

    earlier = [row for row, (context, new) in enumerate(requests) if context > new]
    if earlier:
        step(earlier, [(requests[row][0] - requests[row][1],) * 2 for row in earlier])
    return step(list(range(len(requests))), requests)


def assert_alike(ours: Array, oracle: Array, allowance: float = 1) -> None:
    """Close, but for what follows from a rounding that turned: half-way between two integers any last bit decides.

    Args:
        allowance: more than 1 where such a rounding is seen by all later tokens, because the cache keeps it.
    """
    assert ours.shape == oracle.shape
    assert np.isfinite(ours).all()
    difference = np.abs(ours - oracle) / max(1.0, float(np.abs(oracle).max(initial=0)))
    assert difference.max(initial=0) <= 2e-2 * allowance
    assert difference.mean() <= 1e-3 * allowance


@pytest.mark.parametrize("batch", BATCHES)
def test_the_fused_decoder_is_its_pieces_and_the_reference(decoders: Decoders, batch: str) -> None:
    ours = hidden(decoders.fused, BATCHES[batch])
    pieces = hidden(decoders.in_pieces, BATCHES[batch])
    assert_alike(ours, pieces)
    assert_alike(ours, hidden(decoders.reference, BATCHES[batch]))
    if native.library().vector_isa == "baseline":  # no fused multiply-add, so no last bit depends on what a loop is inlined into
        assert np.array_equal(ours, pieces)


@pytest.mark.parametrize("has_static_scales", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("batch", BATCHES)
def test_an_int8_cache_is_written_by_the_fused_decoder_as_by_its_pieces(
    decoders: Decoders, batch: str, has_static_scales: bool
) -> None:
    config = decoders.fused.config
    scales = np.random.default_rng(0).uniform(0.005, 0.02, (2, config.num_layers, config.num_kv_heads)).astype(np.float32)
    static = StaticScales(*scales) if has_static_scales else None  # too small for some keys, which are clipped
    requests = BATCHES[batch]
    ours, pieces = (hidden(decoder, requests, "int8", static) for decoder in (decoders.fused, decoders.in_pieces))
    assert_alike(ours, pieces, allowance=3)
    assert_alike(ours, hidden(decoders.reference, requests, "int8", static), allowance=3)
    if native.library().vector_isa == "baseline":  # as above
        assert np.array_equal(ours, pieces)
    if has_static_scales and batch != "one token" and config.head_dim > 2:  # what other scales change is far beyond the allowance
        for other in (None, StaticScales(scales[1], scales[0])):
            difference = np.abs(ours - hidden(decoders.fused, requests, "int8", other))
            assert difference.mean() > 5e-3 * max(1.0, float(np.abs(ours).max()))


def test_thousands_of_rows_and_then_a_few_behind_them(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "model", {**shape(64, 72, 2, 1, 16), "num_hidden_layers": 1})
    ours, oracle = fused(directory), reference(directory)
    for requests in ([(4096, 4096)], [(4200, 3), (5, 5)]):
        assert_alike(hidden(ours, requests), hidden(oracle, requests))


def test_no_rows_at_all(tmp_path: Path) -> None:
    decoder = fused(make_checkpoint(tmp_path / "model", shape(64, 72, 2, 1, 16)))
    assert hidden(decoder, []).shape == (0, 64)

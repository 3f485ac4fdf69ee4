"""``tools/make_model.py``: checkpoints that open, in the shapes they are named after."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import make_model

from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.tensors import model_specs


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("shape", ["tiny-qwen2", "tiny-llama"])
def test_what_it_makes_opens(tmp_path: Path, shape: str, dtype: str) -> None:
    total_bytes = make_model.make_model(make_model.SHAPES[shape], tmp_path, seed=3, dtype=dtype, max_shard_bytes=100_000)
    with open_checkpoint(tmp_path) as checkpoint:
        assert sum(line.nbytes for line in checkpoint.stored().values()) == total_bytes
        assert {line.dtype for line in checkpoint.stored().values()} == {dtype}
        embedding, *_, norm, _ = (checkpoint.read(spec).to_float32() for spec in model_specs(checkpoint.config))
    assert embedding.std() == pytest.approx(0.02, rel=0.05)
    assert (norm == 1).all()
    assert len(list(tmp_path.glob("*.safetensors"))) > 1


def test_a_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    config = make_model.SHAPES["tiny-qwen2"]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_model.make_model(config, tmp_path / name, seed=seed, dtype="bfloat16")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert files[0] == files[1]
    assert files[0] != files[2]


@pytest.mark.parametrize(
    ("shape", "file"), [("r1-distill-qwen-1.5b", "config.1.5B.json"), ("r1-distill-qwen-7b", "config.7B.json")]
)
def test_shapes_are_the_published_ones(shared_data: Path, shape: str, file: str) -> None:
    import json

    published = ModelConfig.from_dict(json.loads((shared_data / "r1-distill-qwen" / file).read_text()))
    ours = make_model.SHAPES[shape]
    assert [spec.shape for spec in model_specs(ours)] == [spec.shape for spec in model_specs(published)]
    for field in ("rope_theta", "rms_norm_eps", "max_position_embeddings", "eos_token_ids", "tie_word_embeddings"):
        assert getattr(ours, field) == getattr(published, field)


def test_rows_of_a_large_tensor_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    from paddle_ds.config.tensors import Role, TensorSpec

    block = np.arange(101, dtype=np.float32)
    spec = TensorSpec("x", (40, 8), Role.LINEAR)
    values = make_model._values(spec, block, block[:1], np.random.default_rng(0))
    assert len(np.unique(values, axis=0)) == 40

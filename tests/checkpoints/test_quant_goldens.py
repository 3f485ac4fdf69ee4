"""What other people's quantisers wrote (tests/golden/quant, see the README there): their weights, and their logits."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf_makers
import numpy as np
import pytest

from engine.parity import all_logits, make_runner
from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.config.engine import Quant
from paddle_ds.config.tensors import model_specs

CASES = sorted(path.name for path in (Path(__file__).parents[1] / "golden" / "quant").iterdir() if path.is_dir())
FORMATS = {"ct": "compressed-tensors", "gptq": "gptq", "awq": "awq", "gguf": "gguf"}


@pytest.fixture
def checkpoint_of(golden_dir: Path, tmp_path: Path) -> Callable[[str], Path]:
    """The checkpoint of a case; a GGUF file beside something like a tokenizer, or one is made from it in the user's cache."""

    def find(case: str) -> Path:
        if not case.startswith("gguf"):
            return golden_dir / "quant" / case
        shutil.copy(golden_dir / "quant" / case / "model.gguf", tmp_path)
        (tmp_path / "tokenizer.json").write_bytes(b"")
        return tmp_path / "model.gguf"

    return find


@pytest.mark.parametrize("case", CASES)
def test_every_weight_is_that_of_the_quantiser_to_the_bit(
    case: str, golden_dir: Path, checkpoint_of: Callable[[str], Path]
) -> None:
    expected = np.load(golden_dir / "quant" / case / "expected.npz")
    hashes = {name.removeprefix("sha256/"): expected[name].tobytes() for name in expected.files if name.startswith("sha256/")}
    with open_checkpoint(checkpoint_of(case)) as checkpoint:
        assert checkpoint.format == FORMATS[case.split("-")[0]]
        quantised = {f"{module}.weight" for module in checkpoint.schemes()}
        assert quantised <= set(hashes)
        for spec in model_specs(checkpoint.config):
            if spec.name not in hashes:
                continue
            values = checkpoint.read(spec).to_float32()
            if f"weights/{spec.name}" in expected.files:
                np.testing.assert_array_equal(values, expected[f"weights/{spec.name}"])
            assert hashlib.sha256(np.ascontiguousarray(values)).digest() == hashes.pop(spec.name), spec.name
    assert not hashes


#: those that run in integers are compared with their own logits elsewhere, and what is not quantised would be rounded
AS_STORED = [case for case in CASES if not case.startswith(("ct-w8a8", "ct-kv8", "gguf-f16"))]


@pytest.mark.parametrize(("case", "quant"), [*((case, "none") for case in CASES), *((case, "auto") for case in AS_STORED)])
def test_logits_match_those_of_transformers(
    case: str, quant: Quant, golden_dir: Path, checkpoint_of: Callable[[str], Path]
) -> None:
    expected = np.load(golden_dir / "quant" / case / "expected.npz")
    logits = all_logits(make_runner(checkpoint_of(case), quant), expected["prompt_ids"].tolist())
    assert np.abs(logits - expected["logits"]).max() <= 1e-4 * np.abs(expected["logits"]).max()


@pytest.mark.parametrize("case", ["llama-rope-llama3", "qwen2-gqa-tied"])
def test_logits_of_a_model_moved_to_gguf_match_those_of_transformers(tmp_path: Path, case: str, golden_dir: Path) -> None:
    raw = json.loads((golden_dir / "hf" / case / "config.json").read_text(encoding="utf-8"))
    golden = np.load(golden_dir / "hf" / case / "golden.npz")
    with open_checkpoint(golden_dir / "hf" / case) as source:
        tensors = {spec.name: source.read(spec).to_float32() for spec in model_specs(source.config)}
    runner = make_runner(gguf_makers.write_gguf(tmp_path / "model.gguf", raw, tensors))
    logits = all_logits(runner, golden["prompt_ids"].tolist())
    assert np.abs(logits - golden["logits"]).max() <= 1e-4 * np.abs(golden["logits"]).max()

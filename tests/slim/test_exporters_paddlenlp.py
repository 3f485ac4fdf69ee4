"""PaddleNLP's INT8: PaddleNLP itself loads it, and the pickle is one that Python reads."""

from __future__ import annotations

import json
import pickle
import pickletools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import makers
from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.errors import UnsupportedError
from paddle_ds_slim.convert import convert
from paddle_ds_slim.exporters.paddlenlp_int8 import PaddleNLPInt8Target
from paddle_ds_slim.exporters.pdparams_writer import PdparamsWriter, _bytes_head
from paddle_ds_slim.exporters.view import ConvertedCheckpoint
from slim.conversion_sources import SOURCES, Quantised, Truth, channel_truth, model_config

LOAD_WITH_PADDLENLP = """
import sys
import numpy as np, paddle
from paddlenlp.transformers import LlamaForCausalLM, Qwen2ForCausalLM

for name in sys.argv[2:]:
    kind = LlamaForCausalLM if name.startswith("llama") else Qwen2ForCausalLM
    model = kind.from_pretrained(f"{sys.argv[1]}/{name}", dtype="bfloat16" if name.endswith("bf16") else "float16")
    assert model.config.quantization_config.weight_quantize_algo == "llm.int8"
    state = {key: value if value.dtype == paddle.int8 else value.astype("float32") for key, value in model.state_dict().items()}
    np.savez(f"{sys.argv[1]}/{name}.npz", **{key: value.numpy() for key, value in state.items()})
"""


def test_paddlenlp_itself_loads_what_we_write(tmp_path: Path) -> None:
    truths: dict[str, Truth] = {}
    for name, model in {"llama-tied": "llama-tied", "llama": "llama-untied", "qwen2-bf16": "qwen2-untied"}.items():
        config = model_config(model)
        tensors = makers.random_tensors(config)
        SOURCES["w8a8"](tmp_path / "source" / name, config, tensors)
        dtype = "bfloat16" if name.endswith("bf16") else "float16"
        convert(tmp_path / "source" / name, tmp_path / name, "paddlenlp-int8", dtype=dtype)
        truths[name] = channel_truth(tensors, "float32", "float32")
    arguments = [sys.executable, "-W", "ignore", "-c", LOAD_WITH_PADDLENLP, str(tmp_path), *truths]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    for name, truth in truths.items():
        state = dict(np.load(tmp_path / f"{name}.npz"))
        rtol = 2.0**-8 if name.endswith("bf16") else 2.0**-11
        for key, expected in truth.items():
            raw = key.replace("model.", f"{name[:5]}.", 1)
            if isinstance(expected, Quantised):
                module = raw.removesuffix(".weight")
                np.testing.assert_array_equal(state.pop(f"{module}.quant_weight"), expected.integers)
                np.testing.assert_allclose(state.pop(f"{module}.quant_scale"), expected.scales[:, 0], rtol=rtol)
                continue
            values = expected.values.T if key == "lm_head.weight" else expected.values
            np.testing.assert_allclose(state.pop(raw), values, rtol=rtol, atol=2.0**-25)
        if name == "llama-tied":
            state.pop("lm_head.weight")
        assert not state, f"{name}: PaddleNLP has tensors that we did not write: {list(state)}"


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


def test_paddlenlp_shards_hold_every_tensor_and_a_tied_head_twice(tmp_path: Path) -> None:
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
    weight_map = json.loads((tmp_path / "out" / "model_state.pdparams.index.json").read_text())["weight_map"]
    shard = pickle.loads((tmp_path / "out" / weight_map["lm_head.weight"]).read_bytes())
    np.testing.assert_array_equal(shard["lm_head.weight"], shard["llama.embed_tokens.weight"])
    assert all(file.stat().st_size < 8000 for file in (tmp_path / "out").glob("*.pdparams"))


@pytest.mark.parametrize(
    ("model", "changes", "complaint"),
    [
        ("llama-untied", {"head_dim": 32}, "head_dim 32"),
        ("llama-untied", {"attention_bias": True}, "a Llama with biases"),
        ("qwen2-untied", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rotary scaling of type 'yarn'"),
    ],
)
def test_paddlenlp_would_misread_some_models(tmp_path: Path, model: str, changes: dict[str, Any], complaint: str) -> None:
    config = model_config(model, **changes)
    makers.write_hf(tmp_path / "source", config, makers.random_tensors(config))
    with pytest.raises(UnsupportedError, match=complaint):
        convert(tmp_path / "source", tmp_path / "out", "paddlenlp-int8")

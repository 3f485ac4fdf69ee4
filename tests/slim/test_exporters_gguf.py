"""GGUF files as others see them: the ``gguf`` package reads the weights, llama.cpp's rules give the same rotation and tokens."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers

from checkpoints import makers
from paddle_ds.checkpoints import DenseTensor, open_checkpoint
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.tensors import Role, model_specs
from paddle_ds.engine.assets import EMBEDDED_MODEL
from paddle_ds.errors import TokenizerError, UnsupportedError
from paddle_ds.layers import RotaryTable
from paddle_ds.text.tokenizer import Tokenizer
from paddle_ds_slim.convert import convert
from paddle_ds_slim.exporters.weights import as_blocks

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"
TEXTS = ("Once upon a time, there was a dog.", "What's 12 + 34?\n\n  I'll see.", "你好，2+2 等于多少？", "naïve café ½ 🙂")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLE_DS_CACHE_DIR", str(tmp_path / "cache"))


def write_model(directory: Path, architecture: Any = makers.LLAMA, **changes: Any) -> makers.Tensors:
    config = makers.config_json(architecture, **{"hidden_size": 64, "intermediate_size": 96, **changes})
    tensors = makers.random_tensors(config)
    makers.write_hf(directory, config, tensors)
    return tensors


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """What the package's own reader makes of a file, float32 by llama.cpp's name."""
    reader = gguf.GGUFReader(path)
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}


def metadata(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_the_gguf_package_reads_the_weights(tmp_path: Path, kind: str) -> None:
    tensors = write_model(tmp_path / "source", makers.QWEN2)
    convert(tmp_path / "source", tmp_path / "out", f"gguf-{kind}")
    found = read_tensors(tmp_path / "out" / f"model-{kind}.gguf")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 2)
    for spec in model_specs(ModelConfig.from_dir(tmp_path / "source")):
        expected = tensors[spec.name]
        if spec.role in (Role.LINEAR, Role.HEAD) and kind == "q8_0":
            expected = gguf.quants.dequantize(gguf.quants.quantize(expected, gguf.GGMLQuantizationType.Q8_0), 8)
        elif expected.ndim == 2:
            expected = expected.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(found.pop(names.get_name(spec.name, (".weight", ".bias"))), expected)
    assert not found


def test_rounding_is_ggmls_bit_for_bit() -> None:
    random = np.random.default_rng(0)
    values = random.normal(0, 1, (64, 96)).astype(np.float32)
    values[0] = 0
    values[1] *= np.float32(1e-42)
    values[2] = np.resize(np.array([127, 0.5, -0.5, 1.5, 2.5, -2.5], np.float32), 96)
    values[3] *= np.float32(1e4)
    values[4] *= np.float32(1e-9)
    ours = as_blocks(DenseTensor(values, "float32"), "weight")
    theirs = gguf.quants.quantize(values[[0, *range(2, 64)]], gguf.GGMLQuantizationType.Q8_0).reshape(63, 3, 34)
    kept = [0, *range(2, 64)]
    np.testing.assert_array_equal(ours.values[kept].reshape(63, 3, 32), theirs[:, :, 2:].view(np.int8))
    np.testing.assert_array_equal(
        ours.scales[kept].astype(np.float16), np.ascontiguousarray(theirs[:, :, :2]).view(np.float16)[:, :, 0]
    )
    assert not ours.to_float32()[1].any()


def test_attention_scores_are_the_same_after_llama_cpps_rotation(tmp_path: Path) -> None:
    """Hugging Face turns element i with i + h/2, llama.cpp's llama architecture 2i with 2i + 1."""
    tensors = write_model(tmp_path / "source", attention_bias=True)
    convert(tmp_path / "source", tmp_path / "out", "gguf-f16")
    found = read_tensors(tmp_path / "out" / "model-f16.gguf")
    config = ModelConfig.from_dir(tmp_path / "source")
    hidden = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    cos, sin = (half[:, None, :] for half in RotaryTable(config).cos_sin(np.arange(5)))

    def heads(weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        return (hidden @ weight.T + bias).reshape(5, -1, config.head_dim)

    def halves(x: np.ndarray) -> np.ndarray:
        low, high = np.split(x, 2, axis=2)
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=2)

    def pairs(x: np.ndarray) -> np.ndarray:
        even, odd = x[:, :, 0::2], x[:, :, 1::2]
        return np.stack([even * cos - odd * sin, odd * cos + even * sin], axis=3).reshape(x.shape)

    attention = "model.layers.1.self_attn"
    rounded = {name: values.astype(np.float16).astype(np.float32) for name, values in tensors.items()}
    ours = [halves(heads(rounded[f"{attention}.{x}_proj.weight"], tensors[f"{attention}.{x}_proj.bias"])) for x in "qk"]
    theirs = [pairs(heads(found[f"blk.1.attn_{x}.weight"], found[f"blk.1.attn_{x}.bias"])) for x in "qk"]
    for head in range(config.num_heads):
        expected, scores = (q[:, head] @ k[:, head // 2].T for q, k in (ours, theirs))
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", sorted(path.name for path in GOLDEN.iterdir()))
def test_metadata_describe_the_same_model(tmp_path: Path, case: str) -> None:
    if case == "qwen2-rope-yarn-attention-factor":
        with pytest.raises(UnsupportedError, match="a factor on attention of its own"):
            convert(GOLDEN / case, tmp_path / "out", "gguf-f16")
        return
    convert(GOLDEN / case, tmp_path / "out", "gguf-f16")
    with open_checkpoint(tmp_path / "out") as after:
        expected, found = (vars(config).copy() for config in (ModelConfig.from_dir(GOLDEN / case), after.config))
        rotary = [RotaryTable(config).cos_sin(np.arange(8)) for config in (ModelConfig.from_dir(GOLDEN / case), after.config)]
    np.testing.assert_allclose(rotary[1], rotary[0], rtol=1e-5, atol=1e-6)
    for record in (expected, found):
        # a file keeps what Llama 3.1's scaling leads to, and not its parameters
        for field in ("quantization", "stored_dtype", "rope_scaling"):
            del record[field]
    assert found == expected


def test_a_file_alone_gives_tokenizer_and_weights_back(tmp_path: Path) -> None:
    convert(EMBEDDED_MODEL, tmp_path / "gguf", "gguf-q8_0")
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "gguf" / "model-q8_0.gguf", tmp_path / "alone")
    convert(tmp_path / "alone", tmp_path / "back", "native")
    ours, theirs = (Tokenizer.from_dir(directory) for directory in (EMBEDDED_MODEL, tmp_path / "back"))
    for text in (*TEXTS, "<｜User｜>1+1<｜Assistant｜><think>\n"):
        assert theirs.encode(text) == ours.encode(text)
    assert (theirs.bos_id, theirs.eos_ids) == (ours.bos_id, ours.eos_ids)
    assert theirs.chat_template is not None
    assert ours.chat_template is not None
    assert theirs.chat_template.source == ours.chat_template.source


def test_vocabulary_is_the_tokenizers_with_padding_rows(tmp_path: Path) -> None:
    convert(EMBEDDED_MODEL, tmp_path / "out", "gguf-q8_0")
    found = metadata(tmp_path / "out" / "model-q8_0.gguf")
    known = json.loads((EMBEDDED_MODEL / "tokenizer.json").read_text())
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", "qwen2")
    assert tokens[:1015] == sorted(known["model"]["vocab"], key=known["model"]["vocab"].get)
    by_type = {kind: {token for token, found in zip(tokens, types, strict=True) if found == kind} for kind in (3, 4, 5)}
    assert {"<｜begin▁of▁sentence｜>", "<｜User｜>", "<|EOT|>"} <= by_type[3]
    assert {"<think>", "</think>"} <= by_type[4]
    assert by_type[3] | by_type[4] == {token["content"] for token in known["added_tokens"]}
    assert by_type[5] == {f"[PAD{number}]" for number in range(1015 + len(known["added_tokens"]), 1024)}
    assert found["tokenizer.ggml.merges"][0] == " ".join(known["model"]["merges"][0])
    assert found["tokenizer.ggml.add_bos_token"] is True


def sentencepiece_ids(text: str, found: dict[str, Any]) -> list[int]:
    """llama.cpp's way: of neighbours whose union is a token the highest score first, then the leftmost; bytes for the rest."""
    tokens, scores = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.scores"]
    ids = {token: number for number, token in enumerate(tokens)}
    pieces = list(("▁" if found["tokenizer.ggml.add_space_prefix"] else "") + text.replace(" ", "▁"))
    while True:
        unions = [(scores[ids[a + b]], -at) for at, (a, b) in enumerate(itertools.pairwise(pieces)) if a + b in ids]
        if not unions:
            break
        at = -max(unions)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return [
        number
        for piece in pieces
        for number in ([ids[piece]] if piece in ids else [ids[f"<0x{byte:02X}>"] for byte in piece.encode()])
    ]


def sentencepiece_json(merges: list[list[str]], **vocab: int) -> dict[str, Any]:
    letters = {"<unk>": 0, **{f"<0x{byte:02X}>": 1 + byte for byte in range(256)}, "▁": 257, "a": 258, "b": 259, "c": 260}
    model = {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True, "merges": merges}
    steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "model": {**model, "vocab": letters | vocab},
    }


def test_scores_put_merges_in_their_order(tmp_path: Path) -> None:
    merges = [["b", "c"], ["a", "b"], ["a", "bc"], ["ab", "c"], ["▁", "a"], ["c", "c"]]
    content = sentencepiece_json(merges, ab=261, cc=262, abc=263, bc=264, **{"▁a": 265})
    write_model(tmp_path / "source", vocab_size=270)
    makers.write_json(tmp_path / "source" / "tokenizer.json", content)
    convert(tmp_path / "source", tmp_path / "out", "gguf-f16")
    found = metadata(tmp_path / "out" / "model-f16.gguf")
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    for text in ("abc", "a bcc", "aabbcc abab", "ccc cab é"):
        assert sentencepiece_ids(text, found) == backend.encode(text).ids


def test_sentencepiece_scores_give_the_tokenizers_ids(tmp_path: Path, shared_data: Path) -> None:
    convert(shared_data / "stories260k", tmp_path / "out", "gguf-q8_0")
    found = metadata(tmp_path / "out" / "model-q8_0.gguf")
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("llama", "default")
    assert found["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    backend = tokenizers.Tokenizer.from_file(str(shared_data / "stories260k" / "tokenizer.json"))
    sample = (shared_data / "stories260k" / "tinystories_sample.txt").read_text()[:600]
    for text in (*TEXTS, sample):
        assert sentencepiece_ids(text, found) == backend.encode(text, add_special_tokens=False).ids


def tokenizer_json(**model: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((EMBEDDED_MODEL / "tokenizer.json").read_text())
    content["model"] |= model
    return content


def refusal(tmp_path: Path, content: dict[str, Any], vocab_size: int = 1024) -> str:
    write_model(tmp_path / "source", vocab_size=vocab_size)
    makers.write_json(tmp_path / "source" / "tokenizer.json", content)
    with pytest.raises((UnsupportedError, TokenizerError)) as caught:
        convert(tmp_path / "source", tmp_path / "out", "gguf-f16")
    assert not (tmp_path / "out").exists()
    return caught.value.message


def test_a_way_to_cut_words_that_llama_cpp_has_no_name_for_is_refused(tmp_path: Path) -> None:
    content = tokenizer_json()
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+|\p{N}{1,2}"
    assert "no name for this way" in refusal(tmp_path, content)


def test_words_looked_up_whole_need_a_name_of_their_own(tmp_path: Path) -> None:
    assert "ignore_merges True" in refusal(tmp_path, tokenizer_json(ignore_merges=True))


def test_other_pre_tokenizers_are_refused(tmp_path: Path) -> None:
    content = tokenizer_json()
    content["pre_tokenizer"] = {"type": "Whitespace"}
    assert "['Whitespace']" in refusal(tmp_path, content)


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(tmp_path: Path) -> None:
    assert "the model has 56 rows" in refusal(tmp_path, tokenizer_json(), vocab_size=56)


def test_pieces_that_only_llama_cpp_would_merge_are_refused(tmp_path: Path) -> None:
    assert "'a' and 'b' make the token 'ab'" in refusal(tmp_path, sentencepiece_json([], ab=261))


def test_without_a_tokenizer_the_file_has_no_vocabulary_and_says_so(tmp_path: Path) -> None:
    write_model(tmp_path / "source")
    report = convert(tmp_path / "source", tmp_path / "out", "gguf-f16")
    assert metadata(tmp_path / "out" / "model-f16.gguf")["tokenizer.ggml.model"] == "no_vocab"
    assert any("without a vocabulary" in sentence for sentence in report.sentences)


@pytest.mark.parametrize(
    ("architecture", "changes", "complaint"),
    [
        (makers.QWEN2, {"head_dim": 32}, "head_dim 32"),
        (makers.QWEN2, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'llama3'; llama.cpp's qwen2 has none"),
        (makers.LLAMA, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": False}}, "truncate false"),
    ],
)
def test_llama_cpp_would_misread_some_models(tmp_path: Path, architecture: Any, changes: dict[str, Any], complaint: str) -> None:
    write_model(tmp_path / "source", architecture, **changes)
    with pytest.raises(UnsupportedError, match=complaint):
        convert(tmp_path / "source", tmp_path / "out", "gguf-f16")


def test_without_the_gguf_package_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "source")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UnsupportedError, match=r"paddle-ds\[gguf\]"):
        convert(tmp_path / "source", tmp_path / "out", "gguf-f16")

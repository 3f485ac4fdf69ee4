"""``expected.npz``: the weights a checkpoint stands for, as its own library computes them, and the logits they give.

    prompt_ids          int64   [n]
    logits              float32 [n, vocab]   of transformers in float32 with the dequantised weights: nothing else is rounded
    logits_quantized    float32 [n, vocab]   optional: activations (and keys and values) rounded too, by the library itself
    weights/<name>      float32              dequantised, [out, in]; a few, for a look at what differs (_SHOWN)
    sha256/<name>       uint8   [32]         of the C-order float32 bytes of every quantised weight

Names are Hugging Face's. Half-precision results of a library are stored widened.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from make_golden_quant_parts.models import prompt_ids

#: weights that are kept whole: the two that GGUF permutes, one with other extents, and one outside the layers
_SHOWN = ("model.layers.0.self_attn.q_proj.", "model.layers.0.self_attn.k_proj.", "model.layers.0.mlp.down_proj.", "lm_head.")


@dataclasses.dataclass(frozen=True)
class Dequantized:
    """All tensors of a model by name, as torch float tensors; ``quantized`` names those that were integers in the file."""

    tensors: Mapping[str, Any]
    quantized: frozenset[str]


def write_expected(directory: Path, base: Path, found: Dequantized, logits_quantized: Any = None) -> None:
    """Write ``directory/expected.npz``. ``base`` is the checkpoint before quantisation, for its configuration."""
    import torch

    arrays: dict[str, np.ndarray[Any, Any]] = {"prompt_ids": np.array(prompt_ids(), np.int64)}
    arrays["logits"] = model_logits(_plain_model(base, found.tensors)).numpy()
    if logits_quantized is not None:
        arrays["logits_quantized"] = logits_quantized.to(torch.float32).numpy()
    for name in sorted(found.quantized):
        weight = np.ascontiguousarray(found.tensors[name].to(torch.float32).numpy())
        arrays[f"sha256/{name}"] = np.frombuffer(hashlib.sha256(weight.tobytes()).digest(), np.uint8)
        if name.startswith(_SHOWN):
            arrays[f"weights/{name}"] = weight
    np.savez_compressed(directory / "expected.npz", allow_pickle=False, **arrays)
    _report(directory, base, arrays)


def model_logits(model: Any) -> Any:
    """Float32 logits ``[n, vocab]`` of the prompt, with a fresh cache as in generation (a quantised one takes part)."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([prompt_ids()]), use_cache=True).logits[0].float()


def _plain_model(base: Path, tensors: Mapping[str, Any]) -> Any:
    """The float32 model of ``base``'s architecture with these tensors; a missing or extra one is an error."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(base)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    missing, unexpected = model.load_state_dict({k: v.to(torch.float32) for k, v in tensors.items()}, strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if set(missing) - tied or unexpected:
        raise SystemExit(f"{base.name}: missing {missing}, unexpected {unexpected}")
    return model


def _report(directory: Path, base: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """How far the quantised model is from the original: large means that something above is wrong, not the quantiser."""
    import torch
    import transformers

    original = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    reference = model_logits(original.eval()).numpy()
    errors = [f"{key} {_relative(arrays[key], reference):.3f}" for key in arrays if key.startswith("logits")]
    size_kb = sum(file.stat().st_size for file in directory.iterdir()) / 1000
    print(f"{directory.name}: relative error of {', '.join(errors)}; {size_kb:.0f} kB", flush=True)


def _relative(found: np.ndarray[Any, Any], reference: np.ndarray[Any, Any]) -> float:
    """Root mean square of the difference, by that of the reference."""
    return float(np.sqrt(np.mean((found - reference) ** 2) / np.mean(reference**2)))

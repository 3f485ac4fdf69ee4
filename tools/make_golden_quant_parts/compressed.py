"""llm-compressor's checkpoints (compressed-tensors), and what the compressed-tensors library makes of one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from make_golden_quant_parts.expected import Dequantized, model_logits, write_expected
from make_golden_quant_parts.models import NARROW, Base, calibration_ids, write_base

_GROUP = 32

_TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
_STATIC_KV = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor", "dynamic": False}


def _weights(bits: int, group_size: int | None = None, symmetric: bool = True) -> dict[str, Any]:
    strategy = "group" if group_size else "channel"
    return {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "group_size": group_size}


@dataclasses.dataclass(frozen=True)
class Case:
    """One directory. ``gptq`` chooses between error-compensated rounding and rounding to the nearest."""

    name: str
    base: Base
    weights: dict[str, Any]
    activations: dict[str, Any] | None = None
    kv_cache: dict[str, Any] | None = None
    gptq: bool = True
    actorder: str | None = None

    @property
    def rounds_activations(self) -> bool:
        return self.activations is not None or self.kv_cache is not None


#: 50 inputs of eight bits fill twelve and a half words
_RAGGED = Base(fields=(*NARROW, ("intermediate_size", 50)), seed=3)
_QWEN2_BF16 = Base("qwen2", dtype="bfloat16", seed=2)

CASES = (
    Case("ct-w8a8", Base(fields=NARROW), _weights(8), _TOKEN),
    Case("ct-w8a8-bf16", Base("qwen2", NARROW, "bfloat16", 7), _weights(8), _TOKEN, gptq=False),
    Case("ct-w8a16", _RAGGED, _weights(8), gptq=False),
    Case("ct-w4a16-g32", _QWEN2_BF16, _weights(4, _GROUP)),
    Case("ct-w4a16-asym", Base(fields=(("tie_word_embeddings", False),), seed=4), _weights(4, _GROUP, symmetric=False)),
    Case("ct-kv8", Base(fields=NARROW, seed=5), _weights(8), _TOKEN, kv_cache=_STATIC_KV, gptq=False),
)

#: with the older releases only
ACT_ORDER_CASES = (Case("ct-w4a16-actorder", Base(seed=6), _weights(4, _GROUP), actorder="group"),)


def make(case: Case, out: Path, work: Path) -> None:
    """Quantise, save and write down what the library reads back."""
    base = write_base(case.base, work / f"{case.name}-base")
    _quantize(case, base, out)
    for name in ("generation_config.json", "recipe.yaml"):
        (out / name).unlink(missing_ok=True)
    quantized = _logits_quantized(out) if case.rounds_activations else None
    write_expected(out, base, _widened(out), quantized)


def _quantize(case: Case, base: Path, out: Path) -> None:
    import datasets
    import torch
    import transformers
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    scheme = {"targets": ["Linear"], "weights": case.weights, "input_activations": case.activations}
    settings: dict[str, Any] = {"config_groups": {"group_0": scheme}, "ignore": ["lm_head"]}
    if case.kv_cache:
        settings["kv_cache_scheme"] = case.kv_cache
    if case.gptq:
        modifier = GPTQModifier(**settings, block_size=_GROUP, actorder=case.actorder)
    else:
        modifier = QuantizationModifier(**settings)
    ids = calibration_ids()
    rows = datasets.Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]})
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, case.base.dtype))
    oneshot(model=model, dataset=rows, recipe=[modifier], num_calibration_samples=len(ids), max_seq_length=len(ids[0]))
    model.save_pretrained(out, save_compressed=True)


def _widened(directory: Path) -> Dequantized:
    """Quantised weights with scales widened to float32, so that half-precision ones do not round the product.

    What the library makes of the scales as they are must be that, rounded once.
    """
    import torch

    exact, as_stored = dequantize(directory, torch.float32), dequantize(directory)
    for name in as_stored.quantized:
        found = as_stored.tensors[name]
        if not torch.equal(found, exact.tensors[name].to(found.dtype)):
            raise SystemExit(f"{directory.name}: {name} depends on the type of its scales by more than a rounding")
    return exact


def dequantize(directory: Path, scales_as: Any = None) -> Dequantized:
    """Every tensor of a compressed-tensors checkpoint, quantised weights through the library's ``decompress``.

    Which modules are quantised, and how, is for the library to say too (``apply_quantization_config`` on an empty model). A
    quantised weight comes in the type of its scales, which the library computes in; ``scales_as`` is another torch type for them.
    """
    import torch
    from compressed_tensors.compressors import BaseCompressor

    stored = _read_tensors(directory)
    tensors: dict[str, Any] = {}
    quantized: set[str] = set()
    for module, scheme, form in _quantized_modules(directory):
        local = {name.removeprefix(f"{module}."): stored.pop(name) for name in list(stored) if name.startswith(f"{module}.")}
        bias = local.pop("bias", None)
        if bias is not None:
            tensors[f"{module}.bias"] = bias
        if scales_as is not None:
            local["weight_scale"] = local["weight_scale"].to(scales_as)
        compressor = BaseCompressor.get_value_from_registry(form)
        tensors[f"{module}.weight"] = compressor.decompress(local, scheme)["weight"]
        quantized.add(f"{module}.weight")
    scales = {name for name in stored if name.endswith((".k_scale", ".v_scale"))}  # of keys and values, not of weights
    tensors.update({name: tensor for name, tensor in stored.items() if name not in scales})
    strange = [name for name, tensor in tensors.items() if not torch.is_floating_point(tensor)]
    if strange:
        raise SystemExit(f"{directory}: {strange} are still integers after dequantising")
    return Dequantized(tensors, frozenset(quantized))


def save_dequantized(directory: Path, file: Path) -> None:
    """``--dequantize``: the quantised weights as float32 ``[out, in]`` by name, in an npz without compression."""
    import torch

    found = dequantize(directory)
    arrays = {name: found.tensors[name].to(torch.float32).numpy() for name in sorted(found.quantized)}
    np.savez(file, allow_pickle=False, **arrays)
    print(f"{file}: {len(arrays)} weights", flush=True)


def _read_tensors(directory: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def _quantized_modules(directory: Path) -> Iterator[tuple[str, Any, str]]:
    """Name, scheme and format of each quantised linear layer."""
    import torch
    import transformers
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    settings = json.loads((directory / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(settings)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(_without_quantization(directory))
    apply_quantization_config(model, config)
    for name, module in model.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        if isinstance(module, torch.nn.Linear) and scheme is not None and scheme.weights is not None:
            form = scheme.format or config.format
            yield name, scheme, str(getattr(form, "value", form))


def _without_quantization(directory: Path) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(directory)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def _logits_quantized(directory: Path) -> Any:
    """What the checkpoint computes in transformers, where the library rounds activations, keys and values as it goes."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    return model_logits(model.eval())

"""gptqmodel's checkpoints: GPTQ in both forms of zero points, and AWQ in the layout of its GEMM kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from make_golden_quant_parts.expected import Dequantized, write_expected
from make_golden_quant_parts.models import NARROW, Base, calibration_ids, write_base

_GROUP = 32


@dataclasses.dataclass(frozen=True)
class Case:
    """One directory. ``form`` is gptqmodel's name of what is written: ``gptq`` (zero points less one), ``gptq_v2``, ``gemm``."""

    name: str
    base: Base
    bits: int = 4
    group_size: int = _GROUP
    symmetric: bool = True
    act_order: bool = False
    form: str = "gptq"

    @property
    def is_awq(self) -> bool:
        return self.form == "gemm"


_LLAMA = Base(dtype="float16", seed=8)
_LLAMA_ONE_SIDED = dataclasses.replace(_LLAMA, one_sided_rows=True)
_QWEN2 = Base("qwen2", dtype="float16", seed=9)
#: AWQ's search for a clipping bound takes 64 outputs at a time
_LLAMA_AWQ = Base(fields=(("num_key_value_heads", 4), ("intermediate_size", 128)), dtype="float16", seed=10, one_sided_rows=True)

CASES = (
    Case("gptq-int4", _LLAMA),
    Case("gptq-int4-actorder", _QWEN2, act_order=True),
    Case("gptq-int4-asym", _LLAMA_ONE_SIDED, symmetric=False),
    Case("gptq-int4-asym-v2", _LLAMA_ONE_SIDED, symmetric=False, form="gptq_v2"),
    Case("gptq-int8", Base("qwen2", NARROW, "float16", 11), bits=8, group_size=-1),
    Case("awq-int4", _LLAMA_AWQ, symmetric=False, form="gemm"),
)


def make(case: Case, out: Path, work: Path) -> None:
    """Quantise, save, load again and write down what the library's own layers dequantise to."""
    base = write_base(case.base, work / f"{case.name}-base")
    _quantize(case, base, out)
    found = _dequantize_awq(out, case) if case.is_awq else _dequantize_gptq(out)
    for name in ("generation_config.json", "quant_log.csv", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (out / name).unlink(missing_ok=True)
    write_expected(out, base, found)


def _quantize(case: Case, base: Path, out: Path) -> None:
    import torch
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.quantization import FORMAT, METHOD

    more: dict[str, Any] = {}
    if case.group_size == -1:
        more["act_group_aware"] = False  # on by default, and refused without groups
    settings = QuantizeConfig(
        bits=case.bits,
        group_size=case.group_size,
        sym=case.symmetric,
        desc_act=case.act_order,
        quant_method=METHOD.AWQ if case.is_awq else METHOD.GPTQ,
        format=FORMAT(case.form),
        device="cpu",
        offload_to_disk=False,
        **more,
    )
    ids = [torch.tensor([row]) for row in calibration_ids()]
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    model = GPTQModel.load(str(base), settings, dtype=torch.float16)
    model.quantize(rows, batch_size=1, backend=BACKEND.AWQ_TORCH if case.is_awq else BACKEND.GPTQ_TORCH)
    model.save(str(out))


def _dequantize_gptq(directory: Path) -> Dequantized:
    """Through the layers of the loaded model; loading turns zero points less one into zero points.

    Scales are widened first: the product of a small integer and a half-precision number is exact in float32, where the
    library's own half-precision product rounds.
    """
    import torch
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.nn_modules.qlinear import PackableQuantLinear

    model = GPTQModel.load(str(directory), backend=BACKEND.GPTQ_TORCH, device="cpu", dtype=torch.float16).model
    layers = {name: module for name, module in model.named_modules() if isinstance(module, PackableQuantLinear)}
    tensors = _dense_tensors(directory)
    for name, layer in layers.items():
        layer.scales = layer.scales.float()
        tensors[f"{name}.weight"] = PackableQuantLinear.dequantize_weight(layer).T.contiguous()
    return Dequantized(tensors, frozenset(f"{name}.weight" for name in layers))


def _dequantize_awq(directory: Path, case: Case) -> Dequantized:
    """Through the function of the library's torch layer, scales widened first as above."""
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
    from safetensors.torch import load_file

    stored = load_file(directory / "model.safetensors")
    tensors = _dense_tensors(directory)
    quantized = set()
    for name in _quantized_names(stored):
        parts = (stored[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales"))
        qweight, qzeros, scales = parts
        weight = dequantize_gemm(qweight, qzeros, scales.float(), case.bits, case.group_size)
        tensors[f"{name}.weight"] = weight.T.contiguous()
        quantized.add(f"{name}.weight")
    return Dequantized(tensors, frozenset(quantized))


def _dense_tensors(directory: Path) -> dict[str, Any]:
    """Everything in the file that belongs to no quantised weight; biases stay."""
    from safetensors.torch import load_file

    packed = (".qweight", ".qzeros", ".scales", ".g_idx")
    return {name: tensor for name, tensor in load_file(directory / "model.safetensors").items() if not name.endswith(packed)}


def _quantized_names(stored: dict[str, Any]) -> Iterator[str]:
    return (name.removesuffix(".qweight") for name in stored if name.endswith(".qweight"))

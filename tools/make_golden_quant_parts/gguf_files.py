"""GGUF files by llama.cpp's converter, and what transformers reads from one.

    python gguf_files.py CONVERTER CHECKPOINT OUTTYPE OUT     runs the converter, in a process of its own

The converter refuses a tokenizer whose split rule it cannot name, and the name is a hash over a real vocabulary. The rule only
decides how text is cut, so the tokenizer here is written down as Qwen2's.
"""

from __future__ import annotations

import dataclasses
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from make_golden_quant_parts.expected import Dequantized, write_expected
from make_golden_quant_parts.models import NARROW, Base, write_base


@dataclasses.dataclass(frozen=True)
class Case:
    """One directory with a ``model.gguf``. ``outtype`` is the converter's name of the numbers in matrices."""

    name: str
    base: Base
    outtype: str


_UNTIED = ("tie_word_embeddings", False)

CASES = (
    Case("gguf-f16-llama", Base(fields=NARROW, dtype="float16", seed=12), "f16"),
    Case("gguf-q8_0-llama", Base(fields=(*NARROW, _UNTIED), dtype="float16", seed=13), "q8_0"),
    Case("gguf-f16-qwen2", Base("qwen2", (*NARROW, _UNTIED), "float16", seed=14), "f16"),
    Case("gguf-q8_0-qwen2", Base("qwen2", dtype="bfloat16", seed=15), "q8_0"),
)


def make(case: Case, out: Path, work: Path, converter: Path) -> None:
    """Convert, read back with transformers (gguf's ``dequantize``, rows of Llama's queries and keys put back)."""
    base = write_base(case.base, work / f"{case.name}-base")
    file = out / "model.gguf"
    command: list[str | Path] = [sys.executable, __file__, converter, base, case.outtype, file]
    subprocess.run(command, check=True)
    found = _dequantize(out)
    if case.outtype == "f16":
        _check_unchanged(base, found)
    write_expected(out, base, found)


def _dequantize(directory: Path) -> Dequantized:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, gguf_file="model.gguf", dtype=torch.float32)
    tensors = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    return Dequantized(tensors, frozenset(name for name, tensor in tensors.items() if tensor.ndim == 2))


def _check_unchanged(base: Path, found: Dequantized) -> None:
    """Half-precision matrices come back as they were; otherwise rows or names got mixed up on the way."""
    from safetensors.torch import load_file

    for name, tensor in load_file(base / "model.safetensors").items():
        if not (found.tensors[name] == tensor.float()).all():
            raise SystemExit(f"{base.name}: {name} is not what was converted")


def _convert() -> None:
    converter, checkpoint, outtype, out = sys.argv[1:]
    sys.path[:0] = [converter, f"{converter}/gguf-py"]
    from conversion.base import TextModel  # type: ignore[import-not-found]

    def named(_self: Any, _tokenizer: Any) -> str:
        return "qwen2"

    TextModel.get_vocab_base_pre = named
    sys.argv = ["convert_hf_to_gguf.py", checkpoint, "--outtype", outtype, "--outfile", out]
    runpy.run_path(f"{converter}/convert_hf_to_gguf.py", run_name="__main__")


if __name__ == "__main__":
    _convert()

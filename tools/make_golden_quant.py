"""Make ``tests/golden/quant``: tiny checkpoints by other people's quantisers, and what their own libraries make of them.

    python tools/make_golden_quant.py --venv DIR [--only NAME ...] [--out tests/golden/quant]
    python tools/make_golden_quant.py --venv DIR --dequantize CHECKPOINT --npz FILE

torch and the quantisers (``make_golden_quant_parts/install.py`` lists them) go into a virtual environment of their own, ``DIR``,
which is made if it is not there; Python 3.11, no GPU. Each case becomes a directory with the checkpoint as the tool wrote it and
``expected.npz`` (``make_golden_quant_parts/expected.py`` says what is in it).

``--dequantize`` takes any compressed-tensors checkpoint, ours for one, and writes the quantised weights as the compressed-tensors
library decompresses them: float32 ``[out, in]`` by name. One with ``weight_g_idx`` goes to the last release that knows it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

from make_golden_quant_parts.install import act_order_of, converter_of, install, python_of

_WORKER = Path(__file__).parent / "make_golden_quant_parts" / "worker.py"

#: which cases run in one process
FAMILIES = {
    "compressed": ("ct-w8a8", "ct-w8a8-bf16", "ct-w8a16", "ct-w4a16-g32", "ct-w4a16-asym", "ct-kv8"),
    "act-order": ("ct-w4a16-actorder",),
    "gptq": ("gptq-int4", "gptq-int4-actorder", "gptq-int4-asym", "gptq-int4-asym-v2", "gptq-int8", "awq-int4"),
    "gguf": ("gguf-f16-llama", "gguf-q8_0-llama", "gguf-f16-qwen2", "gguf-q8_0-qwen2"),
}

_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCHDYNAMO_DISABLE": "1",  # gptqmodel compiles its layers otherwise: minutes of g++ for microseconds of work
    "GPTQMODEL_DISABLE_PACK_EXT": "1",  # another compilation; its Python code packs the same
    "GPTQMODEL_CPU_WORKERS": "2",  # it asks for two and refuses to start where it counts fewer cores
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--venv", type=Path, required=True, help="where the quantisers are, or are put")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "tests" / "golden" / "quant")
    known = [name for names in FAMILIES.values() for name in names]
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=known, default=known, help="some of the directories")
    parser.add_argument("--dequantize", type=Path, metavar="CHECKPOINT", help="a compressed-tensors checkpoint to decompress")
    parser.add_argument("--npz", type=Path, help="the file that --dequantize writes")
    arguments = parser.parse_args()
    if (arguments.dequantize is None) != (arguments.npz is None):
        parser.error("--dequantize and --npz belong together")
    venv: Path = arguments.venv.absolute()
    install(venv)
    if arguments.dequantize:
        checkpoint: Path = arguments.dequantize.absolute()
        _run(venv, ["dequantize", checkpoint, arguments.npz.absolute()], older=_is_act_order(checkpoint))
        return
    with tempfile.TemporaryDirectory() as work:
        for family, names in FAMILIES.items():
            wanted = [name for name in names if name in arguments.only]
            if wanted:
                command = [family, arguments.out.absolute(), work, converter_of(venv), *wanted]
                _run(venv, command, older=family == "act-order")


def _is_act_order(checkpoint: Path) -> bool:
    """Whether columns are in groups of their own choice, which compressed-tensors refuses since it was removed there."""
    groups = json.loads((checkpoint / "config.json").read_text())["quantization_config"]["config_groups"].values()
    return any((group.get("weights") or {}).get("actorder") in ("group", "dynamic") for group in groups)


def _run(venv: Path, arguments: list[str | Path], older: bool) -> None:
    environ = {**os.environ, **_ENVIRONMENT}
    if older:
        environ["PYTHONPATH"] = str(act_order_of(venv))
    subprocess.run([python_of(venv), _WORKER, *arguments], check=True, env=environ)


if __name__ == "__main__":
    main()

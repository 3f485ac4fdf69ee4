"""Runs one family of cases in the environment of the quantisers; ``make_golden_quant.py`` starts it.

python worker.py FAMILY OUT WORK CONVERTER NAME...
python worker.py dequantize CHECKPOINT NPZ
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))


def main() -> None:
    import torch
    import transformers

    # one thread: the order of additions, and with it the last bit of a Hessian, does not depend on the machine's cores
    torch.set_num_threads(1)
    transformers.set_seed(0)
    family, *arguments = sys.argv[1:]
    if family == "dequantize":
        from make_golden_quant_parts.compressed import save_dequantized

        checkpoint, file = map(Path, arguments)
        save_dequantized(checkpoint, file)
        return
    out, work, converter, *names = arguments
    cases, make = _family(family, Path(converter))
    for case in cases:
        if case.name in names:
            target = Path(out) / case.name
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            torch.manual_seed(0)
            make(case, target, Path(work))


def _family(name: str, converter: Path) -> tuple[tuple[Any, ...], Any]:
    """The cases of a family and what makes one; imported here because families want different packages."""
    if name in ("compressed", "act-order"):
        from make_golden_quant_parts import compressed

        return (compressed.CASES if name == "compressed" else compressed.ACT_ORDER_CASES), compressed.make
    if name == "gptq":
        from make_golden_quant_parts import gptq

        return gptq.CASES, gptq.make
    from make_golden_quant_parts import gguf_files

    return gguf_files.CASES, lambda case, target, work: gguf_files.make(case, target, work, converter)


if __name__ == "__main__":
    main()

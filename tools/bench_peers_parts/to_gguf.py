"""Run llama.cpp's converter on a checkpoint whose tokenizer it may not know; in the peers' environment.

    python to_gguf.py LLAMA_CPP_SOURCE CHECKPOINT OUT

The converter refuses a tokenizer whose split rule it cannot name. The split rule only decides how many tokens a text has, and
the weights are random, so such a tokenizer is written down as Qwen2's.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any


def main() -> None:
    source, checkpoint, out = sys.argv[1:]
    sys.path[:0] = [source, f"{source}/gguf-py"]
    from conversion.base import TextModel  # type: ignore[import-not-found]

    known = TextModel.get_vocab_base_pre

    def named(self: Any, tokenizer: Any) -> Any:
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            return "qwen2"

    TextModel.get_vocab_base_pre = named
    sys.argv = ["convert_hf_to_gguf.py", checkpoint, "--outtype", "q8_0", "--outfile", out]
    runpy.run_path(f"{source}/convert_hf_to_gguf.py", run_name="__main__")


if __name__ == "__main__":
    main()

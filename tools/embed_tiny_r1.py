"""Turn a trained tiny-r1 into the checkpoint the library carries: INT8, in the native format.

python tools/train_tiny_r1.py --out build/tiny-r1
python tools/embed_tiny_r1.py build/tiny-r1
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.checkpoints.native import write_native
from paddle_ds.engine.assets import EMBEDDED_MODEL

MAX_BYTES = 8_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", type=Path, help="directory that train_tiny_r1.py wrote")
    parser.add_argument("--out", type=Path, default=EMBEDDED_MODEL)
    arguments = parser.parse_args()
    shutil.rmtree(arguments.out, ignore_errors=True)
    with open_checkpoint(arguments.source) as checkpoint:
        write_native(checkpoint, arguments.out)
    num_bytes = sum(file.stat().st_size for file in arguments.out.iterdir())
    if num_bytes > MAX_BYTES:
        raise SystemExit(f"{arguments.out}: {num_bytes} bytes; at most {MAX_BYTES} may be carried")
    print(f"{arguments.out}: {num_bytes} bytes")


if __name__ == "__main__":
    main()

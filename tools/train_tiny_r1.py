"""Train, evaluate and export tiny-r1, the small model embedded in Paddle-DS as its default.

What it is: a Qwen2-architecture language model of about 2 million parameters with R1's special tokens and chat
template. It is trained from scratch, on text generated here, to reason between <think> and </think> about one small sum
(addition and subtraction of 0..999, multiplication of 0..12 by 0..12 and of two digits by one) asked in English or
Chinese, and then to answer. It lets every part of Paddle-DS run end to end, in seconds, without a download.

What it is not: a general assistant, or a distillation of DeepSeek-R1. It knows no language beyond its templates; asked
for anything else it says that it is a tiny demonstration model.

    python tools/train_tiny_r1.py --out build/tiny-r1 --minutes 45
    python tools/train_tiny_r1.py --out build/tiny-r1 --minutes 45 --resume
    python tools/train_tiny_r1.py --eval-only build/tiny-r1

Expect 2,000 to 3,000 tokens per second on one core, a usable model after some 4 million tokens (3,000 steps) and a good
one after 8 million.
glibc returns every large tensor to the system and maps it again; MALLOC_MMAP_THRESHOLD_=4000000000 and
MALLOC_TRIM_THRESHOLD_=8000000000 in the environment stop that and gain about a tenth.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

# All are read when paddle's and numpy's libraries load, so they come before any import of them. One thread is the
# fastest for matrices this small; the last makes Paddle's bundled MKL take its AVX2 path on CPUs that are not Intel's.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train, evaluate and export the tiny-r1 model.")
    parser.add_argument("--out", type=Path, default=Path("build/tiny-r1"), help="folder of the export (and of state/)")
    parser.add_argument("--steps", type=int, default=6000, help="optimizer steps (repeatable to the bit)")
    parser.add_argument("--minutes", type=float, default=None, help="train for a time instead of a number of steps")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="continue from OUT/state")
    parser.add_argument("--eval-only", type=Path, metavar="DIR", help="evaluate an export and stop")
    parser.add_argument("--eval-questions", type=int, default=100, help="held-out questions per task and style")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.eval_only is None:
        from tiny_r1.training import Plan, Shape, train

        train(Shape(), Plan(arguments.steps, arguments.minutes, arguments.seed), arguments.out, arguments.resume)
    from tiny_r1.evaluation import evaluate

    print(evaluate(arguments.eval_only or arguments.out, arguments.eval_questions))


if __name__ == "__main__":
    main()

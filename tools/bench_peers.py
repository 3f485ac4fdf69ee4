"""Paddle-DS beside llama.cpp and OpenVINO on the same machine, with the same random weights in INT8, two threads each.

    .venv/bin/python tools/bench_peers.py --all --json bench-results/peers.json
    .venv/bin/python tools/bench_peers.py --tune              the peers' best settings, into a file that is kept
    .venv/bin/python tools/bench_peers.py --http --rounds 3   one part

    read-bandwidth probe ─► ours ─► probe ─► llama.cpp ─► probe ─► OpenVINO ─► probe ─► …   one workload after the other

Each engine stays loaded in a process of its own and sleeps while another computes. Read ratios within a round and their medians,
never one absolute figure: the speed of a shared machine drifts.

The peers go into an environment of their own (--venv), llama.cpp is built from its sources; both once. That needs cmake and g++
(Debian: apt-get install cmake g++ ninja-build; ninja is optional), Python's venv, about 12 GB of disk and, for a model of 1.5
billion weights, 16 GB of memory. pip's own configuration decides which build of torch comes; the one for the CPU is enough.
Where a peer cannot be had, the table says so with the reason and shows our own figures.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from bench_peers_parts.engines import SETTINGS  # noqa: E402
from bench_peers_parts.install import Places  # noqa: E402
from bench_peers_parts.models import find_or_make  # noqa: E402
from bench_peers_parts.session import Session, Wanted  # noqa: E402
from make_model import SHAPES  # noqa: E402

PARTS = {
    "compute": "prefill and decode in process, beside the peers and the probe (this is the default)",
    "http": "16 chats at once over HTTP, beside llama-server",
    "itl": "gaps between the tokens of a stream while long prompts arrive",
    "load": "from disk to the first token, and resident memory with a full KV cache",
    "embedded": "the embedded model over HTTP, one stream",
}
#: the others are for tests, too small for a tokenizer
REAL_SHAPES = [name for name in SHAPES if name.startswith("r1-")]


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--all", action="store_true", help="every part below, but not --tune")
    for name, text in PARTS.items():
        made.add_argument(f"--{name}", action="store_true", help=text)
    made.add_argument("--tune", action="store_true", help="look for the peers' best settings and keep them in --settings")
    made.add_argument("--install", action="store_true", help="only make environment, programs and models")
    made.add_argument("--rounds", type=_count, default=5, help="alternating rounds (default: %(default)s)")
    made.add_argument("--http-rounds", type=_count, default=3, help="the same over HTTP (default: %(default)s)")
    made.add_argument("--threads", type=_count, default=2, help="threads of each engine (default: %(default)s)")
    made.add_argument("--model", type=Path, help="a Hugging Face checkpoint, which is only read (default: random weights)")
    made.add_argument(
        "--shape", choices=REAL_SHAPES, default="r1-distill-qwen-1.5b", help="of the random weights (default: %(default)s)"
    )
    made.add_argument("--tokenizer", type=Path, help="whose tokenizer the random weights get (default: the embedded model's)")
    made.add_argument("--settings", type=Path, default=SETTINGS, help="the peers' settings (default: %(default)s)")
    made.add_argument("--no-peers", action="store_true", help="install nothing, show our own figures")
    made.add_argument("--work-dir", type=Path, default=ROOT / "bench-results" / "peers", help="models, builds, logs")
    made.add_argument("--venv", type=Path, default=ROOT / ".venv-peers", help="the peers' environment")
    made.add_argument("--jobs", type=_count, default=2, help="of the build (default: %(default)s)")
    made.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    return made


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options that fit together; exit status 2 and a sentence where they do not."""
    made = parser()
    options = made.parse_args(arguments)
    if options.no_peers and (options.tune or options.install):
        made.error("--no-peers leaves nothing to tune or install")
    if options.model is not None and not (options.model / "config.json").is_file():
        made.error(f"--model: {options.model} holds no config.json")
    if options.model is not None and options.tokenizer is not None:
        made.error("--tokenizer is for random weights; --model brings its own")
    return options


def parts(options: argparse.Namespace) -> tuple[str, ...]:
    """Names of the parts to run, in the order in which they run."""
    chosen = [name for name in PARTS if options.all or getattr(options, name)]
    if options.load or options.all:
        chosen.insert(chosen.index("load") + 1, "memory")
    extra = [name for name in ("install", "tune") if getattr(options, name)]
    return tuple(extra + chosen) or ("compute",)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def _stop(signum: int, frame: object) -> None:
    raise SystemExit(128 + signum)


def main() -> None:
    """Prepare, measure, print the table."""
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, _stop)  # so that everything that was started is ended
    work = options.work_dir.resolve()
    wanted = Wanted(
        parts=parts(options),
        num_rounds=options.rounds,
        num_http_rounds=options.http_rounds,
        threads=options.threads,
        settings=options.settings,
        json=options.json,
        without_peers="--no-peers was given" if options.no_peers else "",
    )
    models = find_or_make(options.model, options.shape, options.tokenizer, work)
    session = Session(wanted, Places(work, options.venv.resolve(), options.jobs), models)
    session.prepare()
    session.run()
    if set(wanted.parts) - {"install", "tune"}:
        print(f"\n{session.report()}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)

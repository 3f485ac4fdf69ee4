"""Every recipe on small models, measured, as a table in ``docs/quantization.md``; PaddleSlim's own methods beside them.

    make quant-table

The embedded model is always there. stories260k is measured where the test data are (``PADDLE_DS_TEST_DATA``, or
``../shared/data``); without them its part of the page stays as it is. The figures are also written as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddle_ds.devices import environment
from paddle_ds.engine.assets import EMBEDDED_MODEL

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "quantization.md"
OVERLAYS = ("w8a8-smooth+kv8-dynamic", "w8a8-smooth+kv8-static")
#: so many sequences of the model's own for PaddleSlim's methods
NUM_SEQUENCES = 16


def main() -> None:
    """Measure, then rewrite the page between its markers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=ROOT / "bench-results" / "quantization.json")
    parser.add_argument("--recipes", nargs="*", help="only these; the page is left alone then")
    arguments = parser.parse_args()
    environment.prepare(None)
    environment.import_paddle()
    results = {name: measure(model, texts, arguments.recipes) for name, model, texts in models()}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if arguments.recipes is None:
        page = PAGE.read_text(encoding="utf-8")
        for name, result in results.items():
            page = replaced(page, name, table(result))
        PAGE.write_text(page, encoding="utf-8")


def models() -> list[tuple[str, Path, dict[str, Path] | None]]:
    """Name, directory, and texts to measure on; the embedded model writes its own."""
    found: list[tuple[str, Path, dict[str, Path] | None]] = [("tiny-r1", EMBEDDED_MODEL, None)]
    data = Path(os.environ.get("PADDLE_DS_TEST_DATA") or ROOT.parent / "shared" / "data") / "stories260k"
    if data.is_dir():
        found.append(("stories260k", data, {"stories": data / "tinystories_sample.txt"}))
    else:
        print(f"stories260k: not at {data}; its table stays as it is")
    return found


def measure(model: Path, texts: dict[str, Path] | None, only: Sequence[str] | None) -> dict[str, Any]:
    """Rows of recipes and of PaddleSlim's methods."""
    from paddle_ds_slim.recipe import recipe_names

    names = only or [name for name in recipe_names() if not name.startswith("kv8")] + list(OVERLAYS)
    with tempfile.TemporaryDirectory() as scratch:
        rows = []
        for name in names:
            rows.append(run_recipe(model, name, texts, Path(scratch)))
            print(model.name, rows[-1], flush=True)
        return {"recipes": rows, "paddleslim": [] if only else run_paddleslim(model, texts, Path(scratch))}


def run_recipe(model: Path, name: str, texts: dict[str, Path] | None, scratch: Path) -> dict[str, Any]:
    """One recipe, with its gate open."""
    from paddle_ds_slim.passport import EvalConfig
    from paddle_ds_slim.quantize import quantize
    from paddle_ds_slim.recipe import Gate

    out = scratch / name
    passport = quantize(model, out, name, evaluation=EvalConfig(texts=texts), gate=Gate()).passport
    assert passport.kl is not None
    assert passport.decode_tokens_per_s is not None
    (loss,) = passport.loss.values()
    row = {
        "name": name,
        "bytes": passport.bytes.quantized,
        "loss": loss.quantized,
        "reference_loss": loss.reference,
        "increase": loss.increase,
        "kl_mean": passport.kl.mean,
        "kl_p99": passport.kl.p99,
        "top1_agreement": passport.top1_agreement,
        "tasks": {task: result.quantized.exact_match for task, result in passport.tasks.items()},
        "decode_tokens_per_s": passport.decode_tokens_per_s.quantized,
    }
    shutil.rmtree(out)
    return row


def run_paddleslim(model: Path, texts: dict[str, Path] | None, scratch: Path) -> list[dict[str, Any]]:
    """PaddleSlim's methods, simulated in PaddleNLP's model: it writes no integers."""
    import dataclasses

    from paddle_ds.checkpoints import open_checkpoint
    from paddle_ds.text import Tokenizer
    from paddle_ds_slim.calibrating import CalibrationSource, calibration_ids
    from paddle_ds_slim.paddleslim_adapter import paddleslim_table
    from paddle_ds_slim.passport import EvalConfig
    from paddle_ds_slim.passport.data import texts_of
    from paddle_ds_slim.progress import silent
    from paddle_ds_slim.recipe import load_recipe
    from paddle_ds_slim.work_directory import WorkDirectory

    with open_checkpoint(model) as checkpoint:
        recipe = load_recipe("w8a8-smooth")
        work = WorkDirectory.open(scratch / "paddleslim", {})
        source = CalibrationSource(self_generate=NUM_SEQUENCES)
        ids, _ = calibration_ids(checkpoint, recipe, source, work, silent)
        if texts is None:
            held_out = CalibrationSource(self_generate=NUM_SEQUENCES, seed=1)
            pieces = calibration_ids(checkpoint, recipe, held_out, WorkDirectory.open(scratch / "text", {}), silent)[0]
        else:
            window = EvalConfig(texts=texts)
            found = texts_of(Tokenizer.from_dir(checkpoint.directory), window, checkpoint.config.max_position_embeddings)
            pieces = [np.asarray(piece.ids, np.int64) for text in found.values() for piece in text.pieces]
        rows = paddleslim_table(checkpoint, ids, lambda network: {"loss": mean_loss(network, pieces)})
        return [dataclasses.asdict(row) for row in rows]


def mean_loss(network: Any, pieces: Sequence[np.ndarray[Any, np.dtype[np.int64]]]) -> float:
    """Nats a token that PaddleNLP's model needs for the pieces."""
    import paddle

    total, count = 0.0, 0
    for ids in pieces:
        with paddle.no_grad():
            logits = network(paddle.to_tensor(ids[None]))[0][0, :-1]
            loss = paddle.nn.functional.cross_entropy(logits, paddle.to_tensor(ids[1:]), reduction="sum")
        total += float(loss)
        count += len(ids) - 1
    return total / count


def table(result: dict[str, Any]) -> str:
    """Markdown of one model."""
    tasks = list(result["recipes"][0]["tasks"])
    titles = ["recipe", "size", "loss", "increase", "KL mean", "KL p99", "top-1", *tasks, "decode"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for row in result["recipes"]:
        cells = [f"`{row['name']}`", f"{row['bytes'] / 1e6:.2f} MB", f"{row['loss']:.4f}", f"{row['increase']:+.2%}"]
        cells += [f"{row['kl_mean']:.2g}", f"{row['kl_p99']:.2g}", f"{row['top1_agreement']:.1%}"]
        cells += [f"{row['tasks'][task]:.0%}" for task in tasks] + [f"{row['decode_tokens_per_s']:.0f} tok/s"]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append(f"\nLoss of the reference: {result['recipes'][0]['reference_loss']:.4f}.")
    titles = ["simulated in PaddleNLP", "loss, float", "loss, W8A8", "loss, INT4 g64"]
    lines += ["", "| " + " | ".join(titles) + " |", "|---|---|---|---|"]
    for row in result["paddleslim"]:
        cells = [row["error"] or "–"] * 3
        if row["error"] is None:
            cells = [f"{row[kind]['loss']:.4f}" if row[kind] else "–" for kind in ("fp32", "w8a8", "w4")]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def replaced(page: str, name: str, content: str) -> str:
    """``page`` with ``content`` between the markers of ``name``."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{PAGE}: no markers {begin} … {end}")
    return f"{before}{begin}\n{content}\n{end}{after}"


if __name__ == "__main__":
    main()

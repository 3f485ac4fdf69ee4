"""Exact-match evaluation on held-out questions: fp32 and simulated W8A8, greedy and sampled."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from tiny_r1.corpus import EOS, THINK_CLOSE, Corpus, Sample
from tiny_r1.forward import Chooser, NumpyQwen2, greedy, sampler

SUM_TASKS = (
    "add 1", "add 2", "add m", "add 3", "sub 1", "sub 2", "sub m", "sub 3", "neg 1", "neg 2", "neg 3",
    "mul table", "mul 2x1",
)  # fmt: skip
STYLES = ("bare", "en", "zh")
SEEN = ("add 1", "sub 1", "neg 1", "mul table")  # facts that training contains; everything else is held out
EVALUATION_SEED = 20_250_101


@dataclass(frozen=True)
class Verdict:
    """One question and what the model wrote."""

    sample: Sample
    written: str

    @property
    def right(self) -> bool:
        """Whether the answer, the text after the closing tag, is exactly the expected one."""
        return self.closed and self.written.split(THINK_CLOSE)[-1] == self.sample.completion.split(THINK_CLOSE)[-1]

    @property
    def closed(self) -> bool:
        return self.written.count(THINK_CLOSE) == 1


def questions(per_cell: int) -> list[Sample]:
    """`per_cell` single-turn questions for each task and style, from the held-out side of the split."""
    corpus = Corpus(EVALUATION_SEED, held_out=True)
    sums = [corpus.sum_of(corpus.problem(task), task, style) for task in SUM_TASKS for style in STYLES for _ in range(per_cell)]
    return sums + [corpus.other() for _ in range(2 * per_cell)]


def judge(model: NumpyQwen2, tokenizer: Tokenizer, samples: list[Sample], choose: Chooser) -> list[Verdict]:
    """Complete every sample's prompt; prompts of equal length share a batch, so nothing is padded."""
    by_length: dict[int, list[tuple[Sample, list[int]]]] = defaultdict(list)
    for sample in samples:
        ids = tokenizer.encode(sample.prompt, add_special_tokens=False).ids
        by_length[len(ids)].append((sample, ids))
    verdicts = []
    for group in by_length.values():
        rows = model.complete(np.array([ids for _, ids in group]), tokenizer.token_to_id(EOS), choose)
        texts = tokenizer.decode_batch(rows, skip_special_tokens=False)
        verdicts += [Verdict(sample, text) for (sample, _), text in zip(group, texts, strict=True)]
    return verdicts


def share(verdicts: list[Verdict]) -> float:
    return 100 * sum(v.right for v in verdicts) / max(1, len(verdicts))


def table(verdicts: list[Verdict]) -> str:
    """Exact match in percent per task (rows) and style (columns)."""
    lines = [f"{'task':<12}" + "".join(f"{style:>8}" for style in STYLES)]
    for task in (*SUM_TASKS, "chat", "decline"):
        cells = [[v for v in verdicts if (v.sample.task, v.sample.style) == (task, style)] for style in STYLES]
        note = "  (seen in training)" if task in SEEN else ""
        lines.append(f"{task:<12}" + "".join(f"{share(cell):8.1f}" if cell else " " * 8 for cell in cells) + note)
    held_out = [v for v in verdicts if v.sample.task in SUM_TASKS and v.sample.task not in SEEN]
    closed = 100 * sum(v.closed for v in verdicts) / len(verdicts)
    lines.append(f"held-out sums {share(held_out):.2f}   all {share(verdicts):.2f}   </think> closed once {closed:.2f}")
    return "\n".join(lines)


def evaluate(folder: Path, per_cell: int) -> str:
    """The whole report for an exported directory."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    samples = questions(per_cell)
    report = [f"{len(samples)} questions"]
    misses: list[Verdict] = []
    for name, w8a8 in (("fp32", False), ("W8A8", True)):
        model = NumpyQwen2(folder, w8a8)
        for mode, choose in (("greedy", greedy), ("temperature 0.6, top-p 0.95", sampler(EVALUATION_SEED))):
            verdicts = judge(model, tokenizer, samples, choose)
            report.append(f"\n{name}, {mode}\n{table(verdicts)}")
            misses = [v for v in verdicts if not v.right] if mode == "greedy" else misses
    report.append("\nMisses (W8A8, greedy), at most 20:")
    report += [f"  {v.sample.prompt!r} -> {v.written!r}" for v in misses[:20]]
    return "\n".join(report)

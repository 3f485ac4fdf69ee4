"""From one checkpoint format to another, with an account of what stayed exact and what was lost.

    source -> open_checkpoint -> ConvertedCheckpoint (one tensor at a time, compared with what it was) -> Target.write

Nothing is calibrated here: floating point becomes integers by rounding to nearest. ``paddle-ds quantize`` does better.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import paddle_ds
from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.checkpoints.base import Checkpoint, Progress
from paddle_ds.checkpoints.native import COMPANIONS
from paddle_ds.checkpoints.new_directory import check_absent, new_directory
from paddle_ds.config.tensors import model_specs
from paddle_ds.errors import QuantizationError
from paddle_ds_slim.exporters import Target, make_target
from paddle_ds_slim.exporters.comparison import OUTCOMES, Comparison, Outcome
from paddle_ds_slim.exporters.target import counted, some_names
from paddle_ds_slim.exporters.view import ConvertedCheckpoint

REPORT_FILE = "conversion.json"


@dataclasses.dataclass(frozen=True)
class OutcomeSummary:
    """All tensors that a conversion did the same to. Errors are relative, see :class:`Comparison`."""

    num_tensors: int
    num_weights: int
    largest_error: float
    #: the tensor that has it; ``None`` where nothing was lost
    worst: str | None


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """What a conversion did, or would do. ``out`` and ``bytes_after`` are ``None`` for a dry run.

    ``outcomes`` has the kinds that occur, from the least loss to the most.
    """

    source: str
    source_format: str
    to: str
    out: str | None
    outcomes: Mapping[Outcome, OutcomeSummary]
    sentences: tuple[str, ...]
    bytes_before: int
    bytes_after: int | None

    @property
    def is_exact(self) -> bool:
        """Whether every weight has the value it had."""
        return all(summary.largest_error == 0 for summary in self.outcomes.values())

    def as_json(self) -> dict[str, Any]:
        """What ``conversion.json`` holds."""
        return {"version": 1, "paddle_ds": paddle_ds.__version__, "is_exact": self.is_exact, **dataclasses.asdict(self)}


def convert(
    src: str | Path,
    out: Path | None,
    to: str,
    *,
    dtype: str | None = None,
    allow_requantize: bool = False,
    keep_groups: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Write the checkpoint ``src`` in the format ``to`` into ``out``, which must not exist yet (an empty directory is fine).

    Written beside ``out`` and renamed: an error, a full disk or Ctrl-C leaves nothing. Tokenizer and generation files are
    copied, and ``conversion.json`` holds the report.

    Args:
        src: directory, weight file or hub name, as :func:`open_checkpoint` takes it.
        to: one of :data:`FORMATS`.
        dtype: for ``float`` (default: the embedding's) and ``paddlenlp-int8`` (default: float16).
        allow_requantize: round integers that ``to`` cannot hold a second time, instead of refusing.
        keep_groups: for ``native``, leave INT8 groups as they are also where one scale per channel says the same.
        dry_run: read and compare everything, write nothing; ``out`` may be ``None``.
        progress: called after each tensor with its name, and the source bytes done and in all.

    Raises:
        ConfigError: no such format, or an option that it does not have.
        QuantizationError: integers would be rounded a second time, or a value is too large for its new type.
        UnsupportedError: the format cannot hold this model.
        CheckpointError: the source is broken, ``out`` exists, or the disk refuses.
    """
    assert out is not None or dry_run, "nowhere to write to"
    target = make_target(to, dtype=dtype, keep_groups=keep_groups)
    if out is not None:
        check_absent(out)
    with open_checkpoint(src, progress=progress) as source:
        target.check(source)
        view = ConvertedCheckpoint(source, target)
        _refuse_requantising(view, target, source, allow_requantize)
        if out is None or dry_run:
            _read_all(view, progress)
            return _report(source, view, target, None, None)
        with new_directory(out) as partial:
            target.write(view, partial, progress)
            bytes_after = sum(file.stat().st_size for file in partial.iterdir() if file.suffix != ".json")
            report = _report(source, view, target, out, bytes_after)
            for name in COMPANIONS:
                if (source.directory / name).is_file() and not (partial / name).exists():
                    shutil.copyfile(source.directory / name, partial / name)
            text = json.dumps(report.as_json(), indent=2, ensure_ascii=False) + "\n"
            (partial / REPORT_FILE).write_text(text, encoding="utf-8")
        return report


def _refuse_requantising(view: ConvertedCheckpoint, target: Target, source: Checkpoint, is_allowed: bool) -> None:
    names = view.requantised()
    if not names or is_allowed:
        return
    first = source.stored()[names[0]]
    assert first.groups is not None
    kind = f"{first.dtype} in groups of {first.groups.size} inputs"
    kind += ", with zero points" if first.groups.has_zero_points else ""
    kind += ", in activation order" if first.groups.has_index else ""
    raise QuantizationError(
        f"{source.directory}: {target.name} cannot hold {counted(len(names), 'weight')} of {kind} ({some_names(names)}): "
        "their integers would be rounded a second time. --allow-requantize does that and says what it costs; "
        "--to native keeps them"
    )


def _read_all(view: ConvertedCheckpoint, progress: Progress | None) -> None:
    total_bytes, done_bytes = sum(tensor.nbytes for tensor in view.stored().values()), 0
    for spec in model_specs(view.config):
        view.read(spec)
        view.release(spec)
        done_bytes += view.stored()[spec.name].nbytes
        if progress is not None:
            progress(spec.name, done_bytes, total_bytes)


def _report(
    source: Checkpoint, view: ConvertedCheckpoint, target: Target, out: Path | None, bytes_after: int | None
) -> ConversionReport:
    outcomes = _summaries(view.comparisons)
    sentences = [*_accounts(outcomes), *target.remarks(source, view.planned), *_left_behind(source, target)]
    return ConversionReport(
        source=str(source.directory),
        source_format=source.format,
        to=target.name,
        out=None if out is None else str(out),
        outcomes=outcomes,
        sentences=tuple(sentences),
        bytes_before=sum(tensor.nbytes for tensor in source.stored().values()),
        bytes_after=bytes_after,
    )


def _summaries(comparisons: Mapping[str, Comparison]) -> dict[Outcome, OutcomeSummary]:
    summaries: dict[Outcome, OutcomeSummary] = {}
    for outcome in OUTCOMES:
        found = {name: one for name, one in comparisons.items() if one.outcome == outcome}
        if found:
            worst = max(found, key=lambda name: found[name].error)
            summaries[outcome] = OutcomeSummary(
                num_tensors=len(found),
                num_weights=sum(one.num_weights for one in found.values()),
                largest_error=found[worst].error,
                worst=worst if found[worst].error else None,
            )
    return summaries


def _accounts(outcomes: Mapping[Outcome, OutcomeSummary]) -> Iterator[str]:
    for outcome, summary in outcomes.items():
        loss = f"; largest relative error {summary.largest_error:.2e}, {summary.worst}" if summary.worst else ""
        yield f"{counted(summary.num_tensors, 'tensor')} {outcome}: {OUTCOMES[outcome]}{loss}."


def _left_behind(source: Checkpoint, target: Target) -> Iterator[str]:
    """What only the native format says."""
    if target.name == "native":
        return
    schemes = sorted(set(source.schemes().values()))
    if "w8a8" in schemes and target.name != "float":
        yield "That the source was made for INT8 activations is not said there: whoever runs it decides."
    if source.kv_cache() is not None:
        yield "That the source was made for an INT8 cache, and its scales, are left behind."

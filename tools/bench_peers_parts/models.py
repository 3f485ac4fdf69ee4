"""The same weights for every engine, each in the form that it reads.

work/models/<name>-<digest>/w8a8/            ours: INT8 per output channel, on disk
                           /q8_0.gguf        llama.cpp: INT8 in groups of 32
                           /openvino-asym/   OpenVINO: INT8 per output channel, with zero points
                           /openvino-sym/    the same without
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import struct
from pathlib import Path
from typing import Any

from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.checkpoints.native import write_native
from paddle_ds.config.tensors import Role, model_specs
from paddle_ds.engine.assets import EMBEDDED_MODEL
from paddle_ds.text import Tokenizer

from .install import Places
from .shell import StepFailed, run_step


@dataclasses.dataclass(frozen=True)
class Models:
    """A source checkpoint and where its forms lie."""

    source: Path
    directory: Path

    @property
    def w8a8(self) -> Path:
        return self.directory / "w8a8"

    @property
    def gguf(self) -> Path:
        return self.directory / "q8_0.gguf"

    @property
    def openvino(self) -> dict[str, Path]:
        """By kind of quantisation."""
        return {kind: self.directory / f"openvino-{kind}" for kind in ("asym", "sym")}


def find_or_make(source: Path | None, shape: str, tokenizer: Path | None, work: Path) -> Models:
    """The checkpoint to compare with: the one given, or random weights in a real shape, made once."""
    if source is None:
        source = work / "checkpoints" / shape
        if not (source / "complete").exists():
            from make_model import SHAPES, make_model

            print(f"making random weights in the shape of {shape}", flush=True)
            make_model(SHAPES[shape], source, seed=0, dtype="bfloat16")
            _copy_tokenizer(tokenizer or EMBEDDED_MODEL, source)
            (source / "complete").touch()
    files = sorted(path for path in source.iterdir() if path.suffix in (".json", ".safetensors"))
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    digest = hashlib.sha256(repr(stamps).encode()).hexdigest()[:8]
    return Models(source, work / "models" / f"{source.name}-{digest}")


def _copy_tokenizer(source: Path, target: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def make_ours(models: Models) -> None:
    """The W8A8 checkpoint, if it is not there."""
    models.directory.mkdir(parents=True, exist_ok=True)
    if not models.w8a8.exists():
        print("  writing W8A8", flush=True)
        with open_checkpoint(models.source) as checkpoint:
            write_native(checkpoint, models.w8a8)


def make_gguf(models: Models, places: Places) -> None:
    """The GGUF file, if it is not there.

    Raises:
        StepFailed: the converter did.
    """
    if not models.gguf.exists():
        partial = models.gguf.with_suffix(".partial")
        script = Path(__file__).with_name("to_gguf.py")
        run_step("gguf", [places.python, script, places.llama_source, models.source, partial], places.logs)
        partial.rename(models.gguf)


def make_openvino(models: Models, places: Places, kind: str) -> None:
    """The OpenVINO model of one kind of quantisation, if it is not there.

    Raises:
        StepFailed: the export did.
    """
    target = models.openvino[kind]
    if target.exists():
        return
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    command: list[str | Path] = [places.venv / "bin" / "optimum-cli", "export", "openvino", "--model", models.source]
    command += ["--task", "text-generation-with-past", "--weight-format", "int8", *(["--sym"] if kind == "sym" else []), partial]
    run_step(f"openvino-{kind}", command, places.logs, {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})
    if not (partial / "openvino_model.xml").exists():
        raise StepFailed(f"openvino-{kind}: the export left no model in {partial}")
    partial.rename(target)


def facts(models: Models) -> dict[str, Any]:
    """What floors and limits are computed from. ``int8_bytes``: of all INT8 tensors in the W8A8 files."""
    with open_checkpoint(models.source) as checkpoint:
        specs = list(model_specs(checkpoint.config))
        head = next((spec.num_elements for spec in specs if spec.role is Role.HEAD), 0)
        if not head:  # tied: the embedding is read as the head
            head = next(spec.num_elements for spec in specs if spec.role is Role.EMBEDDING)
        num_ids = Tokenizer.from_dir(checkpoint.directory).num_tokens
    linear = sum(spec.num_elements for spec in specs if spec.role is Role.LINEAR)
    return {
        "linear_weights": linear,
        "head_weights": head,
        "int8_bytes": sum(int8_bytes(path) for path in models.w8a8.glob("*.safetensors")),
        "id_limit": num_ids,
        "source": models.source.name,
    }


def int8_bytes(path: Path) -> int:
    """Bytes of the INT8 tensors in a safetensors file, from its header."""
    with path.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_bytes))
    entries = [entry for name, entry in header.items() if name != "__metadata__" and entry["dtype"] == "I8"]
    return sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in entries)

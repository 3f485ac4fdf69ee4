"""Copies of the embedded model that differ from it: in what they answer, or in what is wrong with them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from paddle_ds.checkpoints.safetensors_file import SafetensorsFile
from paddle_ds.engine.assets import EMBEDDED_MODEL
from paddle_ds.text import Tokenizer

Change = Callable[[np.ndarray[Any, Any]], None]


def copy_model(out: Path) -> Path:
    """The embedded model once more, under another ``weight_version``."""
    shutil.copytree(EMBEDDED_MODEL, out)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "source": out.name}))
    return out


def change_tensor(directory: Path, name: str, change: Change, *, in_manifest: bool = True) -> None:
    """Change the values of one tensor, and its hash."""
    path = directory / "model.safetensors"
    file = SafetensorsFile(path)
    begin, num_bytes = file.span(name)
    values = file.array(name).copy()
    file.close()
    change(values)
    content = bytearray(path.read_bytes())
    content[begin : begin + num_bytes] = values.tobytes()
    path.write_bytes(bytes(content))
    if in_manifest:
        manifest = json.loads((directory / "manifest.json").read_text())
        manifest["tensors"][name]["sha256"] = hashlib.sha256(values.tobytes()).hexdigest()
        (directory / "manifest.json").write_text(json.dumps(manifest))


def swap_digits(out: Path) -> Path:
    """A model that says 1 where the embedded one says 2, and the other way round."""
    copy_model(out)
    tokenizer = Tokenizer.from_dir(out)
    one, two = (tokenizer.encode(digit, add_special_tokens=False)[-1] for digit in "12")

    def swap(values: np.ndarray[Any, Any]) -> None:
        values[[one, two]] = values[[two, one]]

    for name in ("lm_head.weight", "lm_head.weight_scale"):
        change_tensor(out, name, swap)
    return out


def truncated(out: Path) -> None:
    """Its weights end early."""
    content = (copy_model(out) / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(content[: len(content) // 2])


def wrong_hash(out: Path) -> None:
    """A tensor is not the one in the manifest."""

    def nudge(values: np.ndarray[Any, Any]) -> None:
        values[0] += 1

    change_tensor(copy_model(out), "model.norm.weight", nudge, in_manifest=False)


def not_finite(out: Path) -> None:
    """A tensor holds NaN, and the manifest agrees."""

    def spoil(values: np.ndarray[Any, Any]) -> None:
        values[3] = np.nan

    change_tensor(copy_model(out), "model.norm.weight", spoil)


def wrong_architecture(out: Path) -> None:
    """``config.json`` names a model that is not implemented."""
    config = json.loads((copy_model(out) / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))


def knows_nothing(out: Path) -> None:
    """All tokens are as probable as each other."""
    change_tensor(copy_model(out), "lm_head.weight", lambda values: values.fill(0))

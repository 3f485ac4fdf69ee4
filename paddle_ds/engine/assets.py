"""Which checkpoint an ``EngineConfig`` means, and how it is to be quantised. No paddle."""

from __future__ import annotations

from pathlib import Path

from paddle_ds.checkpoints.base import Checkpoint
from paddle_ds.checkpoints.manifest import weight_version
from paddle_ds.config.engine import EngineConfig
from paddle_ds.config.recipe import Recipe

#: the model that is served when none is named
EMBEDDED_MODEL = Path(__file__).resolve().parent.parent / "assets" / "tiny-r1"


def resolve_model(config: EngineConfig) -> str:
    """The path or hub name to open; the embedded model where none is given."""
    return config.model or str(EMBEDDED_MODEL)


def known_version(config: EngineConfig) -> str:
    """``weight_version`` of the checkpoint that ``config`` names; empty for a hub name, whose files are not here yet.

    Raises:
        CheckpointError: its files cannot be read.
    """
    path = Path(resolve_model(config)).expanduser()
    return weight_version(path) if path.exists() else ""


def recipe_for(checkpoint: Checkpoint, config: EngineConfig) -> Recipe:
    """What ``config.quant`` means for this checkpoint."""
    ignored = frozenset(name.removesuffix(".weight") for name in checkpoint.ignored())
    return Recipe(config.quant, checkpoint.schemes(), ignored)

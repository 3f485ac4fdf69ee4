"""What an engine process tells its workers of itself: where it stands, and what it has loaded."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddle_ds.devices import environment
from paddle_ds.engine.core import boot_id
from paddle_ds.errors import PaddleDSError
from paddle_ds.ipc import messages
from paddle_ds.ipc.server import EngineServer

if TYPE_CHECKING:
    from paddle_ds.engine.build import LoadedModel


def model_info(loaded: LoadedModel, weight_version: str = "") -> messages.ModelInfo:
    """What workers must know of a loaded model."""
    compiled = loaded.compiled
    return messages.ModelInfo(
        name=loaded.name,
        directory=str(loaded.directory),
        max_context_tokens=loaded.plan.max_context_tokens,
        vocab_size=loaded.tokenizer.num_tokens,
        requested_quant=loaded.recipe.requested,
        quant=loaded.recipe.name,
        kernels=loaded.kernels,
        int8_products=loaded.int8_products,
        vector_isa=compiled.vector_isa if compiled else "",
        onednn_version=compiled.onednn_version if compiled else "",
        isa_caps=environment.isa_caps(),
        kv_dtype=loaded.plan.kv_dtype,
        kv_scales=loaded.plan.kv_scales or "",
        device=loaded.device.name,
        flags={report.name: report.status for report in loaded.flags},
        weight_bytes=loaded.weight_bytes,
        load_s=round(loaded.load_s, 3),
        created=int(time.time()),
        weight_version=weight_version,
    )


class Announcer:
    """Binds the socket and says on it where the engine stands."""

    def __init__(self, socket_path: Path) -> None:
        self._boot_id = boot_id()
        self._last_progress = 0.0
        self.server = EngineServer(socket_path, self._info("loading"))

    def _info(self, state: messages.EngineState, **more: Any) -> messages.EngineInfo:
        return messages.EngineInfo(self._boot_id, state, os.getpid(), **more)

    def progress(self, share: float) -> None:
        if share - self._last_progress >= 0.01:
            self._last_progress = share
            self.server.broadcast(self._info("loading", progress=round(share, 3)))

    def ready(self, loaded: LoadedModel, weight_version: str) -> None:
        self.server.broadcast(self._info("ready", progress=1.0, model=model_info(loaded, weight_version)))

    def stopping(self) -> None:
        self.server.broadcast(self._info("stopping", progress=1.0))

    def failed(self, error: PaddleDSError) -> None:
        self.server.broadcast(self._info("failed", error=error.info()))

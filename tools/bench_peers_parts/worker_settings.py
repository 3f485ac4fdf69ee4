"""What the peers' settings are called and what they are where nothing else is said. Imported on both sides."""

from __future__ import annotations

from typing import Any

LLAMA_DEFAULTS: dict[str, Any] = {"flash_attn": True, "ubatch": 512, "kv_type": "f16", "kv_unified": False, "repack": True}
OPENVINO_DEFAULTS: dict[str, Any] = {"weights": "asym", "runtime": "paged", "batch_tokens": 512, "properties": {}}

"""Channels centred before they are quantised: Outlier Suppression+ (arXiv 2304.09145, equation 6).

    z[k] = (max x[:, k] + min x[:, k]) / 2        x - z is quantised, W z goes into the bias of the layer that reads it

The shift must come off where ``x`` is made. That works for what the output projection reads: attention weights sum to one, so
it comes off the bias of ``v_proj``. A norm of these architectures has no bias, and SiLU stands before the down projection, so
for their readers there is no place to fold it into; PaddleSlim's ``Shift`` wraps the norm there, and a plain reload of what it
saved loses the shift. The result needs biases on ``v_proj`` and ``o_proj``: a Llama with ``attention_bias``, which is also how a
Qwen2 is written then.
"""

from __future__ import annotations

import numpy as np

from paddle_ds_slim.block_state import BlockState, Fold


def shift(state: BlockState) -> None:
    """Fold the shift of the output projection's inputs. Query heads that share a kv head share its range."""
    config = state.config
    if state.formats["self_attn.o_proj"].scheme == "dense":
        return
    inputs = state.inputs["self_attn.o_proj"]
    heads = (config.num_kv_heads, config.num_heads // config.num_kv_heads, config.head_dim)
    highest = inputs.max(axis=0).reshape(heads).max(axis=1).reshape(-1)
    lowest = inputs.min(axis=0).reshape(heads).min(axis=1).reshape(-1)
    middle = ((highest + lowest) / 2).astype(np.float32)
    state.choices["value-output shift"] = {"largest": float(np.abs(middle).max(initial=0.0))}
    state.fold(Fold("value-output", np.ones_like(middle), middle))

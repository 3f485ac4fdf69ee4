"""A NumPy Qwen2 forward pass over an exported directory, in fp32 or simulated W8A8, with batched decoding.

It reads only what a user would get (config.json, model.safetensors), so evaluation also proves the export.

W8A8 here is what the INT8 runtime computes: weights rounded to nearest with one symmetric scale per output channel,
activations with one symmetric scale per token, int32 sums (exact in float32: at most 512 products below 2**14).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

Array = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Chooser = Callable[[Array], Ids]


def _codes(values: Array) -> tuple[Array, Array]:
    """Symmetric int8 codes (as float32) along the last axis, and their scales."""
    scale = np.maximum(np.abs(values).max(-1, keepdims=True), 1e-8) / 127
    return np.clip(np.rint(values / scale), -127, 127), scale


class NumpyQwen2:
    """Weights in memory; `w8a8` quantises every linear layer, the head included."""

    def __init__(self, folder: Path, w8a8: bool) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.heads: int = config["num_attention_heads"]
        self.kv_heads: int = config["num_key_value_heads"]
        self.layers: int = config["num_hidden_layers"]
        self.eps: float = config["rms_norm_eps"]
        self.head_dim: int = config["hidden_size"] // self.heads
        self.weights: dict[str, Array] = load_file(str(folder / "model.safetensors"))
        self.quantised = {
            name: _codes(value)
            for name, value in self.weights.items()
            if w8a8 and (name.endswith("_proj.weight") or name == "lm_head.weight")
        }
        half = np.arange(0, self.head_dim, 2) / self.head_dim
        angles = np.outer(np.arange(config["max_position_embeddings"]), config["rope_theta"] ** -half)
        self.cos = np.concatenate([np.cos(angles)] * 2, -1).astype(np.float32)
        self.sin = np.concatenate([np.sin(angles)] * 2, -1).astype(np.float32)

    def linear(self, x: Array, name: str) -> Array:
        key = f"{name}.weight"
        if key in self.quantised:
            weight, weight_scale = self.quantised[key]
            codes, scale = _codes(x)
            y: Array = (codes @ weight.T) * scale * weight_scale[:, 0]
        else:
            y = x @ self.weights[key].T
        bias = self.weights.get(f"{name}.bias")
        return y if bias is None else y + bias

    def norm(self, x: Array, name: str) -> Array:
        scaled: Array = x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps)
        return scaled * self.weights[f"{name}.weight"]

    def rotate(self, x: Array, start: int) -> Array:
        """x: [batch, tokens, heads, head_dim], first token at position `start`."""
        cos, sin = (table[start : start + x.shape[1], None] for table in (self.cos, self.sin))
        first, second = np.split(x, 2, -1)
        turned: Array = x * cos + np.concatenate([-second, first], -1) * sin
        return turned

    def attention(self, x: Array, layer: str, cache: dict[str, Array]) -> Array:
        batch, tokens, _ = x.shape
        past = cache[layer + "k"].shape[1] if layer + "k" in cache else 0
        q = self.linear(x, f"{layer}.q_proj").reshape(batch, tokens, self.heads, -1)
        k = self.linear(x, f"{layer}.k_proj").reshape(batch, tokens, self.kv_heads, -1)
        v = self.linear(x, f"{layer}.v_proj").reshape(batch, tokens, self.kv_heads, -1)
        q, k = self.rotate(q, past), self.rotate(k, past)
        if past:
            k, v = np.concatenate([cache[layer + "k"], k], 1), np.concatenate([cache[layer + "v"], v], 1)
        cache[layer + "k"], cache[layer + "v"] = k, v
        k, v = (np.repeat(t, self.heads // self.kv_heads, 2).transpose(0, 2, 1, 3) for t in (k, v))
        scores = q.transpose(0, 2, 1, 3) @ k.transpose(0, 1, 3, 2) / np.sqrt(np.float32(self.head_dim))
        scores += np.triu(np.full((tokens, past + tokens), -1e9, np.float32), past + 1)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        return self.linear(mixed.transpose(0, 2, 1, 3).reshape(batch, tokens, -1), f"{layer}.o_proj")

    def logits(self, ids: Ids, cache: dict[str, Array]) -> Array:
        """Logits of the last position, [batch, vocab]; `cache` holds keys and values and grows."""
        x = self.weights["model.embed_tokens.weight"][ids]
        for i in range(self.layers):
            layer = f"model.layers.{i}"
            x = x + self.attention(self.norm(x, f"{layer}.input_layernorm"), f"{layer}.self_attn", cache)
            y = self.norm(x, f"{layer}.post_attention_layernorm")
            gate = self.linear(y, f"{layer}.mlp.gate_proj")
            y = gate / (1 + np.exp(-gate)) * self.linear(y, f"{layer}.mlp.up_proj")
            x = x + self.linear(y, f"{layer}.mlp.down_proj")
        return self.linear(self.norm(x[:, -1], "model.norm"), "lm_head")

    def complete(self, prompts: Ids, eos: int, choose: Chooser, limit: int = 160) -> list[list[int]]:
        """Decode prompts of one length, [batch, tokens], each up to and including its EOS or to `limit` tokens."""
        cache: dict[str, Array] = {}
        step = prompts
        rows: list[Ids] = []
        open_rows = np.ones(len(prompts), bool)
        while open_rows.any() and len(rows) < limit:
            chosen = choose(self.logits(step, cache))
            rows.append(chosen)
            open_rows &= chosen != eos
            step = chosen[:, None]
        columns = np.stack(rows, 1).tolist()
        return [row[: row.index(eos) + 1] if eos in row else row for row in columns]


def greedy(logits: Array) -> Ids:
    """Temperature 0."""
    chosen: Ids = logits.argmax(-1)
    return chosen


def sampler(seed: int, temperature: float = 0.6, top_p: float = 0.95) -> Chooser:
    """Nucleus sampling, as the exported generation_config.json asks for."""
    rng = np.random.default_rng(seed)

    def choose(logits: Array) -> Ids:
        scaled = np.exp((logits - logits.max(-1, keepdims=True)) / temperature)
        order = np.argsort(-scaled, -1)
        p = np.take_along_axis(scaled / scaled.sum(-1, keepdims=True), order, -1)
        p = np.where(p.cumsum(-1) - p < top_p, p, 0)
        drawn = (p.cumsum(-1) < rng.random((len(p), 1)) * p.sum(-1, keepdims=True)).sum(-1)
        return np.take_along_axis(order, drawn[:, None], -1)[:, 0]

    return choose

"""Rotary angles, with the stretched variants found in R1 distills and their relatives.

Formulas as in Hugging Face transformers' ``modeling_rope_utils``, computed in float32 as there, so that logits agree:
plain (arXiv 2104.09864), linear (arXiv 2306.15595), llama3 (the Llama 3.1 release), yarn (arXiv 2309.00071).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from paddle_ds.config.model import ModelConfig, RopeScaling

FloatArray = npt.NDArray[np.float32]


class RotaryTable:
    """Cosines and sines for token positions."""

    def __init__(self, config: ModelConfig) -> None:
        self._inv_freq, self._scale = _frequencies(config)

    def cos_sin(self, positions: npt.NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
        """int64 [T] -> two float32 [T, head_dim // 2]."""
        angles = positions.astype(np.float32)[:, None] * self._inv_freq[None, :]
        return np.cos(angles) * self._scale, np.sin(angles) * self._scale


def _frequencies(config: ModelConfig) -> tuple[FloatArray, np.float32]:
    """Inverse frequencies float32 [head_dim // 2], and the factor on cosine and sine."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    inv_freq = (1.0 / np.float32(config.rope_theta) ** exponents).astype(np.float32)
    scaling = config.rope_scaling
    if scaling.rope_type == "linear":
        return (inv_freq / scaling.factor).astype(np.float32), np.float32(1)
    if scaling.rope_type == "llama3":
        return _llama3(inv_freq, scaling, config), np.float32(1)
    if scaling.rope_type == "yarn":
        return _yarn(inv_freq, scaling, config)
    return inv_freq, np.float32(1)


def _llama3(inv_freq: FloatArray, scaling: RopeScaling, config: ModelConfig) -> FloatArray:
    """Slow frequencies are divided by ``factor``, fast ones kept, those between blended."""
    original = scaling.original_max_position_embeddings or config.max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wavelength = 2 * math.pi / inv_freq
    smooth = (original / wavelength - low) / (high - low)
    blended = (1 - smooth) * inv_freq / scaling.factor + smooth * inv_freq
    slow = wavelength > original / low
    fast = wavelength < original / high
    return np.where(slow, inv_freq / scaling.factor, np.where(fast, inv_freq, blended)).astype(np.float32)


def _yarn(inv_freq: FloatArray, scaling: RopeScaling, config: ModelConfig) -> tuple[FloatArray, np.float32]:
    """Dimensions that turn often within the original context are kept, those that turn rarely interpolated."""
    original = scaling.original_max_position_embeddings or config.max_position_embeddings

    def dimension_of(rotations: float) -> float:
        base = math.log(original / (rotations * 2 * math.pi))
        return config.head_dim * base / (2 * math.log(config.rope_theta))

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    span = max(high - low, 0.001)
    ramp = np.clip((np.arange(config.head_dim // 2, dtype=np.float32) - low) / span, 0, 1)
    stretched = inv_freq / scaling.factor
    return (stretched * ramp + inv_freq * (1 - ramp)).astype(np.float32), np.float32(_yarn_attention(scaling))


def _yarn_attention(scaling: RopeScaling) -> float:
    """Factor that keeps the entropy of attention where it was (YaRN, section 3.4)."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return temperature(scaling.mscale) / temperature(scaling.mscale_all_dim)
    return temperature(1.0)

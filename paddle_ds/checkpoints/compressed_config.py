"""Writing a ``quantization_config`` of compressed-tensors, as llm-compressor writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paddle_ds.checkpoints.base import Checkpoint, KvScheme, StoredTensor
from paddle_ds.checkpoints.compressed_scheme import INT_QUANTIZED, MIXED_PRECISION, PACK_QUANTIZED, QUANT_METHOD, Group

_VERSION = "0.19.0"
_UNSET = {"actorder": None, "block_structure": None, "group_size": None, "scale_dtype": None, "zp_dtype": None}


def group_for(source: Checkpoint, stored: StoredTensor) -> Group:
    """How a quantised weight of ``source`` is written; its targets are left open. A floating-point one becomes W8A8."""
    scheme = source.schemes().get(stored.name.removesuffix(".weight"), "w8a8")
    groups = stored.groups
    if groups is None:
        return Group((), scheme != "w8a8", 8, None, True, False, scheme)
    num_in = stored.shape[1]
    size = None if groups.count == 1 and groups.size >= num_in else groups.size
    bits = 4 if stored.dtype == "int4" else 8
    return Group((), True, bits, size, not groups.has_zero_points, groups.has_index, scheme)


def compressed_config(members: Mapping[str, Group], left_alone: Sequence[str], kv_cache: KvScheme | None) -> dict[str, Any]:
    """The ``quantization_config`` of a model.

    Args:
        members: module -> how its weight is quantised.
        left_alone: modules that stay in floating point.
    """
    kinds: dict[Group, list[str]] = {}
    for module, group in members.items():
        kinds.setdefault(group, []).append(module)
    groups = {
        f"group_{number}": _group(kind, ["Linear"] if len(kinds) == 1 else modules)
        for number, (kind, modules) in enumerate(kinds.items())
    }
    formats = {group["format"] for group in groups.values()} or {INT_QUANTIZED}
    return {
        "config_groups": groups,
        "format": formats.pop() if len(formats) == 1 else MIXED_PRECISION,
        "global_compression_ratio": None,
        "ignore": list(left_alone),
        "kv_cache_scheme": None if kv_cache is None else _kv_cache(kv_cache),
        "quant_method": QUANT_METHOD,
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": _VERSION,
    }


def _group(kind: Group, targets: list[str]) -> dict[str, Any]:
    integer: dict[str, Any] = {**_UNSET, "observer_kwargs": {}, "symmetric": True, "type": "int"}
    activations = {**integer, "num_bits": 8, "dynamic": True, "observer": None, "strategy": "token"}
    weights = {**integer, "num_bits": kind.bits, "dynamic": False, "observer": "memoryless_minmax"}
    weights |= {"strategy": "channel" if kind.group_size is None else "group", "group_size": kind.group_size}
    weights |= {"symmetric": kind.symmetric, "actorder": "group" if kind.has_group_index else None}
    return {
        "format": PACK_QUANTIZED if kind.packed else INT_QUANTIZED,
        "input_activations": activations if kind.scheme == "w8a8" else None,
        "output_activations": None,
        "targets": targets,
        "weights": weights,
    }


def _kv_cache(kv_cache: KvScheme) -> dict[str, Any]:
    is_dynamic = kv_cache.scales is None
    return {
        **_UNSET,
        "dynamic": is_dynamic,
        "num_bits": 8,
        "observer": None if is_dynamic else "minmax",
        "observer_kwargs": {},
        "strategy": "token" if is_dynamic else "attn_head",
        "symmetric": True,
        "type": "int",
    }

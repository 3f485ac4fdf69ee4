"""``quantization_config`` of compressed-tensors: which linears are quantised, how, and what the KV cache is to hold.

    config_groups   name -> targets, weights (bits, strategy, group size …), input_activations, format
    ignore          linears that match a target and are left alone all the same
    format          int-quantized, pack-quantized, or mixed-precision where groups differ

Source: the compressed-tensors library 0.19 (``QuantizationConfig``, ``QuantizationScheme``, ``QuantizationArgs``).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from paddle_ds.config.recipe import Scheme
from paddle_ds.errors import ConfigMismatchError, UnsupportedError

QUANT_METHOD = "compressed-tensors"
INT_QUANTIZED = "int-quantized"
PACK_QUANTIZED = "pack-quantized"
MIXED_PRECISION = "mixed-precision"

#: how GPTQ may have ordered columns: ``group`` stores where each went, the others have put them back
_ACT_ORDERS = (None, False, True, "group", "static", "weight")
_STATIC_KV_STRATEGIES = ("tensor", "attn_head")


@dataclasses.dataclass(frozen=True)
class Group:
    """One way in which some linears are quantised. ``group_size`` is ``None`` for one scale an output channel."""

    targets: tuple[str, ...]
    packed: bool
    bits: int
    group_size: int | None
    symmetric: bool
    #: whether a tensor says to which group each input belongs
    has_group_index: bool
    scheme: Scheme


@dataclasses.dataclass(frozen=True)
class CompressedScheme:
    """What a ``quantization_config`` says."""

    groups: tuple[Group, ...]
    ignore: tuple[str, ...]
    #: ``None``: the cache is not quantised; else whether its scales are found token by token, or stored
    kv_cache_dynamic: bool | None = None

    def group_of(self, module: str) -> Group | None:
        """How a linear is quantised. Its own name goes before an expression, and that before its class."""
        if matches(module, self.ignore):
            return None
        for rank in (_is_name, _is_expression, _is_class):
            for group in self.groups:
                if any(rank(target) and _meets(module, target) for target in group.targets):
                    return group
        return None


def _is_name(pattern: str) -> bool:
    return not _is_expression(pattern) and not _is_class(pattern)


def _is_expression(pattern: str) -> bool:
    return pattern.startswith("re:")


def _is_class(pattern: str) -> bool:
    return pattern == "Linear"


def _meets(module: str, pattern: str) -> bool:
    if _is_expression(pattern):
        return re.match(pattern[3:], module) is not None
    return pattern in (module, "Linear")


def matches(module: str, patterns: Iterable[str]) -> bool:
    """Whether a linear layer meets a pattern: its name, ``Linear``, or ``re:`` and an expression for how it begins."""
    return any(_meets(module, pattern) for pattern in patterns)


def read_scheme(quantization: Mapping[str, Any], where: str) -> CompressedScheme:
    """Interpret a ``quantization_config`` that asks for what is implemented.

    Raises:
        UnsupportedError: another format or scheme; the message names it.
        ConfigMismatchError: not a scheme at all.
    """
    found = quantization.get("format")
    if found not in (INT_QUANTIZED, PACK_QUANTIZED, MIXED_PRECISION):
        raise UnsupportedError(
            f"{where}: quantization format {found!r}; have: {INT_QUANTIZED}, {PACK_QUANTIZED}, {MIXED_PRECISION} of the two"
        )
    raw = quantization.get("config_groups")
    is_empty = not raw and not quantization.get("kv_cache_scheme")  # a cache alone may be quantised
    if not isinstance(raw, Mapping) or is_empty or not all(isinstance(group, Mapping) for group in raw.values()):
        raise ConfigMismatchError(f"{where}: quantization_config has no config_groups")
    groups = tuple(_group(group, found, f"{where}: {name}") for name, group in raw.items())
    for name in ("sparsity_config", "transform_config"):
        if quantization.get(name):
            raise UnsupportedError(f"{where}: quantization_config has a {name}; not implemented")
    ignore = tuple(_strings(quantization.get("ignore") or [], f"{where}: ignore"))
    return CompressedScheme(groups, ignore, _kv_cache(quantization.get("kv_cache_scheme"), f"{where}: kv_cache_scheme"))


def _group(group: Mapping[str, Any], default_format: str, where: str) -> Group:
    if group.get("output_activations"):
        raise UnsupportedError(f"{where}: output_activations are quantised; not implemented")
    layout = group.get("format") or default_format
    if layout not in (INT_QUANTIZED, PACK_QUANTIZED):
        raise UnsupportedError(f"{where}: format {layout!r}; have: {INT_QUANTIZED}, {PACK_QUANTIZED}")
    weights = _mapping(group.get("weights"), f"{where}: weights")
    bits, group_size = _weight_shape(weights, layout, f"{where}: weights")
    symmetric = weights.get("symmetric", True)
    if not isinstance(symmetric, bool) or (not symmetric and layout == INT_QUANTIZED):
        raise UnsupportedError(f"{where}: weights: symmetric is {symmetric!r}; have: True for {INT_QUANTIZED}")
    order = weights.get("actorder")
    if order not in _ACT_ORDERS:
        raise UnsupportedError(f"{where}: weights: actorder is {order!r}; have: group, static, weight")
    return Group(
        targets=tuple(_strings(group.get("targets"), f"{where}: targets")),
        packed=layout == PACK_QUANTIZED,
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        has_group_index=order in (True, "group"),
        scheme=_scheme(group.get("input_activations"), bits, layout, f"{where}: input_activations"),
    )


def _scheme(activations: Any, bits: int, layout: str, where: str) -> Scheme:
    if activations is None:
        return "w4a16" if bits == 4 else "w8a16"
    if bits != 8 or layout != INT_QUANTIZED:
        raise UnsupportedError(f"{where}: found beside weights of {bits} bits, {layout}; have: beside 8 bits, {INT_QUANTIZED}")
    expected = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    _require(_mapping(activations, where), expected, where)
    return "w8a8"


def _weight_shape(weights: Mapping[str, Any], layout: str, where: str) -> tuple[int, int | None]:
    """Bits, and the group size or ``None``."""
    _require(weights, {"type": "int"}, where)
    bits: Any = weights.get("num_bits")
    if bits not in ((8,) if layout == INT_QUANTIZED else (4, 8)):
        raise UnsupportedError(f"{where}: num_bits is {bits!r}; have: 8 for {INT_QUANTIZED}, 4 and 8 for {PACK_QUANTIZED}")
    strategy, group_size = weights.get("strategy"), weights.get("group_size")
    if strategy == "channel":
        return int(bits), None
    if strategy != "group" or layout == INT_QUANTIZED:
        raise UnsupportedError(f"{where}: strategy is {strategy!r}; have: channel, and group for {PACK_QUANTIZED}")
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1:
        raise ConfigMismatchError(f"{where}: group_size is {group_size!r}; expected a whole number of at least 1")
    return int(bits), group_size


def _kv_cache(scheme: Any, where: str) -> bool | None:
    if not scheme:
        return None
    kv = _mapping(scheme, where)
    _require(kv, {"num_bits": 8, "type": "int", "symmetric": True}, where)
    dynamic, strategy = kv.get("dynamic"), kv.get("strategy")
    if dynamic is True and strategy == "token":
        return True
    if dynamic is False and strategy in _STATIC_KV_STRATEGIES:
        return False
    raise UnsupportedError(
        f"{where}: dynamic is {dynamic!r} with strategy {strategy!r}; have: true with 'token', false with 'tensor' or 'attn_head'"
    )


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UnsupportedError(f"{where}: found {value!r}; have: integers of 4 or 8 bits for weights, and of 8 for activations")
    return value


def _require(scheme: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    for key, value in expected.items():
        if scheme.get(key) != value:
            raise UnsupportedError(f"{where}: {key} is {scheme.get(key)!r}; have: {value!r}")


def _strings(values: Any, where: str) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ConfigMismatchError(f"{where}: found {values!r}; expected a list of names")
    for value in values:
        if value.startswith("re:"):
            try:
                re.compile(value[3:])
            except re.error as error:
                raise ConfigMismatchError(f"{where}: {value!r} is not a regular expression: {error}") from error
    return values

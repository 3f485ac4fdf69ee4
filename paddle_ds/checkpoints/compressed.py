"""compressed-tensors W8A8, ``int-quantized``: llm-compressor's layout, the published W8A8 checkpoints', and ours.

    <linear>.weight        int8  [out, in]     symmetric
    <linear>.weight_scale  float [out, 1]      per output channel; activations are quantised per token as they come

Which linears are quantised is what ``quantization_config`` in ``config.json`` says: ``targets`` minus ``ignore``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from paddle_ds.checkpoints.layout import HEAD, FileCheckpoint, Source
from paddle_ds.checkpoints.raw import RawTensor, TensorFiles
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.tensors import Role, TensorSpec, model_specs
from paddle_ds.errors import ConfigMismatchError, UnsupportedError

QUANT_METHOD = "compressed-tensors"
INT_QUANTIZED = "int-quantized"

_ZERO_POINT = ".weight_zero_point"


class CompressedTensorsCheckpoint(FileCheckpoint):
    """See the module's text."""

    format = "compressed-tensors"

    def __init__(self, directory: Path, config: ModelConfig, files: TensorFiles) -> None:
        where = str(directory / "config.json")
        assert config.quantization is not None, "claims() is asked first"
        self._targets, ignore = read_scheme(config.quantization, where)
        self._ignore = tuple(ignore)
        super().__init__(directory, config, files)

    @classmethod
    def claims(cls, config: ModelConfig, files: TensorFiles) -> bool:
        return config.quantization is not None and config.quantization.get("quant_method") == QUANT_METHOD

    def ignored(self) -> frozenset[str]:
        linears = {spec.name for spec in model_specs(self.config) if spec.role in (Role.LINEAR, Role.HEAD)}
        if self.config.tie_word_embeddings:
            linears.add(HEAD)
        return frozenset(name for name in linears if not self._is_quantized(name))

    def locate(self, spec: TensorSpec) -> Source:
        if spec.role in (Role.LINEAR, Role.HEAD) and self._is_quantized(spec.name):
            return Source(spec.name, scale=f"{spec.name}_scale")
        return Source(spec.name)

    def is_ignorable(self, tensor: RawTensor) -> bool:
        if tensor.name.endswith(_ZERO_POINT):
            # older writers store the zeros of a symmetric scheme; anything else would shift every weight
            if self._files.array(tensor.name).any():
                raise UnsupportedError(f"{tensor.file}: tensor '{tensor.name}' is not zero: asymmetric weights; have: symmetric")
            return True
        return super().is_ignorable(tensor)

    def _is_quantized(self, name: str) -> bool:
        module = name.removesuffix(".weight")
        return matches(module, self._targets) and not matches(module, self._ignore)


def matches(module: str, patterns: Iterable[str]) -> bool:
    """Whether a linear layer meets a pattern: its name, ``Linear``, or ``re:`` and an expression for how it begins."""
    for pattern in patterns:
        if pattern.startswith("re:"):
            if re.match(pattern[3:], module):
                return True
        elif pattern in (module, "Linear"):
            return True
    return False


def read_scheme(quantization: Mapping[str, Any], where: str) -> tuple[list[str], list[str]]:
    """``targets`` and ``ignore`` of a ``quantization_config`` that asks for what is implemented.

    Raises:
        UnsupportedError: another format or scheme; the message names it.
        ConfigMismatchError: not a scheme at all.
    """
    found = quantization.get("format")
    if found != INT_QUANTIZED:
        raise UnsupportedError(f"{where}: quantization format {found!r}; have: {INT_QUANTIZED}")
    groups = quantization.get("config_groups")
    if not isinstance(groups, Mapping) or not groups or not all(isinstance(group, Mapping) for group in groups.values()):
        raise ConfigMismatchError(f"{where}: quantization_config has no config_groups")
    targets: list[str] = []
    for name, group in groups.items():
        _check_group(group, f"{where}: {name}")
        targets += _strings(group.get("targets"), f"{where}: {name}: targets")
    for name in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        if quantization.get(name):
            raise UnsupportedError(f"{where}: quantization_config has a {name}; not implemented")
    return targets, _strings(quantization.get("ignore") or [], f"{where}: ignore")


def _check_group(group: Mapping[str, Any], where: str) -> None:
    if group.get("format") not in (None, INT_QUANTIZED):
        raise UnsupportedError(f"{where}: format {group['format']!r}; have: {INT_QUANTIZED}")
    if group.get("output_activations"):
        raise UnsupportedError(f"{where}: output_activations are quantised; not implemented")
    _require(
        group.get("weights"),
        {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
        f"{where}: weights",
    )
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    _require(group.get("input_activations"), activations, f"{where}: input_activations")


def _require(scheme: Any, expected: Mapping[str, Any], where: str) -> None:
    if not isinstance(scheme, Mapping):
        raise UnsupportedError(f"{where}: found {scheme!r}; have: 8-bit integers for weights and for activations")
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


def scheme_w8a8(ignore: Iterable[str]) -> dict[str, Any]:
    """The ``quantization_config`` of our own layout, as llm-compressor writes it; ``ignore`` are module names."""
    unset = {"actorder": None, "block_structure": None, "group_size": None, "scale_dtype": None, "zp_dtype": None}
    int8: dict[str, Any] = {**unset, "num_bits": 8, "observer_kwargs": {}, "symmetric": True, "type": "int"}
    return {
        "config_groups": {
            "group_0": {
                "format": INT_QUANTIZED,
                "input_activations": {**int8, "dynamic": True, "observer": None, "strategy": "token"},
                "output_activations": None,
                "targets": ["Linear"],
                "weights": {**int8, "dynamic": False, "observer": "memoryless_minmax", "strategy": "channel"},
            }
        },
        "format": INT_QUANTIZED,
        "global_compression_ratio": None,
        "ignore": list(ignore),
        "kv_cache_scheme": None,
        "quant_method": QUANT_METHOD,
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.19.0",
    }

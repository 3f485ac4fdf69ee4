"""The source with every tensor as a target wants it: one tensor at a time, and a record of what each lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paddle_ds.checkpoints.base import Checkpoint, GroupedWeight, KvScheme, StoredTensor, Weight
from paddle_ds.config.recipe import Scheme
from paddle_ds.config.tensors import TensorSpec, model_specs
from paddle_ds_slim.exporters.comparison import Comparison, compare
from paddle_ds_slim.exporters.target import Found, Planned, Target
from paddle_ds_slim.exporters.weights import collapse, converted, fits_blocks


class ConvertedCheckpoint(Checkpoint):
    """``source`` through the eyes of ``target``. Closing it leaves the source open.

    Attributes:
        planned: name -> what a tensor becomes.
        comparisons: name -> what that did to it, for every tensor that has been read.
    """

    def __init__(self, source: Checkpoint, target: Target) -> None:
        self.format = source.format
        self.directory = source.directory
        self.config = source.config
        self.comparisons: dict[str, Comparison] = {}
        self._source = source
        self._has_equal_groups: dict[str, bool] = {}
        self._found = {spec.name: self._find(spec) for spec in model_specs(source.config)}
        self.planned = {spec.name: target.plan(spec, self._found[spec.name]) for spec in model_specs(source.config)}

    def requantised(self) -> list[str]:
        """Names of the tensors whose integers the target cannot hold, so that they would be rounded again."""
        return [name for name, planned in self.planned.items() if _loses_integers(self._found[name], planned)]

    def stored(self) -> Mapping[str, StoredTensor]:
        stored = self._source.stored()
        return {
            name: StoredTensor(name, stored[name].shape, planned.dtype, stored[name].nbytes, stored[name].file, planned.groups)
            for name, planned in self.planned.items()
        }

    def read(self, spec: TensorSpec) -> Weight:
        before = self._source.read(spec)
        after = converted(before, self.planned[spec.name], spec.name)
        self.comparisons[spec.name] = compare(before, after)
        return after

    def schemes(self) -> Mapping[str, Scheme]:
        return self._source.schemes()

    def raw_config(self) -> dict[str, Any]:
        return self._source.raw_config()

    def kv_cache(self) -> KvScheme | None:
        return self._source.kv_cache()

    def ignored(self) -> frozenset[str]:
        return self._source.ignored()

    def release(self, spec: TensorSpec) -> None:
        self._source.release(spec)

    def close(self) -> None:
        """Nothing of its own to let go of."""

    def _find(self, spec: TensorSpec) -> Found:
        is_ignored = spec.name in self._source.ignored()
        return Found(self._source.stored()[spec.name], is_ignored, lambda: self._equal_groups(spec))

    def _equal_groups(self, spec: TensorSpec) -> bool:
        if spec.name not in self._has_equal_groups:
            weight = self._source.read(spec)
            self._has_equal_groups[spec.name] = isinstance(weight, GroupedWeight) and collapse(weight) is not None
            self._source.release(spec)
        return self._has_equal_groups[spec.name]


def _loses_integers(found: Found, planned: Planned) -> bool:
    if not (found.is_integer and planned.is_integer) or planned.groups == found.stored.groups:
        return False
    groups, bits = found.stored.groups, 4 if found.stored.dtype == "int4" else 8
    if planned.groups is not None and groups is not None and fits_blocks(groups, bits):
        return False
    return not found.is_per_channel()

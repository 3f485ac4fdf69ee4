"""What ``--quant`` means: which tensors run in which precision.

| asked   | checkpoint            | linear layers                  | head                                    |
|---------|-----------------------|--------------------------------|-----------------------------------------|
| `none`  | any                   | float32 (integers dequantised) | float32                                 |
| `w8a8`  | floating point        | INT8, activations per token    | INT8, activations per token             |
| `w8a8`  | INT8                  | as stored, activations INT8    | INT8 unless the checkpoint ignores it   |
| `w8a16` | floating point, INT8  | INT8, activations float        | the same                                |
| either  | INT4, or INT8 groups  | dequantised, rounded to INT8   | the same; INT8 groups stay for `w8a16`  |
| `auto`  | floating point        | as `w8a8`                      | as `w8a8`                               |
| `auto`  | quantised             | as stored                      | as stored                               |

Layers that a checkpoint's author left unquantised on purpose (its ``ignore`` list) stay in floating point. Embeddings, norms and
biases always do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from paddle_ds.config.engine import Quant

Scheme = Literal["dense", "w8a8", "w8a16", "w4a16"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Decides the scheme of every linear layer of one checkpoint."""

    requested: Quant
    #: prefix of a linear layer (or ``lm_head``) -> what the checkpoint holds it for; floating-point layers are left out
    stored: Mapping[str, Scheme] = dataclasses.field(default_factory=dict)
    ignored: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """What runs, for reports: ``none``, ``w8a8`` …; a checkpoint of several schemes is ``w4a16+w8a16``."""
        if self.requested != "auto":
            return self.requested
        return "+".join(sorted(set(self.stored.values()))) or "w8a8"

    def scheme(self, prefix: str) -> Scheme:
        """Scheme of the linear layer (or head) ``prefix``."""
        if self.requested == "none" or prefix in self.ignored:
            return "dense"
        if self.requested == "auto":
            return self.stored.get(prefix, "dense") if self.stored else "w8a8"
        return self.requested

"""What ``--quant`` means: which tensors run in which precision.

| asked   | checkpoint            | linear layers                  | head                                    |
|---------|-----------------------|--------------------------------|-----------------------------------------|
| `none`  | any                   | float32 (INT8 is dequantised)  | float32                                 |
| `w8a8`  | floating point        | INT8, activations per token    | INT8, activations per token             |
| `w8a8`  | INT8                  | as stored, activations INT8    | INT8 unless the checkpoint ignores it   |
| `w8a16` | any                   | INT8, activations float        | the same                                |
| `auto`  | floating point        | as `w8a8`                      | as `w8a8`                               |
| `auto`  | INT8                  | as stored                      | as stored                               |

Layers that a checkpoint's author left unquantised on purpose (its ``ignore`` list) stay in floating point. Embeddings, norms and
biases always do.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from paddle_ds.config.engine import Quant

Scheme = Literal["dense", "w8a8", "w8a16"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Decides the scheme of every linear layer of one checkpoint."""

    requested: Quant
    #: whether the checkpoint itself holds INT8 weights
    stored_int8: bool
    ignored: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """What runs, for reports: ``none``, ``w8a8`` or ``w8a16``."""
        return "w8a8" if self.requested == "auto" else self.requested

    def scheme(self, prefix: str, *, stored_int8: bool) -> Scheme:
        """Scheme of the linear layer (or head) ``prefix``; ``stored_int8`` says how its weight lies in the file."""
        if self.requested == "none" or prefix in self.ignored:
            return "dense"
        if self.requested == "auto":
            return "w8a8" if stored_int8 or not self.stored_int8 else "dense"
        return self.requested

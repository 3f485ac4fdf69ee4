"""What the products of INT8 layers run on.

``vnni:avx512`` is our loop over oneDNN's packing, ``brg_matmul:…`` oneDNN itself, ``own:avx2`` our plain loop. Where one of the
first two is to be had, the plain loop is the slower way: a layer that ends up there is reported, and refused when fallbacks are.
Where oneDNN would not be exact (no VNNI, no AMX), the plain loop is the best there is.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from paddle_ds.errors import UnsupportedError
from paddle_ds.kernels import native
from paddle_ds.logs import fields

logger = logging.getLogger(__name__)

#: outputs and inputs of the layer that is packed to ask what runs: sizes that every implementation takes
_PROBE = (64, 64)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiled operators use on this processor."""

    #: path of the library
    library: str
    #: variant of the vector loops: ``avx512``, ``avx2`` or ``baseline``
    vector_isa: str
    onednn_version: str
    #: what the products of a layer of ordinary size run on
    best_product: str

    @classmethod
    def here(cls) -> Compiled:
        """Ask the library of this process.

        Raises:
            KernelError: it cannot be built or loaded.
        """
        library = native.library()
        layer = native.NativeInt8Linear(np.zeros(_PROBE, np.int8), np.ones(_PROBE[0], np.float32), None)
        return cls(str(library.path), library.vector_isa, library.onednn_version, layer.implementation)


class ProductCount:
    """Makes INT8 layers with ``make`` and counts what each runs on, before a fused decoder takes them over.

    Args:
        best: what an ordinary layer runs on here.
        strict: refuse a layer on our plain loop where ``best`` is faster.
    """

    def __init__(self, make: Callable[..., Any], best: str, *, strict: bool) -> None:
        self._make = make
        self._best = best
        self._strict = strict
        #: implementation -> number of layers
        self.counts: dict[str, int] = {}

    def __call__(self, *arrays: Any) -> Any:
        layer = self._make(*arrays)
        name = getattr(layer, "implementation", "reference")
        if self._strict and self._is_below_best(name):
            raise UnsupportedError(
                f"strict: the products of a layer of {layer.num_out} outputs and {layer.num_in} inputs would run on {name} "
                f"instead of {self._best}"
            )
        self.counts[name] = self.counts.get(name, 0) + 1
        return layer

    def fallbacks(self) -> dict[str, str]:
        """``int8_linear`` and why, where layers run on our plain loop though a faster one is there; logs it as a warning, too."""
        below = {name: count for name, count in self.counts.items() if self._is_below_best(name)}
        if not below:
            return {}
        num_below, num_layers, runs = sum(below.values()), sum(self.counts.values()), ", ".join(below)
        logger.warning("products.fallback", extra=fields(layers=num_below, of=num_layers, runs=runs, best=self._best))
        return {"int8_linear": f"{self._best}: not for {num_below} of {num_layers} layers, which run on {runs}"}

    def _is_below_best(self, name: str) -> bool:
        return name.startswith("own:") and not self._best.startswith("own:")

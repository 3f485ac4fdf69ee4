"""Which of Paddle's kernels are registered: by Paddle itself, and by the plug-ins that this process has loaded.

Paddle lists its kernels twice. ``_get_all_register_op_kernels`` has the operator names of old, where ``matmul`` is an operator of
long ago and today's is called ``matmul_v2``. ``_get_registered_phi_kernels``, which is read here, has the names and types that
Paddle's log and errors have, too::

    matmul -> ["(CPU, Undefined(AnyLayout), float32)", "(npu, Undefined(AnyLayout), int8)", "(ONEDNN, ONEDNN, bfloat16)", …]
                backend      layout          type

Kernels of the layout ``STRIDED`` make views. They are left out where ``FLAGS_use_stride_kernel`` is off, since Paddle does not
take them then.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from paddle_ds.errors import UnsupportedError

logger = logging.getLogger(__name__)

#: device type of kernels that Paddle has for the devices of every plug-in (views, shapes, empty tensors)
ANY_PLUGIN = "any plug-in"
#: device type of kernels that run on the CPU, but not in eager mode
ONEDNN = "onednn"

_VIEWS = "FLAGS_use_stride_kernel"
_ENTRY = re.compile(r"\(([A-Za-z_]\w*), ([\w()]+), ([\w()]+)\)")
#: Paddle's names of backends -> device types; the backend of a plug-in has the plug-in's own name
_DEVICE_TYPES = {
    "CPU": "cpu",
    "ONEDNN": ONEDNN,
    "GPU": "gpu",
    "GPUDNN": "gpu",
    "KPS": "gpu",
    "XPU": "xpu",
    "CUSTOM": ANY_PLUGIN,
}
_BUILT_IN = frozenset(_DEVICE_TYPES.values())


class Registration(NamedTuple):
    """One kernel. ``dtype`` is Paddle's name of it, such as ``float32``."""

    device_type: str
    dtype: str


@dataclass(frozen=True)
class KernelTable:
    """A reading of the table.

    Attributes:
        kernels: kernel, by its name in Paddle's log (``matmul``, ``softmax``) -> what it is registered for.
        unparsed: entries that were not understood, as ``kernel: text``.
    """

    kernels: Mapping[str, frozenset[Registration]]
    unparsed: tuple[str, ...] = ()

    @classmethod
    def read(cls) -> KernelTable:
        """What is registered now, and can be taken with the flags that are set.

        Raises:
            UnsupportedError: this Paddle does not tell.
        """
        import paddle
        from paddle.base import core

        registered = getattr(core, "_get_registered_phi_kernels", None)
        if registered is None:
            raise UnsupportedError(
                f"Paddle {paddle.__version__} does not list its kernels: paddle.base.core has no _get_registered_phi_kernels, "
                "so which ones a plug-in brings cannot be told"
            )
        return cls.parse(registered("all"), views=paddle.get_flags(_VIEWS)[_VIEWS])

    @classmethod
    def parse(cls, entries: Mapping[str, Iterable[str]], *, views: bool = True) -> KernelTable:
        """The table in Paddle's ``entries``. What is not understood is left out, and kept in ``unparsed``.

        Args:
            views: take kernels of the layout ``STRIDED``, too.
        """
        kernels: dict[str, frozenset[Registration]] = {}
        unparsed: list[str] = []
        for kernel, texts in entries.items():
            found: set[Registration] = set()
            for text in texts:
                match = _ENTRY.fullmatch(text)
                if match is None:
                    unparsed.append(f"{kernel}: {text}")
                elif views or match[2] != "STRIDED":
                    found.add(Registration(_DEVICE_TYPES.get(match[1], match[1]), match[3]))
            kernels[kernel] = frozenset(found)
        if unparsed:
            logger.debug("kernel_table.unparsed %d entries, such as %s", len(unparsed), unparsed[0])
        return cls(kernels, tuple(unparsed))

    def has(self, kernel: str, device_type: str, dtype: str | None = None) -> bool:
        """Whether ``kernel`` can run on devices of ``device_type``, for ``dtype`` or for any type at all."""
        return any(
            registration.device_type in _accepted(device_type) and dtype in (None, registration.dtype)
            for registration in self.kernels.get(kernel, frozenset())
        )

    def dtypes(self, kernel: str, device_type: str) -> frozenset[str]:
        """Types that ``kernel`` takes on devices of ``device_type``."""
        registrations = self.kernels.get(kernel, frozenset())
        return frozenset(one.dtype for one in registrations if one.device_type in _accepted(device_type))

    def of(self, device_type: str) -> frozenset[str]:
        """Kernels that are registered for ``device_type`` itself: of a plug-in, those that it brings along."""
        return frozenset(kernel for kernel, found in self.kernels.items() if any(one.device_type == device_type for one in found))


@functools.cache
def _accepted(device_type: str) -> frozenset[str]:
    return frozenset({device_type} if device_type in _BUILT_IN else {device_type, ANY_PLUGIN})

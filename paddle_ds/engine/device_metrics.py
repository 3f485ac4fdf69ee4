"""Figures of a device, read beside the step loop: a chip's monitoring command may take seconds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from paddle_ds.devices.base import Device
from paddle_ds.logs import fields

logger = logging.getLogger(__name__)


class DeviceMetrics:
    """Asks ``device`` again and again, in a thread of its own that ends with the process.

    Attributes:
        latest: what it said last; empty before it has said anything.
    """

    def __init__(self, device: Device, every_s: float = 10.0) -> None:
        self.latest: Mapping[str, float] = {}
        self._device = device
        self._every_s = every_s
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="device-metrics", daemon=True).start()

    def close(self) -> None:
        """Ask no more."""
        self._ended.set()

    def _run(self) -> None:
        while True:
            try:
                self.latest = dict(self._device.metrics())
            except Exception as error:  # a device that is lost; the step loop finds that out and says so
                logger.warning("device.silent", extra=fields(device=self._device.name, because=str(error)))
            if self._ended.wait(self._every_s):
                return

"""Runs a plan: one upload of integers, the forward pass, sampling, one download of tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import paddle

from paddle_ds.checkpoints.base import KvScheme
from paddle_ds.devices.base import Device
from paddle_ds.devices.failures import translating
from paddle_ds.kernels.cache import KvDtype, StaticScales
from paddle_ds.kernels.layout import BatchLayout
from paddle_ds.kernels.upload import upload
from paddle_ds.layers import RotaryTable
from paddle_ds.models import Decoder
from paddle_ds.runtime.sampler import Sampler
from paddle_ds.runtime.watchdog import Watchdog
from paddle_ds.sched import Chunk, SampledToken, StepPlan


class ModelRunner:
    """A decoder with its cache and sampler.

    Args:
        kv_scheme: the cache that the checkpoint was made for; its static scales are those of an ``int8`` cache.
        device: where all of it is; ``None``: the CPU.
        step_timeout_s: a step that takes longer on ``device`` has failed, where the device can be asked.
    """

    def __init__(
        self,
        decoder: Decoder,
        sampler: Sampler,
        *,
        num_blocks: int,
        block_tokens: int,
        kv_dtype: KvDtype = "float32",
        kv_scheme: KvScheme | None = None,
        device: Device | None = None,
        step_timeout_s: float | None = None,
    ) -> None:
        self.decoder = decoder
        self._sampler = sampler
        self._device = device if device is not None and device.type != "cpu" else None
        self._step_timeout_s = step_timeout_s
        self._watchdog = Watchdog(step_timeout_s)
        self.block_tokens = block_tokens
        self.capacity_tokens = num_blocks * block_tokens
        self._rotary = RotaryTable(decoder.config)
        static = _static_scales(kv_scheme) if kv_dtype == "int8" else None
        self._cache = decoder.make_cache(num_blocks, block_tokens, kv_dtype, static)

    def execute(self, plan: StepPlan) -> list[SampledToken]:
        """One token for each chunk of the plan that asks for one, in the plan's order.

        Raises:
            DeviceOutOfMemory: there is no room for this step's temporaries; nothing of it counts as computed.
            DeviceLost: the device has failed for good (:class:`DeviceTimeout`: it does not finish).
        """
        if self._device is None:
            return self._execute(plan)
        with translating(self._device.name), self._watchdog:
            return self._execute(plan)

    def _execute(self, plan: StepPlan) -> list[SampledToken]:
        with paddle.no_grad():
            rows = [row for row, chunk in zip(_last_rows(plan.chunks), plan.chunks, strict=True) if chunk.sample]
            row_ids = upload(np.array(rows)) if 0 < len(rows) < plan.num_tokens else None
            hidden = self._forward(plan.chunks)
            sampled = hidden if row_ids is None else paddle.gather(hidden, row_ids)
            logits = self.decoder.logits(sampled) if rows else None
            if self._device is not None:  # before a download, which could not be given up
                self._device.synchronize(self._step_timeout_s)
            if logits is None:
                return []
            return self._sampler.sample(logits, [chunk.request for chunk in plan.chunks if chunk.sample])

    def all_logits(self, plan: StepPlan) -> npt.NDArray[np.float32]:
        """Logits of every position of the plan, float32 [T, vocab]: for evaluation and tests."""
        with paddle.no_grad():
            logits: npt.NDArray[np.float32] = self.decoder.logits(self._forward(plan.chunks)).numpy()
            return logits

    def _forward(self, chunks: tuple[Chunk, ...]) -> paddle.Tensor:
        ids = np.concatenate([np.asarray(chunk.token_ids, dtype=np.int64) for chunk in chunks])
        layout = self._layout(chunks)
        if self._device is not None:
            layout.stage(self.decoder.config.num_heads)
        return self.decoder.hidden(upload(ids), self._cache, layout)

    def _layout(self, chunks: tuple[Chunk, ...]) -> BatchLayout:
        lengths = [chunk.num_tokens for chunk in chunks]
        positions = np.concatenate([np.arange(chunk.start, chunk.context_tokens) for chunk in chunks])
        tables = np.zeros((len(chunks), max(len(chunk.request.block_ids) for chunk in chunks)), np.int32)
        for row, chunk in enumerate(chunks):
            tables[row, : len(chunk.request.block_ids)] = chunk.request.block_ids
        owners = np.repeat(np.arange(len(chunks)), lengths)
        blocks = tables[owners, positions // self.block_tokens].astype(np.int64)
        cos, sin = self._rotary.cos_sin(positions)
        return BatchLayout(
            query_starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
            context_lens=np.array([chunk.context_tokens for chunk in chunks], np.int32),
            block_tables=tables,
            block_tokens=self.block_tokens,
            slots=upload(blocks * self.block_tokens + positions % self.block_tokens),
            cos=upload(cos),
            sin=upload(sin),
        )


def _static_scales(kv_scheme: KvScheme | None) -> StaticScales | None:
    if kv_scheme is None or kv_scheme.scales is None:
        return None
    layers = kv_scheme.scales
    return StaticScales(np.stack([layer.key for layer in layers]), np.stack([layer.value for layer in layers]))


def _last_rows(chunks: tuple[Chunk, ...]) -> list[int]:
    return [int(stop) - 1 for stop in np.cumsum([chunk.num_tokens for chunk in chunks])]

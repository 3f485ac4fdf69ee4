"""What the linear layers of a float model read on a short text, caught while the engine runs it.

<scratch>/inputs-<first reader>.npy    float32 [tokens, in]; q, k and v read the same, so do gate and up
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import paddle

from paddle_ds.checkpoints.dtypes import Float32Array
from paddle_ds.errors import QuantizationError
from paddle_ds.layers import Linear
from paddle_ds.models import Decoder
from paddle_ds.runtime.evaluate import position_logits
from paddle_ds.runtime.model_runner import ModelRunner
from paddle_ds_slim.passport.data import Piece

#: attribute of a decoder layer -> linears that read what it reads
_READERS: Mapping[str, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


def keep_inputs(runner: ModelRunner, pieces: tuple[Piece, ...], num_tokens: int, directory: Path) -> dict[str, Path]:
    """Run the first ``num_tokens`` tokens of ``pieces``; linear layer (and ``lm_head``) -> file of its inputs.

    Raises:
        QuantizationError: a file cannot be written.
    """
    with _caught(runner.decoder) as caught:
        room = num_tokens
        for piece in pieces:
            for logits in position_logits(runner, piece.ids[:room]):
                room -= len(logits)
            if room <= 0:
                break
    files: dict[str, Path] = {}
    for readers, inputs in caught.items():
        path = directory / f"inputs-{readers[0]}.npy"
        try:
            np.save(path, np.concatenate(inputs))
        except OSError as error:
            raise QuantizationError(f"{path}: cannot be written: {error}; name a scratch directory with more room") from error
        files |= dict.fromkeys(readers, path)
    return files


class _Catching:
    """A linear layer that keeps what it is given."""

    def __init__(self, layer: Linear, inputs: list[Float32Array]) -> None:
        self.layer = layer
        self._inputs = inputs

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        self._inputs.append(x.numpy())
        return self.layer(x)

    def weight_bytes(self) -> dict[str, int]:
        return self.layer.weight_bytes()


@contextlib.contextmanager
def _caught(decoder: Decoder) -> Iterator[dict[tuple[str, ...], list[Float32Array]]]:
    """The decoder catches inputs within this context. It must be a float one: INT8 layers may be fused into one operator."""
    assert decoder.fused is None, "a fused decoder has no layers to catch inputs of"
    caught: dict[tuple[str, ...], list[Float32Array]] = {}
    catching: list[tuple[object, str, _Catching]] = []
    places = [(layer, name, tuple(f"model.layers.{i}.{reader}" for reader in readers))
              for i, layer in enumerate(decoder.layers) for name, readers in _READERS.items()]  # fmt: skip
    for owner, name, readers in [*places, (decoder, "head", ("lm_head",))]:
        catcher = _Catching(getattr(owner, name), caught.setdefault(readers, []))
        setattr(owner, name, catcher)
        catching.append((owner, name, catcher))
    try:
        yield caught
    finally:
        for owner, name, catcher in catching:
            setattr(owner, name, catcher.layer)

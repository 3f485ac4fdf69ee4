"""``Smooth``, ``Shift`` and ``AutoClip`` on a PaddleNLP model or decoder layer, in place.

What is left as PaddleSlim has it, so that a table shows PaddleSlim: the scale of a norm is taken from the last linear layer
behind it alone (v_proj, up_proj); ``Shift`` weighs later batches more than earlier ones; ``AutoClip`` always searches for 4 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle

from paddle_ds.errors import CalibrationError, QuantizationError, UnsupportedError
from paddle_ds_slim.paddlenlp_model import blocks_of, run, run_block
from paddle_ds_slim.paddleslim_adapter.searches import SearchName, make_search
from paddle_ds_slim.paddleslim_adapter.shipped import advanced, running

Batch = npt.NDArray[Any]

#: norm -> q, k, v and norm -> gate, up. PaddleSlim's defaults, a fused qkv and one linear layer behind the second norm, fold a
#: scale into the norm and only some of the layers behind it: no error, another function
_LLAMA_PAIRS = {"fused_qkv": False, "parallel_ffn": True}
#: of the largest output: what folding in float32 may change
_SAME_FUNCTION = 1e-3
#: tokens that AutoClip compares outputs on
_CLIP_TOKENS = 128
#: output channels that AutoClip gives one scale. Its own default of 1024 suits no scale that a kernel would use
_CLIP_ROWS = 4


class EverySequence:
    """Sampler that joins all sequences along their tokens.

    A sampler is called once for each linear layer behind a norm, so PaddleSlim's own ``MultiStepSampler`` holds each input two or
    three times.
    """

    def __init__(self) -> None:
        self._last: dict[str, Any] = {}

    def sample(self, x: paddle.Tensor, sampled_x: paddle.Tensor, layer_name: str) -> paddle.Tensor:
        if x is sampled_x or x is self._last.get(layer_name):
            return sampled_x
        self._last[layer_name] = x
        return paddle.concat([sampled_x, x], axis=1)


def smooth(layer: Any, batches: Sequence[Batch], alpha: float | None = None, search: SearchName | None = None) -> None:
    """Fold ``s = max|x| ** alpha / max|w| ** (1 - alpha)`` (SmoothQuant, arXiv 2211.10438) into norms and the layers behind them.

    Args:
        alpha: 0.5 if not given.
        search: find the scales by trying instead: PaddleSlim's ``PieceWiseSearch`` for 8 bits, or its ``AWQSearch`` for 4 (over
            mean instead of largest magnitudes).

    Raises:
        CalibrationError: no data.
        QuantizationError: the function changed, the layer's names cannot be paired, or PaddleSlim failed.
        UnsupportedError: both ``alpha`` and a search.
    """
    rows = sequences(batches)
    _check_names(layer)
    options: dict[str, Any] = {"alpha": 0.5 if alpha is None else alpha}
    if search is not None:
        if alpha is not None:
            raise UnsupportedError(f"alpha {alpha:g} beside search {search!r}; a search finds the scales without it")
        options |= {"search_function": make_search(search), "sample_function": EverySequence(), "start_sample_step": 0}
        options |= {"smooth_method": "awq"} if search == "awq" else {}
    with running("Smooth"):
        _fold(layer, rows, advanced("smooth").Smooth(layer, _LLAMA_PAIRS, **options))


def shift(layer: Any, batches: Sequence[Batch], average: bool = False) -> None:
    """Subtract the middle of each channel behind a norm and add it to the biases (Outlier Suppression+, arXiv 2304.09145).

    Linear layers get a bias; a norm is wrapped, since RMSNorm has none. No checkpoint can hold that: for measuring only.

    Args:
        average: shift by a moving average of means instead of the middle between least and largest value.

    Raises:
        CalibrationError: no data.
        QuantizationError: the function changed, the layer's names cannot be paired, or PaddleSlim failed.
    """
    rows = sequences(batches)
    _check_names(layer)
    sampler = advanced("sample").EMASampler() if average else None
    with running("Shift"):
        _fold(layer, rows, advanced("shift").Shift(layer, _LLAMA_PAIRS, sample_function=sampler))


def auto_clip(layer: Any, batches: Sequence[Batch], group_size: int = 64) -> None:
    """Clip weights to the range whose 4-bit rounding changes outputs least (AWQ, arXiv 2306.00978). Changes the function.

    Args:
        group_size: inputs that share a range. Where it does not divide a layer's inputs, the next smaller number that does.

    Raises:
        CalibrationError: no data.
        QuantizationError: PaddleSlim failed.
    """
    rows = sequences(batches)
    num_tokens = sum(row.shape[1] for row in rows)
    with running("AutoClip"):
        # with fewer tokens than n_sample_token its stride would be 0
        clip = advanced("auto_clip").AutoClip(
            layer, sample_function=EverySequence(), n_sample_token=min(_CLIP_TOKENS, num_tokens)
        )
        try:
            for row in rows:
                run(layer, row)
        finally:  # AutoClip never takes its hooks out
            for hook in clip._forward_hook_list:
                hook.remove()
        inputs = clip.sampled_inputs
        linears = {linear.full_name(): linear for _, linear in layer.named_sublayers() if linear.full_name() in inputs}
        for name, linear in linears.items():  # one at a time: a single group size would have to divide the inputs of all
            num_in, num_out = linear.weight.shape
            clip.sampled_inputs = {name: inputs[name]}
            clip.auto_clip(group_size=_divisor(num_in, group_size), oc_batch_size=_divisor(num_out, _CLIP_ROWS))


def sequences(batches: Sequence[Batch]) -> list[Batch]:
    """Each sequence alone, ``[1, T]`` or ``[1, T, H]``: samplers join along the tokens, which wants one batch size.

    Raises:
        CalibrationError: there are none.
    """
    rows = list(_rows(batches))
    if not rows:
        raise CalibrationError("no calibration sequences; this method needs at least one")
    return rows


def _rows(batches: Sequence[Batch]) -> Iterator[Batch]:
    for batch in batches:
        whole = batch[None] if batch.ndim == 1 else batch
        yield from (whole[index : index + 1] for index in range(len(whole)) if whole.shape[1])


def _fold(layer: Any, rows: Sequence[Batch], method: Any) -> None:
    """Run a ``Smooth`` or ``Shift`` and see that the layer still computes what it did."""
    before = _output(layer, rows[0])  # the first pass only lists the layers in the order of their calls
    method.step += 1
    for row in rows:
        run(layer, row)
        method.step += 1
    method.update_weight()
    after = _output(layer, rows[0])
    change = np.abs(after - before).max() / np.abs(before).max()
    if not change <= _SAME_FUNCTION:
        raise QuantizationError(
            f"PaddleSlim's {type(method).__name__} changed the model: outputs differ by {change:.2g} of the largest; "
            f"at most {_SAME_FUNCTION:g} is rounding"
        )


def _output(layer: Any, row: Batch) -> Batch:
    if hasattr(layer, "layer_index"):
        return run_block(layer, row)
    logits: Batch = layer(paddle.to_tensor(row))[0].numpy()
    return logits


def _check_names(layer: Any) -> None:
    """PaddleSlim tells a norm before attention from one before the MLP by whether the number in its name is even.

    The numbers go on from one model to the next in a process unless each is built under ``paddle.utils.unique_name.guard``.
    """
    for block in blocks_of(layer):
        for norm, remainder in ((block.input_layernorm, 0), (block.post_attention_layernorm, 1)):
            name = getattr(norm, "layer", norm).full_name()  # Shift has wrapped it
            if int(name.rpartition("_")[2]) % 2 != remainder:
                raise QuantizationError(
                    f"layer {block.layer_index}: PaddleSlim would pair norm {name!r} with the wrong linear layers, since its "
                    f"number is {'odd' if remainder == 0 else 'even'}; build the model under paddle.utils.unique_name.guard()"
                )


def _divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` that is at most ``limit``."""
    return next(size for size in range(min(limit, number), 0, -1) if number % size == 0)

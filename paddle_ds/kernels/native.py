"""The compiled operators: loaded once a process, wrapped as what the registry hands out.

Weights are packed through plain C functions on NumPy arrays (no copy in Paddle's memory); computing goes through Paddle custom
operators that name a packed layer by its handle.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle

from paddle_ds import settings
from paddle_ds.errors import KernelError
from paddle_ds.kernels import build, dense_linear
from paddle_ds.kernels.cache import KvCache, KvDtype, StaticScales, static_tensors
from paddle_ds.kernels.candidates import Candidates
from paddle_ds.kernels.layout import BatchLayout
from paddle_ds.kernels.reference_layer import Int8Array, Int8Rows, stack
from paddle_ds.kernels.upload import upload

#: tokens of a cache block that the compiled attention is made for (one vector of keys)
BLOCK_TOKENS = 16

#: rows that oneDNN packs together
_PACKED_ROWS = 64

FloatArray = npt.NDArray[np.float32]


class Library:
    """The loaded library."""

    def __init__(self, path: Path) -> None:
        from paddle.base import core

        self.path = path
        core.load_op_meta_info_and_register_op(str(path))
        self._run: Any = core.eager._run_custom_op
        self._c = ctypes.CDLL(str(path))
        for name in (
            "pds_new_linear",
            "pds_pack_rows",
            "pds_finish_linear",
            "pds_pack_weight_only",
            "pds_borrow_dense",
            "pds_pack_grouped",
            "pds_linear_bytes",
            "pds_linear_implementation",
            "pds_new_decoder",
            "pds_add_layer",
        ):
            getattr(self._c, name).restype = ctypes.c_int64
        for name in ("pds_last_error", "pds_vector_isa", "pds_onednn_version"):
            getattr(self._c, name).restype = ctypes.c_char_p

    def run(self, name: str, *arguments: Any) -> list[paddle.Tensor]:
        """Run the operator ``name``."""
        return self._run(name, *arguments)

    def call(self, name: str, *arguments: Any) -> int:
        """Call a C function that answers -1 where it failed.

        Raises:
            KernelError: with the reason it gives.
        """
        result = int(getattr(self._c, name)(*arguments))
        if result < 0:
            raise KernelError(f"{name}: {self._c.pds_last_error().decode()}")
        return result

    def release(self, name: str, handle: int) -> None:
        """Call a C function that frees ``handle``."""
        getattr(self._c, name)(ctypes.c_int64(handle))

    @property
    def vector_isa(self) -> str:
        """The variant of the vector loops in use: ``avx512``, ``avx2`` or ``baseline``."""
        return str(self._c.pds_vector_isa().decode())

    @property
    def onednn_version(self) -> str:
        """Of the library in Paddle's wheel, such as ``3.6.2``."""
        return str(self._c.pds_onednn_version().decode())


@functools.cache
def _load() -> Library | KernelError:
    try:
        current = settings.load()
        return Library(Path(current.operators) if current.operators else build.library(Path(current.cache_dir)))
    except KernelError as error:
        return error
    except (OSError, RuntimeError) as error:
        return KernelError(f"the operators cannot be loaded: {error}")


def library() -> Library:
    """The library of this process; the first call builds it if need be.

    Raises:
        KernelError: it cannot be built or loaded.
    """
    loaded = _load()
    if isinstance(loaded, KernelError):
        raise loaded
    return loaded


def why_unavailable() -> str | None:
    """``None``, or why the compiled operators cannot be used here."""
    loaded = _load()
    return loaded.message if isinstance(loaded, KernelError) else None


def address_of(array: npt.NDArray[Any] | None) -> ctypes.c_void_p | None:
    """An argument for :meth:`Library.call`: where a contiguous array lies, which the caller keeps alive."""
    return None if array is None else array.ctypes.data_as(ctypes.c_void_p)


class NativeWeightOnlyLinear:
    """W8A16 layer; same contract as ``weight_only_linear.ReferenceWeightOnlyLinear``."""

    def __init__(self, weight: Int8Rows, weight_scale: FloatArray, bias: FloatArray | None) -> None:
        self._library = library()
        stacked = np.ascontiguousarray(stack(weight))
        self.num_out, self.num_in = stacked.shape
        small, sizes = _small(weight_scale, bias), int64s(stacked.shape)
        self._num_small = sum(0 if array is None else array.size for array in small)
        self._handle = self._library.call("pds_pack_weight_only", address_of(stacked), *map(address_of, small), *sizes)
        self._finalizer = weakref.finalize(self, self._library.release, "pds_free_float_linear", self._handle)

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        return self._library.run("pds_float_linear", x, self._handle)[0]

    def weight_bytes(self) -> dict[str, int]:
        return {"int8": self.num_out * self.num_in, "float32": 4 * self._num_small}


class NativeInt8Linear:
    """W8A8 layer on oneDNN; same contract as ``int8_linear.ReferenceInt8Linear``.

    Weights that come in pieces of whole groups of 64 rows are packed piece by piece, without a copy of the whole.
    """

    def __init__(self, weight: Int8Rows, weight_scale: FloatArray, bias: FloatArray | None) -> None:
        self._library = library()
        pieces = iter([weight] if isinstance(weight, np.ndarray) else weight)
        beginning = next(pieces)
        self.num_out, self.num_in = len(weight_scale), beginning.shape[1]
        small = _small(weight_scale, bias)
        self._num_small = sum(0 if array is None else array.size for array in small)
        shape = int64s((self.num_out, self.num_in))
        self.handle = self._library.call("pds_new_linear", *map(address_of, small), *shape)
        self._finalizer = weakref.finalize(self, self._library.release, "pds_free_linear", self.handle)
        handle, first = ctypes.c_int64(self.handle), 0
        for piece in _aligned(itertools.chain([beginning], pieces)):
            self._library.call("pds_pack_rows", handle, address_of(piece), *int64s((first, len(piece))))
            first += len(piece)
        assert first == self.num_out
        self._library.call("pds_finish_linear", handle)

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        return self._library.run("pds_int8_linear", x, self.handle)[0]

    def give_away(self) -> int:
        """The handle, for a decoder that takes the layer over; this object must not be called afterwards."""
        self._finalizer.detach()
        return self.handle

    def weight_bytes(self) -> dict[str, int]:
        packed = self._library.call("pds_linear_bytes", ctypes.c_int64(self.handle))
        return {"int8": packed, "float32": 4 * self._num_small, "int32": 4 * self.num_out}

    @property
    def implementation(self) -> str:
        """What runs: ``vnni:avx512``, oneDNN's name such as ``brg_matmul:avx512_core_vnni``, or ``own:avx2``."""
        text = ctypes.create_string_buffer(80)
        self._library.call("pds_linear_implementation", ctypes.c_int64(self.handle), text, ctypes.c_int64(len(text)))
        return text.value.decode()


def _aligned(pieces: Iterator[Int8Array]) -> Iterator[Int8Array]:
    """The same rows in pieces that begin at a multiple of 64 rows: as they come, or put together where they do not fit."""
    for piece in pieces:
        if len(piece) % _PACKED_ROWS:
            yield np.ascontiguousarray(np.concatenate([piece, *pieces]))
            return
        yield np.ascontiguousarray(piece)


def _small(weight_scale: FloatArray, bias: FloatArray | None) -> tuple[FloatArray, FloatArray | None]:
    return np.ascontiguousarray(weight_scale, np.float32), None if bias is None else np.ascontiguousarray(bias, np.float32)


def int64s(shape: tuple[int, ...]) -> list[ctypes.c_int64]:
    """Whole numbers as arguments for :meth:`Library.call`."""
    return [ctypes.c_int64(size) for size in shape]


class NativeDenseLinear:
    """Layer in bfloat16 or float32 over the given tensor; same contract as ``dense_linear.ReferenceDenseLinear``."""

    def __init__(self, weight: paddle.Tensor, bias: paddle.Tensor | None) -> None:
        self._library = library()
        self._weight = weight.contiguous()  # kept: the library reads it where it lies
        self._bias = bias
        half = {paddle.bfloat16: 1, paddle.float32: 0}[weight.dtype]
        values = None if bias is None else np.ascontiguousarray(bias.numpy(), np.float32)
        pointer = ctypes.c_void_p(self._weight.data_ptr())
        self._handle = self._library.call(
            "pds_borrow_dense", pointer, ctypes.c_int64(half), address_of(values), *int64s(weight.shape)
        )
        self._finalizer = weakref.finalize(self, self._library.release, "pds_free_float_linear", self._handle)

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        return self._library.run("pds_float_linear", x, self._handle)[0]

    def weight_bytes(self) -> dict[str, int]:
        return dense_linear.weight_bytes(self._weight, self._bias)


def rms_norm(x: paddle.Tensor, weight: paddle.Tensor, eps: float) -> paddle.Tensor:
    """See ``rms_norm.reference``."""
    return library().run("pds_rms_norm", x, weight, eps)[0]


def silu_mul(gate_up: paddle.Tensor) -> paddle.Tensor:
    """See ``silu_mul.reference``."""
    return library().run("pds_silu_mul", gate_up)[0]


def rotary(x: paddle.Tensor, cos: paddle.Tensor, sin: paddle.Tensor) -> paddle.Tensor:
    """See ``rotary.reference``."""
    return library().run("pds_rotary", x, cos, sin)[0]


def make_cache(
    num_layers: int,
    num_blocks: int,
    block_tokens: int,
    kv_heads: int,
    head_dim: int,
    dtype: KvDtype = "float32",
    static: StaticScales | None = None,
) -> KvCache:
    """Keys ``[layers, blocks, kv_heads, head_dim, 16]``, values ``[layers, blocks, kv_heads, 16, head_dim padded to 16]``.

    The scales of an ``int8`` cache are ``[layers, blocks, kv_heads, 16]``. ``static`` as in ``paged_attention.make_cache``.
    """
    if block_tokens != BLOCK_TOKENS:
        raise KernelError(f"cache.block_tokens is {block_tokens}; the compiled attention has {BLOCK_TOKENS}")
    padded = -(-head_dim // BLOCK_TOKENS) * BLOCK_TOKENS
    scales = [num_layers, num_blocks, kv_heads, BLOCK_TOKENS] if dtype == "int8" else [num_layers]
    static_keys, static_values = static_tensors(static, num_layers, kv_heads, dtype)
    return KvCache(
        keys=paddle.empty([num_layers, num_blocks, kv_heads, head_dim, BLOCK_TOKENS], dtype=dtype),
        values=paddle.empty([num_layers, num_blocks, kv_heads, BLOCK_TOKENS, padded], dtype=dtype),
        key_scales=paddle.empty(scales),
        value_scales=paddle.empty(scales),
        static_key_scales=static_keys,
        static_value_scales=static_values,
    )


def _tensors(cache: KvCache) -> tuple[Any, ...]:
    return cache.keys, cache.values, cache.key_scales, cache.value_scales


def _static(cache: KvCache) -> tuple[paddle.Tensor, paddle.Tensor]:
    return cache.static_key_scales, cache.static_value_scales


def kv_write(cache: KvCache, layer: int, key: paddle.Tensor, value: paddle.Tensor, slots: paddle.Tensor) -> None:
    """See ``paged_attention.kv_write``."""
    library().run("pds_kv_write", *_tensors(cache), *_static(cache), key, value, slots, layer)


def paged_attention(query: paddle.Tensor, cache: KvCache, layer: int, layout: BatchLayout) -> paddle.Tensor:
    """See ``paged_attention.reference``."""
    return library().run("pds_paged_attention", query, *_tensors(cache), *layout.device_tables, layer)[0]


def candidates(logits: paddle.Tensor, num_tokens: int, temperatures: FloatArray, count: int) -> Candidates:
    """See ``candidates.reference``."""
    found = library().run("pds_candidates", logits, upload(temperatures), num_tokens, count)
    return Candidates(*(tensor.numpy() for tensor in found))


class FusedDecoder:
    """All layers in one operator; takes over their packed weights."""

    def __init__(self, hidden: int, inner: int, heads: int, kv_heads: int, head_dim: int, eps: float) -> None:
        self._library = library()
        sizes = int64s((hidden, inner, heads, kv_heads, head_dim))
        self._handle = self._library.call("pds_new_decoder", *sizes, ctypes.c_float(eps))
        self._finalizer = weakref.finalize(self, self._library.release, "pds_free_decoder", self._handle)
        self._bytes: dict[str, int] = {}

    def add(self, input_norm: FloatArray, post_norm: FloatArray, linears: tuple[NativeInt8Linear, ...]) -> None:
        """Append one layer: qkv, o, gate_up and down."""
        for linear in linears:
            for dtype, count in linear.weight_bytes().items():
                self._bytes[dtype] = self._bytes.get(dtype, 0) + count
        handles = [ctypes.c_int64(linear.give_away()) for linear in linears]
        self._library.call("pds_add_layer", ctypes.c_int64(self._handle), address_of(input_norm), address_of(post_norm), *handles)

    def __call__(self, x: paddle.Tensor, cache: KvCache, layout: BatchLayout) -> paddle.Tensor:
        """float32 [T, H] -> float32 [T, H], before the final norm."""
        tables = layout.device_tables
        more = (layout.slots, layout.cos, layout.sin)
        return self._library.run("pds_decoder", x, *_tensors(cache), *_static(cache), *tables, *more, self._handle)[0]

    def weight_bytes(self) -> dict[str, int]:
        return dict(self._bytes)

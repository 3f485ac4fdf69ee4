"""What each kernel of the emulated device is tried on. No Paddle here until a case is run.

A case is a function of Paddle and a maker of inputs. It is run on the CPU and on the device with equal inputs; where the CPU has
no such kernel, ``expected`` computes the same in NumPy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Maker:
    """Inputs: equal ones from equal calls in equal order.

    Args:
        paddle: the module.
        halves: whether 16-bit types are made; else float32 with the same values, for where they cannot be computed with.
    """

    def __init__(self, paddle: Any, halves: bool) -> None:
        self._paddle = paddle
        self._halves = halves
        self._generator = np.random.default_rng(7)

    def floats(self, *shape: int, dtype: str = "float32") -> Any:
        """Around 0, with no two alike."""
        values = self._generator.normal(size=shape) * 2
        if dtype in ("float16", "bfloat16"):
            half = self._paddle.to_tensor(values.astype(np.float32), place=self._paddle.CPUPlace()).astype(dtype)
            if not self._halves:
                return half.astype("float32")
            return half.to(self._paddle.get_device())
        return self._paddle.to_tensor(values.astype(dtype))

    def integers(self, *shape: int, dtype: str = "int32", low: int = -100, high: int = 100) -> Any:
        return self._paddle.to_tensor(self._generator.integers(low, high, size=shape).astype(dtype))

    def bools(self, *shape: int) -> Any:
        return self._paddle.to_tensor(self._generator.integers(0, 2, size=shape).astype(bool))

    def tensor(self, values: Any, dtype: str) -> Any:
        return self._paddle.to_tensor(np.array(values, dtype=dtype))


@dataclasses.dataclass(frozen=True)
class Case:
    """``run(paddle, make)`` gives a tensor or a list of them.

    Attributes:
        kernel: what must run on the device.
        strides: whether Paddle may make views; where not, it copies instead.
        tolerance: relative and absolute, of floats.
    """

    kernel: str
    run: Callable[[Any, Maker], Any]
    expected: Callable[[Maker], Any] | None = None
    strides: bool = True
    tolerance: float = 1e-5


CASES: dict[str, Case] = {}


def _add(name: str, kernel: str, run: Callable[[Any, Maker], Any], **more: Any) -> None:
    assert name not in CASES
    CASES[name] = Case(kernel, run, **more)


def _unary() -> None:
    functions: dict[str, Callable[[Any, Any], Any]] = {
        "abs": lambda p, x: x.abs(),
        "exp": lambda p, x: p.exp(x),
        "sqrt": lambda p, x: p.sqrt(x * x),
        "rsqrt": lambda p, x: p.rsqrt(x * x + 0.5),
        "silu": lambda p, x: p.nn.functional.silu(x),
        "round": lambda p, x: p.round(x),
        "scale": lambda p, x: x * 3 + 2,
        "div_scale": lambda p, x: x / 7.0,
        "clip": lambda p, x: p.clip(x, -1, 1.5),
        "softmax": lambda p, x: p.nn.functional.softmax(x, axis=-1),
        "isfinite": lambda p, x: p.isfinite(x),
        "isnan": lambda p, x: p.isnan(x),
        "isinf": lambda p, x: p.isinf(x),
        "logical_not": lambda p, x: p.logical_not(x),
    }
    for kernel, function in functions.items():
        for shape in ((), (1,), (7, 5), (0, 3), (2, 1, 129)):
            name = f"{kernel}-{'x'.join(map(str, shape)) or 'scalar'}"
            _add(name, kernel, lambda p, m, f=function, s=shape: f(p, m.floats(*s)))
    for kernel in ("abs", "exp", "silu", "softmax", "scale"):
        for dtype in ("float16", "bfloat16"):
            run = lambda p, m, f=functions[kernel], d=dtype: f(p, m.floats(3, 37, dtype=d))  # noqa: E731
            _add(f"{kernel}-{dtype}", kernel, run, tolerance=1e-2)
    for kernel in ("abs", "scale", "clip"):
        _add(f"{kernel}-int64", kernel, lambda p, m, f=functions[kernel]: f(p, m.integers(3, 11, dtype="int64")))
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0]
    for kernel in ("isfinite", "isnan", "isinf", "clip", "abs", "silu"):
        _add(f"{kernel}-special", kernel, lambda p, m, f=functions[kernel]: f(p, m.tensor(special, "float32")))
    ties = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 126.5, 1e9]
    _add("round-ties-to-even", "round", lambda p, m: p.round(m.tensor(ties, "float32")), expected=lambda m: np.round(ties))
    _add("softmax-masked", "softmax", lambda p, m: p.nn.functional.softmax(m.tensor([[1, -np.inf, 3]], "float32")))
    _add("softmax-middle-axis", "softmax", lambda p, m: p.nn.functional.softmax(m.floats(3, 5, 7), axis=1))


def _binary() -> None:
    functions: dict[str, Callable[[Any, Any, Any], Any]] = {
        "add": lambda p, x, y: x + y,
        "subtract": lambda p, x, y: x - y,
        "multiply": lambda p, x, y: x * y,
        "divide": lambda p, x, y: x / y,
        "maximum": lambda p, x, y: p.maximum(x, y),
        "minimum": lambda p, x, y: p.minimum(x, y),
        "less_than": lambda p, x, y: x < y,
        "less_equal": lambda p, x, y: x <= y,
        "greater_than": lambda p, x, y: x > y,
        "greater_equal": lambda p, x, y: x >= y,
        "equal": lambda p, x, y: x == y,
        "not_equal": lambda p, x, y: x != y,
        "logical_and": lambda p, x, y: p.logical_and(x, y),
        "logical_or": lambda p, x, y: p.logical_or(x, y),
    }
    shapes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
        ((3, 17), (3, 17)),
        ((3, 17), (17,)),
        ((3, 17), (3, 1)),
        ((5, 1, 3), (1, 4, 1)),
        ((), (2, 2)),
        ((0, 3), (3,)),
    )
    for kernel, function in functions.items():
        for index, (left, right) in enumerate(shapes):
            run = lambda p, m, f=function, a=left, b=right: f(p, m.floats(*a), m.floats(*b))  # noqa: E731
            _add(f"{kernel}-shapes{index}", kernel, run)
        for dtype in ("int32", "int64"):
            run = lambda p, m, f=function, d=dtype: f(  # noqa: E731
                p, m.integers(4, 9, dtype=d), m.integers(9, dtype=d, low=1, high=9)
            )
            _add(f"{kernel}-{dtype}", kernel, run)
    for kernel in ("add", "multiply", "divide"):
        run = lambda p, m, f=functions[kernel]: f(p, m.floats(4, 9, dtype="bfloat16"), m.floats(9, dtype="bfloat16"))  # noqa: E731
        _add(f"{kernel}-bfloat16", kernel, run, tolerance=1e-2)
    _add("logical_and-bool", "logical_and", lambda p, m: p.logical_and(m.bools(5, 3), m.bools(3)))
    for dtype in ("uint8", "int8", "int32", "int64"):
        low = 0 if dtype == "uint8" else -100
        _add(
            f"bitwise_and-{dtype}",
            "bitwise_and",
            lambda p, m, d=dtype, a=low: m.integers(5, 7, dtype=d, low=a) & m.integers(7, dtype=d, low=a),
        )
        _add(
            f"bitwise_or-{dtype}",
            "bitwise_or",
            lambda p, m, d=dtype, a=low: m.integers(5, 7, dtype=d, low=a) | m.integers(7, dtype=d, low=a),
        )
        run = lambda p, m, d=dtype, a=low: p.bitwise_right_shift(  # noqa: E731
            m.integers(5, 7, dtype=d, low=a), m.integers(5, 7, dtype=d, low=0, high=7)
        )
        _add(f"bitwise_right_shift-{dtype}", "bitwise_right_shift", run)
    _add("where-broadcast", "where", lambda p, m: p.where(m.bools(4, 1), m.floats(4, 6), m.floats(6)))
    _add(
        "where-int64",
        "where",
        lambda p, m: p.where(m.bools(4, 6), m.integers(4, 6, dtype="int64"), m.integers(4, 6, dtype="int64")),
    )
    _add("where-empty", "where", lambda p, m: p.where(m.bools(0, 6), m.floats(0, 6), m.floats(0, 6)))


def _casts() -> None:
    types = ("float32", "float64", "int32", "int64", "int8", "uint8", "bool")
    for source in types:
        for target in types:
            if source != target:
                run = lambda p, m, s=source, t=target: m.integers(3, 5, dtype=s, low=0).astype(t)  # noqa: E731
                _add(f"cast-{source}-{target}", "cast", run)
    for half in ("float16", "bfloat16"):
        _add(f"cast-float32-{half}", "cast", lambda p, m, h=half: m.floats(5, 9).astype(h))
        _add(f"cast-{half}-float32", "cast", lambda p, m, h=half: m.floats(5, 9, dtype=h).astype("float32"))
    _add("cast-empty", "cast", lambda p, m: m.floats(0, 4).astype("int8"))
    _add(
        "full",
        "full",
        lambda p, m: [p.full([3, 2], 1.5), p.full([], 7, "int64"), p.full([2], True, "bool"), p.full([2], 2**53 + 1, "int64")],
    )
    _add("full_like", "full_like", lambda p, m: [p.ones_like(m.floats(3)), p.full_like(m.integers(2, 2, dtype="uint8"), 15)])
    _add("fill", "fill", lambda p, m: m.floats(3, 4).fill_(2.5))
    _add("pad", "pad", lambda p, m: p.nn.functional.pad(m.floats(3, 5), [0, 0, 0, 11]))
    _add("pad-both", "pad", lambda p, m: p.nn.functional.pad(m.integers(3, 5), [1, 2, 3, 0], value=9))


def _moves() -> None:
    for dtype in ("float32", "int8", "bool", "int64", "bfloat16"):

        def make(m: Maker, *shape: int, d: str = dtype) -> Any:
            return m.floats(*shape, dtype=d) if d.endswith(("16", "32")) else m.integers(*shape, dtype=d, low=0, high=2)

        _add(f"contiguous-{dtype}", "contiguous", lambda p, m, f=make: f(m, 3, 4, 5).transpose([2, 0, 1]).contiguous())
        _add(f"gather-{dtype}", "gather", lambda p, m, f=make: p.gather(f(m, 9, 3), m.tensor([8, 0, 3, 3], "int64")))
        _add(f"concat-{dtype}", "concat", lambda p, m, f=make: p.concat([f(m, 2, 3), f(m, 2, 1), f(m, 2, 4)], axis=-1))
        put = lambda p, m, f=make: p.index_put(f(m, 9, 2, 3), (m.tensor([1, 8], "int64"),), f(m, 2, 2, 3))  # noqa: E731
        _add(f"index_put-{dtype}", "index_put", put)
    _add("contiguous-slice", "contiguous", lambda p, m: m.floats(5, 7)[1:4, ::2].contiguous())
    _add("contiguous-repeated", "contiguous", lambda p, m: p.as_strided(m.floats(12), [3, 4], [2, 1]).contiguous())
    _add("strided_copy", "strided_copy", _write_into_view)
    _add("assign", "assign", lambda p, m: [p.assign(m.floats(3, 5)), p.assign(m.floats(0, 5)), p.assign(m.bools(3))])
    _add("gather-empty", "gather", lambda p, m: p.gather(m.floats(9, 3), m.tensor([], "int64")))
    _add("gather-axis", "gather", lambda p, m: p.gather(m.floats(4, 9, 3), m.tensor([8, 0], "int32"), axis=1))
    _add("concat-first-axis", "concat", lambda p, m: p.concat([m.floats(2, 3), m.floats(0, 3), m.floats(1, 3)], axis=0))
    _add("stack", "stack", lambda p, m: [p.stack([m.floats(2, 3), m.floats(2, 3)], axis=1), p.stack([m.floats(2), m.floats(2)])])
    _add("expand", "expand", lambda p, m: p.expand(m.floats(3, 1), [2, 3, 4]))
    _add("index_select", "index_select", lambda p, m: p.index_select(m.floats(4, 9), m.tensor([8, 8, 1], "int32"), axis=1))
    _add(
        "embedding",
        "embedding",
        lambda p, m: p.nn.functional.embedding(m.integers(2, 3, dtype="int64", low=0, high=9), m.floats(9, 5)),
    )
    embed = lambda p, m: p.nn.functional.embedding(m.tensor([1, 2], "int64"), m.floats(9, 5), padding_idx=2)  # noqa: E731
    _add("embedding-padding", "embedding", embed)
    _add("index_put-one-value", "index_put", lambda p, m: p.index_put(m.floats(9, 4), (m.tensor([1, 8], "int64"),), m.floats(1)))
    _add(
        "index_put-two-axes",
        "index_put",
        lambda p, m: p.index_put(
            m.floats(3, 4, 2), (m.tensor([[0], [2]], "int64"), m.tensor([1, 3], "int64")), m.floats(2, 2, 2)
        ),
    )
    _add(
        "index_put-mask",
        "index_put",
        lambda p, m: p.index_put(m.floats(3, 4), (m.tensor([True, False, True], "bool"),), m.floats(2, 4)),
    )
    _add("index_put-in-place", "index_put", lambda p, m: p.index_put_(m.floats(9, 4), (m.tensor([3], "int64"),), m.floats(1, 4)))
    _add("index_put-nothing", "index_put", lambda p, m: p.index_put(m.floats(9, 4), (m.tensor([], "int64"),), m.floats(0, 4)))
    copies = {"strides": False}
    _add(
        "transpose",
        "transpose",
        lambda p, m: [m.floats(2, 3, 4).transpose([1, 2, 0]), m.floats(0, 3).transpose([1, 0])],
        **copies,
    )
    _add("unsqueeze", "unsqueeze", lambda p, m: m.floats(2, 3).unsqueeze(1), **copies)
    _add("slice", "slice", lambda p, m: [m.floats(5, 7)[1:4, -3:], m.floats(5, 7)[2], m.floats(5, 7)[3:3]], **copies)
    _add("split", "split", lambda p, m: p.split(m.floats(2, 7), [1, 4, 2], axis=-1), **copies)
    _add("split_with_num", "split_with_num", lambda p, m: p.chunk(m.floats(6, 4), 3, axis=0), **copies)


def _write_into_view(p: Any, m: Maker) -> Any:
    whole = m.floats(4, 6)
    p.assign(m.floats(4, 2), whole[:, 2:4])
    return whole


def _reductions() -> None:
    functions: dict[str, Callable[[Any, Any, Any], Any]] = {
        "sum": lambda x, axis, keep: x.sum(axis=axis, keepdim=keep),
        "mean": lambda x, axis, keep: x.mean(axis=axis, keepdim=keep),
        "max": lambda x, axis, keep: x.max(axis=axis, keepdim=keep),
        "min": lambda x, axis, keep: x.min(axis=axis, keepdim=keep),
    }
    for kernel, function in functions.items():
        for axis in (-1, 0, [0, 2], None):
            run = lambda p, m, f=function, a=axis: [f(m.floats(3, 4, 17), a, True), f(m.floats(3, 4, 17), a, False)]  # noqa: E731
            _add(f"{kernel}-{axis}", kernel, run)
    _add(
        "max-nan",
        "max",
        lambda p, m: m.tensor([[1, np.nan, 3], [1, 2, 3]], "float32").max(axis=-1),
        expected=lambda m: np.array([np.nan, 3]),
    )
    for dtype in ("int32", "int64", "bool"):
        _add(f"sum-{dtype}", "sum", lambda p, m, d=dtype: m.integers(3, 5, dtype=d, low=0).sum(axis=0))
    _add("sum-empty", "sum", lambda p, m: [m.floats(0, 3).sum(axis=0), m.floats(3, 0).sum(axis=0)])
    _add("max-int32", "max", lambda p, m: m.integers(3, 5).max(axis=-1))
    _add(
        "all", "all", lambda p, m: [m.bools(3, 5).all(), m.bools(3, 5).all(axis=1), m.tensor([[True, True]], "bool").all(axis=-1)]
    )
    _add(
        "any", "any", lambda p, m: [m.bools(3, 5).any(), m.bools(3, 5).any(axis=0, keepdim=True), m.tensor([False], "bool").any()]
    )
    _add(
        "argmax",
        "argmax",
        lambda p, m: [m.floats(3, 5).argmax(axis=-1), m.floats(3, 5).argmax(), m.floats(3, 5).argmax(axis=0, keepdim=True)],
    )
    _add("argmax-first-of-equals", "argmax", lambda p, m: m.tensor([1, 3, 3, 2], "float32").argmax())


def _products() -> None:
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...], bool, bool]] = {
        "plain": ((5, 19), (19, 7), False, False),
        "one": ((1, 1), (1, 1), False, False),
        "right": ((5, 19), (7, 19), False, True),
        "left": ((19, 5), (19, 7), True, False),
        "both": ((19, 5), (7, 19), True, True),
        "batch": ((2, 3, 5, 9), (2, 3, 9, 4), False, False),
        "batch-broadcast": ((2, 1, 5, 9), (3, 9, 4), False, False),
        "vectors": ((9,), (9,), False, False),
        "vector-matrix": ((9,), (2, 9, 4), False, False),
        "matrix-vector": ((4, 9), (9,), False, False),
        "no-rows": ((0, 9), (9, 4), False, False),
        "no-inputs": ((3, 0), (0, 4), False, False),
    }
    for name, (left, right, turn_left, turn_right) in shapes.items():
        run = lambda p, m, a=left, b=right, x=turn_left, y=turn_right: p.matmul(m.floats(*a), m.floats(*b), x, y)  # noqa: E731
        _add(f"matmul-{name}", "matmul", run)
    for dtype in ("float64", "float16", "bfloat16"):
        run = lambda p, m, d=dtype: p.matmul(m.floats(5, 33, dtype=d), m.floats(7, 33, dtype=d), transpose_y=True)  # noqa: E731
        _add(f"matmul-{dtype}", "matmul", run, tolerance=1e-5 if dtype == "float64" else 2e-2)
    for rows, inputs, outputs in ((1, 16, 16), (5, 37, 3), (3, 1500, 11), (0, 8, 8)):
        _add_int8_product(rows, inputs, outputs)
    for kernel in ("llm_int8_linear", "weight_only_linear"):
        for dtype in ("float32", "float16"):
            _add_quantized(kernel, dtype)
    _add("weight_quantize", "weight_quantize", _quantize, expected=_quantize_expected, tolerance=1e-3)  # scales are float16


def _add_int8_product(rows: int, inputs: int, outputs: int) -> None:
    def made(m: Maker) -> tuple[Any, Any]:
        return m.integers(rows, inputs, dtype="int8", low=-127), m.integers(outputs, inputs, dtype="int8", low=-127)

    def expected(m: Maker) -> Array:
        left, right = (tensor.numpy().astype(np.int32) for tensor in made(m))
        product: Array = left @ right.T
        return product

    run = lambda p, m: p.matmul(*made(m), transpose_y=True)  # noqa: E731
    _add(f"matmul-int8-{rows}x{inputs}x{outputs}", "matmul", run, expected=expected)


def _linear_inputs(m: Maker, dtype: str) -> tuple[Any, Any, Any, Any]:
    weight, scale = m.integers(16, 32, dtype="int8", low=-127, high=128), m.tensor(np.linspace(0.01, 0.05, 16), "float32")
    return m.floats(3, 32, dtype=dtype), weight, m.floats(16, dtype=dtype), scale


def _add_quantized(kernel: str, dtype: str) -> None:
    def run(p: Any, m: Maker) -> Any:
        x, weight, bias, scale = _linear_inputs(m, dtype)
        if kernel == "llm_int8_linear":
            return p.nn.quant.llm_int8_linear(x, weight, bias, scale, 1e30)
        return p.nn.quant.weight_only_linear(x, weight, bias, scale.astype(dtype), "int8")

    def expected(m: Maker) -> Array:
        x, weight, bias, scale = (tensor.astype("float32").numpy() for tensor in _linear_inputs(m, dtype))
        if kernel == "llm_int8_linear":
            step = np.abs(x).max(axis=-1, keepdims=True) / 127
            x = np.round(x / step) * step
        result: Array = x @ weight.T * scale + bias
        return result

    _add(f"{kernel}-{dtype}", kernel, run, expected=expected, tolerance=1e-4 if dtype == "float32" else 5e-3)


def _quantize(p: Any, m: Maker) -> Any:
    return list(p.nn.quant.weight_quantize(m.floats(64, 16, dtype="float16"), algo="llm.int8"))


def _quantize_expected(m: Maker) -> list[Array]:
    values = m.floats(64, 16, dtype="float16").astype("float32").numpy().T
    scale = np.abs(values).max(axis=1) / 127
    return [np.round(values / scale[:, None]), scale]


for _group in (_unary, _binary, _casts, _moves, _reductions, _products):
    _group()

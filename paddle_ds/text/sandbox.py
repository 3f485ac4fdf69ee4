"""The environment untrusted templates run in.

Jinja's sandbox keeps a template from Python's internals; it bounds only ``range``. Here every turn of a loop, every
call and every filter also spends from the :mod:`~paddle_ds.text.budget` of the rendering. Loops, concatenations and
comparisons have no hook in Jinja, so the syntax tree is changed before it is compiled:

    {% for x in xs %}…     becomes   {% for x in xs | _loop(n) %}…
    {{ a ~ b }}            becomes   {{ (a | _checked ~ b | _checked) | _checked }}
    {{ a == b, d[k] }}     becomes   {{ a | _checked == b | _checked, d[k | _checked] }}
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from paddle_ds.text.budget import (
    MAX_ITEMS,
    MAX_WIDTH,
    check_method,
    check_percent,
    check_product,
    check_text,
    check_value,
    held,
    spend,
)

_FILTER_NAMES = """
    abs attr capitalize count d default dictsort e escape first float forceescape format groupby indent int items join
    last length list lower map max min reject rejectattr replace reverse round safe select selectattr sort string
    striptags title trim unique upper wordcount
"""
#: filters and tests that look at their arguments no deeper than one item; all others may write out or compare whole
#: values
_SHALLOW_FILTER_NAMES = """
    attr count d default first items last length list map reject rejectattr reverse select selectattr
"""
_COMPARING_TESTS = "== != < <= > >= eq equalto ne lt lessthan le gt greaterthan ge in"


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with Hugging Face's additions and the budget above. Holds no state of a rendering."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # nothing is worked out while compiling, where no budget runs
            finalize=_finalize,
            extensions=[_GenerationBlock, jinja2.ext.loopcontrols],
        )
        known = {name: self.filters[name] for name in _FILTER_NAMES.split()} | {"tojson": _tojson}
        self.filters = {name: _guarded_filter(name, function) for name, function in known.items()}
        self.filters |= {"_loop": _loop, "_checked": _checked}
        self.tests |= {name: _guarded_test(self.tests[name]) for name in _COMPARING_TESTS.split()}
        self.globals.pop("lipsum", None)
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        guarded = _Guard().visit(tree)
        assert isinstance(guarded, nodes.Template)
        return guarded

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        """Refuse at once; Jinja would give an undefined value, which prints as nothing."""
        raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe")

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Every call of a template: functions, methods, macros, recursive loops."""
        spend()
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, (str, list, tuple, dict, int, float)):
            args = check_method(owner, name, args, kwargs)
        elif not isinstance(obj, (LoopContext, Macro)):
            for value in args:
                check_value(value)
        if isinstance(obj, LoopContext) and args:
            args = (_loop(context, args[0]), *args[1:])
        result = super().call(context, obj, *args, **kwargs)
        if isinstance(result, str):
            spend(len(result))
            check_value(result)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """``*``, ``**``, ``+`` and ``%``, none of which may make something huge."""
        spend()
        if operator == "%" and isinstance(left, str):
            check_percent(left)
            check_value(right)
        elif operator in ("*", "**"):
            check_product(operator, left, right)
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, (list, tuple)) and len(result) > MAX_ITEMS:
            raise SecurityError("a list too long")
        return check_value(result) if isinstance(result, str) else result


@jinja2.pass_context
def _finalize(_context: Context, value: Any) -> Any:
    return check_value(value)


@jinja2.pass_context
def _checked(_context: Context, value: Any) -> Any:
    spend()
    return check_value(value)


@jinja2.pass_context
def _loop(_context: Context, iterable: Iterable[Any], num_text_chars: int = 0) -> Iterator[Any]:
    """The items of a loop, each paid for; ``num_text_chars`` is the literal text in the loop's body."""
    for item in iterable:
        spend(num_text_chars)
        yield item


def _guarded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with its arguments checked, save where it looks at no more than one item of them."""
    if name in _SHALLOW_FILTER_NAMES.split():

        @functools.wraps(function)
        def shallow(*args: Any, **kwargs: Any) -> Any:
            spend()
            return function(*args, **kwargs)

        return shallow

    num_hidden = int(hasattr(function, "jinja_pass_arg"))  # the context or environment comes first

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        spend()
        hidden, values = args[:num_hidden], [check_value(held(value)) for value in args[num_hidden:]]
        if name == "indent" and any(isinstance(value, int) and value > MAX_WIDTH for value in (*values, *kwargs.values())):
            raise SecurityError(f"an indentation of more than {MAX_WIDTH}")
        check_text(name, values, kwargs)
        result = function(*hidden, *values, **kwargs)
        return check_value(result) if isinstance(result, str) else result

    return guarded


def _guarded_test(function: Any) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(*args: Any) -> Any:
        spend()
        return function(*[check_value(value) for value in args])

    return guarded


class _Guard(NodeTransformer):
    """Put the budget into the syntax tree: around what loops run over, and around concatenations (``~``)."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        assert isinstance(node.iter, nodes.Expr)
        num_text_chars = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        node.iter = _call_filter(node.iter, "_loop", [nodes.Const(num_text_chars)])
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        node.nodes = [_check_node(item) for item in node.nodes]
        return _call_filter(node, "_checked", [])

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _check_node(node.expr)
        for operand in node.ops:
            operand.expr = _check_node(operand.expr)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Pair:
        self.generic_visit(node)
        node.key = _check_node(node.key)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            node.arg = _check_node(node.arg)
        return node


def _check_node(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _call_filter(node, "_checked", [])


def _call_filter(node: nodes.Expr, name: str, args: list[nodes.Expr]) -> nodes.Filter:
    call = nodes.Filter(node, name, args, [], None, None, lineno=node.lineno)
    return call.set_environment(node.environment) if node.environment is not None else call  # type: ignore[return-value]


class _GenerationBlock(Extension):
    """``{% generation %}…{% endgeneration %}`` marks the assistant's tokens for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it: not HTML-escaped, non-ASCII text as it is."""
    if isinstance(indent, int) and indent > 100:
        raise SecurityError("JSON indented by more than 100")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(str(message))


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 1000:
        raise SecurityError("a date format of more than 1000 characters")
    return datetime.datetime.now().strftime(pattern)

"""The passport's page: complete, self-contained, and safe whatever a model is called."""

from __future__ import annotations

import dataclasses
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from paddle_ds_slim.passport.charts import Point, histogram, scatter
from paddle_ds_slim.passport.html import page, verdict, write_html
from paddle_ds_slim.passport.record import Change, GateRecord, Greedy, Model, Pair, Passport, Ratio
from paddle_ds_slim.passport.table import print_passport
from slim.passports import make_passport

NASTY = "<script>alert('x')</script>&\"'"
VOID = {"meta", "br", "link"}


class Checker(HTMLParser):
    """Notes tags that close another one than the last that was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.wrong: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    assert (checker.wrong, checker.open) == ([], [])
    return checker


def failed() -> Passport:
    gate = GateRecord(
        False, {"max_kl": 0.001}, {"max_kl": 0.004}, ("the mean KL divergence is 0.004",), ({"layer": NASTY, "after": "dense"},)
    )
    return make_passport(gate=gate, greedy=Greedy(16, 64, 40.4, 44.0, 0.5), quantization={"recipe": {"name": NASTY}})


def alone() -> Passport:
    nothing: dict[str, Any] = dict.fromkeys(("reference", "kl", "top1_agreement", "greedy", "reasoning", "decode_tokens_per_s"))
    return make_passport(loss={"wiki": Change.of(None, 2.0)}, perplexity={"wiki": Change.of(None, 7.4)}, tasks={}, layers=(),
                         bytes=Ratio.of(None, 10), load_s=Pair(None, 1.0), **nothing)  # fmt: skip


@pytest.mark.parametrize("passport", [make_passport(), failed(), alone()], ids=["plain", "failed", "alone"])
def test_the_page_is_whole_and_needs_nothing_beside_it(passport: Passport) -> None:
    text = page(passport)
    checker = checked(text)
    assert checker.addresses == []
    assert checker.tags & {"script", "link", "img", "iframe", "object"} == set()
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_charts_are_well_formed_and_have_a_mark_for_each_figure() -> None:
    charts = re.findall(r"<svg.*?</svg>", page(make_passport()), re.DOTALL)
    layers, divergences = (ElementTree.fromstring(chart) for chart in charts)
    assert len(layers.findall("circle")) == 5  # three layers, one of them without an error of its output
    assert "lm_head (w8a8): weight error 0.006" in [title.text for title in layers.iter("title")]
    heights = [float(bar.attrib["height"]) for bar in divergences.findall("rect")]
    assert [height / heights[1] for height in heights] == pytest.approx([20 / 70, 1, 10 / 70], abs=1e-3)


@pytest.mark.parametrize("field", ["name", "format", "quant"])
def test_strings_of_a_model_are_text_and_nothing_else(field: str) -> None:
    model = dataclasses.replace(Model("a", "b", "c", "d"), **{field: NASTY})
    passport = make_passport(quantized=model, loss={"wiki": Change.of(1.0, 1.0)}, versions={"paddle_ds": NASTY})
    text = page(passport)
    assert "script" not in checked(text).tags
    assert "&lt;script&gt;" in text
    assert "script" not in checked(page(failed())).tags


def test_the_verdict_comes_first() -> None:
    assert verdict(make_passport()) == "No budgets were set"
    assert verdict(failed()) == "Over its budget"
    held = make_passport(gate=GateRecord(True, {"max_kl": 0.01}, {"max_kl": 0.004}))
    assert verdict(held) == "Within its budgets"
    repaired = dataclasses.replace(held.gate, steps=({"layer": "a"}, {"layer": "b"}))
    assert verdict(make_passport(gate=repaired)) == "Within its budgets, after 2 layers were moved to a higher precision"
    text = page(failed())
    assert text.index("class='verdict bad'") < text.index("<section>")
    assert "the mean KL divergence is 0.004" in text


def test_figures_that_are_no_numbers_are_shown_as_unknown() -> None:
    kl = dataclasses.replace(make_passport().kl, mean=math.nan, max=math.inf)  # type: ignore[type-var]
    layers = tuple(dataclasses.replace(layer, weight_error=math.inf, output_error=math.nan) for layer in make_passport().layers)
    text = page(make_passport(kl=kl, loss={"wiki": Change.of(1.0, math.nan)}, layers=layers))
    checked(text)
    assert re.search(r"\bnan\b", text, re.IGNORECASE) is None


def test_charts_of_nothing_are_drawn() -> None:
    for chart in (
        scatter([], 0, [], "empty"),
        histogram([1.0], [0, 0], "empty", "nats"),
        scatter([Point(0, 0.0, "a", "b")], 1, [], ""),
    ):
        ElementTree.fromstring(chart)


def test_the_page_is_written_whole(tmp_path: Path) -> None:
    write_html(make_passport(), tmp_path / "passport.html")
    assert (tmp_path / "passport.html").read_text(encoding="utf-8") == page(make_passport())
    assert [path.name for path in tmp_path.iterdir()] == ["passport.html"]


@pytest.mark.parametrize("passport", [make_passport(), failed(), alone()], ids=["plain", "failed", "alone"])
def test_the_table_has_the_figures_and_ends_with_the_verdict(passport: Passport) -> None:
    printed = io.StringIO()
    print_passport(passport, Console(file=printed, width=160, markup=False))
    text = printed.getvalue()
    assert "loss wiki" in text
    assert ("KL divergence, nats" in text) == (passport.kl is not None)
    assert ("reference" in text) == (passport.reference is not None)
    assert text.rstrip().endswith((*passport.gate.complaints, verdict(passport)))

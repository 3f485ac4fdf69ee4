"""The table in the docstring of ``paddle_ds.config.recipe``, row by row."""

from __future__ import annotations

from typing import get_args

import pytest

from paddle_ds.config.engine import Quant
from paddle_ds.config.recipe import Recipe, Scheme

#: asked, whether the checkpoint is INT8 -> scheme of: an INT8 linear, a floating one, an ignored one, a tied head
TABLE: list[tuple[Quant, bool, tuple[Scheme | None, Scheme, Scheme, Scheme]]] = [
    ("none", False, (None, "dense", "dense", "dense")),
    ("none", True, ("dense", "dense", "dense", "dense")),
    ("w8a8", False, (None, "w8a8", "dense", "w8a8")),
    ("w8a8", True, ("w8a8", "w8a8", "dense", "w8a8")),
    ("w8a16", False, (None, "w8a16", "dense", "w8a16")),
    ("w8a16", True, ("w8a16", "w8a16", "dense", "w8a16")),
    ("auto", False, (None, "w8a8", "dense", "w8a8")),
    ("auto", True, ("w8a8", "dense", "dense", "dense")),
]


def test_the_table_is_whole() -> None:
    assert {asked for asked, _, _ in TABLE} == set(get_args(Quant))


@pytest.mark.parametrize(("asked", "stored_int8", "schemes"), TABLE)
def test_scheme(asked: Quant, stored_int8: bool, schemes: tuple[Scheme | None, ...]) -> None:
    recipe = Recipe(asked, {"layer": "w8a8"} if stored_int8 else {}, frozenset({"left.alone"}))
    quantised, floating, ignored, head = schemes
    assert quantised is None or recipe.scheme("layer") == quantised
    assert recipe.scheme("floating") == floating
    assert recipe.scheme("left.alone") == ignored
    assert recipe.scheme("lm_head") == head


def test_a_head_the_author_left_alone_stays_floating() -> None:
    assert Recipe("w8a8", {"layer": "w8a8"}, frozenset({"lm_head"})).scheme("lm_head") == "dense"


@pytest.mark.parametrize(("asked", "name"), [("auto", "w8a8"), ("w8a8", "w8a8"), ("w8a16", "w8a16"), ("none", "none")])
def test_name_of_what_runs(asked: Quant, name: str) -> None:
    assert Recipe(asked).name == name

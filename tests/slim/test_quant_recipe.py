"""Recipes as data: what comes along, patterns, overlays, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints import makers
from paddle_ds.config.model import ModelConfig
from paddle_ds.errors import RecipeError
from paddle_ds_slim.recipe import Gptq, KvCache, Smooth, load_recipe, recipe_names

MODEL = ModelConfig.from_dict(makers.config_json())
TIED = ModelConfig.from_dict(makers.config_json(tie_word_embeddings=True))
RULES = "layers: [{match: ['*'], scheme: w8a8}]\n"


def written(path: Path, text: str) -> Path:
    path.write_text("name: own\ndescription: mine\n" + text)
    return path


@pytest.mark.parametrize("name", [name for name in recipe_names() if not name.startswith("kv8")])
@pytest.mark.parametrize("model", [MODEL, TIED], ids=["untied", "tied"])
def test_every_recipe_that_comes_along_fits_a_model(name: str, model: ModelConfig) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    schemes = recipe.schemes(model)
    assert len(schemes) == 7 * model.num_layers + 1
    assert schemes["model.layers.1.mlp.down_proj"] == name[: name.index("-")]
    assert (schemes["lm_head"] == "dense") is model.tie_word_embeddings
    assert recipe.gate.max_kl is not None


def test_the_recipes_of_the_issue_are_there() -> None:
    wanted = {"w8a8-rtn", "w8a8-smooth", "w8a8-shift-smooth", "w8a8-autoclip", "w8a8-gptq", "w8a8-qat", "w8a16-rtn"}
    assert wanted | {"w4a16-gptq", "w4a16-awq", "kv8-dynamic", "kv8-static"} <= set(recipe_names())


def test_an_overlay_lies_over_any_recipe() -> None:
    recipe = load_recipe("w4a16-gptq+kv8-static")
    assert recipe.name == "w4a16-gptq+kv8-static"
    assert recipe.kv_cache == KvCache("static", "absmax")
    assert recipe.steps == load_recipe("w4a16-gptq").steps


def test_the_first_rule_that_a_layer_meets_decides(tmp_path: Path) -> None:
    text = (
        "layers:\n- {match: ['re:model\\.layers\\.[01]\\.mlp\\.down_proj'], scheme: w8a16}\n"
        "- {match: ['model.layers.1.*'], scheme: w4a16}\n- {match: ['*'], scheme: w8a8}\nsteps: [{step: nearest}]\n"
    )
    schemes = load_recipe(written(tmp_path / "own.yaml", text)).schemes(MODEL)
    assert schemes["model.layers.1.mlp.down_proj"] == "w8a16"
    assert schemes["model.layers.1.mlp.up_proj"] == "w4a16"
    assert schemes["lm_head"] == "w8a8"


def test_steps_have_their_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path / "own.yaml", RULES + "steps: [{step: smooth, alphas: [0.5]}, {step: gptq}]\n"))
    assert recipe.steps == (Smooth((0.5,)), Gptq())
    assert recipe.needs_data()


def test_a_recipe_of_nearest_alone_needs_no_text(tmp_path: Path) -> None:
    assert not load_recipe(written(tmp_path / "own.yaml", RULES + "steps: [{step: nearest}]\n")).needs_data()


WRONG = {
    "unknown key": (RULES + "steps: [{step: nearest}]\nsmoothing: 1\n", "unknown field `smoothing`"),
    "unknown step": (RULES + "steps: [{step: magic}]\n", "magic"),
    "unknown key of a step": (RULES + "steps: [{step: smooth, alpha: 0.5}, {step: nearest}]\n", "unknown field `alpha`"),
    "wrong type": (RULES + "steps: [{step: smooth, alphas: high}, {step: nearest}]\n", r"steps\[0\].alphas"),
    "alpha above 1": (RULES + "steps: [{step: smooth, alphas: [1.5]}, {step: nearest}]\n", "numbers from 0 to 1"),
    "no rounding": (RULES + "steps: [{step: smooth}]\n", "must end with one of nearest and gptq"),
    "two roundings": (RULES + "steps: [{step: nearest}, {step: gptq}]\n", "must end with one of nearest and gptq"),
    "qat first": (RULES + "steps: [{step: qat}, {step: qat}, {step: nearest}]\n", "qat must be the step before the last"),
    "no steps": (RULES, "missing required field `steps`"),
    "scheme": ("layers: [{match: ['*'], scheme: w2a2}]\nsteps: [{step: nearest}]\n", "w2a2"),
    "expression": ("layers: [{match: ['re:('], scheme: w8a8}]\nsteps: [{step: nearest}]\n", "not a regular expression"),
    "group of one": (RULES + "steps: [{step: nearest}]\nweights: {group_size: 1}\n", "group_size is 1"),
    "no tokens": (RULES + "steps: [{step: nearest}]\ncalibration: {sequence_tokens: 0}\n", "sequence_tokens is 0"),
    "smooth after clip": (RULES + "steps: [{step: clip}, {step: smooth}, {step: nearest}]\n", "must stand before all other"),
    "clip before qat": (RULES + "steps: [{step: clip}, {step: qat}, {step: nearest}]\n", "leave one of them out"),
    "groups of 8 bits": (RULES + "steps: [{step: nearest}]\nweights: {group_size: 64}\n", "only w4a16 has groups"),
    "observer of dynamic scales": (RULES + "steps: [{step: nearest}]\nkv_cache: {observer: kl}\n", "is for static scales"),
    "kept share": (RULES + "steps: [{step: nearest}]\ngate: {max_kept_share: 5}\n", "max_kept_share is 5"),
    "not YAML": (RULES + "steps: [{\n", "cannot be read as YAML"),
    "a list": ("", "missing required field"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_recipe_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(written(tmp_path / "own.yaml", text))


def test_a_pattern_that_meets_nothing_is_an_error(tmp_path: Path) -> None:
    text = "layers: [{match: ['model.layers.9.*'], scheme: w8a16}, {match: ['*'], scheme: w8a8}]\nsteps: [{step: nearest}]\n"
    with pytest.raises(RecipeError, match=r"'model.layers.9.\*' meets no linear layer; they are model.layers.0.self_attn.q_proj"):
        load_recipe(written(tmp_path / "own.yaml", text)).schemes(MODEL)


def test_a_rule_that_others_leave_nothing_to_is_an_error(tmp_path: Path) -> None:
    text = "layers: [{match: ['*'], scheme: w8a8}, {match: ['*.down_proj'], scheme: dense}]\nsteps: [{step: nearest}]\n"
    with pytest.raises(RecipeError, match=r"rule '\*.down_proj' decides nothing"):
        load_recipe(written(tmp_path / "own.yaml", text)).schemes(MODEL)


def test_a_layer_without_a_rule_is_an_error(tmp_path: Path) -> None:
    text = "layers: [{match: ['model.layers.*'], scheme: w8a8}]\nsteps: [{step: nearest}]\n"
    with pytest.raises(RecipeError, match="no rule for layer 'lm_head'"):
        load_recipe(written(tmp_path / "own.yaml", text)).schemes(MODEL)


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(RecipeError, match=r"w8a8-magic: no such recipe; have: .*w8a8-smooth"):
        load_recipe("w8a8-magic")


def test_an_overlay_alone_says_what_it_needs() -> None:
    with pytest.raises(RecipeError, match=r"an overlay needs a recipe under it"):
        load_recipe("kv8-static")

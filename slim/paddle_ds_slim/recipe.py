"""Recipes: how a model is quantised, as data. ``slim/recipes/*.yaml`` are the ones that come along; a path names one's own.

    name: w8a8-smooth
    layers:                       the first rule that a linear layer meets decides; each rule must meet one
      - {match: ["model.layers.*"], scheme: w8a8}
      - {match: [lm_head], scheme: w8a8}
    steps:                        in this order, layer by layer; the last one rounds
      - {step: smooth, alphas: [0.4, 0.5, 0.6]}
      - {step: nearest}
    gate: {max_kl: 0.05}

A pattern is a layer's name, a glob, or ``re:`` and an expression for the whole name. ``w8a8-smooth+kv8-static`` lays one recipe
over another: what the second one says wins.
"""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from paddle_ds.config.model import ModelConfig
from paddle_ds.config.recipe import Scheme
from paddle_ds.config.tensors import Role, model_specs
from paddle_ds.errors import RecipeError

#: neighbours between which a factor (or shift) per channel can be moved without changing the function
Pair = Literal["norm-qkv", "value-output", "norm-mlp", "up-down"]
ALL_PAIRS: tuple[Pair, ...] = ("norm-qkv", "value-output", "norm-mlp", "up-down")
#: what decides the range of a weight (or of keys and values); the ones after the first are PaddleSlim's and Paddle's
Observer = Literal["absmax", "mse"]
KvObserver = Literal["absmax", "avg", "mse", "emd", "kl", "hist"]
#: the recipe of an 8-bit or 4-bit layer, then what the gate may move it to
REPAIRS: Mapping[Scheme, tuple[Scheme, ...]] = {"w4a16": ("w8a16", "dense"), "w8a8": ("w8a16", "dense"), "w8a16": ("dense",)}


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Unknown keys are errors."""


class Rule(_Record, frozen=True):
    """The scheme of some linear layers."""

    match: tuple[str, ...]
    scheme: Scheme


class Weights(_Record, frozen=True):
    """How weights are rounded. ``group_size`` counts inputs that share a scale; ``None``: one scale an output channel."""

    group_size: int | None = None
    observer: Observer = "absmax"


class Calibration(_Record, frozen=True):
    """How much text is run through the model."""

    num_sequences: int = 32
    sequence_tokens: int = 512


class Smooth(_Record, frozen=True, tag_field="step", tag="smooth"):
    """SmoothQuant (arXiv 2211.10438) with the best of several ``alphas`` for each pair, by the error of quantised outputs."""

    alphas: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    pairs: tuple[Pair, ...] = ALL_PAIRS
    #: tokens on which an ``alpha`` is tried
    search_tokens: int = 512
    #: share of the error that must go for a pair to be folded; 0: any gain will do
    min_gain: float = 0.0
    #: also try what PaddleSlim's ``PieceWiseSearch`` finds with so many clusters of channels; 0: do not
    piecewise: int = 0


class Shift(_Record, frozen=True, tag_field="step", tag="shift"):
    """Outlier Suppression+ (arXiv 2304.09145): values are centred per channel before they reach the output projection."""


class Awq(_Record, frozen=True, tag_field="step", tag="awq"):
    """AWQ (arXiv 2306.00978): weights of inputs that are large on average are scaled up before rounding."""

    num_ratios: int = 20
    pairs: tuple[Pair, ...] = ALL_PAIRS
    search_tokens: int = 512


class Clip(_Record, frozen=True, tag_field="step", tag="clip"):
    """The range of each output channel (or group) is cut by the ratio that gives the least error of its output."""

    ratios: tuple[float, ...] = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)
    search_tokens: int = 512


class Qat(_Record, frozen=True, tag_field="step", tag="qat"):
    """The whole model is trained with quantisation in the loop, after the steps before this one."""

    steps: int = 60
    learning_rate: float = 1e-5
    batch_sequences: int = 4


class Nearest(_Record, frozen=True, tag_field="step", tag="nearest"):
    """Every weight goes to the nearest integer."""


class Gptq(_Record, frozen=True, tag_field="step", tag="gptq"):
    """GPTQ (arXiv 2210.17323): what rounding one column does wrong, the columns after it make good."""

    damping: float = 0.01
    #: columns with large inputs first; the groups stay contiguous, so that no index is stored
    act_order: bool = True
    block_columns: int = 128


Step = Smooth | Shift | Awq | Clip | Qat | Nearest | Gptq


class KvCache(_Record, frozen=True):
    """INT8 keys and values: scales found token by token, or fixed by calibration."""

    scales: Literal["dynamic", "static"] = "dynamic"
    observer: KvObserver = "absmax"


class Gate(_Record, frozen=True):
    """Budgets. ``None``: not asked. Shares and increases are relative: 0.01 is one per cent."""

    max_kl: float | None = None
    max_ppl_increase: float | None = None
    max_task_drop: float | None = None
    #: of the weights of linear layers that repairs may move to a higher precision; beyond it the model is refused
    max_kept_share: float = 0.25

    def is_open(self) -> bool:
        return self.max_kl is None and self.max_ppl_increase is None and self.max_task_drop is None


class QuantRecipe(_Record, frozen=True):
    """See the module's text."""

    name: str
    description: str
    layers: tuple[Rule, ...]
    steps: tuple[Step, ...]
    weights: Weights = Weights()
    calibration: Calibration = Calibration()
    #: what the next layer reads while calibrating: outputs of the float layer, or of the quantised one
    propagate: Literal["float", "quantized"] = "float"
    kv_cache: KvCache | None = None
    gate: Gate = Gate()

    def needs_data(self) -> bool:
        """Whether a step (or fixed scales of the cache) looks at activations."""
        is_static = self.kv_cache is not None and self.kv_cache.scales == "static"
        return is_static or any(not isinstance(step, Nearest) for step in self.steps)

    def schemes(self, model: ModelConfig) -> dict[str, Scheme]:
        """Linear layer -> scheme, in the order of a forward pass; a tied head is ``dense``, since it is the embedding.

        Raises:
            RecipeError: a pattern meets no layer, or a layer meets no rule.
        """
        names = [spec.name.removesuffix(".weight") for spec in model_specs(model) if spec.role in (Role.LINEAR, Role.HEAD)]
        names += ["lm_head"] if model.tie_word_embeddings else []
        for rule in self.layers:
            for pattern in rule.match:
                if not any(_meets(name, pattern) for name in names):
                    layers = f"{names[0]}, {names[1]} … {names[-1]}"
                    raise RecipeError(f"recipe {self.name}: pattern '{pattern}' meets no linear layer; they are {layers}")
        deciding = {name: self._rule(name) for name in names}
        for rule in self.layers:
            if rule not in deciding.values():
                patterns = ", ".join(rule.match)
                raise RecipeError(f"recipe {self.name}: rule '{patterns}' decides nothing; rules before it take all its layers")
        schemes = {name: rule.scheme for name, rule in deciding.items()}
        if model.tie_word_embeddings:
            schemes["lm_head"] = "dense"
        return schemes

    def _rule(self, name: str) -> Rule:
        for rule in self.layers:
            if any(_meets(name, pattern) for pattern in rule.match):
                return rule
        raise RecipeError(f"recipe {self.name}: no rule for layer '{name}'; add one with scheme dense to leave it alone")


def _meets(name: str, pattern: str) -> bool:
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return fnmatch.fnmatchcase(name, pattern)


def recipe_directory() -> Path:
    """Where the recipes that come along lie: inside the installed package, beside it in a checkout."""
    here = Path(__file__).resolve().parent
    inside = here / "recipes"
    return inside if inside.is_dir() else here.parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that come along, overlays last."""
    names = sorted(path.stem for path in recipe_directory().glob("*.yaml"))
    return [name for name in names if not name.startswith("kv8")] + [name for name in names if name.startswith("kv8")]


def load_recipe(name: str | Path) -> QuantRecipe:
    """The recipe called ``name`` (or in that YAML file), with overlays joined by ``+``.

    Raises:
        RecipeError: no such recipe, unreadable, an unknown key, a value of the wrong type, steps that cannot follow each other.
    """
    raw: dict[str, Any] = {}
    parts = str(name).split("+")
    for part in parts:
        raw |= _read(part)
    raw["name"] = "+".join(_stem(part) for part in parts)
    try:
        recipe = msgspec.convert(raw, QuantRecipe)
    except msgspec.ValidationError as error:
        missing = (
            " (an overlay needs a recipe under it: w8a8-smooth+kv8-static)" if "missing required field" in str(error) else ""
        )
        raise RecipeError(f"recipe {name}: {error}{missing}") from error
    _check(recipe)
    return recipe


def _read(part: str) -> dict[str, Any]:
    is_file = part.endswith((".yaml", ".yml")) or "/" in part
    path = Path(part).expanduser() if is_file else recipe_directory() / f"{part}.yaml"
    if not path.is_file():
        raise RecipeError(f"{part}: no such recipe; have: {', '.join(recipe_names())}, or the path of a YAML file")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: expected a mapping, found {type(raw).__name__}")
    return raw


def _stem(part: str) -> str:
    return Path(part).stem if part.endswith((".yaml", ".yml")) else part


def _check(recipe: QuantRecipe) -> None:
    where = f"recipe {recipe.name}"
    kinds = [type(step) for step in recipe.steps]
    rounding = [kind for kind in kinds if kind in (Nearest, Gptq)]
    if len(rounding) != 1 or kinds[-1] is not rounding[0]:
        raise RecipeError(f"{where}: steps must end with one of nearest and gptq, and have no other of them")
    order = [0 if kind in (Smooth, Shift, Awq) else 1 for kind in kinds]
    if order != sorted(order):
        raise RecipeError(f"{where}: smooth, shift and awq change weights, so they must stand before all other steps")
    if Qat in kinds and Clip in kinds:
        raise RecipeError(f"{where}: qat changes the weights that clip chose ranges for; leave one of them out")
    if kinds.count(Qat) > 1 or (Qat in kinds and kinds[-2] is not Qat):
        raise RecipeError(f"{where}: qat must be the step before the last")
    for rule in recipe.layers:
        for pattern in rule.match:
            _check_expression(pattern, where)
    size = recipe.weights.group_size
    if size is not None and size < 2:
        raise RecipeError(f"{where}: weights.group_size is {size}; expected at least 2, or null for one scale an output channel")
    schemes = {rule.scheme for rule in recipe.layers}
    if size is not None and "w4a16" not in schemes:
        raise RecipeError(f"{where}: weights.group_size is {size}, but only w4a16 has groups, and no rule has it")
    if recipe.weights.observer != "absmax" and "w4a16" in schemes:
        raise RecipeError(f"{where}: weights.observer {recipe.weights.observer} is for 8 bits; for w4a16 there is the step clip")
    if recipe.kv_cache is not None and recipe.kv_cache.scales == "dynamic" and recipe.kv_cache.observer != "absmax":
        raise RecipeError(f"{where}: kv_cache.observer is for static scales; dynamic ones are each token's largest magnitude")
    if not 0 < recipe.gate.max_kept_share <= 1:
        raise RecipeError(f"{where}: gate.max_kept_share is {recipe.gate.max_kept_share}; expected a number above 0 and up to 1")
    for name, value in _numbers(recipe):
        if not 0 < value < sys.maxsize:
            raise RecipeError(f"{where}: {name} is {value}; expected a number above 0")
    for step in recipe.steps:
        if isinstance(step, Smooth) and not 0 <= step.min_gain < 1:
            raise RecipeError(f"{where}: smooth: min_gain is {step.min_gain}; expected 0 up to (but not) 1")
        if isinstance(step, Smooth) and step.piecewise < 0:
            raise RecipeError(f"{where}: smooth: piecewise is {step.piecewise}; expected 0, or a number of clusters")
        if isinstance(step, Smooth) and (not step.alphas or not all(0 <= alpha <= 1 for alpha in step.alphas)):
            raise RecipeError(f"{where}: smooth: alphas is {list(step.alphas)}; expected some numbers from 0 to 1")
        if isinstance(step, Clip) and (not step.ratios or not all(0 < ratio <= 1 for ratio in step.ratios)):
            raise RecipeError(f"{where}: clip: ratios is {list(step.ratios)}; expected some numbers above 0 and up to 1")


def _check_expression(pattern: str, where: str) -> None:
    if pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except re.error as error:
            raise RecipeError(f"{where}: {pattern!r} is not a regular expression: {error}") from error


def _numbers(recipe: QuantRecipe) -> Iterable[tuple[str, float]]:
    yield "calibration.num_sequences", recipe.calibration.num_sequences
    yield "calibration.sequence_tokens", recipe.calibration.sequence_tokens
    for name in ("max_kl", "max_ppl_increase", "max_task_drop"):
        value = getattr(recipe.gate, name)
        if value is not None:
            yield f"gate.{name}", value
    for step in recipe.steps:
        for name in ("search_tokens", "num_ratios", "block_columns", "damping", "steps", "learning_rate", "batch_sequences"):
            if hasattr(step, name):
                yield f"{type(step).__name__.lower()}.{name}", getattr(step, name)

"""The gate on a model with planted outliers: nearest rounding is refused, repairs are recorded, smoothing passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from planted import plant_outliers

from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.engine.assets import EMBEDDED_MODEL
from paddle_ds.errors import QualityGateError
from paddle_ds_slim.calibrating import CalibrationSource
from paddle_ds_slim.passport import EvalConfig
from paddle_ds_slim.quantize import quantize
from paddle_ds_slim.recipe import Gate, load_recipe

QUICK = EvalConfig(tasks={}, max_tokens_per_text=400, greedy_prompts=0, speed_tokens=0, layer_tokens=16)
BUDGET = 0.005


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_outliers(EMBEDDED_MODEL, tmp_path_factory.mktemp("planted") / "model")


def run(source: Path, out: Path, recipe: str, gate: Gate) -> Any:
    wanted = msgspec.structs.replace(load_recipe(recipe), gate=gate)
    return quantize(source, out, wanted, calibration=CalibrationSource(self_generate=48), evaluation=QUICK, gate=gate)


def test_nearest_rounding_is_refused_and_nothing_is_written(planted: Path, tmp_path: Path) -> None:
    with pytest.raises(
        QualityGateError, match=r"KL divergence is .* max_kl allows 0.005.*Layers moved: .*Nothing was written"
    ) as caught:
        run(planted, tmp_path / "out", "w8a8-rtn", Gate(max_kl=BUDGET, max_kept_share=0.02))
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()


def test_smoothing_passes_without_a_repair(planted: Path, tmp_path: Path) -> None:
    done = run(planted, tmp_path / "out", "w8a8-smooth", Gate(max_kl=BUDGET))
    assert done.passport.gate.passed
    assert done.passport.gate.steps == ()
    assert done.passport.kl.mean < BUDGET
    written = json.loads((tmp_path / "out" / "passport.json").read_text())
    assert written["gate"]["budgets"] == {"max_kl": BUDGET}
    assert written["quantization"]["recipe"]["name"] == "w8a8-smooth"
    assert written["quantization"]["fold_error"] < 1e-4


def test_nearest_rounding_is_repaired_layer_by_layer(planted: Path, tmp_path: Path) -> None:
    done = run(planted, tmp_path / "out", "w8a8-rtn", Gate(max_kl=BUDGET, max_kept_share=1.0))
    steps = done.passport.gate.steps
    assert steps
    assert done.passport.gate.values["max_kl"] <= BUDGET < steps[0]["values"]["max_kl"]
    errors = [step["output_error"] for step in steps]
    assert errors == sorted(errors, reverse=True), "the worst layer goes first"
    with open_checkpoint(tmp_path / "out") as written:
        schemes = written.schemes()
    moved = {name for step in steps for name in (step["layer"], *step["beside"])}
    assert all(schemes.get(name, "dense") != "w8a8" for name in moved)
    assert {schemes[name] for name in set(schemes) - moved} == {"w8a8"}
    for index in range(4):  # other engines hold q, k and v as one layer
        assert len({schemes.get(f"model.layers.{index}.self_attn.{name}_proj") for name in "qkv"}) == 1


def test_a_budget_that_nothing_was_measured_for_is_no_pass(tmp_path: Path) -> None:
    with pytest.raises(QualityGateError, match=r"was not measured; max_task_drop allows 0.1; name a text or a task"):
        run(EMBEDDED_MODEL, tmp_path / "out", "w8a8-rtn", Gate(max_task_drop=0.1))
    assert not (tmp_path / "out").exists()


def test_a_model_that_would_be_left_without_a_quantised_layer_is_refused(planted: Path, tmp_path: Path) -> None:
    """Written without integers, it would be rounded when it is loaded, unseen by the gate."""
    with pytest.raises(QualityGateError, match=r"no layer would be left quantised|none is left"):
        run(planted, tmp_path / "out", "w8a8-rtn", Gate(max_kl=1e-12, max_kept_share=1.0))
    assert not (tmp_path / "out").exists()


def test_the_recipes_task_budget_falls_away_for_a_model_without_questions(tmp_path: Path) -> None:
    gate = Gate(max_kl=1.0, max_task_drop=0.1)
    wanted = msgspec.structs.replace(load_recipe("w8a8-rtn"), gate=gate)
    done = quantize(EMBEDDED_MODEL, tmp_path / "out", wanted, calibration=CalibrationSource(self_generate=32), evaluation=QUICK)
    assert set(done.passport.gate.budgets) == {"max_kl"}


def test_an_open_gate_lets_everything_through(planted: Path, tmp_path: Path) -> None:
    done = run(planted, tmp_path / "out", "w8a8-rtn", Gate())
    assert done.passport.gate.passed
    assert done.passport.kl.mean > BUDGET

"""A loaded model says what its products run on: to Python, in the log, and to the workers."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from checkpoints import makers
from paddle_ds import LLM
from paddle_ds.config.engine import EngineConfig
from paddle_ds.engine.announcer import model_info
from paddle_ds.engine.assets import resolve_model
from paddle_ds.errors import UnsupportedError
from paddle_ds.kernels import native
from paddle_ds.kernels.products import Compiled

pytestmark = pytest.mark.skipif(native.why_unavailable() is not None, reason=str(native.why_unavailable()))

#: outputs that fill oneDNN's groups of columns, but for the head's
SHAPE = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 1100}


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[dict[str, dict[str, Any]]]:
    """Event -> fields of its last line."""
    seen: dict[str, dict[str, Any]] = {}

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen[record.getMessage()] = vars(record).get("paddle_ds_fields", {})

    logger, keep = logging.getLogger("paddle_ds"), Keep()
    with caplog.at_level(logging.INFO, "paddle_ds"):
        logger.addHandler(keep)
        yield seen
        logger.removeHandler(keep)


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """A model with a head that oneDNN does not take."""
    config = makers.config_json(**SHAPE)
    path = makers.write_hf(tmp_path / "uneven", config, makers.random_tensors(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(resolve_model(EngineConfig())) / name, path)
    return path


def test_the_embedded_model_runs_on_one_implementation(log: dict[str, dict[str, Any]]) -> None:
    loaded = LLM(num_threads=1, strict=True).loaded
    here = Compiled.here()
    assert loaded.int8_products == {here.best_product: 4 * 4 + 1}  # four layers of four products, and the head
    assert loaded.compiled == here
    assert log["model.loaded"]["int8_products"] == loaded.int8_products
    assert log["model.loaded"]["vector_isa"] == here.vector_isa
    info = model_info(loaded)
    assert (info.int8_products, info.vector_isa) == (loaded.int8_products, here.vector_isa)
    assert (info.onednn_version, info.isa_caps) == (here.onednn_version, {})


def test_a_cap_is_in_the_log_line(log: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    LLM(num_threads=1)
    assert "isa_caps" not in log["model.loaded"]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # too late for oneDNN, which reads it once
    loaded = LLM(num_threads=1).loaded
    assert log["model.loaded"]["isa_caps"] == model_info(loaded).isa_caps == {"ONEDNN_MAX_CPU_ISA": "AVX2"}


@pytest.mark.skipif(native.why_unavailable() is None and Compiled.here().best_product.startswith("own:"), reason="no VNNI here")
def test_a_layer_that_onednn_does_not_take_is_said_and_refused_when_strict(uneven: Path, log: dict[str, dict[str, Any]]) -> None:
    loaded = LLM(str(uneven), quant="w8a8", num_threads=1).loaded
    here = Compiled.here()
    assert loaded.int8_products == {here.best_product: 2 * 4, f"own:{here.vector_isa}": 1}
    assert "not for 1 of 9 layers" in loaded.fallbacks["int8_linear"]
    assert log["products.fallback"]["layers"] == 1
    with pytest.raises(UnsupportedError, match="strict: the products of a layer of 1100 outputs and 64 inputs would run on own:"):
        LLM(str(uneven), quant="w8a8", num_threads=1, strict=True)
    LLM(str(uneven), quant="w8a16", num_threads=1, strict=True)  # has no INT8 products

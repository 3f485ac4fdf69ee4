"""AWQ in its gemm layout: integers, scales and zero points as stored; other layouts are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import group_makers
import makers
import numpy as np
import pytest

from paddle_ds import errors
from paddle_ds.checkpoints import DenseTensor, GroupedWeight, open_checkpoint
from paddle_ds.checkpoints.native import write_native
from paddle_ds.config.tensors import model_specs

SIZES = {"hidden_size": 64, "intermediate_size": 96}
Q_PROJ = "model.layers.0.self_attn.q_proj"
DOWN_0 = "model.layers.0.mlp.down_proj"

Weights = dict[str, group_makers.Grouped]


def scheme(**changes: Any) -> dict[str, Any]:
    """A ``quantization_config`` like AutoAWQ's."""
    fields = {"bits": 4, "group_size": 32, "zero_point": True, "version": "gemm", "modules_to_not_convert": None}
    return {"quant_method": "awq", **fields, **changes}


def quantised(
    tensors: makers.Tensors, group_size: int = 32, left_alone: tuple[str, ...] = ("lm_head",)
) -> tuple[makers.Tensors, Weights]:
    """The tensors of a checkpoint, and each quantised weight by its canonical name."""
    stored: makers.Tensors = {}
    weights = {}
    for name, values in tensors.items():
        module = name.removesuffix(".weight")
        if not (makers.is_linear(name) or name == "lm_head.weight") or module in left_alone:
            stored[name] = values
            continue
        num_in = values.shape[1]
        index = np.arange(num_in) // (num_in if group_size == -1 else group_size)
        weights[name] = group_makers.grouped(values, 4, index, symmetric=False)
        stored |= {f"{module}.{part}": values for part, values in group_makers.awq_parts(weights[name]).items()}
    return stored, weights


def write(directory: Path, stored: makers.Tensors, quantization: dict[str, Any], **config: Any) -> Path:
    makers.write_files(directory, "model", ".safetensors", [makers.safetensors_bytes(stored)], [[]])
    makers.write_json(directory / "config.json", {**makers.config_json(**SIZES), "quantization_config": quantization, **config})
    return directory


def made(left_alone: tuple[str, ...] = ("lm_head",)) -> tuple[makers.Tensors, Weights]:
    return quantised(makers.random_tensors(makers.config_json(**SIZES)), left_alone=left_alone)


@pytest.mark.parametrize("version", ["gemm", "GEMM"])
@pytest.mark.parametrize("group_size", [16, 32, 40, -1])
def test_reads_every_weight_exactly(tmp_path: Path, group_size: int, version: str) -> None:
    tensors = makers.random_tensors(makers.config_json(**SIZES))
    stored, weights = quantised(tensors, group_size)
    with open_checkpoint(write(tmp_path, stored, scheme(group_size=group_size, version=version))) as checkpoint:
        assert checkpoint.format == "awq"
        assert checkpoint.ignored() == {"lm_head.weight"}
        assert set(checkpoint.schemes().values()) == {"w4a16"}
        for spec in model_specs(checkpoint.config):
            found, line = checkpoint.read(spec), checkpoint.stored()[spec.name]
            if spec.name not in weights:
                assert isinstance(found, DenseTensor)
                np.testing.assert_array_equal(found.to_float32(), tensors[spec.name])
                continue
            expected = weights[spec.name]
            assert isinstance(found, GroupedWeight)
            assert found.group_index is None
            assert found.zero_points is not None
            np.testing.assert_array_equal(found.values, expected.integers - 8)
            np.testing.assert_array_equal(found.zero_points, expected.zeros - 8)
            np.testing.assert_array_equal(found.to_float32(), expected.weight)
            assert line.dtype == "int4"
            assert line.groups is not None
            assert (line.groups.count, line.groups.has_zero_points) == (expected.scales.shape[1], True)
            parts = [spec.name.replace("weight", part) for part in ("qweight", "qzeros", "scales")]
            assert line.nbytes == sum(stored[part].nbytes for part in parts)
            checkpoint.release(spec)


def test_the_native_format_keeps_every_weight(tmp_path: Path) -> None:
    stored, weights = made()
    with open_checkpoint(write(tmp_path / "awq", stored, scheme())) as source:
        write_native(source, tmp_path / "native")
    with open_checkpoint(tmp_path / "native") as native:
        for spec in model_specs(native.config):
            if spec.name in weights:
                np.testing.assert_array_equal(native.read(spec).to_float32(), weights[spec.name].weight)


@pytest.mark.parametrize("left_alone", [(), ("lm_head", DOWN_0)], ids=["none", "head and one other"])
def test_the_files_decide_which_linears_are_quantised(tmp_path: Path, left_alone: tuple[str, ...]) -> None:
    stored, weights = made(left_alone)
    with open_checkpoint(write(tmp_path, stored, scheme(modules_to_not_convert=list(left_alone)))) as checkpoint:
        assert checkpoint.ignored() == {f"{module}.weight" for module in left_alone}
        assert set(checkpoint.schemes()) == {name.removesuffix(".weight") for name in weights}


SCHEMES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "gemv": ({"version": "gemv"}, errors.UnsupportedError, "version is 'gemv'; have: 'gemm'"),
    "exllama": ({"version": "exllama"}, errors.UnsupportedError, "version is 'exllama'"),
    "marlin": ({"version": "marlin"}, errors.UnsupportedError, "version is 'marlin'"),
    "no version": ({"version": None}, errors.UnsupportedError, "version is None"),
    "eight bits": ({"bits": 8}, errors.UnsupportedError, "bits is 8; have: 4"),
    "symmetric": ({"zero_point": False}, errors.UnsupportedError, "zero_point is False"),
    "group of 0": ({"group_size": 0}, errors.ConfigMismatchError, "group_size is 0"),
}


@pytest.mark.parametrize(("changes", "error", "message"), SCHEMES.values(), ids=SCHEMES.keys())
def test_other_schemes_are_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[errors.PaddleDSError], message: str
) -> None:
    stored, _ = made()
    with pytest.raises(error, match=message) as caught:
        open_checkpoint(write(tmp_path, stored, scheme(**changes)))
    assert str(tmp_path / "config.json") in caught.value.message


Edit = Callable[[makers.Tensors], object]

DAMAGES: dict[str, tuple[Edit, type[Exception], str]] = {
    "no scales": (lambda t: t.pop(f"{Q_PROJ}.scales"), errors.MissingTensorError, "q_proj.scales' is missing"),
    "no zero points": (lambda t: t.pop(f"{Q_PROJ}.qzeros"), errors.MissingTensorError, "q_proj.qzeros' is missing"),
    "packed along the inputs": (
        lambda t: t.update({f"{Q_PROJ}.qweight": np.zeros((8, 64), np.int32)}),
        errors.TensorShapeError,
        r"qweight': found \[8, 64\]; expected \[64, 8\]",
    ),
    "one group": (
        lambda t: t.update({f"{Q_PROJ}.scales": np.ones((1, 64), np.float16)}),
        errors.TensorShapeError,
        r"scales': found \[1, 64\]; expected \[2, 64\]",
    ),
    "integers of 64 bits": (
        lambda t: t.update({f"{Q_PROJ}.qzeros": t[f"{Q_PROJ}.qzeros"].astype(np.int64)}),
        errors.TensorDtypeError,
        "qzeros': found int64; expected int32",
    ),
    "infinite scale": (
        lambda t: t[f"{Q_PROJ}.scales"].__setitem__((0, 3), np.inf),
        errors.TensorNotFiniteError,
        "q_proj.scales'",
    ),
    "order of activations": (
        lambda t: t.update({f"{Q_PROJ}.g_idx": np.zeros(64, np.int32)}),
        errors.UnexpectedTensorError,
        "q_proj.g_idx'",
    ),
}


@pytest.mark.parametrize(("edit", "error", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_named(tmp_path: Path, edit: Edit, error: type[Exception], message: str) -> None:
    stored, _ = made()
    edit(stored)
    with pytest.raises(error, match=message):
        read_all(write(tmp_path, stored, scheme()))


def read_all(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        for spec in model_specs(checkpoint.config):
            checkpoint.read(spec)

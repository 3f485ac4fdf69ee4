"""GPTQ: integers, scales, zero points and groups as stored; what is not implemented is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import group_makers
import makers
import numpy as np
import pytest

from paddle_ds import errors
from paddle_ds.checkpoints import DenseTensor, GroupedWeight, Int8Weight, open_checkpoint
from paddle_ds.checkpoints.native import write_native
from paddle_ds.config.tensors import TensorSpec, model_specs

SIZES = {"hidden_size": 64, "intermediate_size": 96}
Q_PROJ = "model.layers.0.self_attn.q_proj"
DOWN_0 = "model.layers.0.mlp.down_proj"


def scheme(**changes: Any) -> dict[str, Any]:
    """A ``quantization_config`` like gptqmodel's."""
    return {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        **changes,
    }


def index_of(num_in: int, group_size: int, act_order: bool) -> np.ndarray:
    index = np.arange(num_in) // (num_in if group_size == -1 else min(group_size, num_in))
    return np.random.default_rng(num_in).permutation(index) if act_order else index


def quantised(
    tensors: makers.Tensors, quantization: dict[str, Any], left_alone: tuple[str, ...] = ("lm_head",)
) -> tuple[makers.Tensors, dict[str, group_makers.Grouped]]:
    """The tensors of a checkpoint, and each quantised weight by its canonical name."""
    bits = quantization["bits"]
    stored: makers.Tensors = {}
    weights = {}
    for name, values in tensors.items():
        module = name.removesuffix(".weight")
        if not (makers.is_linear(name) or name == "lm_head.weight") or module in left_alone:
            stored[name] = values
            continue
        index = index_of(values.shape[1], quantization["group_size"], quantization["desc_act"])
        weights[name] = group_makers.grouped(values, bits, index, quantization["sym"])
        parts = group_makers.gptq_parts(weights[name], bits, quantization["checkpoint_format"] == "gptq_v2")
        stored |= {f"{module}.{part}": values for part, values in parts.items()}
    return stored, weights


def write(directory: Path, stored: makers.Tensors, quantization: dict[str, Any], **config: Any) -> Path:
    makers.write_files(directory, "model", ".safetensors", [makers.safetensors_bytes(stored)], [[]])
    makers.write_json(directory / "config.json", {**makers.config_json(**SIZES), "quantization_config": quantization, **config})
    return directory


def spec_of(checkpoint: Any, name: str) -> TensorSpec:
    return next(spec for spec in model_specs(checkpoint.config) if spec.name == name)


@pytest.mark.parametrize("checkpoint_format", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("act_order", [False, True], ids=["in order", "act-order"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, 40), (4, 10**30), (4, -1), (8, 32), (8, -1)])
def test_reads_every_weight_exactly(
    tmp_path: Path, bits: int, group_size: int, symmetric: bool, act_order: bool, checkpoint_format: str
) -> None:
    quantization = scheme(
        bits=bits, group_size=group_size, sym=symmetric, desc_act=act_order, checkpoint_format=checkpoint_format
    )
    tensors = makers.random_tensors(makers.config_json(**SIZES))
    stored, weights = quantised(tensors, quantization)
    assert symmetric or any((weight.zeros == 0).any() for weight in weights.values()), "none borrows from its neighbour"
    with open_checkpoint(write(tmp_path, stored, quantization)) as checkpoint:
        assert checkpoint.format == "gptq"
        assert checkpoint.ignored() == {"lm_head.weight"}
        assert set(checkpoint.schemes().values()) == {"w4a16" if bits == 4 else "w8a16"}
        for spec in model_specs(checkpoint.config):
            found, line = checkpoint.read(spec), checkpoint.stored()[spec.name]
            if spec.name not in weights:
                assert isinstance(found, DenseTensor)
                np.testing.assert_array_equal(found.to_float32(), tensors[spec.name])
                continue
            expected = weights[spec.name]
            np.testing.assert_array_equal(found.to_float32(), expected.weight)
            assert line.dtype == f"int{bits}"
            parts = [spec.name.replace("weight", part) for part in ("qweight", "qzeros", "scales", "g_idx")]
            assert line.nbytes == sum(stored[part].nbytes for part in parts)
            if bits == 8 and group_size == -1 and symmetric:
                assert isinstance(found, Int8Weight)
                assert line.groups is None
                np.testing.assert_array_equal(found.values, expected.integers - 128)
                continue
            assert isinstance(found, GroupedWeight)
            assert line.groups is not None
            assert (found.zero_points is None) is symmetric is not line.groups.has_zero_points
            assert (found.group_index is not None) is line.groups.has_index is (act_order and group_size in (32, 40))
            np.testing.assert_array_equal(found.values, expected.integers - (1 << (bits - 1)))
            np.testing.assert_array_equal(found.scales, expected.scales.astype(np.float32))
        for spec in model_specs(checkpoint.config):
            checkpoint.release(spec)


@pytest.mark.parametrize(
    "changes",
    [{}, {"sym": False, "desc_act": True}, {"bits": 8, "group_size": -1}],
    ids=["int4", "act-order with zero points", "int8 per channel"],
)
def test_the_native_format_keeps_every_weight(tmp_path: Path, changes: dict[str, Any]) -> None:
    quantization = scheme(**changes)
    stored, weights = quantised(makers.random_tensors(makers.config_json(**SIZES)), quantization)
    with open_checkpoint(write(tmp_path / "gptq", stored, quantization)) as source:
        write_native(source, tmp_path / "native")
    with open_checkpoint(tmp_path / "native") as native:
        assert native.format == "compressed-tensors"
        for name, weight in weights.items():
            np.testing.assert_array_equal(native.read(spec_of(native, name)).to_float32(), weight.weight)


def test_without_act_order_g_idx_may_be_absent(tmp_path: Path) -> None:
    stored, weights = quantised(makers.random_tensors(makers.config_json(**SIZES)), scheme())
    stored = {name: values for name, values in stored.items() if not name.endswith("g_idx")}
    with open_checkpoint(write(tmp_path, stored, scheme())) as checkpoint:
        for name, weight in weights.items():
            np.testing.assert_array_equal(checkpoint.read(spec_of(checkpoint, name)).to_float32(), weight.weight)


@pytest.mark.parametrize("scale_dtype", ["float32", "bfloat16"])
def test_scales_may_be_of_any_float_type(tmp_path: Path, scale_dtype: str) -> None:
    stored, weights = quantised(makers.random_tensors(makers.config_json(**SIZES)), scheme())
    scales = {name: makers.to_dtype(v.astype(np.float32), scale_dtype) for name, v in stored.items() if name.endswith("scales")}
    makers.write_json(tmp_path / "config.json", {**makers.config_json(**SIZES), "quantization_config": scheme()})
    payload = makers.safetensors_bytes(stored | scales, dict.fromkeys(scales, makers.CODES[scale_dtype]))
    (tmp_path / "model.safetensors").write_bytes(payload)
    with open_checkpoint(tmp_path) as checkpoint:
        for name in weights:
            found = checkpoint.read(spec_of(checkpoint, name))
            assert isinstance(found, GroupedWeight)
            expected = makers.from_dtype(scales[name.replace("weight", "scales")], scale_dtype).T
            np.testing.assert_array_equal(found.scales, expected)


@pytest.mark.parametrize(
    ("left_alone", "changes"),
    [((), {"lm_head": True}), (("lm_head", DOWN_0), {"dynamic": {f"-:{DOWN_0}": {}}}), (("lm_head", DOWN_0), {})],
    ids=["the head too", "one excepted", "one excepted and not named"],
)
def test_the_files_decide_which_linears_are_quantised(
    tmp_path: Path, left_alone: tuple[str, ...], changes: dict[str, Any]
) -> None:
    tensors = makers.random_tensors(makers.config_json(**SIZES))
    stored, weights = quantised(tensors, scheme(), left_alone)
    with open_checkpoint(write(tmp_path, stored, scheme(**changes))) as checkpoint:
        assert checkpoint.ignored() == {f"{module}.weight" for module in left_alone}
        assert set(checkpoint.schemes()) == {name.removesuffix(".weight") for name in weights}
        for module in left_alone:
            found = checkpoint.read(spec_of(checkpoint, f"{module}.weight"))
            np.testing.assert_array_equal(found.to_float32(), tensors[f"{module}.weight"])


def test_a_tied_head_is_among_those_left_alone(tmp_path: Path) -> None:
    stored, _ = quantised(makers.random_tensors(makers.config_json(**SIZES, tie_word_embeddings=True)), scheme())
    with open_checkpoint(write(tmp_path, stored, scheme(), tie_word_embeddings=True)) as checkpoint:
        assert checkpoint.ignored() == {"lm_head.weight"}


def test_biases_that_the_architecture_lacks_are_harmless_where_they_are_zero(tmp_path: Path) -> None:
    stored, _ = quantised(makers.random_tensors(makers.config_json(**SIZES)), scheme())
    stored[f"{DOWN_0}.bias"] = np.zeros(64, np.float32)
    with open_checkpoint(write(tmp_path / "zero", stored, scheme())) as checkpoint:
        assert f"{DOWN_0}.bias" not in checkpoint.stored()
    stored[f"{DOWN_0}.bias"][7] = 0.5
    with pytest.raises(errors.UnexpectedTensorError, match=r"down_proj.bias' is not zero"):
        open_checkpoint(write(tmp_path / "not zero", stored, scheme()))


def test_without_a_quantization_config_the_error_says_where_it_may_be(tmp_path: Path) -> None:
    stored, _ = quantised(makers.random_tensors(makers.config_json(**SIZES)), scheme())
    path = write(tmp_path, stored, scheme())
    makers.write_json(path / "config.json", makers.config_json(**SIZES))
    with pytest.raises(errors.ConfigMismatchError, match=r"has no quantization_config.*quantize_config.json"):
        open_checkpoint(path)


SCHEMES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "three bits": ({"bits": 3}, errors.UnsupportedError, "bits is 3; have: 4 and 8"),
    "bits that are text": ({"bits": "4"}, errors.UnsupportedError, "bits is '4'"),
    "no bits": ({"bits": None}, errors.UnsupportedError, "bits is None"),
    "group of 0": ({"group_size": 0}, errors.ConfigMismatchError, "group_size is 0"),
    "no group": ({"group_size": None}, errors.ConfigMismatchError, "group_size is None"),
    "group that is a flag": ({"group_size": True}, errors.ConfigMismatchError, "group_size is True"),
    "sym that is a number": ({"sym": 1}, errors.UnsupportedError, "sym is 1"),
    "another format": ({"checkpoint_format": "marlin"}, errors.UnsupportedError, "checkpoint_format is 'marlin'"),
    "two formats": ({"format": "gptq_v2"}, errors.ConfigMismatchError, "is 'gptq' and format is 'gptq_v2'"),
    "marlin": ({"is_marlin_format": True}, errors.UnsupportedError, "is_marlin_format is True"),
    "wider words": ({"pack_dtype": "int64"}, errors.UnsupportedError, "pack_dtype is 'int64'"),
    "mixed": ({"dynamic": {".*down.*": {"bits": 8}}}, errors.UnsupportedError, "dynamic quantises '.*down.*'"),
    "dynamic that is a list": ({"dynamic": ["-:x"]}, errors.ConfigMismatchError, "expected an object"),
    "zero points of the other format": ({"checkpoint_format": "gptq_v2"}, errors.CorruptFileError, "expected 8"),
}


@pytest.mark.parametrize(("changes", "error", "message"), SCHEMES.values(), ids=SCHEMES.keys())
def test_other_schemes_are_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[errors.PaddleDSError], message: str
) -> None:
    stored, _ = quantised(makers.random_tensors(makers.config_json(**SIZES)), scheme())
    with pytest.raises(error, match=message) as caught:
        read_all(write(tmp_path, stored, scheme(**changes)))
    assert str(tmp_path) in caught.value.message


def read_all(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        for spec in model_specs(checkpoint.config):
            checkpoint.read(spec)


Edit = Callable[[makers.Tensors], object]

DAMAGES: dict[str, tuple[Edit, type[Exception], str]] = {
    "no scales": (lambda t: t.pop(f"{Q_PROJ}.scales"), errors.MissingTensorError, "q_proj.scales' is missing"),
    "no zero points": (lambda t: t.pop(f"{Q_PROJ}.qzeros"), errors.MissingTensorError, "q_proj.qzeros' is missing"),
    "no groups": (lambda t: t.pop(f"{Q_PROJ}.g_idx"), errors.MissingTensorError, "q_proj.g_idx' is missing"),
    "no integers": (lambda t: t.pop(f"{Q_PROJ}.qweight"), errors.MissingTensorError, "q_proj.weight' is missing"),
    "weights of 8 bits": (
        lambda t: t.update({f"{Q_PROJ}.qweight": np.zeros((16, 64), np.int32)}),
        errors.TensorShapeError,
        r"qweight': found \[16, 64\]; expected \[8, 64\]",
    ),
    "one group": (
        lambda t: t.update({f"{Q_PROJ}.scales": np.ones((1, 64), np.float16)}),
        errors.TensorShapeError,
        r"scales': found \[1, 64\]; expected \[2, 64\]",
    ),
    "zero points not packed": (
        lambda t: t.update({f"{Q_PROJ}.qzeros": np.ones((2, 64), np.int32)}),
        errors.TensorShapeError,
        r"qzeros': found \[2, 64\]; expected \[2, 8\]",
    ),
    "integers of 64 bits": (
        lambda t: t.update({f"{Q_PROJ}.qweight": t[f"{Q_PROJ}.qweight"].astype(np.int64)}),
        errors.TensorDtypeError,
        "qweight': found int64; expected int32",
    ),
    "scales that are integers": (
        lambda t: t.update({f"{Q_PROJ}.scales": t[f"{Q_PROJ}.scales"].astype(np.int8)}),
        errors.TensorDtypeError,
        "scales': found int8",
    ),
    "a group too high": (
        lambda t: t[f"{Q_PROJ}.g_idx"].__setitem__(3, 2),
        errors.CorruptFileError,
        "g_idx': found a group 2; expected 0 to 1",
    ),
    "a group below 0": (lambda t: t[f"{Q_PROJ}.g_idx"].__setitem__(3, -1), errors.CorruptFileError, "found a group -1"),
    "scale that is no number": (
        lambda t: t[f"{Q_PROJ}.scales"].__setitem__((0, 3), np.nan),
        errors.TensorNotFiniteError,
        "q_proj.scales'",
    ),
    "a tensor too many": (
        lambda t: t.update({f"{Q_PROJ}.qweight_2": np.ones(3, np.int32)}),
        errors.UnexpectedTensorError,
        "qweight_2",
    ),
}


@pytest.mark.parametrize(("edit", "error", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_named(tmp_path: Path, edit: Edit, error: type[Exception], message: str) -> None:
    quantization = scheme(desc_act=True)
    stored, _ = quantised(makers.random_tensors(makers.config_json(**SIZES)), quantization)
    edit(stored)
    with pytest.raises(error, match=message):
        read_all(write(tmp_path, stored, quantization))

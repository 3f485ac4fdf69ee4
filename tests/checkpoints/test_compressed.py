"""compressed-tensors W8A8: integers and scales as stored; what is not implemented is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest

from paddle_ds import errors
from paddle_ds.checkpoints import DenseTensor, GroupedWeight, Int8Weight, open_checkpoint
from paddle_ds.checkpoints.compressed_scheme import matches
from paddle_ds.config.tensors import model_specs

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
DOWN_0 = "model.layers.0.mlp.down_proj.weight"


def write(directory: Path, stored: makers.Tensors, codes: dict[str, str] | None = None, **config: Any) -> Path:
    """A directory with exactly these tensors."""
    makers.write_files(directory, "model", ".safetensors", [makers.safetensors_bytes(stored, codes)], [[]])
    makers.write_json(directory / "config.json", {"quantization_config": makers.w8a8_scheme(), **makers.config_json(), **config})
    return directory


@pytest.mark.parametrize("scale_columns", [True, False], ids=["[out, 1]", "[out]"])
@pytest.mark.parametrize("scale_dtype", ["float32", "bfloat16", "float16"])
def test_reads_every_tensor(tmp_path: Path, scale_dtype: str, scale_columns: bool) -> None:
    tensors = makers.random_tensors(makers.config_json())
    stored = makers.compressed_tensors(tensors, scale_dtype, scale_columns)
    codes = {name: makers.CODES[scale_dtype] for name in stored if name.endswith("_scale")}
    with open_checkpoint(write(tmp_path, stored, codes)) as checkpoint:
        assert checkpoint.format == "compressed-tensors"
        assert checkpoint.ignored() == {"lm_head.weight"}
        for spec in model_specs(checkpoint.config):
            weight = checkpoint.read(spec)
            if makers.is_linear(spec.name):
                assert isinstance(weight, Int8Weight)
                np.testing.assert_array_equal(weight.values, stored[spec.name])
                scales = makers.from_dtype(stored[f"{spec.name}_scale"], scale_dtype).reshape(-1)
                np.testing.assert_array_equal(weight.scales, scales)
                assert weight.scales.dtype == np.float32
                np.testing.assert_allclose(weight.to_float32(), tensors[spec.name], atol=0.02)
                line = checkpoint.stored()[spec.name]
                assert line.dtype == "int8"
                assert line.nbytes == stored[spec.name].nbytes + stored[f"{spec.name}_scale"].nbytes
            else:
                assert isinstance(weight, DenseTensor)
                np.testing.assert_array_equal(weight.to_float32(), tensors[spec.name])
            checkpoint.release(spec)


@pytest.mark.parametrize(
    ("ignore", "left_alone"),
    [
        ([], {"down_proj": False, "lm_head": False}),
        (["lm_head", "model.layers.0.mlp.down_proj"], {"down_proj": True, "lm_head": True}),
        (["re:.*down_proj$", "re:lm"], {"down_proj": True, "lm_head": True}),
        (["re:down_proj"], {"down_proj": False, "lm_head": False}),
    ],
    ids=["nothing ignored", "names", "expressions", "an expression matches from the start"],
)
def test_ignore_decides_what_is_quantised(tmp_path: Path, ignore: list[str], left_alone: dict[str, bool]) -> None:
    tensors = makers.random_tensors(makers.config_json())
    stored: makers.Tensors = {}
    for name, values in tensors.items():
        module = name.removesuffix(".weight")
        is_quantised = (makers.is_linear(name) or name == "lm_head.weight") and not matches(module, ignore)
        if is_quantised:
            stored[name], scales = makers.quantized(values)
            stored[f"{name}_scale"] = scales[:, None]
        else:
            stored[name] = values
    with open_checkpoint(write(tmp_path, stored, quantization_config=makers.w8a8_scheme(ignore))) as checkpoint:
        assert (DOWN_0 in checkpoint.ignored()) is left_alone["down_proj"]
        assert ("lm_head.weight" in checkpoint.ignored()) is left_alone["lm_head"]
        for spec in model_specs(checkpoint.config):
            is_int8 = isinstance(checkpoint.read(spec), Int8Weight)
            assert is_int8 is (f"{spec.name}_scale" in stored)


def test_an_ignored_tied_head_is_reported_though_it_has_no_tensor(tmp_path: Path) -> None:
    config = makers.config_json(tie_word_embeddings=True)
    stored = makers.compressed_tensors(makers.random_tensors(config))
    with open_checkpoint(write(tmp_path, stored, tie_word_embeddings=True)) as checkpoint:
        assert checkpoint.ignored() == {"lm_head.weight"}
        assert "lm_head.weight" not in checkpoint.stored()


def test_zero_points_of_zero_are_harmless(tmp_path: Path) -> None:
    stored = makers.compressed_tensors(makers.random_tensors(makers.config_json()))
    stored[f"{Q_PROJ}_zero_point"] = np.zeros((24, 1), np.int8)
    with open_checkpoint(write(tmp_path, stored)) as checkpoint:
        assert len(checkpoint.stored()) == 27


def test_reads_what_llm_compressor_wrote(shared_data: Path) -> None:
    with open_checkpoint(shared_data / "stories260k") as plain, open_checkpoint(shared_data / "stories260k-w8a8") as int8:
        assert int8.ignored() == {"lm_head.weight"}
        for spec in model_specs(plain.config):
            expected, found = plain.read(spec).to_float32(), int8.read(spec)
            largest = np.abs(expected).max()
            assert np.abs(found.to_float32() - expected).max() <= (largest / 250 if isinstance(found, Int8Weight) else 0)


def test_reads_the_packed_int4_of_llm_compressor(shared_data: Path) -> None:
    with open_checkpoint(shared_data / "stories260k") as plain, open_checkpoint(shared_data / "stories260k-w4a16") as packed:
        assert packed.ignored() == {"lm_head.weight", *(f"model.layers.{i}.mlp.down_proj.weight" for i in range(5))}
        assert set(packed.schemes().values()) == {"w4a16"}
        for spec in model_specs(plain.config):
            expected, found = plain.read(spec).to_float32(), packed.read(spec)
            largest = np.abs(expected).max()
            # GPTQ rounds many weights away from the nearest integer, and clips; most stay within two steps
            close = np.abs(found.to_float32() - expected) <= (2 * largest / 7.5 if isinstance(found, GroupedWeight) else 0)
            assert close.mean() > 0.97


def group(**changes: Any) -> dict[str, Any]:
    scheme = makers.w8a8_scheme()
    scheme["config_groups"]["group_0"].update(changes)
    return scheme


def activations(**changes: Any) -> dict[str, Any]:
    return group(input_activations={**makers.w8a8_scheme()["config_groups"]["group_0"]["input_activations"], **changes})


SCHEMES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "format float": ({**makers.w8a8_scheme(), "format": "float-quantized"}, errors.UnsupportedError, "'float-quantized'"),
    "group of another format": (group(format="float-quantized"), errors.UnsupportedError, "group_0: format 'float-quantized'"),
    "activations beside packed weights": (group(format="pack-quantized"), errors.UnsupportedError, "have: beside 8 bits"),
    "asymmetric": (makers.w8a8_scheme(symmetric=False), errors.UnsupportedError, "weights: symmetric is False"),
    "grouped": (makers.w8a8_scheme(strategy="group", group_size=128), errors.UnsupportedError, "strategy is 'group'"),
    "per tensor": (makers.w8a8_scheme(strategy="tensor"), errors.UnsupportedError, "strategy is 'tensor'; have: channel"),
    "four bits": (makers.w8a8_scheme(num_bits=4), errors.UnsupportedError, "num_bits is 4"),
    "float weights": (makers.w8a8_scheme(type="float"), errors.UnsupportedError, "type is 'float'"),
    "static activations": (activations(dynamic=False), errors.UnsupportedError, "input_activations: dynamic is False"),
    "activations per tensor": (activations(strategy="tensor"), errors.UnsupportedError, "strategy is 'tensor'"),
    "asymmetric activations": (activations(symmetric=False), errors.UnsupportedError, "input_activations: symmetric is False"),
    "activations that are no scheme": (
        group(input_activations="int8"),
        errors.UnsupportedError,
        "input_activations: found 'int8'",
    ),
    "output activations": (group(output_activations={"num_bits": 8}), errors.UnsupportedError, "output_activations"),
    "quantised cache": (
        {**makers.w8a8_scheme(), "kv_cache_scheme": {"num_bits": 8}},
        errors.UnsupportedError,
        "kv_cache_scheme",
    ),
    "no groups": ({**makers.w8a8_scheme(), "config_groups": {}}, errors.ConfigMismatchError, "no config_groups"),
    "targets not names": (group(targets="Linear"), errors.ConfigMismatchError, "targets: found 'Linear'"),
    "ignore not an expression": (makers.w8a8_scheme(["re:("]), errors.ConfigMismatchError, "not a regular expression"),
}


@pytest.mark.parametrize(("scheme", "error", "message"), SCHEMES.values(), ids=SCHEMES.keys())
def test_other_schemes_are_refused(tmp_path: Path, scheme: dict[str, Any], error: type[Exception], message: str) -> None:
    stored = makers.compressed_tensors(makers.random_tensors(makers.config_json()))
    with pytest.raises(error, match=message) as caught:
        open_checkpoint(write(tmp_path, stored, quantization_config=scheme))
    assert "config.json" in str(caught.value)


Edit = Callable[[makers.Tensors], object]

DAMAGES: dict[str, tuple[Edit, type[Exception], str]] = {
    "missing scale": (lambda t: t.pop(f"{Q_PROJ}_scale"), errors.MissingTensorError, f"'{Q_PROJ}_scale' is missing"),
    "scale of another length": (
        lambda t: t.update({f"{Q_PROJ}_scale": np.ones((23, 1), np.float32)}),
        errors.TensorShapeError,
        r"q_proj.weight_scale': found \[23, 1\]; expected \[24\] or \[24, 1\]",
    ),
    "one scale for all": (
        lambda t: t.update({f"{Q_PROJ}_scale": np.ones((1,), np.float32)}),
        errors.TensorShapeError,
        r"found \[1\]",
    ),
    "scale of integers": (
        lambda t: t.update({f"{Q_PROJ}_scale": np.ones((24, 1), np.int8)}),
        errors.TensorDtypeError,
        "weight_scale': found int8",
    ),
    "weight left float": (
        lambda t: t.update({Q_PROJ: t[Q_PROJ].astype(np.float32)}),
        errors.TensorDtypeError,
        "q_proj.weight': found float32; expected int8",
    ),
    "ignored head quantised": (
        lambda t: t.update({"lm_head.weight": t["lm_head.weight"].astype(np.int8)}),
        errors.TensorDtypeError,
        "'lm_head.weight': found int8",
    ),
    "zero points that are not zero": (
        lambda t: t.update({f"{Q_PROJ}_zero_point": np.ones((24, 1), np.int8)}),
        errors.UnsupportedError,
        "not zero: asymmetric",
    ),
}


@pytest.mark.parametrize(("edit", "error", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_named(tmp_path: Path, edit: Edit, error: type[Exception], message: str) -> None:
    stored = makers.compressed_tensors(makers.random_tensors(makers.config_json()))
    edit(stored)
    with pytest.raises(error, match=message):
        open_checkpoint(write(tmp_path, stored))


@pytest.mark.parametrize(
    ("bad", "error"),
    [(np.nan, errors.TensorNotFiniteError), (np.inf, errors.TensorNotFiniteError), (-1.0, errors.CorruptFileError)],
    ids=["nan", "inf", "negative"],
)
def test_bad_scales_are_refused_when_read(tmp_path: Path, bad: float, error: type[Exception]) -> None:
    stored = makers.compressed_tensors(makers.random_tensors(makers.config_json()))
    stored[f"{Q_PROJ}_scale"][5] = bad
    with open_checkpoint(write(tmp_path, stored)) as checkpoint:
        spec = next(spec for spec in model_specs(checkpoint.config) if spec.name == Q_PROJ)
        with pytest.raises(error, match="weight_scale"):
            checkpoint.read(spec)

"""``paddlenlp-int8``: what PaddleNLP's ``save_pretrained`` writes for ``weight_quantize_algo: llm.int8``.

    <linear>.quant_weight  int8 [out, in]     every linear, without exception
    <linear>.quant_scale   [out]              float16 or bfloat16; PaddleNLP refuses float32
    lm_head.weight         [hidden, vocab]    never quantised; where it is tied, the embedding once more, [vocab, hidden]
    everything else        in the scales' type; bfloat16 as uint16

Names begin with ``llama.`` or ``qwen2.`` where Hugging Face's begin with ``model.``. Source: paddlenlp 3.0, quantization.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from paddle_ds.checkpoints.base import Checkpoint, DenseTensor, Int8Weight, Progress
from paddle_ds.checkpoints.dtypes import NUMPY_DTYPES, Array, narrow
from paddle_ds.checkpoints.hf_config import hf_config
from paddle_ds.checkpoints.layout import HEAD
from paddle_ds.checkpoints.native import MAX_SHARD_BYTES
from paddle_ds.checkpoints.paddlenlp import PREFIXES
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.tensors import Role, TensorSpec, model_specs
from paddle_ds.errors import UnsupportedError
from paddle_ds_slim.exporters.pdparams_writer import PdparamsWriter
from paddle_ds_slim.exporters.target import Found, Planned, Target, counted, some_names

#: outputs of a linear that Paddle's kernels for this layout want a multiple of
_OUT_MULTIPLE = 16


class PaddleNLPInt8Target(Target):
    """``dtype``, ``float16`` or ``bfloat16``, is that of the scales and of all that is not quantised."""

    name = "paddlenlp-int8"

    def __init__(self, dtype: str = "float16", *, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        self._dtype = dtype
        self._max_shard_bytes = max_shard_bytes

    def check(self, source: Checkpoint) -> None:
        complaint = _complaint(source.config)
        if complaint:
            raise UnsupportedError(f"{source.directory}: {complaint}, which PaddleNLP would read as another model without a word")

    def plan(self, spec: TensorSpec, found: Found) -> Planned:
        return Planned("int8", scale_dtype=self._dtype) if spec.role is Role.LINEAR else Planned(self._dtype)

    def write(self, converted: Checkpoint, directory: Path, progress: Progress | None) -> None:
        config, stored = converted.config, converted.stored()
        shards = self._shards(config)
        total_bytes, done_bytes = sum(tensor.nbytes for tensor in stored.values()), 0
        weight_map: dict[str, str] = {}
        written_bytes = 0
        for file_name, specs in zip(_file_names(len(shards)), shards, strict=True):
            with PdparamsWriter(directory / file_name) as writer:
                for spec in specs:
                    for name, values in self._arrays(converted, spec).items():
                        writer.write(name, values)
                        weight_map[name] = file_name
                        written_bytes += values.nbytes
                    converted.release(spec)
                    done_bytes += stored[spec.name].nbytes
                    if progress is not None:
                        progress(spec.name, done_bytes, total_bytes)
        if len(shards) > 1:
            index = {"metadata": {"total_size": written_bytes}, "weight_map": dict(sorted(weight_map.items()))}
            _write_json(directory / "model_state.pdparams.index.json", index)
        _write_json(directory / "config.json", self._config(converted))

    def remarks(self, source: Checkpoint, planned: dict[str, Planned]) -> Iterator[str]:
        yield f"Scales and all that is not quantised are {self._dtype}: PaddleNLP takes no scales in float32."
        if not source.config.tie_word_embeddings and source.stored()[HEAD].dtype in ("int4", "int8"):
            yield "The head is dequantised: llm.int8 never quantises it."
        linears = [spec for spec in model_specs(source.config) if spec.role is Role.LINEAR]
        left_alone = [spec.name for spec in linears if spec.name in source.ignored()]
        if left_alone:
            yield (
                f"Quantised although the source leaves them in floating point, because llm.int8 knows no exceptions: "
                f"{counted(len(left_alone), 'linear')}, {some_names(left_alone)}."
            )
        odd = [spec.name for spec in linears if spec.shape[0] % _OUT_MULTIPLE]
        if odd:
            yield (
                f"A number of outputs that is no multiple of {_OUT_MULTIPLE}, which Paddle asks for when it quantises "
                f"itself: {counted(len(odd), 'linear')}, {some_names(odd)}."
            )

    def _shards(self, config: ModelConfig) -> list[list[TensorSpec]]:
        shards: list[list[TensorSpec]] = [[]]
        filled_bytes = 0
        for spec in model_specs(config):
            nbytes = 2 * spec.num_elements
            if spec.role is Role.LINEAR:
                nbytes = spec.num_elements + 2 * spec.shape[0]
            elif spec.role is Role.EMBEDDING and config.tie_word_embeddings:
                nbytes *= 2
            if shards[-1] and filled_bytes + nbytes > self._max_shard_bytes:
                shards.append([])
                filled_bytes = 0
            shards[-1].append(spec)
            filled_bytes += nbytes
        return shards

    def _arrays(self, converted: Checkpoint, spec: TensorSpec) -> dict[str, Array]:
        """What is stored of a tensor, by name."""
        weight = converted.read(spec)
        name = spec.name
        if name.startswith("model."):
            name = f"{PREFIXES[converted.config.architecture]}.{name.removeprefix('model.')}"
        if isinstance(weight, Int8Weight):
            scales = narrow(weight.scales, self._dtype)
            return {name.replace(".weight", ".quant_weight"): weight.values, name.replace(".weight", ".quant_scale"): scales}
        assert isinstance(weight, DenseTensor)
        assert weight.values.dtype == NUMPY_DTYPES[self._dtype]
        if spec.role is Role.HEAD:
            return {name: weight.values.T}
        if spec.role is Role.EMBEDDING and converted.config.tie_word_embeddings:
            return {name: weight.values, HEAD: weight.values}
        return {name: weight.values}

    def _config(self, converted: Checkpoint) -> dict[str, object]:
        config = converted.raw_config() | hf_config(converted.config)
        for field in ("rope_parameters", "torch_dtype", "rope_scaling"):
            config.pop(field, None)
        scaling = converted.config.rope_scaling
        if scaling.rope_type == "llama3":
            config["rope_scaling"] = hf_config(converted.config)["rope_scaling"]
        elif scaling.rope_type == "linear":
            config |= {"rope_scaling_type": "linear", "rope_scaling_factor": scaling.factor}
        config |= {"dtype": self._dtype, "quantization_config": {"weight_quantize_algo": "llm.int8"}}
        return config


def _complaint(config: ModelConfig) -> str | None:
    """What PaddleNLP's classes cannot express of a model; they ignore such fields."""
    if config.head_dim * config.num_heads != config.hidden_size:
        return f"head_dim {config.head_dim} is not hidden_size / num_attention_heads"
    if config.architecture == "LlamaForCausalLM" and (config.qkv_bias or config.o_bias or config.mlp_bias):
        return "a Llama with biases"
    known = ("default", "linear", "llama3") if config.architecture == "LlamaForCausalLM" else ("default",)
    if config.rope_scaling.rope_type not in known:
        return f"rotary scaling of type {config.rope_scaling.rope_type!r} in {config.architecture}"
    if config.architecture == "Qwen2ForCausalLM" and not config.qkv_bias:
        return "a Qwen2 without biases of q, k and v"
    return None


def _file_names(count: int) -> list[str]:
    if count == 1:
        return ["model_state.pdparams"]
    return [f"model_state-{number:05d}-of-{count:05d}.pdparams" for number in range(1, count + 1)]


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

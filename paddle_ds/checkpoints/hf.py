"""Hugging Face safetensors: canonical names, linear ``[out, in]``, float32, bfloat16 or float16."""

from __future__ import annotations

from paddle_ds.checkpoints.layout import FileCheckpoint, Source
from paddle_ds.checkpoints.raw import TensorFiles
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.tensors import TensorSpec


class HuggingFaceCheckpoint(FileCheckpoint):
    """What ``save_pretrained`` of transformers writes for a model that is not quantised."""

    format = "huggingface"

    @classmethod
    def claims(cls, config: ModelConfig, files: TensorFiles) -> bool:
        # in a pickle of Paddle's, names like these would say nothing about which way round a linear is
        names = (name for name, tensor in files.tensors.items() if tensor.file.suffix == ".safetensors")
        return config.quantization is None and any(name.startswith("model.") for name in names)

    def locate(self, spec: TensorSpec) -> Source:
        return Source(spec.name)

"""Tiny seeded models for the quantisers: a plain Hugging Face checkpoint, a tokenizer, calibration ids.

Extents are the least that the formats leave several of everything: two layers, two or more groups of 32 inputs, heads that
share keys, and output counts that GPTQ and AWQ can pack (multiples of 32 and, for AWQ's search, of 64).
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

VOCAB = 96
PROMPT_TOKENS = 20
CALIBRATION_ROWS = 8
CALIBRATION_TOKENS = 64

_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,  # gptqmodel would put in one of the real Qwen2
    "tie_word_embeddings": True,
}


#: for schemes without groups: half as wide
NARROW = (("hidden_size", 32), ("intermediate_size", 64))


@dataclasses.dataclass(frozen=True)
class Base:
    """The model that is quantised.

    ``fields`` replace those of the configuration; ``dtype`` is what is stored. ``one_sided_rows`` takes the sign from three rows
    of each ``k_proj``: an asymmetric quantiser then chooses the zero point 0, which GPTQ's first format can hardly store.
    """

    architecture: str = "llama"
    fields: tuple[tuple[str, Any], ...] = ()
    dtype: str = "float32"
    seed: int = 1
    one_sided_rows: bool = False


def random_model(base: Base) -> Any:
    """A transformers model in evaluation mode, weights rounded to ``base.dtype`` and held in it.

    Columns and rows differ in size, as trained ones do, so that groups get different scales, an order of columns by
    activation is not the natural one and smoothing finds something to smooth.
    """
    import torch
    import transformers

    torch.manual_seed(base.seed)
    fields = {**_SIZES, **dict(base.fields)}
    config_class, model_class = {
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }[base.architecture]
    model = model_class(config_class(**fields, attn_implementation="eager")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.2)
            else:
                rows, columns = parameter.shape
                parameter.normal_(0, 0.08 if "layers" in name else 0.15)  # larger ones make attention jump
                parameter.mul_(torch.exp(0.5 * torch.randn(rows, 1))).mul_(torch.exp(0.3 * torch.randn(1, columns)))
            if base.one_sided_rows and name.endswith("k_proj.weight"):
                parameter[3:6].abs_()
    return model.to(getattr(torch, base.dtype))


def write_base(base: Base, directory: Path) -> Path:
    """Write the model and a tokenizer as a Hugging Face checkpoint; an older one there is replaced."""
    shutil.rmtree(directory, ignore_errors=True)
    random_model(base).save_pretrained(directory)
    _tokenizer().save_pretrained(directory)
    return directory


def calibration_ids() -> list[list[int]]:
    """Random ids; no rows are alike."""
    import torch

    generator = torch.Generator().manual_seed(7)
    return torch.randint(3, VOCAB, (CALIBRATION_ROWS, CALIBRATION_TOKENS), generator=generator).tolist()


def prompt_ids() -> list[int]:
    """The ids whose logits are recorded."""
    import torch

    return torch.randint(3, VOCAB, (PROMPT_TOKENS,), generator=torch.Generator().manual_seed(11)).tolist()


def _tokenizer() -> Any:
    """Byte-level BPE of 90 characters and one merge, without which llama.cpp loads no file. There is no text for it to cut."""
    import tokenizers
    import transformers

    special = ["<unk>", "<s>", "</s>", "<|endoftext|>"]  # the last one: Qwen2's tokenizer class would add it, one id too many
    tokens = [*special, *map(chr, range(33, 33 + VOCAB - len(special) - 2)), "Ġ", "th"]
    vocab = {token: index for index, token in enumerate(tokens)}
    model = tokenizers.models.BPE(vocab, [("t", "h")], unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")

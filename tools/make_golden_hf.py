"""Make ``tests/golden/hf``: tiny random models, and what transformers computes with them in float32.

    python tools/make_golden_hf.py --venv DIR [--out tests/golden/hf]

torch and transformers are no dependencies of this project: they go into a virtual environment of their own, ``DIR``,
which is made if it is not there. Each case becomes a directory with a Hugging Face checkpoint and ``golden.npz``:

    prompt_ids  int64   [n]              the prompt
    logits      float32 [n, vocab]       of every prompt position
    greedy_ids  int64   [20]             the greedy continuation, end-of-text ignored
    margin      float32 []               least distance of a greedy token's logit to the runner-up's
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

REQUIREMENTS = ("torch==2.13.0", "transformers==5.23.0", "safetensors", "numpy")

#: greedy ids are compared exactly, so they must not hang on the last bits of a logit
LEAST_MARGIN = 0.02

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One golden directory. ``legacy`` rewrites config.json as transformers before version 5 wrote it."""

    name: str
    architecture: str
    fields: dict[str, Any]
    prompt_tokens: int = 24
    dtype: str = "float32"
    max_shard_size: str = "1GB"
    legacy: bool = False


def _rope(rope_type: str, **more: float) -> dict[str, Any]:
    """Scaled rotary embedding on heads of 16: eight frequencies, so that some fall between "keep" and "stretch"."""
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 4.0, **more}
    return {"num_attention_heads": 2, "num_key_value_heads": 1, "rope_parameters": rope}


_LLAMA3 = _rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
_YARN = _rope("yarn", original_max_position_embeddings=32)
_YARN_FACTOR = _rope("yarn", original_max_position_embeddings=32, attention_factor=0.8)
_BIASES = {"attention_bias": True, "mlp_bias": True}

#: prompts of the scaled cases are longer than the 32 positions the model "was trained for"
CASES = (
    Case("qwen2-gqa-tied", "qwen2", {"tie_word_embeddings": True}),
    Case("qwen2-untied", "qwen2", {"num_hidden_layers": 3}, legacy=True),
    Case("llama-gqa-untied", "llama", {}),
    Case("llama-tied", "llama", {"tie_word_embeddings": True}, legacy=True),
    Case("llama-mha", "llama", {"num_key_value_heads": 4, "vocab_size": 97}),
    Case("llama-mqa", "llama", {"num_key_value_heads": 1}),
    Case("llama-head-dim", "llama", {"head_dim": 12, "hidden_size": 40}),
    Case("llama-biases", "llama", _BIASES),
    Case("llama-rope-llama3", "llama", _LLAMA3, prompt_tokens=80),
    Case("llama-rope-llama3-legacy", "llama", _LLAMA3, prompt_tokens=80, legacy=True),
    Case("llama-rope-linear", "llama", _rope("linear"), prompt_tokens=80),
    Case("qwen2-rope-yarn", "qwen2", _YARN, prompt_tokens=80),
    Case("qwen2-rope-yarn-attention-factor", "qwen2", _YARN_FACTOR, prompt_tokens=80, legacy=True),
    Case("qwen2-bf16-sharded", "qwen2", {"vocab_size": 130}, dtype="bfloat16", max_shard_size="20KB"),
    Case("llama-fp16", "llama", {}, dtype="float16"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--venv", type=Path, required=True, help="where torch and transformers are, or are put")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "tests" / "golden" / "hf")
    arguments = parser.parse_args()
    python = arguments.venv / "bin" / "python"
    if Path(sys.prefix) == arguments.venv.absolute():
        for case in CASES:
            _make(case, arguments.out / case.name)
        return
    if not python.exists():
        venv.create(arguments.venv, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *REQUIREMENTS], check=True)
    command = [python, __file__, "--venv", arguments.venv.absolute(), "--out", arguments.out]
    subprocess.run(command, check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"})


def _make(case: Case, out: Path) -> None:
    """Write one case, with the first seed whose greedy choices are clear."""
    import numpy as np

    shutil.rmtree(out, ignore_errors=True)
    for seed in range(200):
        model, prompt = _random_model(case, seed)
        greedy, margin = _greedy(model, prompt, 20)
        if margin >= LEAST_MARGIN and len(set(greedy)) >= 8:
            break
    else:
        raise SystemExit(f"{case.name}: no seed gives clear and varied greedy ids")
    logits = _logits(model, prompt).numpy()
    # last: converting rounds the rotary frequencies too, which are a buffer of the model and not part of a checkpoint
    model.to(_torch_dtype(case.dtype)).save_pretrained(out, max_shard_size=case.max_shard_size)
    (out / "generation_config.json").unlink(missing_ok=True)
    if case.legacy:
        _rewrite_config(out / "config.json")
    golden = {"prompt_ids": np.array(prompt), "logits": logits, "greedy_ids": np.array(greedy)}
    np.savez(out / "golden.npz", **golden, margin=np.float32(margin))
    print(f"{case.name}: seed {seed}, margin {margin:.3f}, logits std {golden['logits'].std():.2f}, greedy {greedy[:8]}..")


def _random_model(case: Case, seed: int) -> tuple[Any, list[int]]:
    """A model in evaluation mode with weights rounded to the case's type, held in float32; and a prompt."""
    import torch
    import transformers

    torch.manual_seed(seed)
    fields = {**SMALL, "tie_word_embeddings": False, **case.fields}
    config_class, model_class = {
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }[case.architecture]
    config = config_class(**fields, attn_implementation="eager")
    model = model_class(config).eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.7, 1.3)
            elif name.endswith("embed_tokens.weight") and not config.tie_word_embeddings:
                parameter.normal_(0, 1)
            else:
                parameter.normal_(0, 0.3)
            parameter.copy_(parameter.to(_torch_dtype(case.dtype)).float())
    return model, torch.randint(3, fields["vocab_size"], (case.prompt_tokens,)).tolist()


def _torch_dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def _logits(model: Any, ids: list[int]) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].float()


def _greedy(model: Any, prompt: list[int], count: int) -> tuple[list[int], float]:
    """Greedy ids, each from a fresh forward pass over everything before it, and the least margin met."""
    ids = list(prompt)
    margin = float("inf")
    for _ in range(count):
        best = _logits(model, ids)[-1].topk(2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
    return ids[len(prompt) :], margin


def _rewrite_config(file: Path) -> None:
    """``rope_parameters`` and ``dtype`` as before transformers 5: ``rope_theta``, ``rope_scaling``, ``torch_dtype``."""
    config = json.loads(file.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.44.0"
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()

"""A tokenizer small enough to know by heart: bytes, a few words, R1's special tokens and an R1-like template."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
WORDS = ("Hello", "Ġworld", "Let", "Ġme", "Ġthink", "The", "Ġanswer", "Ġis", "Ġ4", "2", "Ċ", "STOP")
ADDED = (
    (EOS, True),
    ("<｜User｜>", False),
    ("<｜Assistant｜>", False),
    (BOS, True),
    ("<think>", False),
    ("</think>", False),
)

TEMPLATE = (
    "{{ bos_token }}"
    "{%- for m in messages %}"
    "{%- if m['role'] == 'system' %}{{ m['content'] }}"
    "{%- elif m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
    "{%- elif m['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + m['content'].split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}"
    "{%- else %}{{ raise_exception('role ' + m['role']) }}{%- endif %}"
    "{%- endfor %}"
    "{%- if shout is defined and shout %}{{ '!' }}{% endif %}"
    "{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)


def write_tokenizer(directory: Path, *, template: str | None = TEMPLATE) -> Path:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json into ``directory``."""
    vocab = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            pair = (word[: end - 1], word[end - 1])
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append(pair)
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for text, special in ADDED:
        token = AddedToken(text, normalized=False, special=special)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos_id)])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"bos_token": BOS, "eos_token": EOS, "add_bos_token": True, "chat_template": template}
    _write(directory / "tokenizer_config.json", config)
    generation = {"eos_token_id": tokenizer.token_to_id(EOS), "do_sample": True, "temperature": 0.6, "top_p": 0.95}
    _write(directory / "generation_config.json", generation)
    return directory


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")

"""What is measured, and on what."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from paddle_ds.errors import ConfigError

#: a file, the ids of one text, or of several
Text = Path | Sequence[int] | Sequence[Sequence[int]]

#: names are parts of keys such as ``loss.wikitext.reference``
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_LEAST = {
    "max_tokens_per_text": 2,
    "window_tokens": 2,
    "greedy_prompts": 0,
    "greedy_tokens": 1,
    "task_limit": 1,
    "max_answer_tokens": 1,
    "speed_tokens": 0,
    "layer_tokens": 0,
}


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """How to measure a checkpoint.

    Attributes:
        texts: name -> running text to predict: a file, or token ids (of one text, or of several). ``None``: texts that the
            reference writes itself.
        tasks: name -> JSON lines of questions with answers. ``None``: small sums where the model has a chat template.
        max_tokens_per_text: predicted tokens of each text. Each takes 4 bytes times the vocabulary in the scratch directory.
        window_tokens: longest piece of text that is predicted in one go, its BOS included.
        greedy_prompts, greedy_tokens: how many prompts are continued greedily, by how many tokens; no prompts: not measured.
        task_limit: questions of each task, picked by ``seed`` where a file has more.
        max_answer_tokens: an answer that is longer is cut, and is wrong.
        temperature, top_p: of answers to questions. 0 is greedy. DeepSeek recommends 0.6 and 0.95 for R1's distilled models.
        speed_tokens: decoded to measure speed; 0: not measured.
        layer_tokens: on which the output errors of layers are measured; 0: not measured.
        seed: picks questions and texts, and samples answers.

    Raises:
        ConfigError: a value is out of range, or a name cannot be part of a key.
    """

    texts: Mapping[str, Text] | None = None
    tasks: Mapping[str, Path] | None = None
    max_tokens_per_text: int = 2048
    window_tokens: int = 512
    greedy_prompts: int = 16
    greedy_tokens: int = 64
    task_limit: int = 40
    max_answer_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    speed_tokens: int = 32
    layer_tokens: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"eval: {name} is {value!r}; expected a whole number of at least {least}")
        if self.texts is not None and not self.texts:
            raise ConfigError("eval: texts is empty; expected at least one text, or None for texts that the model writes itself")
        for name in [*(self.texts or ()), *(self.tasks or ())]:
            if not _NAME.fullmatch(name):
                raise ConfigError(f"eval: {name!r} cannot name a text or task; expected letters, digits, - and _ alone")

    def without_extras(self, *, keep_tasks: bool) -> EvalConfig:
        """What budgets look at alone: texts, and tasks if wanted."""
        tasks = self.tasks if keep_tasks else {}
        return dataclasses.replace(self, tasks=tasks, greedy_prompts=0, speed_tokens=0, layer_tokens=0)

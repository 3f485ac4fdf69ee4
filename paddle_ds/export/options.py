"""What an export is asked for. No paddle here."""

from __future__ import annotations

import dataclasses
import typing
from typing import Literal

from paddle_ds.config.engine import Quant
from paddle_ds.config.model import ModelConfig
from paddle_ds.errors import ConfigError

#: ``compiled``: the project's operators, in a library beside the program; CPU. ``plain``: Paddle's own operators only; any device
Operators = Literal["compiled", "plain"]


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """
    Attributes:
        quant: as in ``EngineConfig``.
        max_context_tokens: longest prompt plus answer; ``None``: the model's own.
        all_logits: return the logits of every new token, not of the last alone.
    """

    quant: Quant = "auto"
    operators: Operators = "compiled"
    max_context_tokens: int | None = None
    all_logits: bool = False

    def __post_init__(self) -> None:
        if self.operators not in typing.get_args(Operators):
            raise ConfigError(f"operators is {self.operators!r}; expected one of {', '.join(typing.get_args(Operators))}")
        if self.max_context_tokens is not None and self.max_context_tokens < 1:
            raise ConfigError(f"max_context_tokens is {self.max_context_tokens}; expected at least 1")

    def context_tokens(self, model: ModelConfig) -> int:
        """Positions that the program will know.

        Raises:
            ConfigError: more are asked for than the model was made for.
        """
        known = model.max_position_embeddings
        if self.max_context_tokens is not None and self.max_context_tokens > known:
            raise ConfigError(f"max_context_tokens is {self.max_context_tokens}; the model was made for {known}")
        return self.max_context_tokens or known

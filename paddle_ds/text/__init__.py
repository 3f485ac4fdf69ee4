"""Text to token ids and back."""

from paddle_ds.text.detokenizer import IncrementalDetokenizer
from paddle_ds.text.messages import normalise_messages
from paddle_ds.text.reasoning import ReasoningMode, ReasoningSplitter, SplitText, starts_inside_reasoning
from paddle_ds.text.stop import StopChecker, StopResult
from paddle_ds.text.stream import TextDelta, TextStream
from paddle_ds.text.template import ChatTemplate
from paddle_ds.text.tokenizer import Tokenizer

__all__ = [
    "ChatTemplate",
    "IncrementalDetokenizer",
    "ReasoningMode",
    "ReasoningSplitter",
    "SplitText",
    "StopChecker",
    "StopResult",
    "TextDelta",
    "TextStream",
    "Tokenizer",
    "normalise_messages",
    "starts_inside_reasoning",
]

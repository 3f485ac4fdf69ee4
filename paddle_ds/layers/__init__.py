"""Building blocks of a decoder: parameters bound to the operators that were chosen for them. Thin, device-blind."""

from paddle_ds.layers.embedding import Embedding, MappedEmbedding
from paddle_ds.layers.linear import Linear, Shared, SideBySide
from paddle_ds.layers.norm import RMSNorm
from paddle_ds.layers.rotary import RotaryTable

__all__ = ["Embedding", "Linear", "MappedEmbedding", "RMSNorm", "RotaryTable", "Shared", "SideBySide"]

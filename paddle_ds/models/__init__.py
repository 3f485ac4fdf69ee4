"""The decoder that every supported architecture is an instance of."""

from paddle_ds.models.decoder import Decoder, ParameterSource

__all__ = ["Decoder", "ParameterSource"]

"""What a model is, how the engine runs it, and what a request asks for: plain frozen records, no paddle."""

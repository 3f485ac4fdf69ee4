"""The step loop, the engine process around it, and the offline ``LLM``."""

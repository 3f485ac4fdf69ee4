"""Parts of ``tools/soak_engine.py``."""

"""The command ``paddle-ds``."""

"""Checkpoints as programs for Paddle Inference: ``paddle_ds.export.directory.export_checkpoint``."""

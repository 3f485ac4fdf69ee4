"""Post-training quantisation and distillation. Nothing the server needs at run time."""

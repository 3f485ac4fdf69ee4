"""``python -m paddle_ds`` is ``paddle-ds``."""

from paddle_ds.cli.main import main

main()

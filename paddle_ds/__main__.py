"""``python -m paddle_ds`` is ``paddle-ds``; and ``python -m paddle_ds doctor`` works before anything is installed."""

import sys

try:
    from paddle_ds.cli.main import main
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] == "paddle_ds":
        raise
    if sys.argv[1:2] != ["doctor"]:
        sys.exit(f"paddle-ds needs {error.name}, which is not installed. For all that is missing: python -m paddle_ds doctor")
    from paddle_ds.cli.doctor import without_click

    sys.exit(without_click(sys.argv[2:]))

main()

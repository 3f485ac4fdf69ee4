#!/usr/bin/env python3
"""Load a server with open streams, slow readers among them, and stop it under streams.

    tools/load_trial.py clients --clients 1000 --slow 100
    tools/load_trial.py stop --streams 32
    tools/load_trial.py stop --streams 32 --grace 2

Each trial starts its own server with the embedded model, prints one JSON object and its rows of the table in docs/reliability.md.
Exit status 1 where a client saw what the documents do not name, memory grew, a stream was cut, or something was left behind.
"""

from __future__ import annotations

import sys

from trials import sse_load, stop
from trials.command import main

if __name__ == "__main__":
    sys.exit(main(__doc__, {"clients": sse_load, "stop": stop}))

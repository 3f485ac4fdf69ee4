#!/usr/bin/env python3
"""Harm a running server and count what its clients saw: hot updates under streams, kill -9 of each of its processes, and more.

    tools/fault_trial.py update --seconds 300 --every 20 --streams 16
    tools/fault_trial.py kill --times 20 --streams 8
    tools/fault_trial.py hostile --requests 20000 --seed 1 --install
    tools/fault_trial.py disk; … redis; … clock; … delay

Each trial starts its own server with the embedded model, prints one JSON object and its rows of the table in docs/reliability.md.
Exit status 1 where a request was lost, versions were mixed, or something did not come back.
"""

from __future__ import annotations

import sys

from trials import checkpoints, clock, delay, disk, hostile, kills, redis_restart, updates
from trials.command import main

if __name__ == "__main__":
    harms = {"update": updates, "kill": kills, "hostile": hostile, "checkpoint": checkpoints}
    surroundings = {"disk": disk, "redis": redis_restart, "clock": clock, "delay": delay}
    sys.exit(main(__doc__, {**harms, **surroundings}))

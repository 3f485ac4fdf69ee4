"""``python flag_scenarios.py DEVICE SCENARIOS``: apply memory flags, each scenario in a child of its own; a line of JSON each.

Paddle is imported once; a child is forked before any tensor is made, since the first one decides the allocator's flags for good.
A scenario is an object: ``wanted`` (flags), ``strict``, ``tensor_first`` (make one before), or ``ignored`` (variables).
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
from typing import Any

from paddle_ds import logs
from paddle_ds.devices import environment
from paddle_ds.devices.base import Device
from paddle_ds.devices.discovery import open_device
from paddle_ds.devices.flag_measures import omp_threads
from paddle_ds.devices.flags import apply_flags, ignored_variables
from paddle_ds.errors import PaddleDSError


def run(scenario: dict[str, Any], device: Device) -> dict[str, Any]:
    if "ignored" in scenario:
        return {"reports": [dataclasses.asdict(report) for report in ignored_variables(scenario["ignored"])]}
    import paddle

    if scenario.get("tensor_first"):
        paddle.set_device(device.name)
        paddle.empty([1024])
        paddle.set_device("cpu")
    before = [paddle.device.get_device(), os.environ.get("OMP_NUM_THREADS")]
    try:
        reports = apply_flags(scenario["wanted"], device, strict=scenario.get("strict", False))
    except PaddleDSError as error:
        return {"error": error.code, "message": error.message}
    after = [paddle.device.get_device(), str(omp_threads())]
    return {"reports": [dataclasses.asdict(report) for report in reports], "before": before, "after": after}


def main(device_name: str, scenarios: str) -> None:
    logs.configure("info", "text")
    environment.prepare(None)
    environment.import_paddle()
    for scenario in json.loads(scenarios):
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                print(json.dumps(run(scenario, open_device(device_name))), flush=True)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        if os.waitpid(child, 0)[1] != 0:
            sys.exit(f"scenario failed: {scenario}")


if __name__ == "__main__":
    main(*sys.argv[1:])

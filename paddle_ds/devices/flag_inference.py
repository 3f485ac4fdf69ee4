"""``python -m paddle_ds.devices.flag_inference``: what ``Config.enable_memory_optim`` saves in a small exported program.

Prints two peaks in bytes as JSON, without it and with it. A process of its own, because a predictor leaves its threads behind and
OpenMP with a single one.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paddle_ds.devices import environment

WIDTH = 256
_ROWS, _LAYERS, _WARM_UPS, _RUNS = 2048, 6, 3, 16


def optimise_inference(config: Any, program: Path) -> None:
    """``config.enable_memory_optim()`` for the exported ``program``, in the way that Paddle accepts.

    Programs in the new format (``.json``) are refused with "Not find predictor_id ... memory_optimize_pass" (Paddle issue 75496)
    unless the new executor and the new representation are asked for before. In the old format (``.pdmodel``) the latter breaks
    a program.
    """
    if program.suffix == ".json":
        config.enable_new_executor()
        config.enable_new_ir()
    config.enable_memory_optim()


def export_chain(directory: Path) -> Path:
    """Export a few linear layers in a row; the program's path, in the format that ``FLAGS_enable_pir_api`` asks for."""
    import paddle

    layers = paddle.nn.Sequential(*(paddle.nn.Linear(WIDTH, WIDTH) for _ in range(_LAYERS)))
    layers.eval()
    paddle.jit.save(layers, str(directory / "chain"), input_spec=[paddle.static.InputSpec([None, WIDTH], "float32", "x")])
    return next(path for path in directory.iterdir() if path.suffix in (".json", ".pdmodel"))


def peaks(program: Path) -> list[int]:
    """Peak of Paddle's tensors on the CPU while ``program`` runs, as it is and optimised. Each in a child of its own."""
    return [_in_child(functools.partial(_peak, program, optimised)) for optimised in (False, True)]


def _peak(program: Path, optimised: bool) -> int:
    """The least of several runs, because the executor's threads free some tensors late; the first ones differ."""
    import numpy as np
    from paddle import inference

    from paddle_ds.devices.cpu import CpuDevice
    from paddle_ds.devices.flag_measures import Statistics

    config = inference.Config(str(program), str(program.with_suffix(".pdiparams")))
    config.disable_glog_info()
    if optimised:
        optimise_inference(config, program)
    predictor = inference.create_predictor(config)
    predictor.get_input_handle(predictor.get_input_names()[0]).copy_from_cpu(np.ones((_ROWS, WIDTH), dtype=np.float32))
    for _ in range(_WARM_UPS):
        predictor.run()
    statistics = Statistics(CpuDevice())
    # some memory goes back after a run has ended: what counts is the whole, not what a run adds
    return min(statistics.allocated_bytes + statistics.peak_bytes(predictor.run) for _ in range(_RUNS))


def _in_child(work: Callable[[], int]) -> int:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, str(work()).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="ascii") as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return int(text)


def main() -> None:
    environment.prepare(None)
    environment.import_paddle()
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(peaks(export_chain(Path(scratch)))))


if __name__ == "__main__":
    main()

"""What the table of flags says of static and of exported programs, measured there."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from devices.flag_processes import python

# what the table says of static programs, measured there: names of what differs
STATIC_PROGRAM = """
import ctypes, json, os, sys
from pathlib import Path
from paddle_ds.devices import environment
environment.prepare(None); environment.import_paddle()
import numpy as np, paddle
from paddle_ds.devices import flag_measures as measures
from paddle_ds.devices.cpu import CpuDevice

def peak(elementwise, **flags):
    before = paddle.get_flags(list(flags)); paddle.set_flags(flags); paddle.enable_static()
    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()):
        value = paddle.static.data("x", [256, 512]); factor = paddle.full([512, 512], 0.001)
        for _ in range(16):
            value = paddle.tanh(value + 1.0) if elementwise else paddle.matmul(value, factor)
        result = paddle.sum(value)
    executor = paddle.static.Executor(paddle.CPUPlace())
    feed = {"x": np.ones((256, 512), "float32")}
    with paddle.static.scope_guard(paddle.static.Scope()):
        work = lambda: executor.run(program, feed=feed, fetch_list=[result])
        peaks = measures.Statistics(CpuDevice()).peak_bytes(work, times=1 if flags.get("FLAGS_eager_delete_tensor_gb") else 5)
    paddle.disable_static(); paddle.set_flags(before)
    return peaks

library = ctypes.CDLL(str(Path(paddle.__file__).parent / "libs" / "libdnnl.so.3")); library.dnnl_set_verbose(1)
plain = measures._printed(lambda: peak(False)); onednn = measures._printed(lambda: peak(False, FLAGS_use_mkldnn=True))
library.dnnl_set_verbose(0)
print(json.dumps({
    "onednn": [b"onednn_verbose" in plain, b"onednn_verbose" in onednn],
    "freed": peak(False), "kept": peak(False, FLAGS_eager_delete_tensor_gb=-1.0),
    "fraction": peak(False, FLAGS_memory_fraction_of_eager_deletion=0.0),
    "in place": peak(True, FLAGS_eager_delete_tensor_gb=-1.0),
    "beside": peak(True, FLAGS_eager_delete_tensor_gb=-1.0, FLAGS_pir_apply_inplace_pass=False),
    "tensor": 256 * 512 * 4,
}))
"""

# a .json program refuses enable_memory_optim as it is, and takes it in the way that flag_inference.py asks
INFERENCE_PROGRAM = """
import json, tempfile
from pathlib import Path
from paddle_ds.devices import environment
environment.prepare(None); environment.import_paddle()
from paddle import inference
from paddle_ds.devices.flag_inference import WIDTH, export_chain, optimise_inference, peaks
import numpy as np

def answer(program, apply):
    config = inference.Config(str(program), str(program.with_suffix(".pdiparams"))); config.disable_glog_info()
    apply(config)
    predictor = inference.create_predictor(config)
    predictor.get_input_handle(predictor.get_input_names()[0]).copy_from_cpu(np.ones((4, WIDTH), dtype=np.float32))
    predictor.run()
    return predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu().tolist()

with tempfile.TemporaryDirectory() as scratch:
    program = export_chain(Path(scratch))
    seen = peaks(program)
    try:
        answer(program, lambda config: config.enable_memory_optim()); refusal = ""
    except ValueError as error:
        refusal = str(error)
    same = answer(program, lambda config: None) == answer(program, lambda config: optimise_inference(config, program))
    print(json.dumps({"format": program.suffix, "refusal": refusal, "same": same, "peaks": seen}))
"""


@pytest.mark.floor
def test_flags_of_static_programs_act_there() -> None:
    seen = json.loads(python("-c", STATIC_PROGRAM).stdout.splitlines()[-1])
    tensor = seen["tensor"]
    assert seen["onednn"] == [False, True]
    assert seen["kept"] >= 16 * tensor > 12 * tensor >= seen["freed"]
    assert seen["fraction"] <= 12 * tensor
    assert seen["beside"] >= 32 * tensor > 12 * tensor >= seen["in place"]


@pytest.fixture(scope="module")
def inference() -> list[subprocess.CompletedProcess[str]]:
    with ThreadPoolExecutor(2) as pool:
        new = pool.submit(python, "-c", INFERENCE_PROGRAM)
        old = pool.submit(python, "-m", "paddle_ds.devices.flag_inference", FLAGS_enable_pir_api="0")
        return [new.result(), old.result()]


def test_memory_optim_is_refused_by_a_json_program_and_accepted_with_the_new_executor(
    inference: list[subprocess.CompletedProcess[str]],
) -> None:
    seen = json.loads(inference[0].stdout.splitlines()[-1])
    assert seen["format"] == ".json"
    assert "memory_optimize_pass" in seen["refusal"]
    assert seen["same"]


def test_memory_optim_saves_memory_in_the_old_format_alone(inference: list[subprocess.CompletedProcess[str]]) -> None:
    plain, optimised = json.loads(inference[0].stdout.splitlines()[-1])["peaks"]
    assert optimised >= plain
    plain, optimised = json.loads(inference[1].stdout.splitlines()[-1])
    assert optimised < plain

"""Lines of Paddle's verbose log as its versions write them, shortened; and a stand-in for a node of its profiler."""

from __future__ import annotations

from dataclasses import dataclass, field

from paddle.base import core

#: softmax falls back, reshape is a view, a custom operator runs, a copy outside of calls follows
LOG_3_3 = """
I1122 23:31:29.616779  5611 ops_api.cc:8626] Call eager_api_softmax
I1122 23:31:29.616803  5611 dygraph_functions.cc:127570]
==========================Running_AD_API: softmax==========================
I1122 23:31:29.616807  5611 api.cc:145619] softmax API kernel key: [npu, NCHW, float32]
I1122 23:31:29.616811  5611 kernel_factory.cc:389] missing npu kernel: softmax, expected_kernel_key:(npu, Undefined(AnyLayout), \
float32), fallbacking to CPU one!
I1122 23:31:29.616827  5611 memcpy.cc:53] memory::Copy 24 Bytes from Place(npu:0) to Place(cpu), stream=0
I1122 23:31:29.616830  5611 memcpy.cc:981] memory::Copy 999 Bytes from Place(cpu) to Place(cpu)
I1122 23:31:29.616947  5611 memcpy.cc:74] memory::Copy 16 Bytes from Place(cpu) to Place(npu:0), stream=0
I1122 23:31:29.616979  5611 dygraph_functions.cc:127573]
==========================Finish_AD_API: softmax==========================
==========================Running_AD_API: reshape==========================
I1122 23:31:29.993311  3174 api.cc:105393] reshape API kernel key: [npu, NCHW, float32]
I1122 23:31:29.993312  3174 api.cc:105400] reshape kernel: {"input":[
	backend: CUSTOM,  layout: STRIDED,  dtype: float32
==========================Finish_AD_API: reshape==========================
I1122 23:31:29.994000  3174 memcpy.cc:53] memory::Copy 4096 Bytes from Place(npu:0) to Place(cpu), stream=0
I1122 23:31:29.995286  3174 eager_functions.cc:745] Run Kernel of Custom Op: pds_decoder
"""

#: the same call on the CPU; this version writes one line where the later one writes two
LOG_3_0 = """
I1122 23:43:48.620798 16382 dygraph_functions.cc:87660] Running AD API: softmax
I1122 23:43:48.622596 16382 api.cc:130438] softmax API kernel key: [CPU, NCHW, float32]
I1122 23:43:48.622718 16382 dygraph_functions.cc:87797] Finish AD API: softmax
"""


@dataclass
class Node:
    """What is read of ``core.HostPythonNode``; times in nanoseconds."""

    name: str
    start_ns: int
    end_ns: int
    children_node: list[Node] = field(default_factory=list)

    @property
    def type(self) -> object:
        return core.TracerEventType.Operator if self.name.endswith(" dygraph") else core.TracerEventType.OperatorInner

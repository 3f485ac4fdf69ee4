"""What the vendors' tools print, for two devices each. Written after the layouts that their documents and public issues show (the
profiles say which), with figures of our own. None of it was captured on hardware.
"""

from __future__ import annotations

NPU = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 24.1.0                   Version: 24.1.0                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B3               | OK            | 91.5        41                0    / 0             |
| 0                         | 0000:C1:00.0  | 37          0    / 0          12288/ 65536         |
+===========================+===============+====================================================+
| 1     910B3               | Warning       | 88.0        44                0    / 0             |
| 0                         | 0000:C2:00.0  | 0           0    / 0          3316 / 65536         |
+===========================+===============+====================================================+
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 0       0                 | 4711          | python                   | 9012                    |
+===========================+===============+====================================================+
| No running processes found in NPU 1                                                            |
+===========================+===============+====================================================+
"""

MLU = """\
+------------------------------------------------------------------------------+
| CNMON v5.10.22                                               Driver v5.10.22 |
+-------------------------------+----------------------+-----------------------+
| Card  VF  Name       Firmware |               Bus-Id | Util        Ecc-Error |
| Fan   Temp      Pwr:Usage/Cap |         Memory-Usage | SR-IOV   Compute-Mode |
|===============================+======================+=======================|
| 0     /   MLU370-X8    v1.1.6 |         0000:5E:00.0 | 12%               N/A |
|  0%   36C        110 W/ 250 W |  4096 MiB/ 23374 MiB | N/A           Default |
+-------------------------------+----------------------+-----------------------+
| 1     /   MLU370-X8    v1.1.6 |         0000:62:00.0 | 0%                N/A |
|  0%   33C         71 W/ 250 W |     0 MiB/ 23374 MiB | N/A           Default |
+-------------------------------+----------------------+-----------------------+

+------------------------------------------------------------------------------+
| Processes:                                                                   |
|  Card  MI  PID     Command Line                             MLU Memory Usage |
|==============================================================================|
|  0     /   4711    python                                           4021 MiB |
+------------------------------------------------------------------------------+
"""

XPU = (
    '00000000:0a:00.0 0 0 02K00A000000001 41 0 0 0 91 1450 1450 1450 1450 1450 1450 2 96 24576 98304 63 1.0:2.6 "P800 OAM" 0 0\n'
    '00000000:0b:00.0 1 1 02K00A000000002 38 0 0 0 86 1450 1450 1450 1450 1450 1450 2 96 0 98304 0 1.0:2.6 "P800 OAM" 0 0\n'
)

DCU = """\
{"card0": {"Average Graphics Package Power (W)": "81.0",
 "Temperature (Sensor edge) (C)": "39.0", "Temperature (Sensor junction) (C)": "43.0",
 "HCU use (%)": "25.0", "vram Total Memory (MiB)": "65520", "vram Total Used Memory (MiB)": "2048"},
 "card1": {"Average Graphics Package Power (W)": "74.0", "Temperature (Sensor junction) (C)": "35.0",
 "HCU use (%)": "0.0", "vram Total Memory (MiB)": "65520", "vram Total Used Memory (MiB)": "2"}}
"""

#: an older release: bytes, other names, a warning before the object
DCU_OLDER = """\
WARNING: AMD GPU device(s) is/are in a low-power state.
{"card0": {"Temperature (Sensor edge) (C)": "30.0", "DCU use (%)": "50", "vram Total Memory (B)": "17163091968",
 "vram Total Used Memory (B)": "1048576"}, "system": {"Driver version": "5.16.18"}}
"""

GCU = """\
----------------------------------------------------------------------------
------------------- Enflame System Management Interface --------------------
----------------------------------------------------------------------------

DEV ID 0
    Power Info
        Power Capa              : 300 W
        Cur Power               : 104 W
    Device Mem Info
        Total Size              : 42976 MiB
        Used Size               : 8192 MiB
    Temperature Info
        GCU Temp                : 42 C
    Device Usage Info
        GCU Usage               : 58.5 %
DEV ID 1
    Power Info
        Cur Power               : 50 W
    Device Mem Info
        Total Size              : 42976 MiB
        Used Size               : 0 MiB
    Temperature Info
        GCU Temp                : 34 C
    Device Usage Info
        GCU Usage               : 0.0 %
"""

#: an older driver: other names for memory, no power
GCU_OLDER = """\
DEV ID 0
\tDevice Mem Info
\t\tMem Size                : 42976 MiB
\t\tMem Usage               : 1129 MiB
\t\tMem Ecc                 : enable
\tTemperature Info
\t\tGCU Temp                : 34 C
\tDevice Usage Info
\t\tGCU Usage               : 0.0 %
"""

ILUVATAR = """\
+-----------------------------------------------------------------------------+
|  IX-ML: 4.3.8       Driver Version: 4.3.8       CUDA Version: 10.2          |
|-------------------------------+----------------------+----------------------|
| GPU  Name                     | Bus-Id               | Clock-SM  Clock-Mem  |
| Fan  Temp  Perf  Pwr:Usage/Cap|      Memory-Usage    | GPU-Util  Compute M. |
|===============================+======================+======================|
| 0    Iluvatar BI-V150         | 00000000:1A:00.0     | 1500MHz   1600MHz    |
| N/A  44C   P0    N/A / N/A    | 8192MiB / 32768MiB   | 71%       Default    |
+-------------------------------+----------------------+----------------------+
| 1    Iluvatar BI-V150         | 00000000:1D:00.0     | 1500MHz   1600MHz    |
| N/A  39C   P0    112W / 350W  | 64MiB / 32768MiB     | 0%        Default    |
+-------------------------------+----------------------+----------------------+

+-----------------------------------------------------------------------------+
| Processes:                                                       GPU Memory |
|  GPU        PID      Process name                                Usage(MiB) |
|=============================================================================|
|    0       4711      python                                      8128       |
+-----------------------------------------------------------------------------+
"""

METAX = """\
mx-smi  version: 2.2.8

=================== MetaX System Management Interface Log ===================
Timestamp                                         : Mon Mar  2 10:00:00 2026

Attached GPUs                                     : 2
+---------------------------------------------------------------------------------+
| MX-SMI 2.2.8                        Kernel Mode Driver Version: 3.0.11          |
| MACA Version: 3.3.0.10              BIOS Version: 1.26.1.0                      |
|------------------------------------+---------------------+----------------------+
| GPU         NAME                   | Bus-id              | GPU-Util             |
| Temp        Pwr:Usage/Cap          | Memory-Usage        | GPU-State            |
|====================================+=====================+======================|
| 0           MetaX C550             | 0000:2a:00.0        | 80%                  |
| 48C         210W / 450W            | 16384/65536 MiB     | Available            |
+------------------------------------+---------------------+----------------------+
| 1           MetaX C550             | 0000:3a:00.0        | 0%                   |
| 34C         97W / NA               | 858/65536 MiB       | Available            |
+------------------------------------+---------------------+----------------------+
+---------------------------------------------------------------------------------+
| Process:                                                                        |
|  GPU                    PID         Process Name                 GPU Memory     |
|                                                                  Usage(MiB)     |
|=================================================================================|
|  0                     4711         python                       15526          |
+---------------------------------------------------------------------------------+
"""

#: modules 5 and 4, in the order of their indices
HPU = """\
5, 24576 MiB, 98304 MiB, 33 %, 47 C, 231 W
4, 768 MiB, 98304 MiB, 0 %, 29 C, 86 W
"""

GPU = """\
0, 4096, 81920, 66, 51, 287.41
1, 3, 81920, 0, 30, [N/A]
"""

#: profile -> output
SAMPLES = {
    "npu": NPU,
    "mlu": MLU,
    "xpu": XPU,
    "dcu": DCU,
    "gcu": GCU,
    "iluvatar_gpu": ILUVATAR,
    "metax_gpu": METAX,
    "intel_hpu": HPU,
    "gpu": GPU,
}

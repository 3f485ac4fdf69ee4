"""``paddle-ds doctor``: Python, the compiler, the processor and its memory, limits, directories and ports."""

from __future__ import annotations

import collections
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from paddle_ds.cli.checks import Context, Distribution, Finding, Questions, compiler, machine, server, system
from paddle_ds.cli.checks.context import run
from paddle_ds.kernels import build

ROOT = Path(__file__).parents[3]


def told(findings: Iterator[Finding]) -> dict[str, Finding]:
    """By code."""
    return {finding.code: finding for finding in findings}


def write(root: Path, **texts: str) -> Context:
    """A system whose files below ``root`` have these texts; ``__`` stands for ``/``."""
    for name, text in texts.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Context(installed={}, root=root)


def test_the_program_and_a_python_that_nobody_has_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(system.program(Context(installed={})))["program"].level == "ok"
    monkeypatch.setattr(platform, "python_version_tuple", lambda: ("3", "99", "0"))
    assert told(system.program(Context(installed={})))["python_untested"].fix == "use Python 3.11"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PADDLE_DS_NUM_THREADS", "many", "PADDLE_DS_NUM_THREADS='many' is wrong"),
        ("PADDLE_DS_NUM_THREDS", "2", "unknown variable PADDLE_DS_NUM_THREDS; known: "),
    ],
)
def test_a_bad_variable_is_an_error_and_checks_that_need_it_are_skipped(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    (found,) = system.environment(Context(installed={}))
    assert (found.code, found.level, said in found.text) == ("variable_wrong", "error", True)
    skipped = run([("directories", server.directories), ("environment", system.before_paddle)], Context(installed={}))
    assert [finding.code for finding in skipped] == ["check_skipped", "check_skipped"]


def test_what_is_set_for_a_chip_before_paddle_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLAGS_npu_jit_compile", raising=False)
    found = list(system.before_paddle(Context(Questions(device="npu:0"), installed={})))
    assert {finding.code for finding in found} == {"variable_set"}
    assert "FLAGS_npu_jit_compile=0 is set before Paddle is loaded" in [finding.text for finding in found]


@pytest.mark.parametrize(
    ("script", "code", "text"),
    [
        ("echo my compiler 1.2", "compiler", "my compiler 1.2"),
        ("echo broken >&2; exit 3", "compiler_unusable", "ends with status 3 (broken)"),
        ('case "$*" in *-march*) echo what is that >&2; exit 1;; esac; echo cc 4.8', "compiler_unusable", "cc 4.8 refuses what"),
    ],
)
@pytest.mark.parametrize("arguments", ["", " -O2"])
@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere the loops are built for the oldest processor only")
def test_the_compiler_in_cxx_is_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, code: str, text: str, arguments: str
) -> None:
    path = tmp_path / "my-c++"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", f"{path}{arguments}")
    (found,) = compiler.check(Context(installed={}))
    assert (found.code, text in found.text, bool(found.fix)) == (code, True, code != "compiler")


def test_no_compiler_is_found_with_a_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    (found,) = compiler.check(Context(installed={}))
    assert (found.code, found.level, found.fix) == ("no_compiler", "warning", "apt-get install g++")


def test_no_compiler_is_needed_where_the_operators_came_along(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "PREBUILT", tmp_path)
    library = tmp_path / build.prebuilt_key("3.3.1") / build.LIBRARY
    library.parent.mkdir()
    library.touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    context = Context(installed={"paddlepaddle": Distribution("paddlepaddle", "3.3.1")})
    assert [finding.code for finding in compiler.check(context)] == ["compiler_not_needed"]


def test_a_compiler_that_cannot_be_taken_apart_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "'unbalanced")
    (found,) = compiler.check(Context(installed={}))
    assert (found.code, found.level, found.fix) == ("compiler_setting_wrong", "error", "correct or unset CXX")


def test_processor_and_memory_are_told() -> None:
    found = told(machine.processor(Context(installed={})))
    assert "usable cores" in found["processor"].text
    assert found["memory"].text.endswith("GB available")


def test_a_processor_without_avx2_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.read_text
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(
        Path, "read_text", lambda path, **how: "flags\t: sse4_2 avx\n" if str(path) == "/proc/cpuinfo" else real(path, **how)
    )
    assert told(machine.processor(Context(installed={})))["processor_slow"].level == "warning"


def test_cores_on_one_node_need_no_binding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    nodes = {"sys__devices__system__node__node0__cpulist": "0-3\n", "sys__devices__system__node__node1__cpulist": "4-7\n"}
    (found,) = machine.nodes(write(tmp_path, **nodes))
    assert (found.code, found.text) == ("numa", "all usable cores are on one node (0)")


def test_cores_on_several_nodes_are_to_be_bound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 4, 5, 7})
    nodes = {"sys__devices__system__node__node0__cpulist": "0-3\n", "sys__devices__system__node__node1__cpulist": "4-5,7\n"}
    (found,) = machine.nodes(write(tmp_path, **nodes))
    assert (found.code, found.level) == ("numa_several", "warning")
    assert "2 nodes (node 0 with 1, node 1 with 3 cores)" in found.text
    assert "numactl --cpunodebind=1 --membind=1 paddle-ds serve" in found.fix
    assert "taskset --cpu-list 4-5,7 paddle-ds serve" in found.fix


@pytest.mark.parametrize(
    ("setting", "code", "text"),
    [
        ("always [madvise] never\n", "huge_pages", "madvise: packed INT8 weights lie in 2 MB pages (the operators ask"),
        ("[always] madvise never\n", "huge_pages", "always: packed INT8 weights lie in 2 MB pages (whoever"),
        ("always madvise [never]\n", "huge_pages_off", "is set to never: packed INT8 weights lie in 4 kB pages"),
        (None, "huge_pages_off", "the kernel has no"),
    ],
)
def test_huge_pages_are_what_the_kernel_says(tmp_path: Path, setting: str | None, code: str, text: str) -> None:
    texts = {} if setting is None else {"sys__kernel__mm__transparent_hugepage__enabled": setting}
    (found,) = machine.huge_pages(write(tmp_path, **texts))
    assert (found.code, text in found.text, bool(found.fix)) == (code, True, code == "huge_pages_off")


def test_limits_of_the_control_group_are_told(tmp_path: Path) -> None:
    texts = {"sys__fs__cgroup__memory.max": "4000000000\n", "sys__fs__cgroup__cpu.max": "150000 100000\n"}
    (found,) = machine.control_groups(write(tmp_path, proc__meminfo="MemTotal: 16000000 kB\n", **texts))
    assert (found.code, found.text) == ("limits", "control group: 4.0 GB of memory, 1.5 cores")


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/system.slice/paddle.service\n", "sys/fs/cgroup/system.slice/memory.max"),
        ("5:cpu:/\n4:memory:/docker/abc\n", "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes"),
        ("4:memory:/docker/abc\n", "sys/fs/cgroup/memory/memory.limit_in_bytes"),
    ],
)
def test_a_limit_that_the_memory_plan_does_not_see_is_found(tmp_path: Path, groups: str, file: str) -> None:
    texts = {"proc__self__cgroup": groups, "proc__meminfo": "MemTotal: 16000000 kB\n", file.replace("/", "__"): "2000000000\n"}
    found = told(machine.control_groups(write(tmp_path, **texts)))["limit_unseen"]
    assert found.level == "warning"
    assert f"{tmp_path / file} limits memory to 2.0 GB" in found.text


def test_no_limit_is_no_finding(tmp_path: Path) -> None:
    texts = {"sys__fs__cgroup__memory__memory.limit_in_bytes": "9223372036854771712\n", "proc__self__cgroup": "4:memory:/\n"}
    found = told(machine.control_groups(write(tmp_path, proc__meminfo="MemTotal: 16000000 kB\n", **texts)))
    assert list(found) == ["limits"]
    assert found["limits"].text == "control group: no limit of memory, no quota of cores"


@pytest.mark.parametrize(
    ("soft", "hard", "code"), [(256, 256, "files_few"), (256, 5000, "files"), (5000, 5000, "files")], ids=str
)
def test_the_limit_of_open_files_is_the_hard_one(soft: int, hard: int, code: str) -> None:
    program = (
        "import json, resource\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "from paddle_ds.cli.checks import Context, machine\n"
        "print(json.dumps([[one.code, one.level, one.text] for one in machine.files(Context(installed={}))]))\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    (found,) = json.loads(done.stdout)
    assert found[:2] == [code, "warning" if code == "files_few" else "ok"]
    assert (f"which the HTTP server raises to {hard}" in found[2]) is (code == "files" and soft < hard)


def test_shared_memory_that_is_absent_or_full_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(installed={}, root=tmp_path)
    assert "there is no" in told(machine.shared_memory(context))["shm_small"].text
    (tmp_path / "dev" / "shm").mkdir(parents=True)
    assert list(told(machine.shared_memory(context))) == ["shm"]
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_blocks=16, f_bavail=1, f_frsize=4096))
    assert "too little for the HTTP workers" in told(machine.shared_memory(context))["shm_small"].text


@pytest.fixture
def _directories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PADDLE_DS_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("PADDLE_DS_CACHE_DIR", str(tmp_path / "cache" / "deep"))


@pytest.mark.usefixtures("_directories")
def test_directories_that_can_be_made_are_good(tmp_path: Path) -> None:
    assert [finding.code for finding in server.directories(Context(installed={}))] == ["directory", "directory"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_directories")
@pytest.mark.parametrize("name", ["RUNTIME", "CACHE"])
def test_a_directory_that_cannot_be_made_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()  # the administrator may write anywhere, but not below a file
    monkeypatch.setenv(f"PADDLE_DS_{name}_DIR", str(tmp_path / "file" / "below"))
    found = [finding for finding in server.directories(Context(installed={})) if finding.code == "directory_unwritable"]
    assert [(finding.level, finding.fix) for finding in found] == [
        ("error", f"set PADDLE_DS_{name}_DIR to a directory you may write to")
    ]


@pytest.mark.usefixtures("_directories")
def test_a_directory_without_permission_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path) and real(path, mode))
    assert [finding.code for finding in server.directories(Context(installed={}))] == ["directory_unwritable"] * 2


@pytest.mark.usefixtures("_directories")
def test_a_runtime_directory_that_others_may_write_to_is_found(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    found = told(server.directories(Context(installed={})))["directory_open"]
    assert (found.level, found.fix) == ("warning", f"chmod go-w {tmp_path / 'run'}")
    (tmp_path / "run").chmod(0o1777)
    assert "directory_open" not in told(server.directories(Context(installed={})))


@pytest.mark.usefixtures("_directories")
@pytest.mark.parametrize(("length", "found"), [(80, False), (81, False), (82, True), (200, True)])
def test_a_path_too_long_for_a_socket_is_found(monkeypatch: pytest.MonkeyPatch, length: int, found: bool) -> None:
    path = "/tmp/" + "x" * (length - 5)
    monkeypatch.setenv("PADDLE_DS_RUNTIME_DIR", path)
    codes = told(server.directories(Context(installed={})))
    assert ("socket_path_too_long" in codes) is found
    refused = pytest.raises(OSError, match="too long" if found else "No such file")
    with socket.socket(socket.AF_UNIX) as probe, refused:  # the system's own opinion: too long, or merely not there
        probe.bind(f"{path}/serve-4194304/engine.sock")


@pytest.mark.usefixtures("_directories")
def test_a_full_disk_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5, 5))
    found = told(server.directories(Context(installed={})))["disk_full"]
    assert (found.level, "0 MB are free" in found.text) == ("warning", True)


@pytest.fixture
def listening() -> Iterator[int]:
    """A port that is taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_a_port_that_was_asked_for_and_is_taken_is_an_error_that_says_by_whom(listening: int) -> None:
    (found,) = server.address(Context(Questions(port=listening), installed={}))
    assert (found.code, found.level) == ("port_taken", "error")
    assert f"127.0.0.1 port {listening} is taken by process {os.getpid()}: " in found.text


def test_the_usual_port_may_be_taken_by_a_server_that_runs(listening: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "DEFAULT_PORT", listening)
    (found,) = server.address(Context(installed={}))
    assert (found.code, found.level) == ("port_taken", "warning")


def test_a_port_is_free_after_all(listening: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
    assert [finding.code for finding in server.address(Context(Questions(port=port), installed={}))] == ["port_free"]


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (None, "give --host an address of this machine"),
        (PermissionError(13, "Permission denied"), "choose a port above 1023 with --port"),
    ],
)
def test_an_address_that_is_not_ours_is_an_error(monkeypatch: pytest.MonkeyPatch, error: OSError | None, fix: str) -> None:
    if error is not None:  # the administrator may take any port

        class Refusing(socket.socket):
            def bind(self, address: object) -> None:
                raise error

        monkeypatch.setattr(socket, "socket", Refusing)
    (found,) = server.address(Context(Questions(host="192.0.2.1", port=80), installed={}))  # of no machine: RFC 5737
    assert (found.code, found.level, found.fix) == ("address_wrong", "error", fix)

"""An exported program answers as the engine does, and the files beside it say the truth and run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from click.testing import CliRunner

from checkpoints import makers
from engine.parity import BLOCK_TOKENS, NUM_BLOCKS, make_runner
from engine.parity import all_logits as engine_logits
from engine.parity import greedy as engine_greedy
from export.host import Host, all_logits, greedy
from export.models import KINDS, Kind
from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.cli.export import export as command
from paddle_ds.config.engine import EngineConfig
from paddle_ds.config.tensors import model_specs
from paddle_ds.devices.cpu import CpuDevice
from paddle_ds.devices.environment import usable_cores
from paddle_ds.engine.assets import EMBEDDED_MODEL, recipe_for
from paddle_ds.errors import CheckpointError, ConfigError, ConfigMismatchError, TruncatedFileError
from paddle_ds.export.directory import export_checkpoint
from paddle_ds.export.options import ExportOptions
from paddle_ds.kernels import native
from paddle_ds.kernels.registry import choose
from paddle_ds.runtime.loader import load_decoder
from paddle_ds.runtime.model_runner import ModelRunner
from paddle_ds.runtime.sampler import Sampler
from paddle_ds.text import Tokenizer

compiled_only = pytest.mark.skipif(native.why_unavailable() is not None, reason=str(native.why_unavailable()))

IDS = [1, 5, 9, 20, 33, 2, 55, 17, 8, *range(30), 7, 7, 41]
#: a prompt, two decoded tokens, a piece that ends beyond the first chunk of attention, one more
PIECES = [IDS[:17], IDS[17:18], IDS[18:19], IDS[19:41], IDS[41:]]


@pytest.fixture(scope="module", autouse=True)
def threads_of_other_tests() -> Iterator[None]:
    """A predictor leaves OpenMP with one thread."""
    yield
    paddle.base.core.set_num_threads(usable_cores())


def export(model: Path, out: Path, **options: Any) -> Path:
    export_checkpoint(model, out, ExportOptions(**options))
    return out


def reference_logits(model: Path, kind: Kind) -> Any:
    """The engine's on plain Paddle operators."""
    with open_checkpoint(model) as checkpoint:
        recipe = recipe_for(checkpoint, EngineConfig(quant=kind.quant))
        decoder = load_decoder(checkpoint, recipe, choose(CpuDevice(), only="reference"))
    runner = ModelRunner(decoder, Sampler(decoder.config.vocab_size), num_blocks=NUM_BLOCKS, block_tokens=BLOCK_TOKENS)
    return engine_logits(runner, IDS)


@compiled_only
@pytest.mark.floor
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_compiled_program_gives_the_engines_logits_to_the_bit(kind: Kind, tmp_path: Path) -> None:
    model = kind.write(tmp_path / "model")
    host = Host(export(model, tmp_path / "out", quant=kind.quant, all_logits=True))
    assert np.array_equal(all_logits(host, PIECES), engine_logits(make_runner(model, kind.quant), IDS))
    assert tuple(host.description["custom_operators"]) == kind.runs


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_plain_program_gives_the_references_logits(kind: Kind, tmp_path: Path) -> None:
    model = kind.write(tmp_path / "model")
    host = Host(export(model, tmp_path / "out", quant=kind.quant, all_logits=True, operators="plain"))
    ours, oracle = all_logits(host, PIECES), reference_logits(model, kind)
    difference = np.abs(ours - oracle) / np.abs(oracle).max()
    assert host.description["custom_operators"] == {}
    # where activations are rounded to integers, a last bit of a norm decides between two of them
    rounds = "w8a8" in host.description["layers"]
    assert difference.max() <= (2e-2 if rounds else 5e-6)
    assert difference.mean() <= (1e-3 if rounds else 5e-7)


def test_a_plain_program_runs_with_onednn_too(tmp_path: Path) -> None:
    model = KINDS["float32, qwen2, yarn"].write(tmp_path / "model")
    out = export(model, tmp_path / "out", quant="none", all_logits=True, operators="plain")
    ours, other = (all_logits(Host(out, onednn=onednn), PIECES) for onednn in (True, False))
    assert np.abs(ours - other).max() <= 5e-6 * np.abs(other).max()


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The embedded model as a program of these operators; exported once."""
    directory = tmp_path_factory.mktemp("embedded")

    def exported(operators: str) -> Path:
        out = directory / operators
        # the plain one with all logits, so that the examples meet both shapes
        return out if out.exists() else export(EMBEDDED_MODEL, out, operators=operators, all_logits=operators == "plain")

    return exported


RUNS_HERE = ["plain"] if native.why_unavailable() else ["compiled", "plain"]
OPERATORS = [pytest.param("compiled", marks=compiled_only), "plain"]
QUESTION = "<｜User｜>What is 3 + 4?<｜Assistant｜><think>\n"


@pytest.fixture(scope="module")
def answer() -> list[int]:
    """What the engine says to :data:`QUESTION`."""
    prompt = Tokenizer.from_dir(EMBEDDED_MODEL).encode(QUESTION)
    return engine_greedy(make_runner(EMBEDDED_MODEL, "auto"), [prompt], 24)[0]


@pytest.mark.parametrize("operators", OPERATORS)
def test_greedy_answers_are_the_engines(operators: str, embedded: Callable[[str], Path], answer: list[int]) -> None:
    out = embedded(operators)
    host = Host(out, capacity=100)
    tokenizer = Tokenizer.from_dir(out)  # its files came along
    # the last of all logits, or the last token's alone
    logits = host.outputs(tokenizer.encode(QUESTION))["logits"]
    assert list(logits.shape)[-1] == 1024
    if operators == "compiled":
        assert logits.shape == (1024,)
        host.description["outputs"][0]["shape"].insert(0, "tokens")
        step = host.append
        host.append = lambda ids: step(ids)[None]  # type: ignore[method-assign]
    assert greedy(host, tokenizer.encode(QUESTION), 24) == answer


def finished(commands: list[list[str]], **options: Any) -> list[str]:
    """What these commands print, run side by side; each must succeed."""
    with contextlib.ExitStack() as stack:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running = [stack.enter_context(subprocess.Popen(command, **pipes, **options)) for command in commands]
        printed = []
        for process in running:
            output, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors[-3000:]
            printed.append(output)
        return printed


def test_the_python_examples_run_without_paddle_ds(embedded: Callable[[str], Path], answer: list[int]) -> None:
    program = (
        "import runpy, sys; script = sys.argv[1]; sys.argv = sys.argv[1:]; runpy.run_path(script, run_name='__main__');"
        "sys.exit(any(name.startswith('paddle_ds') for name in sys.modules))"
    )
    outs = [embedded(name) for name in RUNS_HERE]
    arguments = [QUESTION, "--max-tokens", str(len(answer))]
    printed = finished([[sys.executable, "-c", program, str(out / "example.py"), *arguments] for out in outs], cwd="/")
    wanted = Tokenizer.from_dir(outs[0]).decode(until_end(answer, outs[0]))
    assert [text.strip() for text in printed] == [wanted.strip()] * len(outs)


def until_end(answer: list[int], out: Path) -> list[int]:
    """An answer up to what ends it."""
    end_ids = json.loads((out / "export.json").read_text(encoding="utf-8"))["tokens"]["eos_token_ids"]
    end = next((index for index, token in enumerate(answer) if token in end_ids), len(answer))
    return answer[:end]


def compiler() -> list[str] | None:
    name = os.environ.get("CXX") or "g++"
    return name.split() if shutil.which(name.split()[0]) else None


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
def test_the_cpp_example_gives_the_engines_tokens(embedded: Callable[[str], Path], answer: list[int], tmp_path: Path) -> None:
    """Linked with the library in Paddle's wheel, which lacks the header: ``declared/`` has what the example uses of it.

    The examples are loaded into a Python process, because that library needs Python's symbols.
    """
    wheel = Path(paddle.__file__).parent
    flags = ["-O1", "-std=c++17", "-Wall", "-Werror", "-shared", "-fPIC", f"-I{Path(__file__).with_name('declared')}"]
    linked = [str(wheel / "base" / "libpaddle.so"), f"-Wl,-rpath-link,{wheel / 'libs'}", "-ldl"]
    libraries = {name: tmp_path / f"{name}.so" for name in RUNS_HERE}
    compile_ = [*(compiler() or ()), *flags]
    finished([[*compile_, str(embedded(name) / "example.cc"), "-o", str(path), *linked] for name, path in libraries.items()])
    program = (
        "import ctypes, json, sys, paddle\n"
        "for library, *arguments in json.loads(sys.argv[1]):\n"
        "    texts = [text.encode() for text in ['example', *arguments]]\n"
        "    sys.exit(1) if ctypes.CDLL(library).main(len(texts), (ctypes.c_char_p * len(texts))(*texts)) else None\n"
    )
    prompt = list(map(str, Tokenizer.from_dir(EMBEDDED_MODEL).encode(QUESTION)))
    calls = [[str(path), str(embedded(name)), str(len(answer)), *prompt] for name, path in libraries.items()]
    environ = {**os.environ, "GLOG_minloglevel": "2"}
    (printed,) = finished([[sys.executable, "-c", program, json.dumps(calls)]], env=environ)
    wanted = until_end(answer, embedded(RUNS_HERE[0]))
    assert [list(map(int, line.split())) for line in printed.splitlines()] == [wanted] * len(RUNS_HERE)


@compiled_only
def test_export_json_is_true(embedded: Callable[[str], Path]) -> None:
    out = embedded("compiled")
    host = Host(out, capacity=20)
    said = host.description
    assert set(said["files"]) == {path.name for path in out.iterdir()} - {"export.json"}
    for name, entry in said["files"].items():
        content = (out / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert {"model.json", "model.pdiparams", "libpaddle_ds_ops.so", "tokenizer.json", "example.py", "example.cc"} <= set(
        said["files"]
    )
    extents = {"tokens": 3, "capacity": 20}
    for entry in said["outputs"]:
        array = host.outputs([1, 2, 3])[entry["name"]]
        assert (str(array.dtype), list(array.shape)) == (entry["dtype"], [extents.get(n, n) for n in entry["shape"]])
    assert [list(host.keys.shape)] * 2 == [[extents.get(n, n) for n in entry["shape"]] for entry in said["inputs"][2:]]
    text = (out / "model.json").read_text(encoding="utf-8")
    assert {name for name in said["custom_operators"] if f".{name}" in text} == set(said["custom_operators"])
    assert said["built_with"]["paddle"] == paddle.__version__
    assert said["layers"] == {"w8a8": 29}  # seven in each of four layers, and the head


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    arguments = [str(EMBEDDED_MODEL), str(tmp_path / "out"), "--operators", "plain", "--quant", "w8a16", "--json"]
    result = CliRunner().invoke(command, arguments, env={"GLOG_minloglevel": "2"}, catch_exceptions=False)
    assert json.loads(result.stdout) == json.loads((tmp_path / "out" / "export.json").read_text(encoding="utf-8"))
    assert json.loads(result.stdout)["layers"] == {"w8a16": 29}


@compiled_only
@pytest.mark.parametrize("operators", ["compiled", "plain"])
def test_int8_weights_are_int8_in_the_file(operators: str, tmp_path: Path) -> None:
    model = KINDS["w8a8, tied head, llama3 rope"].write(tmp_path / "model")
    out = export(model, tmp_path / "out", quant="w8a8", operators=operators, max_context_tokens=32)
    weight_bytes = Host(out).description["weight_bytes"]
    with open_checkpoint(model) as checkpoint:
        specs = list(model_specs(checkpoint.config))
    linears = [spec for spec in specs if makers.is_linear(spec.name)]
    head = next(spec for spec in specs if "embed" in spec.name)
    least = sum(spec.num_elements for spec in (*linears, head))
    # this tiny model's sizes are padded to whole groups of 64 for the compiled operators
    assert (least <= weight_bytes["int8"] <= 8 * least) if operators == "compiled" else (weight_bytes["int8"] == least)
    assert weight_bytes["float32"] < 4 * 2 * head.num_elements  # embedding, norms, biases, scales, angles
    size = (out / "model.pdiparams").stat().st_size
    assert sum(weight_bytes.values()) <= size <= sum(weight_bytes.values()) + 100 * 60


def test_a_tied_head_in_floating_point_is_stored_once(tmp_path: Path) -> None:
    sizes = {}
    for tied in (True, False):
        config = makers.config_json(tie_word_embeddings=tied, vocab_size=1000)
        model = makers.write_hf(tmp_path / f"model-{tied}", config, makers.random_tensors(config))
        out = export(model, tmp_path / f"out-{tied}", quant="none", operators="plain")
        sizes[tied] = Host(out).description["weight_bytes"]["float32"]
    assert sizes[False] - sizes[True] == 4 * 1000 * config["hidden_size"]


# what goes wrong


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine", encoding="utf-8")
    with pytest.raises(CheckpointError, match="already there"):
        export(EMBEDDED_MODEL, tmp_path / "out", operators="plain")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_a_damaged_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    model = KINDS["w8a16"].write(tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(TruncatedFileError):
        export(model, tmp_path / "out", operators="plain")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_more_context_than_the_model_was_made_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_context_tokens is 1025; the model was made for 1024"):
        export(EMBEDDED_MODEL, tmp_path / "out", operators="plain", max_context_tokens=1025)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    model = KINDS["w8a16"].write(tmp_path / "model")
    shutil.copyfile(EMBEDDED_MODEL / "tokenizer.json", model / "tokenizer.json")
    with pytest.raises(ConfigMismatchError, match="tokenizer and weights are of different models"):
        export(model, tmp_path / "out", operators="plain")


def test_the_command_says_what_cannot_be_done_here(tmp_path: Path) -> None:
    """Without a compiler, and with Paddle set to its old format; side by side, because importing Paddle takes the time."""
    inherited = {name: value for name, value in os.environ.items() if name != "PADDLE_DS_OPERATORS"}
    cases = [
        ([], {"CXX": "no-such-compiler", "PADDLE_DS_CACHE_DIR": str(tmp_path / "cache")}),
        (["--operators", "plain"], {"FLAGS_enable_pir_api": "0"}),
    ]
    with contextlib.ExitStack() as stack:
        running = []
        for number, (options, variables) in enumerate(cases):
            arguments = [sys.executable, "-m", "paddle_ds", "export", str(EMBEDDED_MODEL), str(tmp_path / f"out-{number}")]
            environ = {**inherited, **variables}
            process = subprocess.Popen([*arguments, *options], env=environ, stderr=subprocess.PIPE, text=True)
            running.append(stack.enter_context(process))
        compiler_said, format_said = (process.communicate(timeout=200)[1] for process in running)
        assert [process.returncode for process in running] == [1, 1]
    assert "error (kernel_error)" in compiler_said
    assert "no C++ compiler 'no-such-compiler'" in compiler_said
    assert "--operators plain" in compiler_said
    assert "error (unsupported): FLAGS_enable_pir_api is off" in format_said
    assert [path for path in tmp_path.iterdir() if "out" in path.name] == []


@pytest.mark.parametrize("operators", OPERATORS)
def test_a_host_that_asks_for_what_is_not_there_is_told(operators: str, embedded: Callable[[str], Path]) -> None:
    host = Host(embedded(operators), capacity=16)
    with pytest.raises(Exception, match="1024"):  # Paddle's own, of several types
        host.outputs([1, 1024])
    if operators == "compiled":
        host.past_length = 17
        with pytest.raises(Exception, match="past_length is 17; past_keys has room for 16 tokens"):
            host.outputs([1])
    host = Host(embedded(operators), capacity=1030)
    host.past_length = 1024
    with pytest.raises(Exception, match="1024"):  # the model's last position is 1023
        host.outputs([1])

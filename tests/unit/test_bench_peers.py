"""``tools/bench_peers.py``: what is computed from the figures, and what is refused. No timings, no network."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import bench_peers
from bench_peers_parts import install, models, ours_alone, table, tune
from bench_peers_parts.chats import PROMPT_TOKENS, write_prompts
from bench_peers_parts.engines import Result, load_settings
from bench_peers_parts.servers import llama_server_arguments
from bench_peers_parts.shell import StepFailed, run_step
from bench_peers_parts.worker import Task

from paddle_ds.engine.assets import EMBEDDED_MODEL
from paddle_ds.text import Tokenizer, normalise_messages


def figures(prefill: float, decode: float, probe: float = 30.0) -> dict[str, float]:
    return {"prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode, "probe_gb_s": probe}


def one_round(ours: float, llama: float, openvino: float) -> dict[str, Any]:
    names = {"ours": ours, "llama.cpp": llama, "openvino": openvino}
    workloads = ("streams_1", "streams_8", "streams_16")
    return {workload: {name: figures(10 * rate, rate) for name, rate in names.items()} for workload in workloads}


def result(**parts: Any) -> dict[str, Any]:
    return {
        "facts": {"linear_weights": 1_000_000_000, "head_weights": 500_000_000, "int8_bytes": 1_500_000_000},
        "unavailable": {},
        "failed": {},
        **parts,
    }


def row(rows: list[table.Row], figure: str, value_is: str = "") -> table.Row:
    (found,) = (each for each in rows if each.figure.startswith(figure) and value_is in each.value_is)
    return found


def test_ratio_is_the_median_of_ratios_within_a_round() -> None:
    rounds = [{"ours": 10.0, "llama.cpp": 5.0}, {"ours": 30.0, "llama.cpp": 10.0}, {"ours": 8.0, "llama.cpp": 8.0}]
    assert table.median_ratio(rounds, ["llama.cpp"]) == 2.0


def test_ratio_is_to_the_better_peer_of_each_round() -> None:
    rounds = [{"ours": 12.0, "llama.cpp": 4.0, "openvino": 6.0}, {"ours": 12.0, "llama.cpp": 4.0, "openvino": 3.0}]
    assert table.median_ratio(rounds, table.PEERS) == 2.5


@pytest.mark.parametrize("rounds", [[], [{"ours": 1.0}], [{"llama.cpp": 1.0}]], ids=["no-round", "no-peer", "not-ours"])
def test_no_ratio_without_both(rounds: list[dict[str, float]]) -> None:
    assert table.median_ratio(rounds, table.PEERS) is None


def test_rounds_after_a_peer_died_do_not_count() -> None:
    assert table.median_ratio([{"ours": 4.0, "openvino": 2.0}, {"ours": 9.0}], ["openvino"]) == 2.0


@pytest.mark.parametrize(
    ("value", "at_least", "verdict"),
    [
        (3.0, True, "met"),
        (2.9, True, "missed"),
        (3.0, False, "met"),
        (3.1, False, "missed"),
        (None, True, "not measured: why"),
    ],
)
def test_verdict(value: float | None, at_least: bool, verdict: str) -> None:
    assert table.Row("f", "", value, {}, value, "", 3.0, at_least, "why").verdict == verdict


def test_rows_hold_ratios_against_their_targets() -> None:
    rows = table.build(result(compute={"rounds": [one_round(20, 10, 16)] * 3, "peak_rss_bytes": {"ours": 2_000_000_000}}))
    assert row(rows, "decode, 1 stream", "better").value == pytest.approx(1.25)
    assert row(rows, "decode, 1 stream", "better").verdict == "missed"
    assert row(rows, "decode, 16 streams", "llama.cpp").verdict == "missed"
    assert row(rows, "prefill of 512", "openvino").peers == {"llama.cpp": 100, "openvino": 160}
    assert row(rows, "peak resident memory of the workers").ours == 2.0


def test_share_of_bandwidth_counts_the_bytes_that_each_engine_reads() -> None:
    rows = table.build(result(compute={"rounds": [one_round(17, 16, 10)], "peak_rss_bytes": {}}))
    share = row(rows, "decode, 1 stream, share")
    assert share.value == pytest.approx(17 * 1.5 / 30)
    assert share.peers["llama.cpp"] == pytest.approx(16 * 1.5 * 34 / 32 / 30)
    assert share.verdict == "met"


def test_prefill_shows_its_work_a_second() -> None:
    rows = table.build(result(compute={"rounds": [one_round(20, 10, 16)], "peak_rss_bytes": {}}))
    assert row(rows, "prefill of 512", "llama.cpp").floor["ours"] == "200 GMAC/s"


def test_missing_peer_is_named_with_its_reason() -> None:
    rounds = [{name: {"ours": each["ours"]} for name, each in one_round(20, 10, 16).items()}]
    gone = {"llama.cpp": "cmake is not installed", "openvino": "no network"}
    rows = table.build(result(compute={"rounds": rounds, "peak_rss_bytes": {}}, unavailable=gone))
    assert row(rows, "prefill of 512", "openvino").verdict == "not measured: openvino no network"
    text = table.as_text(rows, gone)
    assert "llama.cpp is not available: cmake is not installed" in text
    assert "not available" in next(line for line in text.splitlines() if line.startswith("decode, 8 streams"))


def test_better_of_the_peers_says_which_one_was_missing() -> None:
    rounds = [{name: {key: each[key] for key in ("ours", "openvino")} for name, each in one_round(20, 10, 16).items()}]
    rows = table.build(result(compute={"rounds": rounds, "peak_rss_bytes": {}}, unavailable={"llama.cpp": "no compiler"}))
    assert row(rows, "decode, 1 stream (without llama.cpp)").value == pytest.approx(1.25)


def test_failed_part_is_not_silent() -> None:
    rows = table.build(result(failed={"itl": "the server ended"}))
    assert row(rows, "p99 by median").verdict == "not measured: the server ended"
    assert "the server ended" in table.as_text(rows, {})


def test_rows_of_ours_alone() -> None:
    ttft = {"ttft_ms": {"p50": 900.0}}
    chats = {"ours": {"output_tokens_per_s": 80.0, **ttft}, "llama.cpp": {"output_tokens_per_s": 20.0, **ttft}}
    rows = table.build(
        result(
            http={"rounds": [chats]},
            itl={"ratio": 2.0, "p99_ms": 100.0, "median_ms": 50.0, "during_p99_over_quiet_median": 2.5},
            memory={"peak_bytes": 2_300_000_000},
            load={"first_token_s": [5.0, 7.0, 6.0]},
            embedded={"tokens_per_s": [500.0]},
        )
    )
    verdicts = {each.figure: each.verdict for each in rows if each.value is not None}
    assert verdicts == {
        "16 chats over HTTP, output": "met",
        "p99 by median gap while prompts of 2048 arrive": "met",
        "peak resident memory, 4096 KV tokens in use": "missed",
        "W8A8 on disk to first token": "met",
        "embedded model, 1 stream over HTTP": "met",
    }


def test_table_as_json_has_the_verdicts() -> None:
    entries = table.as_json(table.build(result(load={"first_token_s": [7.0]})))
    assert {entry["figure"]: entry["verdict"] for entry in entries}["W8A8 on disk to first token"] == "missed"
    json.dumps(entries)


def test_rates_of_a_task() -> None:
    measured = Result(Task(8, 32, 5, 0, 10), prefill_s=2.0, step_s=[0.5, 0.2, 0.4, 0.4], peak_rss_bytes=0)
    assert (measured.prefill_tokens_per_s, measured.decode_tokens_per_s) == (128.0, 20.0)


def test_every_engine_gets_the_same_prompts() -> None:
    prompts = Task(3, 5, 1, seed=4, id_limit=7).prompts()
    assert prompts == Task(3, 5, 9, seed=4, id_limit=7).prompts()
    assert [len(ids) for ids in prompts] == [5, 5, 5]
    assert {token for ids in prompts for token in ids} <= set(range(7))


def test_gaps_are_split_into_quiet_and_disturbed() -> None:
    times_s = [0.05 * number for number in range(100)]
    times_s += [times_s[-1] + 0.2 * number for number in range(1, 11)]
    found = ours_alone.gap_figures(times_s, [(times_s[99], times_s[-1])])
    assert (found["quiet_median_ms"], found["during_median_ms"], found["median_ms"], found["p99_ms"]) == (50, 200, 50, 200)
    assert (found["ratio"], found["num_gaps"], found["num_gaps_during"]) == (4.0, 109, 10)


def test_too_few_gaps_are_refused() -> None:
    with pytest.raises(StepFailed, match="too few"):
        ours_alone.gap_figures([0.0, 0.1, 0.2], [(0.0, 0.1)])


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("ubatch", 128, {"ubatch": 128, "properties": {"A": 1}}),
        ("properties.B", "f32", {"properties": {"A": 1, "B": "f32"}}),
        ("properties.A", None, {"properties": {}}),
    ],
)
def test_one_setting_is_changed_in_a_copy(option: str, value: Any, expected: dict[str, Any]) -> None:
    before = {"properties": {"A": 1}}
    assert tune.changed(before, option, value) == expected
    assert before == {"properties": {"A": 1}}


def test_gain_is_the_mean_over_rates_of_median_ratios() -> None:
    challenger = [{"prefill": 40.0, "decode": 10.0}, {"prefill": 10.0, "decode": 10.0}, {"prefill": 40.0, "decode": 5.0}]
    champion = [{"prefill": 10.0, "decode": 10.0}] * 3
    assert tune.gain(challenger, champion) == pytest.approx(2.0)


def test_winners_are_kept_beside_those_of_other_engines(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    tune.write(path, {"openvino": {"settings": {"weights": "sym"}, "trials": []}}, {"openvino": "1"})
    tune.write(path, {"llama.cpp": {"settings": {"ubatch": 256}, "trials": []}}, {"openvino": "1"})
    assert load_settings(path) == {"ours": {}, "llama.cpp": {"ubatch": 256}, "openvino": {"weights": "sym"}}


def test_settings_of_an_unknown_engine_are_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"settings": {"lama": {}}}')
    with pytest.raises(ValueError, match="unknown engine 'lama'"):
        load_settings(tmp_path / "settings.json")


def test_llama_server_runs_with_the_settings_of_the_worker() -> None:
    arguments = " ".join(llama_server_arguments({"flash_attn": False, "ubatch": 256, "kv_unified": True}, threads=2, slots=16))
    for words in ("-t 2", "-np 16", "-c 8192", "-fa off", "-ub 256", "-ctk f16", "--kv-unified", "--repack"):
        assert words in arguments


def test_pins_are_exact_and_begin_with_torch() -> None:
    assert next(iter(install.pins())) == "torch"
    assert {"llama-cpp-python", "openvino", "optimum-intel"} <= set(install.pins())


def test_pin_without_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("# a line\nnumpy>=2\n")
    with pytest.raises(ValueError, match="'numpy>=2' is not name==version"):
        install.pins(tmp_path / "r.txt")


def test_failed_step_says_what_came_last(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="build ended with status 3: no such header"):
        run_step("build", [sys.executable, "-c", "print('no such header'); raise SystemExit(3)"], tmp_path)


def test_int8_bytes_are_read_from_the_header(tmp_path: Path) -> None:
    entries = {"a": {"dtype": "I8", "data_offsets": [0, 12]}, "b": {"dtype": "F32", "data_offsets": [12, 20]}}
    header = json.dumps({"__metadata__": {}, **entries}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(20))
    assert models.int8_bytes(tmp_path / "model.safetensors") == 12


def test_chats_have_about_as_many_tokens_as_wanted(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_dir(EMBEDDED_MODEL)
    write_prompts(tmp_path / "p.json", tokenizer, count=5, seed=0)
    texts = [entry["conversations"][0]["value"] for entry in json.loads((tmp_path / "p.json").read_text())]
    assert len(set(texts)) == 5
    assert tokenizer.chat_template is not None
    for text in texts:
        prompt = tokenizer.chat_template.render(normalise_messages([{"role": "user", "content": text}]))
        assert 0 <= len(tokenizer.encode(prompt, add_special_tokens=False)) - PROMPT_TOKENS <= 15


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--rounds", "0"], "0 is below 1"),
        (["--threads", "two"], "invalid"),
        (["--no-peers", "--tune"], "nothing to tune"),
        (["--model", "no-such-directory"], "holds no config.json"),
        (["--shape", "r1-distill-qwen-2b"], "invalid choice"),
        (["--everything"], "unrecognized"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_wrong_arguments_are_refused(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench_peers.parse(arguments)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ("compute",)),
        (["--load"], ("load", "memory")),
        (["--tune"], ("tune",)),
        (["--embedded", "--http"], ("http", "embedded")),
        (["--all"], ("compute", "http", "itl", "load", "memory", "embedded")),
    ],
    ids=lambda value: " ".join(value) or "nothing",
)
def test_parts_that_are_run(arguments: list[str], parts: tuple[str, ...]) -> None:
    assert bench_peers.parts(bench_peers.parse(arguments)) == parts

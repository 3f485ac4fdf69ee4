"""``paddle-ds doctor``: wrong versions, deadlocks among requirements, and versions for a chip."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from paddle_ds.cli.checks import Context, Distribution, Finding, device_versions, distributions, versions
from paddle_ds.cli.checks.context import canonical
from paddle_ds.cli.checks.needs import compatible

ROOT = Path(__file__).parents[3]
#: an environment in which nothing is wrong
GOOD = {
    "click": "8.1",
    "jinja2": "3.1",
    "msgspec": "0.19",
    "numpy": "1.26.4",
    "packaging": "24.0",
    "psutil": "5.9",
    "pyyaml": "6.0",
    "pyzmq": "26.0",
    "rich": "13.0",
    "tokenizers": "0.21.4",
    "paddlepaddle": "3.3.1",
    "flask": "3.0",
    "gunicorn": "23.0",
    "prometheus-client": "0.20",
    "pyjwt": "2.10",
    "redis": "5.0",
    "paddlenlp": "3.0.0b4",
    "aistudio-sdk": "0.2.6",
    "datasets": "3.6",
    "pyarrow": "19.0",
    "safetensors": "0.7",
    "decorator": "5.0",
    "setuptools": "80.0",
    "wheel": "0.40",
}
REQUIRES = {
    "paddlenlp": (
        "numpy<=1.26.4",
        "aistudio-sdk>=0.1.3",
        "tokenizers<0.22,>=0.21; python_version > '3.8'",
        "protobuf==3.20.2; extra == 'dev'",
    ),
    "paddlepaddle": ("numpy>=1.21", "safetensors>=0.6.0"),
}


def environment(*more: tuple[str, str, tuple[str, ...]], **changed: str | None) -> Context:
    """:data:`GOOD` with versions changed (``None``: not installed; ``_`` for ``-``) and packages added: name, version, needs."""
    wanted: dict[str, str | None] = {**GOOD, **{name.replace("_", "-"): version for name, version in changed.items()}}
    rows = [(name, version, REQUIRES.get(name, ())) for name, version in wanted.items() if version] + list(more)
    return Context(installed={canonical(name): Distribution(name, version, requires) for name, version, requires in rows})


def wrong(context: Context) -> list[Finding]:
    return [finding for finding in versions.check(context) if finding.level != "ok"]


def test_nothing_is_wrong_with_a_good_environment() -> None:
    assert wrong(environment()) == []
    told = [finding.text for finding in versions.check(environment()) if finding.code == "version"]
    assert "paddlepaddle 3.3.1" in told
    assert "paddlenlp 3.0.0b4" in told


#: what is changed -> code, level, part of the text, part of the fix
WRONG: list[tuple[dict[str, str | None], str, str, str, str]] = [
    ({"paddlepaddle": "2.6.2"}, "pin_violated", "error", "2.6.2 does not match paddlepaddle>=3.0,<4", "'paddlepaddle>=3.0,<4'"),
    ({"paddlepaddle": "3.0.0rc1"}, "pin_violated", "error", "paddlepaddle 3.0.0rc1 does not match", "pip install"),
    ({"msgspec": "0.10"}, "pin_violated", "error", "msgspec 0.10 does not match msgspec>=0.18", "'msgspec>=0.18'"),
    ({"numpy": "2.1.0"}, "pin_violated", "warning", "numpy 2.1.0 does not match numpy<2", "pip install 'numpy<2'"),
    ({"paddlenlp": "3.0.0b3"}, "pin_violated", "warning", "3.0.0b3 does not match", "paddlenlp==3.0.0b4 (name the pre-"),
    ({"datasets": "4.0"}, "pin_violated", "warning", "datasets 4.0 does not match datasets<4", "pip install 'datasets<4'"),
    ({"setuptools": "82.0"}, "pin_violated", "warning", "setuptools 82.0 does not", "(paddleslim imports pkg_resources"),
    ({"paddlepaddle": None}, "package_missing", "error", "paddlepaddle is not installed (needed for every", "pip install"),
    ({"psutil": None}, "package_missing", "error", "psutil is not installed (needed for every", "'psutil>=5.9'"),
    ({"safetensors": None}, "package_missing", "warning", "safetensors is not installed (needed for hub", "pip install"),
    ({"flask": None}, "extra_missing", "warning", "the extra serving is not installed", "pip install 'flask>=3.0'"),
    (
        {"tokenizers": "0.22.1"},
        "requirement_violated",
        "warning",
        "needs tokenizers<0.22,>=0.21, but",
        "'tokenizers<0.22,>=0.21'",
    ),
    (
        {"paddlepaddle_gpu": "3.3.1"},
        "two_paddles",
        "error",
        "both installed and provide the same",
        "uninstall paddlepaddle paddlepa",
    ),
]


@pytest.mark.parametrize(("changed", "code", "level", "text", "fix"), WRONG, ids=str)
def test_a_wrong_version_is_found_with_a_fix(changed: dict[str, str | None], code: str, level: str, text: str, fix: str) -> None:
    found = [finding for finding in wrong(environment(**changed)) if finding.code == code]
    assert [(finding.level, text in finding.text, fix in finding.fix) for finding in found] == [(level, True, True)]


def test_an_extra_that_nobody_uses_is_no_fault() -> None:
    context = environment(paddlenlp=None, aistudio_sdk=None, datasets=None, pyarrow=None, numpy="2.3.0")
    assert wrong(context) == []
    assert "the extra hub is not installed" in str([f.text for f in versions.check(context) if f.code == "extra_missing"])


def test_the_gpu_build_counts_as_paddle() -> None:
    context = environment(paddlepaddle=None, paddlepaddle_gpu="3.1.0")
    assert wrong(context) == []
    assert "paddlepaddle 3.1.0 (paddlepaddle-gpu)" in [finding.text for finding in versions.check(context)]


def test_all_that_is_missing_of_the_library_is_one_command() -> None:
    found = wrong(Context(installed={}))
    assert [finding.code for finding in found] == ["package_missing", "package_missing", "extra_missing"]
    assert "click, jinja2, msgspec" in found[1].text
    assert f"'{ROOT}[cpu,serving]'" in found[1].fix


PADDLEX = ("paddlex", "3.3", ("aistudio-sdk>=0.3.5", "numpy>=1.24"))
PADDLEOCR = ("paddleocr", "3.3", ("paddlex>=3.3",))


def test_a_deadlock_names_both_parties_and_what_has_to_go() -> None:
    (found,) = wrong(environment(PADDLEX, PADDLEOCR))
    assert (found.code, found.level) == ("pin_deadlock", "warning")
    assert "paddlenlp 3.0.0b4 needs aistudio-sdk<0.3 (it imports aistudio_sdk.hub.download" in found.text
    assert "paddlex 3.3 needs aistudio-sdk>=0.3.5: no version is both; aistudio-sdk 0.2.6 is installed" in found.text
    assert found.fix.startswith(
        "pip uninstall paddlex paddleocr && pip install 'aistudio-sdk==0.2.6'; to keep both, give paddlex"
    )


def test_with_the_other_version_it_is_the_same_deadlock_and_no_pin_sends_in_circles() -> None:
    assert [finding.code for finding in wrong(environment(PADDLEX, aistudio_sdk="0.3.8"))] == ["pin_deadlock"]


def test_without_the_other_party_there_is_no_deadlock() -> None:
    found = wrong(environment(aistudio_sdk="0.3.8"))
    assert [(finding.code, finding.fix) for finding in found] == [
        ("pin_violated", "pip install aistudio-sdk==0.2.6 (paddlenlp imports a name that 0.3 dropped)")
    ]


@pytest.mark.parametrize(
    ("added", "changed", "package"),
    [
        (("newer", "1.0", ("numpy>=2",)), {}, "numpy"),
        (("newer", "1.0", ("safetensors<0.6",)), {}, "safetensors"),
        (("newer", "1.0", ("tokenizers>=0.22",)), {}, "tokenizers"),
        (("newer", "1.0", ("tokenizers~=0.20.1",)), {}, "tokenizers"),
        (("newer", "1.0", ("setuptools>=81",)), {"paddleslim": "2.6.0"}, "setuptools"),
        (("onnx", "1.19", ("protobuf>=4.25.1",)), {"protobuf": "3.20.2"}, "protobuf"),
    ],
    ids=str,
)
def test_requirements_that_exclude_each_other_are_found(
    added: tuple[str, str, tuple[str, ...]], changed: dict[str, str], package: str
) -> None:
    more = [added]
    if package == "protobuf":  # two strangers: ours is a party by needing one of them
        more += [("paddlefsl", "1.1", ("protobuf==3.20.2",)), ("paddlenlp", "3.0.0b4", ("paddlefsl",))]
    found = [finding for finding in wrong(environment(*more, **changed)) if finding.code == "pin_deadlock"]
    assert [f"{added[0]} {added[1]} needs {package}" in finding.text for finding in found] == [True]
    assert found[0].fix.startswith(f"pip uninstall {added[0]} && pip install '{package}")


def test_a_deadlock_of_versions_of_ours_is_mended_by_the_pins() -> None:
    context = environment(("datasets", "4.1", ("pyarrow>=21",)), pyarrow="21.0")
    (found,) = [finding for finding in wrong(context) if finding.code == "pin_deadlock"]
    assert "pyarrow 21.0 needs numpy>=2 (it refuses to be imported with an older one)" in found.text
    assert found.fix == "pip install 'datasets<4' 'pyarrow<20'"


def test_a_deadlock_that_leaves_paddle_without_what_it_needs_is_an_error() -> None:
    context = environment(("old", "1.0", ("safetensors<0.6",)), safetensors="0.5")
    assert [finding.level for finding in wrong(context) if finding.code == "pin_deadlock"] == ["error"]


def test_strangers_may_quarrel_among_themselves() -> None:
    quarrel = [("a", "1", ("c<2",)), ("b", "1", ("c>=2",)), ("c", "2", ())]
    assert wrong(environment(*quarrel)) == []  # type: ignore[arg-type]


def test_what_paddle_needs_and_is_not_there_is_an_error() -> None:
    context = environment(("paddlepaddle", "3.3.1", ("networkx", "httpx>=0.20")))
    found = [(finding.code, finding.level, finding.fix) for finding in wrong(context)]
    assert found == [
        ("requirement_missing", "error", "pip install 'httpx>=0.20'"),
        ("requirement_missing", "error", "pip install 'networkx'"),
    ]


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ("<0.3", ">=0.3.5", False),
        ("<0.3", ">=0.2.6", True),
        ("==0.2.6", ">=0.1.3", True),
        ("==3.20.2", ">=4.25.1", False),
        ("~=0.20.1", ">=0.21", False),
        ("~=1.4", ">=1.9,<2", True),
        ("==2.*", "<2", False),
        ("==2.*", ">=2.5", True),
        (">1.7", "<1.8", True),
        ("<=1.26.4", ">=1.26.4,!=1.26.4", False),
        ("!=1.0", "", True),
        ("<1", ">=0.999", True),
        ("<4", ">=4.0.0b1", False),
    ],
)
def test_whether_a_version_is_in_both(one: str, other: str, both: bool) -> None:
    assert compatible(SpecifierSet(one), SpecifierSet(other)) is both


def _install(directory: Path, name: str, version: str, *requires: str) -> None:
    info = directory / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}", encoding="utf-8")


def test_metadata_are_read_where_python_looks_first(tmp_path: Path) -> None:
    _install(tmp_path / "one", "PaddleX", "3.3", "aistudio-sdk>=0.3.5")
    _install(tmp_path / "two", "paddlex", "2.0")
    found = distributions([str(tmp_path / "one"), str(tmp_path / "two")])
    assert found == {"paddlex": Distribution("PaddleX", "3.3", ("aistudio-sdk>=0.3.5",))}


def test_metadata_on_the_path_of_a_real_run_are_what_is_reported(tmp_path: Path) -> None:
    _install(tmp_path, "paddlex", "3.3", "aistudio-sdk>=0.3.5")
    _install(tmp_path, "paddlenlp", "2.8.0", "numpy")
    _install(tmp_path, "flask", "1.0")
    program = (
        "import json; from paddle_ds.cli.checks import Context, versions; "
        "print(json.dumps([[finding.code, finding.text] for finding in versions.check(Context())]))"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert ["pin_violated", "flask 1.0 does not match flask>=3.0"] in found
    assert ["pin_violated", "paddlenlp 2.8.0 does not match paddlenlp==3.0.0b4"] in found
    assert [text for code, text in found if code == "pin_deadlock" and "paddlex 3.3 needs aistudio-sdk>=0.3.5" in text]


#: what is changed -> code and part of the text
CHIPS: list[tuple[dict[str, str | None], str, str]] = [
    (
        {"paddlepaddle": "3.2.0", "paddle_custom_npu": "3.2.0"},
        "device_versions",
        "npu: Paddle 3.2.0 with paddle-custom-npu 3.2.0, as",
    ),
    ({"paddle_custom_npu": "3.2.0"}, "device_versions_unknown", "npu: Paddle 3.3.1 with paddle-custom-npu 3.2.0 is in no set"),
    (
        {"paddlepaddle": None, "paddlepaddle_gpu": "3.2.1+cu126"},
        "device_versions",
        "gpu: Paddle 3.2.1+cu126 (paddlepaddle-gpu), as",
    ),
    (
        {"paddlepaddle": None, "paddlepaddle_gpu": "3.0.0"},
        "device_versions_unknown",
        "gpu: Paddle 3.0.0 (paddlepaddle-gpu) is in",
    ),
    (
        {"paddlepaddle": None, "paddle_custom_npu": "3.2.0"},
        "device_versions_unknown",
        "npu: Paddle (none) with paddle-custom-npu",
    ),
]


@pytest.mark.parametrize(("changed", "code", "text"), CHIPS, ids=str)
def test_versions_for_a_chip_are_compared_with_its_profile(changed: dict[str, str | None], code: str, text: str) -> None:
    (found,) = device_versions.check(environment(**changed))
    assert (found.code, text in found.text, "https://" in found.text) == (code, True, True)
    assert bool(found.fix) == (found.level == "warning")


def test_without_a_chip_there_is_nothing_to_compare() -> None:
    assert list(device_versions.check(environment())) == []

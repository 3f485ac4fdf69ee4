"""Pages and example files say what the code says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from paddle_ds import errors, settings
from paddle_ds.config.engine import CacheConfig, EngineConfig, SchedulerConfig
from paddle_ds.config.memory import MemoryConfig
from paddle_ds.config.sampling import SamplingParams

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "engine").glob("*.yaml"))
PAGES = [ROOT / name for name in ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md")) + sorted((ROOT / "configs").rglob("*.md")) + sorted(ROOT.glob("*/README.md"))


def text_of(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_example_configuration_is_valid(path: Path) -> None:
    EngineConfig.from_yaml(path)


def test_cpu_yaml_spells_out_the_defaults() -> None:
    assert EngineConfig.from_yaml(ROOT / "configs" / "engine" / "cpu.yaml") == EngineConfig()


def test_every_engine_field_is_documented() -> None:
    fields = {*EngineConfig.__dataclass_fields__} - {"cache", "scheduler", "memory"}
    fields |= {f"cache.{name}" for name in CacheConfig.__dataclass_fields__}
    fields |= {f"scheduler.{name}" for name in SchedulerConfig.__dataclass_fields__}
    fields |= {f"memory.{name}" for name in MemoryConfig.__dataclass_fields__}
    assert {name for name in fields if f"| `{name}` |" not in text_of("configuration.md")} == set()


def test_every_environment_variable_is_documented() -> None:
    page = text_of("configuration.md")
    assert {variable.name for variable in settings.TABLE if f"| `{variable.name}` |" not in page} == set()


def test_every_sampling_field_is_documented() -> None:
    page = text_of("python-api.md")
    assert {name for name in SamplingParams.__struct_fields__ if f"| `{name}` |" not in page} == set()


def test_every_checkpoint_error_is_documented() -> None:
    page = text_of("checkpoints.md")
    classes = errors.CheckpointError.__subclasses__()
    assert {cls.__name__ for cls in classes if f"| `{cls.code}` | `{cls.__name__}` |" not in page} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_decision_is_listed() -> None:
    page = text_of("adr/README.md")
    assert [path.name for path in (ROOT / "docs" / "adr").glob("0*.md") if path.name not in page] == []


def test_both_readmes_name_the_same_commands() -> None:
    def commands(name: str) -> set[str]:
        text = (ROOT / name).read_text(encoding="utf-8")
        return set(re.findall(r"paddle-ds [a-z]+|\bmake [a-z-]+|/v1/[a-z/]+|--[a-z-]+", text))

    assert commands("README.md") == commands("README.zh-CN.md")


def test_scripts_are_executable_and_whole() -> None:
    for name in (".ci/run", "tools/test_floor.sh"):
        subprocess.run(["bash", "-n", str(ROOT / name)], check=True)
        assert (ROOT / name).stat().st_mode & 0o100

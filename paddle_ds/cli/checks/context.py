"""What checks are given: what the user asked, what is installed, where the system's files are."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from paddle_ds import settings
from paddle_ds.cli.checks.finding import Finding
from paddle_ds.errors import PaddleDSError

if TYPE_CHECKING:
    from paddle_ds.config.engine import EngineConfig


class Skipped(Exception):
    """A check cannot be made, for a reason that another finding names."""


@dataclasses.dataclass(frozen=True)
class Questions:
    """What the user asked; empty or ``None``: nothing."""

    model: str = ""
    config: str = ""
    device: str = ""
    quant: str = ""
    max_context_tokens: int | None = None
    kv_tokens: int | None = None
    kv_dtype: str = ""
    max_running_requests: int | None = None
    max_batch_tokens: int | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    strict: bool = False

    @property
    def device_type(self) -> str:
        """``npu`` of ``npu:0``; empty where no device was asked for."""
        return self.device.partition(":")[0]


@dataclasses.dataclass(frozen=True)
class Distribution:
    """An installed package, as its metadata tell. ``requires``: requirements as they are written there, markers and all."""

    name: str
    version: str
    requires: tuple[str, ...] = ()


def canonical(name: str) -> str:
    """A package's name as indexes compare it (PEP 503).

    >>> canonical("Paddle_Custom.NPU")
    'paddle-custom-npu'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def distributions(path: Sequence[str] | None = None) -> dict[str, Distribution]:
    """What is installed in the directories of ``path`` (default: where Python looks), by canonical name; the first one counts."""
    found: dict[str, Distribution] = {}
    for each in metadata.distributions() if path is None else metadata.distributions(path=list(path)):
        name, version = each.metadata["Name"], each.metadata["Version"]
        if name and version and canonical(name) not in found:  # half removed ones have neither
            found[canonical(name)] = Distribution(name, version, tuple(each.requires or ()))
    return found


@dataclasses.dataclass(frozen=True)
class Context:
    """What checks are given.

    Attributes:
        installed: canonical name -> distribution.
        root: where ``proc``, ``sys`` and ``dev`` lie.
    """

    asked: Questions = dataclasses.field(default_factory=Questions)
    installed: Mapping[str, Distribution] = dataclasses.field(default_factory=distributions)
    root: Path = Path("/")

    def version(self, name: str) -> str | None:
        """Of an installed package, by any spelling of its name."""
        found = self.installed.get(canonical(name))
        return found.version if found else None

    def settings(self) -> settings.Settings:
        """
        Raises:
            Skipped: the environment is wrong, which is a finding of its own.
        """
        try:
            return settings.load()
        except PaddleDSError as error:
            raise Skipped("a variable of the environment is wrong, see above") from error

    def engine_config(self) -> EngineConfig:
        """As ``paddle-ds serve`` would have it with these options.

        Raises:
            Skipped: see :meth:`settings`.
            ConfigError: the configuration file or an option is wrong.
        """
        from paddle_ds.cli.options import engine_config

        asked = self.asked
        return engine_config(
            self.settings(),
            Path(asked.config) if asked.config else None,
            model=asked.model,
            device=asked.device,
            quant=asked.quant,
            max_context_tokens=asked.max_context_tokens,
            kv_tokens=asked.kv_tokens,
            kv_dtype=asked.kv_dtype,
            max_running_requests=asked.max_running_requests,
            max_batch_tokens=asked.max_batch_tokens,
            strict=asked.strict or None,
        )


#: topic (for a finding about the check itself) and the check
Check = tuple[str, Callable[[Context], Iterator[Finding]]]


def run(checks: Sequence[Check], context: Context) -> Iterator[Finding]:
    """What ``checks`` find. One that cannot be made, or that itself fails, becomes a finding and does not stop the others."""
    for topic, check in checks:
        try:
            yield from check(context)
        except Skipped as reason:
            yield Finding("check_skipped", topic, "warning", f"not checked: {reason}")
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing == "paddle_ds":
                yield _failed(topic, error)
            else:
                text = f"not all was checked: the module {missing} is not installed"
                yield Finding("check_skipped", topic, "warning", text, "install what is missing, and ask again")
        except Exception as error:
            yield _failed(topic, error)


def _failed(topic: str, error: Exception) -> Finding:
    return Finding(
        "check_failed", topic, "error", f"the check failed: {error!r}", "please report this: it is a defect of the doctor"
    )

"""What every route needs: the engine, the model it serves with its tokenizer, settings and metrics."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from flask import current_app, g, has_app_context, request
from msgspec import UNSET, UnsetType

from paddle_ds import __version__
from paddle_ds.errors import EngineUnavailable, ModelNotFound, PaddleDSError, ServerOverloaded
from paddle_ds.ipc.messages import EngineInfo, ModelInfo
from paddle_ds.logs import fields
from paddle_ds.settings import Settings
from paddle_ds.text import Tokenizer
from paddle_ds_serving.breaker import Breaker, is_failure
from paddle_ds_serving.content_filter.install import ContentFilter
from paddle_ds_serving.disconnect import client_gone
from paddle_ds_serving.engine import EngineClient
from paddle_ds_serving.generation import Generation, Order
from paddle_ds_serving.metrics import Metrics
from paddle_ds_serving.prompts import Prompt
from paddle_ds_serving.request_log import RequestRecord
from paddle_ds_serving.sampling import SamplingDefaults
from paddle_ds_serving.shadow_tap import ShadowTap
from paddle_ds_serving.supervision.switch import EngineSwitch

_log = logging.getLogger(__name__)
_KEY = "paddle_ds"
#: tokenizers that are kept: of the engine that answers, of one that drains, of one that joins
_MAX_KEPT = 3


def _make_id() -> str:
    return secrets.token_hex(12)


def _unix_s() -> int:
    return int(time.time())


@dataclasses.dataclass(frozen=True)
class Served:
    """The model that answers, with all that a worker derives from its directory."""

    model: ModelInfo
    tokenizer: Tokenizer
    defaults: SamplingDefaults
    #: changes with whatever changes answers to the same seed
    fingerprint: str
    #: the engine that has this model; a request that has looked at the model goes there, whatever is switched meanwhile
    engine: EngineClient
    #: names the start of that engine
    boot_id: str

    @property
    def weight_version(self) -> str | UnsetType:
        """Which weights answer, where the engine says so."""
        return self.model.weight_version or UNSET


class Service:
    """One application's shared state. The tokenizer is loaded once an engine, ahead of a switch where there is time."""

    def __init__(
        self,
        engine: EngineClient,
        settings: Settings,
        *,
        make_id: Callable[[], str] = _make_id,
        unix_s: Callable[[], int] = _unix_s,
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.metrics = Metrics(engine)
        path = settings.content_filter_file
        self._content_filter = ContentFilter(None if path is None else Path(path), self.metrics.registry)
        self.make_id = make_id
        self.unix_s = unix_s
        #: by boot id of the engine, the last ones only
        self._served: dict[str, Served] = {}
        self._loading = threading.Lock()
        #: asked before an order is submitted, and may refuse it; what it returns is told, once, how many tokens were used
        self.reserve: Callable[[Order, Served], Callable[[int], None]] = lambda order, served: lambda num_tokens: None
        #: who gets an order: the engine of the model that the request has looked at, or what stands before it
        self.engine_of: Callable[[Served], EngineClient] = lambda served: served.engine
        openings = self.metrics.circuit_openings
        self._breaker = Breaker(on_open=openings.inc)
        self._limit: int | None = None
        self._num_running = 0
        self._counting = threading.Lock()
        self._tap = ShadowTap(engine.directory, lambda: engine.pointer) if isinstance(engine, EngineSwitch) else None

    def limit(self, num_generations: int) -> None:
        """Refuse more generations at a time than this, so that threads are left for probes and for the refusal itself."""
        self._limit = num_generations

    def engine_info(self) -> EngineInfo:
        """The engine's last word.

        Raises:
            EngineUnavailable: there is none, or the engine is gone.
        """
        return _info_of(self.engine)

    def served(self, asked_model: str | None = None) -> Served:
        """The model, ready to answer.

        Raises:
            EngineUnavailable: it is loading, stopping, failed or gone.
            ModelNotFound: ``asked_model`` is another one.
        """
        engine = self.engine.pin() if isinstance(self.engine, EngineSwitch) else self.engine
        info = _info_of(engine)
        if info.model is not None and asked_model is not None:
            check_model(info.model, asked_model)
        if info.state != "ready" or info.model is None:
            raise EngineUnavailable(_why_not_ready(info))
        served = self._served.get(info.boot_id) or self._load(info.boot_id, info.model, engine)
        if has_app_context():
            g.weight_version = info.model.weight_version
        return served

    def prepare(self, engine: EngineClient) -> None:
        """Load the tokenizer of an engine that is ready and may get requests soon. Its faults are for those requests."""
        info = engine.info
        if info is not None and info.model is not None and info.boot_id not in self._served:
            try:
                self._load(info.boot_id, info.model, engine)
            except PaddleDSError as error:
                _log.error("tokenizer.failed", extra=fields(error=error.message))

    def _load(self, boot_id: str, model: ModelInfo, engine: EngineClient) -> Served:
        with self._loading:
            if boot_id not in self._served:
                kept = list(self._served.items())[-_MAX_KEPT + 1 :]
                # replaced, never changed: readers have no lock
                self._served = dict([*kept, (boot_id, _load(boot_id, model, engine))])
            return self._served[boot_id]

    def start(self, order: Order, served: Served) -> Generation:
        """Submit an order on behalf of the current HTTP request.

        Raises:
            ServerOverloaded: this worker runs as many as it may, or the engine's queue is full.
            EngineUnavailable: the engine takes no requests.
            CircuitOpen: too many requests failed lately.
            RateLimitExceeded: the client's quota of tokens is used up.
            ContentFiltered: the content filter refuses a prompt.
        """
        record, is_gone = current_record(), client_gone(request.environ)
        record.model = served.model
        if self.settings.log_prompts:
            record.prompts = [served.tokenizer.decode(prompt.ids, skip_special_tokens=False) for prompt in order.prompts]
        make_filter = self._content_filter.admit(lambda: [_text(prompt, served.tokenizer) for prompt in order.prompts])
        chosen = None if self._tap is None else self._tap.choose(order)
        self._take_slot()
        settle: Callable[[int], None] = lambda num_tokens: None  # noqa: E731

        def ended() -> None:
            self._free_slot()
            failure = generation.failure
            failed = is_failure(failure) if failure is not None else False if generation.done else None
            self._breaker.ended(served.boot_id, failed)
            settle(generation.usage().total_tokens)
            if self._tap is not None and chosen is not None:
                self._tap.report(chosen, generation.choices)

        admitted = False
        try:
            self._breaker.admit(served.boot_id)
            admitted = True
            settle = self.reserve(order, served)
            # what is compared must come from the engine itself, and not from a memory of earlier answers
            engine, asked = (self.engine_of(served), order) if chosen is None else (served.engine, chosen.order)
            generation = Generation(asked, served.tokenizer, engine, self.metrics, record, is_gone, ended, make_filter)
        except BaseException:
            self._free_slot()
            settle(0)
            if admitted:
                self._breaker.ended(served.boot_id, None)
            raise
        return generation

    def _take_slot(self) -> None:
        with self._counting:
            if self._limit is not None and self._num_running >= self._limit:
                raise ServerOverloaded(f"this server answers {self._limit} requests already; try again in a moment")
            self._num_running += 1

    def _free_slot(self) -> None:
        with self._counting:
            self._num_running -= 1


def current() -> Service:
    """The service of the application that handles the current request."""
    return cast(Service, current_app.extensions[_KEY])


def current_record() -> RequestRecord:
    """The record of the current request."""
    return cast(RequestRecord, g.record)


def check_model(model: ModelInfo, asked: str) -> None:
    """Raise :class:`ModelNotFound` unless ``asked`` is served."""
    if asked != model.name:
        raise ModelNotFound(f"the model {asked!r} is not served here; this server has {model.name!r}", param="model")


def _info_of(engine: EngineClient) -> EngineInfo:
    """Raise :class:`EngineUnavailable` where the engine is gone or has not said anything yet."""
    info = engine.info
    if not engine.connected or info is None:
        raise EngineUnavailable("the engine is not running; it may be starting again")
    return info


def _text(prompt: Prompt, tokenizer: Tokenizer) -> str:
    """What a prompt says, also where the request brought token ids."""
    return tokenizer.decode(prompt.ids, skip_special_tokens=True) if prompt.text is None else prompt.text


def _why_not_ready(info: EngineInfo) -> str:
    if info.state == "loading":
        return f"the model is loading ({info.progress:.0%})"
    if info.state == "failed":
        return f"the engine could not start: {info.error.message if info.error else 'no reason given'}"
    return "the server is shutting down"


def _load(boot_id: str, model: ModelInfo, engine: EngineClient) -> Served:
    started_s = time.perf_counter()
    directory = Path(model.directory)
    tokenizer = Tokenizer.from_dir(directory)
    kernels = sorted(model.kernels.items())
    version = (model.weight_version,) if model.weight_version else ()
    state = repr((__version__, model.name, model.quant, kernels, *version))
    fingerprint = "fp_" + hashlib.blake2b(state.encode(), digest_size=5).hexdigest()
    served = Served(model, tokenizer, SamplingDefaults.from_dir(directory), fingerprint, engine, boot_id)
    seconds = round(time.perf_counter() - started_s, 3)
    _log.info("tokenizer.loaded", extra=fields(model=model.name, tokens=tokenizer.num_tokens, seconds=seconds))
    return served

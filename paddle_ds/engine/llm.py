"""``LLM``: the model in your own process, for batch jobs and notebooks. Same scheduler and runner as the server."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paddle_ds import settings
from paddle_ds.config.engine import EngineConfig, Quant
from paddle_ds.config.sampling import SamplingParams
from paddle_ds.devices import environment
from paddle_ds.devices.flags import before_paddle
from paddle_ds.engine.answers import Answer, Job, collect
from paddle_ds.engine.progress_bar import LoadingBar, ProgressBar
from paddle_ds.errors import ChatTemplateError, InvalidRequest
from paddle_ds.sched import SampledToken
from paddle_ds.text import ReasoningSplitter, TextDelta, TextStream, normalise_messages, starts_inside_reasoning

if TYPE_CHECKING:
    from paddle_ds.engine.build import LoadedModel

Message = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        text: the answer; for a chat without its reasoning.
        reasoning: what stood between the think tags of a chat; ``None`` for plain generation.
        finish_reason: ``stop``, ``length`` or ``abort``.
        logprobs: one entry a token where the request asked for them.
    """

    index: int
    text: str
    reasoning: str | None
    token_ids: list[int]
    finish_reason: str
    logprobs: list[SampledToken] | None = None


@dataclasses.dataclass(frozen=True)
class RequestOutput:
    """A prompt and its answers, ``params.n`` of them."""

    prompt: str | None
    prompt_ids: list[int]
    completions: list[Completion]

    @property
    def text(self) -> str:
        """The first answer."""
        return self.completions[0].text

    @property
    def reasoning(self) -> str | None:
        """The reasoning of the first answer."""
        return self.completions[0].reasoning


class LLM:
    """A loaded model.

    Args:
        model: directory of a checkpoint or a hub name; the embedded model if empty.
        device: ``cpu``, or a type and an index such as ``npu:0``.
        quant: ``auto``, ``w8a8``, ``w8a16`` or ``none``; see ``paddle_ds.config.recipe``.
        config: everything at once, instead of the other arguments.
        progress: draw a progress bar while loading; by default where standard error is a terminal.

    Raises:
        PaddleDSError: the checkpoint, device or memory does not allow it.
    """

    def __init__(
        self,
        model: str = "",
        *,
        quant: Quant = "auto",
        device: str = "cpu",
        max_context_tokens: int | None = None,
        num_threads: int | None = None,
        strict: bool | None = None,
        config: EngineConfig | None = None,
        progress: bool | None = None,
    ) -> None:
        current = settings.load()
        config = config or EngineConfig(
            model=str(model),
            quant=quant,
            device=device,
            max_context_tokens=max_context_tokens,
            num_threads=num_threads,
            strict=current.strict if strict is None else strict,
        )
        # a batch job is the only caller: it may hand over as many prompts as it likes
        scheduler = dataclasses.replace(config.scheduler, max_waiting_requests=sys.maxsize)
        config = dataclasses.replace(config, scheduler=scheduler)
        os.environ.update(before_paddle(config.memory.wanted()))  # first: the profile of the chip sets only what is not set
        environment.prepare(config.num_threads or current.num_threads, config.device, current.device_profiles)
        environment.import_paddle()
        from paddle_ds.engine.build import load

        with LoadingBar(sys.stderr.isatty() if progress is None else progress) as bar:
            loaded = load(config, current, bar)
        self._take(loaded)

    @classmethod
    def of(cls, loaded: LoadedModel) -> LLM:
        """An ``LLM`` over a model that is loaded already; nothing else may use its engine meanwhile."""
        llm = cls.__new__(cls)
        llm._take(loaded)
        return llm

    def _take(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._ids = itertools.count()
        #: of every call that is under way: a streamed one may be left open while another runs
        self._answers: dict[str, Answer] = {}

    @property
    def loaded(self) -> LoadedModel:
        """What was loaded: configuration, memory plan, operators, the engine itself."""
        return self._loaded

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool | None = None,
    ) -> list[RequestOutput]:
        """Continue each prompt, all of them batched.

        Args:
            prompts: one text, texts, or lists of token ids.
            params: one for all prompts, or one a prompt.
            progress: draw a progress bar; by default where standard error is a terminal.

        Raises:
            InvalidRequest, PromptTooLong: a prompt cannot be answered; none has been started then.
        """
        texts: list[str | Sequence[int]] = [prompts] if isinstance(prompts, str) else list(prompts)
        tokenizer = self._loaded.tokenizer
        encoded = [tokenizer.encode(text) if isinstance(text, str) else list(text) for text in texts]
        jobs = [Job(text if isinstance(text, str) else None, ids) for text, ids in zip(texts, encoded, strict=True)]
        return self._run(jobs, params, progress)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool | None = None,
        **template_kwargs: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several at once; the reasoning is split off.

        Args:
            messages: OpenAI-style messages of one conversation, or a list of conversations.
            template_kwargs: passed to the chat template.

        Raises:
            ChatTemplateError: the model has no template, or it refuses the messages.
        """
        conversations: list[Any] = [messages] if messages and isinstance(messages[0], Mapping) else list(messages)
        jobs = [self._chat_job(conversation, template_kwargs) for conversation in conversations]
        return self._run(jobs, params, progress)

    def stream_chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None, **template_kwargs: Any
    ) -> Iterator[TextDelta]:
        """Answer one conversation piece by piece. Leaving the loop early ends the generation.

        Raises:
            InvalidRequest: more than one answer (``n``) is asked for.
            ChatTemplateError: the model has no template, or it refuses the messages.
        """
        if params is not None and params.n != 1:
            raise InvalidRequest(f"n is {params.n}; a streamed chat has one answer", param="n")
        job = self._chat_job(messages, template_kwargs)
        (answer,) = self._submit([job], _one_each(params, 1)).values()
        try:
            while answer.deltas or not answer.is_over:
                while answer.deltas:
                    yield answer.deltas.popleft()
                if not answer.is_over:
                    self._step()
            if answer.error is not None:
                raise answer.error
        finally:
            self._leave(job.request_ids)

    def _chat_job(self, messages: Sequence[Message], template_kwargs: Mapping[str, Any]) -> Job:
        template = self._loaded.tokenizer.chat_template
        if template is None:
            raise ChatTemplateError(f"model {self._loaded.name} has no chat template; use generate()")
        prompt = template.render(normalise_messages(messages), **template_kwargs)
        return Job(prompt, self._loaded.tokenizer.encode(prompt, add_special_tokens=False), reasoning=True)

    def _run(
        self, jobs: list[Job], params: SamplingParams | Sequence[SamplingParams] | None, progress: bool | None
    ) -> list[RequestOutput]:
        answers = self._submit(jobs, _one_each(params, len(jobs)))
        show = sys.stderr.isatty() if progress is None else progress
        try:
            with ProgressBar(len(answers), show) as bar:
                while not all(answer.is_over for answer in answers.values()):
                    self._step()
                    num_over = sum(answer.is_over for answer in answers.values())
                    bar.show(num_over, sum(len(answer.token_ids) for answer in answers.values()))
            for answer in answers.values():
                if answer.error is not None:
                    raise answer.error
        finally:
            self._leave(list(answers))
        return [_output(job, [answers[request_id] for request_id in job.request_ids]) for job in jobs]

    def _step(self) -> None:
        """One step for everything that is under way, whichever call it belongs to."""
        engine = self._loaded.engine
        engine.abort(collect(engine.step(), self._answers))

    def _leave(self, request_ids: list[str]) -> None:
        """Nobody waits for these any more."""
        self._loaded.engine.abort(request_ids)
        for request_id in request_ids:
            self._answers.pop(request_id, None)

    def _submit(self, jobs: list[Job], params: list[SamplingParams]) -> dict[str, Answer]:
        answers: dict[str, Answer] = {}
        try:
            for job, wanted in zip(jobs, params, strict=True):
                for index, choice in enumerate(wanted.each_choice()):
                    request_id = f"llm-{next(self._ids)}"
                    self._loaded.engine.add(request_id, job.prompt_ids, choice)
                    job.request_ids.append(request_id)
                    answers[request_id] = Answer(index, choice, self._text_stream(job, choice))
        except BaseException:
            self._leave(list(answers))
            raise
        self._answers |= answers
        return answers

    def _text_stream(self, job: Job, params: SamplingParams) -> TextStream:
        splitter = ReasoningSplitter(starts_inside_reasoning(job.prompt or "")) if job.reasoning else None
        return TextStream(self._loaded.tokenizer, params, prompt_ids=job.prompt_ids, reasoning=splitter)


def _one_each(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise InvalidRequest(f"{len(params)} sampling params for {count} prompts; give one, or one a prompt", param="params")
    return list(params)


def _output(job: Job, answers: list[Answer]) -> RequestOutput:
    completions = [
        Completion(
            index=answer.index,
            text=answer.stream.content_text,
            reasoning=answer.stream.reasoning_text if job.reasoning else None,
            token_ids=answer.token_ids,
            finish_reason=answer.finish_reason or "abort",
            logprobs=answer.logprobs,
        )
        for answer in answers
    ]
    return RequestOutput(job.prompt, job.prompt_ids, completions)


__all__ = ["LLM", "Completion", "RequestOutput"]

"""One request inside the engine: its tokens, its blocks, how far it has come."""

from __future__ import annotations

import enum

from paddle_ds.config.sampling import SamplingParams


class Status(enum.Enum):
    """Where a request stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Request:
    """Mutable state of one request.

    ::

        token_ids   [ prompt ........ | answer ...... ]
                      num_prompt_tokens ^
        computed    [ keys and values are in the cache | to compute ]
                                   num_computed_tokens ^

    Args:
        seed: seed of its random numbers, never ``None``: the engine picks one where the client did not.
        max_new_tokens: most tokens of the answer, already limited to the context.
        end_ids: ids that end the answer (the model's own unless ``ignore_eos``, and the request's stop ids).
    """

    def __init__(
        self,
        request_id: str,
        prompt_ids: list[int],
        params: SamplingParams,
        *,
        seed: int,
        max_new_tokens: int,
        end_ids: frozenset[int],
        arrival_s: float = 0.0,
    ) -> None:
        assert prompt_ids
        assert max_new_tokens > 0
        self.request_id = request_id
        self.params = params
        self.seed = seed
        self.max_new_tokens = max_new_tokens
        self.end_ids = end_ids
        self.token_ids = list(prompt_ids)
        self.num_prompt_tokens = len(prompt_ids)
        self.num_computed_tokens = 0
        self.block_ids: list[int] = []
        #: of the full blocks of ``token_ids``, as far as they were needed
        self.block_digests: list[bytes] = []
        #: prompt tokens whose keys and values were in the cache when the request was first admitted
        self.num_cached_tokens = 0
        self.status = Status.WAITING
        self.num_preemptions = 0
        self.arrival_s = arrival_s
        self.scheduled_s: float | None = None
        self.first_token_s: float | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_tokens_to_compute(self) -> int:
        """1 while decoding; more during prefill and after a preemption."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def prompt_ids(self) -> list[int]:
        return self.token_ids[: self.num_prompt_tokens]

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def suppressed_ids(self) -> frozenset[int]:
        """Ids that must not be sampled now: those that would end an answer still shorter than ``min_tokens``."""
        return self.end_ids if self.num_output_tokens < self.params.min_tokens else frozenset()

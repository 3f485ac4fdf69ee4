"""Policy: who is computed next and where its keys and values lie. Integers and lists; no paddle, no I/O."""

from paddle_ds.sched.blocks import BlockPool
from paddle_ds.sched.plan import Chunk, NewToken, RequestEnd, SampledToken, StepOutput, StepPlan
from paddle_ds.sched.request import Request, Status
from paddle_ds.sched.scheduler import Scheduler

__all__ = [
    "BlockPool",
    "Chunk",
    "NewToken",
    "Request",
    "RequestEnd",
    "SampledToken",
    "Scheduler",
    "Status",
    "StepOutput",
    "StepPlan",
]

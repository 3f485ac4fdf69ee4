"""The quality passport: what a quantised checkpoint is worth beside its reference. ``docs/passport.md`` explains its figures.

Nothing here loads Paddle; :mod:`paddle_ds_slim.passport.measure` does, so import that one after
``paddle_ds.devices.environment.prepare()``.
"""

from paddle_ds_slim.passport.config import EvalConfig
from paddle_ds_slim.passport.gate import judge, require
from paddle_ds_slim.passport.record import FILE_NAME, GateRecord, Passport, write_json

__all__ = ["FILE_NAME", "EvalConfig", "GateRecord", "Passport", "judge", "require", "write_json"]

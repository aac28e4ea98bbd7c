"""What may change about a job while it trains or between its attempts, and how two jobs differ. What follows for a
resume is in presets.job.resume_check."""

import re
from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from presets.errors import UserError
from presets.job.fields import FIELDS, toml_text
from presets.job.schema import Job
from presets.job.toml_file import job_to_dict, parse_value

# Fields and panels that may change between the attempts of one run; with anything else changed it is no longer the run
# that was begun.
FREE_TO_CHANGE = (
    "target.start_high",
    "target.start_low",
    "job.gpus",
    "job.gpus_per_clip",
    "model.low_vram",
    "model.layer_offloading",
    "model.cuda_graphs",
    "training.cache_text_embeddings",
    "save",
    "sample",
    "training.steps",
    "training.lr",
    "multistage.high.lr",
    "multistage.low.lr",
    "validation.path",
    "validation.every",
    "validation.bins",
    "validation.stop_when",
    "validation.patience",
)
# What may be set while the job trains, from the next micro-batch on.
LIVE_FIELDS = (
    "training.lr",
    "multistage.high.lr",
    "multistage.low.lr",
    "training.steps",
    "save.every",
    "save.keep",
    "sample.every",
    "sample.shift",
)
# With these changed, the state of a checkpoint does not fit any more.
IMPOSSIBLE_TO_CHANGE = (
    "model.merge",
    "model.merge.strength",
    "model.merge.expert",
    "target.type",
    "target.rank",
    "target.include",
    "target.exclude",
    "target.layers",
    "target.layers.match",
    "target.layers.rank",
    "target.layers.lr_factor",
    "multistage.high.rank",
    "multistage.low.rank",
    "multistage.high_noise",
    "multistage.low_noise",
    "training.optimizer",
)
# With a checkpoint, a change of these changes nothing: they were read when the run began.
READ_ONCE = ("target.start_high", "target.start_low")
LEFT_OUT = "left out"


class FieldChange(Struct, frozen=True, kw_only=True):
    """One field in which two jobs differ."""

    field: str
    old: str  # as it stands in a job file, or "left out"
    new: str
    breaks: bool  # the run would not continue exactly as it was begun
    impossible: bool = False  # once there is a checkpoint it could not resume at all: that does not fit the new value

    @property
    def text(self) -> str:
        return f"{self.field}: {self.old} -> {self.new}"


def changes(old: Job, new: Job) -> list[FieldChange]:
    """Every field in which two jobs differ, by its path. Relative paths count as they are written: make both absolute
    first."""
    was, now = _flat(old), _flat(new)
    return [
        FieldChange(
            field=field,
            old=was.get(field, LEFT_OUT),
            new=now.get(field, LEFT_OUT),
            breaks=not is_free(field),
            impossible=re.sub(r"\[\d+\]", "", field) in IMPOSSIBLE_TO_CHANGE,
        )
        for field in sorted(was.keys() | now.keys())
        if was.get(field) != now.get(field)
    ]


def breaking(found: Iterable[FieldChange]) -> list[FieldChange]:
    return [c for c in found if c.breaks]


def is_free(field: str) -> bool:
    """Whether a field may change between two attempts of one run."""
    return _among(field, FREE_TO_CHANGE)


def _among(field: str, named: Iterable[str]) -> bool:
    return any(field == one or field.startswith((f"{one}.", f"{one}[")) for one in named)


def live_value(field: str, text: str) -> Any:
    """The value that a user typed for a field of a running job. Raises UserError: no such field, not while it runs, or
    no such value."""
    if field not in LIVE_FIELDS:
        raise UserError(
            "cannot be changed while the job runs",
            where=field,
            fix=f"These can: {', '.join(LIVE_FIELDS)}. For others stop the job, edit its job file and resume",
        )
    return parse_value(field, text)


def _flat(job: Job) -> dict[str, str]:
    """Field path -> value as text."""
    out: dict[str, str] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key, v in value.items():
                walk(v, f"{path}.{key}" if path else key)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for i, v in enumerate(value):
                walk(v, f"{path}[{i}]")
        elif value != [] or re.sub(r"\[\d+\]", "", path) in FIELDS:  # not of a list of tables that is empty
            out[path] = toml_text(value)

    walk(job_to_dict(job), "")
    return out


def value_at(tables: dict[str, Any], path: str) -> Any:
    """The value at a field path of a job as plain tables; None when it is left out."""
    at: Any = tables
    for part in path.split("."):
        at = at.get(part) if isinstance(at, dict) else None
    return at

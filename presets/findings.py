"""Findings: what is wrong, doubtful or improvable about a job, and the concrete fix.

Rules make theirs from `Found` (presets.rules.registry). Errors that end a command are presets.errors.UserError.
"""

from typing import Any, Literal

import msgspec
from msgspec import Struct

from presets.errors import JobError

Severity = Literal["error", "warning", "advice"]


class Finding(Struct, kw_only=True, frozen=True):
    """One finding. `fix` is for people; `set` holds the same fix as new field values, when it can be put so."""

    code: str  # kebab-case, stable: "frames-4n-plus-1"
    severity: Severity
    field: str  # path in the job, or the file it is about
    message: str  # what is so, and what would happen
    fix: str
    set: dict[str, Any] = msgspec.field(default_factory=dict)  # {"datasets[0].num_frames": 41}


def of_job_error(error: JobError) -> list[Finding]:
    """The problems of a job file that cannot be read, one finding each; its field is the key, or the file when it is no
    TOML."""
    found = []
    for problem in error.problems:
        key, _, rest = problem.partition(": ")
        field, message = (key, rest) if rest and " " not in key else (error.where, problem)
        found.append(
            Finding(
                code="job-file",
                severity="error",
                field=field,
                message=message,
                fix=error.fix or "Correct it in the job file",
            )
        )
    return found

"""The settings of a run as the page shows them: what differs from the plain defaults, and all of the job file."""

import re
from collections.abc import Iterator
from typing import Any

from presets.job.fields import FIELDS, field_of, toml_text
from presets.job.schema import Job
from presets.job.toml_file import dump_job, job_to_dict
from presets.report.markup import Markup, element, table
from presets.report.shared import is_open
from presets.text import setting_text

SAID_ELSEWHERE = frozenset({"job.name"})


def settings_of(job: Job) -> list[Markup]:
    """A table, and the file folded away."""
    rows: list[tuple[str, ...]] = [("Setting", "Field", "Value")]
    for path, value in _values(job_to_dict(job)):
        field = field_of(path)
        if value != field.default and path not in SAID_ELSEWHERE:
            unit = f" {field.unit}" if field.unit else ""
            rows.append((field.label, element("code", path), f"{_text(path, value)}{unit}"))
    whole = element("details", element("summary", "The whole job file"), element("pre", dump_job(job)))
    said = "What differs from the plain defaults:"
    if not is_open(job):
        said = (
            "What differs from the plain defaults. This page may be shared: as in the LoRA files, prompts, captions and"
            ' folders are left out of it; save.metadata = "full" shows them.'
        )
    return [element("p", said, class_="faint"), table(rows, kind="settings"), whole]


def _values(tables: dict[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """(path of a field, value) of plain tables, lists of tables by number."""
    for key, value in tables.items():
        path = f"{at}.{key}" if at else key
        if isinstance(value, dict):
            yield from _values(value, path)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for i, item in enumerate(value):
                yield from _values(item, f"{path}[{i}]")
        elif value != [] or re.sub(r"\[\d+\]", "", path) in FIELDS:  # no list of tables without any
            yield path, value


def _text(path: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return toml_text(value)
    return setting_text(path, value) or '""'

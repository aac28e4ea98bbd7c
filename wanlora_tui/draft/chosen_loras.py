"""What a draft makes of the LoRAs that its job begins with: the field paths of lists of tables, such as merges, and
what follows from a start. The draft itself is `wanlora_tui.draft.job_draft`'s."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from presets.job.fields import FIELDS, parse_path
from presets.job.schema import Job
from presets.job.toml_file import with_value

MERGE = "model.merge"


def merge_field(path: str) -> tuple[int, str] | None:
    """`model.merge[1].strength` -> (1, "strength"); None for any other field."""
    match path.startswith(f"{MERGE}[") and parse_path(path):
        case ["model", "merge", int(index), str(name)]:
            return index, name
    return None


def item_fields(panel: str, index: int) -> list[str]:
    """Field paths of one table of a list of tables, in the order of the job file."""
    return [f"{panel}[{index}].{f.name}" for f in FIELDS.values() if f.panel == panel]


def merge_fields(count: int) -> list[str]:
    """The fields of so many merges, and the path of one more, which becomes the next when it is filled in."""
    return [path for i in range(count) for path in item_fields(MERGE, i)] + [f"{MERGE}[{count}].path"]


def ranks_of_starts(job: Job, values: Mapping[str, Any], base: Path) -> dict[str, tuple[int, str]]:
    """The rank fields that follow from the starts among the user's values, each with the reason."""
    from presets.facts.loras import START_FIELDS, start_ranks

    chosen = {field: values[field] for field in START_FIELDS.values() if field in values}
    for field, text in chosen.items():
        job = with_value(job, field, text)
    return start_ranks(job, base) if chosen else {}

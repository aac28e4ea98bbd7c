"""A job as others may see it: without what its clips show and where anything lies. What of it is written depends on
save.metadata: engine.adapters.lora_metadata for LoRA files, presets.report.shared for the page of a run.
"""

from pathlib import PurePath
from typing import Any

from presets.job.hub_id import looks_like_hub_id
from presets.job.schema import Job
from presets.job.toml_file import job_to_dict

PROSE = ("prompts", "negative", "default_caption")  # of a job: what is shown or to be shown


def plain_tables(job: Job) -> dict[str, Any]:
    """The tables of a job without prompts and captions, and of each path no more than its last name."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(v) for key, v in value.items() if key not in PROSE}
        if isinstance(value, list):
            return [clean(v) for v in value]
        return last_name(value) if isinstance(value, str) else value

    tables: dict[str, Any] = clean(job_to_dict(job))
    for panel in tables["datasets"]:
        panel["path"] = PurePath(panel["path"]).name  # with a folder it could pass for a Hub id
        panel.pop("exclude", None)  # names of clips
    return tables


def last_name(text: str) -> str:
    """Of a path its last name; a Hub id and any other text as it is."""
    path = text.replace("\\", "/")
    return text if "/" not in path or looks_like_hub_id(text) else PurePath(path).name

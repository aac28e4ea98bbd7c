"""A job that was there before, as a draft: "the same with half the lr". Also of a finished run whose job file is gone:
its run folder holds the job.

How a draft becomes a job is wanlora_tui.draft.job_draft's.
"""

import re
from collections.abc import Container
from pathlib import Path
from typing import Any

from presets.errors import UserError
from presets.job.fields import FIELDS
from presets.job.resume_check import JOB_FILE
from presets.job.schema import Job
from presets.job.toml_file import absolute_paths, get_value, load_job
from wanlora_tui.draft.draft_store import Draft

LONGEST = 64  # characters of a job's name
# not values of a draft: it has lists of its own for them
OWN_LISTS = ("sample.prompts.", "model.merge.", "target.layers.")


def job_of_run(run_dir: Path, job_path: Path) -> Job:
    """The job that a run was given, with absolute paths: from its run folder, else from the job file. Raises
    UserError."""
    kept = run_dir / JOB_FILE
    if kept.is_file():
        return absolute_paths(load_job(kept), job_path.parent)
    if not job_path.is_file():
        raise UserError("neither the run folder nor the job file is there any more", where=f"{run_dir}, {job_path}")
    return job_at(job_path)


def job_at(path: Path) -> Job:
    """The job of a job file or a run folder, with absolute paths. Raises UserError."""
    file = path / JOB_FILE if path.is_dir() else path
    return absolute_paths(load_job(file), file.absolute().parent)


def draft_of(job: Job, *, name: str, copy_of: str, folder: Path | None = None) -> Draft:
    """A draft, the copy of a job called `copy_of`, in which every value is the user's own, as it is in `job`, whose
    paths are absolute: what is recommended for this machine today changes none of them. The job file goes into
    `folder`; None: where the wizard puts it."""
    values: dict[str, Any] = {}
    for field in FIELDS.values():
        if field.path == "job.kind" or field.path.startswith(OWN_LISTS):
            continue
        if field.path.startswith("datasets."):
            paths = [f"datasets[{i}].{field.name}" for i in range(len(job.datasets)) if field.name != "path"]
        else:
            paths = [field.path]
        values |= {path: _plain(get_value(job, path)) for path in paths}
    values["job.name"] = name
    return Draft(
        step="settings",
        kind=job.job.kind,
        copy_of=copy_of,
        folders=[dataset.path for dataset in job.datasets],
        values=values,
        prompts=list(job.sample.prompts),
        merges=list(job.model.merge),
        layers=list(job.target.layers),
        job_path=str(folder / f"{name}.toml") if folder is not None else "",
    )


def next_name(name: str, taken: Container[str]) -> str:
    """The name of a copy: `orbit_v1` gives `orbit_v2`, `orbit` gives `orbit_v2`; the first that is not taken."""
    stem, number = (m[1], int(m[2])) if (m := re.fullmatch(r"(.*)_v(\d+)", name)) else (name, 1)
    while True:
        number += 1
        end = f"_v{number}"
        made = f"{stem[: LONGEST - len(end)]}{end}"
        if made not in taken:
            return made


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value

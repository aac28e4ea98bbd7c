"""Gathering the facts of a job: its clips, its model, the machine and the run folder, each read once. What they mean is
`presets.rules`."""

import os
import re
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import msgspec

from presets.base.composition import named_base
from presets.base.fetch_plan import fetching_of
from presets.base.model_facts import read_model
from presets.caches.clip_scans import MOST, Identity, identity_of, keep_cuts, known_cuts
from presets.clips.clip_facts import DatasetFacts, scan_dataset
from presets.clips.scene_cuts import find_cuts
from presets.disk import exists, not_writable
from presets.errors import ClipError
from presets.facts.facts import Facts, RunFolder
from presets.findings import Finding
from presets.job.resume_check import JOB_FILE, ResumeCheck, check_run_folder
from presets.job.schema import Job
from presets.look import Look
from presets.machine.machine import Machine, read_machine
from presets.runs.run_view import ABANDONED

OPTIONAL_PACKAGES = ("bitsandbytes", "prodigyopt")

_cuts: dict[Identity, list[int] | ClipError] = {}  # what find_cuts said: it decodes the whole clip


def gather(
    job: Job,
    base: Path,
    *,
    out: Path,
    machine: Machine | None = None,
    scenes: bool = True,
    ask_hub: bool = False,
    look: Look | None = None,
    accepted: ResumeCheck | None = None,
) -> Facts:
    """Read everything the rules look at. `base` is the job file's folder, the run folder will be `out`/NAME.
    `accepted`: the run that lies there is resumed, and this is how its job file has changed.

    `scenes` looks for damage and scene cuts, which decodes every clip once, until it changes; `ask_hub` asks the Hub
    about what is not on this machine, some seconds at most; everything else is quick. Raises nothing for bad input:
    what cannot be read is a finding in the facts. `look` tells how far it is; raises LookEnded when that was ended.
    """
    look = look or Look()
    datasets = [scan_dataset(panel, i, base, look) for i, panel in enumerate(job.datasets)]
    cuts: dict[str, list[int]] = {}
    if scenes:
        datasets, cuts = _look_for_cuts(datasets, look)
    named = named_base(job)
    return Facts(
        base=base,
        datasets=datasets,
        machine=machine or read_machine(out),
        model=read_model(named, base),
        named=named,
        out=out,
        run=read_run_folder(job, base, out, accepted),
        cuts=cuts,
        packages=installed_packages(),
        fetching=fetching_of(named, base, raise_if_ended=look.raise_if_ended) if ask_hub else None,
    )


def installed_packages() -> frozenset[str]:
    """The optional packages that can be imported here."""
    return frozenset(p for p in OPTIONAL_PACKAGES if find_spec(p) is not None)


def _look_for_cuts(datasets: list[DatasetFacts], look: Look) -> tuple[list[DatasetFacts], dict[str, list[int]]]:
    """Scene cuts of every video. A clip whose middle does not decode leaves its dataset and becomes a problem of it."""
    paths = list(dict.fromkeys(c.path for d in datasets for c in d.clips if c.kind == "video"))
    # Decoding lets go of the interpreter.
    answers = dict(
        zip(paths, look.at_all(paths, lambda p: _cuts_of(p, look), threads=min(4, os.cpu_count() or 1)), strict=True)
    )
    broken = {path: e for path, e in answers.items() if isinstance(e, ClipError)}
    out = [
        msgspec.structs.replace(
            d,
            clips=[c for c in d.clips if c.path not in broken],
            problems=d.problems
            + [
                Finding(code=e.code, severity="error", field=c.path, message=f"{Path(c.path).name} {e.what}", fix=e.fix)
                for c in d.clips
                if (e := broken.get(c.path))
            ],
        )
        for d in datasets
    ]
    return out, {path: cuts for path, cuts in answers.items() if not isinstance(cuts, ClipError)}


def _cuts_of(path: str, look: Look) -> list[int] | ClipError:
    try:
        file = identity_of(path)
    except OSError as e:
        return ClipError(
            f"cannot be read any more ({(e.strerror or str(e)).lower()})",
            code="clip-unreadable",
            where=path,
            fix="Put it back, or check again",
        )
    found = _cuts.get(file)
    if found is None:
        try:
            if (found := known_cuts(file)) is None:
                keep_cuts(file, found := find_cuts(Path(path), look.raise_if_ended))
        except ClipError as e:
            found = e
        if len(_cuts) >= MOST:
            _cuts.clear()
        _cuts[file] = found
    return found


def read_run_folder(job: Job, base: Path, out: Path, accepted: ResumeCheck | None = None) -> RunFolder:
    """What lies at OUT/NAME already, and whether it can be written."""
    folder = out.absolute() / job.job.name
    return RunFolder(
        path=str(folder),
        name=job.job.name,
        problem=not_writable(folder),
        resume=accepted or check_run_folder(folder, job, base),
        accepted=accepted is not None,
        size=_size(folder),
        free_name=_free_name(job.job.name, out) if exists(folder / JOB_FILE) else "",
    )


def _size(folder: Path) -> int:
    """Bytes of all files below a folder, but for branches that were left: no resume makes use of them. What vanishes or
    may not be read while we look counts nothing."""
    total = 0
    for place, folders, files in os.walk(folder):
        if place == str(folder) and ABANDONED in folders:
            folders.remove(ABANDONED)
        for name in files:
            with suppress(OSError):
                total += Path(place, name).lstat().st_size
    return total


def _free_name(name: str, out: Path) -> str:
    """`orbit` -> `orbit_2`, `orbit_v2` -> `orbit_v3`, and so on until nothing lies there."""
    stem, number = re.fullmatch(r"(.*?)(\d{1,6})?", name).groups()  # type: ignore[union-attr]
    stem, count = (stem, int(number)) if number and stem else (f"{name}_", 1)
    while True:
        count += 1
        candidate = f"{stem[: 64 - len(str(count))]}{count}"
        if not (out / candidate).exists():
            return candidate

"""Gathering the facts of a job: its clips, its model, the machine and the run folder, each read once. What they mean is
`presets.rules`."""

import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import msgspec

from presets.base.composition import named_base
from presets.base.fetch_plan import fetching_of
from presets.base.model_facts import read_model
from presets.caches.clip_scans import MOST, Identity, as_print, identity_of, keep_cuts, known_cuts, of_mask
from presets.clips.clip_facts import ClipFacts, DatasetFacts, scan_dataset
from presets.clips.likeness.alike import Twin, copies, look_alike, print_of
from presets.clips.loss_masks import shades_of
from presets.clips.scene_cuts import find_cuts
from presets.disk import exists, not_writable
from presets.errors import ClipError
from presets.facts.facts import Facts, RunFolder
from presets.facts.held_out import folder_panel, hold_out
from presets.facts.lora_values import look_at_loras
from presets.findings import Finding
from presets.job.resume_check import JOB_FILE, ResumeCheck, check_run_folder
from presets.job.schema import Job
from presets.look import Look
from presets.machine.limits import cores
from presets.machine.machine import Machine, read_machine
from presets.runs.run_view import ABANDONED

OPTIONAL_PACKAGES = ("bitsandbytes", "prodigyopt")
COPY, LIKE = "same bytes as", "looks like"  # how a clip is like another, in words

_found: dict[Identity, list[int] | ClipError] = {}  # what find_cuts and shades_of said: they decode the whole file


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

    `scenes` looks for damage and scene cuts, which decodes every clip once, until it changes, and at the numbers in
    LoRA files; `ask_hub` asks the Hub
    about what is not on this machine, some seconds at most; everything else is quick. Raises nothing for bad input:
    what cannot be read is a finding in the facts. `look` tells how far it is; raises LookEnded when that was ended.
    """
    look = look or Look()
    own = folder_panel(job)  # of held-out clips: looked at as one more dataset
    panels = [*job.datasets, own] if own else job.datasets
    datasets = [scan_dataset(panel, i, base, look) for i, panel in enumerate(panels)]
    twice = copies([c for d in datasets for c in d.clips], look)
    cuts: dict[str, list[int]] = {}
    shades: dict[str, tuple[int, int]] = {}
    alike: list[list[str]] = []
    if scenes:
        datasets, cuts = _look_for_cuts(datasets, look)
        alike = _look_alike(datasets, look)
        datasets, shades = _look_at_masks(datasets, look)
    folder = datasets.pop() if own else None
    datasets, held_out = hold_out(job, datasets, folder)
    named = named_base(job)
    return Facts(
        base=base,
        datasets=datasets,
        held_out=held_out,
        machine=machine or read_machine(out),
        model=read_model(named, base),
        named=named,
        out=out,
        run=read_run_folder(job, base, out, accepted),
        cuts=cuts,
        copies=twice,
        alike=alike,
        shades=shades,
        lora_values=look_at_loras(job, base, look) if scenes else {},
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
    answers = dict(zip(paths, look.at_all(paths, lambda p: _cuts_of(p, look), threads=min(4, cores())), strict=True))
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


def _look_alike(datasets: list[DatasetFacts], look: Look) -> list[list[str]]:
    """Groups of clips of one dataset that look nearly the same. One that does not decode by now is passed over: it was
    found to be whole before."""
    clips = list({c.path: c for d in datasets for c in d.clips}.values())
    found = look.at_all(clips, lambda clip: _print_of(clip, look), threads=min(4, cores()))
    prints = {c.path: answer for c, answer in zip(clips, found, strict=True) if not isinstance(answer, ClipError)}
    groups: list[list[str]] = []
    for d in datasets:
        own = [c for c in d.clips if c.path in prints]
        for group in look_alike([prints[c.path] for c in own], [c.duration for c in own]):
            groups.append([own[place].path for place in group])
    return groups


def twins_of(found: DatasetFacts, look: Look) -> dict[str, Twin]:
    """Path of a clip of this dataset -> which others it is like. Raises LookEnded."""
    twins: dict[str, Twin] = {}
    for group, how in [(g, LIKE) for g in _look_alike([found], look)] + [(g, COPY) for g in copies(found.clips, look)]:
        twin = Twin(how, [str(Path(path).relative_to(found.path)) for path in group])
        twins |= dict.fromkeys(group[1:], twin)
    return twins


def groups_of(folder: str, twins: Iterable[Twin], how: str) -> list[list[str]]:
    """Of what `twins_of` said about the dataset in `folder`: paths, in groups that are alike in this way."""
    groups = dict.fromkeys(tuple(twin.group) for twin in twins if twin.how == how)
    return [[str(Path(folder, name)) for name in group] for group in groups]


def _look_at_masks(datasets: list[DatasetFacts], look: Look) -> tuple[list[DatasetFacts], dict[str, tuple[int, int]]]:
    """The darkest and the brightest shade of every loss mask. One that does not decode leaves its clip and becomes a
    problem of the dataset."""
    masks = list({c.mask.path: c.mask for d in datasets for c in d.clips if c.mask}.values())
    found = look.at_all(masks, lambda mask: _shades_of(mask, look), threads=min(4, cores()))
    answers = {mask.path: answer for mask, answer in zip(masks, found, strict=True)}
    broken = {path: e for path, e in answers.items() if isinstance(e, ClipError)}
    out = [
        msgspec.structs.replace(
            d,
            clips=[msgspec.structs.replace(c, mask=None) if c.mask and c.mask.path in broken else c for c in d.clips],
            problems=d.problems
            + [
                Finding(
                    code="mask-unreadable",
                    severity="error",
                    field=c.mask.path,
                    message=f"{Path(c.mask.path).name} {e.what}",
                    fix=e.fix,
                )
                for c in d.clips
                if c.mask and (e := broken.get(c.mask.path))
            ],
        )
        for d in datasets
    ]
    return out, {path: (a[0], a[1]) for path, a in answers.items() if not isinstance(a, ClipError)}


def _cuts_of(path: str, look: Look) -> list[int] | ClipError:
    return _whole(path, lambda: find_cuts(Path(path), look.raise_if_ended))


def _print_of(clip: ClipFacts, look: Look) -> list[int] | ClipError:
    return _whole(
        clip.path, lambda: print_of(Path(clip.path), clip.kind, clip.duration, look.raise_if_ended), seen_as=as_print
    )


def _shades_of(mask: ClipFacts, look: Look) -> list[int] | ClipError:
    return _whole(mask.path, lambda: [*shades_of(Path(mask.path), mask.kind, look.raise_if_ended)], seen_as=of_mask)


def _whole(
    path: str, find: Callable[[], list[int]], *, seen_as: Callable[[Identity], Identity] | None = None
) -> list[int] | ClipError:
    """What `find` says of a file that it decodes: asked once, until the file changes."""
    try:
        file = identity_of(path)
    except OSError as e:
        return ClipError(
            f"cannot be read any more ({(e.strerror or str(e)).lower()})",
            code="clip-unreadable",
            where=path,
            fix="Put it back, or check again",
        )
    file = seen_as(file) if seen_as else file
    found = _found.get(file)
    if found is None:
        try:
            if (found := known_cuts(file)) is None:
                keep_cuts(file, found := find())
        except ClipError as e:
            found = e
        if len(_found) >= MOST:
            _found.clear()
        _found[file] = found
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

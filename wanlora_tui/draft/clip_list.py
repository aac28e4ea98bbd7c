"""The clips of a job's folders as a list to mend: those that train, those left out, and files that no clip can be made
of. What is written into their captions is clip_captions's."""

from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from presets.clips.clip_facts import ClipFacts, DatasetFacts
from presets.findings import Finding
from wanlora_tui.draft.job_draft import WizardState


class ClipEntry(NamedTuple):
    """One file of a dataset's folder that is a clip, or should be one."""

    dataset: int
    name: str  # in the folder, as `exclude` names it
    path: str
    clip: ClipFacts | None  # None: no clip can be made of it
    problem: str = ""  # why not
    caption_file: str = ""  # where its caption is, or one that cannot be read
    caption_problem: str = ""  # why that cannot be read


class Listed(NamedTuple):
    """One folder, in the form that its screens draw again and again."""

    found: DatasetFacts  # all that lies there
    training: DatasetFacts  # without what is left out
    entries: list[ClipEntry]
    left_out: frozenset[str]
    own_captions: int  # of the clips that train
    seconds: float
    masked: int
    out: int  # files that are left out


class ClipLists:
    """The folders of a draft, each listed once until what lies in it, or what is left out of it, changes."""

    def __init__(self, state: WizardState) -> None:
        self.state = state
        self._entries: dict[int, _Scanned] = {}
        self._known: dict[int, tuple[DatasetFacts, list[str], Listed]] = {}

    def listed(self, index: int) -> Listed | None:
        """None while the folder is being read."""
        found = self.state.scans.get(self.state.draft.folders[index])
        if found is None:
            return None
        names = excluded(self.state, index)
        known = self._known.get(index)
        if known is None or known[0] is not found or known[1] != names:
            scanned = self._entries.get(index)
            if scanned is None or scanned.found is not found:
                scanned = self._entries[index] = _scanned(index, found)
            training = self.state.found(index)
            assert training is not None  # it has been read
            known = self._known[index] = (found, names, _listed(scanned, training, names))
        return known[2]


def excluded(state: WizardState, index: int) -> list[str]:
    """The names that a dataset leaves out."""
    return list(state.draft.values.get(f"datasets[{index}].exclude", []))


def toggle(state: WizardState, entry: ClipEntry) -> bool:
    """Leave a clip out of training, or take it in again; whether it is left out now.

    What is recommended for the clips that train is the caller's to refresh, once no more keys come: with thousands of
    clips that takes longer than a key may.
    """
    path, names = f"datasets[{entry.dataset}].exclude", excluded(state, entry.dataset)
    out = entry.name not in names
    names = [*names, entry.name] if out else [name for name in names if name != entry.name]
    if names:
        state.draft.values[path] = names
    else:
        state.draft.values.pop(path, None)
    state.draft.typed.pop(path, None)
    return out


def _entries(index: int, found: DatasetFacts) -> list[ClipEntry]:
    root = found.path.rstrip("/") + "/"
    captions = {
        clip: problem
        for problem in found.problems
        if problem.code == "caption-unreadable"
        for clip in found.concerned.get(problem.field, [])
    }
    entries = [_entry(index, root, clip.path, clip, None, captions.get(clip.path)) for clip in found.clips]
    there = {clip.path for clip in found.clips}
    entries += [
        _entry(index, root, problem.field, None, problem, captions.get(problem.field))
        for problem in found.problems
        if problem.severity == "error"
        and problem.field not in there
        and found.concerned.get(problem.field) == [problem.field]
    ]
    return sorted(entries, key=lambda e: e.name.split("/"))


class _Scanned(NamedTuple):
    """What does not change while clips are left out and taken in again."""

    found: DatasetFacts
    entries: list[ClipEntry]
    names: frozenset[str]  # of the entries
    clips: dict[str, ClipFacts]  # by path
    own_captions: int  # of all clips
    masked: int


def _scanned(index: int, found: DatasetFacts) -> _Scanned:
    entries = _entries(index, found)
    return _Scanned(
        found=found,
        entries=entries,
        names=frozenset(entry.name for entry in entries),
        clips={clip.path: clip for clip in found.clips},
        own_captions=sum(clip.has_caption for clip in found.clips),
        masked=sum(clip.mask is not None for clip in found.clips),
    )


def _listed(scanned: _Scanned, training: DatasetFacts, names: list[str]) -> Listed:
    """What is left out is counted, not what stays: of thousands, at a key."""
    gone = frozenset(names)
    out = [scanned.clips[path] for path in {str(Path(training.path, name)) for name in gone} & scanned.clips.keys()]
    return Listed(
        found=scanned.found,
        training=training,
        entries=scanned.entries,
        left_out=gone,
        own_captions=scanned.own_captions - sum(clip.has_caption for clip in out),
        seconds=sum(map(attrgetter("duration"), training.clips)),
        masked=scanned.masked - sum(clip.mask is not None for clip in out),
        out=len(gone & scanned.names),
    )


def _entry(
    index: int, root: str, path: str, clip: ClipFacts | None, problem: Finding | None, caption: Finding | None
) -> ClipEntry:
    return ClipEntry(
        dataset=index,
        name=path.removeprefix(root),
        path=path,
        clip=clip,
        problem=problem.message if problem is not None else "",
        caption_file=caption.field if caption is not None else clip.caption_file if clip is not None else "",
        caption_problem=caption.message if caption is not None else "",
    )

"""Captions to be written beside their clips: into which file, and what. The writing is caption_history's; how captions
are read, presets.clips.captions's."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from presets.clips.captions import EXTENSIONS, MAX_CHARACTERS, TRIGGER_MARK, replace_word
from presets.clips.clip_facts import ClipFacts, DatasetFacts
from presets.job.schema import DatasetPanel
from wanlora_tui.draft.caption_history import CaptionChange
from wanlora_tui.draft.clip_list import ClipEntry

MOST_READ = 4 * MAX_CHARACTERS + 4  # bytes of a file that is shown to be mended


def one_line(text: str) -> str:
    """As a caption is read: lines joined by spaces."""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def problem_of(text: str) -> str:
    """Why a text cannot be a caption; "" when it can."""
    if len(text) > MAX_CHARACTERS:
        return f"{len(text):,} characters; at most {MAX_CHARACTERS:,} are read"
    return "It holds zero bytes" if "\0" in text else ""


def file_of(entry: ClipEntry, found: DatasetFacts, panel: DatasetPanel) -> Path:
    """Where the caption of a clip goes: into the file that is its own already, else `castle.txt` beside `castle.mp4`,
    or `castle.mp4.txt` where other clips are called `castle`, too, or share its file."""
    stem = Path(entry.path).with_suffix("")
    named = [c.path for c in found.clips if c.path.startswith(str(stem)) and c.path != entry.path]
    shared = any(Path(path).with_suffix("") == stem for path in named)
    return _file_of(entry, panel, shared=shared)


def _file_of(entry: ClipEntry, panel: DatasetPanel, *, shared: bool) -> Path:
    """`shared`: other clips are called the same, but for the ending."""
    clip, extension = Path(entry.path), panel.caption_extension or EXTENSIONS[0]
    full_name = clip.with_name(clip.name + extension)
    if entry.caption_file:
        own = Path(entry.caption_file)
        return own if not shared or own.name.startswith(clip.name) else full_name
    return full_name if shared else clip.with_suffix(extension)


def _files_of(found: DatasetFacts, panel: DatasetPanel) -> Callable[[ClipEntry], Path]:
    """`file_of` for many clips: they are not all looked at for each of them."""
    alike = Counter(Path(clip.path).with_suffix("") for clip in found.clips)
    return lambda entry: _file_of(entry, panel, shared=alike[Path(entry.path).with_suffix("")] > 1)


def text_to_mend(entry: ClipEntry) -> tuple[str, str]:
    """(text to begin an edit with, what to say about it): of a file that is not UTF-8 what it most likely says."""
    if not entry.caption_problem:
        return (entry.clip.caption if entry.clip is not None else ""), ""
    try:
        with Path(entry.caption_file).open("rb") as f:
            raw = f.read(MOST_READ)
    except OSError:
        return "", entry.caption_problem
    text = raw.decode("cp1252", "replace").replace("\0", "")
    return one_line(text)[: 2 * MAX_CHARACTERS], f"{entry.caption_problem}. Writing it makes it UTF-8"


def with_trigger(
    entries: Iterable[ClipEntry], found: DatasetFacts, panel: DatasetPanel, trigger: str
) -> list[CaptionChange]:
    """`[trigger], ` before each own caption that names neither it nor the trigger word."""
    out, file = [], _files_of(found, panel)
    for entry in entries:
        text = entry.clip.caption if entry.clip is not None else ""
        lacks = TRIGGER_MARK not in text and not (trigger and replace_word(text, trigger, "")[1])
        if text and not entry.caption_problem and lacks:
            out.append(CaptionChange(entry.path, entry.name, file(entry), text, f"{TRIGGER_MARK}, {text}"))
    return out


def filled(
    entries: Iterable[ClipEntry], found: DatasetFacts, panel: DatasetPanel, template: str
) -> list[CaptionChange]:
    """A caption for each clip that has none of its own: `template`, with the clip's name in words for {name}."""
    out, file = [], _files_of(found, panel)
    for entry in entries:
        if entry.clip is not None and not entry.clip.has_caption:
            name = " ".join(Path(entry.name).stem.replace("_", " ").replace("-", " ").split())
            text = one_line(template.replace("{name}", name))
            if text:
                out.append(CaptionChange(entry.path, entry.name, file(entry), "", text))
    return out


def with_changes(found: DatasetFacts, changes: Iterable[CaptionChange]) -> DatasetFacts:
    """The facts as they are once these captions are written, until the folder has been read again."""
    by_path: dict[str, CaptionChange] = {change.clip: change for change in changes}
    files = {str(change.file) for change in by_path.values()}

    def now(clip: ClipFacts) -> ClipFacts:
        change = by_path.get(clip.path)
        if change is None:
            return clip
        text = change.after
        return msgspec.structs.replace(
            clip, caption=text, has_caption=bool(text), caption_file=str(change.file) if text else ""
        )

    return msgspec.structs.replace(
        found,
        clips=[now(clip) for clip in found.clips],
        problems=[p for p in found.problems if p.code != "caption-unreadable" or p.field not in files],
    )

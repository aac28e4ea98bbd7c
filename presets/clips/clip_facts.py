"""Clips and datasets as facts: which files a folder holds, what they are, which captions go with them, what is wrong
with them.

Used by the wizard's table, the rules and the trainer alike. Nothing here decodes; `presets.clips.probe` does, and is
imported only when a file is probed.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from presets.clips.captions import CaptionError, read_caption
from presets.errors import ClipError
from presets.file_names import advice, escaped, is_utf8
from presets.findings import Finding
from presets.job.schema import DatasetPanel
from presets.look import Look

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"})
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
ANIMATION_SUFFIXES = frozenset({".gif", ".apng"})  # taken for clips by many people, so named as errors, never ignored
CLIP_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES | ANIMATION_SUFFIXES
CONTROL_FOLDER = "_controls"  # control images of previews may lie inside a dataset's folder
NAMED = 8  # how many files one finding names before it counts the rest


class ClipFacts(Struct, frozen=True, kw_only=True):
    """One clip, or one image as a clip of one frame."""

    path: str  # absolute
    kind: Literal["video", "image"]
    frames: int
    fps: float  # average; 0 for an image
    duration: float  # seconds, the last frame's time on screen included; 0 for an image
    width: int  # as viewed: after rotation
    height: int
    # 0, 90, 180, 270: degrees to turn a decoded frame counterclockwise, numpy.rot90(frame, rotation // 90); a mirrored
    # one is turned, not mirrored
    rotation: int
    codec: str
    variable_rate: bool
    has_caption: bool = False  # a caption file with text in it
    caption: str = ""  # as written: default and [trigger] are not applied, see caption_or, fill_trigger
    size_bytes: int = 0
    pixel_aspect: float = 1.0  # width of a pixel divided by its height; 1 for nearly all clips
    hdr: bool = False  # PQ or HLG: looks washed out when read as ordinary video
    untagged_hd: bool = False  # read as BT.709 although the file does not say so

    def caption_or(self, default: str) -> str:
        """Its own caption, else the default one of its dataset. An empty caption file says nothing, so the default one
        counts; one that could not be read is an error by itself and gives no words."""
        return self.caption if self.has_caption else default


class DatasetFacts(Struct, frozen=True, kw_only=True):
    """One [[datasets]] folder."""

    path: str  # absolute
    clips: list[ClipFacts]  # sorted by path relative to the folder
    problems: list[Finding]  # unreadable files and captions, ignored files; each names its file


MOST_KNOWN = 50_000  # clips in memory
# (path, inode, size, mtime) -> facts: wizard, check and trainer scan the same folder again and again
_known: dict[tuple[str, int, int, int], ClipFacts] = {}


def probe_clip(path: Path, look: Look | None = None) -> ClipFacts:
    """Facts of one video or image, which is known to decode at least its first and last frame. Its caption is not read.

    A file that did not change is probed once per process. Raises ClipError, which names the file, the reason and a fix,
    and LookEnded when `look` was ended before the answer was there.
    """
    raise_if_ended = (look or Look()).raise_if_ended
    raise_if_ended()
    path = path.absolute()
    suffix = path.suffix.lower()
    if suffix not in CLIP_SUFFIXES:
        raise ClipError(
            f"{suffix or 'no suffix'} is no clip",
            code="not-a-video",
            where=str(path),
            fix=f"Clips end in {', '.join(sorted(VIDEO_SUFFIXES))}; images in {', '.join(sorted(IMAGE_SUFFIXES))}",
        )
    from presets.clips.probe import probe_image, probe_video

    probe = probe_image if suffix in IMAGE_SUFFIXES else partial(probe_video, raise_if_ended=raise_if_ended)
    try:
        status = path.stat()
    except OSError:
        return probe(path)  # which says what is wrong
    key = str(path), status.st_ino, status.st_size, status.st_mtime_ns
    if (found := _known.get(key)) is None:
        if len(_known) >= MOST_KNOWN:
            _known.clear()
        found = _known[key] = probe(path)
    return found


def scan_dataset(panel: DatasetPanel, index: int, base: Path, look: Look | None = None) -> DatasetFacts:
    """Probe every clip below a dataset's folder and pair the captions. `index` is the dataset's place in the job,
    `base` the job file's folder.

    Hidden files and folders, and folders named `_controls`, are no part of a dataset. Everything else is either a clip,
    a caption, or named in `problems`: one error per unusable file, one piece of advice for all files that are left
    aside. `look` tells how far it is; raises LookEnded when that was ended.
    """
    look = look or Look()
    root = (base / Path(panel.path).expanduser()).resolve()
    field = f"datasets[{index}].path"
    if not is_utf8(str(root)):
        return DatasetFacts(
            path=escaped(str(root)),
            clips=[],
            problems=[_not_utf8(next(p for p in (*reversed(root.parents), root) if not is_utf8(p.name)))],
        )
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        return DatasetFacts(
            path=str(root),
            clips=[],
            problems=[
                _error("dataset-missing", field, f"the folder {root} {what}", "Choose the folder that holds the clips")
            ],
        )
    problems: list[Finding] = []
    clips: list[Path] = []
    texts: list[Path] = []
    ignored: list[Path] = []
    for path in _walk(root, field, problems, look):
        suffix = path.suffix.lower()
        if not is_utf8(path.name) and suffix in CLIP_SUFFIXES | {".txt"}:
            problems.append(_not_utf8(path))
            continue
        (clips if suffix in CLIP_SUFFIXES else texts if suffix == ".txt" else ignored).append(path)
    clips.sort(key=lambda p: p.relative_to(root).parts)
    captions = {path.with_suffix(""): path for path in sorted(texts)}
    # PyAV lets go of the interpreter while it reads and decodes.
    probed = look.at_all(
        clips,
        lambda p: _probe_with_caption(p, captions.get(p.with_suffix("")), look),
        threads=min(8, os.cpu_count() or 1),
    )
    facts = [clip for clip, _ in probed if clip is not None]
    problems += [finding for _, found in probed for finding in found]
    if not clips and not problems:
        problems.append(
            _error(
                "dataset-empty",
                field,
                f"the folder {root} holds no clip and no image",
                f"Put clips into it ({', '.join(sorted(VIDEO_SUFFIXES | IMAGE_SUFFIXES))}) or choose another folder",
            )
        )
    stems = {path.with_suffix("") for path in clips}
    orphans = [path for stem, path in captions.items() if stem not in stems]
    if orphans:
        problems.append(
            _advice(
                "caption-without-clip",
                field,
                f"{_count(orphans, 'caption')} without a clip of the same name: {_names(orphans, root)}",
                "Rename each caption like its clip, or remove it",
            )
        )
    if ignored:
        problems.append(
            _advice(
                "files-ignored",
                field,
                f"{_count(ignored, 'file')} left aside as neither clip, image nor caption: {_names(ignored, root)}",
                "Nothing to do if they do not belong to the dataset",
            )
        )
    return DatasetFacts(path=str(root), clips=facts, problems=problems)


def _walk(root: Path, field: str, problems: list[Finding], look: Look) -> Iterator[Path]:
    """Files below `root`; links to folders are followed, but no folder is entered twice. Folders that cannot be read,
    or named, become problems."""

    def unreadable(e: OSError) -> None:
        problems.append(
            _error(
                "dataset-unreadable",
                field,
                f"the folder {escaped(str(e.filename))} cannot be read ({(e.strerror or str(e)).lower()})",
                "Check who may read it",
            )
        )

    entered: set[tuple[int, int]] = set()
    look.done = look.total = 0
    for folder, below, files in os.walk(root, onerror=unreadable, followlinks=True):
        look.raise_if_ended()
        look.done += len(files)
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in entered:
            below.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        below[:] = sorted(name for name in below if not name.startswith(".") and name != CONTROL_FOLDER)
        problems += [_not_utf8(Path(folder, name)) for name in below if not is_utf8(name)]
        below[:] = filter(is_utf8, below)
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def _probe_with_caption(path: Path, caption_file: Path | None, look: Look) -> tuple[ClipFacts | None, list[Finding]]:
    problems: list[Finding] = []
    caption, has_caption = "", False
    if caption_file is not None:
        try:
            caption = read_caption(caption_file)
            has_caption = caption != ""
        except CaptionError as e:
            problems.append(_error("caption-unreadable", str(caption_file), f"{caption_file.name}: {e.what}", e.fix))
            has_caption = True  # there is one, so "no caption" would be a second, wrong complaint
    try:
        return msgspec.structs.replace(probe_clip(path, look), has_caption=has_caption, caption=caption), problems
    except ClipError as e:
        return None, [_error(e.code, str(path), f"{path.name} {e.what}", e.fix), *problems]


def _not_utf8(path: Path) -> Finding:
    what = "folder" if path.is_dir() else "file"
    return _error(
        "name-not-utf8",
        escaped(str(path)),
        f"the name of the {what} {escaped(path.name)} is not UTF-8, so no log and no checkpoint can name it",
        advice(path),
    )


def _error(code: str, field: str, message: str, fix: str) -> Finding:
    return Finding(code=code, severity="error", field=field, message=message, fix=fix)


def _advice(code: str, field: str, message: str, fix: str) -> Finding:
    return Finding(code=code, severity="advice", field=field, message=message, fix=fix)


def _count(paths: list[Path], noun: str) -> str:
    return f"{len(paths)} {noun}{'' if len(paths) == 1 else 's'}"


def _names(paths: list[Path], root: Path) -> str:
    names = [escaped(str(p.relative_to(root))) for p in sorted(paths)[:NAMED]]
    return ", ".join(names) + (f" and {len(paths) - NAMED} more" if len(paths) > NAMED else "")

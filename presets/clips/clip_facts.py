"""Clips and datasets as facts: which files a folder holds, what they are, which captions go with them, what is wrong
with them.

Used by the wizard's table, the rules and the trainer alike. Nothing here decodes; `presets.clips.probe` does, and is
imported only when a file is probed.
"""

import os
import shlex
from collections.abc import Collection, Iterator, Sized
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from presets.clips.captions import EXTENSIONS, CaptionError, caption_files, caption_problems, read_caption, said
from presets.clips.loss_masks import clips_of_files, is_mask, pair_masks
from presets.errors import ClipError
from presets.file_names import advice, escaped, expanded, is_utf8
from presets.findings import Finding, Severity
from presets.job.schema import DatasetPanel
from presets.look import Look
from presets.machine.limits import cores

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".3gp", ".flv", ".wmv"}
    | {".ts", ".mts", ".m2ts", ".mpg", ".mpeg"}
)
# images that Pillow reads with the help of another package (the extra `images`), by the name it is imported by. Without
# it they are left aside
IMAGE_PACKAGES = {".heic": "pillow_heif", ".heif": "pillow_heif", ".jxl": "pillow_jxl"}
IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif"}
    | {suffix for suffix, package in IMAGE_PACKAGES.items() if find_spec(package) is not None}
)
ANIMATION_SUFFIXES = frozenset({".gif", ".apng"})  # taken for clips by many people, so named as errors, never ignored
CLIP_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES | ANIMATION_SUFFIXES
# known kinds that are left aside, never in silence
OTHER_VIDEOS = frozenset(
    {".3g2", ".asf", ".divx", ".dv", ".f4v", ".ivf", ".m2v", ".mjpeg", ".mjpg", ".mxf", ".ogv", ".rm", ".rmvb", ".vob"}
    | {".264", ".265", ".h264", ".h265", ".hevc", ".y4m"}
)
OTHER_IMAGES = frozenset(
    {".arw", ".cr2", ".cr3", ".dds", ".dng", ".exr", ".hdr", ".ico", ".j2k", ".jfif", ".jp2", ".nef", ".orf", ".pcx"}
    | {".pgm", ".ppm", ".psd", ".qoi", ".raf", ".rw2", ".svg", ".tga", ".xcf", *IMAGE_PACKAGES}
)
CONTROL_FOLDER = "_controls"  # control images of previews may lie inside a dataset's folder
NAMED = 8  # how many files one finding names before it counts the rest
MOST_FILES = 100_000  # below a dataset's folder: more is /usr, or the wrong disk


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
    caption_file: str = ""  # absolute: the one that counts
    caption: str = ""  # as written: default and [trigger] are not applied, see caption_or, fill_trigger
    size_bytes: int = 0
    pixel_aspect: float = 1.0  # width of a pixel divided by its height; 1 for nearly all clips
    hdr: bool = False  # PQ or HLG: looks washed out when read as ordinary video
    untagged_hd: bool = False  # read as BT.709 although the file does not say so
    interlaced: bool = False  # its frames hold two fields of two moments, which are made into one picture
    unused: str = ""  # what an image says about its look that cannot be used: broken EXIF data or colour profile
    mask: "ClipFacts | None" = None  # of its loss: a still or a video, see presets.clips.loss_masks

    def caption_or(self, default: str) -> str:
        """Its own caption, else the default one of its dataset. An empty caption file says nothing, so the default one
        counts; one that could not be read is an error by itself and gives no words."""
        return self.caption if self.has_caption else default


class DatasetFacts(Struct, frozen=True, kw_only=True):
    """One [[datasets]] folder."""

    path: str  # absolute
    clips: list[ClipFacts]  # sorted by path relative to the folder
    problems: list[Finding]  # unreadable files and captions, ignored files; each names its file
    left_out: list[str] = msgspec.field(default_factory=list)  # files of it that `exclude` takes out of training
    # a problem's file -> the clips that it concerns: itself, or those whose caption or mask it is
    concerned: dict[str, list[str]] = msgspec.field(default_factory=dict)


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
    a caption, a loss mask, or named in `problems`: one error per unusable file, one piece of advice for all files that
    are left aside. `look` tells how far it is; raises LookEnded when that was ended.
    """
    look = look or Look()
    root = (base / expanded(panel.path)).resolve()
    field = f"datasets[{index}].path"
    if not is_utf8(str(root)):
        return DatasetFacts(
            path=escaped(str(root)),
            clips=[],
            problems=[_not_utf8(next(p for p in (*reversed(root.parents), root) if not is_utf8(p.name)))],
        )
    if not root.is_dir():
        return _missing(root, field, "is a file, not a folder" if root.exists() else "does not exist")
    problems: list[Finding] = []
    clips: list[Path] = []
    texts: list[Path] = []
    aside: list[Path] = []  # videos and images that are not read
    ignored: list[Path] = []
    extensions = (panel.caption_extension,) if panel.caption_extension else EXTENSIONS
    for path in _walk(root, field, problems, look):
        suffix = path.suffix.lower()
        is_text = path.name.lower().endswith(tuple(e.lower() for e in extensions))
        if not is_utf8(path.name) and (suffix in CLIP_SUFFIXES or is_text):
            problems.append(_not_utf8(path))
            continue
        kind = clips if suffix in CLIP_SUFFIXES else texts if is_text else ignored
        (aside if kind is ignored and suffix in OTHER_VIDEOS | OTHER_IMAGES else kind).append(path)
    if any(problem.code == "dataset-too-large" for problem in problems):
        return DatasetFacts(path=str(root), clips=[], problems=problems)
    masks, clips = [p for p in clips if is_mask(p)], [p for p in clips if not is_mask(p)]
    clips.sort(key=lambda p: p.relative_to(root).parts)
    mask_of: dict[Path, Path] = {}
    if panel.mask == "auto":
        mask_of, found = pair_masks(masks, clips, root, field)
        problems += found
    captions = caption_files(clips, texts, extensions)
    again = _links_to_others(clips, captions)
    clips = [path for path in clips if path not in again]
    # PyAV lets go of the interpreter while it reads and decodes.
    probed = look.at_all(
        clips,
        lambda p: _probe_with_words_and_mask(p, captions[p], mask_of.get(p.with_suffix("")), look),
        threads=min(8, cores()),
    )
    if not root.is_dir():  # else each clip in it would have a problem of its own
        return _missing(root, field, "went away while it was looked at")
    facts = [clip for clip, _ in probed if clip is not None]
    problems += [finding for _, found in probed for finding in found]
    if not clips and not problems:
        endings = ", ".join(sorted(VIDEO_SUFFIXES | IMAGE_SUFFIXES))
        problems.append(
            _error(
                "dataset-empty",
                field,
                f"the folder {root} holds no clip and no image"
                + (f" that is read, only {_names(aside, root)}" if aside else ""),
                _way_in(aside) if aside else f"Put clips into it ({endings}) or choose another folder",
            )
        )
    elif aside:
        problems.append(
            _finding(
                "media-left-aside",
                "warning",
                field,
                f"{_count(aside, 'file')} left aside, of kinds that are not read: {_names(aside, root)}",
                _way_in(aside),
            )
        )
    problems += caption_problems(captions, index, root)
    if again:
        pairs = [f"{escaped(link.name)} ({escaped(clip.name)})" for link, clip in list(again.items())[:NAMED]]
        problems.append(
            _finding(
                "clip-linked-twice",
                "advice",
                field,
                f"{_count(again, 'link')} to a clip that is in the folder anyway: it counts once: "
                + ", ".join(pairs)
                + _more(again),
                "Nothing to do; a link with a caption of its own is a clip of its own",
            )
        )
    if orphans := set(texts) - {text for found in captions.values() for text in found}:
        problems.append(
            _finding(
                "caption-without-clip",
                "advice",
                field,
                f"{_count(orphans, 'caption')} without a clip of the same name: {_names(orphans, root)}",
                "Rename each caption like its clip, or remove it",
            )
        )
    if ignored:
        problems.append(
            _finding(
                "files-ignored",
                "advice",
                field,
                f"{_count(ignored, 'file')} left aside as neither clip, image nor caption: {_names(ignored, root)}",
                "Nothing to do if they do not belong to the dataset",
            )
        )
    concerned = clips_of_files({p.field for p in problems}, captions, masks) | {str(p): [str(p)] for p in again}
    return leave_out(DatasetFacts(path=str(root), clips=facts, problems=problems, concerned=concerned), panel.exclude)


def _missing(root: Path, field: str, what: str) -> DatasetFacts:
    fix = "Choose the folder that holds the clips"
    return DatasetFacts(
        path=str(root), clips=[], problems=[_error("dataset-missing", field, f"the folder {root} {what}", fix)]
    )


def leave_out(found: DatasetFacts, names: list[str]) -> DatasetFacts:
    """The dataset without these clips of it, and without what is wrong with them, their captions and their masks, as
    long as it concerns no clip that stays."""
    gone = {str(Path(found.path, name)) for name in names}
    there = {c.path for c in found.clips if c.path in gone}.union(*found.concerned.values())
    return msgspec.structs.replace(
        found,
        clips=[c for c in found.clips if c.path not in gone],
        problems=[p for p in found.problems if not gone.issuperset(found.concerned.get(p.field, [""]))],
        left_out=[name for name in names if str(Path(found.path, name)) in there],
    )


def _links_to_others(clips: list[Path], captions: dict[Path, list[Path]]) -> dict[Path, Path]:
    """Symbolic link -> the clip that it leads to, or that has led there before, under another name. One with a caption
    of its own that says something else is none: it is meant to train as well."""
    links = [path for path in clips if path.is_symlink()]
    first: dict[Path, Path] = {path.resolve(): path for path in clips if path not in links} if links else {}
    found = {}
    for link in links:
        other = first.setdefault(link.resolve(), link)
        if other is not link and said(captions[link]) in ("", said(captions[other])):
            found[link] = other
    return found


def _way_in(aside: list[Path]) -> str:
    """How files of kinds that are not read become clips or images."""
    ways = []
    if any(path.suffix.lower() in IMAGE_PACKAGES for path in aside):
        ways.append("pip install pillow-heif pillow-jxl-plugin, to read HEIC and JPEG XL")
    for kinds, command, suffix in (
        (OTHER_VIDEOS, "ffmpeg -i {} -crf 12 {}", ".mp4"),
        (OTHER_IMAGES, "magick {} {}", ".png"),
    ):
        if example := min((path.name for path in aside if path.suffix.lower() in kinds), default=None):
            made = str(Path(example).with_suffix(suffix))
            ways.append(f"convert with {command.format(shlex.quote(escaped(example)), shlex.quote(escaped(made)))}")
    text = "; ".join(ways)
    return text[0].upper() + text[1:]


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
        if look.done > MOST_FILES:
            what = f"the folder {root} holds more than {MOST_FILES:,} files, so it is hardly a folder of clips"
            problems.append(_error("dataset-too-large", field, what, "Choose the folder that holds the clips alone"))
            return
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in entered:
            below.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        below[:] = sorted(name for name in below if not name.startswith(".") and name != CONTROL_FOLDER)
        problems += [_not_utf8(Path(folder, name)) for name in below if not is_utf8(name)]
        below[:] = filter(is_utf8, below)
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def _probe_with_words_and_mask(
    path: Path, texts: list[Path], mask_file: Path | None, look: Look
) -> tuple[ClipFacts | None, list[Finding]]:
    """A clip with the first of its captions that says something, and with its mask."""
    problems: list[Finding] = []
    mask = None
    if mask_file is not None:
        try:
            mask = probe_clip(mask_file, look)
        except ClipError as e:
            problems.append(_error("mask-unreadable", str(mask_file), f"{mask_file.name} {e.what}", e.fix))
    caption, file, has_caption = "", "", False
    for text in texts:
        try:
            caption = read_caption(text)
        except CaptionError as e:
            problems.append(_error("caption-unreadable", str(text), f"{text.name}: {e.what}", e.fix))
            has_caption = True  # there is one, so "no caption" would be a second, wrong complaint
            continue
        if caption:
            file, has_caption = str(text), True
            break
    try:
        clip = probe_clip(path, look)
    except ClipError as e:
        return None, [_error(e.code, str(path), f"{path.name} {e.what}", e.fix), *problems]
    facts = msgspec.structs.replace(clip, has_caption=has_caption, caption=caption, caption_file=file, mask=mask)
    return facts, problems


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


def _finding(code: str, severity: Severity, field: str, message: str, fix: str) -> Finding:
    return Finding(code=code, severity=severity, field=field, message=message, fix=fix)


def _count(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _names(paths: Collection[Path], root: Path) -> str:
    return ", ".join(escaped(str(p.relative_to(root))) for p in sorted(paths)[:NAMED]) + _more(paths)


def _more(things: Sized) -> str:
    return f" and {len(things) - NAMED} more" if len(things) > NAMED else ""

"""Loss masks by their files: `castle.mask.png` or `castle.mask.mp4` beside `castle.mp4`. One rule: a mask is named like
its clip, `.mask` for the clip's suffix, whatever kind of still or video either of them is.

How a mask is read while it trains is engine.data.masks's; whether it fits its clip, the rules'.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from presets.errors import ClipError
from presets.file_names import escaped
from presets.findings import Finding
from presets.look import never_ends

MARK = ".mask"
BLACK, WHITE = 12, 243  # grey values up to which, and from which, a mask is black or white; compression moves them
NAMED = 8  # files that a finding names


def is_mask(path: Path) -> bool:
    """Whether a still or a video is one by its name."""
    return Path(path.stem).suffix.lower() == MARK


def clip_of(mask: Path) -> Path | None:
    """The clip that a mask is for by its name, without its suffix; None for what is no mask."""
    return mask.with_suffix("").with_suffix("") if is_mask(mask) else None


def pair_masks(
    masks: Iterable[Path], clips: Iterable[Path], root: Path, field: str
) -> tuple[dict[Path, Path], list[Finding]]:
    """(clip without its suffix -> its mask, findings about masks that no clip has, and clips that have two). `field`
    is the dataset's path in the job."""
    stems = {clip.with_suffix("") for clip in clips}
    out: dict[Path, Path] = {}
    alone: list[str] = []
    found: list[Finding] = []
    for mask in sorted(masks):
        stem = clip_of(mask)
        if stem is None or stem not in stems:
            alone.append(escaped(str(mask.relative_to(root))))
        elif stem in out:
            found.append(
                Finding(
                    code="mask-twice",
                    severity="error",
                    field=str(mask),
                    message=f"{out[stem].name} and {mask.name} are masks of the same clip",
                    fix="Leave one of them",
                )
            )
        else:
            out[stem] = mask
    if alone:
        names = ", ".join(alone[:NAMED]) + (f" and {len(alone) - NAMED} more" if len(alone) > NAMED else "")
        found.append(
            Finding(
                code="mask-without-clip",
                severity="warning",
                field=field,
                message=f"{len(alone)} mask{'' if len(alone) == 1 else 's'} without a clip of the same name: {names}",
                fix="Name each like its clip, with .mask for the clip's suffix: castle.mask.png for castle.mp4",
            )
        )
    return out, found


def clips_of_files(
    files: set[str], captions: Mapping[Path, Iterable[Path]], masks: Iterable[Path]
) -> dict[str, list[str]]:
    """Those of the files that are a clip, a caption or a mask by its name -> the clips that each belongs to.
    `captions`: those of every clip."""
    masks_of: dict[Path | None, list[Path]] = defaultdict(list)
    for mask in masks:
        masks_of[clip_of(mask)].append(mask)
    found: dict[str, list[str]] = defaultdict(list)
    for clip, texts in captions.items():
        for file in files.intersection(map(str, (clip, *texts, *masks_of.get(clip.with_suffix(""), ())))):
            found[file].append(str(clip))
    return dict(found)


def shades_of(path: Path, kind: str, raise_if_ended: Callable[[], None] = never_ends) -> tuple[int, int]:
    """(darkest, brightest) grey value of a mask, 0 to 255: all of it is decoded. Raises ClipError."""
    if kind == "image":
        from PIL import Image

        from presets.clips.images import open_image

        try:
            darkest, brightest = open_image(path).convert("L").getextrema()
        except (OSError, Image.DecompressionBombError) as e:
            what = f"cannot be decoded ({str(e).lower() or 'no reason given'})"
            raise ClipError(what, code="clip-unreadable", where=str(path), fix="Save it again") from None
        return int(darkest), int(brightest)  # type: ignore[arg-type]
    from presets.clips.damage import whole_frames

    darkest, brightest = 255, 0
    for frame in whole_frames(path):
        raise_if_ended()
        picture = frame.to_ndarray(format="rgb24")
        darkest, brightest = min(darkest, int(picture.min())), max(brightest, int(picture.max()))
    return darkest, brightest

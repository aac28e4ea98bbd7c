"""The very pictures that train: a sheet of each clip, resolution and window, with every frame as it is decoded for
training. Started by `wanlora clips --show`; imports no torch.

    python -m engine.preview.clip_sheets < ORDER

ORDER is an `Order` as JSON. Each line of stdout is a `Sheet` as JSON, the first one nothing but their number. How a
sheet is drawn is engine.preview.contact_sheets's.
"""

import os
import sys
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from PIL import Image

from engine.data.dataset import Item, build_dataset
from engine.data.frames import Taken, decode_into
from engine.data.sampler import BatchSampler
from engine.preview.contact_sheets import write_grid
from engine.system.durable_files import make_folder
from presets.clips.clip_facts import ClipFacts, DatasetFacts
from presets.clips.geometry import WAN_FPS, uniform_speed
from presets.errors import ClipError, UserError
from presets.job.schema import Job
from presets.machine.limits import cores
from presets.text import escape_output

SOFTWARE = "wanlora clips"  # a sheet says so of itself, and may be written over
NAMED = 3  # files that an error names


class Order(Struct, kw_only=True):
    """What is to be shown. The clips are known already, so that nobody reads them twice."""

    job: Job
    base: str
    datasets: list[DatasetFacts]
    cuts: dict[str, list[int]]  # clip path -> frames that begin a new shot
    out: str


class Sheet(Struct, kw_only=True, omit_defaults=True):
    """One sheet that was written, or why it was not."""

    of: int = 0  # how many there will be, and how many of an earlier look stay beside them: the first line
    earlier: int = 0
    dataset: int = 0
    clip: str = ""  # absolute
    id: str = ""  # the item's: with resolution and window
    sheet: str = ""
    places: list[int] = []  # of the frames in the clip, from 0
    seconds: list[float] = []
    error: str = ""


def main() -> int:
    """Exit codes as of `wanlora`."""
    escape_output()
    try:
        order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
        for sheet in show(order):
            sys.stdout.buffer.write(msgspec.json.encode(sheet) + b"\n")
            sys.stdout.buffer.flush()
    except UserError as e:
        print(f"wanlora: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever asked has left
        os._exit(1)
    return 0


def show(order: Order) -> Iterator[Sheet]:
    """Write a sheet for each item. A clip that cannot be decoded has a line that says why. Raises UserError, before
    anything is written where a file of somebody else's would be lost."""
    job, out = order.job, Path(order.out)
    items = [i for i in build_dataset(job, Path(order.base), order.datasets) if i.repeat == 0]
    targets = {
        item.id: out / f"{item.id.partition('/')[2] if len(job.datasets) == 1 else item.id}.png" for item in items
    }
    if foreign := [path for path in targets.values() if path.exists() and not _is_ours(path)]:
        names = ", ".join(map(str, foreign[:NAMED])) + (f" and {len(foreign) - NAMED} more" if foreign[NAMED:] else "")
        raise UserError(
            f"{names} would be overwritten, and wanlora did not write {'it' if len(foreign) == 1 else 'them'}",
            where=str(out),
            fix="Choose another folder with --show",
        )
    visits = BatchSampler(items, 1, job.job.seed)
    clips = {(number, clip.path): clip for number, found in enumerate(order.datasets) for clip in found.clips}
    earlier = {path for path in out.rglob("*.png") if _is_ours(path)} - set(targets.values())
    yield Sheet(of=len(items), earlier=len(earlier))
    for item in items:
        done = Sheet(dataset=item.dataset, clip=item.path, id=item.id)
        # the first visit's, not mirrored
        request = msgspec.structs.replace(visits.visit(item, 0).request, flip_x=False, flip_y=False)
        bucket = item.bucket
        frames = np.empty((bucket.frames, bucket.height, bucket.width, 3), np.uint8)
        try:
            taken = decode_into(request, frames, threads=min(4, cores()))
        except ClipError as e:
            yield msgspec.structs.replace(done, error=e.what)
            continue
        target, cuts = targets[item.id], order.cuts.get(item.path, [])
        lines = about(job, item, clips[item.dataset, item.path], taken)
        words, alarms = labels(taken, cuts) if item.kind == "video" else ([""], [False])
        try:
            make_folder(target.parent)
            write_grid(target, lines, frames, words, alarms, {"Software": SOFTWARE, "Source": item.id})
        except OSError as e:
            raise UserError(
                f"cannot be written: {e.strerror or e}", where=str(target), fix="Choose another folder with --show"
            ) from None
        yield msgspec.structs.replace(done, sheet=str(target), places=taken.places, seconds=taken.seconds)


def about(job: Job, item: Item, clip: ClipFacts, taken: Taken) -> list[str]:
    """What the sheet says above the frames."""
    panel, bucket = job.datasets[item.dataset], item.bucket
    lines = [
        item.id,
        f"{clip.width}x{clip.height} pixels, trained at {bucket.width}x{bucket.height}"
        + (", mirrored at random" if item.flip_x or item.flip_y else ""),
    ]
    if item.kind == "video":
        how = f"{bucket.frames} of {clip.frames} frames ({clip.fps:.3g} a second, {clip.duration:.2f} s)"
        if bucket.frames < panel.num_frames:
            how += f", too few for {panel.num_frames}"
        if item.sampling == "uniform":
            how += f"; spread over the clip: plays {uniform_speed(clip.duration, bucket.frames):.2f}x as fast"
        else:
            how += f"; a window of {bucket.frames / WAN_FPS:.2f} s at true speed"
            how += "" if item.window_start is not None else ", at another place at each visit: this is the first"
        lines.append(how)
    source = Path(clip.caption_file).name if clip.caption_file else "default"
    lines.append(f"{source}: {item.caption}" if item.caption else "no caption")
    return lines


def labels(taken: Taken, cuts: list[int]) -> tuple[list[str], list[bool]]:
    """(the words above each frame, whether the clip was cut between the frame before and this one)."""
    words, alarms = [], []
    for i, (place, second) in enumerate(zip(taken.places, taken.seconds, strict=True)):
        before = taken.places[i - 1] if i else place
        cut = bisect_right(cuts, place) > bisect_right(cuts, before)
        words.append(f"{'CUT ' * cut}#{place} {second:.2f} s")
        alarms.append(cut)
    return words, alarms


def _is_ours(path: Path) -> bool:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Software") == SOFTWARE
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())

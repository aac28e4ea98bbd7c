"""All measures of a run: its previews as they lie in the run folder, against the clips as they train. How each is
measured: engine.judge.motion, look and track; what they mean, presets.report.measures."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import msgspec
import numpy as np

from engine.data.dataset import Item, build_dataset
from engine.data.frames import decode
from engine.data.sampler import BatchSampler
from engine.judge.look import look_of
from engine.judge.motion import Frames, flow_of, motion_of, opencv
from engine.judge.track import Way, follow, track
from engine.preview.video_files import read_small
from presets.clips.captions import fill_trigger
from presets.clips.clip_facts import scan_dataset
from presets.errors import ClipError, UserError
from presets.facts.held_out import hold_out
from presets.report.measures import STANDS, Film, Judged, Preview, agreement, mean_film
from presets.report.run_reader import StoredRun, inside
from presets.runs.run_view import PreviewSet
from presets.text import to_type

MOST_CLIPS = 24  # of a large dataset, evenly chosen

Progress = Callable[[int, int], None]  # done, of how many films


def measure(run: StoredRun, progress: Progress) -> Judged:
    """Raises UserError: no previews, no clips where the job says, no OpenCV."""
    opencv()
    if not run.view.samples:
        raise UserError(
            "there are no previews yet",
            where=str(run.folder),
            fix="Wait for the first set, or ask for one while it trains: wanlora sample JOB",
        )
    made = [(sample, path) for sample in run.view.samples if (path := inside(run.folder, sample.path)) is not None]
    if not made:
        raise UserError(
            f"none of its {len(run.view.samples)} previews is here",
            where=str(run.folder / "samples"),
            fix="Measure where the run lies, or bring its previews here with: "
            + to_type("fetch", run.job.job.name, "--what run"),
        )
    items = clips_of(run)
    judged = Judged(name=run.job.job.name)
    if len(made) < len(run.view.samples):
        judged.notes.append(f"{len(run.view.samples) - len(made)} previews are not here")
    ways: list[Way] = []
    total = len(items) + len(made)
    for i, item in enumerate(items):
        progress(i, total)
        try:
            film, way = film_of(_as_it_trains(run, item), item.caption)
        except ClipError as e:
            judged.notes.append(f"{item.id} {e.what}")
            continue
        judged.clips.append(film)
        ways += [way] if way is not None else []
    # each by the others, which says how near a preview can come
    seen = iter(ways)
    for film in judged.clips:
        if film.track is not None:
            way = next(seen)
            film.track = track(way, [w for w in ways if w is not way])
    for i, (sample, path) in enumerate(sorted(made, key=lambda pair: (pair[0].step, pair[0].path))):
        progress(len(items) + i, total)
        frames = read_frames(path)
        if frames is None:
            judged.notes.append(f"{sample.path} does not decode")
            continue
        judged.previews.append(_preview(run, judged, sample, frames, ways))
    if not judged.previews:
        raise UserError("none of its previews decodes", where=str(run.folder / "samples"))
    if not any(p.step == 0 for p in judged.previews):
        judged.notes.append("there are no previews from before the first step, so no drift from the base is measured")
    return judged


def clips_of(run: StoredRun) -> list[Item]:
    """What the run trains on, without regularization and what is held out; a large dataset's evenly chosen. Raises
    UserError where a dataset is not where it was."""
    found = [scan_dataset(panel, i, run.folder) for i, panel in enumerate(run.job.datasets)]
    for facts, panel in zip(found, run.job.datasets, strict=True):
        if not facts.clips and not panel.regularization:
            why = next((p.message for p in facts.problems if p.severity == "error"), "it holds no clip")
            raise UserError(
                f"the clips that it trained on are not there: {why}",
                where=str(run.folder),
                fix="Put them back, or measure on the machine that it trained on",
            )
    train, _ = hold_out(run.job, found)
    items = [i for i in build_dataset(run.job, run.folder, train) if i.repeat == 0 and not i.regularization]
    chosen = np.unique(np.linspace(0, len(items) - 1, MOST_CLIPS).round().astype(int))
    return [items[i] for i in chosen]


def _as_it_trains(run: StoredRun, item: Item) -> Frames:
    """Its first visit's frames, not mirrored. Raises ClipError."""
    request = BatchSampler([item], 1, run.job.job.seed).visit(item, 0).request
    return decode(msgspec.structs.replace(request, flip_x=False, flip_y=False))


def film_of(frames_THWC: Frames, caption: str) -> tuple[Film, Way | None]:
    """What is measured of a film for itself. Its `track` is filled in by who knows the other ways."""
    flow = flow_of(frames_THWC) if len(frames_THWC) > 1 else None
    way = follow(frames_THWC, caption) if len(frames_THWC) > 1 else None
    film = Film(
        frames=len(frames_THWC),
        motion=None if flow is None else motion_of(flow),
        look=look_of(frames_THWC, flow),
        track=None if way is None else track(way, [way]),
    )
    return film, way


def _preview(run: StoredRun, judged: Judged, sample: PreviewSet, frames: Frames, ways: list[Way]) -> Preview:
    film, way = film_of(frames, sample.prompt)
    film.track = None if way is None else track(way, ways)
    clips = mean_film([clip for clip in judged.clips if clip.motion is not None])
    wanted = None if clips is None else clips.motion
    speed = agrees = None
    if film.motion is not None and wanted is not None:
        speed = film.motion.speed / wanted.speed if wanted.speed > STANDS else None
        agrees = agreement(film.motion, wanted)
    first = next((p for p in _firsts(run) if Path(p.path).name == Path(sample.path).name), None)
    base = None if first is None or sample.step == 0 or first.prompt != sample.prompt else first
    return Preview(
        step=sample.step,
        path=sample.path,
        prompt=sample.prompt,
        number=int(Path(sample.path).stem) if Path(sample.path).stem.isdecimal() else 0,
        has_trigger=_has_trigger(sample.prompt, run.job.job.trigger),
        film=film,
        speed=speed,
        direction=agrees,
        changed=None if base is None else _difference(run.folder / base.path, run.folder / sample.path),
    )


def _firsts(run: StoredRun) -> Iterator[PreviewSet]:
    return (s for s in run.view.samples if s.step == 0 and inside(run.folder, s.path) is not None)


def _has_trigger(prompt: str, trigger: str) -> bool:
    return not trigger or bool(
        re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", fill_trigger(prompt, trigger), re.IGNORECASE)
    )


def _difference(one: Path, other: Path) -> float | None:
    """Root mean square of what two videos of one size differ by, 0 to 1, at a small size; None of others."""
    a, b = read_small(one), read_small(other)
    if a is None or b is None or a.shape != b.shape:
        return None
    return float(np.sqrt(np.square(a.astype(np.float32) - b).mean()) / 255)


def read_frames(video: Path) -> Frames | None:
    """All frames of a preview at their own size; None when it does not decode, or they are of several sizes."""
    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    except (OSError, av.FFmpegError, IndexError):
        return None
    return np.stack(frames) if len({frame.shape for frame in frames}) == 1 else None

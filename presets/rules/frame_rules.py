"""Rules about frame counts, windows and speed. Size and number of clips are `clip_rules`."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from presets.clips.batches import FEWEST, ROUNDING, frames_of, frames_that_fit, too_short, window_starts
from presets.clips.clip_statistics import MOST_FRAMES, SPEED_LIMIT, off_speed, true_speed_frames
from presets.clips.geometry import WAN_FPS, is_valid_frame_count, nearest_frame_counts, uniform_speed
from presets.facts.facts import Facts, names, paired, used_gpus, videos
from presets.job.schema import Job
from presets.planner.sizes import GIB
from presets.recipes.recipe import tier_for
from presets.rules.registry import Found, rule

LEAST_FPS = 12.0  # from here on, less than every fourth frame that is taken is there for the second time
MOST_LISTED = 4  # numbers of frames that one finding lists


@rule("frames-4n-plus-1", "error")
def frames_4n_plus_1(job: Job, facts: Facts) -> Iterator[Found]:
    """Every frame count, of datasets and of previews, is 4n+1: 1, 5, 9, ... 33, 41, 81."""
    shortest = {
        i: min((frames_that_fit(c, p) for c in videos(f)), default=MOST_FRAMES)
        for i, p, f in paired(job, facts)
        if p.short_clips == "refuse"
    }
    fields = [
        (f"datasets[{i}].num_frames", d.num_frames, shortest.get(i, MOST_FRAMES)) for i, d in enumerate(job.datasets)
    ]
    fields += [("sample.num_frames", job.sample.num_frames, MOST_FRAMES)]
    fields += [
        (f"sample.prompts[{i}].num_frames", p.num_frames, MOST_FRAMES)
        for i, p in enumerate(job.sample.prompts)
        if p.num_frames is not None
    ]
    for path, frames, limit in fields:
        if not is_valid_frame_count(frames):
            below, above = nearest_frame_counts(frames)
            better = above if above - frames < frames - below and above <= limit else below
            yield Found(
                path,
                f"{frames} is not 4n+1: the video encoder packs 1 + 4 + 4 + ... frames, so the last ones would be"
                " dropped",
                set={path: better},
            )


@rule("frames-beyond-81", "warning")
def frames_beyond_81(job: Job, facts: Facts) -> Iterator[Found]:
    """No more than 81 frames: Wan 2.2 I2V was made for at most 5 seconds at 16 FPS."""
    fields = [(f"datasets[{i}].num_frames", d.num_frames) for i, d in enumerate(job.datasets)]
    if job.sample.prompts:
        fields.append(("sample.num_frames", job.sample.num_frames))
        fields += [
            (f"sample.prompts[{i}].num_frames", p.num_frames)
            for i, p in enumerate(job.sample.prompts)
            if p.num_frames is not None
        ]
    for path, frames in fields:
        if frames > MOST_FRAMES:
            yield Found(
                path,
                f"{frames} frames are longer than anything Wan 2.2 I2V makes (81), and memory grows with each",
                set={path: MOST_FRAMES},
            )


@rule("clip-too-short", "error")
def clip_too_short(job: Job, facts: Facts) -> Iterator[Found]:
    """Every clip has as many frames (uniform) or seconds (realtime, head: frames / 16) as its dataset asks for, or at
    least 5 frames where short clips are shortened."""
    for i, panel, found in paired(job, facts):
        short = sorted(
            (c for c in videos(found) if panel.num_frames > 1 and too_short(c, panel)), key=lambda c: c.duration
        )
        least = min((frames_that_fit(c, panel) for c in short), default=0)
        if panel.short_clips == "shorten":
            short = [c for c in short if frames_that_fit(c, panel) < FEWEST]
        if not short:
            continue
        path = f"datasets[{i}]"
        one = len(short) == 1
        if panel.sampling != "uniform":
            message = (
                f"{panel.num_frames} frames in real time take {panel.num_frames / WAN_FPS:.2f} s, but {names(short)}"
                f" {'runs' if one else 'run'} {short[0].duration:.2f} s{'' if one else ' at the shortest'}"
            )
        else:
            message = (
                f"{panel.num_frames} frames are asked for, but {names(short)} {'has' if one else 'have'}"
                f" {min(c.frames for c in short)}{'' if one else ' at the least'}, so frames would come twice"
            )
        if least >= FEWEST:
            yield Found(
                f"{path}.num_frames",
                message,
                fix=(
                    f'Set {path}.num_frames = {least} for all of them; or {path}.short_clips = "shorten", to train'
                    " the short ones alone on fewer; or take those out of the folder"
                ),
                set={f"{path}.num_frames": least},
            )
        else:
            yield Found(
                f"{path}.num_frames",
                message,
                fix=f"Take the short clips out of the folder: they have fewer than {FEWEST} frames",
            )


@rule("frames-repeat", "warning")
def frames_repeat(job: Job, facts: Facts) -> Iterator[Found]:
    """In real time, clips have enough frames a second (12) for the 16 that are taken: else many come twice."""
    for i, panel, found in paired(job, facts):
        slow = [c for c in videos(found) if panel.sampling != "uniform" and panel.num_frames > 1 and c.fps < LEAST_FPS]
        if slow:
            slowest = min(slow, key=lambda c: c.fps)
            yield Found(
                f"datasets[{i}].sampling",
                f"16 frames a second are taken from clips that have fewer, so many come twice, and motion stutters:"
                f" {names(slow)} ({Path(slowest.path).name} has {slowest.frames} in {slowest.duration:.1f} s)",
                fix=(
                    f'Set datasets[{i}].sampling = "uniform" where those clips show all their motion in that many'
                    " frames, export them again at 16 or more, or leave them out"
                ),
            )


@rule("clips-shortened", "advice")
def clips_shortened(job: Job, facts: Facts) -> Iterator[Found]:
    """With short_clips = "shorten", it is said how many clips train on how many frames."""
    for i, panel, found in paired(job, facts):
        fallen = Counter(frames_of(c, panel) for c in videos(found) if frames_of(c, panel) < panel.num_frames)
        fallen = Counter({n: clips for n, clips in fallen.items() if n >= FEWEST})
        if fallen:
            each = ", ".join(f"{clips} at {n}" for n, clips in sorted(fallen.items(), reverse=True)[:MOST_LISTED])
            if len(fallen) > MOST_LISTED:
                each += f", the others at {sorted(fallen)[-MOST_LISTED - 1]} and less"
            message = (
                f"of {len(videos(found))} clips, {fallen.total()} too short for {panel.num_frames} frames"
                f" train{'s' if fallen.total() == 1 else ''} on fewer: {each}"
            )
            yield Found(
                f"datasets[{i}].short_clips",
                message,
                fix="Nothing to do where what they show is whole in that time; else use longer clips",
            )


@rule("windows-of-whole-clips", "error")
def windows_of_whole_clips(job: Job, facts: Facts) -> Iterator[Found]:
    """Several windows go with sampling in real time: uniform sampling takes each clip whole."""
    for i, panel in enumerate(job.datasets):
        if panel.windows > 1 and panel.sampling == "uniform":
            path = f"datasets[{i}]"
            yield Found(
                f"{path}.windows",
                f"{panel.windows} windows are asked for, but uniform sampling spreads the frames over the whole clip",
                fix=f'Set {path}.sampling = "realtime", or {path}.windows = 1',
                set={f"{path}.sampling": "realtime"},
            )


@rule("windows-not-reached", "advice")
def windows_not_reached(job: Job, facts: Facts) -> Iterator[Found]:
    """Some clip is long enough for all of its dataset's windows."""
    for i, panel, found in paired(job, facts):
        if panel.windows == 1 or panel.sampling == "uniform" or not found.clips:
            continue
        most = max(len(window_starts(c, panel)) for c in found.clips)
        if most < panel.windows:
            path = f"datasets[{i}].windows"
            yield Found(
                path,
                f"no clip is long enough for {panel.windows} windows of {panel.num_frames / WAN_FPS:.1f} s side by"
                f" side; the longest gives {most}",
                set={path: most},
            )


@rule("frames-mismatch", "warning")
def frames_mismatch(job: Job, facts: Facts) -> Iterator[Found]:
    """Previews have about as many frames as training, or the motion looks too fast in them, or ends too early."""
    trained = [d.num_frames for d in job.datasets if d.num_frames > 1 and not d.regularization]
    if not job.sample.prompts or not trained:
        return
    own = {
        f"sample.prompts[{i}].num_frames": p.num_frames
        for i, p in enumerate(job.sample.prompts)
        if p.num_frames is not None
    }
    common = {"sample.num_frames": job.sample.num_frames} if len(own) < len(job.sample.prompts) else {}
    for path, shown in (common | own).items():
        if any(max(shown / n, n / shown) <= SPEED_LIMIT for n in trained):
            continue
        nearest = min(trained, key=lambda n: abs(n - shown))
        better = nearest if is_valid_frame_count(nearest) else nearest_frame_counts(nearest)[0]
        so = "over before they are" if shown > nearest else "cut short"
        yield Found(
            path,
            f"previews of {shown} frames from a LoRA trained at {nearest}: the motion will look too fast, or be {so}",
            set={path: better},
        )


@rule("one-frame-of-video", "warning")
def one_frame_of_video(job: Job, facts: Facts) -> Iterator[Found]:
    """A folder of video clips is not trained at 1 frame, which teaches looks but no motion."""
    for i, panel, found in paired(job, facts):
        clips = videos(found)
        if panel.num_frames == 1 and clips:
            fits = min(41, *(frames_that_fit(c, panel) for c in clips))
            path = f"datasets[{i}].num_frames"
            message = f"only the first frame of {len(clips)} video clips would be seen, so no motion is learned"
            if fits >= FEWEST:
                yield Found(path, message, set={path: fits})
            else:
                yield Found(path, message, fix="Use longer clips")


@rule("speed-factor", "warning")
def speed_factor(job: Job, facts: Facts) -> Iterator[Found]:
    """Uniform sampling leaves every clip within 1.25x of its true speed."""
    for i, panel, found in paired(job, facts):
        clips = videos(found)
        if panel.sampling != "uniform" or panel.num_frames == 1:
            continue
        speeds = sorted(
            ((uniform_speed(c.duration, frames_of(c, panel)), c) for c in clips), key=lambda sc: -off_speed(sc[0])
        )
        worst = [(s, c) for s, c in speeds if off_speed(s) > SPEED_LIMIT]
        if not worst:
            continue
        listed = ", ".join(f"{Path(c.path).name} {s:.2f}x" for s, c in worst[:4]) + (
            f" and {len(worst) - 4} more" if len(worst) > 4 else ""
        )
        message = (
            f"{panel.num_frames} frames spread over whole clips and played at 16 a second change their speed: {listed}"
        )
        path = f"datasets[{i}]"
        vram = min((g.vram_total for g in used_gpus(job, facts)), default=None)
        memory_allows = (
            MOST_FRAMES if vram is None or facts.tiny else max(panel.num_frames, tier_for(vram / GIB).frames.high)
        )
        better = true_speed_frames(clips, high=memory_allows)
        realtime = panel.short_clips == "shorten" or all(
            c.duration * WAN_FPS + ROUNDING >= panel.num_frames for c in clips
        )
        if all(off_speed(uniform_speed(c.duration, better)) <= SPEED_LIMIT for c in clips):
            way = (
                f', or sampling = "realtime" for a window of {panel.num_frames / WAN_FPS:.1f} s out of each clip'
                if realtime
                else ""
            )
            yield Found(
                f"{path}.num_frames",
                message,
                fix=f"Set {path}.num_frames = {better}{way}",
                set={f"{path}.num_frames": better},
            )
        elif realtime:
            fix = (
                f'Set {path}.sampling = "realtime" (a window of {panel.num_frames / WAN_FPS:.1f} s out of each clip),'
                f" or trim the clips to about {panel.num_frames / WAN_FPS:.1f} s"
            )
            yield Found(f"{path}.sampling", message, fix=fix, set={f"{path}.sampling": "realtime"})
        else:
            yield Found(
                f"{path}.num_frames",
                message,
                fix=(
                    f"Trim the clips to about {panel.num_frames / WAN_FPS:.1f} s, all alike; {better} frames suit the"
                    " middle one best"
                ),
            )

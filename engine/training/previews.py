"""The previews of a run: from which weights they are made, what they leave behind, and whether that is still there.

How one is denoised is engine.preview.sampling's; when they are due, engine.training.trainer's.
"""

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import av
import torch

from engine.executor.shared_passes import SharedPasses, shares_passes
from engine.parallel.lost_clips import ClipLost
from engine.preview.contact_sheets import Row, side_by_side, steps_shown, write_sheet
from engine.preview.sampling import Predicts, PreviewRequest, control_image, end_image, sample_latents, to_frames
from engine.preview.video_files import Frames, is_picture, is_video, read_small, write_poster, write_video
from engine.runfolder import checkpoint
from engine.runfolder.control import StopRequested
from engine.runfolder.disk_full import retry_when_disk_has_room
from engine.system import fault_injection
from engine.system.device import memory_errors
from engine.system.durable_files import make_folder, sha256
from engine.training.context import Run, averaged_weights
from engine.training.placement import place, replan, why_short
from presets.clips.captions import fill_trigger
from presets.errors import UserError
from presets.file_names import expanded
from presets.findings import Finding
from presets.job.expert_schedule import Expert
from presets.job.preview_settings import preview_seed, preview_size_of, sampling_of

# (step, prompt) -> the video in the run folder, of each preview that the events record
Videos = dict[tuple[int, int], str]
SampleData = dict[str, Any]  # the data of a `sample` event
NAMED = 6  # lost files that a finding names


def request_of(run: Run, i: int) -> PreviewRequest:
    """The preview of prompt `i`. Raises OSError or UserError when one of its images cannot be used."""
    panel = run.job.sample
    prompt, size = panel.prompts[i], preview_size_of(panel, i)
    path = run.base_dir / expanded(prompt.ctrl_img)
    image = control_image(path, size.width, size.height, hdr=_hdr_of(run, path))
    end = None
    if prompt.end_img.strip():
        path = run.base_dir / expanded(prompt.end_img)
        end = end_image(path, image, hdr=_hdr_of(run, path))
    text = fill_trigger(prompt.prompt, run.job.job.trigger)
    return PreviewRequest(
        image.to(run.placement.device),
        run.text([text]),
        run.text([sampling_of(panel).negative]),
        preview_seed(panel, i),
        size.frames,
        prompt.strength,
        None if end is None else end.to(run.placement.device),
    )


def _hdr_of(run: Run, control: Path) -> Literal["plain", "tonemap"]:
    """A clip of a dataset looks as it does there."""
    folders = [(run.base_dir / expanded(panel.path), panel.hdr) for panel in run.job.datasets]
    return next((hdr for folder, hdr in folders if control.is_relative_to(folder)), "plain")


def preview_dir(run: Run, step: int) -> Path:
    return run.folder / "samples" / checkpoint.folder_name(step)


def video_path(run: Run, step: int, i: int) -> Path:
    return preview_dir(run, step) / f"{i:02d}.mp4"


def compare_path(run: Run, i: int, kind: str) -> Path:
    return run.folder / "samples" / f"compare_{i:02d}.{kind}"


def recorded(run: Run, last: int) -> Videos:
    """The previews of this branch up to step `last` that lie there, of the prompts and seeds as the job has them
    now."""
    out = Videos()
    for path, data in run.log.history.samples.items():
        i = prompt_of(run, data)
        if i is not None and data["step"] <= last and (run.folder / path).exists():
            out[data["step"], i] = path
    return out


def prompt_of(run: Run, sample: SampleData) -> int | None:
    """Which prompt of the job as it is now a `sample` event is of."""
    panel = run.job.sample
    of_now = {(f"{i:02d}.mp4", prompt.prompt, preview_seed(panel, i)): i for i, prompt in enumerate(panel.prompts)}
    return of_now.get((Path(sample["path"]).name, sample["prompt"], sample["seed"]))


def previews_made(run: Run, step: int) -> bool:
    """Whether the set of a step is whole (a run that ended among its previews makes the rest on resume)."""
    made = recorded(run, step)
    return all((step, i) in made for i in range(len(run.job.sample.prompts)))


def verify_previews(run: Run) -> bool:
    """As an attempt begins: are the previews that the events record still as they were made? Sheets that are not are
    drawn again. A preview that is damaged or missing counts no longer; True when some of those are of the step that the
    attempt begins with and can be made again, the others are a finding. Previews of a version with other noise levels
    are said to be such.
    """
    samples = run.log.history.samples
    lost = [data for data in samples.values() if data["step"] <= run.begin.step and not _is_whole(run, data)]
    for data in lost:
        del samples[data["path"]]
    again = [data for data in lost if data["step"] == run.begin.step and prompt_of(run, data) is not None]
    _report_lost(run, [data["path"] for data in lost if data not in again])
    if samples and not any("shift" in data for data in samples.values()):
        text = (
            "the previews so far were made by an older version, at other noise levels: from here on they go through"
            f" Wan's own, with shift {sampling_of(run.job.sample).shift:g} (sample.shift), and may look different"
        )
        run.log.emit("log", level="info", text=text)
    made = recorded(run, run.begin.step)
    sheets = {step for step, _ in made if not is_picture(preview_dir(run, step) / "sheet.png")}
    films = {
        i for _, i in made if not (is_picture(compare_path(run, i, "png")) and is_video(compare_path(run, i, "mp4")))
    }

    def redraw() -> None:
        for step in sorted(sheets):
            _sheet(run, step, made)
        for i in sorted(films):
            _comparison(run, i, made)

    if sheets or films:
        text = "some sheets of the previews are damaged or missing: they are drawn again"
        run.log.emit("log", level="info", text=text)
        retry_when_disk_has_room(run.log, run.control, run.folder, "the sheets of the previews", 2**20, redraw)
    return bool(again)


def _report_lost(run: Run, paths: list[str]) -> None:
    names = ", ".join(paths[:NAMED]) + (f" and {len(paths) - NAMED} more" if len(paths) > NAMED else "")
    message = f"previews of earlier steps are damaged or missing: {names}"
    if paths and message not in run.log.history.found:
        fix = "Nothing needs doing if you removed them, else look at the disk; the training continues without them"
        run.log.finding(Finding(code="preview-lost", severity="warning", field="sample", message=message, fix=fix))


def _is_whole(run: Run, sample: SampleData) -> bool:
    """Whether the video and the poster have the digests in their event. Of an older event, which has none, only the
    lengths are checked."""
    video, poster = run.folder / sample["path"], run.folder / sample["poster"]
    if "sha256" not in sample:
        return is_video(video) and is_picture(poster)
    return all(
        path.exists() and sha256(path) == sample[key] for path, key in ((video, "sha256"), (poster, "poster_sha256"))
    )


def make_previews(run: Run, step: int, *, missing: bool = False) -> None:
    """One mp4 and one poster PNG per prompt, the sheets with them; with `missing`, only what is not made yet. A stop
    ends the set early; the loop sees it next. A preview that cannot be made is a finding."""
    run.bring_together()
    made = recorded(run, step) if missing else {}
    for i in range(len(run.job.sample.prompts)):
        if run.control.stop_requested():
            return
        if (step, i) in made:
            continue
        try:
            fault_injection.at("preview.begin", step)
            _preview(run, step, i)
        except StopRequested:
            return  # the loop sees it next
        # a card that failed answers nothing any more, nor do ranks that have lost each other
        except (fault_injection.InjectedFault, torch.AcceleratorError, ClipLost):
            raise
        except Exception as e:
            # unexpected: where it came from is worth knowing
            if not isinstance(e, (UserError, OSError, av.FFmpegError, torch.OutOfMemoryError)):
                traceback.print_exc()
            text = f"the preview after step {step} could not be made: {e or type(e).__name__}"
            fix = "The training continues; look at the control image and the free memory"
            where = f"sample.prompts[{i}]"
            run.log.finding(Finding(code="preview-failed", severity="warning", field=where, message=text, fix=fix))
            run.experts.ensure()


def _preview(run: Run, step: int, i: int) -> None:
    prompt, request = run.job.sample.prompts[i], request_of(run, i)
    frames = _frames(run, step, i, request)
    video = video_path(run, step, i)
    poster = video.with_suffix(".png")

    def write() -> dict[str, str]:
        make_folder(video.parent)
        write_poster(poster, frames)
        fault_injection.at("preview.before-video", step)
        write_video(video, frames, run.job.sample.fps)
        pictures = _sheets(run, step, i)
        fault_injection.at("preview.before-event", step)
        paths = {"path": video, "poster": poster, **pictures}
        return {name: str(path.relative_to(run.folder)) for name, path in paths.items()} | {
            "sha256": sha256(video),
            "poster_sha256": sha256(poster),
        }

    what = f"preview {i + 1} after step {step}"
    files = retry_when_disk_has_room(run.log, run.control, run.folder, what, frames.nbytes // 8, write)
    shift = sampling_of(run.job.sample).shift
    run.log.emit("sample", step=step, prompt=prompt.prompt, seed=request.seed, shift=shift, **files)


def _frames(run: Run, step: int, i: int, request: PreviewRequest) -> Frames:
    """The preview itself, under smaller and smaller plans while memory runs out."""
    prompts = len(run.job.sample.prompts)

    def progress(done: int, total: int) -> None:
        run.control.raise_if_stop_requested()
        fault_injection.at("preview.denoise", step)
        run.log.phase("sampling", i * total + done, prompts * total, f"preview {i + 1} of {prompts}")

    with averaged_weights(run, run.job.sample.ema), run.experts.accelerated(run.accelerators):
        frames = None
        while frames is None:
            latents, why = None, None
            try:
                with memory_errors():
                    latents = sample_latents(
                        _experts(run, step),
                        run.encoder,
                        request,
                        sampling_of(run.job.sample),
                        boundary=run.base.boundary,
                        batched_guidance=run.planning.batched_guidance,
                        progress=progress,
                    )
                    fault_injection.at("preview.decode", step)
                    with run.experts.parked():
                        frames = to_frames(run.encoder.vae, latents)
            except torch.OutOfMemoryError:
                latents, why = None, why_short(run)
            if why is not None:  # outside the handler, whose traceback holds on to tensors
                if frames is None:
                    replan(run, "preview", why)
                else:  # it is made, but there was no room for the experts to come back
                    place(run, run.planning.plan)
    return frames


def _experts(run: Run, step: int) -> Mapping[Expert, Predicts]:
    """As previews run them: by all ranks that share clips with this one, where there are any."""
    if run.team is None or run.split is None or not shares_passes(run.team):
        return run.experts.executors
    accelerated = bool(run.accelerators)
    passes = SharedPasses(run.experts, run.team, run.split, step, run.job.sample.ema, accelerated)
    return {expert: passes.of(expert) for expert in run.experts.executors}


def _sheets(run: Run, step: int, i: int) -> dict[str, Path]:
    """Bring the step's sheet and the comparison of prompt `i` up to date with its new preview."""
    made = recorded(run, step) | {(step, i): str(video_path(run, step, i).relative_to(run.folder))}
    return {"sheet": _sheet(run, step, made), **_comparison(run, i, made)}


def _sheet(run: Run, step: int, made: Videos) -> Path:
    """All prompts of a step. It is read from the videos, as a comparison is, so a resumed run draws what an
    uninterrupted one does."""
    path, prompts = preview_dir(run, step) / "sheet.png", run.job.sample.prompts
    rows = [
        Row(f"{i:02d}: {prompts[i].prompt}", _about(run, i), frames)
        for (s, i), video in sorted(made.items())
        if s == step and (frames := read_small(run.folder / video)) is not None
    ]
    write_sheet(path, f"{run.job.job.name}, step {step}", rows)
    return path


def _comparison(run: Run, i: int, made: Videos) -> dict[str, Path]:
    """One prompt across the steps, as picture and as video."""
    panel, across, film = run.job.sample, compare_path(run, i, "png"), compare_path(run, i, "mp4")
    shown = steps_shown([step for step, p in made if p == i])
    steps = [(f"step {step}", found) for step in shown if (found := read_small(run.folder / made[step, i])) is not None]
    title = f"{run.job.job.name}: {panel.prompts[i].prompt} ({_about(run, i)})"
    write_sheet(across, title, [Row(step, "", frames) for step, frames in steps])
    write_video(film, side_by_side(steps), panel.fps)
    return {"compare": across, "compare_video": film}


def _about(run: Run, i: int) -> str:
    panel = run.job.sample
    prompt, size = panel.prompts[i], preview_size_of(panel, i)
    words = [f"seed {preview_seed(panel, i)}", f"{size.frames} frames", f"{sampling_of(panel).steps} sample steps"]
    if prompt.end_img.strip():
        words.append(f"ends at {Path(prompt.end_img).name}")
    if prompt.strength != 1:
        words.append(f"LoRA strength {prompt.strength:g}")
    return ", ".join([*words, "accelerated"] if run.accelerators else words)

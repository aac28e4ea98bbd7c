"""The previews of a run: when they are made, from which weights, and what they leave behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from engine import checkpoint, faults, lora
from engine.control import Control, StopWished
from engine.outputs import values, weights
from engine.preview import Shot, control_image, sample_latents, to_frames, write_poster, write_video
from engine.setup import Run
from presets.captions import resolve_caption
from presets.errors import UserError


@contextmanager
def shown_weights(run: Run) -> Iterator[None]:
    """Inside, the LoRAs are what is saved (the running averages, when kept); after, the trained ones, untouched."""
    averaged = [e for e, learner in run.learners.items() if learner.ema]
    trained = {e: {k: v.clone() for k, v in values(run, e).items()} for e in averaged}
    for expert in averaged:
        lora.load_tensors(run.learners[expert].parameters, weights(run, expert))
    try:
        yield
    finally:
        for expert in averaged:
            lora.load_tensors(run.learners[expert].parameters, trained[expert])


def shots(run: Run) -> list[Shot]:
    """The previews of one set, in the order of the job's prompts."""
    panel = run.job.sample
    out = []
    for i, prompt in enumerate(panel.prompts):
        image = control_image(run.base_dir / prompt.ctrl_img, panel.width, panel.height).to(run.device)
        text = resolve_caption(prompt.prompt, "", run.job.job.trigger)
        out.append(Shot(image, run.text([text]), run.text([panel.negative]), panel.seed + (i if panel.walk_seed else 0)))
    return out


def preview_dir(run: Run, step: int) -> Path:
    return run.folder / "samples" / checkpoint.folder_name(step)


def previews_made(run: Run, step: int) -> bool:
    """Whether the set of a step is whole (a run killed among its previews makes the rest on resume)."""
    return all((preview_dir(run, step) / f"{i:02d}.mp4").exists() for i in range(len(run.job.sample.prompts)))


def make_previews(run: Run, step: int, control: Control) -> None:
    """One mp4 and one poster PNG per prompt. A stop wish ends the set early; the loop sees it next."""
    preview_dir(run, step).mkdir(parents=True, exist_ok=True)
    for i in range(len(run.job.sample.prompts)):
        if control.stop_wished():
            return
        try:
            faults.at("preview.begin", step)
            _preview(run, step, i, control)
        except StopWished:
            return  # the loop sees it next
        except (UserError, OSError, torch.OutOfMemoryError) as e:
            where, text = f"sample.prompts[{i}]", f"the preview after step {step} could not be made: {e}"
            run.log.emit("finding", code="preview-failed", severity="warning", field=where, message=text, fix="The training goes on; look at the control image and the free memory")


def _preview(run: Run, step: int, i: int, control: Control) -> None:
    panel = run.job.sample
    shot, prompt = shots(run)[i], panel.prompts[i]

    def progress(done: int, total: int) -> None:
        control.honour()
        faults.at("preview.denoise", step)
        run.log.phase("sampling", i * total + done, len(panel.prompts) * total, f"preview {i + 1} of {len(panel.prompts)}")

    with shown_weights(run):
        frames = None
        while frames is None:
            try:
                latents = sample_latents(run.experts.executors, run.encoder, shot, panel, boundary=run.base.boundary, shift=run.base.flow_shift, progress=progress)
                faults.at("preview.decode", step)
                with run.experts.parked():
                    frames = to_frames(run.vae, latents)
            except torch.OutOfMemoryError:
                latents = None
            if frames is None:  # outside the handler, whose traceback holds on to tensors
                run.replan("preview")
    video = preview_dir(run, step) / f"{i:02d}.mp4"
    poster = video.with_suffix(".png")
    write_poster(poster, frames)
    faults.at("preview.before-video", step)
    write_video(video, frames, panel.fps)
    run.log.emit("sample", step=step, path=str(video.relative_to(run.folder)), poster=str(poster.relative_to(run.folder)), prompt=prompt.prompt, seed=shot.seed)

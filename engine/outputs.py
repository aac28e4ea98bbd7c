"""What a run leaves behind: checkpoints with their LoRA files, previews, and the final pair."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from engine import checkpoint, lora
from engine.base import Expert
from engine.control import Control, StopWished
from engine.preview import sample_latents, to_frames, write_poster, write_video
from engine.setup import Run, shots
from presets.errors import UserError
from presets.jobfile import job_to_dict


def weights(run: Run, expert: Expert) -> dict[str, torch.Tensor]:
    """What is saved and shown for an expert: the running average when there is one, else the LoRA itself."""
    learner = run.learners[expert]
    return learner.ema.average if learner.ema else _values(run, expert)


def _values(run: Run, expert: Expert) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in run.learners[expert].parameters.items()}


@contextmanager
def shown_weights(run: Run) -> Iterator[None]:
    """Inside, the LoRAs are what is saved (the running averages, when kept); after, the trained ones, untouched."""
    averaged = [e for e, learner in run.learners.items() if learner.ema]
    trained = {e: {k: v.clone() for k, v in _values(run, e).items()} for e in averaged}
    for expert in averaged:
        lora.load_tensors(run.learners[expert].parameters, weights(run, expert))
    try:
        yield
    finally:
        for expert in averaged:
            lora.load_tensors(run.learners[expert].parameters, trained[expert])


def save_all(run: Run, step: int, *, rehearsal: bool = False) -> str:
    """One checkpoint and the LoRA files of its step; then prune. Returns the checkpoint's path in the run folder.

    A rehearsal writes a checkpoint as large as the later ones and takes it away again: it proves room and permission.
    """
    run.log.phase("saving", 0, 1, "rehearsal" if rehearsal else "checkpoint")
    moments: dict[str, dict[str, Any]] = {
        e: {name: {k: torch.zeros_like(v) for k, v in _values(run, e).items()} for name in ("exp_avg", "exp_avg_sq")} for e in run.learners
    }  # before step 1 Adam has none
    state = checkpoint.State(
        step=step,
        lora={e: _values(run, e) for e in run.learners},
        optimizer=moments if rehearsal else {e: learner.optimizer.state_dict() for e, learner in run.learners.items()},
        ema={e: learner.ema.average for e, learner in run.learners.items() if learner.ema},
        meta={"job": job_to_dict(run.job), "base": run.base.identity, "versions": run.versions, "run": run.log.run, "attempt": run.log.attempt},
    )
    folder, digest = checkpoint.save(run.folder, state, rehearsal=rehearsal)
    if rehearsal:
        return ""
    for expert in run.learners:
        _write_lora(run, expert, lora_file(run, expert, step), step)
    for old in checkpoint.prune(run.folder, run.job.save.keep):
        for expert in run.learners:
            lora_file(run, expert, old).unlink(missing_ok=True)
    path = str(folder.relative_to(run.folder))
    run.log.emit("checkpoint", step=step, path=path, sha256=digest)
    return path


def complete_loras(run: Run) -> None:
    """Write the LoRA files of the checkpoint a run resumed from, if a kill came between the two."""
    for expert in run.learners:
        if not (file := lora_file(run, expert, run.start)).exists():
            _write_lora(run, expert, file, run.start)


def save_final(run: Run, step: int) -> list[str]:
    """`NAME_high_noise.safetensors` and `NAME_low_noise.safetensors`; returns their names."""
    names = []
    for expert in run.learners:
        file = lora_file(run, expert, None)
        _write_lora(run, expert, file, step)
        names.append(file.name)
    return names


def lora_file(run: Run, expert: Expert, step: int | None) -> Path:
    number = "" if step is None else f"_{step:09d}"
    return run.folder / f"{run.job.job.name}{number}_{expert}.safetensors"


def _write_lora(run: Run, expert: Expert, file: Path, step: int) -> None:
    aside = file.with_name(f".{file.name}.tmp")
    try:
        lora.save_lora(aside, weights(run, expert), job=run.job, base=run.base, expert=expert, step=step)
        aside.chmod(0o644)  # safetensors makes files that only their owner can read
        aside.rename(file)
    except Exception as e:
        aside.unlink(missing_ok=True)
        raise checkpoint.refusal_of(e, file.parent) from e


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
        run.log.phase("sampling", i * total + done, len(panel.prompts) * total, f"preview {i + 1} of {len(panel.prompts)}")

    with shown_weights(run):
        frames = None
        while frames is None:
            try:
                latents = sample_latents(run.experts.executors, run.encoder, shot, panel, boundary=run.base.boundary, shift=run.base.flow_shift, progress=progress)
                with run.experts.parked():
                    frames = to_frames(run.vae, latents)
            except torch.OutOfMemoryError:
                latents = None
            if frames is None:  # outside the handler, whose traceback holds on to tensors
                run.replan("preview")
    video = preview_dir(run, step) / f"{i:02d}.mp4"
    poster = video.with_suffix(".png")
    write_poster(poster, frames)
    write_video(video, frames, panel.fps)
    run.log.emit("sample", step=step, path=str(video.relative_to(run.folder)), poster=str(poster.relative_to(run.folder)), prompt=prompt.prompt, seed=shot.seed)

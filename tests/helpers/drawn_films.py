"""Films whose motion, blur and flicker are known, and the folder of a run that has them as clips and previews.

Pictures are cut out of a wide texture: what its camera does is exact to the pixel, and what is turned or scaled is
rendered anew for each frame.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from engine.preview.video_files import write_poster, write_video
from engine.runfolder.event_log import EventLog
from presets.findings import Finding
from presets.job.schema import DatasetPanel, Job, JobPanel, PromptPanel, SamplePanel, SavePanel, TrainingPanel
from presets.job.toml_file import job_to_dict, save_job
from presets.runs.run_folder import RESERVE_FILE

Film = NDArray[np.uint8]  # (T, H, W, 3)

HEIGHT, WIDTH, LENGTH = 96, 128, 5
BEGAN = 1_790_000_000.0


@cache
def texture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    soft = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2)), np.float32)
    return Image.fromarray(((soft - 128) * 3 + 128).clip(0, 255).astype(np.uint8))


def camera(
    *, right: float = 0.0, down: float = 0.0, zoom: float = 1.0, roll: float = 0.0, length: int = LENGTH
) -> Film:
    """A camera over the texture: pixels, times nearer and degrees clockwise a frame."""
    frames = []
    for t in range(length):
        scale, angle = zoom**-t, np.radians(roll * t)
        cos, sin = scale * np.cos(angle), scale * np.sin(angle)
        x, y = WIDTH / 2, HEIGHT / 2
        # where a pixel of the picture is read in the texture
        across = (cos, -sin, 200 + right * t - cos * x + sin * y)
        along = (sin, cos, 200 + down * t - sin * x - cos * y)
        frames.append(
            texture().transform((WIDTH, HEIGHT), Image.Transform.AFFINE, (*across, *along), Image.Resampling.BICUBIC)
        )
    return np.stack([np.asarray(frame) for frame in frames])


def square(*, right: int, down: int = 0, length: int = LENGTH) -> Film:
    """A reddish square of 30 pixels that moves so many a frame before a background at rest."""
    film = camera(length=length).copy()
    patch = np.asarray(texture())[10:40, 10:40] // 2 + np.array([100, 0, 0], np.uint8)
    x, y = (20 if right >= 0 else WIDTH - 50), (20 if down >= 0 else HEIGHT - 50)
    for t, frame in enumerate(film):
        frame[y + down * t : y + down * t + 30, x + right * t : x + right * t + 30] = patch
    return film


def with_flicker(film: Film, levels: int) -> Film:
    """Every second frame brighter by so many levels, of pixels that have room for it."""
    low = 0.7 * film.astype(np.float32) + 10
    low[1::2] += levels
    return low.round().astype(np.uint8)


def blurred(film: Film, radius: float) -> Film:
    """All frames but the first, out of focus."""
    soft = [np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(radius))) for frame in film[1:]]
    return np.stack([film[0], *soft])


def toy(caption_motion: str, *, count: int = 1, shape: str = "ball", colour: str = "red", seed: int = 0) -> list[Film]:
    """Films of the toy base's own drawing under a still camera."""
    import torch

    from engine.toy_base.films import render
    from engine.toy_base.motion import circling, standing

    generator = torch.Generator().manual_seed(seed)
    looks = [(colour, shape)] * count
    scene = circling(looks, generator) if caption_motion == "circles" else standing(looks, generator, caption_motion)
    video = ((render(scene)[0] + 1) * 127.5).round().to(torch.uint8)
    return list(video.permute(0, 2, 3, 4, 1).numpy())


def write_run(
    folder: Path,
    clips: dict[str, tuple[Film, str]],
    previews: dict[int, list[Film]],
    prompts: list[str],
    *,
    trigger: str = "",
    regularization: dict[str, tuple[Film, str]] | None = None,
    fps: int = 16,
    frames: int = LENGTH,
    done: bool = True,
    metadata: Literal["plain", "full"] = "plain",
    tell: Callable[[EventLog], Any] = lambda log: None,
) -> Path:
    """A run folder at `folder`, its clips (name -> film, caption) in `clips` beside it, and previews by step. `tell`
    writes more events before the last one."""
    place, beside = folder.parent / "clips", folder.parent / "regularization"
    for where, these in ((place, clips), (beside, regularization or {})):
        for name, (film, caption) in these.items():
            where.mkdir(parents=True, exist_ok=True)
            write_video(where / f"{name}.mp4", film, fps)
            (where / f"{name}.txt").write_text(caption)
    height, width = next(iter(clips.values()))[0].shape[1:3]
    shape: dict[str, Any] = {
        "num_frames": frames,
        "sampling": "realtime",
        "resolutions": [round((width * height) ** 0.5)],
    }
    kept = [DatasetPanel(path=str(beside), regularization=True, **shape)] if regularization else []
    job = Job(
        job=JobPanel(name=folder.name, trigger=trigger),
        datasets=[DatasetPanel(path=str(place), **shape), *kept],
        save=SavePanel(metadata=metadata),
        training=TrainingPanel(steps=max(previews, default=0) or 10),
        sample=SamplePanel(prompts=[PromptPanel(prompt=prompt) for prompt in prompts]),
    )
    folder.mkdir(parents=True)
    save_job(job, folder / "job.toml")
    now = BEGAN
    log = EventLog(folder, listener=lambda event: None, clock=lambda: now)
    log.emit(
        "started",
        name=folder.name,
        job=job_to_dict(job),
        plan="all on the card",
        versions={},
        device="a card",
        steps=job.training.steps,
        resumed_from=0,
        vram_total_gib=24.0,
        ram_total_gib=64.0,
    )
    for step in range(job.training.steps + 1):
        now += 2
        if step:
            expert = ("high_noise", "low_noise")[step % 2]
            seconds, loss = {"total": 2.0}, 0.2 / (1 + step / 10) + 0.01 * (step % 3)
            log.emit(
                "step",
                step=step,
                expert=expert,
                loss=loss,
                parts={"main": loss},
                lr=1e-4,
                grad_norm=0.1,
                timestep=950.0,
                seconds=seconds,
                vram_gib=20.0,
                ram_gib=30.0,
                clips=[],
            )
        for i, film in enumerate(previews.get(step, [])):
            path = f"samples/step_{step:09d}/{i:02d}"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            write_video(folder / f"{path}.mp4", film, 16)
            write_poster(folder / f"{path}.png", film)
            names = {"path": f"{path}.mp4", "poster": f"{path}.png"}
            log.emit("sample", step=step, prompt=prompts[i], seed=42 + i, **names)
        if step and step in previews:
            checkpoint = folder / f"checkpoints/step_{step:09d}"
            checkpoint.mkdir(parents=True)
            (checkpoint / "manifest.json").write_text(json.dumps({"files": {"state.json": {"bytes": 100}}}))
            log.emit("checkpoint", step=step, path=f"checkpoints/step_{step:09d}", sha256="ab")
    tell(log)
    if done:
        files = [f"{folder.name}_{expert}.safetensors" for expert in ("high_noise", "low_noise")]
        log.emit("done", step=job.training.steps, files=files, seconds=now - BEGAN)
    log.close()
    (folder / RESERVE_FILE).unlink(missing_ok=True)
    return folder


def finding(message: str, fix: str = "Look at it") -> Finding:
    return Finding(code="loss-spike", severity="warning", field="training.lr", message=message, fix=fix)

"""The jobs that `benchmarks.gpus_apart` compares, and the files that they need."""

from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from benchmarks.whole_job import write_base, write_clips
from presets.job.schema import (
    DatasetPanel,
    Job,
    JobPanel,
    ModelPanel,
    MultistagePanel,
    PromptPanel,
    SamplePanel,
    SavePanel,
    TrainingPanel,
)

TINY_FRAMES, TINY_STEPS = "5x64x64", 4
CLIPS = 3
MORE_FRAMES = 8  # of a file of clips than a job takes of it


@dataclass(frozen=True)
class Case:
    """A job of the real shape, low noise alone unless `both`."""

    frames: str  # FxHxW
    steps: int
    per_clip: int = 1  # GPUs that share each clip
    both: bool = False  # experts, apart where there are two GPUs; with previews
    accumulation: int = 1
    streamed: bool = False


CASES = {  # each for two GPUs, unless it says so
    "clips-480p": Case("81x480x832", 4, per_clip=2),
    "clips-480p-streamed": Case("81x480x832", 4, per_clip=2, streamed=True),
    "clips-720p": Case("81x720x1280", 4, per_clip=2),
    "experts": Case("41x512x512", 20, both=True),
    "micro-batches": Case("41x512x512", 6, accumulation=2),
    "experts-and-micro-batches": Case("41x512x512", 8, both=True, accumulation=2),  # for --together 4
    "micro-batches-of-4": Case("41x512x512", 6, accumulation=4),  # for --together 4
}


def sized(frames: str) -> tuple[int, int, int]:
    count, height, width = (int(v) for v in frames.split("x"))
    return count, height, width


def write_files(folder: Path, shapes: set[str], *, tiny: bool) -> None:
    """A base of random weights, and clips of each shape. What is there stays. It is done by processes of their own,
    which end: none of them may keep memory of a card that is about to train."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    waiting: list[Future[object]] = []
    with ProcessPoolExecutor(1 + len(shapes), mp_context=get_context("spawn")) as pool:
        if not (folder / "base").exists():
            waiting.append(pool.submit(write_base, folder / "base", tiny=tiny))
        for shape in shapes:
            frames, height, width = sized(shape)
            if not (folder / f"clips-{shape}").exists():
                there, count = folder / f"clips-{shape}", frames + MORE_FRAMES
                waiting.append(pool.submit(write_clips, there, height=height, width=width, frames=count, count=CLIPS))
            Image.new("RGB", (width, height), (90, 120, 60)).save(folder / f"control-{shape}.png")
        for one in waiting:
            one.result()


def job_of(folder: Path, name: str, case: Case, *, tiny: bool) -> Job:
    """Without checkpoints before the end; where both experts train, with previews in the middle and at the end."""
    shape, steps = (TINY_FRAMES, min(case.steps, TINY_STEPS)) if tiny else (case.frames, case.steps)
    frames, height, width = sized(shape)
    prompt = PromptPanel(prompt="a red square", ctrl_img=str(folder / f"control-{shape}.png"))
    return Job(
        job=JobPanel(name=name),
        model=ModelPanel(path=str(folder / "base"), layer_offloading=True if case.streamed else "auto"),
        multistage=MultistagePanel(high_noise=case.both, switch_every=max(1, steps // 4)),
        save=SavePanel(every=steps),
        training=TrainingPanel(steps=steps, gradient_accumulation=case.accumulation),
        datasets=[
            DatasetPanel(
                path=str(folder / f"clips-{shape}"), num_frames=frames, resolutions=[round((height * width) ** 0.5)]
            )
        ],
        sample=SamplePanel(
            every=max(1, steps // 2),
            first=False,
            width=width,
            height=height,
            num_frames=frames,
            steps=4,
            prompts=[prompt] if case.both else [],
        ),
    )


def shapes_of(cases: list[str], *, tiny: bool) -> set[str]:
    return {TINY_FRAMES} if tiny else {CASES[name].frames for name in cases}

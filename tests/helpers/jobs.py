"""Small real jobs for the engine's tests: clips made by PyAV, the tiny base, a job file."""

import shutil
import tempfile
import threading
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from presets.job.schema import (
    DatasetPanel,
    Job,
    JobPanel,
    ModelPanel,
    MultistagePanel,
    PromptPanel,
    QuantizationPanel,
    SamplePanel,
    SavePanel,
    TargetPanel,
    TrainingPanel,
    ValidationPanel,
)
from presets.job.toml_file import save_job
from presets.runs.events import Event, read_events
from tests.helpers.videos import numbered, write_clip

CLIPS = threading.Lock()


def clip(number: int) -> Path:
    """One clip per number and test process, whichever thread asks: two encodes of the same frames may differ in a
    bit."""
    with CLIPS:  # `cache` alone lets two threads that ask at once make one each
        return _clip(number)


@cache
def _clip(number: int) -> Path:
    path = Path(tempfile.mkdtemp(prefix="wanlora-clips")) / f"{number}.mp4"
    return write_clip(
        path,
        frames=12,
        fps=16.0,
        width=64,
        height=48,
        picture=lambda i: np.roll(numbered(i, 64, 48), 5 * number, axis=1),
    )


def write_job(
    folder: Path,
    tiny: Path,
    *,
    prompts: int = 1,
    clips: int = 3,
    dataset: dict | None = None,
    target: dict | None = None,
    save: dict | None = None,
    sample: dict | None = None,
    validation: dict | None = None,
    trigger: str = "",
    **training,
) -> Path:
    """A motion job over `clips` clips in `folder`; returns the job file. Keyword arguments change panels."""
    data = folder / "clips"
    data.mkdir(parents=True, exist_ok=True)
    for i in range(clips):
        shutil.copy(clip(i), data / f"{i}.mp4")
        (data / f"{i}.txt").write_text(f"orbit number {i} [trigger]")
    picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(picture).save(folder / "control.png")
    job = Job(
        job=JobPanel(name="t", trigger=trigger),
        model=ModelPanel(path=str(tiny)),
        quantization=QuantizationPanel(text_encoder="none"),
        multistage=MultistagePanel(switch_every=2),
        target=TargetPanel(**{"rank": 2, **(target or {})}),
        save=SavePanel(**{"every": 4, "keep": 2, **(save or {})}),
        training=TrainingPanel(**{"steps": 8, "optimizer": "adamw", "lr": 1e-3, **training}),
        datasets=[DatasetPanel(**{"path": "clips", "num_frames": 5, "resolutions": [64], **(dataset or {})})],
        sample=SamplePanel(
            **{"every": 4, "width": 64, "height": 48, "num_frames": 5, "steps": 2, **(sample or {})},
            prompts=[PromptPanel(prompt=f"orbit [trigger] {i}", ctrl_img="control.png") for i in range(prompts)],
        ),
        validation=ValidationPanel(**(validation or {})),
    )
    path = folder / "job.toml"
    save_job(job, path)
    return path


def write_image_job(
    folder: Path, tiny: Path, *, dataset: dict | None = None, sample: dict | None = None, **how
) -> Path:
    """The same over single frames, in the training and in the previews, which take one step: half the work, for tests
    of what surrounds it."""
    one = {"num_frames": 1}
    return write_job(
        folder, tiny, dataset={**one, **(dataset or {})}, sample={**one, "steps": 1, **(sample or {})}, **how
    )


def events(run: Path) -> list[Event]:
    return [event for event, _ in read_events(run / "events.jsonl")]


def of_kind(run: Path, kind: str) -> list[dict]:
    return [e.data for e in events(run) if e.kind == kind]

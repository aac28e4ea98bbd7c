"""When previews are made, and what each of them is: the sample panel's values, and what a prompt says otherwise. How a
preview is made is engine.preview."""

from typing import NamedTuple

from presets.job.schema import Job, SamplePanel


class PreviewSize(NamedTuple):
    """What a preview asks for, as the job says it: the control image keeps its own shape inside this area."""

    width: int
    height: int
    frames: int


def preview_size_of(panel: SamplePanel, i: int) -> PreviewSize:
    prompt = panel.prompts[i]
    return PreviewSize(
        panel.width if prompt.width is None else prompt.width,
        panel.height if prompt.height is None else prompt.height,
        panel.num_frames if prompt.num_frames is None else prompt.num_frames,
    )


def preview_seed(panel: SamplePanel, i: int) -> int:
    """The prompt's own seed, else the panel's, which walks on with the prompt's place in the list: no override moves
    another's."""
    own = panel.prompts[i].seed
    return panel.seed + (i if panel.walk_seed else 0) if own is None else own


def low_guidance(panel: SamplePanel) -> float:
    """Of the low-noise expert."""
    return panel.guidance if panel.guidance_low is None else panel.guidance_low


def largest_preview(job: Job) -> PreviewSize:
    """The one that takes most; there must be a prompt."""
    return max(
        (preview_size_of(job.sample, i) for i in range(len(job.sample.prompts))),
        key=lambda s: s.width * s.height * s.frames,
    )


def previews_due(job: Job, step: int) -> bool:
    """Whether a set of previews is made after `step` steps, the last one apart: before the first (`sample.first`) and
    every so often. After the last step there is a set in any case."""
    if not job.sample.prompts:
        return False
    return job.sample.first if step == 0 else job.sample.every > 0 and step % job.sample.every == 0


def preview_sets(job: Job) -> int:
    """How many sets of previews the whole run makes."""
    if not job.sample.prompts:
        return 0
    return job.sample.first + ((job.training.steps - 1) // job.sample.every if job.sample.every else 0) + 1

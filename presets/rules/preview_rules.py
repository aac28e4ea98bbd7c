"""Rules about previews: their prompts and control images first, then the accelerators that they run with.

When previews are made and how large they are is presets.job.preview_settings's.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from presets.base.lora_file import block_shapes, misfit, read_lora
from presets.clips.geometry import SIDE_MULTIPLE
from presets.errors import UserError
from presets.facts.facts import Facts
from presets.job.expert_schedule import Expert
from presets.job.preview_settings import low_guidance
from presets.job.schema import Job
from presets.rules.registry import Found, rule
from presets.text import sentences

FEW_STEPS, MANY_STEPS = 4, 8  # of a preview: what accelerators are made for; beyond the latter nothing is gained
FILES: tuple[tuple[Literal["accelerator", "accelerator_low"], Expert], ...] = (
    ("accelerator", "high_noise"),
    ("accelerator_low", "low_noise"),
)


def image_problem(path: Path) -> str:
    """Why a control image cannot be used; "" when it opens and decodes."""
    from PIL import Image, UnidentifiedImageError

    if not path.exists():
        return f"the control image does not exist: {path}"
    if not path.is_file():
        return f"the control image is not a file: {path}"
    try:
        with Image.open(path) as image:
            image.load()
    except UnidentifiedImageError:
        return f"the control image is not an image: {path}"
    # what Pillow raises for damaged files
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        return f"the control image is damaged ({e}): {path}"
    return ""


def nearby_images(job: Job, facts: Facts) -> list[str]:
    """Images that would do: those of the datasets, as paths for the job file."""
    return [c.path for found in facts.datasets for c in found.clips if c.kind == "image"]


@rule("sample-needs-ctrl-img", "error")
def sample_needs_ctrl_img(job: Job, facts: Facts) -> Iterator[Found]:
    """Every sample prompt has a control image that exists and opens."""
    for i, prompt in enumerate(job.sample.prompts):
        path = f"sample.prompts[{i}].ctrl_img"
        if prompt.ctrl_img.strip():
            message = image_problem(facts.base / Path(prompt.ctrl_img).expanduser())
        else:
            message = (
                'a preview starts from a control image and this prompt has none (elsewhere: "The size of tensor a (36)'
                ' must match the size of tensor b (16)")'
            )
        if not message:
            continue
        images = nearby_images(job, facts)
        if images:
            yield Found(
                path,
                message,
                fix=f"Give an image like your clips, such as {images[0]}, or remove the prompt",
                set={path: images[0]},
            )
        else:
            yield Found(
                path,
                message,
                fix="Give a PNG or JPEG that looks like the first frame of your clips, or remove the prompt",
            )


@rule("sample-no-prompts", "advice")
def sample_no_prompts(job: Job, facts: Facts) -> Iterator[Found]:
    """There is a prompt to make previews of, so that checkpoints can be judged."""
    if not job.sample.prompts:
        yield Found(
            "sample.prompts",
            "there is no prompt, so no previews are made, and only the loss tells one checkpoint from another",
            fix=(
                "Add a prompt, worded like your captions, with a control image that looks like the first frame of your"
                " clips"
            ),
        )


@rule("sample-prompt-empty", "warning")
def sample_prompt_empty(job: Job, facts: Facts) -> Iterator[Found]:
    """Every sample prompt says something."""
    for i, prompt in enumerate(job.sample.prompts):
        if not prompt.prompt.strip():
            yield Found(
                f"sample.prompts[{i}].prompt",
                "the prompt is empty, so its preview will not call on the LoRA",
                fix="Write it like one of your captions",
            )


@rule("dimension-multiple-of-16", "error")
def dimension_multiple_of_16(job: Job, facts: Facts) -> Iterator[Found]:
    """Width and height of previews are multiples of 16."""
    for at, panel in [
        ("sample", job.sample),
        *((f"sample.prompts[{i}]", prompt) for i, prompt in enumerate(job.sample.prompts)),
    ]:
        for side in ("width", "height"):
            size = getattr(panel, side)
            if size is not None and size % SIDE_MULTIPLE:
                nearest = max(SIDE_MULTIPLE, round(size / SIDE_MULTIPLE) * SIDE_MULTIPLE)
                yield Found(
                    f"{at}.{side}",
                    f"{size} is not a multiple of 16, and the model's patches are 16 pixels wide",
                    set={f"{at}.{side}": nearest},
                )


@rule("sample-negative-unused", "advice")
def sample_negative_unused(job: Job, facts: Facts) -> Iterator[Found]:
    """A negative prompt comes with guidance: without it nothing asks what to avoid."""
    if job.sample.prompts and job.sample.negative.strip() and max(job.sample.guidance, low_guidance(job.sample)) <= 1:
        yield Found(
            "sample.negative",
            "without guidance the negative prompt is not used",
            fix='Set sample.negative = "", or sample.guidance above 1',
            set={"sample.negative": ""},
        )


@rule("sample-every-save-every", "advice")
def sample_every_save_every(job: Job, facts: Facts) -> Iterator[Found]:
    """Previews come as often as checkpoints, so that each checkpoint can be judged."""
    if job.sample.prompts and job.sample.every != job.save.every:
        how = f"every {job.sample.every} steps" if job.sample.every else "only at the start and the end"
        yield Found(
            "sample.every",
            f"previews come {how}, checkpoints every {job.save.every}: some checkpoints cannot be judged",
            set={"sample.every": job.save.every},
        )


@rule("sample-fps-16", "advice")
def sample_fps_16(job: Job, facts: Facts) -> Iterator[Found]:
    """Previews play at 16 FPS, the rate of Wan's motion."""
    if job.sample.prompts and job.sample.fps != 16:
        word = "slower" if job.sample.fps < 16 else "faster"
        yield Found(
            "sample.fps",
            f"{job.sample.fps} FPS only plays the previews {word}; what is trained stays at 16",
            set={"sample.fps": 16},
        )


def _accelerated(job: Job) -> bool:
    return bool(job.sample.prompts and (job.sample.accelerator or job.sample.accelerator_low))


def _named(path: str) -> str:
    """`high` or `low` when the file's name says one of them, else ""."""
    found = set(re.findall(r"(?<![a-z])(high|low)(?![a-z])", Path(path).stem.lower()))
    return found.pop() if len(found) == 1 else ""


@rule("accelerator-unreadable", "error")
def accelerator_unreadable(job: Job, facts: Facts) -> Iterator[Found]:
    """An accelerator is a whole LoRA file for Wan 2.2 14B, and everything in it can be applied."""
    if not _accelerated(job):
        return
    for name, expert in FILES:
        text = getattr(job.sample, name)
        if not text:
            continue
        path = facts.base / Path(text).expanduser()
        experts: list[Expert] = (
            [expert] if name == "accelerator_low" or job.sample.accelerator_low else ["high_noise", "low_noise"]
        )
        try:
            file = read_lora(path)
            for e in experts:
                changes, model = file.of(e), facts.model
                if not changes:
                    raise UserError(
                        f"changes nothing in the {e.replace('_', ' ')} expert",
                        where=str(path),
                        fix="Give a file for this expert, or one for both",
                    )
                if (
                    model is not None
                    and model.local
                    and model.width
                    and model.ffn
                    and (problem := misfit(file, changes, block_shapes(model.width, model.ffn), model.num_layers))
                ):
                    raise UserError(problem, where=str(path), fix="Give a LoRA file for this base model")
        except UserError as e:
            yield Found(
                f"sample.{name}",
                f"the accelerator cannot be used ({e.where}: {e.what})",
                fix=f"{sentences(e.fix).rstrip('.')}, or leave sample.{name} empty",
            )


@rule("accelerator-expert", "warning")
def accelerator_expert(job: Job, facts: Facts) -> Iterator[Found]:
    """Each expert has the accelerator that was made for it, where a file's name says so."""
    if not _accelerated(job):
        return
    high, low = (job.sample.accelerator, job.sample.accelerator_low)
    if not high:
        yield Found(
            "sample.accelerator",
            "only the low-noise expert is accelerated, and the other cannot do with so few steps",
            fix="Give sample.accelerator as well",
        )
    if high and not low and (named := _named(high)):
        message = f"{Path(high).name} is for the {named} noise expert by its name, and both would use it"
        yield Found(
            "sample.accelerator_low" if named == "high" else "sample.accelerator",
            message,
            fix=(
                "Give each expert its own file: sample.accelerator for high noise, sample.accelerator_low for low noise"
            ),
        )
    elif high and low and _named(high) == "low" and _named(low) == "high":
        yield Found(
            "sample.accelerator",
            "by their names the two files are swapped",
            set={"sample.accelerator": low, "sample.accelerator_low": high},
        )


@rule("accelerator-guidance", "advice")
def accelerator_guidance(job: Job, facts: Facts) -> Iterator[Found]:
    """With an accelerator there is no guidance: it is learned into such LoRAs, and asking for it again burns the
    picture."""
    if _accelerated(job) and max(job.sample.guidance, low_guidance(job.sample)) > 1:
        path = "sample.guidance" if job.sample.guidance > 1 else "sample.guidance_low"
        change = {"sample.guidance": 1.0} | (
            {"sample.guidance_low": 1.0} if job.sample.guidance_low is not None else {}
        )
        yield Found(
            path,
            "an accelerator has guidance learned into it; more of it takes twice the time and burns the picture",
            set=change,
        )


@rule("accelerator-steps", "advice")
def accelerator_steps(job: Job, facts: Facts) -> Iterator[Found]:
    """With an accelerator, previews take few steps."""
    if _accelerated(job) and job.sample.steps > MANY_STEPS:
        yield Found(
            "sample.steps",
            f"an accelerator is made for about {FEW_STEPS} steps: {job.sample.steps} take longer and look no better",
            set={"sample.steps": FEW_STEPS},
        )

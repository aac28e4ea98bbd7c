"""Rules about previews: their prompts and control images first, then the accelerators that they run with.

When previews are made and how large they are is presets.job.preview_settings's.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from presets.base.lora_file import block_shapes, misfit, read_lora
from presets.clips.clip_facts import CLIP_SUFFIXES, VIDEO_SUFFIXES, probe_clip
from presets.clips.geometry import SIDE_MULTIPLE
from presets.errors import ClipError, UserError
from presets.facts.facts import Facts
from presets.facts.loras import left_out_of, shapes_of
from presets.file_names import expanded
from presets.job.expert_schedule import Expert
from presets.job.fields import toml_text
from presets.job.preview_settings import PRESETS, preview_size_of, sampling_of
from presets.job.schema import Job
from presets.rules.registry import Found, rule
from presets.text import sentences

FEW_STEPS, MANY_STEPS = 4, 8  # of a preview: what accelerators are made for; beyond the latter nothing is gained
SHOWN = ("sampler", "steps", "guidance", "guidance_low", "shift", "negative")  # what a preset holds
FILES: tuple[tuple[Literal["accelerator", "accelerator_low"], Expert], ...] = (
    ("accelerator", "high_noise"),
    ("accelerator_low", "low_noise"),
)


def image_problem(path: Path, which: str = "control") -> str:
    """Why a control or end image (or a video, for its first or last frame) cannot be used; "" when it opens, decodes
    and is as large as a patch of the model."""
    suffix = path.suffix.lower()
    noun = f"the {which} {'video' if suffix in VIDEO_SUFFIXES else 'image'}"
    if not path.is_file():
        return f"the {which} image {'is not a file' if path.exists() else 'does not exist'}: {path}"
    try:
        if suffix in CLIP_SUFFIXES:
            found = probe_clip(path)
        else:  # an image by its content, whatever it is named
            from presets.clips.probe import probe_image

            found = probe_image(path)
    except ClipError as e:
        return f"{noun} {e.what}: {path}"
    if min(found.width, found.height) < SIDE_MULTIPLE:
        return f"{noun} has a side under {SIDE_MULTIPLE} pixels ({found.width}x{found.height}): {path}"
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
            message = image_problem(facts.base / expanded(prompt.ctrl_img))
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
                fix="Give a PNG or JPEG that looks like the first frame of your clips, or one of the clips itself",
            )


@rule("sample-end-img", "error")
def sample_end_img(job: Job, facts: Facts) -> Iterator[Found]:
    """An end image exists and opens, and its preview has more than one frame to get there."""
    for i, prompt in enumerate(job.sample.prompts):
        if not prompt.end_img.strip():
            continue
        path = f"sample.prompts[{i}].end_img"
        problem = image_problem(facts.base / expanded(prompt.end_img), "end")
        if problem:
            fix = f"Give a PNG, a JPEG or a video whose last frame it is, or leave {path} empty"
            yield Found(path, problem, fix=fix, set={path: ""})
        elif preview_size_of(job.sample, i).frames == 1:
            message = "a preview of one frame is its own start, and cannot end at another image"
            yield Found(path, message, fix=f"Ask for 5 frames or more, or leave {path} empty", set={path: ""})


@rule("sample-no-prompts", "advice")
def sample_no_prompts(job: Job, facts: Facts) -> Iterator[Found]:
    """There is a prompt to make previews of, so that checkpoints can be judged."""
    if not job.sample.prompts:
        yield Found(
            "sample.prompts",
            "there is no prompt, so no previews are made, and only the loss tells one checkpoint from another",
            fix=(
                "Add a prompt, worded like your captions, whose control image is like the first frame of your clips, or"
                " one of the clips: ^F in the wizard's fifth step does so, and wanlora new by itself"
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
    if job.sample.prompts and (job.sample.negative or "").strip() and not _guided(job):
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


def _guided(job: Job) -> bool:
    sampling = sampling_of(job.sample)
    return max(sampling.guidance, sampling.guidance_low) > 1


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
        path = facts.base / expanded(text)
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


@rule("accelerator-left-out", "advice")
def accelerator_left_out(job: Job, facts: Facts) -> Iterator[Found]:
    """An accelerator has nothing for parts that Wan 2.2 I2V does not have."""
    for name, expert in FILES if _accelerated(job) else ():
        text = getattr(job.sample, name)
        try:
            path = facts.base / expanded(text)
            notes = left_out_of(read_lora(path), [expert], shapes_of(facts.model)) if text else []
        except UserError:
            continue
        for note in notes:
            fix = "Nothing to do, but for one that was made for Wan 2.2 I2V A14B where there is one"
            yield Found(f"sample.{name}", f"{path.name}: {note}", fix=fix)


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
    if _accelerated(job) and _guided(job):
        high, low = job.sample.guidance, job.sample.guidance_low
        change: dict[str, Any] = {"sample.preset": "quick"} if high is None else {"sample.guidance": 1.0}
        change |= {"sample.guidance_low": 1.0} if low is not None else {}
        guilty = (path for path, value in (("sample.guidance", high), ("sample.guidance_low", low)) if (value or 0) > 1)
        yield Found(
            next(guilty, "sample.preset"),
            "an accelerator has guidance learned into it; more of it takes twice the time and burns the picture",
            set=change,
        )


@rule("accelerator-steps", "advice")
def accelerator_steps(job: Job, facts: Facts) -> Iterator[Found]:
    """With an accelerator, previews take few steps."""
    steps = sampling_of(job.sample).steps
    if _accelerated(job) and steps > MANY_STEPS:
        path, value = ("sample.preset", "quick") if job.sample.steps is None else ("sample.steps", FEW_STEPS)
        yield Found(
            path,
            f"an accelerator is made for about {FEW_STEPS} steps: {steps} take longer and look no better",
            set={path: value},
        )


@rule("preset-quick", "error")
def preset_quick(job: Job, facts: Facts) -> Iterator[Found]:
    """The quick preset comes with an accelerator: without one, its few steps show nothing that can be judged."""
    if job.sample.prompts and job.sample.preset == "quick" and not _accelerated(job):
        yield Found(
            "sample.preset",
            f"without an accelerator LoRA, {sampling_of(job.sample).steps} steps show a blur, whatever was learned",
            fix='Name one in sample.accelerator, or set sample.preset = "custom"',
            set={"sample.preset": "custom"},
        )


@rule("preset-overridden", "advice")
def preset_overridden(job: Job, facts: Facts) -> Iterator[Found]:
    """A preset holds for what the job leaves out, so nothing that is given contradicts it."""
    preset = PRESETS[job.sample.preset]
    against = {
        f"sample.{name}": value
        for name in SHOWN
        if (value := getattr(job.sample, name)) is not None and value != getattr(preset, name)
    }
    if job.sample.prompts and job.sample.preset != "custom" and against:
        given = ", ".join(f"{path} = {toml_text(value)}" for path, value in against.items())
        yield Found(
            "sample.preset",
            f'previews are not quite "{job.sample.preset}": what is given wins ({given})',
            fix="Take these out of the file to have the preset's values",
            set=dict.fromkeys(against),
        )

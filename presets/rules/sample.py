"""Rules about previews."""

from collections.abc import Iterator
from pathlib import Path

from presets.facts import Facts
from presets.geometry import SIDE_MULTIPLE
from presets.job import Job
from presets.previews import low_guidance
from presets.rules.registry import Found, rule


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
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:  # what Pillow raises for damaged files
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
            message = 'a preview starts from a control image and this prompt has none (elsewhere: "The size of tensor a (36) must match the size of tensor b (16)")'
        if not message:
            continue
        images = nearby_images(job, facts)
        if images:
            yield Found(path, message, fix=f"Give an image like your clips, such as {images[0]}, or remove the prompt", set={path: images[0]})
        else:
            yield Found(path, message, fix="Give a PNG or JPEG that looks like the first frame of your clips, or remove the prompt")


@rule("sample-no-prompts", "advice")
def sample_no_prompts(job: Job, facts: Facts) -> Iterator[Found]:
    """There is a prompt to make previews of, so that checkpoints can be judged."""
    if not job.sample.prompts:
        yield Found("sample.prompts", "there is no prompt, so no previews are made, and only the loss tells one checkpoint from another", fix="Add a prompt, worded like your captions, with a control image that looks like the first frame of your clips")


@rule("sample-prompt-empty", "warning")
def sample_prompt_empty(job: Job, facts: Facts) -> Iterator[Found]:
    """Every sample prompt says something."""
    for i, prompt in enumerate(job.sample.prompts):
        if not prompt.prompt.strip():
            yield Found(f"sample.prompts[{i}].prompt", "the prompt is empty, so its preview will not call on the LoRA", fix="Write it like one of your captions")


@rule("dimension-multiple-of-16", "error")
def dimension_multiple_of_16(job: Job, facts: Facts) -> Iterator[Found]:
    """Width and height of previews are multiples of 16."""
    for at, panel in [("sample", job.sample), *((f"sample.prompts[{i}]", prompt) for i, prompt in enumerate(job.sample.prompts))]:
        for side in ("width", "height"):
            size = getattr(panel, side)
            if size is not None and size % SIDE_MULTIPLE:
                nearest = max(SIDE_MULTIPLE, round(size / SIDE_MULTIPLE) * SIDE_MULTIPLE)
                yield Found(f"{at}.{side}", f"{size} is not a multiple of 16, and the model's patches are 16 pixels wide", set={f"{at}.{side}": nearest})


@rule("sample-negative-unused", "advice")
def sample_negative_unused(job: Job, facts: Facts) -> Iterator[Found]:
    """A negative prompt comes with guidance: without it nothing asks what to avoid."""
    if job.sample.prompts and job.sample.negative.strip() and max(job.sample.guidance, low_guidance(job.sample)) <= 1:
        yield Found("sample.negative", "without guidance the negative prompt is not used", fix='Set sample.negative = "", or sample.guidance above 1', set={"sample.negative": ""})


@rule("sample-every-save-every", "advice")
def sample_every_save_every(job: Job, facts: Facts) -> Iterator[Found]:
    """Previews come as often as checkpoints, so that each checkpoint can be judged."""
    if job.sample.prompts and job.sample.every != job.save.every:
        how = f"every {job.sample.every} steps" if job.sample.every else "only at the start and the end"
        yield Found("sample.every", f"previews come {how}, checkpoints every {job.save.every}: some checkpoints cannot be judged", set={"sample.every": job.save.every})


@rule("sample-fps-16", "advice")
def sample_fps_16(job: Job, facts: Facts) -> Iterator[Found]:
    """Previews play at 16 FPS, the rate of Wan's motion."""
    if job.sample.prompts and job.sample.fps != 16:
        word = "slower" if job.sample.fps < 16 else "faster"
        yield Found("sample.fps", f"{job.sample.fps} FPS only plays the previews {word}; what is learnt stays at 16", set={"sample.fps": 16})

"""When previews are made, and what each of them is: the sample panel's values, its preset's where they are left out,
and what a prompt says otherwise. Also which noise levels they go through. How a preview is made is engine.preview."""

from fractions import Fraction
from typing import Literal, NamedTuple

from presets.job.expert_schedule import EXPERTS, Expert
from presets.job.schema import Job, SamplePanel

# The default negative prompt of Wan itself: sample_neg_prompt in wan/configs/shared_config.py of
# github.com/Wan-Video/Wan2.2, which its generate.py takes where a user gives none.
OFFICIAL_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，"
    "最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，"
    "画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)


class PreviewSize(NamedTuple):
    """What a preview asks for, as the job says it: the control image keeps its own shape inside this area."""

    width: int
    height: int
    frames: int


class Sampling(NamedTuple):
    """How previews are denoised."""

    sampler: Literal["flowmatch", "unipc"]
    steps: int
    guidance: float  # of the high-noise expert
    guidance_low: float
    shift: float
    negative: str


# official: wan/configs/wan_i2v_A14B.py of the same repository (sample_shift, sample_steps, sample_guide_scale) and the
# solver that its generate.py takes
PRESETS: dict[str, Sampling] = {
    "custom": Sampling("flowmatch", 25, 4.0, 4.0, 5.0, ""),
    "quick": Sampling("flowmatch", 4, 1.0, 1.0, 5.0, ""),
    "official": Sampling("unipc", 40, 3.5, 3.5, 5.0, OFFICIAL_NEGATIVE),
}


def sampling_of(panel: SamplePanel) -> Sampling:
    """The panel's own values, and its preset's for those that are left out. The low-noise expert's guidance follows
    the other's where that is given."""
    given = {name: value for name in Sampling._fields if (value := getattr(panel, name)) is not None}
    if "guidance" in given:
        given.setdefault("guidance_low", given["guidance"])
    return PRESETS[panel.preset]._replace(**given)


def noise_levels(sampling: Sampling) -> list[float]:
    """The sigmas at which the model is asked, falling from 1; after the last comes 0. They are Wan's own: n equal parts
    of [1, 0], the shift s applied once, s x / (1 + (s - 1) x) (get_sampling_sigmas in its wan/utils/fm_solvers.py).

    Reckoned in fractions of the numbers as written, so that a level that equals the experts' boundary is equal to it.
    """
    shift, n = Fraction(str(sampling.shift)), sampling.steps
    return [float(shift * x / (1 + (shift - 1) * x)) for x in (Fraction(n - i, n) for i in range(n))]


def expert_at(sigma: float, boundary: float) -> Expert:
    """Which expert a noise level belongs to: the boundary itself is high noise."""
    return EXPERTS[0 if sigma >= boundary else 1]


def passes_of(sampling: Sampling, boundary: float) -> dict[Expert, int]:
    """How often each expert is asked for one preview: once a step, with guidance twice."""
    turns = [expert_at(sigma, boundary) for sigma in noise_levels(sampling)]
    guidance = dict(zip(EXPERTS, (sampling.guidance, sampling.guidance_low), strict=True))
    return {expert: turns.count(expert) * (2 if guidance[expert] > 1 else 1) for expert in EXPERTS}


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

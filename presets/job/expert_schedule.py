"""The two experts of a job: which of them learn, with what rank and rate, and whose turn each optimizer step is.

Turns last `multistage.switch_every` optimizer steps. With p the high-noise expert's part of the two shares, turn n
(from 0) is high noise's iff ceil((n + 1) p) > ceil(n p): of the first N turns it has exactly ceil(N p), spread as
evenly as whole turns can be, and the first of them. Equal shares give high, low, high, low. Everything is reckoned in
fractions of the numbers as written (0.1 is 1/10), so no turn depends on how a float was rounded.

Whose turn it is, is a function of the job and the step alone. So the stage's position is part of a checkpoint through
the step that the checkpoint holds: a run that stops in the middle of a turn resumes in the middle of that turn.
"""

from fractions import Fraction
from math import ceil
from typing import Literal

from presets.job.schema import ExpertPanel, Job, MultistagePanel

Expert = Literal["high_noise", "low_noise"]
EXPERTS: tuple[Expert, Expert] = ("high_noise", "low_noise")
PANEL: dict[Expert, str] = {"high_noise": "high", "low_noise": "low"}  # its table below [multistage]


def trained_experts(job: Job) -> list[Expert]:
    """The experts that learn, high noise first."""
    return [e for e in EXPERTS if getattr(job.multistage, e)]


def needed_experts(job: Job) -> list[Expert]:
    """The experts that must be loaded: previews go through both."""
    return list(EXPERTS) if job.sample.prompts else trained_experts(job)


def panel_of(job: Job, expert: Expert) -> ExpertPanel:
    panel = getattr(job.multistage, PANEL[expert])
    assert isinstance(panel, ExpertPanel)
    return panel


def rank_of(job: Job, expert: Expert) -> int:
    """The rank of an expert's LoRA: its own, else the common one."""
    own = panel_of(job, expert).rank
    return job.target.rank if own is None else own


def high_ranks(job: Job, usual: int) -> list[str]:
    """The fields that give a trained expert, or some of its layers, a rank above the usual one."""
    fields = [
        ("target.rank" if panel_of(job, e).rank is None else f"multistage.{PANEL[e]}.rank")
        for e in trained_experts(job)
        if rank_of(job, e) > usual
    ]
    layers = [f"target.layers[{i}].rank" for i, own in enumerate(job.target.layers) if (own.rank or 0) > usual]
    return [*dict.fromkeys(fields), *layers]


def alpha_of(job: Job, expert: Expert) -> float:
    """The alpha of an expert's LoRA: target.alpha holds for both; left out, it is the expert's rank (a scale of 1)."""
    return float(rank_of(job, expert) if job.target.alpha is None else job.target.alpha)


def lr_of(job: Job, expert: Expert) -> float:
    """The learning rate of an expert before warm-up and schedule: its own, else the common one."""
    own = panel_of(job, expert).lr
    return job.training.lr if own is None else own


def high_part(job: Job) -> Fraction:
    """The high-noise expert's part of the turns: 1 or 0 when it learns alone or not at all."""
    return part_of(job.multistage)


def part_of(panel: MultistagePanel) -> Fraction:
    """The same, of the job's panel alone."""
    if not (panel.high_noise and panel.low_noise):
        return Fraction(int(panel.high_noise))
    high, low = (Fraction(str(own.share)) for own in (panel.high, panel.low))
    return high / (high + low)


def expert_at(job: Job, step: int) -> Expert:
    """Whose turn optimizer step `step` (from 0) is; see the formula above."""
    turn, part = step // job.multistage.switch_every, high_part(job)
    return EXPERTS[0] if ceil((turn + 1) * part) > ceil(turn * part) else EXPERTS[1]


def steps_of(job: Job, steps: int | None = None) -> dict[Expert, int]:
    """How many of the first `steps` optimizer steps (all, when left out) each trained expert has."""
    steps = job.training.steps if steps is None else steps
    high = high_steps(high_part(job), job.multistage.switch_every, steps)
    return {e: high if e == EXPERTS[0] else steps - high for e in trained_experts(job)}


def high_steps(part: Fraction, switch_every: int, steps: int) -> int:
    """How many of the first `steps` steps are the high-noise expert's, whose part of the turns is `part`."""
    turns, rest = divmod(steps, switch_every)
    before = ceil(turns * part)
    return before * switch_every + (rest if ceil((turns + 1) * part) > before else 0)

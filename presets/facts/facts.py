"""What the rules look at besides the job: facts of its clips, its model, the machine and the run folder.

They are gathered by presets.facts.gather, and judged by presets.rules.
"""

from pathlib import Path
from statistics import median

from msgspec import Struct, field

from presets.base.composition import NamedBase
from presets.base.fetch_plan import Fetching
from presets.base.model_facts import ModelFacts
from presets.clips.batches import frames_of
from presets.clips.clip_facts import ClipFacts, DatasetFacts
from presets.clips.geometry import uniform_speed
from presets.facts.held_out import HeldOut
from presets.job.resume_check import ResumeCheck
from presets.job.schema import DatasetPanel, Job
from presets.machine.gpus import Gpu
from presets.machine.machine import Machine

TINY_PARAMETERS = 100_000_000  # below this a base is a demo or a test, and any machine will do


class RunFolder(Struct, kw_only=True):
    """The folder OUT/NAME, before the run."""

    path: str
    name: str
    problem: str = ""  # why nothing can be written there
    resume: ResumeCheck = ResumeCheck()  # how this job differs from the one that lies there
    accepted: bool = False  # the run that lies there is resumed, with `resume` as it is
    size: int = 0  # bytes that lie there already: a resumed run needs that much less
    free_name: str = ""  # a name that is not taken, when a job lies there


class Facts(Struct, kw_only=True):
    """Gathered once by `presets.facts.gather.gather`; whatever is not known is None or missing, and the rules that need
    it say nothing."""

    base: Path  # relative paths of the job start here
    datasets: list[DatasetFacts] = field(default_factory=list)  # what trains, in the order of job.datasets
    held_out: HeldOut | None = None  # what does not; None: nothing is, or nobody has looked
    machine: Machine | None = None
    model: ModelFacts | None = None
    named: NamedBase | None = None  # the base as the job named it when its facts were gathered
    out: Path = Path("runs")
    run: RunFolder | None = None
    # clip path -> frames that begin a new shot, for every clip looked at
    cuts: dict[str, list[int]] = field(default_factory=dict)
    copies: list[list[str]] = field(default_factory=list)  # paths of clips, each group of the same bytes
    # paths of clips of one dataset, each group of clips that look nearly the same, among those looked at
    alike: list[list[str]] = field(default_factory=list)
    # loss mask's path -> its (darkest, brightest) grey value, 0 to 255, for every mask looked at
    shades: dict[str, tuple[int, int]] = field(default_factory=dict)
    # path of a LoRA file that the job names -> what is wrong with the numbers in it ("": nothing), of those looked at
    lora_values: dict[str, str] = field(default_factory=dict)
    # what the Hub says of parts that are not here; None when all are, or it was not asked
    fetching: Fetching | None = None
    packages: frozenset[str] = frozenset()  # optional packages that can be imported

    @property
    def tiny(self) -> bool:
        """The base model is known and is a toy: machine rules do not apply. An unknown model counts as the real one."""
        return self.model is not None and is_tiny(self.model)


def is_tiny(model: ModelFacts) -> bool:
    """Whether a base is a toy that any machine can train, the CPU too. One whose experts are not here yet counts as the
    real one."""
    return 0 < model.parameters < TINY_PARAMETERS


def model_missing(facts: Facts) -> bool:
    """`model.path` leads nowhere: then what the model would need of the machine is not worth saying."""
    return facts.model is not None and any(p.code == "model-missing" for p in facts.model.problems)


def paired(job: Job, facts: Facts) -> list[tuple[int, DatasetPanel, DatasetFacts]]:
    """Each dataset whose clips are known, with its index."""
    return [(i, panel, found) for i, (panel, found) in enumerate(zip(job.datasets, facts.datasets, strict=False))]


def videos(found: DatasetFacts) -> list[ClipFacts]:
    return [c for c in found.clips if c.kind == "video"]


def masked(job: Job, facts: Facts) -> int:
    """How many clips train under a loss mask."""
    return sum(clip.mask is not None for _, panel, d in paired(job, facts) if panel.mask == "auto" for clip in d.clips)


def used_gpus(job: Job, facts: Facts) -> list[Gpu]:
    """The GPUs that the job names and that could be read."""
    return [g for g in facts.machine.gpus if g.index in job.job.gpus and not g.error] if facts.machine else []


def clip_speeds(job: Job, facts: Facts) -> dict[int, float]:
    """How much faster than life uniform sampling shows the clips that are trained on, by number of frames: the middle
    one's factor (1.0: true speed)."""
    speeds: dict[int, list[float]] = {}
    for _, panel, found in paired(job, facts):
        if panel.sampling == "uniform" and panel.num_frames > 1 and not panel.regularization:
            speeds.setdefault(panel.num_frames, []).extend(
                uniform_speed(c.duration, frames_of(c, panel)) for c in videos(found)
            )
    return {frames: median(of_clips) for frames, of_clips in speeds.items() if of_clips}


def names(clips: list[ClipFacts], *, most: int = 3) -> str:
    """`a.mp4, b.mp4, c.mp4 and 4 more`"""
    shown = ", ".join(Path(c.path).name for c in clips[:most])
    return f"{shown} and {len(clips) - most} more" if len(clips) > most else shown

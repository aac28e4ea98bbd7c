"""What the readers of events need of each kind, typed: events are checked by being read into these, from a line or from
what came over the wire. What a kind holds in all: presets.runs.events.

Keys that a kind has beyond these are passed over. `quick_line` reads lines of the frequent kinds, several times quicker
than they become Events: those that hold the keys which this version writes, and no other, so that nothing in them is
left unseen.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Annotated, Any, get_args

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from presets.runs.events import Event, decode_event
from presets.runs.ranking import Difference, Kept, Measure
from presets.text import loss_text, sentences

MOST_EXPERTS = 8
MOST_HELD_OUT, MOST_BINS = 256, 64  # clips and noise levels of a held-out loss

WireInt = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]  # more than msgpack holds would reach no client
Number = Annotated[float, Meta(ge=-1e100, le=1e100)]  # of larger ones no mean can be taken: their sum is no number
Name = Annotated[str, Meta(max_length=4096)]  # as long as a path may be: what a view holds many of must not be endless


class StartedData(Struct, kw_only=True):
    name: Name
    job: dict[str, Any]
    plan: str
    device: str
    steps: WireInt
    resumed_from: WireInt
    rollback: bool = False
    vram_total_gib: float = 0.0
    ram_total_gib: float = 0.0


class PhaseData(Struct, kw_only=True, gc=False):
    name: Name
    done: WireInt
    total: WireInt
    text: str = ""


class RankData(Struct, kw_only=True, gc=False):
    rank: WireInt
    seconds: float  # computing, without waiting for the others
    vram_gib: float = 0.0


class StepData(Struct, kw_only=True, gc=False):
    step: WireInt
    expert: Name
    loss: Number
    lr: float
    grad_norm: float
    timestep: float
    seconds: dict[str, Number]  # with `total`
    vram_gib: float
    ram_gib: float
    ranks: tuple[RankData, ...] = ()  # that shared it, where several processes train
    at_once: WireInt = 1  # the experts that train at the same time: so much sooner is the next step done


class SampleData(Struct, kw_only=True, gc=False):
    step: WireInt
    path: Name
    poster: Name
    prompt: str
    seed: WireInt


class CheckpointData(Struct, kw_only=True, gc=False):
    step: WireInt
    path: Name
    oldest: WireInt = 0
    best: WireInt = 0

    @property
    def kept(self) -> Kept:
        return Kept(oldest=self.oldest, best=self.best)


class PairedData(Struct, kw_only=True, gc=False):
    step: WireInt
    difference: Number | None
    error: Number | None


class ExpertLosses(Struct, kw_only=True, gc=False):
    loss: Number | None
    error: Number | None
    edges: list[Number]
    bins: list[Number | None]
    clips: list[Number | None]
    first: PairedData | UnsetType = UNSET
    best: PairedData | UnsetType = UNSET


class ValidationData(Struct, kw_only=True, gc=False):
    step: WireInt
    of: Name
    clips: list[Name]
    experts: dict[Name, ExpertLosses]
    seconds: float

    def __post_init__(self) -> None:
        rows = [losses.clips for losses in self.experts.values()]
        if not 0 < len(rows) <= MOST_EXPERTS or not 0 < len(self.clips) <= MOST_HELD_OUT:
            raise ValueError("a held-out loss is of some experts and clips")
        if any(len(row) != len(self.clips) for row in rows):
            raise ValueError("a held-out loss is of each clip")
        if any(len(losses.bins) > MOST_BINS for losses in self.experts.values()):
            raise ValueError("a held-out loss has too many noise levels")

    @property
    def measure(self) -> Measure:
        def numbers(losses: list[float | None]) -> list[float]:
            return [math.inf if loss is None else loss for loss in losses]

        return Measure(
            step=self.step,
            of=self.of,
            losses={expert: numbers(losses.clips) for expert, losses in self.experts.items()},
            bins={expert: numbers(losses.bins) for expert, losses in self.experts.items()},
        )


class BestData(Struct, kw_only=True, gc=False):
    step: WireInt
    files: list[Name]
    reason: str
    previews: list[Name] = msgspec.field(default_factory=list)


class FindingData(Struct, kw_only=True):
    code: str
    severity: str
    field: str
    message: str
    fix: str
    step: WireInt | UnsetType = UNSET
    order: str | UnsetType = UNSET


class ChangedData(Struct, kw_only=True):
    field: Name
    old: Any
    new: Any
    step: WireInt | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.field == "training.steps" and type(self.new) is not int:
            raise ValueError(f"{self.new!r} is no number of steps"[:200])


class ReplannedData(Struct, kw_only=True):
    why: str
    new: str


class LogData(Struct, kw_only=True, gc=False):
    level: str
    text: str
    folder: Name | UnsetType = UNSET


class StoppedData(Struct, kw_only=True):
    step: WireInt
    why: str


class FailedData(Struct, kw_only=True):
    cause: str
    next: str


class DoneData(Struct, kw_only=True):
    step: WireInt
    files: list[str]
    seconds: float
    why: str = ""
    best: BestData | UnsetType = UNSET


Data = (
    StartedData
    | PhaseData
    | StepData
    | SampleData
    | CheckpointData
    | ValidationData
    | FindingData
    | ChangedData
    | ReplannedData
    | LogData
    | StoppedData
    | FailedData
    | DoneData
)
KINDS: dict[str, type[Data]] = {
    "started": StartedData,
    "phase": PhaseData,
    "step": StepData,
    "sample": SampleData,
    "checkpoint": CheckpointData,
    "validation": ValidationData,
    "finding": FindingData,
    "changed": ChangedData,
    "replanned": ReplannedData,
    "log": LogData,
    "stopped": StoppedData,
    "failed": FailedData,
    "done": DoneData,
}


def measured_text(data: ValidationData) -> str:
    """`high noise 0.1234 ±0.0100 (-0.002, 3.1 standard errors), low noise ...`: of each expert, and against the first
    measurement."""
    return ", ".join(f"{expert.replace('_', ' ')} {_loss_text(losses)}" for expert, losses in data.experts.items())


def _loss_text(losses: ExpertLosses) -> str:
    if losses.loss is None:
        return "not finite"
    error = "" if losses.error is None else f" ±{losses.error:.2g}"
    first = losses.first
    if not isinstance(first, PairedData) or first.difference is None:
        return f"{loss_text(losses.loss)}{error}"
    apart = Difference(mean=first.difference, error=first.error, clips=len(losses.clips))
    return f"{loss_text(losses.loss)}{error} ({apart.text})"


def done_text(data: DoneData) -> str:
    """Why a run ended before its last step, and which of its checkpoints is best; "" where neither is to be said."""
    best = f"best: step {data.best.step}; {data.best.reason}" if isinstance(data.best, BestData) else ""
    return sentences(*(text for text in (data.why, best.removesuffix("; ")) if text))


def data_of(event: Event) -> Data:
    """What an event says, checked. Raises ValueError (msgspec's are such) or KeyError."""
    data = msgspec.convert(event.data, KINDS[event.kind])
    if isinstance(data, StepData) and data.seconds["total"] < 0:  # in a __post_init__ it would cost every line
        raise ValueError("a step took less than no time")
    return data


Took = Annotated[float, Meta(ge=0, le=1e100)]  # seconds


class _AllOfPhase(PhaseData, kw_only=True, gc=False, forbid_unknown_fields=True):
    pass


class AllOfStep(StepData, kw_only=True, gc=False, forbid_unknown_fields=True, omit_defaults=True):
    seconds: dict[str, Took]
    parts: dict[str, float] | UnsetType = UNSET
    clips: list[WireInt | str] | UnsetType = UNSET


class _AllOfCheckpoint(CheckpointData, kw_only=True, gc=False, forbid_unknown_fields=True):
    sha256: str = ""


class _AllOfLog(LogData, kw_only=True, gc=False, forbid_unknown_fields=True):
    order: str = ""
    rollback: WireInt = 0


class Line(Struct, kw_only=True, gc=False, forbid_unknown_fields=True, tag_field="kind"):
    """One line of events.jsonl, read quickly. What Event says holds here."""

    v: WireInt = 1
    seq: WireInt
    time: float
    run: str
    attempt: WireInt


class _PhaseLine(Line, tag="phase", kw_only=True, gc=False, forbid_unknown_fields=True):
    data: _AllOfPhase


class StepLine(Line, tag="step", kw_only=True, gc=False, forbid_unknown_fields=True):
    data: AllOfStep


class _CheckpointLine(Line, tag="checkpoint", kw_only=True, gc=False, forbid_unknown_fields=True):
    data: _AllOfCheckpoint


class _LogLine(Line, tag="log", kw_only=True, gc=False, forbid_unknown_fields=True):
    data: _AllOfLog


OtherLine = _PhaseLine | _CheckpointLine | _LogLine
QuickLine = OtherLine | StepLine
OTHER_LINES = frozenset(get_args(OtherLine))
_decoder = msgspec.json.Decoder(QuickLine)


def quick_line(line: bytes) -> QuickLine:
    """Raises ValueError (msgspec's are such) or KeyError."""
    found = _decoder.decode(line)
    require_totals([found])
    return found


def quick_lines(lines: bytes) -> list[QuickLine]:
    """Of whole lines that follow each other. Raises as `quick_line`."""
    found = _decoder.decode_lines(lines)
    require_totals(found)
    return found


def require_totals(lines: Sequence[QuickLine]) -> None:
    """Raises KeyError for a step that does not say how long it took."""
    for line in lines:
        if type(line) is StepLine:
            line.data.seconds["total"]


def readable(lines: Iterable[bytes]) -> Iterator[Event | QuickLine]:
    """The events of whole lines; damaged ones are passed over, as the daemon does, and a torn one at the end."""
    for line in lines:
        if line.endswith(b"\n"):
            try:
                yield quick_line(line)
            except (ValueError, KeyError):
                with suppress(ValueError, KeyError, RecursionError):
                    event = decode_event(line)
                    data_of(event)
                    yield event

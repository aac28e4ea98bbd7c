"""Steps that are alike: those of one attempt say the same parts of their loss and of their seconds. In lines that are
read only to be folded these are fields, which are made and looked at much quicker than dicts. And steps cut down to
what counts of those that others follow, to be handed from one process to another.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, get_type_hints

import msgspec
from msgspec import Struct, defstruct, field

from presets.runs.event_data import (
    OTHER_LINES,
    AllOfStep,
    OtherLine,
    QuickLine,
    StepLine,
    Took,
    quick_line,
    quick_lines,
)
from presets.runs.events import decode_event
from presets.runs.ranks import RankSeen, keep_ranks

MOST_PARTS, LONGEST_PART = 16, 64  # that become fields, and characters of one's name
NEAR = 3  # lines at the end of a block, of which one is a step


def alike_lines(block: bytes) -> list[QuickLine]:
    """Of whole lines that follow each other, to be folded alone; raises as `quick_lines` does. Where all steps in the
    block are alike, their parts have a field each, in the order of the last step."""
    last = _last_step(block)
    if last is not None and (decoder := _decoder_for(*_keys_of(last))) is not None:
        try:
            return decoder.decode_lines(block)
        except ValueError:  # they are not alike, or cannot be read
            pass
    return quick_lines(block)


class ShortSeconds(Struct, array_like=True, gc=False):
    total: float


class ShortData(Struct, array_like=True, gc=False):
    step: int
    expert: str
    loss: float
    lr: float
    seconds: ShortSeconds


class ShortStep(Struct, array_like=True, gc=False):
    """A StepLine, cut down."""

    time: float
    attempt: int
    data: ShortData


AnySteps = Sequence[StepLine | ShortStep]  # all of them one or the other


class Part(NamedTuple):
    """Steps in a row and what follows them."""

    steps: AnySteps
    last: StepLine | None  # the last one of them, whole; None: there are none
    other: OtherLine | None
    ranks: dict[int, RankSeen]  # what its processes have told last


def parts_of(lines: Sequence[QuickLine]) -> Iterator[Part]:
    """Lines that were read together."""
    begin = 0
    for end in [*[i for i, line in enumerate(lines) if type(line) in OTHER_LINES], len(lines)]:
        steps: Sequence[StepLine] = lines[begin:end]  # type: ignore[assignment]
        other: OtherLine | None = lines[end] if end < len(lines) else None  # type: ignore[assignment]
        yield Part(steps, steps[-1] if steps else None, other, _ranks(steps))
        begin = end + 1


ShortPart = tuple[
    list[ShortStep], StepLine | None, OtherLine | None, dict[int, RankSeen]
]  # as it comes from another process


def shortened(part: Part) -> object:
    """What is encoded as a ShortPart."""
    steps = [
        (line.time, line.attempt, (data.step, data.expert, data.loss, data.lr, (total,)))
        for line, total in zip(part.steps, totals(part.steps), strict=True)
        for data in (line.data,)
    ]
    return steps, part.last, part.other, part.ranks


def _ranks(steps: AnySteps) -> dict[int, RankSeen]:
    seen: dict[int, RankSeen] = {}
    if steps and hasattr(steps[0].data, "ranks"):  # those read as alike have nothing but what they say
        for line in steps:
            keep_ranks(seen, line.data)  # type: ignore[arg-type]
    return seen


def totals(lines: AnySteps) -> list[float]:
    """The seconds until the next one that each took, of lines that were read together."""
    if not lines:
        return []
    if isinstance(lines[0].data.seconds, dict):
        return [line.data.seconds["total"] / max(1, line.data.at_once) for line in lines]  # type: ignore[index, union-attr]
    if hasattr(lines[0].data, "at_once"):  # of all alike
        return [line.data.seconds.total / max(1, line.data.at_once) for line in lines]  # type: ignore[union-attr]
    return [line.data.seconds.total for line in lines]  # type: ignore[union-attr]


def seconds_by_part(line: StepLine) -> dict[str, float]:
    seconds: dict[str, float] = msgspec.to_builtins(line.data.seconds)
    return seconds


def _last_step(block: bytes) -> bytes | None:
    end = len(block)
    for _ in range(NEAR):
        begin = block.rfind(b"\n", 0, max(0, end - 1)) + 1
        line = block[begin:end]
        if isinstance(quick_line(line), StepLine):
            return line
        end = begin
    return None


_Keys = tuple[str, ...]


def _keys_of(step: bytes) -> tuple[_Keys, _Keys, _Keys]:
    data = decode_event(step).data
    return tuple(data), tuple(data["seconds"]), tuple(data.get("parts", ()))


@lru_cache(maxsize=16)
def _decoder_for(keys: _Keys, seconds: _Keys, parts: _Keys) -> "msgspec.json.Decoder[QuickLine] | None":
    """Of steps with these keys, in this order. None where the names of parts cannot be those of fields."""
    names = (*seconds, *parts)
    if len(names) > MOST_PARTS or not all(n.isascii() and n.isidentifier() and len(n) <= LONGEST_PART for n in names):
        return None
    types = get_type_hints(AllOfStep, include_extras=True)
    types["seconds"] = _struct("Seconds", [_part(name, Took) for name in seconds])
    types["parts"] = _struct("Parts", [_part(name, float) for name in parts])
    data = _struct("AlikeStep", [(key, types[key]) for key in keys])
    line = _struct("AlikeLine", [("data", data)], base=StepLine, tag="step")
    return msgspec.json.Decoder(OtherLine | line)


def _part(name: str, type: object) -> tuple[str, object, object]:
    return name if name == "total" else f"part_{name}", type, field(name=name)


def _struct(name: str, fields: list[Any], *, base: type[Struct] = Struct, tag: str | None = None) -> type[Struct]:
    return defstruct(name, fields, bases=(base,), kw_only=True, gc=False, forbid_unknown_fields=True, tag=tag)

"""What the trainings of `benchmarks.gpus_apart` took, and how far apart what they learned is."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from safetensors.torch import load_file

from presets.job.expert_schedule import trained_experts
from presets.job.schema import Job
from presets.runs.events import EVENTS_FILE, Event, read_events

BETWEEN = ("checkpoint", "sample", "validation")  # events, and phases, of what comes between two steps
PHASES = ("saving", "sampling", "validating")
TENSOR = re.compile(r"blocks\.(\d+)\.(.+)\.lora_([AB])\.weight$")
NAMED = 4  # tensors that a refusal names

Tensors = dict[str, torch.Tensor]


def events_of(run: Path) -> list[Event]:
    path = run / EVENTS_FILE
    return [event for event, _ in read_events(path)] if path.exists() else []


def steps_of(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if event.kind == "step"]


def timed(run: Path, round_of: int) -> dict[str, Any]:
    """Of a training, as far as it has come: what its steps gave and took. A late step's seconds are medians of each
    step of such a round, then their mean; the first half of the steps compiles. `later steps` is the clock's time from
    there on without checkpoints and previews: where experts train apart, two steps are taken at once."""
    events = events_of(run)
    steps, found = steps_of(events), dict[str, Any]()
    for event in events:
        if event.kind == "started":
            found |= {"plan": event.data["plan"], "loading, s": event.time - events[0].time}
    if not steps:
        return found
    totals = [step.data["seconds"]["total"] for step in steps]
    begin = len(totals) // 2 // round_of * round_of
    end = max(len(totals) // round_of * round_of, begin + 1)
    late = [step.data["seconds"] for step in steps[begin:end]]
    found |= {
        "steps": len(steps),
        "first step, s": totals[0],
        "a step, s": fmean(median(own) for i in range(round_of) if (own := totals[begin + i : end : round_of])),
        "later steps, s": _stepping(events, begin) if len(steps) > 1 else None,
        "later steps: how many": len(steps) - begin,
        "of a late step, encodes of the first rank, s": fmean(seconds.get("vae", 0.0) for seconds in late),
        "of a late step, exchange of the first rank, s": fmean(seconds.get("exchange", 0.0) for seconds in late),
        "all steps with what is between them, s": steps[-1].time - (steps[0].time - totals[0]),
        "most VRAM, GiB": max(step.data["vram_gib"] for step in steps),
        "losses": [step.data["loss"] for step in steps],
        "norms of gradients": [step.data["grad_norm"] for step in steps],
    }
    if events[-1].kind == "done":
        found["all after loading, s"] = events[-1].time - (steps[0].time - totals[0])
    return found


def _stepping(events: Sequence[Event], begin: int) -> float:
    """Seconds of the steps from that one (from 0) on, without what came between two of them."""
    count, seconds, since = 0, 0.0, 0.0
    for before, event in pairwise(events):
        saving = before.kind == "phase" and before.data["name"] in PHASES
        if saving or before.kind in ("step", *BETWEEN):
            since = before.time
        if event.kind == "step":
            seconds += event.time - since if count >= begin and count > 0 else 0.0
            count += 1
    return seconds


def compared(job: Job, one: Path, other: Path) -> dict[str, Any]:
    """What one training's LoRAs, losses and gradients are from another's. `refused` says why nothing may be called
    equal: zeros are the same to the bit."""
    found: dict[str, Any] = {}
    for what, key in (("loss", "loss"), ("norm of gradients", "grad_norm")):
        columns = [[step.data[key] for step in steps_of(events_of(run))] for run in (one, other)]
        found[f"largest relative difference of a {what}"] = max(
            abs(a - b) / abs(a) if a != b else 0.0 for a, b in zip(*columns, strict=True)
        )
        if key == "grad_norm" and not all(value > 0 for column in columns for value in column):
            found["refused"] = "the gradient of a step is zero"
    pairs = {
        expert: [load_file(run / f"{job.job.name}_{expert}.safetensors") for run in (one, other)]
        for expert in trained_experts(job)
    }
    for expert, pair in pairs.items():
        assert pair[0].keys() == pair[1].keys()
        if unlearnt := [name for name in pair[0] if ".lora_B." in name and not all(bool(t[name].any()) for t in pair)]:
            learning = sum(".lora_B." in name for name in pair[0])
            named = ", ".join(unlearnt[:NAMED])
            found["refused"] = f"{len(unlearnt)} of {learning} B of {expert} have learnt nothing: {named}"
        found[f"tensors of {expert} with other bits"] = sum(not torch.equal(pair[0][n], pair[1][n]) for n in pair[0])
    found["bit-equal"] = (
        "refused" not in found
        and not found["largest relative difference of a loss"]
        and all(not found[f"tensors of {expert} with other bits"] for expert in pairs)
    )
    found["LoRAs, of |B|"] = max(_apart([p for p in pair[0] if ".lora_B." in p], *pair) for pair in pairs.values())
    found["groups"] = {f"{expert} {g}": d for expert, pair in pairs.items() for g, d in _groups(*pair).items()}
    return found


def _groups(one: Tensors, other: Tensors) -> dict[str, float]:
    """|difference| / |one's| of each linear's A and B, of all blocks together."""
    groups: dict[str, list[str]] = {}
    for name in one:
        if (found := TENSOR.search(name)) is not None:
            groups.setdefault(f"{found[2]} {found[3]}", []).append(name)
    assert sum(map(len, groups.values())) == len(one), Counter(name.rpartition("blocks.")[0] for name in one)
    return {group: _apart(names, one, other) for group, names in sorted(groups.items())}


def _apart(names: Sequence[str], one: Tensors, other: Tensors) -> float:
    off = torch.stack([(one[name].double() - other[name].double()).norm() for name in names]).norm()
    size = torch.stack([one[name].double().norm() for name in names]).norm()
    return float(off / size) if size else 0.0


def table(case: str, trainings: dict[str, dict[str, Any]], comparisons: dict[str, dict[str, Any]]) -> str:
    """For people: a column for each training, then how far apart they are."""
    names, lines = list(trainings), [case]
    rows = dict.fromkeys(row for found in trainings.values() for row, value in found.items() if not _is_list(value))
    lines.append(f"{'':<48}" + "".join(f"{name:>26}" for name in names))
    for row in rows:
        cells = [_cell(trainings[name].get(row)) for name in names]
        if any(len(cell) > 25 for cell in cells):
            lines += [f"{row} of {name}: {cell}" for name, cell in zip(names, cells, strict=True) if cell]
        else:
            lines.append(f"{row:<48}" + "".join(f"{cell:>26}" for cell in cells))
    for name, found in trainings.items():
        lines += [f"{row} of {name}: {' '.join(map(_cell, v))}" for row, v in found.items() if _is_list(v)]
    for name, found in comparisons.items():
        lines += [f"{name}: {row}: {_cell(value)}" for row, value in found.items() if row != "groups"]
    grouped = {name: found["groups"] for name, found in comparisons.items() if not found["bit-equal"]}
    for group in next(iter(grouped.values()), {}):
        cells = [f"{name} {_cell(found[group])}" for name, found in grouped.items()]
        lines.append(f"  {group:<40}" + ", ".join(cells))
    return "\n".join(lines)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)

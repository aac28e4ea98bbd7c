"""One line per event: for pipes, logs and screen readers.

Every line reads `HH:MM:SS KIND text`. The words and their order are stable; only the end of a line may grow.
"""

import msgspec

from daemon.settings import CostSettings
from presets.runs.event_data import DoneData, ValidationData, done_text, measured_text
from presets.runs.events import Event
from presets.runs.run_view import RunView
from presets.runs.time_left import PlannedTime, seconds_left
from presets.text import loss_text, sentences
from wanlora_tui.output.formatting import (
    clock,
    count,
    duration,
    expert_text,
    price,
    rate,
    seconds_each,
    setting_text,
    so_far,
)
from wanlora_tui.output.queue_words import clock_time


def plain_line(
    view: RunView, event: Event, planned: PlannedTime | None = None, cost: CostSettings | None = None
) -> str:
    """The line of one event. `view` is the run as folded up to and including it (it knows the pace and the total);
    `planned`: of its job, for what it has not measured yet; `cost`: what the user has set of it."""
    line = f"{clock(event.time)} {event.kind} {_text(view, event, planned, cost or CostSettings())}"
    return line.replace("\r", " ").replace("\n", " ").rstrip()


def _times(worked: float, left: float, at: float, cost: CostSettings) -> str:
    """When the run ends, how long it has worked, what it costs so far and in all; as of an event at that time."""
    words = [f"ends {clock_time(at + left, at)}", f"{duration(worked)} so far"]
    if cost.rate:
        words.append("/".join(price(seconds, cost.rate, cost.currency) for seconds in (worked, worked + left)))
    return ", ".join(words)


def _text(view: RunView, event: Event, planned: PlannedTime | None, cost: CostSettings) -> str:
    data = event.data
    match event.kind:
        case "started":
            resumed = f", resumed from step {data['resumed_from']}" if data["resumed_from"] else ""
            return (
                f"{data['name']}, attempt {event.attempt}, {count(data['steps'], 'step')} on {data['device']}{resumed}:"
                f" {data['plan']}"
            )
        case "phase":
            progress = f" {so_far(data['done'], data['total'])}" if data["total"] else ""
            return f"{data['name']}{progress} {data.get('text', '')}"
        case "step":
            vram = f", VRAM {data['vram_gib']:.1f} GiB" if data["vram_gib"] else ""
            left = seconds_left(view, planned) or 0.0
            return (
                f"{data['step']}/{view.steps} {expert_text(data['expert'])}, loss {loss_text(data['loss'])}, lr"
                f" {rate(data['lr'])}, grad norm {data['grad_norm']:.3f}, {seconds_each(data['seconds']['total'])} s,"
                f" ETA {duration(left)}{vram}, {_times(view.spent.worked, left, event.time, cost)}"
            )
        case "sample":
            return f"step {data['step']} {data['path']} (seed {data['seed']}): {data['prompt']}"
        case "checkpoint":
            return f"step {data['step']} {data['path']}"
        case "validation":
            return f"step {data['step']} held-out loss {measured_text(msgspec.convert(data, ValidationData))}"
        case "finding":
            return f"{data['severity']} {data['code']} {data['field']}: {sentences(data['message'], data['fix'])}"
        case "changed":
            at = f" after step {data['step']}" if "step" in data else ""
            old, new = (setting_text(data["field"], value) for value in (data["old"], data["new"]))
            return f"{data['field']} from {old} to {new}{at}"
        case "replanned":
            return f"{data['why']}: {data['new']}"
        case "log":
            return f"{data['level']} {data['text']}"
        case "stopped":
            return f"step {data['step']}: {data['why']}"
        case "failed":
            return sentences(data["cause"], data["next"])
        case "done":
            more = done_text(msgspec.convert(data, DoneData))
            return f"step {data['step']}, {duration(data['seconds'])}: {' '.join(data['files'])} {more}"

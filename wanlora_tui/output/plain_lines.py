"""One line per event: for pipes, logs and screen readers.

Every line reads `HH:MM:SS KIND text`. The words and their order are stable; only the end of a line may grow.
"""

from presets.job.fields import toml_text
from presets.runs.events import Event
from presets.runs.run_view import RunView
from presets.text import sentences
from wanlora_tui.output.formatting import clock, count, duration, expert_text, rate, seconds_each, so_far


def plain_line(view: RunView, event: Event) -> str:
    """The line of one event. `view` is the run as folded up to and including it (it knows the pace and the total)."""
    return f"{clock(event.time)} {event.kind} {_text(view, event)}".replace("\r", " ").replace("\n", " ").rstrip()


def _text(view: RunView, event: Event) -> str:
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
            return (
                f"{data['step']}/{view.steps} {expert_text(data['expert'])}, loss {data['loss']:.4f}, lr"
                f" {rate(data['lr'])}, grad norm {data['grad_norm']:.3f}, {seconds_each(data['seconds']['total'])} s,"
                f" ETA {duration(view.eta_seconds)}{vram}"
            )
        case "sample":
            return f"step {data['step']} {data['path']} (seed {data['seed']}): {data['prompt']}"
        case "checkpoint":
            return f"step {data['step']} {data['path']}"
        case "finding":
            return f"{data['severity']} {data['code']} {data['field']}: {sentences(data['message'], data['fix'])}"
        case "changed":
            at = f" after step {data['step']}" if "step" in data else ""
            return f"{data['field']} from {toml_text(data['old'])} to {toml_text(data['new'])}{at}"
        case "replanned":
            return f"{data['why']}: {data['new']}"
        case "log":
            return f"{data['level']} {data['text']}"
        case "stopped":
            return f"step {data['step']}: {data['why']}"
        case "failed":
            return sentences(data["cause"], data["next"])
        case "done":
            return f"step {data['step']}, {duration(data['seconds'])}: {' '.join(data['files'])}"

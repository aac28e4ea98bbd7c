"""What an attempt came to: its own last word, or what its log and the kernel say.

What the job's state becomes by it is daemon.queue.job_queue's.
"""

import re
import signal
from pathlib import Path

import msgspec

from daemon.events.event_tail import Tail
from daemon.processes.proc import oom_kills
from daemon.queue.entry import AttemptResult, Entry
from daemon.queue.restarts import Progress
from presets.runs.event_data import DoneData, done_text
from presets.text import sentences, to_type

LOG_BYTES = 64 * 2**10
LOG_LINES = 12


def last_word(entry: Entry, tail: Tail) -> AttemptResult | None:
    """What the trainer itself said its present attempt came to; None when it has not said anything yet."""
    word = tail.last_word
    if word is None or word.seq <= entry.first_seq:
        return None
    match word.kind:
        case "done":
            return AttemptResult("done", done_text(msgspec.convert(word.data, DoneData)))
        case "stopped":
            return AttemptResult("stopped", word.data["why"])
    may_pass = word.data.get("user") is False  # trainers up to 0.1.0 do not say
    return AttemptResult(
        "failed", sentences(word.data["cause"], word.data["next"]), sentences(word.data["cause"]), may_pass
    )


def progress_of(entry: Entry, tail: Tail) -> Progress:
    """How far the present attempt has come."""
    there = tail.view.checkpoints
    if tail.started is None or tail.started.seq <= entry.first_seq:
        return Progress(resumable=bool(there))
    began = tail.started.data["resumed_from"]
    return Progress(stepped=tail.view.step > began, saved=any(c.step > began for c in there), resumable=bool(there))


def result_of(entry: Entry, tail: Tail, *, exit_code: int | None, log: Path) -> AttemptResult:
    """What came of an attempt whose processes have ended: its own last word, or else what can be found out."""
    if said := last_word(entry, tail):
        return said
    code, lines = _read_log(log)
    code = exit_code if code is None else code
    at = f" after step {tail.view.step}" if tail.view.step else ""
    if code is None:
        cause = f"The trainer ended without a word{at}."
    elif code < 0:
        names = {number.value: number.name for number in signal.Signals}
        cause = f"The trainer was killed by {names.get(-code, f'signal {-code}')}{at}."
        if code == -signal.SIGKILL and oom_kills() > entry.oom_kills >= 0:
            cause += (
                " The machine ran out of RAM and the kernel's out-of-memory killer was at work: close other programs,"
                " or choose a smaller precision in quantization.transformer."
            )
        elif code == -signal.SIGKILL:
            cause += " If nobody did that by hand, a memory limit of the container or batch system is likely."
    else:
        cause = f"The trainer ended with exit code {code} and without a word{at}."
    end = "\n".join(["Its last lines:", *lines]) if lines else "Its log is empty."
    return AttemptResult(
        "failed",
        f"{cause} Resume from the last checkpoint with: {to_type('resume', entry.record.name)}\n{end}\n"
        f"All of it: {log}",
        cause,
        may_pass=True,
    )


def with_reasons(entry: Entry, end: AttemptResult) -> AttemptResult:
    """A final result with what the user should know besides."""
    outcome = end.outcome
    if end.state == "failed" and end.may_pass and entry.restarts:
        times = "once" if entry.restarts == 1 else f"{entry.restarts} times"
        outcome = f"It was restarted {times} without coming to a new checkpoint. {outcome}"
    if end.state == "failed" and entry.lacking:
        outcome += (
            f"\n{' and '.join(entry.lacking)} of the shell that it came from was not at hand: the daemon keeps that in"
            " memory alone, and was restarted. If it is needed, resume from a shell that has it: "
            f"{to_type('resume', entry.record.name)}"
        )
    return msgspec.structs.replace(end, outcome=outcome)


def exit_noted(log: Path) -> bool:
    """Whether the launcher lived on and noted how the trainer ended."""
    return _read_log(log)[0] is not None


def _read_log(log: Path) -> tuple[int | None, list[str]]:
    """The trainer's exit code as its launcher noted it (negative: a signal), and the trainer's own last lines."""
    try:
        with log.open("rb") as f:
            f.seek(max(0, log.stat().st_size - LOG_BYTES))
            text = f.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return None, []
    note = re.search(r"^.*torch/distributed/elastic/.*failed \(exitcode: (-?\d+)\)", text, re.MULTILINE)
    own = text[: note.start()] if note else text
    return int(note[1]) if note else None, [line for line in own.splitlines() if line.strip()][-LOG_LINES:]

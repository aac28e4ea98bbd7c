"""Faults on purpose, for tests: `python -m engine JOB --fault sigkill:save.before-rename:4`; of several ranks, number 1
alone: `sigkill:forward:4@1`.

Unarmed, `at` costs one look at an empty list. A fault names what happens (KINDS), where (POINTS) and at which step, and
strikes once; the same fault given twice strikes twice. Steps are numbered as in the events: the first step trained is
1, and a save, a preview or a resume has the number of the steps done.
"""

import errno
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

KINDS = {
    "raise": "a bug: InjectedFault, which nothing expects",
    "sigkill": "the process ends at once, as by kill -9 or the out-of-memory killer",
    "sigterm": "a polite stop arrives",
    "hang": "it waits until someone kills the process",
    "stop": "the process is stopped, as by kill -STOP, until someone kills it",
    "enospc": "the disk is full",
    "oom": "the card has no room",
    "nan": "the value becomes not-a-number (at the points in VALUES)",
}
POINTS = {
    "rank.begin": "before a rank behind the first looks at its own GPU (step: 0)",
    "data.decode": "before each micro-batch is taken from the loader",
    "vae.encode": "before its clips are encoded",
    "noise": "before its noise and sigma are drawn",
    "forward": "before the first term's forward and backward",
    "backward": "after the last term's backward",
    "gradients.send": "before a rank sends gradients of a step that it shares (step: pieces before them in their step)",
    "optimizer.before-step": "gradients are clipped, weights as before",
    "optimizer.after-step": "weights moved, running average not",
    "ema": "weights and running average moved, no event yet",
    "event.before-write": "before the first event of the step",
    "event.mid-write": "that event is half on the disk",
    "save.begin": "before the folder aside is made",
    "save.after-lora": "the first file is written",
    "save.after-optimizer": "all tensors are written",
    "save.before-manifest": "all files but the manifest are written",
    "save.before-rename": "the folder aside is whole",
    "save.after-rename": "the checkpoint is in place, its folder not synced",
    "lora-file.before-rename": "a LoRA file is written aside",
    "prune": "before old checkpoints are removed",
    "checkpoint.before-event": "the checkpoint stands, no event says so",
    "validation.begin": "before the held-out loss is measured",
    "validation.before-event": "it is measured, no event says so",
    "shared-pass.exchange": "before ranks that share a clip exchange tokens (step: exchanges before it in its passes)",
    "preview.begin": "before a preview",
    "preview.denoise": "before each of its denoising steps",
    "preview.pass": "before a rank behind the first takes part in a pass of it",
    "preview.decode": "latents are done, frames are not",
    "preview.before-video": "its poster is written, its video is not",
    "preview.before-event": "all its files are in their places, no event says so",
    "final.begin": "before the final pair is written",
    "done.before-event": "everything is written but the last event",
    "done.after-event": "everything is written and logged; the process is about to end",
    "control.after-event": "a command was applied and that is logged, its file is still there",
    "abandon.mid": "half of an abandoned branch has been moved away (step: the one gone back to)",
    "resume.loading": "before the checkpoint is read (step: its number)",
    "resume.restored": "weights and optimizers are restored",
}
VALUES = {"target": "what the prediction is compared with: loss and gradients follow", "loss": "the loss alone"}


class InjectedFault(Exception):
    """A bug on purpose."""


@dataclass(frozen=True)
class Fault:
    kind: str
    point: str
    step: int
    rank: int | None = None  # None: whichever comes there


_armed: list[Fault] = []


def parse(text: str) -> Fault:
    """KIND:POINT:STEP or KIND:POINT:STEP@RANK. Raises ValueError."""
    kind, point, step = text.split(":") if text.count(":") == 2 else ("", "", "")
    step, at_rank, rank = step.partition("@")
    if kind not in KINDS or not step.isdecimal() or not (rank.isdecimal() if at_rank else True):
        raise ValueError(
            f"{text!r} is no fault: expected KIND:POINT:STEP with a kind of {', '.join(KINDS)} and a whole step"
        )
    if point not in (places := VALUES if kind == "nan" else POINTS):
        raise ValueError(f"{text!r}: no such point; {kind} knows {', '.join(places)}")
    return Fault(kind, point, int(step), int(rank) if rank else None)


def arm(faults: Sequence[str]) -> None:
    """Arm these faults and no others, as far as they are of this rank. Raises ValueError."""
    here = os.environ.get("RANK", "0")  # as torchrun has it
    _armed[:] = [fault for fault in map(parse, faults) if fault.rank is None or str(fault.rank) == here]


def due(point: str, step: int) -> bool:
    """Whether a fault would strike there: for a caller who has to bring about half of something first."""
    return any(fault.point == point and fault.step == step for fault in _armed)


def at(point: str, step: int) -> None:
    """Let the armed fault of this point and step strike. Raises what the fault says."""
    if _armed and (fault := _take(point, step)):
        _strike(fault)


def poison(point: str, step: int, value: Any) -> Any:
    """The value, or not-a-number in its place."""
    if _armed and (fault := _take(point, step)):
        _say(fault)
        return value * float("nan")
    return value


def _take(point: str, step: int) -> Fault | None:
    for fault in _armed:
        if fault.point == point and fault.step == step:
            _armed.remove(fault)
            return fault
    return None


def _say(fault: Fault) -> None:
    print(f"fault: {fault.kind} at {fault.point} of step {fault.step}, on purpose", file=sys.stderr, flush=True)


def _strike(fault: Fault) -> None:
    _say(fault)
    match fault.kind:
        case "raise":
            raise InjectedFault(f"on purpose, at {fault.point} of step {fault.step}")
        case "enospc":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), fault.point)
        case "oom":
            import torch  # not for a job that is refused

            raise torch.OutOfMemoryError(f"on purpose, at {fault.point} of step {fault.step}")
        case "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "sigterm":
            os.kill(os.getpid(), signal.SIGTERM)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "hang":
            while True:
                time.sleep(3600)

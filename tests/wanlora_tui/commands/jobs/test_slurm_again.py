"""Which Slurm jobs go into the queue again, by the events of their attempts, and that there is an end to it."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from presets.runs.events import Event, EventKind
from wanlora_tui.commands.jobs.slurm_again import main, why_not

DIED = ("failed", {"cause": "rank 1 of 2 was killed or has crashed", "user": False})
REFUSED = ("failed", {"cause": "no clips", "user": True})
WARNED = ("stopped", {"step": 0, "path": "", "why": "SIGTERM received"})
Said = tuple[EventKind, dict[str, object]]


def step(number: int) -> Said:
    return "step", {"step": number}


def saved(number: int) -> Said:
    return "checkpoint", {"step": number, "path": "p"}


def attempt(began: int, *said: Said) -> list[Said]:
    return [("started", {"resumed_from": began}), *said]


def told(*attempts: list[Said]) -> Iterator[Event]:
    for number, said in enumerate(attempts, 1):
        for kind, data in said:
            yield Event(seq=1, time=0.0, run="r", attempt=number, kind=kind, data=data)


@pytest.mark.parametrize(
    ("attempts", "why"),
    [
        ([attempt(0, step(1), DIED)], None),
        ([attempt(0, step(1))], None),  # killed without a word
        ([attempt(0, step(1), REFUSED)], "what has failed is for you to mend"),
        ([attempt(0, DIED)], "it has failed before its first step"),
        ([[("phase", {}), DIED]], "it has failed before its first step"),
        ([attempt(0, step(1), DIED)] * 3, None),
        ([attempt(0, step(1), DIED)] * 4, "4 attempts have come to no new checkpoint"),
        # a checkpoint begins the count anew, one that is made once more does not
        ([attempt(0, step(1), DIED)] * 3 + [attempt(0, step(1), saved(1), DIED)] + [attempt(1, DIED)] * 2, None),
        ([attempt(0, step(1), saved(1), DIED)] * 4, "4 attempts have come to no new checkpoint"),
        # warned while it loads: the time that Slurm gives is too short
        ([[WARNED]] * 3, None),
        ([[WARNED]] * 4, "4 attempts have come to no new checkpoint"),
        ([attempt(n, step(n + 1), ("stopped", {**WARNED[1], "step": n + 1, "path": "p"})) for n in range(9)], None),
        ([attempt(0, ("stopped", {**WARNED[1], "why": "stop asked for"}))], "somebody has stopped the run"),
        ([attempt(0, step(1), ("done", {"step": 1}))], "there is nothing to go on with"),
        ([], "there is nothing to go on with"),
    ],
)
def test_a_failure_that_may_pass_is_tried_again_so_often_without_a_new_checkpoint(
    attempts: list[list[Said]], why: str | None
):
    assert why_not(told(*attempts), 3) == why


def test_without_restarts_only_a_warned_run_goes_on():
    assert why_not(told(attempt(0, step(1), DIED)), 0) == "settings.toml allows no restarts"
    assert why_not(told([WARNED]), 0) is None


def test_the_events_before_the_submission_do_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = [msgspec.json.encode(event) + b"\n" for event in told(*[attempt(0, step(1), DIED)] * 4)]
    file = tmp_path / "events.jsonl"
    file.write_bytes(b"".join(lines))
    assert main(str(file), "0", "3") == 1
    assert "not in the queue again: 4 attempts" in capsys.readouterr().err
    assert main(str(file), str(len(b"".join(lines[:3]))), "3") == 0

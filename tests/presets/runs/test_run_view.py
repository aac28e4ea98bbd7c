"""The fold: the same view however often and in whatever pieces events arrive."""

import copy

import msgspec
import pytest

from presets.runs.events import Event
from presets.runs.run_view import LOG_TAIL, RunView, apply_event

_STEP = {"lr": 1e-4, "grad_norm": 0.5, "timestep": 900.0, "vram_gib": 1.0, "ram_gib": 2.0, "clips": ["a"]}


class Tape:
    """Makes events with rising seq."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.attempt = 0

    def add(self, kind: str, **data: object) -> None:
        self.events.append(
            Event(
                seq=len(self.events) + 1,
                time=100.0 + len(self.events),
                run="r",
                attempt=self.attempt,
                kind=kind,
                data=data,
            )
        )  # type: ignore[arg-type]

    def start(self, resumed_from: int = 0) -> None:
        self.attempt += 1
        self.add(
            "started", name="orbit", job={}, plan="bf16", versions={}, device="cpu", steps=20, resumed_from=resumed_from
        )

    def step(self, n: int, loss: float = 1.0) -> None:
        self.add(
            "step",
            step=n,
            expert="high_noise" if (n - 1) // 2 % 2 == 0 else "low_noise",
            loss=loss,
            seconds={"forward": 1.0, "total": 2.0},
            **_STEP,
        )


def whole_run() -> list[Event]:
    t = Tape()
    t.start()
    t.add("phase", name="loading", done=0, total=3, text="experts")
    t.add("finding", code="frames-mismatch", severity="warning", field="sample.num_frames", message="m", fix="f")
    for n in range(1, 7):
        t.step(n, loss=n / 10)
    t.add("checkpoint", step=6, path="checkpoints/step_000000006", sha256="0")
    t.add("sample", step=6, path="samples/6/00.mp4", poster="samples/6/00.png", prompt="p", seed=42)
    for n in range(7, 10):
        t.step(n)
    t.add("checkpoint", step=9, path="checkpoints/step_000000009", sha256="0")
    t.add("stopped", step=9, path="", why="stopped on request")
    t.start(resumed_from=6)
    t.add("changed", field="training.steps", old=20, new=8)
    for n in range(7, 9):
        t.step(n, loss=7.0)
    t.add("replanned", why="out of memory", old="bf16", new="chunked")
    t.add("log", level="info", text="hello")
    t.add("done", step=8, files=["orbit_high_noise.safetensors"], seconds=9.0)
    return t.events


def folded(events: list[Event]) -> RunView:
    view = RunView()
    for event in events:
        apply_event(view, event)
    return view


def test_the_whole_run():
    view = folded(whole_run())
    assert (view.state, view.name, view.attempt, view.step, view.steps, view.plan) == (
        "done",
        "orbit",
        2,
        8,
        8,
        "chunked",
    )
    assert view.files == ["orbit_high_noise.safetensors"] and view.outcome == ""
    assert view.last_seq == len(whole_run()) and view.eta_seconds == 0
    assert [f["code"] for f in view.findings] == ["frames-mismatch"]
    assert [line.text for line in view.log if line.kind == "stopped"] == ["stopped after step 9: on request"]


def test_steps_set_below_what_is_done_count_as_what_is_done():
    t = Tape()
    t.start()
    for n in range(1, 10):
        t.step(n)
    t.add("changed", field="training.steps", old=20, new=2, step=9)
    view = folded(t.events)
    assert (view.step, view.steps, view.settings["training.steps"]) == (9, 9, 2)
    t.attempt += 1
    t.add("started", name="orbit", job={}, plan="bf16", versions={}, device="cpu", steps=2, resumed_from=9)
    assert (folded(t.events).step, folded(t.events).steps) == (9, 9)


def test_a_finding_of_every_attempt_is_listed_once():
    events = whole_run()
    finding = next(e for e in events if e.kind == "finding")
    view = folded(
        [
            *events,
            Event(
                seq=events[-1].seq + 1, time=0.0, run=finding.run, attempt=3, kind="finding", data=dict(finding.data)
            ),
        ]
    )
    assert len(view.findings) == 1 and len([line for line in view.log if line.kind == "finding"]) == 2


def test_a_resume_rewinds_the_plot_and_what_was_saved_after_it():
    view = folded(whole_run())
    points = sorted((p.step, p.loss) for ps in view.losses.values() for p in ps)
    assert points == [(n, n / 10) for n in range(1, 7)] + [(7, 7.0), (8, 7.0)]
    assert [c.step for c in view.checkpoints] == [6] and [s.step for s in view.samples] == [6]


def test_what_a_resume_leaves_behind_stays_within_reach():
    t = Tape()
    t.start()
    for n in range(1, 6):
        t.step(n, loss=n / 10)
        t.add("sample", step=n, path=f"samples/{n}/00.mp4", poster="p", prompt="p", seed=1)
        t.add("checkpoint", step=n, path=f"checkpoints/{n}", sha256="0")
    t.start(resumed_from=5)
    t.attempt += 1
    t.add(
        "started", name="orbit", job={}, plan="bf16", versions={}, device="cpu", steps=20, resumed_from=2, rollback=True
    )
    view = folded(t.events)
    (left,) = view.abandoned
    assert (left.attempt, left.after, left.last, left.folder) == (2, 2, 5, "abandoned/attempt_2")
    assert (
        sorted(p.step for points in left.losses.values() for p in points)
        == [s.step for s in left.samples]
        == [c.step for c in left.checkpoints]
        == [3, 4, 5]
    )
    assert (
        sorted(p.step for points in view.losses.values() for p in points)
        == [c.step for c in view.checkpoints]
        == [1, 2]
    )
    t.step(3)
    t.start(resumed_from=2)
    assert [(a.after, a.last, a.folder) for a in folded(t.events).abandoned] == [
        (2, 5, "abandoned/attempt_2"),
        (2, 3, ""),
    ]


def test_a_rollback_says_itself_where_it_moved_things():
    """Killed in the middle of its moves it goes on there, whatever the number of the attempt that takes it up."""
    t = Tape()
    t.start()
    t.step(1)
    t.step(2)
    for _ in range(2):
        t.attempt += 1
        t.add("log", level="info", text="going back", rollback=1, folder="abandoned/attempt_1")
    t.add(
        "started", name="orbit", job={}, plan="bf16", versions={}, device="cpu", steps=20, resumed_from=1, rollback=True
    )
    view = folded(t.events)
    assert (view.attempt, [a.folder for a in view.abandoned], view.leaving) == (3, ["abandoned/attempt_1"], "")


def test_events_already_seen_change_nothing():
    events = whole_run()
    once, twice = folded(events), folded(events)
    for event in events:
        apply_event(twice, event)
    assert twice == once
    doubled = folded([e for event in events for e in (event, event)])
    assert doubled == once


@pytest.mark.parametrize("at", range(0, 24, 3))
def test_a_snapshot_and_the_rest_equal_the_whole(at):
    """What a client does: a snapshot over the wire, then newer events, with some overlap."""
    events = whole_run()
    snapshot = msgspec.msgpack.decode(msgspec.msgpack.encode(folded(events[:at])), type=RunView)
    for event in events[max(0, at - 2) :]:
        apply_event(snapshot, event)
    assert snapshot == folded(events)


def test_folding_leaves_the_events_alone():
    events = whole_run()
    before = copy.deepcopy(events)
    folded(events)
    assert events == before


def test_resuming_clears_the_old_outcome():
    t = Tape()
    t.start()
    t.step(1)
    t.add("failed", cause="Out of memory", next="Lower num_frames")
    view = folded(t.events)
    assert (view.state, view.outcome) == ("failed", "Out of memory. Lower num_frames.")
    t.start(resumed_from=0)
    apply_event(view, t.events[-1])
    assert (view.state, view.outcome, view.step, view.losses["high_noise"]) == ("running", "", 0, [])


def test_seconds_per_step_follows_slowly_and_gives_the_eta():
    t = Tape()
    t.start()
    t.step(1)
    view = folded(t.events)
    assert view.seconds_per_step == 2.0 and view.eta_seconds == pytest.approx(19 * 2.0)


def test_the_pace_is_the_mean_of_recent_steps_without_those_that_compiled():
    t = Tape()
    t.start()
    for number, seconds in enumerate([40.0, *[2.0, 4.0] * 20], start=1):
        t.step(number)
        t.events[-1].data["seconds"] = {"total": seconds}
    view = folded(t.events)
    assert view.seconds_per_step == 3.0 and len(view.recent) == 30
    assert folded(t.events[:4]).seconds_per_step == 3.0, "the first step, which compiled, is left out"


def test_the_log_is_bounded():
    t = Tape()
    t.start()
    for i in range(LOG_TAIL + 50):
        t.add("log", level="info", text=str(i))
    view = folded(t.events)
    assert len(view.log) == LOG_TAIL and view.log[-1].text == str(LOG_TAIL + 49)


def test_each_phase_is_noted_once_and_training_not_at_all():
    t = Tape()
    t.start()
    for done in range(3):
        t.add("phase", name="caching", done=done, total=3, text="captions")
    t.add("phase", name="training", done=0, total=20, text="")
    t.add("phase", name="sampling", done=0, total=2, text="")
    view = folded(t.events)
    assert [line.text for line in view.log if line.kind == "phase"] == ["caching captions", "sampling"]
    assert (view.phase.name, view.phase.done, view.phase.total) == ("sampling", 0, 2)


def test_a_run_began_with_its_first_attempt():
    events = whole_run()
    view = folded(events)
    assert view.started_at == events[0].time and view.updated_at == events[-1].time
    assert view.last_step_at == max(e.time for e in events if e.kind == "step")


def test_a_preview_that_is_made_anew_takes_the_place_of_the_one_it_was():
    t = Tape()
    t.start()
    for name in ("00", "01", "00"):
        t.add("sample", step=0, path=f"samples/0/{name}.mp4", poster=f"samples/0/{name}.png", prompt="p", seed=42)
    assert [s.path for s in folded(t.events).samples] == ["samples/0/00.mp4", "samples/0/01.mp4"]

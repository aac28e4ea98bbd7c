"""The fold: the same view however often and in whatever pieces events arrive."""

import copy
import itertools
import random

import msgspec
import pytest

from presets.runs import loss_points, ranking, run_view
from presets.runs.alike_steps import alike_lines
from presets.runs.event_data import quick_lines
from presets.runs.events import Event
from presets.runs.run_view import LOG_TAIL, RunView, apply_all, apply_event, apply_lines
from presets.runs.time_left import ToCome, seconds_left
from tests.helpers.tiers import thorough

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
    assert view.last_seq == len(whole_run()) and not seconds_left(view)
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
    assert view.seconds_per_step == 2.0 and seconds_left(view) == pytest.approx(19 * 2.0)


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


def test_a_view_stays_small_however_long_its_run():
    t = Tape()
    t.start()
    for n in range(1, 20_001):
        t.step(n, loss=1 / n)
    for n in range(3000):
        t.add("sample", step=n, path=f"samples/{n}/00.mp4", poster=f"samples/{n}/00.png", prompt="p" * 9000, seed=42)
        t.add("checkpoint", step=n, path=f"checkpoints/{n}", sha256="0")
        t.add("finding", code="c", severity="warning", field="f", message=f"{n}", fix="x" * 9000)
        t.add("log", level="info", text="y" * 9000)
    view = folded(t.events)
    for points in view.losses.values():
        assert loss_points.MOST_POINTS / 2 <= len(points) <= loss_points.MOST_POINTS
        gaps = {b.step - a.step for a, b in itertools.pairwise(points[:-1])}
        assert max(gaps) <= 2 * min(gaps) + 2, "evenly over the whole run"
    assert max(p.step for points in view.losses.values() for p in points) == 20_000
    assert view.samples[0].step == 0 and view.samples[-1].step == view.checkpoints[-1].step == 2999
    assert [f["message"] for f in (view.findings[0], view.findings[-1])] == ["0", "2999"]
    assert len(msgspec.msgpack.encode(view)) < 16 * 2**20
    many = Tape()
    many.start()
    for n in range(200):
        for step in range(1, 30):
            many.step(step)
        many.events[-1].data["expert"] = f"expert {n}"
        many.start(resumed_from=n % 3)
    view = folded(many.events)
    assert len(view.abandoned) == run_view.MOST_ABANDONED and len(view.losses) == loss_points.MOST_EXPERTS


def test_a_thinned_plot_keeps_means_and_peaks(monkeypatch):
    monkeypatch.setattr(loss_points, "MOST_POINTS", 8)
    t, losses = Tape(), [0.1 + 0.001 * n for n in range(128)]
    losses[37] = 9.0
    t.start()
    for n, loss in enumerate(losses, 1):
        t.step(n, loss=loss)
        t.events[-1].data["expert"] = "high_noise"
    points = folded(t.events).losses["high_noise"]
    assert len(points) <= 8 and points[-1].step == 128
    assert max(p.high for p in points) == 9.0 and min(p.low for p in points) == losses[0]
    assert sum(p.loss for p in points) / len(points) == pytest.approx(sum(losses) / 128)
    assert (points[-1].lr, points[-1].time) == (t.events[-1].data["lr"], t.events[-1].time)


def test_what_was_changed_stays_with_its_step_until_a_rollback_leaves_it():
    t = Tape()
    t.start()
    for n in range(1, 30):
        t.step(n)
        if n in (10, 20):
            t.add("changed", field="training.lr", old=1e-4, new=1e-3 / n, step=n)
    assert [(c.step, c.field, c.old, c.new) for c in folded(t.events).changes] == [
        (10, "training.lr", "0.0001", "0.0001"),
        (20, "training.lr", "0.0001", "5e-05"),
    ]
    t.start(resumed_from=15)
    assert [c.step for c in folded(t.events).changes] == [10]


def held_out(step: int, *losses: float) -> dict:
    """The data of a `validation` event: so many clips."""
    one = {"loss": sum(losses) / len(losses), "error": 0.1, "edges": [0.9, 1.0], "bins": [0.5], "clips": [*losses]}
    clips = [f"0/{i}.mp4" for i in range(len(losses))]
    return {"step": step, "of": "a", "clips": clips, "experts": {"high_noise": one}, "seconds": 1.0}


def test_held_out_losses_rank_the_checkpoints_until_a_resume_goes_back_before_them():
    t = Tape()
    t.start()
    for step, loss in ((0, 1.0), (10, 0.5), (20, 0.7)):
        t.add("validation", **held_out(step, loss, loss + 1.01, loss + 2))
        t.add("checkpoint", step=step, path=f"c/{step}", sha256="0")
    view = folded(t.events)
    assert view.ranking is not None and view.ranking.best == 10 and view.ranking.overfits_after == 10
    assert any("held-out loss high noise 1." in line.text for line in view.log)
    best = {"step": 10, "files": ["a_10.safetensors"], "reason": "later ones overfit"}
    t.add("done", step=20, files=["a.safetensors"], seconds=1.0, why="ended early: nothing got better", best=best)
    assert folded(t.events).outcome == "ended early: nothing got better. best: step 10; later ones overfit."
    t.start(resumed_from=10)
    view = folded(t.events)
    assert [m.step for m in view.measured] == [0, 10] and view.outcome == ""
    assert RunView().ranking is None


def test_the_best_is_one_that_can_be_had():
    """Step 10 was removed while step 30 was better; then the run went back behind that."""
    t = Tape()
    t.start()
    for step, loss, left in (
        (10, 0.5, {}),  # as older versions tell it
        (20, 0.9, {"oldest": 10}),
        (30, 0.4, {"oldest": 20, "best": 10}),
        (40, 0.8, {"oldest": 30}),
    ):
        t.add("checkpoint", step=step, path=f"c/{step}", sha256="0", **left)
        t.add("validation", **held_out(step, loss, loss + 1.01))
    assert folded(t.events[:5]).ranking.best == 10 and folded(t.events).ranking.best == 30
    t.add("checkpoint", step=50, path="c/50", sha256="0", oldest=40, best=30)
    t.add("log", level="info", text="", rollback=40, folder="abandoned/attempt_1")
    assert folded(t.events).ranking.best == 30, "its LoRA files stay"
    t.events[-2].data.pop("best")
    assert folded(t.events).ranking.best == 40, "whose files are there, and no other"


def test_of_many_measurements_the_first_the_best_and_the_newest_stay(monkeypatch):
    monkeypatch.setattr(ranking, "MOST_MEASURED", 10)
    t = Tape()
    t.start()
    for step in range(100):
        t.add("validation", **held_out(step, 0.1 if step == 33 else 1.0 + step))
    steps = [m.step for m in folded(t.events).measured]
    assert len(steps) <= 10 and steps == sorted(steps) and {0, 33, 97, 98, 99} <= set(steps)


def test_of_many_measurements_those_of_checkpoints_stay_longest(monkeypatch):
    """Only they can be the best one: the page and the screens name the one that the trainer names."""
    monkeypatch.setattr(ranking, "MOST_MEASURED", 20)
    t = Tape()
    t.start()
    for step in range(100):
        if step and step % 11 == 0:
            t.add("checkpoint", step=step, path=f"checkpoints/{step}", sha256="0")
        t.add("validation", **held_out(step, 0.1 if step in (33, 34) else 1.0 + step))
    view = folded(t.events)
    assert len(view.measured) <= 20 and set(range(11, 100, 11)) <= {m.step for m in view.measured}
    assert view.ranking.best == 33


def random_run(rng: random.Random, events: int) -> list[Event]:
    """Whatever may come, in whatever order."""
    t, step = Tape(), 0
    t.start()
    while len(t.events) < events:
        match rng.choices(
            ["step", "start", "sample", "checkpoint", "log", "finding", "changed", "validation"],
            [60, 1, 3, 3, 3, 1, 1, 3],
        )[0]:
            case "step":
                step += 1
                t.step(step, loss=rng.random())
            case "start":
                step = rng.randint(0, step)
                t.start(resumed_from=step)
            case "sample":
                at = rng.randint(0, step)
                t.add("sample", step=at, path=f"s/{at}/0.mp4", poster=f"s/{at}/0.png", prompt="p", seed=1)
            case "checkpoint":
                t.add("checkpoint", step=step, path=f"c/{step}", sha256="0")
            case "validation":
                t.add("validation", **held_out(step, rng.random(), rng.random()))
            case "log":
                t.add("log", level="info", text=f"{step}")
            case "finding":
                t.add("finding", code="c", severity="warning", field="f", message=f"{step}", fix="")
            case "changed":
                t.add("changed", field="training.steps", old=1, new=rng.randint(0, 99))
    return t.events


def small_bounds(monkeypatch) -> None:
    for name, most in {
        "POINTS": 8,
        "SAMPLES": 6,
        "CHECKPOINTS": 5,
        "FINDINGS": 4,
        "RESUMED": 3,
        "LEFT": 3,
        "CHANGES": 3,
        "MEASURED": 4,
    }.items():
        owner = {"POINTS": loss_points, "MEASURED": ranking}.get(name, run_view)
        monkeypatch.setattr(owner, f"MOST_{name}", most)


@pytest.mark.parametrize("seed", [*range(5), *thorough(*range(5, 20))])
def test_at_every_cut_a_snapshot_and_the_rest_are_the_whole_also_beyond_the_bounds(seed: int, monkeypatch):
    small_bounds(monkeypatch)
    rng = random.Random(seed)
    events = random_run(rng, 300)
    whole = msgspec.msgpack.encode(folded(events))
    for at in rng.sample(range(len(events)), 30):
        view = RunView()
        apply_all(view, events[:at])
        view = msgspec.msgpack.decode(msgspec.msgpack.encode(view), type=RunView)
        for event in events[at:]:
            apply_event(view, event)
        assert msgspec.msgpack.encode(view) == whole


def test_a_view_of_an_older_daemon_is_brought_within_the_bounds(monkeypatch):
    t = Tape()
    t.start()
    for n in range(1, 100):
        t.step(n)
    view = folded(t.events)
    small_bounds(monkeypatch)
    t.step(100)
    t.step(101)
    for event in t.events[-2:]:
        apply_event(view, event)
    assert all(len(points) <= 8 for points in view.losses.values())


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("log", {"level": "info"}),
        ("log", {"level": "info", "text": 7}),
        ("changed", {"field": "training.steps", "old": 1, "new": "many", "step": 1}),
        ("changed", {"field": "training.steps", "old": 1, "new": True, "step": 1}),
        ("finding", {"code": "c", "severity": "error", "message": "no field, no fix"}),
        ("checkpoint", {"step": 2**63, "path": "p", "sha256": ""}),
        ("step", {"step": 1, "expert": "e", "loss": 1.0, "seconds": {"forward": 1.0}, **_STEP}),
        ("step", {"step": 1, "expert": "e", "loss": 1.0, "seconds": {"total": -1.0}, **_STEP}),
        ("step", {"step": 1, "expert": "e", "loss": None, "seconds": {"total": 1.0}, **_STEP}),
        ("done", {"files": ["a"]}),
        ("validation", held_out(1, 0.5) | {"clips": []}),
        ("validation", held_out(1, 0.5) | {"clips": ["a", "b"]}),
        ("validation", held_out(1, *[0.5] * 257)),
    ],
)
def test_what_is_not_as_its_kind_says_changes_nothing(kind: str, data: dict):
    view = folded(whole_run())
    before = msgspec.msgpack.encode(view)
    with pytest.raises((ValueError, KeyError)):
        apply_event(view, Event(seq=1000, time=0.0, run="r", attempt=1, kind=kind, data=data))
    assert msgspec.msgpack.encode(view) == before


def test_what_an_attempt_did_last_is_over_when_the_next_one_begins_or_it_has_said_how_it_ended():
    view, names = RunView(), []
    for seq, attempt, kind, data in (
        (1, 1, "phase", {"name": "sampling", "done": 0, "total": 2, "text": ""}),
        (2, 1, "stopped", {"step": 3, "why": "stopped on request"}),
        (3, 2, "log", {"level": "info", "text": "reading the job"}),
        (4, 2, "phase", {"name": "loading", "done": 0, "total": 2, "text": ""}),
        (5, 3, "log", {"level": "info", "text": "reading the job"}),
    ):
        apply_event(view, Event(seq=seq, time=0.0, run="r", attempt=attempt, kind=kind, data=data))
        names.append(view.phase.name)
    assert names == ["sampling", "ending", "waiting", "loading", "waiting"]


@pytest.mark.parametrize(
    "turns",
    [None, ToCome(part=(1, 2), switch_every=10, prompts=2, first=True)],
    ids=["no word of turns", "turns of ten"],
)
@pytest.mark.parametrize("piece", [1, 7, 1000])
@pytest.mark.parametrize("read", [quick_lines, alike_lines])
def test_lines_at_once_add_up_to_the_same_as_one_by_one(read, piece: int, turns: ToCome | None, monkeypatch):
    monkeypatch.setattr(loss_points, "MOST_POINTS", 8)
    events = [
        Event(
            seq=seq,
            time=seq + seq % 3 / 7 - 40 * (seq == 77),  # the clock was set back once
            run="r",
            attempt=1,
            kind="checkpoint" if seq % 50 == 0 else "step",
            data={"step": seq, "path": "p"} if seq % 50 == 0 else step_data(seq),
        )
        for seq in range(1, 500)
    ]
    one_by_one, at_once = RunView(to_come=turns), RunView(to_come=turns)
    for event in events:
        apply_event(one_by_one, event)
    lines = read(b"\n".join(map(msgspec.json.encode, events)))
    for at in range(0, len(lines), piece):
        apply_lines(at_once, lines[at : at + piece])
    assert at_once == one_by_one and len(at_once.thinned) == 3


def step_data(step: int) -> dict:
    return {
        "step": step,
        "expert": ("high_noise", "low_noise", "third")[step // 10 % 3],
        "loss": 1 / step,
        **dict.fromkeys(("lr", "grad_norm", "timestep", "vram_gib", "ram_gib"), float(step)),
        "seconds": {"total": step % 7 + 1.0},
    }

"""The branch that led to the present weights, however often a run was taken up again."""

from presets.runs.events import Event
from presets.runs.history import History, Setting


def history(*told: tuple[str, dict]) -> History:
    out = History()
    for seq, (kind, data) in enumerate(told, 1):
        out.add(Event(seq=seq, time=0.0, run="r", attempt=1, kind=kind, data=data))
    return out


def started(step: int):
    return "started", {"resumed_from": step}


def step(n: int):
    return "step", {"step": n}


def lr(at: int, new: float, old: float = 1.0):
    return "changed", {"field": "training.lr", "old": old, "new": new, "step": at}


def bad(n: int):
    return "finding", {"code": "non-finite", "step": n}


def values(found: list[Setting]) -> list[tuple[int, float]]:
    return [(s.step, s.new) for s in found]


def test_what_was_set_is_set_again_however_often_the_run_is_killed_before_it_gets_there():
    told = [started(0), *map(step, range(1, 8)), lr(7, 0.5), step(8), started(4), step(5), started(4), step(5), step(6)]
    assert values(history(*told).ahead(4)) == [(7, 0.5)]
    assert history(*told).ahead(8) == []
    again = history(*told, step(7), lr(7, 0.5), step(8), started(4))
    assert values(again.ahead(4)) == [(7, 0.5)], "told again, it is the same wish"


def test_a_newer_wish_replaces_what_was_to_come():
    assert values(history(started(0), lr(3, 0.5), lr(7, 0.2), started(2), lr(5, 0.9)).ahead(2)) == [(3, 0.5), (5, 0.9)]
    assert values(history(started(0), lr(3, 0.5), lr(7, 0.2), started(2), lr(3, 0.5)).ahead(2)) == [(3, 0.5), (7, 0.2)]
    assert values(history(started(0), lr(3, 0.5), lr(3, 0.2)).ahead(0)) == [(3, 0.2)]


def test_what_cannot_be_set_while_it_trains_is_not_set_again():
    """It was told because a resume began with another job file; the next resume begins with what its own file says."""
    told = [
        started(0),
        step(1),
        step(2),
        started(2),
        ("changed", {"field": "training.loss", "old": "mse", "new": "mae", "step": 2}),
        lr(2, 0.5),
    ]
    assert [s.field for s in history(*told).ahead(2)] == ["training.lr"]


def test_a_rollback_forgets_what_was_set_after_its_step_and_is_known_until_its_attempt_starts():
    told = [started(0), lr(3, 0.5), lr(7, 0.2), ("log", {"text": "", "rollback": 4})]
    assert history(*told).rolling_back == 4 and values(history(*told).ahead(0)) == [(3, 0.5)]
    assert history(*told, started(4)).rolling_back is None


def test_steps_beyond_the_point_of_return_no_longer_count():
    h = history(
        started(0),
        step(1),
        ("checkpoint", {"step": 1, "path": "a"}),
        ("sample", {"step": 1, "path": "s1"}),
        bad(2),
        ("checkpoint", {"step": 2, "path": "b"}),
        lr(2, 0.5),
        step(3),
        ("sample", {"step": 3, "path": "s3"}),
        ("finding", {"code": "speed-factor", "message": "m"}),
        bad(4),
        started(2),
    )
    assert (h.checkpoints, set(h.samples), h.skipped) == ({1: "a", 2: "b"}, {"s1"}, {2})
    assert [(e.kind, e.data.get("step")) for e in h.events] == [
        ("step", 1),
        ("checkpoint", 1),
        ("sample", 1),
        ("finding", 2),
        ("checkpoint", 2),
        ("finding", None),
    ]


def test_held_out_losses_beyond_the_point_of_return_no_longer_count():
    one = {"loss": 0.5, "error": None, "edges": [0, 1], "bins": [0.5], "clips": [0.5]}
    at = [
        ("validation", {"step": s, "of": "x", "clips": ["a"], "experts": {"low_noise": one}, "seconds": 1.0})
        for s in (0, 2, 4)
    ]
    told = history(started(0), *at, started(2))
    assert {s: m.losses for s, m in told.measured.items()} == {0: {"low_noise": [0.5]}, 2: {"low_noise": [0.5]}}


def test_why_a_measurement_failed_is_known_until_a_resume_goes_back_before_it():
    failed = [
        ("finding", {"code": "validation-failed", "step": s, "message": "m", "cause": why})
        for s, why in ((0, "disk"), (4, "memory"))
    ]
    told = history(started(0), *failed)
    assert told.unmeasured == {0: "disk", 4: "memory"}
    assert history(started(0), *failed, started(2)).unmeasured == {0: "disk"}


def test_skipped_steps_are_counted_across_attempts():
    told = [started(0), step(1), bad(2), bad(3), started(3)]
    assert history(*told).bad_in_a_row(3) == 2 and history(*told, bad(4)).bad_in_a_row(4) == 3
    assert history(*told, step(4), bad(5)).bad_in_a_row(5) == 1


def test_forgetting_lets_go_of_events_and_of_nothing_else():
    h = history(started(0), step(1), bad(2))
    h.forget()
    h.add(Event(seq=9, time=0.0, run="r", attempt=1, kind="step", data={"step": 3}))
    assert h.events == [] and h.skipped == {2}

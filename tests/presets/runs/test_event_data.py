"""Lines read quickly say what the events of them say, or are left to be read slowly."""

import random

import msgspec
import pytest

from presets.runs.event_data import data_of, quick_line
from presets.runs.events import Event, decode_event
from presets.runs.run_view import RunView, apply_all, apply_event
from tests.presets.runs.test_run_view import random_run, whole_run

LOSSES = {"loss": 0.1, "error": None, "edges": [0, 1], "bins": [0.1], "clips": [0.1, 0.2]}


def line(event: Event) -> bytes:
    return msgspec.json.encode(event)


def test_both_ways_give_the_same_view():
    events = [*whole_run(), *random_run(random.Random(3), 500)]
    for number, event in enumerate(events, start=1):
        event.seq = number
    slow, quick, passed = RunView(), RunView(), 0
    for event in events:
        apply_event(slow, event)
        try:
            apply_all(quick, [quick_line(line(event))])
            passed += 1
        except msgspec.ValidationError:
            apply_all(quick, [event])
        assert msgspec.msgpack.encode(slow) == msgspec.msgpack.encode(quick)
    assert passed > 0.8 * len(events), "the frequent kinds are read quickly"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"clips":["a"]', b'"clips":["a"],"more":"\xff"'),  # nobody would look into it
        (b'"clips":["a"]', b'"clips":["a"],"more":' + b"9" * 40),
        (b'"clips":["a"]', b'"clips":[' + b"9" * 40 + b"]"),
        (b'"clips":["a"]', b'"clips":[{"x":1}]'),
        (b'"step":1,', b'"step":' + b"9" * 40 + b","),
        (b'"seq":2', b'"seq":' + b"9" * 40),
        (b'"kind":"step"', b'"kind":"step","extra":1'),
        (b'"total":2.0', b'"total":-2.0'),
    ],
)
def test_what_may_hide_something_is_not_read_quickly(old: bytes, new: bytes):
    step = next(line(e) for e in whole_run() if e.kind == "step").replace(b'"seq":4', b'"seq":2')
    assert old in step
    quick_line(step)
    with pytest.raises(msgspec.DecodeError):
        quick_line(step.replace(old, new))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("step", {"loss": 1e308}),
        ("step", {"seconds": {"total": 1e308}}),
        ("validation", {"experts": {"high_noise": LOSSES | {"clips": [1e308, 1e308]}}}),
        ("validation", {"experts": {"high_noise": LOSSES | {"bins": [-1e308]}}}),
    ],
)
def test_what_no_sum_would_hold_is_no_event(kind: str, changes: dict):
    """It would end the fold, and with it whoever shows the run."""
    step = next(e for e in whole_run() if e.kind == "step")
    held_out = {"step": 1, "of": "x", "clips": ["a", "b"], "experts": {"high_noise": LOSSES}, "seconds": 1.0}
    event = msgspec.structs.replace(step, kind=kind, data=step.data if kind == "step" else held_out)
    view = RunView()
    apply_event(view, event)
    event = msgspec.structs.replace(event, seq=event.seq + 1, data=event.data | changes)
    with pytest.raises(msgspec.ValidationError):
        apply_event(view, event)
    with pytest.raises(msgspec.ValidationError):
        quick_line(line(event))


def test_keys_of_a_newer_version_are_passed_over():
    event = decode_event(line(whole_run()[3]))
    event.data["new"] = {"deep": [1]}
    assert data_of(event) == data_of(whole_run()[3])

"""Steps that are alike, read for a fold, add up to what they do one by one; others are read as ever, or not at all."""

import msgspec
import pytest

from presets.runs.alike_steps import alike_lines
from presets.runs.event_data import StepLine, quick_lines
from presets.runs.events import decode_event
from presets.runs.run_view import RunView, apply_event, apply_lines


def step(seq: int, seconds: str = '"data":0.5,"total":2', more: str = ',"parts":{"flow":0.5},"clips":["ä",3]') -> bytes:
    data = f'"step":{seq},"expert":"e{seq % 2}","loss":{1 / seq},"lr":1e-4,"grad_norm":0,"timestep":1,"vram_gib":0'
    data = f'{data},"ram_gib":0,"seconds":{{{seconds}}}{more}'
    return f'{{"v":1,"seq":{seq},"time":{seq / 3},"run":"r","attempt":1,"kind":"step","data":{{{data}}}}}\n'.encode()


def checkpoint(seq: int) -> bytes:
    head = f'{{"v":1,"seq":{seq},"time":{seq},"run":"r","attempt":1,"kind":"checkpoint"'
    return f'{head},"data":{{"step":1,"path":"p"}}}}\n'.encode()


def shared(*ranks: int, at_once: int) -> str:
    told = ",".join(f'{{"rank":{rank},"seconds":{rank + 1.5},"vram_gib":9}}' for rank in ranks)
    return f',"parts":{{"flow":0.5}},"clips":[],"ranks":[{told}],"at_once":{at_once}'


MANY = ",".join(f'"part{i}":1' for i in range(99))


@pytest.mark.parametrize(
    ("alike", "lines"),
    [
        (True, [step(1), step(2), step(3)]),
        (True, [step(1), checkpoint(2), step(3), checkpoint(4), checkpoint(5)]),
        (True, [step(1), step(2, '"total":3,"data":1')]),  # in another order: the last one's is shown
        (True, [step(1, more=""), step(2, more="")]),
        (True, [step(1, more=',"parts":{}'), step(2, more=',"parts":{}')]),
        (True, [step(1, '"class":1,"__init__":2,"total":3'), step(2, '"class":3,"__init__":1,"total":2')]),
        # by several processes, either expert's
        (True, [step(1, more=shared(0, at_once=2)), step(2, more=shared(1, at_once=2))]),
        (True, [step(1, more=shared(0, 1, at_once=1)), step(2, more=shared(0, 1, at_once=1))]),
        # whatever stands there
        (True, [step(n, more=shared(n, at_once=at_once)) for n, at_once in enumerate([1, 2, 0, -3, 2], 1)]),
        (True, [step(n, more=shared(n, at_once=at_once)) for n, at_once in enumerate([2, 0, -3, 1], 1)]),
        (False, [step(1), step(2, more=shared(0, 1, at_once=1))]),  # one process before
        (False, [step(1), step(2, more="")]),
        (False, [step(1), step(2, '"total":2')]),
        (False, [step(1, '"total":2'), step(2)]),
        (False, [step(1, f'"total":2,{MANY}'), step(2, f'"total":1,{MANY}')]),
        (False, [step(1, '"total":2,"a b":1,"\\u0000":1'), step(2, '"total":1,"a b":1,"\\u0000":1')]),
        (False, [step(1), *map(checkpoint, range(2, 9))]),
    ],
)
def test_they_add_up_to_the_same(alike: bool, lines: list[bytes]):
    read = alike_lines(b"".join(lines))
    assert all(type(line) is not StepLine for line in read) == alike
    one_by_one, at_once = RunView(), RunView()
    for line in lines:
        apply_event(one_by_one, decode_event(line))
    apply_lines(at_once, read)
    assert msgspec.msgpack.encode(at_once) == msgspec.msgpack.encode(one_by_one)


def test_what_each_process_told_last_stays_and_experts_at_once_halve_the_pace():
    view = RunView()
    apply_lines(view, quick_lines(step(1, more=shared(0, at_once=2)) + step(2, more=shared(1, at_once=2))))
    assert {rank: (seen.expert, seen.seconds) for rank, seen in view.ranks.items()} == {0: ("e1", 1.5), 1: ("e0", 2.5)}
    assert view.recent == [1.0, 1.0] and view.seconds["total"] == 2


def test_of_numbers_without_end_few_are_kept():
    view = RunView()
    apply_event(view, decode_event(step(1, more=shared(-1, 0, 1023, 1024, 2**62, at_once=1))))
    apply_lines(view, quick_lines(b"".join(step(n, more=shared(5, 2000 * n, at_once=1)) for n in range(2, 99))))
    assert list(view.ranks) == [0, 1023, 5]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"data":0.5', b'"data":-0.5'),
        (b'"data":0.5', b'"data":"0.5"'),
        (b'"total":2', b'"total":null'),
        (b',"total":2', b""),
        (b'"flow":0.5', b'"flow":[]'),
        (b'"flow":0.5', b'"flow":0.5,"\xff":1'),
        (b'"clips":["\xc3\xa4",3]', b'"clips":["\xff"]'),
        (b'"clips":["\xc3\xa4",3]', b'"clips":[{}]'),
        (b'"clips":["\xc3\xa4",3]', b'"more":"\xff"'),
        (b'"vram_gib":0,', b""),
        (b'"step":', b'"step":' + b"9" * 40),
        (b'"kind":"step"', b'"kind":"step","extra":1'),
        (b"}\n", b"\n"),
    ],
)
@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_what_cannot_be_read_quickly_is_not_read_as_alike(damaged: int, old: bytes, new: bytes):
    lines = [step(1), step(2), step(3)]
    assert old in lines[damaged]
    lines[damaged] = lines[damaged].replace(old, new)
    for read in quick_lines, alike_lines:
        with pytest.raises((ValueError, KeyError)):
            read(b"".join(lines))

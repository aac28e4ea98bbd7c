"""What doctor says of machines that CI has not."""

from importlib.metadata import PackageNotFoundError
from itertools import islice
from typing import NoReturn

import pytest

from tests.presets.making import gpu, machine
from wanlora_tui.commands import doctor


def absent(name: str) -> NoReturn:
    raise PackageNotFoundError(name)


@pytest.mark.parametrize(("capability", "told"), [((9, 0), True), ((10, 0), True), ((8, 9), False), ((12, 0), False)])
def test_a_card_that_flash_attn_4_was_written_for_is_offered_it(monkeypatch, capability, told):
    monkeypatch.setattr(doctor, "version", absent)
    lines = list(doctor._attention(machine(gpu(capability=capability))))
    assert len(lines) == told
    for line in lines:
        assert line.level == "ok", "a wish, not a fault"
        assert "pip install" in line.fix and "'flash-attn-4>=" in line.fix and "'nvidia-cutlass-dsl[cu13]>=" in line.fix


def test_what_is_installed_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "version", {"flash-attn-4": "4.0.0"}.__getitem__)
    (line,) = doctor._attention(machine(gpu()))
    assert "flash-attn-4 4.0.0" in line.text and not line.fix


def test_it_is_told_after_the_cards(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "read_machine", lambda path: machine(gpu()))
    monkeypatch.setattr(doctor, "version", absent)
    assert [line.subject for line in islice(doctor.diagnose(tmp_path), 3)] == ["Python", "GPU", "Attention"]

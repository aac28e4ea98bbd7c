"""Faults on purpose strike the rank that they name, and no other."""

from collections.abc import Iterator

import pytest

from engine.system import fault_injection


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    fault_injection.arm([])


@pytest.mark.parametrize(("rank", "strikes"), [("1", True), ("0", False), ("11", False), ("", False), ("node7", False)])
def test_a_fault_of_one_rank(monkeypatch: pytest.MonkeyPatch, rank: str, strikes: bool):
    monkeypatch.setenv("RANK", rank)  # a scheduler's may be no number
    fault_injection.arm(["raise:forward:4@1"])
    assert fault_injection.due("forward", 4) == strikes

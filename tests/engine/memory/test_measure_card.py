"""What the card's own int8 kernels must show before a plan counts on them."""

import pytest
import torch

from engine.memory import measure_card
from engine.wan.int8_linear import Int8Product

CPU = torch.device("cpu")


def test_a_linear_that_agrees_with_plain_torch_is_right_and_another_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure_card._int8_is_right(CPU)
    calls = []

    def sometimes_wrong(x, packed, bias, precision):  # type: ignore[no-untyped-def]
        calls.append(precision)
        return Int8Product.apply(x, *packed, bias, 256) * (1.02 if len(calls) == 1 else 1.0)

    monkeypatch.setattr(measure_card, "frozen_linear", sometimes_wrong)
    assert not measure_card._int8_is_right(CPU) and calls == ["int8", "int8"]
    monkeypatch.setattr(measure_card, "_int8_rate", lambda device: 1e12)
    assert measure_card._int8(CPU) == 1e12 and len(calls) == 4, "and neither is wrong any more"


def test_kernels_that_do_not_run_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no CUDA here to wait for."""
    monkeypatch.setattr(measure_card, "SIDE", 64)
    if torch.cuda.is_available():
        assert measure_card._int8(torch.device("cuda")) > 0
    else:
        assert measure_card._int8(CPU) == 0.0


def test_too_little_memory_at_the_moment_says_nothing_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(device: torch.device) -> bool:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(measure_card, "_int8_is_right", short)
    with pytest.raises(torch.OutOfMemoryError):
        measure_card._int8(CPU)


def test_rates_of_before_the_kernels_changed_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = measure_card.software()
    monkeypatch.setattr(measure_card, "INT8_KERNELS", "another")
    assert measure_card.software() != before

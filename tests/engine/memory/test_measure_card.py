"""What the card's own int8 kernels must show before a plan counts on them."""

from pathlib import Path

import msgspec
import pytest
import torch

from engine.memory import measure_card
from engine.wan import attention
from engine.wan.attention import Attention, KernelBenchmark
from engine.wan.int8_linear import Int8Product
from presets.machine.gpus import Gpu
from presets.planner.measured_rates import Rates
from tests.helpers.facts import gpu, rates

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


def test_a_card_is_measured_once_and_that_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    card, told, measured = gpu(80), list[str](), 0

    def measure(of: Gpu, device: torch.device) -> Rates:
        nonlocal measured
        measured += 1
        return msgspec.structs.replace(rates(), uuid=of.uuid, software=measure_card.software(), driver=of.driver)

    monkeypatch.setattr(measure_card, "measure_card", measure)
    for _ in range(2):
        measure_card.measured_rates(card, CPU, lambda done, total, text: told.append(text))
    assert measured == 1 and told == ["measuring this card, once"]


@pytest.mark.parametrize("kernels", ["INT8_KERNELS", "ATTENTION_KERNELS", "CONVOLUTION_KERNELS"])
def test_rates_of_before_the_kernels_changed_are_measured_again(monkeypatch: pytest.MonkeyPatch, kernels: str) -> None:
    before = measure_card.software()
    monkeypatch.setattr(measure_card, kernels, "another")
    assert measure_card.software() != before


def test_the_attention_to_the_text_has_its_own_fastest_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*_: object, keys: int | None = None, **size: object) -> KernelBenchmark:
        seconds = {"cudnn": 2.0, "flash": 1.0 if keys == attention.TEXT_TOKENS else 3.0}
        return KernelBenchmark(seconds, {"triton-large": seconds["flash"], "triton-small": seconds["cudnn"]}, {})

    monkeypatch.setattr(attention, "benchmark_kernels", measured)
    rates = measure_card._attention(CPU, deterministic=True)
    assert (rates.forward_kernel, rates.backward_kernel) == ("cudnn", "triton-small")
    assert (rates.text_forward_kernel, rates.text_backward_kernel) == ("flash", "triton-large")
    chosen, why = attention.choose(
        torch.device("cuda"), tokens=99, heads=2, width=16, dtype=torch.bfloat16, deterministic=True
    )
    assert chosen == Attention("cudnn", "triton-small", True, "flash", "triton-large")
    assert chosen.text == (
        "cudnn forward, triton-small backward, to the text flash forward, triton-large backward, in a fixed order"
    )
    assert why.startswith("at 99 tokens: forward cudnn 2000.0 ms") and "; to 512 tokens of text: forward" in why

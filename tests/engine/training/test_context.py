"""What an expert has learnt is copied into memory that is taken once."""

import pytest
import torch

from engine.system.host_copy import HostCopy
from engine.training.context import Learner, most_copied
from engine.training.optimizer import Ema, build_optimizer
from presets.job.schema import TrainingPanel


def of_bitsandbytes(p: torch.Tensor) -> dict[str, object]:
    """What AdamW8bit keeps for a tensor; it runs on no CPU."""
    scales, table = torch.zeros(-(-p.numel() // 256)), torch.zeros(256)
    moments = {f"state{n}": torch.zeros(p.shape, dtype=torch.uint8) for n in (1, 2)}
    tables = {f"{name}{n}": value.clone() for name, value in {"absmax": scales, "qmap": table}.items() for n in (1, 2)}
    return {"step": 1, **moments, **tables}


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adafactor", "prodigy"])
def test_the_copy_before_the_first_step_takes_the_memory_for_those_behind_it(optimizer: str, ema: bool):
    training = TrainingPanel(optimizer=optimizer, ema=ema)  # type: ignore[arg-type]
    parameters = {name: torch.nn.Parameter(torch.randn(16, 1001)) for name in "abc"}
    built = build_optimizer(TrainingPanel() if optimizer == "adamw8bit" else training, list(parameters.values()))
    copy = HostCopy(pinned=False, least=most_copied(training, parameters))
    learner = Learner(parameters, built, Ema(0.9, parameters) if ema else None, copy)
    first = learner.copied()
    for p in parameters.values():
        p.grad = torch.ones_like(p)
    if optimizer == "adamw8bit":
        built.state = {p: of_bitsandbytes(p) for p in parameters.values()}  # type: ignore[assignment]
    else:
        built.step()
    second = learner.copied()
    assert second.flat.numel() > first.flat.numel()
    assert second.flat.data_ptr() == first.flat.data_ptr()

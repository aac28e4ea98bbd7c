from typing import Any

import pytest
import torch

from engine.system.host_copy import HostCopy
from engine.training.context import Learner, most_bytes
from engine.training.optimizer import Ema, build_optimizer
from presets.job.schema import TrainingPanel


def optimizer_of(training: TrainingPanel, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if training.optimizer == "adamw8bit":  # ours wants the card; the package itself also runs without
        import bitsandbytes

        of_package: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(parameters, lr=1e-3)
        return of_package
    return build_optimizer(training, parameters)


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("kind", ["adamw", "adafactor", "prodigy", "adamw8bit"])
def test_what_later_copies_take_is_known_before_the_first_step(kind: Any, ema: bool) -> None:
    """Else the memory of the second one would be made while a card waits."""
    training = TrainingPanel(optimizer=kind, ema=ema)
    shapes = [(16, 320), (320, 16), (4, 320), (832, 4), (3, 5)]  # large and small for 8 bits, one that is not aligned
    parameters = {str(i): torch.nn.Parameter(torch.randn(shape)) for i, shape in enumerate(shapes)}
    optimizer = optimizer_of(training, list(parameters.values()))
    average = Ema(0.9, parameters) if ema else None
    most = most_bytes(training, parameters)
    learner = Learner(parameters, optimizer, average, HostCopy(pinned=False, least=most))
    first = learner.copied().flat
    for p in parameters.values():
        p.grad = torch.randn_like(p)
    optimizer.step()
    later = learner.copied().flat
    assert later.data_ptr() == first.data_ptr()
    assert 0 <= most - later.numel() < 16 * 9 * len(shapes), "and it is not much more"

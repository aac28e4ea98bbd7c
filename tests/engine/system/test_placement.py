import pytest
import torch

from engine.system.placement import Placement


def test_what_cannot_be_locked_is_sent_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of CUDA would be taken for one of a card that is full, and end in a smaller plan."""
    asked = []

    def refused(tensor: torch.Tensor) -> torch.Tensor:
        asked.append(tensor)
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refused)
    sent = torch.arange(6.0)
    for pinned, times in ((False, 0), (True, 1)):
        placement = Placement.on(torch.device("cpu"), pinned=pinned)
        assert torch.equal(placement.send(sent), sent) and len(asked) == times

"""A rank that fails in the midst of what it shares with others: they wait for tokens that do not come, so all end.
Ranks that die are engine.parallel.lost_ranks's."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from engine.parallel.team import Loss, Team
from engine.system.device import memory_errors
from engine.system.pinned_memory import HostMemoryRefused
from presets.machine.shell import without_secrets
from presets.planner.plan import LESS_MEMORY


class ClipLost(Exception):
    """This rank has failed in the midst of a clip or preview that it shares: the others of it wait for what does not
    come, so all end."""


@contextmanager
def whole_or_lost(team: Team, what: Literal["clip", "preview", "held-out clip"]) -> Iterator[None]:
    """Inside, the others wait for this rank. Whatever is raised there ends all of them; raises ClipLost."""
    try:
        with memory_errors():
            yield
    except Exception as e:
        loss = Loss(f"{type(e).__name__}: {e}", "", user=False)
        if isinstance(e, torch.OutOfMemoryError | HostMemoryRefused):
            each = team.part.each
            text = f"out of memory in the midst of a {what} that {each} GPUs share, where no smaller plan can be taken"
            loss = Loss(text, LESS_MEMORY, user=True)
        else:
            print(without_secrets(traceback.format_exc()), file=sys.stderr)
        raise clip_lost(team, loss) from e


def clip_lost(team: Team, loss: Loss) -> ClipLost:
    """End this rank where it is, and the others with it."""
    team.give_up(loss)
    return ClipLost(loss.cause)

"""What several processes that train one run have last told of themselves, by their number."""

from msgspec import Struct

from presets.runs.event_data import StepData

MOST_RANKS = 1024  # of higher numbers nothing is kept


class RankSeen(Struct):
    """What one of them has told last."""

    expert: str = ""
    seconds: float = 0.0  # of its last step, without waiting for the others
    vram_gib: float = 0.0


def keep_ranks(ranks: dict[int, RankSeen], step: StepData) -> None:
    """What the next step brings."""
    for one in step.ranks:
        if 0 <= one.rank < MOST_RANKS:
            ranks[one.rank] = RankSeen(step.expert, one.seconds, one.vram_gib)

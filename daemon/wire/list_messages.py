"""Messages about the list of jobs: priorities, places, holding, removing, renaming. In each one `job` names a job as in
daemon.wire.protocol, which has all others."""

from typing import Literal

from msgspec import Struct

from presets.runs.time_left import PlannedTime as PlannedTime

HIGHEST_PRIORITY = 1_000_000  # and below zero as far

Place = Literal["first", "last", "before", "after"]


class SetPriority(Struct, tag=True):
    """Give a job another priority."""

    job: str
    priority: int  # higher ones run first; 0 is usual


class Move(Struct, tag=True):
    """Give a queued job another place. It takes the priority that the place needs."""

    job: str
    place: Place  # among all queued jobs
    other: str = ""  # the job that it goes before or after


class Hold(Struct, tag=True):
    """Keep a queued job from starting; those behind it go on."""

    job: str


class Release(Struct, tag=True):
    """Let a held job go, also when one that it should come after did not get done."""

    job: str
    anyway: bool = False  # nor does it wait for the others that it comes after


class Remove(Struct, tag=True):
    """Forget a queued or ended job; its run folder stays. The answer is its last record."""

    job: str


class Rename(Struct, tag=True):
    """Call a job otherwise: wholly before it begins, in the list alone after that."""

    job: str
    name: str  # the new one

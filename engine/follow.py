"""A rank behind the first: it loads what the first has loaded, then takes the steps that the first orders. It writes
nothing; what it has to say it tells the first."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import torch

from engine.executor.shared_passes import shares_passes, take_part
from engine.parallel.orders import End, Measure, Pass, Prepare, Show, Steps
from engine.parallel.parts import Rank, parts_of
from engine.parallel.quiet import QuietControl, QuietLog
from engine.parallel.refusals import Refused
from engine.parallel.team import Loss, Team
from engine.training.context import Run, averaged_weights
from engine.training.placement import settle
from engine.training.prepare import prepare, require_one_kind
from engine.training.restore import restore
from engine.training.train_step import take_step
from engine.training.trainer import take_turns
from engine.training.validation import take_part as take_part_in_validation
from presets.errors import UserError
from presets.facts.facts import Facts
from presets.job.schema import Job
from presets.machine.shell import without_secrets
from presets.text import sentences

FAILED = 1


def follow(job: Job, rank: Rank, device: torch.device, *, workers: int, narrowed: Callable[[Facts], Facts]) -> int:
    """Work as a rank other than the first until the first says that the attempt is over; returns the exit code. `job`
    is the file's, and `narrowed` gives the facts as far as they are of this rank's GPU."""
    try:
        team = Team(rank, parts_of(job, rank.world), device, _end)
    except Refused as e:
        print(f"wanlora: {e}", file=sys.stderr)
        return e.code
    try:
        return _work(team, device, workers, narrowed)
    except UserError as e:
        loss = Loss(f"{e.where}: {e.what}" if e.where else e.what, e.fix, user=True)
    except Exception as e:
        print(without_secrets(traceback.format_exc()), file=sys.stderr)
        loss = Loss(f"{type(e).__name__}: {e}", "", user=False)
    team.confess(loss)
    return FAILED


def _work(team: Team, device: torch.device, workers: int, narrowed: Callable[[Facts], Facts]) -> int:
    require_one_kind(team, device)
    order = team.next_order()
    if isinstance(order, End):  # before anything was loaded
        return order.code
    assert isinstance(order, Prepare)
    control = QuietControl(order.folder, tell=lambda finding: None)
    control.listen()
    control.polled = team.signs.give
    run = prepare(
        order.begin,
        narrowed(order.facts),
        order.folder,
        QuietLog(),
        control,
        device=device,
        workers=workers,
        vram=order.vram,
        team=team,
        like=order.running,
    )
    with run.loader:
        restore(run)
        team.ready(run.log)
        with suppress(UserError):  # the first has met it, too, and is about to end all
            settle(run, team)
        while not isinstance(order := team.next_order(), End):
            match order:
                case Steps():
                    run.job = order.job
                    _take(run, team, order)
                case Show():
                    if team.part.place == 0 and team.part.expert != team.parts[0].expert:
                        (learner,) = run.learners.values()
                        copied = learner.copied()
                        learner.copy.wait()
                        team.send(copied)
                case Measure():
                    run.job = order.job
                    with _known_to_first(team):
                        take_part_in_validation(run, order.step)
                case Pass():
                    if run.split is not None and shares_passes(team):
                        with averaged_weights(run, order.averaged):
                            take_part(run.experts, run.accelerators, team, run.split, order)
                case _:
                    raise AssertionError(order)
        return order.code


def _take(run: Run, team: Team, order: Steps) -> None:
    with _known_to_first(team):
        if team.part.expert is not None:
            take_turns(run, team, order, lambda taken: None)
            return
        if order.settle:
            settle(run, team)
        for step in range(order.first, order.end):
            take_step(run, step)


@contextmanager
def _known_to_first(team: Team) -> Iterator[None]:
    """A UserError inside is the first rank's, too, and it knows what to do."""
    try:
        yield
    except UserError as e:
        print(f"rank {team.rank.number}: {without_secrets(str(e))}", file=sys.stderr)


def _end(loss: Loss) -> NoReturn:
    """Another rank has died: nothing here is worth saving."""
    print(f"wanlora: {without_secrets(sentences(loss.cause))}", file=sys.stderr, flush=True)
    os._exit(FAILED)

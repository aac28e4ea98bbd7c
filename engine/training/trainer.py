"""The training loop, top to bottom. Between two optimizer steps the state is whole: there it is saved, shown in
previews and changed by commands.

What came before step 1 is engine.training.prepare's; how a batch becomes gradients, engine.training.objective's.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from engine.parallel.orders import Steps
from engine.parallel.quiet import take_warnings, warn
from engine.parallel.team import RankFailed, Team
from engine.runfolder import checkpoint
from engine.runfolder.control import StopRequested
from engine.runfolder.disk_full import until_events_are_written
from engine.runfolder.resume import set_aside_later_files
from engine.system import fault_injection
from engine.system.durable_files import sync_folders
from engine.system.pinned_memory import HostMemoryRefused
from engine.training.commands import apply_commands
from engine.training.context import Run
from engine.training.placement import settle
from engine.training.previews import make_previews, previews_made, verify_previews
from engine.training.reporting import announce, report_non_finite
from engine.training.restore import restore
from engine.training.saved_loras import best_of, rewrite_torn_loras, save_final
from engine.training.saving import check_disk_room, finish_interrupted_save, save_all
from engine.training.train_step import StepTaken, take_step
from engine.training.validation import ended_early, validate, validation_due
from presets.errors import UserError
from presets.job.expert_schedule import expert_at
from presets.job.preview_settings import previews_due
from presets.runs.spent import TRAINING


def train(run: Run) -> bool:
    """Run the loop from where the attempt begins; False when it was stopped. Raises UserError; the newest checkpoint is
    whole whatever happens."""
    began = time.perf_counter()
    unlike = restore(run)
    set_aside_later_files(run.begin, run.folder, run.log)
    # before the event that the attempt has started: after it nobody moves those files away again
    sync_folders(run.folder)
    announce(run, unlike)
    step = run.begin.step
    try:
        make_whole(run)
        while True:
            until_events_are_written(run.log, run.control)
            apply_commands(run, step)
            # steps may have been cut below what is done
            if step >= run.job.training.steps or ended_early(run):
                done = finish(run, step, began)
                if done is None:
                    continue
                return done
            taken = advance(run, step)
            if not taken:
                return stop(run, step)
            step += taken
            if step % run.job.save.every == 0:
                save_all(run, step)
            with saved_if_it_fails(run, step):
                if validation_due(run, step):
                    validate(run, step)
                if previews_due(run.job, step) and step < run.job.training.steps:
                    make_previews(run, step)
    except StopRequested:
        return stop_unsaved(run, step)


def make_whole(run: Run) -> None:
    """Before the first step of the attempt: prove that checkpoints can be written, or finish what the last attempt left
    undone; then measure the held-out loss and make the previews that are due."""
    step = run.begin.step
    run.loader.prefetch(step * run.job.training.gradient_accumulation)  # decodes while the first previews are made
    if step == 0:
        check_disk_room(run)  # a full disk or a read-only folder shows itself now, not after hours
    else:
        finish_interrupted_save(run)
    rewrite_torn_loras(run)
    if validation_due(run, step) and step not in run.log.history.measured:
        validate(run, step)
    torn = verify_previews(run)
    if (torn or previews_due(run.job, step)) and not previews_made(run, step):
        make_previews(run, step, missing=True)


def advance(run: Run, step: int) -> int:
    """Take the next step, the one from `step` on; returns how many were taken. 0 when a stop came first: then nothing
    has changed."""
    say_that_steps_go_on(run, step)
    team = run.team
    if team is None:
        return int(optimizer_step(run, step))
    if run.control.stop_requested():
        return 0
    if team.part.expert is not None:
        return advance_apart(run, team, step)
    with team.at_work(order := Steps(step, step + 1, run.job, settle=run.planning.downs != run.settled)):
        if order.settle:
            with saved_if_it_fails(run, step):
                settle(run, team)
        return int(optimizer_step(run, step))


def say_that_steps_go_on(run: Run, step: int) -> None:
    """After anything else: until the step is done, minutes later where it compiles, the last word would be of that."""
    if run.log.doing != TRAINING:
        compiles = step == run.begin.step and run.planning.plan.compiled
        run.log.phase(TRAINING, step, run.job.training.steps, "the first step, compiling" if compiles else "")


def advance_apart(run: Run, team: Team, step: int) -> int:
    """The next turn of each expert, both at once. Events come in the order of the steps: a step's is written as soon as
    those of all steps before it are."""
    end = end_of_turns(run, step)
    told = StepsInOrder(run, step)
    order = Steps(step, end, run.job, settle=run.planning.downs != run.settled)
    with saved_if_it_fails(run, step), team.at_work(order):
        everyone = take_turns(run, team, order, told.tell)
    run.apart = True
    run.control.why = run.control.why or next((one.stop for one in everyone if one.stop), "")
    for part, one in zip(team.parts, everyone, strict=True):
        warn(run.log, part.ranks[part.place], one.warnings)
    reached = reached_by(step, everyone)
    for part, one in zip(team.parts, everyone, strict=True):
        for taken in one.taken if part.place == 0 and part.expert != team.part.expert else ():
            if taken.step < reached:
                told.tell(taken)
    if told.ends_with is not None:
        raise told.ends_with
    if refused := [one.refused for one in everyone if one.refused]:
        _, what, where, fix = min(refused)
        error = UserError(what, where=where, fix=fix)
        save_before_failing(run, reached, error)
        raise error
    assert told.next == reached and (reached == end or run.control.why)
    return reached - step


def take_turns(run: Run, team: Team, order: Steps, tell: Callable[[StepTaken], None]) -> list["OwnSteps"]:
    """All ranks take their steps of an order and end at the same one. Where a stop or an error ends those of the expert
    whose turn comes first, what the other has learnt in the meantime is let go: it would be of later steps. Raises
    UserError on all of them, before any step, where they cannot have one plan; where they cannot afterwards, that is
    what kept the next step from being taken."""
    if order.settle:
        settle(run, team)
    own = [step for step in range(order.first, order.end) if expert_at(run.job, step) == team.part.expert]
    learner = run.learners[expert_at(run.job, own[0])] if own else None
    try:
        before = learner.copied() if learner is not None and own[0] > order.first else None
    except HostMemoryRefused as e:  # the others are in their steps, and would wait for this one's
        raise RankFailed(f"rank {team.rank.number}, to be able to go back to step {order.first}: {e}") from e
    everyone = team.exchange(take_own_steps(run, team, own, tell))
    taken = everyone[team.rank.number].taken
    if learner is not None and before is not None and taken and taken[-1].step >= reached_by(order.first, everyone):
        learner.put_back(before)
    if len({one.downs for one in everyone}) > 1:
        try:
            settle(run, team)
        except UserError as e:
            everyone[0].refused = everyone[0].refused or (reached_by(order.first, everyone), e.what, e.where, e.fix)
    return everyone


def reached_by(first: int, everyone: list["OwnSteps"]) -> int:
    """The step up to which all have been taken, from `first` on."""
    done = {taken.step for one in everyone for taken in one.taken}
    while first in done:
        first += 1
    return first


def end_of_turns(run: Run, step: int) -> int:
    """The step up to which experts that train apart work before they meet: they go through what is left of one turn,
    and through the next of the other expert, unless both are needed earlier."""
    job, ahead = run.job, {setting.step for setting in run.ahead}
    turns, end = 1, step + 1
    while not (
        end >= job.training.steps
        or end % job.save.every == 0
        or validation_due(run, end)
        or previews_due(job, end)
        or end in ahead
    ):
        if expert_at(job, end) != expert_at(job, end - 1):
            turns += 1
        if turns > 2:
            break
        end += 1
    return end


@dataclass
class OwnSteps:
    """What a rank tells of the steps of its expert, which trains apart from the other."""

    taken: list[StepTaken] = field(default_factory=list)
    refused: tuple[int, str, str, str] | None = None  # the step that a UserError kept from being taken, and the error
    stop: str = ""  # why a stop is asked for
    warnings: list[str] = field(default_factory=list)
    downs: int = 0  # of its plan


def take_own_steps(run: Run, team: Team, own: list[int], tell: Callable[[StepTaken], None]) -> OwnSteps:
    """Take the steps of this rank's expert, until a stop or an error of any rank. `tell` hears of each."""
    out = OwnSteps()
    for step in own:
        if team.halted():
            break
        try:
            taken = take_step(run, step)
        except UserError as e:
            out.refused = (step, e.what, e.where, e.fix)
            team.halt()
            break
        assert taken is not None, "a stop comes between two steps here"
        out.taken.append(taken)
        tell(taken)
        if run.control.stop_requested() or run.control.why:
            team.halt()
    out.stop, out.warnings, out.downs = run.control.why, take_warnings(run.log), run.planning.downs
    return out


class StepsInOrder:
    """Writes the events of steps in their order, whichever is known first."""

    def __init__(self, run: Run, first: int) -> None:
        self._run = run
        self.next = first  # the first step, from 0, whose event is not written
        self.waiting: dict[int, StepTaken] = {}
        self.ends_with: UserError | None = None  # too many steps were not finite

    def tell(self, taken: StepTaken) -> None:
        self.waiting[taken.step] = taken
        while self.next in self.waiting and self.ends_with is None:
            try:
                report_step(self._run, self.waiting.pop(self.next))
            except UserError as e:
                self.ends_with = e
            self.next += 1


def optimizer_step(run: Run, step: int) -> bool:
    """Optimizer step `step` (from 0) of the expert whose turn it is, and its event. False when a stop came first: then
    nothing has changed."""
    # a clip is missing, no smaller plan is left: the weights have not moved, and what is done is not lost with it
    with saved_if_it_fails(run, step):
        taken = take_step(run, step)
    if taken is None:
        return False
    report_step(run, taken)
    return True


def report_step(run: Run, taken: StepTaken) -> None:
    """Say what became of a step. Raises UserError after too many that were not finite."""
    if taken.finite:
        run.log.emit("step", **taken.data)
    else:
        report_non_finite(run, taken.data["step"], taken.data["clips"], taken.timesteps)


@contextmanager
def saved_if_it_fails(run: Run, step: int) -> Iterator[None]:
    """An error of the user's inside, which moves no weights, ends the run with what `step` steps have trained saved."""
    try:
        yield
    except UserError as e:
        save_before_failing(run, step, e)
        raise


def save_before_failing(run: Run, step: int, error: UserError) -> None:
    """Save what `step` steps have trained, as `error` ends the run. Where that fails too, it is logged, and `error`
    stays what ended the run."""
    if step == 0 or step in run.log.history.checkpoints:
        return
    try:
        save_all(run, step)
    except (UserError, StopRequested) as e:
        text = f"what came after the last checkpoint could not be saved before the run failed ({error.what}): {e}"
        run.log.emit("log", level="warning", text=text)


def finish(run: Run, step: int, began: float) -> bool | None:
    """All steps are done, or nothing gets better: the last checkpoint, measurement and previews, the final LoRA files.
    None when a command has added steps meanwhile."""
    if step not in run.log.history.checkpoints:
        save_all(run, step)
    if run.held_out and step not in run.log.history.measured:
        validate(run, step)
        if run.control.stop_requested() and step not in run.log.history.measured:
            return stop(run, step)
    if run.job.sample.prompts and not previews_made(run, step):
        make_previews(run, step, missing=True)
        if run.control.stop_requested() and not previews_made(run, step):
            return stop(run, step)
    files = save_final(run, step)
    apply_commands(run, step)  # the last chance: the last previews may have taken long
    early = ended_early(run) if step < run.job.training.steps else ""
    if step < run.job.training.steps and not early:
        return None
    if run.control.stop_requested() and run.control.waiting():  # a command for previews that the stop cut short
        return stop(run, step)
    fault_injection.at("done.before-event", step)
    best = best_of(run)
    run.log.emit(
        "done",
        step=step,
        files=files,
        seconds=round(time.perf_counter() - began, 3),
        **({"why": early} if early else {}),
        **({"best": best} if best else {}),
    )
    fault_injection.at("done.after-event", step)
    return True


def stop(run: Run, step: int) -> Literal[False]:
    """End after `step` steps: they are saved, with whatever was set before the stop."""
    apply_commands(run, step)
    path, why = "", run.control.why
    if step == 0:
        why += "; no step was done yet, so there was nothing to save"
    else:
        path = run.log.history.checkpoints.get(step) or save_all(run, step)
    run.log.emit("stopped", step=step, path=path, why=why)
    return False


def stop_unsaved(run: Run, step: int) -> Literal[False]:
    """End while the disk is full, with the newest checkpoint there is. Its event may be missing yet: it comes after the
    LoRA files."""
    newest, _ = checkpoint.newest(run.folder)
    kept, path = (checkpoint.step_of(newest), str(newest.relative_to(run.folder))) if newest else (0, "")
    why = f"{run.control.why} while the disk was full" + (
        f": what came after step {kept} could not be saved and is trained again" if kept < step else ""
    )
    run.log.emit("stopped", step=step, path=path, why=why)
    return False

"""The training loop, top to bottom. Between two optimizer steps the state is whole: there it is saved, shown in
previews and changed by commands.

What came before step 1 is engine.training.prepare's; how a batch becomes gradients, engine.training.train_step's.
"""

import math
import time
from functools import partial
from typing import Literal

from engine.runfolder import checkpoint
from engine.runfolder.control import StopRequested
from engine.runfolder.disk_full import until_events_are_written
from engine.runfolder.resume import set_aside_later_files
from engine.system import fault_injection
from engine.system.durable_files import sync_folders
from engine.system.stopwatch import Stopwatch
from engine.training.commands import apply_commands
from engine.training.context import Run
from engine.training.optimizer import clip_gradients, lr_at, set_lr
from engine.training.previews import make_previews, previews_made, verify_previews
from engine.training.reporting import announce, ram_gib, report_non_finite, vram_gib
from engine.training.restore import restore
from engine.training.saved_loras import rewrite_torn_loras, save_final
from engine.training.saving import check_disk_room, finish_interrupted_save, save_all
from engine.training.train_step import gradients, retry_on_oom
from presets.errors import UserError
from presets.job.expert_schedule import expert_at
from presets.job.preview_settings import previews_due


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
            if step >= run.job.training.steps:  # they may have been cut below what is done
                done = finish(run, step, began)
                if done is None:
                    continue
                return done
            if not optimizer_step(run, step):
                return stop(run, step)
            step += 1
            if step % run.job.save.every == 0:
                save_all(run, step)
            if previews_due(run.job, step) and step < run.job.training.steps:
                make_previews(run, step)
    except StopRequested:
        return stop_unsaved(run, step)


def make_whole(run: Run) -> None:
    """Before the first step of the attempt: prove that checkpoints can be written, or finish what the last attempt left
    undone; then make the previews that are due."""
    step = run.begin.step
    run.loader.prefetch(step * run.job.training.gradient_accumulation)  # decodes while the first previews are made
    if step == 0:
        check_disk_room(run)  # a full disk or a read-only folder shows itself now, not after hours
    else:
        finish_interrupted_save(run)
    rewrite_torn_loras(run)
    torn = verify_previews(run)
    if (torn or previews_due(run.job, step)) and not previews_made(run, step):
        make_previews(run, step, missing=True)


def optimizer_step(run: Run, step: int) -> bool:
    """Optimizer step `step` (from 0) of the expert whose turn it is. False when a stop came first: then nothing has
    changed."""
    job = run.job
    expert = expert_at(job, step)
    learner, lr = run.learners[expert], lr_at(job, expert, step)
    set_lr(learner.optimizer, lr)
    watch = Stopwatch(run.placement.device)
    try:
        result = retry_on_oom(run, learner, watch, partial(gradients, run, step, expert, watch))
    # a clip is missing, no smaller plan is left: the weights have not moved, and what is done is not lost with it
    except UserError as e:
        learner.optimizer.zero_grad(set_to_none=True)
        save_before_failing(run, step, e)
        raise
    if result is None:
        learner.optimizer.zero_grad(set_to_none=True)
        return False
    with watch.part("optimizer"):
        norm = float(clip_gradients(list(learner.parameters.values()), job.training.max_grad_norm))
        losses = {name: float(value) for name, value in result.losses.items()}
        loss = sum(losses.values())
        loss = fault_injection.poison("loss", step + 1, loss)
        finite = math.isfinite(norm) and math.isfinite(loss)
        if finite:  # a non-finite step never reaches the weights
            fault_injection.at("optimizer.before-step", step + 1)
            learner.optimizer.step()
            fault_injection.at("optimizer.after-step", step + 1)
            if learner.ema:
                learner.ema.update(learner.parameters)
            fault_injection.at("ema", step + 1)
        learner.optimizer.zero_grad(set_to_none=True)
    if finite:
        run.log.emit(
            "step",
            step=step + 1,
            expert=expert,
            loss=loss,
            parts=losses,
            lr=lr,
            grad_norm=norm,
            timestep=sum(result.timesteps) / len(result.timesteps),
            seconds=watch.seconds(),
            vram_gib=vram_gib(run.placement.device),
            ram_gib=ram_gib(),
            clips=result.clips,
        )
    else:
        report_non_finite(run, step + 1, result.clips, result.timesteps)
    return True


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
    """All steps are done: the last checkpoint, the last previews, the final LoRA files. None when a command has added
    steps meanwhile."""
    if step not in run.log.history.checkpoints:
        save_all(run, step)
    if run.job.sample.prompts and not previews_made(run, step):
        make_previews(run, step, missing=True)
        if run.control.stop_requested() and not previews_made(run, step):
            return stop(run, step)
    files = save_final(run, step)
    apply_commands(run, step)  # the last chance: the last previews may have taken long
    if step < run.job.training.steps:
        return None
    if run.control.stop_requested() and run.control.waiting():  # a command for previews that the stop cut short
        return stop(run, step)
    fault_injection.at("done.before-event", step)
    run.log.emit("done", step=step, files=files, seconds=round(time.perf_counter() - began, 3))
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

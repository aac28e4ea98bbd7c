"""The training loop, top to bottom: clips -> latents + conditioning -> noise, sigma, expert -> loss -> gradient -> step.

B batch, C channels, F h w latent shape, T pixel frames, S text tokens, D text width.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import psutil
import torch

from engine import faults
from engine.base import Expert
from engine.clock import Stopwatch
from engine.control import Control
from engine.latentcache import latents_of
from engine.microbatch import draws, terms
from engine.objective import noised
from engine.optim import clip_gradients, lr_at, set_lr
from engine.outputs import complete_loras, save_all, save_final
from engine.pinned import HostMemoryRefused
from engine.previews import make_previews, previews_made
from engine.report import device_name, plan_text, ram_gib, report_non_finite, vram_gib, vram_total_gib
from engine.setup import Learner, Run
from engine.stages import expert_at
from engine.timesteps import NUM_TRAIN_TIMESTEPS
from presets.job import Job
from presets.jobfile import job_to_dict
from presets.planner.rungs import Scarce


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `done`, or stopped with `why`."""

    step: int
    done: bool
    why: str = ""


def train(run: Run, control: Control) -> Outcome:
    """Run the loop from `run.start`. Raises UserError; the newest checkpoint is whole whatever happens."""
    job, log = run.job, run.log
    began = time.perf_counter()
    bad_steps = 0
    log.emit(
        "started", name=job.job.name, job=job_to_dict(job), plan=plan_text(run), versions=run.versions, device=device_name(run.device),
        steps=job.training.steps, resumed_from=run.start, vram_total_gib=vram_total_gib(run.device), ram_total_gib=round(psutil.virtual_memory().total / 2**30, 3),
    )  # fmt: skip
    run.loader.prefetch(run.start * job.training.gradient_accumulation)  # decodes while the first previews are made
    if run.start == 0:
        save_all(run, 0, rehearsal=True)  # a full disk or a read-only folder shows itself now, not after hours
    else:
        complete_loras(run)
    if wants_previews(job, run.start) and not previews_made(run, run.start):
        make_previews(run, run.start, control, missing=True)

    for step in range(run.start, job.training.steps):
        expert = expert_at(job, step)
        learner = run.learners[expert]
        set_lr(learner.optimizer, lr_at(job, expert, step))
        watch = Stopwatch(run.device)
        passed = with_room(run, learner, watch, partial(gradients, run, step, expert, watch, control))
        if passed is None:
            return stop(run, learner, step, control)
        with watch.part("optimizer"):
            norm = float(clip_gradients(list(learner.parameters.values()), job.training.max_grad_norm))
            losses = {name: float(value) for name, value in passed.losses.items()}
            loss = sum(losses.values())
            loss = faults.poison("loss", step + 1, loss)
            finite = math.isfinite(norm) and math.isfinite(loss)
            if finite:  # a non-finite step never reaches the weights
                faults.at("optimizer.before-step", step + 1)
                learner.optimizer.step()
                faults.at("optimizer.after-step", step + 1)
                if learner.ema:
                    learner.ema.update(learner.parameters)
                faults.at("ema", step + 1)
            learner.optimizer.zero_grad(set_to_none=True)
        bad_steps = 0 if finite else bad_steps + 1
        if finite:
            log.emit(
                "step", step=step + 1, expert=expert, loss=loss, parts=losses, lr=lr_at(job, expert, step), grad_norm=norm,
                timestep=sum(passed.timesteps) / len(passed.timesteps), seconds=watch.seconds(), vram_gib=vram_gib(run.device), ram_gib=ram_gib(), clips=passed.clips,
            )  # fmt: skip
        else:
            report_non_finite(run, step, passed.clips, passed.timesteps, bad_steps)

        done = step + 1
        last = done == job.training.steps
        if last or done % job.save.every == 0:
            save_all(run, done)
        if wants_previews(job, done):
            make_previews(run, done, control)

    last_step = max(run.start, job.training.steps)  # steps may have been lowered below what was done
    files = save_final(run, last_step)
    faults.at("done.before-event", last_step)
    log.emit("done", step=last_step, files=files, seconds=round(time.perf_counter() - began, 3))
    return Outcome(last_step, done=True)


@dataclass
class Passed:
    """What the micro-batches of one step have come to; the gradients are in the LoRA's parameters."""

    losses: dict[str, torch.Tensor]  # by term
    timesteps: list[float]
    clips: list[str]


def gradients(run: Run, step: int, expert: Expert, watch: Stopwatch, control: Control) -> Passed | None:
    """All micro-batches of an optimizer step, forward and backward. None when a stop is wished for between two of them."""
    accumulation = run.job.training.gradient_accumulation
    micro_batches = range(step * accumulation, (step + 1) * accumulation)
    clips_in_step = sum(len(run.order.batch(index)) for index in micro_batches)
    executor = run.experts.executors[expert]
    passed = Passed({}, [], [])
    for index in micro_batches:
        if control.stop_wished():
            return None
        with watch.part("data"):
            faults.at("data.decode", step + 1)
            batch = run.loader.batch(index)
        with watch.part("vae"):
            faults.at("vae.encode", step + 1)
            x0_BCFhw, conditioning_BCFhw = latents_of(run.encoder, batch, run.latents, device=run.device)
        faults.at("noise", step + 1)
        noise_BCFhw, sigma_B = draws(run, expert, batch, x0_BCFhw)
        x_t, target = noised(x0_BCFhw, noise_BCFhw, sigma_B)
        target = faults.poison("target", step + 1, target)
        x_BCFhw = torch.cat([x_t, conditioning_BCFhw], dim=1)
        timestep_B = sigma_B * NUM_TRAIN_TIMESTEPS
        with watch.part("transformer"):
            faults.at("forward", step + 1)
            for term in terms(run, executor, batch, x_BCFhw, timestep_B, target, share=len(batch.ids) / clips_in_step):
                loss = executor.forward_backward(x_BCFhw, timestep_B, term.text_BSD, term.loss, strength=batch.weights[0])
                passed.losses[term.name] = passed.losses.get(term.name, 0) + loss
            faults.at("backward", step + 1)
        passed.timesteps += timestep_B.tolist()
        passed.clips += batch.ids
    return passed


def with_room(run: Run, learner: Learner, watch: Stopwatch, attempt: Callable[[], Passed | None]) -> Passed | None:
    """The attempt's result; when memory runs out, the same step again, one rung down. Noise is keyed, so it is the same step."""
    while True:
        try:
            return attempt()
        except torch.OutOfMemoryError:
            scarce: Scarce = "vae" if watch.current == "vae" else "step"
        except HostMemoryRefused:
            scarce = "ram"
        learner.optimizer.zero_grad(set_to_none=True)  # what the failed attempt added
        run.replan(scarce)


def wants_previews(job: Job, step: int) -> bool:
    """Whether previews are due after `step` steps: at the start (sample.first), every so often, and at the end."""
    if not job.sample.prompts:
        return False
    if step == 0:
        return job.sample.first
    return step == job.training.steps or (job.sample.every > 0 and step % job.sample.every == 0)


def stop(run: Run, learner: Learner, step: int, control: Control) -> Outcome:
    """Honour a stop between micro-batches: partial gradients are dropped, `step` steps are done and saved."""
    learner.optimizer.zero_grad(set_to_none=True)
    path = save_all(run, step) if step > 0 else ""
    why = control.why if step > 0 else f"{control.why}; no step was done yet, so there was nothing to save"
    run.log.emit("stopped", step=step, path=path, why=why)
    return Outcome(step, done=False, why=control.why)

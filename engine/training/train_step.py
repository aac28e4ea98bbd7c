"""The gradients of one optimizer step: clips -> latents and conditioning -> noise and sigma -> losses -> backward, one
micro-batch after the other; and the same step again under a smaller plan when memory runs out.

B batch, C channels, F h w latent shape, S text tokens, D text width.

The losses are engine.training.objective's; the step of the optimizer, engine.training.trainer's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.data.loader import Batch
from engine.encode.latent_cache import latents_of
from engine.executor.block_executor import BlockExecutor
from engine.memory.planning import Shortage
from engine.system import fault_injection
from engine.system.device import memory_errors
from engine.system.keyed_random import keyed_rng
from engine.system.pinned_memory import HostMemoryRefused
from engine.system.stopwatch import Stopwatch
from engine.training import objective
from engine.training.context import Learner, Run
from engine.training.placement import replan, why_short
from presets.job.expert_schedule import Expert
from presets.job.schema import Job
from presets.job.timesteps import NUM_TRAIN_TIMESTEPS, sigma_at
from presets.planner.candidates import ExhaustedPhase
from presets.planner.sizes import OPTIMIZER_BYTES


@dataclass
class StepResult:
    """What the micro-batches of one step have added up to; the gradients are in the LoRA's parameters."""

    losses: dict[str, torch.Tensor]  # by term
    timesteps: list[float]
    clips: list[str]


def gradients(run: Run, step: int, expert: Expert, watch: Stopwatch) -> StepResult | None:
    """All micro-batches of an optimizer step, forward and backward. None when a stop comes between two of them."""
    accumulation = run.job.training.gradient_accumulation
    micro_batches = range(step * accumulation, (step + 1) * accumulation)
    clips_in_step = sum(len(run.loader.sampler.batch(index)) for index in micro_batches)
    executor = run.experts.executors[expert]
    result = StepResult({}, [], [])
    for index in micro_batches:
        if run.control.stop_requested():
            return None
        with watch.part("data"):
            fault_injection.at("data.decode", step + 1)
            batch = run.loader.batch(index)
        with watch.part("vae"):
            fault_injection.at("vae.encode", step + 1)
            x0_BCFhw, conditioning_BCFhw = latents_of(run.encoder, batch, run.latents, device=run.placement.device)
        fault_injection.at("noise", step + 1)
        noise_BCFhw, sigma_B = draws(run, expert, batch, x0_BCFhw)
        x_t, target = objective.noised(x0_BCFhw, noise_BCFhw, sigma_B)
        target = fault_injection.poison("target", step + 1, target)
        x_BCFhw = torch.cat([x_t, conditioning_BCFhw], dim=1)
        timestep_B = sigma_B * NUM_TRAIN_TIMESTEPS
        with watch.part("transformer"):
            fault_injection.at("forward", step + 1)
            share = len(batch.ids) / clips_in_step
            for term in loss_terms(run, executor, batch, x_BCFhw, timestep_B, target, share=share):
                loss = executor.forward_backward(
                    x_BCFhw[term.rows], timestep_B[term.rows], term.text_BSD, term.loss, strength=batch.weight
                )
                result.losses[term.name] = result.losses.get(term.name, 0) + loss
            fault_injection.at("backward", step + 1)
        result.timesteps += timestep_B.tolist()
        result.clips += batch.ids
    return result


def draws(run: Run, expert: Expert, batch: Batch, x0_BCFhw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise and sigma of each sample, keyed by its visit (epoch, clip, repeat): the same on a retry, a resume, another
    card, and in whatever micro-batch it comes, so that accumulation equals a larger batch."""
    shape = tuple(x0_BCFhw.shape[1:])
    noise = [
        torch.from_numpy(keyed_rng(run.job.job.seed, "noise", *draw.key).standard_normal(shape, dtype="float32"))
        for draw in batch.draws
    ]
    sigmas = [draw_sigma(run.job, expert, run.base.boundary, *draw.key) for draw in batch.draws]
    device = run.placement.device
    return torch.stack(noise).to(device), torch.tensor(sigmas, dtype=torch.float32, device=device)


def loss_terms(
    run: Run,
    executor: BlockExecutor,
    batch: Batch,
    x_BCFhw: torch.Tensor,
    timestep_B: torch.Tensor,
    target: torch.Tensor,
    *,
    share: float,
) -> list[objective.LossTerm]:
    """The losses of one micro-batch; `share` is its part of the optimizer step, so that accumulation equals a larger
    batch.

    The base's prediction for preservation is computed once per micro-batch and nowhere reused: noise is fresh each
    time, so no other has the same.
    """
    training, trigger = run.job.training, run.job.job.trigger
    out = [objective.main_term(training, run.job.advanced, run.text(batch.captions), target, share)]
    if objective.preserves(training):
        prompts = [objective.preserved_prompt(training, caption, trigger) for caption in batch.captions]
        # Where that is the very caption which trains (a dropped one, a class alone), the two losses would ask opposite
        # things of one prompt.
        rows = [i for i, (prompt, caption) in enumerate(zip(prompts, batch.captions, strict=True)) if prompt != caption]
        if rows:
            part: objective.Rows = rows if len(rows) < len(prompts) else slice(None)
            text = run.text([prompts[i] for i in rows])
            base_prediction = executor.predict(x_BCFhw[part], timestep_B[part], text, strength=0.0)
            out.append(
                objective.preservation_term(training, text, base_prediction, part, share * len(rows) / len(prompts))
            )
    return out


def draw_sigma(job: Job, expert: Expert, boundary: float, *key: int | str) -> float:
    """The sigma of the sample with this key (its visit: epoch, clip, repeat): the same wherever it is drawn again."""
    return sigma_at(job.training, expert, boundary, float(keyed_rng(job.job.seed, "timestep", *key).random()))


def retry_on_oom(
    run: Run, learner: Learner, watch: Stopwatch, attempt: Callable[[], StepResult | None]
) -> StepResult | None:
    """The attempt's result; when memory runs out, the same step again under the next smaller plan. Noise is keyed, so
    it is the same step."""
    while True:
        try:
            with memory_errors():
                result = attempt()
                if result is not None and not learner.optimizer.state:
                    reserve_state(run, learner)
            return result
        except torch.OutOfMemoryError:
            exhausted: ExhaustedPhase = "vae" if watch.current == "vae" else "step"
            why = why_short(run)
        except HostMemoryRefused as e:
            exhausted, why = "ram", Shortage("host", e.what)
        learner.optimizer.zero_grad(set_to_none=True)  # what the failed attempt added
        replan(run, exhausted, why)


def reserve_state(run: Run, learner: Learner) -> None:
    """Take the memory that the optimizer's first step is about to keep, and let it go again: torch then has it at hand.
    If there is none, it shows while the step can still be done again. Raises torch.OutOfMemoryError."""
    copies = math.ceil(OPTIMIZER_BYTES[run.job.training.optimizer] / 4)
    held = [torch.empty_like(p) for p in learner.parameters.values() for _ in range(copies)]
    del held

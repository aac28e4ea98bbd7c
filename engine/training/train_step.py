"""One optimizer step. Its gradients: clips -> latents and conditioning -> noise and sigma -> losses -> backward, one
micro-batch after the other; and the same step again under a smaller plan when memory runs out.

B batch, C channels, F h w latent shape, S text tokens, D text width.

The losses are engine.training.objective's; when a step is taken, and its event, engine.training.trainer's.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from engine.data.loader import Batch
from engine.encode.latent_cache import latents_of
from engine.executor.block_executor import BlockExecutor
from engine.memory.planning import Shortage
from engine.parallel.ordered_sum import OrderedSum, Uses, count
from engine.parallel.quiet import take_warnings, warn
from engine.parallel.team import RankFailed, Team
from engine.system import fault_injection
from engine.system.device import memory_errors
from engine.system.keyed_random import keyed_rng
from engine.system.pinned_memory import HostMemoryRefused
from engine.system.stopwatch import Stopwatch
from engine.training import objective
from engine.training.context import Learner, Run
from engine.training.optimizer import clip_gradients, lr_at, set_lr
from engine.training.placement import refused, replan, replan_together, why_short
from engine.training.reporting import ram_gib, vram_gib
from presets.errors import UserError
from presets.job.expert_schedule import Expert, expert_at
from presets.job.schema import Job
from presets.job.timesteps import NUM_TRAIN_TIMESTEPS, sigma_at
from presets.planner.candidates import ExhaustedPhase
from presets.planner.sizes import OPTIMIZER_BYTES


@dataclass(frozen=True)
class StepTaken:
    """An optimizer step that is done, or was skipped."""

    data: dict[str, Any]  # of its event
    timesteps: list[float]
    finite: bool  # else the weights have not moved

    @property
    def step(self) -> int:
        """Counted from 0."""
        return int(self.data["step"]) - 1


def take_step(run: Run, step: int) -> StepTaken | None:
    """An optimizer step without its event. None when a stop came first: then nothing has changed. Raises UserError, and
    nothing has changed either."""
    job = run.job
    expert = expert_at(job, step)
    learner, lr = run.learners[expert], lr_at(job, expert, step)
    set_lr(learner.optimizer, lr)
    watch = Stopwatch(run.placement.device)
    try:
        result = retry_on_oom(run, learner, watch, partial(gradients, run, step, expert, watch))
    except UserError:
        learner.optimizer.zero_grad(set_to_none=True)
        raise
    if result is None:
        learner.optimizer.zero_grad(set_to_none=True)
        return None
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
    seconds, vram = watch.seconds(), vram_gib(run.placement.device)
    data = {
        "step": step + 1,
        "expert": expert,
        "loss": loss,
        "parts": losses,
        "lr": lr,
        "grad_norm": norm,
        "timestep": sum(result.timesteps) / len(result.timesteps),
        "seconds": seconds,
        "vram_gib": vram,
        "ram_gib": ram_gib(),
        "clips": result.clips,
        **({} if run.team is None else shared_by(run.team, result, seconds["total"], vram)),
    }
    return StepTaken(data, result.timesteps, finite)


def shared_by(team: Team, result: "StepResult", seconds: float, vram: float) -> dict[str, Any]:
    """What a step's event says of the processes that took it."""
    ranks = result.ranks or {team.rank.number: {"seconds": seconds, "vram_gib": vram}}
    told: dict[str, Any] = {"ranks": [{"rank": rank, **said} for rank, said in ranks.items()]}
    at_once = len({part.expert for part in team.parts})
    return told | ({"at_once": at_once} if at_once > 1 else {})


@dataclass
class StepResult:
    """What the micro-batches of one step have added up to; the gradients are in the LoRA's parameters."""

    losses: dict[str, torch.Tensor] = field(default_factory=dict)  # by term
    timesteps: list[float] = field(default_factory=list)
    clips: list[str] = field(default_factory=list)
    ranks: dict[int, dict[str, float]] = field(default_factory=dict)  # of those that share it: seconds, vram_gib

    def add(self, part: "MicroBatch") -> None:
        """The next micro-batch."""
        for name, loss in part.losses:
            self.losses[name] = self.losses.get(name, 0) + loss
        self.timesteps += part.timesteps
        self.clips += part.clips


@dataclass(frozen=True)
class MicroBatch:
    """What one micro-batch has come to, besides gradients."""

    losses: list[tuple[str, torch.Tensor]]  # (term, its loss)
    timesteps: list[float]
    clips: list[str]


def gradients(run: Run, step: int, expert: Expert, watch: Stopwatch) -> StepResult | None:
    """All micro-batches of an optimizer step, forward and backward. None when a stop comes between two of them."""
    if run.team is not None and run.team.part.sharing > 1:
        return shared_gradients(run, run.team, step, expert, watch)
    result = StepResult()
    for index in micro_batches(run.job, step):
        if run.team is None and run.control.stop_requested():
            return None
        result.add(micro_batch(run, step, index, expert, watch))
    return result


def micro_batches(job: Job, step: int) -> range:
    """The numbers of a step's micro-batches, counted over all steps."""
    accumulation = job.training.gradient_accumulation
    return range(step * accumulation, (step + 1) * accumulation)


def micro_batch(run: Run, step: int, index: int, expert: Expert, watch: Stopwatch) -> MicroBatch:
    """Forward and backward of one; its gradients are added to the parameters'."""
    clips_in_step = sum(len(run.loader.sampler.batch(i)) for i in micro_batches(run.job, step))
    executor = run.experts.executors[expert]
    losses: list[tuple[str, torch.Tensor]] = []
    if run.team is not None:
        run.team.signs.give(f"step {step + 1}")
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
            losses.append((term.name, loss))
        fault_injection.at("backward", step + 1)
    return MicroBatch(losses, timestep_B.tolist(), batch.ids)


@dataclass
class _Told:
    """What a rank tells those that share a step with it, of its micro-batch, and of the room to exchange what came of
    it."""

    made: MicroBatch | None = None  # the losses on the CPU
    uses: list[int] = field(default_factory=list)  # of each parameter
    refused: tuple[str, str, str] | None = None  # a UserError
    short: tuple[ExhaustedPhase, Shortage] | None = None  # memory ran out
    bug: str = ""
    seconds: float = 0.0  # of it
    vram: float = 0.0  # GiB
    stop: str = ""  # why a stop is asked for, "" while none is
    warnings: list[str] = field(default_factory=list)


class SharedShortage(Exception):
    """Memory ran out on some rank: all of them take the next smaller plan, so that they go on computing alike."""

    def __init__(self, exhausted: ExhaustedPhase, why: Shortage) -> None:
        self.exhausted, self.why = exhausted, why
        super().__init__(why.text)


def shared_gradients(run: Run, team: Team, step: int, expert: Expert, watch: Stopwatch) -> StepResult | None:
    """The same by several ranks, one micro-batch each at a time: all of them end with the sums that one process has, to
    the bit. What befalls one of them befalls all. Raises RankFailed where another has met a bug."""
    learner, result = run.learners[expert], StepResult()
    total = OrderedSum(learner.parameters, team.gather)
    mine, sharing = micro_batches(run.job, step), team.part.sharing
    for first in mine[::sharing]:
        bug: Exception | None = None
        told = _Told()
        with total.kept_apart() as uses:
            try:
                began = time.perf_counter()
                with memory_errors():
                    made = micro_batch(run, step, first + team.part.place, expert, watch)
                    told.made = replace(made, losses=[(name, loss.cpu()) for name, loss in made.losses])
                    told.uses, told.seconds = count(uses), time.perf_counter() - began
                    told.vram = vram_gib(run.placement.device)
                    if first + sharing == mine.stop and not learner.optimizer.state:
                        reserve_state(run, learner)  # here, where all ranks hear of it
            except torch.OutOfMemoryError:
                told.short = ("vae" if watch.current == "vae" else "step", why_short(run))
            except HostMemoryRefused as e:
                told.short = refused(e)
            except UserError as e:
                told.refused = (e.what, e.where, e.fix)
            except Exception as e:
                told.bug, bug = f"{type(e).__name__}: {e}", e
        run.control.stop_requested()
        told.stop, told.warnings = run.control.why, take_warnings(run.log)
        with watch.part("exchange"):
            everyone = team.exchange_sharing(told)
        _heed(run, team, everyone, bug)
        with watch.part("exchange"):
            add_up(run, team, total, uses, [one.uses for one in everyone])
        for rank, one in zip(team.part.ranks, everyone, strict=True):
            assert one.made is not None
            result.add(one.made)
            seconds = result.ranks.get(rank, {}).get("seconds", 0.0) + one.seconds
            result.ranks[rank] = {"seconds": seconds, "vram_gib": one.vram}
        run.control.why = next((one.stop for one in everyone if one.stop), "")
        # those of one expert finish what all are at, whatever it is that the others have done of it
        if run.control.why and team.part.expert is None and first + sharing < mine.stop:
            return None
    total.finish()
    return result


def add_up(run: Run, team: Team, total: OrderedSum, uses: Uses, counts: list[list[int]]) -> None:
    """Add the gradients of a micro-batch of each rank to the step's, on all of them or on none. Raises
    SharedShortage."""
    told = _Told()
    try:
        with memory_errors():
            total.make_room(counts)
    except torch.OutOfMemoryError:
        told.short = ("step", why_short(run))
    for one in team.exchange_sharing(told):
        if one.short:
            raise SharedShortage(*one.short)
    try:
        with memory_errors():
            total.add(uses, counts)
    except torch.OutOfMemoryError as e:  # nobody knows by now how far the others are: not to be tried again
        raise RankFailed(f"rank {team.rank.number} found no memory while gradients were exchanged: {e}") from e


def _heed(run: Run, team: Team, everyone: list[_Told], bug: Exception | None) -> None:
    """Raise on every rank what one of them has met."""
    for rank, one in zip(team.part.ranks, everyone, strict=True):
        if team.leads:
            warn(run.log, rank, one.warnings)
    if bug is not None:
        raise bug
    for rank, one in zip(team.part.ranks, everyone, strict=True):
        if one.bug:
            raise RankFailed(f"rank {rank}: {one.bug}")
    for one in everyone:
        if one.refused:
            what, where, fix = one.refused
            raise UserError(what, where=where, fix=fix)
    for one in everyone:
        if one.short:
            raise SharedShortage(*one.short)


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
    mask = None
    if batch.masks is not None:
        mask = torch.from_numpy(batch.masks).unsqueeze(1).to(run.placement.device)
    out = [objective.main_term(training, run.job.advanced, run.text(batch.captions), target, share, mask)]
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
            exhausted, why = refused(e)
        except SharedShortage as e:
            exhausted, why = e.exhausted, e.why
        learner.optimizer.zero_grad(set_to_none=True)  # what the failed attempt added
        if run.team is not None and run.team.part.sharing > 1:
            replan_together(run, run.team, exhausted, why)
        else:
            replan(run, exhausted, why)


def reserve_state(run: Run, learner: Learner) -> None:
    """Take the memory that the optimizer's first step is about to keep, and let it go again: torch then has it at hand.
    If there is none, it shows while the step can still be done again. Raises torch.OutOfMemoryError."""
    copies = math.ceil(OPTIMIZER_BYTES[run.job.training.optimizer] / 4)
    held = [torch.empty_like(p) for p in learner.parameters.values() for _ in range(copies)]
    del held

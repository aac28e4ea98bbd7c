"""One optimizer step: its micro-batches one after the other, by one process or by several that share it; and the same
step again under a smaller plan when memory runs out.

A micro-batch is engine.training.objective's; when a step is taken, and its event, engine.training.trainer's.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from engine.adapters.gradient_check import LEAST
from engine.encode.shared_encodes import HandingFailed, NotReady
from engine.executor.passes_to_end import RanShort, by_all
from engine.executor.token_split import TokenSplit, run_lengths
from engine.memory.planning import Shortage
from engine.parallel.lost_clips import ClipLost, clip_lost
from engine.parallel.ordered_sum import OrderedSum
from engine.parallel.quiet import take_warnings, warn
from engine.parallel.team import Loss, RankFailed, Team
from engine.runfolder.control import StopRequested
from engine.system import fault_injection
from engine.system.device import memory_errors
from engine.system.pinned_memory import HostMemoryRefused
from engine.system.stopwatch import Stopwatch
from engine.training.context import Learner, Run
from engine.training.objective import (
    MicroBatch,
    NoisedBatch,
    micro_batch,
    micro_batches,
    noised_batch,
    passes_of,
    through_expert,
)
from engine.training.optimizer import clip_gradients, lr_at, set_lr, step_if
from engine.training.placement import as_agreed, refused, replan, replan_together, why_short
from engine.training.reporting import plan_text, ram_gib, vram_gib
from presets.errors import UserError
from presets.job.expert_schedule import Expert, expert_at
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
    except StopRequested:  # while blocks were waited for that are still being read
        result = None
    if result is None:
        learner.optimizer.zero_grad(set_to_none=True)
        return None
    with watch.part("optimizer"):
        norm = clip_gradients(list(learner.parameters.values()), job.training.max_grad_norm)
        loss = fault_injection.poison("loss", step + 1, torch.stack(list(result.losses.values())).sum())
        good = torch.isfinite(norm) & torch.isfinite(loss).to(norm.device)
        require_gradients(run, step, expert, result, good)
        fault_injection.at("optimizer.before-step", step + 1)
        step_if(learner.optimizer, good)  # a non-finite step never reaches the weights
        finite = bool(good)  # here the device is waited for
        if finite:
            fault_injection.at("optimizer.after-step", step + 1)
            if learner.ema:
                learner.ema.update(learner.parameters)
            fault_injection.at("ema", step + 1)
        learner.optimizer.zero_grad(set_to_none=True)
    losses = {name: float(value) for name, value in result.losses.items()}
    seconds, vram = watch.seconds(), vram_gib(run.placement.device)
    data = {
        "step": step + 1,
        "expert": expert,
        "loss": sum(losses.values()),
        "parts": losses,
        "lr": lr,
        "grad_norm": float(norm),
        "timestep": sum(result.timesteps) / len(result.timesteps),
        "seconds": seconds,
        "vram_gib": vram,
        "ram_gib": ram_gib(),
        "clips": result.clips,
        **({} if run.team is None else shared_by(run.team, result, seconds["total"], vram)),
    }
    return StepTaken(data, result.timesteps, finite)


def require_gradients(run: Run, step: int, expert: Expert, result: "StepResult", finite: torch.Tensor) -> None:
    """Raises UserError where blocks would learn nothing: hours later nothing would have told it. Of a step that is not
    `finite` nothing is said."""
    learner, plan = run.learners[expert], as_agreed(run.experts.plan)  # of all ranks: they look at the same steps
    lost = run.gradient_check.lost(
        learner.parameters,
        {name: parameter.grad for name, parameter in learner.parameters.items()},
        (expert, frozenset(result.shapes)),
        plan,
        loss=lambda: float(sum(result.learnt_of)) if finite else 0.0,
    )
    if not lost:
        return
    learner.optimizer.zero_grad(set_to_none=True)
    other = "Another quantization.transformer" + (" or model.cuda_graphs = false" if plan.graphed else "")
    raise UserError(
        f"in {lost}, the {expert} LoRA got no gradient, though the loss was {float(sum(result.learnt_of)):.3g}: it"
        " would learn nothing there",
        where=f"step {step + 1}, with {plan_text(run)}",
        fix=f"No weights have moved. No clip causes this, but the code that computes the blocks: {other} takes other"
        " code. Please report it with this run's events.jsonl",
    )


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
    shapes: set[tuple[int, ...]] = field(default_factory=set)  # of the micro-batches' latents
    learnt_of: list[torch.Tensor] = field(default_factory=list)  # losses of those at which the LoRA is not off

    def add(self, part: "MicroBatch") -> None:
        """The next micro-batch."""
        for name, loss in part.losses:
            self.losses[name] = self.losses.get(name, 0) + loss
        self.timesteps += part.timesteps
        self.clips += part.clips
        self.shapes.add(part.shape)
        if part.strength > LEAST:
            self.learnt_of += [loss for _, loss in part.losses]


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


@dataclass
class _Told:
    """What a rank tells those that share a step with it, of its micro-batch."""

    made: MicroBatch | None = None  # the losses on the CPU
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


def shared_batch(run: Run, team: Team, noise: Callable[[], NoisedBatch]) -> NoisedBatch:
    """What `noise` makes, once all ranks that share the clip have made the same of it. Raises what it raises, NotReady
    where another has failed, and ClipLost."""
    if run.split is None:
        return noise()
    made: NoisedBatch | None = None
    failure: Exception | None = None
    try:
        with memory_errors():
            made = noise()
    except HandingFailed as e:
        raise clip_lost(team, Loss(str(e), "", user=False)) from e
    except Exception as e:
        failure = e
    said = team.exchange_clip(made.digest if made is not None else "")
    if failure is not None:
        raise failure
    assert made is not None
    if "" in said:
        raise NotReady
    assert len(set(said)) == 1, "ranks that share a clip have made several of it"
    return made


def shared_clip(run: Run, team: Team, step: int, expert: Expert, noised: NoisedBatch, watch: Stopwatch) -> MicroBatch:
    """`through_expert`, by all ranks that share the clip. Raises SharedShortage where memory runs out on this one, and
    ClipLost."""
    if run.split is None:
        return through_expert(run, step, expert, noised, watch)
    short: list[tuple[ExhaustedPhase, Shortage]] = []

    def made(split: TokenSplit) -> MicroBatch:
        try:
            with memory_errors():
                return through_expert(replace(run, split=split), step, expert, noised, watch)
        except torch.OutOfMemoryError:  # here, while what filled it is there
            short.append(("step", why_short(run)))
            raise
        except HostMemoryRefused as e:
            short.append(refused(e))
            raise

    executor, tokens = run.experts.executors[expert], noised.batch.draws[0].item.bucket.tokens
    try:
        return by_all(team, "clip", executor, run.split, tokens, passes_of(run.job, noised.batch.captions), made)
    except RanShort:
        raise SharedShortage(*short[-1]) from None


def shared_gradients(run: Run, team: Team, step: int, expert: Expert, watch: Stopwatch) -> StepResult | None:
    """The same by several ranks, one micro-batch each at a time: all of them end with the sums that one process has, to
    the bit. Those that share a clip each give what their own tokens add to it. What befalls one of them befalls all.
    Raises RankFailed where another has met a bug, and ClipLost."""
    learner, result = run.learners[expert], StepResult()
    mine, part = micro_batches(run.job, step), team.part
    total = OrderedSum(learner.parameters, team.gather, part.place)
    for first in mine[:: part.at_once]:
        bug: Exception | None = None
        told = _Told()
        # ranks that share a clip wait for each other's tokens, not for gradients in between
        with total.kept_apart(uses_by_rank(run, team, expert, first), ahead=part.each == 1):
            try:
                began = time.perf_counter()
                with memory_errors():
                    noise = partial(noised_batch, run, step, first + part.turn, expert, watch)
                    made = shared_clip(run, team, step, expert, shared_batch(run, team, noise), watch)
                    told.made = replace(made, losses=[(name, loss.cpu()) for name, loss in made.losses])
                    told.seconds = time.perf_counter() - began
                    told.vram = vram_gib(run.placement.device)
                    if first + part.at_once == mine.stop and not learner.optimizer.state:
                        reserve_state(run, learner)  # here, where all ranks hear of it
                    with watch.part("exchange"):
                        total.send_rest()
            except ClipLost:
                raise
            except NotReady:
                pass  # who has failed tells it
            except SharedShortage as e:
                told.short = e.exhausted, e.why
            except torch.OutOfMemoryError:
                told.short = ("vae" if watch.current == "vae" else "step", why_short(run))
            except HostMemoryRefused as e:
                told.short = refused(e)
            except UserError as e:
                told.refused = (e.what, e.where, e.fix)
            except Exception as e:
                told.bug, bug = f"{type(e).__name__}: {e}", e
            send_zeros(team, total, bug)
        run.control.stop_requested()
        told.stop, told.warnings = run.control.why, take_warnings(run.log)
        with watch.part("exchange"):
            everyone = team.exchange_sharing(told)
        _heed(run, team, everyone, bug)
        for place, (rank, one) in enumerate(zip(part.ranks, everyone, strict=True)):
            assert one.made is not None
            if place % part.each == 0:  # the others of its clip have made the same
                result.add(one.made)
            seconds = result.ranks.get(rank, {}).get("seconds", 0.0) + one.seconds
            result.ranks[rank] = {"seconds": seconds, "vram_gib": one.vram}
        run.control.why = next((one.stop for one in everyone if one.stop), "")
        # those of one expert finish what all are at, whatever it is that the others have done of it
        if run.control.why and part.expert is None and first + part.at_once < mine.stop:
            return None
    total.finish()
    return result


def uses_by_rank(run: Run, team: Team, expert: Expert, first: int) -> list[list[int]]:
    """How often each rank adds to the gradient of each parameter in its micro-batch, from `first` on: which clips the
    others have is drawn as here, and all have the same plan."""
    executor, part = run.experts.executors[expert], team.part
    out = []
    for place in range(part.sharing):
        draws = run.loader.sampler.batch(first + place // part.each)
        lengths = run_lengths(draws[0].item.bucket.tokens, part.each)
        passes = passes_of(run.job, [draw.caption for draw in draws])
        back = [executor.uses(size.clips, lengths[place % part.each], lengths[0]) for size in passes if size.back]
        out.append([sum(uses) for uses in zip(*back, strict=True)])
    return out


def send_zeros(team: Team, total: OrderedSum, bug: Exception | None) -> None:
    """Where this rank has failed, the others wait for the rest of its gradients all the same. Raises the bug, or else
    RankFailed, where they cannot be sent: nobody knows by now how far the others are."""
    try:
        with memory_errors():
            total.send_rest(void=True)
    except RuntimeError as e:
        raise bug or RankFailed(f"rank {team.rank.number} could not exchange gradients: {e}") from e


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

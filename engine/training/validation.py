"""The held-out loss: what the LoRAs, as they would be saved, make of clips that never train, at noise that is the same
after each step. It moves nothing of the training: no state that is drawn from, no weight, no plan.

All ranks measure at the same time: each the expert that it trains, on clips of its own, or with those that share clips
with it. A clip's losses depend on nothing else, so they are what one process finds, to the bit where a rank has the
clip for itself. The first rank makes the event.

Which clips are held out is presets.facts.held_out's; when they are measured, engine.training.trainer's; what follows
for the checkpoints, presets.runs.ranking's.

B batch (one clip), C channels, F h w latent shape.
"""

import hashlib
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch

from engine.data.dataset import Item, dataset_fingerprint
from engine.data.loader import decode_here
from engine.data.sampler import SampleDraw
from engine.encode.latent_cache import latents_of
from engine.encode.shared_encodes import NotReady
from engine.executor.block_executor import BlockExecutor
from engine.executor.passes_to_end import PassSize, by_all
from engine.executor.token_split import TokenSplit
from engine.parallel.lost_clips import ClipLost
from engine.parallel.orders import Measure
from engine.parallel.parts import ALONE
from engine.runfolder.control import StopRequested
from engine.system import fault_injection
from engine.system.device import memory_errors, release
from engine.system.keyed_random import keyed_rng
from engine.training import objective
from engine.training.context import Run, averaged_weights
from engine.training.placement import place_again
from presets.clips.batches import batches_of
from presets.errors import UserError
from presets.findings import Finding
from presets.job.expert_schedule import Expert
from presets.job.timesteps import NUM_TRAIN_TIMESTEPS, sigma_range
from presets.runs import ranking
from presets.runs.ranking import Difference, differences, mean, no_better_since, standard_error

# bytes of encoded clips that stay in a host's memory from one expert to the next; others are encoded for each
KEPT = 2**30
Encoded = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
Cells = dict[tuple[Expert, int], list[float]]  # of an expert and a held-out item, by its number, the loss in each bin
T = TypeVar("T")
Losses = dict[Expert, dict[str, list[float]]]  # of each clip, by its id, the loss in each noise bin


def validation_due(run: Run, step: int) -> bool:
    """Whether the held-out loss is measured after `step` steps, the last one apart: before the first, and every so
    often."""
    return bool(run.held_out) and step % run.job.validation.every == 0 and step < run.job.training.steps


def clip_of(item: Item) -> str:
    """What all items of one clip share: its windows and resolutions are no independent witnesses."""
    return item.id.rpartition("@")[0]


def draw_of(run: Run, item: Item) -> SampleDraw:
    """How an item is measured each time: with its caption and unflipped; what else is drawn is keyed by the item."""

    def chance(purpose: str) -> float:
        return float(keyed_rng(run.job.job.seed, purpose, item.id).random())

    return SampleDraw(
        item=item,
        epoch=0,
        caption=item.caption,
        flip_x=False,
        flip_y=False,
        start=chance("validation-window") if item.window_start is None else item.window_start,
        last_frame=item.last_frame > 0 and chance("validation-last-frame") < item.last_frame,
    )


def edges_of(run: Run, expert: Expert) -> list[float]:
    """The expert's range of noise levels in equal parts. Whatever timesteps the job trains at, these stay the same, so
    runs that differ in them can be compared."""
    low, high = sigma_range(expert, run.base.boundary)
    bins = run.job.validation.bins
    return [low + (high - low) * i / bins for i in range(bins + 1)]


def noise_of(run: Run, expert: Expert, item: Item, shape: tuple[int, ...]) -> Iterator[tuple[torch.Tensor, float]]:
    """(noise, sigma) of an item in each bin, keyed by both: the same at every measurement and after a resume."""
    edges = edges_of(run, expert)
    for i in range(len(edges) - 1):
        key = expert, item.id, i
        noise = keyed_rng(run.job.job.seed, "validation-noise", *key).standard_normal(shape, dtype="float32")
        at = float(keyed_rng(run.job.job.seed, "validation-timestep", *key).random())
        yield torch.from_numpy(noise), edges[i] + (edges[i + 1] - edges[i]) * at


def compared_with(run: Run) -> str:
    """What two measurements have in common that can be paired: clips, captions, noise and the kind of loss."""
    job = run.job
    what = [
        dataset_fingerprint(run.held_out)["sha256"],
        job.job.seed,
        job.training.loss,
        *(edges_of(run, expert) for expert in run.learners),
    ]
    return hashlib.sha256(msgspec.json.encode(what)).hexdigest()[:16]


@dataclass(frozen=True)
class Told:
    """What a rank tells the others of its part of a measurement."""

    cells: Cells = field(default_factory=dict)
    failed: tuple[str, str] | None = None  # what is said of it, and its cause
    stopped: bool = False


def validate(run: Run, step: int) -> None:
    """Measure the loss of each trained expert on the held-out clips and log it. A stop ends it early: the next attempt
    makes it. What cannot be measured, for whatever reason, is a finding, and the training goes on. Raises UserError
    where what was under way on several ranks cannot be laid out anew by all."""
    began = time.perf_counter()
    if run.team is None:
        everyone = take_part(run, step)
    else:
        with run.team.at_work(Measure(step, run.job)):
            everyone = take_part(run, step)
    if any(one.stopped for one in everyone):
        return  # the loop sees it next
    failed, data = next((one.failed for one in everyone if one.failed), None), dict[str, Any]()
    if failed is None:
        try:
            data = event_of(run, step, joined(run, [one.cells for one in everyone]))
        except Exception as e:
            failed = failure_of(run, e)
    if failed is None:
        fault_injection.at("validation.before-event", step)
        again = bool(unmeasured(run))
        run.log.emit("validation", **data, seconds=round(time.perf_counter() - began, 3))
        if again:
            text = f"the held-out loss is measured again: after step {step}"
            run.log.emit("log", level="info", text=text)
        return
    failure, cause = failed
    if unmeasured(run) == cause:
        return
    text = f"the held-out loss after step {step} could not be measured: {failure}"
    fix = (
        "The training continues; look at the held-out clips and the free memory. It is tried again each time, and said"
        " again only for another cause"
    )
    run.log.finding(
        Finding(code="validation-failed", severity="warning", field="validation", message=text, fix=fix),
        step=step,
        cause=cause,
    )


def take_part(run: Run, step: int) -> list[Told]:
    """Measure this rank's part, and hear what the others have: all ranks call it. Raises UserError on all of them where
    what was under way cannot be laid out anew."""
    mine = _part(run, step)
    everyone = [mine] if run.team is None else run.team.exchange(mine)
    if any(one.failed for one in everyone):
        release(run.placement.device)
        place_again(run)
    return everyone


def _part(run: Run, step: int) -> Told:
    try:
        with memory_errors():
            return Told(cells_of(run, step))
    except StopRequested:
        if run.team is not None:
            run.team.halt()
        return Told(stopped=True)
    except NotReady:  # who has failed tells it
        return Told()
    # a card that failed answers nothing any more, nor do ranks that have lost each other
    except (fault_injection.InjectedFault, torch.AcceleratorError, ClipLost):
        raise
    except Exception as e:
        return Told(failed=failure_of(run, e))


def failure_of(run: Run, error: Exception) -> tuple[str, str]:
    """What is said of it, and its cause."""
    failure, cause = (str(error) or type(error).__name__).splitlines()[0], cause_of(error)
    # where it came from is worth knowing
    if unmeasured(run) != cause and not isinstance(error, (UserError, OSError, torch.OutOfMemoryError)):
        traceback.print_exception(error)
    return failure, cause


def cause_of(error: Exception) -> str:
    """What stays the same when a measurement fails in the same way again: amounts of memory do not, nor all that an
    unforeseen error says."""
    if isinstance(error, UserError | OSError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno}"


def unmeasured(run: Run) -> str:
    """Why the newest measurement of this branch failed; "" where it did not. A function of the events: a resumed run
    says what an uninterrupted one says."""
    failed, measured = run.log.history.unmeasured, run.log.history.measured
    last = max(failed, default=-1)
    return "" if last < 0 or max(measured, default=-1) >= last else failed[last]


def cells_of(run: Run, step: int) -> Cells:
    """This rank's part of the losses as they stand. Raises StopRequested, torch.OutOfMemoryError, UserError or OSError
    for a clip that cannot be read, NotReady where another that shares the clip has met one of these, and ClipLost."""
    part = run.team.part if run.team else ALONE
    experts = [expert for expert in run.learners if part.expert in (None, expert)]
    own = range(part.turn, len(run.held_out), part.at_once)
    draws = {i: draw_of(run, run.held_out[i]) for i in own}
    total, out = len(own) * len(experts) * run.job.validation.bins, Cells()

    def progress(text: str) -> None:
        run.control.raise_if_stop_requested()
        if run.team is not None and run.team.heard_halt():
            raise StopRequested
        run.log.phase("validating", len(out) * run.job.validation.bins, total, text)

    def first_ones() -> dict[int, Encoded]:
        fault_injection.at("validation.begin", step)
        progress("held-out clips")
        kept, size, most = dict[int, Encoded](), 0, KEPT // (len(run.team.here) if run.team else 1)
        for i, draw in draws.items():
            if size <= most:
                kept[i] = encoded(run, draw)
                size += sum(t.nbytes for t in kept[i] if t is not None)
        return kept

    kept = _made_by_all(run, first_ones)
    with averaged_weights(run, run.job.save.ema), compiled_as_trained(run):
        for expert in experts:
            for i, draw in draws.items():

                def made(i: int = i, draw: SampleDraw = draw, expert: Expert = expert) -> Encoded:
                    run.experts.ensure()
                    progress(expert.replace("_", " "))
                    return kept[i] if i in kept else encoded(run, draw)

                out[expert, i] = _bins(run, expert, draw, _made_by_all(run, made))
    return out


def _made_by_all(run: Run, make: Callable[[], T]) -> T:
    """What `make` makes, once all ranks that share clips with this one have made it."""
    if run.split is None or run.team is None:
        return make()
    made: list[T] = []
    failure: Exception | None = None
    try:
        with memory_errors():
            made.append(make())
    except ClipLost:
        raise
    except Exception as e:
        failure = e
    everyone = run.team.exchange_clip(bool(made))
    if failure is not None:
        raise failure
    if not all(everyone):
        raise NotReady
    return made[0]


def _bins(run: Run, expert: Expert, draw: SampleDraw, found: Encoded) -> list[float]:
    """The loss of one held-out item in each noise bin."""
    x0, conditioning, mask = found
    executor, out = run.experts.executors[expert], list[float]()
    for noise, sigma in noise_of(run, expert, draw.item, tuple(x0.shape[1:])):

        def loss(split: TokenSplit | None, noise: torch.Tensor = noise, sigma: float = sigma) -> float:
            x0_BCFhw, conditioning_BCFhw = (t.to(run.placement.device) for t in (x0, conditioning))
            sigma_B = torch.tensor([sigma], dtype=torch.float32, device=run.placement.device)
            x_t, target = objective.noised(x0_BCFhw, noise.unsqueeze(0).to(x0_BCFhw), sigma_B)
            prediction = executor.predict(
                torch.cat([x_t, conditioning_BCFhw], dim=1),
                sigma_B * NUM_TRAIN_TIMESTEPS,
                run.text([draw.caption]),
                strength=draw.item.weight,
                split=split,
            )
            return float(objective.distance(run.job.training.loss, prediction, target, mask))

        out.append(_made_by_all(run, partial(_shared, run, executor, draw.item.bucket.tokens, loss)))
    return out


def _shared(run: Run, executor: BlockExecutor, tokens: int, loss: Callable[[TokenSplit | None], float]) -> float:
    """A loss by all ranks that share its clip; where memory runs out on one, all of them come to its end."""
    if run.split is None or run.team is None or tokens < run.split.ranks:
        return loss(None)  # fewer tokens than ranks are each rank's own
    return by_all(run.team, "held-out clip", executor, run.split, tokens, [PassSize(1)], loss)


def joined(run: Run, parts: Iterable[Cells]) -> Losses:
    """The losses, of the parts of all ranks."""
    cells, out = {key: bins for part in parts for key, bins in part.items()}, Losses()
    for expert in run.learners:
        of_clips = dict[str, list[list[float]]]()
        for i, item in enumerate(run.held_out):
            of_clips.setdefault(clip_of(item), []).append(cells[expert, i])
        out[expert] = {
            clip: [mean(of_items) for of_items in zip(*rows, strict=True)] for clip, rows in of_clips.items()
        }
    return out


def encoded(run: Run, draw: SampleDraw) -> Encoded:
    """(latents, conditioning) on the host, and the mask on the device: made as a micro-batch of that one clip has
    them."""
    run.control.raise_if_stop_requested()
    batch = decode_here([draw], run.latents.holds if run.latents else None)
    x0, conditioning = latents_of(run.encoder, batch, run.latents, device=run.placement.device)
    mask = None
    if batch.masks is not None:
        mask = torch.from_numpy(batch.masks).unsqueeze(1).to(run.placement.device)
    return x0.cpu(), conditioning.cpu(), mask


def compiled_as_trained(run: Run) -> AbstractContextManager[Any]:
    """Inside, nothing is compiled for a shape of its own: the compiler would take the shapes that it meets first for
    the only ones, and what trains would be compiled otherwise than without validation."""
    plan = run.experts.plan
    groups = Counter(item.group for item in run.loader.sampler.items)
    trained = {(group.bucket, size) for group, size in batches_of(groups, run.job.training.batch_size)}
    if not plan.compiled or plan.any_size or {(item.bucket, 1) for item in run.held_out} <= trained:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def event_of(run: Run, step: int, losses: Losses) -> dict[str, Any]:
    """The data of a `validation` event, but for its time."""
    of, clips = compared_with(run), list(next(iter(losses.values())))
    means = {expert: {clip: mean(bins) for clip, bins in rows.items()} for expert, rows in losses.items()}
    before = [m for m in measured(run) if m.of == of and m.finite and m.losses.keys() == means.keys()]
    against = {"first": before[0], "best": min(before, key=lambda m: (m.loss, m.step))} if before else {}
    experts = {}
    for expert, rows in losses.items():
        of_clips = [means[expert][clip] for clip in clips]
        experts[expert] = {
            "loss": mean(of_clips),
            "error": standard_error(of_clips),
            "edges": edges_of(run, expert),
            "bins": [mean(of_bin) for of_bin in zip(*rows.values(), strict=True)],
            "clips": of_clips,
            **{name: _paired(other, differences(of_clips, other.losses[expert])) for name, other in against.items()},
        }
    return {"step": step, "of": of, "clips": clips, "experts": experts}


def _paired(other: ranking.Measure, apart: Difference) -> dict[str, Any]:
    return {"step": other.step, "difference": apart.mean, "error": apart.error}


def measured(run: Run) -> list[ranking.Measure]:
    """The measurements of this branch, by step."""
    return [m for _, m in sorted(run.log.history.measured.items())]


def ended_early(run: Run) -> str:
    """Why a run that is to end when nothing gets better is over; "" while it goes on. A function of what was measured,
    so that a resumed run ends where an uninterrupted one does."""
    panel = run.job.validation
    since = no_better_since(measured(run), panel.patience) if panel.stop_when == "no better" else None
    if since is None:
        return ""
    those = "1 measurement" if panel.patience == 1 else f"{panel.patience} measurements in a row"
    return (
        f"ended early: {those} of the held-out loss brought nothing better than step {since}. To train on, set"
        ' validation.stop_when = "never" and resume'
    )

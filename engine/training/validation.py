"""The held-out loss: what the LoRAs, as they would be saved, make of clips that never train, at noise that is the same
after each step. It moves nothing of the training: no state that is drawn from, no weight, no plan.

Which clips are held out is presets.facts.held_out's; when they are measured, engine.training.trainer's; what follows
for the checkpoints, presets.runs.ranking's.

B batch (one clip), C channels, F h w latent shape.
"""

import hashlib
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import torch

from engine.data.dataset import Item, dataset_fingerprint
from engine.data.loader import decode_here
from engine.data.sampler import SampleDraw
from engine.encode.latent_cache import latents_of
from engine.runfolder.control import StopRequested
from engine.system import fault_injection
from engine.system.device import memory_errors, release
from engine.system.keyed_random import keyed_rng
from engine.training import objective
from engine.training.context import Run, averaged_weights
from engine.training.placement import place
from presets.clips.batches import batches_of
from presets.errors import UserError
from presets.findings import Finding
from presets.job.expert_schedule import Expert
from presets.job.timesteps import NUM_TRAIN_TIMESTEPS, sigma_range
from presets.runs.ranking import Difference, Measure, differences, mean, no_better_since, standard_error

KEPT = 2**30  # bytes of encoded clips that stay on the host from one expert to the next; others are encoded for each
Encoded = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
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


def validate(run: Run, step: int) -> None:
    """Measure the loss of each trained expert on the held-out clips and log it. A stop ends it early: the next attempt
    makes it. What cannot be measured, for whatever reason, is a finding, and the training goes on."""
    run.bring_together()
    began = time.perf_counter()
    try:
        fault_injection.at("validation.begin", step)
        with memory_errors():
            data = event_of(run, step, measure(run))
    except StopRequested:
        return  # the loop sees it next
    except (fault_injection.InjectedFault, torch.AcceleratorError):  # a card that failed answers nothing any more
        raise
    except Exception as e:
        failure, cause = (str(e) or type(e).__name__).splitlines()[0], cause_of(e)
        known = unmeasured(run) == cause
        # where it came from is worth knowing
        if not known and not isinstance(e, (UserError, OSError, torch.OutOfMemoryError)):
            traceback.print_exc()
    else:
        fault_injection.at("validation.before-event", step)
        again = bool(unmeasured(run))
        run.log.emit("validation", **data, seconds=round(time.perf_counter() - began, 3))
        if again:
            text = f"the held-out loss is measured again: after step {step}"
            run.log.emit("log", level="info", text=text)
        return
    release(run.placement.device)
    place(run, run.planning.plan)  # what was under way is laid out anew, under the same plan
    if known:
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


def measure(run: Run) -> Losses:
    """The losses as they stand. Raises StopRequested, torch.OutOfMemoryError, and UserError or OSError for a clip that
    cannot be read."""
    total = len(run.held_out) * len(run.learners) * run.job.validation.bins
    done = 0

    def progress(text: str) -> None:
        run.control.raise_if_stop_requested()
        run.log.phase("validating", done, total, text)

    progress("held-out clips")
    draws = [draw_of(run, item) for item in run.held_out]
    kept, size = list[Encoded](), 0
    for draw in draws:
        if size <= KEPT:
            kept.append(encoded(run, draw))
            size += sum(t.nbytes for t in kept[-1] if t is not None)
    out: Losses = {}
    with averaged_weights(run, run.job.save.ema), compiled_as_trained(run):
        for expert in run.learners:
            run.experts.ensure()
            executor, of_clips = run.experts.executors[expert], dict[str, list[list[float]]]()
            for i, draw in enumerate(draws):
                progress(expert.replace("_", " "))
                x0, conditioning, mask = kept[i] if i < len(kept) else encoded(run, draw)
                x0_BCFhw, conditioning_BCFhw = (t.to(run.placement.device) for t in (x0, conditioning))
                text_BSD, bins = run.text([draw.caption]), []
                for noise, sigma in noise_of(run, expert, draw.item, tuple(x0.shape[1:])):
                    sigma_B = torch.tensor([sigma], dtype=torch.float32, device=run.placement.device)
                    x_t, target = objective.noised(x0_BCFhw, noise.unsqueeze(0).to(x0_BCFhw), sigma_B)
                    prediction = executor.predict(
                        torch.cat([x_t, conditioning_BCFhw], dim=1),
                        sigma_B * NUM_TRAIN_TIMESTEPS,
                        text_BSD,
                        strength=draw.item.weight,
                    )
                    bins.append(float(objective.distance(run.job.training.loss, prediction, target, mask)))
                    done += 1
                of_clips.setdefault(clip_of(draw.item), []).append(bins)
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


def _paired(other: Measure, apart: Difference) -> dict[str, Any]:
    return {"step": other.step, "difference": apart.mean, "error": apart.error}


def measured(run: Run) -> list[Measure]:
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

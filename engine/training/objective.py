"""One micro-batch: clips -> latents and conditioning -> noise and sigma -> losses -> backward.

What it is trained on is a sum of terms, each with its own forward and backward: the executor runs one after another;
gradients add up in the LoRA, so no second graph is ever alive.

Which micro-batches make a step is engine.training.train_step's.

B batch, C (latent) channels, F h w latent shape, S text tokens, D text width.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from engine.data.loader import Batch
from engine.encode.latent_cache import latents_of
from engine.encode.shared_encodes import Encoded
from engine.executor.block_executor import BlockExecutor
from engine.executor.passes_to_end import PassSize
from engine.parallel.parts import encoded_at_once
from engine.system import fault_injection
from engine.system.keyed_random import keyed_rng
from engine.system.stopwatch import Stopwatch
from engine.training.context import Run
from engine.training.placement import as_agreed
from presets.clips.captions import replace_word
from presets.job.expert_schedule import Expert
from presets.job.schema import AdvancedPanel, Job, TrainingPanel
from presets.job.timesteps import NUM_TRAIN_TIMESTEPS, sigma_at

Rows = list[int] | slice  # of a micro-batch; a slice where it is all of them, for a list is copied to the device


@dataclass(frozen=True)
class LossTerm:
    """One loss: predict `rows` of the micro-batch with `text`, compare by `loss` (prediction -> scalar, its weight
    included)."""

    name: str
    text_BSD: torch.Tensor  # B: as many as rows
    loss: Callable[[torch.Tensor], torch.Tensor]
    rows: Rows


def distance(
    kind: str, prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean loss over all elements, in fp32, each times what the mask (B, 1, F, h, w) says. huber has its corner at 1.

    The sum is divided by the number of elements, not by the sum of the mask: what is white gets the very gradient that
    it would get without a mask, what is black that of it which the dataset's minimum says, and a small or dark mask
    never makes the little that it leaves count more. So the loss of a masked clip reads lower.
    """
    prediction, target = prediction.float(), target.float()
    reduction = "mean" if mask is None else "none"
    if kind == "mae":
        loss = F.l1_loss(prediction, target, reduction=reduction)
    elif kind == "huber":
        loss = F.huber_loss(prediction, target, delta=1.0, reduction=reduction)
    else:
        loss = F.mse_loss(prediction, target, reduction=reduction)
    return loss if mask is None else (loss * mask).mean()


def noised(x0: torch.Tensor, noise: torch.Tensor, sigma_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Flow matching: x_t = (1 - s) x0 + s e, and the velocity target e - x0 (Lipman et al. 2023, as Wan is trained)."""
    s = sigma_B.view(-1, 1, 1, 1, 1)
    return (1 - s) * x0 + s * noise, noise - x0


def main_term(
    training: TrainingPanel,
    advanced: AdvancedPanel,
    text_BSD: torch.Tensor,
    target: torch.Tensor,
    weight: float,
    mask: torch.Tensor | None = None,
) -> LossTerm:
    """The flow-matching loss, times `weight` (this micro-batch's share of the optimizer step), under the clips' masks
    (B, 1, F, h, w), where they have any.

    Differential guidance moves the target away from the current prediction p: p + scale (target - p), p without
    gradient (ai-toolkit's formula). The gradient is the plain one times the scale with MSE, the plain one itself with
    MAE; with huber the error is taken scale times as large, so its corner comes scale times sooner. The loss shown is
    scale^2 (MSE) as large.
    """

    def loss(prediction: torch.Tensor) -> torch.Tensor:
        goal = target
        if advanced.differential_guidance:
            p = prediction.detach().float()
            goal = p + advanced.differential_guidance_scale * (target - p)
        return weight * distance(training.loss, prediction, goal, mask)

    return LossTerm("main", text_BSD, loss, slice(None))


def preserves(training: TrainingPanel) -> bool:
    """Whether a second term keeps the base model's answers: DOP or blank prompt preservation, which exclude each
    other."""
    return training.dop or training.blank_prompt_preservation


def preserved_prompt(training: TrainingPanel, caption: str, trigger: str) -> str:
    """The prompt whose answer is to stay as the base's while `caption` trains: DOP's class prompt, or the empty one."""
    return class_prompt(caption, trigger, training.dop_class) if training.dop else ""


def preservation_term(
    training: TrainingPanel, text_BSD: torch.Tensor, base_prediction: torch.Tensor, rows: Rows, weight: float
) -> LossTerm:
    """Answer as the base model does, where the trigger is not called (`text_BSD` are the preserved prompts): MSE times
    the multiplier. It is not masked: what is to stay as it was, is so everywhere.

    `rows` are the samples of the micro-batch that it holds for, and that text and prediction are of; `weight` is their
    share of the step.
    """
    multiplier = training.dop_multiplier if training.dop else training.blank_prompt_preservation_multiplier

    def loss(prediction: torch.Tensor) -> torch.Tensor:
        return weight * multiplier * distance("mse", prediction, base_prediction)

    return LossTerm("preservation" if training.dop else "blank_prompt", text_BSD, loss, rows)


def class_prompt(caption: str, trigger: str, dop_class: str) -> str:
    """The caption with the class word for the trigger; the class word alone when the caption does not name the
    trigger."""
    text, times = replace_word(caption, trigger, dop_class) if trigger else (caption, 0)
    return text if times else dop_class


@dataclass(frozen=True)
class MicroBatch:
    """What one micro-batch has come to, besides gradients."""

    losses: list[tuple[str, torch.Tensor]]  # (term, its loss)
    timesteps: list[float]
    clips: list[str]
    shape: tuple[int, ...]  # of its latents
    strength: float  # of the LoRA: at 0 it learns nothing of this


def micro_batches(job: Job, step: int) -> range:
    """The numbers of a step's micro-batches, counted over all steps."""
    accumulation = job.training.gradient_accumulation
    return range(step * accumulation, (step + 1) * accumulation)


@dataclass(frozen=True)
class NoisedBatch:
    """A micro-batch as the expert is given it."""

    batch: Batch
    x_BCFhw: torch.Tensor
    timestep_B: torch.Tensor
    target_BCFhw: torch.Tensor
    timesteps: list[float]  # the same as timestep_B

    @property
    def digest(self) -> str:
        """Of its clips and noise, to the bit."""
        found = hashlib.sha256("\0".join(self.batch.ids).encode())
        for tensor in (self.x_BCFhw, self.timestep_B):
            found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()


def micro_batch(run: Run, step: int, index: int, expert: Expert, watch: Stopwatch) -> MicroBatch:
    """Forward and backward of one; its gradients are added to the parameters'."""
    return through_expert(run, step, expert, noised_batch(run, step, index, expert, watch), watch)


def noised_batch(run: Run, step: int, index: int, expert: Expert, watch: Stopwatch) -> NoisedBatch:
    """Decoded, encoded, noised."""
    if run.team is not None:
        run.team.signs.give(f"step {step + 1}")
    made = encoded_batch(run, step, index, watch)
    fault_injection.at("noise", step + 1)
    noise_BCFhw, sigma_B = draws(run, expert, made.batch, made.x0_BCFhw)
    timesteps = sigma_B * NUM_TRAIN_TIMESTEPS
    x_t, target = noised(made.x0_BCFhw, run.placement.send(noise_BCFhw), run.placement.send(sigma_B))
    target = fault_injection.poison("target", step + 1, target)
    x_BCFhw = torch.cat([x_t, made.conditioning_BCFhw], dim=1)
    return NoisedBatch(made.batch, x_BCFhw, run.placement.send(timesteps), target, timesteps.tolist())


def encoded_batch(run: Run, step: int, index: int, watch: Stopwatch) -> Encoded:
    """A micro-batch of step `step`, decoded and encoded, in turns by the ranks that share its clips."""

    def encode(index: int) -> Encoded:
        with watch.part("data"):
            fault_injection.at("data.decode", step + 1)
            batch = run.loader.batch(index)
        with watch.part("vae"):
            fault_injection.at("vae.encode", step + 1)
            return Encoded(batch, *latents_of(run.encoder, batch, run.latents, device=run.placement.device))

    if run.team is None or run.encodes is None:
        return encode(index)
    at_once = encoded_at_once(run.job, run.team.part, index)
    # a plan may change how clips are encoded; after a resume all would be encoded under the new one
    return run.encodes.take(at_once, as_agreed(run.planning.plan), encode)


def through_expert(run: Run, step: int, expert: Expert, noised: NoisedBatch, watch: Stopwatch) -> MicroBatch:
    """Forward and backward of all losses."""
    clips_in_step = sum(len(run.loader.sampler.batch(i)) for i in micro_batches(run.job, step))
    executor, batch = run.experts.executors[expert], noised.batch
    x_BCFhw, timestep_B = noised.x_BCFhw, noised.timestep_B
    losses: list[tuple[str, torch.Tensor]] = []
    with watch.part("transformer"):
        fault_injection.at("forward", step + 1)
        share = len(batch.ids) / clips_in_step
        for term in loss_terms(run, executor, batch, x_BCFhw, timestep_B, noised.target_BCFhw, share=share):
            loss = executor.forward_backward(
                x_BCFhw[term.rows],
                timestep_B[term.rows],
                term.text_BSD,
                term.loss,
                strength=batch.weight,
                split=run.split,
            )
            losses.append((term.name, loss))
        fault_injection.at("backward", step + 1)
    return MicroBatch(losses, noised.timesteps, batch.ids, tuple(x_BCFhw.shape), batch.weight)


def draws(run: Run, expert: Expert, batch: Batch, x0_BCFhw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise and sigma of each sample, on the host. Keyed by its visit (epoch, clip, repeat): the same on a retry, a
    resume, another card, and in whatever micro-batch it comes, so that accumulation equals a larger batch."""
    shape = tuple(x0_BCFhw.shape[1:])
    noise = [
        torch.from_numpy(keyed_rng(run.job.job.seed, "noise", *draw.key).standard_normal(shape, dtype="float32"))
        for draw in batch.draws
    ]
    sigmas = [draw_sigma(run.job, expert, run.base.boundary, *draw.key) for draw in batch.draws]
    return torch.stack(noise), torch.tensor(sigmas, dtype=torch.float32)


def loss_terms(
    run: Run,
    executor: BlockExecutor,
    batch: Batch,
    x_BCFhw: torch.Tensor,
    timestep_B: torch.Tensor,
    target: torch.Tensor,
    *,
    share: float,
) -> list[LossTerm]:
    """The losses of one micro-batch; `share` is its part of the optimizer step, so that accumulation equals a larger
    batch.

    The base's prediction for preservation is computed once per micro-batch and nowhere reused: noise is fresh each
    time, so no other has the same.
    """
    training, mask = run.job.training, None
    if batch.masks is not None:
        mask = run.placement.send(torch.from_numpy(batch.masks).unsqueeze(1))
    out = [main_term(training, run.job.advanced, run.text(batch.captions), target, share, mask)]
    if preserved := preserved_rows(run.job, batch.captions):
        part: Rows = list(preserved) if len(preserved) < len(batch.captions) else slice(None)
        text = run.text(list(preserved.values()))
        base_prediction = executor.predict(x_BCFhw[part], timestep_B[part], text, strength=0.0, split=run.split)
        weight = share * len(preserved) / len(batch.captions)
        out.append(preservation_term(training, text, base_prediction, part, weight))
    return out


def preserved_rows(job: Job, captions: Sequence[str]) -> dict[int, str]:
    """The prompts whose answers are to stay as the base's, by row of a micro-batch with these captions."""
    if not preserves(job.training):
        return {}
    prompts = [preserved_prompt(job.training, caption, job.job.trigger) for caption in captions]
    # Where that is the very caption which trains (a dropped one, a class alone), the two losses would ask opposite
    # things of one prompt.
    both = zip(prompts, captions, strict=True)
    return {i: prompt for i, (prompt, caption) in enumerate(both) if prompt != caption}


def passes_of(job: Job, captions: Sequence[str]) -> list[PassSize]:
    """What `through_expert` takes through the expert, in order, of a micro-batch with these captions."""
    main, preserved = PassSize(len(captions), back=True), len(preserved_rows(job, captions))
    return [PassSize(preserved), main, PassSize(preserved, back=True)] if preserved else [main]


def draw_sigma(job: Job, expert: Expert, boundary: float, *key: int | str) -> float:
    """The sigma of the sample with this key (its visit: epoch, clip, repeat): the same wherever it is drawn again."""
    return sigma_at(job.training, expert, boundary, float(keyed_rng(job.job.seed, "timestep", *key).random()))

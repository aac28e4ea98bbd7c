"""One micro-batch: clips -> latents and conditioning -> noise and sigma -> losses -> backward.

B batch, C channels, F h w latent shape, S text tokens, D text width.

The losses are engine.training.objective's; which micro-batches make a step, engine.training.train_step's.
"""

import hashlib
from dataclasses import dataclass

import torch

from engine.data.loader import Batch
from engine.encode.latent_cache import latents_of
from engine.executor.block_executor import BlockExecutor
from engine.system import fault_injection
from engine.system.keyed_random import keyed_rng
from engine.system.stopwatch import Stopwatch
from engine.training import objective
from engine.training.context import Run
from presets.job.expert_schedule import Expert
from presets.job.schema import Job
from presets.job.timesteps import NUM_TRAIN_TIMESTEPS, sigma_at


@dataclass(frozen=True)
class MicroBatch:
    """What one micro-batch has come to, besides gradients."""

    losses: list[tuple[str, torch.Tensor]]  # (term, its loss)
    timesteps: list[float]
    clips: list[str]


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
    return NoisedBatch(batch, torch.cat([x_t, conditioning_BCFhw], dim=1), sigma_B * NUM_TRAIN_TIMESTEPS, target)


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
    return MicroBatch(losses, timestep_B.tolist(), batch.ids)


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
            base_prediction = executor.predict(x_BCFhw[part], timestep_B[part], text, strength=0.0, split=run.split)
            out.append(
                objective.preservation_term(training, text, base_prediction, part, share * len(rows) / len(prompts))
            )
    return out


def draw_sigma(job: Job, expert: Expert, boundary: float, *key: int | str) -> float:
    """The sigma of the sample with this key (its visit: epoch, clip, repeat): the same wherever it is drawn again."""
    return sigma_at(job.training, expert, boundary, float(keyed_rng(job.job.seed, "timestep", *key).random()))

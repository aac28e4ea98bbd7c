"""What one micro-batch is trained on: its noise and sigmas, and its loss terms.

B batch, C latent channels, F h w latent shape.
"""

import torch

from engine.data.loader import Batch
from engine.executor.block_executor import BlockExecutor
from engine.system.keyed_random import keyed_rng
from engine.training.context import Run
from engine.training.objective import LossTerm, Rows, main_term, preservation_term, preserved_prompt, preserves
from presets.job.expert_schedule import Expert
from presets.job.schema import Job
from presets.job.timesteps import sigma_at


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
) -> list[LossTerm]:
    """The losses of one micro-batch; `share` is its part of the optimizer step, so that accumulation equals a larger
    batch.

    The base's prediction for preservation is computed once per micro-batch and nowhere reused: noise is fresh each
    time, so no other has the same.
    """
    training, trigger = run.job.training, run.job.job.trigger
    out = [main_term(training, run.job.advanced, run.text(batch.captions), target, share)]
    if preserves(training):
        prompts = [preserved_prompt(training, caption, trigger) for caption in batch.captions]
        # Where that is the very caption which trains (a dropped one, a class alone), the two losses would ask opposite
        # things of one prompt.
        rows = [i for i, (prompt, caption) in enumerate(zip(prompts, batch.captions, strict=True)) if prompt != caption]
        if rows:
            part: Rows = rows if len(rows) < len(prompts) else slice(None)
            text = run.text([prompts[i] for i in rows])
            base_prediction = executor.predict(x_BCFhw[part], timestep_B[part], text, strength=0.0)
            out.append(preservation_term(training, text, base_prediction, part, share * len(rows) / len(prompts)))
    return out


def draw_sigma(job: Job, expert: Expert, boundary: float, *key: int | str) -> float:
    """The sigma of the sample with this key (its visit: epoch, clip, repeat): the same wherever it is drawn again."""
    return sigma_at(job.training, expert, boundary, float(keyed_rng(job.job.seed, "timestep", *key).random()))

"""What one micro-batch is trained on: its noise and sigmas, and its loss terms.

B batch, C latent channels, F h w latent shape.
"""

import torch

from engine.base import Expert
from engine.keyed import keyed_rng
from engine.loader import Batch
from engine.objective import Term, class_prompt, main_term, preservation_term
from engine.setup import Run
from engine.streamed import StreamedExecutor
from engine.timesteps import draw_sigma


def draws(run: Run, expert: Expert, step: int, batch: Batch, x0_BCFhw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise and sigma of each sample, keyed by (seed, step, position, clip): the same on a retry, a resume, another card."""
    seed, shape = run.job.job.seed, tuple(x0_BCFhw.shape[1:])
    noise, sigmas = [], []
    for i, clip in enumerate(batch.ids):
        noise.append(torch.from_numpy(keyed_rng(seed, "noise", step, batch.index, i, clip).standard_normal(shape, dtype="float32")))
        u = float(keyed_rng(seed, "timestep", step, batch.index, i, clip).random())
        sigmas.append(draw_sigma(run.job.training, expert, run.base.boundary, u))
    return torch.stack(noise).to(run.device), torch.tensor(sigmas, dtype=torch.float32, device=run.device)


def terms(
    run: Run, executor: StreamedExecutor, batch: Batch, x_BCFhw: torch.Tensor, timestep_B: torch.Tensor, target: torch.Tensor, *, share: float
) -> list[Term]:
    """The losses of one micro-batch; `share` is its part of the optimizer step, so that accumulation equals a larger batch."""
    training, trigger = run.job.training, run.job.job.trigger
    out = [main_term(training, run.job.advanced, run.text(batch.captions), target, share)]
    if training.dop:
        text = run.text([class_prompt(caption, trigger, training.dop_class) for caption in batch.captions])
        base_prediction = executor.predict(x_BCFhw, timestep_B, text, strength=0.0)
        out.append(preservation_term(training, text, base_prediction, share))
    return out

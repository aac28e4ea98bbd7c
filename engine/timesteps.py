"""The sigma of one sample, drawn by a counter-based key. The densities are `presets.timesteps`."""

from engine.keyed import keyed_rng
from presets.job import Job
from presets.stages import Expert
from presets.timesteps import NUM_TRAIN_TIMESTEPS, sigma_at, sigma_range

__all__ = ["NUM_TRAIN_TIMESTEPS", "draw_sigma", "sigma_range"]


def draw_sigma(job: Job, expert: Expert, boundary: float, *key: int | str) -> float:
    """The sigma of the sample with this key (its visit: epoch, clip, repeat): the same wherever it is drawn again."""
    return sigma_at(job.training, expert, boundary, float(keyed_rng(job.job.seed, "timestep", *key).random()))

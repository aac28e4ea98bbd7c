"""At which noise levels (sigma, 0 to 1) a job trains: a density cut to the range of the expert whose turn it is.

With F the distribution function of the timestep type on [0, 1] and q a quantile inside the expert's range [low, high]:
sigma = F^-1( F(low) + q (F(high) - F(low)) ). One uniform number gives one sigma, and the cut to a range is exact.

    linear    F(s) = s
    sigmoid   s = sigmoid(z), z ~ N(0, 1):        F(s) = Phi(logit(s))
    shift     s = 5 u / (1 + 4 u), u ~ U(0, 1):   F(s) = s / (5 - 4 s)      (shift 5, as Wan samples)

The bias bends the quantile, u ~ U(0, 1): balanced q = u, high noise q = 1 - u^3, low noise q = u^3 (the cubic of
ai-toolkit's content/style switch); so P(Q <= q) is q, 1 - (1 - q)^(1/3), q^(1/3). It leans inside each expert's range;
how often an expert trains is the schedule's (presets.job.expert_schedule).
"""

import math
from itertools import pairwise
from statistics import NormalDist

from msgspec import Struct

from presets.errors import UserError
from presets.job.expert_schedule import EXPERTS, Expert, steps_of
from presets.job.schema import Job, TrainingPanel

SHIFT = 5.0
NUM_TRAIN_TIMESTEPS = 1000.0  # the model takes timestep = 1000 sigma
_NORMAL = NormalDist()
_EDGE = 1e-12  # logit of 0 and 1 is infinite


def sigma_range(expert: Expert, boundary: float) -> tuple[float, float]:
    """[low, high] of an expert: high noise has the boundary and above, low noise all below."""
    return (boundary, 1.0) if expert == EXPERTS[0] else (0.0, boundary)


def cdf(kind: str, s: float) -> float:
    """F(s) of a timestep type on [0, 1]."""
    if kind == "sigmoid":
        s = min(max(s, _EDGE), 1 - _EDGE)
        return _NORMAL.cdf(math.log(s / (1 - s)))
    return s / (SHIFT - (SHIFT - 1) * s) if kind == "shift" else s


def inverse_cdf(kind: str, u: float) -> float:
    """F^-1(u) of a timestep type."""
    if kind == "sigmoid":
        return 1 / (1 + math.exp(-_NORMAL.inv_cdf(min(max(u, _EDGE), 1 - _EDGE))))
    return SHIFT * u / (1 + (SHIFT - 1) * u) if kind == "shift" else u


def sigma_at(training: TrainingPanel, expert: Expert, boundary: float, u: float) -> float:
    """The sigma of one sample from one uniform number in [0, 1): what the trainer draws."""
    bias = training.timestep_bias
    q = 1 - u**3 if bias == "high_noise" else u**3 if bias == "low_noise" else u
    low, high = sigma_range(expert, boundary)
    f_low, f_high = cdf(training.timestep_type, low), cdf(training.timestep_type, high)
    return min(max(inverse_cdf(training.timestep_type, f_low + q * (f_high - f_low)), low), high)


def distribution(training: TrainingPanel, expert: Expert, boundary: float, s: float) -> float:
    """P(sigma <= s) of an expert's samples: 0 below its range, 1 above."""
    low, high = sigma_range(expert, boundary)
    if not low < s < high:
        return float(s >= high)
    f_low, f_high = cdf(training.timestep_type, low), cdf(training.timestep_type, high)
    if f_high <= f_low:  # a range too narrow for floats: all of it is one point
        return 1.0
    q = min(max((cdf(training.timestep_type, s) - f_low) / (f_high - f_low), 0.0), 1.0)
    bias = training.timestep_bias
    return 1 - (1 - q) ** (1 / 3) if bias == "high_noise" else q ** (1 / 3) if bias == "low_noise" else q


def median(training: TrainingPanel, expert: Expert, boundary: float) -> float:
    """The sigma that half of an expert's samples stay below."""
    return sigma_at(training, expert, boundary, 0.5)  # each bias maps u = 1/2 to the median: q is monotonic in u


def masses(training: TrainingPanel, expert: Expert, boundary: float, bins: int) -> list[float]:
    """The part of an expert's samples in each of `bins` equal bins of [0, 1]; they add up to 1.

    Bins, because the density itself is infinite where a bias leans to: 1/3 (1 - q)^(-2/3) at the end of the range.
    """
    edges = [distribution(training, expert, boundary, i / bins) for i in range(bins + 1)]
    return [b - a for a, b in pairwise(edges)]


class ExpertTimesteps(Struct, frozen=True, kw_only=True):
    """Where one expert trains. Timesteps run from 0 to 1000."""

    expert: Expert
    trained: bool
    steps: int  # optimizer steps of the run
    low: float  # the range of its timesteps
    high: float
    median: float
    masses: tuple[float, ...]  # the part of its samples in each of the equal bins of 0 to 1000


def timesteps_of(job: Job, boundary: float, *, bins: int) -> list[ExpertTimesteps]:
    """Both experts of a job, high noise first. Raises UserError when the boundary is no noise level."""
    if not 0 < boundary < 1:
        raise UserError(
            f"{boundary:g} is no noise level between 0 and 1",
            where="model.boundary",
            fix='Set model.boundary = "model", or a number such as 0.9',
        )
    steps, out = steps_of(job), []
    for expert in EXPERTS:
        low, high = (s * NUM_TRAIN_TIMESTEPS for s in sigma_range(expert, boundary))
        middle = median(job.training, expert, boundary) * NUM_TRAIN_TIMESTEPS
        found = tuple(masses(job.training, expert, boundary, bins))
        out.append(
            ExpertTimesteps(
                expert=expert,
                trained=expert in steps,
                steps=steps.get(expert, 0),
                low=low,
                high=high,
                median=middle,
                masses=found,
            )
        )
    return out

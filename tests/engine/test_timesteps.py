"""Densities of the sigmas against closed forms: written out here anew, not through the module's own functions."""

import math

import numpy as np
import pytest

from engine.keyed import keyed_rng
from presets.job import TrainingPanel
from presets.timesteps import sigma_at, sigma_range

N = 4000


def ks_distance(samples: np.ndarray, cdf) -> float:
    """Kolmogorov-Smirnov distance between samples and a distribution function."""
    x = np.sort(samples)
    f = np.array([cdf(v) for v in x])
    steps = np.arange(len(x) + 1) / len(x)
    return float(max(np.max(steps[1:] - f), np.max(f - steps[:-1])))


def phi(z: float) -> float:
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


FORMS = {
    "linear": lambda s: s,
    "sigmoid": lambda s: 0.0 if s <= 0 else 1.0 if s >= 1 else phi(math.log(s / (1 - s))),
    "shift": lambda s: s / (5 - 4 * s),  # of s = 5u / (1 + 4u)
}


@pytest.mark.parametrize("bias", ["balanced", "high_noise", "low_noise"])
@pytest.mark.parametrize("expert", ["high_noise", "low_noise"])
@pytest.mark.parametrize("kind", list(FORMS))
def test_density_is_the_type_cut_to_the_range_with_the_bias_on_its_quantile(kind, expert, bias):
    panel = TrainingPanel(timestep_type=kind, timestep_bias=bias)
    low, high = (0.9, 1.0) if expert == "high_noise" else (0.0, 0.9)
    assert sigma_range(expert, 0.9) == (low, high)
    samples = np.array([sigma_at(panel, expert, 0.9, float(keyed_rng(1, "t", i).random())) for i in range(N)])
    assert samples.min() >= low and samples.max() <= high
    f = FORMS[kind]

    def expected(s: float) -> float:
        q = (f(s) - f(low)) / (f(high) - f(low))
        return {"balanced": q, "high_noise": 1 - (1 - q) ** (1 / 3) if q < 1 else 1.0, "low_noise": q ** (1 / 3)}[bias]

    assert ks_distance(samples, expected) < 1.63 / math.sqrt(N)  # the 1% critical value


def test_high_noise_bias_leans_to_noise_and_low_noise_bias_away():
    means = {}
    for bias in ("low_noise", "balanced", "high_noise"):
        panel = TrainingPanel(timestep_bias=bias)
        means[bias] = np.mean([sigma_at(panel, "low_noise", 0.9, (i + 0.5) / 500) for i in range(500)])
    assert means["low_noise"] < 0.3 < means["balanced"] < 0.5 < means["high_noise"]  # 0.9 / 4, 0.9 / 2, 0.9 * 3 / 4


@pytest.mark.parametrize("kind", list(FORMS))
def test_extreme_draws_stay_in_range(kind):
    for expert in ("high_noise", "low_noise"):
        low, high = sigma_range(expert, 0.875)
        for u in (0.0, 1e-15, 1 - 1e-15):
            assert low <= sigma_at(TrainingPanel(timestep_type=kind), expert, 0.875, u) <= high

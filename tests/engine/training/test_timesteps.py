"""Sigmas as the trainer draws them, against closed forms in float64: written out here anew, not through the module's
own functions."""

import math
from functools import cache

import numpy as np
import pytest

from engine.training.objective import draw_sigma
from presets.job.schema import DatasetPanel, Job, JobPanel, TrainingPanel
from presets.job.timesteps import distribution, masses, median, sigma_at, sigma_range

N = 3000
BIASES = ["balanced", "high_noise", "low_noise"]
BOUNDARY = {"high_noise": 0.9, "low_noise": 0.875}


def make_job(seed: int = 42, **training) -> Job:
    return Job(job=JobPanel(name="t", seed=seed), datasets=[DatasetPanel(path="x")], training=TrainingPanel(**training))


@cache
def drawn(kind: str, expert: str, bias: str) -> np.ndarray:
    """The sigmas of N visits: epochs of 50 clips."""
    job = make_job(timestep_type=kind, timestep_bias=bias)
    return np.array([draw_sigma(job, expert, BOUNDARY[expert], i // 50, f"0/{i % 50}.mp4@512", 0) for i in range(N)])  # type: ignore[arg-type]


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


def reference(kind: str, expert: str, bias: str):
    """P(sigma <= s): the type's distribution cut to the range, its quantile bent by the cubic."""
    low, high = (BOUNDARY[expert], 1.0) if expert == "high_noise" else (0.0, BOUNDARY[expert])
    f = FORMS[kind]

    def cdf(s: float) -> float:
        q = min(max((f(min(max(s, low), high)) - f(low)) / (f(high) - f(low)), 0.0), 1.0)
        return {"balanced": q, "high_noise": 1 - (1 - q) ** (1 / 3), "low_noise": q ** (1 / 3)}[bias]

    return cdf


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("expert", ["high_noise", "low_noise"])
@pytest.mark.parametrize("kind", list(FORMS))
def test_densities_are_the_closed_forms(kind, expert, bias):
    samples, cdf = drawn(kind, expert, bias), reference(kind, expert, bias)
    low, high = (BOUNDARY[expert], 1.0) if expert == "high_noise" else (0.0, BOUNDARY[expert])
    assert sigma_range(expert, BOUNDARY[expert]) == (low, high)
    assert samples.min() >= low and samples.max() <= high
    # the 1% critical value; the draws are keyed, so it passes always or never
    assert ks_distance(samples, cdf) < 1.63 / math.sqrt(N)
    others = [
        reference(k, expert, b)
        for k in FORMS
        for b in BIASES
        if (k, b) != (kind, bias) and not (expert == "high_noise" and b == bias)
    ]
    assert all(ks_distance(samples, other) > 1.63 / math.sqrt(N) for other in others), (
        "another density would pass as well"
    )


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("expert", ["high_noise", "low_noise"])
@pytest.mark.parametrize("kind", list(FORMS))
def test_what_is_plotted_is_the_same_density(kind, expert, bias):
    panel, cdf, boundary = (
        TrainingPanel(timestep_type=kind, timestep_bias=bias),
        reference(kind, expert, bias),
        BOUNDARY[expert],
    )
    points = [i / 40 for i in range(41)]
    np.testing.assert_allclose(
        [distribution(panel, expert, boundary, s) for s in points], [cdf(s) for s in points], atol=1e-9
    )
    bins = masses(panel, expert, boundary, 40)
    np.testing.assert_allclose(bins, np.diff([cdf(s) for s in points]), atol=1e-9)
    assert sum(bins) == pytest.approx(1.0)
    assert cdf(median(panel, expert, boundary)) == pytest.approx(0.5, abs=1e-9)


def test_each_sample_has_a_key_of_its_own():
    job = make_job()
    keys = [(epoch, clip, repeat) for epoch in (0, 1) for clip in ("0/a.mp4@512", "0/b.mp4@512") for repeat in (0, 1)]
    sigmas = [draw_sigma(job, "low_noise", 0.9, *key) for key in keys]
    assert len(set(sigmas)) == len(keys)
    assert [draw_sigma(make_job(), "low_noise", 0.9, *key) for key in reversed(keys)] == sigmas[::-1], (
        "the order of the draws does not matter"
    )
    assert draw_sigma(make_job(seed=43), "low_noise", 0.9, *keys[0]) != sigmas[0]


def test_high_noise_bias_leans_to_noise_and_low_noise_bias_away():
    means = {bias: drawn("linear", "low_noise", bias).mean() for bias in BIASES}
    # 0.875 / 4, 0.875 / 2, 0.875 * 3 / 4
    assert means["low_noise"] < 0.3 < means["balanced"] < 0.5 < means["high_noise"]


@pytest.mark.parametrize("boundary", [0.875, 1e-9, 1 - 1e-9, 5e-324])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("kind", list(FORMS))
def test_extreme_draws_stay_in_range(kind, bias, boundary):
    """Also where a boundary leaves one expert next to nothing."""
    panel = TrainingPanel(timestep_type=kind, timestep_bias=bias)
    for expert in ("high_noise", "low_noise"):
        low, high = sigma_range(expert, boundary)
        for u in (0.0, 1e-15, 0.5, 1 - 1e-15):
            assert low <= sigma_at(panel, expert, boundary, u) <= high
        assert sum(masses(panel, expert, boundary, 10)) == pytest.approx(1.0)

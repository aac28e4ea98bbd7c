import math

import pytest
import torch

from engine.optim import Ema, build_optimizer, clip_gradients, lr_at
from presets.errors import UserError
from presets.job import DatasetPanel, ExpertPanel, Job, JobPanel, MultistagePanel, TrainingPanel


def test_adamw_takes_the_step_of_the_paper():
    """Loshchilov & Hutter 2019, algorithm 2, one step in float64."""
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    g = torch.tensor([0.3, -0.1, 0.0])
    optimizer = build_optimizer(TrainingPanel(optimizer="adamw", lr=0.01, weight_decay=0.1), [p])
    expected = []
    for x, d in zip(p.tolist(), g.tolist(), strict=True):
        m_hat, v_hat = d, d * d  # after bias correction of the first step
        expected.append(x * (1 - 0.01 * 0.1) - 0.01 * m_hat / (math.sqrt(v_hat) + 1e-8))
    p.grad = g
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor(expected), rtol=1e-6, atol=1e-7)


def test_schedules_at_their_corners():
    def rates(*steps: int, expert="low_noise", **training) -> list[float]:
        job = Job(job=JobPanel(name="t"), datasets=[DatasetPanel(path="x")], training=TrainingPanel(**training), multistage=MultistagePanel(high=ExpertPanel(lr=0.5)))
        return [lr_at(job, expert, step) for step in steps]

    warm = {"lr": 1.0, "steps": 110, "warmup_steps": 10}
    assert rates(0, 4, 9, 10, 99, **warm) == [0.1, 0.5, 1.0, 1.0, 1.0]
    assert rates(10, 60, 110, lr_scheduler="linear", **warm) == [1.0, 0.5, 0.0]
    assert rates(0, 50, 100, lr=2.0, steps=100, lr_scheduler="cosine") == pytest.approx([2.0, 1.0, 0.0])
    assert rates(4, 60, lr_scheduler="linear", expert="high_noise", **warm) == [0.25, 0.25], "its own rate, at the same place of the schedule"


def test_clipping_scales_to_the_norm_and_reports_the_norm_before():
    p = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    p[0].grad, p[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert float(clip_gradients(p, 1.0)) == 5.0
    assert float(torch.cat([x.grad for x in p]).norm()) == pytest.approx(1.0, rel=1e-5)
    assert float(clip_gradients(p, 0.0)) == pytest.approx(1.0, rel=1e-5)


def test_ema_follows_by_its_decay():
    value = {"a": torch.tensor([0.0])}
    ema = Ema(0.9, value)
    for _ in range(3):
        value["a"] += 1.0
        ema.update(value)
    assert ema.average["a"].item() == pytest.approx(0.9 * (0.9 * (0.1 * 1) + 0.1 * 2) + 0.1 * 3)


def test_an_optimizer_that_this_machine_lacks_is_refused_with_a_way_out():
    with pytest.raises(UserError, match=r'training.optimizer.*"adamw"'):
        build_optimizer(TrainingPanel(optimizer="adamw8bit"), [torch.nn.Parameter(torch.zeros(1))])

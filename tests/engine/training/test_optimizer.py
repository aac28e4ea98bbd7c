import copy
import math
import sys

import pytest
import torch

from engine.runfolder.checkpoint import State, load, save
from engine.training.optimizer import Ema, build_optimizer, clip_gradients, load_state, lr_at, step_if
from presets.errors import UserError
from presets.job.schema import DatasetPanel, ExpertPanel, Job, JobPanel, MultistagePanel, TrainingPanel

G = torch.Generator().manual_seed(3)
START = torch.randn(6, 40, generator=G)
GRADS = [torch.randn(6, 40, generator=G) * 10.0 ** (i - 2) for i in range(5)]  # of very unlike sizes
GRADS[3][0] = 0


def taken(training: TrainingPanel) -> torch.Tensor:
    """Where `START` is after a step with each of `GRADS`."""
    p = torch.nn.Parameter(START.clone())
    optimizer = build_optimizer(training, [p])
    for g in GRADS:
        p.grad = g.clone()
        optimizer.step()
    return p.detach().double()


def test_adamw_takes_the_steps_of_the_paper():
    """Loshchilov & Hutter 2019, algorithm 2, in float64: the decay is apart from the moments."""
    lr, decay, b1, b2 = 0.01, 0.1, 0.9, 0.999
    x, m, v = START.double(), torch.zeros(6, 40).double(), torch.zeros(6, 40).double()
    for t, g in enumerate((g.double() for g in GRADS), 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        x = x - lr * decay * x - lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + 1e-8)
    torch.testing.assert_close(
        taken(TrainingPanel(optimizer="adamw", lr=lr, weight_decay=decay)), x, rtol=1e-5, atol=1e-6
    )


def test_adafactor_takes_the_steps_of_the_paper_at_the_rate_it_is_given():
    """Shazeer & Stern 2018, algorithm 4 without relative step and parameter scale, in float64: row and column means,
    update clipped to RMS 1."""
    lr, decay = 0.01, 0.1
    x, row, column = START.double(), torch.zeros(6).double(), torch.zeros(40).double()
    for t, g in enumerate((g.double() for g in GRADS), 1):
        keep = 1 - t**-0.8
        row, column = (
            keep * row + (1 - keep) * (g * g + 1e-30).mean(1),
            keep * column + (1 - keep) * (g * g + 1e-30).mean(0),
        )
        u = g / (row[:, None] * column[None, :] / row.mean()).sqrt()
        x = x - lr * decay * x - lr * u / max(1.0, float((u * u).mean().sqrt()))
    torch.testing.assert_close(
        taken(TrainingPanel(optimizer="adafactor", lr=lr, weight_decay=decay)), x, rtol=1e-5, atol=1e-6
    )


def test_adafactor_moves_a_lora_that_begins_at_zero():
    p = torch.nn.Parameter(torch.zeros(8, 4))
    optimizer = build_optimizer(TrainingPanel(optimizer="adafactor", lr=1e-4, weight_decay=0.0), [p])
    p.grad = torch.full((8, 4), 1e-3)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((8, 4), -1e-4))


def test_prodigy_takes_the_steps_of_the_paper():
    """Mishchenko & Defazio 2023, algorithm 4, in float64: the rate d grows by itself from 1e-6. The pull is steady, as
    in a valley."""
    lr, decay, b1, b2, d0 = 1.0, 0.1, 0.9, 0.999, 1e-6
    pulls = [g / 10.0 ** (i - 2) * 0.2 + 1 for i, g in enumerate(GRADS)] * 6
    p = torch.nn.Parameter(START * 1e-3)
    optimizer = build_optimizer(TrainingPanel(optimizer="prodigy", lr=lr, weight_decay=decay), [p])
    x0 = x = p.detach().double()
    m, v, s, r, d, b3 = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x), 0.0, d0, b2**0.5
    for pull in pulls:
        p.grad = pull.clone()
        optimizer.step()
        g = pull.double()
        r = b3 * r + d / d0 * d * lr * float((g * (x0 - x)).sum())
        s = b3 * s + d / d0 * d * lr * g
        m, v, old = b1 * m + (1 - b1) * d * g, b2 * v + (1 - b2) * d * d * g * g, d
        d = max(d, r / float(s.abs().sum()))
        x = x - old * lr * decay * x - old * lr * m / (v.sqrt() + d * 1e-8)
    assert d > 1e-5, "it has found that larger steps are safe"
    torch.testing.assert_close(p.detach().double() - x0, x - x0, rtol=1e-2, atol=1e-3 * float((x - x0).abs().max()))


def test_adamw8bit_is_adamw_but_for_its_rounded_state(monkeypatch):
    """Against the closed form in float64, on the CPU, where the package runs as well: as it is built for a card, each
    step and the whole way."""
    lr, decay, b1, b2 = 1e-2, 0.1, 0.9, 0.999
    g = torch.Generator().manual_seed(2)
    start = torch.randn(64, 128, generator=g)  # smaller tensors keep their state in fp32
    p = torch.nn.Parameter(start.clone())
    monkeypatch.setattr(torch.nn.Parameter, "device", property(lambda self: torch.device("cuda")))
    optimizer = build_optimizer(TrainingPanel(optimizer="adamw8bit", lr=lr, weight_decay=decay), [p])
    monkeypatch.undo()
    x, m, v = start.double(), torch.zeros_like(start, dtype=torch.float64), torch.zeros_like(start, dtype=torch.float64)
    for t in range(1, 9):
        grad = torch.randn(start.shape, generator=g)
        p.grad = grad.clone()
        optimizer.step()
        m, v = b1 * m + (1 - b1) * grad.double(), b2 * v + (1 - b2) * grad.double() ** 2
        x = x * (1 - lr * decay) - lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + 1e-8)
    assert optimizer.state[p]["state1"].dtype == torch.uint8
    assert (p.detach().double() - x).norm() < 0.03 * (x - start.double()).norm()
    assert (p.detach().double() - x).norm() > 0


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("at", [0, 2])
def test_a_step_that_is_not_finite_moves_neither_weights_nor_state(fused, at):
    """The next ones are those of a run that never had it. Fused kernels exist for the CPU as well."""

    def train(grads: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        p = torch.nn.Parameter(START.clone())
        optimizer = torch.optim.AdamW([p], lr=0.01, fused=fused)
        for g in grads:
            p.grad = g.clone()
            step_if(optimizer, torch.isfinite(clip_gradients([p], 1.0)))
        return p.detach(), optimizer.state[p]

    p, state = train([*GRADS[:at], torch.full_like(START, math.nan), *GRADS[at:]])
    right, right_state = train(GRADS)
    assert torch.equal(p, right) and all(torch.equal(state[name], value) for name, value in right_state.items())
    assert not torch.equal(p, train(GRADS[:-1])[0])


@pytest.mark.parametrize(("before", "now"), [(False, True), (True, False)])
def test_a_run_goes_on_with_the_kernels_of_the_device_that_it_resumes_on(before, now):
    """A checkpoint of a CPU on a card, and the other way round."""

    def trained(optimizer: torch.optim.Optimizer, p: torch.nn.Parameter, grads: list[torch.Tensor]) -> None:
        for g in grads:
            p.grad = g.clone()
            step_if(optimizer, torch.isfinite(clip_gradients([p], 1.0)))

    def new(start: torch.Tensor, *, fused: bool) -> tuple[torch.optim.Optimizer, torch.nn.Parameter]:
        p = torch.nn.Parameter(start.clone())
        return torch.optim.AdamW([p], lr=0.01, fused=fused), p

    straight, p = new(START, fused=before)
    trained(straight, p, GRADS[:2])
    resumed, q = new(p.detach(), fused=now)
    load_state(resumed, copy.deepcopy(straight.state_dict()))
    assert [group["fused"] for group in resumed.param_groups] == [now]
    grads = [torch.full_like(START, math.nan), *GRADS[2:]]
    trained(straight, p, grads)
    trained(resumed, q, grads)
    torch.testing.assert_close(q, p)
    assert resumed.state[q]["step"] == len(GRADS) and not torch.equal(q, START)


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "prodigy", "adamw8bit"])
def test_every_optimizer_goes_on_from_a_checkpoint_to_the_same_bits(kind, tmp_path, capsys):
    """Trained on, then saved, loaded into a new one, and both trained on."""
    g = torch.Generator().manual_seed(1)
    grads = [[torch.randn(16, 300, generator=g), torch.randn(64, 80, generator=g)] for _ in range(6)]

    start = [torch.randn(x.shape, generator=g) for x in grads[0]]

    def new() -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
        parameters = [torch.nn.Parameter(x / 100) for x in start]
        if kind == "adamw8bit":  # ours wants the card; the package itself also runs without
            import bitsandbytes  # loads torch's compiler

            return parameters, bitsandbytes.optim.AdamW8bit(parameters, lr=1e-3)
        return parameters, build_optimizer(
            TrainingPanel(optimizer=kind, lr=1.0 if kind == "prodigy" else 1e-3), parameters
        )

    def train(parameters, optimizer, steps) -> None:
        for step in steps:
            for p, grad in zip(parameters, grads[step], strict=True):
                p.grad = grad.clone()
            optimizer.step()

    straight, optimizer = new()
    train(straight, optimizer, range(3))
    folder, _ = save(
        tmp_path,
        State(
            step=3,
            lora={"low_noise": {str(i): p for i, p in enumerate(straight)}},
            optimizer={"low_noise": optimizer.state_dict()},
        ),
    )
    train(straight, optimizer, range(3, 6))
    state, (resumed, other) = load(folder), new()
    for i, p in enumerate(resumed):
        p.data.copy_(state.lora["low_noise"][str(i)])
    load_state(other, state.optimizer["low_noise"])
    train(resumed, other, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))
    assert not torch.equal(straight[0], state.lora["low_noise"]["0"])
    assert capsys.readouterr().out == "", "standard output is for data"


def test_schedules_are_their_closed_forms_at_every_step():
    """Warm-up (s + 1) / W; then from s = W, with x = (s - W) / (N - W): 1, 1 - x, (1 + cos pi x) / 2."""
    steps, warm, lr = 50, 7, 3e-4
    forms = {"constant": lambda x: 1.0, "linear": lambda x: 1 - x, "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2}
    for kind, form in forms.items():
        job = Job(
            job=JobPanel(name="t"),
            datasets=[DatasetPanel(path="x")],
            training=TrainingPanel(lr=lr, steps=steps, warmup_steps=warm, lr_scheduler=kind),
        )
        for s in range(steps):
            expected = lr * (s + 1) / warm if s < warm else lr * form((s - warm) / (steps - warm))
            assert lr_at(job, "high_noise", s) == pytest.approx(expected, rel=1e-12), (kind, s)


def test_schedules_at_their_corners():
    def rates(*steps: int, expert="low_noise", **training) -> list[float]:
        job = Job(
            job=JobPanel(name="t"),
            datasets=[DatasetPanel(path="x")],
            training=TrainingPanel(**training),
            multistage=MultistagePanel(high=ExpertPanel(lr=0.5)),
        )
        return [lr_at(job, expert, step) for step in steps]

    warm = {"lr": 1.0, "steps": 110, "warmup_steps": 10}
    assert rates(0, 4, 9, 10, 99, **warm) == [0.1, 0.5, 1.0, 1.0, 1.0]
    assert rates(10, 60, 110, lr_scheduler="linear", **warm) == [1.0, 0.5, 0.0]
    assert rates(0, 50, 100, lr=2.0, steps=100, lr_scheduler="cosine") == pytest.approx([2.0, 1.0, 0.0])
    assert rates(4, 60, lr_scheduler="linear", expert="high_noise", **warm) == [
        0.25,
        0.25,
    ], "its own rate, at the same place of the schedule"


def test_clipping_scales_to_the_norm_and_reports_the_norm_before():
    p = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    p[0].grad, p[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert float(clip_gradients(p, 1.0)) == 5.0
    assert float(torch.cat([x.grad for x in p]).norm()) == pytest.approx(1.0, rel=1e-5)
    assert float(clip_gradients(p, 0.0)) == pytest.approx(1.0, rel=1e-5)


def test_clipping_against_float64():
    g = torch.Generator().manual_seed(5)
    for most in (0.5, 1e6):
        p = [torch.nn.Parameter(torch.zeros(n, 7)) for n in (3, 50, 400)]
        for x in p:
            x.grad = torch.randn(x.shape, generator=g)
        before = [x.grad.double().clone() for x in p]
        norm = math.sqrt(sum(float((x**2).sum()) for x in before))
        assert float(clip_gradients(p, most)) == pytest.approx(norm, rel=1e-6)
        for x, b in zip(p, before, strict=True):
            torch.testing.assert_close(x.grad.double(), b * min(1.0, most / norm), rtol=1e-5, atol=1e-9)


def test_ema_is_its_closed_form():
    """After n updates: decay^n a0 + (1 - decay) sum decay^(n - k) a_k."""
    g, decay = torch.Generator().manual_seed(6), 0.97
    seen = [torch.randn(4, 4, generator=g) for _ in range(31)]
    ema = Ema(decay, {"a": seen[0]})
    for value in seen[1:]:
        ema.update({"a": value})
    n = len(seen) - 1
    expected = decay**n * seen[0].double() + (1 - decay) * sum(
        decay ** (n - k) * seen[k].double() for k in range(1, n + 1)
    )
    torch.testing.assert_close(ema.average["a"].double(), expected, rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize(("kind", "package"), [("prodigy", "prodigyopt")])
def test_a_package_that_is_missing_is_named_with_a_way_out(kind, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # importing it now fails, as where it is not installed
    with pytest.raises(UserError, match=rf"training.optimizer: .*{package}.*pip install {package}"):
        build_optimizer(TrainingPanel(optimizer=kind), [torch.nn.Parameter(torch.zeros(1))])

"""Passes of previews by all ranks that share clips with the first one: what one orders, the others compute. A fake team
of two, which are both this process, and compute the whole. That parts of the tokens make the whole is
tests/engine/executor/test_token_split.py's, and whole runs are tests/engine/parallel/test_ranks.py's."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.adapters import lora
from engine.adapters.accelerator import load_accelerators
from engine.executor.shared_passes import SharedPasses, shares_passes, take_part
from engine.parallel.lost_clips import ClipLost
from engine.parallel.orders import Pass
from engine.parallel.parts import ALONE, Part
from engine.training.context import averaged_weights
from engine.training.optimizer import Ema
from presets.job.toml_file import with_value
from presets.planner.plan import LESS_MEMORY
from tests.helpers.jobs import write_job
from tests.helpers.training.bench import Bench

SHARED = Part(None, 0, (0, 1), 2)
EXPERT = "high_noise"


class FakeTeam:
    """Both ranks of it: the first one's orders and what it hands on are the second's."""

    def __init__(self, part: Part = SHARED) -> None:
        self.part, self.order, self.handed, self.lost = part, None, list[torch.Tensor](), list[Any]()
        self.signs = SimpleNamespace(give=lambda doing: None)

    @contextmanager
    def at_work(self, order: Pass) -> Iterator[None]:
        self.order = order
        yield

    def hand(self, tensor: torch.Tensor, place: int) -> None:
        assert place == 0
        if self.part.place == 0:
            self.handed.append(tensor.clone())
        else:
            tensor.copy_(self.handed.pop(0))

    def give_up(self, loss: Any) -> None:
        self.lost.append(loss)


@pytest.fixture(scope="module")
def bench(tiny, tmp_path_factory) -> Bench:
    path = write_job(tmp_path_factory.mktemp("passes"), tiny, prompts=1, dataset={"num_frames": 1}, ema=True)
    made = Bench(path)
    generator = torch.Generator().manual_seed(1)
    values = {n: torch.randn(p.shape, generator=generator) for n, p in made.run.learners[EXPERT].parameters.items()}
    file = path.parent / "accelerator.safetensors"
    lora.save_lora(file, values, job=made.job, base=made.run.base, expert=EXPERT, step=1)
    job = with_value(made.job, "sample.accelerator", str(file))
    made.run.accelerators, _ = load_accelerators(job, path.parent, made.run.base, torch.float32)
    for learner in made.run.learners.values():
        learner.ema = Ema(0.5, learner.parameters)
        for value in learner.ema.average.values():
            value.mul_(2)
    return made


WHOLE: Any = SimpleNamespace(of=lambda tokens: None, ranks=2)


def given(side: int = 8) -> tuple[torch.Tensor, ...]:
    """Two prompts for one video."""
    made = torch.Generator().manual_seed(2)
    x, text = torch.randn(1, 36, 1, side, side, generator=made), torch.randn(2, 16, 32, generator=made)
    return x.expand(2, -1, -1, -1, -1), torch.tensor([900.0]).expand(2), text


@pytest.mark.parametrize(("averaged", "accelerated"), [(False, False), (True, False), (False, True)])
def test_the_others_compute_what_the_first_computes(bench: Bench, monkeypatch, averaged: bool, accelerated: bool):
    run, team, answers = bench.run, FakeTeam(), []
    with averaged_weights(run, averaged), run.experts.accelerated(run.accelerators if accelerated else {}):
        passes = SharedPasses(run.experts, team, WHOLE, 4, averaged, accelerated)
        first = passes.of(EXPERT).predict(*given(), strength=0.5)
    executor = run.experts.executors[EXPERT]
    plain = executor.predict(*given(), strength=0.5)
    assert first.isfinite().all() and torch.equal(first, plain) != (averaged or accelerated)
    predict = executor.predict
    monkeypatch.setattr(executor, "predict", lambda *a, **how: answers.append(predict(*a, **how)))
    team.part = replace(SHARED, place=1)
    with averaged_weights(run, team.order.averaged):
        take_part(run.experts, run.accelerators, team, WHOLE, team.order)
    assert torch.equal(answers[0], first)
    assert not team.lost and not team.handed


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), KeyError("x")])
def test_an_error_in_the_midst_ends_all(bench: Bench, monkeypatch, place: int, error: Exception):
    team, experts = FakeTeam(replace(SHARED, place=place)), bench.run.experts

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(experts.executors[EXPERT], "predict", fail)
    with pytest.raises(ClipLost):
        if place == 0:
            SharedPasses(experts, team, WHOLE, 4, False, False).of(EXPERT).predict(*given())
        else:
            team.handed = list(given())
            shapes = tuple((tuple(t.shape), t.dtype) for t in given())
            take_part(experts, {}, team, WHOLE, Pass(4, EXPERT, shapes, 1.0, False, False))
    (loss,) = team.lost
    short = isinstance(error, torch.OutOfMemoryError)
    assert loss.user == short and loss.fix == (LESS_MEMORY if short else "")
    assert ("a preview that 2 GPUs share" if short else "KeyError") in loss.cause


def test_who_shares_no_clip_with_the_first_or_has_one_expert_alone_has_no_part_in_its_passes():
    assert shares_passes(FakeTeam()) and shares_passes(FakeTeam(replace(SHARED, place=1)))
    for part in (ALONE, Part(None, 0, (0, 1)), Part(EXPERT, 0, (0, 1), 2), Part(None, 2, (0, 1, 2, 3), 2)):
        assert not shares_passes(FakeTeam(part))


def test_fewer_tokens_than_ranks_are_one_ranks(bench: Bench):
    team, experts = FakeTeam(), bench.run.experts
    found = SharedPasses(experts, team, WHOLE, 4, False, False).of(EXPERT).predict(*given(side=2))
    assert team.order is None and torch.equal(found, experts.executors[EXPERT].predict(*given(side=2)))

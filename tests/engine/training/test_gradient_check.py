"""A LoRA that gets no gradient ends the run at once; one that rightly gets none does not."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from engine.parallel.parts import Part
from engine.run import run_job
from engine.training.context import Run
from engine.training.gradient_check import GradientCheck
from engine.training.train_step import take_step
from engine.wan import block
from presets.errors import UserError
from presets.planner.plan import Plan
from tests.helpers.jobs import of_kind, write_image_job, write_job
from tests.helpers.training.bench import Bench

EXPERT, PLAN = "high_noise", Plan()


@pytest.fixture(scope="module")
def bench(tiny, tmp_path_factory) -> Iterator[Bench]:
    """One small frame, its latents cached, of a clip with a mask."""
    folder = tmp_path_factory.mktemp("checked")
    dataset = {"caption_dropout": 0.0, "num_frames": 1, "cache_latents": True, "mask_min": 0.0}
    path = write_job(folder, tiny, clips=1, prompts=0, trigger="frung", dataset=dataset, dop=True)
    mask = Image.new("L", (64, 48))
    mask.paste(255, (0, 0, 8, 8))
    mask.save(folder / "clips" / "0.mask.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield Bench(path)


def fresh(bench: Bench, **values: object) -> Run:
    """The run before its first step: B is zero, the optimizer knows nothing."""
    run = replace(bench.run_of(bench.changed(**{"training__dop": False} | values)), gradient_check=GradientCheck())
    learner, generator = run.learners[EXPERT], torch.Generator().manual_seed(0)
    for name, parameter in learner.parameters.items():
        parameter.data.normal_(0, 0.2, generator=generator)
        if "lora_B" in name:
            parameter.data.zero_()
    learner.optimizer.state.clear()
    return run


PLAIN = block.post_attention


def nothing_back(*given: object) -> torch.Tensor:
    """post_attention as it once was: what is computed is right, and only zeros come back through it."""
    y = PLAIN(*given)
    return y.detach() + 0 * y


def without(weights: block.BlockWeights, sides: str, *linears: str) -> block.BlockWeights:
    """The same, of which these get no gradient."""
    lora = {
        name: tuple(t.detach() if side in sides else t for side, t in zip("AB", pair, strict=True))
        if name in linears
        else pair
        for name, pair in weights.lora.items()
    }
    return weights._replace(lora=lora)


def test_blocks_without_a_gradient_are_named_before_the_weights_move(bench, monkeypatch):
    run = fresh(bench)
    before = {name: p.data.clone() for name, p in run.learners[EXPERT].parameters.items()}
    monkeypatch.setattr(run.experts.resources, "_post_attention", nothing_back)
    with pytest.raises(UserError, match="in blocks 0-1, the high_noise LoRA got no gradient") as raised:
        take_step(run, 0)
    assert "step 1" in raised.value.where and "resident" in raised.value.where
    assert "quantization.transformer" in raised.value.fix
    learner = run.learners[EXPERT]
    assert not learner.optimizer.state and all(p.grad is None for p in learner.parameters.values())
    assert all(torch.equal(p, before[name]) for name, p in learner.parameters.items())


def test_one_block_among_others_is_seen(bench, monkeypatch):
    run = fresh(bench)
    last = run.learners[EXPERT].parameters["blocks.1.ffn.net.2.lora_B.weight"]

    def of_last(given):
        return without(given, "AB", *given.lora) if given.lora["ffn.net.2"][1] is last else given

    for name in ("_pre_attention", "_text_kv", "_post_attention"):
        monkeypatch.setattr(run.experts.resources, name, with_weights(getattr(run.experts.resources, name), of_last))
    with pytest.raises(UserError, match="in block 1, the high_noise LoRA got no gradient"):
        take_step(run, 0)


def with_weights(
    function: Callable[..., Any], changed: Callable[[block.BlockWeights], block.BlockWeights]
) -> Callable[..., Any]:
    return lambda *given: function(*(changed(g) if isinstance(g, block.BlockWeights) else g for g in given))


def test_linears_without_a_gradient_in_every_block_are_named(bench, monkeypatch):
    run = fresh(bench)
    monkeypatch.setattr(
        run.experts.resources,
        "_text_kv",
        with_weights(block.text_kv, lambda weights: without(weights, "AB", "attn2.to_k", "attn2.to_v")),
    )
    with pytest.raises(UserError, match=r"in attn2\.to_k, attn2\.to_v of every block, the high_noise LoRA"):
        take_step(run, 0)


def test_a_is_asked_for_once_b_has_moved(bench, monkeypatch):
    """At the first step it rightly gets none; at the second it would."""
    run = fresh(bench)
    half = with_weights(PLAIN, lambda weights: without(weights, "A", "ffn.net.2"))
    monkeypatch.setattr(run.experts.resources, "_post_attention", half)
    assert take_step(run, 0)
    with pytest.raises(UserError, match=r"in ffn\.net\.2 of every block, the high_noise LoRA") as raised:
        take_step(run, 1)
    assert "step 2" in raised.value.where


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"training__dop": True},
        {"training__loss": "mae"},
        {"training__loss": "huber", "advanced__differential_guidance": True},
        {"training__max_grad_norm": 0.0},
    ],
)
def test_runs_that_are_well_pass(bench, values):
    run = fresh(bench, **values)
    assert take_step(run, 0) and take_step(run, 1)


@pytest.mark.parametrize("values", [{"datasets__weight": 0.0}, {"datasets__weight": 0.0, "training__dop": True}])
def test_a_lora_that_is_off_while_a_dataset_trains_owes_nothing(bench, values):
    taken = take_step(fresh(bench, **values), 0)
    assert taken and taken.data["grad_norm"] == 0 < taken.data["loss"]


def test_a_clip_that_is_masked_all_over_owes_nothing_and_the_next_one_is_looked_at(bench, monkeypatch):
    run = fresh(bench)
    batch = run.loader.batch
    with monkeypatch.context() as patch:
        patch.setattr(run.loader, "batch", lambda i: _black(batch(i)))
        taken = take_step(run, 0)
        assert taken and taken.data["grad_norm"] == 0 == taken.data["loss"]
    monkeypatch.setattr(run.experts.resources, "_post_attention", nothing_back)
    with pytest.raises(UserError, match="blocks 0-1"):
        take_step(run, 1)


def _black(batch):
    batch.masks[:] = 0
    return batch


@pytest.mark.parametrize("theirs", [True, False])
def test_ranks_that_share_a_step_look_at_what_came_of_all(bench, monkeypatch, theirs):
    """A fake team of two: nothing comes of this rank's clip, and something of the other's, or nothing either."""
    run = fresh(bench, training__gradient_accumulation=2)
    run.team = SimpleNamespace(
        part=Part(None, 0, (0, 1)),
        parts=[Part(None, 0, (0, 1))] * 2,
        leads=True,
        exchange_sharing=lambda mine: [mine, mine],
        gather=lambda mine: [mine, torch.ones_like(mine) if theirs else mine],
        signs=SimpleNamespace(give=lambda doing: None),
    )
    monkeypatch.setattr(run.experts.resources, "_post_attention", nothing_back)
    with nullcontext() if theirs else pytest.raises(UserError, match="blocks 0-1"):
        assert take_step(run, 0)


def test_what_was_seen_is_looked_at_again_under_another_plan_and_with_clips_of_another_size():
    check, asked = GradientCheck(), []
    names = [f"blocks.{b}.{linear}.lora_{side}.weight" for b in range(3) for linear in ("q", "k") for side in "AB"]
    parameters = {name: torch.ones(2) for name in names}
    good, none = {name: torch.ones(2) for name in names}, dict.fromkeys(names)

    def look(gradients, size=1, plan=PLAN, expert=EXPERT):
        def loss():
            asked.append(size)
            return 1.0

        return check.lost(parameters, gradients, (expert, frozenset([(size,)])), plan, loss)

    assert look(good) == "" and asked == [1]
    assert look(none) == "" and asked == [1], "nothing is looked at twice"
    assert look(none, size=2) == "blocks 0-2"
    assert look(none, expert="low_noise") == "blocks 0-2"
    assert look(none, plan=Plan(kept=1)) == "blocks 0-2"
    assert look({**good, "blocks.1.q.lora_B.weight": None}, size=3) == "", "a linear may be at rest"
    some = {name: None if ".0." in name or ".2." in name else g for name, g in good.items()}
    assert look(some, size=4) == "blocks 0, 2"
    assert look({name: None if ".q." in name else g for name, g in good.items()}, size=5) == "q of every block"
    tiny = {name: torch.full((2,), 1e-30) for name in names}
    assert look(tiny, size=6) == "", "their norm is 0, they are not"


def test_a_whole_run_ends_with_that_error_and_leaves_no_lora(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(block, "post_attention", nothing_back)
    job = write_image_job(tmp_path, tiny, prompts=0, clips=1)
    assert run_job(job, None, resume=False, workers=0, device="cpu") == 1
    run = tmp_path / "runs" / "t"
    (failed,) = of_kind(run, "failed")
    assert failed["user"] and "in blocks 0-1, the high_noise LoRA got no gradient" in failed["cause"]
    assert "quantization.transformer" in failed["next"]
    assert not of_kind(run, "step") and not list(run.glob("*.safetensors"))

"""A LoRA that gets no gradient ends the run at once; one that rightly gets none does not."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from engine.adapters.gradient_check import GradientCheck
from engine.executor.executor_resources import ExecutorResources
from engine.parallel.parts import Part
from engine.run import run_job
from engine.runfolder.event_log import EventLog
from engine.training.context import Run
from engine.training.train_step import take_step
from engine.wan.block import BlockWeights
from presets.errors import UserError
from tests.helpers.jobs import of_kind, write_image_job, write_job
from tests.helpers.training.bench import Bench
from tests.helpers.training.sameness import without_gradient

EXPERT = "high_noise"


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


PLAIN = ExecutorResources.post_attention_again


def nothing_back(*given: Any, **how: Any) -> torch.Tensor:
    """post_attention_again as it once was: what is computed is right, and only zeros come back through it."""
    y = PLAIN(*given, **how)
    return y.detach() + 0 * y


def without(weights: BlockWeights, sides: str, *linears: str) -> BlockWeights:
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
    monkeypatch.setattr(ExecutorResources, "post_attention_again", nothing_back)
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

    for name in ("pre_attention_again", "text_kv", "post_attention_again"):
        monkeypatch.setattr(ExecutorResources, name, with_weights(getattr(ExecutorResources, name), of_last))
    with pytest.raises(UserError, match="in block 1, the high_noise LoRA got no gradient"):
        take_step(run, 0)


def with_weights(function: Callable[..., Any], changed: Callable[[BlockWeights], BlockWeights]) -> Callable[..., Any]:
    return lambda *given, **how: function(*(changed(g) if isinstance(g, BlockWeights) else g for g in given), **how)


def test_linears_without_a_gradient_in_every_block_are_named(bench, monkeypatch):
    run = fresh(bench)
    still = with_weights(ExecutorResources.text_kv, lambda weights: without(weights, "AB", "attn2.to_k", "attn2.to_v"))
    monkeypatch.setattr(ExecutorResources, "text_kv", still)
    with pytest.raises(UserError, match=r"in attn2\.to_k, attn2\.to_v of every block, the high_noise LoRA"):
        take_step(run, 0)


def test_a_is_asked_for_once_b_has_moved(bench, monkeypatch):
    """At the first step it rightly gets none; at the second it would."""
    run = fresh(bench)
    half = with_weights(PLAIN, lambda weights: without(weights, "A", "ffn.net.2"))
    monkeypatch.setattr(ExecutorResources, "post_attention_again", half)
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


@pytest.mark.parametrize("values", [{}, {"training__dop": True}])
def test_a_lora_that_is_off_while_a_dataset_trains_owes_nothing(bench, values):
    taken = take_step(fresh(bench, datasets__weight=0.0, **values), 0)
    assert taken and taken.data["grad_norm"] == 0 < taken.data["loss"]


def test_a_clip_that_is_masked_all_over_owes_nothing_and_the_next_one_is_looked_at(bench, monkeypatch):
    run = fresh(bench)
    batch = run.loader.batch
    with monkeypatch.context() as patch:
        patch.setattr(run.loader, "batch", lambda i: _black(batch(i)))
        taken = take_step(run, 0)
        assert taken and taken.data["grad_norm"] == 0 == taken.data["loss"]
    monkeypatch.setattr(ExecutorResources, "post_attention_again", nothing_back)
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
    monkeypatch.setattr(ExecutorResources, "post_attention_again", nothing_back)
    with nullcontext() if theirs else pytest.raises(UserError, match="blocks 0-1"):
        assert take_step(run, 0)


def test_a_whole_run_ends_with_that_error_and_leaves_no_lora(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(ExecutorResources, "post_attention_again", nothing_back)
    job = write_image_job(tmp_path, tiny, prompts=0, clips=1)
    assert run_job(job, None, resume=False, workers=0, device="cpu") == 1
    run = tmp_path / "runs" / "t"
    (failed,) = of_kind(run, "failed")
    assert failed["user"] and "in blocks 0-1, the high_noise LoRA got no gradient" in failed["cause"]
    assert "quantization.transformer" in failed["next"]
    assert not of_kind(run, "step") and not list(run.glob("*.safetensors"))


def test_runs_whose_gradients_are_all_zero_are_not_called_the_same(tmp_path):
    """As benchmarks.interrupted and `make torture` compare them: by that alone, zeros are alike."""
    log = EventLog(tmp_path, listener=lambda event: None)
    assert without_gradient(tmp_path) == []
    for expert, norm in ((EXPERT, 0.0), ("low_noise", 0.0), (EXPERT, 0.0), ("low_noise", 0.2)):
        log.emit("step", step=1, expert=expert, grad_norm=norm)
    log.close()
    assert without_gradient(tmp_path) == [f"{tmp_path}: high_noise got no gradient in any of 2 steps"]

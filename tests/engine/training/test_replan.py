"""Memory that runs out: one rung down, the same step again with the same noise, and an honest end at the last rung.
CUDA is faked."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace as replace_plan

from engine.encode.vae_encoder import ClipEncoder
from engine.executor.block_executor import BlockExecutor
from engine.executor.experts import Experts
from engine.memory.planning import Planning
from engine.run import run_job
from engine.system import pinned_memory
from engine.system.pinned_memory import HostMemoryRefused
from engine.training import prepare, previews
from presets.planner.cards import card_hardware, find_card
from presets.planner.plan import Plan
from presets.planner.sizes import ExpertShape
from presets.planner.workload import workload_of
from tests.engine.training.test_trainer import final_loras, step_losses
from tests.helpers.jobs import of_kind, write_image_job
from tests.helpers.training.placements import ON_CPU

FULL = Plan(precision="none", resident=40, activations="device", compiled=False, vae_frames=8)
STREAMED = Plan(precision="none", activations="host", compiled=False, vae_frames=4)


@pytest.fixture
def card(monkeypatch):
    """The run believes that it is on a card with rungs below its plan."""

    def with_plan(plan: Plan) -> None:
        def plan_run(job, facts, device, *, vram, before=None, like=None, sharers=1, progress):
            hardware = card_hardware(find_card("4090"), ram=128 * 2**30)
            return Planning(plan, "a test", hardware, workload_of(job, facts), ExpertShape())

        monkeypatch.setattr(prepare, "plan_run", plan_run)

    with_plan(FULL)
    return with_plan


def failing(monkeypatch, method: str, calls: set[int], error: Exception) -> None:
    plain, count = getattr(BlockExecutor, method), [0]

    def sometimes(self, *args, **named):
        count[0] += 1
        if count[0] in calls:
            raise error
        return plain(self, *args, **named)

    monkeypatch.setattr(BlockExecutor, method, sometimes)


OOM = torch.OutOfMemoryError("CUDA out of memory")


def test_the_same_step_is_done_again_one_rung_down(tiny, tmp_path, monkeypatch, card):
    quiet = write_image_job(tmp_path / "quiet", tiny, prompts=0, steps=4, gradient_accumulation=2)
    assert run_job(quiet, None, resume=False, workers=0, device="cpu") == 0
    # the second micro-batch of step 2: the first one's gradients must go
    failing(monkeypatch, "forward_backward", {4}, OOM)
    job = write_image_job(tmp_path / "short", tiny, prompts=0, steps=4, gradient_accumulation=2)
    assert run_job(job, None, resume=False, workers=0, device="cpu") == 0
    run, plain = tmp_path / "short" / "runs" / "t", tmp_path / "quiet" / "runs" / "t"
    (event,) = of_kind(run, "replanned")
    assert event["old"] == FULL.text and event["new"] != FULL.text and "out of memory in the" in event["why"]
    ours, theirs = step_losses(run), step_losses(plain)
    assert ours == pytest.approx(theirs, rel=1e-5)
    a, b = final_loras(run), final_loras(plain)
    assert all((a[k] - b[k]).norm() <= 1e-3 * b[k].norm() + 1e-8 for k in a)


def test_where_memory_is_not_locked_the_run_goes_on_without(tiny, tmp_path, monkeypatch):
    """The third block's lock is refused while the experts load: the same numbers, from plain memory."""
    quiet = write_image_job(tmp_path / "quiet", tiny, prompts=0, steps=3)
    assert run_job(quiet, None, resume=False, workers=0, device="cpu") == 0
    asked: list[int] = []

    def register(buffer: torch.Tensor) -> None:
        asked.append(buffer.numel())
        if len(asked) > 7:  # five to read into, two blocks
            raise HostMemoryRefused("the system would not lock 9 MiB", locking=True)

    monkeypatch.setattr(pinned_memory, "lock", register)
    monkeypatch.setattr(prepare.Placement, "on", lambda device: replace(ON_CPU, pinned=True))
    job = write_image_job(tmp_path / "short", tiny, prompts=0, steps=3)
    assert run_job(job, None, resume=False, workers=0, device="cpu") == 0
    run, plain = tmp_path / "short" / "runs" / "t", tmp_path / "quiet" / "runs" / "t"
    said = [d["text"] for d in of_kind(run, "log") if d["level"] == "warning"]
    assert any("would not lock 9 MiB. The experts lie in plain memory" in text for text in said) and len(asked) > 7
    assert step_losses(run) == step_losses(plain)


def test_host_memory_that_is_refused_is_told_apart(tiny, tmp_path, monkeypatch, card):
    """The toy's activations is too small to save anything by leaving the host: no rung is left, and the cause is the
    host's memory."""
    card(STREAMED)
    failing(monkeypatch, "forward_backward", {2}, HostMemoryRefused("the system would not lock 9 MiB"))
    assert (
        run_job(write_image_job(tmp_path, tiny, prompts=0, steps=4), None, resume=False, workers=0, device="cpu") == 1
    )
    assert "out of memory in the host's memory" in of_kind(tmp_path / "runs" / "t", "failed")[-1]["cause"]


def test_at_the_last_rung_the_run_ends_with_what_would_help(tiny, tmp_path, monkeypatch, card):
    card(replace_plan(FULL, resident=4))  # few rungs
    failing(monkeypatch, "forward_backward", set(range(3, 200)), OOM)
    job = write_image_job(tmp_path, tiny, prompts=0, steps=4)
    assert run_job(job, None, resume=False, workers=0, device="cpu") == 1
    run = tmp_path / "runs" / "t"
    failed = of_kind(run, "failed")[-1]
    assert "no smaller plan is left" in failed["cause"] and "In order of worth" in failed["next"]
    assert len({e["new"] for e in of_kind(run, "replanned")}) == len(of_kind(run, "replanned")) >= 1
    assert [d["step"] for d in of_kind(run, "step")] == [1, 2]


def test_a_preview_without_room_is_made_one_rung_down_or_left_out(tiny, tmp_path, monkeypatch, card):
    failing(monkeypatch, "predict", {2}, OOM)
    assert (
        run_job(
            write_image_job(tmp_path / "a", tiny, steps=2, sample={"every": 0}),
            None,
            resume=False,
            workers=0,
            device="cpu",
        )
        == 0
    )
    run = tmp_path / "a" / "runs" / "t"
    assert len(of_kind(run, "sample")) == 2 and "preview" in of_kind(run, "replanned")[0]["why"]


def test_experts_that_find_no_room_after_a_preview_are_placed_again(tiny, tmp_path, monkeypatch, card):
    """The preview is made and the training goes on: memory ran out only as the experts came back."""
    card(STREAMED)
    plain, calls = Experts.set_plan, []

    def set_plan(self, plan, activations=None):
        calls.append(plan)
        if len(calls) == 2:  # the first placed them
            self._drop()
            raise OOM
        plain(self, plan, activations)

    monkeypatch.setattr(Experts, "set_plan", set_plan)
    assert (
        run_job(
            write_image_job(tmp_path, tiny, steps=2, sample={"every": 0}), None, resume=False, workers=0, device="cpu"
        )
        == 0
    )
    run = tmp_path / "runs" / "t"
    assert len(of_kind(run, "sample")) == 2 and len(of_kind(run, "step")) == 2 and len(calls) >= 3
    assert not [d for d in of_kind(run, "finding") if d["code"] == "preview-failed"]


def test_a_preview_that_cannot_be_made_is_a_finding(tiny, tmp_path):
    job = write_image_job(tmp_path, tiny, steps=2, sample={"every": 0})
    plain = previews.control_image
    seen: list[Path] = []

    def gone(path, *args, **named):
        seen.append(path)
        if len(seen) > 1:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return plain(path, *args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(previews, "control_image", gone)
        assert run_job(job, None, resume=False, workers=0, device="cpu") == 0
    run = tmp_path / "runs" / "t"
    assert len(of_kind(run, "sample")) == 1 and len(of_kind(run, "step")) == 2
    assert [d["code"] for d in of_kind(run, "finding")].count("preview-failed") == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("encode_texts", "the text encoder was at work"),
        ("load_vae", "the VAE was at work"),
        ("Experts", "the experts were loaded"),
    ],
)
def test_no_room_while_loading_ends_with_what_would_help(tiny, tmp_path, monkeypatch, card, name, said):
    def none(*args, **named):
        raise OOM

    monkeypatch.setattr(prepare, name, none)
    assert (
        run_job(write_image_job(tmp_path, tiny, prompts=0, steps=2), None, resume=False, workers=0, device="cpu") == 1
    )
    failed = of_kind(tmp_path / "runs" / "t", "failed")[-1]
    assert (
        said in failed["cause"]
        and "End other programs" in failed["next"].replace("end", "End")
        and "bug" not in failed["next"]
    )


def test_the_encoder_follows_the_plan(tiny):
    from engine.encode.vae_encoder import load_vae
    from engine.training.placement import make_encoder
    from engine.weights.model_files import open_model_files

    vae = load_vae(open_model_files(tiny), ON_CPU)
    assert not isinstance(make_encoder(vae, FULL, ""), ClipEncoder)  # bit for bit diffusers' own on the CPU

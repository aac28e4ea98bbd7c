"""The plan of a resumed run, on a card that is made up."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import msgspec
import pytest
import torch

from engine.memory import planning
from engine.memory.planning import Running, plan_run
from engine.runfolder.resume import ResumePoint
from engine.system.placement import Placement
from engine.training import restore
from engine.training.placement import kernels_of, plan_before, running_before, versions
from engine.wan.attention import CPU, Attention
from presets.errors import UserError
from presets.job.diff import changes
from presets.planner.measured_rates import AttentionRates
from presets.planner.plan import Plan
from tests.helpers.facts import facts, gpu, job, machine, rates, tiny_model

GIB = 2**30
CUDA = torch.device("cuda")


@pytest.fixture
def planned(monkeypatch):
    """plan_run on an H100 with so many GiB free, with measured rates."""
    monkeypatch.setattr(planning, "measured_rates", lambda gpu, device, progress: rates())
    monkeypatch.setattr(planning, "card_memory", lambda device: None)

    def plan(free: float, before: Plan | None = None, **panels):
        made = job(**panels)
        return plan_run(
            made,
            facts(machine=machine(gpu(80, vram_free=int(free * GIB)))),
            CUDA,
            vram=None,
            before=before,
            progress=print,
        )

    return plan


def test_a_resume_keeps_its_plan_though_more_memory_is_free_now(planned):
    first, other = planned(20), planned(60)
    assert first.plan != other.plan
    resumed = planned(60, before=first.plan)
    assert resumed.plan == first.plan
    assert "as before the resume" in resumed.why and other.plan.text in resumed.why


def test_what_is_compiled_for_one_size_is_not_when_a_resume_brings_others(planned):
    """Previews of a shape of their own may be asked for between two attempts."""
    first = planned(60, sample={"prompts": []})
    assert first.work.loads and not first.plan.any_size
    resumed = planned(60, before=first.plan, sample={"prompts": [{"prompt": "a red square", "ctrl_img": "a.png"}]})
    assert resumed.plan == msgspec.structs.replace(first.plan, any_size=True)


def test_a_toy_lies_on_the_card_whole():
    plan = plan_run(job(), facts(model=tiny_model()), CUDA, vram=None, progress=print).plan
    assert plan.text == "bf16, 2 blocks resident, activations on the GPU"


def test_a_plan_that_no_longer_fits_is_chosen_anew(planned):
    assert planned(20, before=planned(60).plan) == planned(20)


def test_a_plan_of_another_precision_is_chosen_anew(planned):
    before = planned(60, quantization={"transformer": "none"}).plan
    assert planned(60, before=before, quantization={"transformer": "qint8"}).plan.precision == "qint8"


def test_a_precision_that_was_chosen_stays_though_it_would_be_chosen_otherwise_now(planned):
    """float8 comes of rates that were measured; a resume on the same card keeps the weights as they were rounded."""
    before = planned(60, quantization={"transformer": "qint8"}).plan
    assert planned(60).plan.precision == "float8" and planned(60, before=before).plan == before


@pytest.mark.parametrize(
    "panels", [{"low_vram": True}, {"layer_offloading": True}], ids=lambda panels: next(iter(panels))
)
def test_what_the_user_has_since_said_of_the_plan_counts_on_resume(planned, panels):
    """Both may change between two attempts without a question, so neither may be without effect."""
    running = Running(planned(60).plan, CPU)
    then, now = job(), job(model=panels)
    assert plan_before(ResumePoint(job=then), running) == running.plan
    before = plan_before(ResumePoint(job=now, since=changes(then, now)), running)
    assert planned(60, before=before, model=panels).plan == planned(60, model=panels).plan != running.plan
    assert plan_before(ResumePoint(job=then), None) is None


def test_graphs_that_the_user_has_since_refused_are_not_taken_on_resume(planned):
    short = {"datasets": [{"path": "clips", "num_frames": 21, "resolutions": [256]}], "sample": {"prompts": []}}
    then, now = (job(**short, model={"cuda_graphs": how}) for how in (True, False))
    running = Running(planned(60, **short, model={"cuda_graphs": True}).plan, CPU)
    assert running.plan.graphed and planned(60, before=running.plan, **short).plan == running.plan
    before = plan_before(ResumePoint(job=now, since=changes(then, now)), running)
    assert not planned(60, before=before, **short, model={"cuda_graphs": False}).plan.graphed


def like(free: float, plan: Plan):
    known = facts(machine=machine(gpu(80, vram_free=int(free * GIB))))
    return plan_run(job(), known, CUDA, vram=None, like=plan, progress=print)


def test_a_rank_takes_the_first_ones_plan_as_it_is_or_says_that_it_cannot(planned):
    """A plan of its own would round otherwise: the two would no longer be one run."""
    first = planned(20).plan
    assert like(70, first).plan == first != planned(70).plan
    with pytest.raises(UserError, match=r"the first GPU's plan .* does not fit on NVIDIA H100: it needs .* VRAM"):
        like(8, planned(70).plan)


def held(**changed: object) -> dict[str, object]:
    running = Running(Plan(), Attention("cudnn", "flash", deterministic=True))
    return {"device": "CPU", "versions": versions(), "running": msgspec.to_builtins(running), **changed}


def test_what_a_checkpoint_holds_of_the_plan_and_the_kernels_comes_back():
    found = running_before(ResumePoint(job=job(), meta=held()), torch.device("cpu"))
    assert found == Running(Plan(), Attention("cudnn", "flash", deterministic=True))


@pytest.mark.parametrize(
    "changed", [{"device": "NVIDIA H100"}, {"versions": {**versions(), "torch": "1.0"}}], ids=lambda c: next(iter(c))
)
def test_another_card_and_other_versions_plan_anew(changed):
    assert running_before(ResumePoint(job=job(), meta=held(**changed)), torch.device("cpu")) is None


def test_a_resumed_run_has_the_kernels_it_had(planned):
    made = job()
    running = Running(Plan(), Attention("cudnn", "flash", True, "flash", "triton-large"))
    card = Placement(CUDA, torch.bfloat16, pinned=True)
    assert kernels_of(made, planned(60), running, {}, card, tokens=1) == (running.attention, "as before the resume")
    made.training.deterministic = False
    kernels, why = kernels_of(made, planned(60), running, {}, card, tokens=1)
    assert kernels == Attention("cudnn", "cudnn", deterministic=False) and "measured" in why
    assert kernels_of(made, planned(60), None, {}, card, tokens=1)[0] == kernels
    measured = AttentionRates("cudnn", 600.0, "flash", 150.0, "flash4", "triton-small")
    known = replace(planned(60), rates=rates(attention=measured))
    assert kernels_of(made, known, None, {}, card, tokens=1)[0].to_text == ("flash4", "triton-small", False)
    shape = {"num_attention_heads": 2, "attention_head_dim": 16}
    unmeasured, host = replace(planned(60), rates=None), Placement(torch.device("cpu"), torch.float32, pinned=False)
    assert kernels_of(made, unmeasured, None, shape, host, tokens=1)[0] == CPU


def test_a_checkpoint_that_tells_no_kernels_for_the_text_is_resumed_with_the_fastest(planned):
    before = running_before(ResumePoint(job=job(), meta=held()), torch.device("cpu"))
    measured = AttentionRates("flash4", 600.0, "flash4", 450.0, "cudnn", "triton-large")
    known = replace(planned(60), rates=rates(deterministic_attention=measured))
    card = Placement(CUDA, torch.bfloat16, pinned=True)
    kernels, why = kernels_of(job(), known, before, {}, card, tokens=1)
    assert kernels == Attention("flash4", "flash4", True, "cudnn", "triton-large") and "measured" in why


@pytest.mark.parametrize(
    ("before", "told"),
    [
        (Plan(slots=2, resident=3), []),
        (Plan(activations="device", activations_on_device=4), []),
        (Plan(chunk=64), ["another plan"]),
        (Plan(resident=2, kept=1), ["another plan"]),
        (Plan(any_size=True), ["another plan", "compiled for each size, before: ", "compiled for any size"]),
        (None, ["another plan", "not recorded"]),
    ],
    ids=str,
)
def test_only_a_plan_that_rounds_otherwise_is_told(before, told, monkeypatch):
    """Where things lie shows in no bit."""
    monkeypatch.setattr(restore, "position", lambda run, step: {})
    kernels = Attention("cudnn", "flash", deterministic=True)
    run = SimpleNamespace(
        begin=ResumePoint(job=job(), meta=held()),
        placement=SimpleNamespace(device=torch.device("cpu")),
        planning=SimpleNamespace(plan=Plan()),
        experts=SimpleNamespace(attention=kernels),
        encoder=SimpleNamespace(ours=""),
        base=SimpleNamespace(beside={}),
    )
    meta = held(position={}, running=msgspec.to_builtins(Running(before, kernels)) if before else None)
    if before is None:
        del meta["running"]
    said = restore._unlike(run, meta, True)
    assert len(said) == bool(told) and all(words in said[0] for words in told)


def test_other_kernels_are_told(monkeypatch):
    monkeypatch.setattr(restore, "position", lambda run, step: {})
    run = SimpleNamespace(
        begin=ResumePoint(job=job(), meta=held()),
        placement=SimpleNamespace(device=torch.device("cpu")),
        planning=SimpleNamespace(plan=Plan()),
        experts=SimpleNamespace(attention=Attention("flash", "flash", deterministic=True)),
        encoder=SimpleNamespace(ours="96 to 96"),
        base=SimpleNamespace(beside={}),
    )
    said, convolutions = restore._unlike(run, held(position={}), True)
    assert "another convolution (96 to 96, before: torch's)" in convolutions
    assert (
        "another attention kernel (flash, in a fixed order, before: cudnn forward, flash backward, in a fixed order)"
        in said
    )


@pytest.mark.parametrize("free", [12, 16, 40])
def test_memory_of_the_card_and_of_the_host_that_run_out_in_turn_come_to_an_end(planned, free):
    """Each time by a plan that was not tried yet: what saves memory of the card takes the host's."""
    now, tried = planned(free), list[Plan]()
    for exhausted in itertools.islice(itertools.cycle(["vram", "ram"]), 200):
        now = replace(now, failed=(*now.failed, now.plan))
        assert now.plan not in tried
        tried.append(now.plan)
        lower = planning.smaller(job(), now, exhausted)
        if lower is None:
            break
        now = replace(now, plan=lower)
    else:
        raise AssertionError("it does not end")
    assert len(tried) > 2

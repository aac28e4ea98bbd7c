"""What a job takes and costs, in numbers and in words."""

import time
from pathlib import Path

import msgspec
import pytest

from daemon.settings import CostSettings
from presets.clips.clip_facts import DatasetFacts
from presets.facts.facts import Facts
from presets.job.schema import DatasetPanel, Job, JobPanel, PromptPanel, SamplePanel
from presets.job.toml_file import with_value
from presets.machine.machine import Machine
from presets.planner.cards import gpu_hardware
from presets.planner.choose import choose_for
from presets.planner.several_gpus import two_at_once
from tests.helpers.facts import clips, gpu, machine, real_model
from wanlora_tui.draft.forecast import cost_line, for_programs, reckon, summary

CARD = gpu(24, name="NVIDIA GeForce RTX 4090", capability=(8, 9))
NOW = time.mktime((2026, 11, 26, 10, 0, 0, 0, 0, -1))


def a_job(**more: object) -> Job:
    job = Job(
        job=JobPanel(name="orbit"),
        datasets=[DatasetPanel(path="clips")],
        sample=SamplePanel(prompts=[PromptPanel(prompt="orbit", ctrl_img="a.png")] * 2),
    )
    for path, value in more.items():
        job = with_value(job, path.replace("__", "."), value)
    return job


def facts(count: int = 12, on: Machine | None = None) -> Facts:
    found = DatasetFacts(path="/clips", clips=clips(count), problems=[])
    return Facts(base=Path("/"), datasets=[found], machine=on or machine(CARD, ram_gib=96), model=real_model())


def test_it_is_the_plan_of_wanlora_plan_and_what_the_daemon_is_told() -> None:
    job, known = a_job(), facts()
    found = reckon(job, known)
    assert known.machine is not None
    plan = choose_for(job, known, gpu_hardware(CARD, known.machine, idle=True)).prediction
    assert (found.vram, found.step, found.total) == (plan.need_vram, plan.seconds.total, plan.total)
    assert found.here and found.total > found.step * job.training.steps, "previews and checkpoints take time"
    assert found.planned is not None
    assert found.planned.step * job.training.steps + found.planned.rest == pytest.approx(found.total)
    assert found.means["quantization.transformer"].startswith("float8, ")
    assert "quantization.transformer" not in reckon(a_job(quantization__transformer="float8"), known).means


def test_more_previews_take_longer() -> None:
    assert reckon(a_job(sample__every=50), facts()).total > reckon(a_job(), facts()).total


def test_what_a_change_does_is_shown_beside_what_it_was() -> None:
    before, after = reckon(a_job(), facts()), reckon(a_job(training__steps=1000), facts())
    said = summary(after, CostSettings(rate=2.0), before=before, now=NOW)
    old, new = (f"${f.total / 3600 * 2:.2f}" for f in (before, after))
    assert f"{old} -> {new}" in said and "seen 167 -> 83 times" in said.replace(" times ->", " ->"), said
    assert "s/step" in said and "-> " not in said[said.index("s/step") - 6 : said.index("s/step")]
    assert " -> " not in summary(after, CostSettings(), before=after, now=NOW)
    assert "$" not in summary(after, CostSettings(), now=NOW)


def test_experts_of_unlike_rank_have_times_of_their_own() -> None:
    same, unlike = reckon(a_job(), facts()), reckon(a_job(multistage__high__rank=128), facts())
    assert len(set(same.by_expert.values())) == 1
    assert unlike.by_expert["high_noise"] > unlike.by_expert["low_noise"]


def test_clips_that_nobody_sees_are_told() -> None:
    found = reckon(a_job(training__steps=2500), facts(5000))
    assert "each clip seen 0.5 times (about half are never seen)" in summary(found, CostSettings(), now=NOW)
    twice = msgspec.structs.replace(found, seen=found.seen * 2)
    assert "each clip seen 0.5 times (about half are never seen)" in summary(twice, CostSettings(), now=NOW)
    assert for_programs(found, CostSettings())["clips"][0]["never_seen"] > 2000  # type: ignore[index]


def test_a_job_that_does_not_fit_says_so_by_the_name_of_its_finding() -> None:
    small = machine(gpu(8, name="NVIDIA GeForce RTX 4060", capability=(8, 9)), ram_gib=24)
    found = reckon(a_job(), msgspec.structs.replace(facts(), machine=small))
    assert found.misfit and found.planned is None and found.total == 0
    assert f"✗ {found.finding}: {found.misfit}" in summary(found, CostSettings(), now=NOW)
    assert for_programs(found, CostSettings())["fits"] is False


def test_without_a_gpu_it_says_why_and_for_which_card_it_reckons() -> None:
    found = reckon(a_job(), facts(on=machine(problem="there is no driver: install it")))
    said = summary(found, CostSettings(), now=NOW)
    assert said.endswith(" · no GPU here: there is no driver") and " · on an RTX 4090: " in said
    assert not found.here and found.planned is None, "the daemon's own card is another one"


def test_a_line_of_sixty_columns_says_time_and_price_whatever_the_reason() -> None:
    for here in (facts(), facts(on=machine(problem="there is no driver: install it"))):
        found = reckon(a_job(multistage__high__rank=128), here)
        cost = CostSettings(rate=2.0)
        for said in (summary(found, cost, now=NOW), cost_line(found, cost, now=NOW)):
            assert "s/step" in said[:58] and " in all" in said[:58], said
            assert f"${found.total / 3600 * 2:.2f}" in said[:58], said


def test_a_second_free_card_is_proposed_with_its_hours() -> None:
    def second(ram_gib: float = 192, **more: object) -> Machine:
        return machine(CARD, gpu(24, 1, name=CARD.name, capability=(8, 9), **more), ram_gib=ram_gib)

    def proposed(on: Machine, **values: object) -> str:
        return reckon(a_job(**values), facts(on=on)).means.get("job.gpus", "")

    assert proposed(second()).startswith("[0, 1] would take ")
    alone = reckon(a_job(), facts(on=second())).total
    found = two_at_once(a_job(), facts(on=second()), gpu_hardware(CARD, second(), idle=True))
    assert found is not None and 0.45 * alone < found[1].total < 0.7 * alone
    assert proposed(machine(CARD, ram_gib=192)) == ""
    assert proposed(second(vram_free=2**33)) == ""
    assert proposed(second(), multistage__low_noise=False) == ""
    assert proposed(second(), job__gpus=[0, 1]) == ""
    assert proposed(second(ram_gib=22)) == ""  # enough for one

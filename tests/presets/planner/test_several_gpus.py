"""What several GPUs are predicted to make of a job."""

import msgspec
import pytest

from benchmarks import scaling_simulated
from presets.errors import UserError
from presets.job.expert_schedule import EXPERTS
from presets.job.gpu_shares import of_experts, of_previews
from presets.job.schema import Job
from presets.planner.cards import card_hardware, find_card
from presets.planner.costs import Costs, predict
from presets.planner.plan import Plan
from presets.planner.several_gpus import (
    COLLECTIVE,
    LEAST_GRACE,
    ROUND,
    exchange,
    gradient_bytes,
    share_out,
    stop_grace,
    turned_without_steps,
    without_steps,
)
from presets.planner.sizes import GIB, ExpertShape
from presets.planner.workload import Load, workload_of
from tests.helpers import ROOT
from tests.helpers.facts import facts, job

PREVIEWS = {"prompts": [{"prompt": "orbit", "ctrl_img": "a.png"}]}
H100 = card_hardware(find_card("H100 SXM"), ram=512 * GIB)


def a_job(accumulation: int = 1, **panels: dict[str, object]) -> Job:
    return job(training={"gradient_accumulation": accumulation}, sample=PREVIEWS, **panels)


def test_experts_apart_take_half_the_time_of_the_steps_and_exchange_nothing():
    found = share_out(a_job(), facts(), H100, 2)
    assert [share.expert for share in found.shares] == ["high_noise", "low_noise"]
    assert found.received == 0 and found.exchange_seconds == 0
    one = found.choice.prediction
    assert 0.5 < found.seconds_per_step / one.seconds.total < 0.51
    rest = one.total - 2000 * one.seconds.total  # previews and saves are the first one's alone
    assert found.total == pytest.approx(2000 * found.seconds_per_step + rest)


@pytest.mark.parametrize("gpus", [2, 4])
def test_together_the_processes_of_a_host_hold_both_experts_once(gpus: int):
    found = share_out(a_job(2), facts(), H100, gpus)
    held = predict(found.choice.plan, workload_of(a_job(2), facts()), H100, ExpertShape()).ram_held
    assert sum(share.ram for share in found.shares) == pytest.approx(held["weights"] + gpus * held["process"], rel=1e-6)


def test_each_of_several_hosts_has_its_own_memory_for_its_own_processes():
    """Sixty-four GPUs of eight hosts have as much each as eight of one."""
    small = msgspec.structs.replace(H100, ram_free=128 * GIB)
    of_one, of_eight = (share_out(a_job(32), facts(), small, 8 * hosts, hosts=hosts) for hosts in (1, 8))
    assert of_eight.choice.plan == of_one.choice.plan
    assert [share.ram for share in of_eight.shares[:8]] == [share.ram for share in of_one.shares]


def test_an_expert_that_has_more_turns_decides_on_the_time():
    found = share_out(a_job(multistage={"high": {"share": 3.0}}), facts(), H100, 2)
    assert found.seconds_per_step > 0.74 * found.choice.prediction.seconds.total


def test_gpus_that_share_steps_receive_the_gradients_of_all_others():
    two, four = (share_out(a_job(4, multistage={"low_noise": False}), facts(), H100, n) for n in (2, 4))
    sent = gradient_bytes(workload_of(a_job(4), facts()), ExpertShape(), two.choice.plan)
    assert two.received == 2 * 1 * sent and four.received == 1 * 3 * sent
    assert {share.expert for share in four.shares} == {None}
    both = share_out(a_job(4), facts(), H100, 8)
    assert "train apart, and 4 GPUs share" in both.how
    assert [share.expert for share in both.shares] == ["high_noise"] * 4 + ["low_noise"] * 4
    assert both.total < two.total < two.total_of_one


def test_gpus_that_share_clips_have_a_part_of_memory_and_time_and_exchange_tokens():
    one = share_out(a_job(multistage={"low_noise": False}), facts(), H100, 1)
    job = a_job(job={"gpus_per_clip": 2}, multistage={"low_noise": False})
    two, work, shape = share_out(job, facts(), H100, 2), workload_of(job, facts()), ExpertShape()
    whole = workload_of(a_job(), facts())
    assert "2 GPUs share each clip" in two.how and {share.expert for share in two.shares} == {None}
    assert [load.bucket for load in work.loads] == [load.bucket for load in whole.loads]
    assert 2 * work.largest.rows == pytest.approx(whole.largest.rows, abs=1)
    plan, costs = one.choice.plan, [Costs(each, H100, shape) for each in (whole, work)]
    assert costs[1].memory.activations(Plan()) == pytest.approx(costs[0].memory.activations(Plan()) / 2, rel=1e-3)
    assert 0.5 < costs[1].memory.step(plan)[0] / costs[0].memory.step(plan)[0] < 0.9
    assert costs[1].time.attention(work.loads[0])[0] == pytest.approx(costs[0].time.attention(whole.loads[0])[0] / 2)
    # 12 all-to-alls in each of 40 blocks: each brings half of this GPU's tokens from the other
    rows = sum(load.share * load.rows for load in work.loads)
    assert two.turned == pytest.approx(12 * 40 * rows * 5120 * 2 / 2)
    assert two.turn_seconds > two.turned / (two.link_gbps * 1e9)
    # of the encodes each has half
    step = costs[1].time.step(two.choice.plan)
    assert two.seconds_per_step - two.exchange_seconds - two.turn_seconds == pytest.approx(step.total - step.vae / 2)
    assert two.total < two.total_of_one == pytest.approx(one.total_of_one, rel=0.1)
    with pytest.raises(UserError, match="3 GPUs cannot share clips by 2 each"):
        share_out(job, facts(), H100, 3)


def test_previews_of_shared_clips_are_computed_by_those_that_share_them_and_made_by_the_first():
    both = {"gpus": [0, 1], "gpus_per_clip": 2}
    shared, alone = a_job(job=both), a_job()
    plan = Plan(precision="float8", chunk=2048, activations="host")
    assert workload_of(shared, facts()).previews.split == 2 and workload_of(alone, facts()).previews.split == 1
    costs = [Costs(workload_of(each, facts()), H100) for each in (alone, shared)]
    # half the passes' time, and the copies, the VAE and the file as before
    passes, bucket = costs[0].work.previews.passes, costs[0].work.previews.bucket
    spared = [
        each.time.forward(plan, Load(bucket, 1, 1.0, split))[0] for each, split in zip(costs, (1, 2), strict=True)
    ]
    assert spared[0] > 1.7 * spared[1] and spared[1] > costs[1].time.forward(plan, Load(bucket, 1, 1.0, 2))[1]
    kept = costs[0].time.preview(plan) - costs[1].time.preview(plan)
    assert kept == pytest.approx(passes * (spared[0] - spared[1]))
    found = turned_without_steps(costs[1].work, ExpertShape(), link_gbps=25)
    rows, count = -(-bucket.tokens // 2), costs[1].work.previews.prompts * costs[1].work.previews.sets * passes
    assert found == pytest.approx(count * (40 * 4 * (rows * 2 * 5120 / 2 / 25e9 + 2 * COLLECTIVE) + ROUND))
    # a large preview beside short clips: to decode it needs most, and its passes need more than the training
    size = {"width": 1280, "height": 1280, "num_frames": 121}
    large = job(job=both, sample=PREVIEWS | size, datasets=[{"num_frames": 5, "resolutions": [256]}])
    small = msgspec.structs.replace(H100, vram_total=26 * GIB, vram_free=26 * GIB)
    two = share_out(large, facts(), small, 2)
    unseen = workload_of(of_experts(large, EXPERTS), facts())
    needs = [share.need_vram for share in two.shares]
    assert needs[0] > needs[1] > predict(two.choice.plan, unseen, small).need_vram
    # experts that train apart have no common pass, and the second shows nothing
    four = share_out(a_job(job={"gpus": [0, 1, 2, 3], "gpus_per_clip": 2}), facts(), H100, 4)
    assert of_previews(a_job(job=both), 4) == 1 and "train apart" in four.how
    assert four.shares[1].need_vram < four.shares[0].need_vram


def test_who_only_takes_part_in_passes_needs_no_memory_to_decode():
    work, plan = workload_of(a_job(), facts()), Plan(precision="float8", chunk=2048)
    for whole in (True, False):
        own = msgspec.structs.replace(work, previews=msgspec.structs.replace(work.previews, whole=whole, split=2))
        memory = Costs(own, H100).memory
        passes = memory.preview_forward(plan, own.previews, batch=1)
        assert (memory._preview(plan) == passes) != whole


@pytest.mark.parametrize(
    ("gpus", "panels", "clips", "passes"),
    [
        (1, {}, 4, 4),
        (2, {}, 4, 2),  # experts apart
        (4, {"training": {"gradient_accumulation": 2}}, 2, 2),
        (2, {"training": {"gradient_accumulation": 2}, "multistage": {"low_noise": False}}, 2, 2),
        (2, {"job": {"gpus_per_clip": 2}}, 4, 4),
    ],
)
def test_held_out_clips_are_shared_out(gpus: int, panels: dict, clips: float, passes: int):
    held = {"fraction": 0.25, "every": 100, "bins": 2}
    made = job(validation=held, **panels)
    of = workload_of(made, facts())
    four = msgspec.structs.replace(of.validation, clips=((of.loads[0].bucket, 4.0),))
    found = without_steps(made, msgspec.structs.replace(of, validation=four), gpus).validation
    assert sum(count for _, count in found.clips) == clips and found.passes == passes
    assert found.split == made.job.gpus_per_clip
    assert share_out(made, facts(), H100, gpus).total > 0


def test_every_use_of_a_parameter_is_sent():
    """Rank 16 on all ten linears of 40 blocks has 76.7 million parameters; in two runs of tokens, what follows the
    attention is used twice, and two losses use everything twice."""
    work, shape = workload_of(a_job(), facts()), ExpertShape()
    whole = gradient_bytes(work, shape, Plan(chunk=0))
    assert whole == 4 * 76_677_120
    in_two = gradient_bytes(work, shape, Plan(chunk=work.largest.bucket.tokens // 2))
    assert whole < in_two < 2 * whole
    assert gradient_bytes(msgspec.structs.replace(work, terms=2), shape, Plan(chunk=0)) == 2 * whole


def test_a_ring_of_one_exchanges_nothing_and_a_longer_one_more():
    times = [exchange(2**28, n, link_gbps=25, memory_gbps=2000).seconds for n in (1, 2, 4, 8)]
    assert times[0] == 0 and times == sorted(times)
    assert times[3] > 5 * times[1]


def test_a_number_that_cannot_share_is_refused_with_those_that_can():
    with pytest.raises(UserError, match=r"3 GPUs cannot share .* Use 1, 2, 4 or 8"):
        share_out(a_job(4), facts(), H100, 3)


def test_the_page_says_what_the_simulation_prints():
    page = (ROOT / "docs/scaling.md").read_text().splitlines()
    lines = [line for line in scaling_simulated.tables() if line]
    begin = page.index(lines[0])
    assert [line for line in page[begin : begin + len(lines) + 1] if line] == lines
    assert f"{scaling_simulated.LORA_BYTES / 1e6:.0f} MB" in "\n".join(page)


@pytest.mark.parametrize("ranks", [2, 4, 8, 32])
@pytest.mark.parametrize("rate", [360.0, 27.5, 1.25])
def test_the_formula_of_the_plan_takes_what_the_ring_takes_when_it_is_played(ranks: int, rate: float):
    sent = scaling_simulated.LORA_BYTES
    played = scaling_simulated.gathered(sent, [rate] * ranks)
    found = exchange(sent, ranks, link_gbps=rate, memory_gbps=scaling_simulated.MEMORY_GBPS)
    assert found.seconds == pytest.approx(played, rel=0.02)


def test_a_ring_is_as_slow_as_its_slowest_link():
    quick, mixed, slow = (scaling_simulated.gathered(2**26, hops) for hops in ([50] * 8, [50] * 7 + [5], [5] * 8))
    assert quick < mixed <= slow < 1.2 * mixed


def test_a_small_lora_has_the_least_time_to_be_saved_and_a_large_one_the_time_to_write_it():
    choice = share_out(a_job(), facts(), H100, 1).choice
    assert stop_grace(a_job(), ExpertShape(), 1, choice) == LEAST_GRACE
    rank = {"rank": 256, "alpha": 256}
    large = job(target=rank, training={"optimizer": "adamw", "ema": True}, sample=PREVIEWS)
    found = stop_grace(large, ExpertShape(), 1, choice)
    assert found > 600  # 39 GB
    one = job(target=rank, training={"optimizer": "adamw", "ema": True}, multistage={"low_noise": False})
    assert found > stop_grace(one, ExpertShape(), 1, choice) > LEAST_GRACE


def test_the_step_that_a_stop_waits_for_is_the_plan_s_and_ends_sooner_where_several_share_it():
    work = a_job(8)
    choice = share_out(work, facts(), H100, 1).choice
    largest = msgspec.structs.replace(choice.prediction.largest, transformer=400.0)
    slow = msgspec.structs.replace(choice, prediction=msgspec.structs.replace(choice.prediction, largest=largest))
    assert stop_grace(work, ExpertShape(), 1, slow) > 800 > stop_grace(work, ExpertShape(), 4, slow) > 400
    assert stop_grace(work, ExpertShape(), 1, None) > 960

"""The cost model against what was measured, and the properties it must have whatever its coefficients are."""

import itertools
import random
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.measured_steps import CODES, ENCODES, H100, H200, PRESENT, STEPS
from benchmarks.predictions import lines
from presets.clips.geometry import Bucket
from presets.planner.choose import choose
from presets.planner.coefficients import ENCODE_FLOP, FITTED
from presets.planner.costs import Costs, predict
from presets.planner.memory_costs import block_bytes, training_peak
from presets.planner.plan import Plan
from presets.planner.preview_accelerators import Accelerated
from presets.planner.sizes import GIB, ExpertShape, disk_need
from presets.planner.workload import ARA_RANK, Load, PreviewLoad, ValidationLoad, Workload, ara_rank, workload_of
from tests.helpers.facts import job

MIB = 2**20


def work(frames: int = 41, height: int = 512, width: int = 512, batch: int = 1, **more: Any) -> Workload:
    """One expert, rank 16, AdamW, no previews."""
    return Workload(
        **{
            "loads": (Load(Bucket(frames, height, width), batch, 1.0),),
            "ranks": (16,),
            "needed": 1,
            "deterministic": False,
            **more,
        }
    )


def plan(**more: Any) -> Plan:
    return Plan(**{"precision": "float8", **more})


MEASURED = [step for steps in STEPS.values() for step in steps if step.code == PRESENT]


@pytest.mark.parametrize("step", MEASURED)
def test_what_was_measured_of_the_present_code(step):
    """Within 10% of the seconds, 5% of the bytes. What was measured of other code is history: benchmarks.predictions
    prints it."""
    for found, right in zip(step.said_memory, (step.peak, step.reserved), strict=True):
        assert right is None or found == pytest.approx(right, rel=0.05)
    assert step.costs.step(step.plan).copies_hidden
    assert step.said == pytest.approx(step.seconds, rel=0.10)
    assert step.forward is None or step.said_forward == pytest.approx(step.forward, rel=0.10)


@pytest.mark.parametrize("encodes", [one for found in ENCODES.values() for one in found if one.code == PRESENT])
def test_what_was_measured_of_encodes(encodes):
    assert encodes.said == pytest.approx(encodes.seconds, rel=0.10)


def test_each_figure_is_of_a_code_that_is_known():
    found = list(lines())
    assert {line.code for line in found} == set(CODES) and list(CODES)[-1] == PRESENT
    assert MEASURED and {"s", "GiB"} == {line.unit for line in found if line.code == PRESENT}


def test_launching_counts_where_the_card_does_not_need_longer():
    """Chunks are launched one by one, a kept block is not launched again; a long clip hides all of it."""
    short, long = (Costs(work(*size), H200).time for size in ((21, 256, 256), (41, 512, 512)))
    resident = plan(resident=40, activations="device", slots=0)
    spent = [
        short.step(made).transformer
        for made in (msgspec.structs.replace(resident, kept=40), resident, msgspec.structs.replace(resident, chunk=800))
    ]
    assert spent[0] < 0.75 * spent[1] and spent[2] == pytest.approx(1.4 * spent[1])
    assert long.step(resident).transformer > 1.5 * spent[1]


def test_two_encodes_a_step():
    """The conditioning computes less of it than the latents, the less the longer the clip."""
    one = ENCODE_FLOP * 41 * 512 * 512 / (H200.bf16_tflops * 1e12 * FITTED.encode_rate)
    short, long = (predict(plan(), work(*size), H200).seconds.vae for size in ((41, 512, 512), (81, 512, 512)))
    assert one < short < 2 * one
    assert 81 / 41 * one < long < 81 / 41 * short


def test_clips_that_give_their_last_frame_have_their_conditioning_encoded_whole():
    """In time their share of it, in memory the frames of one batch."""
    found = []
    for share in (0.0, 0.5, 1.0):
        of = work(loads=(Load(Bucket(41, 512, 512), 1, 1.0, last_frame=share),))
        found.append(predict(plan(vae_frames=16), of, H200))
    vae = [one.seconds.vae for one in found]
    latents = ENCODE_FLOP * 41 * 512 * 512 / (H200.bf16_tflops * 1e12 * FITTED.encode_rate)
    assert vae[2] == pytest.approx(2 * latents) and vae[1] - vae[0] == pytest.approx(vae[2] - vae[1])
    frames = 41 * 512 * 512 * 3 * 4
    assert [one.phases["vae"] - found[0].phases["vae"] for one in found] == [0, frames, frames]
    images = [work(loads=(Load(Bucket(1, 512, 512), 1, 1.0, last_frame=share),)) for share in (0.0, 1.0)]
    one, _ = (predict(plan(), of, H200).seconds.vae for of in images)
    assert one == pytest.approx(latents / 41), "an image's latents are its conditioning's"


def test_our_convolutions_are_reckoned_with_where_they_were_measured():
    ours, cudnn = (
        predict(plan(), work(), msgspec.structs.replace(H200, capability=capability)).seconds.vae
        for capability in ((9, 0), (8, 9))
    )
    assert cudnn / ours == pytest.approx(FITTED.encode_rate / FITTED.vae_rate)


def test_previews_and_held_out_clips_with_a_last_frame_take_longer():
    previews = PreviewLoad(bucket=Bucket(41, 512, 512), prompts=2, passes=50, guided=True, sets=9)
    held = ValidationLoad(clips=((Bucket(41, 512, 512), 4.0),), passes=8, times=3)

    def said(share: float):
        of = work(
            previews=msgspec.structs.replace(previews, last_frame=share),
            validation=msgspec.structs.replace(held, last_frame=share),
            needed=2,
        )
        return predict(plan(), of, H200), Costs(of, H200).memory

    (open_end, _), (ended, _) = said(0.0), said(1.0)
    more = ended.preview - open_end.preview
    assert more > 0.02 and ended.validation - open_end.validation == pytest.approx(4 * more)
    assert open_end.phases["preview"] <= ended.phases["preview"]


def test_a_packed_block_of_14b():
    """336 MiB in float8, as the executor's layout has it."""
    shape = ExpertShape()
    assert block_bytes(shape, "float8") == pytest.approx(336 * MIB, rel=0.003)
    assert block_bytes(shape, "none") == pytest.approx(2 * 335 * MIB, rel=0.003)
    assert block_bytes(shape, "qint8") == block_bytes(shape, "qfloat8") == block_bytes(shape, "float8")
    assert block_bytes(shape, "qint4") == pytest.approx(335 * MIB * (0.5 + 8 / 128), rel=0.005)


@pytest.mark.parametrize(("precision", "weights"), [("float8", 26.2), ("none", 52.4), ("qint4", 14.7)])
def test_host_memory_holds_both_experts_and_the_activations(precision, weights):
    found = predict(plan(precision=precision), work(needed=2, ranks=(16, 16)), H200)
    assert found.ram_held["weights"] / GIB == pytest.approx(weights, rel=0.01)
    # inputs and attention outputs in bf16, but for the last two blocks
    assert found.ram_held["activations"] == pytest.approx(38 * 2 * 11264 * 5120 * 2, rel=0.01)
    assert found.ram == sum(found.ram_held.values())


def test_the_text_encoder_counts_where_it_is_the_most():
    lean, full = (predict(plan(chunk=4096), work(1, 256, 256, text_precision=p), H200) for p in ("float8", "none"))
    assert full.tightest == "text" and full.need_vram > full.phases["text"] > 8.5 * GIB > full.peak_vram
    assert lean.phases["text"] < 5 * GIB, "its linears at one byte each; the table of words stays in host memory"


# Properties


def works() -> list[Workload]:
    previews = PreviewLoad(bucket=Bucket(41, 768, 768), prompts=2, passes=50, guided=True, sets=9)
    return [
        work(),
        work(1, 512, 512),
        work(81, 480, 832),
        work(81, 720, 1280, ranks=(16, 16), needed=2),
        work(41, 512, 512, batch=3, ranks=(64,), terms=2, extra_forwards=1),
        work(previews=previews, needed=2),
        msgspec.structs.replace(
            work(), loads=(Load(Bucket(41, 512, 512), 1, 0.5), Load(Bucket(41, 1024, 1024), 1, 0.5)), accumulation=2
        ),
    ]


def some_plans(count: int, seed: int = 7) -> list[Plan]:
    rng = random.Random(seed)
    out = []
    for _ in range(count):
        resident = rng.randint(0, 40)
        out.append(
            Plan(
                precision=rng.choice(["none", "float8", "qint8", "qint4"]),
                resident=resident,
                kept=rng.randint(0, resident),
                activations=rng.choice(["host", "device"]),
                chunk=rng.choice([0, 20000, 9000, 4096, 1500]),
                slots=rng.choice([2, 3]),
                vae_frames=rng.choice([4, 8, 20, 40]),
                activations_on_device=rng.choice([0, 1, 7, 30]),
            )
        )
    return out


def peaks(costs: Costs, of: Plan) -> tuple[int, int]:
    phases, reserved = costs.memory.vram(of)
    return training_peak(phases), reserved


@pytest.mark.parametrize("of", works())
@pytest.mark.parametrize(
    "field", ["resident", "kept", "chunk", "activations", "activations_on_device", "slots", "vae_frames"]
)
def test_asking_for_less_never_takes_more_memory(of, field):
    """A block less on the card, a kept graph less, smaller chunks, activations on the host, a slot less, fewer frames
    through the VAE."""
    costs = Costs(of, H200)
    for full in some_plans(60):
        less: dict[str, Any] = {
            "resident": {"resident": full.resident - 1, "kept": min(full.kept, full.resident - 1)},
            "kept": {"kept": full.kept - 1},
            "activations": {"activations": "host"},
            "activations_on_device": {"activations_on_device": full.activations_on_device - 1},
            "chunk": {"chunk": full.chunk // 2 or 16384},
            "slots": {"slots": full.slots - 1},
            "vae_frames": {"vae_frames": max(4, full.vae_frames - 4)},
        }[field]
        if min(less.get("resident", 0), less.get("kept", 0), less.get("activations_on_device", 0)) < 0:
            continue
        smaller = msgspec.structs.replace(full, **less)
        assert peaks(costs, smaller)[0] <= peaks(costs, full)[0], (full, smaller)


@pytest.mark.parametrize("of", works())
def test_what_costs_memory_costs_no_time(of):
    costs = Costs(of, H200)
    for full in some_plans(40):
        seconds = costs.time.step(full).total
        for more in (
            {"resident": 40},
            {"resident": 40, "kept": 40},
            {"keep_gelu": True},
            {"activations": "device"},
            {"activations_on_device": 40},
            {"chunk": 0},
        ):
            assert costs.time.step(msgspec.structs.replace(full, **more)).total <= seconds * 1.0001, (full, more)


@pytest.mark.parametrize(
    "more",
    [{"ranks": (32,)}, {"ema": True}, {"optimizer": "prodigy"}, {"ranks": (16, 16), "needed": 2}, {"ara_rank": 16}],
)
def test_more_work_takes_more(more):
    before, after = predict(plan(), work(), H200), predict(plan(), work(**more), H200)
    assert after.peak_vram > before.peak_vram


def test_terms_passes_and_accumulation_add_up():
    plain, dop = predict(plan(), work(), H200).seconds, predict(plan(), work(terms=2, extra_forwards=1), H200).seconds
    forward = Costs(work(), H200).time.forward(plan(), work().loads[0])[0]
    assert dop.transformer == pytest.approx(2 * plain.transformer + forward)
    twice = predict(plan(), work(accumulation=2), H200).seconds
    assert (twice.transformer, twice.vae) == pytest.approx(
        (2 * plain.transformer, 2 * plain.vae)
    ) and twice.other == plain.other


def test_a_slow_link_shows_in_the_step():
    slow = msgspec.structs.replace(H200, copy_gbps=6.0)
    hidden, exposed = predict(plan(), work(), H200).seconds, predict(plan(), work(), slow).seconds
    assert hidden.copies == 0 and hidden.copying > 0
    assert exposed.copies > 1 and not exposed.copies_hidden
    assert exposed.total == pytest.approx(exposed.copying + exposed.vae + exposed.other, rel=0.2), (
        "the link sets the pace"
    )
    resident = predict(plan(resident=40, slots=0, activations="device"), work(), slow).seconds
    assert resident.copying == resident.copies == 0


def test_a_mix_of_buckets_is_its_mean_in_time_and_its_largest_in_memory():
    large, small = Load(Bucket(41, 768, 768), 1, 0.25), Load(Bucket(41, 512, 512), 1, 0.75)
    mixed = predict(plan(), work(loads=(small, large)), H200)
    each = {size: predict(plan(), work(41, size, size), H200) for size in (512, 768)}
    assert mixed.peak_vram == each[768].peak_vram
    assert mixed.seconds.transformer == pytest.approx(
        0.75 * each[512].seconds.transformer + 0.25 * each[768].seconds.transformer
    )
    assert mixed.largest.total == pytest.approx(each[768].seconds.total)


def test_the_whole_run():
    previews = PreviewLoad(bucket=Bucket(41, 512, 512), prompts=2, passes=50, guided=True, sets=9)
    found = predict(plan(compiled=False), work(steps=100, previews=previews, needed=2), H200)
    forward = Costs(work(), H200).time.forward(plan(), work().loads[0])[0]
    assert 50 * forward < found.preview < 50 * forward + 4
    assert found.total == pytest.approx(100 * found.seconds.total + 18 * found.preview)


def test_what_is_compiled_for_any_size_is_compiled_once_and_once_for_batches():
    previews = PreviewLoad(bucket=Bucket(41, 768, 768), prompts=1, passes=1, guided=False, sets=1)
    several = work(
        steps=1,
        previews=previews,
        loads=tuple(Load(Bucket(41, side, side), batch, 1 / 3) for side, batch in ((512, 1), (512, 2), (640, 2))),
    )

    def spent(**how: bool) -> float:
        return predict(plan(**how), several, H200).total - predict(plan(compiled=False), several, H200).total

    one = predict(plan(), work(steps=1), H200).total - predict(plan(compiled=False), work(steps=1), H200).total
    assert spent() == pytest.approx(4 * one, rel=0.01) and spent(any_size=True) == pytest.approx(2 * one, rel=0.01)


@pytest.mark.parametrize(
    ("tokens", "chunk", "count", "rows"),
    [
        (11264, 0, 1, 11264),
        (11264, 5632, 2, 5632),
        (32760, 8192, 4, 8190),
        (1024, 4096, 1, 1024),
        (25344, 25343, 2, 12672),
    ],
)
def test_chunks_are_the_executor_s(tokens, chunk, count, rows):
    assert (plan(chunk=chunk).chunks(tokens), plan(chunk=chunk).longest_run(tokens)) == (count, rows)


def test_a_stash_on_the_device_takes_what_it_spares_the_host():
    """From the two that always do to all, block by block; the host's window goes with the last."""
    costs, one = Costs(work(), H200), Costs(work(), H200).memory.activations(Plan())
    plans = [plan(activations_on_device=n) for n in range(2, 41)]
    assert [sum(costs.memory.ram(p).values()) for p in plans] == [
        sum(costs.memory.ram(plan(activations="device")).values()) + (40 - n) * one for n in range(2, 41)
    ]
    sizes = [costs.memory.step(p)[0] for p in plans]
    assert (
        sizes[0] == pytest.approx(sizes[1] - one, rel=2e-3)
        and sizes[-1] == costs.memory.step(plan(activations="device"))[0]
    )
    assert all(b - a == pytest.approx(one) for a, b in itertools.pairwise(sizes[1:]))
    assert costs.memory.step(plan()) == costs.memory.step(plans[0])
    assert costs.memory.step(plans[-1]) == costs.memory.step(plan(activations="device"))
    slow = Costs(work(), msgspec.structs.replace(H200, copy_gbps=3.0))
    assert slow.time.step(plans[-1]) == slow.time.step(plan(activations="device")) != slow.time.step(plans[-2])


def test_a_recovery_adapter_travels_with_its_blocks():
    """A streamed plan holds its share of the slots, a resident one all of it; the host's memory holds it whole."""
    shape, rank = ExpertShape(), 128
    whole = 2 * shape.lora_parameters(rank)
    for made, share in ((plan(slots=2), 2 / 40), (plan(resident=40, slots=0, activations="device"), 2)):
        of = work(needed=2)
        without, carried = predict(made, of, H200), predict(made, msgspec.structs.replace(of, ara_rank=rank), H200)
        assert carried.peak_vram - without.peak_vram == pytest.approx(share * whole, rel=1e-3)
        assert carried.ram_held["weights"] - without.ram_held["weights"] == pytest.approx(2 * whole, rel=1e-3)


def test_the_rank_of_an_adapter_is_read_from_its_file(tmp_path):
    save_file(
        {
            "diffusion_model.blocks.0.self_attn.q.lora_A.weight": np.zeros((24, 8), np.float16),
            "diffusion_model.blocks.0.self_attn.q.lora_B.weight": np.zeros((8, 24), np.float16),
        },
        tmp_path / "a.safetensors",
    )
    made = job(quantization={"transformer": "qint4+ara", "ara": "a.safetensors"})
    assert ara_rank(made, tmp_path) == 24 and ara_rank(made, tmp_path / "gone") == ara_rank(made, None) == ARA_RANK
    (tmp_path / "a.safetensors").write_bytes(b"torn")
    assert ara_rank(made, tmp_path) == ARA_RANK


def test_smaller_clips_keep_more_graphs_in_what_the_largest_takes():
    loads = tuple(Load(Bucket(41, side, side), 1, 1 / 3) for side in (512, 768, 1024))
    costs = Costs(msgspec.structs.replace(work(), loads=loads), H200)
    bare = plan(resident=24, kept=8)
    full = costs.memory.filled(bare)
    small, middle, large = (load.rows for load in loads)
    assert full.kept_for(large) == full.kept == 8 < full.kept_for(middle) < full.kept_for(small) <= 24
    budget = sum(costs.memory.step(full))
    for load in loads[:2]:
        kept = full.kept_for(load.rows)
        assert sum(costs.memory.step(msgspec.structs.replace(full, kept=kept), load)) <= budget
        assert (
            kept == 24 or sum(costs.memory.step(msgspec.structs.replace(full, kept=kept + 1), load)) > 0.98 * budget
        ), "and no more would fit"
    assert costs.time.step(full).total < costs.time.step(bare).total
    assert costs.memory.filled(plan(resident=0)).also_kept == (), "a graph needs its block's weights to stay"
    assert Costs(work(), H200).memory.filled(bare) == bare, "all clips alike"


def test_a_deterministic_backward_has_its_own_rate_and_torchs_kernel_its_own_sums():
    plan = Plan(precision="float8", chunk=2048)
    loose = Costs(work(), H200)
    other, fixed, ours = (
        Costs(work(deterministic=True), msgspec.structs.replace(H200, deterministic_kernels=("cudnn", backward)))
        for backward in ("cudnn", "flash", "triton-large")
    )
    load = work().largest
    assert fixed.time.attention(load)[1] == pytest.approx(loose.time.attention(load)[1] * 428 / 341)
    assert fixed.time.attention(load)[0] == loose.time.attention(load)[0]
    row = 11264 * 5120 * 2
    for kept in (0, 8, 40):  # the kernel is the same in a block whose graph is kept
        some = msgspec.structs.replace(plan, resident=kept, kept=kept)
        assert fixed.memory.step(some)[0] - loose.memory.step(some)[0] == pytest.approx(6 * row)
        assert other.memory.step(some) == loose.memory.step(some)
        assert loose.memory.step(some)[0] - ours.memory.step(some)[0] == pytest.approx(1.9 * row)


def test_an_accelerator_takes_host_memory_always_and_the_device_s_in_previews_alone():
    previews = PreviewLoad(bucket=Bucket(41, 768, 768), prompts=2, passes=4, guided=False, sets=9)
    own = Accelerated(host=1200 * MIB, block=15 * MIB, stem=40 * MIB)
    without, with_it = (
        predict(plan(), work(previews=p, needed=2), H200)
        for p in (previews, msgspec.structs.replace(previews, accelerated=own))
    )
    assert with_it.ram - without.ram == with_it.ram_held["accelerator"] == own.host
    assert with_it.phases["preview"] - without.phases["preview"] in (
        own.stem,
        own.stem + 2 * own.block,
    ), "as a preview's decode or its passes are the most"
    assert {k: v for k, v in with_it.phases.items() if k != "preview"} == {
        k: v for k, v in without.phases.items() if k != "preview"
    }
    costs = Costs(work(previews=msgspec.structs.replace(previews, accelerated=own)), H200)
    passes = [costs.memory.preview_forward(plan(), p, batch=1)[0] for p in (previews, costs.work.previews)]
    assert passes[1] - passes[0] == own.stem + 2 * own.block


def test_measurements_of_the_held_out_loss_take_time_and_no_memory_and_move_no_plan():
    """A plan that they moved would round otherwise, and training would notice."""
    plain, measured = job(), job(validation={"path": "held", "every": 500})
    chosen = [choose(workload_of(made), H200) for made in (plain, measured)]
    assert chosen[0].plan == chosen[1].plan
    without, found = (choice.prediction for choice in chosen)
    assert (without.need_vram, without.ram, without.seconds) == (found.need_vram, found.ram, found.seconds)
    assert without.validation == 0.0 and found.validation > 0
    assert found.total == pytest.approx(without.total + 5 * found.validation)
    half = choose(workload_of(job(validation={"path": "held", "every": 500, "bins": 2})), H200).prediction
    assert found.validation / 2 < half.validation < found.validation
    assert disk_need(measured, ExpertShape()).files > disk_need(plain, ExpertShape()).files


# Milliseconds of ten blocks as CUDA graphs, forward and backward, on an H100 (benchmarks/results/2026-11-27-one-h100),
# when they passed over the tokens more often than now
@pytest.mark.parametrize(
    ("side", "made", "measured"),
    [
        (256, {"resident": 10, "activations": "device", "slots": 0}, 59.9),
        (256, {}, 124.0),
        (512, {"resident": 10, "activations": "device", "slots": 0}, 233.8),
        (512, {}, 240.2),
    ],
)
def test_blocks_as_graphs(side, made, measured):
    of = work(21, side, side, deterministic=True)
    costs, graphs = Costs(of, H100, ExpertShape(layers=10)), plan(**made, graphed=of.largest.rows)
    found = costs.step(graphs)
    assert 0.75 * measured < 1000 * (found.transformer + found.copies) < 1.10 * measured


def test_a_kept_graph_holds_some_of_the_text_of_the_lora_and_of_a_qint4_base_however_short_the_clip():
    def graph(precision: str = "float8", rank: int = 16, **size: int) -> float:
        costs = Costs(work(**size, ranks=(rank,)), H200)
        two, three = (
            sum(costs.memory.step(plan(precision=precision, resident=40, kept=kept, activations="device", slots=0)))
            for kept in (38, 39)
        )
        return three - two

    text = 3 * 512 * 5120 * 2
    short: dict[str, Any] = {"frames": 1, "height": 256, "width": 256}
    by_rows = graph(**short, batch=2) - graph(**short)
    assert by_rows - text == pytest.approx(graph(frames=1, height=256, width=512) - graph(**short), rel=0.02)
    assert graph(**short, rank=64) - graph(**short) == pytest.approx(2 * 48 * 76.7e6 / 16 / 40, rel=0.02)
    codes = 8 * 5120**2 + 2 * 5120 * 13824
    assert graph("qint4", **short) - graph("qint8", **short) == pytest.approx(codes, rel=0.02)


def test_graphs_recompute_and_take_memory_of_their_own():
    of = work(21, 256, 256)
    costs, launched = Costs(of, H100), plan(resident=40, slots=0, activations="device")
    graphs, longer = (msgspec.structs.replace(launched, graphed=of.largest.rows + more) for more in (0, 5000))
    held = [costs.memory.held(made).get("graphs", 0) / GIB for made in (launched, graphs, longer)]
    assert 0 == held[0] < held[1] < 1.1 and 2 * held[1] < held[2]
    assert costs.memory.vram(graphs)[1] - costs.memory.vram(launched)[1] == pytest.approx(held[1] * GIB, rel=1e-6)
    kept = msgspec.structs.replace(graphs, kept=40)
    assert costs.memory.step(kept) == costs.memory.step(graphs) and costs.step(kept) == costs.step(graphs)
    assert costs.memory.ram(kept) == costs.memory.ram(graphs)
    several = msgspec.structs.replace(
        of, validation=ValidationLoad(clips=((Bucket(9, 256, 256), 2.0),), passes=8, times=3)
    )
    assert Costs(several, H100).memory.held(graphs)["graphs"] - held[1] * GIB == pytest.approx(80 * 2**20 / 2, rel=0.01)


def test_longer_clips_and_chunks_and_accelerated_previews_are_launched():
    of = work(21, 256, 256)
    costs, launched = Costs(of, H100), plan(resident=40, slots=0, activations="device")
    assert costs.step(msgspec.structs.replace(launched, graphed=of.largest.rows - 1)) == costs.step(launched)
    chunked = msgspec.structs.replace(launched, chunk=800)
    assert costs.step(msgspec.structs.replace(chunked, graphed=of.largest.rows)) == costs.step(chunked)
    graphs = msgspec.structs.replace(launched, graphed=of.largest.rows)
    for accelerated, faster in ((Accelerated(), True), (Accelerated(block=100), False)):
        previews = PreviewLoad(
            bucket=Bucket(21, 256, 256), prompts=1, passes=8, guided=False, sets=1, accelerated=accelerated
        )
        time = Costs(msgspec.structs.replace(of, previews=previews), H100).time
        assert (time.preview(graphs) < time.preview(launched)) == faster

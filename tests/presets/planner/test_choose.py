"""What is chosen on which machine, and the ladder down when memory runs out."""

import itertools
from typing import Any

import msgspec
import pytest

from presets.clips.geometry import Bucket
from presets.errors import UserError
from presets.job.schema import LayersPanel
from presets.planner.candidates import AS_FAST, RUNG, candidates, limits_of, next_down, priced, within_ram
from presets.planner.cards import card_hardware, find_card, load_cards
from presets.planner.choose import RAM_WORTH, ROOMY_VRAM, Choice, DoesNotFit, choose, choose_for
from presets.planner.coefficients import FITTED
from presets.planner.costs import Costs
from presets.planner.plan import Plan
from presets.planner.remedies import remedies
from presets.planner.sizes import GIB, ExpertShape, disk_need
from presets.planner.workload import Hardware, Load, PreviewLoad, Workload, shape_of, workload_of
from tests.helpers.facts import clip, clips, facts, gpu, image, job, machine, tiny_model

pytestmark = pytest.mark.process  # takes seconds

PREVIEWS = PreviewLoad(bucket=Bucket(41, 512, 512), prompts=2, passes=50, guided=True, sets=9)


def work(frames: int = 41, side: int = 512, **more: Any) -> Workload:
    return Workload(**{"loads": (Load(Bucket(frames, side, side), 1, 1.0),), "previews": PREVIEWS, **more})


def on(card: str, *, ram: float = 128, vram: float | None = None, **more: Any) -> Hardware:
    found = card_hardware(find_card(card), ram=int(ram * GIB), vram=None if vram is None else int(vram * GIB))
    return msgspec.structs.replace(found, **more)


CASES = [  # any two of card, host and work meet in every third one; the others are for make thorough
    pytest.param(card, ram, of, marks=[pytest.mark.thorough] if (i + j + k) % 3 else [])
    for (i, card), (j, ram), (k, of) in itertools.product(
        enumerate(["3060", "4070", "3090", "4090", "L40S", "A100 80GB", "H200"]),
        enumerate([16, 48, 64, 256]),
        enumerate([work(), work(81, 480), work(41, 1024), work(1, 1024)]),
    )
]


@pytest.mark.parametrize(("card", "ram", "of"), CASES)
def test_what_is_chosen_fits_or_the_job_is_refused_with_numbers(card, ram, of):
    hardware = on(card, ram=ram)
    try:
        choice = choose(of, hardware)
    except DoesNotFit as e:
        over = (
            e.smallest.need_vram > hardware.vram_free
            if e.short == "vram"
            else e.smallest.ram + FITTED.ram_margin > hardware.ram_free
        )
        assert over and "GiB" in e.what and e.fix and not e.fix.endswith(".")
        return
    assert choice.prediction.need_vram <= hardware.vram_free and choice.prediction.ram < hardware.ram_free
    assert choice.prediction == Costs(of, hardware).predict(choice.plan)
    rungs = choice.ladder
    assert all(a.need_vram < b.need_vram and a.seconds > b.seconds for a, b in itertools.pairwise(rungs))
    seconds = choice.prediction.seconds.total
    assert choice.up is None or (choice.up.seconds < seconds and choice.up.need_vram > hardware.vram_free)
    assert choice.down is None or (
        choice.down.seconds >= seconds and choice.down.need_vram < choice.prediction.need_vram
    )


def crossed(cards: list[str], works: list[Workload]) -> list[object]:
    """Each card and each work; what remains of their pairs is for make thorough."""
    return [
        pytest.param(card, of, marks=[] if i % len(works) == j or j % len(cards) == i else [pytest.mark.thorough])
        for (i, card), (j, of) in itertools.product(enumerate(cards), enumerate(works))
    ]


@pytest.mark.parametrize(
    ("card", "of"),
    crossed(["3090", "4090", "H200"], [work(), work(41, 768), work(81, 480, terms=2, extra_forwards=1)]),
)
def test_more_memory_is_never_slower(card, of):
    seconds: list[float] = []
    for vram in (8, 9, 10, 12, 14, 16, 20, 24, 32, 40, 48, 80, 120, 141):
        try:
            seconds.append(choose(of, on(card, vram=vram)).prediction.seconds.total)
        except DoesNotFit:
            assert not seconds, "what fits in less fits in more"
    assert len(seconds) > 5 and all(later <= sooner * RUNG for sooner, later in itertools.pairwise(seconds))


@pytest.mark.parametrize(
    ("card", "vram"), [("4090", None), ("H200", 24), ("H200", 32), ("H200", 48), ("H200", 80), ("H200", None)]
)
def test_nothing_that_fits_is_clearly_faster_and_nothing_as_fast_spares_the_host(card, vram):
    hardware, of = on(card, vram=vram), work()
    costs, choice = Costs(of, hardware), choose(of, hardware)
    found = [
        r for r in priced(costs, choice.plan.precision, limits_of("auto", "auto")) if r.need_vram <= hardware.vram_free
    ]
    seconds, fastest = choice.prediction.seconds.total, min(r.seconds for r in found)
    assert seconds <= fastest * RUNG
    sure = [r for r in found if r.seconds <= fastest * RUNG and r.need_vram <= ROOMY_VRAM * hardware.vram_free]
    assert all(choice.prediction.ram < r.ram + RAM_WORTH for r in sure)
    if choice.plan.activations_on_device:
        one_more = msgspec.structs.replace(choice.plan, activations_on_device=choice.plan.activations_on_device + 1)
        assert costs.predict(one_more).need_vram > ROOMY_VRAM * hardware.vram_free >= choice.prediction.need_vram
    assert all(seconds <= r.seconds * AS_FAST for r in sure if r.ram <= choice.prediction.ram), (
        "no slower than sparing takes"
    )


def test_what_waits_for_its_backward_stays_on_a_card_that_has_the_room():
    """Both experts at 41x512x512 with previews at 768: 8.7 GiB that a card of 24 GiB holds as well, in a step as
    fast."""
    of = work(previews=msgspec.structs.replace(PREVIEWS, bucket=Bucket(41, 768, 768)))
    for vram in (24, 32, 48, 80, 141):
        choice = choose(of, on("H200", vram=vram))
        assert choice.plan.activations == "device" and choice.prediction.ram < 32 * GIB
    sixteen, twelve = (choose(of, on("H200", vram=vram)) for vram in (16, 12))
    assert (
        sixteen.plan.activations == twelve.plan.activations == "host"
        and 0 < twelve.plan.activations_on_device < sixteen.plan.activations_on_device
    )
    assert sixteen.prediction.ram < 46 * GIB and sixteen.prediction.ram < twelve.prediction.ram < 56 * GIB
    assert choose(of, on("H200", vram=16), low_vram=True).plan.activations_on_device == 0, "Low VRAM means the host"


def test_hidden_states_are_saved_where_that_is_faster_and_there_is_room():
    """On the device what is left over; in the host's memory no more than three quarters of it."""
    large, small, short = on("H100 SXM"), on("H200", vram=12), on("H200", vram=12, ram=48)
    for hardware, saves in ((large, True), (small, True), (short, False)):
        choice = choose(work(previews=None), hardware)
        without = msgspec.structs.replace(choice.plan, save_hidden=False)
        costs = Costs(work(previews=None), hardware)
        assert choice.plan.save_hidden == saves
        assert choice.prediction.need_vram <= hardware.vram_free
        if saves:
            assert choice.prediction.ram <= 0.75 * hardware.ram_total
            gain = costs.step(without).total / choice.prediction.seconds.total
            assert 1.005 < gain < 1.03 and choice.prediction.need_vram <= ROOMY_VRAM * hardware.vram_free
    assert not choose(work(previews=None), small, compiled=False).plan.save_hidden, "all is computed without compiler"
    assert not choose(work(previews=None), small, low_vram=True).plan.save_hidden
    assert not choose(work(21, 256, previews=None), large).plan.save_hidden, "recorded blocks"


def test_processes_of_one_host_leave_a_quarter_of_its_memory_together():
    of, whole = work(81, previews=None, sharers=4, needed=2), 160
    choice = choose(of, on("H200", vram=16, ram=whole, ram_free=whole * GIB // 4))
    assert not choice.plan.save_hidden or 4 * choice.prediction.ram <= 0.75 * whole * GIB
    roomy = choose(of, on("H200", vram=16, ram=2 * whole, ram_free=2 * whole * GIB // 4))
    assert roomy.plan.save_hidden


@pytest.mark.parametrize("exhausted", ["vram", "step", "ram"])
def test_the_rung_below_saved_hidden_states_takes_less(exhausted):
    hardware, of = on("H200", vram=12), work(previews=None)
    costs, plan = Costs(of, hardware), choose(of, hardware).plan
    lower = next_down(plan, of, hardware, exhausted=exhausted)
    assert plan.save_hidden and lower is not None
    if exhausted == "ram":
        assert not lower.save_hidden
        assert sum(costs.memory.ram(lower).values()) < sum(costs.memory.ram(plan).values()) - 4 * GIB
    else:
        assert costs.memory.vram(lower)[0]["step"] < costs.memory.vram(plan)[0]["step"]


def test_a_host_too_small_for_the_stash_gives_the_card_as_much_of_it_as_is_lacking():
    """Not the precision, as long as the card has the room."""
    of, hardware = work(), on("4090", ram=36, vram=16)
    plan = Plan(precision="float8", any_size=True)
    costs = Costs(of, hardware)
    lean = within_ram(costs, plan)
    assert lean is not None and sum(costs.memory.ram(lean).values()) + FITTED.ram_margin <= hardware.ram_free
    fewer = msgspec.structs.replace(lean, activations_on_device=lean.activations_on_device - 1)
    assert sum(costs.memory.ram(fewer).values()) + FITTED.ram_margin > hardware.ram_free
    assert within_ram(Costs(of, on("4090", ram=64, vram=16)), plan) is None
    assert lean in list(candidates(costs, "float8", limits_of("auto", "auto"))) and lean not in list(
        candidates(costs, "float8", limits_of(True, "auto"))
    )
    assert choose(of, hardware).plan.precision == "float8"


def test_pinned_memory_that_is_refused_brings_some_of_the_stash_to_the_card():
    """Or keeps graphs, which nothing waits for."""
    of, hardware = work(), on("H200", vram=16, ram=256)
    costs, plan = Costs(of, hardware), Plan(precision="float8")
    plans = [plan]
    while (lower := next_down(plans[-1], of, hardware, exhausted="ram")) is not None:
        plans.append(lower)
    ram = [sum(costs.memory.ram(p).values()) for p in plans]
    assert (
        len(plans) > 2
        and ram == sorted(ram, reverse=True)
        and (plans[1].activations_on_device or plans[1].kept)
        and all(costs.predict(p).need_vram <= hardware.vram_free for p in plans)
    )


# Precision


@pytest.mark.parametrize(
    ("card", "ram", "precision"),
    [
        ("4090", 64, "float8"),
        ("H200", 256, "float8"),
        ("3090", 128, "int8"),
        ("3090", 48, "int8"),
        ("A6000", 256, "none"),
        ("A6000", 48, "qint8"),
        ("A100 80GB", 256, "none"),
        ("3090", 28, "qint4"),
        ("4090", 24, "qint4"),
    ],
)
def test_automatic_precision(card, ram, precision):
    choice = choose(work(), on(card, ram=ram))
    assert choice.plan.precision == precision and choice.why


@pytest.mark.parametrize("card", load_cards(), ids=lambda card: card.name)
def test_automatic_is_float8_just_where_the_card_multiplies_in_it(card):
    """An exact name each, so that no card escapes; the refusal of an asked one is the same border."""
    hardware = card_hardware(card, ram=512 * GIB)
    found = choose(work(), hardware).plan.precision
    assert (found == "float8") == (card.capability >= (8, 9))
    assert (found == "int8") == (card.capability == (8, 6) and "GeForce" in card.nvml[0])
    assert choose(work(), hardware, precision="int8").plan.precision == "int8"
    if found == "float8":
        assert choose(work(), hardware, precision="float8").plan.precision == "float8"
    else:
        with pytest.raises(UserError) as e:
            choose(work(), hardware, precision="float8")
        assert (
            e.value.where == "quantization.transformer"
            and "needs compute capability 8.9 or newer (RTX 40 and 50 series" in e.value.what
            and '"auto"' in e.value.fix
            and not isinstance(e.value, DoesNotFit)
        )
        assert choose(work(), hardware, precision="qfloat8").plan.precision == "qfloat8"


def test_a_torch_without_8_bit_products_for_this_card_is_told_as_such():
    with pytest.raises(UserError, match="this torch has none for RTX 4090"):
        choose(work(), on("4090", fp8_tflops=0.0), precision="float8")


@pytest.mark.parametrize(
    ("card", "int8", "precision"),
    [
        ("4090", 1.2, "float8"),
        ("4090", 1.4, "int8"),
        ("5090", 1.4, "int8"),
        ("3090", 1.2, "none"),
        ("A100 80GB", 1.4, "int8"),
        ("H100 SXM", 9.0, "float8"),
        ("B200", 9.0, "float8"),
    ],
)
def test_integers_are_taken_where_they_were_measured_to_be_clearly_faster(card, int8, precision):
    """Than the best other product; never from Hopper on, but for the cards of Blackwell that people own."""
    plain = on(card, ram=256)
    hardware = on(card, ram=256, int8_tops=int8 * max(plain.bf16_tflops, plain.fp8_tflops))
    choice = choose(work(), hardware)
    assert choice.plan.precision == precision
    assert (choice.why == "this card multiplies fastest in 8-bit integers") == (precision == "int8")


def test_integers_that_did_not_run_are_refused_with_weights_of_the_same_size_and_never_chosen():
    broken = on("3090", ram=128, int8_tops=0.0)
    assert choose(work(), broken).plan.precision == "none"
    with pytest.raises(UserError, match="their kernels did not run on RTX 3090") as e:
        choose(work(), broken, precision="int8")
    assert e.value.where == "quantization.transformer" and '"qint8"' in e.value.fix
    old = msgspec.structs.replace(on("3090"), name="RTX 2080 Ti", capability=(7, 5))
    with pytest.raises(UserError, match=r"int8 needs compute capability 8\.0 or newer") as e:
        choose(work(), old, precision="int8")
    assert e.value.fix == "Use a card of compute capability 8.0 or newer: older ones run no precision"


def test_integers_are_faster_by_the_sheets_and_take_as_much_memory_as_float8():
    for card in ("3060", "3090"):
        step = {p: choose(work(), on(card, ram=128), precision=p).prediction.seconds.total for p in ("int8", "none")}
        assert step["int8"] < 0.85 * step["none"]
    held = {p: choose(work(), on("4090"), precision=p, layer_offloading=True).prediction for p in ("int8", "float8")}
    assert held["int8"].ram_held["weights"] == held["float8"].ram_held["weights"]
    assert held["float8"].peak_vram <= held["int8"].peak_vram < 1.25 * held["float8"].peak_vram


def test_bf16_is_not_taken_where_the_link_makes_it_slow():
    slow = on("A100 80GB", ram=256, copy_gbps=5.0)
    assert choose(work(), slow, layer_offloading=True).plan.precision == "qint8"


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ("none", "none"),
        ("int8", "int8"),
        ("qint8", "qint8"),
        ("qfloat8", "qfloat8"),
        ("qint4", "qint4"),
        ("qint4+ara", "qint4"),
    ],
)
def test_an_asked_precision_is_kept(asked, got):
    assert choose(work(), on("H200"), precision=asked).plan.precision == got
    with pytest.raises(DoesNotFit) as e:
        choose(work(), on("H200", ram=12), precision=asked)
    assert e.value.short == "ram" and "RAM" in e.value.what


# The guide's two switches


def test_layer_offloading_streams_all_or_nothing():
    for card in ("4090", "H200"):
        assert choose(work(), on(card), layer_offloading=True).plan.resident == 0
    resident = choose(work(), on("H200"), layer_offloading=False).plan
    assert (resident.resident, resident.slots) == (40, 0)
    assert choose(work(), on("4090"), layer_offloading=False).plan.precision == "qint4", "as on the guide's 24 GB cards"
    with pytest.raises(DoesNotFit) as e:
        choose(work(), on("4090"), layer_offloading=False, precision="float8")
    assert (
        e.value.short == "vram"
        and "every block resident" in e.value.what
        and 'model.layer_offloading = "auto"' in e.value.fix
    )


def test_low_vram_means_chunks_and_a_host_activations():
    for card in ("4070", "H200"):
        plan = choose(work(), on(card), low_vram=True).plan
        assert plan.chunk > 0 and plan.activations == "host" and plan.kept == 0
        assert choose(work(), on(card), low_vram=False).plan.chunk == 0
    long, small = work(81, 720), on("4090", vram=16)
    assert choose(long, small).plan.chunk > 0
    with pytest.raises(DoesNotFit) as e:
        choose(long, small, low_vram=False)
    assert "Low VRAM off" in e.value.what


# Down the ladder


def descent(plan: Plan, of: Workload, hardware: Hardware, **how: Any) -> list[Plan]:
    out = [plan]
    while (lower := next_down(out[-1], of, hardware, **how)) is not None:
        out.append(lower)
        assert len(out) < 100, "the ladder has an end"
    return out


@pytest.mark.parametrize(
    ("card", "of"),
    crossed(
        ["H200", "4090", "A100 80GB"],
        [work(1, 512), work(), work(previews=None, ranks=(16,), needed=1), work(81, 720)],
    ),
)
def test_each_rung_down_takes_less_and_the_last_has_none_below(card, of):
    hardware = on(card, ram=256)
    costs = Costs(of, hardware)
    plans = descent(choose(of, hardware).plan, of, hardware)
    found = [costs.predict(p) for p in plans]
    for before, after in itertools.pairwise(found):
        assert after.peak_vram < before.peak_vram and after.peak_reserved <= before.peak_reserved
    assert {p.precision for p in plans} == {plans[0].precision}, "the weights are packed already"
    least = min(costs.predict(p).peak_vram for p in candidates(costs, plans[0].precision, limits_of("auto", "auto")))
    assert found[-1].peak_vram <= least * 1.06


@pytest.mark.parametrize("phase", ["step", "vae", "preview"])
def test_a_rung_down_lowers_the_phase_that_ran_out(phase):
    of, hardware = work(), on("H200", ram=256)
    costs = Costs(of, hardware)
    plans = descent(choose(of, hardware).plan, of, hardware, exhausted=phase)
    assert len(plans) > 3
    for before, after in itertools.pairwise(plans):
        assert costs.predict(after).phases[phase] < costs.predict(before).phases[phase]
        assert costs.memory.vram(after)[1] <= costs.memory.vram(before)[1]


def test_a_rung_down_that_runs_out_in_the_vae_first_gives_it_fewer_frames():
    of, hardware = work(), on("H200", ram=256)
    first, second, *_ = descent(choose(of, hardware).plan, of, hardware, exhausted="vae")
    assert (
        second == msgspec.structs.replace(first, vae_frames=second.vae_frames) and second.vae_frames < first.vae_frames
    )


def test_host_memory_can_be_relieved_too():
    of, hardware = work(), on("H200", ram=256)
    costs = Costs(of, hardware)
    streamed = Plan(precision="float8", activations="host")
    lower = next_down(streamed, of, hardware, exhausted="ram")
    assert lower is not None and sum(costs.memory.ram(lower).values()) < sum(costs.memory.ram(streamed).values())
    assert costs.predict(lower).need_vram <= hardware.vram_free


def test_a_rung_down_takes_no_host_memory_that_is_not_there():
    of, hardware = work(), on("H200", ram=36)
    kept = choose(of, hardware).plan
    assert kept.precision == "float8"
    for plan in descent(kept, of, hardware):
        assert sum(Costs(of, hardware).memory.ram(plan).values()) < hardware.ram_free


# From a job


def test_the_work_of_a_job():
    made = job(
        training={"batch_size": 2, "gradient_accumulation": 3, "dop": True, "steps": 1000, "ema": True},
        target={"rank": 32},
        multistage={"low_noise": False},
        datasets=[{"resolutions": [512, 768], "repeats": 2}, {"num_frames": 1}],
        sample={"prompts": [], "every": 250},
    )
    known = facts([clip(width=832, height=832), clip("b.mp4", width=832, height=480)], [image(width=2000, height=2000)])
    of = workload_of(made, known)
    assert of.largest == Load(Bucket(41, 768, 768), 2, pytest.approx(1 / 5))
    assert {load.bucket for load in of.loads} == {
        Bucket(41, 512, 512),
        Bucket(41, 768, 768),
        Bucket(41, 384, 672),
        Bucket(41, 480, 832),
        Bucket(1, 512, 512),
    }
    assert sum(load.share for load in of.loads) == pytest.approx(1)
    assert [load.batch for load in of.loads if load.bucket.frames == 1] == [1], "one image fills no batch of two"
    windows = workload_of(
        job(datasets=[{"sampling": "head", "windows": 3, "short_clips": "shorten", "num_frames": 17}]),
        facts([clip(frames=60, width=512, height=512), clip("b.mp4", frames=12, width=512, height=512)]),
    )
    assert {(load.bucket.frames, load.share) for load in windows.loads} == {(17, 0.75), (9, 0.25)}
    assert windows.largest.bucket.frames == 17
    five = workload_of(
        job(training={"batch_size": 2}, sample={"prompts": []}),
        facts([clip(f"{i}.mp4", width=512, height=512) for i in range(5)]),
    )
    assert {(load.batch, round(load.share, 3)) for load in five.loads} == {
        (2, 0.667),
        (1, 0.333),
    } and five.several_sizes, "the last batch of an epoch is short"
    assert (of.accumulation, of.ranks, of.needed, of.terms, of.extra_forwards, of.ema, of.previews) == (
        3,
        (32,),
        1,
        2,
        1,
        True,
        None,
    )


def test_how_often_a_batch_of_a_job_has_a_last_frame():
    """A batch of which one clip gives it is encoded whole; images give none."""
    panels: list[dict[str, Any]] = [
        {"last_frame": 0.5},
        {"num_frames": 1, "last_frame": 1.0},
        {"last_frame": 1.0},
        {"last_frame": 1.0, "resolutions": [768]},
    ]
    made = job(
        training={"batch_size": 2},
        datasets=panels,
        sample={"prompts": [{"prompt": "p", "ctrl_img": "a.png", "end_img": end} for end in ("", "b.png")]},
    )
    small, large = ({"width": side, "height": side} for side in (512, 768))
    known = facts(
        [clip(f"{i}.mp4", **small) for i in range(3)],
        [image(**small)],
        [clip("c.mp4", **small)],
        [clip(f"{i}.mp4", **large) for i in range(3)],
    )
    of = workload_of(made, known)
    mean = (3 * 0.5 + 1.0) / 4  # of those of 512, in batches of two
    found = {(load.bucket.frames, load.bucket.width, load.batch): load.last_frame for load in of.loads}
    assert found == {
        (1, 512, 1): 0,
        (41, 512, 2): pytest.approx(1 - (1 - mean) ** 2),
        (41, 768, 2): 1.0,
        (41, 768, 1): 1.0,
    }
    assert of.previews is not None and of.previews.last_frame == 0.5
    measured = msgspec.structs.replace(made, validation=job(validation={"fraction": 0.5}).validation)
    held = workload_of(measured, known).validation
    assert held is not None and 0.5 < held.last_frame < 1


def test_the_previews_of_a_job():
    prompts = [{"prompt": "p", "ctrl_img": "a.png"}]
    of = workload_of(
        job(
            multistage={"high_noise": False},
            training={"steps": 1000},
            sample={"prompts": prompts * 3, "every": 250, "width": 832, "height": 480, "guidance": 1.0},
        )
    )
    # first, 250, 500, 750, last
    assert of.previews == PreviewLoad(bucket=Bucket(41, 480, 832), prompts=3, passes=25, guided=False, sets=5)
    assert (len(of.ranks), of.needed) == (1, 2), "previews go through both experts"


def test_one_size_alone_is_compiled_for_itself():
    """Where sizes differ the code must not depend on which came first."""
    h200, limits = on("H200"), limits_of("auto", "auto")
    assert not choose(work(previews=None), h200).plan.any_size and choose(work(), h200).plan.any_size
    several = work(previews=None, loads=tuple(Load(Bucket(41, 512, 512), batch, 0.5) for batch in (1, 2)))
    choice = choose(several, h200)
    down = next_down(choice.plan, several, h200, ExpertShape(), limits=limits, exhausted="vram")
    assert choice.plan.any_size and all(r.plan.any_size for r in choice.ladder) and down is not None and down.any_size
    since = next_down(
        msgspec.structs.replace(choose(work(previews=None), h200).plan, any_size=True),
        work(previews=None),
        h200,
        ExpertShape(),
        limits=limits,
        exhausted="vram",
    )
    assert since is not None and since.any_size, "as an earlier attempt was"
    assert not any(r.plan.any_size for r in priced(Costs(several, h200), "float8", limits, compiled=False))


def test_clips_that_are_not_known_fill_their_resolutions():
    assert workload_of(job(datasets=[{"resolutions": [512, 777]}])).largest.bucket == Bucket(41, 768, 768)


@pytest.mark.parametrize("kind", ["motion", "style", "character"])
def test_every_size_of_card_has_a_plan_for_the_guide_s_start(kind):
    """41 frames at 512, previews at 512: what the guide starts with."""
    made = job(kind, sample={"prompts": [{"prompt": "p", "ctrl_img": "a.png"}], "width": 512, "height": 512})
    for card, ram in (("3080", 64), ("4070", 64), ("4090", 64), ("H200", 256)):
        assert isinstance(choose_for(made, facts(), on(card, ram=ram)), Choice)


def test_a_tiny_base_keeps_everything():
    known = facts(model=tiny_model())
    assert shape_of(known) == ExpertShape(width=32, ffn=64, layers=2)
    choice = choose_for(job(), known, on("4090"))
    assert choice.plan.resident == choice.plan.kept == 2 or choice.prediction.seconds.copies_hidden


def test_knobs_say_what_would_fit():
    hardware = on("4070", ram=128)
    prompts = [{"prompt": "p", "ctrl_img": "a.png"}]
    made = job(sample={"prompts": prompts, "width": 1280, "height": 1280})
    with pytest.raises(DoesNotFit) as e:
        choose_for(made, facts(), hardware)
    turns = remedies(made, facts(), hardware, short=e.value.short)
    assert (
        turns[0].fits
        and turns[0].set == {"sample.width": 512, "sample.height": 512}
        and turns[0].need_vram <= hardware.vram_free
    )
    assert [k.fits for k in turns] == sorted((k.fits for k in turns), reverse=True)


def test_knobs_for_host_memory():
    hardware = on("4090", ram=36)
    made = job(quantization={"transformer": "none"})
    with pytest.raises(DoesNotFit) as e:
        choose_for(made, facts([*clips()]), hardware)
    assert e.value.short == "ram"
    assert {"quantization.transformer": "auto"} in [
        k.set for k in remedies(made, facts(), hardware, short="ram") if k.fits
    ]


def test_unused_facts_are_not_needed():
    assert (
        choose_for(job(), facts(model=None, machine=machine(gpu())), on("H200")).plan
        == choose_for(job(), facts(), on("H200")).plan
    )


def test_each_expert_s_own_rank_counts():
    """Held: LoRA, moments and average of 8 + 64; gradients of the larger alone."""
    made = job(target={"rank": 8}, multistage={"low": {"rank": 64}})
    of = workload_of(made)
    assert of.ranks == (8, 64) and of.rank == 64
    plan = choose(of, on("H200")).plan
    per_rank = Costs(work(ranks=(1,)), on("H200")).shape.lora_parameters(1)
    assert Costs(of, on("H200")).memory.held(plan)["lora"] == per_rank * ((8 + 64) * 12 + 64 * 4)
    need, common = (disk_need(m, ExpertShape()).checkpoint for m in (made, job(target={"rank": 8})))
    assert need == common * (8 + 64) // 16
    assert workload_of(job(multistage={"low": {"rank": 64}, "low_noise": False})).ranks == (16,), (
        "an expert that does not learn has no LoRA"
    )


def test_the_layers_that_train_are_what_a_plan_and_a_checkpoint_weigh():
    """Half of the blocks at rank 8 without the feed-forward, a quarter of them at 32: sums over the layers, by hand."""
    tables = [LayersPanel(match="blocks.0-9", rank=32)]
    made = job(target={"rank": 8, "include": ["blocks.0-19"], "exclude": ["ffn"], "layers": tables})
    parameters = 8 * (10 * 8 + 10 * 32) * (5120 + 5120)
    of, costs = workload_of(made), Costs(workload_of(made), on("H200"))
    assert costs.shape.lora_parameters(of.rank) == parameters and of.ranks[0] == of.ranks[1] < 8
    plan = choose(of, on("H200")).plan
    assert costs.memory.held(plan)["lora"] == parameters * (2 * 12 + 4)
    need = disk_need(made, ExpertShape())
    assert need.checkpoint == 2 * parameters * (4 + 8) and need.files == 2 * 2 * parameters * (made.save.keep + 1)
    assert (of.layouts, workload_of(job()).layouts) == (3, 1)
    assert costs.time.run(plan) > Costs(msgspec.structs.replace(of, layouts=1), on("H200")).time.run(plan)
    assert workload_of(job(target={"include": ["nothing"]})).ranks == (16, 16), "a rule refuses the pattern"


@pytest.mark.parametrize("plan", [Plan(), Plan(resident=40), Plan(resident=40, kept=10), Plan(activations="device")])
def test_a_backward_pass_that_ends_half_way_takes_half(plan):
    whole, half = (Costs(workload_of(job(target={"include": [f"blocks.{first}-39"]})), on("H200")) for first in (0, 20))
    load = whole.work.largest
    assert (whole.work.lowest, half.work.lowest) == (0, 20)
    linears = whole.shape.lora_parameters(16 - half.work.rank)  # fewer branches as well
    assert linears > 0 and half.time.forward(plan, load)[0] < whole.time.forward(plan, load)[0]
    share = half.time.backward(plan, load)[0] / whole.time.backward(plan, load)[0]
    assert 0.4 < share <= 0.5 and half.time.backward(plan, load)[1] <= whole.time.backward(plan, load)[1]
    assert whole.time.backward(plan, load) == Costs(workload_of(job()), on("H200")).time.backward(plan, load)


def test_clips_that_cannot_train_are_planned_for_as_if_they_were_not_known():
    tiny = facts([clip("a.mp4", width=16, height=8)])
    assert workload_of(job(), tiny).loads == workload_of(job()).loads


SHORT = work(21, 256, previews=None)


def test_graphs_are_taken_where_the_card_waits_for_launches():
    hardware, rows = on("H100 SXM"), Bucket(21, 256, 256).tokens
    short = choose(SHORT, hardware)
    assert short.graphs is not None and short.launched is not None and short.launched.plan.graphed == 0
    assert short.plan.graphed == short.graphs.plan.graphed == rows and short.plan.kept == 0
    assert short.prediction.seconds.total < 0.7 * short.launched.seconds
    assert short.prediction.held["graphs"] > 0 and short.prediction.need_vram <= hardware.vram_free
    assert {r.plan.graphed for r in short.ladder} == {0, rows}
    mixed = work(loads=(Load(Bucket(1, 256, 256), 4, 0.9), Load(Bucket(41, 512, 512), 1, 0.1)), previews=None)
    assert (found := choose(mixed, hardware)).plan.graphed == 4 * 256 and found.plan.kept > 0, "long clips keep theirs"
    assert choose(work(), hardware).graphs is None, "a long clip hides its launches"
    assert choose(SHORT, hardware, compiled=False).graphs is None
    assert choose(SHORT, on("3090")).graphs is None, "a slow card has no time to wait"


def test_graphs_are_refused_by_the_job_and_taken_at_its_word():
    hardware = on("H100 SXM")
    plain, asked = (choose(SHORT, hardware, cuda_graphs=how) for how in (False, True))
    assert plain.plan.graphed == 0 < asked.plan.graphed and plain.graphs == asked.graphs
    assert {r.plan.graphed for r in plain.ladder} == {0}
    assert choose(work(), hardware, cuda_graphs=True) == choose(work(), hardware), "they would be no faster"
    assert choose(SHORT, hardware).plan == asked.plan


def test_smaller_plans_keep_their_graphs_while_they_can():
    hardware = on("H100 SXM")
    costs, plans = Costs(SHORT, hardware), [choose(SHORT, hardware).plan]
    while (lower := next_down(plans[-1], SHORT, hardware, exhausted="step")) is not None:
        plans.append(lower)
    peaks = [costs.memory.vram(p)[0]["step"] for p in plans]
    assert all(a > b for a, b in itertools.pairwise(peaks))
    assert plans[1].graphed == plans[0].graphed and plans[-1].graphed == 0
    small = on("H100 SXM", vram=7)
    assert choose(SHORT, small).prediction.need_vram <= small.vram_free


def test_graphs_keep_the_gelu_where_there_is_room_and_give_it_up_first_when_memory_runs_out():
    small, large = choose(work(), on("H100 SXM")).plan, choose(work(), on("H200")).plan
    assert small.kept and not small.keep_gelu and large.kept and large.keep_gelu
    assert large.text != msgspec.structs.replace(large, keep_gelu=False).text
    full = Plan(precision="float8", resident=40, kept=40, keep_gelu=True, activations="device", slots=0)
    costs = Costs(work(), on("H200"))
    lean = msgspec.structs.replace(full, keep_gelu=False)
    rows = 40 * 11264 * 13824 * 2
    assert costs.memory.vram(full)[1] - costs.memory.vram(lean)[1] == pytest.approx(rows, rel=0.02)
    down = next_down(full, work(), on("H200"))
    assert down is not None and not down.keep_gelu and down.kept >= 38, "a few graphs less are as fast"

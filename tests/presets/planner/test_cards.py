"""Known cards, guesses for unknown ones, and rates that were measured."""

import threading

import pytest

from presets.errors import UserError
from presets.planner.cards import card_hardware, find_card, gpu_hardware, load_cards, nearest_card
from presets.planner.measured_rates import KEPT, AttentionRates, Rates, recall, remember
from presets.planner.sizes import GIB
from tests.helpers.facts import gpu, machine, rates


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_the_table_is_whole():
    cards = load_cards()
    assert len({c.name for c in cards}) == len(cards) >= 22
    for card in cards:
        assert (card.fp8 > 0) == (card.capability >= (8, 9)), card.name
        times = 4 if card.nvml[0].startswith("GeForce") else 2  # those that people own hold back all but integers
        assert card.int8 == pytest.approx(times * card.bf16, rel=0.02), card.name
        assert not card.fp8 or card.fp8 == pytest.approx(2 * card.bf16, rel=0.02), card.name
        assert 0 < card.sustained <= 1 and 10 <= card.copy <= 60 and 8 < card.vram < 200, card.name


def test_the_h200_of_the_table_is_the_one_measured():
    """787 bf16, 1500 float8, 676 and 428 attention (347 in a fixed order), 4.3 TB/s, 55 GB/s (2026-11-22)."""
    found = card_hardware(find_card("h200"), ram=256 * GIB)
    for name, measured in (
        ("bf16_tflops", 787),
        ("fp8_tflops", 1500),
        ("attention_forward_tflops", 676),
        ("attention_backward_tflops", 428),
        ("deterministic_backward_tflops", 347),
        ("memory_gbps", 4300),
        ("copy_gbps", 55),
    ):
        assert getattr(found, name) == pytest.approx(measured, rel=0.02), name
    assert found.deterministic_kernels == ("", "")


def test_a_card_with_little_shared_memory_goes_back_in_small_tiles():
    for name, share in (("4090", 260 / 347), ("5090", 260 / 347), ("A100 80GB", 1.0), ("B200", 1.0)):
        found = card_hardware(find_card(name), ram=256 * GIB)
        assert found.deterministic_backward_tflops / found.attention_backward_tflops == pytest.approx(
            share * 347 / 428, rel=0.03
        ), name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("4090", "RTX 4090"),
        ("rtx 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("4060ti", "RTX 4060 Ti 16GB"),
        ("4060 Ti", "RTX 4060 Ti 16GB"),
        ("A100 40 GB", "A100 40GB"),
        ("a100-sxm4-80gb", "A100 80GB"),
        ("h100 sxm", "H100 SXM"),
        ("l4", "L4"),
        ("L40S", "L40S"),
        ("5070 ti", "RTX 5070 Ti"),
        ("a6000", "RTX A6000"),
        ("rtx pro 6000", "RTX PRO 6000"),
        ("b200", "B200"),
        ("1080", None),
        ("a100", None),
        ("h100", None),
        ("", None),
        ("5070", "RTX 5070"),
        ("RTX 5070", "RTX 5070"),
        ("4070 Ti", "RTX 4070 Ti"),
        ("4070 super", "RTX 4070 SUPER"),
        ("4070 ti super", "RTX 4070 Ti SUPER"),
        ("4080 Super", "RTX 4080 SUPER"),
        ("3090 ti", "RTX 3090 Ti"),
        ("5060 Ti", "RTX 5060 Ti 16GB"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("l40", "L40"),
        ("a10", "A10"),
        ("a40", "A40"),
        ("4060", None),
        ("5060", None),
        ("4070 ti 16gb", None),
        ("6000", None),
        ("ti", None),
        ("16gb", None),
        ("rtx", None),
        ("3070", None),
        ("5070ti", "RTX 5070 Ti"),
        ("RTX5070Ti", "RTX 5070 Ti"),
        ("4070tisuper", "RTX 4070 Ti SUPER"),
        ("4080super", "RTX 4080 SUPER"),
        ("rtx4060ti-16gb", "RTX 4060 Ti 16GB"),
        ("4060ti 8gb", None),
        ("3060ti", None),
        ("3090 24GB", "RTX 3090"),
        ("4090 48gb", None),
        ("3060 12 GiB", "RTX 3060"),
        ("a100 24gb", None),
    ],
)
def test_names_that_people_type(text, name):
    if name:
        assert find_card(text).name == name
    else:
        with pytest.raises(UserError, match="--gpu"):
            find_card(text)


@pytest.mark.parametrize(
    ("text", "guess"),
    [
        ("4091", "Did you mean RTX 4090? These"),
        ("3060ti", "Did you mean RTX 3090 Ti or RTX 3080 Ti or RTX 3060? These"),
        ("radeon", "'radeon' is known. These"),
        ("4060", "no card called '4060' is known. Did you mean RTX 4060 Ti 16GB? These"),
        ("5060", "Did you mean RTX 5060 Ti 16GB? These"),
    ],
)
def test_an_unknown_card_gets_a_guess_and_all_that_are_known(text, guess):
    with pytest.raises(UserError) as caught:
        find_card(text)
    assert (
        guess in str(caught.value)
        and all(card.name in caught.value.fix for card in load_cards())
        and "--vram" in caught.value.fix
    )


def test_a_name_that_several_cards_share_is_not_guessed():
    for text, words in (
        ("h100", "may be H100 PCIe or H100 SXM or H100 NVL"),
        ("6000", "may be RTX 6000 Ada or RTX PRO 6000"),
        ("ada", "RTX 4000 Ada or "),
    ):
        with pytest.raises(UserError, match=words):
            find_card(text)


@pytest.mark.parametrize("text", ["T4", "Tesla V100", "v100 32gb", "RTX 2080 Ti", "2080ti", "RTX2080"])
def test_a_card_without_bf16_is_refused_with_the_reason(text):
    with pytest.raises(UserError, match=r"it has no bf16, which begins with compute capability 8\.0"):
        find_card(text)


def test_each_card_is_found_by_each_of_its_names():
    for card in load_cards():
        assert all(find_card(name) is card for name in (card.name, *card.nvml, *(f"NVIDIA {n}" for n in card.nvml))), (
            card.name
        )


def test_a_slice_of_a_small_card_is_not_taken_for_a_larger_one_of_a_like_name():
    mine = gpu(11, name="NVIDIA L40 MIG 1g.11gb", capability=(8, 9), mig=True)
    assert gpu_hardware(mine, machine(mine)).source == "guessed from L40, not measured here yet"


def test_a_bare_amount_of_memory_is_taken_for_the_slowest_card_of_that_size():
    assert nearest_card(12 * GIB).name == "RTX 3060"
    assert nearest_card(24 * GIB).name == "RTX 3090"
    assert nearest_card(141 * GIB).name == "H200"


def test_a_known_gpu_has_its_rates_and_its_own_memory():
    mine = gpu(80, name="NVIDIA H100 80GB HBM3", vram_free=30 * GIB)
    found = gpu_hardware(mine, machine(mine, ram_gib=200))
    assert found.bf16_tflops == pytest.approx(989 * 0.8) and found.vram_free == 30 * GIB and found.ram_free == 200 * GIB
    assert "not measured" in found.source
    idle = gpu_hardware(mine, machine(mine), idle=True)
    assert 79 * GIB < idle.vram_free < 80 * GIB, "what a queued job will find, when nothing else runs"


def test_a_laptop_card_is_not_taken_for_the_desktop_s():
    mine = gpu(16, name="NVIDIA GeForce RTX 4090 Laptop GPU", capability=(8, 9))
    found = gpu_hardware(mine, machine(mine))
    assert found.bf16_tflops < 100 and "guessed" in found.source and found.computes_float8


def test_a_slice_is_a_part_of_its_card():
    whole, part = gpu(80, name="NVIDIA H100 80GB HBM3"), gpu(20, name="NVIDIA H100 80GB HBM3 MIG 2g.20gb", mig=True)
    a, b = (gpu_hardware(g, machine(g)) for g in (whole, part))
    assert b.bf16_tflops == pytest.approx(a.bf16_tflops * 20 / 79.6) and b.vram_total == 20 * GIB


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 7), (9, 0), (10, 3), (12, 1)])
def test_an_unknown_card_is_guessed_from_its_kin(capability):
    mine = gpu(24, name="NVIDIA Something New", capability=capability)
    found = gpu_hardware(mine, machine(mine))
    assert found.bf16_tflops > 0 and found.capability == capability and "guessed" in found.source


def test_what_was_measured_before_int8_came_does_not_speak_against_it():
    mine = gpu(24, name="NVIDIA GeForce RTX 3090", capability=(8, 6))
    old, none = (gpu_hardware(mine, machine(mine), rates=rates(int8_tops=measured)) for measured in (None, 0.0))
    assert old.computes_int8 and old.int8_tops == gpu_hardware(mine, machine(mine)).int8_tops
    assert not none.computes_int8, "its kernels were seen not to run"


def test_what_was_measured_comes_before_the_table():
    mine = gpu(80)
    assert recall(mine) is None
    remember(rates())
    found = gpu_hardware(mine, machine(mine))
    assert (found.bf16_tflops, found.copy_gbps) == (
        700.0,
        50.0,
    ) and found.source == "measured on this machine on 2026-11-22"
    assert found.deterministic_kernels == ("cudnn", "flash") and found.attention_kernels == ("cudnn", "cudnn")
    remember(rates(deterministic_attention=AttentionRates("cudnn", 600.0, "triton-large", 340.0)))
    assert gpu_hardware(mine, machine(mine)).deterministic_kernels == ("cudnn", "triton-large")
    assert recall(gpu(80, driver="590.0")) is None, "another driver brings other kernels"
    assert recall(gpu(80, uuid="GPU-9")) is None
    remember(rates(bf16_tflops=710.0))
    again = recall(mine)
    assert again is not None and again.bf16_tflops == 710.0


def test_a_damaged_file_is_as_good_as_none_and_is_mended(tmp_path):
    path = tmp_path / "rates.json"
    for content in (b"", b"{", b'{"x": 1}', b"\xff\xfe"):
        path.write_bytes(content)
        assert recall(gpu(80), path) is None
        remember(rates(), path)
        assert recall(gpu(80), path) == rates()


def test_the_newest_measurements_stay(tmp_path):
    path = tmp_path / "deep" / "rates.json"
    for i in range(KEPT + 5):
        remember(rates(uuid=f"GPU-{i}"), path)
    assert recall(gpu(80, uuid="GPU-4"), path) is None and recall(gpu(80, uuid="GPU-5"), path) is not None
    assert [p.name for p in path.parent.iterdir()] == ["rates.json"]


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "rates.json"
    remember(rates(), path)
    stop = threading.Event()
    seen: list[Rates | None] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(recall(gpu(80), path))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        remember(rates(), path)
    stop.set()
    reader.join()
    assert seen and None not in seen

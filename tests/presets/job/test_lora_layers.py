"""Which layers train, with which rank, alpha and rate."""

import re
from collections import Counter

import pytest

from engine.wan.block import LINEARS
from presets.errors import UserError
from presets.job.lora_layers import MOST_LAYOUTS, WAN_NAMES, block_layouts, lora_layers, read_pattern
from presets.job.schema import LayersPanel
from tests.helpers.facts import job

BLOCKS = 40


def names(text: str) -> set[str]:
    """What a pattern names, with the blocks as "first-last"."""
    pattern = read_pattern(text, BLOCKS)
    return {f"{pattern.blocks[0]}-{pattern.blocks[-1]} {WAN_NAMES[linear]}" for linear in pattern.linears}


def test_the_linears_are_those_of_the_block_in_its_order():
    assert tuple(WAN_NAMES) == LINEARS


@pytest.mark.parametrize(
    ("text", "blocks", "linears"),
    [
        ("attn1", "0-39", "self_attn.q self_attn.k self_attn.v self_attn.o"),
        ("self_attn", "0-39", "self_attn.q self_attn.k self_attn.v self_attn.o"),
        ("cross_attn.k", "0-39", "cross_attn.k"),
        ("attn2.to_out", "0-39", "cross_attn.o"),
        ("attn2.to_out.0", "0-39", "cross_attn.o"),
        ("q", "0-39", "self_attn.q cross_attn.q"),
        ("to_q", "0-39", "self_attn.q cross_attn.q"),
        ("ffn", "0-39", "ffn.0 ffn.2"),
        ("ffn.0", "0-39", "ffn.0"),
        ("ffn.net.2", "0-39", "ffn.2"),
        ("blocks.7", "7-7", " ".join(WAN_NAMES.values())),
        ("blocks.0-19", "0-19", " ".join(WAN_NAMES.values())),
        ("blocks.30-39.ffn", "30-39", "ffn.0 ffn.2"),
        ("blocks.39-39.attn2.to_v", "39-39", "cross_attn.v"),
        ("blocks.3.k", "3-3", "self_attn.k cross_attn.k"),
    ],
)
def test_a_pattern_names_layers_in_either_spelling(text, blocks, linears):
    assert names(text) == {f"{blocks} {linear}" for linear in linears.split()}


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("attn3", "names no layer", "Did you mean attn2?"),
        ("cross_atn.k", "names no layer", "Did you mean cross_attn.k?"),
        ("blocks.3.fnn", "names no layer", "Did you mean blocks.3.ffn?"),
        ("0-9", "names no layer", "Did you mean blocks.0-9?"),
        ("cross_attn.k_img", "names no layer", "Did you mean cross_attn.k?"),  # of Wan 2.1 I2V
        ("attn", "names no layer", ""),
        ("0", "names no layer", "Did you mean blocks.0?"),
        ("blocks.3.0", "names no layer", ""),
        ("blocks", "names no layer", ""),
        ("blocks.3.", "names no layer", ""),
        ("", "names no layer", ""),
        ("blocks.0-40", "beyond the model's last block, 39", ""),
        ("blocks.9-0", "ends before it begins", "Write blocks.0-9"),
    ],
)
def test_a_pattern_that_names_nothing_is_refused_with_what_is_near(text, what, fix):
    with pytest.raises(UserError, match=re.escape(what)) as e:
        read_pattern(text, BLOCKS)
    assert fix in e.value.fix and ("Patterns are such as" in e.value.fix or fix.startswith("Write"))


def test_without_a_choice_every_linear_trains_alike():
    layers = lora_layers(job(target={"rank": 8, "alpha": 4.0}), "high_noise", 2)
    assert [layer.name for layer in layers] == [f"blocks.{i}.{name}" for i in range(2) for name in LINEARS]
    assert {(layer.rank, layer.alpha, layer.lr_factor) for layer in layers} == {(8, 4.0, 1.0)}


def test_what_is_excluded_stays_out_also_where_it_is_included():
    made = job(target={"include": ["blocks.1-2", "attn2.to_v"], "exclude": ["ffn", "blocks.2.attn1"]})
    found = Counter(layer.block for layer in lora_layers(made, "low_noise", 4))
    assert found == {0: 1, 1: 8, 2: 4, 3: 1}


def test_the_last_table_counts_for_rank_and_factor_each_by_itself_and_alpha_keeps_the_scale():
    tables = [
        LayersPanel(match="blocks.0-1", rank=4, lr_factor=0.5),
        LayersPanel(match="blocks.1-2.ffn", rank=32),
        LayersPanel(match="ffn.2", lr_factor=2.0),
    ]
    made = job(target={"rank": 16, "alpha": 8.0, "layers": tables}, multistage={"low": {"rank": 2, "lr": 1e-5}})
    made.multistage.low.rank = 2
    by_name = {layer.name: layer for layer in lora_layers(made, "high_noise", 4)}

    def of(name: str) -> tuple:
        return by_name[name].rank, by_name[name].alpha, by_name[name].lr_factor

    assert of("blocks.0.attn1.to_q") == (4, 2.0, 0.5)
    assert of("blocks.1.ffn.net.0.proj") == (32, 16.0, 0.5), "the later table has no factor of its own"
    assert of("blocks.2.ffn.net.2") == (32, 16.0, 2.0)
    assert of("blocks.3.ffn.net.2") == (16, 8.0, 2.0) and of("blocks.3.attn2.to_k") == (16, 8.0, 1.0)
    by_name = {layer.name: layer for layer in lora_layers(made, "low_noise", 4)}
    assert of("blocks.3.attn2.to_k") == (2, 8.0, 1.0), "the expert's own rank, where no table has one"
    assert of("blocks.0.attn1.to_q") == (4, 16.0, 0.5), "a table's rank counts for both experts; the scale is 8 / 2"


def test_blocks_are_of_a_kind_when_the_same_linears_train_with_the_same_ranks():
    def kinds(**target) -> int:
        return block_layouts(lora_layers(job(target=target), "high_noise", BLOCKS), BLOCKS)

    assert kinds() == 1 and kinds(exclude=["ffn"]) == 1
    assert kinds(include=["blocks.0-9"]) == 2, "and those without a LoRA"
    assert kinds(layers=[LayersPanel(match="blocks.0-9", lr_factor=0.5)]) == 1
    assert kinds(layers=[LayersPanel(match=f"blocks.{i}", rank=i + 1) for i in range(10)]) == 11 > MOST_LAYOUTS

"""What a LoRA that got no gradient somewhere is told to lack, and where none is due. Whole steps: those of
engine.training.train_step."""

import pytest
import torch

from engine.adapters.gradient_check import GradientCheck
from presets.planner.plan import Plan

EXPERT, PLAN = "high_noise", Plan()
LINEARS = ("attn1.to_q", "attn1.to_k", "ffn.net.2")
NAMES = [f"blocks.{b}.{linear}.lora_{side}.weight" for b in range(3) for linear in LINEARS for side in "AB"]
GOOD, NONE = {name: torch.ones(2) for name in NAMES}, dict.fromkeys(NAMES)


def look(check, gradients, *, width=8, plan=PLAN, expert=EXPERT, parameters=GOOD, loss=lambda: 1.0) -> str:
    """At a step with clips of one size."""
    return check.lost(parameters, gradients, (expert, frozenset([(1, 36, 1, 2, width)])), plan, loss)


def test_what_was_seen_is_looked_at_again_under_another_plan_and_with_clips_of_another_size():
    check = GradientCheck()
    assert look(check, GOOD) == ""
    assert look(check, NONE, loss=lambda: pytest.fail("nothing is looked at twice")) == ""
    assert look(check, NONE, width=10) == look(check, NONE, expert="low_noise") == "blocks 0-2"
    assert look(check, NONE, plan=Plan(kept=1)) == "blocks 0-2"


def test_wholes_are_named_and_a_linear_may_be_at_rest():
    def words(*parts: str) -> str:
        return look(GradientCheck(), {n: None if any(part in n for part in parts) else g for n, g in GOOD.items()})

    assert words("blocks.1.ffn.net.2.lora_B") == "" == words("blocks.1.attn1.to_q", "blocks.1.ffn")
    assert words("blocks.0", "blocks.2") == "blocks 0, 2"
    assert words("blocks.2") == words("blocks.2", ".ffn") == "block 2"
    assert words("attn1.to_q", "ffn.net.2.lora_A") == "attn1.to_q, ffn.net.2 of every block"


def test_small_numbers_are_none_of_zero_and_owe_nothing():
    assert look(GradientCheck(), {name: torch.full((2,), 1e-30) for name in NAMES}) == "", "whose norm is 0"
    small = {name: value * (1e-30 if "lora_B" in name else 1) for name, value in GOOD.items()}
    without_a = {name: value if "lora_B" in name else None for name, value in GOOD.items()}
    assert look(GradientCheck(), without_a, parameters=small) == "", "B has moved at a rate of next to 0"
    assert look(GradientCheck(), without_a) == "blocks 0-2"


def test_a_token_that_is_alone_needs_no_queries_and_keys():
    rest = {name: None if "attn1" in name else value for name, value in GOOD.items()}
    assert look(GradientCheck(), rest) == "attn1.to_k, attn1.to_q of every block"
    assert look(GradientCheck(), rest, width=2) == "" and look(GradientCheck(), NONE, width=2) == "blocks 0-2"

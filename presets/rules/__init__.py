"""Every rule about a job. A rule is one small function over the job and the facts; `RULES` holds them all by code."""

from presets.rules import (  # noqa: F401
    caption_rules,
    clip_rules,
    dataset_rules,
    expert_rules,
    frame_rules,
    gpu_rules,
    model_rules,
    plan_rules,
    preview_rules,
    run_folder_rules,
    training_rules,
)
from presets.rules.registry import RULES, Found, Rule

__all__ = ["RULES", "Found", "Rule"]

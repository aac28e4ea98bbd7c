"""Every rule about a job. A rule is one small function over the job and the facts; `RULES` holds them all by code."""

from presets.rules import (  # noqa: F401
    captions,
    clips,
    datasets,
    experts,
    frames,
    machine,
    model_files,
    plan,
    previews,
    run_folder,
    training,
)
from presets.rules.registry import RULES, Found, Rule

__all__ = ["RULES", "Found", "Rule"]

"""Which expert has its turn at which optimizer step, and its learning rate then.

A function of the job and the step alone (presets.stages): a checkpoint holds the stage's position by holding its step.
"""

from presets.stages import expert_at

__all__ = ["expert_at"]

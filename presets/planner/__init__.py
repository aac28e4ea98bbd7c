"""The planner: from a job and a machine to a memory plan, with what it will take. No torch.

    work = workload_of(job, facts)
    hardware = gpu_hardware(gpu, machine)          # or card_hardware(find_card("4090"), ram=...)
    choice = choose(work, hardware, shape_of(facts), low_vram=job.model.low_vram, ...)
    choice.plan, choice.prediction, choice.up, choice.down
    next_down(choice.plan, work, hardware, shape)  # after memory ran out
    remember(Rates(...))                           # what was measured on this machine
"""

from presets.planner.cards import card_hardware, find_card, gpu_hardware, load_cards, nearest_card
from presets.planner.choose import Choice, DoesNotFit, choose, choose_for
from presets.planner.costs import FITTED, Coefficients, Costs, Prediction, Seconds, block_bytes, predict
from presets.planner.inputs import Hardware, Load, Previews, Workload, shape_of, workload_of
from presets.planner.rates import Rates, recall, remember
from presets.planner.rungs import Limits, Rung, limits_of, next_down

__all__ = [
    "FITTED", "Choice", "Coefficients", "Costs", "DoesNotFit", "Hardware", "Limits", "Load", "Prediction", "Previews", "Rates", "Rung", "Seconds", "Workload",
    "block_bytes", "card_hardware", "choose", "choose_for", "find_card", "gpu_hardware", "limits_of", "load_cards", "nearest_card", "next_down", "predict", "recall",
    "remember", "shape_of", "workload_of",
]  # fmt: skip

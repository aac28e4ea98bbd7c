"""What a run says about itself: the plan in words, the card, memory in use, and steps that went wrong."""

import psutil
import torch

from engine.setup import Run
from presets.errors import UserError

NON_FINITE_LIMIT = 3  # in a row, then the run stops


def report_non_finite(run: Run, step: int, clips: list[str], timesteps: list[float], in_a_row: int) -> None:
    text = f"step {step + 1}: the loss or gradient is not finite; the step was skipped (clips {', '.join(clips)}, timesteps {', '.join(f'{t:.0f}' for t in timesteps)})"
    run.log.emit("finding", code="non-finite", severity="warning", field="training.lr", message=text, fix="Lower training.lr if it comes again; look at the clips named")
    if in_a_row >= NON_FINITE_LIMIT:
        raise UserError(f"{in_a_row} steps in a row were not finite", where=f"step {step + 1}", fix="The last checkpoint is good: lower training.lr and resume")


def plan_text(run: Run) -> str:
    """One line on how the experts are held and run."""
    if run.device.type != "cuda":
        return "fp32 on the CPU, everything resident"
    return f"{run.experts.plan.text}; attention by {run.experts.backend}; {run.planning.why}"


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def vram_gib(device: torch.device) -> float:
    """Peak memory held by the allocator since the last call, GiB."""
    if device.type != "cuda":
        return 0.0
    peak = torch.cuda.max_memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    return round(peak / 2**30, 3)


def vram_total_gib(device: torch.device) -> float:
    return round(torch.cuda.get_device_properties(device).total_memory / 2**30, 3) if device.type == "cuda" else 0.0


def ram_gib() -> float:
    return round(psutil.Process().memory_info().rss / 2**30, 3)

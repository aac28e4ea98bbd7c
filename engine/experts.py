"""Both experts, loaded as a plan asks and ready to run; the plan may be changed between two steps."""

import gc
from collections.abc import Callable

import torch
from diffusers import WanTransformer3DModel

from engine import lora
from engine.base import BaseFolder, Expert, load_expert, needed_experts, trained_experts
from engine.block import Lora
from engine.masters import Layout, block_tensors, fill, layout_of
from engine.pinned import host_buffer
from engine.streamed import ExpertWeights, Machinery, StreamedExecutor
from presets.job import Job
from presets.plan import Plan

Progress = Callable[[int, int, str], None]


class Experts:
    """The loaded experts by name; `executors` runs each, `parameters` holds the LoRA tensors of the trained ones.

    The packed blocks stay in host memory through every plan, so changing the plan reads nothing again.
    """

    def __init__(
        self, job: Job, base: BaseFolder, plan: Plan, *, backend: str, device: torch.device, dtype: torch.dtype, recovery: dict[Expert, list[Lora]], progress: Progress
    ) -> None:
        self.backend, self.device = backend, device
        self.parameters: dict[Expert, dict[str, torch.nn.Parameter]] = {}
        self._weights: dict[Expert, ExpertWeights] = {}
        needed = needed_experts(job)
        for expert in needed:
            stem, masters, layout = _load(base, expert, plan.precision, device=device, dtype=dtype, progress=progress)
            branches: list[Lora] = [{} for _ in masters]
            if expert in trained_experts(job):
                self.parameters[expert] = lora.make(stem.config, expert, rank=job.target.rank, alpha=lora.job_alpha(job), seed=job.job.seed, blocks=len(masters), device=device)
                branches = lora.by_block(self.parameters[expert], len(masters))
            own = recovery.get(expert, [{} for _ in masters])
            self._weights[expert] = ExpertWeights(expert, stem, masters, layout, branches, lora.job_alpha(job) / job.target.rank, own)
        self.set_plan(plan)

    def set_plan(self, plan: Plan) -> None:
        """Run under another plan from now on; what the old one held on the device is let go first."""
        self.plan = plan
        self.executors: dict[Expert, StreamedExecutor] = {}
        self.machinery: Machinery | None = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.machinery = Machinery(plan, self.backend, max(w.layout.bytes for w in self._weights.values()), self.device)
        self.executors = {expert: StreamedExecutor(weights, self.machinery) for expert, weights in self._weights.items()}


def _load(
    base: BaseFolder, expert: Expert, precision: str, *, device: torch.device, dtype: torch.dtype, progress: Progress
) -> tuple[WanTransformer3DModel, list[torch.Tensor], Layout]:
    """(the model without its blocks, packed blocks, their layout)."""
    stem = load_expert(base, expert, device=torch.device("cpu"), dtype=dtype)
    blocks = list(stem.blocks)
    stem.blocks = torch.nn.ModuleList()
    masters: list[torch.Tensor] = []
    layout: Layout | None = None
    for i in range(len(blocks)):
        progress(i, len(blocks), f"{expert} expert")
        weights, plain = block_tensors({k: v.to(device) for k, v in blocks[i].state_dict().items()}, precision)
        blocks[i] = None  # one copy at a time
        layout = layout or layout_of(weights, plain)
        masters.append(host_buffer(layout.bytes, pinned=device.type == "cuda"))
        fill(layout, masters[-1], weights, plain)
    assert layout is not None
    return stem.to(device), masters, layout

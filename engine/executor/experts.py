"""Both experts, loaded as a plan asks and ready to run; the plan may be changed between two steps."""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch

from engine.adapters import lora
from engine.adapters.accelerator import Accelerator
from engine.executor.activation_offload import Stash
from engine.executor.block_executor import BlockExecutor, ExecutorResources, ExpertWeights
from engine.wan.attention import Attention
from engine.wan.block import Lora
from engine.wan.int4_grids import Grid
from engine.weights.base_model import BaseModel
from engine.weights.load_expert import load_outer_modules
from engine.weights.packed_blocks import pack_lora_branches
from engine.weights.weight_cache import cached_blocks
from presets.caches.cache_files import cache_folder
from presets.job.expert_schedule import Expert, alpha_of, needed_experts, rank_of, trained_experts
from presets.job.schema import Job
from presets.planner.plan import Plan, Precision

Progress = Callable[[int, int, str], None]


class Experts:
    """The loaded experts by name; `executors` runs each, `parameters` holds the LoRA tensors of the trained ones.

    The packed blocks stay in host memory through every plan, so changing the plan reads nothing again. There are no
    executors until the first `set_plan`.
    """

    def __init__(
        self,
        job: Job,
        base: BaseModel,
        precision: Precision,
        *,
        attention: Attention,
        device: torch.device,
        dtype: torch.dtype,
        recovery: dict[Expert, list[Lora]],
        grid: Grid,
        progress: Progress,
        warn: Callable[[str], None],
    ) -> None:
        self.attention, self.device = attention, device
        self.parameters: dict[Expert, dict[str, torch.nn.Parameter]] = {}
        self._weights: dict[Expert, ExpertWeights] = {}
        self.executors: dict[Expert, BlockExecutor] = {}
        self.machinery: ExecutorResources | None = None
        source = base.source
        for expert in needed_experts(job):
            stem = load_outer_modules(source, expert, device=device, dtype=dtype)
            masters, layout = cached_blocks(
                source,
                expert,
                precision,
                dtype=dtype,
                pinned=device.type == "cuda",
                device=device,
                progress=progress,
                folder=cache_folder("weights"),
                warn=warn,
                grid=grid,
            )
            branches: list[Lora] = [{} for _ in masters]
            if expert in trained_experts(job):
                self.parameters[expert] = lora.make(
                    stem.config,
                    expert,
                    rank=rank_of(job, expert),
                    alpha=alpha_of(job, expert),
                    seed=job.job.seed,
                    blocks=len(masters),
                    device=device,
                )
                branches = lora.by_block(self.parameters[expert], len(masters))
            own = pack_lora_branches(recovery.get(expert, []), pinned=device.type == "cuda")
            self._weights[expert] = ExpertWeights(
                expert, stem, masters, layout, branches, alpha_of(job, expert) / rank_of(job, expert), own
            )

    def set_plan(self, plan: Plan, stash: Stash | None = None) -> None:
        """Run under another plan from now on; what the old one held on the device is let go first. `stash` is one of
        the same plan, with its host memory."""
        self.plan = plan
        self._drop()
        for weights in self._weights.values():
            weights.stem.to(self.device)  # from where `parked` has put it
        self.machinery = ExecutorResources(
            plan, self.attention, max(w.block_bytes for w in self._weights.values()), self.device, stash=stash
        )
        self.executors = {expert: BlockExecutor(weights, self.machinery) for expert, weights in self._weights.items()}

    def ensure(self) -> None:
        """The executors, made again when a preview that failed took them away."""
        if len(self.executors) < len(self._weights):
            self.set_plan(self.plan)

    def _drop(self) -> None:
        self.executors.clear()
        self.machinery = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def parked(self) -> Iterator[None]:
        """Inside, the device holds nothing of the experts but their LoRAs, where memory is short (what backward needs
        lies on the host): a preview's decode has the room. The host's memory stays locked, so bringing all back is
        quick."""
        if self.plan.stash == "device":
            yield
            return
        assert self.machinery is not None, "the preview has just run"
        stash = self.machinery.stash
        self._drop()
        for weights in self._weights.values():
            weights.stem.to("cpu")
        try:
            yield
        finally:
            self.set_plan(self.plan, stash)

    @contextmanager
    def accelerated(self, accelerators: Mapping[Expert, Accelerator]) -> Iterator[None]:
        """Inside, each expert runs with its accelerator's changes, under whatever plan; after, as before."""
        own = self._weights
        with ExitStack() as stack:
            for expert, accelerator in accelerators.items():
                stack.enter_context(accelerator.on(own[expert].stem))
            self._take(
                {
                    expert: (
                        replace(w, accelerator=a.branches, shifts=a.shifts) if (a := accelerators.get(expert)) else w
                    )
                    for expert, w in own.items()
                }
            )
            try:
                yield
            finally:
                self._take(own)

    def _take(self, weights: dict[Expert, ExpertWeights]) -> None:
        self._weights = weights
        for expert, executor in self.executors.items():
            executor.weights = weights[expert]

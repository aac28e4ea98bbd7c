"""Both experts, loaded as a plan asks and ready to run; the plan may be changed between two steps.

How one runs is `engine.executor.block_executor`'s; which plan fits is decided in `engine.memory`.
"""

import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import torch

from engine.adapters import lora
from engine.adapters.accelerator import Accelerator
from engine.adapters.lora import LoraParameters
from engine.adapters.merge import Merges
from engine.adapters.recovery_file import Ara
from engine.executor.activation_offload import Activations
from engine.executor.block_executor import BlockExecutor
from engine.executor.executor_resources import ExecutorResources
from engine.executor.expert_weights import ExpertWeights
from engine.system.pinned_memory import HostMemoryRefused, require_free
from engine.system.placement import Placement
from engine.system.progress import Progress, Warn
from engine.wan.attention import Attention
from engine.wan.block import Lora
from engine.weights.base_model import BaseModel
from engine.weights.load_expert import load_outer_modules
from engine.weights.packed_blocks import Allocate, PackedBlocks, pack_lora
from engine.weights.shared_blocks import SharedBlocks
from engine.weights.weight_cache import cached_blocks, find_cached, read_behind
from presets.caches.cache_files import cache_folder
from presets.job.expert_schedule import Expert, needed_experts, rank_of, trained_experts
from presets.job.lora_layers import TrainedLayer, lora_layers, scale_of
from presets.job.schema import Job
from presets.planner.plan import Plan, Precision


def read_blocks(
    expert: Expert,
    base: BaseModel,
    precision: Precision,
    placement: Placement,
    ara: Ara | None,
    merges: Mapping[Expert, Merges] | None,
    *,
    progress: Progress,
    warn: Warn,
    allocate: Allocate | None = None,
) -> PackedBlocks:
    """An expert's blocks, packed, from its files or the cache. Raises UserError."""
    return cached_blocks(
        base.source,
        expert,
        precision,
        placement,
        grid=ara.grid if ara else "qint4",
        changes=merges.get(expert) if merges else None,
        folder=cache_folder("weights"),
        progress=progress,
        warn=warn,
        allocate=allocate,
    )


def begin_reading(
    experts: Iterable[Expert],
    base: BaseModel,
    precision: Precision,
    placement: Placement,
    ara: Ara | None,
    merges: Mapping[Expert, Merges] | None,
    *,
    beside: int,
    progress: Progress,
    warn: Warn,
) -> dict[Expert, PackedBlocks]:
    """Of these experts, the blocks that the cache holds, read behind in this order; those of no expert where the host
    has less free memory than they and `beside` bytes take. Raises UserError."""
    found = [
        cached
        for expert in experts
        if (
            cached := find_cached(
                base.source,
                expert,
                precision,
                placement.dtype,
                grid=ara.grid if ara else "qint4",
                changes=merges.get(expert) if merges else None,
                folder=cache_folder("weights"),
                load=partial(
                    read_blocks, expert, base, precision, ara=ara, merges=merges, progress=progress, warn=warn
                ),
            )
        )
        is not None
    ]
    try:
        require_free(sum(cached.bytes for cached in found) + beside)
        return read_behind(found, placement, progress=progress, warn=warn)
    except HostMemoryRefused:
        return {}


class Experts:
    """The loaded experts by name; `executors` runs each, `parameters` holds the LoRA tensors of the trained ones, and
    `layers` says where they belong.

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
        placement: Placement,
        ara: Ara | None,
        progress: Progress,
        warn: Warn,
        merges: Mapping[Expert, Merges] | None = None,
        shared: Mapping[Expert, SharedBlocks] | None = None,
        begun: Mapping[Expert, PackedBlocks] | None = None,
    ) -> None:
        """Load them; `ara` is the accuracy recovery adapter of a quantized base, `merges` become part of it. Blocks
        that other processes `shared`, or whose reading has `begun`, are not read again. Raises UserError."""
        self.attention, self.device, self._warn = attention, placement.device, warn
        self._launched: Plan | None = None  # under which no CUDA graphs could be had
        self.parameters: dict[Expert, LoraParameters] = {}
        self.layers: dict[Expert, list[TrainedLayer]] = {}
        self._weights: dict[Expert, ExpertWeights] = {}
        self.executors: dict[Expert, BlockExecutor] = {}
        self.resources: ExecutorResources | None = None
        for expert in needed_experts(job):
            outer = load_outer_modules(base.source, expert, placement, changes=merges.get(expert) if merges else None)
            if shared and expert in shared:
                blocks = shared[expert].packed(pinned=placement.pinned)
            elif begun and expert in begun:
                blocks = begun[expert]
            else:
                blocks = read_blocks(expert, base, precision, placement, ara, merges, progress=progress, warn=warn)
            count = len(blocks.buffers)
            trained: list[Lora] = [{} for _ in range(count)]
            if expert in trained_experts(job):
                self.layers[expert] = lora_layers(job, expert, count)
                self.parameters[expert] = lora.make(
                    outer.config,
                    expert,
                    rank=rank_of(job, expert),
                    seed=job.job.seed,
                    blocks=count,
                    device=placement.device,
                    layers=self.layers[expert],
                )
                trained = lora.by_block(self.parameters[expert], count)
            recovery = pack_lora(ara.experts.get(expert, []), pinned=placement.pinned) if ara else None
            self._weights[expert] = ExpertWeights(expert, outer, blocks, trained, scale_of(job, expert), recovery)

    def scaling(self, expert: Expert) -> float:
        """alpha / rank of an expert's LoRA."""
        return self._weights[expert].scaling

    def set_plan(self, plan: Plan, activations: Activations | None = None) -> None:
        """Run under another plan from now on; what the old one held on the device is freed first. `activations` are
        those of the same plan, with their host memory. Raises torch.OutOfMemoryError and HostMemoryRefused."""
        self.plan = plan
        self._drop()
        for weights in self._weights.values():
            weights.outer.to(self.device)  # from where `parked` has put it
        largest = max(weights.block_bytes for weights in self._weights.values())
        self.resources = ExecutorResources(
            plan, self.attention, largest, self.device, activations=activations, refused=self._without_graphs
        )
        if plan == self._launched:
            self.resources.graphs = None
        self.executors = {expert: BlockExecutor(weights, self.resources) for expert, weights in self._weights.items()}

    def _without_graphs(self, why: str) -> None:
        self._launched = self.plan
        self._warn(f"no CUDA graphs: {why}. Blocks are launched instead: the same numbers, slower")

    @property
    def recorded(self) -> bool:
        """Whether CUDA graphs are held, in memory that nothing else has the use of; `set_plan` drops them."""
        return self.resources is not None and self.resources.graphs is not None and self.resources.graphs.recorded

    def ensure(self) -> None:
        """Have executors: a preview that failed may have left none."""
        if len(self.executors) < len(self._weights):
            self.set_plan(self.plan)

    def _drop(self) -> None:
        self.executors.clear()
        self.resources = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def parked(self) -> Iterator[None]:
        """Inside, where memory is short (activations go to the host), the device holds nothing of the experts but their
        LoRAs: a preview's decode has the room. The host's memory stays page-locked, so bringing all back is quick."""
        if self.plan.activations == "device":
            yield
            return
        assert self.resources is not None, "the preview has just run"
        activations = self.resources.activations
        self._drop()
        for weights in self._weights.values():
            weights.outer.to("cpu")
        try:
            yield
        finally:
            self.set_plan(self.plan, activations)

    @contextmanager
    def accelerated(self, accelerators: Mapping[Expert, Accelerator]) -> Iterator[None]:
        """Inside, each expert runs with its accelerator's changes, under whatever plan; after, as before."""
        own = self._weights
        with ExitStack() as stack:
            for expert, accelerator in accelerators.items():
                stack.enter_context(accelerator.on(own[expert].outer))
            changed = {e: replace(own[e], accelerator=a.lora, shifts=a.shifts) for e, a in accelerators.items()}
            self._take({**own, **changed})
            try:
                yield
            finally:
                self._take(own)

    def _take(self, weights: dict[Expert, ExpertWeights]) -> None:
        self._weights = weights
        for expert, executor in self.executors.items():
            executor.weights = weights[expert]

"""What a plan costs on a machine: `memory_costs` and `time_costs` joined to one prediction. Formulas over the sizes of
the work and the table of `coefficients`; nothing else is empirical."""

from functools import cache

import msgspec
from msgspec import Struct

from presets.planner.coefficients import FITTED
from presets.planner.memory_costs import MemoryCosts, training_peak
from presets.planner.plan import Plan
from presets.planner.sizes import ExpertShape
from presets.planner.time_costs import Seconds, TimeCosts
from presets.planner.workload import Hardware, Workload


class Prediction(Struct, frozen=True, kw_only=True):
    """What a plan is expected to take on a machine. Bytes and seconds."""

    peak_vram: int  # allocated at the highest once training has begun: text is encoded before
    peak_reserved: int  # with what the allocator cannot reuse
    need_vram: int  # with the CUDA context as well: what must be free before the run
    phases: dict[str, int]  # allocated peak of each phase: text, then step, vae, preview
    held: dict[str, int]  # what lies on the device through all phases but text: weights, ring, lora, stem, vae, graphs
    ram: int
    ram_held: dict[str, int]  # weights, activations, accelerator, process
    seconds: Seconds  # of the mean step
    largest: Seconds  # of a step of the largest bucket
    preview: float  # seconds for one preview; 0 without previews
    total: float  # seconds of the whole run: steps, previews, measurements, checkpoints, compilation
    validation: float = 0.0  # seconds of one measurement of the held-out loss; 0 without any

    @property
    def tightest(self) -> str:
        """The phase that takes most, text included."""
        return max(self.phases, key=lambda name: self.phases[name])


class Costs:
    """Costs of plans for one workload on one machine. `shape` is Wan 2.2 A14B's when it is not given."""

    def __init__(self, work: Workload, hardware: Hardware, shape: ExpertShape | None = None) -> None:
        self.work, self.hardware, self.shape = work, hardware, shape or ExpertShape()
        self.memory = MemoryCosts(work, hardware, self.shape)
        self.time = TimeCosts(work, hardware, self.shape)
        self.step = cache(self.time.step)  # seconds of a plan's mean step: the search for plans asks for them again

    def predict(self, plan: Plan) -> Prediction:
        phases, reserved = self.memory.vram(plan)
        ram, largest = self.memory.ram(plan), self.work.largest
        return Prediction(
            peak_vram=training_peak(phases),
            peak_reserved=reserved,
            need_vram=int(reserved + FITTED.context),
            phases=phases,
            held=self.memory.held(plan),
            ram=sum(ram.values()),
            ram_held=ram,
            seconds=self.step(plan),
            largest=self.time.step(plan, (msgspec.structs.replace(largest, share=1.0),)),
            preview=self.time.preview(plan),
            total=self.time.run(plan),
            validation=self.time.validation(plan),
        )


def predict(plan: Plan, work: Workload, hardware: Hardware, shape: ExpertShape | None = None) -> Prediction:
    """What a plan takes for this work on this machine. `shape` is Wan 2.2 A14B's when it is not given."""
    return Costs(work, hardware, shape).predict(plan)

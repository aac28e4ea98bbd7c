"""Facts made by hand for the tests of rules and recipes: a good machine, good clips, a good job."""

from pathlib import Path
from typing import Any

import msgspec

from presets.base.fetch_plan import Fetch, Fetching
from presets.base.model_facts import ModelFacts
from presets.clips.clip_facts import ClipFacts, DatasetFacts
from presets.facts.facts import Facts, RunFolder
from presets.job.schema import DatasetPanel, Job, JobPanel
from presets.machine.gpus import Gpu, GpuProcess
from presets.machine.machine import Machine
from presets.machine.torch_build import Build
from presets.planner.measured_rates import AttentionRates, Rates

GIB = 2**30
PACKAGES = frozenset({"bitsandbytes", "prodigyopt"})


def clip(
    name: str = "a.mp4",
    *,
    frames: int = 41,
    fps: float = 16.0,
    width: int = 832,
    height: int = 832,
    caption: str = "orbit 360 around the subject",
    **more: Any,
) -> ClipFacts:
    return ClipFacts(
        path=f"/clips/{name}",
        kind="video",
        frames=frames,
        fps=fps,
        duration=frames / fps,
        width=width,
        height=height,
        rotation=0,
        codec="h264",
        variable_rate=False,
        has_caption=bool(caption),
        caption=caption,
        size_bytes=1000,
        **more,
    )


def image(name: str = "a.png", *, width: int = 832, height: int = 832, caption: str = "a look") -> ClipFacts:
    return ClipFacts(
        path=f"/clips/{name}",
        kind="image",
        frames=1,
        fps=0.0,
        duration=0.0,
        width=width,
        height=height,
        rotation=0,
        codec="png",
        variable_rate=False,
        has_caption=bool(caption),
        caption=caption,
    )


def clips(count: int = 12, **more: Any) -> list[ClipFacts]:
    return [clip(f"{i:02}.mp4", **more) for i in range(count)]


def gpu(gib: float = 80, index: int = 0, **more: Any) -> Gpu:
    total = int(gib * GIB)
    return Gpu(
        **{
            "index": index,
            "name": "NVIDIA H100",
            "uuid": f"GPU-{index}",
            "capability": (9, 0),
            "vram_total": total,
            "vram_free": total,
            "driver": "580.1",
            **more,
        }
    )


def process(pid: int = 7, gib: float = 30) -> GpuProcess:
    return GpuProcess(pid=pid, name="python", memory=int(gib * GIB))


def machine(
    *gpus: Gpu, ram_gib: float = 256, disk_gib: float = 500, problem: str = "", torch: Build | None = None
) -> Machine:
    ram = int(ram_gib * GIB)
    return Machine(
        gpus=list(gpus),
        gpu_problem=problem,
        ram_total=ram,
        ram_free=ram,
        cores=16,
        disk_free=int(disk_gib * GIB),
        disk_path="/data",
        torch=torch,
    )


def rates(**more: object) -> Rates:
    """Measured on `gpu(index=0)`."""
    plain = {
        "name": "NVIDIA H100",
        "uuid": "GPU-0",
        "driver": "580.1",
        "copy_gbps": 50.0,
        "bf16_tflops": 700.0,
        "fp8_tflops": 1300.0,
        "date": "2026-11-22T10:00:00",
    }
    return Rates(
        **{
            **plain,
            "attention": AttentionRates("cudnn", 600.0, "cudnn", 400.0),
            "deterministic_attention": AttentionRates("cudnn", 600.0, "flash", 150.0),
            "memory_gbps": 2900.0,
            **more,
        }
    )  # type: ignore[arg-type]


def real_model(**more: Any) -> ModelFacts:
    return ModelFacts(
        **{
            "path": "base",
            "local": True,
            "in_channels": 36,
            "out_channels": 16,
            "num_layers": 40,
            "width": 5120,
            "ffn": 13824,
            "boundary_ratio": 0.9,
            "parameters": 28_600_000_000,
            **more,
        }
    )


def fetching(gib: float, *, here_gib: float = 0, free_gib: float = 100, **more: Any) -> Fetching:
    """The experts are to come from the Hub, `gib` of them."""
    fetch = Fetch(
        repo="a/b", parts=("transformer", "transformer_2"), total=int((gib + here_gib) * GIB), here=int(here_gib * GIB)
    )
    return Fetching(cache="/nowhere/hub", free=int(free_gib * GIB), fetches=[fetch], **more)


def tiny_model() -> ModelFacts:
    return real_model(parameters=2_000_000, num_layers=2, width=32, ffn=64)


def dataset(found: list[ClipFacts]) -> DatasetFacts:
    return DatasetFacts(path="/clips", clips=found, problems=[])


def facts(*found: list[ClipFacts], **more: Any) -> Facts:
    """Everything known and fine: 12 clips of 41 frames at 16 FPS unless given."""
    plain: dict[str, Any] = {
        "base": Path("/"),
        "datasets": [dataset(f) for f in found or [clips()]],
        "machine": machine(gpu()),
        "model": real_model(),
        "out": Path("/data/runs"),
        "run": RunFolder(path="/data/runs/orbit", name="orbit"),
        "packages": PACKAGES,
    }
    return Facts(**plain | more)


def job(kind: str = "motion", **panels: Any) -> Job:
    """`job(training={"lr": 1}, datasets=[{"num_frames": 33}])`: the good job with some fields changed."""
    made = Job(job=JobPanel(name="orbit"), datasets=[DatasetPanel(path="clips") for _ in panels.get("datasets", [{}])])
    made.job.kind = kind  # type: ignore[assignment]
    for panel, values in panels.items():
        for i, fields in enumerate(values) if isinstance(values, list) else [(None, values)]:
            target = getattr(made, panel) if i is None else getattr(made, panel)[i]
            for name, value in fields.items():
                assert name in target.__struct_fields__, name
                setattr(target, name, value)
    return msgspec.convert(msgspec.to_builtins(made), Job)

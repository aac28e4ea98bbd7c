"""What this version cannot do yet: it trains on one GPU, with experts in bf16, whole on that GPU."""

from collections.abc import Iterator

from presets.facts import Facts, used_gpus
from presets.job import Job
from presets.rules.machine import expert_bytes
from presets.rules.registry import Found, rule
from presets.sizes import GIB, human

WORKING_BYTES = 8 * GIB  # activations of a 512 x 512 clip of 41 frames with recomputation, LoRA, optimizer, VAE


@rule("quantization-unavailable", "error")
def quantization_unavailable(job: Job, facts: Facts) -> Iterator[Found]:
    """The experts stay in bf16 and on the GPU: quantization and offloading come with a later version."""
    if job.quantization.transformer not in ("auto", "none"):
        yield Found("quantization.transformer", f"this version trains in bf16 only, not in {job.quantization.transformer}", set={"quantization.transformer": "auto"})
    for name, what in (("low_vram", "Low VRAM"), ("layer_offloading", "layer offloading")):
        if getattr(job.model, name) is True:
            yield Found(f"model.{name}", f"this version has no {what} yet: each expert stays whole on the GPU", set={f"model.{name}": "auto"})


@rule("one-gpu", "error")
def one_gpu(job: Job, facts: Facts) -> Iterator[Found]:
    """A job names one GPU: several come with a later version."""
    if len(set(job.job.gpus)) > 1:
        yield Found("job.gpus", f"this version trains a job on one GPU, and {len(set(job.job.gpus))} are named", set={"job.gpus": job.job.gpus[:1]})


@rule("vram-too-small", "warning")
def vram_too_small(job: Job, facts: Facts) -> Iterator[Found]:
    """The GPU holds every expert that is trained or previewed in bf16, with room to work in."""
    gpu = min(used_gpus(job, facts), key=lambda g: g.vram_total, default=None)
    trained = job.multistage.high_noise + job.multistage.low_noise
    experts = 2 if job.sample.prompts else trained
    need = experts * expert_bytes(facts) + WORKING_BYTES
    if gpu is None or facts.tiny or gpu.vram_total >= need:
        return
    message = f"GPU {gpu.index} has {human(gpu.vram_total)}; this version keeps {experts} expert{'s' if experts > 1 else ''} in bf16 on it, {human(need)} with the working memory, and will run out while loading"
    one = expert_bytes(facts) + WORKING_BYTES
    cheaper = " Training one expert without previews takes " + human(one) if one <= gpu.vram_total and experts > 1 else ""
    yield Found("job.gpus", message, fix=f"Use a card with {human(need)} or more.{cheaper}".rstrip("."))

"""Everything a run needs before step 1, loaded in the order that keeps the memory peak low.

The text encoder comes first and is dropped again, then the VAE, which encodes images for the cache, then the experts.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch

from engine.adapters.accelerator import load_accelerators
from engine.adapters.recovery_file import find_ara, load_ara
from engine.data.dataset import Item, build_dataset, dataset_fingerprint
from engine.data.loader import Loader
from engine.data.sampler import BatchSampler, turn_of
from engine.encode.latent_cache import LatentCache
from engine.encode.tensor_cache import TensorCache
from engine.encode.text_embeddings import encode_texts
from engine.encode.vae_encoder import load_vae, vae_identity
from engine.executor.experts import Experts
from engine.memory.out_of_memory import loading
from engine.memory.planning import plan_run
from engine.runfolder.control import Control
from engine.runfolder.event_log import EventLog
from engine.runfolder.resume import ResumePoint
from engine.system.placement import Placement
from engine.training.context import Learner, Run
from engine.training.objective import class_prompt
from engine.training.optimizer import Ema, build_optimizer
from engine.training.placement import kernels_of, make_encoder, place, plan_before, running_before
from engine.wan.block import Lora, linear_shapes
from engine.wan.int4_grids import Grid
from engine.weights.base_model import BaseModel, find_base_model
from presets.base.composition import named_base
from presets.base.model_facts import read_model
from presets.clips.captions import fill_trigger
from presets.errors import UserError
from presets.facts.facts import Facts, clip_speeds
from presets.job.expert_schedule import Expert, needed_experts
from presets.job.schema import Job


def prepare(
    begin: ResumePoint,
    facts: Facts,
    folder: Path,
    log: EventLog,
    control: Control,
    *,
    device: torch.device,
    workers: int,
    vram: int | None = None,
) -> Run:
    """Load and encode for `begin.job`. `vram` caps the card's memory, in bytes. Raises UserError, and StopRequested
    when a stop comes meanwhile: nothing is lost by that."""
    job, gpu = begin.job, device.type == "cuda"
    # bf16 products crawl on a CPU
    placement = Placement(device, torch.bfloat16 if gpu else torch.float32, pinned=gpu)

    def progress(name: str, done: int, total: int, text: str) -> None:
        control.raise_if_stop_requested()
        log.phase(name, done, total, text)

    def say(level: str, text: str) -> None:
        log.emit("log", level=level, text=text)

    warn = partial(say, "warning")
    log.phase("loading", 0, 1, "base model")
    base = find_base_model(job, facts.base, progress=partial(progress, "loading"))
    if facts.model is None or not facts.model.local:  # it has just come from the Hub
        facts = msgspec.structs.replace(facts, model=read_model(named_base(job), facts.base))
    accelerators, notes = load_accelerators(job, facts.base, base, placement.dtype)
    for note in notes:
        say("info", note)
    items = build_dataset(job, facts.base, facts.datasets)
    running = running_before(begin, device)
    planning = plan_run(job, facts, device, vram=vram, before=plan_before(begin, running))

    log.phase("loading", 0, 1, "text encoder")
    with loading("text encoder", device, planning):
        texts = encode_texts(
            base,
            all_texts(job, items),
            placement,
            precision=job.quantization.text_encoder,
            progress=partial(progress, "caching"),
            cache=TensorCache("texts", warn=warn) if job.training.cache_text_embeddings else None,
        )
    with loading("VAE", device, planning):
        encoder = make_encoder(load_vae(base.source, placement), planning.plan)
        latents = None
        if any(panel.cache_latents for panel in job.datasets):
            latents = LatentCache(
                job,
                items,
                TensorCache("latents", warn=warn),
                placement,
                vae=vae_identity(base.source),
                how=f"{type(encoder).__name__} {planning.plan.compiled}",
            )
            made = latents.fill(encoder, partial(progress, "caching"))
            say("info", f"latents of images: {made} encoded, the others read from the cache")
    config = base.source.expert("high_noise" if job.multistage.high_noise else "low_noise").config
    largest = max(item.bucket.tokens for item in items)
    kernels, why = kernels_of(job, planning, running, config, placement, tokens=largest)
    say("info", f"attention by {kernels.text}: {why}")
    with loading("experts", device, planning):
        recovery, grid = recovery_of(job, facts.base, base, config, placement.dtype, warn=warn)
        experts = Experts(
            job,
            base,
            planning.plan.precision,
            attention=kernels,
            device=device,
            dtype=placement.dtype,
            recovery=recovery,
            grid=grid,
            progress=partial(progress, "loading"),
            warn=warn,
        )
        learners = {
            expert: Learner(
                parameters,
                build_optimizer(job.training, list(parameters.values())),
                Ema(job.training.ema_decay, parameters) if job.training.ema else None,
            )
            for expert, parameters in experts.parameters.items()
        }
    sampler = BatchSampler(items, job.training.batch_size, job.job.seed, turn_of(job))
    run = Run(
        job=job,
        begin=begin,
        base_dir=facts.base,
        folder=folder,
        log=log,
        control=control,
        placement=placement,
        base=base,
        encoder=encoder,
        texts=texts,
        latents=latents,
        data=dataset_fingerprint(items),
        loader=Loader(sampler, workers, log=warn, needless=latents.holds if latents else None),
        speeds=clip_speeds(job, facts),
        experts=experts,
        planning=planning,
        learners=learners,
        accelerators=accelerators,
        ahead=list(begin.ahead),
    )
    place(run, planning.plan)
    return run


def recovery_of(
    job: Job,
    base_dir: Path,
    base: BaseModel,
    config: dict[str, Any],
    dtype: torch.dtype,
    *,
    warn: Callable[[str], None],
) -> tuple[dict[Expert, list[Lora]], Grid]:
    """The accuracy recovery adapter of qint4+ara, per expert and block, in host memory, and the 4-bit grid it was made
    for. Raises UserError."""
    if job.quantization.transformer != "qint4+ara":
        return {}, "qint4"
    if not job.quantization.ara:
        raise UserError(
            "qint4+ara needs an adapter", where="quantization.ara", fix="Name one, or build it with wanlora ara"
        )
    path = find_ara(job.quantization.ara, base_dir)
    ara = load_ara(
        path,
        shapes=linear_shapes(config),
        blocks=config["num_layers"],
        needed=needed_experts(job),
        identities={e: base.identity_of(e) for e in needed_experts(job)},
        device=torch.device("cpu"),
        dtype=dtype,
    )
    if ara.assumed:
        warn(ara.assumed)
    return ara.experts, ara.grid


def all_texts(job: Job, items: list[Item]) -> set[str]:
    """Every text the run can ask for: captions, the empty one, class prompts, preview prompts and the negative."""
    trigger = job.job.trigger
    captions = {item.caption for item in items}
    texts = set(captions) | {fill_trigger(p.prompt, trigger) for p in job.sample.prompts} | {job.sample.negative}
    if job.training.blank_prompt_preservation or any(d.caption_dropout > 0 for d in job.datasets):
        texts.add("")
    if job.training.dop:
        texts |= {class_prompt(caption, trigger, job.training.dop_class) for caption in captions | {""}}
    return texts

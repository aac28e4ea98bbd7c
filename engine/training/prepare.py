"""Everything a run needs before step 1, loaded in the order that keeps the memory peak low.

The text encoder comes first and is dropped again, then the VAE, which encodes images for the cache, then the experts.

What comes of it is engine.training.context's Run; the loop is engine.training.trainer's.
"""

from functools import partial
from pathlib import Path

import msgspec
import torch

from engine.adapters.accelerator import load_accelerators
from engine.adapters.recovery_file import ara_of_job
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
from engine.weights.base_model import find_base_model
from presets.clips.captions import fill_trigger
from presets.facts.facts import Facts, clip_speeds
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
    job, placement = begin.job, Placement.on(device)

    def progress(name: str, done: int, total: int, text: str) -> None:
        control.raise_if_stop_requested()
        log.phase(name, done, total, text)

    def say(level: str, text: str) -> None:
        log.emit("log", level=level, text=text)

    warn = partial(say, "warning")
    log.phase("loading", 0, 1, "base model")
    base = find_base_model(job, facts.base, progress=partial(progress, "loading"))
    facts = msgspec.structs.replace(facts, model=base.facts)  # which may just have come from the Hub
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
        ara = ara_of_job(job, facts.base, base, placement.dtype)
        if ara and ara.assumed:
            warn(ara.assumed)
        experts = Experts(
            job,
            base,
            planning.plan.precision,
            attention=kernels,
            placement=placement,
            ara=ara,
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

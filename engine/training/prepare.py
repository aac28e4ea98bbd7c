"""Everything a run needs before step 1, loaded in the order that keeps the memory peak low.

The text encoder comes first and is dropped again, then the VAE, which encodes images for the cache, then the experts.

What comes of it is engine.training.context's Run; the loop is engine.training.trainer's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import torch

from engine.adapters.accelerator import Accelerator, load_accelerators
from engine.adapters.lora_metadata import trained_on
from engine.adapters.merge import Merges, merges_of_job
from engine.adapters.recovery_file import Ara, ara_of_job
from engine.adapters.start import StartLora, starts_of_job, take_over
from engine.data.dataset import Item, build_dataset, build_held_out, dataset_fingerprint
from engine.data.loader import Loader
from engine.data.sampler import BatchSampler, turn_of
from engine.encode.latent_cache import LatentCache
from engine.encode.latents import Encoder
from engine.encode.shared_encodes import SharedEncodes
from engine.encode.tensor_cache import TensorCache, machinery
from engine.encode.text_embeddings import TextBook, encode_texts
from engine.encode.vae_encoder import load_vae, vae_identity
from engine.executor.experts import Experts, begin_reading, read_blocks
from engine.executor.token_split import TokenSplit
from engine.memory.out_of_memory import loading
from engine.memory.planning import Planning, Running, plan_run
from engine.parallel.parts import ALONE, Part, read_after
from engine.parallel.team import Team
from engine.runfolder.control import Control
from engine.runfolder.event_log import EventLog
from engine.runfolder.resume import ResumePoint
from engine.system.pinned_memory import HostMemoryRefused
from engine.system.placement import Placement
from engine.system.progress import Progress
from engine.training.context import Origin, Run, learners_of
from engine.training.objective import class_prompt
from engine.training.placement import kernels_of, make_encoder, place, plan_before, running_before
from engine.wan.attention import Attention
from engine.weights.base_model import BaseModel, find_base_model
from engine.weights.packed_blocks import Layout, PackedBlocks
from engine.weights.shared_blocks import SharedBlocks, SharedMemory, loaded_by
from presets.clips.captions import fill_trigger
from presets.errors import UserError
from presets.facts.facts import Facts, clip_speeds
from presets.job.expert_schedule import Expert, expert_at, needed_experts, trained_experts
from presets.job.gpu_shares import cannot_share_clips, of_experts
from presets.job.preview_settings import sampling_of
from presets.job.schema import Job


@dataclass(frozen=True)
class _Talk:
    """What a user is told meanwhile, as events of the run."""

    log: EventLog
    control: Control

    def progress(self, phase: str) -> Progress:
        """How far a phase is. What speaks so ends with StopRequested when a stop was asked for."""

        def said(done: int, total: int, text: str) -> None:
            self.control.raise_if_stop_requested()
            self.log.phase(phase, done, total, text)

        return said

    def info(self, *texts: str) -> None:
        for text in texts:
            self.log.emit("log", level="info", text=text)

    def warn(self, text: str) -> None:
        self.log.emit("log", level="warning", text=text)


@dataclass(frozen=True)
class _Loras:
    """The LoRA files that a run begins with, by expert."""

    starts: dict[Expert, StartLora]  # none in a resumed run, whose LoRAs are in its checkpoint
    merges: dict[Expert, Merges]
    accelerators: dict[Expert, Accelerator]


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
    team: Team | None = None,
    like: Running | None = None,
    planned: Callable[[Running], None] = lambda running: None,
) -> Run:
    """Load and encode for `begin.job`. `vram` caps the card's memory, in bytes; `like` is how the first rank of the
    `team` holds and computes it; `planned` hears of that before the experts are read, which the ranks of a host do
    together. Raises UserError, and StopRequested when a stop comes meanwhile: nothing is lost by that."""
    job, placement, talk = begin.job, Placement.on(device), _Talk(log, control)
    own = job if team is None or team.leads else own_part(job, team.part)

    log.phase("loading", 0, 1, "base model")
    base = find_base_model(job, facts.base, progress=talk.progress("loading"), say=talk.warn)
    facts = msgspec.structs.replace(facts, model=base.facts)  # which may just have come from the Hub
    loras = _read_loras(own, begin, facts, base, placement.dtype, talk)
    items = build_dataset(job, facts.base, facts.datasets)
    held_out = build_held_out(job, facts.held_out.clips if facts.held_out else [])
    running = running_before(begin, device) if like is None else like
    before = plan_before(begin, running) if like is None else None
    planning = plan_run(
        own,
        facts,
        device,
        vram=vram,
        before=before,
        like=like.plan if like else None,
        sharers=len(team.here) if team else 1,
        progress=talk.progress("loading"),
    )
    placement = planning.placed(placement)
    with loading("experts", device, planning):
        ara = ara_of_job(own, facts.base, base, placement.dtype)
        begun = _begin_reading(own, begin, base, loras.merges, ara, planning, placement, talk) if team is None else {}

    log.phase("loading", 0, 1, "text encoder")
    with loading("text encoder", device, planning):
        texts = _encode_texts(own, [*items, *held_out], base, placement, talk)
    with loading("VAE", device, planning):
        vae = load_vae(base.source, placement)
        rated = planning.rates.convolutions if planning.rates else ""
        encoder = make_encoder(vae, planning.plan, running.convolutions if running else rated)
        if encoder.ours:
            talk.info(f"the VAE's encoder: convolutions by our kernel: {encoder.ours}")
        latents = _encode_images(job, items, base, encoder, planning, placement, talk)
    kernels = _choose_kernels(own, items, base, planning, running, placement, talk)
    planned(Running(planning.plan, kernels, encoder.ours))
    with loading("experts", device, planning):
        shared = _shared_blocks(job, base, loras.merges, ara, planning, placement, talk, team) if team else {}
        experts, planning = _load_experts(
            own, base, loras.merges, ara, shared, begun, kernels, planning, placement, talk
        )
        placement = planning.placed(placement)
        for expert, start in loras.starts.items():
            talk.info(*take_over(start, expert, experts.parameters[expert], experts.scaling(expert)))
        learners = learners_of(own, experts, placement)

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
        trained_on=trained_on(
            (Path(facts.datasets[item.dataset].path).name, item.path, item.caption) for item in items
        ),
        data=dataset_fingerprint(items),
        loader=Loader(
            sampler,
            workers,
            log=talk.warn,
            needless=latents.holds if latents else None,
            following=partial(read_after, job, team.part if team else ALONE),
        ),
        speeds=clip_speeds(job, facts),
        experts=experts,
        planning=planning,
        learners=learners,
        accelerators=loras.accelerators,
        origin=_origin(begin, loras),
        held_out=held_out,
        ahead=list(begin.ahead),
        team=team,
        split=_token_split(job, team, items, base) if team and team.part.each > 1 else None,
        encodes=_shared_encodes(team, sampler, placement) if team and team.part.each > 1 else None,
    )
    place(run, planning.plan)
    return run


def require_one_kind(team: Team, device: torch.device) -> None:
    """Whether the last bits would depend on which rank makes what: all ranks call this before any work is spent. Raises
    UserError on the first, which ends the others."""
    made_by = team.exchange(machinery(Placement.on(device)))
    if team.leads and len(set(made_by)) > 1:
        raise UserError(
            "the GPUs are not of one kind, or their processes have other versions of torch",
            where="job.gpus",
            fix="Name GPUs of one kind",
        )


def own_part(job: Job, part: Part) -> Job:
    """What of a job has to be loaded by a rank behind the first: one expert where they are apart, and no previews,
    unless it shares clips with the first, and its previews with them."""
    if part.expert is None and 0 in part.clip:
        return job
    return of_experts(job, trained_experts(job) if part.expert is None else [part.expert])


def _read_loras(job: Job, begin: ResumePoint, facts: Facts, base: BaseModel, dtype: torch.dtype, talk: _Talk) -> _Loras:
    merges, merged = merges_of_job(job, facts.base, base)
    talk.info(*merged)
    starts = starts_of_job(job, facts.base, base.facts) if begin.checkpoint is None else {}
    accelerators, notes = load_accelerators(job, facts.base, base, dtype)
    talk.info(*notes)
    return _Loras(starts, merges, accelerators)


def _origin(begin: ResumePoint, loras: _Loras) -> Origin:
    return Origin(
        starts={e: start.about for e, start in loras.starts.items()} or begin.meta.get("starts", {}),
        merges={e: [file.about for file in own.files] for e, own in loras.merges.items()},
    )


def _encode_texts(job: Job, items: list[Item], base: BaseModel, placement: Placement, talk: _Talk) -> TextBook:
    return encode_texts(
        base,
        all_texts(job, items),
        placement,
        precision=job.quantization.text_encoder,
        progress=talk.progress("caching"),
        cache=TensorCache("texts", warn=talk.warn) if job.training.cache_text_embeddings else None,
    )


def _encode_images(
    job: Job,
    items: list[Item],
    base: BaseModel,
    encoder: Encoder,
    planning: Planning,
    placement: Placement,
    talk: _Talk,
) -> LatentCache | None:
    """The latents of images; None when no dataset wants them kept."""
    if not any(panel.cache_latents for panel in job.datasets):
        return None
    latents = LatentCache(
        job,
        items,
        TensorCache("latents", warn=talk.warn),
        placement,
        vae=vae_identity(base.source),
        how=f"{type(encoder).__name__} {planning.plan.compiled} {encoder.ours}".strip(),
    )
    made = latents.fill(encoder, talk.progress("caching"))
    talk.info(f"latents of images: {made} encoded, the others read from the cache")
    return latents


def _choose_kernels(
    job: Job,
    items: list[Item],
    base: BaseModel,
    planning: Planning,
    running: Running | None,
    placement: Placement,
    talk: _Talk,
) -> Attention:
    config = base.source.expert("high_noise" if job.multistage.high_noise else "low_noise").config
    largest = max(item.bucket.tokens for item in items)
    kernels, why = kernels_of(job, planning, running, config, placement, tokens=largest)
    talk.info(f"attention by {kernels.text}: {why}")
    if planning.plan.graphed and not kernels.deterministic:
        talk.info("CUDA graphs are not compared with launched blocks, as attention adds in any order")
    return kernels


def _begin_reading(
    job: Job,
    begin: ResumePoint,
    base: BaseModel,
    merges: dict[Expert, Merges],
    ara: Ara | None,
    planning: Planning,
    placement: Placement,
    talk: _Talk,
) -> dict[Expert, PackedBlocks]:
    """The blocks that the cache holds, read while captions are encoded and the first step compiles what it needs: those
    of the expert that trains first, first. The host has to have room for the text encoder beside them."""
    first = expert_at(job, begin.step)
    return begin_reading(
        sorted(needed_experts(job), key=lambda expert: expert != first),
        base,
        planning.plan.precision,
        placement,
        ara,
        merges,
        beside=sum(file.stat().st_size for file in base.source.part("text_encoder").files),
        progress=talk.progress("loading"),
        warn=talk.warn,
    )


def _shared_blocks(
    job: Job,
    base: BaseModel,
    merges: dict[Expert, Merges],
    ara: Ara | None,
    planning: Planning,
    placement: Placement,
    talk: _Talk,
    team: Team,
) -> dict[Expert, SharedBlocks]:
    """The frozen blocks, each expert's read by one process of this host for all of them. All ranks call it."""
    needed = {rank: needed_experts(own_part(job, team.parts[rank]) if rank else job) for rank in team.here}
    loads = loaded_by(needed, {rank: team.parts[rank].expert for rank in team.here})
    read = partial(read_blocks, progress=talk.progress("loading"), warn=talk.warn)
    mine: dict[Expert, tuple[SharedMemory, Layout]] = {}
    for expert in [e for e, rank in loads.items() if rank == team.rank.number and len(team.here) > 1]:
        memory = SharedMemory()
        packed = read(expert, base, planning.plan.precision, placement, ara, merges, allocate=memory.buffer)
        mine[expert] = memory, packed.layout
    offers = team.exchange({expert: memory.offer(layout) for expert, (memory, layout) in mine.items()})
    shared = {expert: memory.blocks(layout) for expert, (memory, layout) in mine.items()}
    for expert in needed[team.rank.number]:
        if expert not in shared and (offer := offers[loads[expert]].get(expert)) is not None:
            try:
                shared[expert] = SharedBlocks.taken(offer)
            except OSError as e:
                talk.warn(f"the blocks of {expert} cannot be shared ({e.strerror}): this process reads its own")
    team.exchange(None)  # all have mapped what they need
    for memory, _ in mine.values():
        memory.close()
    return shared


def _load_experts(
    job: Job,
    base: BaseModel,
    merges: dict[Expert, Merges],
    ara: Ara | None,
    shared: dict[Expert, SharedBlocks],
    begun: dict[Expert, PackedBlocks],
    kernels: Attention,
    planning: Planning,
    placement: Placement,
    talk: _Talk,
) -> tuple[Experts, Planning]:
    """The experts, and the plan by which they lie in memory: without page-locked memory where that was refused."""
    for doubt in ara.doubts if ara else ():
        talk.warn(doubt)
    load = partial(
        Experts,
        job,
        base,
        planning.plan.precision,
        attention=kernels,
        ara=ara,
        merges=merges,
        shared=shared,
        begun=begun,
        progress=talk.progress("loading"),
        warn=talk.warn,
    )
    try:
        return load(placement=placement), planning
    except HostMemoryRefused as e:
        if not e.locking:
            raise
        refusal = e.what
    # only now: what was locked is let go with the error
    talk.warn(f"{refusal}. The experts lie in plain memory instead, and copies take longer")
    planning = planning.unlocked()
    return load(placement=planning.placed(placement)), planning


def _token_split(job: Job, team: Team, items: list[Item], base: BaseModel) -> TokenSplit:
    """Raises UserError, on all ranks, where the job's clips cannot be shared."""
    heads = base.source.expert(trained_experts(job)[0]).config["num_attention_heads"]
    if why := cannot_share_clips(job, heads=heads, fewest=min(item.bucket.tokens for item in items)):
        raise UserError(why, where="job.gpus_per_clip", fix="Set job.gpus_per_clip = 1")
    return TokenSplit(team.clip_group, team.part.seat, team.part.each, team.ask)


def _shared_encodes(team: Team, sampler: BatchSampler, placement: Placement) -> SharedEncodes:
    return SharedEncodes(sampler, placement.device, team.part.seat, exchange=team.exchange_clip, hand=team.hand)


def all_texts(job: Job, items: list[Item]) -> set[str]:
    """Every text the run can ask for: captions, the empty one, class prompts, preview prompts and the negative."""
    trigger = job.job.trigger
    captions = {item.caption for item in items}
    texts = set(captions) | {fill_trigger(p.prompt, trigger) for p in job.sample.prompts}
    texts.add(sampling_of(job.sample).negative)
    if job.training.blank_prompt_preservation or any(d.caption_dropout > 0 for d in job.datasets):
        texts.add("")
    if job.training.dop:
        texts |= {class_prompt(caption, trigger, job.training.dop_class) for caption in captions | {""}}
    return texts

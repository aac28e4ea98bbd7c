"""Everything a run needs before step 1, loaded in the order that keeps the memory peak low."""

from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import torch
from diffusers import AutoencoderKLWan

from engine.adapters import lora
from engine.adapters.accelerator import Accelerator, load_accelerators
from engine.adapters.recovery_file import ara_of_job
from engine.data.dataset import Item, build_dataset
from engine.data.loader import Loader
from engine.data.sampler import BatchSampler, turn_of
from engine.encode.latent_cache import LatentCache
from engine.encode.latents import Encoder, PlainEncoder
from engine.encode.tensor_cache import TensorCache
from engine.encode.text_embeddings import TextBook, encode_texts
from engine.encode.vae_and_tokenizer import load_vae, vae_identity
from engine.encode.vae_encoder import ClipEncoder
from engine.executor.experts import Experts
from engine.memory.out_of_memory import loading
from engine.memory.planning import Planning, Running, Shortage, card_memory, plan_run, release, shortage, smaller
from engine.runfolder.control import Control
from engine.runfolder.event_log import EventLog
from engine.runfolder.resume import ResumePoint
from engine.system.device import device_name, memory_errors
from engine.system.pinned_memory import HostMemoryRefused
from engine.system.placement import Placement
from engine.training.objective import class_prompt
from engine.training.optimizer import Ema, build_optimizer
from engine.wan import attention
from engine.wan.attention import Attention
from engine.weights.base_model import BaseModel, find_base_model
from presets import VERSION
from presets.clips.captions import resolve_caption
from presets.diagnosis.diagnosis import Watcher
from presets.errors import UserError
from presets.facts.facts import Facts, clip_speeds
from presets.job.expert_schedule import Expert
from presets.job.schema import Job
from presets.planner.candidates import Scarce
from presets.planner.plan import KNOBS, Plan
from presets.runs.history import Setting

WHERE: dict[Scarce, str] = {
    "vram": "run",
    "step": "training step",
    "vae": "VAE",
    "preview": "preview",
    "ram": "host's memory",
}
# fields by which the user decides on the plan
PLANNED = ("model.low_vram", "model.layer_offloading", "quantization.transformer")


@dataclass
class Learner:
    """The learning side of one trained expert. `parameters` are the fp32 LoRA tensors by name."""

    parameters: lora.LoraParameters
    optimizer: torch.optim.Optimizer
    ema: Ema | None


@dataclass
class Run:
    """A run ready for its next step."""

    job: Job
    base_dir: Path  # relative paths of the job start here
    folder: Path
    log: EventLog
    device: torch.device
    base: BaseModel
    vae: AutoencoderKLWan
    encoder: Encoder
    book: TextBook
    experts: Experts
    planning: Planning
    learners: dict[Expert, Learner]  # of the trained experts
    accelerators: dict[Expert, Accelerator]  # of previews alone
    order: BatchSampler
    loader: Loader
    begin: ResumePoint
    latents: LatentCache | None = None  # of images, when a dataset wants it
    ahead: list[Setting] = field(default_factory=list)  # set in an earlier attempt at steps that are to come again
    watchers: list[Watcher] = field(default_factory=list)  # of the events; what they find is told
    start: int = 0  # optimizer steps already done
    # fingerprint of the clips and captions, as they were when the attempt began
    data: dict[str, Any] = field(default_factory=dict)
    # of the clips as they are sampled, by number of frames (presets.facts.facts.clip_speeds)
    speeds: dict[int, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    tidied: Plan | None = None  # the plan under which memory in pieces was laid out anew

    def text(self, texts: list[str]) -> torch.Tensor:
        return self.book.batch(texts, device=self.device)

    def short(self) -> Shortage:
        """Why memory ran out. To be asked in the handler, while what filled it is there."""
        return shortage(card_memory(self.device), self.planning)

    def replan(self, scarce: Scarce, why: Shortage) -> None:
        """Memory ran out (where `scarce` says): go one rung down and say so. Memory in pieces is laid out anew first,
        once under each plan. To be called outside the handler, whose traceback holds on to tensors. Raises UserError at
        the last rung."""
        release(self.device)
        old = plan = self.planning.plan
        if why.cause == "pieces" and self.tidied != old:
            self.tidied = old
            self.log.emit(
                "log",
                level="warning",
                text=(
                    f"out of memory in the {WHERE[scarce]}: {why.text}; everything on the card is laid out anew, and"
                    " the same is tried again"
                ),
            )
        else:
            smallest = smaller(self.job, self.planning, scarce, why.lost)
            if smallest is None:
                raise UserError(
                    f"out of memory in the {WHERE[scarce]}, and no smaller plan is left ({why.text})",
                    where=old.text,
                    fix=KNOBS,
                )
            plan = smallest
            self.log.emit(
                "replanned", why=f"out of memory in the {WHERE[scarce]}: {why.text}", old=old.text, new=plan.text
            )
        self.place(plan)

    def place(self, plan: Plan) -> None:
        """Put a plan into effect, or the first smaller one for which there is room. Raises UserError."""
        try:
            with memory_errors():
                self.set_plan(plan)
            return
        except torch.OutOfMemoryError:
            scarce: Scarce = "vram"
            why = self.short()
        except HostMemoryRefused as e:
            scarce, why = "ram", Shortage("host", e.what)
        self.replan(scarce, why)

    def set_plan(self, plan: Plan) -> None:
        """Run under another plan from now on."""
        self.planning = replace(self.planning, plan=plan)
        self.experts.set_plan(plan)
        self.encoder = make_encoder(self.vae, plan)


def versions() -> dict[str, str]:
    """Of what the numbers of a run hang on."""
    return {
        "wanlora-tui": VERSION,
        **{name: version(name) for name in ("torch", "diffusers", "peft", "transformers")},
        **attention.versions(),
    }


def running_before(begin: ResumePoint, device: torch.device) -> Running | None:
    """How the checkpoint's run was held and computed; None where another card or other versions go on from it."""
    meta = begin.meta
    if meta.get("device") != device_name(device) or meta.get("versions") != versions() or "running" not in meta:
        return None
    return msgspec.convert(meta["running"], Running)


def plan_before(begin: ResumePoint, running: Running | None) -> Plan | None:
    """The checkpoint's plan, unless the job has since been changed in what it says of the plan."""
    return running.plan if running and not any(c.field in PLANNED for c in begin.since) else None


def kernels_of(
    job: Job,
    planning: Planning,
    running: Running | None,
    config: dict[str, Any],
    *,
    device: torch.device,
    dtype: torch.dtype,
    tokens: int,
) -> tuple[Attention, str]:
    """(the attention of a run, why): a resumed run's own, else the fastest that was measured on this card, else the
    fastest measured now."""
    fixed = job.training.deterministic
    if running and running.attention.deterministic == fixed:
        return running.attention, "as before the resume"
    if planning.rates:
        fastest = planning.rates.deterministic_attention if fixed else planning.rates.attention
        return (
            Attention(fastest.forward_kernel, fastest.backward_kernel, fixed),
            f"the fastest when this card was measured ({planning.rates.date})",
        )
    return attention.choose(
        device,
        tokens=tokens,
        heads=config["num_attention_heads"],
        width=config["attention_head_dim"],
        dtype=dtype,
        deterministic=fixed,
    )


def make_encoder(vae: AutoencoderKLWan, plan: Plan) -> Encoder:
    return (
        ClipEncoder(vae, frames=plan.vae_frames, compiled=plan.compiled)
        if next(vae.parameters()).is_cuda
        else PlainEncoder(vae)
    )


def prepare(
    job: Job,
    facts: Facts,
    folder: Path,
    log: EventLog,
    *,
    device: torch.device,
    workers: int,
    begin: ResumePoint,
    control: Control,
    vram: int | None = None,
) -> Run:
    """Load and encode. `vram` caps the card's memory, in bytes. Raises UserError."""

    def progress(name: str, done: int, total: int, text: str) -> None:
        control.honour()  # nothing is lost by stopping here
        log.phase(name, done, total, text)

    def warn(text: str) -> None:
        log.emit("log", level="warning", text=text)

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32  # bf16 products crawl on a CPU
    log.phase("loading", 0, 1, "base model")
    base = find_base_model(job, facts.base, progress=lambda done, total, text: progress("loading", done, total, text))
    facts = msgspec.structs.replace(facts, model=base.facts)  # which may just have come from the Hub
    accelerators, notes = load_accelerators(job, facts.base, base, dtype)
    for note in notes:
        log.emit("log", level="info", text=note)
    items = build_dataset(job, facts.base, facts.datasets)
    order = BatchSampler(items, job.training.batch_size, job.job.seed, turn_of(job))
    running = running_before(begin, device)
    planning = plan_run(job, facts, device, vram=vram, before=plan_before(begin, running))
    plan = planning.plan

    log.phase("loading", 0, 1, "text encoder")
    with loading("text encoder", device, planning):
        book = encode_texts(
            base,
            all_texts(job, items),
            device=device,
            dtype=dtype,
            precision=job.quantization.text_encoder,
            progress=lambda done, total: progress("caching", done, total, "captions"),
            cache=TensorCache("texts", warn=warn) if job.training.cache_text_embeddings else None,
        )
    with loading("VAE", device, planning):
        vae = load_vae(base.source, device=device, dtype=dtype)
        encoder = make_encoder(vae, plan)
        latents = None
        if any(panel.cache_latents for panel in job.datasets):
            how = f"{type(encoder).__name__} {plan.compiled}"
            latents = LatentCache(
                job,
                items,
                TensorCache("latents", warn=warn),
                vae=vae_identity(base.source),
                how=how,
                device=device,
                dtype=dtype,
                warn=warn,
            )
            made = latents.fill(encoder, lambda done, total: progress("caching", done, total, "latents"))
            log.emit("log", level="info", text=f"latents of images: {made} encoded, the others read from the cache")
    config = base.source.expert("high_noise" if job.multistage.high_noise else "low_noise").config
    largest = max(item.bucket.tokens for item in items)
    kernels, why = kernels_of(job, planning, running, config, device=device, dtype=dtype, tokens=largest)
    log.emit("log", level="info", text=f"attention by {kernels.text}: {why}")
    with loading("experts", device, planning):
        ara = ara_of_job(job, facts.base, base, dtype)
        if ara and ara.assumed:
            warn(ara.assumed)
        experts = Experts(
            job,
            base,
            plan.precision,
            attention=kernels,
            placement=Placement(device, dtype, pinned=device.type == "cuda"),
            ara=ara,
            progress=lambda done, total, text: progress("loading", done, total, text),
            warn=warn,
        )
        learners = {
            expert: Learner(
                parameters,
                build_optimizer(job.training, list(parameters.values())),
                Ema(job.training.ema_decay, dict(parameters)) if job.training.ema else None,
            )
            for expert, parameters in experts.parameters.items()
        }
    run = Run(
        job=job,
        base_dir=facts.base,
        folder=folder,
        log=log,
        device=device,
        base=base,
        vae=vae,
        encoder=encoder,
        book=book,
        experts=experts,
        planning=planning,
        learners=learners,
        accelerators=accelerators,
        order=order,
        loader=Loader(order, workers, log=warn, needless=latents.holds if latents else None),
        begin=begin,
        ahead=list(begin.ahead),
        latents=latents,
        versions=versions(),
        speeds=clip_speeds(job, facts),
    )
    run.place(plan)
    return run


def all_texts(job: Job, items: list[Item]) -> set[str]:
    """Every text the run can ask for: captions, the empty one, class prompts, preview prompts and the negative."""
    trigger = job.job.trigger
    captions = {item.caption for item in items}
    texts = set(captions) | {resolve_caption(p.prompt, "", trigger) for p in job.sample.prompts} | {job.sample.negative}
    if job.training.blank_prompt_preservation or any(d.caption_dropout > 0 for d in job.datasets):
        texts.add("")
    if job.training.dop:
        texts |= {class_prompt(caption, trigger, job.training.dop_class) for caption in captions | {""}}
    return texts

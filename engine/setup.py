"""Everything a run needs before step 1, loaded in the order that keeps the memory peak low."""

from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan

from engine import attention, checkpoint, faults, lora
from engine.accelerator import Accelerator, load_accelerators
from engine.ara_file import find_ara, load_ara
from engine.ara_grid import Grid
from engine.ara_weights import linear_shapes
from engine.base import BaseFolder, Expert, find_base, needed_experts
from engine.block import Lora
from engine.control import Control
from engine.eventlog import EventLog
from engine.experts import Experts
from engine.items import Item, build_items
from engine.latents import Encoder, PlainEncoder
from engine.loader import Loader
from engine.objective import class_prompt
from engine.optim import Ema, build_optimizer
from engine.order import Order, place_in
from engine.parts import load_vae
from engine.planning import Planning, diagnose, plan_run, release, smaller
from engine.tensorcache import TensorCache
from engine.text import TextBook, encode_texts
from engine.vae import ClipEncoder
from presets import VERSION
from presets.captions import resolve_caption
from presets.check import FREE_TO_CHANGE, Facts
from presets.errors import UserError
from presets.job import Job
from presets.jobfile import job_to_dict
from presets.plan import KNOBS, Plan
from presets.planner.rungs import Scarce

WHERE: dict[Scarce, str] = {"vram": "run", "step": "training step", "vae": "VAE", "preview": "preview", "ram": "host's memory"}


@dataclass
class Learner:
    """The learning side of one trained expert. `parameters` are the fp32 LoRA tensors by name."""

    parameters: lora.Parameters
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
    base: BaseFolder
    vae: AutoencoderKLWan
    encoder: Encoder
    book: TextBook
    experts: Experts
    planning: Planning
    learners: dict[Expert, Learner]  # of the trained experts
    accelerators: dict[Expert, Accelerator]  # of previews alone
    order: Order
    loader: Loader
    start: int = 0  # optimizer steps already done
    versions: dict[str, str] = field(default_factory=dict)

    def text(self, texts: list[str]) -> torch.Tensor:
        return self.book.batch(texts, device=self.device)

    def replan(self, scarce: Scarce) -> None:
        """Memory ran out (where `scarce` says): go one rung down and say so. Raises UserError at the last rung."""
        why = diagnose(self.device) if self.device.type == "cuda" else "out of memory"
        release(self.device)
        plan, old = smaller(self.job, self.planning, scarce), self.planning.plan
        if plan is None:
            raise UserError(f"out of memory in the {WHERE[scarce]}, and no smaller plan is left ({why})", where=old.text, fix=KNOBS)
        self.log.emit("replanned", why=f"out of memory in the {WHERE[scarce]}: {why}", old=old.text, new=plan.text)
        self.set_plan(plan)

    def set_plan(self, plan: Plan) -> None:
        """Run under another plan from now on."""
        self.planning = replace(self.planning, plan=plan)
        self.experts.set_plan(plan)
        self.encoder = make_encoder(self.vae, plan)


def versions() -> dict[str, str]:
    return {"wanlora-tui": VERSION, **{name: version(name) for name in ("torch", "diffusers", "peft", "transformers")}}


def make_encoder(vae: AutoencoderKLWan, plan: Plan) -> Encoder:
    return ClipEncoder(vae, frames=plan.vae_frames, compiled=plan.compiled) if next(vae.parameters()).is_cuda else PlainEncoder(vae)


def prepare(job: Job, facts: Facts, folder: Path, log: EventLog, *, device: torch.device, workers: int, resume: bool, control: Control, vram: int | None = None) -> Run:
    """Load, encode and restore. `vram` caps the card's memory, in bytes. Raises UserError."""

    def progress(name: str, done: int, total: int, text: str) -> None:
        control.honour()  # nothing is lost by stopping here
        log.phase(name, done, total, text)

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32  # bf16 products crawl on a CPU
    log.phase("loading", 0, 1, "base model")
    base = find_base(job, facts.base)
    accelerators, notes = load_accelerators(job, facts.base, base, dtype)
    for note in notes:
        log.emit("log", level="info", text=note)
    items = build_items(job, facts.base, facts.datasets)
    order = Order(items, job.training.batch_size, job.job.seed, place_in(job))
    planning = plan_run(job, facts, device, vram=vram)
    plan = planning.plan

    log.phase("loading", 0, 1, "text encoder")
    book = encode_texts(
        base, all_texts(job, items), device=device, dtype=dtype, precision=job.quantization.text_encoder,
        progress=lambda done, total: progress("caching", done, total, "captions"),
        cache=TensorCache("texts", warn=lambda text: log.emit("log", level="warning", text=text)) if job.training.cache_text_embeddings else None,
    )  # fmt: skip
    vae = load_vae(base.source, device=device, dtype=dtype)
    config = base.source.expert("high_noise" if job.multistage.high_noise else "low_noise").config
    largest = max(item.bucket.tokens for item in items)
    backend, why = attention.choose(device, tokens=largest, heads=config["num_attention_heads"], width=config["attention_head_dim"], dtype=dtype)
    log.emit("log", level="info", text=f"attention by {backend}: {why}")
    recovery, grid = recovery_of(job, facts.base, base, config, device, dtype)
    experts = Experts(
        job, base, plan, backend=backend, device=device, dtype=dtype, recovery=recovery, grid=grid, progress=lambda done, total, text: progress("loading", done, total, text),
        warn=lambda text: log.emit("log", level="warning", text=text),
    )  # fmt: skip
    learners = {
        expert: Learner(parameters, build_optimizer(job.training, list(parameters.values())), Ema(job.training.ema_decay, dict(parameters)) if job.training.ema else None)
        for expert, parameters in experts.parameters.items()
    }
    run = Run(
        job=job, base_dir=facts.base, folder=folder, log=log, device=device, base=base, vae=vae, encoder=make_encoder(vae, plan), book=book, experts=experts,
        planning=planning, learners=learners, accelerators=accelerators, order=order, loader=Loader(order, workers, log=lambda text: log.emit("log", level="warning", text=text)), versions=versions(),
    )  # fmt: skip
    checkpoint.sweep(folder)
    if resume:
        try:
            restore(run)
        except BaseException:
            run.loader.close()
            raise
    return run


def recovery_of(
    job: Job, base_dir: Path, base: BaseFolder, config: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> tuple[dict[Expert, list[Lora]], Grid]:
    """The accuracy recovery adapter of qint4+ara, per expert and block, and the 4-bit grid it was made for. Raises UserError."""
    if job.quantization.transformer != "qint4+ara":
        return {}, "qint4"
    if not job.quantization.ara:
        raise UserError("qint4+ara needs an adapter", where="quantization.ara", fix="Name one, or build it with wanlora ara")
    path = find_ara(job.quantization.ara, base_dir)
    ara = load_ara(
        path, shapes=linear_shapes(config), blocks=config["num_layers"], needed=needed_experts(job), identity=base.identity, device=device, dtype=dtype
    )
    return ara.experts, ara.grid


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


def restore(run: Run) -> None:
    """Continue from the newest checkpoint that verifies, or from the start when there is none (said in the log)."""
    folder, refused = checkpoint.newest(run.folder)
    for text in refused:
        run.log.emit("finding", code="checkpoint-damaged", severity="warning", field=checkpoint.CHECKPOINTS, message=text, fix="The run goes on from the one before")
    if folder is None:
        run.log.emit("log", level="warning", text="no checkpoint to resume from: starting at step 1")
        return
    faults.at("resume.loading", int(folder.name.removeprefix("step_")))
    state = checkpoint.load(folder)
    if state.meta["base"] != run.base.identity:
        raise UserError("the base model's weights are not those this run began with", where=str(run.base.path), fix="Put the same base back, or start a new run under another name")
    for path, old, new in job_changes(state.meta["job"], job_to_dict(run.job)):
        if not any(path == free or path.startswith(f"{free}.") for free in FREE_TO_CHANGE):
            raise UserError(f"{path} was {old!r} when this run began and is now {new!r}", where=str(run.folder), fix="Set it back, or start a new run under another name")
        run.log.emit("changed", field=path, old=old, new=new)
    run.start = state.step
    checkpoint.set_aside(run.folder, after=state.step)
    for expert, learner in run.learners.items():
        lora.load_tensors(learner.parameters, state.lora[expert])
        learner.optimizer.load_state_dict(state.optimizer[expert])
        if learner.ema:
            learner.ema.load(state.ema[expert])
    faults.at("resume.restored", run.start)


def job_changes(old: dict[str, Any], new: dict[str, Any], at: str = "") -> list[tuple[str, object, object]]:
    """(path, old, new) of every value that differs between two jobs as plain tables."""
    out: list[tuple[str, object, object]] = []
    for key in sorted(old.keys() | new.keys()):
        a, b, path = old.get(key), new.get(key), f"{at}.{key}" if at else key
        if isinstance(a, dict) and isinstance(b, dict):
            out += job_changes(a, b, path)
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b) and all(isinstance(v, dict) for v in a + b):
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                out += job_changes(x, y, f"{path}[{i}]")
        elif a != b:
            out.append((path, a, b))
    return out

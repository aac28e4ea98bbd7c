"""Every key of the job file is read by something: another value has an effect, or is refused.

Each case changes one key and looks where it must show. What is looked at is what the engine and the checks make of a
job, never the job's own values. Looking costs little: the tiny base is loaded once.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import av
import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from engine.adapters import lora
from engine.adapters.accelerator import load_accelerators
from engine.adapters.merge import merges_of_job
from engine.adapters.recovery_file import ara_of_job
from engine.adapters.start import starts_of_job, take_over
from engine.data.dataset import build_dataset, build_held_out
from engine.demo.tiny_base import build_tiny
from engine.encode.latents import PlainEncoder, encode
from engine.encode.text_embeddings import encode_texts
from engine.encode.vae_encoder import load_vae
from engine.executor.experts import Experts
from engine.preview.sampling import sample_latents
from engine.runfolder import checkpoint
from engine.training.context import Learner, Run, averaged_weights
from engine.training.optimizer import Ema, build_optimizer, parameter_groups
from engine.training.placement import kernels_of
from engine.training.prepare import prepare
from engine.training.previews import make_previews, request_of, video_path
from engine.training.saved_loras import lora_file, write_lora
from engine.training.saving import save_all
from engine.training.trainer import optimizer_step
from engine.training.validation import edges_of, ended_early, validation_due
from engine.weights.base_model import find_base_model
from presets.clips.clip_facts import DatasetFacts, leave_out, scan_dataset
from presets.errors import UserError
from presets.facts.gather import read_run_folder
from presets.facts.held_out import folder_panel, hold_out
from presets.job.expert_schedule import expert_at, steps_of
from presets.job.fields import FIELDS
from presets.job.preview_settings import previews_due, sampling_of
from presets.job.schema import DatasetPanel, Job, LayersPanel, MergePanel, PromptPanel
from presets.job.toml_file import job_from_dict, job_to_dict, load_job, save_job, with_value
from presets.planner.cards import card_hardware, find_card
from presets.planner.choose import choose_for
from presets.planner.measured_rates import AttentionRates
from presets.planner.sizes import ExpertShape, disk_need
from presets.rules.check import check_job
from presets.runs.ranking import Measure
from tests.helpers.facts import gpu, machine, rates
from tests.helpers.jobs import write_job
from tests.helpers.training.bench import CPU, Bench
from tests.helpers.training.placements import ON_CPU
from tests.helpers.videos import write_clip, write_image

GIB = 2**30


@dataclass(frozen=True)
class Case:
    """`see` names the look at which `value` must show; `given` are values of other keys, on both sides."""

    value: object
    see: str
    given: dict[str, object] = field(default_factory=dict)


DOP = {"training.dop": True}
BLANK = {"training.blank_prompt_preservation": True}
EMA = {"training.ema": True}
ACCELERATED = {"sample.accelerator": "accelerator.safetensors"}
MERGED = {"model.merge.path": "accelerator.safetensors"}
HELD_OUT = {"validation.fraction": 0.4}
CASES: dict[str, Case] = {
    "job.name": Case("other", "place"),
    "job.kind": Case("character", "findings", {"multistage.low_noise": False}),
    "job.trigger": Case("zork", "captions"),
    "job.gpus": Case([3], "findings"),
    "job.gpus_per_clip": Case(2, "findings"),
    "job.seed": Case(43, "step"),
    "model.path": Case("elsewhere", "step"),
    "model.vae": Case("other", "latents"),
    "model.text_encoder": Case("other", "text"),
    "model.boundary": Case(0.5, "step"),
    "model.low_vram": Case(True, "plan"),
    "model.layer_offloading": Case(True, "plan"),
    "model.cuda_graphs": Case(False, "plan"),
    "model.merge.path": Case("other.safetensors", "begun", MERGED),
    "model.merge.strength": Case(0.5, "begun", MERGED),
    "model.merge.expert": Case("low_noise", "begun", MERGED),
    "quantization.transformer": Case("qint4", "plan"),
    "quantization.ara": Case("no-such.safetensors", "recovery", {"quantization.transformer": "qint4+ara"}),
    "quantization.text_encoder": Case("qint8", "text"),
    "multistage.high_noise": Case(False, "turns"),
    "multistage.low_noise": Case(False, "turns"),
    "multistage.switch_every": Case(3, "turns"),
    "multistage.high.lr": Case(3e-4, "update"),
    "multistage.high.rank": Case(3, "experts"),
    "multistage.high.share": Case(3.0, "turns"),
    "multistage.low.lr": Case(3e-4, "update", {"multistage.high_noise": False}),
    "multistage.low.rank": Case(3, "experts"),
    "multistage.low.share": Case(3.0, "turns"),
    "target.type": Case("lokr", "reading"),
    "target.rank": Case(3, "experts"),
    "target.alpha": Case(5.0, "experts"),
    "target.include": Case(["ffn"], "experts"),
    "target.exclude": Case(["cross_attn.k"], "experts"),
    "target.layers.match": Case("attn1.to_q", "experts", {"target.layers.rank": 3}),
    "target.layers.rank": Case(3, "experts"),
    "target.layers.lr_factor": Case(0.5, "update"),
    "target.start_high": Case("accelerator.safetensors", "begun"),
    "target.start_low": Case("accelerator.safetensors", "begun"),
    "save.dtype": Case("fp16", "file"),
    "save.every": Case(2, "room"),
    "save.keep": Case(3, "kept"),
    "save.ema": Case(False, "file", EMA),
    "save.metadata": Case("full", "file"),
    "training.steps": Case(3, "update", {"training.lr_scheduler": "linear"}),
    "training.batch_size": Case(2, "frames"),
    "training.gradient_accumulation": Case(2, "step"),
    "training.lr": Case(3e-4, "update"),
    "training.optimizer": Case("adafactor", "update"),
    "training.lr_scheduler": Case("linear", "update"),
    "training.warmup_steps": Case(10, "update"),
    "training.weight_decay": Case(0.5, "update"),
    "training.max_grad_norm": Case(1e-8, "update"),
    "training.deterministic": Case(False, "kernels"),
    "training.loss": Case("mae", "step"),
    "training.timestep_type": Case("sigmoid", "step"),
    "training.timestep_bias": Case("low_noise", "step"),
    "training.ema": Case(True, "preview"),
    "training.ema_decay": Case(0.5, "preview", EMA),
    "training.unload_text_encoder": Case(True, "captions"),
    "training.cache_text_embeddings": Case(True, "caches"),
    "training.dop": Case(True, "step"),
    "training.dop_multiplier": Case(2.0, "step", DOP),
    "training.blank_prompt_preservation": Case(True, "step"),
    "training.blank_prompt_preservation_multiplier": Case(2.0, "step", BLANK),
    "training.dop_class": Case("woman", "step", DOP),
    "advanced.differential_guidance": Case(True, "step"),
    "advanced.differential_guidance_scale": Case(2.0, "step", {"advanced.differential_guidance": True}),
    "datasets.path": Case("more", "frames"),
    "datasets.exclude": Case(["0.mp4"], "frames"),
    "datasets.default_caption": Case("a house", "captions"),
    "datasets.caption_extension": Case(".caption", "captions"),
    "datasets.caption_dropout": Case(1.0, "captions"),
    "datasets.weight": Case(0.5, "step"),
    "datasets.repeats": Case(2, "frames"),
    "datasets.regularization": Case(True, "turns"),
    "datasets.cache_latents": Case(False, "caches"),
    "datasets.flip_x": Case(True, "frames"),
    "datasets.flip_y": Case(True, "frames"),
    "datasets.resolutions": Case([64, 96], "frames"),
    "datasets.num_frames": Case(5, "frames"),
    "datasets.sampling": Case("realtime", "frames", {"datasets.num_frames": 5}),
    "datasets.hdr": Case("tonemap", "items"),
    "datasets.last_frame": Case(1.0, "step", {"datasets.num_frames": 5}),
    "datasets.mask": Case("off", "step"),
    "datasets.mask_min": Case(0.5, "step"),
    "datasets.windows": Case(2, "frames", {"datasets.num_frames": 5, "datasets.sampling": "head"}),
    "datasets.short_clips": Case("shorten", "frames", {"datasets.num_frames": 33}),
    "sample.every": Case(3, "due"),
    "sample.first": Case(False, "due"),
    "sample.preset": Case("official", "preview"),
    "sample.sampler": Case("unipc", "preview"),
    "sample.shift": Case(3.0, "preview"),
    "sample.width": Case(16, "preview"),
    "sample.height": Case(16, "preview"),
    "sample.guidance": Case(2.0, "preview"),
    "sample.guidance_low": Case(2.0, "preview"),
    "sample.steps": Case(2, "preview"),
    "sample.seed": Case(7, "preview"),
    "sample.walk_seed": Case(False, "preview"),
    "sample.num_frames": Case(5, "preview"),
    "sample.fps": Case(8, "film", {"sample.steps": 1}),
    "sample.negative": Case("blur", "preview"),
    "sample.ema": Case(False, "preview", EMA),
    "sample.accelerator": Case("accelerator.safetensors", "preview"),
    "sample.accelerator_low": Case("other.safetensors", "preview", ACCELERATED),
    "sample.accelerator_strength": Case(0.5, "preview", ACCELERATED),
    "sample.prompts.prompt": Case("another orbit", "preview"),
    "sample.prompts.ctrl_img": Case("control2.png", "preview"),
    "sample.prompts.end_img": Case("control2.png", "preview", {"sample.prompts.num_frames": 5}),
    "sample.prompts.width": Case(16, "preview"),
    "sample.prompts.height": Case(16, "preview"),
    "sample.prompts.num_frames": Case(5, "preview"),
    "sample.prompts.seed": Case(7, "preview"),
    "sample.prompts.strength": Case(0.5, "preview"),
    "validation.fraction": Case(0.4, "held_out"),
    "validation.path": Case("more", "held_out"),
    "validation.every": Case(3, "held_out", HELD_OUT),
    "validation.bins": Case(2, "held_out", HELD_OUT),
    "validation.stop_when": Case("no better", "held_out", HELD_OUT),
    "validation.patience": Case(2, "held_out", HELD_OUT | {"validation.stop_when": "no better"}),
}


def with_values(job: Job, values: dict[str, object]) -> Job:
    """Keys of lists are those of the first dataset, merge or table and of the second prompt (whose seed walks)."""
    first = {
        "datasets.": "datasets[0].",
        "sample.prompts.": "sample.prompts[1].",
        "target.layers.": "target.layers[0].",
        "model.merge.": "model.merge[0].",
    }
    for key, value in values.items():
        if key.startswith("model.merge.") and not job.model.merge:
            job = msgspec.structs.replace(job, model=msgspec.structs.replace(job.model, merge=[MergePanel()]))
        for general, one in first.items():
            key = key.replace(general, one)
        job = with_value(job, key, value)
    return job


def digest(*values: Any) -> str:
    out = hashlib.sha256()
    for value in values:
        out.update(
            value.detach().contiguous().numpy().tobytes()
            if isinstance(value, torch.Tensor)
            else value.tobytes()
            if isinstance(value, np.ndarray)
            else repr(value).encode()
        )
    return out.hexdigest()[:16]


@cache
def scanned(path: str, extension: str, base: Path) -> DatasetFacts:
    return scan_dataset(DatasetPanel(path=path, caption_extension=extension), 0, base)


def scanned_with(panel: DatasetPanel, base: Path) -> DatasetFacts:
    return leave_out(scanned(panel.path, panel.caption_extension, base), panel.exclude)


class Looks(Bench):
    """The looks: each gives a value that two jobs share only if they are the same to it."""

    def frames(self, job: Job) -> object:
        run = self.run_of(job)
        batches = [run.loader.batch(i) for i in range(run.loader.sampler.batches_per_epoch)]
        return [(batch.frames.shape, digest(batch.frames)) for batch in batches]

    def items(self, job: Job) -> list:
        return build_dataset(job, self.facts.base, [scanned_with(panel, self.facts.base) for panel in job.datasets])

    def captions(self, job: Job) -> object:
        run = self.run_of(job)
        return [run.loader.batch(i).captions for i in range(run.loader.sampler.batches_per_epoch)]

    def turns(self, job: Job) -> object:
        order = self.run_of(job).loader.sampler
        return [(expert_at(job, step), [d.item.dataset for d in order.batch(step)]) for step in range(24)], steps_of(
            job, 24
        )

    def step(self, job: Job) -> object:  # type: ignore[override]
        run = replace(self.run_of(job), base=find_base_model(job, self.facts.base, progress=lambda *_: None))
        batch = run.loader.sampler.batch
        first = next(i for i in range(99) if batch(i)[0].item.dataset == 0)  # whose settings are changed
        gradients, passed = super().step(run, "high_noise", first // job.training.gradient_accumulation)
        return (
            passed.clips,
            passed.timesteps,
            {k: float(v) for k, v in passed.losses.items()},
            digest(*gradients.values()),
        )

    def update(self, job: Job) -> object:
        """The trainer's step from the same LoRA, with an optimizer of its own: the second of the run, where every
        schedule shows."""
        run, expert = self.run_of(job), expert_at(job, 1)
        parameters = run.learners[expert].parameters
        before = {name: p.data.clone() for name, p in parameters.items()}
        run.learners = {
            e: Learner(
                run.learners[e].parameters,
                build_optimizer(
                    job.training,
                    parameter_groups(run.learners[e].parameters, ExpertShape(layers=2).lora_layers(job, e)),
                ),
                None,
            )
            for e in run.learners
        }
        assert optimizer_step(run, 1)
        after = digest(*parameters.values())
        for name, p in parameters.items():
            p.data.copy_(before[name])
        return after

    def experts(self, job: Job) -> object:
        experts = Experts(
            job,
            self.run.base,
            "none",
            attention=self.run.experts.attention,
            placement=ON_CPU,
            ara=None,
            progress=lambda *_: None,
            warn=print,
        )
        experts.set_plan(self.run.planning.plan)
        return {
            e: (experts.executors[e].weights.scaling, {name: tuple(p.shape) for name, p in parameters.items()})
            for e, parameters in experts.parameters.items()
        }

    def begun(self, job: Job) -> object:
        """What training begins with: the frozen blocks and the LoRAs."""
        merges, _ = merges_of_job(job, self.facts.base, self.run.base)
        experts = Experts(
            job,
            self.run.base,
            "none",
            attention=self.run.experts.attention,
            placement=ON_CPU,
            ara=None,
            progress=lambda *_: None,
            warn=print,
            merges=merges,
        )
        for expert, start in starts_of_job(job, self.facts.base, self.run.base.facts).items():
            take_over(start, expert, experts.parameters[expert], experts.scaling(expert))
        experts.set_plan(self.run.planning.plan)
        seen = []
        for expert, executor in experts.executors.items():
            buffers, layout = executor.weights.blocks
            weights = [t for b in buffers for parts in layout.views(b)[0].values() for t in parts]
            seen.append((digest(*experts.parameters[expert].values()), digest(*weights)))
        return seen

    def averaged(self, job: Job) -> Run:
        """The run with averages as `prepare` would begin them, one update later."""
        run = self.run_of(job)
        if job.training.ema:
            run.learners = {
                e: Learner(
                    x.parameters,
                    x.optimizer,
                    Ema(job.training.ema_decay, {n: torch.zeros_like(p) for n, p in x.parameters.items()}),
                )
                for e, x in run.learners.items()
            }
            for learner in run.learners.values():
                assert learner.ema is not None
                learner.ema.update(learner.parameters)
        return run

    def file(self, job: Job) -> object:
        run = self.averaged(job)
        file = lora_file(run, "high_noise", 1)
        write_lora(run, "high_noise", file, 1)
        tensors = {name: (str(value.dtype), digest(value.float())) for name, value in load_file(file).items()}
        return tensors, "ss_tag_frequency" in lora.read_metadata(file)

    def preview(self, job: Job) -> object:
        run = self.averaged(job)
        accelerators, _ = load_accelerators(job, run.base_dir, run.base, torch.float32)
        with averaged_weights(run, job.sample.ema), run.experts.accelerated(accelerators):
            latents = sample_latents(
                run.experts.executors,
                run.encoder,
                request_of(run, 1),
                sampling_of(job.sample),
                boundary=run.base.boundary,
                batched_guidance=False,
                progress=lambda done, total: None,
            )
        return latents.shape, digest(latents)

    def film(self, job: Job) -> object:
        run = self.run_of(job)
        make_previews(run, 1)
        with av.open(str(video_path(run, 1, 0))) as film:
            return film.streams.video[0].average_rate

    def due(self, job: Job) -> object:
        return [previews_due(job, step) for step in range(13)]

    def plan(self, job: Job) -> object:
        facts = msgspec.structs.replace(self.facts, model=None)
        return choose_for(job, facts, card_hardware(find_card("H100 PCIe"), ram=512 * GIB)).plan

    def kernels(self, job: Job) -> object:
        measured = rates(
            attention=AttentionRates("cudnn", 600.0, "cudnn", 400.0),
            deterministic_attention=AttentionRates("cudnn", 600.0, "flash", 150.0),
        )
        planning = replace(self.run.planning, rates=measured)
        return kernels_of(job, planning, None, {}, self.run.placement, tokens=1)

    def recovery(self, job: Job) -> object:
        return ara_of_job(job, self.facts.base, self.run.base, torch.float32)

    def text(self, job: Job) -> object:
        book = encode_texts(
            find_base_model(job, self.facts.base),
            ["an orbit"],
            self.run.placement,
            precision=job.quantization.text_encoder,
            progress=lambda *_: None,
        )
        return digest(book.batch(["an orbit"]))

    def latents(self, job: Job) -> object:
        encoder = PlainEncoder(load_vae(find_base_model(job, self.facts.base).source, self.run.placement))
        return digest(encode(encoder, torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 1, 32, 32)))

    def findings(self, job: Job) -> object:
        return check_job(job, msgspec.structs.replace(self.facts, machine=machine(gpu())))

    def place(self, job: Job) -> object:
        return read_run_folder(job, self.facts.base, self.facts.out).path

    def reading(self, job: Job) -> object:
        return job_from_dict(job_to_dict(job))

    def caches(self, job: Job) -> object:
        """How many files lie in each cache once a run is ready."""
        place = self.facts.base / "cache" / "wanlora"
        for name in ("texts", "latents"):
            shutil.rmtree(place / name, ignore_errors=True)
        begin = replace(self.run.begin, job=job)
        run = prepare(begin, self.facts, self.folder, self.run.log, self.run.control, device=CPU, workers=0)
        run.loader.close()
        return Counter(
            str(p.parent.relative_to(place)) for p in place.rglob("*") if p.is_file() and "weights" not in p.parts
        )

    def held_out(self, job: Job) -> object:
        """What is measured, when, at which noise, and whether a run ends that has got no better four times."""
        datasets = [scanned_with(panel, self.facts.base) for panel in job.datasets]
        own = folder_panel(job)
        train, held = hold_out(job, datasets, scanned_with(own, self.facts.base) if own else None)
        run = replace(self.run_of(job), held_out=build_held_out(job, held.clips if held else []))
        history = run.log.history
        history.measured = {step: Measure(step=step, losses={"high_noise": [1.0]}) for step in range(5)}
        try:
            over = ended_early(run)
        finally:
            history.measured = {}
        run = replace(run, job=with_value(run.job, "training.steps", 9))
        due = [step for step in range(9) if validation_due(run, step)]
        trained = [len(found.clips) for found in train]
        return [item.id for item in run.held_out], trained, due, edges_of(run, "high_noise"), over

    def kept(self, job: Job) -> object:
        """How many checkpoints lie there after four."""
        run, first = self.run_of(job), 1 + max(self.run.log.history.checkpoints, default=0)
        for step in range(first, first + 4):
            save_all(run, step)
        return len(checkpoint.listed(run.folder))

    def room(self, job: Job) -> object:
        """When the trainer saves is in test_trainer; here, what room that needs."""
        return disk_need(job, ExpertShape())


@pytest.fixture(scope="module")
def looks(tiny, tmp_path_factory) -> Iterator[Looks]:
    """Two datasets and two prompts; one frame unless a case wants more."""
    folder = tmp_path_factory.mktemp("keys")
    path = write_job(
        folder,
        tiny,
        clips=2,
        prompts=2,
        trigger="frung",
        sample={"steps": 3, "width": 48, "height": 48, "num_frames": 1, "every": 2},
    )
    for name, wide in (("clips", 2), ("more", 1)):
        (folder / name).mkdir(exist_ok=True)
        write_clip(folder / name / f"{wide}.mp4", frames=30, fps=16.0, width=128, height=96)
    for i in range(3):
        write_image(folder / "clips" / f"{i}.mask.png", 32, 24)
    shutil.copy(folder / "clips" / "0.mp4", folder / "more" / "0.mp4")
    build_tiny(folder / "other", seed=1)
    Image.fromarray(np.full((48, 64, 3), 99, np.uint8)).save(folder / "control2.png")
    job = load_job(path)
    panel = DatasetPanel(
        path="clips",
        num_frames=1,
        cache_latents=True,
        resolutions=[64],
        default_caption="a [trigger] street",
        caption_dropout=0.0,
    )
    prompts = [PromptPanel(prompt=f"orbit {i}", ctrl_img="control.png") for i in range(2)]
    job = msgspec.structs.replace(
        job,
        datasets=[panel, msgspec.structs.replace(panel, path="more")],
        sample=msgspec.structs.replace(job.sample, prompts=prompts),
        target=msgspec.structs.replace(job.target, layers=[LayersPanel(match="ffn.2")]),
    )
    job = with_values(
        job, {"training.steps": 2, "training.lr": 1e-4, "save.every": 1, "save.keep": 2, "multistage.switch_every": 2}
    )
    save_job(job, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        out = Looks(path)
        for name, seed in (("accelerator", 1), ("other", 2)):
            generator = torch.Generator().manual_seed(seed)
            values = {
                n: torch.randn(p.shape, generator=generator) * 0.2
                for n, p in out.run.learners["high_noise"].parameters.items()
            }
            lora.save_lora(
                folder / f"{name}.safetensors", values, job=job, base=out.run.base, expert="high_noise", step=1
            )
        out.learn_texts(jobs_of(job))
        yield out


def jobs_of(job: Job) -> Iterator[Job]:
    yield job
    for key, case in CASES.items():
        if case.see in ("step", "update", "preview"):
            yield with_values(job, {**case.given, key: case.value})


@pytest.fixture(scope="module")
def seen(looks) -> Callable[..., object]:
    """A look at the job with some values; a refusal is what it says."""

    def look(name: str, values: dict[str, object]) -> object:
        try:
            return getattr(looks, name)(with_values(looks.job, values))
        except UserError as e:
            return f"refused: {e}"

    @cache
    def once(name: str, values: tuple[tuple[str, object], ...]) -> object:
        return look(name, dict(values))

    def either(name: str, values: dict[str, object], *, again: bool = False) -> object:
        return look(name, values) if again else once(name, tuple(values.items()))

    return either


def test_every_key_has_its_case():
    assert CASES.keys() == FIELDS.keys()


@pytest.mark.parametrize("key", CASES)
def test_a_key_has_an_effect(seen, key):
    case = CASES[key]
    assert seen(case.see, case.given) != seen(case.see, {**case.given, key: case.value}, again=True)


@pytest.mark.parametrize("name", sorted({case.see for case in CASES.values()} - {"caches", "film"}))
def test_a_look_sees_the_same_where_nothing_changed(seen, name):
    """Else every case that looks there would pass."""
    assert seen(name, {}) == seen(name, {}, again=True)

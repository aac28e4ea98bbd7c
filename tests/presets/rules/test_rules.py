"""Every rule: silent on a good job, heard when it is broken, and mended by the fix it offers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace as replace_in
from PIL import Image

from presets.base.part_facts import PartFacts
from presets.base.sources import problem
from presets.clips.batches import too_short
from presets.facts.facts import Facts, RunFolder, clip_speeds
from presets.facts.held_out import HeldClip, HeldOut
from presets.findings import Finding
from presets.job import gpu_shares
from presets.job.gpu_shares import cannot_share_clips
from presets.job.resume_check import ResumeCheck, check_resume
from presets.job.schema import Job, LayersPanel
from presets.job.toml_file import with_value
from presets.machine.torch_build import Build
from presets.rules import RULES
from presets.rules.check import check_job
from presets.rules.preview_rules import image_problem
from tests.helpers.facts import clip, clips, facts, fetching, gpu, image, job, machine, process, real_model, tiny_model
from tests.helpers.loras import lora_folder
from tests.helpers.videos import write_clip

OTHER = check_resume(job(target={"rank": 8}), job(), trained=True)  # what lies in a run folder is another job
PROMPT = {"prompt": "orbit", "ctrl_img": ""}
short = [*clips(11), clip("short.mp4", frames=30)]


def prompts(**sample: Any) -> dict[str, Any]:
    """A sample panel with one prompt, whose image is the test's own."""
    return {"prompts": [{"prompt": "orbit", "ctrl_img": "IMAGE"}]} | sample


def own_prompt(**own: Any) -> dict[str, Any]:
    """A sample panel whose one prompt has values of its own."""
    return {"prompts": [{"prompt": "orbit", "ctrl_img": "IMAGE"} | own]}


def own_layers(*tables: tuple[str, int | None]) -> dict[str, Any]:
    """A target panel with a table for each (pattern, rank)."""
    return {"layers": [LayersPanel(match=match, rank=rank) for match, rank in tables]}


def held(count: int, *found: list[Any], first: int = 0, of: int = 0, unused: int = 0, **more: Any) -> Facts:
    """The usual facts (or of these clips), with so many clips more that are held out of dataset `of`."""
    panel = job().datasets[0]
    apart = [
        HeldClip(dataset=of, panel=panel, root="/clips", clip=clip(f"held{i}.mp4", **more))
        for i in range(first, first + count)
    ]
    return msgspec.structs.replace(facts(*found), held_out=HeldOut(clips=apart, unused=unused))


def seen(known: Facts) -> Facts:
    """The same, where the first held-out clip has the bytes of one that trains."""
    return msgspec.structs.replace(known, copies=[["/clips/held0.mp4", "/clips/00.mp4"]])


NOTHING_EXCLUDED: dict[str, Any] = {"target.exclude": []}


def masked(width: int, height: int, kind: str = "image", frames: int = 1, shades: tuple[int, int] = (0, 255)) -> Facts:
    """Twelve clips of 41 frames, 832x832; the first has a mask."""
    of_it = clip("00.mask.png", width=width, height=height, frames=frames)
    of_it = msgspec.structs.replace(of_it, kind=kind)
    first, *others = clips()
    return facts([msgspec.structs.replace(first, mask=of_it), *others], shades={of_it.path: shades})


def leaving_out(name: str, *found: list[Any], **more: Any) -> Facts:
    """The usual facts (or of these clips) of a dataset that leaves a file out."""
    known = facts(*found, **more)
    return replace_in(known, datasets=[replace_in(d, left_out=[name]) for d in known.datasets])


def beside_loras(**more: Any) -> Facts:
    return facts(base=lora_folder(), **more)


# code, field, job, facts, what the fix sets (None: nothing can be set)
CASES: list[tuple[str, str, Job, Facts, dict[str, Any] | None]] = [
    # frames
    (
        "frames-4n-plus-1",
        "datasets[0].num_frames",
        job(datasets=[{"num_frames": 40}]),
        facts(),
        {"datasets[0].num_frames": 41},
    ),
    (
        "frames-4n-plus-1",
        "datasets[0].num_frames",
        job(datasets=[{"num_frames": 40}]),
        facts(clips(frames=40)),
        {"datasets[0].num_frames": 37},
    ),
    (
        "frames-4n-plus-1",
        "datasets[0].num_frames",
        job(datasets=[{"num_frames": 39}]),
        facts(),
        {"datasets[0].num_frames": 37},
    ),
    (
        "frames-4n-plus-1",
        "datasets[0].num_frames",
        job(datasets=[{"num_frames": 2}]),
        facts(),
        {"datasets[0].num_frames": 1},
    ),
    (
        "frames-4n-plus-1",
        "datasets[1].num_frames",
        job(datasets=[{}, {"num_frames": 42}]),
        facts(clips(), clips()),
        {"datasets[1].num_frames": 41},
    ),
    ("frames-4n-plus-1", "sample.num_frames", job(sample={"num_frames": 80}), facts(), {"sample.num_frames": 81}),
    (
        "frames-beyond-81",
        "datasets[0].num_frames",
        job(datasets=[{"num_frames": 85}]),
        facts(clips(frames=85)),
        {"datasets[0].num_frames": 81},
    ),
    ("frames-beyond-81", "sample.num_frames", job(sample=prompts(num_frames=121)), facts(), {"sample.num_frames": 81}),
    ("clip-too-short", "datasets[0].num_frames", job(), facts(short), {"datasets[0].num_frames": 29}),
    ("clip-too-short", "datasets[0].num_frames", job(), facts([*clips(11), clip("s.mp4", frames=4)]), None),
    (
        "clip-too-short",
        "datasets[0].num_frames",
        job(datasets=[{"sampling": "realtime"}]),
        facts(clips(frames=60, fps=30)),
        {"datasets[0].num_frames": 29},
    ),
    (
        "clip-too-short",
        "datasets[0].num_frames",
        job(datasets=[{"sampling": "head"}]),
        facts(clips(frames=60, fps=30)),
        {"datasets[0].num_frames": 29},
    ),
    (
        "clip-too-short",
        "datasets[0].num_frames",
        job(datasets=[{"short_clips": "shorten"}]),
        facts([*short, clip("s.mp4", frames=4)]),
        None,
    ),
    (
        "frames-repeat",
        "datasets[0].sampling",
        job(datasets=[{"sampling": "realtime"}]),
        facts([*clips(11), clip("slow.mp4", frames=41, fps=8)]),
        None,
    ),
    (
        "frames-repeat",
        "datasets[0].sampling",
        job(datasets=[{"sampling": "head"}]),
        facts([*clips(11), clip("still.mkv", frames=24, fps=24 / 360_000)]),
        None,
    ),
    ("clips-shortened", "datasets[0].short_clips", job(datasets=[{"short_clips": "shorten"}]), facts(short), None),
    (
        "windows-of-whole-clips",
        "datasets[0].windows",
        job(datasets=[{"windows": 3}]),
        facts(),
        {"datasets[0].sampling": "realtime"},
    ),
    (
        "windows-not-reached",
        "datasets[0].windows",
        job(datasets=[{"windows": 3, "sampling": "head"}]),
        facts([*clips(11), clip("long.mp4", frames=100)]),
        {"datasets[0].windows": 2},
    ),
    (
        "one-frame-of-video",
        "datasets[0].num_frames",
        job(datasets=[{"num_frames": 1}]),
        facts(clips(frames=33)),
        {"datasets[0].num_frames": 33},
    ),
    ("frames-mismatch", "sample.num_frames", job(sample=prompts(num_frames=81)), facts(), {"sample.num_frames": 41}),
    ("frames-mismatch", "sample.num_frames", job(sample=prompts(num_frames=21)), facts(), {"sample.num_frames": 41}),
    (
        "speed-factor",
        "datasets[0].num_frames",
        job(datasets=[{"num_frames": 33}]),
        facts(clips(frames=65)),
        {"datasets[0].num_frames": 65},
    ),
    ("speed-factor", "datasets[0].num_frames", job(), facts(clips(frames=60, fps=30)), {"datasets[0].num_frames": 33}),
    ("speed-factor", "datasets[0].sampling", job(), facts(clips(frames=160)), {"datasets[0].sampling": "realtime"}),
    ("speed-factor", "datasets[0].num_frames", job(), facts(clips(frames=81)), {"datasets[0].num_frames": 81}),
    (
        "speed-factor",
        "datasets[0].sampling",
        job(),
        facts(clips(frames=81), machine=machine(gpu(24))),
        {"datasets[0].sampling": "realtime"},
    ),
    (
        "speed-factor",
        "datasets[0].num_frames",
        job(),
        facts([*clips(6, frames=160), *clips(6, frames=60, fps=60)]),
        None,
    ),
    # clips
    ("clip-too-small", "datasets[0].path", job(), facts([*clips(), clip("thin.mp4", width=800, height=15)]), None),
    ("images-among-clips", "datasets[0].path", job(), facts([*clips(), image("start.png")]), None),
    (
        "images-among-clips",
        "datasets[1].path",
        job(datasets=[{}, {"regularization": True}]),
        facts(clips(), [*clips(), image("00.png")]),
        None,
    ),
    (
        "clip-below-resolution",
        "datasets[0].resolutions",
        job(),
        facts(clips(width=320, height=240)),
        {"datasets[0].resolutions": [278]},
    ),
    (
        "clip-below-resolution",
        "datasets[0].resolutions",
        job(),
        facts([*clips(), clip("small.mp4", width=320, height=240)]),
        None,
    ),
    (
        "resolution-not-reached",
        "datasets[0].resolutions",
        job(datasets=[{"resolutions": [512, 832, 1024]}]),
        facts(),
        {"datasets[0].resolutions": [512, 832]},
    ),
    (
        "resolution-not-reached",
        "datasets[0].resolutions",
        job(datasets=[{"resolutions": [1280, 1024, 768]}]),
        facts(),
        {"datasets[0].resolutions": [1024, 768]},
    ),
    (
        "resolution-not-reached",
        "datasets[0].resolutions",
        job(datasets=[{"resolutions": [1024, 1024]}]),
        facts(clips(width=1024, height=1024)),
        {"datasets[0].resolutions": [1024]},
    ),
    (
        "bucket-1024-tight",
        "datasets[0].resolutions",
        job(datasets=[{"resolutions": [512, 1024]}], training={"deterministic": False}),
        facts(clips(width=1280, height=1280), machine=machine(gpu(15))),
        {"datasets[0].resolutions": [512]},
    ),
    (
        "bucket-1024-tight",
        "datasets[0].resolutions",
        job(datasets=[{"resolutions": [1024]}], training={"deterministic": False}),
        facts(clips(width=1280, height=1280), machine=machine(gpu(15))),
        {"datasets[0].resolutions": [512]},
    ),
    ("scene-cuts", "datasets[0].path", job(), facts(cuts={"/clips/03.mp4": [8, 20], "/clips/04.mp4": []}), None),
    (
        "clip-copies",
        "datasets[0].path",
        job(),
        leaving_out("04.mp4", copies=[["/clips/03.mp4", "/clips/04.mp4", "/clips/gone.mp4"]]),
        {"datasets[0].exclude": ["04.mp4"]},
    ),
    ("clips-alike", "datasets[0].path", job(), facts(alike=[["/clips/03.mp4", "/clips/04.mp4"]]), None),
    ("too-few-clips", "datasets[0].path", job(), facts(clips(9)), None),
    (
        "clip-hdr",
        "datasets[0].hdr",
        job(),
        facts([*clips(), clip("hdr.mp4", hdr=True)]),
        {"datasets[0].hdr": "tonemap"},
    ),
    ("clip-interlaced", "datasets[0].path", job(), facts([*clips(), clip("tv.ts", interlaced=True)]), None),
    ("clip-untagged", "datasets[0].path", job(), facts([*clips(), clip("old.mp4", untagged_hd=True)]), None),
    ("image-data-unused", "datasets[0].path", job(), facts([*clips(), clip("a.png", unused="EXIF data")]), None),
    # datasets
    (
        "latent-cache-multi-frame",
        "datasets[0].cache_latents",
        job(datasets=[{"cache_latents": True}]),
        facts(),
        {"datasets[0].cache_latents": False},
    ),
    (
        "nothing-to-learn",
        "datasets[0].regularization",
        job(datasets=[{"regularization": True}]),
        facts(),
        {"datasets[0].regularization": False},
    ),
    (
        "dataset-weight-zero",
        "datasets[0].weight",
        job(datasets=[{"weight": 0.0}]),
        facts(),
        {"datasets[0].weight": 1.0},
    ),
    (
        "reg-too-much",
        "datasets[0].repeats",
        job(datasets=[{"repeats": 2}, {"regularization": True}]),
        facts(clips(5), clips(20)),
        {"datasets[0].repeats": 4},
    ),
    (
        "reg-too-much",
        "datasets[0].repeats",
        job(datasets=[{}, {"regularization": True, "sampling": "head", "windows": 2}]),
        facts(clips(10), clips(10, frames=90)),
        {"datasets[0].repeats": 2},
    ),
    (
        "reg-too-much",
        "datasets[1].repeats",
        job(datasets=[{"regularization": True, "repeats": 2}, {}, {}]),
        facts(clips(), clips(5), clips(5)),
        {"datasets[1].repeats": 3, "datasets[2].repeats": 3},
    ),
    (
        "reg-with-trigger",
        "datasets[1].path",
        job("character", job={"trigger": "frung"}, datasets=[{}, {"regularization": True}]),
        facts(clips(caption="[trigger]"), clips(caption="[trigger], a man")),
        None,
    ),
    (
        "reg-with-trigger",
        "datasets[1].default_caption",
        job(
            "character",
            job={"trigger": "frung"},
            datasets=[{}, {"regularization": True, "default_caption": "Frung runs"}],
        ),
        facts(clips(caption="[trigger]"), clips(caption="")),
        {"datasets[1].default_caption": "person runs"},
    ),
    (
        "flip-with-motion",
        "datasets[0].flip_x",
        job(datasets=[{"flip_x": True, "flip_y": True}]),
        facts(),
        {"datasets[0].flip_x": False, "datasets[0].flip_y": False},
    ),
    (
        "flip-with-motion",
        "datasets[0].flip_y",
        job("character", datasets=[{"flip_y": True}]),
        facts(),
        {"datasets[0].flip_y": False},
    ),
    (
        "last-frame-unused",
        "datasets[1].last_frame",
        job("style", datasets=[{"last_frame": 0.5}, {"last_frame": 0.5, "num_frames": 1}]),
        facts(clips(), [image(f"{i}.png") for i in range(20)]),
        {"datasets[1].last_frame": 0.0},
    ),
    (
        "last-frame-unused",
        "datasets[0].last_frame",
        job("style", datasets=[{"last_frame": 0.5}]),
        facts([image(f"{i}.png") for i in range(20)]),
        {"datasets[0].last_frame": 0.0},
    ),
    ("mask-shape", "datasets[0].path", job(), masked(832, 468), None),
    ("mask-too-short", "datasets[0].path", job(), masked(208, 208, "video", 40), None),
    ("mask-too-long", "datasets[0].path", job(), masked(832, 832, "video", 42), None),
    ("mask-all-black", "datasets[0].path", job(), masked(832, 832, shades=(0, 5)), None),
    ("mask-all-white", "datasets[0].path", job(), masked(832, 832, shades=(250, 255)), None),
    (
        "mask-by-another-name",
        "datasets[0].path",
        job("style", datasets=[{"num_frames": 1}]),
        facts([*(image(f"{i}.png") for i in range(30)), image("3_mask.png")]),
        None,
    ),
    (
        "batch-multiple-buckets",
        "training.batch_size",
        job(training={"batch_size": 2}),
        facts([*clips(), clip("wide.mp4", width=1280, height=720)]),
        {"training.batch_size": 1},
    ),
    # captions
    ("caption-or-default", "datasets[0].default_caption", job(), facts(clips(caption="")), None),
    (
        "caption-or-default",
        "datasets[0].default_caption",
        job(),
        facts([*clips(), clip("z.mp4", caption="")]),
        {"datasets[0].default_caption": "orbit 360 around the subject"},
    ),
    (
        "caption-or-default",
        "datasets[0].default_caption",
        job("character", job={"trigger": "frung"}),
        facts(clips(caption="")),
        {"datasets[0].default_caption": "[trigger], person"},
    ),
    ("trigger-missing-in-captions", "datasets[0].path", job(job={"trigger": "frung"}), facts(), None),
    (
        "trigger-missing-in-captions",
        "datasets[0].default_caption",
        job(job={"trigger": "frung"}, datasets=[{"default_caption": "a man"}]),
        facts(clips(caption="")),
        {"datasets[0].default_caption": "[trigger], a man"},
    ),
    ("trigger-placeholder-empty", "job.trigger", job(), facts(clips(caption="[trigger], a man")), None),
    (
        "trigger-placeholder-empty",
        "job.trigger",
        job(sample={"prompts": [{"prompt": "[trigger] walks", "ctrl_img": "IMAGE"}]}),
        facts(),
        None,
    ),
    (
        "unload-te-with-captions",
        "training.unload_text_encoder",
        job(training={"unload_text_encoder": True}),
        facts(),
        {"training.unload_text_encoder": False},
    ),
    (
        "text-cache-and-dropout",
        "datasets[0].caption_dropout",
        job(training={"cache_text_embeddings": True}),
        facts(),
        {"datasets[0].caption_dropout": 0.0},
    ),
    (
        "text-cache-and-trigger",
        "training.cache_text_embeddings",
        job(job={"trigger": "frung"}, training={"cache_text_embeddings": True}),
        facts(clips(caption="[trigger], a man")),
        {"training.cache_text_embeddings": False},
    ),
    # sample
    ("sample-needs-ctrl-img", "sample.prompts[0].ctrl_img", job(sample={"prompts": [PROMPT]}), facts(), None),
    (
        "sample-needs-ctrl-img",
        "sample.prompts[1].ctrl_img",
        job(sample={"prompts": [{"prompt": "a", "ctrl_img": "IMAGE"}, {"prompt": "b", "ctrl_img": "nowhere.png"}]}),
        facts(),
        None,
    ),
    (
        "sample-end-img",
        "sample.prompts[0].end_img",
        job(sample=own_prompt(end_img="nowhere.png")),
        facts(),
        {"sample.prompts[0].end_img": ""},
    ),
    (
        "sample-end-img",
        "sample.prompts[0].end_img",
        job(sample=own_prompt(end_img="IMAGE", num_frames=1)),
        facts(),
        {"sample.prompts[0].end_img": ""},
    ),
    ("sample-no-prompts", "sample.prompts", job(), facts(), None),
    (
        "sample-prompt-empty",
        "sample.prompts[0].prompt",
        job(sample={"prompts": [{"prompt": " ", "ctrl_img": "IMAGE"}]}),
        facts(),
        None,
    ),
    ("dimension-multiple-of-16", "sample.width", job(sample={"width": 500}), facts(), {"sample.width": 496}),
    ("dimension-multiple-of-16", "sample.height", job(sample={"height": 1080}), facts(), {"sample.height": 1088}),
    ("sample-every-save-every", "sample.every", job(sample=prompts(every=100)), facts(), {"sample.every": 250}),
    ("sample-fps-16", "sample.fps", job(sample=prompts(fps=24)), facts(), {"sample.fps": 16}),
    (
        "sample-negative-unused",
        "sample.negative",
        job(sample=prompts(negative="blur", guidance=1.0)),
        facts(),
        {"sample.negative": ""},
    ),
    (
        "dimension-multiple-of-16",
        "sample.prompts[0].height",
        job(sample=own_prompt(height=1080)),
        facts(),
        {"sample.prompts[0].height": 1088},
    ),
    (
        "frames-4n-plus-1",
        "sample.prompts[0].num_frames",
        job(sample=own_prompt(num_frames=42)),
        facts(),
        {"sample.prompts[0].num_frames": 41},
    ),
    (
        "frames-beyond-81",
        "sample.prompts[0].num_frames",
        job(sample=own_prompt(num_frames=121)),
        facts(),
        {"sample.prompts[0].num_frames": 81},
    ),
    (
        "frames-mismatch",
        "sample.prompts[0].num_frames",
        job(sample=own_prompt(num_frames=21) | {"num_frames": 81}),
        facts(),
        {"sample.prompts[0].num_frames": 41},
    ),
    # starts and merges
    (
        "start-unusable",
        "target.start_high",
        job(target={"start_high": "gone.safetensors"}),
        beside_loras(),
        None,
    ),
    ("start-unusable", "target.start_low", job(target={"start_low": "small.safetensors"}), beside_loras(), None),
    ("start-unusable", "target.start_low", job(target={"start_low": "norms.safetensors"}), beside_loras(), None),
    (
        "start-unusable",
        "target.start_low",
        job(target={"start_low": "rank32.safetensors"}),
        beside_loras(),
        {"target.rank": 32},
    ),
    (
        "start-unusable",
        "target.start_high",
        job(target={"start_high": "rank32.safetensors"}, multistage={"high": {"rank": 8}}),
        beside_loras(),
        {"multistage.high.rank": 32},
    ),
    (
        "start-unusable",
        "target.start_high",
        job(target={"start_high": "any.safetensors", "layers": [LayersPanel(match="self_attn.q", rank=2)]}),
        beside_loras(),
        None,
    ),
    (
        "start-unusable",
        "target.start_high",
        job(target={"start_high": "any.safetensors", "include": ["ffn"]}),
        beside_loras(),
        None,
    ),
    (
        "start-expert",
        "target.start_high",
        job(target={"start_high": "orbit_low_noise.safetensors"}),
        beside_loras(),
        None,
    ),
    (
        "start-expert",
        "target.start_high",
        job(target={"start_high": "orbit_low_noise.safetensors", "start_low": "orbit_high_noise.safetensors"}),
        beside_loras(),
        {"target.start_high": "orbit_high_noise.safetensors", "target.start_low": "orbit_low_noise.safetensors"},
    ),
    (
        "start-unused",
        "target.start_low",
        job(target={"start_low": "any.safetensors"}, multistage={"low_noise": False}),
        beside_loras(),
        {"target.start_low": ""},
    ),
    (
        "start-other-expert",
        "target.start_low",
        job(target={"start_high": "both.safetensors"}),
        beside_loras(),
        {"target.start_low": "both.safetensors"},
    ),
    ("start-left-out", "target.start_high", job(target={"start_high": "wan21.safetensors"}), beside_loras(), None),
    ("merge-unusable", "model.merge[0].path", job(model={"merge": [{}]}), beside_loras(), None),
    (
        "merge-unusable",
        "model.merge[1].path",
        job(model={"merge": [{"path": "norms.safetensors"}, {"path": "small.safetensors"}]}),
        beside_loras(),
        None,
    ),
    (
        "merge-expert",
        "model.merge[0].expert",
        job(model={"merge": [{"path": "orbit_high_noise.safetensors"}]}),
        beside_loras(),
        {"model.merge[0].expert": "high_noise"},
    ),
    (
        "merge-nothing",
        "model.merge[0].strength",
        job(model={"merge": [{"path": "any.safetensors", "strength": 0.0}]}),
        beside_loras(),
        {"model.merge[0].strength": 1.0},
    ),
    (
        "merge-nothing",
        "model.merge[0].expert",
        job(model={"merge": [{"path": "any.safetensors", "expert": "low_noise"}]}, multistage={"low_noise": False}),
        beside_loras(),
        None,
    ),
    (
        "merge-left-out",
        "model.merge[0].path",
        job(model={"merge": [{"path": "wan21.safetensors"}]}),
        beside_loras(),
        None,
    ),
    (
        "merge-left-out",
        "model.merge[0].path",
        job(model={"merge": [{"path": "t2v.safetensors"}]}),
        beside_loras(),
        None,
    ),
    (
        "merge-with-ara",
        "quantization.transformer",
        job(model={"merge": [{"path": "any.safetensors"}]}, quantization={"transformer": "qint4+ara"}),
        beside_loras(),
        None,
    ),
    (
        "merge-twice",
        "model.merge[1].path",
        job(model={"merge": [{"path": "any.safetensors"}, {"path": "again.safetensors", "strength": 0.5}]}),
        beside_loras(),
        None,
    ),
    (
        "merge-twice",
        "target.start_low",
        job(model={"merge": [{"path": "any.safetensors"}]}, target={"start_low": "again.safetensors"}),
        beside_loras(),
        None,
    ),
    (
        "merge-twice",
        "sample.accelerator",
        job(
            model={"merge": [{"path": "any.safetensors", "expert": "low_noise"}]},
            sample=prompts(accelerator="any.safetensors"),
        ),
        beside_loras(),
        None,
    ),
    (
        "lora-damaged",
        "model.merge[0].path",
        job(model={"merge": [{"path": "any.safetensors"}]}),
        beside_loras(
            lora_values={str(lora_folder() / "any.safetensors"): "a.lora_A holds numbers that are not finite"}
        ),
        None,
    ),
    # the accelerator
    (
        "accelerator-unreadable",
        "sample.accelerator",
        job(sample=prompts(accelerator="/nowhere.safetensors")),
        facts(),
        None,
    ),
    (
        "accelerator-unreadable",
        "sample.accelerator_low",
        job(sample=prompts(accelerator_low="/nowhere.safetensors")),
        facts(),
        None,
    ),
    (
        "accelerator-left-out",
        "sample.accelerator",
        job(sample=prompts(accelerator="t2v.safetensors")),
        beside_loras(),
        None,
    ),
    ("accelerator-expert", "sample.accelerator", job(sample=prompts(accelerator_low="/a.safetensors")), facts(), None),
    (
        "accelerator-expert",
        "sample.accelerator_low",
        job(sample=prompts(accelerator="/4steps-HIGH-rank64.safetensors")),
        facts(),
        None,
    ),
    (
        "accelerator-expert",
        "sample.accelerator",
        job(sample=prompts(accelerator="/low_noise_model.safetensors")),
        facts(),
        None,
    ),
    (
        "accelerator-expert",
        "sample.accelerator",
        job(sample=prompts(accelerator="/a_low.safetensors", accelerator_low="/a_high.safetensors")),
        facts(),
        {"sample.accelerator": "/a_high.safetensors", "sample.accelerator_low": "/a_low.safetensors"},
    ),
    (
        "accelerator-guidance",
        "sample.preset",
        job(sample=prompts(accelerator="/a.safetensors", steps=4)),
        facts(),
        {"sample.preset": "quick"},
    ),
    (
        "accelerator-guidance",
        "sample.guidance",
        job(sample=prompts(accelerator="/a.safetensors", steps=4, guidance=3.5)),
        facts(),
        {"sample.guidance": 1.0},
    ),
    (
        "accelerator-guidance",
        "sample.preset",
        job(sample=prompts(accelerator="/a.safetensors", preset="official")),
        facts(),
        {"sample.preset": "quick"},
    ),
    (
        "accelerator-guidance",
        "sample.guidance_low",
        job(sample=prompts(accelerator="/a.safetensors", guidance=1.0, guidance_low=3.0)),
        facts(),
        {"sample.guidance": 1.0, "sample.guidance_low": 1.0},
    ),
    (
        "accelerator-steps",
        "sample.steps",
        job(sample=prompts(accelerator="/a.safetensors", steps=25)),
        facts(),
        {"sample.steps": 4},
    ),
    (
        "accelerator-steps",
        "sample.preset",
        job(sample=prompts(accelerator="/a.safetensors", guidance=1.0)),
        facts(),
        {"sample.preset": "quick"},
    ),
    ("preset-quick", "sample.preset", job(sample=prompts(preset="quick")), facts(), {"sample.preset": "custom"}),
    (
        "preset-overridden",
        "sample.preset",
        job(sample=prompts(preset="official", steps=30, guidance=3.5, negative="")),
        facts(),
        {"sample.steps": None, "sample.negative": None},
    ),
    # clips left out
    (
        "exclude-unknown",
        "datasets[0].exclude",
        job(datasets=[{"exclude": ["a.mp4", "b.mp4"]}]),
        leaving_out("a.mp4"),
        {"datasets[0].exclude": ["a.mp4"]},
    ),
    (
        "exclude-everything",
        "datasets[0].exclude",
        job(datasets=[{"exclude": ["a.mp4"]}]),
        leaving_out("a.mp4", []),
        {"datasets[0].exclude": []},
    ),
    # training
    (
        "dop-excludes-cached-text",
        "training.cache_text_embeddings",
        job(job={"trigger": "x"}, training={"dop": True, "cache_text_embeddings": True}),
        facts(),
        {"training.cache_text_embeddings": False},
    ),
    ("dop-needs-trigger", "job.trigger", job(training={"dop": True}), facts(), {"training.dop": False}),
    (
        "dop-needs-trigger",
        "training.dop_class",
        job("style", job={"trigger": "x"}, training={"dop": True, "dop_class": " "}),
        facts(),
        {"training.dop_class": "scene"},
    ),
    (
        "bpp-excludes-dop",
        "training.blank_prompt_preservation",
        job(job={"trigger": "x"}, training={"dop": True, "blank_prompt_preservation": True}),
        facts(),
        {"training.blank_prompt_preservation": False},
    ),
    (
        "blank-prompt-with-dropout",
        "datasets[1].caption_dropout",
        job(training={"blank_prompt_preservation": True}, datasets=[{"caption_dropout": 0.0}, {}]),
        facts(clips(), clips()),
        {"datasets[1].caption_dropout": 0.0},
    ),
    (
        "dop-with-motion",
        "training.dop",
        job(job={"trigger": "x"}, training={"dop": True}),
        facts(),
        {"training.dop": False},
    ),
    ("too-many-steps", "training.steps", job(training={"steps": 5000}), facts(), {"training.steps": 2500}),
    (
        "warmup-beyond-steps",
        "training.warmup_steps",
        job(training={"warmup_steps": 2000}),
        facts(),
        {"training.warmup_steps": 100},
    ),
    ("learning-rate-high", "training.lr", job(training={"lr": 1e-3}), facts(), {"training.lr": 1e-4}),
    (
        "learning-rate-high",
        "multistage.low.lr",
        job(multistage={"low": {"lr": 2e-3}}),
        facts(),
        {"multistage.low.lr": 1e-4},
    ),
    ("learning-rate-prodigy", "training.lr", job(training={"optimizer": "prodigy"}), facts(), {"training.lr": 1.0}),
    (
        "optimizer-unavailable",
        "training.optimizer",
        job(training={"optimizer": "adamw8bit"}),
        facts(packages=frozenset()),
        {"training.optimizer": "adamw"},
    ),
    (
        "optimizer-unavailable",
        "training.optimizer",
        job(training={"optimizer": "adamw8bit"}),
        facts(machine=machine()),
        {"training.optimizer": "adamw"},
    ),
    (
        "optimizer-unavailable",
        "training.optimizer",
        job(training={"optimizer": "adamw8bit"}),
        facts(machine=machine(gpu(capability=(5, 2)))),
        {"training.optimizer": "adamw"},
    ),
    (
        "optimizer-unavailable",
        "training.optimizer",
        job(training={"optimizer": "prodigy", "lr": 1.0}),
        facts(packages=frozenset({"bitsandbytes"})),
        {"training.optimizer": "adamw"},
    ),
    ("timestep-bias-kind", "training.timestep_bias", job("style"), facts(), {"training.timestep_bias": "high_noise"}),
    (
        "timestep-bias-kind",
        "training.timestep_bias",
        job(training={"timestep_bias": "low_noise"}),
        facts(),
        {"training.timestep_bias": "balanced"},
    ),
    (
        "timestep-bias-kind",
        "training.timestep_bias",
        job("character", training={"timestep_bias": "high_noise"}),
        facts(),
        {"training.timestep_bias": "balanced"},
    ),
    (
        "warmup-misses-expert",
        "training.warmup_steps",
        job(training={"warmup_steps": 10}),
        facts(),
        {"training.warmup_steps": 20},
    ),
    (
        "warmup-misses-expert",
        "training.warmup_steps",
        job(training={"warmup_steps": 25}, multistage={"high": {"share": 3.0}}),
        facts(),
        {"training.warmup_steps": 40},
    ),
    ("warmup-misses-expert", "training.warmup_steps", job(training={"warmup_steps": 5, "steps": 18}), facts(), None),
    ("caption-cut", "datasets[0].path", job(), facts([*clips(), clip("long.mp4", caption="orbit " * 400)]), None),
    ("caption-cut", "datasets[0].default_caption", job(datasets=[{"default_caption": "\u7403" * 800}]), facts(), None),
    ("caption-cut", "sample.negative", job(sample=prompts(negative="blur, " * 400)), facts(), None),
    ("save-every-beyond-steps", "save.every", job(training={"steps": 200}), facts(), {"save.every": 50}),
    ("keep-few", "save.keep", job(save={"keep": 2}), facts(), {"save.keep": 4}),
    # experts
    (
        "stage-none",
        "multistage.high_noise",
        job(multistage={"high_noise": False, "low_noise": False}),
        facts(),
        {"multistage.high_noise": True, "multistage.low_noise": True},
    ),
    (
        "stage-kind",
        "multistage.high_noise",
        job(multistage={"high_noise": False}),
        facts(),
        {"multistage.high_noise": True},
    ),
    (
        "stage-kind",
        "multistage.low_noise",
        job("character", multistage={"low_noise": False}),
        facts(),
        {"multistage.low_noise": True},
    ),
    (
        "switch-every-with-steps",
        "multistage.switch_every",
        job(training={"steps": 10}),
        facts(),
        {"multistage.switch_every": 2},
    ),
    ("boundary-out-of-range", "model.boundary", job(model={"boundary": 875.0}), facts(), {"model.boundary": 0.875}),
    (
        "expert-settings-unused",
        "multistage.high.lr",
        job(
            "style",
            training={"timestep_bias": "high_noise"},
            multistage={"high_noise": False, "high": {"lr": 5e-5, "rank": 32, "share": 2.0}},
        ),
        facts(),
        {"multistage.high.lr": None, "multistage.high.rank": None, "multistage.high.share": 1.0},
    ),
    (
        "expert-settings-unused",
        "multistage.low.share",
        job(
            "style",
            training={"timestep_bias": "high_noise"},
            multistage={"high_noise": False, "low": {"lr": 5e-5, "share": 2.0}},
        ),
        facts(),
        {"multistage.low.share": 1.0},
    ),
    (
        "expert-share-extreme",
        "multistage.low.share",
        job(multistage={"high": {"share": 1000.0}}),
        facts(),
        {"multistage.high.share": 1.0},
    ),
    (
        "expert-share-extreme",
        "multistage.switch_every",
        job(training={"steps": 18}),
        facts(),
        {"multistage.switch_every": 9},
    ),
    (
        "expert-share-extreme",
        "multistage.switch_every",
        job(training={"steps": 15}, multistage={"low": {"share": 9.0}}),
        facts(),
        {"multistage.switch_every": 7, "multistage.low.share": 1.0},
    ),
    (
        "expert-share-extreme",
        "multistage.high.share",
        job(multistage={"high": {"share": 0.001}}),
        facts(),
        {"multistage.high.share": 1.0},
    ),
    (
        "rank-headroom",
        "multistage.low.rank",
        job(multistage={"low": {"rank": 32}}),
        facts(machine=machine(gpu(24))),
        {"multistage.low.rank": 16},
    ),
    (
        "learning-rate-high",
        "multistage.high.lr",
        job(multistage={"high": {"lr": 2e-3}}),
        facts(),
        {"multistage.high.lr": 1e-4},
    ),
    (
        "learning-rate-prodigy",
        "multistage.low.lr",
        job(training={"optimizer": "prodigy", "lr": 1.0}, multistage={"low": {"lr": 1e-4}}),
        facts(),
        {"multistage.low.lr": 1.0},
    ),
    ("boundary-unusual", "model.boundary", job(model={"boundary": 0.1}), facts(), {"model.boundary": "model"}),
    ("boundary-unusual", "model.boundary", job(model={"boundary": 0.999}), facts(), {"model.boundary": "model"}),
    ("boundary-out-of-range", "model.boundary", job(model={"boundary": 1.0}), facts(), {"model.boundary": "model"}),
    ("boundary-out-of-range", "model.boundary", job(model={"boundary": -1.0}), facts(), {"model.boundary": "model"}),
    # model
    ("model-not-local", "model.path", job(), facts(model=real_model(local=False)), None),
    ("model-not-local", "model.path", job(), facts(model=real_model(local=False), fetching=fetching(1)), None),
    ("cache-too-small", "model.path", job(), facts(model=real_model(local=False), fetching=fetching(200)), None),
    (
        "ara-unusable",
        "quantization.ara",
        job(quantization={"transformer": "qint4+ara", "ara": "a/b/wan22_14b_t2i_torchao_uint4.safetensors"}),
        facts(),
        None,
    ),
    (
        "ara-quantized-base",
        "quantization.ara",
        job(quantization={"transformer": "qint4+ara", "ara": "a/b/wan22_14b_i2v_torchao_uint4.safetensors"}),
        facts(model=real_model(parts={"transformer": PartFacts(parameters=1, size_bytes=1, dtype="F8_E4M3")})),
        None,
    ),
    (
        "clips-hardly-seen",
        "training.steps",
        job(datasets=[{"resolutions": [512]}], training={"steps": 2500}),
        facts(clips(5000)),
        None,
    ),
    (
        "clips-seldom-seen",
        "training.steps",
        job(datasets=[{"resolutions": [512]}], training={"steps": 2500}),
        facts(clips(500)),
        None,
    ),
    (
        "wsl-unlocked-memory",
        "model.layer_offloading",
        job(),
        facts(machine=msgspec.structs.replace(machine(gpu(24, name="NVIDIA RTX 4090", capability=(8, 9))), wsl=True)),
        None,
    ),
    ("ara-unused", "quantization.ara", job(quantization={"ara": "some/adapter"}), facts(), {"quantization.ara": ""}),
    # machine
    (
        "gpu-missing",
        "job.gpus",
        job(),
        facts(machine=machine(problem="There is no NVIDIA driver on this machine.")),
        None,
    ),
    (
        "torch-misfit",
        "job.gpus",
        job(),
        facts(machine=machine(gpu(driver="550.54.14"), torch=Build("2.13.0", "13.0"))),
        None,
    ),
    ("torch-misfit", "job.gpus", job(), facts(machine=machine(gpu(), torch=Build("2.13.0+cpu"))), None),
    ("gpu-unknown", "job.gpus", job(job={"gpus": [3]}), facts(), {"job.gpus": [0]}),
    ("gpu-unknown", "job.gpus", job(job={"gpus": [0, 0]}), facts(), {"job.gpus": [0]}),
    (
        "gpu-unknown",
        "job.gpus",
        job(),
        facts(machine=machine(gpu(error="The driver lost this GPU. Reboot"), gpu(index=1))),
        {"job.gpus": [1]},
    ),
    ("gpu-unknown", "job.gpus", job(), facts(machine=machine(gpu(error="The driver lost this GPU. Reboot"))), None),
    ("gpu-old", "job.gpus", job(), facts(machine=machine(gpu(capability=(7, 5)))), None),
    (
        "precision-unsupported",
        "quantization.transformer",
        job(quantization={"transformer": "float8"}),
        facts(machine=machine(gpu(24, name="NVIDIA GeForce RTX 3090", capability=(8, 6)))),
        {"quantization.transformer": "auto"},
    ),
    (
        "precision-unsupported",
        "quantization.transformer",
        job(quantization={"transformer": "float8"}),
        facts(machine=machine(gpu(80, name="NVIDIA A100-SXM4-80GB", capability=(8, 0)))),
        {"quantization.transformer": "auto"},
    ),
    ("gpu-busy", "job.gpus", job(), facts(machine=machine(gpu(vram_free=50 * 2**30, processes=[process()]))), None),
    ("ram-too-small", "model.path", job(), facts(machine=machine(gpu(), ram_gib=16)), None),
    (
        "ram-too-small",
        "model.path",
        job(quantization={"transformer": "none"}),
        facts(machine=machine(gpu(24), ram_gib=40)),
        {"quantization.transformer": "auto"},
    ),
    ("plan-does-not-fit", "job.gpus", job(), facts(machine=machine(gpu(6))), None),
    (
        "plan-does-not-fit",
        "job.gpus",
        job(training={"optimizer": "adamw8bit"}, sample=prompts(width=1024, height=1024)),
        facts(machine=machine(gpu(12))),
        {"sample.width": 512, "sample.height": 512},
    ),
    (
        "plan-does-not-fit",
        "job.gpus",
        job(model={"layer_offloading": False}, quantization={"transformer": "float8"}),
        facts(machine=machine(gpu(24))),
        {"model.layer_offloading": "auto"},
    ),
    (
        "plan-does-not-fit",
        "job.gpus",
        job(datasets=[{"resolutions": [512, 1024]}]),
        facts(clips(width=1280, height=1280), machine=machine(gpu(12))),
        {"datasets[0].resolutions": [512]},
    ),
    # layers
    ("layers-unknown", "target.include", job(target={"include": ["ffn", "attn3"]}), facts(), None),
    ("layers-unknown", "target.exclude", job(target={"exclude": ["blocks.30-40"]}), facts(), None),
    ("layers-unknown", "target.layers[1].match", job(target=own_layers(("ffn", 8), ("k_img", 8))), facts(), None),
    ("layers-none", "target.exclude", job(target={"exclude": ["attn1", "attn2", "ffn"]}), facts(), NOTHING_EXCLUDED),
    (
        "layers-none",
        "target.exclude",
        job(target={"include": ["ffn"], "exclude": ["blocks.0-39.ffn"]}),
        facts(),
        NOTHING_EXCLUDED,
    ),
    ("layers-unused", "target.layers[0].match", job(target=own_layers(("ffn", None))), facts(), None),
    (
        "layers-unused",
        "target.layers[0].match",
        job(target=own_layers(("ffn", 8)) | {"exclude": ["ffn"]}),
        facts(),
        None,
    ),
    (
        "layers-many-kinds",
        "target.layers",
        job(target=own_layers(*((f"blocks.{i}", i + 1) for i in range(8)))),
        facts(),
        None,
    ),
    (
        "learning-rate-high",
        "target.layers[0].lr_factor",
        job(target={"layers": [LayersPanel(match="ffn", lr_factor=20.0), LayersPanel(match="q", lr_factor=9.0)]}),
        facts(),
        {"target.layers[0].lr_factor": 1.0},
    ),
    (
        "layers-prodigy",
        "target.layers[0].lr_factor",
        job(target={"layers": [LayersPanel(match="ffn", lr_factor=0.5)]}, training={"optimizer": "prodigy", "lr": 1.0}),
        facts(),
        {"target.layers[0].lr_factor": None},
    ),
    (
        "rank-headroom",
        "target.layers[0].rank",
        job(target=own_layers(("ffn", 64))),
        facts(machine=machine(gpu(24))),
        {"target.layers[0].rank": 16},
    ),
    ("rank-headroom", "target.rank", job(target={"rank": 32}), facts(machine=machine(gpu(24))), {"target.rank": 16}),
    # run
    (
        "run-folder-other-job",
        "job.name",
        job(),
        facts(
            run=RunFolder(
                path="/data/runs/orbit",
                name="orbit",
                resume=OTHER,
                free_name="orbit_2",
            )
        ),
        {"job.name": "orbit_2"},
    ),
    (
        "out-not-writable",
        "job.name",
        job(),
        facts(run=RunFolder(path="/proc/orbit", name="orbit", problem="no such file or directory")),
        None,
    ),
    ("disk-too-small", "save.keep", job(), facts(machine=machine(gpu(), disk_gib=8)), {"save.keep": 3}),
    ("disk-too-small", "save.keep", job(), facts(machine=machine(gpu(), disk_gib=0.1)), None),
    (
        "gpus-share",
        "job.gpus",
        job(job={"gpus": [2, 1, 0]}),
        facts(machine=machine(), model=tiny_model()),
        {"job.gpus": [2, 1]},
    ),
    (
        "gpus-per-clip",
        "job.gpus_per_clip",
        job(job={"gpus": [3, 2, 1, 0], "gpus_per_clip": 3}),
        facts(machine=machine(*(gpu(index=i) for i in range(4)))),
        {"job.gpus_per_clip": 1},
    ),
    (
        "gpus-of-one-kind",
        "job.gpus",
        job(job={"gpus": [1, 0]}),  # experts apart
        facts(machine=machine(gpu(), gpu(index=1, name="NVIDIA H200"))),
        {"job.gpus": [1]},
    ),
    (
        "gpus-of-one-kind",
        "job.gpus",
        job(job={"gpus": [0, 1], "gpus_per_clip": 2}),
        facts(machine=machine(gpu(), gpu(index=1, name="NVIDIA H200")), model=tiny_model()),
        {"job.gpus": [0]},
    ),
    (
        "gpus-per-clip",
        "job.gpus_per_clip",
        job(job={"gpus_per_clip": 2}),
        facts(machine=machine(), model=tiny_model()),
        {"job.gpus_per_clip": 1},
    ),
    # on cards more than were measured together, whatever the base
    (
        "more-gpus",
        "job.gpus",
        job(job={"gpus": [1, 0, 2, 3, 4]}, training={"gradient_accumulation": 5}),
        facts(machine=machine(*(gpu(index=i) for i in range(5)))),
        None,
    ),
    (
        "more-gpus",
        "job.gpus",
        job(job={"gpus": [1, 0, 2, 3, 4]}, training={"gradient_accumulation": 5}),
        facts(machine=machine(*(gpu(index=i) for i in range(5))), model=tiny_model()),
        None,
    ),
    # held-out loss
    (
        "validation-nothing",
        "validation.fraction",
        job(validation={"fraction": 0.05}),
        facts(),
        {"validation.fraction": 0.1},
    ),
    (
        "validation-nothing",
        "validation.fraction",
        job(validation={"fraction": 0.05}),
        facts(clips(2)),
        {"validation.fraction": 0.0},
    ),
    (
        "validation-half",
        "validation.fraction",
        job(validation={"fraction": 0.5}),
        held(10, clips(10)),
        {"validation.fraction": 0.1},
    ),
    (
        "validation-few-left",
        "validation.fraction",
        job(validation={"fraction": 0.25}),
        held(3, clips(9)),
        {"validation.fraction": 0.0},
    ),
    ("validation-few-clips", "validation.fraction", job(validation={"fraction": 0.1}), held(2, clips(20)), None),
    ("validation-few-clips", "validation.path", job(validation={"path": "held"}), held(1, of=1), None),
    ("validation-many-clips", "validation.path", job(validation={"path": "held"}), held(3, of=1, unused=5), None),
    (
        "validation-twice",
        "validation.fraction",
        job(validation={"fraction": 0.1, "path": "held"}),
        held(3, of=1),
        {"validation.fraction": 0.0},
    ),
    ("validation-trains", "validation.path", job(validation={"path": "clips"}), facts(), None),
    ("validation-trains", "validation.path", job(validation={"path": "clips/held"}), facts(), None),
    (
        "validation-trains",
        "validation.path",
        job(validation={"path": "/"}),
        held(3, [clip("held1.mp4"), *clips()], of=1),
        None,
    ),
    ("validation-seen", "validation.fraction", job(validation={"fraction": 0.2}), seen(held(3, clips(12))), None),
    ("validation-seen", "validation.path", job(validation={"path": "held"}), seen(held(3, of=1)), None),
    (
        "validation-unfit",
        "datasets[0].num_frames",
        job(validation={"fraction": 0.2}),
        held(3, clips(12), frames=30),
        None,
    ),
    ("validation-unfit", "validation.path", job(validation={"path": "held"}), held(3, of=1, caption=""), None),
    (
        "validation-beyond-steps",
        "validation.every",
        job(validation={"path": "held", "every": 2001}),
        held(3, of=1),
        {"validation.every": 500},
    ),
    (
        "validation-without-checkpoint",
        "validation.every",
        job(validation={"path": "held", "every": 300}),
        held(3, of=1),
        {"validation.every": 250},
    ),
    (
        "validation-costly",
        "validation.every",
        job(validation={"path": "held", "bins": 8}),
        held(8, of=1),
        {"validation.every": 500},
    ),
    ("validation-costly", "validation.every", job(validation={"path": "held", "bins": 64}), held(30, of=1), None),
    (
        "stop-without-validation",
        "validation.stop_when",
        job(validation={"stop_when": "no better"}),
        facts(),
        {"validation.stop_when": "never"},
    ),
    (
        "stop-never-comes",
        "validation.patience",
        job(validation={"path": "held", "stop_when": "no better", "patience": 8}),
        held(3, of=1),
        {"validation.patience": 7},
    ),
    (
        "stop-never-comes",
        "validation.patience",
        job(validation={"path": "held", "stop_when": "no better", "every": 2000}),
        held(3, of=1),
        None,
    ),
]


@pytest.fixture(scope="session")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("image") / "control.png"
    Image.new("RGB", (64, 48), "teal").save(path)
    return path


def with_picture(made: Job, picture: Path) -> Job:
    out = msgspec.convert(msgspec.to_builtins(made), Job)
    for prompt in out.sample.prompts:
        prompt.ctrl_img = prompt.ctrl_img.replace("IMAGE", str(picture))
        prompt.end_img = prompt.end_img.replace("IMAGE", str(picture))
    return out


def of(code: str, made: Job, known: Facts) -> list[Finding]:
    return [f for f in check_job(made, known) if f.code == code]


@pytest.mark.parametrize("kind", ["motion", "style", "character"])
def test_a_good_job_has_no_findings(kind, picture):
    made = job(kind, training={"timestep_bias": "high_noise" if kind == "style" else "balanced"}, sample=prompts())
    assert check_job(with_picture(made, picture), facts()) == []


def test_images_beside_their_clips_are_named_first():
    (found,) = of(
        "images-among-clips",
        job(),
        facts([*clips(4), *(image(name) for name in ("a.png", "00.webp", "b.png", "02.png"))]),
    )
    assert found.message.startswith(
        "00.webp, 02.png, a.png and 1 more are still images among 4 clips: 50% of the visits"
    )
    assert "_controls" in found.fix
    (found,) = of("images-among-clips", job(), facts([clip("c1.mp4"), image("c1.webp")]))
    assert "c1.webp is a still image among 1 clip: 50%" in found.message


def test_every_rule_has_a_case():
    assert {code for code, *_ in CASES} == set(RULES)


@pytest.mark.parametrize(
    ("code", "field", "made", "known", "fix"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)]
)
def test_a_broken_rule_is_told_and_its_fix_mends_it(code, field, made, known, fix, picture):
    made = with_picture(made, picture)
    before = msgspec.json.encode(made)
    found = of(code, made, known)
    assert [f.field for f in found] == [field], found
    (finding,) = found
    assert finding.severity == RULES[code].severity
    for sentence in (finding.message, finding.fix):
        assert sentence and not sentence.endswith(".") and "  " not in sentence
    assert finding.set == (fix or {})
    assert msgspec.json.encode(made) == before, "a rule changed the job"
    if fix:
        for path, value in finding.set.items():
            made = with_value(made, path, value)
        assert of(code, made, known) == []


FIRST = {case[0]: i for i, case in reversed(list(enumerate(CASES)))}  # rule -> its first case


@pytest.mark.parametrize(
    ("code", "made", "known"),
    [
        pytest.param(*c[:1], *c[2:4], marks=[] if FIRST[c[0]] == i else [pytest.mark.thorough], id=f"{c[0]}-{i}")
        for i, c in enumerate(CASES)
    ],
)
def test_mending_everything_comes_to_an_end(code, made, known, picture):
    """No fix undoes another one: applying them one after the other leaves nothing that could be set."""
    made = with_picture(made, picture)
    done = []
    while settable := [f for f in check_job(made, known) if f.set]:
        finding = settable[0]
        assert (finding.code, finding.set) not in done, f"{finding.code} comes back after {[c for c, _ in done]}"
        done.append((finding.code, finding.set))
        for path, value in finding.set.items():
            made = with_value(made, path, value)


ALMOST: list[tuple[str, Job, Facts]] = [
    ("more-gpus", job(job={"gpus": [1, 0]}), facts(machine=machine(gpu(), gpu(index=1)))),
    ("gpus-share", job(job={"gpus": [1, 0]}), facts(machine=machine(), model=tiny_model())),
    (
        "gpus-of-one-kind",
        job(job={"gpus": [1, 0]}),
        facts(machine=machine(gpu(), gpu(index=1), gpu(index=2, name="NVIDIA H200"))),  # which is not named
    ),
    # 832 px: 1024 leaves the clip whole
    ("resolution-not-reached", job(datasets=[{"resolutions": [512, 768, 1024]}]), facts()),
    ("images-among-clips", job(datasets=[{"num_frames": 1}]), facts([*clips(), image()])),
    ("images-among-clips", job(), facts([image(f"{i}.png") for i in range(12)])),
    ("images-among-clips", job(datasets=[{}, {}]), facts(clips(), [image()])),
    ("clip-too-small", job(), facts(clips(width=800, height=16))),
    ("clip-below-resolution", job(), facts(clips(width=512, height=512))),
    ("speed-factor", job(), facts([image()])),
    (
        "bucket-1024-tight",
        job(datasets=[{"resolutions": [1024]}]),
        facts(clips(width=1280, height=1280), machine=machine(gpu(8)), model=tiny_model()),
    ),
    (
        "bucket-1024-tight",
        job(datasets=[{"resolutions": [1024], "num_frames": 1}]),
        facts([image(width=2000, height=2000)], machine=machine(gpu(24))),
    ),
    ("trigger-missing-in-captions", job(job={"trigger": "frung"}, training={"unload_text_encoder": True}), facts()),
    ("layers-many-kinds", job(target=own_layers(*((f"blocks.{i}", i + 1) for i in range(7)))), facts()),
    ("layers-unused", job(target=own_layers(("ffn", 8)) | {"include": ["blocks.39.ffn.0"]}), facts()),
    ("layers-unknown", job(target={"include": ["blocks.0-39.to_out.0"]}), facts()),
    ("layers-prodigy", job(target=own_layers(("ffn", 8)), training={"optimizer": "prodigy", "lr": 1.0}), facts()),
    ("stage-none", job("style", multistage={"high_noise": False}), facts()),
    ("stage-none", job("style", multistage={"low_noise": False}), facts()),
    ("keep-few", job(save={"keep": 3}), facts(machine=machine(gpu(), disk_gib=5))),
    (
        "disk-too-small",
        job(),
        facts(
            machine=machine(gpu(), disk_gib=1), run=RunFolder(path="/data/runs/orbit", name="orbit", size=12 * 2**30)
        ),
    ),
    ("keep-few", job(save={"keep": 3, "every": 1000}), facts()),
    ("reg-too-much", job(datasets=[{}, {"regularization": True}]), facts(clips(8), clips(12))),
    (
        "reg-with-trigger",
        job("character", job={"trigger": "frung"}, datasets=[{}, {"regularization": True}]),
        facts(clips(caption="[trigger]"), clips(caption="a man")),
    ),
    (
        "blank-prompt-with-dropout",
        job(training={"blank_prompt_preservation": True}, datasets=[{"caption_dropout": 0.0}]),
        facts(),
    ),
    ("learning-rate-high", job(training={"lr": 1e-3}, multistage={"high": {"lr": 1e-4}, "low": {"lr": 1e-4}}), facts()),
    ("optimizer-unavailable", job(training={"optimizer": "adamw8bit"}), facts(machine=machine(gpu(capability=(6, 0))))),
    (
        "batch-multiple-buckets",
        job(training={"batch_size": 2}, datasets=[{"repeats": 2}]),
        facts([*clips(), clip("wide.mp4", width=1280, height=720)]),
    ),
    ("clip-too-short", job(), facts(clips(frames=41))),
    ("clip-too-short", job(datasets=[{"sampling": "realtime"}]), facts(clips(frames=41))),
    ("clip-too-short", job(datasets=[{"num_frames": 1}]), facts(clips(frames=3))),
    ("clip-too-short", job(), facts([image(f"{i}.png") for i in range(12)])),
    ("frames-mismatch", job(sample=prompts(num_frames=33)), facts()),
    ("frames-mismatch", job(sample={"num_frames": 81}), facts()),  # no prompts, no previews
    ("sample-no-prompts", job(sample=prompts()), facts()),
    ("frames-mismatch", job(datasets=[{"num_frames": 1}], sample=prompts()), facts([image()])),
    ("speed-factor", job(), facts(clips(frames=51))),
    ("speed-factor", job(), facts(clips(frames=33))),
    ("speed-factor", job(datasets=[{"sampling": "realtime"}]), facts(clips(frames=160))),
    ("latent-cache-multi-frame", job(datasets=[{"cache_latents": True, "num_frames": 1}]), facts([image()])),
    ("flip-with-motion", job("style", datasets=[{"flip_x": True}]), facts()),
    ("caption-or-default", job(datasets=[{"default_caption": "orbit"}]), facts(clips(caption=""))),
    ("caption-or-default", job(training={"unload_text_encoder": True}), facts(clips(caption=""))),
    ("trigger-missing-in-captions", job(job={"trigger": "frung"}), facts(clips(caption="Frung, a man"))),
    ("trigger-missing-in-captions", job(job={"trigger": "frung"}), facts(clips(caption="[trigger], a man"))),
    (
        "trigger-missing-in-captions",
        job(job={"trigger": "frung"}, datasets=[{}, {"regularization": True}]),
        facts(clips(caption="frung"), clips()),
    ),
    (
        "unload-te-with-captions",
        job(job={"trigger": "frung"}, training={"unload_text_encoder": True}),
        facts(clips(caption="[trigger]")),
    ),
    (
        "text-cache-and-dropout",
        job(training={"cache_text_embeddings": True}, datasets=[{"caption_dropout": 0.0}]),
        facts(),
    ),
    ("too-few-clips", job(datasets=[{}, {}]), facts(clips(5), clips(5))),
    ("too-many-steps", job(training={"steps": 5000}), facts(clips(80))),
    ("learning-rate-high", job(training={"optimizer": "prodigy", "lr": 1.0}), facts()),
    ("batch-multiple-buckets", job(training={"batch_size": 4}), facts()),
    ("switch-every-with-steps", job(training={"steps": 10}, multistage={"high_noise": False}), facts()),
    (
        "bucket-1024-tight",
        job(datasets=[{"resolutions": [1024]}]),
        facts(clips(width=1280, height=1280), machine=machine(gpu(24))),
    ),
    (
        "bucket-1024-tight",
        job(datasets=[{"resolutions": [1024]}]),
        facts(clips(width=832, height=480), machine=machine(gpu(8))),
    ),
    ("plan-does-not-fit", job(), facts(machine=machine(gpu(4)), model=tiny_model())),
    # busy now, not when its turn comes
    ("plan-does-not-fit", job(), facts(machine=machine(gpu(24, vram_free=2**30, processes=[process()])))),
    (
        "plan-does-not-fit",
        job(model={"low_vram": True, "layer_offloading": True}, quantization={"transformer": "qint4"}),
        facts(machine=machine(gpu(10))),
    ),
    ("warmup-misses-expert", job(training={"warmup_steps": 11}), facts()),
    ("warmup-misses-expert", job(training={"warmup_steps": 5}, multistage={"low_noise": False}), facts()),
    ("caption-cut", job(datasets=[{"default_caption": "x" * 2048}]), facts(clips(caption="x" * 2048))),
    ("caption-cut", job(training={"unload_text_encoder": True}), facts(clips(caption="orbit " * 400))),
    ("boundary-out-of-range", job(model={"boundary": 0.875}), facts()),
    ("boundary-out-of-range", job(model={"boundary": 1e-9}), facts()),
    ("boundary-unusual", job(model={"boundary": 0.875}), facts()),
    ("expert-settings-unused", job(multistage={"high": {"lr": 5e-5, "share": 3.0}, "low": {"rank": 32}}), facts()),
    ("expert-settings-unused", job(multistage={"high_noise": False, "low": {"lr": 5e-5, "rank": 32}}), facts()),
    # 2000 steps, turns of 10: exactly one of 200
    ("expert-share-extreme", job(multistage={"high": {"share": 199.0}}), facts()),
    ("expert-share-extreme", job(multistage={"low_noise": False, "high": {"share": 0.001}}), facts()),
    # nobody has the common rate
    ("learning-rate-high", job(training={"lr": 1e-2}, multistage={"high": {"lr": 1e-4}, "low": {"lr": 5e-5}}), facts()),
    (
        "rank-headroom",
        job(target={"rank": 64}, multistage={"low_noise": False, "high": {"rank": 8}}),
        facts(machine=machine(gpu(24))),
    ),
    (
        "run-folder-other-job",
        job(job={"name": "new"}),
        facts(run=RunFolder(path="/r/orbit", name="orbit", resume=OTHER, free_name="y")),
    ),
    ("run-folder-other-job", job(), facts(run=RunFolder(path="/r/orbit", name="orbit", resume=OTHER, accepted=True))),
    ("gpu-missing", job(), facts(machine=machine(), model=tiny_model())),
    (
        "torch-misfit",
        job(),
        facts(machine=machine(gpu(driver="550.54.14"), torch=Build("2.13.0", "13.0")), model=tiny_model()),
    ),
    ("torch-misfit", job(), facts(machine=machine(gpu(driver="550.54.14"), torch=Build("2.10.0", "12.8")))),
    ("torch-misfit", job(), facts(machine=machine(gpu(driver="550.54.14", cuda=13), torch=Build("2.13.0", "13.0")))),
    ("torch-misfit", job(), facts(machine=machine(gpu(driver="580.65.06"), torch=Build("2.13.0", "13.0")))),
    ("gpu-old", job(), facts(machine=machine(gpu(capability=(8, 0))))),
    ("gpu-old", job(), facts(machine=machine(gpu(capability=(7, 5))), model=tiny_model())),
    (
        "precision-unsupported",
        job(quantization={"transformer": "float8"}),
        facts(machine=machine(gpu(24, name="NVIDIA GeForce RTX 4090", capability=(8, 9)))),
    ),
    # that card is refused whole
    (
        "precision-unsupported",
        job(quantization={"transformer": "float8"}),
        facts(machine=machine(gpu(capability=(7, 5)))),
    ),
    (
        "precision-unsupported",
        job(quantization={"transformer": "float8"}),
        facts(machine=machine(gpu(capability=(8, 6))), model=tiny_model()),
    ),
    *(
        (
            "precision-unsupported",
            job(quantization={"transformer": p, "text_encoder": t}),
            facts(machine=machine(gpu(24, name="NVIDIA GeForce RTX 3090", capability=(8, 6)))),
        )
        for p, t in (("auto", "float8"), ("qfloat8", "qint8"), ("qint8", "none"), ("qint4", "float8"))
    ),
    # the run that lies there goes on from its checkpoint, wherever the start is by now
    (
        "start-unusable",
        job(target={"start_high": "gone.safetensors"}),
        beside_loras(run=RunFolder(path="/data/runs/orbit", name="orbit", resume=ResumeCheck(trained=True))),
    ),
    ("start-other-expert", job(target={"start_high": "any.safetensors"}), beside_loras()),
    (
        "start-expert",
        job(target={"start_high": "orbit_high_noise.safetensors", "start_low": "orbit_low_noise.safetensors"}),
        beside_loras(),
    ),
    ("frames-repeat", job(datasets=[{"sampling": "realtime"}]), facts(clips(frames=41, fps=12.5))),
    ("frames-repeat", job(), facts(clips(frames=41, fps=8))),
    (
        "merge-twice",
        job(
            model={
                "merge": [
                    {"path": "any.safetensors", "expert": "high_noise"},
                    {"path": "any.safetensors", "expert": "low_noise", "strength": 0.5},
                    {"path": "rank32.safetensors"},
                ]
            },
            target={"start_low": "norms.safetensors"},
            sample=prompts(accelerator="rank32.safetensors", accelerator_low="t2v.safetensors") | {"prompts": []},
        ),
        beside_loras(),
    ),
    (
        "lora-damaged",
        job(target={"start_high": "any.safetensors"}),
        beside_loras(
            lora_values={str(lora_folder() / "any.safetensors"): "a.lora_A holds numbers that are not finite"},
            run=RunFolder(path="/data/runs/orbit", name="orbit", resume=ResumeCheck(trained=True)),
        ),
    ),
    ("ram-too-small", job(), facts(machine=machine(gpu(), ram_gib=4), model=tiny_model())),
    ("disk-too-small", job(), facts(machine=machine(gpu(), disk_gib=1), model=tiny_model())),
    ("exclude-unknown", job(datasets=[{"exclude": ["a.mp4"]}]), leaving_out("a.mp4")),
    ("exclude-everything", job(datasets=[{"exclude": ["a.mp4"]}]), leaving_out("a.mp4")),
    (
        "clip-copies",
        job(datasets=[{"exclude": ["03.mp4"]}]),
        leaving_out("03.mp4", clips()[:3] + clips()[4:], copies=[["/clips/03.mp4", "/clips/04.mp4"]]),
    ),
    ("clips-alike", job(), facts(alike=[["/clips/03.mp4", "/clips/gone.mp4"]])),
    (
        "clips-alike",
        job(),
        facts(alike=[["/clips/03.mp4", "/clips/04.mp4"]], copies=[["/clips/03.mp4", "/clips/04.mp4"]]),
    ),
    ("preset-quick", job(sample=prompts(preset="quick", accelerator="/a.safetensors")), facts()),
    ("preset-quick", job(sample=prompts(preset="official")), facts()),
    ("preset-overridden", job(sample=prompts(preset="official", steps=40, guidance_low=3.5)), facts()),
    ("preset-overridden", job(sample=prompts(steps=30)), facts()),
    ("validation-half", job(validation={"fraction": 0.49}), held(5, clips(7))),
    ("validation-nothing", job(validation={"fraction": 0.1}), facts(clips(10))),
    ("validation-few-left", job(validation={"fraction": 0.1}), held(1, clips(10))),
    ("validation-few-clips", job(validation={"fraction": 0.2}), held(3, clips(12))),
    ("validation-trains", job(validation={"path": "clips/_controls"}), held(3, of=1)),
    ("validation-trains", job(validation={"path": "clips_held"}), facts()),
    ("validation-seen", job(validation={"fraction": 0.2}), seen(held(3, clips(12), first=1))),
    ("validation-unfit", job(validation={"fraction": 0.2}), held(3, clips(12))),
    ("validation-beyond-steps", job(validation={"path": "held", "every": 2000}), held(3, of=1)),
    ("validation-beyond-steps", job(validation={"every": 2001}), facts()),
    ("validation-without-checkpoint", job(validation={"path": "held", "every": 500}), held(3, of=1)),
    ("validation-costly", job(validation={"path": "held"}), held(3, of=1)),
    ("stop-without-validation", job(validation={"path": "held", "stop_when": "no better"}), held(3, of=1)),
    ("stop-never-comes", job(validation={"path": "held", "stop_when": "no better", "patience": 7}), held(3, of=1)),
]


@pytest.mark.parametrize(("code", "made", "known"), ALMOST, ids=[f"{c[0]}-{i}" for i, c in enumerate(ALMOST)])
def test_a_rule_stays_silent_at_its_edge(code, made, known, picture):
    assert of(code, with_picture(made, picture), known) == []


def test_the_four_rules_that_are_never_broken_are_errors():
    assert {
        RULES[c].severity
        for c in ("frames-4n-plus-1", "latent-cache-multi-frame", "sample-needs-ctrl-img", "dop-excludes-cached-text")
    } == {"error"}


def test_speed_names_the_worst_clips_first():
    known = facts([clip("ok.mp4", frames=41), clip("fast.mp4", frames=82), clip("faster.mp4", frames=164), *clips(9)])
    (finding,) = of("speed-factor", job(), known)
    assert finding.message.endswith("faster.mp4 4.00x, fast.mp4 2.00x")


def test_long_lists_of_clips_are_cut():
    (finding,) = of("clip-too-short", job(), facts(clips(12, frames=20)))
    assert "00.mp4, 01.mp4, 02.mp4 and 9 more" in finding.message


def test_a_real_time_window_that_is_too_long_is_told_in_seconds():
    (finding,) = of("clip-too-short", job(datasets=[{"sampling": "realtime"}]), facts(clips(frames=60, fps=30)))
    assert (
        finding.message.startswith("41 frames in real time take 2.56 s, but 00.mp4") and "run 2.00 s" in finding.message
    )


def test_one_clip_that_is_too_short_has_its_frames():
    panel = {"num_frames": 41}
    one, two = (
        of("clip-too-short", job(datasets=[panel]), facts([*clips(11), *more]))[0].message
        for more in ([clip("a.mp4", frames=7)], [clip("a.mp4", frames=7), clip("b.mp4", frames=9)])
    )
    assert "a.mp4 has 7, so" in one and " have 7 at the least, so" in two
    (real,) = of("clip-too-short", job(datasets=[panel | {"sampling": "realtime"}]), facts([clip("a.mp4", frames=8)]))
    assert real.message.endswith("a.mp4 runs 0.50 s")


def test_what_a_flip_does_is_said_for_each_kind():
    def told(kind: str, **flips: bool) -> str:
        return of("flip-with-motion", job(kind, datasets=[flips]), facts())[0].message

    assert "left into right" in told("motion", flip_x=True) and "sides of the character" in told(
        "character", flip_x=True
    )
    assert "upside down" in told("motion", flip_y=True)


def test_the_smallest_count_that_is_still_a_clip():
    assert of("clip-too-short", job(), facts(clips(frames=5)))[0].set == {"datasets[0].num_frames": 5}
    assert of("one-frame-of-video", job(datasets=[{"num_frames": 1}]), facts(clips(frames=5)))[0].set == {
        "datasets[0].num_frames": 5
    }


def test_a_toy_model_leaves_the_frames_to_the_clips():
    known = facts(clips(frames=81), machine=machine(gpu(24)), model=tiny_model())
    assert of("speed-factor", job(), known)[0].set == {"datasets[0].num_frames": 81}


def test_realtime_needs_frames_over_16_seconds():
    panel = job(datasets=[{"sampling": "realtime"}]).datasets[0]
    assert not too_short(clip(frames=77, fps=30.0), panel)  # 2.567 s; 41 / 16 = 2.5625
    assert too_short(clip(frames=76, fps=30.0), panel)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"hello, this is text", "not an image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "the control image is"),
        ("truncated", "the control image is truncated: "),
        ("folder", "not a file"),
    ],
)
def test_control_images_that_do_not_open(tmp_path, picture, content, words):
    path = tmp_path / "c.png"
    if content == "truncated":
        whole = Image.effect_noise((64, 64), 50)
        whole.save(path)
        path.write_bytes(path.read_bytes()[:-200])
    elif content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    assert words in image_problem(path)
    made = job(sample={"prompts": [{"prompt": "a", "ctrl_img": "c.png"}]})
    (finding,) = of("sample-needs-ctrl-img", made, facts(base=tmp_path))
    assert str(path) in finding.message


@pytest.mark.parametrize(
    ("name", "words"),
    [("gone.png", "does not exist"), ("folder.png", "not a file"), ("text.png", "text file"), ("torn.mp4", "torn.mp4")],
)
def test_end_images_that_cannot_be_used(tmp_path, name, words):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("hello, this is text\n")
    whole = write_clip(tmp_path / "whole.mp4", frames=30)
    (tmp_path / "torn.mp4").write_bytes(whole.read_bytes()[:900])
    Image.new("RGB", (64, 48)).save(tmp_path / "c.png")
    prompt = {"prompt": "a", "ctrl_img": "c.png", "end_img": name}
    (finding,) = of("sample-end-img", job(sample={"prompts": [prompt]}), facts(base=tmp_path))
    assert words in finding.message and finding.message.startswith("the end ")
    for good in ("whole.mp4", "c.png", ""):
        assert not of("sample-end-img", job(sample={"prompts": [prompt | {"end_img": good}]}), facts(base=tmp_path))
    alone = job(sample={"prompts": [{"prompt": "a", "end_img": "c.png"}]})
    (finding,) = of("sample-needs-ctrl-img", alone, facts(base=tmp_path))
    assert finding.severity == "error"


def test_one_clip_that_is_too_small_has_a_small_side():
    tiny = clip(width=12, height=64)
    (one,) = of("clip-too-small", job(), facts([tiny, clip()]))
    (two,) = of("clip-too-small", job(), facts([tiny, tiny, clip()]))
    assert " has a side under" in one.message and " have a side under" in two.message


def test_control_images_are_judged_as_clips_are(tmp_path):
    """Also one whose name says nothing: it is opened by its content."""
    Image.new("F", (64, 48)).save(tmp_path / "float.tiff")
    assert "the control image holds pixels that have no plain colours" in image_problem(tmp_path / "float.tiff")
    Image.new("RGB", (64, 15)).save(tmp_path / "tiny.png")
    assert "the control image has a side under 16 pixels (64x15)" in image_problem(tmp_path / "tiny.png")
    Image.new("RGB", (64, 16)).save(tmp_path / "nameless", format="PNG")
    assert image_problem(tmp_path / "nameless") == ""
    pytest.importorskip("pillow_jxl")
    Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / "cut.jxl")
    (tmp_path / "cut.jxl").write_bytes((tmp_path / "cut.jxl").read_bytes()[:-500])
    assert image_problem(tmp_path / "cut.jxl").startswith("the control image is a damaged")
    assert "cut off before its end: " in image_problem(tmp_path / "cut.jxl")


def test_a_control_image_relative_to_the_job_file(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "c.jpg")
    made = job(sample={"prompts": [{"prompt": "a", "ctrl_img": "c.jpg"}]})
    assert of("sample-needs-ctrl-img", made, facts(base=tmp_path)) == []


def test_a_missing_control_image_is_offered_from_the_clips(picture):
    known = facts([*clips(), msgspec.structs.replace(image(), path=str(picture))])
    made = job(sample={"prompts": [PROMPT]})
    (finding,) = of("sample-needs-ctrl-img", made, known)
    assert finding.set == {"sample.prompts[0].ctrl_img": str(picture)}
    assert of("sample-needs-ctrl-img", with_value(made, *next(iter(finding.set.items()))), known) == []


def test_which_gpu_is_wrong_is_said():
    assert (
        of("gpu-unknown", job(job={"gpus": [3]}), facts(machine=machine(gpu(), gpu(index=1))))[0].message
        == "there is no GPU 3, only 0, 1"
    )
    lost = machine(gpu(error="The driver lost this GPU. Reboot"), gpu(index=1, error="Another trouble"))
    assert of("gpu-unknown", job(), facts(machine=lost))[0].message == "GPU 0: The driver lost this GPU. Reboot"


def test_who_holds_the_gpu_is_named():
    (finding,) = of("gpu-busy", job(), facts(machine=machine(gpu(vram_free=50 * 2**30, processes=[process(4711, 30)]))))
    assert "python (pid 4711) 30.0 GiB" in finding.message


UNKNOWN = Facts(base=Path("/"))
# no GPU, a base on the Hub
HARDLY_KNOWN = msgspec.structs.replace(
    UNKNOWN, machine=machine(), model=real_model(local=False, parameters=0, width=0, num_layers=0, ffn=0)
)


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda r: r.code)
@pytest.mark.parametrize(
    ("made", "known", "certain"),
    [
        (job(), UNKNOWN, {"sample-no-prompts"}),  # what the job says by itself
        (
            job(training={"batch_size": 4, "dop": True}, multistage={"switch_every": 1}),
            HARDLY_KNOWN,
            {"sample-no-prompts", "dop-needs-trigger", "dop-with-motion", "gpu-missing", "model-not-local"},
        ),
    ],
    ids=["nothing", "hardly anything"],
)
def test_rules_do_not_guess_what_is_not_known(rule, made: Job, known: Facts, certain: set[str]):
    """No machine, no clips, no base to look into: a rule says what is certain all the same, or nothing."""
    assert bool(list(rule(made, known))) == (rule.code in certain)


@pytest.mark.parametrize(
    "known",
    [masked(416, 416), masked(423, 416), masked(832, 832, "video", 41), masked(99, 99, shades=(0, 13))],
)
def test_a_mask_that_fits_is_no_finding(known: Facts):
    assert not [f for f in check_job(job(), known) if f.code.startswith("mask")]
    off = job(datasets=[{"mask": "off"}])
    assert not [f for f in check_job(off, masked(832, 468, shades=(0, 0))) if f.code.startswith("mask")]


def test_what_cannot_be_had_is_not_promised_besides():
    """A repository that does not exist is one error."""
    gone = problem("model-unavailable", "the Hub has no repository a/b, or it is private", "Check the id")
    known = facts(
        model=real_model(local=False), fetching=msgspec.structs.replace(fetching(0, problems=[gone]), fetches=[])
    )
    assert not [f for f in check_job(job(), known) if f.code == "model-not-local"]


def test_a_rule_that_crashes_is_not_hidden(monkeypatch):
    def crash(job: Job, facts: Facts):
        raise RuntimeError("a bug")
        yield

    crashing: Callable = crash
    monkeypatch.setitem(RULES, "stage-none", msgspec.structs.replace(RULES["stage-none"], find=crashing))
    with pytest.raises(RuntimeError, match="a bug"):
        check_job(job(), facts())


def test_the_speed_of_clips_is_the_middle_one_s_by_number_of_frames():
    speeds = clip_speeds(
        job(
            datasets=[
                {},
                {"num_frames": 81},
                {"num_frames": 33, "sampling": "realtime"},
                {"num_frames": 21, "regularization": True},
                {"num_frames": 1},
            ]
        ),
        facts([*clips(3, frames=82), clip(frames=400)], clips(frames=81), clips(), clips(), [image()]),
    )
    assert speeds == {41: 2.0, 81: 1.0}


@pytest.mark.parametrize(
    ("made", "known"),
    [
        (job(), facts(run=RunFolder(path="/proc/orbit", name="orbit", problem="no such file or directory"))),
        (job(), facts(run=RunFolder(path="/r/orbit", name="orbit", resume=OTHER, free_name="y"))),
        (job(), facts(machine=machine(gpu(), disk_gib=0.1))),
    ],
)
def test_another_place_is_named_for_the_command_and_for_the_wizard(made: Job, known: Facts):
    [finding] = [f for f in check_job(made, known) if f.severity == "error"]
    assert "--out" in finding.fix and "the job file" in finding.fix


def test_a_video_is_a_control_image_when_its_first_frame_decodes(tmp_path):
    assert image_problem(write_clip(tmp_path / "a.mp4", frames=9)) == ""
    cut = write_clip(tmp_path / "cut.mp4", frames=9)
    cut.write_bytes(cut.read_bytes()[:-500])
    assert image_problem(cut).startswith("the control video ") and str(cut) in image_problem(cut)
    (tmp_path / "text.mov").write_text("no video")
    assert image_problem(tmp_path / "text.mov").startswith("the control video ")


def four_cards() -> Facts:
    return facts(machine=machine(*(gpu(index=i) for i in range(4))))


@pytest.mark.parametrize(
    ("gpus", "accumulation", "per_clip"),
    [([0, 1, 2, 3], 2, 1), ([0, 1, 2], 3, 1), ([0, 1, 2, 3], 1, 2), ([0, 1, 2, 3], 1, 4)],
)
def test_any_number_of_cards_that_divides_the_work_trains_and_what_nobody_measured_is_said(
    gpus, accumulation, per_clip, monkeypatch
):
    monkeypatch.setattr(gpu_shares, "RECORDED", 2)
    monkeypatch.setattr(gpu_shares, "RECORDED_PER_CLIP", 1)
    made = job(job={"gpus": gpus, "gpus_per_clip": per_clip}, training={"gradient_accumulation": accumulation})
    assert [f for f in check_job(made, four_cards()) if f.severity == "error"] == []
    (said,) = of("more-gpus", made, four_cards())
    assert said.severity == "advice" and "not measured on cards yet" in said.message
    named = ",".join(map(str, gpus))
    shared = f" --per-clip {per_clip}" if per_clip > 1 else ""
    assert said.fix.endswith(f"python -m benchmarks.gpus_apart JOB.toml --gpus {named}{shared} --steps 20")


def test_what_was_measured_and_processes_on_the_cpu_are_not_spoken_of(monkeypatch: pytest.MonkeyPatch):
    known, three = four_cards(), job(job={"gpus": [0, 1, 2]})
    monkeypatch.setattr(gpu_shares, "RECORDED", 2)
    monkeypatch.setattr(gpu_shares, "RECORDED_PER_CLIP", 2)
    assert of("more-gpus", three, known)
    assert not of("more-gpus", three, facts(machine=machine(), model=tiny_model()))
    monkeypatch.setattr(gpu_shares, "RECORDED", 3)
    assert not of("more-gpus", three, known)
    shared = job(job={"gpus": [0, 1, 2], "gpus_per_clip": 3})
    assert of("more-gpus", shared, known)
    monkeypatch.setattr(gpu_shares, "RECORDED_PER_CLIP", 3)
    assert not of("more-gpus", shared, known)


def test_gpus_share_clips_only_where_they_divide_heads_and_are_fewer_than_tokens():
    three = job(job={"gpus": [0, 1, 2], "gpus_per_clip": 3}, multistage={"low_noise": False})
    (found,) = of("gpus-per-clip", three, four_cards())
    assert found.message == "3 GPUs cannot share the 40 heads of the attention evenly"
    assert cannot_share_clips(three, heads=3, fewest=2) == "3 GPUs cannot share a clip of 2 tokens"
    assert not cannot_share_clips(three, heads=3, fewest=3)

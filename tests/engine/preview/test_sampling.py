"""Previews against diffusers' own pipeline, bit for bit, through both experts with LoRAs on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image

from engine.encode.latents import PlainEncoder
from engine.preview.sampling import PreviewRequest, control_image, sample_latents, scheduler_for, to_frames
from presets.job.expert_schedule import EXPERTS
from presets.job.schema import SamplePanel
from tests.helpers.training.plain import attach, packed, streamed


@pytest.fixture(scope="module")
def pipe(tiny):
    pipe = WanImageToVideoPipeline.from_pretrained(tiny)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def executors(pipe):
    """Our executors over the same weights and LoRAs as the pipeline's experts."""
    models = dict(zip(EXPERTS, (pipe.transformer, pipe.transformer_2), strict=True))
    parameters = {e: attach(m, e, rank=4, alpha=4, seed=i, strong=True) for i, (e, m) in enumerate(models.items())}
    return {e: streamed(packed(m, e, parameters[e], scaling=1.0)) for e, m in models.items()}


@pytest.mark.parametrize("sampler", ["flowmatch", "unipc"])
@pytest.mark.parametrize(("guidance", "low"), [(1.0, None), (3.5, None), (3.5, 2.0)])
def test_latents_equal_the_pipeline_bit_for_bit(pipe, executors, tmp_path, sampler, guidance, low):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8))
    picture.save(tmp_path / "a.png")
    panel = SamplePanel(width=48, height=32, steps=6, guidance=guidance, guidance_low=low, sampler=sampler)
    pipe.scheduler = scheduler_for(sampler, 5.0)
    image = pipe.video_processor.preprocess(picture, height=32, width=48)
    theirs = pipe(
        image=picture,
        prompt="orbit",
        negative_prompt="blur",
        height=32,
        width=48,
        num_frames=5,
        num_inference_steps=6,
        guidance_scale=guidance,
        guidance_scale_2=low,
        generator=torch.Generator().manual_seed(7),
        output_type="latent",
    ).frames
    ours_image = control_image(tmp_path / "a.png", 48, 32)
    torch.testing.assert_close(ours_image, image[0], rtol=0, atol=1e-6)
    with torch.no_grad():
        text, negative = (pipe._get_t5_prompt_embeds([t]) for t in ("orbit", "blur"))
    seen = []
    shot = PreviewRequest(image[0], text, negative, 7, 5)
    ours = sampled(pipe, executors, shot, panel, progress=lambda done, total: seen.append((done, total)))
    assert torch.equal(ours, theirs)
    assert seen == [(i, 6) for i in range(7)]
    if guidance > 1:
        torch.testing.assert_close(sampled(pipe, executors, shot, panel, batched=True), theirs, rtol=1e-3, atol=1e-4)


def sampled(pipe, executors, shot, panel, *, batched: bool = False, progress=lambda done, total: None) -> torch.Tensor:
    return sample_latents(
        executors,
        PlainEncoder(pipe.vae),
        shot,
        panel,
        boundary=0.9,
        shift=5.0,
        batched_guidance=batched,
        progress=progress,
    )


class Counted:
    """An executor that notes the size of each batch it is asked."""

    def __init__(self, executor, asked: list[int]) -> None:
        self.executor, self.asked = executor, asked

    def predict(self, x, timestep, text, *, strength: float):
        self.asked.append(len(x))
        return self.executor.predict(x, timestep, text, strength=strength)


@pytest.mark.parametrize(("batched", "high", "low"), [(False, [1, 1], [1]), (True, [2], [1])])
def test_an_expert_without_guidance_is_asked_once(pipe, executors, batched, high, low):
    asked = {e: [] for e in EXPERTS}
    counted = {e: Counted(x, asked[e]) for e, x in executors.items()}
    shot = PreviewRequest(torch.zeros(3, 32, 32), torch.zeros(1, 512, 32), torch.ones(1, 512, 32), 1, 1)
    panel = SamplePanel(steps=4, guidance=3.5, guidance_low=1.0)
    sampled(pipe, counted, shot, panel, batched=batched)
    turns = {"high_noise": high, "low_noise": low}
    assert all(asked[e] and asked[e] == turns[e] * (len(asked[e]) // len(turns[e])) for e in EXPERTS)


def test_guidance_of_the_low_noise_expert_alone(pipe, executors):
    """The pipeline leaves it out when the high-noise expert has none; here it counts."""
    shot = PreviewRequest(torch.zeros(3, 32, 32), torch.zeros(1, 512, 32), torch.ones(1, 512, 32), 1, 5)
    plain, guided = (
        sampled(pipe, executors, shot, SamplePanel(steps=4, guidance=1.0, guidance_low=low)) for low in (None, 3.0)
    )
    assert not torch.equal(plain, guided)


def test_strength_zero_shows_the_base(pipe, executors):
    shots = [
        PreviewRequest(torch.zeros(3, 32, 32), torch.zeros(1, 512, 32), torch.ones(1, 512, 32), 1, 5, strength)
        for strength in (0.0, 0.5, 1.0)
    ]
    base, half, full = (sampled(pipe, executors, shot, SamplePanel(steps=2, guidance=1.0)) for shot in shots)
    bare = {e: streamed(replace(x.weights, lora=[{} for _ in x.weights.lora])) for e, x in executors.items()}
    assert torch.equal(base, sampled(pipe, bare, shots[1], SamplePanel(steps=2, guidance=1.0)))
    assert len({float(x.sum()) for x in (base, half, full)}) == 3


@pytest.mark.parametrize(
    ("size", "area", "expected"),
    [
        ((100, 100), (64, 64), (64, 64)),
        ((200, 100), (64, 64), (80, 48)),
        ((1080, 1920), (768, 768), (576, 1024)),
        ((33, 1000), (64, 64), (16, 256)),
    ],
)
def test_control_image_keeps_its_shape_inside_the_area(tmp_path, size, area, expected):
    Image.new("RGB", size, (255, 0, 0)).save(tmp_path / "a.png")
    image = control_image(tmp_path / "a.png", *area)
    width, height = image.shape[2], image.shape[1]
    assert width * height <= area[0] * area[1] and width % 16 == height % 16 == 0
    assert (width, height) == expected
    assert image[0].min() == 1.0 and image[1].max() == -1.0


def test_frames_of_latents_are_whole_bytes(pipe):
    frames = to_frames(pipe.vae, torch.randn(1, 16, 2, 4, 6))
    assert frames.shape == (5, 32, 48, 3) and frames.dtype == np.uint8

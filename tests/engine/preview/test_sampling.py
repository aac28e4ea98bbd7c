"""Previews against diffusers' own pipeline, bit for bit, through both experts with LoRAs on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image

from engine.data.frames import DecodeRequest, decode
from engine.encode.latents import PlainEncoder
from engine.preview.sampling import PreviewRequest, control_image, end_image, sample_latents, scheduler_for, to_frames
from presets.clips.geometry import Bucket
from presets.job.expert_schedule import EXPERTS
from presets.job.preview_settings import noise_levels, sampling_of
from presets.job.schema import SamplePanel
from tests.helpers.training.plain import attach, packed, streamed
from tests.helpers.training.preview_schedule import pipeline_scheduler
from tests.helpers.videos import write_clip


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
    pipe.scheduler = pipeline_scheduler(sampling_of(panel))
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


@pytest.mark.parametrize("sampler", ["flowmatch", "unipc"])
def test_a_preview_of_both_frames_equals_the_pipeline_with_last_image_bit_for_bit(pipe, executors, tmp_path, sampler):
    rng = np.random.default_rng(0)
    first, last = (Image.fromarray(rng.integers(0, 255, (32, 48, 3), dtype=np.uint8)) for _ in range(2))
    first.save(tmp_path / "first.png")
    last.save(tmp_path / "last.png")
    panel = SamplePanel(width=48, height=32, steps=3, guidance=1.0, sampler=sampler)
    pipe.scheduler = pipeline_scheduler(sampling_of(panel))
    theirs = pipe(
        image=first,
        last_image=last,
        prompt="orbit",
        height=32,
        width=48,
        num_frames=9,
        num_inference_steps=3,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(7),
        output_type="latent",
    ).frames
    start, end = (pipe.video_processor.preprocess(image, height=32, width=48)[0] for image in (first, last))
    torch.testing.assert_close(end_image(tmp_path / "last.png", start), end, rtol=0, atol=1e-6)
    with torch.no_grad():
        text = pipe._get_t5_prompt_embeds(["orbit"])
    shot = PreviewRequest(start, text, text, 7, 9, end_CHW=end)
    assert torch.equal(sampled(pipe, executors, shot, panel), theirs)
    assert not torch.allclose(sampled(pipe, executors, replace(shot, end_CHW=None), panel), theirs, atol=1e-2)


def test_an_end_image_takes_the_size_of_the_control_image_and_of_a_video_the_last_frame(tmp_path):
    start = torch.zeros(3, 32, 48)
    picture = np.zeros((96, 64, 3), np.uint8)
    picture[32:64] = 255  # what a crop to 3:2 around the centre keeps of it is white but for its rims
    Image.fromarray(picture).save(tmp_path / "tall.png")
    end = end_image(tmp_path / "tall.png", start)
    assert end.shape == (3, 32, 48) and (end[:, 8:-8] > 0.99).all()
    clip = write_clip(tmp_path / "c.mp4", frames=30, width=96, height=64)
    last = decode(DecodeRequest(str(clip), "video", Bucket(5, 64, 96), "uniform", 0.0, False, False))[-1]
    Image.fromarray(last).save(tmp_path / "last.png")
    assert torch.equal(end_image(clip, start), end_image(tmp_path / "last.png", start))
    assert not torch.equal(end_image(clip, start), control_image(clip, 48, 32))


def sampled(pipe, executors, shot, panel, *, batched: bool = False, progress=lambda done, total: None) -> torch.Tensor:
    return sample_latents(
        executors,
        PlainEncoder(pipe.vae),
        shot,
        sampling_of(panel),
        boundary=0.9,
        batched_guidance=batched,
        progress=progress,
    )


class Counted:
    """An executor that notes the size of each batch it is asked, and the timesteps."""

    def __init__(self, executor, asked: list[int], timesteps: list[float] | None = None) -> None:
        self.executor, self.asked, self.timesteps = executor, asked, timesteps if timesteps is not None else []

    def predict(self, x, timestep, text, *, strength: float):
        self.asked.append(len(x))
        self.timesteps.append(timestep[0].item())
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


@pytest.mark.parametrize("sampler", ["flowmatch", "unipc"])
def test_four_steps_meet_the_levels_that_accelerators_were_made_for(pipe, executors, sampler):
    """Two in each expert, and each at its exact timestep."""
    met = {e: [] for e in EXPERTS}
    counted = {e: Counted(x, [], met[e]) for e, x in executors.items()}
    shot = PreviewRequest(torch.zeros(3, 32, 32), torch.zeros(1, 512, 32), torch.ones(1, 512, 32), 1, 1)
    sampled(pipe, counted, shot, SamplePanel(preset="quick", sampler=sampler))
    exact = [1000.0, 937.5, float(np.float32(2500 / 3)), 625.0]
    assert met == {"high_noise": exact[:2], "low_noise": exact[2:]}


@pytest.mark.parametrize("steps", [1, 4, 8, 25, 40])
@pytest.mark.parametrize("sampler", ["flowmatch", "unipc"])
def test_a_scheduler_goes_through_the_levels_down_to_zero(sampler, steps):
    sampling = sampling_of(SamplePanel(sampler=sampler, steps=steps))
    scheduler = scheduler_for(sampling)
    levels = torch.tensor(noise_levels(sampling))
    assert torch.equal(scheduler.timesteps, torch.tensor([1000 * sigma for sigma in noise_levels(sampling)]))
    assert scheduler.sigmas[-1] == 0 and len(scheduler.sigmas) == steps + 1
    torch.testing.assert_close(scheduler.sigmas[:-1], levels, rtol=0, atol=1.1e-6 if sampler == "unipc" else 0)
    assert bool(torch.isfinite(walk(scheduler)).all())


def walk(scheduler) -> torch.Tensor:
    """A sample that a velocity of noise - 0 takes to 0."""
    noise = torch.randn(1, 16, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(noise, t, x, return_dict=False)[0]
    torch.testing.assert_close(x, torch.zeros_like(x), rtol=0, atol=1e-4)
    return x


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


def test_a_control_image_is_read_as_a_dataset_picture_is(tmp_path):
    """Transparency on white, 16 bits, EXIF orientation: each of them another picture where Pillow alone opens it."""
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert control_image(tmp_path / "clear.png", 64, 64).min() == 1.0
    Image.fromarray(np.full((64, 64), 257 * 100, np.uint16)).save(tmp_path / "wide.png")
    wide = control_image(tmp_path / "wide.png", 64, 64)
    assert torch.equal(wide, torch.full((3, 64, 64), 100.0) / 127.5 - 1)
    turned = Image.new("RGB", (96, 48), "black")
    turned.paste("white", (0, 0, 48, 48))
    exif = turned.getexif()
    exif[0x0112] = 6  # turn it 90 degrees clockwise to view it
    turned.save(tmp_path / "turned.png", exif=exif)
    image = control_image(tmp_path / "turned.png", 64, 64)
    assert image.shape == (3, 80, 48) and image[:, :30].min() == 1.0 and image[:, 50:].max() == -1.0


@pytest.mark.parametrize("rotation", [0, 90])
def test_a_video_as_control_image_is_its_first_frame_as_training_sees_it(tmp_path, rotation):
    path = write_clip(tmp_path / "a.mp4", frames=9, fps=16.0, width=96, height=64, rotation=rotation)
    image = control_image(path, 64, 96) if rotation else control_image(path, 96, 64)
    height, width = (96, 64) if rotation else (64, 96)
    frame = decode(DecodeRequest(str(path), "video", Bucket(5, height, width), "uniform", 0.0, False, False))[0]
    assert torch.equal(image, torch.from_numpy(frame).permute(2, 0, 1).float() / 127.5 - 1)
    assert not torch.equal(image, image.flip(-1))


def test_an_hdr_video_is_tone_mapped_where_its_dataset_is(tmp_path):
    options = {"x264-params": "transfer=arib-std-b67:colorprim=bt2020:colormatrix=bt2020nc"}
    path = write_clip(tmp_path / "a.mp4", frames=9, fps=16.0, width=96, height=64, options=options)
    plain, mapped = control_image(path, 96, 64), control_image(path, 96, 64, hdr="tonemap")
    request = DecodeRequest(str(path), "video", Bucket(1, 64, 96), "uniform", 0.0, False, False, hdr="tonemap")
    assert torch.equal(mapped, torch.from_numpy(decode(request)[0]).permute(2, 0, 1).float() / 127.5 - 1)
    assert (plain - mapped).abs().mean() > 0.02


def test_frames_of_latents_are_whole_bytes(pipe):
    frames = to_frames(pipe.vae, torch.randn(1, 16, 2, 4, 6))
    assert frames.shape == (5, 32, 48, 3) and frames.dtype == np.uint8

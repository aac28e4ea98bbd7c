"""Latents of images on disk: the same steps as without, nothing decoded twice, damage and want of room survived."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.dataset import build_dataset
from engine.data.frames import decode
from engine.data.loader import Batch, Loader
from engine.data.sampler import BatchSampler
from engine.encode import latent_cache
from engine.encode import text_embeddings as text_module
from engine.encode.latent_cache import LatentCache, latents_of
from engine.encode.latents import PlainEncoder, encode_pair, pixels
from engine.encode.tensor_cache import TensorCache
from engine.encode.vae_encoder import load_vae
from engine.run import run_job
from engine.weights.model_files import open_model_files
from presets.caches.tensor_cache import list_tensors
from presets.facts.gather import gather
from presets.job.toml_file import load_job
from tests.helpers.jobs import of_kind, write_job
from tests.helpers.training.placements import ON_CPU

CPU = torch.device("cpu")


def images(folder: Path, tiny: Path, *, count=3, cache=True, clips=0, training=None, **dataset) -> Path:
    job = write_job(
        folder,
        tiny,
        prompts=0,
        clips=clips,
        **{"steps": 4, "batch_size": 2, **(training or {})},
        dataset={"num_frames": 1, "cache_latents": cache, "flip_x": True, **dataset},
    )
    for i in range(count):
        picture = np.random.default_rng(i).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / "clips" / f"p{i}.png")
        (folder / "clips" / f"p{i}.txt").write_text(f"picture {i}")
    return job


class Cached:
    """What a run's start does with latents, over one cache folder."""

    def __init__(self, tiny: Path, folder: Path) -> None:
        self.source, self.folder, self.warnings = open_model_files(tiny), folder, []
        self.encoder = PlainEncoder(load_vae(self.source, ON_CPU))

    def fill(self, path: Path, *, vae="v", cap=2**30) -> tuple[LatentCache, int, BatchSampler]:
        self.warnings.clear()
        job = load_job(path)
        items = build_dataset(job, path.parent, gather(job, path.parent, out=path.parent, scenes=False).datasets)
        cache = LatentCache(
            job,
            items,
            TensorCache("latents", warn=self.warnings.append, folder=self.folder, cap=cap),
            ON_CPU,
            vae=vae,
            how="plain",
        )
        seen = []
        made = cache.fill(self.encoder, lambda done, total, what: seen.append((done, total)))
        assert [done for done, _ in seen] == sorted(done for done, _ in seen) and seen[-1][0] == seen[-1][1]
        return cache, made, BatchSampler(items, 2, 0)


@pytest.fixture
def cached(tiny, tmp_path):
    return Cached(tiny, tmp_path / "latents")


def test_steps_are_the_same_with_and_without(tiny, tmp_path, monkeypatch):
    """Both caches of a job, bit for bit: without, while they fill, from them alone; then neither text encoder nor VAE
    nor decoder has work."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ends, encoded, loaded, plain, plain_load = [], [], [], latent_cache.encode, text_module.load_text_encoder
    monkeypatch.setattr(latent_cache, "encode", lambda *a: (encoded.append(1), plain(*a))[1])
    monkeypatch.setattr(
        text_module, "load_text_encoder", lambda *a, **more: (loaded.append(1), plain_load(*a, **more))[1]
    )
    for name, cache in (("off", False), ("cold", True), ("warm", True)):
        encoded.clear()
        loaded.clear()
        if cache:
            monkeypatch.setattr("engine.data.loader.decode_masked", None)  # not to be called
        job = images(tmp_path / name, tiny, cache=cache, caption_dropout=0.5, training={"cache_text_embeddings": cache})
        assert run_job(job, None, resume=False, workers=0, device="cpu") == 0
        run = tmp_path / name / "runs/t"
        ends.append(
            ([d["loss"] for d in of_kind(run, "step")], (run / "t_high_noise.safetensors").read_bytes()[-1500:])
        )
        # off: 4 steps of 2 or 1 images; cold: 3 images, 2 ways round
        assert len(encoded) == {"off": 6, "cold": 6, "warm": 0}[name]
        assert len(loaded) == {"off": 1, "cold": 1, "warm": 0}[name]
    assert ends[0] == ends[1] == ends[2] and len(ends[0][0]) == 4
    phases = [
        d for d in of_kind(tmp_path / "warm/runs/t", "phase") if d["name"] == "caching" and d["text"] == "latents"
    ]
    assert phases and phases[-1]["done"] == phases[-1]["total"]


def test_latents_and_conditioning_of_an_image(tiny, tmp_path, cached):
    """What the cache gives is what the plain way makes of the same pixels."""
    cache, made, order = cached.fill(images(tmp_path, tiny))
    assert made == 6 and len(list_tensors(cached.folder)) == 6 and cached.warnings == []
    with Loader(order, 0, log=print, needless=cache.holds) as loader:
        batch = loader.batch(0)
    x0, conditioning = latents_of(cached.encoder, batch, cache, device=CPU)
    frames = np.stack([decode(d.request) for d in batch.draws])
    for i in range(len(frames)):
        theirs = encode_pair(cached.encoder, pixels(frames[i : i + 1], device=CPU))
        assert torch.equal(x0[i : i + 1], theirs[0]) and torch.equal(conditioning[i : i + 1], theirs[1])
    again = latents_of(cached.encoder, Batch(batch.draws, frames), None, device=CPU)
    assert torch.equal(again[0], x0) and torch.equal(again[1], conditioning)


def test_what_the_key_of_latents_holds(tiny, tmp_path, cached):
    path = images(tmp_path / "a", tiny, count=2)
    assert [cached.fill(path)[1], cached.fill(path)[1]] == [4, 0]
    assert cached.fill(path, vae="another")[1] == 4
    assert cached.fill(images(tmp_path / "b", tiny, count=2))[1] == 0  # the same pictures in another place
    assert cached.fill(images(tmp_path / "c", tiny, count=2, flip_y=True))[1] == 4  # two of four ways are there
    shutil.copy(tmp_path / "a/clips/p0.png", tmp_path / "a/clips/p1.png")
    assert cached.fill(path)[1] == 0  # now both are the first
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a/clips/p1.png")
    assert cached.fill(path)[1] == 2


def test_which_frames_are_kept(tiny, tmp_path, cached):
    """The first frame of a clip is; a frame at a random moment is not."""
    path = images(tmp_path / "a", tiny, count=0, clips=1)
    cache, made, order = cached.fill(path)
    assert made == 2 and all(cache.holds(draw) for draw in order.batch(0))
    cache, made, order = cached.fill(images(tmp_path / "b", tiny, count=0, clips=1, sampling="realtime"))
    assert made == 0 and not any(cache.holds(draw) for draw in order.batch(0)) and "realtime" in cached.warnings[0]
    cache, made, order = cached.fill(images(tmp_path / "c", tiny, count=1, cache=False))
    assert made == 0 and not any(cache.holds(draw) for draw in order.batch(0))


def test_damage_is_mended(tiny, tmp_path, cached):
    """At the start, and in the middle of a run."""
    path = images(tmp_path, tiny, count=1)
    cache, _, order = cached.fill(path)
    good = [cache.latents(cached.encoder, d) for d in order.batch(0)]
    for entry in list_tensors(cached.folder):
        content = bytearray(entry.path.read_bytes())
        content[-3] ^= 1
        entry.path.write_bytes(content)
    mended = [cache.latents(cached.encoder, d) for d in order.batch(0)]
    assert (
        all(torch.equal(a, b) for a, b in zip(good, mended, strict=True))
        and len(cached.warnings) == 1
        and "made again" in cached.warnings[0]
    )
    assert cached.fill(path)[1] == 1 and len(cached.warnings) == 1  # the other way round was not drawn
    assert cached.fill(path)[1] == 0 and cached.warnings == []
    list_tensors(cached.folder)[0].path.unlink()
    list_tensors(cached.folder)[0].path.unlink()
    assert torch.equal(cache.latents(cached.encoder, order.batch(0)[0]), good[0])


def test_room_is_made_by_age_and_never_from_this_run(tiny, tmp_path, cached):
    first = images(tmp_path / "a", tiny, count=2)
    cached.fill(first)
    size = list_tensors(cached.folder)[0].size
    for i, entry in enumerate(sorted(list_tensors(cached.folder), key=lambda e: e.path)):
        os.utime(entry.path, (1000.0 + i,) * 2)
    oldest = list_tensors(cached.folder)[-1].path
    other = images(tmp_path / "b", tiny, count=1, flip_x=False)
    Image.new("RGB", (64, 48), "red").save(tmp_path / "b/clips/p0.png")
    assert (
        cached.fill(other, cap=4 * size + 500)[1] == 1 and not oldest.exists() and len(list_tensors(cached.folder)) == 4
    )
    cache, _, order = cached.fill(images(tmp_path / "c", tiny, count=3, flip_x=False), cap=2 * size + 500)
    held = {d.item.id: cache.holds(d) for i in range(2) for d in order.batch(i)}
    assert sum(held.values()) == 2 and len(held) == 3 and len(cached.warnings) == 1 and "no room" in cached.warnings[0]
    with Loader(order, 1, log=print, needless=cache.holds) as loader:  # a batch of which one is held, and one is not
        for i in range(2):
            batch = loader.batch(i)
            whole = Batch(batch.draws, np.stack([decode(d.request) for d in batch.draws]))
            assert torch.equal(
                latents_of(cached.encoder, batch, cache, device=CPU)[0],
                latents_of(cached.encoder, whole, None, device=CPU)[0],
            )

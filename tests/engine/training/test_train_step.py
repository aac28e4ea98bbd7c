"""One optimizer step of a real run on the tiny base: which gradients the micro-batches leave in the LoRA."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from PIL import Image

from engine.data.dataset import build_dataset
from engine.data.loader import Batch, Loader
from engine.data.sampler import BatchSampler, turn_of
from engine.encode.latents import condition, encode, pixels
from engine.executor.block_executor import BlockExecutor
from engine.training.context import Learner, Run
from engine.training.objective import draws, noised
from engine.training.optimizer import Ema, build_optimizer, clip_gradients
from engine.training.prepare import all_texts
from engine.training.train_step import StepResult
from engine.training.trainer import optimizer_step
from tests.helpers.jobs import of_kind, write_job
from tests.helpers.training.bench import CPU, Bench
from tests.helpers.training.plain import attach, peft_layers
from tests.helpers.videos import write_clip

EXPERT = "high_noise"


class Steps(Bench):
    """Optimizer steps of the high-noise expert, without DOP unless asked for."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.parameters = self.run.learners[EXPERT].parameters

    def with_job(self, **values: object) -> Run:
        return self.run_of(self.changed(**{"training__dop": False} | values))

    def gradients(self, step: int = 0, **values: object) -> tuple[dict[str, torch.Tensor], StepResult]:
        return self.step(self.with_job(**values), EXPERT, step)


@pytest.fixture(scope="module")
def bench(tiny, tmp_path_factory) -> Iterator[Steps]:
    """One small frame, its latents cached: the VAE is not what is tested. DOP is on, so that the class prompts are
    known."""
    folder = tmp_path_factory.mktemp("bench")
    dataset = {"caption_dropout": 0.3, "num_frames": 1, "cache_latents": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield Steps(write_job(folder, tiny, clips=4, prompts=0, trigger="frung", dataset=dataset, dop=True))


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The relative distance of two sets of gradients, all tensors taken as one vector."""
    assert a.keys() == b.keys() and a
    one, other = (torch.cat([g[name].double().flatten() for name in sorted(g)]) for g in (a, b))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(
    ("objective", "batch_size"),
    [
        ({}, 1),
        ({}, 2),
        ({"training__dop": True}, 1),
        ({"training__blank_prompt_preservation": True}, 1),
        ({"training__loss": "huber", "advanced__differential_guidance": True}, 1),
    ],
)
def test_accumulation_gives_the_gradients_of_the_larger_batch(bench, objective, batch_size):
    large, one = bench.gradients(3, training__batch_size=4, **objective)
    small, many = bench.gradients(
        3, training__batch_size=batch_size, training__gradient_accumulation=4 // batch_size, **objective
    )
    assert many.clips == one.clips and many.timesteps == pytest.approx(one.timesteps, rel=1e-6)
    assert apart(small, large) < 1e-5
    assert {k: float(v) for k, v in many.losses.items()} == pytest.approx(
        {k: float(v) for k, v in one.losses.items()}, rel=1e-5
    )


def test_a_clip_counts_as_much_in_a_short_batch_as_in_a_full_one(bench):
    """An epoch of four clips in batches of three: a step of both batches is the mean over the four clips, not over the
    two batches."""
    large, one = bench.gradients(0, training__batch_size=4)
    run = bench.with_job(training__batch_size=3)
    assert sorted(len(run.loader.sampler.batch(i)) for i in (0, 1)) == [1, 3]
    uneven, many = bench.gradients(0, training__batch_size=3, training__gradient_accumulation=2)
    assert sorted(many.clips) == sorted(one.clips)
    assert apart(uneven, large) < 1e-5
    assert float(many.losses["main"]) == pytest.approx(float(one.losses["main"]), rel=1e-5)


def test_a_gradient_that_is_not_finite_never_reaches_the_weights_though_the_loss_is(bench, monkeypatch):
    """Neither weights nor running average nor the optimizer's state; the clips and timesteps are named, and the next
    step is a good one."""
    plain, learner = BlockExecutor.forward_backward, bench.run.learners[EXPERT]
    poisoned = bench.parameters["blocks.1.ffn.net.2.lora_A.weight"]

    def overflown(self, *args, **named):
        loss = plain(self, *args, **named)
        poisoned.grad[0, 0] = float("inf")
        assert loss.isfinite()
        return loss

    own = Learner(
        learner.parameters,
        build_optimizer(bench.job.training, list(learner.parameters.values())),
        Ema(0.5, learner.parameters),
    )
    run = replace(bench.with_job(), learners=bench.run.learners | {EXPERT: own})
    before = {name: p.data.clone() for name, p in own.parameters.items()}
    with monkeypatch.context() as patch:
        patch.setattr(BlockExecutor, "forward_backward", overflown)
        assert optimizer_step(run, 0)
    assert all(
        torch.equal(p, before[name]) and torch.equal(own.ema.average[name], before[name])
        for name, p in own.parameters.items()
    )
    assert not own.optimizer.state and all(p.grad is None for p in own.parameters.values())
    [said] = [d["message"] for d in of_kind(bench.folder, "finding") if d["code"] == "non-finite"]
    assert run.loader.sampler.batch(0)[0].item.id in said and "timesteps 9" in said
    assert optimizer_step(run, 1) and own.optimizer.state
    assert not any(torch.equal(p, before[name]) for name, p in own.parameters.items())
    for name, p in own.parameters.items():
        p.data.copy_(before[name])


def test_accumulation_trains_the_lora_of_the_larger_batch(bench):
    """Three steps of AdamW from the same start; the distance is of how far the LoRA went."""
    start = {name: p.data.clone() for name, p in bench.parameters.items()}
    moved = []
    for values in ({"training__batch_size": 4}, {"training__gradient_accumulation": 4}):
        optimizer = build_optimizer(bench.job.training, list(bench.parameters.values()))
        for step in range(3):
            for name, gradient in bench.gradients(step, **values)[0].items():
                bench.parameters[name].grad = gradient
            clip_gradients(list(bench.parameters.values()), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        moved.append({name: p.data - start[name] for name, p in bench.parameters.items()})
        for name, p in bench.parameters.items():
            p.data.copy_(start[name])
    assert apart(*moved) < 1e-3
    assert all(float(m.norm()) > 0 for m in moved[0].values())


def test_a_step_tried_again_is_the_same_to_the_bit(bench):
    first, again, other = (bench.gradients(step, training__batch_size=2)[0] for step in (1, 1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_a_dataset_of_weight_one_half_trains_the_lora_at_half_its_strength(bench):
    """W + 0.5 B A is W + B' A with B' = B / 2: the same prediction and loss; by the chain rule the same gradient for A,
    half of it for B."""
    half, passed = bench.gradients(datasets__weight=0.5)
    saved = {name: p.data.clone() for name, p in bench.parameters.items()}
    for name, p in bench.parameters.items():
        p.data.mul_(0.5 if "lora_B" in name else 1.0)
    halved, expected = bench.gradients(datasets__weight=1.0)
    for name, p in bench.parameters.items():
        p.data.copy_(saved[name])
    full = bench.gradients(datasets__weight=1.0)[1]
    assert float(passed.losses["main"]) == pytest.approx(float(expected.losses["main"]), rel=1e-6)
    assert float(passed.losses["main"]) != pytest.approx(float(full.losses["main"]), rel=1e-3)
    assert apart(half, {name: g * (0.5 if "lora_B" in name else 1.0) for name, g in halved.items()}) < 1e-5


def test_half_strength_is_half_the_lora_in_the_model_itself(bench):
    """The same against diffusers' own model and peft's own layers, whose scale is set to a half."""
    model = WanTransformer3DModel.from_pretrained(bench.job.model.path, subfolder="transformer")
    theirs = attach(model, EXPERT, rank=2, alpha=2, seed=0)
    for name, p in theirs.items():
        p.data.copy_(bench.parameters[name])
    for _, layer in peft_layers(model):
        layer.scaling["default"] *= 0.5
    generator = torch.Generator().manual_seed(1)
    x, t, text = (
        torch.randn(2, 36, 2, 6, 8, generator=generator),
        torch.tensor([950.0, 920.0]),
        bench.run.text(["", ""]),
    )
    with torch.no_grad():
        expected = model(x, t, text, return_dict=False)[0]
    executor = bench.run.experts.executors[EXPERT]
    torch.testing.assert_close(executor.predict(x, t, text, strength=0.5), expected, rtol=1e-4, atol=1e-5)
    assert (executor.predict(x, t, text, strength=1.0) - expected).abs().max() > 1e-3


def test_the_terms_of_a_step_have_their_own_texts_and_add_up(bench):
    """Each against a prediction made here: main with the caption, DOP with the class prompt, blank prompt with the
    empty one, both to the base."""
    run = bench.with_job(datasets__caption_dropout=0.0)
    batch = run.loader.batch(0)
    [draw] = batch.draws
    assert draw.caption.endswith(" frung")
    seen: dict[str, torch.Tensor] = {}
    executor = run.experts.executors[EXPERT]

    def expected(text: str, to: Callable[[torch.Tensor], torch.Tensor], strength: float = 1.0) -> float:
        answer = executor.predict(seen["x"], seen["t"], run.text([text]), strength=strength)
        return float(((answer.double() - to(answer).double()) ** 2).mean())

    x0, conditioning = latents(run, batch)
    noise, sigma = draws(run, EXPERT, batch, x0)
    x_t, target = noised(x0, noise, sigma)
    seen |= {"x": torch.cat([x_t, conditioning], dim=1), "t": sigma * 1000}
    main = expected(draw.caption, lambda _: target)

    def base(text: str) -> torch.Tensor:
        return executor.predict(seen["x"], seen["t"], run.text([text]), strength=0.0)

    for values, name, text in (
        (
            {"training__dop": True, "training__dop_multiplier": 3.0},
            "preservation",
            draw.caption.replace("frung", "person"),
        ),
        (
            {"training__blank_prompt_preservation": True, "training__blank_prompt_preservation_multiplier": 3.0},
            "blank_prompt",
            "",
        ),
    ):
        losses = bench.gradients(datasets__caption_dropout=0.0, **values)[1].losses
        assert {k: float(v) for k, v in losses.items()} == pytest.approx(
            {"main": main, name: 3 * expected(text, lambda _, text=text: base(text))}, rel=1e-4
        )


def latents(run: Run, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    video = pixels(batch.frames, device=CPU)
    return encode(run.encoder, video), condition(run.encoder, video[:, :, 0], batch.bucket.frames)


@pytest.mark.parametrize("objective", ["dop", "blank_prompt_preservation"])
def test_what_is_preserved_is_so_at_the_strength_of_the_dataset(bench, objective):
    """At weight 0.5 both terms see half of the LoRA: as with B / 2 at weight 1, gradients of B halved."""
    values = {f"training__{objective}": True, "datasets__caption_dropout": 0.0}
    half, passed = bench.gradients(datasets__weight=0.5, **values)
    saved = {name: p.data.clone() for name, p in bench.parameters.items()}
    for name, p in bench.parameters.items():
        p.data.mul_(0.5 if "lora_B" in name else 1.0)
    halved, expected = bench.gradients(datasets__weight=1.0, **values)
    for name, p in bench.parameters.items():
        p.data.copy_(saved[name])
    assert len(passed.losses) == 2 and {k: float(v) for k, v in passed.losses.items()} == pytest.approx(
        {k: float(v) for k, v in expected.losses.items()}, rel=1e-5
    )
    assert apart(half, {name: g * (0.5 if "lora_B" in name else 1.0) for name, g in halved.items()}) < 1e-5


def test_the_noise_of_a_visit_is_gaussian_and_its_own(bench):
    """Standard normal by its first four moments and its distribution function; no two visits share it, nor does its
    sigma follow from it."""
    run = bench.with_job(datasets__repeats=2)
    size, drawn = (1, 16, 1, 32, 32), []
    for index in range(16):
        batch = run.loader.batch(index)
        noise, sigma = draws(run, EXPERT, batch, torch.zeros(size))
        again, other = (
            draws(bench.with_job(datasets__repeats=2, job__seed=seed), EXPERT, batch, torch.zeros(size))[0]
            for seed in (run.job.job.seed, run.job.job.seed + 1)
        )
        assert (
            torch.equal(noise, again)
            and not torch.equal(noise, other)
            and noise.dtype == torch.float32
            and 0.9 <= float(sigma) <= 1
        )
        drawn.append(noise.double().flatten())
    each = torch.stack(drawn)
    crossed = each @ each.T / each.shape[1]
    assert float((crossed - torch.diag(crossed.diagonal())).abs().max()) < 5 / each.shape[1] ** 0.5, (
        "visits are independent"
    )
    x = each.flatten().sort().values
    n = len(x)
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):  # spread: variance of x^power
        assert float((x**power).mean()) == pytest.approx(moment, abs=4 * (spread / n) ** 0.5)
    assert float((torch.arange(1, n + 1) / n - 0.5 * (1 + torch.erf(x / 2**0.5))).abs().max()) < 1.63 / n**0.5


def test_what_a_dropped_caption_trains_is_not_also_held_fast(bench, monkeypatch):
    """Blank prompt preservation leaves the samples out whose caption was dropped: both losses would want the empty
    prompt."""
    batch = bench.with_job(training__batch_size=4).loader.sampler.batch
    mixed = next(i for i in range(50) if 0 < sum(not d.caption for d in batch(i)) < 4)
    predict, predicted = BlockExecutor.predict, []
    monkeypatch.setattr(
        BlockExecutor,
        "predict",
        lambda self, x, *args, **named: predicted.append(len(x)) or predict(self, x, *args, **named),
    )
    full, passed = bench.gradients(mixed, training__batch_size=4, training__blank_prompt_preservation=True)
    assert predicted == [sum(d.caption != "" for d in batch(mixed))], "nothing is predicted for the others"
    parts = [
        bench.gradients(4 * mixed + i, training__batch_size=1, training__blank_prompt_preservation=True)
        for i in range(4)
    ]
    assert [("blank_prompt" in p.losses) for _, p in parts] == [d.caption != "" for d in batch(mixed)]
    mean = sum(float(p.losses.get("blank_prompt", 0.0)) for _, p in parts) / 4
    assert float(passed.losses["blank_prompt"]) == pytest.approx(mean, rel=1e-5)
    assert apart(full, {name: sum(g[name] for g, _ in parts) / 4 for name in full}) < 1e-5
    every = bench.gradients(0, datasets__caption_dropout=1.0, training__blank_prompt_preservation=True)[1]
    assert every.losses.keys() == {"main"}


def test_dop_on_a_dropped_caption_holds_the_class_word_fast(bench):
    assert bench.gradients(0, datasets__caption_dropout=1.0, training__dop=True)[1].losses.keys() == {
        "main",
        "preservation",
    }


@pytest.fixture(scope="module")
def masked(tiny, tmp_path_factory) -> Iterator[Steps]:
    """Clips of five frames: one with a still for a mask, one with a video, one without."""
    folder = tmp_path_factory.mktemp("masked")
    path = write_job(folder, tiny, clips=3, prompts=0, trigger="frung", dataset={"caption_dropout": 0.0}, dop=True)
    half = np.zeros((48, 64, 3), np.uint8)
    half[:, :24] = 255
    Image.fromarray(half).save(folder / "clips" / "0.mask.png")
    write_clip(
        folder / "clips" / "1.mask.mkv", frames=12, codec="ffv1", picture=lambda i: half if i < 6 else 255 - half
    )
    yield Steps(path)


def masks_of(bench: Steps, **values: object) -> list[tuple[Batch, torch.Tensor | None]]:
    run = bench.with_job(**values)
    batches = [run.loader.batch(i) for i in range(run.loader.sampler.batches_per_epoch)]
    return [(b, None if b.masks is None else torch.from_numpy(b.masks).double().unsqueeze(1)) for b in batches]


@pytest.mark.parametrize("values", [{}, {"training__loss": "huber"}, {"datasets__last_frame": 1.0}], ids=str)
def test_the_loss_of_a_step_is_the_mean_under_the_masks_of_its_clips(masked, values):
    """Against the predictions of the model, in double precision; the last frame where it is asked for; and the
    preservation term is not masked."""
    run = masked.with_job(training__batch_size=3, **values)
    batch = run.loader.batch(0)
    assert batch.masks is not None
    mask = torch.from_numpy(batch.masks).double().unsqueeze(1)
    assert {tuple(sorted({round(float(v), 2) for v in m.flatten()})) for m in mask} >= {(0.1, 1.0), (1.0,)}
    video = pixels(batch.frames, device=CPU)
    x0, last = encode(run.encoder, video), {}
    if "datasets__last_frame" in values:
        last = {i: video[i, :, -1] for i in range(3)}
        assert all(d.last_frame for d in batch.draws)
    conditioning = condition(run.encoder, video[:, :, 0], 5, last)
    noise, sigma = draws(run, EXPERT, batch, x0)
    x_t, target = noised(x0, noise, sigma)
    executor = run.experts.executors[EXPERT]
    answer = executor.predict(torch.cat([x_t, conditioning], dim=1), sigma * 1000, run.text(batch.captions), strength=1)
    error = (answer.double() - target.double()).abs()
    each = torch.where(error < 1, 0.5 * error**2, error - 0.5) if "training__loss" in values else error**2
    losses = masked.gradients(training__batch_size=3, **values)[1].losses
    assert float(losses["main"]) == pytest.approx(float((each * mask).mean()), rel=1e-4)
    assert float(losses["main"]) < 0.9 * float(each.mean())
    with_dop = masked.gradients(training__batch_size=3, training__dop=True, **values)[1].losses
    bare = masked.gradients(training__batch_size=3, training__dop=True, datasets__mask="off", **values)[1].losses
    assert float(with_dop["main"]) == pytest.approx(float(losses["main"]), rel=1e-6)
    assert float(with_dop["preservation"]) == float(bare["preservation"])


def test_masked_clips_accumulate_to_the_gradients_of_the_larger_batch(masked):
    values = {"datasets__regularization": False, "datasets__last_frame": 0.5}
    large, one = masked.gradients(3, training__batch_size=3, **values)
    small, many = masked.gradients(3, training__gradient_accumulation=3, **values)
    assert sorted(many.clips) == sorted(one.clips)
    assert apart(small, large) < 1e-4
    assert float(many.losses["main"]) == pytest.approx(float(one.losses["main"]), rel=1e-5)


def test_a_minimum_of_one_is_no_mask_and_without_masks_a_batch_has_none(masked):
    unmasked = masked.gradients(training__batch_size=3, datasets__mask="off")[0]
    assert apart(masked.gradients(training__batch_size=3, datasets__mask_min=1.0)[0], unmasked) < 1e-5
    assert apart(masked.gradients(training__batch_size=3)[0], unmasked) > 0.05
    assert all(mask is None for _, mask in masks_of(masked, datasets__mask="off"))
    held = {b.ids[0]: mask is not None for b, mask in masks_of(masked)}
    assert held == {"0/0.mp4@64": True, "0/1.mp4@64": True, "0/2.mp4@64": False}


def test_flips_mirror_the_pixels_of_the_step(bench):
    plain = {
        d.key: f
        for b in (bench.with_job().loader.batch(i) for i in range(16))
        for d, f in zip(b.draws, b.frames, strict=True)
    }
    run = bench.with_job(datasets__flip_x=True, datasets__flip_y=True)
    kinds = set()
    for i in range(16):
        batch = run.loader.batch(i)
        for draw, frames in zip(batch.draws, batch.frames, strict=True):
            expected = plain[draw.key][:, :: -1 if draw.flip_y else 1, :: -1 if draw.flip_x else 1]
            assert (frames == expected).all()
            kinds.add((draw.flip_x, draw.flip_y))
    assert len(kinds) == 4


def test_each_dataset_has_its_own_settings_in_the_step(bench):
    """Frames, repeats and weight are of the dataset, and a batch is of one dataset where they differ."""
    second = msgspec.structs.replace(bench.job.datasets[0], num_frames=5, repeats=3, weight=0.25, regularization=True)
    job = msgspec.structs.replace(bench.job, datasets=[bench.job.datasets[0], second])
    items = build_dataset(job, bench.facts.base, [bench.facts.datasets[0]] * 2)
    assert len(items) == 4 + 4 * 3
    order = BatchSampler(items, 3, 0, turn_of(job))
    loader = Loader(order, 0, log=print)
    for i in range(order.batches_per_epoch):
        batch = loader.batch(i)
        [number] = {d.item.dataset for d in batch.draws}
        assert batch.frames.shape[1] == (1, 5)[number] and batch.weight == (1.0, 0.25)[number]


def test_the_texts_of_a_run_hold_what_its_terms_ask_for(bench):
    def texts(**values: object) -> set[str]:
        job = bench.changed(
            **{"datasets__caption_dropout": 0.0, "sample__negative": "blur", "training__dop": False} | values
        )
        return all_texts(job, bench.items(job))

    captions = {f"orbit number {i} frung" for i in range(4)}
    assert texts() == captions | {"blur"}
    assert texts(training__blank_prompt_preservation=True) == captions | {"blur", ""}
    assert texts(training__dop=True) == captions | {"blur", "person"} | {c.replace("frung", "person") for c in captions}

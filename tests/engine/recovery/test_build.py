"""An adapter built on a model of the real classes brings its quantized output nearer to the unquantized one."""

import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from engine.adapters.recovery_file import load_ara
from engine.demo.tiny_base import build_tiny
from engine.executor.block_executor import BlockExecutor
from engine.recovery.__main__ import main
from engine.recovery.build import Report, build_expert, correct
from engine.recovery.calibrate import CalibrationSample, Walk
from engine.recovery.expert_reader import ExpertReader, block_module
from engine.recovery.input_moments import Moment, moment_of
from engine.run import run_job
from engine.wan.block import LINEARS
from engine.wan.frozen_linear import unpack_weight
from engine.wan.quantize import INT4, pack
from engine.weights.model_files import open_model_files
from engine.weights.packed_blocks import pack_lora
from presets.files import identity
from presets.job.expert_schedule import EXPERTS
from presets.job.toml_file import load_job, save_job
from tests.engine.training.test_trainer import step_losses
from tests.helpers.jobs import clip, of_kind, write_image_job
from tests.helpers.training.placements import ON_CPU
from tests.helpers.training.plain import PlainExecutor, attach, packed, streamed


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("mid") / "base", heads=4, head_dim=32)


@pytest.fixture(scope="module")
def reader(base) -> ExpertReader:
    return ExpertReader(open_model_files(base), "high_noise")


def samples(count: int, *, seed: int) -> list[CalibrationSample]:
    g = torch.Generator().manual_seed(seed)
    return [
        CalibrationSample(
            torch.randn(1, 36, 2, 8, 8, generator=g),
            torch.tensor([900.0 + 10 * i]),
            torch.randn(1, 12, 32, generator=g),
            i == count - 1,
        )
        for i in range(count)
    ]


def build(reader, rank, *, given=(), full=False, report=None, grid="qint4"):
    return build_expert(
        reader,
        ON_CPU,
        rank=rank,
        grid=grid,
        samples=list(given),
        full=full,
        report=report or Report(),
        progress=lambda *_: None,
    )


def model_with(base: Path, loras=None, *, quantized: bool) -> WanTransformer3DModel:
    model = WanTransformer3DModel.from_pretrained(base, subfolder="transformer")
    for i, block in enumerate(model.blocks):
        for name in LINEARS:
            weight = block.get_submodule(name).weight.data
            if quantized:
                weight.copy_(unpack_weight(pack(weight, INT4, "qint4"), INT4, torch.float32))
            if loras:
                a, b = loras[i][name]
                weight += b.float() @ a.float()
    return model


@torch.no_grad()
def outputs(model: WanTransformer3DModel) -> torch.Tensor:
    return torch.cat([model(s.x_BCFhw, s.timestep_B, s.text_BSD, return_dict=False)[0] for s in samples(3, seed=9)])


def test_the_output_comes_nearer_to_the_unquantized_model(base, reader):
    exact = outputs(model_with(base, quantized=False))

    def error(loras=None) -> float:
        return float((outputs(model_with(base, loras, quantized=True)) - exact).norm() / exact.norm())

    without, plain = error(), error(build(reader, 16))
    weighted = error(build(reader, 16, given=samples(4, seed=1)))
    full = error(build(reader, 16, given=samples(4, seed=1), full=True))
    more = error(build(reader, 64))
    assert full < weighted < without and plain < 0.9 * without and full < 0.9 * plain and more < 0.7 * plain, (
        without,
        plain,
        weighted,
        full,
        more,
    )


def test_what_a_block_receives_is_what_the_whole_model_gives_it(base, reader):
    """The walk, block by block, against hooks in the complete diffusers model."""
    model, given = model_with(base, quantized=False), samples(2, seed=3)
    seen: dict = {}
    for i, block in enumerate(model.blocks):
        for name in LINEARS:
            block.get_submodule(name).register_forward_pre_hook(
                lambda _m, args, place=(i, name): seen.setdefault(place, []).append(args[0].flatten(0, -2))
            )
    with torch.no_grad():
        for s in given:
            model(s.x_BCFhw, s.timestep_B, s.text_BSD)
    walk = Walk(reader, given, ON_CPU, full=True)
    for i in range(reader.blocks):
        moments = walk.through(i, block_module(reader.config, reader.block(i), ON_CPU))
        for name in LINEARS:
            moment, (weighs, probes) = moment_of(moments, i, name), seen[i, name]
            torch.testing.assert_close(moment.mean, weighs.T @ weighs / len(weighs), rtol=1e-4, atol=1e-5)
            assert (
                moment.rows == len(weighs)
                and torch.isin(moment.probe[0][:, 0].round(decimals=3), probes[:, 0].round(decimals=3)).float().mean()
                > 0.95
            )


def test_the_report_says_what_is_true(reader):
    """Weight errors from the definition, output errors on the probe, for one linear."""
    weight = reader.block(0)["ffn.net.0.proj.weight"]
    moment = Moment(probe=[torch.randn(40, weight.shape[1])])
    moment.add(torch.randn(100, weight.shape[1]), full=False)
    (a, b), found = correct(weight, 8, grid="qint4", moment=moment, key="k")
    quantized = unpack_weight(pack(weight, INT4, "qint4"), INT4, torch.float32)
    x = moment.probe[0]
    for value, expected in (
        (found.weight, weight),
        (found.weight_before, weight - quantized),
        (found.weight_after, weight - quantized - b.float() @ a.float()),
        (found.output, x @ weight.T),
        (found.output_before, x @ (weight - quantized).T),
        (found.output_after, x @ (weight - quantized - b.float() @ a.float()).T),
    ):
        assert value == pytest.approx(float(expected.square().sum()), rel=1e-4)
    assert found.weight_after < found.weight_before and a.dtype is b.dtype is torch.bfloat16


def test_the_same_call_gives_the_same_bits(reader):
    torch.manual_seed(1)
    first = build(reader, 4, given=samples(3, seed=1))
    torch.manual_seed(2)
    again = build(reader, 4, given=samples(3, seed=1))
    assert all(
        torch.equal(x, y)
        for one, two in zip(first, again, strict=True)
        for n in LINEARS
        for x, y in zip(one[n], two[n], strict=True)
    )


@pytest.mark.parametrize(
    "options",
    [[], ["--clips", "CLIPS"], ["--clips", "CLIPS", "--full", "--expert", "low"], ["--precision", "uint4"]],
    ids=" ".join,
)
def test_the_command_from_a_folder_of_clips_to_a_file_that_loads(tiny, tmp_path, capsys, options):
    (tmp_path / "clips").mkdir()
    for i in range(3):
        shutil.copy(clip(i), tmp_path / f"clips/{i}.mp4")
        (tmp_path / f"clips/{i}.txt").write_text("orbit")
    out = tmp_path / "a.safetensors"
    assert (
        main(
            [
                str(tiny),
                "--rank",
                "4",
                "--out",
                str(out),
                *[o.replace("CLIPS", str(tmp_path / "clips")) for o in options],
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert str(out) in said and ("output error" in said) == ("--clips" in options)
    readers = {e: ExpertReader(open_model_files(tiny), e) for e in EXPERTS}
    identities = {e: identity(r._part.files, times=False) for e, r in readers.items()}
    ara = load_ara(out, config=readers["low_noise"].config, identities=identities)
    assert list(ara.experts) == (["low_noise"] if "low" in options else list(EXPERTS)) and ara.grid == (
        "uint4" if "uint4" in options else "qint4"
    )
    assert len(ara.experts["low_noise"]) == 2
    weight = readers["low_noise"].block(1)["attn2.to_v.weight"]
    a, b = ara.experts["low_noise"][1]["attn2.to_v"]
    lost = weight - unpack_weight(pack(weight, INT4, ara.grid), INT4, torch.float32)
    if "--clips" not in options:
        assert (lost - b.float() @ a.float()).norm() < lost.norm()


def test_the_uint4_grid_is_that_of_torchao():
    """Codes, scale and zero of a group by hand, and values that are multiples of the scale around an exact zero, in
    bf16."""
    w = torch.zeros(2, 128, dtype=torch.bfloat16)
    w[0, :4] = torch.tensor([-0.5, 1.0, 0.25, 0.04])
    w[0, 64:] = 0.5
    packed = pack(w, INT4, "uint4")
    scale = torch.tensor(1.5, dtype=torch.bfloat16) / 15  # in bf16: 0.1001
    assert packed[1].tolist()[0] == [float(scale), float(torch.tensor(0.5, dtype=torch.bfloat16) / 15)]
    value = unpack_weight(packed, INT4, torch.bfloat16)
    inverse = 1.0 / scale
    codes = ((w[0, :4] * inverse).round() + 5).clamp(0, 15)
    assert (
        torch.equal(value[0, :4], (codes - 5) * scale) and value[0, 4:64].abs().max() == 0 and value[1].abs().max() == 0
    )
    random = torch.randn(16, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    value, steps = (
        unpack_weight(pack(random, INT4, "uint4"), INT4, torch.float32).view(16, 4, 64),
        pack(random, INT4, "uint4")[1].unsqueeze(2),
    )
    multiples = value / steps
    torch.testing.assert_close(multiples, multiples.round(), rtol=0, atol=1e-4)
    assert (value - random.float().view(16, 4, 64)).abs().max() <= 0.52 * steps.max() + 0.02


def test_a_published_adapter_meets_the_weights_that_bf16_gives():
    """Whatever a base is stored in, the grid is that of its bf16 weights, bit for bit; ours is that of what is
    stored."""
    exact = torch.randn(16, 256, generator=torch.Generator().manual_seed(0)) * 0.02
    expected = pack(exact.bfloat16(), INT4, "uint4")
    assert all(map(torch.equal, pack(exact, INT4, "uint4-bf16"), expected))
    assert not all(map(torch.equal, pack(exact, INT4, "uint4"), expected))
    half = exact.half()
    assert all(map(torch.equal, pack(half, INT4, "uint4-bf16"), pack(half.bfloat16(), INT4, "uint4")))


@pytest.mark.parametrize("plan", [{}, {"chunk": 9}, {"resident": 2, "kept": 2}], ids=str)
def test_in_the_executor_it_is_part_of_the_frozen_model(base, reader, plan):
    """Prediction, loss and LoRA gradients are those of a model whose weights hold dequantized + B A; at any strength of
    the LoRA."""
    loras = [{name: (a.float(), b.float()) for name, (a, b) in lora.items()} for lora in build(reader, 8)]
    quantized, merged = model_with(base, quantized=False), model_with(base, loras, quantized=True)
    trained = attach(merged, "high_noise", rank=2, alpha=2, seed=1, strong=True)
    ours = streamed(
        replace(
            packed(quantized, "high_noise", trained, scaling=1.0, precision="qint4"),
            recovery=pack_lora(loras, pinned=False),
        ),
        precision="qint4",
        **plan,
    )
    theirs, (x, t, text, _) = PlainExecutor(merged), samples(1, seed=4)[0]

    def gradients(run) -> list[torch.Tensor]:
        for p in trained.values():
            p.grad = None
        value = run.forward_backward(x, t, text, lambda out: out.square().mean(), strength=0.5)
        return [value, *(p.grad.clone() for p in trained.values())]

    for a, b in zip(gradients(ours), gradients(theirs), strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()
    for strength in (0.0, 1.0):
        torch.testing.assert_close(
            ours.predict(x, t, text, strength=strength),
            theirs.predict(x, t, text, strength=strength),
            rtol=1e-4,
            atol=1e-5,
        )


def test_a_job_trains_on_what_the_command_built(tiny, tmp_path, monkeypatch):
    """Through the job file, the plan and the trainer: 4-bit weights and the adapter run together, and one without the
    other elsewhere."""
    out, seen = tmp_path / "a.safetensors", []
    assert main([str(tiny), "--rank", "8", "--out", str(out)]) == 0
    plain = BlockExecutor.__init__

    def noting(self, weights, resources) -> None:
        plain(self, weights, resources)
        seen.append((resources.plan.precision, weights.recovery is not None))

    monkeypatch.setattr(BlockExecutor, "__init__", noting)
    save_file(load_file(out), unnamed := tmp_path / "unnamed.safetensors")
    for name, panel in (
        ("with", {"transformer": "qint4+ara", "ara": str(out)}),
        ("unnamed", {"transformer": "qint4+ara", "ara": str(unnamed)}),
        ("without", {"transformer": "qint4"}),
    ):
        path = write_image_job(tmp_path / name, tiny, prompts=0, steps=1)
        save_job(replace_panel(load_job(path), **panel), path)
        assert run_job(path, None, resume=False, workers=0, device="cpu") == 0
    assert seen[0] == ("qint4", True) and seen[-1] == ("qint4", False) and len(set(seen)) == 2
    with_it, without = (step_losses(tmp_path / name / "runs" / "t") for name in ("with", "without"))
    warned = {
        name: [
            d["text"]
            for d in of_kind(tmp_path / name / "runs/t", "log")
            if "does not say which 4-bit weights" in d["text"]
        ]
        for name in ("with", "unnamed")
    }
    assert not warned["with"] and len(warned["unnamed"]) == 1
    assert with_it != without and with_it == pytest.approx(without, rel=0.2)


def replace_panel(job, **quantization):
    return msgspec.structs.replace(job, quantization=msgspec.structs.replace(job.quantization, **quantization))

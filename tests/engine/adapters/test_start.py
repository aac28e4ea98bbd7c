"""LoRAs that a job's own start from: the first prediction is that of the base with the start merged, whatever program
wrote it, at whatever rank and alpha it goes on."""

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from engine.adapters import lora
from engine.adapters.start import StartLora, load_start, take_over
from engine.runfolder import checkpoint
from engine.wan.block import LINEARS
from presets.base.model_facts import ModelFacts
from presets.errors import UserError
from presets.job.toml_file import job_to_dict
from tests.helpers.facts import job, tiny_model
from tests.helpers.training.plain import CPU, packed, small_expert, streamed

BLOCKS, RANK = 2, 3
G = torch.Generator().manual_seed(5)
X, TEXT, T = torch.randn(2, 36, 3, 4, 6, generator=G), torch.randn(2, 16, 32, generator=G), torch.tensor([900.0, 300.0])
MODEL: ModelFacts = tiny_model()
MODULES = [f"blocks.{i}.{name}" for i in range(BLOCKS) for name in LINEARS]


@pytest.fixture(scope="module")
def model() -> WanTransformer3DModel:
    return small_expert(BLOCKS).requires_grad_(False)


@pytest.fixture(scope="module")
def factors(model) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By module: what every file of these tests holds."""
    out = {}
    for name in MODULES:
        n, k = model.get_submodule(name).weight.shape
        out[name] = torch.randn(RANK, k, generator=G) * 0.3, torch.randn(n, RANK, generator=G) * 0.3
    return out


def wan(name: str) -> str:
    return f"diffusion_model.{lora.wan_name(name)}"


def kohya(name: str) -> str:
    return "lora_unet_" + lora.wan_name(name).replace(".", "_")


def diffusers(name: str) -> str:
    return f"transformer.{name}"


def peft(name: str) -> str:
    return f"base_model.model.{lora.wan_name(name)}"


def written(
    path: Path, factors, naming=wan, *, sides=("lora_A", "lora_B"), alpha: float | None = None, metadata=None
) -> Path:
    tensors = {}
    for name, pair in factors.items():
        tensors |= {f"{naming(name)}.{side}.weight": t.clone() for side, t in zip(sides, pair, strict=True)}
        if alpha is not None:
            tensors[f"{naming(name)}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path, metadata)
    return path


def fresh(model, *, rank: int, alpha: float) -> lora.LoraParameters:
    return lora.make(model.config, "high_noise", rank=rank, seed=1, blocks=BLOCKS, device=CPU)


def started(model, path: Path | str, *, rank: int = RANK, alpha: float = RANK) -> tuple[lora.LoraParameters, list[str]]:
    parameters = fresh(model, rank=rank, alpha=alpha)
    notes = take_over(load_start(str(path), "high_noise", Path("/"), MODEL), "high_noise", parameters, alpha / rank)
    return parameters, notes


@torch.no_grad()
def by_hand(model, factors, scale: float) -> torch.Tensor:
    merged = copy.deepcopy(model)
    for name, (a, b) in factors.items():
        merged.get_submodule(name).weight += scale * b @ a
    return merged(X, T, TEXT, return_dict=False)[0]


def require_same(model, parameters, expected: torch.Tensor, *, scaling: float) -> None:
    ours = streamed(packed(model, "high_noise", parameters, scaling=scaling)).predict(X, T, TEXT)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


DOWN_UP = ("lora_down", "lora_up")
FORMS = {  # naming, sides, alpha tensor, metadata, the scale that the file means
    "ours, ai-toolkit": (wan, ("lora_A", "lora_B"), None, {}, 1.0),
    "ours with alpha": (wan, ("lora_A", "lora_B"), 1.5, {}, 0.5),
    "musubi": (kohya, DOWN_UP, 1.0, {"ss_network_alpha": "7"}, 1 / RANK),
    "kohya with a whole alpha": (kohya, DOWN_UP, 2, {}, 2 / RANK),
    "kohya without alpha tensors": (kohya, DOWN_UP, None, {"ss_network_alpha": "1.5"}, 0.5),
    "musubi converted": (wan, ("lora_A", "lora_B"), None, {"ss_network_alpha": "1.5"}, 1.0),
    "diffusers": (diffusers, ("lora_A", "lora_B"), None, {}, 1.0),
    "diffusers' metadata": (
        diffusers,
        ("lora_A", "lora_B"),
        None,
        {"lora_adapter_metadata": json.dumps({"transformer.r": RANK, "transformer.lora_alpha": 6})},
        2.0,
    ),
    "peft": (peft, ("lora_A", "lora_B"), None, {}, 1.0),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_first_prediction_is_that_of_the_start(model, factors, tmp_path, form):
    naming, sides, alpha, metadata, scale = FORMS[form]
    path = written(tmp_path / "a.safetensors", factors, naming, sides=sides, alpha=alpha, metadata=metadata)
    expected = by_hand(model, factors, scale)
    assert (expected - by_hand(model, {}, 1)).norm() > 0.05 * expected.norm()
    parameters, notes = started(model, path)
    require_same(model, parameters, expected, scaling=1.0)
    assert notes == [f"the high noise LoRA starts from a.safetensors (rank {RANK}); the optimizer begins anew"]


@pytest.mark.parametrize(("rank", "alpha"), [(RANK, 12.0), (8, 8.0), (8, 2.0)])
def test_another_rank_and_alpha_change_nothing_at_first(model, factors, tmp_path, rank, alpha):
    path = written(tmp_path / "a.safetensors", factors, alpha=1.5)
    parameters, notes = started(model, path, rank=rank, alpha=alpha)
    require_same(model, parameters, by_hand(model, factors, 0.5), scaling=alpha / rank)
    plain = fresh(model, rank=rank, alpha=alpha)
    for name in MODULES:
        a, b = parameters[f"{name}.lora_A.weight"], parameters[f"{name}.lora_B.weight"]
        assert torch.equal(a[RANK:], plain[f"{name}.lora_A.weight"][RANK:]) and not b[:, RANK:].any()
    assert any("filled up to rank 8" in note for note in notes) == (rank > RANK)


def test_a_larger_rank_is_refused_with_the_rank_to_set(model, factors, tmp_path):
    path = written(tmp_path / "a.safetensors", factors)
    with pytest.raises(UserError, match=r"has rank 3 .* this job 2") as refused:
        started(model, path, rank=2)
    assert "target.rank = 3" in refused.value.fix


def test_modules_that_it_lacks_begin_fresh(model, factors, tmp_path):
    some = {name: pair for name, pair in factors.items() if "attn1" in name}
    parameters, notes = started(model, written(tmp_path / "a.safetensors", some))
    require_same(model, parameters, by_hand(model, some, 1.0), scaling=1.0)
    assert "lacks 12 of the modules that this job trains, such as blocks.0.attn2.to_k" in notes[1]


def test_a_peft_folder_with_its_settings_beside(model, factors, tmp_path):
    written(tmp_path / "adapter_model.safetensors", factors, wan)
    config = {"r": RANK, "lora_alpha": 6, "alpha_pattern": {"blocks.1.self_attn.q": 1.5}, "rank_pattern": {}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    parameters, _ = started(model, tmp_path)
    scaled = {n: (a, b * (0.5 if n == "blocks.1.attn1.to_q" else 2.0)) for n, (a, b) in factors.items()}
    require_same(model, parameters, by_hand(model, scaled, 1.0), scaling=1.0)
    assert torch.equal(
        started(model, tmp_path / "adapter_model.safetensors")[0]["blocks.0.attn1.to_q.lora_B.weight"],
        parameters["blocks.0.attn1.to_q.lora_B.weight"],
    )
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="damaged metadata"):
        started(model, tmp_path)


def run_with_checkpoint(tmp_path: Path, factors, *, ema: bool = False, step: int = 20) -> Path:
    """A run folder whose LoRA has rank 3 and alpha 6, as its trainer leaves it."""
    run = tmp_path / "runs" / "orbit"
    made = job(target={"rank": RANK, "alpha": 6.0}, training={"ema": ema}, multistage={"low_noise": False})
    tensors = {
        f"{name}.lora_{side}.weight": t.clone()
        for name, pair in factors.items()
        for side, t in zip("AB", pair, strict=True)
    }
    state = checkpoint.State(
        step=step,
        lora={"high_noise": tensors},
        optimizer={"high_noise": {}},
        ema={"high_noise": {k: t * 0.5 for k, t in tensors.items()}} if ema else {},
        meta={"job": job_to_dict(made)},
    )
    checkpoint.save(run, state)
    return run


@pytest.mark.parametrize(
    "place", ["", "checkpoints/step_000000020", "checkpoints/step_000000020/lora_high_noise.safetensors"]
)
def test_the_newest_checkpoint_of_a_run(model, factors, tmp_path, place):
    run_with_checkpoint(tmp_path, {n: (a * 9, b) for n, (a, b) in factors.items()}, step=10)
    run = run_with_checkpoint(tmp_path, factors)
    parameters, notes = started(model, run / place)
    require_same(model, parameters, by_hand(model, factors, 2.0), scaling=1.0)
    assert "orbit/step_000000020/lora_high_noise.safetensors (rank 3, step 20)" in notes[0]
    name = "blocks.0.attn1.to_q.lora_A.weight"
    assert torch.equal(parameters[name], factors["blocks.0.attn1.to_q"][0]), "fp32, as the checkpoint has it"


def test_of_a_run_with_an_average_the_average(model, factors, tmp_path):
    run = run_with_checkpoint(tmp_path, factors, ema=True)
    assert load_start(str(run), "high_noise", tmp_path, MODEL).path.name == "ema_high_noise.safetensors"


def test_what_a_run_lacks_or_lost_is_named(factors, tmp_path):
    run = run_with_checkpoint(tmp_path, factors)
    with pytest.raises(UserError, match="no LoRA of the low noise expert"):
        load_start(str(run), "low_noise", tmp_path, MODEL)
    file = run / "checkpoints/step_000000020/lora_high_noise.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-9] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(UserError, match="damaged"):
        load_start(str(run), "high_noise", tmp_path, MODEL)
    with pytest.raises(UserError, match="neither a LoRA file nor a run"):
        load_start(str(tmp_path), "high_noise", tmp_path, MODEL)


def near(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=G)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"diffusion_model.blocks.0.norm3.diff": near(32)}, "norm3.diff.*no LoRA on the blocks"),
        ({"diffusion_model.patch_embedding.diff": near(32, 16, 1, 2, 2)}, "patch_embedding.diff"),
        ({"diffusion_model.blocks.0.self_attn.q.dora_scale": near(32)}, "is a DoRA"),
        ({"diffusion_model.blocks.0.self_attn.k.lokr_w1": near(4, 4)}, "is a LoKr"),
        (
            {
                "diffusion_model.blocks.7.self_attn.q.lora_A.weight": near(2, 32),
                "diffusion_model.blocks.7.self_attn.q.lora_B.weight": near(32, 2),
            },
            "block 7.*another model",
        ),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused(model, factors, tmp_path, extra, words):
    path = written(tmp_path / "a.safetensors", factors)
    save_file(load_file(path) | extra, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=words):
        started(model, tmp_path / "b.safetensors")


def test_what_the_metadata_says_of_it(factors, tmp_path):
    path = written(tmp_path / "a.safetensors", factors, metadata={"wanlora.step": "500"})
    start: StartLora = load_start("a.safetensors", "high_noise", tmp_path, MODEL)
    assert start.about == {"file": "a.safetensors", "sha256": checkpoint.sha256(path), "rank": RANK, "step": 500}

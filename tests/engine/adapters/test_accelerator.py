"""Accelerator LoRAs: what they change is what merging them into the weights changes, everywhere; and then nothing is
left of them."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from engine.adapters import lora
from engine.adapters.accelerator import Accelerator, load_accelerator, load_accelerators
from engine.wan.block import LINEARS, NORMS
from engine.weights.base_model import find_base_model
from engine.weights.packed_blocks import pack_lora
from presets.base import lora_file
from presets.errors import UserError
from presets.job.toml_file import load_job
from presets.planner.preview_accelerators import Accelerated, accelerated_by
from tests.helpers.facts import job
from tests.helpers.jobs import write_job
from tests.helpers.training.plain import CPU, packed, small_expert, streamed

BLOCKS, WIDTH, FFN = 2, 32, 64
G = torch.Generator().manual_seed(3)
X, TEXT, T = torch.randn(2, 36, 3, 4, 6, generator=G), torch.randn(2, 16, 32, generator=G), torch.tensor([900.0, 300.0])


def near(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=G) * 0.2


def extracted(
    state: dict[str, torch.Tensor], wan: dict[str, str]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A file as they are extracted from distilled models (ranks of its own for each layer), and the differences it
    stands for, by diffusers names."""
    file: dict[str, torch.Tensor] = {}
    differences: dict[str, torch.Tensor] = {}
    for number, (name, tensor) in enumerate(state.items()):
        module, _, kind = name.rpartition(".")
        block, inside = (
            (module.split(".", 2)[1], module.split(".", 2)[2])
            if name.startswith("blocks.") and module.count(".") > 1
            else (None, module)
        )
        at = f"diffusion_model.{f'blocks.{block}.' if block else ''}{wan.get(inside, inside)}"
        difference = near(*tensor.shape)
        if name.endswith("scale_shift_table"):
            file[f"diffusion_model.{module}.diff_m" if module else "diffusion_model.head.diff_m"] = difference
        elif kind == "bias":
            file[f"{at}.diff_b"] = difference
        elif tensor.ndim == 1 or inside in ("patch_embedding", "proj_out"):
            file[f"{at}.diff"] = difference
        else:
            if number % 5 == 0:
                continue  # a layer that is left out
            rank = 2 + number % 3
            a, b = near(rank, tensor.shape[1]), near(tensor.shape[0], rank)
            file[f"{at}.lora_down.weight"], file[f"{at}.lora_up.weight"] = a, b
            difference = b @ a
            if number % 2:
                file[f"{at}.alpha"] = torch.tensor(3.0)
                difference = difference * 3.0 / rank
        differences[name] = difference
    return file, differences


WAN = {
    **{name: lora.wan_name(name) for name in (*LINEARS, *NORMS)},
    "norm2": "norm3",
    "proj_out": "head.head",
    "condition_embedder.time_proj": "time_projection.1",
    **{
        f"condition_embedder.{x}_embedder.linear_{n}": f"{x}_embedding.{i}"
        for x in ("text", "time")
        for n, i in ((1, 0), (2, 2))
    },
}


@pytest.fixture(scope="module")
def model() -> WanTransformer3DModel:
    made = small_expert(BLOCKS, ffn=FFN)
    return made.requires_grad_(False)


@pytest.fixture(scope="module")
def file(model, tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    tensors, differences = extracted(dict(model.state_dict()), WAN)
    tensors |= {
        "diffusion_model.blocks.0.cross_attn.k_img.diff_b": near(WIDTH),
        "diffusion_model.img_emb.proj.1.lora_up.weight": near(4, 2),
    }
    path = tmp_path_factory.mktemp("lora") / "high.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    return path, differences


def load(path: Path, model, *, strength: float = 1.0, dtype: torch.dtype = torch.float32):
    return load_accelerator(
        path, lora_file.read_lora(path), "high_noise", config=dict(model.config), strength=strength, dtype=dtype
    )


@torch.no_grad()
def merged(model, differences: dict[str, torch.Tensor], strength: float) -> WanTransformer3DModel:
    out = copy.deepcopy(model)
    for name, tensor in out.state_dict().items():
        if name in differences:
            tensor.add_(differences[name].view(tensor.shape), alpha=strength)
    return out


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("plan", [{"resident": BLOCKS, "activations": "device"}, {"slots": 1, "chunk": 5}], ids=str)
def test_every_change_of_a_file_acts_as_if_merged(model, file, plan, strength):
    path, differences = file
    accelerator = load(path, model, strength=strength)
    run = streamed(packed(model, "high_noise", {}, scaling=1.0), **plan)
    before = run.predict(X, T, TEXT)
    own = run.weights
    run.weights = replace(own, accelerator=accelerator.lora, shifts=accelerator.shifts)
    with accelerator.on(model), torch.no_grad():
        ours = run.predict(X, T, TEXT)
    run.weights = own
    with torch.no_grad():
        theirs = merged(model, differences, strength)(X, T, TEXT, return_dict=False)[0]
    assert (theirs - before).norm() > 0.1 * before.norm()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    assert torch.equal(run.predict(X, T, TEXT), before)


def test_it_stands_beside_the_trained_lora_and_a_recovery_adapter(model, file):
    """Each of the three by itself in its place: together they are the sum of their differences."""
    path, differences = file
    accelerator = load(path, model)
    parameters = lora.make(model.config, "high_noise", rank=2, seed=0, blocks=BLOCKS, device=CPU)
    for name, parameter in parameters.items():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.2, generator=G)
    shapes = {name: model.get_submodule(f"blocks.0.{name}").weight.shape for name in LINEARS}
    recovery = [{name: (near(3, k), near(n, 3)) for name, (n, k) in shapes.items()} for _ in range(BLOCKS)]
    weights = replace(
        packed(model, "high_noise", parameters, scaling=1.0),
        recovery=pack_lora(recovery, pinned=False),
        accelerator=accelerator.lora,
        shifts=accelerator.shifts,
    )
    with accelerator.on(model):
        ours = streamed(weights).predict(X, T, TEXT, strength=0.7)
    everything = dict(differences)
    for i, branch in enumerate(recovery):
        for name, (a, b) in branch.items():
            at = f"blocks.{i}.{name}"
            trained = parameters[f"{at}.lora_B.weight"] @ parameters[f"{at}.lora_A.weight"]
            everything[f"{at}.weight"] = everything.get(f"{at}.weight", 0) + b @ a + 0.7 * trained.detach()
    with torch.no_grad():
        theirs = merged(model, everything, 1.0)(X, T, TEXT, return_dict=False)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_all_blocks_have_one_layout_in_the_type_of_activations(model, file):
    accelerator = load(file[0], model, dtype=torch.bfloat16)
    shapes = [{name: (a.shape, b.shape, a.dtype) for name, (a, b) in lora.items()} for lora in accelerator.lora]
    assert shapes[0] == shapes[1] and {s[2] for s in shapes[0].values()} == {torch.bfloat16}


def test_training_under_the_same_weights_is_not_touched(model, file):
    """Gradients are those of before, to the bit, once the previews are made; hooks and table are removed even after an
    error."""
    parameters = lora.make(model.config, "high_noise", rank=2, seed=0, blocks=BLOCKS, device=CPU)
    run = streamed(packed(model, "high_noise", parameters, scaling=1.0))

    def gradients() -> list[torch.Tensor]:
        for parameter in parameters.values():
            parameter.grad = None
        run.forward_backward(X, T, TEXT, lambda out: out.square().mean())
        return [p.grad.clone() for p in parameters.values()]

    before, accelerator = gradients(), load(file[0], model)
    with pytest.raises(RuntimeError), accelerator.on(model):
        raise RuntimeError
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(), strict=True))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (
            {
                "blocks.0.self_attn.q.lora_A.weight": near(2, WIDTH),
                "blocks.0.self_attn.q.lora_B.weight": near(WIDTH, 2) * float("nan"),
            },
            "not finite",
        ),
        (
            {"time_projection.1.lora_A.weight": near(2, WIDTH), "time_projection.1.lora_B.weight": near(7, 2)},
            "does not fit condition_embedder.time_proj",
        ),
        ({"head.diff_m": near(1, 6, WIDTH)}, "does not fit scale_shift_table"),
        (
            {
                "transformer_2.blocks.0.self_attn.q.lora_A.weight": near(2, WIDTH),
                "transformer_2.blocks.0.self_attn.q.lora_B.weight": near(WIDTH, 2),
            },
            "changes nothing in the high noise",
        ),
    ],
)
def test_what_only_loading_can_see_is_refused(model, tmp_path, tensors, words):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=words):
        load(tmp_path / "a.safetensors", model)


@pytest.mark.parametrize("flat", [False, True], ids=["convolutions", "matrices"])
def test_factors_of_the_patch_embedding_act_as_if_merged(model, tmp_path, flat):
    a, b, bias, query = near(3, 36, 1, 2, 2), near(WIDTH, 3, 1, 1, 1), near(WIDTH), (near(2, WIDTH), near(WIDTH, 2))
    difference = torch.einsum("or,rcthw->octhw", b.flatten(1), a) * 6 / 3
    path = tmp_path / "a.safetensors"
    tensors = {
        "diffusion_model.patch_embedding.lora_down.weight": a.flatten(1) if flat else a,
        "diffusion_model.patch_embedding.lora_up.weight": b.flatten(1) if flat else b,
        "diffusion_model.patch_embedding.alpha": torch.tensor(6.0),
        "diffusion_model.patch_embedding.diff_b": bias,
        "diffusion_model.blocks.0.self_attn.q.lora_down.weight": query[0],
        "diffusion_model.blocks.0.self_attn.q.lora_up.weight": query[1],
    }
    save_file(tensors, path)
    accelerator = load(path, model, strength=0.5)
    run = streamed(replace(packed(model, "high_noise", {}, scaling=1.0), accelerator=accelerator.lora))
    with accelerator.on(model):
        ours = run.predict(X, T, TEXT)
    differences = {"patch_embedding.weight": difference, "patch_embedding.bias": bias}
    differences["blocks.0.attn1.to_q.weight"] = query[1] @ query[0]
    with torch.no_grad():
        theirs = merged(model, differences, 0.5)(X, T, TEXT, return_dict=False)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    made = job(sample={"prompts": [{"prompt": "p", "ctrl_img": "a.png"}], "accelerator": str(path)})
    found, (blocks, outer) = accelerated_by(made, tmp_path, BLOCKS), held(load(path, model, dtype=torch.bfloat16))
    assert (found.host, found.stem) == (2 * (blocks + outer), 2 * outer)


@pytest.mark.parametrize(
    "patch",
    [
        {"diff": near(WIDTH, 16, 1, 2, 2)},
        {"lora_A.weight": near(3, 16, 1, 2, 2), "lora_B.weight": near(WIDTH, 3, 1, 1, 1)},
        {"lora_down.weight": near(3, 64), "lora_up.weight": near(WIDTH, 3), "alpha": torch.tensor(3.0)},
    ],
    ids=["difference", "convolutions", "matrices"],
)
def test_what_is_for_sixteen_channels_is_left_out_and_said(tiny, tmp_path, patch):
    """And nothing else: the bias of the same file fits."""
    base = find_base_model(load_job(write_job(tmp_path, tiny)), tmp_path)
    tensors = {f"diffusion_model.patch_embedding.{kind}": tensor for kind, tensor in patch.items()}
    tensors["diffusion_model.patch_embedding.diff_b"] = near(WIDTH)
    tensors["diffusion_model.head.head.diff_b"] = near(64)
    save_file(tensors, tmp_path / "t2v.safetensors")
    made = job(sample={"prompts": [{"prompt": "p", "ctrl_img": "a.png"}], "accelerator": "t2v.safetensors"})
    found, (note,) = load_accelerators(made, tmp_path, base, torch.float32)
    for accelerator in found.values():
        assert {name: set(change) for name, change in accelerator.outer.items()} == {
            "patch_embedding": {"bias"},
            "proj_out": {"bias"},
        }
    assert note.startswith("t2v.safetensors: diffusion_model.patch_embedding.") and "16 channels" in note


def test_the_names_are_those_of_the_engine():
    assert set(LINEARS) == lora_file.LINEARS and {*NORMS, "norm2"} == lora_file.NORMS


def held(accelerator: Accelerator) -> tuple[int, int]:
    """Bytes (in the blocks, around them)."""

    def size(tensors) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    factors = size(t for lora in accelerator.lora for pair in lora.values() for t in pair)
    return factors + size(t for shifts in accelerator.shifts for t in shifts.values()), size(
        t for change in accelerator.outer.values() for kind, t in change.items()
    )


def test_the_planner_counts_what_an_accelerator_holds(model, file, tmp_path):
    """In host memory: of both experts, to the byte. On the device: the copies that two blocks have beside their own
    tensors, and what lies around them."""
    path, _ = file
    accelerator = load(path, model, dtype=torch.bfloat16)
    made = job(sample={"prompts": [{"prompt": "p", "ctrl_img": "a.png"}], "accelerator": str(path)})
    found = accelerated_by(made, tmp_path, BLOCKS)
    blocks, outer = held(accelerator)
    assert found.host == 2 * (blocks + outer) and found.stem == 2 * outer

    own = packed(model, "high_noise", {}, scaling=1.0)
    weights = replace(own, accelerator=accelerator.lora, shifts=accelerator.shifts)
    buffer, one = own.blocks.buffers[0], torch.ones(())
    copies = []
    for block in range(BLOCKS):
        there = weights.on_device(block, buffer.clone(), one, "none")
        shifted = [there.plain[name] for name in accelerator.shifts[block]]
        factors = [t for pair in there.recovery.values() for t in pair]
        copies.append(sum(t.numel() * t.element_size() for t in [*shifted, *factors]))
    assert found.block == max(copies)
    assert accelerated_by(made, None, BLOCKS) == accelerated_by(job(), tmp_path, BLOCKS) == Accelerated()
    one = job(sample={"prompts": [{"prompt": "p", "ctrl_img": "a.png"}], "accelerator_low": str(path)})
    assert accelerated_by(one, tmp_path, BLOCKS).host == blocks + outer
    path = tmp_path / "torn.safetensors"
    path.write_bytes(b"torn")
    assert (
        accelerated_by(
            job(sample={"prompts": [{"prompt": "p", "ctrl_img": "a.png"}], "accelerator": str(path)}), tmp_path, BLOCKS
        )
        == Accelerated()
    )

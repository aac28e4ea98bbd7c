"""LoRA files by their headers: every naming means the same, and what could not be applied is refused by name."""

import json
from pathlib import Path

import pytest

from presets.base.lora_file import OUTSIDE, TABLE, block_shapes, misfit, parse_key, read_lora
from presets.errors import UserError
from presets.rules.check import check_job
from tests.helpers.facts import facts, job, tiny_model

WIDTH, FFN = 32, 64
PAIR = {"self_attn.q.lora_down.weight": (4, WIDTH), "self_attn.q.lora_up.weight": (WIDTH, 4)}


def written(path: Path, tensors: dict[str, tuple[int, ...]]) -> Path:
    """A safetensors file of zeros in fp16, made by hand."""
    header, at = {}, 0
    for name, shape in tensors.items():
        size = 2
        for n in shape:
            size *= n
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(at))
    return path


@pytest.mark.parametrize(("key", "number", "block", "module", "kind"), [
    ("diffusion_model.blocks.3.self_attn.q.lora_down.weight", "", 3, "attn1.to_q", "A"),
    ("diffusion_model.blocks.3.cross_attn.o.lora_B.weight", "", 3, "attn2.to_out.0", "B"),
    ("diffusion_model.blocks.39.ffn.0.alpha", "", 39, "ffn.net.0.proj", "alpha"),
    ("transformer.blocks.3.attn1.to_q.lora_A.default.weight", "", 3, "attn1.to_q", "A"),
    ("transformer.transformer_2.blocks.3.ffn.2.lora_B.weight", "transformer_2", 3, "ffn.net.2", "B"),
    ("transformer_1.blocks.0.attn2.to_v.lora_A.weight", "transformer_1", 0, "attn2.to_v", "A"),
    ("base_model.model.blocks.1.self_attn.k.lora_A.weight", "", 1, "attn1.to_k", "A"),
    ("blocks.1.self_attn.k.lora_A.weight", "", 1, "attn1.to_k", "A"),
    ("lora_unet_blocks_12_cross_attn_k.lora_down.weight", "", 12, "attn2.to_k", "A"),
    ("lora_unet__blocks_12_ffn_2.lora_up.weight", "", 12, "ffn.net.2", "B"),
    ("lora_unet_blocks_22.self_attn.k.alpha", "", 22, "attn1.to_k", "alpha"),
    ("lora_unet_time_projection_1.lora_up.weight", "", OUTSIDE, "condition_embedder.time_proj", "B"),
    ("diffusion_model.blocks.3.self_attn.q.diff_b", "", 3, "attn1.to_q", "bias"),
    ("diffusion_model.blocks.3.self_attn.norm_q.diff", "", 3, "attn1.norm_q", "weight"),
    ("diffusion_model.blocks.3.norm3.diff", "", 3, "norm2", "weight"),
    ("diffusion_model.blocks.3.norm3.diff_b", "", 3, "norm2", "bias"),
    ("diffusion_model.blocks.3.diff_m", "", 3, TABLE, "weight"),
    ("diffusion_model.head.diff_m", "", OUTSIDE, TABLE, "weight"),
    ("diffusion_model.head.head.diff", "", OUTSIDE, "proj_out", "weight"),
    ("diffusion_model.text_embedding.2.lora_up.weight", "", OUTSIDE, "condition_embedder.text_embedder.linear_2", "B"),
    ("diffusion_model.time_embedding.0.diff_b", "", OUTSIDE, "condition_embedder.time_embedder.linear_1", "bias"),
    ("diffusion_model.patch_embedding.diff", "", OUTSIDE, "patch_embedding", "weight"),
    ("diffusion_model.patch_embedding.lora_A.weight", "", OUTSIDE, "patch_embedding", "A"),
])  # fmt: skip
def test_every_naming_is_known(key, number, block, module, kind):
    found = parse_key(key)
    assert found is not None and (found.number, found.block, found.module, found.kind, found.image) == (
        number,
        block,
        module,
        kind,
        False,
    )


@pytest.mark.parametrize(
    "key",
    [
        "diffusion_model.blocks.3.self_attn.q.diff",
        "diffusion_model.blocks.3.self_attn.q.dora_scale",
        "diffusion_model.blocks.3.self_attn.x.lora_A.weight",
        "diffusion_model.blocks.3.self_attn.norm_q.lora_A.weight",
        "diffusion_model.blocks.3.self_attn.norm_q.diff_b",
        "lora_te_q.lora_down.weight",
        "diffusion_model.blocks.3.self_attn.q.hada_w1_a",
        "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight",
        "step",
        "diffusion_model.head.head.diff_m",
        "diffusion_model.vace_blocks.0.self_attn.q.lora_A.weight",
    ],
)
def test_what_could_not_be_applied_is_not_known(key):
    assert parse_key(key) is None


@pytest.mark.parametrize(
    "key",
    [
        "diffusion_model.blocks.0.cross_attn.k_img.diff_b",
        "diffusion_model.blocks.0.cross_attn.norm_k_img.diff",
        "diffusion_model.img_emb.proj.1.lora_up.weight",
        "lora_unet_blocks_0_cross_attn_v_img.alpha",
    ],
)
def test_the_image_encoder_of_wan_2_1_is_told_apart(tmp_path, key):
    found = parse_key(key)
    assert found is not None and found.image
    file = read_lora(
        written(tmp_path / "a.safetensors", {f"diffusion_model.blocks.0.{k}": s for k, s in PAIR.items()} | {key: (4,)})
    )
    assert file.image == [key] and file.of("high_noise") == file.of("low_noise") != {}


def test_experts_by_number_and_by_diffusers_two_names(tmp_path):
    both = {f"{root}.blocks.0.{k}": s for root in ("transformer", "transformer_2") for k, s in PAIR.items()}
    file = read_lora(written(tmp_path / "a.safetensors", both))
    assert {e: file.of(e)[0, "attn1.to_q"]["A"] for e in ("high_noise", "low_noise")} == {
        "high_noise": "transformer.blocks.0.self_attn.q.lora_down.weight",
        "low_noise": "transformer_2.blocks.0.self_attn.q.lora_down.weight",
    }
    one = read_lora(written(tmp_path / "b.safetensors", {f"transformer_1.blocks.0.{k}": s for k, s in PAIR.items()}))
    assert one.of("high_noise") and not one.of("low_noise")


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "holds no tensor"),
        ({"diffusion_model.blocks.0.x.weird": (2,)}, "cannot be applied"),
        ({"diffusion_model.blocks.0.self_attn.q.lora_A.weight": (4, WIDTH)}, "lacks lora_B"),
        ({"diffusion_model.blocks.0.self_attn.q.alpha": ()}, "lacks lora_A"),
        ({"diffusion_model.img_emb.proj.1.diff_b": (4,)}, "changes nothing"),
        (
            {f"diffusion_model.blocks.0.{k}": s for k, s in PAIR.items()}
            | {"lora_unet_blocks_0_self_attn_q.lora_down.weight": (4, WIDTH)},
            "are the same",
        ),
        (
            {f"diffusion_model.{n}blocks.0.{k}": s for n in ("", "transformer_2.") for k, s in PAIR.items()},
            "names an expert in some",
        ),
    ],
)
def test_files_that_are_wrong(tmp_path, tensors, words):
    with pytest.raises(UserError, match=words):
        read_lora(written(tmp_path / "a.safetensors", tensors))


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "torn").write_bytes(
        written(tmp_path / "a", {f"blocks.0.{k}": s for k, s in PAIR.items()}).read_bytes()[:-9]
    )
    (tmp_path / "lfs").write_text("version https://git-lfs.github.com/spec/v1\n")
    for name, words in (("torn", "truncated"), ("lfs", "Git LFS"), (".", "directory"), ("gone", "no such file")):
        with pytest.raises(UserError, match=words):
            read_lora(tmp_path / name)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (
            {"blocks.0.self_attn.q.lora_A.weight": (4, 48), "blocks.0.self_attn.q.lora_B.weight": (WIDTH, 4)},
            "does not fit blocks.0.attn1.to_q",
        ),
        (
            {"blocks.0.self_attn.q.lora_A.weight": (4, WIDTH), "blocks.0.self_attn.q.lora_B.weight": (WIDTH, 3)},
            "different ranks",
        ),
        (
            {"blocks.2.self_attn.q.lora_A.weight": (4, WIDTH), "blocks.2.self_attn.q.lora_B.weight": (WIDTH, 4)},
            "has a block 2, and the model's last is 1",
        ),
        ({"blocks.0.ffn.0.diff_b": (WIDTH,)}, "does not fit"),
        ({"blocks.0.norm3.diff": (2,)}, "does not fit"),
        ({"blocks.0.diff_m": (5, WIDTH)}, "does not fit"),
        (
            {
                "blocks.0.diff_m": (1, 6, WIDTH),
                "blocks.1.diff_m": (6, WIDTH),
                "blocks.0.ffn.0.diff_b": (FFN,),
                "blocks.0.ffn.2.lora_A.weight": (2, FFN),
                "blocks.0.ffn.2.lora_B.weight": (WIDTH, 2),
            },
            "",
        ),
    ],
)
def test_shapes_are_compared_with_the_model_before_anything_is_loaded(tmp_path, tensors, words):
    path = written(tmp_path / "a.safetensors", tensors)
    file = read_lora(path)
    problem = misfit(file, file.of("low_noise"), block_shapes(WIDTH, FFN), 2)
    assert words in problem and bool(words) == bool(problem)
    made = job(
        sample={"accelerator": str(path), "steps": 4, "guidance": 1.0, "prompts": [{"prompt": "orbit", "ctrl_img": ""}]}
    )
    assert [f.code for f in check_job(made, facts(model=tiny_model())) if f.code.startswith("accelerator")] == (
        ["accelerator-unreadable"] if words else []
    )

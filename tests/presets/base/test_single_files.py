"""ComfyUI's folders as people have them: whoever named the files, wherever they lie, whatever lies beside them."""

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from presets.base import layouts, single_files
from presets.base.composition import ENCODER_REPO, VAE_REPO, NamedBase, compose
from presets.base.layouts import names_in
from presets.base.model_facts import read_model
from presets.base.single_files import expert_of, find_single_files, partner_key
from tests.presets.base.test_comfy_files import autoencoder, encoder, expert

KJ = "Wan2_2-I2V-A14B-{}_fp8_e4m3fn_scaled_KJ.safetensors"


def put(folder: Path, name: str, tensors: dict[str, np.ndarray] | None = None) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    save_file({"x": np.zeros(1)} if tensors is None else tensors, folder / name)
    return folder


def pair(folder: Path, name: str) -> Path:
    put(folder, name.format("HIGH"), expert())
    return put(folder, name.format("LOW"), expert())


def found(folder: Path, named: str | None = None) -> dict[str, str]:
    """Each part -> its file, or the repository that it comes from."""
    composed = compose(NamedBase(path=named or str(folder)), folder, cache=folder / "none")
    assert composed.problems == [], composed.problems
    return {p: place.spot.path if place.spot else place.repo for p, place in composed.places.items()}


def problems(folder: Path) -> str:
    said = read_model(NamedBase(path=str(folder)), Path("/"), cache=folder / "none").problems
    assert said and all(p.fix for p in said)
    return " / ".join(f"{p.message} [{p.fix}]" for p in said)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (KJ.format("HIGH"), "transformer"),
        (KJ.format("LOW"), "transformer_2"),
        ("wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors", "transformer"),
        ("wan2.2_i2v_low_noise_14B_Q8_0.gguf", "transformer_2"),
        ("Wan2.2-I2V-A14B-HighNoise-Q8_0.gguf", "transformer"),
        ("wan22-i2v-high-fp16.safetensors", "transformer"),
        ("wan2.2-i2v-a14b-low-noise.safetensors", "transformer_2"),
        ("wan22_i2v_H_v2.safetensors", "transformer"),
        ("wan22-i2v_LN.gguf", "transformer_2"),
        ("smoothMixWan22I2VT2V_i2vLow.safetensors", "transformer_2"),
        ("wan22-I2V_14B-HIGHv3.safetensors", "transformer"),
        ("LowNoise/wan2.2-Q8_0.gguf", "transformer_2"),
        ("wan22/high/wan2.2_i2v.safetensors", "transformer"),
        ("clip_l.safetensors", ""),
        ("wan_higher.safetensors", ""),
        ("wan_flow_shift.safetensors", ""),
        ("wan_lowvram.safetensors", ""),
        ("wan_low_vram.safetensors", ""),
        ("wan_high_low_merged.safetensors", ""),
        ("wan2.2_i2v.safetensors", ""),
    ],
)
def test_which_expert_a_name_means(name, part):
    assert expert_of(name) == part


def test_partners_are_named_alike():
    assert partner_key(KJ.format("HIGH")) == partner_key(f"deeper/{KJ.format('LOW')}")
    assert partner_key("Wan2.2-I2V-HighNoise-Q8_0.gguf") == partner_key("Wan2.2-I2V-LowNoise-Q8_0.gguf")
    assert partner_key("Wan2.2-I2V-HighNoise-Q8_0.gguf") != partner_key("Wan2.2-I2V-LowNoise-Q6_K.gguf")


def test_kijais_files_one_and_two_levels_deeper(tmp_path):
    for deep in ("", "I2V/", "diffusion_models/wan22/fp8/"):
        folder = pair(tmp_path / deep.replace("/", "_"), deep + KJ)
        put(folder, "Wan2_1_VAE_bf16.safetensors", autoencoder())
        facts = read_model(NamedBase(path=str(folder)), Path("/"), cache=tmp_path / "none")
        assert facts.problems == [] and facts.boundary_ratio == 0.9 and facts.in_channels == 36
        at = found(folder)
        assert (at["transformer"], at["transformer_2"]) == (deep + KJ.format("HIGH"), deep + KJ.format("LOW"))
        assert at["vae"] == "Wan2_1_VAE_bf16.safetensors" and at["text_encoder"] == ENCODER_REPO


OTHERS = (
    "diffusion_models/wan2.2_t2v_high_noise_14B_fp16.safetensors",
    "diffusion_models/wan2.2_t2v_low_noise_14B_fp16.safetensors",
    "diffusion_models/wan2.2_ti2v_5B_fp16.safetensors",
    "diffusion_models/hunyuan_high.safetensors",
    "diffusion_models/wan/Wan2.2-I2V-A14B-4steps-lora-rank64/high_noise_model.safetensors",
    "diffusion_models/wan2.2_i2v_A14b_high_noise_lightx2v_4step.safetensors",
    "diffusion_models/wan2.2_fun_control_low_noise_14B.safetensors",
    "text_encoders/clip_l.safetensors",
    "text_encoders/t5xxl_fp16.safetensors",
    "vae/ae.safetensors",
    "vae/sdxl_vae.safetensors",
    "vae/wan2.2_vae.safetensors",
    "vae/taew2_1.safetensors",
)


@pytest.mark.parametrize("around", ["", "models/"])
@pytest.mark.parametrize(("experts", "texts"), [("diffusion_models", "text_encoders"), ("unet", "clip")])
def test_a_whole_models_folder_with_hundreds_of_others(tmp_path, monkeypatch, around, experts, texts):
    pair(tmp_path, f"{around}{experts}/{KJ}")
    put(tmp_path, f"{around}{texts}/umt5_xxl_fp8_e4m3fn_scaled.safetensors", encoder())
    put(tmp_path, f"{around}vae/wan_2.1_vae.safetensors", autoencoder())
    for name in OTHERS:
        put(tmp_path, around + name)
    for i in range(300):
        put(tmp_path, f"{around}diffusion_models/flux/other_{i}.safetensors")
        put(tmp_path, f"{around}checkpoints/wan_i2v_high_{i}.safetensors")
        put(tmp_path, f"{around}loras/wan22_i2v_14b_high_{i}.safetensors")
    put(tmp_path, f"{around}{texts}/wan_i2v_14b_high.safetensors", expert())
    put(tmp_path, "custom_nodes/a/b/wan_i2v_14b_high_noise.safetensors", expert())
    opened, listed = [], []
    read, scan = single_files.read_tensors, os.scandir
    monkeypatch.setattr(single_files, "read_tensors", lambda path: opened.append(path) or read(path))
    monkeypatch.setattr(layouts.os, "scandir", lambda path: listed.append(path) or scan(path))
    assert found(tmp_path) == {
        "transformer": f"{around}{experts}/{KJ.format('HIGH')}",
        "transformer_2": f"{around}{experts}/{KJ.format('LOW')}",
        "vae": f"{around}vae/wan_2.1_vae.safetensors",
        "text_encoder": f"{around}{texts}/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
        "tokenizer": f"{around}{texts}/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    }
    assert len(opened) < 5 and len(listed) < 30


@pytest.mark.parametrize("named", ["diffusion_models", "unet", "unet/wan/2.2"])
def test_the_folder_of_experts_inside_comfyuis_models_folder(tmp_path, named):
    """Its neighbours have the other parts; nobody needs to name them, and nothing is downloaded."""
    pair(tmp_path, f"models/{named}/{KJ}")
    put(tmp_path, "models/vae/wan_2.1_vae.safetensors", autoencoder())
    put(
        tmp_path,
        "models/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
        encoder() | {"spiece_model": np.zeros(9)},
    )
    assert found(tmp_path, str(tmp_path / "models" / named)) == {
        "transformer": KJ.format("HIGH"),
        "transformer_2": KJ.format("LOW"),
        "vae": "vae/wan_2.1_vae.safetensors",
        "text_encoder": "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
        "tokenizer": "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    }


def test_a_huge_tree_is_not_looked_through(tmp_path, monkeypatch):
    for i in range(9):
        put(tmp_path, f"{i}/a/b/c/wan_high.safetensors")
        put(tmp_path, f"{i}/a/wan.safetensors")
    assert sum("/c/" in n for n in names_in(tmp_path)) == 0 and len(names_in(tmp_path)) == 9
    monkeypatch.setattr(layouts, "MOST_FOLDERS", 4)
    assert names_in(tmp_path) == frozenset()


def test_names_that_fit_several_are_told_apart_by_their_tensors(tmp_path):
    pair(tmp_path, "mine_wan_{}.safetensors")
    put(tmp_path, "style_wan_HIGH.safetensors", {"blocks.0.self_attn.q.down": np.zeros((4, 4))})  # an adapter
    put(tmp_path, "other_wan_LOW.safetensors", expert(16))
    put(tmp_path, "encoder_t5.safetensors", encoder())
    at = found(tmp_path)
    assert (at["transformer"], at["transformer_2"]) == ("mine_wan_HIGH.safetensors", "mine_wan_LOW.safetensors")
    assert at["text_encoder"] == ENCODER_REPO and at["vae"] == VAE_REPO  # its second layer has no bias: T5
    bias = {"encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": np.zeros((32, 4))}
    put(tmp_path, "encoder_t5.safetensors", encoder(**bias))
    assert found(tmp_path)["text_encoder"] == "encoder_t5.safetensors"


def test_several_precisions_are_named_and_one_can_be_chosen(tmp_path):
    models = tmp_path / "models"
    for precision in ("fp16", "fp8_scaled"):
        pair(models, f"diffusion_models/wan2.2_i2v_{{}}_14B_{precision}.safetensors")
    put(models, "vae/wan_2.1_vae.safetensors", autoencoder())
    said = problems(models)
    assert "fp16" in said and "fp8_scaled" in said and "Name one of the two files" in said
    for end in ("HIGH_14B_fp8_scaled", "LOW_14B_fp8_scaled"):
        file = models / "diffusion_models" / f"wan2.2_i2v_{end}.safetensors"
        at = found(models, str(file))
        assert at["transformer"] == "diffusion_models/wan2.2_i2v_HIGH_14B_fp8_scaled.safetensors"
        assert at["transformer_2"] == "diffusion_models/wan2.2_i2v_LOW_14B_fp8_scaled.safetensors"
        assert at["vae"] == "vae/wan_2.1_vae.safetensors"
    (models / "diffusion_models" / "wan2.2_i2v_HIGH_14B_fp8_scaled.safetensors").unlink()
    assert "no file for the high noise expert that is named like" in problems(file)


def test_a_file_in_a_folder_for_its_expert(tmp_path):
    for precision in ("Q8_0", "Q4_K_M"):
        put(tmp_path, f"HighNoise/Wan2.2-I2V-A14B-HighNoise-{precision}.safetensors", expert())
        put(tmp_path, f"LowNoise/Wan2.2-I2V-A14B-LowNoise-{precision}.safetensors", expert())
    at = found(tmp_path, str(tmp_path / "LowNoise" / "Wan2.2-I2V-A14B-LowNoise-Q8_0.safetensors"))
    assert at["transformer"] == "HighNoise/Wan2.2-I2V-A14B-HighNoise-Q8_0.safetensors"
    assert "single file" in problems(put(tmp_path, "wan.safetensors") / "wan.safetensors")


def test_several_in_a_repository_are_to_be_downloaded(tmp_path):
    names = [f"{side}Noise/Wan2.2-{side}Noise-{q}.gguf" for side in ("High", "Low") for q in ("Q8_0", "Q6_K")]
    composed = compose(NamedBase(path="o/gguf"), tmp_path, cache=tmp_path, listings={"o/gguf": names})
    assert "Download the two that are meant" in composed.problems[0].fix and "Q6_K" in composed.problems[0].message
    two = [n for n in names if "Q8_0" in n]
    composed = compose(NamedBase(path="o/gguf"), tmp_path, cache=tmp_path, listings={"o/gguf": two})
    assert composed.places["transformer_2"].spot.path == "LowNoise/Wan2.2-LowNoise-Q8_0.gguf"


def test_names_that_do_not_say_which_is_which(tmp_path):
    put(tmp_path, "wan_a.safetensors", expert())
    put(tmp_path, "wan_b.safetensors", expert())
    said = problems(tmp_path)
    assert "do not say which is which: wan_a.safetensors, wan_b.safetensors" in said and "high_noise" in said


def test_one_file_into_which_somebody_has_merged_both(tmp_path):
    put(tmp_path, "wan2.2-i2v-rapid-aio-v10.safetensors", expert(prefix="model.diffusion_model."))
    assert "wan2.2-i2v-rapid-aio-v10.safetensors, whose name does not say which; a base has two" in problems(tmp_path)


def test_a_link_in_a_circle_hides_nothing_beside_it(tmp_path):
    (tmp_path / "before").symlink_to("before")
    pair(tmp_path, KJ)
    (tmp_path / "after.safetensors").symlink_to("after.safetensors")  # whichever a folder lists first
    assert names_in(tmp_path) >= {KJ.format("HIGH"), KJ.format("LOW")}
    assert found(tmp_path)["transformer"] == KJ.format("HIGH")


def test_an_index_that_was_left_beside_single_files_belongs_to_none_of_them(tmp_path):
    put(tmp_path, "wan_2.1_vae.safetensors", autoencoder())
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')
    composed = compose(NamedBase(path=str(tmp_path), vae=str(tmp_path)), tmp_path, cache=tmp_path / "none")
    spot = composed.places["vae"].spot
    assert spot is not None and spot.path == "wan_2.1_vae.safetensors"


@pytest.mark.parametrize("width", [64, 192])
def test_a_width_that_no_wan_model_has_is_named_before_anything_is_loaded(tmp_path, width):
    other = {"patch_embedding.weight": np.zeros((width, 36, 1, 2, 2), np.float16)}
    for name in ("HIGH", "LOW"):
        put(tmp_path, KJ.format(name), expert() | other)
    assert "is no expert of Wan: it has no tensor patch_embedding.weight of the usual form" in problems(tmp_path)


def test_several_encoders_or_vaes_are_chosen_in_their_fields(tmp_path):
    pair(tmp_path, KJ)
    for name in ("umt5_xxl_fp16.safetensors", "umt5-xxl-enc-bf16.safetensors"):
        bias = {"encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": np.zeros((32, 4))}
        put(tmp_path, name, encoder(**bias))
    said = problems(tmp_path)
    assert "several files for the text encoder" in said and "model.text_encoder" in said


def test_a_tokenizer_beside_the_encoder(tmp_path):
    """Kijai's encoder holds none; in the folder of everybody's encoders one may be another model's."""
    pair(tmp_path, f"diffusion_models/{KJ}")
    tensors = {n: t for n, t in encoder().items() if n != "spiece_model"}
    put(tmp_path, "text_encoders/umt5-xxl-enc-bf16.safetensors", tensors)
    (tmp_path / "text_encoders" / "tokenizer.json").write_text("{}")
    assert found(tmp_path)["tokenizer"] == ENCODER_REPO
    (tmp_path / "text_encoders" / "google" / "umt5-xxl").mkdir(parents=True)
    (tmp_path / "text_encoders" / "google" / "umt5-xxl" / "spiece.model").write_bytes(b"")
    assert found(tmp_path)["tokenizer"] == "text_encoders/google/umt5-xxl"


NVFP4 = {
    "blocks.1.self_attn.q.weight": np.zeros((4, 2), np.uint8),
    "blocks.1.self_attn.q.weight_scale_2": np.ones((), np.float32),
}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (NVFP4, "nvfp4"),
        ({"blocks.1.self_attn.q.qweight": np.zeros((4, 2), np.int8)}, "SVDQuant"),
        ({"blocks.1.self_attn.q.weight": np.zeros((4, 2), np.int8)}, "int8 (blocks.1.self_attn.q.weight)"),
        ({"blocks.0.ffn.0.scale_weight": np.ones((4, 2), np.float32)}, "scale of the shape [4, 2]"),
    ],
)
def test_forms_that_are_not_read_are_named_before_anything_is_loaded(tmp_path, more, words):
    pair(tmp_path, KJ)
    put(tmp_path, KJ.format("LOW"), expert() | more)
    said = problems(tmp_path)
    assert words in said and KJ.format("LOW") in said and "fp8_scaled or GGUF (Q8_0)" in said


def test_only_names_of_a_listing(tmp_path):
    """The Hub's: nothing can be looked into."""
    single = find_single_files(["split_files/diffusion_models/wan2.2_i2v_high_noise_14B_fp16.safetensors", "a/b.json"])
    assert single.files == {"transformer": "split_files/diffusion_models/wan2.2_i2v_high_noise_14B_fp16.safetensors"}
    assert "transformer_2" in single.missing and single.names_experts

"""ComfyUI's files and diffusers folders give the same weights; what is wrong with files is told by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import load_file, save_file
from transformers import UMT5EncoderModel

from engine.demo.tiny_base import build_tiny
from engine.encode.tokenizer import load_tokenizer
from engine.encode.umt5 import load_text_encoder
from engine.encode.vae_encoder import load_vae
from engine.wan.frozen_linear import unpack_weight
from engine.weights.load_expert import load_blocks, load_outer_modules, open_expert
from engine.weights.model_files import open_model_files
from presets.base.layouts import EXPERT_PART
from presets.errors import UserError
from presets.files import identity
from presets.job.expert_schedule import EXPERTS
from tests.helpers.comfy_files import expert_name, vae_name, write_expert, write_text_encoder, write_vae
from tests.helpers.training.placements import ON_CPU

FILES = {"high_noise": "wan2.2_i2v_high_noise_14B.safetensors", "low_noise": "wan2.2_i2v_low_noise_14B.safetensors"}


def quiet(*_: object) -> None:
    pass


def blocks(source, expert, precision="none"):
    return load_blocks(source, expert, precision, ON_CPU, progress=quiet)


def real_vae() -> AutoencoderKLWan:
    """The real VAE's structure, narrow."""
    torch.manual_seed(5)
    return AutoencoderKLWan(base_dim=4)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks of one head of the real size."""
    return build_tiny(tmp_path_factory.mktemp("base") / "base", heads=1, head_dim=128)


@pytest.fixture(scope="session", params=["bf16", "fp16", "fp8_scaled", "fp8_rows"])
def comfy(request, base, tmp_path_factory):
    """(folder, fp32 weights of each part by diffusers' names)."""
    folder = tmp_path_factory.mktemp(request.param)
    prefix = "model.diffusion_model." if request.param in ("fp16", "fp8_rows") else ""
    held = {e: write_expert(folder / FILES[e], base / EXPERT_PART[e], request.param, prefix=prefix) for e in EXPERTS}
    held["text_encoder"] = write_text_encoder(folder / "umt5_xxl.safetensors", base / "text_encoder", request.param)
    write_vae(folder / "wan_2.1_vae.safetensors", real_vae().state_dict())
    return folder, held


@pytest.mark.parametrize("expert", EXPERTS)
def test_experts_of_comfyui(comfy, expert):
    folder, held = comfy
    source = open_model_files(folder)
    outer = load_outer_modules(source, expert, ON_CPU).state_dict()
    assert outer and all(torch.equal(t, held[expert][name]) for name, t in outer.items())
    buffers, layout = blocks(source, expert)
    names = set(outer)
    for i, buffer in enumerate(buffers):
        weights, plain = layout.views(buffer)
        for name, t in [(f"{k}.weight", w) for k, (w,) in weights.items()] + list(plain.items()):
            assert torch.equal(t, held[expert][f"blocks.{i}.{name}"]), name
            names.add(f"blocks.{i}.{name}")
    assert names == set(held[expert])


@pytest.mark.parametrize("precision", ["float8", "qfloat8", "qint8"])
def test_stored_float8_is_not_rounded_twice(base, tmp_path, precision):
    """Per-tensor e4m3 is taken over exactly into e4m3; into another precision it is requantized."""
    held = write_expert(tmp_path / FILES["high_noise"], base / "transformer", "fp8_scaled")
    source = open_model_files(complete(tmp_path))
    buffers, layout = blocks(source, "high_noise", precision)
    for name, packed in layout.views(buffers[1])[0].items():
        exact, ours = held[f"blocks.1.{name}.weight"], unpack_weight(packed, precision, torch.float32)
        assert torch.equal(ours, exact) is (precision != "qint8"), name
        assert (ours - exact).norm() < 0.02 * exact.norm()


def complete(folder: Path) -> Path:
    """Let the other three files be there, whatever they hold."""
    for name in (*FILES.values(), "umt5_xxl.safetensors", "wan_2.1_vae.safetensors"):
        if not (folder / name).exists():
            save_file({"x": torch.zeros(1)}, folder / name)
    return folder


def test_text_encoder_of_comfyui(comfy, base):
    folder, held = comfy
    ours = load_text_encoder(open_model_files(folder), ON_CPU)
    plain = UMT5EncoderModel.from_pretrained(base / "text_encoder", dtype=torch.float32)
    plain.load_state_dict(held["text_encoder"], strict=False)
    ids, mask = torch.tensor([[5, 9, 1, 0]]), torch.tensor([[1, 1, 1, 0]])
    with torch.no_grad():
        assert torch.equal(ours(ids, mask).last_hidden_state, plain(ids, mask).last_hidden_state)


def test_tokenizer_of_comfyui(comfy, base):
    import sentencepiece

    source = open_model_files(comfy[0])
    ids, mask = load_tokenizer(source, length=40)("orbit 3 around the subject")
    pieces = sentencepiece.SentencePieceProcessor(model_proto=source.spiece_model())
    count = int(mask.sum())
    assert (
        ids.shape == mask.shape == (1, 40)
        and ids[0, count - 1] == 1
        and not ids[0, count:].any()
        and mask[0, :count].all()
    )
    assert pieces.decode(ids[0, : count - 1].tolist()) == "orbit 3 around the subject"
    ids, mask = load_tokenizer(source, length=4)("orbit 3 around the subject")
    assert ids[0, 3] == 1 and mask.sum() == 4
    ids, mask = load_tokenizer(open_model_files(base), length=16)("orbit the subject")
    assert ids.shape == (1, 16) and ids[0, int(mask.sum()) - 1] == 1


def test_vae_of_comfyui(comfy):
    ours, plain = load_vae(open_model_files(comfy[0]), ON_CPU), real_vae()
    assert ours.config.base_dim == 4 and not ours.training
    state = ours.state_dict()
    assert all(torch.equal(state[name], t) for name, t in plain.state_dict().items())


def test_parts_of_a_diffusers_folder(tiny):
    source = open_model_files(tiny)
    assert source.spiece_model() is None
    vae, plain = (
        load_vae(source, ON_CPU),
        load_file(tiny / "vae" / "diffusion_pytorch_model.safetensors"),
    )
    assert all(torch.equal(t, plain[name]) for name, t in vae.state_dict().items())
    assert load_text_encoder(source, ON_CPU).shared.weight.shape[1] == 32


def test_our_names_are_those_of_the_real_files(base):
    """The helper's names, checked against some known ones, so that both directions are not wrong together."""
    names = {expert_name(n) for n in load_file(base / "transformer" / "diffusion_pytorch_model.safetensors")}
    assert {
        "patch_embedding.weight",
        "text_embedding.2.bias",
        "time_embedding.0.weight",
        "time_projection.1.weight",
        "head.head.weight",
        "head.modulation",
        "blocks.0.modulation",
        "blocks.1.self_attn.norm_q.weight",
        "blocks.0.cross_attn.o.bias",
        "blocks.0.norm3.weight",
        "blocks.0.ffn.0.weight",
        "blocks.0.ffn.2.bias",
    } <= names
    assert "norm2" in convert_wan_transformer_to_diffusers({"blocks.0.norm3.weight": 0}).popitem()[0]
    vae = {vae_name(n) for n in real_vae().state_dict()}
    assert {
        "conv1.weight",
        "conv2.bias",
        "encoder.conv1.weight",
        "decoder.head.2.weight",
        "encoder.downsamples.3.shortcut.weight",
        "decoder.upsamples.7.time_conv.weight",
        "decoder.middle.1.to_qkv.weight",
        "encoder.middle.2.residual.6.bias",
        "decoder.upsamples.4.shortcut.bias",
        "decoder.upsamples.14.residual.0.gamma",
    } <= vae


def edit(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def said(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert error.value.fix
    return str(error.value)


@pytest.fixture
def copy(base, tmp_path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "copy"))


def test_what_is_wrong_with_an_expert_is_named(copy):
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    good = file.read_bytes()
    edit(file, lambda t: t.pop("blocks.1.attn2.to_k.bias"))
    assert "blocks.1.attn2.to_k.bias is missing" in said(lambda: open_expert(open_model_files(copy), "high_noise"))
    file.write_bytes(good)
    edit(file, lambda t: t.update({"blocks.1.ffn.net.2.weight": torch.zeros(3, 3)}))
    assert "blocks.1.ffn.net.2.weight has the shape [3, 3], not [128, 256]" in said(
        lambda: blocks(open_model_files(copy), "high_noise")
    )
    edit(file, lambda t: t.update({"blocks.1.ffn.net.2.weight": torch.zeros(128, 256, dtype=torch.int8)}))
    assert "int8 (blocks.1.ffn.net.2.weight), which is not read" in said(
        lambda: blocks(open_model_files(copy), "high_noise")
    )
    file.write_bytes(good)
    edit(file, lambda t: t.update({"blocks.0.attn2.add_k_proj.weight": torch.zeros(3)}))
    assert "add_k_proj.weight does not belong" in said(
        lambda: load_outer_modules(open_model_files(copy), "high_noise", ON_CPU)
    )
    file.write_bytes(good[:-100])
    assert "truncated" in said(lambda: open_expert(open_model_files(copy), "high_noise"))
    file.unlink()
    assert "no such file" in said(lambda: open_expert(open_model_files(copy), "high_noise"))
    assert open_expert(open_model_files(copy), "low_noise").files  # the other expert is not asked for
    config = copy / "transformer_2" / "config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "num_layers"}))
    assert "num_layers" in said(lambda: open_expert(open_model_files(copy), "low_noise"))


def test_a_part_is_opened_once(copy):
    source = open_model_files(copy)
    first = source.expert("high_noise")
    shutil.rmtree(copy)
    assert source.expert("high_noise") is first and "cannot be read" in said(lambda: source.part("vae"))


def test_a_file_that_shrinks_while_it_is_read(copy):
    part = open_expert(open_model_files(copy), "high_noise")
    file = part.files[0]
    file.write_bytes(file.read_bytes()[:-5000])
    assert "ends too early" in said(lambda: [s.read(torch.float32) for s in part.stored.values()])


def test_shards_and_their_index(base, copy):
    folder = copy / "transformer"
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    weight_map = {name: f"part-{i % 3}.safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, folder / shard)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    sharded, whole = blocks(open_model_files(copy), "high_noise"), blocks(open_model_files(base), "high_noise")
    assert sharded[1] == whole[1] and all(torch.equal(a, b) for a, b in zip(sharded[0], whole[0], strict=True))
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    assert "weight_map" in said(lambda: open_expert(open_model_files(copy), "high_noise"))


def test_what_is_wrong_with_comfyui_files(base, tmp_path):
    assert "no file of weights" in said(lambda: open_model_files(tmp_path))
    save_file({"x": torch.zeros(1)}, tmp_path / FILES["high_noise"])
    assert "lacks the low noise expert" in said(lambda: open_model_files(tmp_path))
    complete(tmp_path)
    source = open_model_files(tmp_path)
    for call in (lambda: source.expert("high_noise"), lambda: source.part("vae"), lambda: source.part("text_encoder")):
        assert "is not the file of this part: the tensor" in said(call)
    assert "does not hold the tokenizer" in said(source.spiece_model)
    save_file({"spiece_model": torch.zeros(40, dtype=torch.uint8)}, tmp_path / "umt5_xxl.safetensors")
    assert "tokenizer in it is damaged" in said(lambda: load_tokenizer(open_model_files(tmp_path), length=8))
    write_expert(tmp_path / FILES["high_noise"], base / "transformer", "fp8_scaled")
    edit(tmp_path / FILES["high_noise"], lambda t: t.update({"blocks.0.ffn.2.scale_weight": torch.ones(5)}))
    assert "scale of the shape [5] (blocks.0.ffn.2.weight)" in said(lambda: open_expert(source, "high_noise"))


def test_identity_tells_a_changed_file(copy):
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    first = identity([file])
    assert first == identity([file])
    edit(file, lambda t: t["proj_out.bias"].add_(1))
    assert identity([file]) != first

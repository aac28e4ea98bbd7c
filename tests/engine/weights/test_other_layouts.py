"""The same base in Wan's own repository, in GGUF files and in Kijai's: the weights of the diffusers folder."""

import shutil
from pathlib import Path

import gguf
import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from transformers import UMT5EncoderModel

from engine.demo.tiny_base import build_tiny
from engine.encode.tokenizer import load_tokenizer
from engine.encode.umt5 import load_text_encoder
from engine.encode.vae_encoder import load_vae
from engine.weights.load_expert import load_blocks, load_outer_modules, require_numbers
from engine.weights.model_files import DTYPES, ModelFiles, identity, open_model_files
from engine.weights.weight_cache import cached_blocks
from presets.base.composition import NamedBase, compose
from presets.base.layouts import EXPERT_PART
from presets.base.model_facts import ModelFacts, read_model
from presets.base.tensor_files import FLOATS
from presets.errors import UserError
from presets.job.expert_schedule import EXPERTS
from tests.helpers.comfy_files import (
    encoder_name,
    encoder_tensors,
    expert_name,
    write_gguf,
    write_gguf_expert,
    write_official,
    write_wan_encoder,
)
from tests.helpers.training.placements import ON_CPU

GGUF = {
    "high_noise": "HighNoise/Wan2.2-I2V-A14B-HighNoise-Q8_0.gguf",
    "low_noise": "LowNoise/Wan2.2-I2V-A14B-LowNoise-Q8_0.gguf",
}


WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


def quiet(*_: object) -> None:
    pass


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks of one head of the real size, with a VAE of the real structure."""
    folder = build_tiny(tmp_path_factory.mktemp("base") / "base", heads=1, head_dim=128)
    torch.manual_seed(5)
    shutil.rmtree(folder / "vae")
    AutoencoderKLWan(base_dim=4).save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="session")
def official(base, tmp_path_factory) -> Path:
    return write_official(tmp_path_factory.mktemp("official") / "Wan2.2-I2V-A14B", base)


@pytest.fixture(scope="session")
def in_gguf(base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    for expert, name in GGUF.items():
        write_gguf_expert(folder / name, base / EXPERT_PART[expert], "Q8_0")
    tensors = {encoder_name(n, llama=True): t for n, t in encoder_tensors(base / "text_encoder").items()}
    write_gguf(folder / "umt5-xxl-encoder-Q8_0.gguf", tensors, "F32", architecture="t5encoder")
    return folder


def facts_of(folder: Path) -> ModelFacts:
    return read_model(NamedBase(path=str(folder)), Path("/"), cache=folder / "none")


def weights(source: ModelFiles, expert, precision: str = "none") -> dict[str, torch.Tensor]:
    """All tensors of an expert as a run has them, by diffusers' names."""
    out = dict(load_outer_modules(source, expert, ON_CPU).state_dict())
    buffers, layout = load_blocks(source, expert, precision, ON_CPU, progress=quiet)
    for i, buffer in enumerate(buffers):
        packed, plain = layout.views(buffer)
        out |= {f"blocks.{i}.{name}.weight": w[0] for name, w in packed.items()}
        out |= {f"blocks.{i}.{name}": t for name, t in plain.items()}
    return out


@pytest.mark.parametrize("expert", EXPERTS)
def test_the_official_layout_is_the_same_model(official, base, expert):
    facts = facts_of(official)
    assert facts.problems == [] and facts.boundary_ratio == 0.9 and facts.sources["tokenizer"] == str(official)
    assert facts.parts["transformer"].dtype == "F32" and facts.parts["vae"].parameters > 0
    for name in ("in_channels", "num_layers", "width", "ffn", "parameters"):
        assert getattr(facts, name) == getattr(facts_of(base), name)
    ours, plain = weights(open_model_files(official), expert), weights(open_model_files(base), expert)
    assert ours.keys() == plain.keys() and all(torch.equal(ours[n], t) for n, t in plain.items())


def test_the_official_vae_text_encoder_and_tokenizer(official, base):
    source, plain = open_model_files(official), open_model_files(base)
    ours, theirs = load_vae(source, ON_CPU).state_dict(), load_vae(plain, ON_CPU).state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], t) for n, t in theirs.items())
    ids, mask = load_tokenizer(source, length=16)("orbit the subject")
    assert torch.equal(ids, load_tokenizer(plain, length=16)("orbit the subject")[0])
    whole = UMT5EncoderModel.from_pretrained(base / "text_encoder", dtype=torch.float32)
    with torch.no_grad():
        one = load_text_encoder(source, ON_CPU)(ids, mask).last_hidden_state
        assert torch.equal(one, whole(ids, mask).last_hidden_state)


def test_an_official_folder_with_a_part_gone(official, tmp_path):
    copy = Path(shutil.copytree(official, tmp_path / "copy"))
    shutil.rmtree(copy / "low_noise_model")
    (problem,) = facts_of(copy).problems
    assert "low noise expert is missing" in problem.message and "low_noise_model/config.json" in problem.message
    (problem,) = facts_of(copy / "high_noise_model").problems
    assert problem.fix.endswith(f"Give the folder around it: {copy}")
    (copy / "high_noise_model" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    assert any("diffusion_pytorch_model-00002-of-00002" in p.message for p in facts_of(copy).problems)


@pytest.mark.parametrize("shards", [1, 2])
def test_shards_without_their_index_are_half_a_part(official, tmp_path, shards):
    copy = Path(shutil.copytree(official, tmp_path / "copy"))
    index = "low_noise_model/diffusion_pytorch_model.safetensors.index.json"
    (copy / index).unlink()
    for shard in sorted((copy / "low_noise_model").glob("*.safetensors"))[shards:]:
        shard.unlink()
    (problem,) = facts_of(copy).problems
    assert problem.code == "model-incomplete" and problem.message.endswith(index)


@pytest.mark.parametrize("how", ["pth", "safetensors"])
def test_the_encoder_under_wans_own_names(base, tmp_path, how):
    """Wan's .pth and Kijai's files; the tokenizer beside it."""
    file = tmp_path / f"umt5-xxl-enc-bf16.{how}"
    write_wan_encoder(file, base / "text_encoder", torch.bfloat16)
    shutil.copytree(base / "tokenizer", tmp_path / "tokenizer")
    named = NamedBase(path=str(base), text_encoder=str(file))
    composed = compose(named, tmp_path, cache=tmp_path / "none")
    assert composed.problems == [] and composed.places["tokenizer"].at == tmp_path / "tokenizer"
    model = load_text_encoder(ModelFiles(base, composed.places), ON_CPU)
    plain = encoder_tensors(base / "text_encoder")
    assert all(torch.equal(model.state_dict()[n], t.bfloat16().float()) for n, t in plain.items())
    assert read_model(named, tmp_path, cache=tmp_path / "none").parts["text_encoder"].dtype == "BF16"


def test_experts_in_gguf(in_gguf, base):
    facts = facts_of(in_gguf)
    assert facts.problems == [] and facts.boundary_ratio == 0.9 and facts.parts["transformer"].dtype == "Q8_0"
    assert facts.parameters == facts_of(base).parameters and facts.in_channels == 36
    source = open_model_files(in_gguf)
    for expert, file in GGUF.items():
        stored = {t.name: t for t in gguf.GGUFReader(in_gguf / file).tensors}
        plain = load_file(base / EXPERT_PART[expert] / "diffusion_pytorch_model.safetensors")
        ours = weights(source, expert)
        assert ours.keys() == plain.keys()
        for name, t in plain.items():
            kept = stored[expert_name(name)]
            exact = torch.from_numpy(gguf.quants.dequantize(kept.data, kept.tensor_type).copy()).view(t.shape)
            assert torch.equal(ours[name], exact) and (ours[name] - t).norm() <= 0.01 * t.norm(), name


def test_an_encoder_in_gguf_under_the_names_of_llama_cpp(in_gguf, base):
    model = load_text_encoder(open_model_files(in_gguf), ON_CPU)
    plain = encoder_tensors(base / "text_encoder")
    assert all(torch.equal(model.state_dict()[n], t) for n, t in plain.items())


@pytest.mark.parametrize("precision", ["float8", "qint8"])
def test_gguf_is_packed_like_the_weights_it_stands_for(in_gguf, base, tmp_path, precision):
    """Also through the weight cache."""
    held = weights(open_model_files(in_gguf), "high_noise")
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    save_file(held, copy / "transformer" / "diffusion_pytorch_model.safetensors")
    whole = load_blocks(open_model_files(copy), "high_noise", precision, ON_CPU, progress=quiet)
    warned: list[str] = []
    for _ in range(2):
        ours = cached_blocks(
            open_model_files(in_gguf), "high_noise", precision, ON_CPU, folder=tmp_path / "c", progress=quiet,
            warn=warned.append,
        )  # fmt: skip
        assert all(torch.equal(a, b) for a, b in zip(ours.buffers, whole.buffers, strict=True))
    assert warned == [] and len(list((tmp_path / "c").iterdir())) == 1


def test_single_files_under_diffusers_names(base, tmp_path):
    for expert, word in (("high_noise", "HIGH"), ("low_noise", "LOW")):
        shutil.copy(base / EXPERT_PART[expert] / WEIGHTS_FILE, tmp_path / f"wan22_i2v_{word}.safetensors")
    facts = facts_of(tmp_path)
    assert facts.problems == [] and (facts.width, facts.ffn, facts.num_layers) == (128, 256, 2)
    ours, plain = (weights(open_model_files(folder), "low_noise") for folder in (tmp_path, base))
    assert ours.keys() == plain.keys() and all(torch.equal(ours[n], t) for n, t in plain.items())


def test_what_check_takes_for_readable_is_read():
    assert DTYPES.keys() == FLOATS


def test_identity_reads_no_whole_file(in_gguf, monkeypatch):
    file = in_gguf / GGUF["high_noise"]
    first, content = identity([file], times=False), file.read_bytes()
    at = len(content) - 4096  # in the last page that is sampled
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    changed = identity([file], times=False)
    file.write_bytes(content)
    assert changed != first == identity([file], times=False)


def test_files_of_another_kind_are_named(in_gguf, tmp_path):
    copy = Path(shutil.copytree(in_gguf, tmp_path / "copy"))
    file = copy / GGUF["low_noise"]
    file.write_bytes(file.read_bytes()[:-5])
    (problem,) = facts_of(copy).problems
    assert problem.code == "model-corrupt" and "LowNoise" in problem.message and "5 of" in problem.message
    with pytest.raises(UserError, match="is truncated"):
        open_model_files(copy).expert("low_noise")


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
def test_a_matrix_of_zeros_is_refused(base, tmp_path, part):
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    (file,) = (copy / part).glob("*.safetensors")
    name = {
        "transformer": "blocks.1.attn2.to_v.weight",
        "text_encoder": "encoder.block.1.layer.0.SelfAttention.k.weight",
        "vae": "decoder.conv_in.weight",
    }[part]
    tensors = load_file(file)
    tensors[name] = torch.zeros_like(tensors[name])
    save_file(tensors, file)
    source = open_model_files(copy)
    load = {
        "transformer": lambda: weights(source, "high_noise"),
        "text_encoder": lambda: load_text_encoder(source, ON_CPU),
        "vae": lambda: load_vae(source, ON_CPU),
    }[part]
    with pytest.raises(UserError, match="holds nothing but zeros") as error:
        load()
    assert error.value.fix


def test_what_may_be_zero_and_what_may_not():
    file, f8 = Path("x"), torch.float8_e4m3fn
    require_numbers(torch.zeros(4), "ffn.0.bias", file)
    require_numbers(torch.zeros(1, 6, 4), "scale_shift_table", file)
    require_numbers(torch.tensor([[0.0, 1.0]]).to(f8), "to_q.weight", file, torch.ones(()))
    for tensor, scale in (
        (torch.zeros(2, 2), None),
        (torch.tensor([[0.0, -0.0]]).to(f8), torch.ones(())),
        (torch.ones(2, 2).to(f8), torch.zeros(())),
    ):
        with pytest.raises(UserError, match="nothing but zeros"):
            require_numbers(tensor, "to_q.weight", file, scale)
    for bad in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(UserError, match="no numbers"):
            require_numbers(torch.ones(2, 2).to(f8), "to_q.weight", file, torch.tensor([[1.0], [bad]]))
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            with pytest.raises(UserError, match="no numbers"):
                require_numbers(torch.tensor([[1.0, bad], [2.0, 3.0]], dtype=dtype), "to_q.weight", file)


def test_damage_in_a_shard_is_named_with_its_block_and_its_file(official, tmp_path):
    """Whichever shard the block begins in."""
    folder = tmp_path / "wan"
    shutil.copytree(official, folder)
    for shard in sorted((folder / "low_noise_model").glob("*.safetensors")):
        tensors = load_file(shard)
        name = next(n for n in tensors if n.startswith("blocks.1.") and n.endswith((".bias", ".weight")))
        whole = shard.read_bytes()
        save_file(tensors | {name: torch.full_like(tensors[name], float("nan"))}, shard)
        with pytest.raises(UserError, match=r"the weight blocks\.1\.\S+ holds values that are no") as error:
            load_blocks(open_model_files(folder), "low_noise", "none", ON_CPU, progress=quiet)
        assert error.value.where == str(shard)
        shard.write_bytes(whole)

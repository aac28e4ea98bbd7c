"""The tiny base as others keep it, ComfyUI's files, GGUF and Wan's own repository: names put back by hand,
independently of the converters that the engine uses."""

import io
import json
import re
import shutil
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file, save_file

EXPERT_WORDS = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
    "attn1": "self_attn",
    "attn2": "cross_attn",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "norm2": "norm3",
}
RESIDUAL = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}


def expert_name(name: str) -> str:
    if name == "scale_shift_table":
        return "head.modulation"
    name = name.replace("scale_shift_table", "modulation")
    for ours, theirs in EXPERT_WORDS.items():
        name = re.sub(rf"(^|\.){re.escape(ours)}(\.|$)", rf"\g<1>{theirs}\g<2>", name)
    return name


def vae_name(name: str) -> str:
    """Of a VAE with two residual blocks a level, as the real one: each level of the decoder counts 3 of them and its
    upsampler."""
    name = re.sub(r"^quant_conv", "conv1", name)
    name = re.sub(r"^post_quant_conv", "conv2", name)
    name = (
        name.replace(".conv_in.", ".conv1.")
        .replace(".norm_out.", ".head.0.")
        .replace(".conv_out.", ".head.2.")
        .replace("down_blocks", "downsamples")
    )
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"middle.{2 * int(m[1])}", name).replace(
        "mid_block.attentions.0", "middle.1"
    )
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"upsamples.{4 * int(m[1]) + int(m[2])}", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"upsamples.{4 * int(m[1]) + 3}", name)
    if re.match(r"(en|de)coder\.(downsamples|upsamples|middle)\.", name):
        name = re.sub(r"\.(norm1|conv1|norm2|conv2|conv_shortcut)\.", lambda m: f".{RESIDUAL[m[1]]}.", name)
    return name


def shrunk(tensors: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    """As `how` keeps them: bf16, fp16, fp8_scaled (one scale a tensor), fp8_rows (newer names, one scale a row)."""
    if how in ("bf16", "fp16"):
        return {name: t.to({"bf16": torch.bfloat16, "fp16": torch.float16}[how]) for name, t in tensors.items()}
    out = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)} if how == "fp8_scaled" else {}
    for name, t in tensors.items():
        layer = name.removesuffix(".weight")
        if not name.endswith(".weight") or t.ndim != 2 or name == "shared.weight":
            out[name] = t.half()
        elif how == "fp8_scaled":
            scale = t.abs().max() / 448
            out |= {
                name: (t / scale).to(torch.float8_e4m3fn),
                f"{layer}.scale_weight": scale,
                f"{layer}.scale_input": torch.ones(()),
            }
        else:
            scale = t.abs().amax(1, keepdim=True) / 448
            mark = torch.frombuffer(bytearray(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
            out |= {
                name: (t / scale).to(torch.float8_e4m3fn),
                f"{layer}.weight_scale": scale,
                f"{layer}.comfy_quant": mark,
            }
    return out


def restored(tensors: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    """The fp32 weights that `shrunk` keeps."""
    kept = shrunk(tensors, how)
    out = {}
    for name in tensors:
        layer = name.removesuffix(".weight")
        scale = (
            kept.get(f"{layer}.scale_weight", kept.get(f"{layer}.weight_scale")) if name.endswith(".weight") else None
        )
        out[name] = kept[name].float() if scale is None else kept[name].float() * scale
    return out


def sentencepiece_model(words: int = 60) -> bytes:
    """A small SentencePiece model with UMT5's ids: pad 0, closing 1, unknown 2."""
    import sentencepiece

    text = [f"orbit {i} around the red subject with a slow camera, {i * 7} degrees" for i in range(200)]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=out,
        vocab_size=words,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return out.getvalue()


def write_expert(path: Path, folder: Path, how: str, *, prefix: str = "") -> dict[str, torch.Tensor]:
    """One expert of a diffusers folder as ComfyUI's file; the fp32 weights it stands for, under diffusers' names."""
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {prefix + name: t for name, t in shrunk({expert_name(n): t for n, t in tensors.items()}, how).items()}, path
    )
    return dict(zip(tensors, restored({expert_name(n): t for n, t in tensors.items()}, how).values(), strict=True))


def write_text_encoder(path: Path, folder: Path, how: str) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "model.safetensors")
    spiece = torch.frombuffer(bytearray(sentencepiece_model()), dtype=torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(shrunk(tensors, how) | {"spiece_model": spiece}, path)
    return restored(tensors, how)


def write_vae(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({vae_name(name): t.contiguous() for name, t in tensors.items()}, path)


ENCODER_WORDS = {
    "layer.0.layer_norm": ("norm1", "attn_norm"),
    "layer.0.SelfAttention.relative_attention_bias": ("pos_embedding.embedding", "attn_rel_b"),
    "layer.0.SelfAttention.q": ("attn.q", "attn_q"),
    "layer.0.SelfAttention.k": ("attn.k", "attn_k"),
    "layer.0.SelfAttention.v": ("attn.v", "attn_v"),
    "layer.0.SelfAttention.o": ("attn.o", "attn_o"),
    "layer.1.layer_norm": ("norm2", "ffn_norm"),
    "layer.1.DenseReluDense.wi_0": ("ffn.gate.0", "ffn_gate"),
    "layer.1.DenseReluDense.wi_1": ("ffn.fc1", "ffn_up"),
    "layer.1.DenseReluDense.wo": ("ffn.fc2", "ffn_down"),
}


def encoder_name(name: str, *, llama: bool = False) -> str:
    """Of a tensor of UMT5 in Wan's own code, or in llama.cpp's GGUF files."""
    outside = {
        "shared.weight": ("token_embedding.weight", "token_embd.weight"),
        "encoder.final_layer_norm.weight": ("norm.weight", "enc.output_norm.weight"),
    }
    if name in outside:
        return outside[name][llama]
    found = re.fullmatch(r"encoder\.block\.(\d+)\.(.+)\.weight", name)
    assert found is not None, name
    return f"{'enc.blk' if llama else 'blocks'}.{found[1]}.{ENCODER_WORDS[found[2]][llama]}.weight"


def encoder_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Those of the tiny base's text encoder, each once."""
    tensors = load_file(folder / "model.safetensors")
    return {name: t for name, t in tensors.items() if name != "encoder.embed_tokens.weight"}


def write_wan_encoder(path: Path, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """As Wan's .pth or Kijai's .safetensors of it: Wan's own names, no tokenizer inside."""
    tensors = {encoder_name(n): t.to(dtype).clone() for n, t in encoder_tensors(folder).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path) if path.suffix == ".pth" else save_file(tensors, path)


def write_gguf(path: Path, tensors: dict[str, torch.Tensor], kind: str, *, architecture: str = "wan") -> None:
    """Matrices in `kind` where their rows are whole blocks, all else in fp32, as the converters do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    quant = gguf.GGMLQuantizationType[kind]
    for name, t in tensors.items():
        fits = t.ndim == 2 and t.shape[1] % gguf.GGML_QUANT_SIZES[quant][0] == 0
        as_kind = quant if fits else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(t.float().numpy(), as_kind), raw_dtype=as_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf_expert(path: Path, folder: Path, kind: str) -> None:
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    write_gguf(path, {expert_name(n): t for n, t in tensors.items()}, kind)


def write_official(folder: Path, base: Path) -> Path:
    """A base as Wan-AI/Wan2.2-I2V-A14B lies in its repository: experts in two shards under Wan's own names."""
    for part, home in (("transformer", "high_noise_model"), ("transformer_2", "low_noise_model")):
        (folder / home).mkdir(parents=True)
        config = json.loads((base / part / "config.json").read_text())
        wan = {
            "_class_name": "WanModel", "dim": config["num_attention_heads"] * config["attention_head_dim"],
            "eps": config["eps"], "ffn_dim": config["ffn_dim"], "freq_dim": config["freq_dim"], "in_dim": 36,
            "model_type": "i2v", "num_heads": config["num_attention_heads"], "num_layers": config["num_layers"],
            "out_dim": 16, "text_len": 512,
        }  # fmt: skip
        (folder / home / "config.json").write_text(json.dumps(wan))
        tensors = load_file(base / part / "diffusion_pytorch_model.safetensors")
        named = {expert_name(n): t for n, t in tensors.items()}
        shard_of = {n: f"diffusion_pytorch_model-0000{1 + i % 2}-of-00002.safetensors" for i, n in enumerate(named)}
        for shard in set(shard_of.values()):
            save_file({n: t for n, t in named.items() if shard_of[n] == shard}, folder / home / shard)
        index = {"metadata": {}, "weight_map": shard_of}
        (folder / home / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    write_wan_encoder(folder / "models_t5_umt5-xxl-enc-bf16.pth", base / "text_encoder")
    vae = load_file(base / "vae" / "diffusion_pytorch_model.safetensors")
    torch.save({vae_name(n): t for n, t in vae.items()}, folder / "Wan2.1_VAE.pth")
    shutil.copytree(base / "tokenizer", folder / "google" / "umt5-xxl")
    (folder / "configuration.json").write_text("{}")
    return folder

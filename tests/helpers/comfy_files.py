"""The tiny base as ComfyUI's files: names put back by hand, independently of diffusers' converters that the engine
uses."""

import io
import re
from pathlib import Path

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

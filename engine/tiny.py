"""A complete tiny base: the classes, folders and files of Wan 2.2 I2V A14B, with random weights, made offline in seconds.

    python -m engine.tiny DIR

For the demo and the tests. Previews made with it are noise in the shape of a video. The VAE's random weights are scaled, so that latents
have about zero mean and unit variance after normalisation and decoded frames stay inside -1..1, as those of the real one.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import __version__ as diffusers_version
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from presets.errors import UserError

BOUNDARY_RATIO = 0.9  # model_index.json of Wan 2.2 I2V A14B
FLOW_SHIFT = 5.0  # the official sample_shift of I2V A14B
MANIFEST = "tiny.json"
SPECIAL = ("<pad>", "</s>", "<unk>")  # ids 0, 1, 2, as UMT5 has them (its unknown token is 2)
# Whole words keep captions short; single characters spell out the rest. Longer pieces score higher, so they win.
WORDS = ["a", "an", "the", "of", "in", "on", "and", "with", "around", "subject", "orbit", "camera", "ball", "drum", "cone", "vase", "red", "green", "blue", "yellow", "white", "person", "woman", "man", "scene", "video", "style", "high", "low", "light", "slow", "motion", "turning"]
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"()[]-_/&%+#"


def build_tiny(path: Path, *, seed: int = 0, layers: int = 2, heads: int = 2, head_dim: int = 16, text_dim: int = 32, vae_dim: int = 4) -> Path:
    """Write the folder and return `path`; the same arguments give the same bytes. A whole one of the same arguments is kept.

    Two experts of `layers` blocks, `heads` x `head_dim` wide (43,000 parameters each by default), in fp32. Raises UserError when
    something else lies at `path`.
    """
    recipe: dict[str, Any] = {"seed": seed, "layers": layers, "heads": heads, "head_dim": head_dim, "text_dim": text_dim, "vae_dim": vae_dim, "diffusers": diffusers_version}
    if is_whole(path, recipe):
        return path
    if path.exists() and not (path / MANIFEST).exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError("something else lies here already", where=str(path), fix="Choose another folder for the tiny base")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as aside:
            folder = Path(aside) / "base"
            folder.mkdir()
            _write(folder, recipe)
            if path.exists():
                shutil.rmtree(path)
            folder.rename(path)
    except OSError as e:
        raise UserError(f"cannot be written: {e.strerror or e}", where=str(path), fix="Choose another folder") from None
    return path


def is_whole(path: Path, recipe: dict[str, Any]) -> bool:
    """Whether a tiny base of these arguments lies at `path` with every file at its full size."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        return bool(manifest["recipe"] == recipe and all((path / name).stat().st_size == size for name, size in manifest["files"].items()))
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _write(folder: Path, recipe: dict[str, Any]) -> None:
    tokenizer = _tokenizer()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for part, offset in (("transformer", 0), ("transformer_2", 1)):
            torch.manual_seed(recipe["seed"] * 10 + offset)
            _expert(recipe).save_pretrained(folder / part)
        torch.manual_seed(recipe["seed"] * 10 + 2)
        _vae(recipe["vae_dim"]).save_pretrained(folder / "vae")
        torch.manual_seed(recipe["seed"] * 10 + 3)
        text_encoder = _text_encoder(len(tokenizer), recipe["text_dim"])
    shown = is_progress_bar_enabled()
    disable_progress_bar()  # one for a file of 100 kB
    text_encoder.save_pretrained(folder / "text_encoder")
    if shown:
        enable_progress_bar()
    tokenizer.save_pretrained(folder / "tokenizer")
    UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=FLOW_SHIFT).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "WanImageToVideoPipeline", "_diffusers_version": diffusers_version, "boundary_ratio": BOUNDARY_RATIO, "expand_timesteps": False,
        "image_encoder": [None, None], "image_processor": [None, None], "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"], "tokenizer": ["transformers", type(tokenizer).__name__],
        "transformer": ["diffusers", "WanTransformer3DModel"], "transformer_2": ["diffusers", "WanTransformer3DModel"], "vae": ["diffusers", "AutoencoderKLWan"],
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    files = {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    (folder / MANIFEST).write_text(json.dumps({"recipe": recipe, "files": files}, indent=2) + "\n")


def _expert(recipe: dict[str, Any]) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=recipe["heads"], attention_head_dim=recipe["head_dim"], in_channels=36, out_channels=16, text_dim=recipe["text_dim"],
        freq_dim=32, ffn_dim=2 * recipe["heads"] * recipe["head_dim"], num_layers=recipe["layers"], image_dim=None, rope_max_seq_len=256,
    )  # fmt: skip


def _text_encoder(vocabulary: int, width: int) -> UMT5EncoderModel:
    return UMT5EncoderModel(UMT5Config(
        vocab_size=vocabulary, d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1,
    ))  # fmt: skip


def _tokenizer() -> T5TokenizerFast:
    space = "\u2581"  # SentencePiece's mark for the space before a word
    pieces = [(token, 0.0) for token in SPECIAL]
    pieces += [(space + word, -2.0) for word in WORDS] + [(space, -4.0)] + [(c, -6.0) for c in CHARACTERS]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=SPECIAL.index("<unk>")))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", extra_ids=0, model_max_length=512)


def _vae(width: int) -> AutoencoderKLWan:
    """A random VAE whose last encoder and decoder layers are rescaled on soft random pictures."""
    vae = AutoencoderKLWan(base_dim=width, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]).eval()
    coarse = torch.rand(4, 3, 5, 6, 6) * 2 - 1
    pictures = torch.nn.functional.interpolate(coarse, size=(9, 64, 64), mode="trilinear")
    mean, std = (torch.tensor(v) for v in (vae.config.latents_mean, vae.config.latents_std))

    raw = vae.encode(pictures).latent_dist.mode()
    # quant_conv is the encoder's last layer; the first half of its channels are the latents.
    scale = std / raw.std(dim=(0, 2, 3, 4))
    last = vae.quant_conv
    last.weight[:16] *= scale.view(16, 1, 1, 1, 1)
    last.bias[:16] = (last.bias[:16] - raw.mean(dim=(0, 2, 3, 4))) * scale + mean

    decoded = vae.decode(vae.encode(pictures).latent_dist.mode(), return_dict=False)[0]
    vae.decoder.conv_out.weight *= 0.5 / decoded.std()
    vae.decoder.conv_out.bias.zero_()
    return vae


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m engine.tiny", description="Write a tiny base model with random weights.")
    parser.add_argument("dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        print(build_tiny(args.dir, seed=args.seed))
    except UserError as e:
        print(e, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

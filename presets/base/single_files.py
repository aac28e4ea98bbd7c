"""Which of a source's files hold a base whose parts are one file each: as ComfyUI's folders have them.

A file's name decides, the nearest folder's where it says nothing ("HighNoise/model-Q8_0.gguf"). Where names fit several
files, the headers of these few are looked at: an expert of I2V takes 36 input channels. What remains of several is for
the user to choose. What the files hold is `comfy_files`.
"""

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from msgspec import Struct, field

from presets.base.comfy_files import (
    CALLED,
    DIFFUSERS_VAE,
    EXAMPLES,
    encoder_names,
    plain_names,
)
from presets.base.safetensors_header import Damaged, TensorPlace
from presets.base.tensor_files import holds_weights, read_tensors

# of ComfyUI's models folder
SUBFOLDERS = ("diffusion_models", "unet", "text_encoders", "clip", "vae")
I2V_CHANNELS = 36  # 16 noisy latents + 4 mask + 16 conditioning latents
MOST_HEADERS = 16  # looked into for one part
Look = Callable[[str], Mapping[str, TensorPlace]]  # name -> its tensors; {} where it cannot be read

EXPERTS = ("transformer", "transformer_2")
# `high`, `HIGH`, `HighNoise`, `i2vHigh`, `_H_`, `HN`, but neither `higher` nor `flow` nor `lowvram`
_EDGE, _END = r"(?:(?<![a-zA-Z])|(?<=[a-z0-9](?=[A-Z]))|(?<=[iI]2[vV]))", r"(?:(?=[vV]\d)|(?![a-z]|(?<=[A-Z])[A-Z]))"
HOMES = ("", "diffusion_models", "unet")  # of experts; "" is none of ComfyUI's
_NOISE = r"(?:[-_. ]?(?:noise|Noise|NOISE))?"
_ALONE = r"(?<![a-zA-Z0-9])(?:{0}[nN]?)(?![a-zA-Z0-9])"
SAYS = {
    "transformer": re.compile(f"{_EDGE}(?:high|High|HIGH){_NOISE}{_END}|{_ALONE.format('[hH]')}"),
    "transformer_2": re.compile(f"{_EDGE}(?:low|Low|LOW)(?![-_. ]?[vV][rR]){_NOISE}{_END}|{_ALONE.format('[lL]')}"),
}
_SHARD = re.compile(r"-\d+-of-\d+\.\w+$|(^|/)diffusion_pytorch_model\.\w+$")
_ADAPTER = re.compile(r"lora|lokr|lycoris|loha", re.IGNORECASE)
_OTHER_KIND = re.compile(r"t2v|ti2v|s2v|t2i|vace|animate|phantom|fun[-_. ]|camera|control|5b|1[._]3b", re.IGNORECASE)
_DISTILLED = re.compile(r"lightning|lightx2v|distill|rapid|turbo|lcm|\d-?_?steps?", re.IGNORECASE)
_SMALL_VAE = re.compile(r"taew|lightvae|lighttae|approx|2[._]?2", re.IGNORECASE)


class SingleFiles(Struct, kw_only=True):
    """The files found among those of a source, by diffusers' names of the parts. Names are relative to the source."""

    files: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)  # parts without a file
    unclear: dict[str, list[str]] = field(default_factory=dict)  # parts with several
    # experts of image-to-video by their tensors, whose names do not say which
    nameless: list[str] = field(default_factory=list)
    chosen: str = ""  # the expert's file that the user has named

    @property
    def names_experts(self) -> bool:
        """Whether there is a file of an expert: then the source is ComfyUI's."""
        return bool(self.nameless) or not {"transformer", "transformer_2"} <= set(self.missing)


def look_into(root: Path) -> Look:
    """Headers of files under `root`, each read once; {} for what is no file of weights."""
    known: dict[str, Mapping[str, TensorPlace]] = {}

    def look(name: str) -> Mapping[str, TensorPlace]:
        if name not in known:
            try:
                known[name] = plain_names(read_tensors(root / name))
            except (OSError, Damaged):
                known[name] = {}
        return known[name]

    return look


def expert_of(name: str) -> str:
    """The expert that a file's path names, as diffusers calls it; "" where it names none, or both."""
    for word in reversed(name.split("/")):
        said = [part for part in EXPERTS if SAYS[part].search(word)]
        if said and "wan" not in name.lower() and not re.search(r"high|low", word, re.IGNORECASE):
            continue  # a lone letter is a word of many other models, too: clip_l
        if said:
            return said[0] if len(said) == 1 else ""
    return ""


def partner_key(name: str) -> str:
    """Of a file's name without its expert: the same for the two files that belong together."""
    word = name.rpartition("/")[2]
    for said in SAYS.values():
        word = said.sub("", word)
    return re.sub(r"[^a-z0-9]", "", word.lower())


def find_single_files(names: Collection[str], look: Look | None = None, *, chosen: str = "") -> SingleFiles:
    """The files of the four parts. Without `look` names alone tell; `chosen` is one of the experts' files, whose
    partner is then the one that is named like it."""
    files = sorted(n for n in names if holds_weights(n) and not _ADAPTER.search(n) and not _SHARD.search(n))
    if chosen and chosen not in files:
        files.append(chosen)
    found = SingleFiles(chosen=chosen)
    fits = _experts(files, look, chosen)
    if not any(fits.values()) and look is not None:
        likely = [n for n in files if "wan" in n.lower() and _home(n) in HOMES]
        found.nameless = _of_i2v(likely, look)
    fits["text_encoder"] = _encoders(files, look)
    fits["vae"] = _vaes(files, look)
    for part, few in fits.items():
        if len(few) == 1:
            found.files[part] = few[0]
        elif few:
            found.unclear[part] = few
        else:
            found.missing.append(part)
    return found


def _home(name: str) -> str:
    """The folder of ComfyUI that a file lies in, or below; "" for none."""
    return next((word for word in name.split("/")[:-1] if word in SUBFOLDERS), "")


def _narrowed(files: list[str], *wanted: Callable[[str], bool]) -> list[str]:
    """Those that have each property, as long as any has it."""
    for has in wanted:
        if len(files) > 1:
            files = [n for n in files if has(n)] or files
    return files


def _experts(files: list[str], look: Look | None, chosen: str) -> dict[str, list[str]]:
    """The files that may be each expert."""
    said = {part: [n for n in files if _home(n) in HOMES and expert_of(n) == part] for part in EXPERTS}
    if chosen:
        own = expert_of(chosen)
        key, folder = partner_key(chosen), chosen.rpartition("/")[0]
        same = {part: [n for n in few if partner_key(n) == key] for part, few in said.items()}
        return {
            part: [chosen] if part == own else _narrowed(few, lambda n: n.rpartition("/")[0] == folder)
            for part, few in same.items()
        }
    fits = {}
    for part, few in said.items():
        if look is not None and not any("wan" in n.lower() for n in few):  # many a model has its high and low
            few = _of_i2v(few, look)
        few = _narrowed(
            few,
            lambda n: "wan" in n.lower(),
            lambda n: not _OTHER_KIND.search(n),
            lambda n: "i2v" in n.lower(),
            lambda n: "14b" in n.lower(),
            lambda n: not _DISTILLED.search(n.rpartition("/")[2]),
        )
        if 1 < len(few) <= MOST_HEADERS and look is not None:
            few = _of_i2v(few, look) or few
        fits[part] = few
    return fits


def _of_i2v(files: list[str], look: Look) -> list[str]:
    """Those that are experts of image-to-video by their tensors."""
    return [n for n in files[:MOST_HEADERS] if _sides(look(n), "patch_embedding.weight", 5)[1:2] == (I2V_CHANNELS,)]


def _sides(tensors: Mapping[str, TensorPlace], name: str, dims: int) -> tuple[int, ...]:
    return tensors[name].shape if name in tensors and len(tensors[name].shape) == dims else ()


def _encoders(files: list[str], look: Look | None) -> list[str]:
    few = _narrowed([n for n in files if "umt5" in n.lower().rpartition("/")[2]], lambda n: "xxl" in n.lower())
    if not few and look is not None:  # such as models_t5.safetensors
        few = [n for n in files if "t5" in n.lower().rpartition("/")[2]][:MOST_HEADERS]
        return [n for n in few if _is_umt5(look(n))]
    return _narrowed(few, lambda n: _is_umt5(look(n))) if look is not None and len(few) <= MOST_HEADERS else few


def _is_umt5(tensors: Mapping[str, TensorPlace]) -> bool:
    """Each of its layers has a relative attention bias, unlike T5's."""
    names = encoder_names(tensors)
    return {f"encoder.block.{i}.layer.0.SelfAttention.relative_attention_bias.weight" for i in (0, 1)} <= names.keys()


def _vaes(files: list[str], look: Look | None) -> list[str]:
    def of_wan(name: str) -> bool:
        return "wan" in name.lower().rpartition("/")[2]

    def proven(name: str) -> bool:
        return look is not None and _is_vae(look(name))

    few = [n for n in files if "vae" in n.lower().rpartition("/")[2]]
    if any(map(of_wan, few)):
        few = _narrowed(
            [n for n in few if of_wan(n)],
            lambda n: not _SMALL_VAE.search(n),
            lambda n: re.search(r"2[._]?1", n) is not None,
        )
        return _narrowed(few, proven) if len(few) <= MOST_HEADERS else few
    if look is None:
        return few
    return [n for n in dict.fromkeys([*few, *(n for n in files if _home(n) == "vae" and of_wan(n))]) if proven(n)][
        :MOST_HEADERS
    ]


def _is_vae(tensors: Mapping[str, TensorPlace]) -> bool:
    """With the 16 latent channels of Wan 2.1's."""
    first, last = (
        (DIFFUSERS_VAE, "post_quant_conv.weight")
        if DIFFUSERS_VAE in tensors
        else ("encoder.conv1.weight", "conv2.weight")
    )
    return bool(_sides(tensors, first, 5)) and _sides(tensors, last, 5)[:1] == (16,)


def complaints(found: SingleFiles, where: str, *, local: bool) -> list[tuple[str, str]]:
    """(what is wrong, how to fix it) of the experts that have no file or several."""
    if len(found.nameless) == 1:
        what = (
            f"{where} holds one expert of image-to-video, {found.nameless[0]}, whose name does not say which; a base"
            " has two, and one file into which somebody has merged both is none"
        )
        return [(what, "Put the other one beside it, with high_noise and low_noise in the two names")]
    if found.nameless:
        named = ", ".join(found.nameless)
        what = f"{where} holds experts of image-to-video whose names do not say which is which: {named}"
        return [(what, "Put high_noise or low_noise into the name of each, or make links with such names")]
    out = []
    if found.chosen and (missing := [p for p in found.missing if p in EXPERTS]):
        what = f"{where} holds no file for {CALLED[missing[0]]} that is named like {found.chosen}"
        return [(what, "Put it beside, named alike but for high and low, or give a folder of the files")]
    if missing := [p for p in found.missing if p in EXPERTS]:
        names = ", ".join(f"{CALLED[p]} (such as {EXAMPLES[p]})" for p in missing)
        out.append(
            (f"{where} holds files of an expert, but lacks {names}", "Put the files, or links to them, into the folder")
        )
    for part, files in found.unclear.items():
        if part in EXPERTS:
            fix = (
                "Name one of the two files that are meant in model.path: its partner is the one that is named like it"
                if local
                else "Download the two that are meant into a folder (hf download REPOSITORY FILE --local-dir FOLDER),"
                " and give that"
            )
            out.append((f"{where} has several files for {CALLED[part]}: {', '.join(files)}", fix))
    return out

"""LoRA files for Wan by their headers: which tensor changes which module, in every naming that is about. No weight is
read, no torch is needed.

Names: Wan's own under `diffusion_model.` (ComfyUI, ai-toolkit, lightx2v), diffusers' under `transformer.`, flat ones
under `lora_unet_` (kohya, musubi), peft's own prefix, or none; both experts in one file under `transformer_1.` and
`transformer_2.`. Besides the pairs of factors, files that were extracted from a distilled model hold whole differences:
`diff_b` of a bias, `diff` of a norm's weight (or of the head's), `diff_m` of a modulation table. Changes are named here
as diffusers names them. What a file says of itself beside its tensors: `presets.base.lora_metadata`.
"""

import re
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Literal, NamedTuple

from msgspec import Struct

from presets.base.safetensors_header import Damaged, read_header
from presets.errors import UserError
from presets.job.expert_schedule import Expert

NUMBERED: dict[str, Expert] = {"transformer_1": "high_noise", "transformer_2": "low_noise"}
OUTSIDE = -1  # the block number of what lies outside the blocks

_ATTENTION = {
    f"{wan}.{n}": f"{ours}.{to}"
    for wan, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
    for n, to in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))
}
_LINEARS = _ATTENTION | {"ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2"}
_NORMS = {
    f"{wan}.norm_{n}": f"{ours}.norm_{n}"
    for wan, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
    for n in "qk"
} | {"norm3": "norm2"}
# the latter for `misfit` alone: both have the same name
TABLE, OUTSIDE_TABLE = "scale_shift_table", "outside.scale_shift_table"
_OUTSIDE_LINEARS = {
    **{f"text_embedding.{i}": f"condition_embedder.text_embedder.linear_{n}" for i, n in ((0, 1), (2, 2))},
    **{f"time_embedding.{i}": f"condition_embedder.time_embedder.linear_{n}" for i, n in ((0, 1), (2, 2))},
    "time_projection.1": "condition_embedder.time_proj", "head.head": "proj_out",
}  # fmt: skip
LINEARS, NORMS, OUTSIDE_LINEARS, PATCHES = (
    frozenset(_LINEARS.values()),
    frozenset(_NORMS.values()),
    frozenset(_OUTSIDE_LINEARS.values()),
    "patch_embedding",
)
_BLOCK_NAMES = {**_LINEARS, **_NORMS, **{v: v for v in (*LINEARS, *NORMS, TABLE)}, "modulation": TABLE, "": TABLE}
_OUTSIDE_NAMES = {
    **_OUTSIDE_LINEARS,
    **{v: v for v in (*OUTSIDE_LINEARS, PATCHES, TABLE)},
    "head.modulation": TABLE,
    "head": TABLE,
}
_BLOCK_FLAT, _OUTSIDE_FLAT = (
    {name.replace(".", "_"): module for name, module in names.items()} for names in (_BLOCK_NAMES, _OUTSIDE_NAMES)
)
# Wan 2.1 I2V sees the image through an encoder of its own as well. Wan 2.2 has none of these modules.
_IMAGE = re.compile(
    r"(blocks[._]\d+[._])?(cross_attn[._](k_img|v_img|norm_k_img)|attn2[._](add_[kv]_proj|norm_added_[kq])"
    r"|img_emb[._].*|condition_embedder[._]image_embedder[._].*)"
)

_PREFIX = re.compile(
    r"lora_unet__?|(?:base_model\.model\.)?(?:model\.)?"
    r"(?:(?P<root>diffusion_model|transformer)\.)?(?:(?P<number>transformer_[12])\.)?"
)
_SUFFIX = re.compile(
    r"(?P<body>.*?)\."
    r"(?:(?P<side>lora_A|lora_B|lora_down|lora_up)(?:\.default)?\.weight|(?P<other>alpha|diff|diff_b|diff_m))"
)
_BLOCK = re.compile(r"blocks[._](?P<block>\d+)(?:[._](?P<module>.*))?")
# factors and their scale; differences of a weight (or table) and of a bias
Kind = Literal["A", "B", "alpha", "weight", "bias"]
_KINDS: dict[str, Kind] = {
    "lora_A": "A",
    "lora_down": "A",
    "lora_B": "B",
    "lora_up": "B",
    "alpha": "alpha",
    "diff": "weight",
    "diff_b": "bias",
    "diff_m": "weight",
}
# what is no pair of factors, by the end of its keys
_OTHER_KINDS = {
    "a DoRA": re.compile(r".*(\.dora_scale|lora_magnitude_vector.*)"),
    "a LoKr": re.compile(r".*\.lokr_\w+"),
    "a LoHa": re.compile(r".*\.hada_\w+"),
}
GIVE = "Give a LoRA file for Wan 2.2 14B"
Target = tuple[int, str]  # a module that is changed: (block, module)
Changes = dict[Target, dict[Kind, str]]  # {kind: key of the file}, by target


class LoraKey(NamedTuple):
    """What a key of a LoRA file is about."""

    root: str  # "diffusion_model", "transformer" or ""
    number: str  # "transformer_1", "transformer_2" or "", when the key names no expert
    block: int
    module: str
    kind: Kind
    image: bool = False  # of Wan 2.1's image encoder: not in Wan 2.2


class LoraFile(Struct, frozen=True):
    """The changes of a LoRA file, by expert ("" when its keys name none)."""

    modules: dict[str, Changes]
    shapes: dict[str, tuple[int, ...]]  # by key
    image: list[str]  # keys of Wan 2.1's image encoder, for which Wan 2.2 has no place

    def of(self, expert: Expert) -> Changes:
        """What it changes in an expert; {} when it is for the other one."""
        return self.modules.get(expert, self.modules.get("", {}))


def parse_key(key: str) -> LoraKey | None:
    """A key of a LoRA file, or None when it is nothing that is known."""
    prefix, suffix = _PREFIX.match(key), _SUFFIX.fullmatch(key)
    assert prefix is not None  # it may be empty
    if suffix is None:
        return None
    body, kind = suffix["body"][prefix.end() :], _KINDS[suffix["side"] or suffix["other"]]
    root, number, flat = prefix["root"] or "", prefix["number"] or "", prefix[0].startswith("lora_unet")
    if _IMAGE.fullmatch(body):
        return LoraKey(root, number, OUTSIDE, body, kind, image=True)
    block = _BLOCK.fullmatch(body)
    if block:
        inside = block["module"] or ""
        module = _BLOCK_FLAT.get(inside.replace(".", "_")) if flat else _BLOCK_NAMES.get(inside)
    else:
        module = _OUTSIDE_FLAT.get(body.replace(".", "_")) if flat else _OUTSIDE_NAMES.get(body)
    if module is None or not _takes(module, kind, suffix["other"] == "diff_m"):
        return None
    return LoraKey(root, number, int(block["block"]) if block else OUTSIDE, module, kind)


def _takes(module: str, kind: Kind, table: bool) -> bool:
    """Whether a module can be changed so."""
    if module == TABLE or table:
        return module == TABLE and kind == "weight"
    if module in NORMS:
        return kind == "weight" or (kind == "bias" and module == "norm2")
    if module in LINEARS:
        return kind != "weight"  # a whole matrix of a block would be no LoRA
    return True


def read_lora(path: Path) -> LoraFile:
    """Sort out a LoRA file. Raises UserError when it cannot be read, is damaged, or holds anything that could not be
    applied."""
    where = str(path)
    try:
        header = read_header(path)
    except FileNotFoundError:
        raise UserError("no such file", where=where, fix=GIVE) from None
    except IsADirectoryError:
        raise UserError("cannot be read: is a directory", where=where, fix="Give the .safetensors file in it") from None
    except OSError as e:
        raise UserError(f"cannot be read: {(e.strerror or str(e)).lower()}", where=where, fix=GIVE) from None
    except Damaged as e:
        raise UserError(e.what, where=where, fix=e.fix) from None
    keys = {key: parse_key(key) for key in header}
    strange = [key for key, found in keys.items() if found is None]
    if strange or not keys:
        other = next((name for name, form in _OTHER_KINDS.items() for key in strange if form.fullmatch(key)), "")
        what = (
            f"{f'is {other}: it ' if other else ''}holds {strange[0]!r}"
            f"{f' and {len(strange) - 1} more' if len(strange) > 1 else ''}, which cannot be applied to Wan"
            if strange
            else "holds no tensor"
        )
        raise UserError(what, where=where, fix=f"{GIVE}: pairs of lora_A and lora_B (or lora_down and lora_up)")
    named = {key: found for key, found in keys.items() if found is not None}
    home = _home(named.values(), where)
    modules: dict[str, Changes] = {}
    for key, found in named.items():
        if found.image:
            continue
        kinds = modules.setdefault(NUMBERED.get(found.number, home), {}).setdefault((found.block, found.module), {})
        if found.kind in kinds:
            raise UserError(f"holds {kinds[found.kind]!r} and {key!r}, which are the same", where=where, fix=GIVE)
        kinds[found.kind] = key
    for changes in modules.values():
        for (block, module), kinds in changes.items():
            if ("A" in kinds) != ("B" in kinds) or ("alpha" in kinds and "A" not in kinds):
                lacking = "lora_A (lora_down)" if "A" not in kinds else "lora_B (lora_up)"
                raise UserError(
                    f"lacks {lacking} of {place(block, module)}", where=where, fix="Download or copy this file again"
                )
    if not modules:
        raise UserError("changes nothing that Wan 2.2 has", where=where, fix=GIVE)
    return LoraFile(
        modules,
        {key: entry.shape for key, entry in header.items()},
        [key for key, found in named.items() if found.image],
    )


def _home(keys: Iterable[LoraKey], where: str) -> str:
    """The expert of keys that name none: both, or the high-noise one of a file in diffusers' names (transformer,
    transformer_2)."""
    plain, numbers = [key for key in keys if not key.number], {key.number for key in keys if key.number}
    if not plain or not numbers:
        return ""
    if numbers != {"transformer_2"} or any(key.root != "transformer" for key in plain):
        raise UserError("names an expert in some of its keys and none in others", where=where, fix=GIVE)
    return "high_noise"


def place(block: int, module: str) -> str:
    return module if block == OUTSIDE else f"blocks.{block}.{module}"


def misfit(file: LoraFile, changes: Changes, shapes: dict[str, tuple[int, ...]], blocks: int) -> str:
    """The first thing that does not fit a model; "" when all does.

    `shapes` are those of the model's tensors as far as they are known: `attn1.to_q.weight` inside a block,
    `proj_out.weight` outside.
    """
    for (block, module), kinds in changes.items():
        at = place(block, module)
        if block >= blocks:
            return f"has a block {block}, and the model's last is {blocks - 1}"
        weight = shapes.get((OUTSIDE_TABLE if block == OUTSIDE else TABLE) if module == TABLE else f"{module}.weight")
        for kind, key in kinds.items():
            shape = file.shapes[key]
            if kind == "alpha":
                fits = shape in ((), (1,))
            elif kind == "bias":
                fits = f"{module}.bias" not in shapes or shape == shapes[f"{module}.bias"]
            elif kind == "weight":
                fits = weight is None or shape == weight or (module == TABLE and shape == weight[1:])
            elif module == PATCHES:
                fits = _factor_of_patches(kind, shape, weight)
            else:
                fits = (
                    len(shape) == 2 and 0 not in shape and (weight is None or shape[kind == "A"] == weight[kind == "A"])
                )
            if not fits:
                return f"has {key} of shape {shape}, which does not fit {at}{f' of {weight}' if weight else ''}"
        if "A" in kinds and file.shapes[kinds["A"]][0] != file.shapes[kinds["B"]][1]:
            return f"has factors of different ranks for {at}: {file.shapes[kinds['A']]} and {file.shapes[kinds['B']]}"
    return ""


def _factor_of_patches(kind: Kind, shape: tuple[int, ...], weight: tuple[int, ...] | None) -> bool:
    """Factors of a convolution: A has the kernel, B is one of 1 x 1 x 1; or both are matrices, A's columns the weight's
    flattened."""
    if len(shape) not in (2, 5) or 0 in shape:
        return False
    if kind == "B":
        return all(n == 1 for n in shape[2:]) and (weight is None or shape[0] == weight[0])
    return weight is None or shape[1:] == (weight[1:] if len(shape) == 5 else (prod(weight[1:]),))


def without_other_patches(
    file: LoraFile, changes: Changes, shapes: dict[str, tuple[int, ...]]
) -> tuple[Changes, list[str]]:
    """The changes but for those of the patch embedding's weight that do not fit it, and the keys of these: files made
    from a text-to-video model have 16 channels there, image-to-video has 36."""
    target = (OUTSIDE, PATCHES)
    kinds, weight = changes.get(target, {}), shapes.get(f"{PATCHES}.weight")
    if weight is None:
        return changes, []
    other: set[Kind] = set()
    if "weight" in kinds and file.shapes[kinds["weight"]] != weight:
        other |= {"weight"}
    if "A" in kinds and not all(_factor_of_patches(k, file.shapes[kinds[k]], weight) for k in ("A", "B")):
        other |= {"A", "B", "alpha"}
    kept = {kind: key for kind, key in kinds.items() if kind not in other}
    rest = {at: own for at, own in changes.items() if at != target} | ({target: kept} if kept else {})
    return rest, [key for kind, key in kinds.items() if kind in other]


def block_shapes(width: int, ffn: int) -> dict[str, tuple[int, ...]]:
    """What `misfit` asks for, of the blocks of a model."""
    shapes: dict[str, tuple[int, ...]] = {}
    for module in LINEARS:
        shapes[f"{module}.weight"] = {"ffn.net.0.proj": (ffn, width), "ffn.net.2": (width, ffn)}.get(
            module, (width, width)
        )
        shapes[f"{module}.bias"] = shapes[f"{module}.weight"][:1]
    return shapes | {f"{module}.weight": (width,) for module in NORMS} | {"norm2.bias": (width,), TABLE: (1, 6, width)}


def outside_shapes(width: int, channels: int, out_channels: int) -> dict[str, tuple[int, ...]]:
    """The same of what lies outside the blocks, as far as it follows from the widths: Wan's patches are 1 x 2 x 2."""
    return {
        "patch_embedding.weight": (width, channels, 1, 2, 2),
        "patch_embedding.bias": (width,),
        "condition_embedder.time_proj.weight": (6 * width, width),
        "condition_embedder.time_proj.bias": (6 * width,),
        "proj_out.weight": (4 * out_channels, width),
        "proj_out.bias": (4 * out_channels,),
        OUTSIDE_TABLE: (1, 2, width),
    }

"""Writes docs/job-file.md from the field descriptions and the rules: `python -m presets.rules.docs >
docs/job-file.md`."""

import sys

from presets.job.fields import FIELDS, Field, toml_text
from presets.machine.precisions import CARDS, TEXT_ENCODER, TRANSFORMER, text
from presets.rules import RULES

INTRO = """\
# The job file

<!-- Made by `python -m presets.rules.docs`. Change presets/job/schema.py or presets/rules/ instead of this page. -->

A job is one TOML file with a table for each panel. Only `job.name` and one `[[datasets]]` with its `path` must be
there; everything else has a default. Relative paths start at the job file's folder. An unknown key, a wrong type or an
impossible value is refused with the key's full path.

```toml
[job]
name = "orbit_v1"

[[datasets]]
path = "clips/orbit"
```

`wanlora new` writes a complete job for your clips and your machine, `wanlora check JOB` says what is wrong with one.
"""
PRECISIONS_INTRO = """\
## Which precision runs where

By the GPU's compute capability, which `wanlora doctor` shows. A job that asks for more than its card has is refused
before anything is downloaded, and `"auto"` never chooses it. Below 8.0 nothing is trained.
"""
RULES_INTRO = """\
## What is checked

Errors keep a job from starting; warnings and advice do not. `wanlora check JOB` shows them, each with its fix.
"""
# What is found while clips and models are read, before any rule: see presets.clips and
# presets.base.
READING = {
    "dataset-missing": ("error", "A dataset's folder exists."),
    "dataset-empty": ("error", "A dataset's folder holds a clip or an image."),
    "dataset-unreadable": ("error", "A dataset's folders may be read."),
    "dataset-too-large": ("error", "A dataset's folder holds at most 100,000 files: more is hardly one of clips."),
    "clip-linked-twice": ("advice", "A link to a clip that is in the folder anyway counts once."),
    "not-a-video": ("error", "A clip is a video or a still image: no GIF, no text file with a video's name."),
    "clip-unreadable": ("error", "A clip is complete and decodes from its first to its last frame."),
    "clip-size-changes": ("error", "A clip has one size from its first to its last frame."),
    "name-not-utf8": ("error", "The names of clips, captions and their folders are UTF-8."),
    "caption-unreadable": ("error", "A caption is UTF-8 text (or marked UTF-16) of at most 10,000 characters."),
    "caption-conflict": ("warning", "A clip's captions, where it has several, say the same."),
    "caption-shared": ("advice", "Each clip has a caption of its own."),
    "caption-without-clip": ("advice", "A caption has a clip of the same name."),
    "mask-unreadable": ("error", "A loss mask is a still or a video that decodes whole."),
    "mask-twice": ("error", "A clip has one loss mask at most."),
    "mask-without-clip": ("warning", "A loss mask has a clip of the same name."),
    "media-left-aside": ("warning", "A dataset's folder holds no video or image of a kind that is not read."),
    "files-ignored": ("advice", "A dataset's folder holds nothing but clips, images, captions and masks."),
    "model-missing": ("error", "The base model and its parts are folders, files or Hub ids."),
    "model-incomplete": ("error", "Every source of the base model has the parts that are taken from it, whole."),
    "model-not-i2v": ("error", "The base model is Wan 2.2 I2V A14B: two experts with 36 input channels."),
    "model-experts-same": ("error", "The two experts are two files that differ."),
    "model-corrupt": ("error", "The base model's files are whole."),
    "model-unreadable": ("error", "The base model's files may be read."),
    "model-unavailable": (
        "error",
        "The Hub has every part of the base model that is not here, and gives it to this user.",
    ),
    "vae-wrong": ("error", "The VAE is that of Wan 2.1, with 16 latent channels."),
    "text-encoder-wrong": (
        "error",
        "The text encoder is UMT5, as wide as the experts take it, with its own tokenizer.",
    ),
    "model-no-boundary": ("error", "The base model, or else the job, names the boundary between the experts."),
}
PANELS = {name: f"[[{name}]]" for name in ("model.merge", "target.layers", "datasets", "sample.prompts")}


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def values_text(field: Field) -> str:
    """`integer, 1 to 1024`, `one of "bf16", "fp16"`, `number, above 0`, with its unit."""
    limits = field.limits_text
    return ", ".join(x for x in (field.type_text, limits, f"in {field.unit}" if field.unit else "") if x)


def _default(field: Field) -> str:
    return (
        "must be given" if field.required else "left out" if field.default is None else f"`{toml_text(field.default)}`"
    )


def page() -> str:
    """The whole page."""
    out = [INTRO]
    for panel in dict.fromkeys(f.panel for f in FIELDS.values()):
        out.append(f"## `{PANELS.get(panel, f'[{panel}]')}`\n")
        out.append("| key | name | values | default | what it does |\n|---|---|---|---|---|")
        for f in FIELDS.values():
            if f.panel == panel:
                out.append(
                    f"| `{f.name}` | {_cell(f.label)} | {_cell(values_text(f))} | {_cell(_default(f))} |"
                    f" {_cell(f.help)} |"
                )
        out.append("")
    out += [PRECISIONS_INTRO, "| setting | from | what it does |\n|---|---|---|"]
    for setting, table in (("quantization.transformer", TRANSFORMER), ("quantization.text_encoder", TEXT_ENCODER)):
        out += [f'| `{setting} = "{value}"` | {text(least)} | {_cell(how)} |' for value, (least, how) in table.items()]
    out += ["", *(f"- {text(least)}: {cards}" for least, cards in CARDS.items()), ""]
    out += [RULES_INTRO, "| code | severity | rule |\n|---|---|---|"]
    order = ("error", "warning", "advice")
    every = [(r.code, r.severity, r.about) for r in RULES.values()] + [
        (code, severity, about) for code, (severity, about) in READING.items()
    ]
    out += [
        f"| `{code}` | {severity} | {_cell(about)} |"
        for code, severity, about in sorted(every, key=lambda r: (order.index(r[1]), r[0]))
    ]
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())

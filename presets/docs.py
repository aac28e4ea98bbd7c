"""Writes docs/job-file.md from the field descriptions and the rules: `python -m presets.docs > docs/job-file.md`."""

import sys

from presets.fields import FIELDS, Field, toml_text
from presets.rules import RULES

INTRO = """\
# The job file

<!-- Made by `python -m presets.docs`. Change presets/job.py or presets/rules/ instead of this page. -->

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
RULES_INTRO = """\
## What is checked

Errors keep a job from starting; warnings and advice do not. `wanlora check JOB` shows them, each with its fix.
"""
PANELS = {"datasets": "[[datasets]]", "sample.prompts": "[[sample.prompts]]"}


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def values_text(field: Field) -> str:
    """`integer, 1 to 1024`, `one of "bf16", "fp16"`, `number, above 0`, with its unit."""
    limits = field.limits_text
    return ", ".join(x for x in (field.type_text, limits, f"in {field.unit}" if field.unit else "") if x)


def _default(field: Field) -> str:
    return "must be given" if field.required else "left out" if field.default is None else f"`{toml_text(field.default)}`"


def page() -> str:
    """The whole page."""
    out = [INTRO]
    for panel in dict.fromkeys(f.panel for f in FIELDS.values()):
        out.append(f"## `{PANELS.get(panel, f'[{panel}]')}`\n")
        out.append("| key | name | values | default | what it does |\n|---|---|---|---|---|")
        for f in FIELDS.values():
            if f.panel == panel:
                out.append(f"| `{f.name}` | {_cell(f.label)} | {_cell(values_text(f))} | {_cell(_default(f))} | {_cell(f.help)} |")
        out.append("")
    out += [RULES_INTRO, "| code | severity | rule |\n|---|---|---|"]
    order = ("error", "warning", "advice")
    out += [f"| `{r.code}` | {r.severity} | {_cell(r.about)} |" for r in sorted(RULES.values(), key=lambda r: (order.index(r.severity), r.code))]
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())

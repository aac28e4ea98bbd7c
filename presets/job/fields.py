"""The description of every job field, read from the annotations in `presets.job.schema`.

A field is named by its path: `training.lr`, `datasets.num_frames` (the field in general), `datasets[0].num_frames`
(one of them), `sample.prompts[1].ctrl_img`.
"""

import difflib
import json
import re
import types
import typing
from functools import cache
from typing import Any, Literal

import msgspec
from msgspec import Meta, Struct

from presets.errors import UserError
from presets.job.schema import Job

PathPart = str | int


class Field(Struct, frozen=True, kw_only=True):
    """What the wizard, `--set`, error texts and the docs know about one field."""

    path: str  # "training.lr"; list panels without index: "datasets.path"
    label: str
    help: str
    unit: str
    annotation: Any  # what msgspec converts to, limits included
    default: Any  # msgspec.NODEFAULT when the field must be given
    choices: tuple[Any, ...]  # () when the field is free; None among them: it may be left out
    minimum: float | None
    maximum: float | None
    refused: dict[str, str]  # values that are not taken although people may try them: why
    type_text: str  # "integer", "number", "true or false", "text", "list of integers", or "one of a, b, c"

    @property
    def panel(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def required(self) -> bool:
        return self.default is msgspec.NODEFAULT

    @property
    def limits_text(self) -> str:
        """`1 to 1024`, `above 0, at most 10`, `at least 1`; of a list, its items' limits. Empty without limits."""
        meta = _limits(self.annotation)
        if meta.ge is not None and meta.le is not None:
            return f"{meta.ge} to {meta.le}"
        words = (("at least", meta.ge), ("above", meta.gt), ("at most", meta.le), ("below", meta.lt))
        return ", ".join(f"{word} {limit}" for word, limit in words if limit is not None)


def _strip(annotation: Any) -> tuple[Any, Meta | None]:
    if typing.get_origin(annotation) is typing.Annotated:
        base, *metas = typing.get_args(annotation)
        return base, next((m for m in metas if isinstance(m, Meta)), None)
    return annotation, None


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _limits(annotation: Any) -> Meta:
    """Where the numeric limits of a field stand: on itself, on the items of its list, or on one of its alternatives."""
    base, meta = _strip(annotation)
    inner = typing.get_args(base) if typing.get_origin(base) is list else _alternatives(base)
    return next((m for _, m in map(_strip, inner) if m is not None), meta or Meta())


def _choices(annotation: Any) -> tuple[Any, ...]:
    """Every value the field may take, when they can be listed; () otherwise."""
    out: list[Any] = []
    for alternative in _alternatives(annotation):
        if typing.get_origin(alternative) is Literal:
            out += typing.get_args(alternative)
        elif alternative is bool:
            out += [True, False]
        elif alternative is not type(None):
            return ()
    return (*out, None) if out and type(None) in _alternatives(annotation) else tuple(out)


_TYPE_WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "left out"}


def toml_text(value: Any) -> str:
    """A value as it stands in a job file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # a JSON string is a TOML basic string
    if isinstance(value, list):
        return "[" + ", ".join(toml_text(v) for v in value) + "]"
    if isinstance(value, dict):
        return "a table"
    return "left out" if value is None else str(value)


def _type_text(annotation: Any) -> str:
    choices = _choices(annotation)
    if choices == (True, False):
        return "true or false"
    if choices:
        return "one of " + ", ".join(toml_text(c) for c in choices)
    words = []
    for alternative, _ in map(_strip, _alternatives(annotation)):
        if typing.get_origin(alternative) is Literal:
            words += [toml_text(c) for c in typing.get_args(alternative)]
        elif typing.get_origin(alternative) is list:
            words.append(f"list of {_type_text(_strip(typing.get_args(alternative)[0])[0])}s")
        else:
            words.append(_TYPE_WORDS.get(alternative, "table"))
    return " or ".join(words)


def struct_of(annotation: Any) -> type[Struct] | None:
    """The Struct that an annotation holds, as itself or as list items; None for plain values."""
    base, _ = _strip(annotation)
    if typing.get_origin(base) is list:
        base, _ = _strip(typing.get_args(base)[0])
    return base if isinstance(base, type) and issubclass(base, Struct) else None


@cache
def annotations(struct: type[Struct]) -> dict[str, Any]:
    return typing.get_type_hints(struct, include_extras=True)


@cache
def infos(struct: type[Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """The fields of a table: msgspec evaluates their types anew each time, which is most of making a job."""
    return msgspec.structs.fields(struct)


def _describe(struct: type[Struct], prefix: str) -> typing.Iterator[Field]:
    for info in msgspec.structs.fields(struct):
        annotation = annotations(struct)[info.name]
        path = f"{prefix}.{info.name}" if prefix else info.name
        child = struct_of(annotation)
        if child is not None:
            yield from _describe(child, path)
            continue
        base, meta = _strip(annotation)
        limits = _limits(annotation)
        assert meta is not None and meta.title and meta.description, f"{path} has no description"
        default = info.default_factory() if info.default_factory is not msgspec.NODEFAULT else info.default
        yield Field(
            path=path,
            label=meta.title,
            help=meta.description,
            unit=(meta.extra or {}).get("unit", ""),
            refused=(meta.extra or {}).get("refused", {}),
            annotation=annotation,
            default=default,
            choices=_choices(base),
            type_text=_type_text(base),
            minimum=limits.ge if limits.ge is not None else limits.gt,
            maximum=limits.le if limits.le is not None else limits.lt,
        )


FIELDS: dict[str, Field] = {f.path: f for f in _describe(Job, "")}


def parse_path(path: str) -> list[PathPart]:
    """`"datasets[0].num_frames"` -> `["datasets", 0, "num_frames"]`. Raises UserError on any other form."""
    parts: list[PathPart] = []
    for piece in path.split("."):
        match = re.fullmatch(r"([A-Za-z_]\w*)((?:\[\d+\])*)", piece)
        if not match:
            raise UserError(f"{path!r} is not a field path", fix="Write it as training.lr or datasets[0].num_frames")
        parts.append(match[1])
        parts += [int(i) for i in re.findall(r"\d+", match[2])]
    return parts


def join_path(parts: list[PathPart]) -> str:
    """The inverse of `parse_path`."""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def field_of(path: str) -> Field:
    """The description of `training.lr` or `datasets[0].num_frames`. Raises UserError naming the nearest field."""
    general = join_path([p for p in parse_path(path) if isinstance(p, str)])
    if general not in FIELDS:
        near = nearest(general, list(FIELDS))
        raise UserError(
            f"no field {path!r}", fix=f"Did you mean {near}?" if near else "See docs/job-file.md for all fields"
        )
    return FIELDS[general]


def nearest(word: str, known: list[str]) -> str | None:
    """The known word most like `word`, or None when nothing is near."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return found[0] if found else None

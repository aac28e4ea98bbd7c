"""Job files: TOML in and out without loss, with errors that name the key, what was expected and the nearest known
key."""

import math
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from presets.atomic_file import write_file
from presets.errors import JobError, UserError
from presets.file_names import escaped, expanded, is_utf8, require_utf8
from presets.files import read_regular
from presets.job.fields import (
    FIELDS,
    PathPart,
    annotations,
    field_of,
    infos,
    join_path,
    nearest,
    parse_path,
    struct_of,
    toml_text,
)
from presets.job.foreign_files import NEW_JOB, decoded, escape, other_tables, other_text, swallowed_escape
from presets.job.hub_id import looks_like_hub_id
from presets.job.schema import Job

PROSE = ("prompt", "negative", "default_caption")  # texts that may hold a line break

_COMMAND = (
    "a job file holds no command: files are shared, and whoever trains one would run somebody else's. Give it with"
    " `wanlora submit --on-done CMD` (--on-failed, --on-stopped), or for all jobs in [when] of settings.toml"
)
_OF_THE_SETTINGS = "is no part of a job but of the daemon's own settings.toml: a job file is shared, those are not"
# what somebody may look for in a job file: when it is over, and who is told
NOT_OF_A_JOB = {
    **dict.fromkeys(("on_done", "on_failed", "on_stopped", "when"), _COMMAND),
    **dict.fromkeys(("idle", "notify"), _OF_THE_SETTINGS),
}

MAX_JOB_BYTES = 2**20  # a file with thousands of prompts has less


def default_out(job_path: Path) -> Path:
    """The parent of run folders when none is named: `runs` beside the job file, wherever a link to it lies."""
    return job_path.resolve().parent / "runs"


_TOO_DEEP = "lists or tables lie within one another too many times"
_LONG_KEY = re.compile(r"(?:[\w-]+\s*\.\s*){100}")  # Python's reader takes minutes for one of 100 000 parts


def read_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML file that somebody else may have written. Raises ValueError."""
    if _LONG_KEY.search(text):
        raise ValueError(_TOO_DEEP)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def load_job(path: Path) -> Job:
    """Read a job file. Raises JobError (a ValueError) with every problem in it, or UserError if it cannot be read."""
    require_utf8(path)
    try:
        data = read_regular(path, MAX_JOB_BYTES)
    except FileNotFoundError:
        raise UserError("no such job file", where=str(path), fix="Make one with: wanlora new") from None
    except OSError as e:
        raise UserError(f"cannot be read: {e.strerror}", where=str(path)) from None
    return parse_job(decoded(data, where=str(path)), where=str(path))


def parse_job(text: str, *, where: str = "job") -> Job:
    """Parse the text of a job file. Raises JobError."""
    try:
        raw = read_toml(text)
    except ValueError as e:
        if other := other_text(text):
            raise JobError([other], where=where, fix=NEW_JOB) from None
        raise JobError([f"not valid TOML: {_with_escape(str(e), text)}"], where=where) from None
    if other := other_tables(raw):
        raise JobError([other], where=where, fix=NEW_JOB)
    return job_from_dict(raw, where=where)


def _with_escape(message: str, text: str) -> str:
    """A complaint of the TOML reader; with the way to write a backslash, where one stands in double quotes in the line
    that it names."""
    named = re.search(r"\(at line (\d+), column \d+\)", message)
    found = escape(text.splitlines()[int(named[1]) - 1]) if named else ""
    return f"{message}: {found}" if found else message


def job_from_dict(raw: dict[str, Any], *, where: str = "job") -> Job:
    """Turn plain tables into a Job, collecting every problem before raising JobError."""
    problems: list[str] = []
    built = _build(Job, raw, [], problems)
    if problems:
        raise JobError(problems, where=where)
    assert isinstance(built, Job)
    return built


def _build(struct: type[Struct], raw: Any, at: list[PathPart], problems: list[str]) -> Struct | None:
    """Build `struct` from `raw`; problems are appended, and None returned when there are any in this table."""
    if not isinstance(raw, dict):
        problems.append(f"{join_path(at)}: expected a table, got {toml_text(raw)}")
        return None
    known = annotations(struct)
    before = len(problems)
    for key in raw:
        if key in NOT_OF_A_JOB:
            problems.append(f"{join_path([*at, key])}: {NOT_OF_A_JOB[key]}")
        elif key not in known:
            near = nearest(key, list(known))
            problems.append(
                f"{join_path([*at, key])}: unknown key"
                + (f". Did you mean {join_path([*at, near])}?" if near else f". Known here: {', '.join(known)}")
            )
    values: dict[str, Any] = {}
    for info in infos(struct):
        here = [*at, info.name]
        if info.name not in raw:
            if info.required:
                problems.append(f"{join_path(here)}: missing, and it has no default")
            continue
        value, child = raw[info.name], struct_of(known[info.name])
        if child is None:
            values[info.name] = _convert(value, known[info.name], here, problems)
        elif isinstance(info.type, type) and issubclass(info.type, Struct):
            values[info.name] = _build(child, value, here, problems)
        elif isinstance(value, list):
            values[info.name] = [_build(child, item, [*here, i], problems) for i, item in enumerate(value)]
            if not problems:
                _convert(values[info.name], known[info.name], here, problems)
        else:
            problems.append(
                f"{join_path(here)}: expected one or more [[{join_path(here)}]] tables, got {toml_text(value)}"
            )
    return None if len(problems) > before else struct(**values)


def _convert(value: Any, annotation: Any, at: list[PathPart], problems: list[str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):  # TOML knows nan and inf, no field does
        problems.append(f"{join_path(at)}: expected a finite number, got {value}")
        return None
    # chosen or typed: no file holds one
    if odd := next(
        (
            text
            for text in (value if isinstance(value, list) else [value])
            if isinstance(text, str) and not is_utf8(text)
        ),
        "",
    ):
        problems.append(f"{join_path(at)}: {escaped(odd)} is not UTF-8. Rename the file or folder")
        return None
    if isinstance(value, str) and at[-1] not in PROSE and swallowed_escape(value):
        problems.append(
            f"{join_path(at)}: in double quotes a backslash begins an escape, so this was read as {toml_text(value)}."
            " Write the path in single quotes, or double each backslash"
        )
        return None
    try:
        return msgspec.convert(value, annotation)
    except msgspec.ValidationError as e:
        general = join_path([p for p in at if isinstance(p, str)])
        refused = FIELDS[general].refused.get(value) if general in FIELDS and isinstance(value, str) else None
        why = f". {refused}" if refused else ""
        problems.append(f"{join_path(at)}: {_expected(general, str(e))}, got {toml_text(value)}{why}")
        return None


# what a field's pattern asks for
FORMS = {
    "name": "1 to 64 letters, digits, dots, underscores or dashes, not starting with a dot",
    "caption_extension": "the end of a file name that begins with a dot, such as .long.txt",
}


def _expected(general_path: str, message: str) -> str:
    """msgspec says which limit was missed; for a wrong type our own words for the type are clearer."""
    if general_path not in FIELDS:  # a list of tables has a least length but no Field of its own
        return "expected at least one table"
    field = FIELDS[general_path]
    wrong_kind = " got " in message or message.startswith("Invalid enum value")
    if "matching regex" in message:
        return f"expected {FORMS[field.name]}"
    if wrong_kind:
        return f"expected {field.type_text}"
    if " of length <= " in message:
        return f"expected at most {message.partition(' of length <= ')[2].partition(' ')[0]} characters"
    if " of length >= " in message:
        return (
            f"expected at least one {field.type_text.removeprefix('list of ').removesuffix('s')}"
            if field.type_text.startswith("list")
            else "expected some text"
        )
    return f"expected {field.limits_text}{' for each' if field.type_text.startswith('list') else ''}"


def job_to_dict(job: Job) -> dict[str, Any]:
    """Plain tables of a Job, in panel order; fields that are None are left out."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items() if v is not None}
        return [clean(v) for v in value] if isinstance(value, list) else value

    tables: dict[str, Any] = clean(msgspec.to_builtins(job))
    return tables


def dump_job(job: Job, *, onto: str = "") -> str:
    """The TOML text of a job. With `onto`, the text of an existing job file, its comments and order are kept."""
    import tomlkit  # 50 ms, and only writers need it

    document = tomlkit.parse(onto) if onto else tomlkit.document()
    tables = _without_empty_tables(job_to_dict(job), Job)
    for key in [k for k in document if k not in tables]:
        del document[key]
    for key, value in tables.items():
        if key in document:
            _merge(document[key], value) if isinstance(value, dict) else _replace_list(document, key, value)
        else:
            document[key] = _toml_item(value)
    return tomlkit.dumps(document)


def _without_empty_tables(values: dict[str, Any], struct: type[Struct]) -> dict[str, Any]:
    """No line for a list of tables that is empty: beside `prompts = []`, TOML refuses [[sample.prompts]]."""
    out = {}
    for key, value in values.items():
        child = struct_of(annotations(struct)[key])
        if child is not None and isinstance(value, dict):
            out[key] = _without_empty_tables(value, child)
        elif child is None or value:
            out[key] = value
    return out


def _merge(table: Any, values: dict[str, Any]) -> None:
    """Bring a tomlkit table to `values`, touching only what differs, so that comments stay."""
    for key in [k for k in table if k not in values]:
        del table[key]
    for key, value in values.items():
        if key not in table:
            table[key] = _toml_item(value)
        elif isinstance(value, dict):
            _merge(table[key], value)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            _replace_list(table, key, value)
        elif table[key] != value or isinstance(table[key], bool) != isinstance(value, bool):
            table[key] = value


def _replace_list(parent: Any, key: str, values: list[dict[str, Any]]) -> None:
    """Tables of a [[list]] keep their comments while their number stays the same."""
    if len(parent[key]) == len(values):
        for table, value in zip(parent[key], values, strict=True):
            _merge(table, value)
    else:
        parent[key] = _toml_item(values)


def _toml_item(value: Any) -> Any:
    import tomlkit

    if isinstance(value, dict):
        table = tomlkit.table()
        for key, v in value.items():
            table[key] = _toml_item(v)
        return table
    if isinstance(value, list) and value and isinstance(value[0], dict):
        tables = tomlkit.aot()
        for v in value:
            tables.append(_toml_item(v))
        return tables
    return value


def save_job(job: Job, path: Path, *, fresh: bool = False) -> None:
    """Write a job file in one atomic step; permissions and (unless `fresh`) comments of an existing file are kept.
    Raises UserError."""
    try:
        onto = path.read_text("utf-8-sig") if path.exists() and not fresh else ""
        write_file(path, dump_job(job, onto=onto).encode(), sync=True)
    except OSError as e:
        raise UserError(
            f"cannot be written: {e.strerror}", where=str(path), fix="Choose another place with --out"
        ) from None
    except (ValueError, RecursionError) as e:  # tomlkit and the UTF-8 decoder, about what lies there already
        raise UserError(
            f"what lies there is not valid TOML: {e if isinstance(e, ValueError) else _TOO_DEEP}",
            where=str(path),
            fix="Correct it, or choose another place with --out",
        ) from None


def absolute_paths(job: Job, base: Path) -> Job:
    """A copy of the job that no longer depends on where its file lies: its paths, relative to `base`, made absolute.

    A model, a part of one or a recovery adapter that is not there and looks like a Hub id is one, and stays as it is.
    """

    def place(path: str) -> str:
        return str((base / expanded(path)).absolute()) if path else ""

    def local_or_hub(path: str) -> str:
        return path if looks_like_hub_id(path) and not Path(place(path)).exists() else place(path)

    return _with_paths(job, place, local_or_hub)


def relative_paths(job: Job, base: Path) -> Job:
    """A copy of the job whose paths below `base` are relative to it, so that both can move."""

    def relative(path: str) -> str:
        return str(Path(path).relative_to(base)) if path and Path(path).is_relative_to(base) else path

    return _with_paths(job, relative, relative)


def _with_paths(job: Job, place: Callable[[str], str], local_or_hub: Callable[[str], str]) -> Job:
    out = msgspec.convert(msgspec.to_builtins(job), Job)
    out.model.path, out.model.vae, out.model.text_encoder = map(
        local_or_hub, (job.model.path, job.model.vae, job.model.text_encoder)
    )
    out.quantization.ara = local_or_hub(job.quantization.ara)
    for merge in out.model.merge:
        merge.path = place(merge.path)
    out.target.start_high, out.target.start_low = place(job.target.start_high), place(job.target.start_low)
    for dataset in out.datasets:
        dataset.path = place(dataset.path)
    out.validation.path = place(job.validation.path)
    for prompt in out.sample.prompts:
        prompt.ctrl_img, prompt.end_img = place(prompt.ctrl_img), place(prompt.end_img)
    out.sample.accelerator = place(job.sample.accelerator)
    out.sample.accelerator_low = place(job.sample.accelerator_low)
    return out


def get_value(job: Job, path: str) -> Any:
    """The value at a field path. Raises UserError for a path that the job does not have."""
    at: Any = job
    for part in parse_path(path):
        try:
            at = at[part] if isinstance(part, int) else getattr(at, part)
        except (AttributeError, IndexError, TypeError):
            field_of(path)  # names the nearest field when the path itself is wrong
            raise UserError(f"the job has no {path}") from None
    return at


def with_value(job: Job, path: str, value: Any) -> Job:
    """A copy of the job with one field changed. The value is checked as in a job file: raises JobError or UserError."""
    field_of(path)
    get_value(job, path)
    tables = job_to_dict(job)
    at: Any = tables
    *parents, last = parse_path(path)
    for part in parents:
        at = at[part]
    if value is None:
        at.pop(last, None)
    else:
        at[last] = value
    return job_from_dict(tables, where="--set")


def parse_value(path: str, text: str) -> Any:
    """What a user typed for a field (`--set training.lr=5e-5`, a wizard input) as a plain value. Raises JobError.

    Text fields take the text as it is; everything else is read as TOML, and bare words as text.
    """
    field = field_of(path)
    text = text.strip()
    if text == "" and field.default is None:
        return None
    try:
        value = text if field.type_text.startswith("text") or "\n" in text else read_toml(f"x = {text}")["x"]
    except ValueError:
        value = [v.strip() for v in text.split(",")] if field.type_text.startswith("list") and "," in text else text
        if isinstance(value, list):
            value = [int(v) if v.lstrip("-").isdigit() else v for v in value]
    if field.type_text.startswith("list") and not isinstance(value, list):
        value = [value] if value != "" else []
    problems: list[str] = []
    _convert(value, field.annotation, parse_path(path), problems)
    if problems:
        raise JobError(problems)
    return value

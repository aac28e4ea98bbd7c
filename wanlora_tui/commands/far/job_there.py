"""A job file that lies here and is for another machine: sent there to be looked at, or to stay and be submitted; with
--send also the clips, images and LoRA files that only lie here.

Paths in a job are paths of the machine that trains.
"""

import hashlib
import shlex
import uuid
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from presets.errors import JobError, UserError
from presets.file_names import expanded
from presets.job.foreign_files import decoded
from presets.job.schema import Job
from presets.job.toml_file import dump_job, load_job, with_value
from presets.text import human
from wanlora_tui.commands.common import say
from wanlora_tui.commands.far.elsewhere import command_line, run_there
from wanlora_tui.output.formatting import count
from wanlora_tui.remote.connection import Connection
from wanlora_tui.transfer.channel import FarFiles
from wanlora_tui.transfer.here import HereFiles
from wanlora_tui.transfer.over_ssh import files_of
from wanlora_tui.transfer.progress import Progress, ProgressLine
from wanlora_tui.transfer.retrying import Retrying
from wanlora_tui.transfer.sending import ToSend, send

JOBS = "wanlora-jobs"  # in the home folder there
SENT = "files"  # in the folder of a job: what came from elsewhere than its folder here


class Lacking(NamedTuple):
    """A path of a job that lies here and not there."""

    field: str
    value: str
    here: Path
    there: str  # where it would go
    rewritten: str  # what the job that is sent says instead; "" when it can stay
    can_be_sent: bool


def run_with_job(there: Connection, args: Namespace) -> int:
    """Run a command there on a job file, which is sent there if it lies here."""
    name = "job" if "job" in args else "source"
    given = str(getattr(args, name))
    local = Path(given)
    if given.startswith(f"{there.host}:") or not local.is_file() or (name == "source" and local.suffix != ".toml"):
        return run_there(there, command_line(args, **_NOT_THERE))
    with closing(files_of(there, say)) as files:
        if args.handler.endswith(":submit"):
            path = _put_to_stay(files, there.host, local, args)
            return run_there(there, command_line(args, job=path, **_NOT_THERE))
        path = _put_to_look(files, there.host, local)
        try:
            return run_there(there, command_line(args, **{name: path}))
        finally:
            with suppress(UserError):  # a line that is lost; the file does not disturb
                files.ask(lambda far: far.remove(path))


_NOT_THERE = {"folder": None, "send": None, "replace": None}


def _put_to_look(files: Retrying[FarFiles], host: str, local: Path) -> str:
    """Send a job file under a name of its own; gives its path there."""
    try:
        job = load_job(local)
        folder = f"{JOBS}/{job.job.name}"
        for lacking in _lacking(files, job, local.resolve().parent, folder):
            say(f"{lacking.field}: {lacking.here} lies here and not on {host}. {_way(lacking, host)}")
    except JobError:  # what is wrong with it is said there
        folder = f"{JOBS}/{local.stem}"
    path = f"{folder}/.{local.stem}-{uuid.uuid4().hex[:8]}.toml"
    _put(files, path, local.read_bytes(), replace=False)
    return path


def _put_to_stay(files: Retrying[FarFiles], host: str, local: Path, args: Namespace) -> str:
    """Send a job file and, if asked for, what it names; gives its path there. Raises UserError."""
    job = load_job(local)
    folder = _in_home(args.folder, host) if args.folder else f"{JOBS}/{job.job.name}"
    lacking = _lacking(files, job, local.resolve().parent, folder, again=args.send)
    by_hand = [one for one in lacking if not (args.send and one.can_be_sent)]
    if by_hand:
        lines = [f"{one.field} = {one.value!r}: {_way(one, host)}" for one in by_hand]
        raise UserError(
            f"{count(len(by_hand), 'path')} of it {'lies' if len(by_hand) == 1 else 'lie'} here and not on {host}:"
            + "".join(f"\n  {line}" for line in lines)
            + "\n ",
            where=str(local),
            fix=f"Copy them so, or write paths there into the job{_what_send_does(by_hand)}",
        )
    if lacking:
        _send(files, lacking)
    content = local.read_bytes()
    if any(one.rewritten for one in lacking):
        for one in lacking:
            job = with_value(job, one.field, one.rewritten or one.value)
        content = dump_job(job, onto=decoded(content, where=str(local))).encode()
    path = f"{folder}/job.toml"
    try:
        _put(files, path, content, replace=args.replace)
    except UserError as e:
        if "another file" not in e.what:
            raise
        raise UserError(
            "another job file lies there already",
            where=f"{host}:{path}",
            fix="Give this job another name, put it elsewhere with --folder, or replace that file with --replace",
        ) from None
    say(f"Sent {local} to {host}:{path}")
    return path


def _in_home(folder: str, host: str) -> str:
    return folder.removeprefix(f"{host}:").removeprefix("~/").rstrip("/") or "."


def _put(files: Retrying[FarFiles], path: str, content: bytes, *, replace: bool) -> None:
    def write(far: FarFiles) -> None:
        far.write(path, 0, content)
        far.finish(path, hashlib.sha256(content).hexdigest(), replace=replace)

    files.ask(write)


# --- what lies only here --------------------------------------------------------------------------------------


def _named(job: Job) -> Iterator[tuple[str, str, bool]]:
    """The paths that a job names: field, value, and whether it is sent (models are too large for that)."""
    for i, dataset in enumerate(job.datasets):
        yield f"datasets[{i}].path", dataset.path, True
    yield "validation.path", job.validation.path, True
    for i, prompt in enumerate(job.sample.prompts):
        yield f"sample.prompts[{i}].ctrl_img", prompt.ctrl_img, True
        yield f"sample.prompts[{i}].end_img", prompt.end_img, True
    yield "sample.accelerator", job.sample.accelerator, True
    yield "sample.accelerator_low", job.sample.accelerator_low, True
    yield "target.start_high", job.target.start_high, True
    yield "target.start_low", job.target.start_low, True
    for i, merge in enumerate(job.model.merge):
        yield f"model.merge[{i}].path", merge.path, True
    yield "model.path", job.model.path, False
    yield "model.vae", job.model.vae, False
    yield "model.text_encoder", job.model.text_encoder, False
    yield "quantization.ara", job.quantization.ara, False


def _lacking(files: Retrying[FarFiles], job: Job, base: Path, folder: str, *, again: bool = False) -> list[Lacking]:
    """What of it lies here and not there; `folder`: of the job file there. `again`: also what lies in that folder, as
    it may have been sent in part."""
    named = [(field, value, sent) for field, value, sent in _named(job) if value]
    paths = [value if value.startswith(("/", "~")) else f"{folder}/{value}" for _, value, _ in named]
    found = files.ask(lambda far: far.facts(paths))
    out: list[Lacking] = []
    taken: dict[str, Path] = {}  # name in the folder of what is sent -> what has it
    for (field, value, sent), path, facts in zip(named, paths, found, strict=True):
        here = base / expanded(value)
        inside = not value.startswith(("/", "~")) and ".." not in PurePosixPath(value).parts
        if not here.exists() or (facts.kind != "none" and not (again and inside and sent)):
            continue
        if inside:
            out.append(Lacking(field, value, here, path, "", sent))
            continue
        here = here.resolve()
        name, number = here.name, 1
        while taken.setdefault(name, here) != here:
            number += 1
            name = f"{here.stem}-{number}{here.suffix}"
        out.append(Lacking(field, value, here, f"{folder}/{SENT}/{name}", f"{SENT}/{name}", sent))
    return out


def _way(lacking: Lacking, host: str) -> str:
    """How to copy it by hand."""
    slash = "/" if lacking.here.is_dir() else ""
    line = shlex.join(
        ["rsync", "-a", "--partial", "--mkpath", f"{lacking.here}{slash}", f"{host}:{lacking.there}{slash}"]
    )
    return f"{line}{f', and write {lacking.rewritten!r} into the job' if lacking.rewritten else ''}"


def _files(lacking: list[Lacking], passed_over: Callable[[str], None] = lambda _: None) -> list[ToSend]:
    out: dict[str, ToSend] = {}
    for one in lacking:
        listed = HereFiles().list_folder(str(one.here.absolute()))
        for text in listed.passed_over:
            passed_over(f"passed over {one.here}/{text}")
        for entry in listed.files:
            there = one.there if entry.path == "." else f"{one.there}/{entry.path}"
            out.setdefault(there, ToSend(one.here / entry.path if entry.path != "." else one.here, there))
    return list(out.values())


def _what_send_does(lacking: list[Lacking]) -> str:
    """The end of a sentence that says how to get there what lies here."""
    sent, left = [one for one in lacking if one.can_be_sent], [one.field for one in lacking if not one.can_be_sent]
    if not sent:
        return "; --send copies no models"
    size = human(sum(file.size for file in _files(sent)))
    what = f"all but {', '.join(left)}" if left else "them"
    return f", or have {what} copied ({size}) with --send"


def _send(files: Retrying[FarFiles], lacking: list[Lacking]) -> None:
    """Copy it, with progress. Raises UserError."""
    todo = _files(lacking, say)
    total = sum(file.size for file in todo)
    say(f"Sending {count(len(todo), 'file')}, {human(total)}")
    sent: list[ToSend] = []
    with ProgressLine.on_stderr() as line:
        try:
            send(files, todo, Progress(total, line.show, line.every), sent.append)
        except OSError as e:
            raise UserError(f"cannot be read: {e.strerror or e}", where=str(e.filename or "")) from None
    there_already = len(todo) - len(sent)
    say(f"Sent {count(len(sent), 'file')}{f'; {there_already} were there already' if there_already else ''}.")

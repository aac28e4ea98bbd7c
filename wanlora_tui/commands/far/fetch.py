"""fetch: LoRA files, previews, the report or the whole run of a job brought to this machine, with progress. Of a job of
this machine it makes a copy.

How files come is wanlora_tui.transfer.fetching's.
"""

import sys
from argparse import Namespace
from contextlib import closing
from pathlib import Path

import msgspec

from daemon.wire.client import Client
from presets.atomic_file import write_file
from presets.errors import UserError
from presets.runs.run_view import RunView
from presets.text import human
from wanlora_tui.commands.common import ask, pick_job, say, start_daemon
from wanlora_tui.output.far_words import shown_path
from wanlora_tui.output.formatting import count
from wanlora_tui.transfer.fetching import Fetch
from wanlora_tui.transfer.here import HereFiles
from wanlora_tui.transfer.messages import Files, Listing
from wanlora_tui.transfer.over_ssh import files_of
from wanlora_tui.transfer.progress import Progress, ProgressLine
from wanlora_tui.transfer.retrying import LostConnection, Retrying
from wanlora_tui.transfer.safe_names import folder_named

FINDINGS_FILE = "findings.json"
NOTHING = {
    "loras": "it has no LoRA file yet: the first comes with its first checkpoint",
    "previews": "it has no preview yet",
    "report": "it has not begun",
    "run": "its run folder is empty",
}


def fetch(args: Namespace) -> int:
    """0 when all is here, 1 when something could not be brought, 75 when the line was lost: the same command then goes
    on."""
    if not args.host:
        start_daemon(args.dir)
    job = args.job or pick_job(ask(args.dir, Client.jobs)).id
    record, view = ask(args.dir, lambda daemon: daemon.snapshot(job))
    if args.step is not None and args.what not in ("loras", "previews"):
        raise UserError("--step chooses LoRA files or previews", fix=f"Leave it out with --what {args.what}")
    if not record.attempt and not view.last_seq:
        raise UserError("has not begun, so there is nothing to fetch", where=record.name)
    to = args.to or folder_named(record.name)
    if not args.host and to.resolve() == Path(record.run_dir).resolve():
        raise UserError("is the run folder itself", where=str(to), fix="Give another folder with --to")
    findings = msgspec.json.format(msgspec.json.encode(view.findings)) + b"\n" if args.what == "report" else b""
    came: list[int] = []
    had: list[Path] = []
    with ProgressLine.on_stderr() as line:

        def arrived(path: Path, was_here: bool) -> None:
            line.clear()
            if was_here:
                had.append(path)
            else:
                came.append(path.stat().st_size)
            print(path, flush=True)

        with closing(Fetch(_files(args), record.run_dir, to, overwrite=args.overwrite, arrived=arrived)) as fetching:
            try:
                listing = fetching.list(args.what, args.step)
                if not listing.files:
                    say(f"{record.name}: {_nothing(args, view)}. Its run folder is {shown_path(record.run_dir)}.")
                    return 1
                total, folder = sum(file.size for file in listing.files), shown_path(record.run_dir)
                number, size = len(listing.files) + bool(findings), human(total + len(findings))
                say(f"{record.name}: {count(number, 'file')}, {size}, from {folder}")
                fetching.fetch(listing, Progress(total, line.show, line.every))
                if findings:  # no file of the run folder
                    there = to / FINDINGS_FILE
                    same = there.is_file() and there.read_bytes() == findings
                    write_file(there, findings)
                    arrived(there, same)
            except LostConnection as e:
                line.clear()
                say(f"wanlora: {e}")
                return 75
            except KeyboardInterrupt:
                line.clear()
                say("Interrupted. What came is kept, and the same command goes on.")
                return 130
    _told(listing, fetching, to, came, len(had))
    return 1 if fetching.refused else 0


def _files(args: Namespace) -> Retrying[Files]:
    if not args.host:
        return Retrying(HereFiles, say)
    return files_of(args.there, say)


def _nothing(args: Namespace, view: RunView) -> str:
    if args.step is None or args.step < 0:
        return NOTHING[args.what]
    steps = ", ".join(str(c.step) for c in view.checkpoints[-8:])
    return f"nothing of step {args.step} is there{f'; saved were {steps}' if steps else ''}"


def _told(listing: Listing, fetching: Fetch, to: Path, came: list[int], had: int) -> None:
    for name in listing.passed_over:
        say(f"passed over {name}")
    for refused in fetching.refused:
        say(f"not fetched {refused.name}: {refused.why}")
    if any("a different file" in refused.why for refused in fetching.refused):
        say("Files here that differ were left alone: give another folder with --to, or replace them with --overwrite.")
    already = f"; {count(had, 'file')} {'was' if had == 1 else 'were'} here already" if had else ""
    say(f"Fetched {count(len(came), 'file')}, {human(sum(came))}, into {to}{already}.")


def serve_files(args: Namespace) -> int:
    """The other end of a fetch or a submit: requests on stdin, answers on stdout."""
    from wanlora_tui.transfer.other_end import serve

    try:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    except BrokenPipeError:
        return 1
    return 0

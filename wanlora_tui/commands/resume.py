"""resume, checkpoints: a run that has ended is resumed, with its job file as it is now, from the newest or an older
checkpoint. The screens ask the same in wanlora_tui.screens.resume; the answer is found by presets.job.resume_check."""

import sys
import time
from argparse import Namespace
from pathlib import Path

from daemon.wire.client import Client
from daemon.wire.protocol import RUNNING_STATES, JobRecord
from presets.errors import UserError
from presets.job.resume_check import ResumeCheck, check_run_folder
from presets.job.schema import Job
from presets.job.toml_file import default_out, load_job
from presets.report.best import ranked_checkpoints
from presets.runs.checkpoints import StoredCheckpoint, best_text
from presets.runs.events import EVENTS_FILE, read_events
from presets.runs.run_view import RunView, apply_event
from presets.text import human, loss_text, to_type
from wanlora_tui.commands.common import ask, print_json, print_table, say
from wanlora_tui.output.far_words import shown_path
from wanlora_tui.output.formatting import held_out_text

ACCEPT = "accept with --accept-changes"


def resume(args: Namespace) -> int:
    """Show how the job file has changed, ask when that breaks exactness, and queue the job again."""
    if args.all:
        waited = {r.id: r.revision for r in ask(args.dir, Client.jobs)}
        records = [r for r in ask(args.dir, Client.resume_all) if r.revision != waited.get(r.id)]
        for r in records:
            say(f"{r.name}: {r.state}{f' at position {r.position}' if r.position else ''}.")
        if not records:
            say("Nothing waits for that.")
        return 0

    async def go(daemon: Client) -> JobRecord:
        record = await daemon.show(args.job)
        if record.state in RUNNING_STATES:  # refused, and nobody should be asked about changes first
            return await daemon.resume(record.id, args.from_step, anyway=args.anyway)
        changed = await daemon.resume_check(record.id)
        accepted = agreed(record.name, record.run_dir, changed, accepted=args.accept_changes)
        return await daemon.resume(record.id, args.from_step, accepted, anyway=args.anyway)

    record = ask(args.dir, go)
    back = (
        f" It goes back to step {args.from_step}; what came after is set aside in"
        f" {shown_path(record.run_dir)}/abandoned."
        if args.from_step is not None
        else ""
    )
    say(f"{record.name}: queued again. State: {record.state}.{back}")
    return 0


def agreed(name: str, run_dir: str, asked: ResumeCheck, *, accepted: bool) -> str | None:
    """The digest of the changes when they are accepted, `accepted` from the start or asked for on a terminal; None when
    nothing needs that.

    Raises UserError when what was trained does not fit, the answer is no, or there is nobody to ask.
    """
    where = f"{name} ({run_dir})"
    if asked.changes:
        say(f"{name}: its job file has changed since this run was last started:")
        for change in asked.shown:
            mark = asked.mark(change)
            say(f"  {change.text}{'   ' if mark else ''}{mark}")
    if asked.verdict == "ask" and not accepted:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise UserError(f"not resumed: {asked.claim}", where=where, fix=asked.fix(accept=ACCEPT))
        print(f"{name}: {asked.claim}.\n{asked.question} [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UserError("not resumed, and nothing was changed", where=where, fix=asked.fix(accept=ACCEPT))
        return asked.digest
    asked.require(asked.digest, where=where, accept=ACCEPT)
    return asked.digest if accepted else None


def agreed_here(job: Job, base: Path, out: Path, *, accepted: bool) -> tuple[str | None, ResumeCheck]:
    """The same for a job whose paths are relative to `base`, and the run folder in `out`, without a daemon; and what
    was asked."""
    run_dir = out / job.job.name
    asked = check_run_folder(run_dir, job, base)
    return agreed(job.job.name, str(run_dir), asked, accepted=accepted), asked


def checkpoints(args: Namespace) -> int:
    """A table, or the same as JSON. JOB may be a job file: then its run folder is read, and no daemon is asked."""
    path = Path(args.job)
    if path.suffix == ".toml" or "/" in args.job:
        name, run_dir, there = _read_here(path, args.out)
    else:
        record, there = ask(args.dir, lambda daemon: daemon.checkpoints(args.job))
        name, run_dir = record.name, Path(record.run_dir)
    if args.json:
        print_json(there)
        return 0
    if not there:
        say(f"{name} has no checkpoint yet. Its run folder is {shown_path(str(run_dir))}.")
        return 0
    ranked = any(c.held_out is not None for c in there)
    held_out = ["HELD OUT"] if ranked else []
    rows: list[tuple[str, ...]] = [("STEP", "WRITTEN", "HIGH LOSS", "LOW LOSS", *held_out, "SIZE", "PREVIEWS")]
    for c in there:
        losses = (loss_text(c.losses[e]) if e in c.losses else "-" for e in ("high_noise", "low_noise"))
        previews = shown_path(str((run_dir / c.previews[0]).parent)) if c.previews else "-"
        held_out = [held_out_text(c)] if ranked else []
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(c.time))
        rows.append((str(c.step), written, *losses, *held_out, human(c.size), previews))
    print_table(rows)
    if text := best_text(there):
        say(f"By held-out loss, {text}.")
    way = (
        to_type("train", args.job, "--resume --from STEP")
        if path.suffix == ".toml"
        else to_type("resume", name, "--from STEP")
    )
    say(f"Go back to one (while it does not run) with: {way}")
    return 0


def _read_here(path: Path, out: Path | None) -> tuple[str, Path, list[StoredCheckpoint]]:
    job = load_job(path)
    run_dir = (out or default_out(path)) / job.job.name
    view = RunView()
    try:
        for event, _ in read_events(run_dir / EVENTS_FILE):
            apply_event(view, event)
    except FileNotFoundError:
        raise UserError("no run lies here", where=str(run_dir), fix="Name its parent folder with --out") from None
    except ValueError as e:
        raise UserError(str(e), fix="The checkpoints themselves may be whole: see the folder") from None
    return job.job.name, run_dir, ranked_checkpoints(run_dir, view)

"""submit, jobs, stop, cancel: one request each.

Resuming is wanlora_tui.commands.resume's; commands to a running job are wanlora_tui.commands.live's.
"""

import sys
from argparse import Namespace
from contextlib import suppress

from daemon.wire.client import Client
from daemon.wire.protocol import JobRecord
from presets.errors import JobError, UserError
from presets.job.toml_file import default_out, load_job
from wanlora_tui.commands.common import ask, print_json, print_table, report_width, say, start_daemon
from wanlora_tui.commands.job import findings_of
from wanlora_tui.commands.resume import agreed_here
from wanlora_tui.output.formatting import ending, home_path, state_text


def submit(args: Namespace) -> int:
    """Check a job and hand it over; prints the job's name. Starts the daemon if none runs."""
    from presets.rules.check import has_errors, render

    out = args.out or default_out(args.job)
    resume, accepted, asked = _resumes(args), None, None
    if resume:
        with suppress(JobError):  # which is a finding
            base = args.job.resolve().parent
            accepted, asked = agreed_here(load_job(args.job), base, out, accepted=args.accept_changes)
    findings = findings_of(args.job, out=out, scenes=True, accepted=asked)
    if findings:
        say(render(findings, width=report_width(sys.stderr)))
    if has_errors(findings):
        raise UserError("not submitted", where=str(args.job), fix="Correct the errors above and submit again")
    start_daemon(args.dir)
    record = ask(
        args.dir,
        lambda daemon: daemon.submit(
            args.job, args.out or "", resume=resume, from_step=args.from_step, accepted=accepted
        ),
    )
    print(record.name)
    say(f"{_where(record)}. The run folder is {home_path(record.run_dir)}. Watch it with: wanlora attach {record.name}")
    return 0


def _resumes(args: Namespace) -> bool:
    return bool(args.resume or args.accept_changes or args.from_step is not None)


def _where(record: JobRecord) -> str:
    return (
        f"{record.name} waits at position {record.position}" if record.position else f"{record.name} is {record.state}"
    )


def jobs(args: Namespace) -> int:
    """A table on a terminal or a pipe, or the records as JSON."""
    records = ask(args.dir, Client.jobs)
    if args.json:
        print_json(records)
        return 0
    if not records:
        say(
            "No jobs yet. Make one with `wanlora new`, hand it over with `wanlora submit`, or open the wizard with"
            " `wanlora`."
        )
        return 0
    rows = [("ID", "NAME", "STATE", "STEP", "GPU", "RUN FOLDER")]
    for r in records:
        state = state_text(r.state) + (f" ({r.position})" if r.position else ", paused" if r.doing == "paused" else "")
        rows.append((str(r.id), r.name, state, f"{r.step}/{r.steps}", ",".join(map(str, r.gpus)), home_path(r.run_dir)))
    print_table(rows)
    return 0


def stop(args: Namespace) -> int:
    record = ask(args.dir, lambda daemon: daemon.stop(args.job))
    say(
        f"{record.name} saves a checkpoint and stops. Resume it later with: wanlora resume {record.name}"
        if record.state == "stopping"
        else ending(record.name, record.state, record.outcome)
    )
    return 0


def cancel(args: Namespace) -> int:
    record = ask(args.dir, lambda daemon: daemon.cancel(args.job))
    say(
        f"{record.name} {'is cancelled' if record.state == 'cancelled' else 'is being cancelled'}."
        f" {'Its checkpoints stay.' if record.attempt else 'It had not begun.'}"
    )
    return 0

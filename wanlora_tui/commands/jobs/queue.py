"""submit, jobs, stop, cancel, and set, save, sample of a job that trains: requests to the daemon.

The order of the queue is wanlora_tui.commands.jobs.arrange's, resuming wanlora_tui.commands.resume's; what a running
job does about its commands, engine.training.commands's.
"""

import sys
import time
from argparse import Namespace
from contextlib import suppress

from daemon.wire.client import Client
from daemon.wire.protocol import ENDED_STATES, JobRecord
from presets.errors import JobError, UserError
from presets.job.diff import live_value
from presets.job.toml_file import default_out, load_job
from presets.text import to_type
from wanlora_tui.commands.common import ask, print_json, print_table, report_width, say, start_daemon
from wanlora_tui.commands.job import look_over
from wanlora_tui.commands.jobs.submit_options import require_heeded
from wanlora_tui.commands.resume import agreed_here
from wanlora_tui.output.far_words import shown_path
from wanlora_tui.output.formatting import duration, ending, gpus_text, setting_text, waits_for
from wanlora_tui.output.queue_words import clock_time, expected, standing


def submit(args: Namespace) -> int:
    """Check a job and hand it over; prints the job's name. Starts the daemon if none runs."""
    from presets.rules.check import has_errors, render

    require_heeded(args)
    if args.slurm:
        from wanlora_tui.commands.jobs.slurm import submit_slurm

        return submit_slurm(args)
    if args.folder or args.send or args.replace:
        raise UserError("--folder, --send and --replace are of a job that is sent to another machine", fix="Add --host")
    out = args.out or default_out(args.job)
    resume, accepted, asked = _resumes(args), None, None
    if resume:
        with suppress(JobError):  # which is a finding
            base = args.job.resolve().parent
            accepted, asked = agreed_here(load_job(args.job), base, out, accepted=args.accept_changes)
    findings, planned = look_over(args.job, out=out, scenes=True, accepted=asked)
    if findings:
        say(render(findings, width=report_width(sys.stderr)))
    if has_errors(findings):
        raise UserError("not submitted", where=str(args.job), fix="Correct the errors above and submit again")
    start_daemon(args.dir)
    record = ask(
        args.dir,
        lambda daemon: daemon.submit(
            args.job,
            args.out or "",
            resume=resume,
            from_step=args.from_step,
            accepted=accepted,
            priority=args.priority,
            hold=args.hold,
            after=args.after,
            planned=planned,
            on_done=args.on_done,
            on_failed=args.on_failed,
            on_stopped=args.on_stopped,
            no_restart=args.no_restart,
            anyway=args.anyway,
        ),
    )
    print(record.name)
    own = {"done": args.on_done, "failed": args.on_failed, "stopped": args.on_stopped}
    if lost := [f"--on-{event}" for event, command in own.items() if command and event not in record.commands]:
        say(
            f"wanlora: the daemon is older than this client and has passed over {' and '.join(lost)}. Renew it with:"
            " wanlora daemon restart. Then submit the job again"
        )
    say(
        f"{_where(record)}. The run folder is {shown_path(record.run_dir)}. Watch it with:"
        f" {to_type('attach', record.name)}"
    )
    return 0


def _resumes(args: Namespace) -> bool:
    return bool(args.resume or args.accept_changes or args.from_step is not None)


def _where(record: JobRecord) -> str:
    if record.held:
        return f"{record.name}: {record.held.removesuffix('.')}"
    if record.after:
        return f"{record.name} waits for {' and '.join(f'#{job}' for job in record.after)}"
    return (
        f"{record.name} waits at position {record.position}" if record.position else f"{record.name} is {record.state}"
    )


def jobs(args: Namespace) -> int:
    """A table on a terminal or a pipe, or the records as JSON."""
    told = ask(args.dir, Client.queue)
    records, now = told.jobs, time.time()
    for trouble in told.troubles:
        say(f"! {trouble}")
    if args.json:
        print_json(records)
        return 0
    if told.idle_in is not None:
        say(
            f"Nothing runs or is about to: the idle command runs in {duration(told.idle_in)}, unless a job is"
            " submitted."
        )
    if not records:
        say(
            "No jobs yet. Make one with `wanlora new` and hand it over with `wanlora submit`; or open the wizard with:"
            " wanlora"
        )
        return 0
    ranked = any(r.priority for r in records)
    rows: list[tuple[str, ...]] = [
        ("ID", "NAME", *(["PRIORITY"] if ranked else []), "STATE", "STEP", "GPU", "WHEN", "RUN FOLDER")
    ]
    for r in records:
        priority = [str(r.priority)] if ranked else []
        state = standing(r) + (f", {waits}" if (waits := waits_for(r)) else "")
        ended = f"ended {clock_time(r.finished_at, now)}" if r.state in ENDED_STATES and r.finished_at else "-"
        when = expected(r, now) or ended
        steps, where = f"{r.step}/{r.steps}", shown_path(r.run_dir)
        rows.append((str(r.id), r.name, *priority, state, steps, gpus_text(r), when, where))
    print_table(rows, last_below=True)
    for r in records:
        if r.held:
            say(f"{r.name} (#{r.id}): {r.held}")
    if broken := [r for r in records if r.interrupted]:
        one = broken[0].name if len(broken) == 1 else "JOB"
        say(
            f"{', '.join(f'{r.name} (#{r.id})' for r in broken)}: broken off by a restart. Everything goes on, these"
            f" first, with: wanlora resume --all. One alone with: {to_type('resume', one)}"
        )
    waiting: dict[str, list[str]] = {}  # many may wait for the same
    for r in records:
        if waits_for(r):
            waiting.setdefault(r.waiting, []).append(f"{r.name} (#{r.id})")
    for why, names in waiting.items():
        say(f"{', '.join(names)}: {why}")
    return 0


def stop(args: Namespace) -> int:
    record = ask(args.dir, lambda daemon: daemon.stop(args.job))
    say(
        f"{record.name} saves a checkpoint and stops. Resume it later with: {to_type('resume', record.name)}"
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


def set_field(args: Namespace) -> int:
    """Every setting is looked at before the first one is sent."""
    pairs = []
    for setting in args.settings:
        field, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"{setting!r} has no value", fix="Write it as training.lr=5e-5")
        field = field.strip()
        pairs.append((field, value.strip(), setting_text(field, live_value(field, value))))

    async def send(daemon: Client) -> None:
        for field, value, text in pairs:
            record = await daemon.set(args.job, field, value)
            say(f"{record.name}: {field} = {text} from its next step on.")
            if field == "training.steps" and int(value) <= record.step:
                say(f"{record.name} has made {record.step} steps already, so it saves and is done.")

    ask(args.dir, send)
    return 0


def save(args: Namespace) -> int:
    record = ask(args.dir, lambda daemon: daemon.save_now(args.job))
    say(f"{record.name}: saves a checkpoint after the step it is at, and continues.")
    return 0


def sample(args: Namespace) -> int:
    record = ask(args.dir, lambda daemon: daemon.sample_now(args.job))
    say(f"{record.name}: makes its previews after the step it is at, and continues.")
    return 0

"""priority, move, hold, release, remove, rename: the queue in the order that its user wants. Handing jobs in and
stopping them is wanlora_tui.commands.jobs.queue's."""

from argparse import Namespace

from daemon.wire.client import Client
from daemon.wire.protocol import JobRecord
from presets.errors import UserError
from wanlora_tui.commands.common import ask, say
from wanlora_tui.output.far_words import shown_path


def place_text(record: JobRecord) -> str:
    """Where a job stands now."""
    if record.held:
        return record.held
    if record.waiting:
        return record.waiting
    if record.after and record.state == "queued":
        return f"It waits for {' and '.join(f'#{job}' for job in record.after)}."
    if record.position:
        return f"It waits at position {record.position}."
    return f"It is {record.state}."


def priority(args: Namespace) -> int:
    record = ask(args.dir, lambda daemon: daemon.set_priority(args.job, args.priority))
    later = "" if record.state == "queued" else " The priority counts when it is queued again."
    say(f"{record.name}: priority {record.priority}. {place_text(record)}{later}")
    return 0


def move(args: Namespace) -> int:
    """Without another job for before and after, or with one for first and last, it is a mistake in usage."""
    beside = args.place in ("before", "after")
    if beside != bool(args.other):
        args.parser.error(f"{args.place} {'needs another job' if beside else 'takes no other job'}")

    async def go(daemon: Client) -> tuple[JobRecord, JobRecord]:
        before = await daemon.show(args.job)
        return before, await daemon.move(before.id, args.place, args.other or "")

    before, record = ask(args.dir, go)
    taken = f" It takes priority {record.priority} there." if record.priority != before.priority else ""
    say(f"{record.name}: moved. {place_text(record)}{taken}")
    return 0


def hold(args: Namespace) -> int:
    record = ask(args.dir, lambda daemon: daemon.hold(args.job))
    say(f"{record.name}: {record.held}")
    return 0


def release(args: Namespace) -> int:
    record = ask(args.dir, lambda daemon: daemon.release(args.job, anyway=args.anyway))
    more = " To let it go without that, add --anyway." if record.after and not record.held else ""
    say(f"{record.name}: no longer held. {place_text(record)}{more}")
    return 0


def remove(args: Namespace) -> int:
    """Each job is tried; 1 when any was refused."""
    refused = 0

    async def go(daemon: Client) -> None:
        nonlocal refused
        for job in args.jobs:
            try:
                record = await daemon.remove(job)
            except UserError as e:
                say(f"wanlora: {e}")
                refused += 1
                continue
            if daemon.note:
                say(daemon.note)
                daemon.note = ""
            say(f"{record.name} (#{record.id}): removed from the list. {_left(record)}")

    ask(args.dir, go)
    return 1 if refused else 0


def _left(record: JobRecord) -> str:
    return f"Its run folder stays: {shown_path(record.run_dir)}" if record.attempt else "It had not begun."


def rename(args: Namespace) -> int:
    async def go(daemon: Client) -> tuple[JobRecord, JobRecord]:
        before = await daemon.show(args.job)
        return before, await daemon.rename(before.id, args.name)

    before, record = ask(args.dir, go)
    if record.run_dir == before.run_dir and record.run_name:
        more = f"Its run folder and files keep the name {record.run_name}: it has begun."
    else:
        more = f"Its run folder will be {shown_path(record.run_dir)}."
        if record.file_name:
            more += f" Its job file still says {record.file_name}, which changes nothing for this job."
    say(f"{before.name} is called {record.name} now. {more}")
    return 0

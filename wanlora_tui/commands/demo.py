"""demo: the whole main job on clips and a model that it makes itself."""

import asyncio
from argparse import Namespace
from pathlib import Path

from wanlora_tui.commands.link import daemon_dir, say, start_daemon
from wanlora_tui.commands.tui import run_app
from wanlora_tui.commands.watch import OUTCOMES, LinePrinter, watch_job
from wanlora_tui.demo import ended, prepare, submit, under_way
from wanlora_tui.terminal.streams import can_draw
from wanlora_tui.text import ending

LINGER_SECONDS = 20.0  # the finished dashboard stays this long, unless a key says otherwise


def demo(args: Namespace) -> int:
    """Prepare, submit, show; the LoRA files and the newest preview are printed at the end."""
    if args.prepare:
        job = prepare(args.prepare.absolute(), args.steps)
        print(job)
        say(f"Train on it with: wanlora train {args.prepare}/job.toml   or: wanlora submit {args.prepare}/job.toml")
        return 0
    folder = daemon_dir(args)
    out = args.out.absolute()
    start_daemon(folder)
    record = asyncio.run(under_way(out, folder))
    if record is None:
        say(f"Making demo clips and a tiny base model in {args.out} ...")
        record = asyncio.run(submit(prepare(out, args.steps), folder))
    else:
        say(f"{record.name} is {record.state} already; showing that one.")
    if not args.plain and can_draw():
        run_app(folder, job=record, close_when_done=LINGER_SECONDS)
        over = asyncio.run(ended(record, folder))
        if over is None:
            return 0
        record, view = over
    else:
        printer = LinePrinter(live=False)
        try:
            record, view = asyncio.run(watch_job(folder, str(record.id), since=0, printer=printer))
        except KeyboardInterrupt:
            say(f"Left. {record.name} goes on; come back with: wanlora attach {record.name}, or stop it with: wanlora stop {record.name}")
            return 130
    if record.state != "done":
        say(ending(record.name, record.state, record.outcome))
        return OUTCOMES[record.state]
    run_dir = Path(record.run_dir)
    say("Done: a LoRA for each expert, and a preview made with both.")
    for name in view.files:
        print(run_dir / name)
    if view.samples:
        print(run_dir / view.samples[-1].path)
    return 0

"""jobs.demo: the whole main job on clips and a model that it makes itself.

The clips and the model are engine.demo's, made in a process of their own.
"""

import asyncio
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

from daemon.wire.client import Client
from daemon.wire.protocol import LIVE_STATES, JobRecord
from presets.errors import UserError
from presets.job.toml_file import default_out, load_job, save_job, with_value
from presets.runs.run_view import RunView
from presets.text import to_type
from wanlora_tui.commands.common import ask, say, start_daemon
from wanlora_tui.commands.jobs.watch import OUTCOMES, LinePrinter, watch_job
from wanlora_tui.commands.tui import run_app
from wanlora_tui.feeds.offers import as_told
from wanlora_tui.output.far_words import shown_path
from wanlora_tui.output.formatting import ending
from wanlora_tui.terminal.streams import can_draw

NOTICED = 1.5  # times nearer: less may be chance
LINGER_SECONDS = 20.0  # the finished dashboard stays this long, unless a key says otherwise


def demo(args: Namespace) -> int:
    """Prepare, submit, show; what was learned, the LoRA files and the newest preview are printed at the end."""
    if args.prepare:
        job = prepare(args.prepare.absolute(), args.steps)
        print(job)
        say(
            f"Train on it with: {to_type('train', args.prepare / 'job.toml')}   or:"
            f" {to_type('submit', args.prepare / 'job.toml')}"
        )
        return 0
    folder = args.dir
    out = args.out.absolute()
    start_daemon(folder)
    record = under_way(out, folder)
    if record is None:
        say(f"Making demo clips and a toy base model in {args.out} ...")
        record = submit(prepare(out, args.steps), folder)
    else:
        say(f"{record.name} is {record.state} already; showing that one.")
    if not args.plain and can_draw():
        run_app(folder, job=record, close_when_done=LINGER_SECONDS)
        shown = record.id
        record, view = ask(folder, lambda daemon: daemon.snapshot(shown))
    else:
        printer = LinePrinter(live=False)
        try:
            record, view = asyncio.run(watch_job(folder, record.id, since=0, printer=printer))
        except KeyboardInterrupt:
            say(
                f"Left. {record.name} keeps running; come back with: {to_type('attach', record.name)}, or stop it with:"
                f" {to_type('stop', record.name)}"
            )
            return 130
    return tell_end(record, view)


def tell_end(record: JobRecord, view: RunView) -> int:
    """What came of it, by its last word: the trainer may take a while to be gone, and whoever saw `done` and left is
    told as well. Nothing while it trains."""
    record = as_told(record, view)
    if record.state in LIVE_STATES:
        return 0
    if record.state != "done":
        say(ending(record.name, record.state, record.outcome))
        return OUTCOMES[record.state]
    run_dir = Path(record.run_dir)
    say("Done: a LoRA for each expert, and previews made with both.")
    say(lesson(run_dir))
    if (compared := run_dir / "samples/compare_00.mp4").exists():
        say(f"Before, half-way and after, side by side: {shown_path(str(compared))}")
    for name in view.files:
        print(run_dir / name)
    if view.samples:
        print(run_dir / view.samples[-1].path)
    return 0


def prepare(folder: Path, steps: int | None = None) -> Path:
    """Write folder/clips, folder/base and folder/job.toml; gives the job file. Raises UserError."""
    command = [sys.executable, "-m", "engine.demo.make_demo", str(folder), *(["--steps", str(steps)] if steps else [])]
    made = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", check=False
    )
    if made.returncode:
        said = made.stderr.strip().rpartition("\n")[2]
        raise UserError(
            f"the demo could not be prepared: {said or f'exit code {made.returncode}'}",
            fix="" if said else f"Choose another folder than {folder}",
        )
    return folder / "job.toml"


def lesson(run_dir: Path) -> str:
    """What the demo's LoRA has learned, in a sentence with its figures."""
    command = [sys.executable, "-m", "engine.demo.learned", str(run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        return f"What it learned could not be measured: {done.stderr.strip().rpartition(chr(10))[2]}"
    found = json.loads(done.stdout)
    if found is None:
        return "What it learned was not measured: the job has no longer two sets of the demo's own previews."
    before, after = found["before"], found["after"]
    told = (
        "It was to learn that objects go round, which the base was never shown. In previews of colours that no clip"
        f" has, they were {before:.2f} of the picture's width off their circle without it, and are {after:.2f} with it:"
    )
    if after > before / NOTICED:
        return f"{told} not learned in so few steps."
    return f"{told} {before / max(after, 0.01):.1f} times nearer."


def free_job(job: Path, taken: set[str]) -> Path:
    """The job file itself, or a copy of it with the next free name when its run folder is in use: `demo`, `demo-2`,
    `demo-3`."""
    first = load_job(job)
    runs, name, number = default_out(job), first.job.name, 1
    while name in taken or (runs / name).exists():
        number += 1
        name = f"{first.job.name}-{number}"
    if number == 1:
        return job
    path = job.with_name(f"job-{number}.toml")
    path.unlink(missing_ok=True)
    save_job(with_value(first, "job.name", name), path)
    return path


def under_way(out: Path, folder: Path | None) -> JobRecord | None:
    """The demo that already trains or waits in this folder, if there is one: it is taken up, and its files are left
    alone."""
    live = [
        r for r in ask(folder, Client.jobs) if r.out == str(default_out(out / "job.toml")) and r.state in LIVE_STATES
    ]
    return live[-1] if live else None


def submit(job: Path, folder: Path | None) -> JobRecord:
    """Hand the demo job to the daemon, under a name that is free in its folder and there."""
    job = free_job(job, {r.name for r in ask(folder, Client.jobs)})
    return ask(folder, lambda daemon: daemon.submit(job, default_out(job)))

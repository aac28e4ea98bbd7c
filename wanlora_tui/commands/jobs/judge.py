"""judge, report: what a run's previews are worth against its clips, as a table; and its page.

The measures are engine.judge's, made in a process of their own; the page is presets.report.page's.
"""

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import msgspec

from daemon.errors import DaemonError
from daemon.wire.client import Client
from presets.errors import UserError
from presets.job.toml_file import default_out, load_job
from presets.report.measures import Judged, summaries
from presets.report.measures_table import rows
from presets.report.page import write_page
from presets.report.run_reader import read_run
from presets.runs.events import EVENTS_FILE
from wanlora_tui.commands.common import ask, pick_job, print_json, print_table, say, tell


def judge(args: Namespace) -> int:
    """Print the measures (or JSON), which stay in the run folder, too."""
    run_dir = run_folder_of(args)
    read_run(run_dir)  # what is wrong with it is said at once
    judged, code = _measured(run_dir)
    if judged is None:
        return code
    if args.json:
        print_json(judged, indented=True)
        return 0
    print_table(rows(judged), last_below=True)
    for text in [*judged.notes, *summaries(judged)]:
        say(f"{text[0].upper()}{text[1:]}.")
    return 0


def report(args: Namespace) -> int:
    """Write the page and print its path."""
    run_dir = run_folder_of(args)
    try:
        print(write_page(run_dir))
    except OSError as e:
        raise UserError(f"the page cannot be written: {e.strerror or e}", where=str(run_dir)) from None
    return 0


def run_folder_of(args: Namespace) -> Path:
    """The run folder that is named, by itself, by its job file or by a job of the daemon. Raises UserError.

    A folder of the job's name where the command is called may hold only what `wanlora fetch` has brought there.
    """
    named: str = args.run or ""
    if named.endswith(".toml") and Path(named).is_file():
        path = Path(named).absolute()
        return default_out(path) / load_job(path).job.name
    if named and ("/" in named or Path(named, EVENTS_FILE).is_file()):
        return Path(named).absolute()
    try:
        record = ask(args.dir, lambda daemon: daemon.show(named)) if named else pick_job(ask(args.dir, Client.jobs))
    except DaemonError:
        if named and Path(named).is_dir():  # what it lacks is said by whoever reads it
            return Path(named).absolute()
        raise
    run_dir = Path(record.run_dir)
    if not run_dir.is_dir():
        raise UserError(
            "its run folder is not here: the job has not begun, or is one of another machine",
            where=f"{record.name} ({run_dir})",
            fix="Ask on the machine that it runs on, with --host",
        )
    return run_dir


def _measured(run_dir: Path) -> tuple[Judged | None, int]:
    """What the measuring process found, and its exit code."""
    judged = None
    with subprocess.Popen([sys.executable, "-m", "engine.judge", str(run_dir)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                said = msgspec.json.decode(line)
                if "of" in said:
                    tell(f"measuring: {said['done']}/{said['of']} films, Ctrl+C ends it")
                else:
                    judged = msgspec.convert(said, Judged)
        except BaseException:
            process.terminate()
            raise
        finally:
            tell("")
    return (judged, 0) if process.returncode == 0 and judged is not None else (None, process.returncode or 1)

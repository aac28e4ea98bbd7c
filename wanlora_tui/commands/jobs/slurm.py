"""submit --slurm: a batch script made of the plan, for sbatch; and the run followed through the shared file system,
as its events are written. The script is commands.jobs.slurm_script's.
"""

import math
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from daemon.settings import load_settings, settings_file
from presets.atomic_file import replacing
from presets.errors import UserError
from presets.facts.facts import Facts
from presets.facts.gather import gather
from presets.job.gpu_shares import never_measured, require_fits, to_be_sure
from presets.job.resume_check import JOB_FILE
from presets.job.schema import Job
from presets.job.toml_file import default_out, load_job
from presets.planner.cards import card_hardware, find_card
from presets.planner.choose import Choice, DoesNotFit
from presets.planner.several_gpus import share_out, stop_grace
from presets.planner.sizes import GIB
from presets.planner.workload import shape_of
from presets.rules.check import check_job, has_errors, render
from presets.rules.plan_rules import hardware_of
from presets.runs.events import EVENTS_FILE, TERMINAL_KINDS, DamagedLine, Event, read_events
from presets.runs.run_view import RunView, apply_event
from wanlora_tui.commands.common import report_width, say
from wanlora_tui.commands.jobs.slurm_queue import ON_A_LOGIN_NODE, handed_over, require_that_it_can_start, standing
from wanlora_tui.commands.jobs.slurm_script import Wanted, script
from wanlora_tui.commands.jobs.watch import LinePrinter
from wanlora_tui.output.formatting import duration
from wanlora_tui.terminal.streams import is_terminal

SPARE, LOADING_MINUTES = 1.25, 30  # on top of what the planner says: Slurm ends what takes longer than it was given
NODE_RAM = 1024 * GIB  # of a node that nobody has described; what is asked for comes from the plan
LOOK_SECONDS = 2.0
LOOKS_AT_SLURM = 8  # of these, one is at the queue, which all users of a cluster ask
GONE = 3  # looks at the queue without the job, and without an event: it is over
CODES = {"done": 0, "failed": 1, "stopped": 75}


def submit_slurm(args: Namespace) -> int:
    """Check the job, write the script beside the run folder and hand it over; prints the number that Slurm gives it.
    With --follow, print the run's events until it is over."""
    job = load_job(args.job)
    base, out = args.job.resolve().parent, (args.out or default_out(args.job)).resolve()
    gpus = len(set(job.job.gpus))
    if sorted(job.job.gpus) != list(range(gpus)):
        raise UserError(
            f"under Slurm a job's GPUs are those that it is given, counted from 0, and it names {job.job.gpus}",
            where="job.gpus",
            fix=f"Set job.gpus = {list(range(gpus))}",
        )
    require_fits(job, gpus * args.nodes)
    needed = ["sbatch", "scontrol", "squeue", "scancel"]
    if missing := [command for command in needed if shutil.which(command) is None]:
        are = "are" if len(missing) > 1 else "is"
        raise UserError(f"{' and '.join(missing)} {are} not here", where="PATH", fix=ON_A_LOGIN_NODE)
    facts = gather(job, base, out=out, scenes=False)
    if args.nodes > 1 and not facts.tiny:
        what = never_measured(job, gpus * args.nodes, hosts=args.nodes)
        sure = to_be_sure(job, gpus * args.nodes, hosts=args.nodes)
        say(f"{what[0].upper()}{what[1:]}. {sure}")
    elsewhere = Facts(**{f: getattr(facts, f) for f in facts.__struct_fields__ if f != "machine"})
    findings = check_job(job, elsewhere)  # the nodes are other machines than this
    if findings:
        say(render(findings, width=report_width(sys.stderr)))
    if has_errors(findings):
        raise UserError("not submitted", where=str(args.job), fix="Correct the errors above and submit again")
    minutes, ram, choice = args.time, 0, None
    if minutes is None or args.gpu:
        said, ram, choice = planned(job, facts, gpus=gpus, nodes=args.nodes, card=args.gpu)
        minutes = said if minutes is None else minutes
    grace = stop_grace(job, shape_of(facts), gpus * args.nodes, choice)
    restarts = load_settings(settings_file()).daemon.restarts
    wanted = Wanted(job.job.name, gpus, args.nodes, minutes, args.partition or "", ram, grace, restarts)
    if 60 * minutes <= wanted.warned:
        raise UserError(
            f"it would be stopped as soon as it runs: the last {duration(wanted.warned)} of its time are for saving",
            where="--time",
            fix="Give it more time",
        )
    out.mkdir(parents=True, exist_ok=True)
    file, log = out / f"{job.job.name}.sbatch", out / f"{job.job.name}.slurm.log"
    again = ["--resume", *(["--accept-changes"] if args.accept_changes else [])]
    back = [] if args.from_step is None else ["--from", str(args.from_step)]
    resumes = bool(args.resume or args.accept_changes or back)
    if not resumes and (out / job.job.name / JOB_FILE).exists():
        raise UserError(
            "this folder already holds a run",
            where=str(out / job.job.name),
            fix="Continue it with --resume, or give the job another name",
        )
    if not f"{args.job.resolve()}{out}{args.partition}".isprintable():
        raise UserError("a path that is written into a script may hold no control characters", where=str(out))
    if "\\" in str(log):
        raise UserError(
            "Slurm takes no backslash in the path of what a script says",
            where=str(out),
            fix="Name another folder with --out",
        )
    events = out / job.job.name / EVENTS_FILE
    began = events.stat().st_size if events.exists() else 0
    with replacing(file) as aside:
        first = [*again, *back] if resumes else []
        text = script(
            args.job.resolve(),
            out,
            wanted,
            log,
            first=first,
            again=again,
            started=attempts(events) if back else None,
            began=began,
        )
        aside.write_text(text, "utf-8")
    number = handed_over(file)
    require_that_it_can_start(number, file)
    print(number)
    say(
        f"{job.job.name} waits in Slurm's queue for {duration(60 * minutes)} on {args.nodes} node"
        f"{'s' if args.nodes > 1 else ''} of {gpus} GPU{'s' if gpus > 1 else ''}. The script is {file}, what it says"
        f" {log}, the run folder {events.parent}. What takes it back, and ends it later: scancel {number}"
    )
    return follow(number, events, began, log) if args.follow else 0


def planned(job: Job, facts: Facts, *, gpus: int, nodes: int, card: str | None) -> tuple[int, int, Choice]:
    """(minutes to ask for, bytes of RAM of each node, the plan), for a named card, or this machine's own. Raises
    UserError."""
    hardware = card_hardware(find_card(card), ram=NODE_RAM) if card else hardware_of(job, facts)
    if hardware is None:
        raise UserError(
            "how long it takes is not known: there is no GPU here to plan for",
            where="--time",
            fix="Name the nodes' card with --gpu, for instance --gpu 'H100 SXM', or give the time with --time 12:00:00",
        )
    try:
        shared = share_out(job, facts, hardware, gpus * nodes, hosts=nodes)
    except DoesNotFit as e:
        raise UserError(e.what, where=e.where, fix=e.fix) from e
    of_node = sum(share.ram for share in shared.shares[:gpus])
    return math.ceil(SPARE * shared.total / 60) + LOADING_MINUTES, of_node + 4 * GIB, shared.choice


def attempts(events: Path) -> int:
    """How many have begun to train, as the script counts them."""
    with suppress(FileNotFoundError), events.open("rb") as lines:
        return sum(b'"kind":"started"' in line for line in lines)
    return 0


def follow(number: str, events: Path, began: int, log: Path) -> int:
    """Print what is written behind `began`, and where job `number` stands while nothing is, until the run is over: it
    is done or failed, or Slurm has it no more. Ctrl-C ends the following alone. Returns what the run's own exit code
    would be."""
    printer, view = LinePrinter(live=is_terminal(sys.stdout)), RunView()
    last, told, offset, looks, gone = "", "", 0, 0, 0
    try:
        while last != "done" and gone < (1 if last == "failed" else GONE):  # Slurm may have it go on, on other nodes
            new = list(_written(events, offset))
            for event, offset in new:
                apply_event(view, event)
                if offset > began:
                    printer.event(view, event)
                    last = event.kind if event.kind in TERMINAL_KINDS else ""
            if not new and (last == "failed" or looks % LOOKS_AT_SLURM == 0):
                place = standing(number)
                gone = gone + 1 if place is None else 0
                if place is not None and place.state in ("PENDING", "RUNNING") and told != (told := str(place)):
                    say(f"{number} {told}")
            looks += 1
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        say(f"It goes on as Slurm's job {number}. What ends it: scancel {number}")
    printer.close()
    if last in ("", "stopped") and gone:
        ended = "has saved and stopped: go on with --resume" if last else "has not said how it ended"
        say(f"Slurm has {number} no more, and the run {ended}. What the script said: {log}")
    return CODES.get(last, 1)


def _written(events: Path, offset: int) -> Iterator[tuple[Event, int]]:
    """What is new in the file, which may not be there yet."""
    damaged: list[DamagedLine] = []
    with suppress(FileNotFoundError):
        yield from read_events(events, offset=offset, report=damaged.append)

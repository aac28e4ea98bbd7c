"""Commands that hand jobs to the daemon, follow them and act on them."""

import argparse
from functools import partial
from pathlib import Path

from wanlora_tui.arguments import completing
from wanlora_tui.arguments.common import (
    JOB_HELP,
    Commands,
    add_command,
    at_the_end,
    going_on,
    job_file,
    job_name,
    job_names,
    minutes,
    out,
    positive,
    seq,
    step_or_all,
    whole,
)
from wanlora_tui.arguments.completing import completed_by


def submit_and_watch(commands: Commands) -> None:
    """Handing jobs to the daemon, and seeing what becomes of them."""
    command = partial(add_command, commands)
    c = command(
        "submit", "jobs.queue:submit", "hand a job to the daemon, which trains it when its GPU is free", far="job"
    )
    c.epilog = (
        "With --host, a job file that lies here is sent there first; one that only lies there, or is named as"
        " HOST:PATH, is used as it lies. Paths in it are paths there."
    )
    job_file(c)
    out(c)
    c.add_argument(
        "--resume", action="store_true", help="continue the run that lies in its run folder, whoever began it"
    )
    going_on(c)
    c.add_argument("--priority", type=whole, metavar="N", help="higher ones run first (default: 0)")
    c.add_argument("--hold", action="store_true", help="keep it in the queue until: wanlora release JOB")
    after = c.add_argument(
        "--after",
        type=job_names,
        action="extend",
        default=[],
        metavar="JOB[,JOB]",
        help="start it when these are done; when one fails, is stopped, cancelled or removed, it is held",
    )
    completed_by(after, completing.job_names)
    at_the_end(c)
    c.add_argument(
        "--no-restart",
        action="store_true",
        help="never start it again by itself; else it is, from its last checkpoint, when its trainer was killed or"
        " crashed after progress",
    )
    anyway(c)
    far = c.add_argument_group("with --host")
    far.add_argument(
        "--folder",
        metavar="DIR",
        help="the folder there that the job file is put into, as job.toml, and that its paths are relative to"
        " (default: wanlora-jobs/NAME in the home folder)",
    )
    far.add_argument(
        "--send", action="store_true", help="copy clips, images and LoRA files of the job that lie only here, too"
    )
    far.add_argument(
        "--replace", action="store_true", help="replace another job file that was put there before under this name"
    )

    slurm = c.add_argument_group("with Slurm")
    slurm.add_argument(
        "--slurm",
        action="store_true",
        help="hand it to Slurm's queue instead: a batch script from the plan, which saves when it is to make room, and"
        " goes on from there",
    )
    slurm.add_argument("--partition", metavar="NAME", help="of the nodes (default: Slurm's own)")
    slurm.add_argument("--nodes", type=positive, default=1, metavar="N", help="each with the GPUs that the job names")
    slurm.add_argument(
        "--time", type=minutes, metavar="H:MM", help="for how long (default: what the plan says, and a quarter more)"
    )
    slurm.add_argument("--gpu", metavar="NAME", help="the nodes' card, to plan for, e.g. 'H100 SXM'")
    slurm.add_argument("--follow", action="store_true", help="print the run's events until it is over")

    c = command("jobs", "jobs.queue:jobs", "list the jobs")
    c.epilog = (
        "The number in brackets is a job's place in the queue of its GPUs. When a job starts and ends is reckoned from"
        " the pace of what runs, and from the memory planner's for what has not begun."
    )
    c.add_argument(
        "--json", action="store_true", help="the job records as a list; starts_at and ends_at in seconds since 1970"
    )

    c = command("watch", "jobs.watch:watch", "follow a job line by line until it ends; leaving does not stop it")
    job_name(c, f"{JOB_HELP} (default: the one that runs, else the newest)", nargs="?")
    form = c.add_mutually_exclusive_group()
    form.add_argument("--plain", action="store_true", help="one line per event, each step included, also on a terminal")
    form.add_argument("--json", action="store_true", help="the event objects, one per line")
    c.add_argument("--since", type=seq, default=0, metavar="SEQ", help="only events with a greater sequence number")

    c = command("wait", "jobs.wait:wait", "wait until jobs have ended; leaving does not stop them")
    c.epilog = (
        "Prints NAME STATE for each job as it ends. Exit code: 0 when all are done, 75 when one has stopped and can be"
        " resumed, 1 when one failed or was cancelled. It waits through a restart or an upgrade of the daemon."
    )
    job_name(c, nargs="+", dest="jobs")
    c.add_argument("--any", action="store_true", help="until the first of them has ended; its exit code")
    # ids whose end a wanlora has told that was upgraded while it waited
    c.add_argument("--told", type=int, action="append", default=[], help=argparse.SUPPRESS)


def anyway(c: argparse.ArgumentParser) -> None:
    c.add_argument("--anyway", action="store_true", help="do not wait until others have left its GPUs")


def act_on_jobs(commands: Commands) -> None:
    """What is done to a job that the daemon has, and its dashboard."""
    command = partial(add_command, commands)
    for name, handler, does in (
        ("stop", "jobs.queue:stop", "save a checkpoint, then stop; the job can be resumed"),
        ("cancel", "jobs.queue:cancel", "take a job from the queue, or end it without saving; its checkpoints stay"),
        ("save", "jobs.queue:save", "have a running job save a checkpoint now, and continue"),
        ("sample", "jobs.queue:sample", "have a running job make its previews now, and continue"),
    ):
        c = command(name, handler, does)
        job_name(c)

    c = command("set", "jobs.queue:set_field", "change a running job, e.g. wanlora set JOB training.lr=5e-5")
    c.epilog = (
        "These can be changed while a job runs: training.lr, multistage.high.lr, multistage.low.lr, training.steps,"
        " save.every, save.keep, sample.every, sample.shift. A change counts from the next step on; a resume repeats it"
        " at the same step. Anything else: stop the job, edit its job file, resume."
    )
    job_name(c)
    fields = c.add_argument(
        "settings",
        nargs="+",
        metavar="FIELD=VALUE",
        help="one or more settings; all are looked at before the first is sent",
    )
    completed_by(fields, completing.live_fields)

    c = command("resume", "resume:resume", "queue an ended job again, from its newest checkpoint or an older one")
    c.epilog = (
        "The job file is read anew. Learning rates, steps, [save], [sample] and GPUs may have changed; any other change"
        " is shown and asked about, because the run would not continue exactly as it began. Without a terminal it is"
        " refused unless --accept-changes is given. See the steps to go back to with: wanlora checkpoints JOB"
    )
    which = c.add_mutually_exclusive_group(required=True)
    job_name(which, f"{JOB_HELP}; it alone goes on", nargs="?")
    which.add_argument(
        "--all",
        action="store_true",
        help="everything that waits since the machine restarted: first the jobs that this broke off, then the queue",
    )
    going_on(c)
    anyway(c)

    c = command(
        "checkpoints",
        "resume:checkpoints",
        "list the checkpoints of a run with their losses and previews, to go back to one",
        far="either",
    )
    c.epilog = "Losses are means over the last 20 steps of each expert up to the checkpoint."
    job_name(c, f"{JOB_HELP}; or a job file (needs no daemon)")
    out(c, "with a job file: ")
    c.add_argument("--json", action="store_true", help="a list of objects")

    c = command("attach", "tui:attach", "the live dashboard, here or through SSH", far="itself")
    job_name(c, f"{JOB_HELP} (default: the one that runs, else the newest)", nargs="?")
    c.add_argument(
        "--rate",
        type=hourly,
        metavar="PRICE",
        help="what an hour of the machine costs (default: [cost] rate in settings.toml)",
    )

    c = command(
        "judge", "jobs.judge:judge", "measure a run's previews against its clips: motion, look, drift", far="there"
    )
    c.formatter_class = argparse.RawDescriptionHelpFormatter
    c.epilog = JUDGED
    run(c)
    c.add_argument("--json", action="store_true", help="one object, as it stays in RUN/judge.json")

    c = command(
        "report", "jobs.judge:report", "write the page of a run, RUN/report.html, and print its path", far="there"
    )
    c.epilog = (
        "One file that needs no server and can be mailed: settings, losses, previews, findings, measures, and which"
        " file goes where in ComfyUI. A trainer writes it, too, whenever an attempt ends."
    )
    run(c)

    c = command("fetch", "far.fetch:fetch", "bring LoRA files, previews or the whole run of a job here, with progress")
    c.epilog = (
        "Of a job on this machine it makes a copy. A fetch that was interrupted goes on where it was; files are proven"
        " by their SHA-256; a different file that is here already stays. Prints the path of each file."
    )
    job_name(c, f"{JOB_HELP} (default: the one that runs, else the newest)", nargs="?")
    c.add_argument(
        "--what",
        choices=["loras", "previews", "report", "run"],
        default="loras",
        help="loras: the final LoRA files, or the newest so far (default); previews: videos and pictures; report:"
        " page (report.html), events, job and findings; run: the whole run folder, with checkpoints",
    )
    c.add_argument("--step", type=step_or_all, metavar="STEP", help="LoRA files or previews of this step; or: all")
    c.add_argument("--to", type=Path, metavar="DIR", help="where to (default: a folder here with the job's name)")
    c.add_argument("--overwrite", action="store_true", help="replace files here that differ")

    commands.add_parser("serve-files").set_defaults(handler="far.fetch:serve_files", far="no")


JUDGED = """\
Needs OpenCV: pip install 'wanlora-tui[judge]'. Lengths are widths of the picture; seconds
are the model's own, 16 frames.
  SPEED      widths a second, the mean of all that moves, and as a multiple of the clips'
  DIRECTION  1: camera and subject go where those of the clips go; 0: elsewhere, or back
  SUBJECT    widths a second that the subject moves beyond the camera
  PAN, ZOOM  of the camera a second: widths right and down, nearer; ROLL in degrees
  SHARP      sharpness of the later frames, the first one's being 1; more is noise
  FLICKER    change of brightness that no motion explains, 1 being black to white
  COLOURS    distance of the later frames' colours from the first one's, 0 to 1
  PATH       widths that an object of the toy base is off the clips' way; SHAPE, what of
             its outline it keeps
  CHANGED    difference from the preview of step 0, 0 to 1: without the trigger, it is drift
"""


def run(c: argparse.ArgumentParser) -> None:
    """A run by its folder or its job, which a shell completes."""
    help = f"run folder (a path with a slash, or a folder here), or a job: {JOB_HELP} (default: the newest)"
    completed_by(c.add_argument("run", nargs="?", metavar="RUN", help=help), completing.job_names)


def hourly(text: str) -> float:
    """A price for an hour. Raises ValueError."""
    if not 0 <= (price := float(text)) <= 100_000:
        raise ValueError(text)
    return price


def arrange_the_queue(commands: Commands) -> None:
    """What is done about the order of the jobs, and about the list."""
    command = partial(add_command, commands)
    c = command("priority", "jobs.arrange:priority", "set a job's priority; higher ones run first, equal ones in order")
    c.epilog = (
        "0 is usual. A job for several GPUs is never overtaken by those of its priority or a lower one, however few"
        " GPUs they need."
    )
    job_name(c)
    c.add_argument("priority", type=whole, metavar="N", help="a whole number, also below 0")

    c = command("move", "jobs.arrange:move", "give a queued job another place")
    c.epilog = "It takes the priority of the jobs that it comes to stand among, where its own would put it elsewhere."
    job_name(c)
    c.add_argument("place", choices=("first", "last", "before", "after"), help="where to, among all queued jobs")
    job_name(c, "the job that it goes before or after", nargs="?", dest="other")

    c = command("hold", "jobs.arrange:hold", "keep a queued job from starting; those behind it go on")
    job_name(c)

    c = command("release", "jobs.arrange:release", "let a held job go")
    c.epilog = "A job that is held because one that it comes after did not get done starts without it then."
    job_name(c)
    c.add_argument("--anyway", action="store_true", help="nor wait for other jobs that it should come after")

    c = command("remove", "jobs.arrange:remove", "take queued or ended jobs from the list; run folders stay")
    c.epilog = "A job that runs is refused: stop or cancel it first."
    job_name(c, nargs="+", dest="jobs")

    c = command("rename", "jobs.arrange:rename", "call a job otherwise")
    c.epilog = (
        "A job that has begun gets another name in the list alone: its run folder and files keep theirs. One that has"
        " not begun gets it wholly, when the run folder of that name is free."
    )
    job_name(c)
    c.add_argument("name", metavar="NEWNAME", help="letters, digits, dot, underscore, dash; 1 to 64")

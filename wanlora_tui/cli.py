"""The `wanlora` command: arguments, exit codes, and where errors go.

stdout is data, stderr is talk. Exit codes: 0 done, 1 findings or failure, 2 usage, 75 saved and can be resumed
(130 when Ctrl-C ended a command that had not finished). Every handler is imported only when its command runs.
"""

import argparse
import importlib
import os
import sys
from functools import partial
from pathlib import Path

DONE, FAILED, USAGE, RESUMABLE, INTERRUPTED = 0, 1, 2, 75, 130

_EPILOG = """\
A first job, from a folder of clips to two LoRA files:
  wanlora new --kind motion --clips clips/orbit --out job.toml
  wanlora check job.toml
  wanlora submit job.toml && wanlora attach

stdout is data, stderr is talk.
Exit codes: 0 done, 1 findings or failure, 2 usage, 75 saved and can be resumed.
"""


Commands = argparse._SubParsersAction


def _shared() -> argparse.ArgumentParser:
    """The option of every command that talks to the daemon."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--dir",
        type=Path,
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="directory of the daemon's sockets and job table (default: your runtime directory)",
    )
    return shared


def _command(commands: Commands, name: str, handler: str, help: str, *, daemon: bool = True) -> argparse.ArgumentParser:
    """`daemon`: it talks to the daemon, so it takes --dir."""
    description = help[0].upper() + help[1:] + "."
    sub: argparse.ArgumentParser = commands.add_parser(
        name, help=help, description=description, parents=[_shared()] if daemon else []
    )
    sub.set_defaults(handler=handler)
    return sub


def parser() -> argparse.ArgumentParser:
    """Every command with its options; `handler` names the function that runs it."""
    top = argparse.ArgumentParser(
        prog="wanlora",
        parents=[_shared()],
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Train LoRAs for Wan 2.2 I2V A14B.\nWithout a command: the terminal interface, with the wizard and all"
            " jobs."
        ),
    )
    top.add_argument("--version", action="store_true", help="print the version")
    top.set_defaults(handler="tui:open_tui")
    commands = top.add_subparsers(title="commands", metavar="COMMAND")
    for group in (_work_on_job_files, _submit_and_watch, _act_on_jobs, _daemon, _cache):
        group(commands)
    _command(commands, "doctor", "doctor:doctor", "check GPU, driver, memory, disk, terminal and model files")
    return top


def _work_on_job_files(commands: Commands) -> None:
    """What needs no daemon, but for the demo."""
    command = partial(_command, commands)
    c = command("demo", "demo:demo", "make demo clips and a tiny base model, train on them, show the dashboard")
    c.add_argument("--plain", action="store_true", help="one line per event instead of the dashboard")
    c.add_argument("--steps", type=_positive, metavar="N", help="optimizer steps (default: 40)")
    c.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="DIR", help="where the demo lives (default: ./demo)"
    )
    c.add_argument("--prepare", type=Path, metavar="DIR", help="only write DIR/clips, DIR/base and DIR/job.toml")

    c = command("new", "job:new", "write a job file from a preset, this machine and a folder of clips", daemon=False)
    c.add_argument("--kind", required=True, choices=["motion", "style", "character"], help="what the LoRA teaches")
    c.add_argument("--clips", required=True, type=Path, metavar="DIR", help="folder of clips with their captions")
    c.add_argument("--name", metavar="NAME", help="training name (default: wan_i2v_KIND_FOLDER)")
    c.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change one field, e.g. training.lr=5e-5; may be repeated",
    )
    c.add_argument(
        "--out", type=Path, default=Path("job.toml"), metavar="FILE", help="the job file (default: job.toml)"
    )

    c = command("check", "job:check", "list everything wrong, doubtful or improvable about a job", daemon=False)
    _job_file(c)
    c.add_argument("--json", action="store_true", help="a list of {code, severity, field, message, fix}")

    c = command(
        "plan",
        "plan:plan",
        "memory and time of a job: precision, blocks on the GPU, peak VRAM and RAM, seconds per step",
        daemon=False,
    )
    _job_file(c)
    c.add_argument("--vram", type=_gib, metavar="GIB", help="plan for a card of this much memory")
    c.add_argument("--ram", type=_gib, metavar="GIB", help="plan for a machine of this much RAM")
    c.add_argument(
        "--gpu", metavar="NAME", help="plan for a known card, e.g. 4090 or 'A100 80GB', instead of the one here"
    )
    c.add_argument("--json", action="store_true", help="one object")

    c = command("timesteps", "timesteps:timesteps", "plot at which timesteps each expert will train", daemon=False)
    _job_file(c)
    c.add_argument("--png", type=Path, metavar="FILE", help="draw the same chart into a PNG file too")
    c.add_argument("--json", action="store_true", help="one object, with each expert's samples in bins of 10 timesteps")

    c = command("train", "job:train", "train one job in the foreground, without the daemon", daemon=False)
    _job_file(c)
    _out(c)
    c.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")
    _going_on(c)

    c = command(
        "ara",
        "job:ara",
        "build an accuracy recovery adapter: what 4-bit weights lose, put back as a small LoRA",
        daemon=False,
    )
    c.add_argument("model", metavar="MODEL", help="folder or Hub id of the base model")
    c.add_argument("--rank", type=_positive, default=16, metavar="N", help="rank of the correction (default: 16)")
    c.add_argument(
        "--precision",
        choices=["qint4", "uint4"],
        default="qint4",
        help="uint4 is torchao's grid, the one of published adapters (default: qint4)",
    )
    c.add_argument(
        "--clips",
        type=Path,
        metavar="DIR",
        help="a few clips with captions: errors are weighed by what the model sees on them",
    )
    c.add_argument(
        "--full", action="store_true", help="with --clips: weigh by how channels vary together; slower, and better"
    )
    c.add_argument(
        "--expert", choices=["both", "high", "low"], default="both", help="which expert to correct (default: both)"
    )
    c.add_argument("--out", type=Path, metavar="FILE", help="the adapter (default: ara-PRECISION-rRANK.safetensors)")


def _submit_and_watch(commands: Commands) -> None:
    """Handing jobs to the daemon, and seeing what becomes of them."""
    command = partial(_command, commands)
    c = command("submit", "queue:submit", "hand a job to the daemon, which trains it when its GPU is free")
    _job_file(c)
    _out(c)
    c.add_argument(
        "--resume", action="store_true", help="continue the run that lies in its run folder, whoever began it"
    )
    _going_on(c)

    c = command("jobs", "queue:jobs", "list the jobs")
    c.add_argument("--json", action="store_true", help="the job records as a list")

    c = command("watch", "watch:watch", "follow a job line by line until it ends; leaving does not stop it")
    c.add_argument("job", nargs="?", metavar="JOB", help="name or number (default: the one that runs, else the newest)")
    form = c.add_mutually_exclusive_group()
    form.add_argument("--plain", action="store_true", help="one line per event, each step included, also on a terminal")
    form.add_argument("--json", action="store_true", help="the event objects, one per line")
    c.add_argument("--since", type=_seq, default=0, metavar="SEQ", help="only events with a greater sequence number")


def _act_on_jobs(commands: Commands) -> None:
    """What is done to a job that the daemon has, and its dashboard."""
    command = partial(_command, commands)
    for name, handler, does in (
        ("stop", "queue:stop", "save a checkpoint, then stop; the job can be resumed"),
        ("cancel", "queue:cancel", "take a job from the queue, or end it without saving; its checkpoints stay"),
        ("save", "live:save", "have a running job save a checkpoint now, and continue"),
        ("sample", "live:sample", "have a running job make its previews now, and continue"),
    ):
        c = command(name, handler, does)
        c.add_argument("job", metavar="JOB", help="name or number")

    c = command("set", "live:set_field", "change a running job, e.g. wanlora set JOB training.lr=5e-5")
    c.epilog = (
        "These can be changed while a job runs: training.lr, multistage.high.lr, multistage.low.lr, training.steps,"
        " save.every, save.keep, sample.every. A change counts from the next step on; a resume repeats it at the same"
        " step. Anything else: stop the job, edit its job file, resume."
    )
    c.add_argument("job", metavar="JOB", help="name or number")
    c.add_argument(
        "settings",
        nargs="+",
        metavar="FIELD=VALUE",
        help="one or more settings; all are looked at before the first is sent",
    )

    c = command("resume", "resume:resume", "queue an ended job again, from its newest checkpoint or an older one")
    c.epilog = (
        "The job file is read anew. Learning rates, steps, [save], [sample] and GPUs may have changed; any other change"
        " is shown and asked about, because the run would not continue exactly as it began. Without a terminal it is"
        " refused unless --accept-changes is given. See the steps to go back to with: wanlora checkpoints JOB"
    )
    c.add_argument("job", metavar="JOB", help="name or number")
    _going_on(c)

    c = command(
        "checkpoints",
        "resume:checkpoints",
        "list the checkpoints of a run with their losses and previews, to go back to one",
    )
    c.epilog = "Losses are means over the last 20 steps of each expert up to the checkpoint."
    c.add_argument("job", metavar="JOB", help="name or number, or a job file (needs no daemon)")
    _out(c, "with a job file: ")
    c.add_argument("--json", action="store_true", help="a list of objects")

    c = command("attach", "tui:attach", "the live dashboard, here or through SSH")
    c.add_argument("job", nargs="?", metavar="JOB", help="name or number (default: the one that runs, else the newest)")
    c.add_argument(
        "--host", metavar="USER@BOX", help="the machine that trains; needs ssh there and wanlora on its PATH"
    )


def _daemon(commands: Commands) -> None:
    """The daemon itself."""
    group = commands.add_parser(
        "daemon",
        help="start, stop or ask after the daemon",
        description="The daemon queues, starts and watches trainers. Stopping it does not stop them.",
    )
    parts = group.add_subparsers(title="commands", metavar="start|stop|status", required=True)
    command = partial(_command, parts)
    command("start", "daemon:start", "start the daemon, if none runs")
    command("stop", "daemon:stop", "end the daemon; trainers keep running and are found again by the next one")
    c = command("status", "daemon:status", "say whether the daemon runs, and where")
    c.add_argument("--json", action="store_true", help="one object")


def _cache(commands: Commands) -> None:
    """What is kept for the next start."""
    group = commands.add_parser(
        "cache",
        help="list or empty what is kept for the next start",
        description=(
            "Kept so that the next start is fast: packed weights of base models, latents of images, text embeddings."
        ),
    )
    group.set_defaults(handler="cache:show", json=False, kind=None)
    parts = group.add_subparsers(title="commands", metavar="list|clear|path")
    command = partial(_command, parts)
    kinds = ("weights", "latents", "texts")
    c = command(
        "list",
        "cache:show",
        "list what the caches hold, last used first (`wanlora cache` alone does the same)",
        daemon=False,
    )
    c.add_argument(
        "kind", nargs="?", choices=kinds, help="show every entry of this cache (default: all caches, summed up)"
    )
    c.add_argument("--json", action="store_true", help="a list of objects")
    c = command("clear", "cache:clear", "delete the caches, or one of them", daemon=False)
    c.add_argument("kind", nargs="?", choices=kinds, help="only this cache")
    c = command("path", "cache:path", "print the folder of the caches, or of one of them", daemon=False)
    c.add_argument("kind", nargs="?", choices=kinds, help="only this cache")


def _job_file(c: argparse.ArgumentParser) -> None:
    c.add_argument("job", type=Path, metavar="JOB", help="job file")


def _out(c: argparse.ArgumentParser, when: str = "") -> None:
    text = f"{when}parent of the run folder (default: `runs` beside the job file)"
    c.add_argument("--out", type=Path, metavar="DIR", help=text)


def _going_on(c: argparse.ArgumentParser) -> None:
    """What every command that resumes a run takes."""
    c.add_argument(
        "--from",
        type=_positive,
        dest="from_step",
        metavar="STEP",
        help="go back to the checkpoint of this step; what came after it is set aside",
    )
    c.add_argument(
        "--accept-changes",
        action="store_true",
        help="resume although the job file has changed in ways that break exactness",
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _gib(text: str) -> float:
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < 1e5:
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of memory in GiB")
    return size


def _seq(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _require_utf8(args: argparse.Namespace) -> None:
    """Whatever is named on the command line can be passed on. Raises UserError."""
    from presets.errors import UserError
    from presets.file_names import escaped, is_utf8, require_utf8

    for value in vars(args).values():
        if isinstance(value, Path):
            require_utf8(value)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not is_utf8(text):
                raise UserError(f"{escaped(text)} is not UTF-8", fix="Rename what it names")


def main(argv: list[str] | None = None) -> int:
    """Run one command line and give its exit code."""
    from presets.errors import UserError
    from wanlora_tui.terminal.streams import make_safe

    make_safe()
    args = parser().parse_args(argv)
    # before or behind the command's name; the option itself has no default, so neither place hides the other
    args.dir = args.dir.absolute() if "dir" in args else None
    if args.version:
        from presets import VERSION

        print(VERSION)
        return DONE
    module, _, function = args.handler.partition(":")
    try:
        _require_utf8(args)
        code: int = getattr(importlib.import_module(f"wanlora_tui.commands.{module}"), function)(args)
        sys.stdout.flush()
        return code
    except UserError as e:
        print(f"wanlora: {e}", file=sys.stderr)
        return FAILED
    # the reader has left (`wanlora watch | head`); the interpreter's last flush must not complain
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        print("wanlora: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())

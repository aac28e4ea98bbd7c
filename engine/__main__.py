"""`python -m engine JOB.toml [--out DIR] [--resume [--from STEP] [--accept-changes]] [--gpus N,M] [--vram GIB]`:
train one job, complete by itself.

Kept light: the data workers import this module again when they start.
"""

import argparse
import sys
from pathlib import Path

from engine.system import fault_injection
from presets.files import share_no_writing
from presets.text import escape_output


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m engine",
        description="Train one job. Exit codes: 0 done, 1 failed, 2 usage, 75 saved and can be resumed.",
    )
    parser.add_argument("job", type=Path, metavar="JOB.toml")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the run folder goes (default: the folder `runs` beside the job file)",
    )
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")
    parser.add_argument(
        "--from",
        type=int,
        metavar="STEP",
        dest="from_step",
        help="with --resume: go back to the checkpoint of this step; what came after it moves to RUN/abandoned",
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help=(
            "with --resume: resume though the job or its clips have changed, so that the run is no longer the one that"
            " was begun"
        ),
    )
    parser.add_argument(
        "--gpus",
        type=numbers,
        metavar="N,M",
        help="of the GPUs that the job names only these, because the others are gone",
    )
    parser.add_argument("--vram", type=float, metavar="GIB", help="use at most so much of the card's memory")
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        type=fault,
        metavar="KIND:POINT:STEP",
        help=(
            "for tests: fail on purpose, e.g. sigkill:save.before-rename:4 (kinds and points:"
            " engine/system/fault_injection.py)"
        ),
    )
    escape_output()
    share_no_writing()
    args = parser.parse_args(argv)
    if not args.resume and (args.from_step is not None or args.accept_changes):
        parser.error("--from and --accept-changes go with --resume")

    fault_injection.arm(args.fault)
    from engine.run import run_job

    return run_job(
        args.job,
        args.out,
        resume=args.resume,
        from_step=args.from_step,
        accept_changes=args.accept_changes,
        vram_gib=args.vram,
        gpus=args.gpus,
    )


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def fault(text: str) -> str:
    try:
        fault_injection.parse(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from None
    return text


if __name__ == "__main__":
    sys.exit(main())

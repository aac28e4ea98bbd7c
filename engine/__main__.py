"""`python -m engine JOB.toml [--out DIR] [--resume] [--vram GIB]`: train one job, complete by itself.

Kept light: the data workers import this module again when they start.
"""

import argparse
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m engine", description="Train one job. Exit codes: 0 done, 1 failed, 2 usage, 75 saved and can be resumed.")
    parser.add_argument("job", type=Path, metavar="JOB.toml")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the run folder goes (default: the folder `runs` beside the job file)")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")
    parser.add_argument("--vram", type=float, metavar="GIB", help="use at most so much of the card's memory")
    args = parser.parse_args(argv)

    from engine.run import run_job

    return run_job(args.job, args.out, resume=args.resume, vram_gib=args.vram)


if __name__ == "__main__":
    sys.exit(main())

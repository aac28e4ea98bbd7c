"""`make golden`: make the golden curves anew, say how far they are from those committed, and write them. Look at the
difference before you commit it."""

import argparse
import json
import os
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from engine.demo.tiny_base import build_tiny
from tests.golden import CURVES, FOLDER, STEPS, TOLERANCE, committed, curve, deviation


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when a curve differs by more than the tolerance"
    )
    parser.add_argument("curves", nargs="*", metavar="CURVE", help=f"of {', '.join(CURVES)} (default: all)")
    args = parser.parse_args()
    if unknown := set(args.curves) - CURVES.keys():
        parser.error(f"no such curve: {', '.join(sorted(unknown))}")
    worst = 0.0
    with tempfile.TemporaryDirectory(prefix="wlgolden") as scratch:
        tiny = build_tiny(Path(scratch) / "base")
        for name in args.curves or CURVES:
            with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere), redirect_stdout(nowhere):
                made = curve(name, STEPS, Path(scratch) / name, tiny)
            file = FOLDER / f"{name}.json"
            if file.exists():
                worst = max(worst, off := deviation(made, committed(name)))
                print(
                    f"{name:15} differs by at most {off:.2g} of its"
                    f" mean{'' if off <= TOLERANCE else f', MORE THAN {TOLERANCE}'}"
                )
            else:
                print(f"{name:15} is new")
            if not args.check:
                file.write_text(json.dumps(made, indent=1).replace("\n   ", " ").replace("\n  ]", " ]") + "\n")
    return int(args.check and worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())

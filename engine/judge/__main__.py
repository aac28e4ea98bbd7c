"""Measures a run's previews into RUN/judge.json. Started by `wanlora judge`.

    python -m engine.judge RUN

Each line of stdout is JSON: {"done": 3, "of": 20} as it gets on, and last the measures
(presets.report.measures.Judged).
"""

import os
import sys
from pathlib import Path

import msgspec

from engine.judge.measure import measure
from presets.atomic_file import write_file
from presets.errors import UserError
from presets.files import require_own
from presets.report.measures import FILE
from presets.report.run_reader import read_run
from presets.text import escape_output


def main() -> int:
    """Exit codes as of `wanlora`."""
    escape_output()
    try:
        run = read_run(Path(sys.argv[1]))
        said = msgspec.json.encode(measure(run, _tell))
        _say(said)
        keep(run.folder, said)
    except UserError as e:
        print(f"wanlora: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever asked has left
        os._exit(1)
    return 0


def keep(folder: Path, said: bytes) -> None:
    """Where the page finds them. A folder that cannot be written to is no reason to fail: they were printed."""
    try:
        require_own(folder / FILE)
        write_file(folder / FILE, msgspec.json.format(said) + b"\n")
    except OSError as e:
        print(f"wanlora: the measures are not kept in {folder}: {e.strerror or e}", file=sys.stderr)


def _tell(done: int, of: int) -> None:
    _say(msgspec.json.encode({"done": done, "of": of}))


def _say(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())

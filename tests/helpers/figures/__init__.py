"""Another machine for the whole suite: its surroundings drawn at random, and in `sitecustomize.py` its figures. What
fails there and not here depends on the machine. tests.busy asks for it."""

import os
import random
import shutil
import string
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.figures.sitecustomize import SEED

HERE = Path(__file__).parent
ZONES = ("UTC", "Asia/Kathmandu", "America/St_Johns", "Pacific/Kiritimati", "Pacific/Pago_Pago", "Europe/Berlin")


@contextmanager
def another_machine(seed: int) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Gives the environment and the arguments of the suite, and sets the umask that it inherits. Its folders end with
    the block."""
    draws = random.Random(seed)

    def letters(least: int, most: int) -> str:
        return "".join(draws.choices(string.ascii_lowercase, k=draws.randint(least, most)))

    place = Path(tempfile.mkdtemp(prefix="wl"))
    home = place / letters(1, 60)
    home.mkdir()
    before = os.umask(draws.choice((0o022, 0o002, 0o077)))
    try:
        yield (
            os.environ
            | {
                SEED: str(seed),
                "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
                "HOME": str(home),
                "TZ": draws.choice(ZONES),
                "LANG": draws.choice(("C", "C.UTF-8", "de_DE.UTF-8")),
                "TERM": draws.choice(("dumb", "xterm", "xterm-256color", "screen")),
                "COLORTERM": draws.choice(("", "truecolor")),
                "COLUMNS": str(draws.randint(40, 200)),
                "LINES": str(draws.randint(10, 80)),
            },
            [f"--basetemp={place / letters(1, 30)}"],
        )
    finally:
        os.umask(before)
        shutil.rmtree(place, ignore_errors=True)
